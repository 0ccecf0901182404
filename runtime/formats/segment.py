"""A segment of an image: pages of memory, appended as they are flushed or saved, and an index of which they are.

    writer = await SegmentWriter.create(disk, 3, memory_id)
    await writer.add(number, page, data)              # waits only when enough writes are under way
    await writer.add_zeros(number, page, count)
    segment = await writer.settle()                   # all of them durable

    index = await read_index(disk, 3)                 # as far as it verifies
    for batch in index.batches: ...

Two files: `pages.N` holds pages one after the other, `index.N` an entry for each batch of them. A batch is what is
written to the disk at once: a disk is as fast as it can be only with some megabytes under way at any time, and
scattered pages must not cost a write each. Its pages are summed by blocks of 64 KiB, whatever they are pages of: one
checksum for sixteen scattered pages costs no more than one for sixteen neighbours, and a page is verified with the
fifteen that were written with it. Checksums are taken by the disk's threads, beside the loop.

Of several segments the later one is right about a page, and within one the later batch.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from everram.runtime.environment import Disk, DiskFile, Piece, Scattered, Stretch
from everram.runtime.errors import DataLoss, InvalidArgument
from everram.runtime.formats.image_files import (
    HEADER_BYTES,
    INDEX_MAGIC,
    PAGES_MAGIC,
    check_header,
    damaged,
    entries,
    entry,
    header,
    index_name,
    pages_name,
    remove_segment,
)
from everram.runtime.memory.contract import PAGE_BYTES

BLOCK_PAGES = 16
BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES
"""One checksum each: small enough to be read for the sake of one page, large enough that the index stays small."""
BATCH_PAGES = 2048
UNDER_WAY = 4
"""Batches at once: some are written, some are summed, one waits for its turn."""
FIRST_PAGE = 1
"""Page 0 of the file is its header."""
ZEROS = 1 << 31
"""In a run's count: its pages hold nothing but zeros, and are not in the file."""
_BATCH = 1
_BATCH_HEAD = struct.Struct("<QII")
"""First page in the file, pages, runs; then the runs, then the checksums."""
MAX_RUNS = 1 << 16


class SegmentRef(NamedTuple):
    """A segment as a marker names it."""

    number: int
    pages_bytes: int
    index_bytes: int
    index_crc32: int


class Batch(NamedTuple):
    """Pages that were written together."""

    start: int
    """In pages of the file; FIRST_PAGE and a multiple of BLOCK_PAGES more."""
    pages: int
    runs: array[int]
    """Object, first page, count (perhaps with ZEROS); three words each, in the order of the file."""
    sums: array[int]
    """CRC-32 of each block; the last may be shorter than the others."""

    def placed(self) -> Iterator[tuple[int, int, int, int]]:
        """(object, first page, count, place in the file) of each run; place 0: zeros."""
        at = self.start
        for n in range(0, len(self.runs), 3):
            number, page, count = self.runs[n : n + 3]
            if count & ZEROS:
                yield number, page, count & ~ZEROS, 0
            else:
                yield number, page, count, at
                at += count


@dataclass(slots=True)
class SegmentIndex:
    """What an index says, as far as it verifies."""

    number: int
    batches: list[Batch] = field(default_factory=list)
    index_bytes: int = HEADER_BYTES
    crc32: int = 0
    end: int = FIRST_PAGE
    """Behind the last page that it names, in pages of the file."""
    damage: DataLoss | None = None
    """Why it was not read further."""

    def ref(self) -> SegmentRef:
        return SegmentRef(self.number, self.end * PAGE_BYTES, self.index_bytes, self.crc32)


class SegmentWriter:
    """Appends to one segment. Who adds, settles or closes does so one at a time."""

    def __init__(self, number: int, pages: DiskFile, index: DiskFile) -> None:
        self.number = number
        self._pages, self._index = pages, index
        self._index_bytes = self._index_crc32 = 0
        self._end = self._batch_at = self._written_to = FIRST_PAGE
        self.pages = 0
        """That were added."""
        self._runs = array("I")
        self._pieces: list[Piece] = []
        self._under_way: deque[asyncio.Task[Batch]] = deque()
        self._entries: list[bytes] = []

    @staticmethod
    async def create(disk: Disk, number: int, memory_id: str) -> SegmentWriter:
        """Raises ResourceExhausted, DataLoss; then nothing is left of it."""
        pages = await disk.open(pages_name(number), create=True)
        try:
            index = await disk.open(index_name(number), create=True)
        except BaseException:
            await pages.close()
            raise
        writer = SegmentWriter(number, pages, index)
        try:
            await pages.pwrite(0, header(PAGES_MAGIC, number, memory_id, PAGE_BYTES))
            head = header(INDEX_MAGIC, number, memory_id)
            await index.pwrite(0, head)
            writer._index_bytes, writer._index_crc32 = len(head), zlib.crc32(head)
        except BaseException:
            await writer.close()
            await remove_segment(disk, number)
            raise
        return writer

    @property
    def next_page(self) -> int:
        """Where in the file the next batch begins, if everything before is settled."""
        return self._batch_at

    async def add(self, number: int, page: int, data: bytes | memoryview | Stretch) -> None:
        """Whole pages of object `number`. What `data` lies in must not change before `settle` has returned. Raises
        ResourceExhausted or DataLoss if this or an earlier write cannot be done."""
        if len(data) % PAGE_BYTES:
            raise InvalidArgument(f"{len(data)} bytes are no whole pages")
        whole, at = memoryview(data) if isinstance(data, bytes) else data, 0
        while at < len(whole):
            room = min(len(whole) - at, (BATCH_PAGES - (self._end - self._batch_at)) * PAGE_BYTES)
            piece = whole.part(at, room) if isinstance(whole, Stretch) else whole[at : at + room]
            self._note(number, page + at // PAGE_BYTES, len(piece) // PAGE_BYTES)
            self._pieces.append(piece)
            self._end += len(piece) // PAGE_BYTES
            self.pages += len(piece) // PAGE_BYTES
            at += len(piece)
            if self._end - self._batch_at == BATCH_PAGES:
                await self._send()

    async def add_scattered(self, number: int, runs: Sequence[tuple[int, int]], window: memoryview) -> None:
        """Many short runs of an object, (first page, count) each, ascending and not neighbours; like `add`."""
        first = pages = 0
        room = BATCH_PAGES - (self._end - self._batch_at)
        for n, (_, count) in enumerate(runs):
            if pages + count > room:
                self._take_scattered(number, runs[first:n], pages, window)
                await self._send()
                first, pages, room = n, 0, BATCH_PAGES
            pages += count
        self._take_scattered(number, runs[first:], pages, window)

    def _take_scattered(self, number: int, runs: Sequence[tuple[int, int]], pages: int, window: memoryview) -> None:
        if pages:
            words = array("I", [number]) * (3 * len(runs))
            words[1::3], words[2::3] = (array("I", column) for column in zip(*runs, strict=True))
            self._runs += words
            self._pieces.append(Scattered(window, runs, pages * PAGE_BYTES))
            self._end += pages
            self.pages += pages

    def _note(self, number: int, page: int, pages: int) -> None:
        """One run with what came before, if they are neighbours."""
        runs = self._runs
        if runs and runs[-3] == number and not runs[-1] & ZEROS and runs[-2] + runs[-1] == page:
            runs[-1] += pages
        else:
            runs.extend((number, page, pages))

    async def add_zeros(self, number: int, page: int, count: int) -> None:
        self._runs.extend((number, page, count | ZEROS))
        if len(self._runs) >= 3 * MAX_RUNS:
            await self._send()

    async def settle(self) -> SegmentRef:
        """Make all of it durable. Raises like `add`."""
        if self._runs:
            await self._send()
        while self._under_way:
            await self._take_oldest()
        written, self._entries = b"".join(self._entries), []
        await self._index.pwrite(self._index_bytes, written)
        self._index_bytes += len(written)
        self._index_crc32 = zlib.crc32(written, self._index_crc32)
        await asyncio.gather(self._pages.sync(), self._index.sync())
        return SegmentRef(self.number, self._written_to * PAGE_BYTES, self._index_bytes, self._index_crc32)

    async def close(self) -> None:
        """Give up what is not settled."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        await self._pages.close()
        await self._index.close()

    async def _send(self) -> None:
        if len(self._under_way) == UNDER_WAY:
            await self._take_oldest()
        work = self._write(self._batch_at, self._end - self._batch_at, self._runs, self._pieces)
        task = asyncio.get_running_loop().create_task(work, name=f"pages.{self.number}:{self._batch_at}")
        self._under_way.append(task)
        self._runs, self._pieces = array("I"), []
        self._written_to = self._end
        self._batch_at += -(-(self._end - self._batch_at) // BLOCK_PAGES) * BLOCK_PAGES
        self._end = self._batch_at

    async def _take_oldest(self) -> None:
        batch = await self._under_way.popleft()
        head = _BATCH_HEAD.pack(batch.start, batch.pages, len(batch.runs) // 3)
        self._entries.append(entry(self.number, _BATCH, head + batch.runs.tobytes() + batch.sums.tobytes()))

    async def _write(self, at: int, pages: int, runs: array[int], pieces: list[Piece]) -> Batch:
        sums = await self._pages.pwrite_all(at * PAGE_BYTES, pieces, BLOCK_BYTES) if pieces else []
        return Batch(at, pages, runs, array("I", sums))


async def read_index(disk: Disk, number: int, length: int | None = None) -> SegmentIndex:
    """Everything (of the first `length` bytes) up to the first entry that does not verify; `damage` says why not
    further. Raises NotFound, DataLoss if its header is damaged, FailedPrecondition for another format."""
    name = index_name(number)
    content = await disk.read(name)
    if length is not None and len(content) < length:
        raise damaged(name, len(content), f"it has {len(content)} bytes and should have {length}")
    return parse_index(content[:length], number)


def parse_index(content: bytes, number: int) -> SegmentIndex:
    """As `read_index`, of what its file holds."""
    name = index_name(number)
    check_header(content[:HEADER_BYTES], INDEX_MAGIC, number, name)
    index = SegmentIndex(number)
    try:
        for at, kind, payload in entries(content, number, name):
            if kind != _BATCH:
                raise damaged(name, at, f"{kind} is not a type of entry")
            batch = _batch(payload)
            if batch is None or batch.start < index.end:
                raise damaged(name, at, "what it says of its pages cannot be")
            index.batches.append(batch)
            index.end = batch.start + batch.pages
            index.index_bytes = at + len(entry(number, kind, b"")) + len(payload)
    except DataLoss as error:
        index.damage = error
    index.crc32 = zlib.crc32(content[: index.index_bytes])
    return index


def _batch(payload: bytes) -> Batch | None:
    if len(payload) < _BATCH_HEAD.size or len(payload) % 4:
        return None
    start, pages, runs = _BATCH_HEAD.unpack_from(payload)
    blocks = -(-pages // BLOCK_PAGES)
    if len(payload) != _BATCH_HEAD.size + 4 * (3 * runs + blocks) or (start - FIRST_PAGE) % BLOCK_PAGES:
        return None
    words = _words(payload[_BATCH_HEAD.size :])
    batch, counts = Batch(start, pages, words[: 3 * runs], words[3 * runs :]), words[2 : 3 * runs : 3]
    if max(counts, default=0) & ZEROS:
        return batch if sum(count for count in counts if not count & ZEROS) == pages else None
    return batch if sum(counts) == pages else None


def _words(written: bytes) -> array[int]:
    """Unsigned, 32 bits, little-endian: tens of thousands at once, without an object for each."""
    words = array("I")  # of x86-64, which is all that memory is mapped on
    words.frombytes(written)
    return words
