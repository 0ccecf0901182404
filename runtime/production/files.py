"""What the file systems of a host's state folder have in common: names that stay inside, and errors in our words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everram.runtime.errors import (
    DataLoss,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def inside(root: Path, name: str) -> Path:
    """The path of a relative name. Raises InvalidArgument if it leads out of `root`."""
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise InvalidArgument(f"{name!r} does not name a file inside {root}")
    return root / name


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Operating system errors inside become ours, with the path."""
    try:
        yield
    except OSError as error:
        raise of_os_error(path, error) from error


def of_os_error(path: Path, error: OSError) -> EverramError:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return NotFound(f"there is no file {path}")
    if error.errno in _FULL:
        return ResourceExhausted(f"{path} cannot be written: {reason}; free some space and try again")
    if error.errno == errno.EIO:
        return DataLoss(f"the disk reports an I/O error on {path}; see the system's log, then try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{path} may not be used: {reason}")
    return FailedPrecondition(f"{path} cannot be used: {reason}")


def sync_folder(folder: Path) -> None:
    """Make names in it durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """It and its parents, durably, for this user only."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent)


def write_all(path: Path, fd: int, offset: int, data: bytes | memoryview) -> None:
    """All of it, at `offset`. Raises OSError, DataLoss if the file takes no more."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        if written == 0:
            raise DataLoss(f"{path} takes no more bytes")
        offset += written
        view = view[written:]
