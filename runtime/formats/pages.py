"""The page table of a region: one byte of state for each page, in memory that outlives the host.

    table = PageTable.format(memory_object.map(), pages=4096)
    table = PageTable.open(memory_object.map())
    table.set(7, State.WRITTEN)

A byte is a set of facts, chosen so that zero is right for a page that nobody ever touched: a new table is sparse. Each
change is one store of one byte, so every crash leaves a page's old or new state. docs/formats.md, "NVM device", has the
layout.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator

from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.runs import marked_runs

MAGIC = b"EVRPAGES"
VERSION = (1, 0)
_HEADER = struct.Struct("<8sHHIQ")
_CHECKSUM = struct.Struct("<I")
STATES_OFFSET = PAGE_BYTES
"""The header has a page to itself, so that it can grow."""


class State(enum.IntFlag):
    """Facts about one page; their absence is the state of a page that nobody has touched."""

    SWAPPED = 1
    """Its content is in the swap store, not in the arena."""
    SHARED = 2
    """A snapshot refers to its content."""
    DIRTY = 4
    """It is charged to the dirty cap."""
    WRITTEN = 8
    """It was stored to since tracking began or was last reset."""


ALL_STATES = State.SWAPPED | State.SHARED | State.DIRTY | State.WRITTEN


def table_name(guest_id: str, region: str) -> str:
    """Name of the memory object of a tracked region's page table."""
    return f"pages.{guest_id}.{region}"


class PageTable:
    """States by page number. Out-of-range pages raise IndexError (a bug in the caller)."""

    def __init__(self, mapping: Mapping, pages: int) -> None:
        self._mapping = mapping
        self.pages = pages

    @staticmethod
    def total_bytes(pages: int) -> int:
        """Size of the memory object of a table of so many pages."""
        return STATES_OFFSET + -(-pages // PAGE_BYTES) * PAGE_BYTES

    @staticmethod
    def format(mapping: Mapping, pages: int) -> PageTable:
        """A new table in zeroed memory: nobody has touched any page."""
        header = _HEADER.pack(MAGIC, *VERSION, 0, pages)
        mapping.persist(0, header + _CHECKSUM.pack(zlib.crc32(header)))
        return PageTable(mapping, pages)

    @staticmethod
    def open(mapping: Mapping) -> PageTable:
        """Raises DataLoss for a damaged table, FailedPrecondition for one of a later version."""
        size_bytes = mapping.size_bytes
        if size_bytes < STATES_OFFSET:
            raise DataLoss(f"page table: {size_bytes} bytes are too few for its header of {STATES_OFFSET}")
        header = mapping.load(0, _HEADER.size)
        magic, major, minor, _, pages = _HEADER.unpack(header)
        if magic != MAGIC:
            raise DataLoss(f"page table: {magic!r} at offset 0 is not its magic {MAGIC!r}")
        if _CHECKSUM.unpack(mapping.load(_HEADER.size, _CHECKSUM.size)) != (zlib.crc32(header),):
            raise DataLoss("page table: its header at offset 0 does not match its checksum")
        if major > VERSION[0]:
            raise FailedPrecondition(
                f"page table: written in version {major}.{minor}, this everram reads {VERSION[0]}.x: use the later one"
            )
        if PageTable.total_bytes(pages) > size_bytes:
            raise DataLoss(f"page table: {pages} pages do not fit into its {size_bytes} bytes")
        return PageTable(mapping, pages)

    def get(self, page: int) -> State:
        self._check(page)
        return State(self._mapping.load(STATES_OFFSET + page, 1)[0])

    def set(self, page: int, state: State) -> None:
        """Publish one page's state: persistent when this returns, old or new after a crash."""
        self._check(page)
        self._mapping.persist(STATES_OFFSET + page, bytes((state,)))

    def clear(self, fact: State) -> None:
        """Take one fact away from every page; after a crash, from some of them."""
        states = self._states()
        if states.translate(_keep(fact)).strip(b"\0"):
            self._mapping.persist(STATES_OFFSET, states.translate(_keep(~fact & ALL_STATES)))

    def count(self, fact: State) -> int:
        return self.pages - self._states().translate(_keep(fact)).count(0)

    def runs(self, holds: bytes) -> Iterator[tuple[int, int]]:
        """(first page, number of pages) of each run whose states `holds` maps to 1 (256 bytes of 0 or 1)."""
        return marked_runs(self._states().translate(holds))

    def close(self) -> None:
        self._mapping.close()

    def _states(self) -> bytes:
        return self._mapping.load(STATES_OFFSET, self.pages)

    def _check(self, page: int) -> None:
        if not 0 <= page < self.pages:
            raise IndexError(f"page {page} of a table of {self.pages}")


def _keep(facts: int) -> bytes:
    """A translation that keeps only `facts` of a state."""
    return bytes(state & facts for state in range(256))
