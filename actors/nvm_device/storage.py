"""The mass-storage file: slots for purged blocks, each with a trailer that proves its content.

    storage = await StorageFile.open(disk, "nvm/purged")         # made if there is none
    await storage.write([(slot, virtblock, data), ...])          # neighbours go to the disk in one piece
    await storage.sync()                                         # and only now may a virtblock name a slot
    data = await storage.read(slot, virtblock)                   # raises DataLoss where it is not what was written

Which slots are taken is for the metadata to know (`Media.storage`); a slot that is free holds anything. The trailer
names the virtblock, and the checksum covers content, virtblock and slot: so a block that the disk has put in another's
place is found, too. docs/formats.md, "The storage file", describes every field.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, FailedPrecondition, NotFound
from everram.runtime.memory.contract import PAGE_BYTES

MAGIC = b"EVRSTORE"
MAJOR, MINOR = 1, 0
_HEADER = struct.Struct("<8sHHII")
"""Magic, major, minor, bytes of a block, bytes from one slot to the next; its CRC-32 follows."""
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 4096
_TRAILER = struct.Struct("<QII")
"""Virtblock, CRC-32 of the content and `_PROVEN`, reserved."""
_PROVEN = struct.Struct("<QQ")
"""Virtblock, slot."""
STRIDE_BYTES = PAGE_BYTES + _TRAILER.size
PIECE_SLOTS = 256
"""1 MiB: enough for a disk at its full speed, and prepared in a few milliseconds, for which the loop is not served."""

Content = tuple[int, int, bytes]
"""Slot, virtblock, content."""


class StorageFile:
    """See the module. One writer at a time; whoever shares a slot's number shares its content."""

    def __init__(self, file: DiskFile, name: str) -> None:
        self._file = file
        self.name = name

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

    async def write(self, contents: Iterable[Content]) -> None:
        """Durable after the next `sync`; those that follow each other in slots that do go to the disk together. Raises
        ResourceExhausted on a full disk, DataLoss."""
        pieces = _packed(contents)
        piece = next(pieces, None)
        while piece is not None:
            writing = asyncio.create_task(self._file.pwrite(*piece))
            try:
                await asyncio.sleep(0)  # it begins, and goes on while the next piece is prepared
                piece = next(pieces, None)
            finally:
                await writing

    async def sync(self) -> None:
        """All that was written is durable when this returns. Raises DataLoss."""
        await self._file.sync()

    async def read(self, slot: int, virtblock: int) -> bytes:
        """Raises DataLoss."""
        data = await self._file.pread(_offset(slot), STRIDE_BYTES)
        if wrong := _wrong(data, slot, virtblock):
            raise DataLoss(f"{self.name}: {wrong}")
        return data[:PAGE_BYTES]

    async def read_all(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """Those of many (slot, virtblock), in their order; neighbours come in one piece. Raises DataLoss."""
        found: dict[int, bytes] = {}
        async for slot, virtblock, data in self._slots(wanted):
            if wrong := _wrong(data, slot, virtblock):
                raise DataLoss(f"{self.name}: {wrong}")
            found[slot] = data[:PAGE_BYTES]
        return [found[slot] for slot, _ in wanted]

    async def verify(self, slots: Mapping[int, int]) -> dict[int, str]:
        """What is wrong with the slots of these virtblocks (slot -> virtblock), in a plain sentence each."""
        findings: dict[int, str] = {}
        async for slot, virtblock, data in self._slots(list(slots.items())):
            if wrong := _wrong(data, slot, virtblock):
                findings[slot] = f"{self.name}: {wrong}"
        return findings

    async def _slots(self, wanted: Sequence[tuple[int, int]]) -> AsyncIterator[Content]:
        for run in _runs(sorted(set(wanted))):
            first = run[0][0]
            data = await self._file.pread(_offset(first), len(run) * STRIDE_BYTES)
            for slot, virtblock in run:
                at = (slot - first) * STRIDE_BYTES
                yield slot, virtblock, data[at : at + STRIDE_BYTES]


def _header() -> bytes:
    fields = _HEADER.pack(MAGIC, MAJOR, MINOR, PAGE_BYTES, STRIDE_BYTES)
    return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def _check_header(name: str, header: bytes) -> None:
    if len(header) < HEADER_BYTES:
        raise DataLoss(f"{name}: {len(header)} bytes are too few for its header")
    magic, major, minor, block_bytes, stride_bytes = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise DataLoss(f"{name}: {magic!r} at offset 0 is not its magic {MAGIC!r}")
    if _CHECKSUM.unpack_from(header, _HEADER.size) != (zlib.crc32(header[: _HEADER.size]),):
        raise DataLoss(f"{name}: the header at offset 0 does not match its checksum")
    if major > MAJOR:
        raise FailedPrecondition(
            f"{name}: written in version {major}.{minor}, this everram reads {MAJOR}.x: use the later one"
        )
    if (block_bytes, stride_bytes) != (PAGE_BYTES, STRIDE_BYTES):
        raise DataLoss(f"{name}: blocks of {block_bytes} bytes every {stride_bytes} bytes cannot be")


def _offset(slot: int) -> int:
    return HEADER_BYTES + slot * STRIDE_BYTES


def _checksum(data: bytes, virtblock: int, slot: int) -> int:
    return zlib.crc32(_PROVEN.pack(virtblock, slot), zlib.crc32(data))


def _packed(contents: Iterable[Content]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of neighbours, as many as one write may have."""
    parts: list[bytes] = []
    first = following = 0
    for slot, virtblock, data in contents:
        if len(data) != PAGE_BYTES:
            raise ValueError(f"a block of {len(data)} bytes for slot {slot}, not {PAGE_BYTES}")
        if slot != following or len(parts) == 2 * PIECE_SLOTS:
            if parts:
                yield _offset(first), b"".join(parts)
            parts, first = [], slot
        parts += (data, _TRAILER.pack(virtblock, _checksum(data, virtblock, slot), 0))
        following = slot + 1
    if parts:
        yield _offset(first), b"".join(parts)


def _runs(wanted: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbours, as many as one read may have."""
    run: list[tuple[int, int]] = []
    for slot, virtblock in wanted:
        if run and (slot != run[-1][0] + 1 or len(run) == PIECE_SLOTS):
            yield run
            run = []
        run.append((slot, virtblock))
    if run:
        yield run


def _wrong(data: bytes, slot: int, virtblock: int) -> str:
    """What is wrong with a slot as it was read; empty if nothing is."""
    where = f"slot {slot} at offset {_offset(slot)}"
    if len(data) < STRIDE_BYTES:
        return f"the file ends before {where} does"
    content = data[:PAGE_BYTES]
    found, checksum, _ = _TRAILER.unpack_from(data, PAGE_BYTES)
    if checksum != _checksum(content, found, slot):
        return f"{where} does not match its checksum"
    if found != virtblock:
        return f"{where} holds the content of virtblock {found}, not of {virtblock}"
    return ""
