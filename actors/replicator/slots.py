"""The destination slots of one guest's ring, as its shippers use them.

Each session takes a slot of its own, because a member of the required set that has to be built anew keeps its old slot,
with what it acknowledged, until the new copy is complete. A slot is *active* while it holds back the log, *required*
while its memory is a member of the required set; both are single bits that the guest reads without asking anybody.
"""

from __future__ import annotations

from collections.abc import Collection

from everram.runtime.errors import ResourceExhausted
from everram.runtime.log.ring import DESTINATIONS, Destination, Ring


class Slots:
    """Slots of `ring`. Of what a dead host's shippers left the required slots are taken over, and nothing else."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._taken: set[int] = set()  # by a session that lives
        self._next = 0
        for slot, destination in self.all():
            if not destination.required:
                ring.set_destination(slot, None)  # a copy that was being built: it has to be begun anew

    def all(self) -> list[tuple[int, Destination]]:
        found = ((slot, self._ring.destination(slot)) for slot in range(DESTINATIONS))
        return [(slot, destination) for slot, destination in found if destination is not None]

    def of(self, memory_id: str) -> list[tuple[int, Destination]]:
        return [(slot, destination) for slot, destination in self.all() if destination.memory_id == memory_id]

    def take(self, memory_id: str) -> int:
        """A slot for a new session, neither active nor required. Raises ResourceExhausted.

        The one that has been free for longest: an acknowledgement that was under way when its session ended may still
        come, if its sender was stopped between looking at the generation and storing the word.
        """
        used = {slot for slot, _ in self.all()} | self._taken
        turn = [(self._next + each) % DESTINATIONS for each in range(DESTINATIONS)]
        free = next((slot for slot in turn if slot not in used), None)
        if free is None:
            raise ResourceExhausted(f"all {DESTINATIONS} destination slots of the log are in use")
        self._next = free + 1
        self._taken.add(free)
        self._ring.set_destination(free, Destination(False, memory_id, 0, active=False))
        return free

    def begin(self, slot: int, durable: int, *, member: bool) -> None:
        """The session ships from `durable` on: hold back the log from there. A member's old slot is replaced."""
        memory_id = self._memory(slot)
        self._ring.set_destination(slot, Destination(False, memory_id, durable))
        if member:
            self.promote(slot)

    def promote(self, slot: int) -> None:
        """Its memory is a member, and this slot says what it holds from now on."""
        self._ring.set_slot_state(slot, active=True, required=True)
        for other, _ in self.of(self._memory(slot)):
            if other != slot:
                self._ring.set_destination(other, None)

    def give_up(self, slot: int) -> None:
        """The session has ended. What a member acknowledged stays; it no longer holds back the log."""
        self._taken.discard(slot)
        destination = self._ring.destination(slot)
        if destination is None:
            return
        if destination.required:
            self._ring.set_slot_state(slot, active=False, required=True)
        else:
            self._ring.set_destination(slot, None)
        self._release_log(destination.memory_id)

    def require(self, memory_ids: Collection[str]) -> None:
        """Every one of these has a required slot from now on; one that nobody ships to has acknowledged nothing new."""
        for memory_id in memory_ids:
            slots = self.of(memory_id)
            if any(destination.required for _, destination in slots):
                continue
            active = next((slot for slot, destination in slots if destination.active and slot in self._taken), None)
            if active is not None:
                self._ring.set_slot_state(active, active=True, required=True)
            else:
                slot = self.take(memory_id)
                self._taken.discard(slot)
                self._ring.set_slot_state(slot, active=False, required=True)

    def dismiss(self, members: Collection[str]) -> None:
        """Nobody but these is a member; the smaller set has been committed."""
        for slot, destination in self.all():
            if destination.required and destination.memory_id not in members:
                if slot in self._taken and destination.active:
                    self._ring.set_slot_state(slot, active=True, required=False)
                else:
                    self._ring.set_destination(slot, None)

    def keep_log_for(self, memory_ids: Collection[str]) -> None:
        """What a dead host's session left active for any other memory holds back the log for nobody."""
        for memory_id in sorted({destination.memory_id for _, destination in self.all()} - set(memory_ids)):
            self._release_log(memory_id)

    def hold(self, slot: int, lsn: int) -> None:
        """Hold back the log from `lsn` on for a session that is not begun yet."""
        self._ring.set_destination(slot, Destination(False, self._memory(slot), lsn))

    def _release_log(self, memory_id: str) -> None:
        """What a dead host's session left active for this memory holds back the log for nobody."""
        for slot, destination in self.of(memory_id):
            if slot not in self._taken and destination.active:
                if destination.required:
                    self._ring.set_slot_state(slot, active=False, required=True)
                else:
                    self._ring.set_destination(slot, None)

    def _memory(self, slot: int) -> str:
        destination = self._ring.destination(slot)
        return destination.memory_id if destination is not None else ""
