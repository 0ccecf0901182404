"""Memory that is a file without a name: created, sealed, shared by passing the descriptor.

Sealed against shrinking and growing, so that no peer can make another's mapping fault; never FUTURE_WRITE, with which
nobody, a restarted owner included, could map it writable again. Only the files of remote memory are not sealed, for
their size is their own: whoever has such a descriptor reads and writes it, and maps nothing. Sparse: what was never
written takes no memory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat

from everram.runtime.errors import ResourceExhausted

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FIXED_MODE = stat.S_ISVTX | stat.S_IRUSR | stat.S_IWUSR
"""Of an ordinary file whose length never changes."""
NAME_BYTES_MAX = 249
"""The kernel's limit of a memfd's name, which is for people only."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def create(name: str, size_bytes: int, *, resizable: bool = False) -> int:
    """A descriptor of zeroed memory, of a fixed size if not `resizable`, the caller's own. Raises ResourceExhausted."""
    try:
        fd = os.memfd_create(
            name.encode()[:NAME_BYTES_MAX].decode(errors="ignore"), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
    except OSError as error:
        raise ResourceExhausted(f"no memory can be made for {name}: {error.strerror}") from error
    try:
        os.ftruncate(fd, size_bytes)
        if not resizable:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise ResourceExhausted(f"no memory of {size_bytes} bytes can be made: {error.strerror}") from error
    return fd


def is_resizable(fd: int) -> bool:
    """Whether it may be shortened, so that nobody may map it. Of an ordinary file, which cannot be sealed, its mode
    says that nobody of us will."""
    status = os.fstat(fd)
    if status.st_nlink:
        return stat.S_IMODE(status.st_mode) != FIXED_MODE
    try:
        return not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    except OSError:
        return True  # an ordinary file that was removed


def is_file(fd: int) -> bool:
    """Whether it has a name, so that it does not end with its last descriptor."""
    return bool(os.fstat(fd).st_nlink)


def extents(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """(offset, length) of what is present between two offsets, ascending."""
    found: list[tuple[int, int]] = []
    seek, data, hole = os.lseek, os.SEEK_DATA, os.SEEK_HOLE  # there may be hundreds of thousands
    offset = start
    try:
        while offset < end and (first := seek(fd, offset, data)) < end:
            offset = seek(fd, first, hole)
            found.append((first, offset - first))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    if offset > end:
        found[-1] = (found[-1][0], end - found[-1][0])
    return found


def is_present(fd: int, offset: int) -> bool:
    """Of a page. Without asking for the end of what is present: the kernel would look at every page up to there."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) == offset
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise


def punch(fd: int, offset: int, length: int) -> None:
    """Give the pages of this range back. Raises OSError."""
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
