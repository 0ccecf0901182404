"""What a host may ask of coordination: the etcd v3 subset, as a plain Python contract.

Revisions, versions and leases mean what they mean in etcd. Keys and values are bytes; everram's own keys and their
values (JSON) are in `everram.runtime.coordination.directory`.

Errors: Unavailable when no server answered (`unknown` set if a write may have happened), DeadlineExceeded likewise,
NotFound for a lease that is gone, FailedPrecondition for a revision that was compacted.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Target(enum.Enum):
    """What a comparison looks at."""

    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class Relation(enum.Enum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


@dataclass(frozen=True, slots=True)
class Compare:
    """`operand` is an int, or bytes for VALUE. A missing key has version, revisions and lease 0, and no value: every
    comparison of its VALUE is false. With `range_end` every key of the range must satisfy it."""

    key: bytes
    target: Target
    relation: Relation
    operand: int | bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class Range:
    """`range_end` empty: one key; `prefix_end(key)`: a prefix."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    revision: int
    ranges: tuple[tuple[KeyValue, ...], ...]
    """One entry for each operation of the branch taken; empty for puts and deletes."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change seen by a watch; `deleted` events carry only key and mod_revision."""

    deleted: bool
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    revision: int
    events: tuple[Event, ...]


class Coordination(Protocol):
    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        """(store revision, pairs in key order)."""

    async def put(self, op: Put) -> int:
        """The new revision."""

    async def delete(self, op: Delete) -> int:
        """How many keys were deleted."""

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Range],
        failure: Sequence[Put | Delete | Range] = (),
    ) -> TxnResult: ...

    async def lease_grant(self, ttl_s: float) -> tuple[int, float]:
        """(lease, granted TTL in seconds)."""

    async def lease_keepalive(self, lease: int) -> float:
        """The renewed TTL in seconds. Raises NotFound when the lease has expired."""

    async def lease_revoke(self, lease: int) -> None: ...

    def watch(self, op: Range, start_revision: int = 0) -> AsyncIterator[WatchBatch]:
        """From `start_revision` on (0: from now). Goes on by itself over reconnects without losing or repeating a
        change; raises FailedPrecondition when what it needs was compacted (the caller reads the range again)."""

    async def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that covers every key with this prefix."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def prefix(key: bytes) -> Range:
    return Range(key, prefix_end(key))
