"""Errors of a file system, as everram's errors: each ends with the errno it stands for.

    raise not_empty("d")           # FailedPrecondition("folder d is not empty (ENOTEMPTY)")
    errno_in(error)                # errno.ENOTEMPTY, wherever it was raised; None if it names none

An everram error has a code of gRPC's, and there are fewer of those than errnos.
"""

from __future__ import annotations

import errno
import re

from everram.runtime.errors import (
    AlreadyExists,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)

_NAMED = re.compile(r"\((E[A-Z0-9]+)\)$")


def errno_in(error: EverramError) -> int | None:
    found = _NAMED.search(error.message)
    return getattr(errno, found[1], None) if found else None


def no_entry(name: str) -> NotFound:
    return NotFound(f"there is no {name!r} (ENOENT)")


def exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"there is a {name!r} already (EEXIST)")


def no_folder(name: str) -> FailedPrecondition:
    return FailedPrecondition(f"{name!r} is not a folder (ENOTDIR)")


def is_folder(name: str) -> FailedPrecondition:
    return FailedPrecondition(f"{name!r} is a folder (EISDIR)")


def not_empty(name: str) -> FailedPrecondition:
    return FailedPrecondition(f"folder {name!r} is not empty (ENOTEMPTY)")


def into_itself(name: str) -> InvalidArgument:
    return InvalidArgument(f"folder {name!r} cannot be moved into itself (EINVAL)")


def root() -> InvalidArgument:
    return InvalidArgument("this cannot be done to the root (EBUSY)")


def bad_name(name: str, number: str = "EINVAL") -> InvalidArgument:
    return InvalidArgument(f"{name[:80]!r} cannot name anything: 1 to 255 bytes of UTF-8, without slashes ({number})")


def denied(name: str, what: str) -> PermissionDenied:
    return PermissionDenied(f"{what} is not permitted on {name!r}: see its mode (EACCES)")


def stale(name: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the bytes of {name!r} are gone: {why} (ESTALE)")


def no_room(message: str) -> ResourceExhausted:
    return ResourceExhausted(f"{message} (ENOSPC)")


def bad_handle(name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"{name!r} is not open for {what} (EBADF)")
