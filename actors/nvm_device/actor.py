"""The NVM device's actor: makes and removes the memory objects that `device` decided on, and keeps its metadata."""

from __future__ import annotations

from collections.abc import Callable

from everram.actors.nvm_device.device import Device, Plan, check_filter, pages_of
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.nvm_device_contract import NvmDeviceActor
from everram.runtime.environment import Memory
from everram.runtime.errors import EverramError, InvalidArgument
from everram.runtime.formats.nvm import ANY, MEMORY_BYTES, MEMORY_NAME, OWN, Metadata
from everram.runtime.formats.pages import PageTable, table_name
from everram.runtime.formats.slots import SlotArea
from everram.runtime.log.ring import Ring


class NvmDevice(NvmDeviceActor):
    """Regions within `capacity_bytes`; `tracking`: whether mapped regions get a page table to track their stores in."""

    def __init__(self, capacity_bytes: int, *, tracking: bool) -> None:
        self._capacity_bytes = capacity_bytes
        self._tracking = tracking

    async def on_start(self) -> None:
        self._memory = self.context.environment.memory
        metadata = await self._open_metadata()
        self._device = Device(metadata, self._capacity_bytes, tracking=self._tracking)
        present = set(self._memory.names())
        for name in self._device.orphans(sorted(present)):
            self.context.log.info("%s is not in the metadata: a host died while making or removing it; removed", name)
            await self._memory.remove(name)
        for name in self._device.object_names("", ANY):
            if name not in present:
                self.context.log.error("%s is in the metadata, but the machine does not have it", name)

    async def _open_metadata(self) -> Metadata:
        if MEMORY_NAME in self._memory.names():
            mapping = self._memory.open(MEMORY_NAME).map()
        else:
            mapping = (await self._memory.create(MEMORY_NAME, MEMORY_BYTES)).map()
        self.context.resources.callback(mapping.close)
        return Metadata.format(mapping) if SlotArea.is_blank(mapping) else Metadata.open(mapping)

    async def create_regions(self, request: nvm.CreateRegionsRequest) -> nvm.RegionSet:
        plan = self._device.plan(request)
        await self._make(plan, lambda: self._device.metadata.add(plan.regions, plan.log))
        found = self._found(request.guest_id, request.copy_id)
        if plan.log:
            found.log = plan.log.memory
        return found

    async def adopt_copy(self, request: nvm.AdoptRequest) -> nvm.RegionSet:
        """One commit makes the copy's regions the guest's own, beside a log that goes on where the copy ends.

        What the guest had here of its own before goes first: it would have the same names, and whoever has a copy
        adopted has decided that it is the copy that counts.
        """
        guest_id, copy_id = request.guest_id, request.copy_id
        plan = self._device.plan_adoption(request)
        if plan is not None and plan.log is not None:
            await self._remove(guest_id, OWN)
            logs = [log.memory for log in self._device.metadata.logs(guest_id, copy_id)]
            log = plan.log
            await self._make(plan, lambda: self._device.metadata.replace(guest_id, copy_id, plan.regions, log))
            for name in logs:
                await self._memory.remove(name)
        return self._found(guest_id, OWN)

    def list_regions(self, request: nvm.RegionFilter) -> nvm.RegionSet:
        check_filter(request)
        return self._found(request.guest_id, request.copy_id, request.log_id)

    async def remove_regions(self, request: nvm.RegionFilter) -> pb.Empty:
        """What the filter names, of one guest; nothing to do where there is nothing."""
        if not request.guest_id:
            raise InvalidArgument("whose regions are to be removed? give a guest_id")
        check_filter(request)
        if not request.log_id:
            await self._remove(request.guest_id, request.copy_id)
        elif log := self._device.metadata.log(request.guest_id, request.copy_id, request.log_id):
            self._device.metadata.remove_log(request.guest_id, request.copy_id, request.log_id)
            await self._memory.remove(log.memory)
        return pb.Empty()

    def status(self, request: pb.Empty) -> nvm.NvmStatus:
        return nvm.NvmStatus(
            capacity_bytes=self._capacity_bytes,
            allocated_bytes=self._device.allocated_bytes(),
            regions=len(self._device.metadata.regions(copy_id=ANY)),
        )

    async def _make(self, plan: Plan, commit: Callable[[], object]) -> None:
        """Make the plan's memory objects, then commit; if anything fails there is nothing of it."""
        made: list[str] = []
        try:
            for name, size_bytes in plan.objects():
                await self._memory.create(name, size_bytes)
                made.append(name)
            _format(plan, self._memory)
            commit()
        except EverramError:
            for name in reversed(made):
                await self._memory.remove(name)
            raise

    async def _remove(self, guest_id: str, copy_id: str) -> None:
        names = self._device.object_names(guest_id, copy_id)
        if names:
            self._device.metadata.remove(guest_id, copy_id)
        for name in names:
            await self._memory.remove(name)

    def _found(self, guest_id: str, copy_id: str, log_id: str = "") -> nvm.RegionSet:
        metadata = self._device.metadata
        regions = [] if log_id else metadata.regions(guest_id, copy_id)
        logs = metadata.logs(guest_id, copy_id, log_id)
        if not guest_id:
            guest_ids = {region.guest_id for region in regions} | {log.guest_id for log in logs}
            return nvm.RegionSet(regions=regions, guest_ids=sorted(guest_ids), logs=logs)
        log = metadata.log(guest_id) if copy_id in (OWN, ANY) else (logs[0] if len(logs) == 1 else None)
        return nvm.RegionSet(regions=regions, log=log.memory if log else "", logs=logs)


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
