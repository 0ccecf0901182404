"""A frozen guest stays frozen while a reason remains, whatever becomes of its host."""

from __future__ import annotations

from collections import Counter

from everram.runtime.simulation.world import World

PROPERTY = "a frozen guest stays frozen"


class StaysFrozen:
    """Told by whoever freezes and thaws: `froze` when the machine has said so, `thawing` before it is asked, `thawed`
    when it has answered. In between it may thaw the guest at any time, whoever freezes it again for the same reason:
    nothing can be said of it then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._frozen: dict[str, int] = {}
        """guest_id -> epoch."""
        self._thawing: Counter[str] = Counter()
        """By guest_id: how many ask that it is thawed."""

    def froze(self, guest_id: str, epoch: int) -> None:
        if not self._thawing[guest_id]:
            self._frozen[guest_id] = epoch

    def thawing(self, guest_id: str) -> None:
        self._frozen.pop(guest_id, None)
        self._thawing[guest_id] += 1

    def thawed(self, guest_id: str) -> None:
        self._thawing[guest_id] -= 1

    def observe(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        if self._frozen.get(guest_id) != epoch:
            return
        if what == "ended":
            del self._frozen[guest_id]
        elif what == "continued":
            self._world.violate(PROPERTY, f"{guest_id} runs again on {host} although nobody thawed it")

    def committed(self, guest_id: str, epoch: int) -> None:
        if self._frozen.get(guest_id) == epoch:
            self._world.violate(PROPERTY, f"{guest_id} commits while it is frozen")
