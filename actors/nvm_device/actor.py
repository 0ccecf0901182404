"""The NVM device's actor: makes and removes the memory objects that `device` decided on, and keeps its metadata.

What there is of snapshots is in `keeper`; this module finds the regions and snapshots that a message names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from everram.actors.nvm_device import accounting, checking
from everram.actors.nvm_device.budget import Budget
from everram.actors.nvm_device.device import Device, Plan, check_filter, check_snapshot_name, origin_of, pages_of
from everram.actors.nvm_device.keeper import SnapshotKeeper
from everram.actors.nvm_device.purging import everything
from everram.actors.nvm_device.records import Record, State
from everram.actors.nvm_device.turns import in_turns, standing
from everram.actors.nvm_device.writers import Writers
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.nvm_device_contract import NvmDeviceActor
from everram.runtime.environment import Memory
from everram.runtime.errors import (
    DataLoss,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.formats.nvm import ANY, MEMORY_BYTES, MEMORY_NAME, OWN, Metadata
from everram.runtime.formats.pages import STATES_OFFSET, PageTable, table_name
from everram.runtime.formats.slots import SlotArea
from everram.runtime.log.record import RecordType
from everram.runtime.log.ring import Ring
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.old_pages import OldPages, old_pages_name
from everram.runtime.sizes import size_text

T = TypeVar("T")
RequestT = TypeVar("RequestT")

READ_BYTES_MAX = 1 << 20
Forgetting = asyncio.Task[EverramError | None]
"""Of the snapshots of a region that is gone: what kept it from its end."""


class NvmDevice(NvmDeviceActor):
    """Regions within `capacity_bytes`, and purged blocks within `storage_bytes`. `writers` traps guests' stores; None
    where this computer cannot. `guard` is asked before any store to a region."""

    def __init__(
        self,
        capacity_bytes: int,
        storage_bytes: int,
        *,
        guard: PageGuard | None = None,
        writers: Writers | None = None,
    ) -> None:
        self._capacity_bytes, self._storage_bytes = capacity_bytes, storage_bytes
        self._guard = guard if guard is not None else PageGuard()
        self._writers = writers
        self._growing: set[str] = set()
        """Arenas that are being copied into longer ones: nobody may change what they hold."""
        self._forgetting: dict[str, Forgetting] = {}
        """By the origins of regions that are gone."""
        self._forgets = asyncio.Lock()
        """The snapshots of regions that are gone are removed for one region after the other: each needs some metadata
        first, and gives back more."""

    async def on_start(self) -> None:
        self._memory = self.context.environment.memory
        metadata = await self._open_metadata()
        self._device = Device(metadata, self._capacity_bytes, tracking=self._writers is not None)
        present = set(self._memory.names())
        for name in self._device.orphans(sorted(present)):
            self.context.log.info("%s is not in the metadata: a host died while making or removing it; removed", name)
            await self._memory.remove(name)
        await self._make_tables(metadata.regions())  # a host may have died while it made a region longer
        for name in self._device.object_names("", ANY):
            if name not in present:
                self.context.log.error("%s is in the metadata, but the machine does not have it", name)
        self._budget = Budget(self._capacity_bytes)
        self._budget.promise(self._device.promised_bytes())
        self._keeper = await SnapshotKeeper.open(
            self.context, self._budget, self._guard, self._writers, self._storage_bytes, metadata.regions(copy_id=ANY)
        )
        self._keeper.region_of = self._region_of
        self._device.snapshots_bytes = lambda: self._budget.taken_bytes
        await self._forget_lost_regions()
        for region in metadata.regions():
            await self._begin_to_keep_old(region)

    async def _begin_to_keep_old(self, region: pb.Region) -> None:
        """Of a region that was made where stores were trapped, or where there was no room; if there is room now."""
        wanted = self._device.with_old_pages(region)
        if wanted is not None:
            try:
                await self._make_old_pages(wanted)
            except ResourceExhausted:
                return
            self._device.metadata.add((wanted,), None)
            self._keeper.add_old_pages(wanted)
            self._budget.promise(self._device.promised_bytes())

    async def on_stop(self) -> None:
        await self._keeper.close()

    async def _open_metadata(self) -> Metadata:
        if MEMORY_NAME in self._memory.names():
            mapping = self._memory.open(MEMORY_NAME).map()
        else:
            mapping = (await self._memory.create(MEMORY_NAME, MEMORY_BYTES)).map()
        self.context.resources.callback(mapping.close)
        return Metadata.format(mapping) if SlotArea.is_blank(mapping) else Metadata.open(mapping)

    async def _forget_lost_regions(self) -> None:
        """Snapshots of regions that the host before this one was removing."""
        known = {origin_of(region) for region in self._device.metadata.regions(copy_id=ANY)}
        for origin in sorted(self._keeper.snapshots.regions.keys() - known):
            self._begin_to_forget(origin)

    def _begin_to_forget(self, origin: str) -> Forgetting:
        """At most once at a time."""
        task = self._forgetting.get(origin)
        if task is None:
            task = self._forgetting[origin] = self.context.spawn(self._forget(origin), name=f"forget {origin}")
            task.add_done_callback(lambda _: self._forgetting.pop(origin))
        return task

    async def _forget(self, origin: str) -> EverramError | None:
        """What kept it from its end: it is tried again when its name is wanted, and by the next host."""
        try:
            async with self._forgets:
                await self._keeper.forget_origin(origin)
        except EverramError as error:
            self.context.log.error("the snapshots of %s, which is gone, are not removed: %s", origin, error.message)
            return error
        return None

    # -- regions

    def create_regions(self, request: nvm.CreateRegionsRequest) -> Awaitable[nvm.RegionSet]:
        return self.context.later(self._in_order(self._create_regions, request))

    async def _in_order(self, act: Callable[[RequestT], Awaitable[T]], request: RequestT) -> T:
        """Raises Unavailable while memory is saved: nothing shall be made when its asker has long gone."""
        self._keeper.check_may_go_on()
        async with self._keeper.changing:
            self._keeper.check_may_go_on()
            return await act(request)

    def _plan(self, request: nvm.CreateRegionsRequest) -> Plan:
        """Raises Unavailable while there are snapshots of an earlier region of the same name, which it would get; if
        their removal has failed it begins again."""
        plan = self._device.plan(request)
        for region in plan.regions:
            if (origin := origin_of(region)) in self._keeper.snapshots.regions:
                self._begin_to_forget(origin)
                raise Unavailable(f"snapshots of an earlier region {region.name} are still being removed: try again")
        return plan

    async def _create_regions(self, request: nvm.CreateRegionsRequest) -> nvm.RegionSet:
        plan = self._plan(request)
        await self._make(plan, lambda: self._device.metadata.add(plan.regions, plan.log))
        found = self._found(request.guest_id, request.copy_id)
        if plan.log:
            found.log = plan.log.memory
        return found

    def adopt_copy(self, request: nvm.AdoptRequest) -> Awaitable[nvm.RegionSet]:
        return self.context.later(self._in_order(self._adopt_copy, request))

    async def _adopt_copy(self, request: nvm.AdoptRequest) -> nvm.RegionSet:
        """One commit makes the copy's regions the guest's own, beside a log that goes on where the copy ends.

        What the guest had here of its own before goes first: it would have the same names, and whoever has a copy
        adopted has decided that it is the copy that counts.
        """
        guest_id, copy_id = request.guest_id, request.copy_id
        plan = self._device.plan_adoption(request)
        if plan is not None and plan.log is not None:
            await self._take_away(guest_id, OWN)
            logs = [log.memory for log in self._device.metadata.logs(guest_id, copy_id)]
            log = plan.log
            await self._make(plan, lambda: self._device.metadata.replace(guest_id, copy_id, plan.regions, log))
            for region in plan.regions:
                self._keeper.add_old_pages(region)
            for name in logs:
                await self._memory.remove(name)
            self._budget.promise(self._device.promised_bytes())
        return self._found(guest_id, OWN)

    def list_regions(self, request: nvm.RegionFilter) -> nvm.RegionSet:
        check_filter(request)
        return self._found(request.guest_id, request.copy_id, request.log_id)

    def remove_regions(self, request: nvm.RegionFilter) -> Awaitable[pb.Empty]:
        """What the filter names, of one guest, snapshots included; nothing to do where there is nothing."""
        if not request.guest_id:
            raise InvalidArgument("whose regions are to be removed? give a guest_id")
        check_filter(request)
        return self.context.later(self._remove_regions(request))

    async def _remove_regions(self, request: nvm.RegionFilter) -> pb.Empty:
        if self._keeper.is_quiet and not self._device.object_names(request.guest_id, request.copy_id):
            return pb.Empty()  # and nothing is being made that would have to be waited for
        going: list[Forgetting] = []
        async with self._keeper.changing:
            if not request.log_id:
                going = await self._take_away(request.guest_id, request.copy_id)
            elif log := self._device.metadata.log(request.guest_id, request.copy_id, request.log_id):
                self._device.metadata.remove_log(request.guest_id, request.copy_id, request.log_id)
                await self._memory.remove(log.memory)
            self._budget.promise(self._device.promised_bytes())
        return await self._forgotten(going)

    async def _forgotten(self, going: Iterable[Forgetting]) -> pb.Empty:
        for task in going:
            if (error := await task) is not None:
                raise error
        return pb.Empty()

    def status(self, request: pb.Empty) -> Awaitable[nvm.NvmStatus]:
        return self.context.later(self._status())

    async def _status(self) -> nvm.NvmStatus:
        media, purging = self._keeper.snapshots.media, self._keeper.purger.status()
        status = nvm.NvmStatus(
            capacity_bytes=self._capacity_bytes,
            allocated_bytes=self._device.allocated_bytes(),
            regions=len(self._device.metadata.regions(copy_id=ANY)),
            snapshots=sum(len(self._keeper.snapshots.of(origin)) for origin in self._keeper.snapshots.regions),
            store_bytes=media.store.taken * PAGE_BYTES,
            metadata_bytes=media.pages.taken * PAGE_BYTES,
            storage_bytes=media.storage.taken * PAGE_BYTES,
            storage_capacity_bytes=self._storage_bytes,
            waiting_writers=self._keeper.waiting_pages,
            untracked_guests=await self._untracked_guests(),
        )
        if self._keeper.damaged:
            status.warning = next(iter(self._keeper.damaged.values()))
        elif status.waiting_writers:
            status.warning = (
                f"writers of {status.waiting_writers} pages wait until there is room for what snapshots need of them: "
                "remove snapshots (`everram region rm REGION@SNAP`), or start the machine with more --nvm"
            )
        elif self._keeper.trouble:
            status.warning = f"a reversion does not go on: {self._keeper.trouble}"
        elif purging.trouble:
            status.warning = f"old blocks are not purged: {purging.trouble}"
        elif self._budget.free_part < purging.low_mark:
            status.warning = f"only {size_text(self._budget.free_bytes)} of {size_text(self._capacity_bytes)} are free"
        elif status.untracked_guests:
            guests = "1 guest" if status.untracked_guests == 1 else f"{status.untracked_guests} guests"
            status.warning = (
                f"{guests} could not make a userfaultfd, though this host can: their stores are not tracked, and a "
                "snapshot copies their regions whole while they stand still"
            )
        return status

    async def _untracked_guests(self) -> int:
        """Attached ones of which nobody sees the stores, though this host could (D13)."""
        writers = self._writers
        if writers is None:
            return 0
        regions = self._device.metadata.regions()
        unseen = {one.guest_id for one in regions if not writers.is_served(one.guest_id, one.name)}
        processes = await self.context.environment.machine.guests() if unseen else []
        return sum(process.attached_pid > 0 and process.guest_id in unseen for process in processes)

    async def _make(self, plan: Plan, commit: Callable[[], object]) -> None:
        async with self._making(plan):
            commit()

    @asynccontextmanager
    async def _making(self, plan: Plan) -> AsyncIterator[None]:
        """The plan's memory objects are there, to be filled and committed; if anything fails there is nothing of it."""
        made: list[str] = []
        try:
            for name, size_bytes in plan.objects():
                await self._memory.create(name, size_bytes)
                made.append(name)
            _format(plan, self._memory)
            yield
        except EverramError:
            for name in reversed(made):
                await self._memory.remove(name)
            raise
        self._budget.promise(self._device.promised_bytes())

    async def _take_away(self, guest_id: str, copy_id: str) -> list[Forgetting]:
        """What forgets the snapshots; everything else is gone when this returns."""
        names = self._device.object_names(guest_id, copy_id)
        regions = self._device.metadata.regions(guest_id, copy_id)
        if names:
            self._device.metadata.remove(guest_id, copy_id)
        return await self._taken_away(regions, names)

    async def _taken_away(self, regions: Sequence[pb.Region], names: Iterable[str]) -> list[Forgetting]:
        """Regions that are in the metadata no more: `names` are their memory objects. Nobody but who asks for it has to
        wait until their snapshots are removed, too."""
        for region in regions:
            await self._keeper.let_go(region)
        known = self._keeper.snapshots.regions
        going = [self._begin_to_forget(origin) for region in regions if (origin := origin_of(region)) in known]
        for name in names:
            await self._memory.remove(name)
        return going

    def _found(self, guest_id: str, copy_id: str, log_id: str = "") -> nvm.RegionSet:
        metadata = self._device.metadata
        regions = [] if log_id else [self._seen(region) for region in metadata.regions(guest_id, copy_id)]
        logs = metadata.logs(guest_id, copy_id, log_id)
        if not guest_id:
            guest_ids = {region.guest_id for region in regions} | {log.guest_id for log in logs}
            return nvm.RegionSet(regions=regions, guest_ids=sorted(guest_ids), logs=logs)
        log = metadata.log(guest_id) if copy_id in (OWN, ANY) else (logs[0] if len(logs) == 1 else None)
        return nvm.RegionSet(regions=regions, log=log.memory if log else "", logs=logs)

    def _seen(self, region: pb.Region) -> pb.Region:
        if not self._keeper.is_reverting(region):
            return region
        seen = pb.Region()
        seen.CopyFrom(region)
        seen.reverting = True
        return seen

    # -- snapshots

    def snapshot(self, request: nvm.SnapshotRequest) -> Awaitable[nvm.SnapshotList]:
        check_snapshot_name(request.name)
        named = {(one.guest_id, one.region) for one in request.regions}
        if not named:
            raise InvalidArgument("a snapshot of which regions?")
        return self.context.later(self._snapshot(sorted(named), request.name))

    async def _snapshot(self, named: Sequence[tuple[str, str]], name: str) -> nvm.SnapshotList:
        def find() -> list[pb.Region]:
            return [self._region(*one) for one in named]

        records = await self._keeper.take(find, name)
        return nvm.SnapshotList(
            snapshots=[_told(guest_id, region, one) for (guest_id, region), one in zip(named, records, strict=True)]
        )

    def snapshots(self, request: nvm.SnapshotFilter) -> Awaitable[nvm.SnapshotList]:
        return self.context.later(self._snapshots(request))

    async def _snapshots(self, request: nvm.SnapshotFilter) -> nvm.SnapshotList:
        answer = nvm.SnapshotList()
        now = standing(self._keeper.snapshots) if request.usage else self._keeper.snapshots
        for region in self._device.metadata.regions(request.guest_id):
            if request.region not in ("", region.name):
                continue
            for record in reversed(now.of(origin_of(region))):
                told = answer.snapshots.add()
                told.CopyFrom(_told(region.guest_id, region.name, record))
                if request.usage:
                    _count(told, await in_turns(accounting.usage_in_turns(now, record)))
        return answer

    def follow_operation(self, request: nvm.CopyOperation) -> Awaitable[pb.Empty]:
        # None is taken after its asker has gone, who may have applied what follows: the snapshot would hold that, too.
        return self.context.later(self._follow_operation(request), cancellable=request.type != RecordType.DELETE)

    async def _follow_operation(self, request: nvm.CopyOperation) -> pb.Empty:
        """What was done before is no error: the host may have died just after it. A name can be given again, so what a
        record means is the snapshot of that time."""
        regions = self._copied(request)
        of_that_name = [
            (region, record)
            for region in regions
            for record in self._keeper.snapshots.of(origin_of(region))
            if record.name == request.what.name
        ]
        meant = [(region, one) for region, one in of_that_name if one.created_ns == request.what.created_ns]
        if request.type == RecordType.DELETE:
            if meant:
                await self._keeper.begin_removal([record for _, record in meant])
            return pb.Empty()
        known = {region.name for region, _ in meant}
        # Nobody had told of the removal of the others, but another has the name now.
        if outlived := [record for region, record in of_that_name if region.name not in known]:
            await self._keeper.begin_removal(outlived)
        if missing := [region for region in self._copied(request) if region.name not in known]:
            try:
                self._keeper.take_copy(missing, request.what, request.epoch, request.lsn)
            except ResourceExhausted:
                if not await self._keeper.removals_end([origin_of(region) for region in missing]):
                    raise
                self._keeper.take_copy(missing, request.what, request.epoch, request.lsn)
        return pb.Empty()

    def give_up_copy_snapshots(self, request: nvm.RegionFilter) -> Awaitable[nvm.SnapshotNames]:
        # Not after its asker has gone: the copy may be its guest's own memory by then, or have the room.
        return self.context.later(self._give_up_copy_snapshots(request), cancellable=True)

    async def _give_up_copy_snapshots(self, request: nvm.RegionFilter) -> nvm.SnapshotNames:
        """Of many some now, and the others when it is asked again."""
        if not request.guest_id or request.copy_id in (OWN, ANY):
            raise InvalidArgument("snapshots of one copy are given up: name its guest_id and its copy_id")
        answer = nvm.SnapshotNames()
        for region in self._device.metadata.regions(request.guest_id, request.copy_id):
            try:
                given_up = await self._keeper.give_up(origin_of(region))
            except (ResourceExhausted, Unavailable):
                if not answer.snapshots:
                    raise
                break  # each takes something before it gives back
            for record in given_up:
                answer.snapshots.add(
                    guest_id=region.guest_id, region=region.name, name=record.name, sequence=record.sequence
                )
        if names := ", ".join(sorted({one.name for one in answer.snapshots})):
            self.context.log.about(guest=request.guest_id).warning(
                "the copy of guest %s gives up its snapshots (%s): there is no room beside them",
                request.guest_id,
                names,
            )
        return answer

    def _copied(self, request: nvm.CopyOperation) -> list[pb.Region]:
        """The regions of a copy that an operation names. Raises NotFound."""
        named = set(request.what.regions)
        regions = [one for one in self._device.metadata.regions(request.guest_id, request.copy_id) if one.name in named]
        if len(regions) != len(named) or not named:
            raise NotFound(f"copy {request.copy_id} of guest {request.guest_id} has not all of {', '.join(named)}")
        return regions

    def remove_snapshots(self, request: nvm.SnapshotNames) -> Awaitable[nvm.Freed]:
        return self.context.later(self._remove_snapshots(self._records(request)))

    async def _remove_snapshots(self, records: Sequence[Record]) -> nvm.Freed:
        freed = await self._preview(records)
        live = [record for record in records if record.state is not State.DELETING]
        of_origin = [(self._keeper.snapshots.region_of(record).record.name, record) for record in live]

        def find() -> list[tuple[pb.Region, Record]]:
            """Those whose regions are still there."""
            by_origin = {origin_of(region): region for region in self._device.metadata.regions()}
            return [(by_origin[origin], record) for origin, record in of_origin if origin in by_origin]

        await self._keeper.remove_everywhere(find, records)
        return freed

    def preview_removal(self, request: nvm.SnapshotNames) -> Awaitable[nvm.Freed]:
        return self.context.later(self._preview(self._records(request)))

    async def _preview(self, records: Iterable[Record]) -> nvm.Freed:
        now = standing(self._keeper.snapshots)
        by_region: dict[int, list[Record]] = {}
        for record in records:
            by_region.setdefault(record.region, []).append(now.records[record.sequence])
        freed = nvm.Freed()
        for some in by_region.values():
            found = await in_turns(accounting.preview_in_turns(now, some))
            freed.memory_bytes += found.memory_bytes
            freed.storage_bytes += found.storage_bytes
        return freed

    def read_snapshot(self, request: nvm.ReadSnapshotRequest) -> Awaitable[nvm.SnapshotData]:
        if not 0 < request.length <= READ_BYTES_MAX:
            raise InvalidArgument(f"{request.length} bytes at once cannot be read: 1 to {READ_BYTES_MAX}")
        return self.context.later(self._read(self._record(request.snapshot), request.offset, request.length))

    async def _read(self, record: Record, offset: int, length: int) -> nvm.SnapshotData:
        return nvm.SnapshotData(data=await self._keeper.read(record, offset, length))

    def check_snapshot(self, request: nvm.SnapshotName) -> nvm.SnapshotRecord:
        return _told(request.guest_id, request.region, self._record(request))

    def revert(self, request: nvm.SnapshotName) -> Awaitable[pb.Empty]:
        return self.context.later(self._revert(request, self._record(request)))

    async def _revert(self, request: nvm.SnapshotName, record: Record) -> pb.Empty:
        def find() -> pb.Region:
            region = self._region(request.guest_id, request.region)
            if region.arena in self._growing:
                raise FailedPrecondition(f"region {region.name} is being made longer: wait until that has ended")
            return region

        await self._keeper.revert(find, record)
        return pb.Empty()

    def clone_snapshot(self, request: nvm.CloneRequest) -> Awaitable[pb.Region]:
        return self.context.later(self._clone(request))

    async def _clone(self, request: nvm.CloneRequest) -> pb.Region:
        """A region of its own, with the snapshot's content: filled before anything names it."""
        self._keeper.check_may_go_on()
        record = self._record(request.snapshot)

        def planned() -> Plan:
            source = self._region(request.snapshot.guest_id, request.snapshot.region)
            spec = pb.RegionSpec(name=request.name, size_bytes=record.size_bytes, kind=source.kind)
            return self._plan(nvm.CreateRegionsRequest(guest_id=source.guest_id, regions=[spec]))

        plan = planned()
        with self._guard.exposed(plan.regions[0].arena):
            async with self._making(plan):
                await self._keeper.fill(record, self._memory.open(plan.regions[0].arena))
                async with self._keeper.changing:
                    # Once more: that took a while, and others may have the room or the name, or it is gone.
                    plan = planned()
                    self._device.metadata.add(plan.regions, None)
        return plan.regions[0]

    def grow_region(self, request: nvm.GrowRequest) -> Awaitable[pb.Region]:
        return self.context.later(self._in_order(self._grow_region, request))

    async def _grow_region(self, request: nvm.GrowRequest) -> pb.Region:
        """A longer memory object with the same content takes the place of the old one, for snapshots too."""
        old = self._region(request.region.guest_id, request.region.region)
        if self._keeper.is_reverting(old):
            raise FailedPrecondition(f"region {old.name} is being reverted: wait until that has ended")
        new = self._device.plan_growth(old, request.size_bytes)
        self._guard.expose(new.arena)
        self._growing.add(old.arena)
        try:
            target = await self._memory.create(new.arena, new.size_bytes)
            source = self._memory.open(old.arena)
            for offset, length in source.extents():
                for at in range(offset, offset + length, READ_BYTES_MAX):
                    self._keeper.check_may_go_on()
                    target.write(at, source.read(at, min(READ_BYTES_MAX, offset + length - at)))
                    await asyncio.sleep(0)
            if (
                old.tracked
            ):  # before it is too short: a host that dies meanwhile leaves its successor none, or the right one
                await self._memory.remove(table_name(old.guest_id, old.name))
            if old.keeps_old:
                self._keeper.forget_old_pages(old)
                await self._memory.remove(old_pages_name(old.guest_id, old.name))
            self._device.metadata.add((new,), None)
        except EverramError:
            await self._make_tables((old,))
            self._keeper.add_old_pages(old)
            await self._memory.remove(new.arena)
            raise
        finally:
            self._growing.discard(old.arena)
            self._guard.cover(new.arena)
        self._keeper.lies_in(new)
        await self._memory.remove(old.arena)
        await self._make_tables((new,))
        self._keeper.add_old_pages(new)
        self._budget.promise(self._device.promised_bytes())
        return new

    async def _make_tables(self, regions: Iterable[pb.Region]) -> None:
        """What lies beside a region and has to fit it. Page tables: nobody has touched any page since tracking began.
        Old pages: everything is needed still."""
        for region in regions:
            await self._make_old_pages(region)
            name, pages = table_name(region.guest_id, region.name), pages_of(region)
            if not region.tracked or _is_table(self._memory, name, pages):
                continue
            if name in self._memory.names():
                await self._memory.remove(name)
            mapping = (await self._memory.create(name, PageTable.total_bytes(pages))).map()
            PageTable.format(mapping, pages)
            mapping.close()

    async def _make_old_pages(self, region: pb.Region) -> None:
        name, pages = old_pages_name(region.guest_id, region.name), pages_of(region)
        if not region.keeps_old or _is_old_pages(self._memory, name, pages):
            return
        if name in self._memory.names():
            await self._memory.remove(name)
        mapping = (await self._memory.create(name, OldPages.total_bytes(pages))).map()
        OldPages.format(mapping, pages, armed=True)
        mapping.close()

    def remove_region(self, request: nvm.RegionName) -> Awaitable[pb.Empty]:
        return self.context.later(self._remove_region(request))

    async def _remove_region(self, request: nvm.RegionName) -> pb.Empty:
        async with self._keeper.changing:
            regions = tuple(r for r in self._device.metadata.regions(request.guest_id) if r.name == request.region)
            names = [name for name, _ in Plan(regions, None).objects()]
            for region in regions:
                self._device.metadata.remove_region(region)
            going = await self._taken_away(regions, names)
            self._budget.promise(self._device.promised_bytes())
        return await self._forgotten(going)

    # -- purging and checking

    def purge(self, request: nvm.PurgeRequest) -> Awaitable[nvm.PurgeStatus]:
        return self.context.later(self._purge(request))

    async def _purge(self, request: nvm.PurgeRequest) -> nvm.PurgeStatus:
        purger = self._keeper.purger
        old_enough = purger.older_than(request.older_than_s) if request.older_than_s else everything
        regions = self._device.metadata.regions(request.guest_id)
        origins = {origin_of(region) for region in regions if request.region in ("", region.name)}

        def wanted(record: Record) -> bool:
            return self._keeper.snapshots.region_of(record).record.name in origins and old_enough(record)

        await purger.purge(wanted)
        return purger.status()

    def control_purge(self, request: nvm.PurgeControl) -> nvm.PurgeStatus:
        return self._keeper.purger.control(request)

    def check(self, request: pb.Empty) -> Awaitable[nvm.Findings]:
        return self.context.later(self._check())

    async def _check(self) -> nvm.Findings:
        try:
            findings, reached = await in_turns(checking.check_in_turns(standing(self._keeper.snapshots)))
        except DataLoss as error:
            return nvm.Findings(findings=[error.message])
        findings += await self._keeper.verify(reached.slots)
        return nvm.Findings(findings=findings, blocks=len(reached.named))

    def quiesce(self, request: nvm.QuiesceMoves) -> Awaitable[pb.Empty]:
        return self.context.later(self._quiesce(request))

    async def _quiesce(self, request: nvm.QuiesceMoves) -> pb.Empty:
        await self._keeper.quiesce(request.on)
        return pb.Empty()

    # -- finding

    def _region(self, guest_id: str, name: str) -> pb.Region:
        """Raises NotFound."""
        for region in self._device.metadata.regions(guest_id) if guest_id else ():
            if region.name == name:
                return region
        raise NotFound(f"guest {guest_id} has no region {name!r} here: `everram region ls` lists them all")

    def _region_of(self, origin: str) -> pb.Region | None:
        regions = self._device.metadata.regions(copy_id=ANY)
        return next((region for region in regions if origin_of(region) == origin), None)

    def _record(self, named: nvm.SnapshotName) -> Record:
        """Raises NotFound."""
        record = self._keeper.snapshots.find(origin_of(self._region(named.guest_id, named.region)), named.name)
        if named.sequence not in (0, record.sequence):
            raise NotFound(f"snapshot {named.name!r} of {named.region} was removed, and another has its name now")
        return record

    def _records(self, request: nvm.SnapshotNames) -> list[Record]:
        if not request.snapshots:
            raise InvalidArgument("which snapshots?")
        return list({id(record): record for record in map(self._record, request.snapshots)}.values())


def _told(guest_id: str, region: str, record: Record) -> nvm.SnapshotRecord:
    return nvm.SnapshotRecord(
        guest_id=guest_id,
        region=region,
        name=record.name,
        sequence=record.sequence,
        parent=record.parent,
        size_bytes=record.size_bytes,
        created_ns=record.created_ns,
        epoch=record.epoch,
        lsn=record.lsn,
    )


def _count(told: nvm.SnapshotRecord, usage: accounting.Usage) -> None:
    told.named_bytes, told.owned_bytes = usage.named_bytes, usage.owned_bytes
    told.shared_bytes, told.purged_bytes = usage.shared_bytes, usage.purged_bytes


def _is_table(memory: Memory, name: str, pages: int) -> bool:
    """Not what a host has left that died as it made it, or before it made the longer one."""
    if name not in memory.names():
        return False
    mapping = memory.open(name).map()
    try:
        return PageTable.open(mapping).pages == pages
    except DataLoss:
        return bool(mapping.load(STATES_OFFSET, mapping.size_bytes - STATES_OFFSET).strip(b"\0"))
    finally:
        mapping.close()


def _is_old_pages(memory: Memory, name: str, pages: int) -> bool:
    """Not what a host has left that died as it made it, or before it made the longer one. A damaged one is one: what
    it holds may be needed, so somebody has to be told."""
    if name not in memory.names():
        return False
    mapping = memory.open(name).map()
    try:
        return bool(mapping.load_u64(0)) and OldPages.open(mapping).pages == pages
    except DataLoss:
        return True
    finally:
        mapping.close()


def _format(plan: Plan, memory: Memory) -> None:
    """Give fresh memory objects their headers; the hypervisor begins the log's next epoch."""
    if log := plan.log:
        mapping = memory.open(log.memory).map()
        Ring.format(
            mapping,
            guest_id=log.guest_id,
            epoch=plan.log_epoch,
            capacity_bytes=log.capacity_bytes,
            start=plan.log_start,
        )
        mapping.close()
    for region in plan.regions:
        if region.tracked:
            mapping = memory.open(table_name(region.guest_id, region.name)).map()
            PageTable.format(mapping, pages_of(region))
            mapping.close()
        if region.keeps_old:
            mapping = memory.open(old_pages_name(region.guest_id, region.name)).map()
            OldPages.format(mapping, pages_of(region), armed=plan.adopted)  # what was a copy may have snapshots
            mapping.close()
