"""A snapshot is the state that its region had at its LSN, and it stays that until it is removed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from everram.actors.chaos.journal import Found
from everram.runtime.contracts.nvm_device_pb2 import SnapshotRecord
from everram.runtime.simulation.world import World

PROPERTY = "a snapshot is the state at its LSN"
STAYS = "a snapshot stays what it is"


@dataclass(frozen=True, slots=True)
class _Known:
    epoch: int
    lsn: int
    state: Found


class History:
    """Of one ledger: what was there behind each transaction whose commit has returned, and at the begin of each
    incarnation. The transaction after the last of these may have happened, too: its guest died before it was told."""

    def __init__(self) -> None:
        self._known: list[_Known] = []  # ascending by (epoch, lsn)

    def note(self, epoch: int, lsn: int, state: Found) -> None:
        self._known.append(_Known(epoch, lsn, state))

    def wrong(self, epoch: int, lsn: int, found: Found) -> str | None:
        """What is wrong with a snapshot of (epoch, lsn) that holds this; None if nothing is."""
        before = next((one for one in reversed(self._known) if (one.epoch, one.lsn) <= (epoch, lsn)), None)
        state = before.state if before is not None else Found(0, (0,) * len(found.balances))
        if found == state:
            return None
        told = any(one.epoch == epoch and one.state.count == state.count + 1 for one in self._known)
        if found.count == state.count + 1 and not told and sum(found.balances) == sum(state.balances):
            return None
        return f"at {epoch}:{lsn} {state.count} transfers had left {state.balances}; it holds {found}"


@dataclass(slots=True)
class Told:
    """One snapshot as its user knows it."""

    memory_id: str
    record: SnapshotRecord
    removing: bool = False
    """It was asked to be removed, and may be gone."""
    seen: str = field(default="", repr=False)
    """SHA-256 of what it held when it was read first."""
    state: Found | None = None
    """What it holds, where somebody understands it and has read it."""

    def __str__(self) -> str:
        return f"{self.record.region}@{self.record.name} ({self.record.epoch}:{self.record.lsn})"


class SnapshotsExact:
    """Of one guest. `understand` reads a ledger's state from a region's content; None: only that it stays is looked at.
    `stays`: whether the guest, and its snapshots with it, is where it was as long as that memory lives."""

    def __init__(self, world: World, guest: str, understand: Callable[[bytes], Found] | None, *, stays: bool) -> None:
        self._world = world
        self._guest = guest
        self._understand = understand
        self._stays = stays
        self.history = History()

    def read(self, told: Told, content: bytes) -> None:
        """It holds this now."""
        digest = hashlib.sha256(content).hexdigest()
        if told.seen and told.seen != digest:
            self._world.violate(STAYS, f"{self._guest}: {told} holds something else than before")
        told.seen = digest
        if self._understand is not None:
            told.state = self._understand(content)
            wrong = self.history.wrong(told.record.epoch, told.record.lsn, told.state)
            if wrong is not None:
                self._world.violate(PROPERTY, f"{self._guest}: {told}: {wrong}")

    def missed(self, told: Told, memory_id: str) -> None:
        """It was said not to be there, by the host of this memory."""
        if self._stays and memory_id == told.memory_id and not told.removing:
            self._world.violate(STAYS, f"{self._guest}: {told} is gone, and nobody removed it")

    def damaged(self, told: Told, why: str) -> None:
        """It cannot be read, though its disk works."""
        self._world.violate(STAYS, f"{self._guest}: {told} cannot be read: {why}")
