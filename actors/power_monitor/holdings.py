"""Which segment has each flushed page: how much of a segment is still right, and what would have to be moved out of it.

holdings = Holdings()
holdings.put(segment, number, page, count)
holdings.live(segment)               # pages that no later segment has
holdings.of(segment)                 # which these are
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator

from everram.runtime.formats.dirty_book import CLEAN
from everram.runtime.formats.segment import SegmentIndex


class Holdings:
    """Pages by (number of the object, page); a page that no segment has holds zeros."""

    def __init__(self) -> None:
        self._segments: dict[int, array[int]] = {}
        self._live: dict[int, int] = {}

    def put(self, segment: int, number: int, page: int, count: int) -> None:
        """From now on this segment is right about these pages."""
        held = self._segments.setdefault(number, array("Q"))
        if len(held) < page + count:
            held.frombytes(bytes(8 * (page + count - len(held))))
        live = self._live
        for at in range(page, page + count):
            if held[at]:
                live[held[at]] -= 1
            held[at] = segment
        live[segment] = live.get(segment, 0) + count

    def put_each(self, segment: int, number: int, pages: Collection[int]) -> None:
        """`put` of many pages, one here and one there."""
        held = self._segments.setdefault(number, array("Q"))
        if len(held) <= (last := max(pages, default=-1)):
            held.frombytes(bytes(8 * (last + 1 - len(held))))
        live = self._live
        for page in pages:
            if held[page]:
                live[held[page]] -= 1
            held[page] = segment
        live[segment] = live.get(segment, 0) + len(pages)

    def paint(self, index: SegmentIndex, numbers: Collection[int]) -> None:
        """What a segment's index says of these objects; in the order of the segments."""
        for batch in index.batches:
            for number, page, count, _ in batch.placed():
                if number in numbers:
                    self.put(index.number, number, page, count)

    def lacks(self, number: int, first: int, states: bytes) -> list[int]:
        """Of the pages from `first` on, of which these are the states in the dirty book, those that are called clean
        and that no segment has."""
        held = self._segments.get(number, array("Q"))[first : first + len(states)]
        held.frombytes(bytes(8 * (len(states) - len(held))))
        if 0 not in held or CLEAN not in states:
            return []
        return [
            first + n
            for n, (segment, state) in enumerate(zip(held, states, strict=True))
            if not segment and state == CLEAN
        ]

    def live(self, segment: int) -> int:
        return self._live.get(segment, 0)

    def keep(self, numbers: Collection[int]) -> None:
        """Objects that are no more hold nothing."""
        for number in [number for number in self._segments if number not in numbers]:
            for segment in self._segments.pop(number):
                if segment:
                    self._live[segment] -= 1

    def of(self, segment: int) -> Iterator[tuple[int, int, int]]:
        """(number, first page, count) of what it is right about."""
        for number, held in self._segments.items():
            start = -1
            for page, found in enumerate(held):
                if found == segment:
                    start = page if start < 0 else start
                elif start >= 0:
                    yield number, start, page - start
                    start = -1
            if start >= 0:
                yield number, start, len(held) - start
