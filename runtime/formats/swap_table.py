"""Where a guest's pages are while they are not in memory: one word for each page, in memory that outlives the host.

    table = SwapTable.format(memory_object.map(), pages=65536)
    table.set(7, slot=12, checksum=zlib.crc32(content))     # published before the page's memory is given back
    table.get(7)                                            # (12, checksum), or None
    table.clear(7)

A word is stored whole, so a crash leaves a page's old or new place. What it means depends on the memory: **a page that
is present there is as it is there, whatever its word says**; only of a page that is missing does the word say where it
is, and zero then means that it reads as zeros. So a word may be published before a page's memory is given back and
cleared after it has been filled again, and a crash between the two loses nothing. docs/formats.md, "Swap", has the
layout.
"""

from __future__ import annotations

from collections.abc import Iterator

from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MAGIC = int.from_bytes(b"EVRSWAPT", "little")
VERSION = 1
TABLE_PREFIX = "swapped."
"""Of the tables' names; a guest_id follows."""
MEMORY_PREFIX = "volatile."
"""Of the names of guests' volatile memory itself."""
WORDS_OFFSET = PAGE_BYTES
SLOTS_MAX = (1 << 32) - 1
_PAGES_OFFSET = 16


class SwapTable:
    """Pages outside raise IndexError: a bug in the caller."""

    def __init__(self, mapping: Mapping, pages: int) -> None:
        self._mapping = mapping
        self.pages = pages

    @staticmethod
    def total_bytes(pages: int) -> int:
        return WORDS_OFFSET + -(-pages * 8 // PAGE_BYTES) * PAGE_BYTES

    @staticmethod
    def format(mapping: Mapping, pages: int) -> SwapTable:
        """In zeroed memory: no page is swapped out."""
        mapping.publish_u64(8, VERSION)
        mapping.publish_u64(_PAGES_OFFSET, pages)
        mapping.publish_u64(0, MAGIC)
        return SwapTable(mapping, pages)

    @staticmethod
    def open(mapping: Mapping) -> SwapTable:
        """Raises DataLoss for a damaged table, FailedPrecondition for one of a later version."""
        magic, version, pages = mapping.load_u64(0), mapping.load_u64(8), mapping.load_u64(_PAGES_OFFSET)
        if magic != MAGIC:
            raise DataLoss(f"swap table: {magic:#x} at offset 0 is not its magic {MAGIC:#x}")
        if version != VERSION:
            raise FailedPrecondition(
                f"swap table: written in version {version}, this everram reads {VERSION}: use the later one"
            )
        if SwapTable.total_bytes(pages) > mapping.size_bytes:
            raise DataLoss(f"swap table: {pages} pages do not fit into its {mapping.size_bytes} bytes")
        return SwapTable(mapping, pages)

    def get(self, page: int) -> tuple[int, int] | None:
        """(slot, CRC-32 of the content); None if it is not swapped out."""
        word = self._mapping.load_u64(self._at(page))
        return ((word & 0xFFFFFFFF) - 1, word >> 32) if word else None

    def is_swapped(self, page: int) -> bool:
        return self._mapping.load_u64(self._at(page)) != 0

    def set(self, page: int, slot: int, checksum: int) -> None:
        assert 0 <= slot < SLOTS_MAX
        self._mapping.publish_u64(self._at(page), checksum << 32 | slot + 1)

    def clear(self, page: int) -> None:
        self._mapping.publish_u64(self._at(page), 0)

    def swapped(self) -> Iterator[tuple[int, int]]:
        """(page, slot) of all that have a place, ascending by page."""
        words = memoryview(self._mapping.load(WORDS_OFFSET, self.pages * 8)).cast("Q")
        for page, word in enumerate(words):
            if word:
                yield page, (word & 0xFFFFFFFF) - 1

    def close(self) -> None:
        self._mapping.close()

    def _at(self, page: int) -> int:
        if not 0 <= page < self.pages:
            raise IndexError(f"page {page} of a table of {self.pages}")
        return WORDS_OFFSET + page * 8
