"""A protection domain: what one host offers to others, by every carrier: its registered regions and its immediates.

    protection = ProtectionDomain(await open_generations(memory), entropy.randbytes)
    region = protection.register(memory.open("log.g"), 0, 4096, Access.REMOTE_WRITE)
    protection.find(rkey)                                # the region, or None
    protection.local(region.lkey, 0, 8)                  # its memory, for this process
    protection.ring(immediates)                          # handlers run

Plain bookkeeping: it awaits nothing, and what can be done with a region is the carrier's business.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from everram.runtime.channel.contract import Access, ChannelError, Status
from everram.runtime.channel.generations import MEMORY_BYTES, MEMORY_NAME, Generations, kill
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.memory.atomics import METHOD, MISSING
from everram.runtime.memory.mapped import Mapped

SLOT_BITS = 16
"""The lower bits of an rkey name the slot; the other 48 are drawn, so that nobody can guess one."""
RECEIVERS_MAX = 65_536
"""Far more than one host has logs to receive: whoever takes more forgets to give back."""
WORD_BYTES = 8

log = logging.getLogger(__name__)


class Region:
    """`contract.MemoryRegion`."""

    __slots__ = (
        "_length", "_protection", "access", "atomics", "generation", "lkey", "memory", "offset", "rkey", "slot",
    )  # fmt: skip

    def __init__(
        self,
        protection: ProtectionDomain,
        rkey: int,
        lkey: int,
        generation: int,
        memory: MemoryObject,
        offset: int,
        length: int,
        access: Access,
    ) -> None:
        self._protection = protection
        self.rkey = rkey
        self.lkey = lkey
        self.slot = rkey & ((1 << SLOT_BITS) - 1)
        self.generation = generation
        """What the word of its slot is while it is valid."""
        self.memory = memory
        self.offset = offset
        self._length = length
        self.access = access
        self.atomics = METHOD if access & Access.REMOTE_ATOMIC else 0
        """How everybody does atomic operations here (`runtime.memory.atomics`); 0: nobody may."""

    @property
    def length(self) -> int:
        """Of a resizable object's region: as long as the object is now."""
        return self.memory.size_bytes if self.memory.resizable else self._length

    def deregister(self) -> None:
        self._protection.deregister(self)

    def allows(self, needed: Access, offset: int, length: int) -> bool:
        """Whether a peer may do that there, now."""
        return (
            bool(self.access & needed) and offset >= 0 and length >= 0 and offset + length <= self.length and self.valid
        )

    @property
    def valid(self) -> bool:
        """Looked up in the table: a dying machine's words say no before this process hears of it."""
        return self._protection.generations.word(self.slot) == self.generation


class ProtectionDomain:
    """`on_revoked` is called with each region after it was revoked."""

    def __init__(self, generations: Generations, randbytes: Callable[[int], bytes], *, atomic: bool) -> None:
        """`atomic`: whether regions may be registered for atomic operations."""
        self.generations = generations
        self.refused = 0
        """Requests of others for what is not registered, or not for that: forged, expired, out of bounds. Those that
        a peer over shared memory finds out by itself are not among them."""
        self.on_revoked: Callable[[Region], None] = lambda region: None
        self._randbytes = randbytes
        self._atomic = atomic
        self._regions: dict[int, Region] = {}  # by rkey
        self._local: dict[int, Region] = {}  # by lkey
        self._lkeys = 0
        self._counts: dict[MemoryObject, int] = {}  # how many regions of it are registered
        self._mappings: dict[MemoryObject, Mapped] = {}  # of those of which a region was touched here
        # First given back, last given out: a stale rkey meets an empty slot rather than a new tenant.
        self._free = deque(range(generations.slots))
        self._handlers: dict[int, Callable[[], None]] = {}  # by immediate
        self._open = True

    def register(self, memory: MemoryObject, offset: int, length: int, access: Access) -> Region:
        """Raises InvalidArgument, ResourceExhausted, FailedPrecondition."""
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
        if memory.resizable and access & Access.REMOTE_ATOMIC:
            raise InvalidArgument(f"{memory.name} is resizable: nobody maps it, so it has no atomic operations")
        if access & Access.REMOTE_ATOMIC and not self._atomic:
            raise FailedPrecondition(f"{memory.name} cannot be registered for atomic operations: {MISSING}")
        if not self._free:
            raise ResourceExhausted(f"{self.generations.slots} regions are registered: deregister some first")
        slot = self._free.popleft()
        rkey = int.from_bytes(self._randbytes(6), "little") << SLOT_BITS | slot
        self._lkeys += 1
        region = Region(self, rkey, self._lkeys, self.generations.take(slot), memory, offset, length, access)
        self._regions[rkey] = self._local[region.lkey] = region
        self._counts[memory] = self._counts.get(memory, 0) + 1
        return region

    def deregister(self, region: Region) -> None:
        if self._regions.pop(region.rkey, None) is not None:
            del self._local[region.lkey]
            self.generations.revoke(region.slot)
            self._free.append(region.slot)
            self.on_revoked(region)
            self._counts[region.memory] -= 1
            if not self._counts[region.memory]:
                del self._counts[region.memory]
                if region.memory in self._mappings:
                    _unmap(self._mappings.pop(region.memory))

    def deregister_all(self) -> None:
        for region in list(self._regions.values()):
            self.deregister(region)

    def find(self, rkey: int) -> Region | None:
        return self._regions.get(rkey)

    def mapping(self, region: Region) -> Mapped:
        """Of the region's whole memory object, made at its first use, and anew when a resizable one has grown. It is
        shortened by this process alone, which revokes the region first. Raises InvalidArgument for an empty one,
        ResourceExhausted."""
        mapping = self._mappings.get(region.memory)
        if mapping is not None and mapping.size_bytes < region.memory.size_bytes:
            _unmap(self._mappings.pop(region.memory))
            mapping = None
        if mapping is None:
            made = region.memory.map()
            assert isinstance(made, Mapped)
            mapping = self._mappings[region.memory] = made
        return mapping

    def find_local(self, lkey: int, offset: int, length: int) -> Region:
        """Raises ChannelError."""
        region = self._local.get(lkey)
        if region is None or offset < 0 or length < 0 or offset + length > region.length:
            raise ChannelError(Status.LOC_PROT_ERR, f"lkey {lkey} names nothing of {length} bytes at {offset} here")
        return region

    def local(self, lkey: int, offset: int, length: int) -> memoryview:
        """Raises ChannelError, ResourceExhausted."""
        region = self.find_local(lkey, offset, length)
        at = region.offset + offset
        return self.mapping(region).view[at : at + length]

    def close(self) -> None:
        """Idempotent. Revokes everything, and unmaps the table."""
        if self._open:
            self._open = False
            self.deregister_all()
            self.generations.mapping.close()

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


def _unmap(mapping: Mapped) -> None:
    try:
        mapping.close()
    except BufferError:
        # Somebody still sends from it, or was given a view by `local`: it goes with the last view.
        pass


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
