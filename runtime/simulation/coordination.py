"""Coordination in a simulation: the embedded server's own store and driver behind a simulated network.

    server = CoordinationServer(loop, fabric, stream)      # once a world; `start`, `kill`, `hang`, `thaw`
    coordination = server.client("h1")                     # `environment.coordination` of one host incarnation

`everram.runtime.coordination.embedded.Embedded` runs here as it does in production, in a domain of its own, on a
`DurableStore` in place of SQLite. A client behaves as the gRPC client does: it waits for a server within its deadline,
sends a read again when the connection broke, and reports a write whose answer was lost as unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar, cast

from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, TxnResult, WatchBatch
from everram.runtime.coordination.embedded import Embedded, LocalCoordination
from everram.runtime.coordination.refusals import NoSpace
from everram.runtime.coordination.store import Change, Saved, SavedLease
from everram.runtime.errors import DeadlineExceeded, Unavailable
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.endpoint import Broken, Endpoint, Refused
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric

T = TypeVar("T")

PLACE = "coordination"
"""Its name in the network: cut ("h1", PLACE) to keep h1 from reaching it."""

CALL_TIMEOUT_S = 2.0
KEEPALIVE_TIMEOUT_S = 0.5
RETRY_S = 0.05
"""These three are the gRPC client's."""
WATCH_POLL_S = 1.0
"""A watch asks again so often: what a broken stream's reconnection is in production."""
COMMIT_MIN_S, COMMIT_MAX_S = 200e-6, 3e-3
"""What a durable commit takes."""


class DurableStore:
    """What the server's disk holds. Outlives the server; each commit happens as a whole or not at all."""

    def __init__(self, stream: Stream) -> None:
        self.full = False
        self._stream = stream
        self._revision, self._compacted = 1, 0
        self._pairs: dict[bytes, KeyValue] = {}
        self._leases: dict[int, SavedLease] = {}
        self._history: list[Change] = []

    def load(self) -> Saved:
        pairs = tuple(self._pairs[key] for key in sorted(self._pairs))
        leases = tuple(self._leases[lease] for lease in sorted(self._leases))
        return Saved(self._revision, self._compacted, pairs, leases, tuple(self._history), 1)

    def value(self, key: bytes) -> bytes | None:
        """For observers: what the disk has."""
        pair = self._pairs.get(key)
        return pair.value if pair is not None else None

    def pairs(self, prefix: bytes) -> dict[bytes, bytes]:
        """The same, of all keys that begin so."""
        return {key: pair.value for key, pair in self._pairs.items() if key.startswith(prefix)}

    async def append(self, changes: Sequence[Change], compacted: int) -> None:
        """Takes effect at the beginning or the end of the time it takes: a server killed in it finds either."""
        if self.full:
            raise NoSpace
        early, latency_s = self._stream.random() < 0.5, self._stream.uniform(COMMIT_MIN_S, COMMIT_MAX_S)
        # The caller's list lives on: what is made durable is what it holds now.
        kept = tuple(changes)
        if early:
            self._apply(kept, compacted)
        await asyncio.sleep(latency_s)
        if not early:
            self._apply(kept, compacted)

    def _apply(self, changes: Sequence[Change], compacted: int) -> None:
        for change in changes:
            self._revision = change.revision
            for granted in change.granted:
                self._leases[granted.lease] = granted
            for revoked in change.revoked:
                self._leases.pop(revoked.lease, None)
            for delta in change.deltas:
                if delta.after is None:
                    self._pairs.pop(delta.key, None)
                else:
                    self._pairs[delta.key] = delta.after
            if change.deltas:
                self._history.append(change)
        self._compacted = compacted
        self._history = [change for change in self._history if change.revision > compacted]


class CoordinationServer:
    """The one server, killed, stopped and started again by whoever plays the supervisor."""

    def __init__(self, loop: SimulationLoop, fabric: Fabric, stream: Stream) -> None:
        self.loop = loop
        self.durable = DurableStore(stream)
        self.endpoint: Endpoint[LocalCoordination] = Endpoint(fabric, PLACE)
        self.starts = 0
        self.clock: SimulatedClock | None = None
        """Of the computer that it runs on; None: the world's own time."""
        self.domain: Domain | None = None
        """The latest process."""
        self._stream = stream

    def start(self) -> None:
        """A new process on the same disk."""
        self.starts += 1
        self.domain = self.loop.domain(f"coordination.{self.starts}", self.clock)
        self.loop.spawn(self.domain, self._run(self.domain))

    async def _run(self, domain: Domain) -> None:
        clock = self.clock or SimulatedClock(self.loop)
        embedded = Embedded(self.durable, clock.now_ns, lambda: self._stream.getrandbits(62) + 1)
        self.endpoint.open(domain, LocalCoordination(embedded))
        await embedded.run()

    @property
    def running(self) -> bool:
        return self.domain is not None and self.domain.alive

    def kill(self) -> None:
        if self.domain is not None:
            self.loop.kill(self.domain)

    def hang(self) -> None:
        if self.domain is not None:
            self.loop.freeze(self.domain)

    def thaw(self) -> None:
        if self.domain is not None:
            self.loop.thaw(self.domain)

    def client(self, host: str) -> SimulatedCoordination:
        return SimulatedCoordination(self, host)


class SimulatedCoordination:
    """`environment.coordination` of one host incarnation."""

    def __init__(self, server: CoordinationServer, host: str) -> None:
        self._server = server
        self._host = host

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        return await self._call(lambda local: local.range(op))

    async def put(self, op: Put) -> int:
        return await self._call(lambda local: local.put(op), writes=True)

    async def delete(self, op: Delete) -> int:
        return await self._call(lambda local: local.delete(op), writes=True)

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Range],
        failure: Sequence[Put | Delete | Range] = (),
    ) -> TxnResult:
        return await self._call(lambda local: local.txn(compare, success, failure), writes=True)

    async def lease_grant(self, ttl_s: float) -> tuple[int, float]:
        return await self._call(lambda local: local.lease_grant(ttl_s), writes=True)

    async def lease_keepalive(self, lease: int) -> float:
        return await self._call(lambda local: local.lease_keepalive(lease), timeout_s=KEEPALIVE_TIMEOUT_S)

    async def lease_revoke(self, lease: int) -> None:
        await self._call(lambda local: local.lease_revoke(lease), writes=True)

    async def watch(self, op: Range, start_revision: int = 0) -> AsyncIterator[WatchBatch]:
        revision = start_revision
        while not revision:
            try:
                revision = (await self.range(Range(op.key, limit=1)))[0] + 1
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_S)
        while True:
            try:
                batch = await self._call(partial(_next_batch, op, revision), timeout_s=2 * WATCH_POLL_S)
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_S)
                continue
            if batch is not None:
                revision = batch.revision + 1
                yield batch

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`; raises FailedPrecondition, InvalidArgument."""
        await self._call(lambda local: local.compact(revision), writes=True)

    async def close(self) -> None:
        """Nothing is held."""

    async def _call(
        self,
        act: Callable[[LocalCoordination], Awaitable[T]],
        *,
        writes: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T:
        """Raises what the server raised, Unavailable or DeadlineExceeded."""
        deadline_s = self._server.loop.time() + timeout_s
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    return await self._server.endpoint.call(self._host, act)
            except TimeoutError:
                raise DeadlineExceeded("coordination did not answer in time", unknown=writes) from None
            except Refused:
                if self._server.loop.time() + RETRY_S >= deadline_s:
                    raise
            except Broken:
                if writes or self._server.loop.time() + RETRY_S >= deadline_s:
                    raise Unavailable("coordination ended before it answered", unknown=writes) from None
            await asyncio.sleep(RETRY_S)


async def _next_batch(op: Range, revision: int, local: LocalCoordination) -> WatchBatch | None:
    """The next batch at or after `revision`; None if there is none for a while."""
    try:
        watch = cast(AsyncGenerator[WatchBatch, None], local.watch(op, revision))
        async with asyncio.timeout(WATCH_POLL_S), aclosing(watch) as changes:
            async for batch in changes:
                return batch
    except TimeoutError:
        pass
    return None
