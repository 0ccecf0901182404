"""What counts as replicated is held by every member of the required set, as the directory has it, at that very moment.

So one further failure, of whatever machine, cannot lose it. Looked up from outside the world: the directory's disk and
the log regions in the members' memory, never what the guest's host says about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everram.runtime.simulation.world import World

PROPERTY = "what is promised is held by the required set"

HELD_NOWHERE = -1
"""Of a memory that has died."""


class PromisedIsHeld:
    """`required(guest_id)` are the members; `held(guest_id, memory_id)` is up to where one holds the log, None while
    that cannot be seen."""

    def __init__(
        self, world: World, required: Callable[[str], Sequence[str]], held: Callable[[str, str], int | None]
    ) -> None:
        self._world = world
        self._required = required
        self._held = held
        self._at_death: dict[tuple[str, str], int | None] = {}
        """What a memory that has died had held, by guest_id and memory_id: acknowledged in time, it counts."""

    def dies(self, guest_id: str, memory_id: str) -> None:
        """This memory is about to die."""
        self._at_death[guest_id, memory_id] = self._held(guest_id, memory_id)

    def promised(self, guest_id: str, lsn: int) -> None:
        """A wait for `lsn` has returned."""
        members = self._required(guest_id)
        if not members:
            self._world.violate(PROPERTY, f"{guest_id} was promised {lsn} while nobody is required to hold it")
        for memory_id in members:
            held = self._at_death.get((guest_id, memory_id), self._held(guest_id, memory_id))
            if held is not None and held < lsn:
                dead = " and is dead" if (guest_id, memory_id) in self._at_death else ""
                what = f"{guest_id} was promised {lsn}; member {memory_id} holds {held}{dead}"
                self._world.violate(PROPERTY, what)
