"""Drives a Store and its Persistence: what the embedded server serves, and coordination inside one process.

    embedded = Embedded(persistence, now_ns, random_lease)
    scope.start(embedded.run(), name="coordination")
    local = LocalCoordination(embedded)              # everram.runtime.coordination.api.Coordination

Writes that queue up while one commit is on its way to the disk form the next commit. Nothing is answered, and no watch
sees anything, before it is durable; renewals of leases need no disk and never wait for it. The simulation drives the
same class with its own persistence and clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from everram.runtime.coordination.api import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Put,
    Range,
    TxnResult,
    WatchBatch,
)
from everram.runtime.coordination.refusals import LeaseGone, NoSpace
from everram.runtime.coordination.store import (
    Change,
    DeleteResult,
    Delta,
    Lease,
    Operation,
    Persistence,
    RangeResult,
    Store,
    TxnOutcome,
    covers,
)
from everram.runtime.errors import EverramError, InvalidArgument, Unavailable
from everram.runtime.tasks import TaskScope

Result = TypeVar("Result")

EXPIRY_CHECK_S = 0.25
"""How often at least expiry looks at the clock, which is how it notices that the process was stopped."""
STALL_S = 0.25
"""Waking this much late means that renewals may lie unread: every lease gets its full TTL again."""
FULL_DISK_RETRY_S = 0.25
"""Between attempts to end expired leases when the disk is full; until it succeeds they can be renewed."""
LEASE_TTL_MAX_MS = 9_000_000_000 * 1000
"""etcd's own limit."""


class Embedded:
    """One store that answers. `run` must be running; when it ends, everything unanswered ends as unknown."""

    def __init__(self, persistence: Persistence, now_ns: Callable[[], int], random_lease: Callable[[], int]) -> None:
        self.store = Store(persistence.load(), now_ns())
        self.renewals = 0
        self._persistence = persistence
        self._now_ns = now_ns
        self._random_lease = random_lease
        self._writes: list[_Request[Any]] = []
        self._reads: list[_Request[Any]] = []
        self._committing = False
        self._ended = False
        self._failure: BaseException | None = None  # why expiry ended, which must end `run` too
        self._work = asyncio.Event()
        self._leases_changed = asyncio.Event()
        self._committed = asyncio.Event()

    # -- for who serves it

    async def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnOutcome:
        """Raises a Refusal, or Unavailable (unknown) when the server ends first."""
        return await self._write(lambda: self.store.txn(compare, success, failure))

    async def range(self, op: Range) -> RangeResult:
        return await self._read(lambda: self.store.range(op))

    async def compact(self, revision: int) -> None:
        await self._read(lambda: self.store.compact(revision))

    async def grant(self, ttl_ms: int, lease: int = 0) -> Lease:
        """`lease` 0: any. Raises InvalidArgument, LeaseExists, NoSpace."""
        if not 0 < ttl_ms <= LEASE_TTL_MAX_MS:
            raise InvalidArgument(f"a lease's TTL is more than 0 and at most {LEASE_TTL_MAX_MS} ms, not {ttl_ms}")

        def make() -> Lease:
            number = lease or self._random_lease()
            while not lease and number in self.store.leases:
                number = self._random_lease()
            return self.store.grant(number, ttl_ms, self._now_ns())

        granted = await self._write(make)
        self._leases_changed.set()
        return granted

    def keepalive(self, lease: int) -> Lease:
        """Raises LeaseGone."""
        renewed = self.store.keepalive(lease, self._now_ns())
        self.renewals += 1
        return renewed

    async def revoke(self, lease: int) -> None:
        await self._write(lambda: self.store.revoke(lease))

    def remaining(self, lease: int) -> tuple[Lease, int]:
        """The lease, and how many milliseconds it has left. Raises LeaseGone."""
        held = self.store.leases.get(lease)
        if held is None:
            raise LeaseGone
        return held, max(0, held.deadline_ns - self._now_ns()) // 1_000_000

    async def changes(self, op: Range, start_revision: int) -> AsyncGenerator[tuple[int, list[Change]], None]:
        """Committed changes in the range from `start_revision` on, each change cut down to it. Raises Compacted.

        A slow reader costs nothing: it holds a revision, not a queue, and is told Compacted if it falls too far back.
        """
        revision = start_revision
        while True:
            reached = self.store.committed_revision
            if reached >= revision:
                seen = [cut for change in self.store.changes(revision) if (cut := _cut(change, op))]
                revision = reached + 1
                if seen:
                    yield reached, seen
                    continue
            await self._committed.wait()

    # -- the commits

    async def _write(self, act: Callable[[], Result]) -> Result:
        if self._ended:
            raise Unavailable("the coordination server is ending: it is started again by itself")
        request = _Request(act)
        self._writes.append(request)
        self._work.set()
        return await request.answer

    async def _read(self, act: Callable[[], Result]) -> Result:
        if not self._committing:
            return act()
        request = _Request(act)
        self._reads.append(request)
        return await request.answer

    async def run(self) -> None:
        """Commit and expire until cancelled. Raises what persistence raised if it cannot go on."""
        scope = TaskScope("coordination", self._expiry_failed)
        try:
            scope.start(self._expire_forever(), name="expiry")
            await self._commit_forever()
        finally:
            self._ended = True
            await scope.close()
            for request in (*self._writes, *self._reads):
                request.fail(Unavailable("the coordination server ended before it answered", unknown=True))
            self._writes.clear()
            self._reads.clear()

    def _expiry_failed(self, _: str, error: BaseException) -> None:
        self._failure = error
        self._work.set()

    async def _commit_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if self._failure is not None:
                raise self._failure
            while self._writes:
                batch, self._writes = self._writes, []
                await self._commit(batch)

    async def _commit(self, batch: list[_Request[Any]]) -> None:
        for request in batch:
            request.act()
        refused: EverramError | None = None
        if self.store.pending:
            self._committing = True
            try:
                await self._persistence.append(self.store.pending, self.store.compacted)
                self.store.commit()
                _wake(self._committed)
            except NoSpace as error:
                # Later requests of the batch saw what now never happened, so all of it is refused.
                self.store.rollback()
                refused = error
            except BaseException:
                for request in batch:
                    request.fail(Unavailable("coordination does not know whether this was kept", unknown=True))
                raise
            finally:
                self._committing = False
        for request in batch:
            request.settle(refused)
        reads, self._reads = self._reads, []
        for request in reads:
            request.act()
            request.settle(None)

    # -- the leases' ends

    async def _expire_forever(self) -> None:
        while True:
            planned_ns = self._next_check_ns()
            await self._sleep_until(planned_ns)
            now_ns = self._now_ns()
            if now_ns - planned_ns > STALL_S * 1e9:
                self.store.renew_all(now_ns)
            elif self.store.expired(now_ns):
                await self._expire()

    async def _expire(self) -> None:
        try:
            await self._write(lambda: self.store.expire(self._now_ns()))
        except NoSpace:
            await asyncio.sleep(FULL_DISK_RETRY_S)

    def _next_check_ns(self) -> int:
        now_ns = self._now_ns()
        if not self.store.leases:
            return now_ns + 3_600_000_000_000
        deadline_ns = self.store.next_deadline_ns()
        latest_ns = now_ns + int(EXPIRY_CHECK_S * 1e9)
        return latest_ns if deadline_ns is None else min(deadline_ns, latest_ns)

    async def _sleep_until(self, planned_ns: int) -> None:
        """Returns at `planned_ns`, or at once when a lease is granted to an idle store."""
        delay_s = max(0.0, (planned_ns - self._now_ns()) / 1e9)
        self._leases_changed.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self._leases_changed.wait()
        except TimeoutError:
            return


class _Request(Generic[Result]):
    """Something asked of the store: done once, and answered only after its commit."""

    __slots__ = ("_act", "_error", "_results", "answer")

    def __init__(self, act: Callable[[], Result]) -> None:
        self._act = act
        self._results: list[Result] = []  # the one result, once there is one
        self._error: EverramError | None = None
        self.answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def act(self) -> None:
        try:
            self._results.append(self._act())
        except EverramError as error:
            self._error = error

    def settle(self, refused: EverramError | None) -> None:
        error = refused or self._error
        if error is not None:
            self.fail(error)
        elif not self.answer.done():
            self.answer.set_result(self._results[0])

    def fail(self, error: EverramError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def _wake(event: asyncio.Event) -> None:
    """Let everyone who waits now go on; whoever waits later waits for the next."""
    event.set()
    event.clear()


def _cut(change: Change, op: Range) -> Change | None:
    deltas = tuple(delta for delta in change.deltas if covers(op.key, op.range_end, delta.key))
    return Change(change.revision, deltas) if deltas else None


class LocalCoordination:
    """`api.Coordination` straight on an Embedded of the same process."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        found = await self.embedded.range(op)
        return found.revision, list(found.pairs)

    async def put(self, op: Put) -> int:
        return (await self.embedded.txn((), (op,))).revision

    async def delete(self, op: Delete) -> int:
        (result,) = (await self.embedded.txn((), (op,))).results
        return len(result.deleted) if isinstance(result, DeleteResult) else 0

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Range],
        failure: Sequence[Put | Delete | Range] = (),
    ) -> TxnResult:
        outcome = await self.embedded.txn(compare, success, failure)
        ranges = tuple(r.pairs if isinstance(r, RangeResult) else () for r in outcome.results)
        return TxnResult(outcome.succeeded, outcome.revision, ranges)

    async def lease_grant(self, ttl_s: float) -> tuple[int, float]:
        granted = await self.embedded.grant(round(ttl_s * 1000))
        return granted.lease, granted.ttl_ms / 1000

    async def lease_keepalive(self, lease: int) -> float:
        return self.embedded.keepalive(lease).ttl_ms / 1000

    async def lease_revoke(self, lease: int) -> None:
        await self.embedded.revoke(lease)

    async def watch(self, op: Range, start_revision: int = 0) -> AsyncIterator[WatchBatch]:
        start = start_revision or self.embedded.store.committed_revision + 1
        async with aclosing(self.embedded.changes(op, start)) as found:
            async for revision, changes in found:
                events = tuple(to_event(delta, c.revision) for c in changes for delta in c.deltas)
                yield WatchBatch(revision, events)

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`; raises FailedPrecondition, InvalidArgument."""
        await self.embedded.compact(revision)

    async def close(self) -> None:
        """Nothing is held."""


def to_event(delta: Delta, revision: int) -> Event:
    if delta.after is not None:
        return Event(False, delta.after)
    return Event(True, KeyValue(delta.key, b"", 0, revision, 0))
