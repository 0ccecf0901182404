"""Regions with snapshots for tests: the NVM device's decisions on memory of any kind, with a dictionary for storage.

    device = Device(Space(), {"a": Arena(600)}, HeapBlocks())
    device.write("a", 3, b"...")                  # as a guest would: `before_write` first
    first = device.take("a", name="first")
    assert device.content(first) == ...           # a page at a time, wherever it lies
    device.delete(first)
    device.check()                                # raises AssertionError with the findings

What a region or a snapshot has to hold, the tests keep for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from everram.actors.nvm_device import checking, deletion, purging, reverting
from everram.actors.nvm_device.media import START_PAGES, Media
from everram.actors.nvm_device.media import Space as SpaceContract
from everram.actors.nvm_device.purging import Purge
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Arena as ArenaContract
from everram.actors.nvm_device.snapshots import Blocks, Snapshots, Taking
from everram.actors.nvm_device.virtblocks import Location, Place
from everram.runtime.errors import NotFound, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.contract import Mapping as Memory
from everram.runtime.memory.heap import HeapMapping
from tests.loose_memory import LooseMemory

BLOCKS = 4096
"""Of the store, and as many slots on storage."""


class Space:
    """Metadata in this process's own memory, up to so many pages."""

    def __init__(self, pages_max: int = 1 << 20, pages: int = START_PAGES) -> None:
        self.pages_max = pages_max
        self._mapping = HeapMapping(pages * PAGE_BYTES)

    def map(self) -> Memory:
        return self._mapping

    def grow(self, size_bytes: int) -> Memory:
        if size_bytes > self.pages_max * PAGE_BYTES:
            raise ResourceExhausted("the machine has no memory left")
        longer = HeapMapping(size_bytes)
        longer.store(0, self._mapping.load(0, self._mapping.size_bytes))
        self._mapping = longer
        return longer


class MemfdSpace:
    """Metadata on a memfd."""

    def __init__(self, memory: LooseMemory) -> None:
        self._memory = memory
        self._kept = memory.make("nvm.snapshots", START_PAGES * PAGE_BYTES, resizable=True)
        self._mapping = self._kept.map()

    def map(self) -> Memory:
        return self._mapping

    def grow(self, size_bytes: int) -> Memory:
        self._mapping.close()
        self._memory.resize(self._kept.name, size_bytes)
        self._mapping = self._kept.map()
        return self._mapping


class Arena:
    """A region's running point in this process's own memory."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._present: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // PAGE_BYTES, (offset + length) // PAGE_BYTES
        return b"".join(self._present.get(page, bytes(PAGE_BYTES)) for page in range(first, last))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        assert len(data) == PAGE_BYTES
        self._present[offset // PAGE_BYTES] = bytes(data)

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        stop = self.pages if end is None else min(self.pages, end // PAGE_BYTES)
        return [(page * PAGE_BYTES, PAGE_BYTES) for page in sorted(self._present) if start // PAGE_BYTES <= page < stop]

    def punch(self, offset: int, length: int) -> None:
        for page in range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES):
            self._present.pop(page, None)


class HeapBlocks:
    """The store in this process's own memory. Reading what was given back is an error."""

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}

    def load(self, number: int) -> bytes:
        return self.content[number]

    def load_into(self, first: int, target: memoryview) -> None:
        target[:] = self.view(first, len(target) // PAGE_BYTES)

    def view(self, first: int, count: int) -> memoryview:
        return memoryview(b"".join(self.content[number] for number in range(first, first + count)))

    def persist(self, number: int, data: bytes) -> None:
        self.content[number] = bytes(data)

    def discard(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.content.pop(number, None)


class Device:
    """See the module."""

    def __init__(self, space: SpaceContract, arenas: Mapping[str, ArenaContract], blocks: Blocks) -> None:
        self.space = space
        self.arenas = arenas
        self.blocks = blocks
        self.storage: dict[int, tuple[int, bytes]] = {}
        """Slot -> (virtblock, content)."""
        self.limit = BLOCKS
        Media.format(space)
        self.restart(finish=False)

    # -- what a host does

    def restart(self, *, finish: bool = True) -> None:
        """As a new host: open what there is, and finish what was under way."""
        self.snapshots = Snapshots.open(Media.open(self.space), self.arena_of, self.blocks)
        self.media.store.limit = self.media.storage.limit = self.limit
        if finish:
            self.finish()

    def finish(self) -> None:
        purging.recover(self.snapshots)
        for record in reverting.unfinished(self.snapshots):
            self.revert(record)
        for record in deletion.unfinished(self.snapshots):
            run(deletion.steps(self.snapshots, record))

    @property
    def media(self) -> Media:
        return self.snapshots.media

    def arena_of(self, name: str) -> ArenaContract:
        if name not in self.arenas:
            raise NotFound(f"there is no arena {name}")
        return self.arenas[name]

    def write(self, arena: str, page: int, data: bytes) -> bool:
        copied = self.snapshots.before_write(arena, page)
        assert self.snapshots.is_settled(arena, page)
        self.arenas[arena].write(page * PAGE_BYTES, content(data))
        return copied

    def take(self, *arenas: str, name: str, pages: int = 600) -> list[Record]:
        return self.snapshots.take([Taking(arena, name, pages * PAGE_BYTES) for arena in arenas], 0)

    def delete(self, *records: Record) -> None:
        for record in deletion.begin(self.snapshots, records):
            run(deletion.steps(self.snapshots, record))

    def purge(self, limit: int = purging.BATCH_BLOCKS) -> int:
        """How many blocks."""
        moved = 0
        for batch in purging.batches(self.snapshots, limit):
            purge = Purge.begin(self.snapshots, batch)
            self.store(purge)
            purge.publish()
            purge.end()
            moved += len(batch)
        return moved

    def store(self, purge: Purge) -> None:
        """What a purge moves, on storage."""
        for slot, virtblock, data in moved_by(purge):
            self.storage[slot] = virtblock, data

    def revert(self, record: Record) -> None:
        reverting.begin(self.snapshots, record)
        for page in reverting.pages(self.snapshots, record):
            reverting.restore(self.snapshots, record, page, self.load(record, page))
        run(deletion.steps(self.snapshots, reverting.end(self.snapshots, record)))

    # -- what is to be seen

    def load(self, record: Record, page: int) -> bytes | None:
        """A snapshot's content of a page; None: a hole."""
        arena = self.arena_of(self.snapshots.region_of(record).record.name)
        return self._at(arena, self.snapshots.locate(record, page))

    def _at(self, arena: ArenaContract, location: Location) -> bytes | None:
        place, number = location
        if place is Place.ARENA:
            return arena.read(number * PAGE_BYTES, PAGE_BYTES)
        if place is Place.STORE:
            return self.blocks.load(number)
        return self.storage[number][1] if place is Place.STORAGE else None

    def content(self, record: Record, pages: Sequence[int] | range = range(600)) -> dict[int, bytes]:
        """What a snapshot holds that is not zero."""
        found = ((page, self.load(record, page)) for page in pages)
        return {page: data for page, data in found if data is not None and any(data)}

    def running(self, arena: str, pages: Sequence[int] | range = range(600)) -> dict[int, bytes]:
        """What a region holds that is not zero."""
        found = ((page, self.arenas[arena].read(page * PAGE_BYTES, PAGE_BYTES)) for page in pages)
        return {page: data for page, data in found if any(data)}

    def findings(self) -> list[str]:
        return checking.check(self.snapshots)[0]

    def check(self) -> None:
        assert not self.findings()

    def check_empty(self) -> None:
        """Nothing is taken by any snapshot any more."""
        self.check()
        assert not self.snapshots.records
        assert (self.media.store.taken, self.media.storage.taken) == (0, 0)


def moved_by(purge: Purge) -> Iterator[tuple[int, int, bytes]]:
    """(slot, virtblock, content)."""
    target = memoryview(bytearray(PAGE_BYTES))
    for nth, (slot, virtblock) in enumerate(zip(purge.slots, purge.virtblocks, strict=True)):
        yield slot, virtblock, bytes(purge.load(nth, target))


def content(data: bytes) -> bytes:
    """A page that begins with it and repeats it."""
    return (data * (PAGE_BYTES // len(data) + 1))[:PAGE_BYTES]


def run(steps: Iterator[None]) -> None:
    for _ in steps:
        pass
