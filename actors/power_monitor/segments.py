"""The segments that memory is flushed into: which there are, the one that is being written, and what each still holds.

    segments = Segments(disk)
    segments.survey(memory_id, await examine(disk))
    segments.take_up(await segments.indexes(named, own), named, numbers)
    writer = await segments.current()                  # to be added to; then
    await segments.settle()                            # all of it is durable
    segments.holdings.put_each(writer.number, number, pages)

Those that the marker on storage names lie under those that were flushed since; a later one is right about a page. Of
what was flushed since, segments with nothing left are removed, and one with little left can be emptied by writing that
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping

from everram.actors.power_monitor.holdings import Holdings
from everram.runtime.environment import Disk
from everram.runtime.errors import DataLoss, EverramError, NotFound
from everram.runtime.formats.image import Survey
from everram.runtime.formats.image_files import HEADER_BYTES, index_name, pages_name, remove_segment
from everram.runtime.formats.segment import SegmentIndex, SegmentRef, SegmentWriter, parse_index
from everram.runtime.memory.contract import PAGE_BYTES

SEGMENT_PAGES = 64 * 1024
"""Then the next one is begun: 256 MiB."""
GARBAGE_PART = 0.5
"""Of all flushed segments together, before some are emptied."""


class Segments:
    """One a flusher, which does one thing at a time with it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._memory_id = ""
        self.base: list[SegmentRef] = []
        """That the marker on storage names, and which lie under what is flushed."""
        self.own: list[SegmentRef] = []
        """Those that were flushed since, but for the one that is being written."""
        self.writer: SegmentWriter | None = None
        self._settled: SegmentRef | None = None
        self._marked: tuple[SegmentRef, ...] = ()
        """What the marker on storage names, whether it lies under what is flushed or not."""
        self.holdings = Holdings()
        self.next_number = 1

    def survey(self, memory_id: str, survey: Survey) -> None:
        """What is on storage, before anything is taken up."""
        self._memory_id = memory_id
        self.next_number = survey.next_segment
        self._marked = survey.marker.segments if survey.marker else ()

    # -- what there is

    async def indexes(self, named: Mapping[int, SegmentRef], own: Iterable[int]) -> list[SegmentIndex]:
        """Raises DataLoss if what was once in one cannot all be read: clean pages may be among that."""
        indexes = []
        for number in (*named, *own):
            index = await self._index(number)
            if index is not None and index.damage is not None and number not in named:
                raise index.damage
            if number in named and (index is None or index.ref() != named[number]):
                raise DataLoss(f"segment {number} is not what the marker names")
            if index is not None:
                indexes.append(index)
        return indexes

    async def _index(self, number: int) -> SegmentIndex | None:
        """None if it was begun, and nothing was ever flushed into it."""
        try:
            # What an earlier host wrote last may be in the system's cache only, and is named by the next marker.
            for name in (pages_name(number), index_name(number)):
                file = await self._disk.open(name)
                try:
                    await file.sync()
                finally:
                    await file.close()
            content = await self._disk.read(index_name(number))
        except NotFound:
            return None
        named = next((ref for ref in self._marked if ref.number == number), None)
        if named is None and len(content) <= HEADER_BYTES:
            return None
        return parse_index(content[: named.index_bytes] if named is not None else content, number)

    def take_up(
        self, indexes: Iterable[SegmentIndex], named: Mapping[int, SegmentRef], numbers: Collection[int]
    ) -> None:
        """`numbers`: of the regions that there are."""
        self.base, self.own, self.holdings = list(named.values()), [], Holdings()
        for index in indexes:
            self.holdings.paint(index, numbers)
            if index.number not in named:
                self.own.append(index.ref())

    async def rebase(self, survey: Survey, numbers: Collection[int]) -> list[SegmentIndex]:
        """A new marker counts: its segments lie under what is flushed from now on. Gives back their indexes."""
        assert survey.marker is not None
        named = {ref.number: ref for ref in survey.marker.segments}
        self._marked = survey.marker.segments
        indexes = await self.indexes(named, ())
        self.take_up(indexes, named, numbers)
        return indexes

    @property
    def live(self) -> tuple[SegmentRef, ...]:
        """That hold anything still."""
        return tuple(ref for ref in (*self.base, *self.own) if self.holdings.live(ref.number))

    @property
    def needed(self) -> tuple[int, ...]:
        """Whether a marker names them or not."""
        own = tuple(ref.number for ref in self.own)
        return own if self.writer is None else (*own, self.writer.number)

    # -- the one that is being written

    async def current(self) -> SegmentWriter:
        if self.writer is not None and self.writer.pages >= SEGMENT_PAGES:
            await self.close()
        if self.writer is None:
            number, self.next_number = self.next_number, self.next_number + 1
            self.writer = await SegmentWriter.create(self._disk, number, self._memory_id)
        return self.writer

    async def settle(self) -> None:
        assert self.writer is not None
        self._settled = await self.writer.settle()

    async def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            await writer.close()
        if self._settled is not None:
            self.own.append(self._settled)
        self._settled = None

    async def give_up(self) -> None:
        """What was settled of it counts, and nothing is written behind what was not."""
        with contextlib.suppress(EverramError):
            await self.close()

    # -- garbage

    def has_garbage(self) -> bool:
        """That is to be taken away: whole segments, or so much that one is to be emptied."""
        return any(not self.holdings.live(ref.number) for ref in self.own) or self.to_empty() is not None

    async def remove_empty(self) -> None:
        for ref in [ref for ref in self.own if not self.holdings.live(ref.number)]:
            self.own.remove(ref)
            await remove_segment(self._disk, ref.number)

    def to_empty(self) -> SegmentRef | None:
        """The one with the least left, if much of them all is garbage."""
        size = sum(ref.pages_bytes // PAGE_BYTES for ref in self.own)
        live = sum(self.holdings.live(ref.number) for ref in self.own)
        if size <= SEGMENT_PAGES or live >= (1 - GARBAGE_PART) * size:
            return None
        return min(self.own, key=lambda ref: self.holdings.live(ref.number))
