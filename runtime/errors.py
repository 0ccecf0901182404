"""The one error of every way in: in a host, on the link, over gRPC.

An error carries a gRPC status code, whose fault it is, and a message that says what to do about it. An ask ends in one
of three outcomes: *ok*, *failed* (it took no effect) or *unknown* (it may have taken effect: the deadline passed or the
connection broke after it was sent). Never report *unknown* as failed.

Raise the subclass whose name says what is wrong; `from_proto` gives back the same class on the other side.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Fault(enum.IntEnum):
    """Whose fault an error is; the values are those of `everram.v1.Fault`."""

    CALLER = 1
    STATE = 2
    RESOURCE = 3
    INTERNAL = 4


class Outcome(enum.Enum):
    """What is known of an ask that has ended."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class EverramError(Exception):
    """Base of every error that crosses an everram contract."""

    code: ClassVar[int] = 13
    fault: ClassVar[Fault] = Fault.INTERNAL

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.unknown = unknown

    @property
    def outcome(self) -> Outcome:
        return Outcome.UNKNOWN if self.unknown else Outcome.FAILED


class Cancelled(EverramError):
    """The caller no longer wanted it."""

    code, fault = 1, Fault.CALLER


class InvalidArgument(EverramError):
    """The request itself is wrong, whatever the state."""

    code, fault = 3, Fault.CALLER


class DeadlineExceeded(EverramError):
    """Not answered in time; unknown unless it is certain that the request was never taken up."""

    code, fault = 4, Fault.RESOURCE


class NotFound(EverramError):
    code, fault = 5, Fault.CALLER


class AlreadyExists(EverramError):
    code, fault = 6, Fault.CALLER


class PermissionDenied(EverramError):
    code, fault = 7, Fault.CALLER


class ResourceExhausted(EverramError):
    """Memory, disk, a queue or a limit is full."""

    code, fault = 8, Fault.RESOURCE


class FailedPrecondition(EverramError):
    """A right request at a wrong time: change the state first."""

    code, fault = 9, Fault.STATE


class Aborted(EverramError):
    """Lost a race with another change: read again and retry."""

    code, fault = 10, Fault.STATE


class Unimplemented(EverramError):
    code, fault = 12, Fault.CALLER


class Internal(EverramError):
    """A bug in everram."""

    code, fault = 13, Fault.INTERNAL


class Unavailable(EverramError):
    """The other side cannot be reached now; failed if the request never left, unknown if it may have arrived."""

    code, fault = 14, Fault.RESOURCE


class DataLoss(EverramError):
    """Bytes are missing or do not match their checksum."""

    code, fault = 15, Fault.RESOURCE


class Unauthenticated(EverramError):
    code, fault = 16, Fault.CALLER


BY_CODE: dict[int, type[EverramError]] = {
    c.code: c
    for c in (
        Cancelled, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted,
        FailedPrecondition, Aborted, Unimplemented, Internal, Unavailable, DataLoss, Unauthenticated,
    )
}  # fmt: skip


def of_code(code: int, message: str, *, unknown: bool = False) -> EverramError:
    """The error of a gRPC status code; codes we do not use become `Internal`."""
    return BY_CODE.get(code, Internal)(message, unknown=unknown)
