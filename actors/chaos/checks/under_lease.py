"""A guest commits only while a lease was told to its machine, or to itself: a machine that is stuck hears of none."""

from __future__ import annotations

from collections.abc import Callable

from everram.runtime.simulation.objects import LONG_PREEMPTION_NS
from everram.runtime.simulation.world import World

PROPERTY = "guests serve under a lease"
SLACK_NS = 4 * LONG_PREEMPTION_NS
"""A commit that looked at its lease in time may be interrupted before it ends. On a machine that works the guest is
frozen long before, so this hides nothing there."""


class UnderLease:
    """`deadline_ns(host, guest_id)` is the latest that either was told."""

    def __init__(self, world: World, deadline_ns: Callable[[str, str], int]) -> None:
        self._world = world
        self._deadline_ns = deadline_ns

    def committed(self, host: str, guest_id: str) -> None:
        late_ns = self._world.loop.now_ns - self._deadline_ns(host, guest_id)
        if late_ns > SLACK_NS:
            self._world.violate(PROPERTY, f"{guest_id} commits on {host} {late_ns / 1e6:.3f} ms after its lease")
