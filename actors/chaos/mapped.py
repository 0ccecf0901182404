"""The mapped workload: plain stores into a mapped region, which are there as soon as they are made."""

from __future__ import annotations

from everram.actors.chaos.workload import Committed, Workload, nobody
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.world import World

PROPERTY = "stores to a mapped region stay"
SLOTS = 15
WORD_BYTES = 8


class Mapped(Workload):
    """Number n is stored to slot n % SLOTS, a word in a page of its own."""

    kind = "mapped"

    def __init__(
        self, world: World, name: str, *, pause_s: float, committed: Committed, replicated: Committed = nobody
    ) -> None:
        super().__init__(world, name, pause_s=pause_s, committed=committed, replicated=replicated)
        self._stored = [0] * SLOTS
        self._last = 0

    def recover(self, me: AsyncGuest, *, moved: bool) -> None:
        region = me.region(self.region)
        for slot, stored in enumerate(self._stored):
            found = region.load_u64(slot * PAGE_BYTES)
            if found not in (stored, self._last if self._last % SLOTS == slot else stored):
                self.world.violate(PROPERTY, f"{self.name}, epoch {me.epoch}: slot {slot} holds {found}, not {stored}")
            self._stored[slot] = found

    async def operate(self, me: AsyncGuest) -> int:
        self._last += 1
        slot = self._last % SLOTS
        me.region(self.region).store(slot * PAGE_BYTES, self._last.to_bytes(WORD_BYTES, "little"))
        self._stored[slot] = self._last
        return self._last
