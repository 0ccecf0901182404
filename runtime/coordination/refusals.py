"""Why coordination refuses a request: everram's errors, each with the code and sentence that etcd uses for it.

The server sends etcd's own words, because etcd's clients recognise them by their text; our client turns them back into
these classes, so callers see one error whatever server answered.
"""

from __future__ import annotations

from typing import ClassVar

from everram.runtime.errors import (
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    of_code,
)

OUT_OF_RANGE = 11
"""A gRPC code that everram's own contracts do not use; etcd does."""


class Refusal(EverramError):
    """A request that etcd refuses too."""

    etcd_code: ClassVar[int]
    etcd_message: ClassVar[str]
    plain: ClassVar[str]

    def __init__(self, message: str = "", *, unknown: bool = False) -> None:
        super().__init__(message or self.plain, unknown=unknown)


class Compacted(Refusal, FailedPrecondition):
    etcd_code, etcd_message = OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
    plain = "coordination no longer keeps that revision: read the keys again and go on from the revision of the answer"


class FutureRevision(Refusal, InvalidArgument):
    etcd_code, etcd_message = OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"
    plain = "coordination has not reached that revision yet: ask for one that an answer named"


class LeaseGone(Refusal, NotFound):
    etcd_code, etcd_message = 5, "etcdserver: requested lease not found"
    plain = "the lease has expired or was revoked: ask for a new one"


class LeaseExists(Refusal, FailedPrecondition):
    etcd_code, etcd_message = 9, "etcdserver: lease already exists"
    plain = "a lease with that number exists: choose another, or 0 to have one chosen"


class EmptyKey(Refusal, InvalidArgument):
    etcd_code, etcd_message = 3, "etcdserver: key is not provided"
    plain = "a key must not be empty"


class DuplicateKey(Refusal, InvalidArgument):
    etcd_code, etcd_message = 3, "etcdserver: duplicate key given in txn request"
    plain = "a transaction may change each key only once"


class TooLarge(Refusal, InvalidArgument):
    etcd_code, etcd_message = 3, "etcdserver: request is too large"
    plain = "the request is too large for coordination: it keeps small records, not data"


class NoSpace(Refusal, ResourceExhausted):
    etcd_code, etcd_message = 8, "etcdserver: mvcc: database space exceeded"
    plain = "coordination has no space left: free some on its disk or delete keys; nothing was changed"


REFUSALS: tuple[type[Refusal], ...] = (
    Compacted, FutureRevision, LeaseGone, LeaseExists, EmptyKey, DuplicateKey, TooLarge, NoSpace,
)  # fmt: skip
_BY_ETCD: dict[tuple[int, str], type[Refusal]] = {(r.etcd_code, r.etcd_message): r for r in REFUSALS}


def to_etcd(error: EverramError) -> tuple[int, str]:
    """The gRPC code and message with which etcd would say `error`."""
    if isinstance(error, Refusal):
        return error.etcd_code, error.etcd_message
    return error.code, error.message


def from_etcd(code: int, message: str, *, unknown: bool = False) -> EverramError:
    """The error of an etcd server's gRPC code and message."""
    refusal = _BY_ETCD.get((code, message))
    if refusal is not None:
        return refusal()
    if code == OUT_OF_RANGE:
        return FailedPrecondition(message, unknown=unknown)
    return of_code(code, message or "coordination gave no reason", unknown=unknown)
