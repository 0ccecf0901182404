"""A chaos workload of one's own: a guest with a queue that never loses, repeats or reorders what was put into it.

A workload is one object over all incarnations of its guest. It lies outside the simulated world: it remembers what the
guest was told, and compares in `recover` what the next incarnation finds. `tests/simulation/test_own.py` tries it:

    try_workload(Queue, seeds=range(1, 51))
"""

from __future__ import annotations

from everram.actors.chaos.workload import Committed, Workload, nobody
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.simulation.world import World

PROPERTY = "a queue keeps its order"
HEAD_AT, TAIL_AT, SLOTS_AT, SLOTS = 0, 8, 64, 16


class Queue(Workload):
    """A circle of slots between two positions; what is put in is the number of the put."""

    def __init__(
        self, world: World, name: str, *, pause_s: float, committed: Committed, replicated: Committed = nobody
    ) -> None:
        super().__init__(world, name, pause_s=pause_s, committed=committed, replicated=replicated)
        self._head = self._tail = 0
        """After the last commit that has returned."""
        self._open = (0, 0)
        """What the commit under way would make of them: it may have happened."""

    def recover(self, me: AsyncGuest, *, moved: bool) -> None:
        region = me.region(self.region)
        found = region.load_u64(HEAD_AT), region.load_u64(TAIL_AT)
        if found not in ((self._head, self._tail), self._open):
            self.world.violate(PROPERTY, f"{self.name}: {found} after {(self._head, self._tail)} and {self._open}")
        for number in range(*found):
            if (slot := region.load_u64(SLOTS_AT + 8 * (number % SLOTS))) != number:
                self.world.violate(PROPERTY, f"{self.name}: {slot} lies where {number} should")
        self._head, self._tail = self._open = found

    async def operate(self, me: AsyncGuest) -> int:
        """Put one in, or take one out."""
        region, head, tail = me.region(self.region), self._head, self._tail
        putting = tail - head < SLOTS and (head == tail or self.stream.random() < 0.5)
        self._open = (head, tail + 1) if putting else (head + 1, tail)
        with me.transaction() as tx:
            if putting:
                tx.store_u64(region, SLOTS_AT + 8 * (tail % SLOTS), tail)
                tx.store_u64(region, TAIL_AT, tail + 1)
            else:
                tx.store_u64(region, HEAD_AT, head + 1)
        self._head, self._tail = self._open
        self.committed(me, tx.lsn)
        return self._tail
