"""The counter workload: a persistent dictionary with two entries that each transaction changes together."""

from __future__ import annotations

from everram.actors.chaos.workload import Committed, Workload, nobody
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.simulation.world import World

PROPERTY = "a dictionary keeps its last committed state"
FILLER_MAX = 300
"""Longest string in an entry: its block is given up and taken again all the time."""


class Counter(Workload):
    """Entry "a" holds the number, entry "b" the same number and a string of some length."""

    def __init__(
        self, world: World, name: str, *, pause_s: float, committed: Committed, replicated: Committed = nobody
    ) -> None:
        super().__init__(world, name, pause_s=pause_s, committed=committed, replicated=replicated)
        self._committed = 0
        """The highest number whose commit has returned."""
        self._begun = 0

    def recover(self, me: AsyncGuest, *, moved: bool) -> None:
        entries = me.dict(self.region)
        a, b = entries.get("a", 0), entries.get("b", [0, ""])
        if a != b[0]:
            self._violate(me, f"its entries say {a} and {b[0]}")
        if not self._committed <= a <= self._begun:
            self._violate(me, f"it says {a} after {self._committed} were committed and {self._begun} begun")
        self._committed = self._begun = a

    async def operate(self, me: AsyncGuest) -> int:
        number = self._committed + 1
        entries = me.dict(self.region)
        self._begun = number
        with me.transaction() as tx:
            entries.set("a", number, tx)
            entries.set("b", [number, "x" * self.stream.randrange(FILLER_MAX)], tx)
        self._committed = number
        self.committed(me, tx.lsn)
        return number

    def _violate(self, me: AsyncGuest, what: str) -> None:
        self.world.violate(PROPERTY, f"{self.name}, epoch {me.epoch}: {what}")
