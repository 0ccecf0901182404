"""No two incarnations of a guest ever serve at once, and each has a higher epoch than the one before."""

from __future__ import annotations

from everram.runtime.simulation.world import World

PROPERTY = "one incarnation at a time"


class OneIncarnation:
    def __init__(self, world: World) -> None:
        self._world = world
        self._serving: dict[str, set[tuple[str, int]]] = {}
        """guest_id -> (host, epoch) of each incarnation that runs."""
        self._highest: dict[str, int] = {}

    def observe(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        serving = self._serving.setdefault(guest_id, set())
        if what in ("stopped", "ended"):
            serving.discard((host, epoch))
            return
        if what == "started" and epoch <= self._highest.get(guest_id, 0):
            self._world.violate(PROPERTY, f"epoch {epoch} of {guest_id} begins after {self._highest[guest_id]}")
        self._highest[guest_id] = max(epoch, self._highest.get(guest_id, 0))
        serving.add((host, epoch))
        if len(serving) > 1:
            self._world.violate(PROPERTY, f"{guest_id} serves as {sorted(serving)}")
