"""What a program on the mount is told when something fails: an errno.

A file system raises `FuseError(errno.ENOTEMPTY)` where it knows the very number, and otherwise the errors of everram
(runtime/errors.py) as everywhere else; `errno_of` translates at the edge, and nowhere before it. A message that ends
with the errno it stands for, as those about remote memory do ("... is not empty (ENOTEMPTY)"), ends the request so.
"""

from __future__ import annotations

import errno
import os
import re

from everram.runtime import errors

_NAMED = re.compile(r"\((E[A-Z0-9]+)\)$")


class FuseError(Exception):
    """Ends a request with this errno."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or os.strerror(number))
        self.number = number


BY_ERROR: dict[type[errors.EverramError], int] = {
    errors.Cancelled: errno.EINTR,
    errors.InvalidArgument: errno.EINVAL,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.NotFound: errno.ENOENT,
    errors.AlreadyExists: errno.EEXIST,
    errors.PermissionDenied: errno.EACCES,
    errors.Unauthenticated: errno.EACCES,
    errors.ResourceExhausted: errno.ENOSPC,
    # The file is not what it was at open: its memory is gone, was lost, or has a new generation. Open it again.
    errors.FailedPrecondition: errno.ESTALE,
    errors.Aborted: errno.EAGAIN,
    # Never ENOSYS, which the kernel remembers: it would not ask again for as long as the mount lives.
    errors.Unimplemented: errno.EOPNOTSUPP,
    errors.Internal: errno.EIO,
    errors.Unavailable: errno.EIO,
    errors.DataLoss: errno.EIO,
}


def errno_of(error: BaseException) -> int:
    """EIO for what nobody foresaw: a program must never take a bug for an answer."""
    if isinstance(error, FuseError):
        number = error.number
    elif isinstance(error, errors.EverramError):
        named = _NAMED.search(error.message)
        number = getattr(errno, named[1], 0) if named else BY_ERROR.get(type(error), errno.EIO)
    elif isinstance(error, OSError):
        number = error.errno or errno.EIO
    else:
        number = errno.EIO
    return number if 0 < number < ERRNO_END else errno.EIO


ERRNO_END = 512
"""The kernel takes answers below this only; what lies above is its own (ERESTARTSYS and the like)."""
