"""The embedded coordination store against a dictionary that keeps every revision, with virtual time."""

from __future__ import annotations

import dataclasses
from operator import eq, gt, lt, ne

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from everram.runtime.coordination import store as store_module
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, Relation, Target, prefix, prefix_end
from everram.runtime.coordination.refusals import (
    REFUSALS,
    Compacted,
    DuplicateKey,
    EmptyKey,
    FutureRevision,
    LeaseExists,
    LeaseGone,
    NoSpace,
    Refusal,
    TooLarge,
    from_etcd,
    to_etcd,
)
from everram.runtime.coordination.store import Change, Delta, Saved, SavedLease, Store, covers

SECOND_NS = 1_000_000_000
KEYS = st.sampled_from([b"a", b"a/1", b"a/2", b"b", b"b\xff", b"c"])
ENDS = st.sampled_from([b"", b"\0", b"b", prefix_end(b"a/")])
VALUES = st.binary(max_size=4)


class Disk:
    """What a persistence would hold after the changes it was given."""

    def __init__(self) -> None:
        self.revision, self.compacted = 1, 0
        self.pairs: dict[bytes, KeyValue] = {}
        self.leases: dict[int, SavedLease] = {}
        self.history: list[Change] = []

    def append(self, changes: list[Change], compacted: int) -> None:
        for change in changes:
            self.revision, self.compacted = change.revision, compacted
            self.leases |= {granted.lease: granted for granted in change.granted}
            for revoked in change.revoked:
                del self.leases[revoked.lease]
            for delta in change.deltas:
                if delta.after is None:
                    del self.pairs[delta.key]
                else:
                    self.pairs[delta.key] = delta.after
            if change.deltas:
                self.history.append(Change(change.revision, change.deltas))

    def load(self) -> Saved:
        pairs, leases = tuple(self.pairs.values()), tuple(self.leases.values())
        history = tuple(change for change in self.history if change.revision > self.compacted)
        return Saved(self.revision, self.compacted, pairs, leases, history)


class StoreMachine(RuleBasedStateMachine):
    """`self.past[revision]` is what the store held at that revision, for every revision."""

    leases = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.disk = Disk()
        self.now_ns = 0
        self.store = Store(self.disk.load(), self.now_ns)
        self.present: dict[bytes, KeyValue] = {}
        self.past: dict[int, dict[bytes, KeyValue]] = {1: {}}
        self.deadlines: dict[int, int] = {}
        self.ttl_ms: dict[int, int] = {}
        self.compacted = 0

    def _became(self, revision: int) -> None:
        self.past[revision] = dict(self.present)
        self.disk.append(self.store.pending, self.store.compacted)
        self.store.commit()

    def _model_put(self, op: Put, revision: int) -> None:
        old = self.present.get(op.key)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        self.present[op.key] = KeyValue(op.key, op.value, created, revision, version, op.lease)

    def _covered(self, key: bytes, range_end: bytes) -> list[bytes]:
        return sorted(k for k in self.present if covers(key, range_end, k))

    # -- the rules

    @rule(key=KEYS, value=VALUES, lease=st.one_of(st.just(0), leases))
    def put(self, key: bytes, value: bytes, lease: int) -> None:
        if lease and lease not in self.deadlines:
            with pytest.raises(LeaseGone):
                self.store.txn((), (Put(key, value, lease),))
            assert not self.store.pending
            return
        before = self.present.get(key)
        outcome = self.store.txn((), (Put(key, value, lease),))
        assert outcome.results[0].before == before
        self._model_put(Put(key, value, lease), outcome.revision)
        self._became(outcome.revision)

    @rule(key=KEYS, range_end=ENDS)
    def delete(self, key: bytes, range_end: bytes) -> None:
        expected = self._covered(key, range_end)
        revision = self.store.revision
        outcome = self.store.txn((), (Delete(key, range_end),))
        assert [kv.key for kv in outcome.results[0].deleted] == expected
        assert outcome.revision == revision + bool(expected)
        for k in expected:
            del self.present[k]
        if expected:
            self._became(outcome.revision)

    @rule(
        key=KEYS,
        looks_at=st.sampled_from([Target.VERSION, Target.CREATE, Target.MOD, Target.VALUE, Target.LEASE]),
        relation=st.sampled_from(list(Relation)),
        number=st.integers(0, 6),
        value=VALUES,
        written=KEYS,
    )
    def transaction(
        self, key: bytes, looks_at: Target, relation: Relation, number: int, value: bytes, written: bytes
    ) -> None:
        operand: int | bytes = value if looks_at is Target.VALUE else number
        kv = self.present.get(key)
        held = {
            Target.VERSION: kv.version if kv else 0,
            Target.CREATE: kv.create_revision if kv else 0,
            Target.MOD: kv.mod_revision if kv else 0,
            Target.LEASE: kv.lease if kv else 0,
            Target.VALUE: kv.value if kv else None,
        }[looks_at]
        relations = {Relation.EQUAL: eq, Relation.NOT_EQUAL: ne, Relation.GREATER: gt, Relation.LESS: lt}
        expected = held is not None and relations[relation](held, operand)
        outcome = self.store.txn(
            (Compare(key, looks_at, relation, operand),),
            (Put(written, b"yes"), Range(written)),
            (Range(b"a", b"\0"), Delete(b"c")),
        )
        assert outcome.succeeded == expected
        if expected:
            self._model_put(Put(written, b"yes"), outcome.revision)
            assert outcome.results[1].pairs == (self.present[written],), "a transaction reads its own writes"
            self._became(outcome.revision)
        else:
            assert [kv.key for kv in outcome.results[0].pairs] == sorted(self.present)
            if self.present.pop(b"c", None):
                self._became(outcome.revision)

    @rule(key=KEYS, value=VALUES)
    def refused_by_the_disk(self, key: bytes, value: bytes) -> None:
        """A rollback of everything at once leaves no trace."""
        before = self._everything()
        lease = self.store.grant(99, 1000, self.now_ns).lease
        self.store.txn((), (Put(key, value, lease), Delete(b"b", prefix_end(b"b"))) if key < b"b" else (Delete(key),))
        for other in sorted(self.deadlines):
            self.store.revoke(other)
        self.store.revoke(lease)
        self.store.txn((), (Put(b"c", b"later"),))
        assert self.store.committed_revision == before[0]
        self.store.rollback()
        assert self._everything() == before

    def _everything(self) -> tuple[object, ...]:
        s = self.store
        leases = [(h.lease, h.ttl_ms, h.deadline_ns, sorted(h.keys)) for _, h in sorted(s.leases.items())]
        return s.revision, s.range(Range(b"\0", b"\0")), leases, s.size_bytes, s.changes(s.compacted + 1)

    @rule(target=leases, ttl_ms=st.integers(1, 5000))
    def grant(self, ttl_ms: int) -> int:
        lease = len(self.ttl_ms) + 1
        self.store.grant(lease, ttl_ms, self.now_ns)
        with pytest.raises(LeaseExists):
            self.store.grant(lease, ttl_ms, self.now_ns)
        self.deadlines[lease], self.ttl_ms[lease] = self.now_ns + ttl_ms * 1_000_000, ttl_ms
        self._became(self.store.revision)
        return lease

    @rule(lease=leases)
    def keepalive(self, lease: int) -> None:
        if lease not in self.deadlines:
            with pytest.raises(LeaseGone):
                self.store.keepalive(lease, self.now_ns)
            return
        self.store.keepalive(lease, self.now_ns)
        self.deadlines[lease] = self.now_ns + self.ttl_ms[lease] * 1_000_000

    @rule(lease=leases)
    def revoke(self, lease: int) -> None:
        if lease not in self.deadlines:
            with pytest.raises(LeaseGone):
                self.store.revoke(lease)
            return
        self.store.revoke(lease)
        self._model_end(lease)
        self._became(self.store.revision)

    def _model_end(self, lease: int) -> None:
        del self.deadlines[lease]
        self.present = {k: kv for k, kv in self.present.items() if kv.lease != lease}

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)
        over = sorted((d, lease) for lease, d in self.deadlines.items() if d <= self.now_ns)
        revision = self.store.revision
        assert self.store.expire(self.now_ns) == [lease for _, lease in over]
        for _, lease in over:
            held = [k for k, kv in self.present.items() if kv.lease == lease]
            self._model_end(lease)
            revision += bool(held)
            self.past[revision] = dict(self.present)
        assert self.store.revision == revision
        self._became(revision)

    @rule()
    def restart(self) -> None:
        """From what is durable alone; and every lease has its full TTL again."""
        self.store = Store(self.disk.load(), self.now_ns)
        for lease, ttl_ms in self.ttl_ms.items():
            if lease in self.deadlines:
                self.deadlines[lease] = self.now_ns + ttl_ms * 1_000_000

    @precondition(lambda self: len(self.past) > 3)
    @rule(back=st.integers(0, 8))
    def compact(self, back: int) -> None:
        revision = self.store.revision - back
        if revision <= self.compacted:
            with pytest.raises(Compacted):
                self.store.compact(revision)
            return
        self.store.compact(revision)
        self.compacted = self.disk.compacted = revision

    # -- what always holds

    @invariant()
    def every_revision_reads_as_it_was(self) -> None:
        if not hasattr(self, "past"):
            return
        assert self.store.size_bytes == sum(len(k) + len(kv.value) for k, kv in self.present.items())
        for revision, held in self.past.items():
            if revision < self.compacted:
                with pytest.raises(Compacted):
                    self.store.range(Range(b"a", b"\0", revision=revision))
            else:
                found = self.store.range(Range(b"a", b"\0", revision=revision))
                assert list(found.pairs) == [held[k] for k in sorted(held)]

    @invariant()
    def watches_replay_the_past(self) -> None:
        """From any revision kept, the changes since lead to the present."""
        if not hasattr(self, "past"):
            return
        with pytest.raises(Compacted):
            self.store.changes(self.compacted)
        for start in self.past:
            if start <= self.compacted or start - 1 not in self.past:
                continue
            replayed = dict(self.past[start - 1])
            for change in self.store.changes(start):
                for delta in change.deltas:
                    assert replayed.get(delta.key) == delta.before
                    if delta.after is None:
                        del replayed[delta.key]
                    else:
                        replayed[delta.key] = delta.after
            assert replayed == self.present


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase


def fresh() -> Store:
    return Store(Saved(), 0)


@pytest.mark.parametrize(
    ("operations", "refusal"),
    [
        ((Put(b"", b"x"),), EmptyKey),
        ((Range(b""),), EmptyKey),
        ((Put(b"k", b"1"), Put(b"k", b"2")), DuplicateKey),
        ((Put(b"k", b"1"), Delete(b"a", b"\0")), DuplicateKey),
        ((Delete(b"k"), Put(b"k", b"1")), DuplicateKey),
        ((Put(b"k", b"1", lease=7),), LeaseGone),
        ((Put(b"k", b"x" * (store_module.REQUEST_BYTES_MAX + 1)),), TooLarge),
        (tuple(Put(b"%d" % i, b"") for i in range(store_module.OPERATIONS_MAX + 1)), TooLarge),
        ((Put(b"j", b"1"), Range(b"k", revision=9)), FutureRevision),
    ],
)
def test_a_refused_transaction_changes_nothing(operations: tuple[object, ...], refusal: type[Refusal]) -> None:
    store = fresh()
    with pytest.raises(refusal):
        store.txn((), operations)  # type: ignore[arg-type]
    assert store.revision == 1
    assert not store.pending
    assert store.range(Range(b"\0", b"\0")).count == 0


def test_the_branch_not_taken_is_checked_for_empty_keys_too() -> None:
    with pytest.raises(EmptyKey):
        fresh().txn((), (Put(b"a", b"1"),), (Delete(b""),))


def test_limit_counts_everything_and_returns_the_first() -> None:
    store = fresh()
    store.txn((), [Put(b"k%d" % i, b"") for i in range(5)])
    found = store.range(dataclasses.replace(prefix(b"k"), limit=2))
    assert ([kv.key for kv in found.pairs], found.count) == ([b"k0", b"k1"], 5)


def test_one_transaction_is_one_revision() -> None:
    store = fresh()
    outcome = store.txn((), [Put(b"a", b""), Put(b"b", b"")])
    assert outcome.revision == 2
    assert {kv.mod_revision for kv in store.range(Range(b"a", b"\0")).pairs} == {2}


def test_history_is_bounded_by_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HISTORY_REVISIONS_MAX", 10)
    store = fresh()
    for i in range(50):
        store.txn((), (Put(b"k", b"%d" % i),))
        store.commit()
    assert store.compacted == 41
    assert len(store.changes(42)) == 10
    with pytest.raises(Compacted):
        store.changes(41)


def test_history_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HISTORY_BYTES_MAX", 1000)
    store = fresh()
    for _ in range(50):
        store.txn((), (Put(b"k", b"x" * 100),))
        store.commit()
    assert 0 < len(store.changes(store.compacted + 1)) <= 5


def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "STORE_BYTES_MAX", 100)
    store = fresh()
    store.txn((), (Put(b"a", b"x" * 90),))
    with pytest.raises(NoSpace):
        store.txn((), (Put(b"b", b"x" * 20),))
    store.txn((), (Put(b"a", b"x"),))
    store.txn((), (Put(b"b", b"x" * 20),))


def test_leases_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LEASES_MAX", 2)
    store = fresh()
    store.grant(1, 1000, 0)
    store.grant(2, 1000, 0)
    with pytest.raises(NoSpace):
        store.grant(3, 1000, 0)


def test_a_stalled_server_gives_everyone_the_full_ttl() -> None:
    store = fresh()
    store.grant(1, 2000, 0)
    store.renew_all(10 * SECOND_NS)
    assert store.expire(11 * SECOND_NS) == []
    assert store.next_deadline_ns() == 12 * SECOND_NS


def test_a_key_moves_between_leases() -> None:
    store = fresh()
    store.grant(1, 1000, 0)
    store.grant(2, 1000, 0)
    store.txn((), (Put(b"k", b"", 1),))
    store.txn((), (Put(b"k", b"", 2),))
    store.revoke(1)
    assert store.range(Range(b"k")).count == 1
    store.txn((), (Put(b"k", b""),))
    store.revoke(2)
    assert store.range(Range(b"k")).count == 1, "a put without a lease detaches the key"


def test_comparing_a_range_needs_every_key() -> None:
    store = fresh()
    store.txn((), [Put(b"a1", b"x"), Put(b"a2", b"y")])
    whole = Compare(b"a", Target.VALUE, Relation.EQUAL, b"x", prefix_end(b"a"))
    assert not store.txn((whole,), ()).succeeded
    store.txn((), (Put(b"a2", b"x"),))
    assert store.txn((whole,), ()).succeeded


def test_a_delta_of_a_deletion_knows_what_was_there() -> None:
    store = fresh()
    store.txn((), (Put(b"k", b"v"),))
    kv = store.range(Range(b"k")).pairs[0]
    store.txn((), (Delete(b"k"),))
    store.commit()
    assert store.changes(3) == [Change(3, (Delta(b"k", kv, None),))]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_cross_the_wire_as_themselves(refusal: type[Refusal]) -> None:
    code, message = to_etcd(refusal())
    assert type(from_etcd(code, message)) is refusal


def test_a_lease_is_over_exactly_at_its_deadline() -> None:
    store = fresh()
    store.grant(1, 1000, 0)
    assert store.expire(SECOND_NS - 1) == []
    assert store.expire(SECOND_NS) == [1]
