"""The dirty book: which pages of regions may have changed since they were flushed, in memory that outlives the host.

    book = DirtyBook.format(memory_object.map())
    table = book.add("region.0f3c.ledger", identity, number=3, pages=4096)
    table.set(7, DIRTY)
    book.begin(generation, True, first_segment)       # what the flushed pages lie in

One memory object, never saved: it is about this memory, and about what of it lies in the segments of the image. Its
header names the image that this memory was restored from (its pages are clean until they are stored to) and the first
segment that was flushed since. A region has an entry, by name and by the identity of its memory object, and one byte a
page. Every change is one store of one byte or word, or is published by one: a host may die between any two.
docs/formats.md, "Dirty book", has the layout.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

from everram.runtime.errors import DataLoss, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.runs import marked_runs

MEMORY_NAME = "dirty"
MAGIC = b"EVRDIRTY"
VERSION = (1, 0)
CLEAN, DIRTY, FLUSHING = 0, 1, 2
"""Of a page: as the segments have it (a page that no segment has holds zeros); charged to the cap; charged, protected
and on its way to a segment."""
ENTRIES = 4096
_ENTRY_BYTES = 256
_NAME_BYTES = 160
_HEADER = struct.Struct("<8sHHI")
_BASE_AT = 64
_BASE = struct.Struct("<II")
"""Generation of the image that was there, first segment flushed since; one word, stored whole. With the first's top
bit the image lies under what is flushed: clean pages may be in its segments."""
_BASED = 1 << 31
_ENTRIES_AT = PAGE_BYTES
_STATES_AT = _ENTRIES_AT + ENTRIES * _ENTRY_BYTES
_ENTRY = struct.Struct(f"<QQQQ{_NAME_BYTES}sI")
"""Identity, number, pages, offset of its states, name; CRC-32 over these. An entry whose last word says 1 counts."""
_USED_AT = _ENTRY_BYTES - 8


def book_bytes(pages: int) -> int:
    """Size of the memory object for regions of so many pages in all, and gaps between them."""
    return _STATES_AT + -(-2 * pages // PAGE_BYTES) * PAGE_BYTES


class Table:
    """One region's states, by page."""

    def __init__(self, mapping: Mapping, slot: int, name: str, identity: int, number: int, pages: int, at: int) -> None:
        self.slot = slot
        self.name = name
        self.identity = identity
        self.number = number
        """That stands for the region in the segments."""
        self.pages = pages
        self._mapping = mapping
        self.at = at

    def get(self, page: int) -> int:
        return self._mapping.load(self.at + page, 1)[0]

    def set(self, page: int, state: int) -> None:
        self._mapping.persist(self.at + page, bytes((state,)))

    def fill(self, first: int, count: int, state: int) -> None:
        self._mapping.persist(self.at + first, bytes((state,)) * count)

    def states(self) -> bytes:
        return self._mapping.load(self.at, self.pages)

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first page, count) of what is not clean, ascending."""
        return marked_runs(self.states().translate(_CHARGED))

    def marks(self) -> bytes:
        """A byte for each page: 1 where it is not clean."""
        return self.states().translate(_CHARGED)

    def charged(self) -> int:
        return self.pages - self.states().count(CLEAN)


_CHARGED = bytes(state != CLEAN for state in range(256))


class DirtyBook:
    """See the module."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self.tables: dict[str, Table] = {}

    @staticmethod
    def format(mapping: Mapping) -> DirtyBook:
        """In zeroed memory."""
        header = _HEADER.pack(MAGIC, *VERSION, 0)
        mapping.persist(0, header + zlib.crc32(header).to_bytes(4, "little"))
        return DirtyBook(mapping)

    @staticmethod
    def open(mapping: Mapping) -> DirtyBook:
        """Raises DataLoss for what is no book of this version: then nothing is known to be clean."""
        header = mapping.load(0, _HEADER.size)
        magic, major, _, _ = _HEADER.unpack(header)
        checksum = int.from_bytes(mapping.load(_HEADER.size, 4), "little")
        if magic != MAGIC or major != VERSION[0] or checksum != zlib.crc32(header):
            raise DataLoss("the dirty book cannot be read: its header does not verify")
        book = DirtyBook(mapping)
        for slot in range(ENTRIES):
            at = _ENTRIES_AT + slot * _ENTRY_BYTES
            if mapping.load_u64(at + _USED_AT) == 1:
                book._take(slot, mapping.load(at, _ENTRY.size))
        return book

    @staticmethod
    def spoil(mapping: Mapping) -> None:
        """It is no book any more."""
        mapping.publish_u64(0, 0)

    def _take(self, slot: int, entry: bytes) -> None:
        identity, number, pages, at, name, checksum = _ENTRY.unpack(entry)
        if checksum != zlib.crc32(entry[:-4]) or at + pages > self._mapping.size_bytes:
            raise DataLoss(f"the dirty book cannot be read: entry {slot} does not verify")
        table = Table(self._mapping, slot, name.rstrip(b"\0").decode(), identity, number, pages, at)
        self.tables[table.name] = table

    @property
    def base(self) -> tuple[int, bool, int]:
        """(generation of the image that was there, whether it lies under what was flushed, first segment since)."""
        generation, first = _BASE.unpack(self._mapping.load(_BASE_AT, _BASE.size))
        return generation & ~_BASED, bool(generation & _BASED), first

    def begin(self, generation: int, based: bool, first_segment: int) -> None:
        word = _BASE.pack(generation | (_BASED if based else 0), first_segment)
        self._mapping.publish_u64(_BASE_AT, int.from_bytes(word, "little"))

    def add(self, name: str, identity: int, number: int, pages: int, dirty: Iterable[tuple[int, int]] = ()) -> Table:
        """All of its pages are clean but the `dirty` ones, (first page, count) each: a host that dies in here leaves no
        entry, or one that says so. Raises ResourceExhausted."""
        encoded = name.encode()
        slot = next(iter(set(range(len(self.tables) + 1)) - {t.slot for t in self.tables.values()}))
        at = self._room(pages)
        if slot >= ENTRIES or len(encoded) > _NAME_BYTES or at + pages > self._mapping.size_bytes:
            raise ResourceExhausted(f"the dirty book has no room for {name}")
        entry_at = _ENTRIES_AT + slot * _ENTRY_BYTES
        entry = _ENTRY.pack(identity, number, pages, at, encoded, 0)[:-4]
        states = bytearray(pages)
        for first, count in dirty:
            states[first : first + count] = bytes((DIRTY,)) * count
        self._mapping.persist(at, bytes(states))
        self._mapping.persist(entry_at, entry + zlib.crc32(entry).to_bytes(4, "little"))
        self._mapping.publish_u64(entry_at + _USED_AT, 1)
        table = self.tables[name] = Table(self._mapping, slot, name, identity, number, pages, at)
        return table

    def _room(self, pages: int) -> int:
        """The first gap that is large enough."""
        at = _STATES_AT
        for table in sorted(self.tables.values(), key=lambda table: table.at):
            if table.at - at >= pages:
                break
            at = table.at + table.pages
        return at

    def remove(self, table: Table) -> None:
        self._mapping.publish_u64(_ENTRIES_AT + table.slot * _ENTRY_BYTES + _USED_AT, 0)
        del self.tables[table.name]

    def close(self) -> None:
        self._mapping.close()
