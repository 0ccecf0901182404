"""The NVM device's actor: makes and removes the memory objects that `device` decided on, and keeps its metadata."""

from __future__ import annotations

from everram.actors.nvm_device.device import Device, Plan, pages_of
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.nvm_device_contract import NvmDeviceActor
from everram.runtime.environment import Memory
from everram.runtime.errors import EverramError, InvalidArgument
from everram.runtime.formats.nvm import MEMORY_BYTES, MEMORY_NAME, Metadata
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
        for guest_id in _guest_ids(metadata):
            for name in self._device.object_names(guest_id):
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
        plan = self._device.plan(request.guest_id, request.regions, request.log_bytes)
        made: list[str] = []
        try:
            for name, size_bytes in plan.objects():
                await self._memory.create(name, size_bytes)
                made.append(name)
            _format(plan, self._memory)
            self._device.metadata.add(plan.regions, plan.log)
        except EverramError:
            for name in reversed(made):
                await self._memory.remove(name)
            raise
        return self._set_of(request.guest_id)

    def list_regions(self, request: nvm.RegionFilter) -> nvm.RegionSet:
        return self._set_of(request.guest_id)

    async def remove_regions(self, request: nvm.RegionFilter) -> pb.Empty:
        """All of a guest's regions and its log; nothing to do for a guest that has none."""
        if not request.guest_id:
            raise InvalidArgument("whose regions are to be removed? give a guest_id")
        names = self._device.object_names(request.guest_id)
        if names:
            self._device.metadata.remove_guest(request.guest_id)
        for name in names:
            await self._memory.remove(name)
        return pb.Empty()

    def status(self, request: pb.Empty) -> nvm.NvmStatus:
        return nvm.NvmStatus(
            capacity_bytes=self._capacity_bytes,
            allocated_bytes=self._device.allocated_bytes(),
            regions=len(self._device.metadata.regions()),
        )

    def _set_of(self, guest_id: str) -> nvm.RegionSet:
        metadata = self._device.metadata
        log = metadata.log(guest_id)
        return nvm.RegionSet(
            regions=metadata.regions(guest_id),
            log=log.memory if log else "",
            guest_ids=() if guest_id else _guest_ids(metadata),
        )


def _guest_ids(metadata: Metadata) -> list[str]:
    return sorted({region.guest_id for region in metadata.regions()} | {log.guest_id for log in metadata.logs()})


def _format(plan: Plan, memory: Memory) -> None:
    """Give fresh memory objects their headers; the hypervisor begins the log's first epoch."""
    if plan.log:
        mapping = memory.open(plan.log.memory).map()
        Ring.format(mapping, guest_id=plan.log.guest_id, epoch=0, capacity_bytes=plan.log.capacity_bytes)
        mapping.close()
    for region in plan.regions:
        if region.tracked:
            mapping = memory.open(table_name(region.guest_id, region.name)).map()
            PageTable.format(mapping, pages_of(region))
            mapping.close()
