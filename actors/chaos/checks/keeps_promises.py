"""A destination that has promised itself to a leader acknowledges nothing of that epoch or a lower one any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everram.runtime.simulation.world import World

PROPERTY = "a promised copy acknowledges nothing to the fenced"


@dataclass(frozen=True, slots=True)
class Promise:
    epoch: int
    memory_id: str
    lsn: int


class KeepsPromises:
    """`required(guest_id)` are the members of the required set, as the directory has it."""

    def __init__(self, world: World, required: Callable[[str], Sequence[str]]) -> None:
        self._world = world
        self._required = required
        self._promises: dict[str, list[Promise]] = {}  # by guest_id

    def made(self, guest_id: str, promise: Promise) -> None:
        """A destination has answered so."""
        self._promises.setdefault(guest_id, []).append(promise)

    def promised(self, guest_id: str, epoch: int, lsn: int) -> None:
        """A wait of the incarnation `epoch` for `lsn` has returned, so every member has acknowledged it."""
        for promise in self._promises.get(guest_id, []):
            if epoch <= promise.epoch and lsn > promise.lsn and promise.memory_id in self._required(guest_id):
                self._world.violate(
                    PROPERTY,
                    f"{promise.memory_id} promised {guest_id} to epoch {promise.epoch} at {promise.lsn}, and then "
                    f"acknowledged {lsn} to epoch {epoch}",
                )
