"""Coverage marks: rare paths of the real code, and how often a simulation went through them.

    with marking() as reached:
        simulate(seed)
    reached["a lease is lost"]

A mark is a function whose entry is counted, so nothing in the code it belongs to has to know. A swarm says which marks
none of its seeds has reached: a path that nothing goes through is a path that nothing has tried.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from everram.actors.availability.actor import Availability
from everram.actors.availability.leader import Leader
from everram.actors.availability.performer import Performer
from everram.actors.chaos.faults import KINDS
from everram.actors.hypervisor.handover import Handover
from everram.actors.memory_scheduler.pager import GuestPager
from everram.actors.memory_scheduler.reclaimer import Reclaimer
from everram.actors.nvm_device import purging, reverting
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.keeper import SnapshotKeeper
from everram.actors.nvm_device.purging import Purge
from everram.actors.nvm_device.redo import RedoLog
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.power_monitor.ac_loss import AcLoss
from everram.actors.power_monitor.actor import PowerMonitor
from everram.actors.remote_memory.files import Files
from everram.actors.remote_memory.owned import OwnedFiles
from everram.actors.remote_memory.using import Using
from everram.actors.replicator.copy_keeper import CopyKeeper
from everram.actors.replicator.guest_log import GuestLog
from everram.actors.replicator.kept_copy import KeptCopy
from everram.actors.replicator.shipper import Shipper
from everram.actors.replicator.slots import Slots
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.guest import errors as guest_errors
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.upgrade import Upgrade

MARKS: dict[str, tuple[Any, str]] = {
    "a lease is lost": (Availability, "_lose"),
    "a guest is handed to a chosen host": (Availability, "_hand_to"),
    "a guest waits for a machine without mains": (Availability, "_hold"),
    "a copy is asked to promise itself": (Leader, "_promise"),
    "a chosen host takes a guest over": (Performer, "_take_over"),
    "an old primary is demoted": (Performer, "_demote"),
    "a copy is released": (Performer, "_release"),
    "what a fenced memory has beyond is set aside": (Handover, "_set_aside"),
    "a copy is built while its guest runs": (Shipper, "_build"),
    "a destination catches up": (Shipper, "_catch_up"),
    "a copy begins a new log": (CopyKeeper, "_new_log"),
    "a copy promises itself": (CopyKeeper, "promise"),
    "a copy becomes the guest's memory": (CopyKeeper, "hand_over"),
    "a copy carries out a snapshot": (CopyKeeper, "_carry_out"),
    "a copy without room gives up its snapshots": (CopyKeeper, "_give_up_snapshots"),
    "copies are quiet while memory is saved": (CopyKeeper, "quiesce"),
    "a copy settles after its log has ended": (KeptCopy, "settle"),
    "a required set is changed": (GuestLog, "_commit_members"),
    "a destination is given up": (Slots, "give_up"),
    "a log is drained on battery": (AcLoss, "_drain_guest"),
    "guests are handed over on battery": (AcLoss, "_hand_over"),
    "the mains come back in time": (PowerMonitor, "_mains_are_back"),
    "a save is taken back": (PowerMonitor, "resume"),
    "a snapshot is taken back": (SnapshotKeeper, "_take_back"),
    "a snapshot is copied out while its guest is stopped": (SnapshotKeeper, "_copy_out"),
    "a region goes back to a snapshot": (reverting, "end"),
    "a host thaws what the one before had stopped": (SnapshotKeeper, "_thaw_left"),
    "an old content is kept for a snapshot": (Snapshots, "before_write"),
    "an extent of a page table is broken": (Snapshots, "_break_extent"),
    "a change of the metadata is applied": (RedoLog, "_apply"),
    "blocks are freed": (Draft, "free_blocks"),
    "blocks are purged": (Purge, "begin"),
    "a purge is given up": (Purge, "abandon"),
    "a purge that was cut off is settled": (purging, "_settle"),
    "pages of a guest are swapped out": (GuestPager, "_save"),
    "pages of a guest are swapped in": (GuestPager, "_load"),
    "a page cannot be swapped in": (GuestPager, "_break"),
    "a swap-out is undone": (GuestPager, "_let_go"),
    "free pages of a guest are thrown away": (GuestPager, "discard"),
    "places of freed pages are given back": (GuestPager, "drop_dead"),
    "guests give in proportion, as nothing is left": (Reclaimer, "_squeeze"),
    "the superblock is written for the version before": (VMemFS, "rollback"),
    "a successor takes the memory": (Upgrade, "ingested"),
    "a guest is copied to where it is moved": (Handover, "_copied_to"),
    "a file's owner is asked for a new key": (Using, "_attach"),
    "a file without a name ends": (Files, "end_unlinked"),
    "memory that no file has is given back": (OwnedFiles, "drop"),
    "all guests of a machine are frozen": (MachineCore, "_freeze_all"),
    "a machine goes off": (MachineCore, "power_off"),
    "a machine that should go off is kept on": (MachineCore, "power_kept"),
    "a person tells a refusing host to start": (MachineCore, "retry_host"),
    "a guest is fenced": (guest_errors.Fenced, "__init__"),
    "a guest's log is full": (guest_errors.LogFull, "__init__"),
    "a guest does not know whether it is replicated": (guest_errors.Timeout, "__init__"),
}
"""name -> the function whose entry is counted: (owner, attribute). Every system names its rare paths here."""


def names() -> list[str]:
    """Every mark, those of the faults included."""
    return [*MARKS, *(f"fault {name}" for name, kind in KINDS.items() if kind.weight or kind.failover)]


@contextmanager
def marking() -> Iterator[Counter[str]]:
    """Count meanwhile."""
    reached: Counter[str] = Counter()
    there = {name: place for name, place in MARKS.items() if hasattr(*place)}  # a test demands that all are
    was = [(owner, attribute, vars(owner).get(attribute)) for owner, attribute in there.values()]
    for name, (owner, attribute) in there.items():
        setattr(owner, attribute, _marked(name, getattr(owner, attribute), reached))
    try:
        yield reached
    finally:
        for owner, attribute, right in was:
            if right is None:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, right)


def _marked(name: str, function: Callable[..., Any], reached: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*arguments: Any, **named: Any) -> Any:
        reached[name] += 1
        return function(*arguments, **named)

    return marked
