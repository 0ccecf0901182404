"""The storage file: purged blocks, each in a slot of its own with what proves that it is the right one.

    storage = StorageFile(environment.disk, "nvm/purged", fresh=False)
    await storage.write([(slot, virtblock, content), ...])      # neighbouring slots in one go
    await storage.sync()                                         # durable when this returns
    content = await storage.read(slot, virtblock)                # verified; raises DataLoss

A slot is the content and a trailer: the virtblock that it belongs to and a CRC-32 over both and the slot's number. So
a bit that has rotted, a write that went elsewhere, and what an earlier memory of this machine left are all told from
what was purged. Which slots are taken is known by the metadata alone. docs/formats.md, "Snapshots".
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Iterable, Sequence

from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES

MAGIC = b"EVRPURGE"
VERSION = (1, 0)
_HEADER = struct.Struct("<8sHHI")
_CHECKSUM = struct.Struct("<I")
_TRAILER = struct.Struct("<QII")
"""Virtblock, CRC-32, reserved."""
_CHECKED = struct.Struct("<QQ")
SLOTS_OFFSET = PAGE_BYTES
SLOT_BYTES = PAGE_BYTES + _TRAILER.size

SlotContent = tuple[int, int, bytes]
"""Slot, virtblock, content."""


class StorageFile:
    """See the module. Opened when it is first needed. `fresh`: nothing was purged yet, so what is there is of an
    earlier memory of this machine."""

    def __init__(self, disk: Disk, name: str, *, fresh: bool) -> None:
        self._disk = disk
        self._name = name
        self._fresh = fresh
        self._file: DiskFile | None = None
        self._opening = asyncio.Lock()

    async def _opened(self) -> DiskFile:
        """Raises FailedPrecondition for a file of a later version, DataLoss for what is none, ResourceExhausted."""
        async with self._opening:
            if self._file is None:
                self._file = await self._open()
        return self._file

    async def _open(self) -> DiskFile:
        if self._fresh:
            await self._disk.remove(self._name)
        file = await self._disk.open(self._name, create=True)
        try:
            if await file.size() < SLOTS_OFFSET:
                header = _HEADER.pack(MAGIC, *VERSION, SLOT_BYTES)
                await file.pwrite(0, (header + _CHECKSUM.pack(zlib.crc32(header))).ljust(SLOTS_OFFSET, b"\0"))
                await file.sync()
            _check_header(self._name, await file.pread(0, _HEADER.size + _CHECKSUM.size))
        except BaseException:
            await file.close()
            raise
        return file

    async def write(self, contents: Sequence[SlotContent]) -> None:
        """By ascending slots. Raises ResourceExhausted on a full disk, DataLoss."""
        file = await self._opened()
        writing: asyncio.Future[None] | None = None
        for run in _runs(contents):
            data = _packed(run)  # while the one before is being written
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(file.pwrite(_offset(run[0][0]), data))
        if writing is not None:
            await writing

    async def sync(self) -> None:
        await (await self._opened()).sync()

    async def read(self, slot: int, virtblock: int) -> bytes:
        """Raises DataLoss if the slot does not hold what was purged of this virtblock."""
        data = await (await self._opened()).pread(_offset(slot), SLOT_BYTES)
        if len(data) < SLOT_BYTES:
            raise DataLoss(f"{self._name} ends before slot {slot} (offset {_offset(slot)}): a purged block is lost")
        content, (owner, checksum, _) = data[:PAGE_BYTES], _TRAILER.unpack_from(data, PAGE_BYTES)
        if owner != virtblock or checksum != _crc(slot, virtblock, content):
            raise DataLoss(
                f"{self._name}: slot {slot} (offset {_offset(slot)}) does not hold what was purged to it: the disk has "
                "changed it, and a purged block is lost"
            )
        return content

    async def close(self) -> None:
        if self._file is not None:
            await self._file.close()


def _offset(slot: int) -> int:
    return SLOTS_OFFSET + slot * SLOT_BYTES


def _crc(slot: int, virtblock: int, content: bytes) -> int:
    return zlib.crc32(_CHECKED.pack(slot, virtblock), zlib.crc32(content))


def _packed(run: Iterable[SlotContent]) -> bytes:
    parts = []
    for slot, virtblock, content in run:
        parts.append(content)
        parts.append(_TRAILER.pack(virtblock, _crc(slot, virtblock, content), 0))
    return b"".join(parts)


def _runs(contents: Sequence[SlotContent]) -> list[list[SlotContent]]:
    """Of neighbouring slots."""
    runs: list[list[SlotContent]] = []
    for one in contents:
        if runs and runs[-1][-1][0] + 1 == one[0]:
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


def _check_header(name: str, data: bytes) -> None:
    header = data[: _HEADER.size]
    if len(data) < _HEADER.size + _CHECKSUM.size or not header.startswith(MAGIC):
        raise DataLoss(f"{name} is not a storage file of purged blocks: move it away, if nothing was ever purged here")
    if _CHECKSUM.unpack_from(data, _HEADER.size) != (zlib.crc32(header),):
        raise DataLoss(f"{name}: its header at offset 0 does not match its checksum")
    _, major, minor, slot_bytes = _HEADER.unpack(header)
    if major > VERSION[0]:
        raise FailedPrecondition(
            f"{name}: written in version {major}.{minor}, this everram reads {VERSION[0]}.x: use the later one"
        )
    if slot_bytes != SLOT_BYTES:
        raise DataLoss(f"{name}: slots of {slot_bytes} bytes, not {SLOT_BYTES}")
