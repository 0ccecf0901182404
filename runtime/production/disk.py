"""`environment.Disk` on a real folder.

Every operation runs in a thread: a sync takes milliseconds to seconds, and the loop has heartbeats to send meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from everram.runtime.environment import Piece, Stretch
from everram.runtime.formats.faults import DISK_FAILS, DISK_FAULT_FILE, DISK_FULL, DISK_SLOW
from everram.runtime.production.direct import DirectWriter
from everram.runtime.production.files import errors_of, inside, make_folders, sync_folder, write_all

P = ParamSpec("P")
T = TypeVar("T")

ASIDE = ".aside~"
"""Ends the name of a file that `replace` has not finished; such a file is nobody's."""
SLOW_S = 0.05
"""That each write and sync takes longer on a slow disk."""
FAILS_EVERY = 3
"""Of the writes and syncs on a failing disk, one in so many fails."""
_writes = itertools.count()


class Folder:
    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)

    async def open(self, name: str, *, create: bool = False) -> FolderFile:
        path = inside(self._root, name)
        return FolderFile(path, await _in_thread(path, _open, path, create), self._root)

    async def read(self, name: str) -> bytes:
        path = inside(self._root, name)
        return await _in_thread(path, path.read_bytes)

    async def replace(self, name: str, data: bytes) -> None:
        path = inside(self._root, name)
        await _in_thread(path, _write, self._root, _replace, path, data)

    async def list(self, folder: str) -> list[str]:
        path = inside(self._root, folder)
        return await _in_thread(path, _list, path)

    async def remove(self, name: str) -> None:
        path = inside(self._root, name)
        await _in_thread(path, _remove, path)

    async def free_bytes(self) -> int:
        return await _in_thread(self._root, _free_bytes, self._root)


class FolderFile:
    """An open file; its descriptor is closed by `close`."""

    def __init__(self, path: Path, fd: int, root: Path) -> None:
        self._path = path
        self._named = False
        """Its name is durable: also one that another process has made may not be."""
        self._root = root
        self._fd = fd
        self._direct: DirectWriter | None = None

    async def pread(self, offset: int, length: int) -> bytes:
        return await _in_thread(self._path, _pread, self._descriptor(), offset, length)

    def pread_now(self, offset: int, length: int) -> bytes:
        with errors_of(self._path):
            return _pread(self._descriptor(), offset, length)

    async def pread_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        fd = self._descriptor()
        return await _in_thread(self._path, lambda: [_pread(fd, offset, length) for offset, length in ranges])

    async def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        await _in_thread(self._path, _write, self._root, write_all, self._path, self._descriptor(), offset, data)

    async def pwrite_all(self, offset: int, pieces: Sequence[Piece], block_bytes: int) -> list[int]:
        for piece in pieces:
            if isinstance(piece, Stretch):
                piece.bring()
        write = self._direct_writer().write
        return await _in_thread(self._path, _write, self._root, write, offset, pieces, block_bytes)

    async def pwrite_each(self, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
        await _in_thread(self._path, _write, self._root, self._direct_writer().write_each, pieces)

    def _direct_writer(self) -> DirectWriter:
        if self._direct is None:
            self._direct = DirectWriter(self._path, self._descriptor())
        return self._direct

    async def sync(self) -> None:
        folder = None if self._named else self._path.parent
        await _in_thread(self._path, _sync, self._root, self._descriptor(), folder)
        self._named = True

    async def size(self) -> int:
        with errors_of(self._path):
            return os.fstat(self._descriptor()).st_size

    async def close(self) -> None:
        self.close_now()

    def close_now(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    def _descriptor(self) -> int:
        if self._fd < 0:
            raise ValueError(f"{self._path} is closed")
        return self._fd


async def _in_thread(path: Path, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """In a thread to its end: whoever is cancelled meanwhile must not close a descriptor that the thread still uses."""
    task = asyncio.get_running_loop().run_in_executor(None, lambda: call(*args, **named))
    with errors_of(path):
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise


def _write(root: Path, write: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """As a full, slow or failing disk would have it, where somebody asked for that."""
    if _suffer(root) == DISK_FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(*args, **named)


def _suffer(root: Path) -> str:
    """The disk's fault, if it has one, once it has had the effect that it has on syncs, too."""
    try:
        fault = (root / DISK_FAULT_FILE).read_text()
    except OSError:
        return ""
    if fault == DISK_FAILS and next(_writes) % FAILS_EVERY == 0:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if fault == DISK_SLOW:
        time.sleep(SLOW_S)
    return fault


def _open(path: Path, create: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as error:
        if create or error.errno not in (errno.EROFS, errno.EACCES):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # it can be read, and whoever writes is told
    make_folders(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _sync(root: Path, fd: int, folder: Path | None) -> None:
    """The file, and the folder that has its name: it is durable only if that is."""
    _suffer(root)
    os.fdatasync(fd)
    if folder is not None:
        sync_folder(folder)


def _pread(fd: int, offset: int, length: int) -> bytes:
    pieces: list[bytes] = []
    while length > 0 and (piece := os.pread(fd, length, offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _replace(path: Path, data: bytes) -> None:
    make_folders(path.parent)
    aside = path.with_name(path.name + ASIDE)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(aside, fd, 0, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        aside.rename(path)
    except OSError:
        # Above all on a full disk: give the space back.
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _list(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file() and not entry.name.endswith(ASIDE))
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def _free_bytes(root: Path) -> int:
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize
