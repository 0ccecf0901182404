"""A resident: one guest as its hypervisor holds it in memory, between its stored record and its process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from everram.actors.hypervisor.life import ENDED, Ends
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.memory_scheduler_pb2 import MemoryGrant
from everram.runtime.environment import Grant, GuestLaunch, Memory
from everram.runtime.errors import DataLoss
from everram.runtime.formats.page_classes import CLASSES_LABEL, MEMORY_LABEL
from everram.runtime.log.ring import Ring, RingCorrupt, log_name
from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.old_pages import old_pages_name


@dataclass(slots=True)
class Resident:
    """`guest` is what VMemFS stores; the rest is this host's and is made anew by its successor."""

    guest: pb.Guest
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its life is being changed: one start, stop or removal at a time."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set exactly while its state is one of ENDED."""
    process_gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set exactly while no process of the current epoch lives, as far as the machine has told."""
    ends: Ends = field(default_factory=Ends)
    ended_epoch: int = 0
    """The last epoch whose process has ended; its end may be told before its start has been answered."""

    def __post_init__(self) -> None:
        self.process_gone.set()
        self.become(self.guest.state, self.guest.reason)

    def become(self, state: pb.GuestState, reason: str = "") -> None:
        """Change the state; `settled` follows it."""
        self.guest.state = state
        self.guest.reason = reason
        if state in ENDED:
            self.settled.set()
        else:
            self.settled.clear()

    def lives(self, pid: int) -> None:
        """The current epoch has a process, unless the machine has told of its end already."""
        self.become(pb.RUNNING)
        if self.ended_epoch != self.guest.epoch:
            self.guest.pid = pid
            self.process_gone.clear()

    def died(self, exit_status: int) -> None:
        self.ended_epoch = self.guest.epoch
        self.guest.pid = 0
        self.guest.exit_status = exit_status
        self.process_gone.set()

    def stored(self) -> pb.Guest:
        """A copy for a message: what was sent may not change afterwards."""
        copy = pb.Guest()
        copy.CopyFrom(self.guest)
        return copy

    @property
    def log_name(self) -> str:
        return log_name(self.guest.guest_id)

    @property
    def output_path(self) -> str:
        """Where its stdout and stderr go, relative to the machine's state folder."""
        return f"guests/{self.guest.guest_id}.log"

    def launch(
        self,
        memory: Memory,
        volatile: MemoryGrant | None,
        *,
        tracking: bool,
        lacking: Callable[[str], bool] = lambda _: False,
    ) -> GuestLaunch:
        """What the machine needs to start the current epoch; `tracking`: whether this host serves faults; `lacking`:
        whether pages of a memory are still to come."""
        guest, spec = self.guest, self.guest.spec
        grants = [Grant("log", "log", self.log_name, memory.open(self.log_name).size_bytes)]
        names = set(memory.names())
        for region in guest.regions:
            role = "mapped" if region.kind == pb.MAPPED else "logged"
            # Of logged regions too: their stores are not noted, but a snapshot has to see the first one to each page.
            lacks = lacking(region.arena)
            grants.append(Grant(region.name, role, region.arena, region.size_bytes, tracking, lacks))
            if (old := old_pages_name(guest.guest_id, region.name)) in names:
                grants.append(Grant(region.name, "old", old, memory.open(old).size_bytes))
        if volatile is not None:
            grants.append(Grant(MEMORY_LABEL, "memory", volatile.memory, volatile.memory_bytes, tracking))
            grants.append(Grant(CLASSES_LABEL, "classes", volatile.classes, volatile.classes_bytes))
        return GuestLaunch(
            guest_id=guest.guest_id,
            name=guest.name,
            epoch=guest.epoch,
            argv=tuple(spec.argv),
            working_directory=spec.working_directory,
            environment=tuple((v.name, v.value) for v in spec.environment),
            log_path=self.output_path,
            grants=tuple(grants),
            port=guest.port,
        )


def begin_epoch(log: Mapping, at_least: int, copies: int) -> tuple[int, int]:
    """Start a new epoch in a guest's log ring, at the end of what its predecessor committed.

    Returns (the epoch before, the new one): `at_least`, or higher where the ring has already seen that. `copies`: how
    many other hosts have to hold what counts as replicated. Raises DataLoss if the ring is damaged.
    """
    try:
        ring = Ring.open(log)
        before = ring.epoch
        epoch = max(at_least, before + 1)
        ring.set_copies(copies)
        ring.begin_epoch(epoch)
    except RingCorrupt as error:
        raise DataLoss(f"its log is damaged, so it cannot start: {error}") from error
    return before, epoch
