"""What one host offers to others: its registered regions and its immediates. The owner's half of every carrier.

    registry = Registry(await open_generations(memory), entropy.randbytes)
    region = registry.register(memory.open("log.g"), 0, 4096, Access.REMOTE_WRITE)
    registry.find(rkey)                                  # the region, or None
    registry.ring(immediates)                            # handlers run

Plain bookkeeping: it awaits nothing, and what can be done with a region is the carrier's business.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from everram.runtime.channel.contract import Access
from everram.runtime.channel.generations import MEMORY_BYTES, MEMORY_NAME, Generations, kill
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import InvalidArgument, ResourceExhausted

SLOT_BITS = 16
"""The lower bits of an rkey name the slot; the other 48 are drawn, so that nobody can guess one."""
RECEIVERS_MAX = 65_536
"""Far more than one host has logs to receive: whoever takes more forgets to give back."""
WORD_BYTES = 8

log = logging.getLogger(__name__)


class Region:
    """`contract.MemoryRegion`."""

    __slots__ = ("_length", "_registry", "access", "generation", "memory", "offset", "rkey", "slot")

    def __init__(
        self,
        registry: Registry,
        rkey: int,
        generation: int,
        memory: MemoryObject,
        offset: int,
        length: int,
        access: Access,
    ) -> None:
        self._registry = registry
        self.rkey = rkey
        self.slot = rkey & ((1 << SLOT_BITS) - 1)
        self.generation = generation
        """What the word of its slot is while it is valid."""
        self.memory = memory
        self.offset = offset
        self._length = length
        self.access = access

    @property
    def length(self) -> int:
        """Of a resizable object's region: as long as the object is now."""
        return self.memory.size_bytes if self.memory.resizable else self._length

    def deregister(self) -> None:
        self._registry.deregister(self)


class Registry:
    """`on_revoked` is called with each region after it was revoked."""

    def __init__(
        self,
        generations: Generations,
        randbytes: Callable[[int], bytes],
        on_revoked: Callable[[Region], None] = lambda region: None,
    ) -> None:
        self.generations = generations
        self._randbytes = randbytes
        self._on_revoked = on_revoked
        self._regions: dict[int, Region] = {}  # by rkey
        # First given back, last given out: a stale rkey meets an empty slot rather than a new tenant.
        self._free = deque(range(generations.slots))
        self._handlers: dict[int, Callable[[], None]] = {}  # by immediate

    def register(self, memory: MemoryObject, offset: int, length: int, access: Access) -> Region:
        """Raises InvalidArgument, ResourceExhausted."""
        size_bytes = memory.size_bytes
        if memory.resizable and (offset or length):
            raise InvalidArgument(f"{memory.name} is resizable: it is registered whole, with offset and length 0")
        if not memory.resizable and _is_outside(size_bytes, offset, length):
            raise InvalidArgument(
                f"{length} bytes at {offset} of {memory.name} ({size_bytes} bytes) cannot be registered: a region lies "
                f"inside and begins and ends at multiples of {WORD_BYTES}"
            )
        if not access:
            raise InvalidArgument(f"a region of {memory.name} that allows nothing cannot be registered")
        if not self._free:
            raise ResourceExhausted(f"{self.generations.slots} regions are registered: deregister some first")
        slot = self._free.popleft()
        rkey = int.from_bytes(self._randbytes(6), "little") << SLOT_BITS | slot
        region = Region(self, rkey, self.generations.take(slot), memory, offset, length, access)
        self._regions[rkey] = region
        return region

    def deregister(self, region: Region) -> None:
        if self._regions.pop(region.rkey, None) is not None:
            self.generations.revoke(region.slot)
            self._free.append(region.slot)
            self._on_revoked(region)

    def deregister_all(self) -> None:
        for region in list(self._regions.values()):
            self.deregister(region)

    def find(self, rkey: int) -> Region | None:
        return self._regions.get(rkey)

    def receive(self, handler: Callable[[], None]) -> int:
        """Raises ResourceExhausted."""
        if len(self._handlers) >= RECEIVERS_MAX:
            raise ResourceExhausted(f"{RECEIVERS_MAX} immediates are received: give some back first")
        immediate = int.from_bytes(self._randbytes(4), "little")
        while immediate in self._handlers:
            immediate = (immediate + 1) & 0xFFFF_FFFF
        self._handlers[immediate] = handler
        return immediate

    def unreceive(self, immediate: int) -> None:
        self._handlers.pop(immediate, None)

    def ring(self, immediates: Iterable[int]) -> None:
        """Run the handler of each; a number that nobody receives rings nothing."""
        for immediate in immediates:
            handler = self._handlers.get(immediate)
            if handler is not None:
                try:
                    handler()
                except Exception:
                    log.exception("the handler of an immediate failed")


def _is_outside(size_bytes: int, offset: int, length: int) -> bool:
    return bool(offset % WORD_BYTES or length % WORD_BYTES) or offset < 0 or length <= 0 or offset + length > size_bytes


async def open_generations(memory: Memory) -> Generations:
    """This machine's table, made if there is none, with everything in it revoked. Raises ResourceExhausted."""
    if MEMORY_NAME in memory.names():
        mapping = memory.open(MEMORY_NAME).map()
        try:
            generations = Generations.open(mapping)
        except ValueError as error:
            # Nothing in it is worth keeping, but peers of an earlier host may still look at it.
            log.warning("%s; it is made anew", error)
            kill(mapping)
            mapping.close()
            await memory.remove(MEMORY_NAME)
        else:
            generations.revoke_all()
            return generations
    return Generations.format((await memory.create(MEMORY_NAME, MEMORY_BYTES)).map())
