"""The fault `partition`: this machine cut off from every other machine and from coordination, inside its host.

    cut = Cut()
    cut.set(connected=False)                       # as the machine says
    cut.watch(on_cut, on_heal)                     # called at every change, in the order in which they were added
    cut.check("host h2")                           # Unavailable while cut off
    coordination = CutCoordination(client, cut)    # `Coordination` as seen through the network

A cut network says nothing: what is asked through it waits for its deadline. What was under way when it was cut is ended
at once, and whether it took effect is unknown. The host's own socket for people stays open: a cut-off machine can be
looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar, cast

from everram.runtime.coordination.api import Compare, Coordination, Delete, KeyValue, Put, Range, TxnResult, WatchBatch
from everram.runtime.coordination.client import CALL_TIMEOUT_S, KEEPALIVE_TIMEOUT_S
from everram.runtime.errors import Unavailable
from everram.runtime.production.machine import SystemMachine

T = TypeVar("T")

_LOST = "this machine is cut off from the network"


class _Lost(Unavailable):
    """The network was cut, or the client closed, before the answer came."""


class Cut:
    """Whether the machine is cut off, and who wants to know."""

    def __init__(self) -> None:
        self.connected = True
        self._watchers: dict[object, tuple[Callable[[], None], Callable[[], None]]] = {}

    @staticmethod
    def of(machine: SystemMachine) -> Cut:
        """As the machine says, now and from now on."""
        cut = Cut()
        cut.connected = machine.connected
        machine.on_network = cut.set
        return cut

    def set(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            for on_cut, on_heal in list(self._watchers.values()):
                (on_heal if connected else on_cut)()

    def watch(self, on_cut: Callable[[], None], on_heal: Callable[[], None] = lambda: None) -> Callable[[], None]:
        """From now on; calling the result ends it."""
        token = object()
        self._watchers[token] = (on_cut, on_heal)

        def unwatch() -> None:
            self._watchers.pop(token, None)

        return unwatch

    def check(self, whom: str) -> None:
        """Raises Unavailable while the machine is cut off."""
        if not self.connected:
            raise Unavailable(f"{whom} cannot be reached: {_LOST}")


class CutCoordination:
    """`Coordination` of a host: the client, as far as the network lets it through."""

    def __init__(self, client: Coordination, cut: Cut, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._client = client
        self._cut = cut
        self._timeout_s = timeout_s
        self._closed = False
        self._pending: dict[asyncio.Timeout, None] = {}
        """What waits for an answer: ended when the network is cut."""
        self._healed = asyncio.Event()
        """Set while there is nothing to wait for: connected, or closed."""
        self._healed.set()
        self._unwatch = cut.watch(self._on_cut, self._healed.set)
        if not cut.connected:
            self._on_cut()

    def _on_cut(self) -> None:
        self._healed.clear()
        self._end_pending()

    def _end_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for limit in pending:
            limit.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        self._closed = True
        self._unwatch()
        self._healed.set()
        self._end_pending()
        await self._client.close()

    # -- calls

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        return await self._call(lambda: self._client.range(op), writes=False)

    async def put(self, op: Put) -> int:
        return await self._call(lambda: self._client.put(op))

    async def delete(self, op: Delete) -> int:
        return await self._call(lambda: self._client.delete(op))

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Range],
        failure: Sequence[Put | Delete | Range] = (),
    ) -> TxnResult:
        writes = not all(isinstance(op, Range) for op in (*success, *failure))
        return await self._call(lambda: self._client.txn(compare, success, failure), writes=writes)

    async def lease_grant(self, ttl_s: float) -> tuple[int, float]:
        return await self._call(lambda: self._client.lease_grant(ttl_s))

    async def lease_keepalive(self, lease: int) -> float:
        return await self._call(lambda: self._client.lease_keepalive(lease), timeout_s=KEEPALIVE_TIMEOUT_S)

    async def lease_revoke(self, lease: int) -> None:
        await self._call(lambda: self._client.lease_revoke(lease))

    async def _call(
        self, send: Callable[[], Awaitable[T]], *, writes: bool = True, timeout_s: float | None = None
    ) -> T:
        if not self._cut.connected:
            try:
                async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                    await self._healed.wait()
            except TimeoutError:
                raise Unavailable(f"coordination does not answer: {_LOST}") from None
        self._check_open()
        return await self._answer(send, writes)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this client of coordination is closed: make a new one")

    async def _answer(self, send: Callable[[], Awaitable[T]], writes: bool) -> T:
        """Of what is sent now; raises _Lost if the network is cut before it is there."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._pending[limit] = None
                try:
                    return await send()
                finally:
                    self._pending.pop(limit, None)
        except TimeoutError:
            if not limit.expired():
                raise
            why = "this client of it is closed" if self._closed else _LOST
            raise _Lost(f"no answer came from coordination: {why}", unknown=writes) from None

    # -- watches

    async def watch(self, op: Range, start_revision: int = 0) -> AsyncIterator[WatchBatch]:
        following = start_revision or await self._now(op) + 1
        while True:
            await self._healed.wait()
            self._check_open()
            inner = cast(AsyncGenerator[WatchBatch, None], self._client.watch(op, following))
            async with aclosing(inner) as batches:
                while self._healed.is_set():
                    try:
                        batch = await self._answer(lambda: anext(batches), writes=False)
                    except _Lost:
                        self._check_open()
                        break
                    following = batch.revision + 1
                    yield batch

    async def _now(self, op: Range) -> int:
        """The revision from which a watch "from now" goes on after a cut."""
        revision, _ = await self.range(Range(op.key, limit=1))
        return revision
