"""Reading an image: verified before anything uses it, and page by page or all of it.

    image = await Image.open(disk, survey.generation, survey.marker)    # catalog, indexes and marker agree
    async for run in image.runs(): ...                  # everything, in the order of the files, every byte verified
    runs = await image.block_of(number, page)           # one page, with those that were written with it
    image.spans(number)                                 # which pages of an object hold anything
    await image.close()

For each object a table says where each of its pages lies: the place of the last batch that has it. What is read is a
block of 64 KiB, verified by its checksum, and of it what is still where the tables say.

Without a marker of a whole image the reader is lenient: it takes what verifies and says in `lost` what does not, or
was never written. Pages that the catalog's plan names and no segment has are among that: a save wrote them, and did
not get that far.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from bisect import bisect_right
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from everram.runtime.checksums import crc32
from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, NotFound
from everram.runtime.formats.catalog import Catalog
from everram.runtime.formats.image import Marker
from everram.runtime.formats.image_files import (
    PAGES_MAGIC,
    catalog_name,
    check_header,
    damaged,
    index_name,
    pages_name,
)
from everram.runtime.formats.segment import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    ZEROS,
    Batch,
    SegmentIndex,
    SegmentRef,
    read_index,
)
from everram.runtime.memory.contract import PAGE_BYTES

PIECE_BLOCKS = 16
"""Read at once, so that a loop lives on while an image of any size passes through it."""
_SEGMENT_SHIFT = 40
"""A place is (ordinal of the segment, page in its file) in one word; 0: the page holds zeros."""
_MISSING = (1 << 64) - 1
"""The place of a page that was to be written and was not."""


class Run(NamedTuple):
    """Neighbouring pages of one object, with their content."""

    name: str
    number: int
    offset: int
    data: bytes
    """Whole pages, but for the end of an object that has none."""


@dataclass(frozen=True, slots=True)
class _Segment:
    index: SegmentIndex
    starts: list[int]
    """Of its batches, for bisecting."""
    places: dict[int, array[int]] = field(default_factory=dict)
    """Of batches that were looked into, by their starts: where in the file each of their runs lies."""

    def places_of(self, batch: Batch) -> array[int]:
        found = self.places.get(batch.start)
        if found is None:
            counts = (0 if count & ZEROS else count for count in batch.runs[2::3])
            found = self.places[batch.start] = array("Q", accumulate(counts, initial=batch.start))
        return found


class Image:
    """An image that is being read. `lost` says in sentences what a lenient reader had to leave out."""

    def __init__(
        self, disk: Disk, catalog: Catalog, indexes: Sequence[SegmentIndex], *, lenient: bool, lost: Iterable[str] = ()
    ) -> None:
        self.objects = list(catalog.objects)
        self.lost = list(lost)
        self._by_number = {saved.number: saved for saved in self.objects}
        self._disk = disk
        self._lenient = lenient
        self._segments = [_Segment(index, [batch.start for batch in index.batches]) for index in indexes]
        self._files: dict[int, DiskFile] = {}
        self._opening = asyncio.Lock()
        self._places = {saved.number: array("Q", bytes(8 * saved.pages)) for saved in self.objects}
        self._presence = {saved.number: bytearray(saved.pages) for saved in self.objects}
        self._paint(catalog)

    @staticmethod
    async def open(disk: Disk, generation: int, marker: Marker | None) -> Image:
        """Read and verify everything but the pages. Without a marker of a whole image: as far as it goes.

        Raises DataLoss for damage, with the file and the offset, FailedPrecondition for another format.
        """
        name = catalog_name(generation)
        try:
            content = await disk.read(name)
        except NotFound as error:
            raise DataLoss(f"{name} is missing: the image cannot be opened") from error
        catalog = Catalog.decode(content, generation)
        if marker is None or not marker.whole:
            return await _open_leniently(disk, catalog)
        if (len(content), zlib.crc32(content), len(catalog.objects)) != (
            marker.catalog_bytes,
            marker.catalog_crc32,
            marker.objects,
        ):
            raise damaged(name, 0, "it is not the catalog that the marker names")
        indexes = [await _read_named(disk, segment) for segment in marker.segments]
        return Image(disk, catalog, indexes, lenient=False)

    def spans(self, number: int) -> Iterator[tuple[int, int]]:
        """(first page, count) of what holds anything, ascending."""
        presence = self.presence(number)
        start = presence.find(1)
        while start >= 0:
            end = presence.find(0, start)
            end = len(presence) if end < 0 else end
            yield start, end - start
            start = presence.find(1, end)

    def presence(self, number: int) -> bytearray:
        """A byte for each page of an object: 1 where it holds anything."""
        return bytearray(self._presence[number])

    def present_pages(self, number: int | None = None) -> int:
        """Of one object, or of all."""
        wanted = self._presence.values() if number is None else (self._presence[number],)
        return sum(presence.count(1) for presence in wanted)

    async def runs(self, numbers: Container[int] | None = None) -> AsyncIterator[Run]:
        """Everything that was saved (of these objects), verified. Raises DataLoss with the file and the offset."""
        for ordinal in range(len(self._segments)):
            for batch in self._segments[ordinal].index.batches:
                if numbers is not None and not any(number in numbers for number in set(batch.runs[::3])):
                    continue
                for first in range(0, len(batch.sums), PIECE_BLOCKS):
                    last = min(len(batch.sums), first + PIECE_BLOCKS)
                    for run in await self._read_blocks(ordinal, batch, first, last, numbers):
                        yield run

    async def block_of(self, number: int, page: int) -> list[Run]:
        """The block that holds a page: all that is live of it, verified; nothing if the page holds zeros. Raises
        DataLoss with the file and the offset."""
        located = self._locate(number, page)
        if located is None:
            return []
        ordinal, batch, block = located
        return await self._read_blocks(ordinal, batch, block, block + 1)

    async def prepare(self) -> None:
        """Open every file that is needed, so that `block_now` can do with reading. Raises DataLoss."""
        for ordinal, segment in enumerate(self._segments):
            if segment.index.batches:
                await self._file(ordinal)

    def block_now(self, number: int, page: int) -> list[Run]:
        """`block_of` for who cannot await; after `prepare`."""
        located = self._locate(number, page)
        if located is None:
            return []
        ordinal, batch, block = located
        start, end, wanted = self._wanted(ordinal, batch, block, block + 1)
        data = self._files[ordinal].pread_now(start * PAGE_BYTES, (end - start) * PAGE_BYTES)
        return self._checked(ordinal, batch, block, block + 1, wanted, data)

    def pages_with(self, number: int, page: int) -> list[tuple[str, int, int]]:
        """(object, first page, count) of what is in the block of a page, without reading it."""
        located = self._locate(number, page)
        if located is None:
            return []
        ordinal, batch, block = located
        start, end, wanted = self._wanted(ordinal, batch, block, block + 1)
        return [
            (self._by_number[each].name, first + max(0, start - at), min(at + count, end) - max(at, start))
            for at, each, first, count in wanted
        ]

    def _locate(self, number: int, page: int) -> tuple[int, Batch, int] | None:
        """Segment, batch and block of a page; None if it holds zeros."""
        place = self._places[number][page]
        if not place or place == _MISSING:
            return None
        ordinal, at = place >> _SEGMENT_SHIFT, place & ((1 << _SEGMENT_SHIFT) - 1)
        segment = self._segments[ordinal]
        batch = segment.index.batches[bisect_right(segment.starts, at) - 1]
        return ordinal, batch, (at - batch.start) // BLOCK_PAGES

    async def close(self) -> None:
        files, self._files = self._files, {}
        for file in files.values():
            await file.close()

    # -- where the pages are

    def _paint(self, catalog: Catalog) -> None:
        """Later segments over earlier ones; what this save was to write must come from its own."""
        own, forgotten = catalog.segments[-1], False
        for ordinal, segment in enumerate(self._segments):
            for batch in segment.index.batches:
                if not forgotten and segment.index.number == own and batch.start >= catalog.own_from:
                    self._forget_planned(catalog)
                    forgotten = True
                if not self._paint_scattered(ordinal, batch):
                    self._paint_runs(ordinal, batch)
        if not forgotten:
            self._forget_planned(catalog)
        if not self._lenient:
            return  # nothing can be missing, and nobody should wait until every page was looked at
        for saved in self.objects:
            missing = self._places[saved.number].count(_MISSING)
            if missing:
                self.lost.append(f"{missing} pages of {saved.name}: the save did not get that far")

    def _paint_scattered(self, ordinal: int, batch: Batch) -> bool:
        """Of a batch of single pages of one object, which may be tens of thousands: guests wait for this. False: it is
        none."""
        numbers, pages, counts = batch.runs[::3], batch.runs[1::3], batch.runs[2::3]
        places = self._places.get(numbers[0]) if numbers else None
        if (
            places is None
            or counts.count(1) != len(counts)
            or numbers.count(numbers[0]) != len(numbers)
            or max(pages) >= len(places)
        ):
            return False
        presence = self._presence[numbers[0]]
        for place, page in enumerate(pages, ordinal << _SEGMENT_SHIFT | batch.start):
            places[page] = place
            presence[page] = 1
        return True

    def _paint_runs(self, ordinal: int, batch: Batch) -> None:
        for number, page, count, at in batch.placed():
            places = self._places.get(number)
            if places is None or page >= len(places):
                continue  # of an object that is no more
            first = ordinal << _SEGMENT_SHIFT | at
            if count == 1:
                places[page] = first if at else 0
                self._presence[number][page] = at > 0
                continue
            known = min(count, len(places) - page)
            places[page : page + known] = _ascending(first, known) if at else array("Q", bytes(8 * known))
            self._presence[number][page : page + known] = (b"\1" if at else b"\0") * known

    def _forget_planned(self, catalog: Catalog) -> None:
        if self._lenient:  # otherwise the marker says that it got to its end
            plan = catalog.plan
            for number, page, count in zip(plan[::3], plan[1::3], plan[2::3], strict=True):
                self._places[number][page : page + count] = array("Q", [_MISSING]) * count
                self._presence[number][page : page + count] = b"\1" * count

    def _live(
        self, ordinal: int, batch: Batch, start: int, end: int, numbers: Container[int] | None
    ) -> Iterator[tuple[int, int, int, int]]:
        """(place in the file, object, page, count) of what no later batch has written again, ascending by place; of
        runs that have a part between two places."""
        at_of, runs = self._segments[ordinal].places_of(batch), batch.runs
        for n in range(max(0, bisect_right(at_of, start) - 1), len(runs) // 3):
            at, number, page, count = at_of[n], *runs[3 * n : 3 * n + 3]
            if at >= end:
                return
            places = self._places.get(number)
            if count & ZEROS or places is None or (numbers is not None and number not in numbers):
                continue
            first = ordinal << _SEGMENT_SHIFT | at
            if count == 1:
                if page < len(places) and places[page] == first:
                    yield at, number, page, 1
                continue
            here = places[page : page + count]
            if here == _ascending(first, count):
                yield at, number, page, count
            else:
                for begins, ends in _matches(here, first):
                    yield at + begins, number, page + begins, ends - begins

    def _wanted(
        self, ordinal: int, batch: Batch, first: int, last: int, numbers: Container[int] | None = None
    ) -> tuple[int, int, list[tuple[int, int, int, int]]]:
        """Where blocks `first` to `last` begin and end in the file, and what is live of them."""
        start, end = _places_of(batch, first, last)
        live = self._live(ordinal, batch, start, end, numbers)
        return start, end, [run for run in live if run[0] < end and run[0] + run[3] > start]

    # -- their content

    async def _read_blocks(
        self, ordinal: int, batch: Batch, first: int, last: int, numbers: Container[int] | None = None
    ) -> list[Run]:
        """What is live of blocks `first` to `last` of a batch, verified."""
        start, end, wanted = self._wanted(ordinal, batch, first, last, numbers)
        if not wanted:
            return []
        try:
            data = await (await self._file(ordinal)).pread(start * PAGE_BYTES, (end - start) * PAGE_BYTES)
        except DataLoss as error:
            if not self._lenient:
                raise
            self.lost.append(error.message)
            return []
        return self._checked(ordinal, batch, first, last, wanted, data)

    def _checked(
        self,
        ordinal: int,
        batch: Batch,
        first: int,
        last: int,
        wanted: Sequence[tuple[int, int, int, int]],
        data: bytes,
    ) -> list[Run]:
        start, end = _places_of(batch, first, last)
        bad = {
            block
            for block in range(first, last)
            if not _verifies(
                data,
                (block - first) * BLOCK_BYTES,
                min(BLOCK_PAGES, batch.pages - block * BLOCK_PAGES),
                batch.sums[block],
            )
        }
        if bad:
            return self._salvaged(self._segments[ordinal].index.number, batch, bad, wanted, start, end, data)
        return list(self._cut(wanted, start, end, data))

    def _cut(self, wanted: Iterable[tuple[int, int, int, int]], start: int, end: int, data: bytes) -> Iterator[Run]:
        for at, number, page, count in wanted:
            before = max(0, start - at)
            pages = min(at + count, end) - (at + before)
            saved, from_byte = self._by_number[number], (at + before - start) * PAGE_BYTES
            offset = (page + before) * PAGE_BYTES
            length = min(pages * PAGE_BYTES, saved.size_bytes - offset)
            yield Run(saved.name, number, offset, data[from_byte : from_byte + length])

    def _salvaged(
        self,
        segment: int,
        batch: Batch,
        bad: set[int],
        wanted: Sequence[tuple[int, int, int, int]],
        start: int,
        end: int,
        data: bytes,
    ) -> list[Run]:
        """Without the blocks that do not verify; raises DataLoss if the image has to be whole."""
        found: list[Run] = []
        for block in range((start - batch.start) // BLOCK_PAGES, -(-(end - batch.start) // BLOCK_PAGES)):
            at = batch.start + block * BLOCK_PAGES
            until = min(at + BLOCK_PAGES, batch.start + batch.pages)
            inside = [run for run in wanted if run[0] < until and run[0] + run[3] > at]
            if not inside:
                continue
            runs = list(
                self._cut(
                    inside,
                    at,
                    until,
                    data[(at - start) * PAGE_BYTES : (until - start) * PAGE_BYTES].ljust(BLOCK_BYTES, b"\0"),
                )
            )
            if block not in bad:
                found += runs
                continue
            what = ", ".join(f"{len(run.data)} bytes of {run.name} at {run.offset}" for run in runs[:3])
            more = f" and {len(runs) - 3} other places" if len(runs) > 3 else ""
            damage = damaged(pages_name(segment), at * PAGE_BYTES, f"{what}{more} do not match their checksum")
            if not self._lenient:
                raise damage
            self.lost.append(damage.message)
        return found

    async def _file(self, ordinal: int) -> DiskFile:
        async with self._opening:
            if ordinal not in self._files:
                number = self._segments[ordinal].index.number
                name = pages_name(number)
                try:
                    file = await self._disk.open(name)
                except NotFound as error:
                    raise DataLoss(f"{name} is missing: the image cannot be opened") from error
                self._files[ordinal] = file
                check_header(await file.pread(0, PAGE_BYTES), PAGES_MAGIC, number, name, PAGE_BYTES)
            return self._files[ordinal]


def _places_of(batch: Batch, first: int, last: int) -> tuple[int, int]:
    """Where blocks `first` to `last` begin and end in the file."""
    return batch.start + first * BLOCK_PAGES, min(batch.start + last * BLOCK_PAGES, batch.start + batch.pages)


@lru_cache
def _ramp(count: int) -> tuple[int, int]:
    """The words 0, 1, 2, ... and the words 1, 1, 1, ... as one number each."""
    words = array("Q", range(count)), array("Q", [1]) * count
    return int.from_bytes(words[0].tobytes(), "little"), int.from_bytes(words[1].tobytes(), "little")


def _ascending(first: int, count: int) -> array[int]:
    """first, first + 1, ...: one addition of long numbers, a sixth of the time of an array of a range."""
    ramp, ones = _ramp(count)
    return array("Q", (ramp + first * ones).to_bytes(8 * count, "little"))


def _matches(places: Sequence[int], first: int) -> Iterator[tuple[int, int]]:
    """(start, end) of where they are the places from `first` on."""
    start = -1
    for n, place in enumerate(places):
        if place == first + n:
            start = n if start < 0 else start
        elif start >= 0:
            yield start, n
            start = -1
    if start >= 0:
        yield start, len(places)


def _verifies(data: bytes, at: int, pages: int, checksum: int) -> bool:
    block = memoryview(data)[at : at + pages * PAGE_BYTES]
    return len(block) == pages * PAGE_BYTES and crc32(block) == checksum


async def _read_named(disk: Disk, segment: SegmentRef) -> SegmentIndex:
    """The index of a segment that a marker names; it says what that says. Raises DataLoss."""
    name = index_name(segment.number)
    try:
        index = await read_index(disk, segment.number, segment.index_bytes)
    except NotFound as error:
        raise DataLoss(f"{name} is missing: the image cannot be opened") from error
    if index.damage is not None:
        raise index.damage
    if index.ref() != segment:
        raise damaged(name, min(index.index_bytes, segment.index_bytes), "it is not the index that the marker names")
    return index


async def _open_leniently(disk: Disk, catalog: Catalog) -> Image:
    indexes, lost = [], []
    for number in catalog.segments:
        try:
            index = await read_index(disk, number)
        except (NotFound, DataLoss) as error:
            lost.append(f"all pages of segment {number}: {error.message}")
            continue
        indexes.append(index)
    return Image(disk, catalog, indexes, lenient=True, lost=lost)
