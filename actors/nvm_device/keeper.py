"""The snapshots of one host: opened from its memory, kept while guests write, and everything about them that awaits.

    keeper = await SnapshotKeeper.open(context, device, guard, faults, storage_bytes)
    records = await keeper.take(regions, "before")       # guests are stopped for it, and need not help
    data = await keeper.read(record, offset, length)
    await keeper.remove(records)
    await keeper.revert(record)                          # its guest has no process

A snapshot of a guest that runs: stop it, write-protect what it has mapped, record the snapshot, let it go on. Where
nobody traps its stores (this computer has no userfaultfd), it saves what they change of logged regions itself
(`own_savings`). Any other region whose stores nobody sees is copied whole while the guest is stopped, since there would
be no other moment for it.

Deletions, reversions and purges change what lies where and exclude each other, a step at a time; writes and new
snapshots come in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from everram.actors.nvm_device import deletion, purging, reverting
from everram.actors.nvm_device.block_store import BlockStore
from everram.actors.nvm_device.budget import Budget, MetadataSpace
from everram.actors.nvm_device.device import origin_of
from everram.actors.nvm_device.guest_log import GuestLog
from everram.actors.nvm_device.media import Media
from everram.actors.nvm_device.own_savings import OwnSavings
from everram.actors.nvm_device.purger import Purger
from everram.actors.nvm_device.records import Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.snapshots import Snapshots, Taking
from everram.actors.nvm_device.storage import StorageFile
from everram.actors.nvm_device.turns import at_once, in_turns, standing
from everram.actors.nvm_device.virtblocks import Place, pack_location
from everram.actors.nvm_device.writers import Writers
from everram.runtime.actor import ActorContext
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.hypervisor_pb2 import FailRequest
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import (
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.formats.nvm import PURGED_FILE, PURGED_FOLDER
from everram.runtime.log.record import RecordType
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.contract import Mapping as MappedMemory
from everram.runtime.memory.guard import GuardedMapping, PageGuard

STORAGE_NAME = f"{PURGED_FOLDER}/{PURGED_FILE}"
FREEZE_REASON = "snapshot"
PAGES_PER_TURN = 64
SLOTS_PER_TURN = 1024
TAKE_OUT_S_MIN, TAKE_OUT_S_MAX = 0.002, 0.05
"""From one look at what guests have saved to the next."""
RETRY_S = 1.0
"""After a reversion could not go on: a person, or a deletion, makes room by then."""
BUSY_TRIES = 200
BUSY_WAIT_S = 0.0005
"""A guest that was stopped in the midst of a commit gets that long to come to its end."""
Find = Callable[[], Sequence[pb.Region]]
"""Regions as they are now. Raises NotFound."""
NOBODY = -1
"""The epoch of nobody."""
DONE: Final = object()


class Arenas:
    """Where regions lie: their snapshots know them by the arena that they were made in (`origin_of`)."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._arenas: dict[str, str] = {}  # by origin, of those that lie elsewhere
        self._origins: dict[str, str] = {}  # by arena

    def lies_in(self, region: pb.Region) -> None:
        if region.origin:
            self._origins.pop(self._arenas.get(region.origin, ""), None)
            self._arenas[region.origin] = region.arena
            self._origins[region.arena] = region.origin

    def forget(self, region: pb.Region) -> None:
        self._arenas.pop(region.origin, None)
        self._origins.pop(region.arena, None)

    def origin(self, arena: str) -> str:
        return self._origins.get(arena, arena)

    def open(self, origin: str) -> MemoryObject:
        """Raises NotFound."""
        return self._memory.open(self._arenas.get(origin, origin))


@dataclass(frozen=True, slots=True)
class Still:
    """Guests that are stopped for a snapshot."""

    epochs: dict[str, int]
    """Of each, as it was when the machine was asked: with another one it has begun anew since."""
    alive: set[str]
    """Those that have a process, frozen; the others have none."""


class Unprotected(Exception):
    """A guest's memory cannot be write-protected: it is ending."""


class SnapshotKeeper:
    """See the module. It is the guard's keeper: asked before each first store to a page."""

    def __init__(
        self,
        context: ActorContext,
        snapshots: Snapshots,
        arenas: Arenas,
        guard: PageGuard,
        writers: Writers | None,
        budget: Budget,
    ) -> None:
        self.snapshots = snapshots
        self._context, self._environment = context, context.environment
        self._memory = context.environment.memory
        self._arenas = arenas
        self.lies_in = arenas.lies_in
        self._guard = guard
        self._writers = writers
        self._budget = budget
        self._savings = OwnSavings(context.environment.memory)
        self._saving = asyncio.Event()
        """Some guest saves old content itself."""
        self._storage: StorageFile | None = None
        """Opened when it is first needed."""
        self._opening = asyncio.Lock()
        self._moving = asyncio.Lock()
        """Held during each step of a deletion, each page of a reversion and each batch of a purge."""
        self._deletions: dict[int, asyncio.Task[EverramError | None]] = {}
        """By sequence."""
        self._reversions: dict[int, asyncio.Task[None]] = {}
        """By the number of the region's record."""
        self.region_of: Callable[[str], pb.Region | None] = lambda origin: None
        """Which region has that origin now; set by whoever knows."""
        self.damaged: dict[str, str] = {}
        """Why a region's snapshots cannot be kept while it is written to, in a sentence; by its origin."""
        self.trouble = ""
        """Why a reversion does not go on."""
        self._gives_way = False
        """Somebody waits for it to be quiet, or it is."""
        self._quieting = asyncio.Lock()
        """Whoever is told to be quiet and to go on does it in that order."""
        self._taking = asyncio.Lock()
        """The machine's reason to freeze is one for all."""
        self._quiet = False
        self.changing = asyncio.Lock()
        """Held while regions are made or removed, one after the other in the order in which it was asked. What is saved
        must stay, so a removal waits while it is quiet, and whoever makes something asks `check_may_go_on`."""
        self.purger = Purger(context, snapshots, self.storage, self._moving, budget, self.room_again)

    @staticmethod
    async def open(
        context: ActorContext,
        budget: Budget,
        guard: PageGuard,
        writers: Writers | None,
        storage_bytes: int,
        regions: Collection[pb.Region],
    ) -> SnapshotKeeper:
        """`regions`: all that there are. Goes on with what a predecessor left unfinished.

        Raises DataLoss, FailedPrecondition (metadata of a later version).
        """
        environment = context.environment
        memory = environment.memory
        space = await MetadataSpace.open(memory, budget)
        blocks = await BlockStore.open(memory)
        context.resources.callback(space.close)
        media = Media.format(space) if Media.is_blank(space.map()) else Media.open(space)
        media.storage.limit = storage_bytes // PAGE_BYTES
        arenas = Arenas(memory)
        for region in regions:
            arenas.lies_in(region)
        snapshots = Snapshots.open(media, arenas.open, blocks)
        budget.use(media)
        if settled := purging.recover(snapshots):
            context.log.info("a purge of %d blocks was cut off; it is settled", settled)
        keeper = SnapshotKeeper(context, snapshots, arenas, guard, writers, budget)
        context.spawn(in_turns(blocks.trim(media.store)), name="trim")
        context.resources.callback(keeper._savings.close)
        for region in regions:
            keeper.add_old_pages(region)
        guard.keeper = keeper
        keeper._go_on({origin_of(region) for region in regions})
        await keeper._thaw_left()
        return keeper

    def _go_on(self, origins: Collection[str]) -> None:
        """What was under way when the host before this one ended, of the regions that there are. Nothing here waits:
        whoever is served by this host must not have to."""
        if half := self.snapshots.half_taken():
            self._context.log.info("%d snapshots were not taken to their end; they are removed", len(half))
            deletion.begin(self.snapshots, half)
        for record in reverting.unfinished(self.snapshots):
            if self.snapshots.region_of(record).record.name in origins:
                self._context.log.info("a reversion to %s was cut off; it goes on", record.name)
                self._begin_reversion(record)
        for record in deletion.unfinished(self.snapshots):
            self._begin_delete(record)
        self._context.spawn(self.purger.run(), name="purge")
        self._context.spawn(self._take_out_savings(), name="old pages")

    async def _thaw_left(self) -> None:
        """A host that died as it took a snapshot left guests stopped. What they store is trapped as it was before: who
        stores before this host serves faults waits until it does. What was copied out and is not whole is gone."""
        for process in await self._environment.machine.guests():
            if process.pid and FREEZE_REASON in process.freeze_reasons:
                await self._thaw(process.guest_id)

    async def close(self) -> None:
        if self._storage is not None:
            await self._storage.close()

    async def storage(self) -> StorageFile:
        """Raises DataLoss, FailedPrecondition for a file of a later version, ResourceExhausted."""
        async with self._opening:
            if self._storage is None:
                disk = self._environment.disk
                if not self.snapshots.media.storage.taken:
                    await disk.remove(STORAGE_NAME)  # what an earlier memory of this machine purged
                self._storage = await StorageFile.open(disk, STORAGE_NAME)
        return self._storage

    async def quiesce(self, on: bool) -> None:
        """Neither take snapshots nor move, make or remove anything from now on (`on`), or do again. What takes long
        gives way."""
        self._gives_way |= on
        async with self._quieting:
            self._gives_way = on
            if on and not self._quiet:
                await self._taking.acquire()
                await self._moving.acquire()
                await self.changing.acquire()
                self._quiet = True
            elif self._quiet and not on:
                self._quiet = False
                self.changing.release()
                self._moving.release()
                self._taking.release()
                self.room_again()

    @property
    def is_quiet(self) -> bool:
        return self._quiet

    # -- PageKeeper

    def is_kept_of(self, arena: str) -> bool:
        return bool(self.snapshots.of(self._arenas.origin(arena)))

    # -- old content that guests save themselves

    def add_old_pages(self, region: pb.Region) -> None:
        """Raises DataLoss, FailedPrecondition."""
        old = self._savings.add(region)
        if old is not None and not self.snapshots.of(origin_of(region)):
            old.disarm()
        elif old is not None:
            self._saving.set()

    def forget_old_pages(self, region: pb.Region) -> None:
        """Its guest does not run, and it gets others. Raises ResourceExhausted where what is in them has no room."""
        self._take_out(origin_of(region))
        self._savings.forget(origin_of(region))

    def _take_out(self, origin: str) -> int:
        """All that is saved now. Raises ResourceExhausted, DataLoss; what was not taken out is there still."""
        return self._savings.take_out(origin, partial(self._keep_saved, origin))

    def _keep_saved(self, origin: str, page: int, content: bytes, holes: frozenset[int]) -> None:
        if self.snapshots.before_write(origin, page, content, holes):
            self.purger.written()

    async def _take_out_savings(self) -> None:
        """For ever, at the pace of the guests: often while there is something, seldom while there is not."""
        pause_s = TAKE_OUT_S_MIN
        while True:
            await self._saving.wait()
            taken = 0
            armed = self._savings.armed()
            for origin in armed if not self._quiet else ():
                try:
                    taken += self._take_out(origin)
                except ResourceExhausted:
                    self.purger.starved()
                except EverramError as error:
                    self._note_damage(origin, error)
                await asyncio.sleep(0)
            if not armed:
                self._saving.clear()
            pause_s = TAKE_OUT_S_MIN if taken else min(TAKE_OUT_S_MAX, 2 * pause_s)
            await asyncio.sleep(pause_s)

    def is_settled(self, arena: str, page: int) -> bool:
        return self.snapshots.is_settled(self._arenas.origin(arena), page)

    def before_write(self, arena: str, page: int) -> bool:
        if self._quiet and not self.is_settled(arena, page):
            raise ResourceExhausted("the memory is being saved: the writer waits until that has ended")
        try:
            if self._savings and not self._quiet:
                self._take_out(self._arenas.origin(arena))
            copied = self.snapshots.before_write(self._arenas.origin(arena), page)
            if copied:
                self.purger.written()
            return copied
        except ResourceExhausted:
            self.purger.starved()
            raise
        except DataLoss as error:
            self._note_damage(self._arenas.origin(arena), error)
            raise

    def _note_damage(self, origin: str, error: EverramError) -> None:
        """What it would store over cannot be kept, now or later: its guest must not go on."""
        region = self.region_of(origin)
        if region is None or origin in self.damaged:
            return
        self.damaged[origin] = (
            f"region {region.name} of guest {region.guest_id} cannot be written to, for what its snapshots need is "
            f"damaged: {error.message}; `everram region check` says what there is, and removing its snapshots may help"
        )
        self._context.log.error("%s", self.damaged[origin])
        if not region.copy_id:
            request = FailRequest(guest=region.guest_id, reason=self.damaged[origin])
            self._context.spawn(self._end_guest(request), name=f"end {region.guest_id}")

    async def _end_guest(self, request: FailRequest) -> None:
        while True:
            try:
                await self._context.ref(HypervisorRef).fail(request)
                return
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_S)
            except EverramError as error:
                self._context.log.about(guest=request.guest).error(
                    "guest %s is not ended: %s", request.guest, error.message
                )
                return

    def room_again(self) -> None:
        self.purger.room_made()
        if self._writers is not None:
            self._writers.retry_all()

    @property
    def waiting_pages(self) -> int:
        return self._writers.waiting_pages() if self._writers is not None else 0

    # -- taking

    async def take(self, find: Find, name: str) -> list[Record]:
        """Of all regions that `find` finds at one instant, or of none; it is asked again at that instant. Raises
        AlreadyExists, FailedPrecondition, ResourceExhausted, Unavailable, and what `find` raises."""
        self._budget.check_above_reserve()
        for _ in range(BUSY_TRIES):
            with contextlib.suppress(Unprotected):
                async with self._taking, self._standing(find) as (regions, still):
                    return await self._take(find, regions, name, still)
            await asyncio.sleep(BUSY_WAIT_S)
        raise Unavailable("the guest was ending each time it was stopped: try again")

    def take_copy(self, regions: Sequence[pb.Region], operation: LogOperation, epoch: int, lsn: int) -> None:
        """Of a copy that nobody but this host stores to, and which is just where its guest was. Raises
        ResourceExhausted."""
        self._budget.check_above_reserve()
        takings = [Taking(origin_of(one), operation.name, one.size_bytes, epoch, lsn) for one in regions]
        self.snapshots.take(takings, operation.created_ns)

    async def remove_everywhere(
        self, find: Callable[[], Sequence[tuple[pb.Region, Record]]], records: Sequence[Record]
    ) -> None:
        """From copies on other hosts, too, and from those last: a guest may wait in the midst of a commit for the very
        room that this makes. `find` finds what they are of."""
        await self.remove(records)
        await self._tell_removal(find)

    async def _tell_removal(self, find: Callable[[], Sequence[tuple[pb.Region, Record]]]) -> None:
        """To the copies, by the guests' logs. Where that cannot be done now they hold one more, which does no harm."""

        def regions() -> list[pb.Region]:
            return [region for region, _ in find() if region.kind == pb.LOGGED]

        if not regions():
            return
        try:
            async with self._taking, self._standing(regions):
                self._log_removal(find())
        except (Unavailable, ResourceExhausted, FailedPrecondition) as error:
            self._context.log.warning("copies on other hosts keep what is removed here: %s", error.message)

    def _log_removal(self, named: Sequence[tuple[pb.Region, Record]]) -> None:
        """Raises ResourceExhausted."""
        operations: dict[tuple[str, str, int], LogOperation] = {}
        for region, record in named:
            if region.kind == pb.LOGGED:
                operation = LogOperation(name=record.name, created_ns=record.created_ns)
                key = region.guest_id, record.name, record.created_ns
                operations.setdefault(key, operation).regions.append(region.name)
        for (guest_id, *_), operation in sorted(operations.items(), key=lambda one: one[0]):
            with GuestLog.open(self._memory, guest_id) as log:
                log.append(RecordType.DELETE, operation)
                log.publish()

    @contextlib.asynccontextmanager
    async def _standing(self, find: Find) -> AsyncIterator[tuple[Sequence[pb.Region], Still]]:
        """The regions that `find` finds, while their guests stand still: each between two commits, with all of them in
        its regions. Until something is awaited no guest can be begun, either. Raises Unavailable."""
        for _ in range(BUSY_TRIES):
            async with self._frozen(sorted({region.guest_id for region in find()})) as still:
                ended = sorted(still.epochs.keys() - still.alive)
                numbered = {guest_id: await self._numbered(guest_id) for guest_id in ended}
                regions = find()
                logged = {region.guest_id for region in regions if region.kind == pb.LOGGED}
                if all(self._stands_still(guest_id, still, guest_id in logged) for guest_id in sorted(still.epochs)):
                    for guest_id in sorted(logged - still.alive):
                        self._settle(guest_id, numbered[guest_id])
                    yield regions, still
                    return
            await asyncio.sleep(BUSY_WAIT_S)
        raise Unavailable("the guest was starting, or in the midst of a commit, each time it was stopped: try again")

    @contextlib.asynccontextmanager
    async def _frozen(self, guest_ids: Sequence[str]) -> AsyncIterator[Still]:
        """Those of them that have a process stand still meanwhile."""
        machine = self._environment.machine
        epochs = {guest_id: self._epoch(guest_id) for guest_id in guest_ids}  # before the machine is asked
        processes = {process.guest_id: process for process in await machine.guests() if process.pid}
        still = Still(epochs, alive={guest_id for guest_id in guest_ids if guest_id in processes})
        async with contextlib.AsyncExitStack() as undo:
            for guest_id in sorted(still.alive):
                undo.push_async_callback(self._thaw, guest_id)
                epochs[guest_id] = processes[guest_id].epoch
                try:
                    await machine.freeze(guest_id, FREEZE_REASON)
                except (NotFound, FailedPrecondition):
                    epochs[guest_id] = NOBODY  # it has ended just now, or somebody thawed it: ask again
            yield still

    def _epoch(self, guest_id: str) -> int:
        with GuestLog.open(self._memory, guest_id) as log:
            return log.epoch

    async def _thaw(self, guest_id: str) -> None:
        with contextlib.suppress(NotFound, FailedPrecondition):
            await self._environment.machine.thaw(guest_id, FREEZE_REASON)

    def _stands_still(self, guest_id: str, still: Still, logged: bool) -> bool:
        """Whether it is who it was when the machine was asked, does not run, and is not in the midst of a commit."""
        with GuestLog.open(self._memory, guest_id) as log:
            if log.epoch != still.epochs[guest_id]:
                return False
            if guest_id not in still.alive:
                return not log.may_begin()
            return not logged or log.is_still()

    def _settle(self, guest_id: str, regions: Sequence[pb.Region]) -> None:
        """Of a guest without a process: what it has committed is in its regions, which are given in their order."""
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(GuestLog.open(self._memory, guest_id))
            log.settle([self._mapped(region, opened) for region in regions])

    async def _take(self, find: Find, regions: Sequence[pb.Region], name: str, still: Still) -> list[Record]:
        """Raises Unprotected where a guest ends just now."""
        unseen = [region for region in regions if not self._is_seen(region, still)]
        for region in unseen:
            await in_turns(self.snapshots.catch_up(origin_of(region)))
        if list(find()) != list(regions):
            raise Unavailable("the guest's regions are being changed: try again")
        records = self._take_now(regions, name, {origin_of(region) for region in unseen})
        if unseen:
            try:
                for region in unseen:
                    await self._copy_out(region.arena, gives_way=True)
                self.snapshots.took(records)
            except EverramError:
                await self._take_back(list(zip(regions, records, strict=True)))
                raise
        return records

    async def _take_back(self, taken: Sequence[tuple[pb.Region, Record]]) -> None:
        """While the guests still stand: what is not copied changes with their next store, and nobody would see it."""
        await self.begin_removal([one for _, one in taken])
        with contextlib.suppress(ResourceExhausted):  # copies then hold one more, which is right where it is
            self._log_removal(taken)

    async def _numbered(self, guest_id: str) -> Sequence[pb.Region]:
        """A guest's regions by their numbers in its log."""
        guests = (await self._context.ref(VMemFSRef).guests(pb.Empty())).guests
        return next((guest.regions for guest in guests if guest.guest_id == guest_id), ())

    def _mapped(self, region: pb.Region, opened: contextlib.ExitStack) -> MappedMemory | None:
        """For stores of this host."""
        if region.kind != pb.LOGGED:
            return None
        mapping = GuardedMapping(self._memory.open(region.arena).map(), self._guard, region.arena)
        opened.callback(mapping.close)
        return mapping

    def _is_seen(self, region: pb.Region, still: Still) -> bool:
        """Whether the first store to each of its pages will be trapped, or what it changes be saved by its guest; of a
        guest without a process by its next one, for the machine attaches no other."""
        guest_id = region.guest_id
        if guest_id not in still.alive:
            return self._writers is not None or self._savings.add(region) is not None
        is_trapped = self._writers is not None and self._writers.is_served(guest_id, region.name)
        return is_trapped or self._savings.is_saving(region, still.epochs[guest_id])

    def _take_now(self, regions: Sequence[pb.Region], name: str, unseen: Collection[str]) -> list[Record]:
        """One instant: nothing is awaited. `unseen`: the origins of those that have to be copied out."""
        created_ns = self._environment.clock.wall_ns()
        logs: dict[str, GuestLog] = {}
        with contextlib.ExitStack() as opened:
            try:
                for region in regions:
                    # What is there belongs to the snapshots before this one.
                    self._take_out(origin_of(region))
                positions = self._append(regions, name, created_ns, logs, opened)
                self._protect(regions)
                takings = []
                for region in regions:
                    epoch, lsn = positions[region.guest_id] if region.kind == pb.LOGGED else (0, 0)
                    whole = origin_of(region) not in unseen
                    takings.append(Taking(origin_of(region), name, region.size_bytes, epoch, lsn, whole))
                records = self.snapshots.take(takings, created_ns)
            except BaseException:
                for log in logs.values():
                    log.withdraw()
                raise
            for log in logs.values():
                log.publish()
        return records

    def _append(
        self,
        regions: Iterable[pb.Region],
        name: str,
        created_ns: int,
        logs: dict[str, GuestLog],
        opened: contextlib.ExitStack,
    ) -> dict[str, tuple[int, int]]:
        """To the log of each guest a record of this snapshot, not yet published; `logs` gets them by guest_id. Where
        they begin, as (epoch, lsn)."""
        operations: dict[str, LogOperation] = {}
        for region in regions:
            if region.kind == pb.LOGGED:
                operation = operations.setdefault(region.guest_id, LogOperation(name=name, created_ns=created_ns))
                operation.regions.append(region.name)
        positions = {}
        for guest_id, operation in operations.items():
            log = logs[guest_id] = opened.enter_context(GuestLog.open(self._memory, guest_id))
            positions[guest_id] = log.epoch, log.tail
            log.append(RecordType.SNAPSHOT, operation)
        return positions

    def _protect(self, regions: Sequence[pb.Region]) -> None:
        """Raises Unprotected."""
        for region in regions:
            if self._savings.add(region) is not None:
                self._savings.arm(origin_of(region))
                self._saving.set()
        for region in regions if self._writers is not None else ():
            assert self._writers is not None
            try:
                self._writers.protect(region.guest_id, region.name)
            except Unavailable as error:
                raise Unprotected(error.message) from error

    async def _copy_out(self, arena: str, *, gives_way: bool = False) -> None:
        """Everything that a region holds goes to the store now: nobody will see the stores that change it. Raises
        ResourceExhausted, and Unavailable where it `gives_way` to a save."""
        pages = (
            page
            for offset, length in self._memory.open(arena).extents()
            for page in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        )
        for number, page in enumerate(pages):
            while True:
                if gives_way:
                    self.check_may_go_on()
                try:
                    self.before_write(arena, page)
                    break
                except ResourceExhausted:
                    await self.purger.make_room()
            if number % PAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    # -- reading

    async def read(self, record: Record, offset: int, length: int) -> bytes:
        """Fewer bytes only at the snapshot's end. Raises DataLoss where storage has lost them, NotFound once the
        snapshot is removed."""
        end = min(offset + length, record.size_bytes)
        pieces = []
        for page in range(offset // PAGE_BYTES, -(-end // PAGE_BYTES)) if offset < end else ():
            start = page * PAGE_BYTES
            content = await self.page(record, page) or bytes(PAGE_BYTES)
            pieces.append(content[max(0, offset - start) : end - start])
        return b"".join(pieces)

    async def page(self, record: Record, page: int) -> bytes | None:
        """None: it is a hole."""
        while True:
            if record.state is State.DELETING:
                raise NotFound(f"snapshot {record.name!r} was removed meanwhile")
            virtblock = self.snapshots.virtblock(record, page)
            place, number = self.snapshots.locate(record, page)
            if place is Place.FREE:
                return None
            if place is Place.ARENA:
                origin = self.snapshots.region_of(record).record.name
                content = self._arenas.open(origin).read(page * PAGE_BYTES, PAGE_BYTES)
                old = self._savings.find(origin, page)  # asked after reading
                return content if old is None else old
            if place is Place.STORE:
                return self.snapshots.blocks.load(number)
            try:
                return await (await self.storage()).read(number, virtblock)
            except DataLoss:
                if (self.snapshots.virtblock(record, page), self.snapshots.locate(record, page)) == (
                    virtblock,
                    (place, number),
                ):
                    raise  # and not because it was brought back in the meantime

    # -- removing and reverting

    async def remove(self, records: Sequence[Record]) -> None:
        """Returns when everything that only they held is free. Raises FailedPrecondition, DataLoss."""
        async with self._moving:
            going = [one for one in records if one.sequence in self._deletions]
            doomed = self._doom(records)
        await self._deleted([*going, *doomed])

    async def begin_removal(self, records: Sequence[Record]) -> None:
        """As `remove`, without waiting for the room. Raises FailedPrecondition, ResourceExhausted."""
        async with self._moving:
            for record in self._doom(records):
                self._begin_delete(record)

    async def give_up(self, origin: str) -> list[Record]:
        """Begin to remove a region's snapshots, the oldest first where they are many. Raises ResourceExhausted, and
        Unavailable if what was moved until it may has made room."""
        waits = self._moving.locked()
        async with self._moving:
            if waits and self.snapshots.media.store.free > 0:
                raise Unavailable("room was made meanwhile")
            going = list(self.snapshots.of(origin))[-deletion.PIECE :]
            for record in self._doom(going):
                self._begin_delete(record)
            return going

    async def removals_end(self, origins: Collection[str]) -> bool:
        """Wait for what is being removed of these regions. Whether there was anything."""
        known = [self.snapshots.regions[origin] for origin in origins if origin in self.snapshots.regions]
        numbers = {region.record.number for region in known}
        going = [record for record in deletion.unfinished(self.snapshots) if record.region in numbers]
        with contextlib.suppress(EverramError):  # it is in the log, and the next host tries again
            await self._deleted(going)
        return bool(going)

    def _doom(self, records: Sequence[Record]) -> list[Record]:
        """Nobody sees them any more: all that has to be deleted for that. `_moving` is held."""
        doomed = deletion.begin(self.snapshots, [one for one in records if one.state is not State.DELETING])
        self.room_again()
        return doomed

    async def _deleted(self, records: Iterable[Record]) -> None:
        failed: EverramError | None = None
        for record in sorted(records, key=lambda one: one.sequence):
            if record.sequence in self.snapshots.records:  # and has not ended while another was waited for
                failed = await asyncio.shield(self._begin_delete(record)) or failed
        if failed is not None:
            raise failed

    def _begin_delete(self, record: Record) -> asyncio.Task[EverramError | None]:
        """At most once for each, and to its end, whoever waits for it."""
        task = self._deletions.get(record.sequence)
        if task is None:
            task = self._context.spawn(self._delete(record), name=f"delete {record.name or record.sequence}")
            self._deletions[record.sequence] = task
            task.add_done_callback(lambda _: self._deletions.pop(record.sequence))
        return task

    async def _delete(self, record: Record) -> EverramError | None:
        """What kept it from its end: the next host tries again, and everything else goes on."""
        origin = self.snapshots.region_of(record).record.name
        steps = deletion.steps(self.snapshots, record)
        going = True
        try:
            while going:
                async with self._moving:
                    going = next(steps, DONE) is not DONE
                await asyncio.sleep(0)
        except EverramError as error:
            self._context.log.error("snapshot %s is not deleted to its end: %s", record.name, error.message)
            return error
        if not self.snapshots.of(origin):
            self._savings.disarm(origin)
            self.damaged.pop(origin, None)
        self.room_again()
        return None

    async def revert(self, find: Callable[[], pb.Region], record: Record) -> None:
        """The running point of its region is the snapshot's when this returns; `find` finds it, now and when it begins.
        Raises FailedPrecondition while its guest has a process, DataLoss and ResourceExhausted where it cannot be done,
        and what `find` raises; then nothing has changed."""
        async with self._taking:
            await self._check_reversion(record)
            guest_id = find().guest_id
            async with self._frozen([guest_id]) as still:
                numbered = await self._numbered(guest_id)
                region = find()
                if still.alive or not self._stands_still(region.guest_id, still, True):
                    raise FailedPrecondition(f"a process uses region {region.name}: stop its guest first")
                # What the log has beyond what is applied would come back over the snapshot's content.
                self._settle(region.guest_id, numbered)
                self._take_out(origin_of(region))
                is_seen = self._is_seen(region, still)
                if not is_seen:
                    at_once(self.snapshots.catch_up(origin_of(region)))
                reverting.begin(self.snapshots, record)
        reversion = self._begin_reversion(record)
        await asyncio.wait([reversion])
        if reversion.cancelled():
            raise NotFound(f"region {region.name} was removed meanwhile")
        reversion.result()
        if not is_seen:
            await self._copy_out(region.arena)
        about = self._context.log.about(guest=region.guest_id)
        about.info("region %s of guest %s is as in %s", region.name, region.guest_id, record.name)

    async def _check_reversion(self, record: Record) -> None:
        """A reversion cannot be taken back once it has begun."""
        while True:
            self.check_may_go_on()
            now = standing(self.snapshots)
            demand = await in_turns(reverting.demand(now, now.records[record.sequence]))
            if findings := await self.verify(demand.slots):
                raise DataLoss(f"snapshot {record.name!r} cannot be restored, nothing has changed: {findings[0]}")
            if demand.blocks <= self.snapshots.media.store.free:
                return
            await self.purger.make_room()

    def check_may_go_on(self) -> None:
        """Raises Unavailable."""
        if self._gives_way:
            raise Unavailable("the memory of this machine is being saved: ask again when that is over")

    async def verify(self, slots: Mapping[int, int]) -> list[str]:
        """What is wrong with slots of the storage file that hold these virtblocks (slot -> virtblock). Raises
        Unavailable while memory is saved."""
        findings = []
        media, numbers = self.snapshots.media, sorted(slots)
        for first in range(0, len(numbers), SLOTS_PER_TURN):
            self.check_may_go_on()
            some = {slot: slots[slot] for slot in numbers[first : first + SLOTS_PER_TURN]}
            for slot, finding in (await (await self.storage()).verify(some)).items():
                if media.word(slots[slot] * WORD_BYTES) == pack_location(Place.STORAGE, slot):  # still
                    findings.append(finding)
        return findings

    def _begin_reversion(self, record: Record) -> asyncio.Task[None]:
        """At most once for each region, and to its end, whoever waits for it."""
        task = self._reversions.get(record.region)
        if task is None:
            task = self._context.spawn(self._revert(record), name=f"revert to {record.name}")
            self._reversions[record.region] = task
            task.add_done_callback(lambda _: self._reversions.pop(record.region))
        return task

    def is_reverting(self, region: pb.Region) -> bool:
        """Then nobody may use it."""
        found = self.snapshots.regions.get(origin_of(region))
        return found is not None and found.record.state is State.REVERTING

    async def _revert(self, record: Record) -> None:
        """Tried until it has ended: before that, the region is neither what it was nor what it will be."""
        origin = self.snapshots.region_of(record).record.name
        with self._guard.exposed(self._arenas.open(origin).name):
            while True:
                try:
                    await self._bring_back(record)
                    break
                except EverramError as error:
                    if error.message != self.trouble:
                        self._context.log.error("the reversion to %s does not go on: %s", record.name, error.message)
                    self.trouble = error.message
                await asyncio.sleep(RETRY_S)
        self.trouble = ""
        self._savings.arm(self.snapshots.region_of(record).record.name)
        self._saving.set()
        async with self._moving:
            retired = reverting.end(self.snapshots, record)
        self.room_again()
        await self._deleted([retired])

    async def _bring_back(self, record: Record) -> None:
        for chunk in reverting.chunks(self.snapshots, record):
            for number, page in enumerate(chunk):
                async with self._moving:
                    await self._bring_page_back(record, page)
                if number % PAGES_PER_TURN == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _bring_page_back(self, record: Record, page: int) -> None:
        data = await self.page(record, page)
        while True:
            try:
                reverting.restore(self.snapshots, record, page, data)
                return
            except ResourceExhausted:
                await self.purger.purge_batch()

    async def fill(self, record: Record, arena: MemoryObject) -> None:
        """With what a snapshot holds. The arena is empty, and where an extent has zeros it stays so."""
        for number in range(-(-record.size_bytes // PAGE_BYTES)):
            content = await self.page(record, number)
            if content and content.strip(b"\0"):
                arena.write(number * PAGE_BYTES, content)
            if number % PAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    async def let_go(self, region: pb.Region) -> None:
        """A region goes: nothing looks at its arena any more when this returns. `forget_origin` is next."""
        origin = origin_of(region)
        self._savings.forget(origin)
        self.damaged.pop(origin, None)
        await self._end_reversion(origin)
        self._arenas.forget(region)

    async def forget_origin(self, origin: str) -> None:
        """The snapshots of a region that is gone. Returns when everything that they held is free. Raises DataLoss."""
        await self._end_reversion(origin)
        region = self.snapshots.regions.get(origin)
        if region is None:
            return
        if live := list(self.snapshots.of(origin)):
            await self.remove(live)
        await self._deleted(one for one in deletion.unfinished(self.snapshots) if one.region == region.record.number)
        self.snapshots.forget_region(origin)

    async def _end_reversion(self, origin: str) -> None:
        """Of a region that goes: before its end."""
        region = self.snapshots.regions.get(origin)
        if region is None:
            return
        if (task := self._reversions.get(region.record.number)) is not None:
            task.cancel()
            await asyncio.wait([task])
        if region.record.state is State.REVERTING:
            reverting.abandon(self.snapshots, region)
