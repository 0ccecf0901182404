"""Changes of a guest's regions that its log does not carry: reverting, cloning, adding, growing, dropping.

The guest is stopped for all but cloning. Before anything changes its regions get a new generation, durably, so that no
copy on another host goes on from regions that are not the same any more: it is built anew, and until then the one from
before the change counts, which is a state that the guest has had.
"""

from __future__ import annotations

from everram.actors.hypervisor.household import GRACE_S, Household
from everram.actors.hypervisor.life import ENDED
from everram.actors.hypervisor.resident import Resident
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_pb2 import RegionAct
from everram.runtime.contracts.nvm_device_pb2 import (
    CloneRequest,
    CreateRegionsRequest,
    GrowRequest,
    RegionFilter,
    RegionName,
    SnapshotName,
)
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, NotFound

MOVE_TIMEOUT_S = 600.0
"""Of what copies a region's content."""


class RegionChanges:
    """See the module."""

    def __init__(self, house: Household) -> None:
        self._house = house

    async def revert(self, resident: Resident, act: RegionAct) -> pb.Guest:
        """Raises NotFound, FailedPrecondition; then the guest has not been stopped, or runs again."""
        region, guest = self._region(resident, act.region), resident.guest
        named = SnapshotName(guest_id=guest.guest_id, region=region.name, name=act.snapshot)
        await self._house.nvm.check_snapshot(named)
        ran = guest.state not in ENDED
        await self._house.stop(resident, GRACE_S)
        async with resident.changing:
            self._check_ended(resident)
            if ran:
                resident.become(
                    pb.RESTARTING, f"{region.name} is being reverted"
                )  # whoever comes after this host begins it
            try:
                await self._begin_change(resident)
                await self._house.nvm.revert(named, timeout_s=MOVE_TIMEOUT_S)
            finally:
                if ran:
                    await self._house.begin_or_fail(resident)
            return resident.stored()

    async def settle(self, guest: pb.Guest) -> None:
        """Bring a stored record to what the NVM device has, where a host died between the two: what was grown is known
        as it is now, what was being added or dropped goes."""
        if any(region.copy_id for region in guest.regions):
            return  # it is being taken over: what it has here of its own counts no more
        nvm = self._house.nvm
        own = {
            region.name: region for region in (await nvm.list_regions(RegionFilter(guest_id=guest.guest_id))).regions
        }
        changed = False
        for region in guest.regions:
            found = own.pop(region.name, None)
            if found is not None and (found.arena, found.size_bytes) != (region.arena, region.size_bytes):
                region.CopyFrom(found)
                region.ClearField("reverting")
                spec = next(spec for spec in guest.spec.regions if spec.name == region.name)
                spec.size_bytes, changed = found.size_bytes, True
        if changed:
            await self._house.vmemfs.put_guest(guest)
        for name in sorted(own):
            self._house.context.spawn(self._remove(guest.guest_id, name), name=f"remove {name} of {guest.name}")

    async def _remove(self, guest_id: str, name: str) -> None:
        try:
            await self._house.nvm.remove_region(RegionName(guest_id=guest_id, region=name), timeout_s=MOVE_TIMEOUT_S)
        except EverramError as error:
            self._house.context.log.about(guest=guest_id).error(
                "region %s, which no guest has, is not removed: %s", name, error.message
            )

    async def clone(self, resident: Resident, act: RegionAct) -> pb.Guest:
        """Raises NotFound, AlreadyExists, InvalidArgument, ResourceExhausted."""
        guest = resident.guest
        source = SnapshotName(guest_id=guest.guest_id, region=act.region, name=act.snapshot)
        async with resident.changing:
            await self._begin_change(resident)
            request = CloneRequest(snapshot=source, name=act.name)
            made = await self._house.nvm.clone_snapshot(request, timeout_s=MOVE_TIMEOUT_S)
            await self._add(resident, made)
            return resident.stored()

    async def add(self, resident: Resident, act: RegionAct) -> pb.Guest:
        """Raises AlreadyExists, InvalidArgument, ResourceExhausted, FailedPrecondition."""
        guest = resident.guest
        spec = pb.RegionSpec(name=act.region, size_bytes=act.size_bytes, kind=act.kind)
        async with resident.changing:
            self._check_ended(resident)
            await self._begin_change(resident)
            made = await self._house.nvm.create_regions(
                CreateRegionsRequest(guest_id=guest.guest_id, regions=[spec], log_bytes=guest.spec.log_bytes)
            )
            await self._add(resident, next(region for region in made.regions if region.name == act.region))
            return resident.stored()

    async def grow(self, resident: Resident, act: RegionAct) -> pb.Guest:
        """Raises NotFound, InvalidArgument for what would be shorter, ResourceExhausted, FailedPrecondition."""
        region = self._region(resident, act.region)
        if act.size_bytes <= region.size_bytes:
            raise InvalidArgument(f"region {region.name} has {region.size_bytes} bytes already: regions only grow")
        async with resident.changing:
            self._check_ended(resident)
            await self._begin_change(resident)
            named = RegionName(guest_id=resident.guest.guest_id, region=region.name)
            request = GrowRequest(region=named, size_bytes=act.size_bytes)
            region.CopyFrom(await self._house.nvm.grow_region(request, timeout_s=MOVE_TIMEOUT_S))
            _spec(resident, region.name).size_bytes = region.size_bytes
            await self._house.store(resident)
            return resident.stored()

    async def drop(self, resident: Resident, act: RegionAct) -> pb.Guest:
        """Raises NotFound, FailedPrecondition."""
        guest = resident.guest
        region = self._region(resident, act.region)
        async with resident.changing:
            self._check_ended(resident)
            await self._begin_change(resident)
            named = RegionName(guest_id=guest.guest_id, region=region.name)
            guest.spec.regions.remove(_spec(resident, region.name))
            guest.regions.remove(region)
            await self._house.store(resident)
            await self._house.nvm.remove_region(named, timeout_s=MOVE_TIMEOUT_S)
            return resident.stored()

    def _region(self, resident: Resident, name: str) -> pb.Region:
        """Raises NotFound."""
        for region in resident.guest.regions:
            if region.name == name:
                return region
        raise NotFound(f"guest {resident.guest.name} has no region {name!r}: `everram region ls` lists them all")

    def _check_ended(self, resident: Resident) -> None:
        guest = resident.guest
        if guest.state not in ENDED or not resident.process_gone.is_set():
            raise FailedPrecondition(f"{guest.name} runs: `everram stop {guest.name}` first")

    async def _begin_change(self, resident: Resident) -> None:
        resident.guest.regions_generation += 1
        await self._house.store(resident)

    async def _add(self, resident: Resident, made: pb.Region) -> None:
        """Last: the numbers of the others in the log stay as they are."""
        guest = resident.guest
        guest.regions.append(made)
        guest.spec.regions.append(pb.RegionSpec(name=made.name, size_bytes=made.size_bytes, kind=made.kind))
        await self._house.store(resident)


def _spec(resident: Resident, name: str) -> pb.RegionSpec:
    return next(spec for spec in resident.guest.spec.regions if spec.name == name)
