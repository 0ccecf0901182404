"""The mass-storage file: slots for purged blocks, and for each a trailer that proves its content.

    storage = await StorageFile.open(disk, "nvm/purged")         # made if there is none
    await storage.write(slots, virtblocks, load)                 # load(first, target) fetches their contents
    await storage.sync()                                         # and only now may a virtblock name a slot
    data = await storage.read(slot, virtblock)                   # raises DataLoss where it is not what was written

Which slots are taken is for the metadata to know (`Media.storage`); a slot that is free holds anything. The trailer
names the virtblock, and the checksum covers content, virtblock and slot: so a block that the disk has put in another's
place is found, too.

Slots are whole pages that follow each other, with the trailers of many in pages before them. So a run of blocks goes
from the memory that it lies in straight to the disk, without a copy of it here or in the system's cache; and the disk
takes it while the next run is checksummed. docs/formats.md, "The storage file", describes every field.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, FailedPrecondition, NotFound
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.runs import Run, runs

MAGIC = b"EVRSTORE"
MAJOR, MINOR = 1, 0
_HEADER = struct.Struct("<8sHHIII")
"""Magic, major, minor, bytes of a block, slots of a group, bytes from one group to the next; its CRC-32 follows."""
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 4096
TRAILER = struct.Struct("<QQ")
"""Virtblock, CRC-32 of the content."""
GROUP_SLOTS = 4096
TRAILERS_BYTES = GROUP_SLOTS * TRAILER.size
GROUP_BYTES = TRAILERS_BYTES + GROUP_SLOTS * PAGE_BYTES
PIECE_SLOTS = 256
"""1 MiB: enough for a disk at its full speed, and prepared in half a millisecond, for which the loop is not served."""
PIECES_UNDER_WAY = 2
"""On their way to the disk, which so has the next one as soon as it is done with one, while a third is prepared."""

Load = Callable[[int, memoryview], memoryview]
"""Fetches contents, from the n-th on, as many as there is room for: into that, or it says where they lie already."""


class StorageFile:
    """See the module. Each slot has one writer at a time; whoever shares its number shares its content."""

    def __init__(self, file: DiskFile, name: str) -> None:
        self._file = file
        self.name = name
        self._preparing = asyncio.Lock()
        """Held until the last piece of a `write` is on its way; then the next one prepares its own."""
        self._staging: asyncio.Queue[memoryview] = asyncio.Queue()
        """Of a piece each: whole pages of memory, which a disk reads by itself."""
        self._staging_made = 0

    @staticmethod
    async def open(disk: Disk, name: str) -> StorageFile:
        """Raises DataLoss for a damaged header, FailedPrecondition for the file of a later everram."""
        try:
            file = await disk.open(name)
        except NotFound:
            await disk.replace(name, _header())
            file = await disk.open(name)
        try:
            _check_header(name, await file.pread(0, HEADER_BYTES))
        except BaseException:
            await file.close()
            raise
        return StorageFile(file, name)

    async def close(self) -> None:
        await self._file.close()

    async def size_bytes(self) -> int:
        return await self._file.size()

    async def write(self, slots: Sequence[int], virtblocks: Sequence[int], load: Load) -> None:
        """Durable after the next `sync`. Neighbouring slots go to the disk together. Raises ResourceExhausted on a full
        disk, DataLoss."""
        writing: list[asyncio.Task[None]] = []
        try:
            async with self._preparing:
                for first in range(0, len(slots), PIECE_SLOTS):
                    some = slots[first : first + PIECE_SLOTS]
                    staging = await self._take_staging()
                    contents = load(first, staging[: len(some) * PAGE_BYTES])
                    pieces = _pieces(some, virtblocks[first : first + PIECE_SLOTS], contents)
                    writing.append(asyncio.create_task(self._write(pieces, staging)))
                    await asyncio.sleep(0)  # it begins, and goes on while the next piece is prepared
            for task in writing:
                await task
        finally:
            # Each to its end, whatever comes of the others: it uses memory that is used again.
            await asyncio.gather(*writing, return_exceptions=True)

    async def _take_staging(self) -> memoryview:
        if self._staging_made < PIECES_UNDER_WAY + 1 and self._staging.empty():
            self._staging_made += 1
            return memoryview(mmap.mmap(-1, PIECE_SLOTS * PAGE_BYTES))
        return await self._staging.get()

    async def _write(self, pieces: Sequence[tuple[int, bytes | memoryview]], staging: memoryview) -> None:
        try:
            await self._file.pwrite_each(pieces)
        finally:
            self._staging.put_nowait(staging)

    async def sync(self) -> None:
        """All that was written is durable when this returns. Raises DataLoss."""
        await self._file.sync()

    async def read(self, slot: int, virtblock: int) -> bytes:
        """Raises DataLoss."""
        content, trailer = await self._file.pread_each(_ranges(slot, 1))
        if wrong := _wrong(content, trailer, slot, virtblock):
            raise DataLoss(f"{self.name}: {wrong}")
        return content

    async def read_all(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Those of many (slot, virtblock), in their order; neighbours come in one piece. Raises DataLoss."""
        found: dict[int, bytes] = {}
        async for slot, virtblock, content, trailer in self._read(wanted):
            if wrong := _wrong(content, trailer, slot, virtblock):
                raise DataLoss(f"{self.name}: {wrong}")
            found[slot] = content
        return [found[slot] for slot, _ in wanted]

    async def verify(self, slots: Mapping[int, int]) -> dict[int, str]:
        """What is wrong with the slots of these virtblocks (slot -> virtblock), in a plain sentence each."""
        findings: dict[int, str] = {}
        async for slot, virtblock, content, trailer in self._read(list(slots.items())):
            if wrong := _wrong(content, trailer, slot, virtblock):
                findings[slot] = f"{self.name}: {wrong}"
        return findings

    async def _read(self, wanted: Sequence[tuple[int, int]]) -> AsyncIterator[tuple[int, int, bytes, bytes]]:
        """(slot, virtblock, content, trailer) of each, ascending."""
        virtblocks = dict(wanted)
        for first, count in _runs(sorted(virtblocks)):
            for start in range(first, first + count, PIECE_SLOTS):
                some = min(PIECE_SLOTS, first + count - start)
                contents, trailers = await self._file.pread_each(_ranges(start, some))
                for nth in range(some):
                    content = contents[nth * PAGE_BYTES : (nth + 1) * PAGE_BYTES]
                    trailer = trailers[nth * TRAILER.size : (nth + 1) * TRAILER.size]
                    yield start + nth, virtblocks[start + nth], content, trailer


def _header() -> bytes:
    fields = _HEADER.pack(MAGIC, MAJOR, MINOR, PAGE_BYTES, GROUP_SLOTS, GROUP_BYTES)
    return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def _check_header(name: str, header: bytes) -> None:
    if len(header) < HEADER_BYTES:
        raise DataLoss(f"{name}: {len(header)} bytes are too few for its header")
    magic, major, minor, *sizes = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise DataLoss(f"{name}: {magic!r} at offset 0 is not its magic {MAGIC!r}")
    if _CHECKSUM.unpack_from(header, _HEADER.size) != (zlib.crc32(header[: _HEADER.size]),):
        raise DataLoss(f"{name}: the header at offset 0 does not match its checksum")
    if major > MAJOR:
        raise FailedPrecondition(
            f"{name}: written in version {major}.{minor}, this everram reads {MAJOR}.x: use the later one"
        )
    if sizes != [PAGE_BYTES, GROUP_SLOTS, GROUP_BYTES]:
        raise DataLoss(f"{name}: blocks of {sizes[0]} bytes, {sizes[1]} every {sizes[2]} bytes, cannot be")


def content_offset(slot: int) -> int:
    group, nth = divmod(slot, GROUP_SLOTS)
    return HEADER_BYTES + group * GROUP_BYTES + TRAILERS_BYTES + nth * PAGE_BYTES


def trailer_offset(slot: int) -> int:
    group, nth = divmod(slot, GROUP_SLOTS)
    return HEADER_BYTES + group * GROUP_BYTES + nth * TRAILER.size


def _checksum(content: bytes | memoryview, virtblock: int, slot: int) -> int:
    """Begun with what it has to prove, so that the same content proves nothing in another place."""
    return zlib.crc32(content, virtblock ^ slot)


def _ranges(first: int, count: int) -> tuple[Run, Run]:
    """Where contents and trailers of neighbours lie, of one group: (offset, bytes) each."""
    return (content_offset(first), count * PAGE_BYTES), (trailer_offset(first), count * TRAILER.size)


def _pieces(
    slots: Sequence[int], virtblocks: Sequence[int], contents: memoryview
) -> list[tuple[int, bytes | memoryview]]:
    """What is to be written where. The slots ascend."""
    crc32 = zlib.crc32  # `_checksum`, of many
    checksums = [
        crc32(contents[at : at + PAGE_BYTES], virtblock ^ slot)
        for at, virtblock, slot in zip(range(0, len(contents), PAGE_BYTES), virtblocks, slots, strict=True)
    ]
    words = [0] * (2 * len(slots))
    words[::2], words[1::2] = virtblocks, checksums
    trailers = struct.pack(f"<{len(words)}Q", *words)
    pieces: list[tuple[int, bytes | memoryview]] = []
    at = 0
    for first, count in _runs(slots):
        pieces.append((content_offset(first), contents[at * PAGE_BYTES : (at + count) * PAGE_BYTES]))
        pieces.append((trailer_offset(first), trailers[at * TRAILER.size : (at + count) * TRAILER.size]))
        at += count
    return pieces


def _runs(slots: Sequence[int]) -> Iterator[Run]:
    """Neighbours within a group."""
    for first, count in runs(slots):
        at, end = first, first + count
        while at < end:
            until = min(end, (at // GROUP_SLOTS + 1) * GROUP_SLOTS)
            yield at, until - at
            at = until


def _wrong(content: bytes, trailer: bytes, slot: int, virtblock: int) -> str:
    """What is wrong with a slot as it was read; empty if nothing is."""
    where = f"slot {slot} at offset {content_offset(slot)}"
    if len(content) < PAGE_BYTES or len(trailer) < TRAILER.size:
        return f"the file ends before {where} does"
    found, checksum = TRAILER.unpack(trailer)
    if checksum != _checksum(content, found, slot):
        return f"{where} does not match its checksum"
    if found != virtblock:
        return f"{where} holds the content of virtblock {found}, not of {virtblock}"
    return ""
