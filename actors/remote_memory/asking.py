"""How the manager is asked: the elected leader, and whoever is elected next while an ask is under way.

    manager = Manager(coordination, clock, lambda host: context.ref(RemoteMemoryRef, host))
    node = await manager.ask(lambda ref: ref.stat(rm.NodeKey(id=node_id), timeout_s=ASK_TIMEOUT_S))

Every ask may be repeated, because operations name the nodes that they mean by id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from everram.runtime.contracts.remote_memory_contract import RemoteMemoryRef
from everram.runtime.coordination.api import Coordination, Range
from everram.runtime.coordination.directory import LEADER, decode
from everram.runtime.environment import Clock
from everram.runtime.errors import Aborted, DeadlineExceeded, NotFound, Outcome, Unavailable

T = TypeVar("T")

ASK_TIMEOUT_S = 3.0
"""Of one ask: a new file's owner may take OWNER_TIMEOUT_S of it."""
PATIENCE_S = 12.0
"""Over all: a leader that dies is followed by another within a lease and an election."""
RETRY_S = 0.05


class Manager:
    """See the module."""

    def __init__(self, coordination: Coordination, clock: Clock, ref: Callable[[str], RemoteMemoryRef]) -> None:
        self.messages = 0
        """Sent to it so far."""
        self._coordination, self._clock, self._ref = coordination, clock, ref
        self._leader = ""  # the last that answered, or is said to lead

    async def ask(self, call: Callable[[RemoteMemoryRef], Awaitable[T]], *, gone: T | None = None) -> T:
        """Its answer. `gone`: the answer if a repeated ask finds nothing any more, because the first one, whose answer
        was lost, took effect. Raises what it refuses with; Unavailable or DeadlineExceeded after PATIENCE_S."""
        until_ns = self._clock.now_ns() + int(PATIENCE_S * 1e9)
        unknown = False
        while True:
            try:
                self._leader = self._leader or await self._read_leader()
                self.messages += 1
                return await call(self._ref(self._leader))
            except NotFound:
                if unknown and gone is not None:
                    return gone
                raise
            except (Unavailable, DeadlineExceeded, Aborted) as error:
                self._leader = ""
                unknown = unknown or error.outcome is Outcome.UNKNOWN
                if self._clock.now_ns() >= until_ns:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _read_leader(self) -> str:
        _, found = await self._coordination.range(Range(LEADER))
        try:
            leader = str(decode(found[0].value)["host"]) if found else ""
        except (ValueError, KeyError):
            leader = ""
        if not leader:
            raise Unavailable("no host leads the cluster now: an election is under way")
        return leader
