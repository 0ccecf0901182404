"""The snapshots of one host: opened from its memory, kept while guests write, and everything about them that awaits.

    keeper = await SnapshotKeeper.open(context, device, guard, faults, storage_bytes)
    records = await keeper.take(regions, "before")       # guests are stopped for it, and need not help
    data = await keeper.read(record, offset, length)
    await keeper.remove(records)
    await keeper.revert(record)                          # its guest has no process

A snapshot of a guest that runs: stop it, write-protect what it has mapped, record the snapshot, let it go on. A region
whose stores nobody sees (this computer has no userfaultfd, or its guest could not make one) is copied whole while the
guest is stopped, since there would be no other moment for it.

Deletions, reversions and purges change what lies where and exclude each other, a step at a time; writes and new
snapshots come in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from everram.actors.nvm_device import deletion, purging, reverting
from everram.actors.nvm_device.block_store import BlockStore
from everram.actors.nvm_device.budget import Budget, MetadataSpace
from everram.actors.nvm_device.device import origin_of
from everram.actors.nvm_device.guest_log import GuestLog
from everram.actors.nvm_device.media import Media
from everram.actors.nvm_device.purger import Purger
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Snapshots, Taking
from everram.actors.nvm_device.steps import gradually
from everram.actors.nvm_device.storage import StorageFile
from everram.actors.nvm_device.virtblocks import Place
from everram.actors.nvm_device.writers import Writers
from everram.runtime.actor import ActorContext
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from everram.runtime.log.record import RecordType
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.guard import GuardedMapping, PageGuard

STORAGE_NAME = "nvm/purged"
FREEZE_REASON = "snapshot"
PAGES_PER_TURN = 64
TRIM_BLOCKS_MAX = 1 << 17
"""Where there are more, looking for what a crash left of freed blocks would take a host too long at its start: such
blocks keep their memory until they are taken again."""
BUSY_TRIES = 200
BUSY_WAIT_S = 0.0005
"""A guest that was stopped in the midst of a commit gets that long to come to its end."""
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
        self._storage: StorageFile | None = None
        """Opened when it is first needed."""
        self._opening = asyncio.Lock()
        self._moving = asyncio.Lock()
        """Held during each step of a deletion or reversion, and during each batch of a purge."""
        self._deletions: dict[int, asyncio.Task[None]] = {}
        """By sequence."""
        self._taking = asyncio.Lock()
        """The machine's reason to freeze is one for all."""
        self._quiet = False
        self.purger = Purger(context, snapshots, self.storage, self._moving, budget, self.room_again)

    @staticmethod
    async def open(
        context: ActorContext,
        budget: Budget,
        guard: PageGuard,
        writers: Writers | None,
        storage_bytes: int,
        regions: Iterable[pb.Region],
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
        if media.store.taken <= TRIM_BLOCKS_MAX:
            blocks.trim(media.store.is_taken)
        keeper = SnapshotKeeper(context, snapshots, arenas, guard, writers, budget)
        guard.keeper = keeper
        await keeper._go_on()
        return keeper

    async def _go_on(self) -> None:
        """What was under way when the host before this one ended."""
        for record in reverting.unfinished(self.snapshots):
            self._context.log.info("a reversion to %s was cut off; it goes on", record.name)
            await self._revert(record)
        for record in deletion.unfinished(self.snapshots):
            self._begin_delete(record)
        self._context.spawn(self.purger.run(), name="purge")

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
        """Neither take snapshots nor move anything from now on (`on`), or do again."""
        if on and not self._quiet:
            await self._taking.acquire()
            await self._moving.acquire()
        elif self._quiet and not on:
            self._moving.release()
            self._taking.release()
        self._quiet = on

    # -- PageKeeper

    def is_kept_of(self, arena: str) -> bool:
        return bool(self.snapshots.of(self._arenas.origin(arena)))

    def is_settled(self, arena: str, page: int) -> bool:
        return self.snapshots.is_settled(self._arenas.origin(arena), page)

    def before_write(self, arena: str, page: int) -> bool:
        try:
            copied = self.snapshots.before_write(self._arenas.origin(arena), page)
            if copied:
                self.purger.written()
            return copied
        except ResourceExhausted:
            self.purger.starved()
            raise

    def room_again(self) -> None:
        if self._writers is not None:
            self._writers.retry_all()

    @property
    def waiting_pages(self) -> int:
        return self._writers.waiting_pages() if self._writers is not None else 0

    # -- taking

    async def take(self, regions: Sequence[pb.Region], name: str) -> list[Record]:
        """Of all of them at one instant, or of none. Raises AlreadyExists, FailedPrecondition, ResourceExhausted,
        Unavailable."""
        self._budget.check_above_reserve()
        async with self._taking, self._still(regions) as alive:
            return await self._take(regions, name, alive)

    def take_copy(self, regions: Sequence[pb.Region], operation: LogOperation, epoch: int, lsn: int) -> None:
        """Of a copy that nobody but this host stores to, and which is just where its guest was. Raises
        ResourceExhausted."""
        self._budget.check_above_reserve()
        takings = [Taking(origin_of(one), operation.name, one.size_bytes, epoch, lsn) for one in regions]
        self.snapshots.take(takings, operation.created_ns)

    async def tell_removal(self, named: Sequence[tuple[pb.Region, Record]]) -> None:
        """To the copies on other hosts, by the guests' logs."""
        regions = [region for region, _ in named if region.kind == pb.LOGGED]
        if not regions:
            return
        async with self._taking, self._still(regions) as alive:
            await self._settle(regions, alive)
            self._log_removal(named)

    def _log_removal(self, named: Sequence[tuple[pb.Region, Record]]) -> None:
        """Raises ResourceExhausted."""
        operations: dict[tuple[str, str], LogOperation] = {}
        for region, record in named:
            if region.kind == pb.LOGGED:
                key = region.guest_id, record.name
                operations.setdefault(key, LogOperation(name=record.name)).regions.append(region.name)
        for (guest_id, _), operation in sorted(operations.items(), key=lambda one: one[0]):
            with GuestLog.open(self._memory, guest_id) as log:
                log.append(RecordType.DELETE, operation)
                log.publish()

    @contextlib.asynccontextmanager
    async def _still(self, regions: Sequence[pb.Region]) -> AsyncIterator[set[str]]:
        """Their guests stand still, each between two commits; those that have a process. Raises Unavailable."""
        guest_ids = sorted({region.guest_id for region in regions})
        for _ in range(BUSY_TRIES):
            async with self._frozen(guest_ids) as alive:
                if self._are_still(regions, alive):
                    yield alive
                    return
            await asyncio.sleep(BUSY_WAIT_S)
        raise Unavailable("the guest was in the midst of a commit each time it was stopped: try again")

    @contextlib.asynccontextmanager
    async def _frozen(self, guest_ids: Iterable[str]) -> AsyncIterator[set[str]]:
        """Those that have a process, which stands still meanwhile."""
        machine = self._environment.machine
        wanted = set(guest_ids)
        alive = {process.guest_id for process in await machine.guests() if process.pid and process.guest_id in wanted}
        async with contextlib.AsyncExitStack() as undo:
            for guest_id in sorted(alive):
                undo.push_async_callback(self._thaw, guest_id)
                try:
                    await machine.freeze(guest_id, FREEZE_REASON)
                except (NotFound, FailedPrecondition):
                    alive.discard(guest_id)  # it has ended just now
            yield alive

    async def _thaw(self, guest_id: str) -> None:
        with contextlib.suppress(NotFound, FailedPrecondition):
            await self._environment.machine.thaw(guest_id, FREEZE_REASON)

    def _are_still(self, regions: Iterable[pb.Region], alive: set[str]) -> bool:
        for guest_id in sorted({region.guest_id for region in regions if region.kind == pb.LOGGED} & alive):
            with GuestLog.open(self._memory, guest_id) as log:
                if not log.is_still():
                    return False
        return True

    async def _take(self, regions: Sequence[pb.Region], name: str, alive: set[str]) -> list[Record]:
        unseen = [region for region in regions if not self._is_trapped(region, alive)]
        await self._settle(regions, alive)
        for region in unseen:
            await gradually(self.snapshots.catch_up(origin_of(region)))
        records = self._take_now(regions, name, alive)
        try:
            for region in unseen:
                await self._copy_out(region.arena)
        except BaseException:
            # What is not copied by now changes with the guest's next store, and nobody would see it.
            await self._take_back(list(zip(regions, records, strict=True)))
            raise
        return records

    async def _take_back(self, taken: Sequence[tuple[pb.Region, Record]]) -> None:
        """While the guests still stand."""
        async with self._moving:
            doomed = deletion.begin(self.snapshots, [record for _, record in taken])
        for record in doomed:
            self._begin_delete(record)
        with contextlib.suppress(ResourceExhausted):  # copies then hold one more, which is right where it is
            self._log_removal(taken)

    async def _settle(self, regions: Iterable[pb.Region], alive: set[str]) -> None:
        """Of guests without a process: what they have committed is in their regions."""
        for guest_id in sorted({region.guest_id for region in regions if region.kind == pb.LOGGED} - alive):
            with contextlib.ExitStack() as opened:
                log = opened.enter_context(GuestLog.open(self._memory, guest_id))
                log.settle([self._mapped(region, opened) for region in await self._numbered(guest_id)])

    async def _numbered(self, guest_id: str) -> Sequence[pb.Region]:
        """A guest's regions by their numbers in its log."""
        guests = (await self._context.ref(VMemFSRef).guests(pb.Empty())).guests
        return next((guest.regions for guest in guests if guest.guest_id == guest_id), ())

    def _mapped(self, region: pb.Region, opened: contextlib.ExitStack) -> Mapping | None:
        """For stores of this host."""
        if region.kind != pb.LOGGED:
            return None
        mapping = GuardedMapping(self._memory.open(region.arena).map(), self._guard, region.arena)
        opened.callback(mapping.close)
        return mapping

    def _is_trapped(self, region: pb.Region, alive: set[str]) -> bool:
        """Whether the first store to each of its pages will be seen; of a guest without a process its next one's."""
        if self._writers is None:
            return False
        return region.guest_id not in alive or self._writers.is_served(region.guest_id, region.name)

    def _take_now(self, regions: Sequence[pb.Region], name: str, alive: set[str]) -> list[Record]:
        """One instant: nothing is awaited."""
        created_ns = self._environment.clock.wall_ns()
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as unless_taken:
            logs = self._logs(regions, name, created_ns, opened, unless_taken)
            takings = []
            for region in regions:
                log = logs.get(region.guest_id) if region.kind == pb.LOGGED else None
                epoch, lsn = (log[0].epoch, log[0].tail) if log else (0, 0)
                takings.append(Taking(origin_of(region), name, region.size_bytes, epoch, lsn))
                if self._writers is not None:
                    self._writers.protect(region.guest_id, region.name)
            records = self.snapshots.take(takings, created_ns)
            unless_taken.pop_all()
            for log_, _ in logs.values():
                log_.publish()
        return records

    def _logs(
        self,
        regions: Sequence[pb.Region],
        name: str,
        created_ns: int,
        opened: contextlib.ExitStack,
        unless_taken: contextlib.ExitStack,
    ) -> dict[str, tuple[GuestLog, LogOperation]]:
        """By guest_id: its log with a record of this snapshot, not yet published, and what that says."""
        logs: dict[str, tuple[GuestLog, LogOperation]] = {}
        for region in regions:
            if region.kind != pb.LOGGED:
                continue
            if region.guest_id not in logs:
                log = opened.enter_context(GuestLog.open(self._memory, region.guest_id))
                logs[region.guest_id] = log, LogOperation(name=name, created_ns=created_ns)
            logs[region.guest_id][1].regions.append(region.name)
        for log, operation in logs.values():
            log.append(RecordType.SNAPSHOT, operation)
            unless_taken.callback(log.withdraw)
        return logs

    async def _copy_out(self, arena: str) -> None:
        """Everything that a region holds goes to the store now: nobody will see the stores that change it."""
        pages = (
            page
            for offset, length in self._memory.open(arena).extents()
            for page in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        )
        for number, page in enumerate(pages):
            while True:
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
            if record.sequence not in self.snapshots.records:
                raise NotFound(f"snapshot {record.name!r} was removed meanwhile")
            virtblock = self.snapshots.virtblock(record, page)
            place, number = self.snapshots.locate(record, page)
            if place is Place.FREE:
                return None
            if place is Place.ARENA:
                arena = self._arenas.open(self.snapshots.region_of(record).record.name)
                return arena.read(page * PAGE_BYTES, PAGE_BYTES)
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
        """Returns when everything that only they held is free."""
        async with self._moving:
            doomed = deletion.begin(self.snapshots, records)
        self.room_again()
        await self._deleted(doomed)

    async def _deleted(self, records: Iterable[Record]) -> None:
        for record in sorted(records, key=lambda one: one.sequence):
            await asyncio.shield(self._begin_delete(record))

    def _begin_delete(self, record: Record) -> asyncio.Task[None]:
        """At most once for each, and to its end, whoever waits for it."""
        task = self._deletions.get(record.sequence)
        if task is None:
            task = self._context.spawn(self._delete(record), name=f"delete {record.name or record.sequence}")
            self._deletions[record.sequence] = task
            task.add_done_callback(lambda _: self._deletions.pop(record.sequence))
        return task

    async def _delete(self, record: Record) -> None:
        steps = deletion.steps(self.snapshots, record)
        going = True
        while going:
            async with self._moving:
                going = next(steps, DONE) is not DONE
            await asyncio.sleep(0)
        self.room_again()

    async def revert(self, region: pb.Region, record: Record) -> None:
        """The running point of its region is the snapshot's when this returns. Raises FailedPrecondition while its
        guest has a process."""
        async with self._taking:
            processes = await self._environment.machine.guests()
            if any(process.pid and process.guest_id == region.guest_id for process in processes):
                raise FailedPrecondition(f"a process uses region {region.name}: stop its guest first")
            # What the log has beyond what is applied would come back over the snapshot's content.
            await self._settle([region], set())
            if self._writers is None:
                await gradually(self.snapshots.catch_up(origin_of(region)))
            reverting.begin(self.snapshots, record)
            await self._revert(record)
            if self._writers is None:
                await self._copy_out(region.arena)
        self._context.log.info("region %s of guest %s is as in %s", region.name, region.guest_id, record.name)

    async def fill(self, record: Record, arena: MemoryObject) -> None:
        """With what a snapshot holds."""
        for number in range(-(-record.size_bytes // PAGE_BYTES)):
            if content := await self.page(record, number):
                arena.write(number * PAGE_BYTES, content)
            if number % PAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    # -- looking

    async def at_rest(self) -> Snapshots:
        """As they are between two moves."""
        async with self._moving:
            return self.snapshots.frozen()

    async def _revert(self, record: Record) -> None:
        async with self._moving:
            for pages in reverting.chunks(self.snapshots, record):
                await asyncio.sleep(0)
                for number, page in enumerate(pages):
                    data = await self.page(record, page)
                    while True:
                        try:
                            reverting.restore(self.snapshots, record, page, data)
                            break
                        except ResourceExhausted:
                            await self.purger.purge_batch()
                    if number % PAGES_PER_TURN == 0:
                        await asyncio.sleep(0)
            retired = reverting.end(self.snapshots, record)
        await self._deleted([retired])

    async def forget_region(self, region: pb.Region) -> None:
        """A region goes, with all its snapshots."""
        await self.forget_origin(origin_of(region))
        self._arenas.forget(region)

    async def forget_origin(self, origin: str) -> None:
        if self.snapshots.of(origin):
            await self.remove(list(self.snapshots.of(origin)))
        if region := self.snapshots.regions.get(origin):
            number = region.record.number
            await self._deleted(one for one in deletion.unfinished(self.snapshots) if one.region == number)
            self.snapshots.forget_region(origin)
