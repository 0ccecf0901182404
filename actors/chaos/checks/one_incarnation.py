"""No two incarnations of a guest ever serve at once, and each has a higher epoch than the one before.

A process that runs counts as serving, with one exception: on a machine that is stuck itself nobody can stop a guest in
time, so there the guest has to keep to its lease on its own. That none commits after its successor began is demanded of
all.
"""

from __future__ import annotations

from everram.runtime.simulation.world import World

PROPERTY = "one incarnation at a time"


class OneIncarnation:
    def __init__(self, world: World) -> None:
        self._world = world
        self._serving: dict[str, set[tuple[str, int]]] = {}
        """guest_id -> (host, epoch) of each incarnation that runs."""
        self._highest: dict[str, int] = {}
        self._on_their_own: set[tuple[str, str, int]] = set()
        """(guest_id, host, epoch) of incarnations whose machine was stuck."""

    def observe(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        serving = self._serving.setdefault(guest_id, set())
        if what in ("stopped", "ended"):
            serving.discard((host, epoch))
            return
        if what == "started" and epoch <= self._highest.get(guest_id, 0):
            self._world.violate(PROPERTY, f"epoch {epoch} of {guest_id} begins after {self._highest[guest_id]}")
        self._highest[guest_id] = max(epoch, self._highest.get(guest_id, 0))
        serving.add((host, epoch))
        if len([one for one in serving if (guest_id, *one) not in self._on_their_own]) > 1:
            self._world.violate(PROPERTY, f"{guest_id} serves as {sorted(serving)}")

    def stuck(self, host: str) -> None:
        """The machine `host` does nothing from now on, so it freezes nobody."""
        for guest_id, serving in self._serving.items():
            self._on_their_own.update((guest_id, *one) for one in serving if one[0] == host)

    def committed(self, guest_id: str, epoch: int) -> None:
        if epoch < self._highest.get(guest_id, 0):
            self._world.violate(PROPERTY, f"epoch {epoch} of {guest_id} commits after {self._highest[guest_id]} began")
