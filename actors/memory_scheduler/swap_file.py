"""The swap file: slots of one page each on the machine's storage, and which of them are free.

    file = await SwapFile.open(disk, memory_id, slots=65536)
    slots = file.take(64)                          # reserved in this process alone
    await file.write(slots, pages)                 # then a page's word in its guest's SwapTable names its slot
    content = await file.read([slot])

Which slots are taken is written down nowhere but in the tables of the guests that use them, which live as long as the
machine's memory: a host's successor learns it from there. The file's first slot names the memory it belongs to; the
file of another memory, or of one that was lost, is begun anew. Nothing is ever synced: what is on it is of no use once
the memory is gone. Each page's checksum lies with its place, so what the storage gives back wrong is noticed; so a file
that pages are in is used whatever its first slot says, and never begun anew.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, NotFound, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES

NAME = "swap/pages"
MAGIC = b"EVRSWAPF"
VERSION = 1
_HEADER = struct.Struct("<8sI64s")


class Slots:
    """Which slots are free; plain data. Slots are taken in runs where there are any, so that what left together is
    read together."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.used = 0
        self._taken = bytearray(count)
        self._next = 0

    def hold(self, slot: int) -> bool:
        """Count a slot as taken; False if it cannot be: it is, already, or there is none of that number."""
        if not 0 <= slot < self.count or self._taken[slot]:
            return False
        self._taken[slot] = 1
        self.used += 1
        return True

    def take(self, count: int) -> list[int]:
        """At most so many; fewer if there are no more."""
        found: list[int] = []
        at, wrapped = self._next, False
        while len(found) < count:
            at = self._taken.find(0, at)
            if at < 0:
                if wrapped:
                    break
                at, wrapped = 0, True
                continue
            self._taken[at] = 1
            self.used += 1
            found.append(at)
            at += 1
        self._next = at if 0 <= at < self.count else 0
        return found

    def release(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if 0 <= slot < self.count and self._taken[slot]:
                self._taken[slot] = 0
                self.used -= 1


class SwapFile:
    """An open one."""

    def __init__(self, file: DiskFile, slots: Slots) -> None:
        self._file = file
        self.slots = slots

    @classmethod
    async def open(cls, disk: Disk, memory_id: str, slots: int, *, needed: int = 0) -> SwapFile:
        """`needed`: how many pages of guests are in it. Raises ResourceExhausted, DataLoss where the storage cannot be
        used, or is without those."""
        try:
            file = await disk.open(NAME, create=not needed)
        except NotFound:
            raise DataLoss(
                f"{NAME} is missing in the host's folder, and guests have pages in it ({needed} in all): put it back, "
                "or restart those guests without it"
            ) from None
        header = _HEADER.pack(MAGIC, VERSION, memory_id.encode()[:64])
        header += zlib.crc32(header).to_bytes(4, "little")
        try:
            if not needed and await file.pread(0, len(header)) != header:
                await file.close()
                await disk.remove(NAME)
                file = await disk.open(NAME, create=True)
                await file.pwrite(0, header.ljust(PAGE_BYTES, b"\0"))
        except BaseException:  # cancelled, too
            file.close_now()
            raise
        return cls(file, Slots(slots))

    async def write(self, slots: Sequence[int], pages: Sequence[bytes]) -> None:
        """Raises ResourceExhausted (the disk is full), DataLoss (it failed): then nothing may name these slots."""
        at = 0
        while at < len(slots):
            end = at + 1
            while end < len(slots) and slots[end] == slots[end - 1] + 1:
                end += 1
            await self._file.pwrite(_offset(slots[at]), b"".join(pages[at:end]))
            at = end

    async def read(self, slots: Sequence[int]) -> list[bytes]:
        """What is in each; shorter than a page where the file ends. Raises DataLoss."""
        runs: list[list[int]] = []
        for slot in slots:
            if runs and slot == sum(runs[-1]):
                runs[-1][1] += 1
            else:
                runs.append([slot, 1])
        pieces = await self._file.pread_each([(_offset(first), count * PAGE_BYTES) for first, count in runs])
        return [
            piece[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            for piece, (_, count) in zip(pieces, runs, strict=True)
            for number in range(count)
        ]

    def close(self) -> None:
        self._file.close_now()


def _offset(slot: int) -> int:
    return (slot + 1) * PAGE_BYTES


def check(content: bytes, checksum: int, page: int) -> None:
    """Raises DataLoss for a page that is not what was saved."""
    if len(content) != PAGE_BYTES or zlib.crc32(content) != checksum:
        raise DataLoss(f"page {page} is damaged in the swap file: the guest is paused, and its other pages are intact")


def no_room() -> ResourceExhausted:
    return ResourceExhausted("the swap space is full")
