"""Planted bugs: each makes one small, plausible mistake in the real code, to prove that the checkers see it.

    with planted("lost-wakeup"):
        simulate(seed)

For tests only; nothing but the chaos commands imports this module. Each names the scenario that has to find it within
SEEDS_MAX seeds: `everram chaos planted` tries them all, and docs/planted.md has what it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from everram.actors.memory_scheduler import pager, swap_file
from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.pager import GuestPager
from everram.actors.memory_scheduler.swap_file import SwapFile
from everram.actors.nvm_device import reverting
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.keeper import SnapshotKeeper
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.power_monitor import save
from everram.actors.remote_memory import manager
from everram.actors.remote_memory.namespace import Plan, Steps
from everram.actors.remote_memory.owned import OwnedFiles
from everram.actors.remote_memory.using import UsedFile, Using
from everram.actors.replicator import copy_keeper
from everram.actors.replicator.copy_keeper import CopyKeeper
from everram.actors.replicator.guest_log import GuestLog
from everram.actors.replicator.kept_copy import KeptCopy, Run
from everram.actors.replicator.shipper import Shipper
from everram.actors.replicator.slots import Slots
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.channel.contract import QueuePair
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.common_pb2 import Guest
from everram.runtime.contracts.replicator_pb2 import Copy, OpenReply, PromiseReply, PromiseRequest
from everram.runtime.contracts.vmemfs_pb2 import Generation
from everram.runtime.coordination.api import Coordination, Delete, Put
from everram.runtime.coordination.file_directory import PERSISTENT_PREFIX, memory_name
from everram.runtime.environment import MemoryObject
from everram.runtime.formats.swap_table import SwapTable
from everram.runtime.guest import core
from everram.runtime.guest.core import GuestCore
from everram.runtime.log.reader import LogReader
from everram.runtime.log.record import RawStore
from everram.runtime.log.replay import store_all
from everram.runtime.log.writer import LogWriter
from everram.runtime.machine.core import MachineCore
from everram.runtime.machine.effects import Effect
from everram.runtime.machine.lives import LEASE
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import PagedMemory

_parts = save._parts
_write = Using.write
_commit = GuestCore.commit
_commit_members = GuestLog._commit_members
_ship = Shipper._ship
_publish = LogWriter.publish
_host_exited = MachineCore.host_exited
_save_pages = GuestPager._save
_read_slots = SwapFile.read
_chunks = reverting.chunks


def _torn_publish(writer: LogWriter) -> None:
    """The tail is cleared before it is written, as struct.pack_into does it."""
    writer.ring.set_tail(0)
    _publish(writer)


def _apply_before_append(core: GuestCore, stores: Sequence[RawStore]) -> int:
    """The stores reach the region before the log has them."""
    for number, offset, data in stores:
        core._mappings[number].store(offset, data)
    return _commit(core, stores)


def _applied_early(writer: LogWriter) -> None:
    """`applied` follows the tail at once, not after the stores."""
    _publish(writer)
    writer.publish_applied()


def _lost_wakeup(reader: LogReader) -> bool:
    """The reader goes to sleep without looking at the tail once more."""
    reader.ring.set_reader_sleeps(True)
    return True


def _freeze_lost(core: MachineCore, now_ns: int, incarnation: int, exit_status: int = 0) -> list[Effect]:
    """The end of a host thaws what it had frozen."""
    effects = _host_exited(core, now_ns, incarnation, exit_status)
    for guest in core.guests.values():
        for reason in sorted(guest.reasons - {LEASE}):
            core._drop_reason(guest, reason)
    return effects + core.take()


async def _acknowledged_early(
    shipper: Shipper, pair: QueuePair, slot: int, reply: OpenReply, epoch: int, limit: int
) -> bool:
    """What is about to be written to a destination counts as held there."""
    shipper._log.ring.set_durable(slot, max(limit, shipper._log.ring.durable(slot)))
    return await _ship(shipper, pair, slot, reply, epoch, limit)


async def _promise_ignored(keeper: CopyKeeper, request: PromiseRequest) -> PromiseReply:
    """The destination says what it has, and goes on acknowledging."""
    complete = [kept for kept in keeper._copies.get(request.guest_id, []) if kept.record.complete]
    if not complete:
        return PromiseReply(memory_id=keeper.memory_id)
    best = max(complete, key=lambda kept: (kept.record.epoch, kept.held))
    return PromiseReply(memory_id=keeper.memory_id, complete=True, epoch=best.record.epoch, lsn=best.held)


def _epoch_unchecked(record: Copy, guest: Guest) -> None:
    """Whoever asks may open a copy."""


def _never_fenced(kept: KeptCopy) -> bool:
    return False


async def _shrunk_uncommitted(log: GuestLog) -> None:
    """Who is missing is required no more, and nobody has to know."""
    in_sync = {memory_id for memory_id, (shipper, _) in log._shippers.items() if shipper.in_sync}
    if in_sync and log.committed and not in_sync >= set(log.committed):
        log.committed = tuple(sorted(in_sync))
        log.slots.require(log.committed)
        log.slots.dismiss(log.committed)
        return
    await _commit_members(log)


def _empty_set_satisfies(core: GuestCore, lsn: int) -> bool:
    """All of nobody hold it."""
    core.check_lease()
    return all(core.ring.durable(slot) >= lsn for slot in core.ring.required())


def _lease_late(core: GuestCore, stores: Sequence[RawStore]) -> int:
    """The lease is looked at when the commit is done."""
    load_word = core._load_word
    core._load_word = lambda offset: 0
    try:
        lsn = _commit(core, stores)
    finally:
        core._load_word = load_word
    core.check_lease()
    return lsn


async def _copied_later(keeper: SnapshotKeeper, arena: str) -> None:
    """A snapshot is told before what it holds has been copied, though nobody sees the stores that change it."""


def _blocks_kept(draft: Draft, blocks: Sequence[int]) -> None:
    """What a deletion or a purge has done with stays taken."""


def _replay_skipped(*arguments: Any) -> int:
    """A new incarnation takes the regions as they are."""
    return 0


def _page_unsaved(objects: Sequence[MemoryObject], flushed: Any) -> list[Any]:
    """The last run of pages of each object is not saved."""
    parts: list[Any] = _parts(objects, flushed)
    return [replace(part, runs=part.runs[:-1]) for part in parts]


def _old_content_lost(snapshots: Snapshots, arena: str, page: int) -> bool:
    """A page that a snapshot has is stored to, and nothing of it is kept."""
    return False


def _last_store_dropped(kept: KeptCopy, run: Run) -> None:
    """Of a run of records the last store does not reach the copy's regions."""
    assert kept.ring is not None
    store_all(run.targets[:-1], kept._regions)
    kept.ring.set_applied(run.end)


def _guest_unrecorded(actor: VMemFS, request: pb.Guest) -> Generation:
    """What the host knows of a guest is not written down for its successor."""
    return Generation()


async def _punched_early(
    one: GuestPager, file: SwapFile, guest: GuestMemory, paged: PagedMemory, pages: Sequence[int], slots: Sequence[int]
) -> set[int]:
    """A page's memory is given back before it is saved."""
    return await _save_pages(one, _Eager(file, guest, pages), guest, paged, pages, slots)


class _Eager(SwapFile):
    """Punches what it is about to write."""

    def __init__(self, file: SwapFile, guest: GuestMemory, pages: Sequence[int]) -> None:
        super().__init__(file._file, file.slots)
        self._guest = guest
        self._pages = pages

    async def write(self, slots: Sequence[int], pages: Sequence[bytes]) -> None:
        for page in self._pages:
            self._guest.memory.punch(page * PAGE_BYTES, PAGE_BYTES)
        await super().write(slots, pages)


async def _wrong_slot(file: SwapFile, slots: Sequence[int]) -> list[bytes]:
    """Of slots that do not follow each other, what is behind the first is read."""
    return await _read_slots(file, range(slots[0], slots[0] + len(slots)) if slots else slots)


def _unchecked(content: bytes, checksum: int, page: int) -> None:
    """What the storage gives back is taken as it is."""


def _unprotected(paged: PagedMemory, first_page: int, count: int) -> None:
    """Pages are saved while their guest may store to them."""


def _slots_forgotten(slots: swap_file.Slots, slot: int) -> bool:
    """A new host takes slots for free that its guests' pages are in."""
    return True


def _place_unpublished(table: SwapTable, page: int, slot: int, checksum: int) -> None:
    """Where a page is that was swapped out is not written down."""


def _publish_forgotten(writer: LogWriter) -> None:
    """A commit returns, and its records are not part of the log."""


def _waits_for_nobody(core: GuestCore, lsn: int) -> bool:
    """Whatever is committed counts as replicated."""
    return True


def _never_required(slots: Slots, *arguments: Any) -> None:
    """A new required set is not told to the guest."""


async def _carried_out_in_two(coordination: Coordination, begin: Callable[[], Steps]) -> Plan:
    """What an operation takes away is one transaction, what it puts there another."""
    while True:
        plan = await manager.read(coordination, begin())
        gone = [op for op in plan.success if isinstance(op, Delete)]
        if not plan.success or (await coordination.txn(plan.compare, gone)).succeeded:
            await coordination.txn((), [op for op in plan.success if isinstance(op, Put)])
            return plan


async def _written_later(using: Using, file: UsedFile, offset: int, data: bytes | memoryview) -> None:
    """A write to a file is answered, and then made."""
    writing = asyncio.ensure_future(_write(using, file, offset, data))
    writing.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _appended_where_it_ended(using: Using, file: UsedFile, data: bytes | memoryview) -> int:
    """An appender writes behind what it knows of the file, and asks nobody for room."""
    offset = file.size_bytes
    await using.write(file, offset, data)
    return offset


async def _file_forgotten(owned: OwnedFiles, file_id: str) -> None:
    """What is dropped is no file any more, and its memory stays."""
    for persistent in (False, True):
        owned._files.discard(memory_name(file_id, persistent=persistent))


def _files_unsaved(objects: Sequence[MemoryObject], flushed: Any) -> list[Any]:
    """Persistent files are no part of the image."""
    parts: list[Any] = _parts([one for one in objects if not one.name.startswith(PERSISTENT_PREFIX)], flushed)
    return parts


def _reverted_in_part(snapshots: Snapshots, record: Record) -> Iterator[list[int]]:
    """Of each chunk of a region the first page that a reversion has to bring back stays as it is."""
    return (chunk[1:] for chunk in _chunks(snapshots, record))


Mistake = tuple[Any, str, Any]
"""What is replaced by what: (owner, attribute, mistake)."""


@dataclass(frozen=True, slots=True)
class Plant:
    scenario: str
    """That has to find it, one of simulate.SCENARIOS."""
    mistakes: tuple[Mistake, ...]

    @staticmethod
    def of(scenario: str, *mistakes: Mistake) -> Plant:
        return Plant(scenario, mistakes)


SEEDS_MAX = 200
"""Within which each has to be found."""

PLANTED: dict[str, Plant] = {
    "torn-publish": Plant.of("ring", (LogWriter, "publish", _torn_publish)),
    "apply-before-append": Plant.of("ring", (GuestCore, "commit", _apply_before_append)),
    "applied-early": Plant.of("ring", (LogWriter, "publish", _applied_early)),
    "lost-wakeup": Plant.of("ring", (LogReader, "announce_sleep", _lost_wakeup)),
    "freeze-lost": Plant.of("cluster", (MachineCore, "host_exited", _freeze_lost)),
    "acknowledged-early": Plant.of("failover", (Shipper, "_ship", _acknowledged_early)),
    "promise-ignored": Plant.of("failover", (CopyKeeper, "promise", _promise_ignored)),
    "epoch-unchecked": Plant.of(
        "failover", (copy_keeper, "_check_epoch", _epoch_unchecked), (KeptCopy, "fenced", property(_never_fenced))
    ),
    "shrunk-uncommitted": Plant.of("failover", (GuestLog, "_commit_members", _shrunk_uncommitted)),
    "empty-set-satisfies": Plant.of("failover", (GuestCore, "replicated", _empty_set_satisfies)),
    "lease-late": Plant.of("leases", (GuestCore, "commit", _lease_late)),
    "copied-later": Plant.of("cluster", (SnapshotKeeper, "_copy_out", _copied_later)),
    "blocks-kept": Plant.of("cluster", (Draft, "free_blocks", _blocks_kept)),
    "replay-skipped": Plant.of("ring", (core, "replay", _replay_skipped)),
    "page-unsaved": Plant.of("cluster", (save, "_parts", _page_unsaved)),
    "old-content-lost": Plant.of("cluster", (Snapshots, "before_write", _old_content_lost)),
    "last-store-dropped": Plant.of("failover", (KeptCopy, "apply", _last_store_dropped)),
    "guest-unrecorded": Plant.of("cluster", (VMemFS, "put_guest", _guest_unrecorded)),
    "publish-forgotten": Plant.of("ring", (LogWriter, "publish", _publish_forgotten)),
    "waits-for-nobody": Plant.of("failover", (GuestCore, "replicated", _waits_for_nobody)),
    "punched-early": Plant.of("memory", (GuestPager, "_save", _punched_early)),
    "wrong-slot": Plant.of("memory", (SwapFile, "read", _wrong_slot), (pager, "check", _unchecked)),
    "swap-unchecked": Plant.of("memory", (pager, "check", _unchecked)),
    "swap-unprotected": Plant.of("memory", (PagedMemory, "protect", _unprotected)),
    "place-unpublished": Plant.of("memory", (SwapTable, "set", _place_unpublished)),
    "slots-forgotten": Plant.of("memory", (swap_file.Slots, "hold", _slots_forgotten)),
    "renamed-in-two": Plant.of("files", (manager, "carry_out", _carried_out_in_two)),
    "written-later": Plant.of("files", (Using, "write", _written_later)),
    "appended-over": Plant.of("files", (Using, "append", _appended_where_it_ended)),
    "file-forgotten": Plant.of("files", (OwnedFiles, "drop", _file_forgotten)),
    "files-unsaved": Plant.of("files", (save, "_parts", _files_unsaved)),
    "reverted-in-part": Plant.of("cluster", (reverting, "chunks", _reverted_in_part)),
    "never-required": Plant.of("failover", (Slots, "require", _never_required)),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug `name` is in the code meanwhile; "" plants none. Raises KeyError."""
    if not name:
        yield
        return
    mistakes = PLANTED[name].mistakes
    right = [(owner, attribute, vars(owner)[attribute]) for owner, attribute, _ in mistakes]
    for owner, attribute, mistake in mistakes:
        setattr(owner, attribute, mistake)
    try:
        yield
    finally:
        for owner, attribute, was in right:
            setattr(owner, attribute, was)
