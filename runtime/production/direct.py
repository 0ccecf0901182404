"""Large writes past the page cache, where the file system can: twice as fast, and nobody reads them again.

    writer = DirectWriter(path, descriptor)
    checksums = writer.write(offset, pieces, 65536)  # in threads, several at once; durable after the file's own sync

O_DIRECT asks for whole blocks in memory, length and place (open(2)). What is not, and every file of a file system that
has no such writes, goes through the cache.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from everram.runtime.checksums import address_of, checksums
from everram.runtime.environment import Piece, Scattered, Stretch
from everram.runtime.production.files import write_all

BLOCK_BYTES = 4096
BUFFER_BYTES = 8 << 20
LEAST_BYTES = 64 << 10
"""Smaller writes are left to the cache, which puts them together."""


_MADV_POPULATE_READ = 22
_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class DirectWriter:
    """Of one open file; `write` may be called by several threads at once, `close` when none of them does."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._direct_fd = _open_direct(path)
        self._buffers: deque[mmap.mmap] = deque()

    def write(self, offset: int, pieces: Sequence[Piece], block_bytes: int) -> list[int]:
        """One after the other; the CRC-32 of each block of `block_bytes`. Raises OSError, DataLoss.

        Gathered first, so that what is summed and what is written are the same bytes, even if somebody changes memory;
        but for one long view of a mapping, which its giver says that nobody changes.
        """
        length = sum(map(len, pieces))
        one = pieces[0] if len(pieces) == 1 else None
        if one is not None and _is_mapped(one) and self._is_whole(offset, length):
            _populate(one)
            sums = checksums(one, block_bytes)  # first: what is read of memory then is in the processor's cache
            if self._write_from_there(offset, one):
                return sums
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = mmap.mmap(-1, BUFFER_BYTES)
        if length > len(buffer):
            buffer = mmap.mmap(-1, length)
        try:
            with memoryview(buffer) as view, view[:length] as filled:
                _gather(filled, pieces)
                if not (self._is_whole(offset, length) and self._write_from_there(offset, filled)):
                    write_all(self._path, self._fd, offset, filled)
                return checksums(filled, block_bytes)
        finally:
            self._buffers.append(buffer)

    def _is_whole(self, offset: int, length: int) -> bool:
        return offset % BLOCK_BYTES == 0 and length % BLOCK_BYTES == 0 and length >= LEAST_BYTES

    def write_each(self, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """(offset, data) each, without a copy of what is fit for it: its memory has to be whole blocks as well. Raises
        OSError, DataLoss."""
        for offset, data in pieces:
            whole = offset % BLOCK_BYTES == 0 and len(data) % BLOCK_BYTES == 0 and len(data) >= LEAST_BYTES
            if not (whole and self._write_from_there(offset, data)):
                write_all(self._path, self._fd, offset, data)

    def close(self) -> None:
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
            self._direct_fd = -1
        self._buffers.clear()

    def _write_from_there(self, offset: int, data: bytes | memoryview) -> bool:
        """False if the file system, or its memory, is not fit for it."""
        if self._direct_fd < 0:
            return False
        try:
            write_all(self._path, self._direct_fd, offset, data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


def _is_mapped(data: Piece) -> TypeGuard[memoryview]:
    """Whether it lies in whole pages of memory."""
    return isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap)


def _populate(data: memoryview) -> None:
    """All page faults of it at once. Where the kernel cannot do that, they come one by one."""
    with address_of(data) as address:
        _libc.madvise(address, len(data), _MADV_POPULATE_READ)


def _gather(target: memoryview, pieces: Sequence[Piece]) -> None:
    at = 0
    for piece in pieces:
        end = at + len(piece)
        if isinstance(piece, Stretch):
            piece.copy_to(target[at:end])
        elif isinstance(piece, Scattered):
            piece.read_into(target[at:end])
        else:
            target[at:end] = piece
        at = end


def _open_direct(path: Path) -> int:
    """-1 where the file system has no such writes."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
