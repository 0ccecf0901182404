"""Who uses a simulated guest's volatile memory: fills, reads, changes and frees it, and has every byte of it checked.

One object over all incarnations of its guest, like a workload; in the guest run the real library of volatile memory and
its agent, over pages that the host takes back and brings again (`everram.runtime.simulation.paging`). Several threads
use it at once, each with blocks of its own, and a cache that they share.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from everram.actors.chaos.checks.no_page_lost import NoPageLost
from everram.actors.chaos.volatile_plan import VolatilePlan
from everram.runtime.formats.page_classes import CLASSES_LABEL, MEMORY_LABEL, PageClasses
from everram.runtime.guest.agent import Listener
from everram.runtime.guest.errors import OutOfMemory
from everram.runtime.guest.volatile import Block, Cache, Volatile
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.machine import Seat
from everram.runtime.simulation.objects import GatedMapping
from everram.runtime.simulation.paging import AddressSpace, PagedMapping
from everram.runtime.simulation.world import World

THREADS = 2
BLOCK_PAGES = (1, 1, 2, 5, 12)
PAUSE_S = 0.004
"""The longest between two uses."""
REST_S = 0.4
"""The longest that a thread leaves all of its memory alone, now and then."""
ATTEND_S = 0.02
"""The longest until an agent has seen what its host wants."""
KEYS = 40


@dataclass(slots=True)
class _Kept:
    number: int
    block: Block
    pages: int


class VolatileUser:
    """`live` runs in each incarnation; `seen_whole` says whether everything was verified since `look_whole`."""

    def __init__(self, world: World, name: str, plan: VolatilePlan, index: int) -> None:
        self._world = world
        self._name = name
        self._plan = plan
        self._listens = plan.agents[index]
        self._stream = world.stream(f"memory/{name}")
        self._check = NoPageLost(world, name)
        self._numbers = 0
        self._wanted = 0
        self._seen: list[int] = []
        """By thread: the last look at everything that was wanted and done."""

    # -- for the scenario

    def look_whole(self) -> None:
        self._wanted += 1

    @property
    def seen_whole(self) -> bool:
        return bool(self._seen) and min(self._seen) == self._wanted

    # -- one incarnation

    async def live(self, seat: Seat) -> None:
        """To the end of its process. Errors are the machine's to tell."""
        try:
            async with asyncio.TaskGroup() as tasks:
                space, memory = self._begin(seat)
                cache = memory.cache()
                if self._listens:
                    tasks.create_task(self._attend(memory))
                for thread in range(THREADS):
                    tasks.create_task(self._use(thread, space, memory, cache))
        except Exception as error:
            seat.machine.failures.append((seat.domain.name, error))

    def _begin(self, seat: Seat) -> tuple[AddressSpace, Volatile]:
        machine, by_label = seat.machine, {grant.label: grant for grant in seat.launch.grants}
        content = machine.objects.by_name[by_label[MEMORY_LABEL].memory]
        classes = GatedMapping(machine.objects.by_name[by_label[CLASSES_LABEL].memory], seat.gate)
        self._check.begin()
        self._seen = [self._wanted - 1] * THREADS
        space = machine.spaces.begin(seat.launch.guest_id, content, seat.domain, seat.gate)
        return space, Volatile(PagedMapping(space), PageClasses.open(classes))

    async def _attend(self, memory: Volatile) -> None:
        """As `everram.runtime.guest.agent` does in a thread of its own."""
        listener = Listener(memory)
        while True:
            listener.attend()
            await asyncio.sleep(self._stream.uniform(0, ATTEND_S))

    # -- one thread

    async def _use(self, thread: int, space: AddressSpace, memory: Volatile, cache: Cache) -> None:
        stream, mine = self._stream, list[_Kept]()
        share = int(space.pages * self._plan.used) // THREADS
        while True:
            held = sum(kept.pages for kept in mine)
            draw = stream.random()
            if self._seen[thread] < self._wanted:
                wanted = self._wanted
                for kept in mine:
                    await self._verify(space, kept, range(kept.pages))
                self._seen[thread] = wanted
            elif not mine or (draw < 0.5 and held < share):
                await self._allocate(space, memory, mine, min(share - held, stream.choice(BLOCK_PAGES)) or 1)
            elif draw < 0.7:
                await self._change(space, stream.choice(mine))
            elif draw < 0.75:
                self._free(memory, mine)
            elif draw < 0.85:
                await self._use_cache(space, cache)
            elif draw < 0.87:
                await asyncio.sleep(stream.uniform(0, REST_S))
            else:
                kept = stream.choice(mine)
                await self._verify(space, kept, [stream.randrange(kept.pages)])
            await asyncio.sleep(stream.uniform(0, PAUSE_S))

    async def _allocate(self, space: AddressSpace, memory: Volatile, mine: list[_Kept], pages: int) -> None:
        try:
            block = memory.allocate(pages * PAGE_BYTES)
        except OutOfMemory:
            return  # the other thread has it, or the cache's objects that nobody may give up
        self._numbers += 1
        kept = _Kept(self._numbers, block, pages)
        for page in range(pages):
            await self._store(space, kept, page * PAGE_BYTES, self._content(PAGE_BYTES))
        mine.append(kept)

    async def _change(self, space: AddressSpace, kept: _Kept) -> None:
        """Some bytes within a page, mostly few."""
        page, stream = self._stream.randrange(kept.pages), self._stream
        start = stream.randrange(PAGE_BYTES)
        length = stream.randrange(1, PAGE_BYTES - start + 1)
        if stream.random() < 0.7:
            length = min(length, 64)
        await self._store(space, kept, page * PAGE_BYTES + start, self._content(length))

    def _free(self, memory: Volatile, mine: list[_Kept]) -> None:
        for _ in range(self._stream.randrange(1, 6)):
            if mine:
                kept = mine.pop(self._stream.randrange(len(mine)))
                self._check.freed(kept.number)
                memory.free(kept.block)

    async def _use_cache(self, space: AddressSpace, cache: Cache) -> None:
        """An object may be gone, and never be another."""
        key = self._stream.randrange(KEYS)
        content = key.to_bytes(8, "little") * (self._stream.randrange(1, 3) * PAGE_BYTES // 8)
        data = await space.run(lambda: cache.get(key))
        if data is None:
            await space.run(lambda: cache.put(key, content))
        elif data != content[:8] * (len(data) // 8):
            self._check.wrong(f"object {key} of its cache is another")

    async def _store(self, space: AddressSpace, kept: _Kept, offset: int, data: bytes) -> None:
        await space.run(lambda: kept.block.store(offset, data))
        self._check.stored(kept.number, offset, data)

    async def _verify(self, space: AddressSpace, kept: _Kept, pages: range | list[int]) -> None:
        for page in pages:
            offset = page * PAGE_BYTES
            content = await space.run(lambda offset=offset: kept.block.load(offset, PAGE_BYTES))  # type: ignore[misc]
            self._check.found(kept.number, offset, content)

    def _content(self, length: int) -> bytes:
        return self._stream.randbytes(8) * (length // 8) + b"." * (length % 8)
