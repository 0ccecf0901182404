"""An actor of one's own, with its contract: a tally on each host that outlives its host's process.

A contract is a gRPC service. everram's own are generated from `.proto` files; one with a handful of calls is as well
written by hand, on messages that protobuf brings along. `tests/simulation/test_own.py` tries it under faults:

    def test_tally(everram_simulation):
        everram_simulation(scenario, seeds=range(1, 51), actors=[Tally])
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import UInt64Value

from everram.runtime.actor import Actor
from everram.runtime.errors import NotFound
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref

ADD = Method("example.v1.Tally", "Add", UInt64Value, UInt64Value)
TOTAL = Method("example.v1.Tally", "Total", Empty, UInt64Value)
TALLY = Contract("example.v1.Tally", (ADD, TOTAL))
FILE = "example/tally"


class TallyRef(Ref):
    """Asks a tally, on this host or another: `node.ref(TallyRef, host="h2").add(...)`."""

    contract = TALLY

    def add(self, amount: UInt64Value, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Coroutine[Any, Any, UInt64Value]:
        return self.ask(ADD, amount, timeout_s)

    def total(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Coroutine[Any, Any, UInt64Value]:
        return self.ask(TOTAL, Empty(), timeout_s)


class Tally(Actor):
    """What was answered is on disk: `replace` is atomic and durable, whatever dies."""

    contract = TALLY

    async def on_start(self) -> None:
        try:
            self._total = int(await self.context.environment.disk.read(FILE))
        except NotFound:
            self._total = 0

    async def add(self, amount: UInt64Value) -> UInt64Value:
        # A handler that awaits has the mailbox wait for it, so no other message comes in between.
        total = self._total + amount.value
        await self.context.environment.disk.replace(FILE, str(total).encode())
        self._total = total
        return UInt64Value(value=total)

    def total(self, request: Empty) -> UInt64Value:
        return UInt64Value(value=self._total)
