"""The embedded coordination server's state machine: etcd's key space in plain, synchronous Python.

    store = Store(saved)                        # what Persistence.load returned
    outcome = store.txn(compare, success)       # changes the store at once, and notes a Change
    ...append(store.pending, store.compacted)   # whoever drives it makes the changes durable
    store.commit()                              # now watches see them; or rollback(), as if nothing had been asked

Nothing may be answered before `commit`: the driver (`everram.runtime.coordination.embedded`) holds answers and reads
back until then. Time and lease numbers are arguments. A lease ends only when `expire` says so, never by looking at a
clock elsewhere, so a server that was stopped for a while can first give every lease its full TTL again.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, Relation, Target
from everram.runtime.coordination.refusals import (
    Compacted,
    DuplicateKey,
    EmptyKey,
    FutureRevision,
    LeaseExists,
    LeaseGone,
    NoSpace,
    TooLarge,
)

HISTORY_REVISIONS_MAX = 4096
"""Changes kept for watches that come back: hours of a quiet cluster, and read back in milliseconds at a start."""
HISTORY_BYTES_MAX = 16 << 20
"""And at most this much of their keys and values, so that large values cannot fill memory."""
REQUEST_BYTES_MAX = 1 << 20
"""Keys and values of one transaction: the directory's records are a few hundred bytes."""
STORE_BYTES_MAX = 256 << 20
"""Keys and values in all; everything is in memory."""
LEASES_MAX = 10_000
"""A host holds one."""
OPERATIONS_MAX = 128
"""In one transaction, as etcd has it."""


@dataclass(frozen=True, slots=True)
class SavedLease:
    """A lease as it is made durable: without a deadline, because after a restart it gets its full TTL again."""

    lease: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Delta:
    """One key's change; None where the key did or does not exist."""

    key: bytes
    before: KeyValue | None
    after: KeyValue | None

    @property
    def size_bytes(self) -> int:
        return len(self.key) + sum(len(kv.value) for kv in (self.before, self.after) if kv is not None)


@dataclass(frozen=True, slots=True)
class Change:
    """What one mutation made durable. `revision` is the store's afterwards; without deltas it stays as it was."""

    revision: int
    deltas: tuple[Delta, ...] = ()
    granted: tuple[SavedLease, ...] = ()
    revoked: tuple[SavedLease, ...] = ()


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything that outlives the server. The default is a new, empty store (etcd's revisions begin at 1)."""

    revision: int = 1
    compacted: int = 0
    pairs: tuple[KeyValue, ...] = ()
    leases: tuple[SavedLease, ...] = ()
    history: tuple[Change, ...] = ()
    cluster_id: int = 0


class Persistence(Protocol):
    """Where changes become durable."""

    def load(self) -> Saved: ...

    async def append(self, changes: Sequence[Change], compacted: int) -> None:
        """All or nothing, and durable when this returns; history up to revision `compacted` may be dropped.

        Raises NoSpace when nothing was written. Any other error leaves open what was: the server must end and load.
        """


@dataclass(frozen=True, slots=True)
class RangeResult:
    revision: int
    pairs: tuple[KeyValue, ...]
    count: int
    """Of keys in the range, whatever the limit."""


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: int
    before: KeyValue | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    revision: int
    deleted: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class TxnOutcome:
    succeeded: bool
    revision: int
    results: tuple[RangeResult | PutResult | DeleteResult, ...]


@dataclass(slots=True)
class Lease:
    """A living lease. `keys` are exactly the keys whose current value names it."""

    lease: int
    ttl_ms: int
    deadline_ns: int
    keys: set[bytes] = field(default_factory=set)

    @property
    def saved(self) -> SavedLease:
        return SavedLease(self.lease, self.ttl_ms)


Operation = Put | Delete | Range
_EMPTY = KeyValue(b"", b"", 0, 0, 0, 0)


class Store:
    """One key space. Every mutation appends to `pending`, or raises a Refusal and changes nothing."""

    def __init__(self, saved: Saved, now_ns: int) -> None:
        self.revision = saved.revision
        self.compacted = saved.compacted
        self.cluster_id = saved.cluster_id
        self.pending: list[Change] = []
        self.leases: dict[int, Lease] = {}
        self._pairs: dict[bytes, KeyValue] = {}
        self._keys: list[bytes] = []  # the keys of _pairs, sorted
        self._bytes = 0  # of all keys and values
        self._history: deque[Change] = deque()  # committed, with deltas, ascending revisions, all above `compacted`
        self._history_bytes = 0
        self._ended: dict[int, Lease] = {}  # leases revoked by pending changes, for rollback
        for lease in saved.leases:
            self.leases[lease.lease] = Lease(lease.lease, lease.ttl_ms, now_ns + lease.ttl_ms * 1_000_000)
        for kv in saved.pairs:
            self._set(kv.key, kv)
        for change in saved.history:
            self._remember(change)
        self._trim()

    @property
    def size_bytes(self) -> int:
        """Of all keys and values."""
        return self._bytes

    # -- reading

    def range(self, op: Range) -> RangeResult:
        """Raises Compacted or FutureRevision for a revision that cannot be read."""
        if not op.key:
            raise EmptyKey
        if op.revision > self.revision:
            raise FutureRevision
        if 0 < op.revision < self.compacted:
            raise Compacted
        found = self._find(op.key, op.range_end)
        if 0 < op.revision < self.revision:
            found = self._as_of(op, found)
        kept = found[: op.limit] if op.limit > 0 else found
        return RangeResult(self.revision, tuple(kept), len(found))

    def _find(self, key: bytes, range_end: bytes) -> list[KeyValue]:
        if not range_end:
            kv = self._pairs.get(key)
            return [] if kv is None else [kv]
        low = bisect.bisect_left(self._keys, key)
        high = len(self._keys) if range_end == b"\0" else bisect.bisect_left(self._keys, range_end)
        return [self._pairs[k] for k in self._keys[low:high]]

    def _as_of(self, op: Range, found: list[KeyValue]) -> list[KeyValue]:
        """What the range held at `op.revision`: the present, with later changes taken back."""
        pairs = {kv.key: kv for kv in found}
        for change in reversed([*self._history, *self.pending]):
            if change.revision <= op.revision:
                break
            for delta in reversed(change.deltas):
                if not covers(op.key, op.range_end, delta.key):
                    continue
                if delta.before is None:
                    pairs.pop(delta.key, None)
                else:
                    pairs[delta.key] = delta.before
        return [pairs[key] for key in sorted(pairs)]

    @property
    def committed_revision(self) -> int:
        """The last revision whose changes are durable, which is as far as watches may see."""
        for change in self.pending:
            if change.deltas:
                return change.revision - 1
        return self.revision

    def changes(self, start_revision: int) -> list[Change]:
        """The committed changes from `start_revision` on. Raises Compacted when some of them are gone."""
        if start_revision <= self.compacted:
            raise Compacted
        first = bisect.bisect_left(self._history, start_revision, key=lambda change: change.revision)
        return [self._history[i] for i in range(first, len(self._history))]

    # -- changing

    def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnOutcome:
        """All operations of one branch, in order, as one revision.

        Raises DuplicateKey, EmptyKey, LeaseGone, TooLarge, NoSpace, Compacted, FutureRevision; then nothing happened.
        """
        succeeded = all(self._holds(c) for c in compare)
        branch = success if succeeded else failure
        self._check(branch)
        for unused in failure if succeeded else success:
            if not unused.key:
                raise EmptyKey
        revision = self.revision + 1
        deltas: list[Delta] = []
        try:
            results = tuple(self._operate(op, revision, deltas) for op in branch)
        except (Compacted, FutureRevision):
            self._undo(deltas)
            raise
        if deltas:
            self.revision = revision
            self.pending.append(Change(revision, tuple(deltas)))
        return TxnOutcome(succeeded, self.revision, results)

    def _check(self, branch: Sequence[Operation]) -> None:
        """Refuse a branch before its first operation: a transaction is never undone half way."""
        if len(branch) > OPERATIONS_MAX:
            raise TooLarge(f"a transaction has at most {OPERATIONS_MAX} operations: split it")
        size_bytes, growth_bytes = 0, 0
        written: set[bytes] = set()
        for op in branch:
            if not op.key:
                raise EmptyKey
            if isinstance(op, Put):
                if op.key in written:
                    raise DuplicateKey
                written.add(op.key)
                if op.lease and op.lease not in self.leases:
                    raise LeaseGone
                old = self._pairs.get(op.key)
                size_bytes += len(op.key) + len(op.value)
                growth_bytes += len(op.value) - len(old.value) if old else len(op.key) + len(op.value)
        for op in branch:
            if isinstance(op, Delete) and any(covers(op.key, op.range_end, key) for key in written):
                raise DuplicateKey
        if size_bytes > REQUEST_BYTES_MAX:
            raise TooLarge(f"a transaction writes at most {REQUEST_BYTES_MAX} bytes; this one {size_bytes}")
        if growth_bytes > 0 and self._bytes + growth_bytes > STORE_BYTES_MAX:
            raise NoSpace(f"coordination keeps at most {STORE_BYTES_MAX} bytes: delete keys; nothing was changed")

    def _holds(self, compare: Compare) -> bool:
        if not compare.key:
            raise EmptyKey
        found = self._find(compare.key, compare.range_end)
        if not found:
            return compare.target is not Target.VALUE and _compares(compare, _EMPTY)
        return all(_compares(compare, kv) for kv in found)

    def _operate(self, op: Operation, revision: int, deltas: list[Delta]) -> RangeResult | PutResult | DeleteResult:
        if isinstance(op, Range):
            seen = self.range(op)
            return RangeResult(revision if deltas else self.revision, seen.pairs, seen.count)
        if isinstance(op, Put):
            before = self._pairs.get(op.key)
            created = before.create_revision if before else revision
            version = before.version + 1 if before else 1
            after = KeyValue(op.key, op.value, created, revision, version, op.lease)
            self._change(Delta(op.key, before, after), deltas)
            return PutResult(revision, before)
        deleted = tuple(self._find(op.key, op.range_end))
        for kv in deleted:
            self._change(Delta(kv.key, kv, None), deltas)
        return DeleteResult(revision if deltas else self.revision, deleted)

    def _change(self, delta: Delta, deltas: list[Delta]) -> None:
        self._set(delta.key, delta.after)
        deltas.append(delta)

    def compact(self, revision: int) -> None:
        """Forget history up to `revision`. Raises Compacted, FutureRevision."""
        if revision > self.revision:
            raise FutureRevision
        if revision <= self.compacted:
            raise Compacted
        self.compacted = min(revision, self.committed_revision)
        self._trim()

    # -- leases

    def grant(self, lease: int, ttl_ms: int, now_ns: int) -> Lease:
        """Raises LeaseExists, NoSpace."""
        if lease in self.leases:
            raise LeaseExists
        if len(self.leases) >= LEASES_MAX:
            raise NoSpace(f"coordination keeps at most {LEASES_MAX} leases: let some expire; nothing was changed")
        granted = self.leases[lease] = Lease(lease, ttl_ms, now_ns + ttl_ms * 1_000_000)
        self.pending.append(Change(self.revision, granted=(granted.saved,)))
        return granted

    def keepalive(self, lease: int, now_ns: int) -> Lease:
        """Renew; not durable, and need not be. Raises LeaseGone."""
        held = self.leases.get(lease)
        if held is None:
            raise LeaseGone
        held.deadline_ns = now_ns + held.ttl_ms * 1_000_000
        return held

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys, as one revision. Raises LeaseGone."""
        ended = self.leases.pop(lease, None)
        if ended is None:
            raise LeaseGone
        self._ended[lease] = ended
        deltas = [Delta(key, self._pairs[key], None) for key in sorted(ended.keys)]
        for delta in deltas:
            self._set(delta.key, None)
        if deltas:
            self.revision += 1
        self.pending.append(Change(self.revision, tuple(deltas), revoked=(ended.saved,)))

    def expired(self, now_ns: int) -> list[int]:
        """The leases whose time is over, by deadline."""
        over = [held for held in self.leases.values() if held.deadline_ns <= now_ns]
        return [held.lease for held in sorted(over, key=lambda held: (held.deadline_ns, held.lease))]

    def expire(self, now_ns: int) -> list[int]:
        """Revoke every lease whose time is over."""
        over = self.expired(now_ns)
        for lease in over:
            self.revoke(lease)
        return over

    def next_deadline_ns(self) -> int | None:
        return min((held.deadline_ns for held in self.leases.values()), default=None)

    def renew_all(self, now_ns: int) -> None:
        """Full TTL for everyone: the server could not hear renewals for a while."""
        for held in self.leases.values():
            held.deadline_ns = now_ns + held.ttl_ms * 1_000_000

    # -- durability

    def commit(self) -> None:
        """Everything pending is durable."""
        for change in self.pending:
            self._remember(change)
        self.pending.clear()
        self._ended.clear()
        self._trim()

    def rollback(self) -> None:
        """Nothing pending happened."""
        for change in reversed(self.pending):
            for revoked in change.revoked:
                self.leases[revoked.lease] = self._ended.pop(revoked.lease)
            self._undo(change.deltas)
            for granted in change.granted:
                del self.leases[granted.lease]
            if change.deltas:
                self.revision = change.revision - 1
        self.pending.clear()

    def _undo(self, deltas: Sequence[Delta]) -> None:
        for delta in reversed(deltas):
            self._set(delta.key, delta.before)

    def _set(self, key: bytes, after: KeyValue | None) -> None:
        """The one place that touches pairs, key order, lease membership and the byte count."""
        before = self._pairs.get(key)
        if before is not None:
            self._bytes -= len(key) + len(before.value)
            if before.lease in self.leases:
                self.leases[before.lease].keys.discard(key)
        if after is None:
            if before is not None:
                del self._pairs[key]
                del self._keys[bisect.bisect_left(self._keys, key)]
            return
        self._bytes += len(key) + len(after.value)
        if before is None:
            bisect.insort(self._keys, key)
        self._pairs[key] = after
        if after.lease in self.leases:
            self.leases[after.lease].keys.add(key)

    def _remember(self, change: Change) -> None:
        if change.deltas:
            self._history.append(change)
            self._history_bytes += sum(delta.size_bytes for delta in change.deltas)

    def _trim(self) -> None:
        while self._history and (
            len(self._history) > HISTORY_REVISIONS_MAX
            or self._history_bytes > HISTORY_BYTES_MAX
            or self._history[0].revision <= self.compacted
        ):
            dropped = self._history.popleft()
            self._history_bytes -= sum(delta.size_bytes for delta in dropped.deltas)
            self.compacted = max(self.compacted, dropped.revision)


def covers(key: bytes, range_end: bytes, candidate: bytes) -> bool:
    """Whether the range [key, range_end) of etcd holds `candidate`."""
    if not range_end:
        return candidate == key
    return candidate >= key and (range_end == b"\0" or candidate < range_end)


def _compares(compare: Compare, kv: KeyValue) -> bool:
    target = compare.target
    if target is Target.VALUE:
        return isinstance(compare.operand, bytes) and _relates(compare.relation, kv.value, compare.operand)
    held = {
        Target.VERSION: kv.version,
        Target.CREATE: kv.create_revision,
        Target.MOD: kv.mod_revision,
        Target.LEASE: kv.lease,
    }[target]
    return isinstance(compare.operand, int) and _relates(compare.relation, held, compare.operand)


def _relates(relation: Relation, left: int | bytes, right: int | bytes) -> bool:
    if relation is Relation.EQUAL:
        return left == right
    if relation is Relation.NOT_EQUAL:
        return left != right
    above = left > right  # type: ignore[operator]
    return above if relation is Relation.GREATER else left != right and not above
