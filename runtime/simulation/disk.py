"""A simulated disk: what is on the platter, what only the operating system knows, and every way it can fail.

`Media` outlives hosts and machines; each host incarnation gets a `SimulatedDisk` of it, its `environment.Disk`.
Unsynced writes survive the death of a process (the system's cache has them) and meet their fate at `power_loss`: each
is kept, lost, or torn at a sector, as the stream draws it. `replace` and `remove` are durable when they return, and
old or new before.

An operation takes a seeded time and takes effect at its beginning or at its end, so that a process killed in between
leaves either.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from everram.runtime.environment import Piece, Scattered, Stretch
from everram.runtime.errors import DataLoss, NotFound, ResourceExhausted
from everram.runtime.simulation.entropy import Stream

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""


@dataclass(slots=True)
class DiskFaults:
    """What may happen to an operation; `error_rate` per operation."""

    error_rate: float = 0.0
    latency_min_s: float = 20e-6
    latency_max_s: float = 300e-6


@dataclass(slots=True)
class File:
    cached: bytearray = field(default_factory=bytearray)
    """What a reader sees."""
    durable: bytearray = field(default_factory=bytearray)
    """What a power loss leaves for certain."""
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since the last sync, oldest first: `durable` with all of them is `cached`."""

    def write(self, offset: int, data: bytes) -> None:
        _write(self.cached, offset, data)
        self.unsynced.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.unsynced:
            _write(self.durable, offset, data)
        self.unsynced.clear()

    def power_loss(self, stream: Stream) -> None:
        for offset, data in self.unsynced:
            fate = stream.randrange(3)
            if fate == 0:
                _write(self.durable, offset, data)
            elif fate == 1:
                _write_torn(self.durable, offset, data, stream)
        self.unsynced.clear()
        self.cached[:] = self.durable


def _content(piece: Piece) -> bytes | memoryview:
    if isinstance(piece, Stretch):
        piece.bring()
        content = bytearray(len(piece))
        piece.copy_to(memoryview(content))
        return bytes(content)
    if isinstance(piece, Scattered):
        gathered = bytearray(len(piece))
        piece.read_into(memoryview(gathered))
        return bytes(gathered)
    return piece


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _write_torn(content: bytearray, offset: int, data: bytes, stream: Stream) -> None:
    """Each sector of the write for itself, or not."""
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
        if stream.random() < 0.5:
            _write(content, offset + start, data[start:end])
        start = end


class Media:
    """The files of one machine's disk, by relative path."""

    def __init__(self, stream: Stream, capacity_bytes: int = 1 << 40, faults: DiskFaults | None = None) -> None:
        self.stream = stream
        self.capacity_bytes = capacity_bytes
        self.faults = faults if faults is not None else DiskFaults()
        self.files: dict[str, File] = {}
        self.rotten = False
        """Whether something on it is not what was written."""

    def rot(self, name: str) -> bool:
        """One bit of a file changes, and nobody is told; False if there is none in it."""
        file = self.files.get(name)
        if file is None or not file.durable:
            return False
        at, bit = self.stream.randrange(len(file.durable)), 1 << self.stream.randrange(8)
        file.durable[at] ^= bit
        if at < len(file.cached):
            file.cached[at] ^= bit
        self.rotten = True
        return True

    def power_loss(self) -> None:
        """Whatever was not synced may be lost. No process may be using the media."""
        for name in sorted(self.files):
            self.files[name].power_loss(self.stream)

    def used_bytes(self) -> int:
        return sum(len(file.cached) for file in self.files.values())

    def demand(self, growth_bytes: int) -> None:
        """Raises ResourceExhausted if the disk has less left."""
        if growth_bytes > 0 and self.used_bytes() + growth_bytes > self.capacity_bytes:
            raise ResourceExhausted("the disk is full; free some space in the state folder and try again")


class SimulatedDisk:
    """`environment.Disk` on some media."""

    def __init__(self, media: Media) -> None:
        self._media = media

    async def open(self, name: str, *, create: bool = False) -> SimulatedFile:
        async with operation(self._media, name):
            if name not in self._media.files:
                if not create:
                    raise NotFound(f"there is no file {name}")
                self._media.files[name] = File()
            return SimulatedFile(self._media, name)

    async def read(self, name: str) -> bytes:
        async with operation(self._media, name):
            if name not in self._media.files:
                raise NotFound(f"there is no file {name}")
            return bytes(self._media.files[name].cached)

    async def replace(self, name: str, data: bytes) -> None:
        async with operation(self._media, name):
            old = self._media.files.get(name)
            self._media.demand(len(data) - (len(old.cached) if old is not None else 0))
            self._media.files[name] = File(bytearray(data), bytearray(data))

    async def list(self, folder: str) -> list[str]:
        async with operation(self._media, folder):
            prefix = f"{folder.rstrip('/')}/" if folder not in ("", ".") else ""
            rest = (name.removeprefix(prefix) for name in self._media.files if name.startswith(prefix))
            return sorted(name for name in rest if "/" not in name)

    async def remove(self, name: str) -> None:
        async with operation(self._media, name):
            for found in [found for found in self._media.files if found == name or found.startswith(name + "/")]:
                del self._media.files[found]

    async def free_bytes(self) -> int:
        async with operation(self._media, "free space"):
            return max(0, self._media.capacity_bytes - self._media.used_bytes())


@asynccontextmanager
async def operation(media: Media, name: str) -> AsyncIterator[None]:
    """The time an operation takes, before or after its effect as it is drawn. Raises DataLoss where the disk fails."""
    stream, faults = media.stream, media.faults
    latency_s = stream.uniform(faults.latency_min_s, faults.latency_max_s)
    early = stream.random() < 0.5
    if not early:
        await asyncio.sleep(latency_s)
    if faults.error_rate and stream.random() < faults.error_rate:
        raise DataLoss(f"the disk reports an I/O error on {name}; see the system's log, then try again")
    yield
    if early:
        await asyncio.sleep(latency_s)


class SimulatedFile:
    """`environment.DiskFile`. A removed file stays usable through open descriptors, as on Linux."""

    def __init__(self, media: Media, name: str) -> None:
        self._media = media
        self._name = name
        self._file = media.files[name]
        self._open = True

    async def pread(self, offset: int, length: int) -> bytes:
        async with self._operation():
            return bytes(self._file.cached[offset : offset + length])

    def pread_now(self, offset: int, length: int) -> bytes:
        return bytes(self._file.cached[offset : offset + length])

    async def pread_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        async with self._operation():
            return [bytes(self._file.cached[offset : offset + length]) for offset, length in ranges]

    async def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        await self.pwrite_each([(offset, data)])

    async def pwrite_each(self, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
        async with self._operation():
            for offset, data in pieces:
                self._media.demand(offset + len(data) - len(self._file.cached))
                self._file.write(offset, bytes(data))

    async def pwrite_all(self, offset: int, pieces: Sequence[Piece], block_bytes: int) -> list[int]:
        data = b"".join(map(_content, pieces))
        await self.pwrite(offset, data)
        return [zlib.crc32(data[at : at + block_bytes]) for at in range(0, len(data), block_bytes)]

    async def sync(self) -> None:
        async with self._operation():
            self._file.sync()

    async def size(self) -> int:
        async with self._operation():
            return len(self._file.cached)

    async def close(self) -> None:
        self.close_now()

    def close_now(self) -> None:
        self._open = False

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        if not self._open:
            raise ValueError(f"{self._name} is closed")
        async with operation(self._media, self._name):
            yield
