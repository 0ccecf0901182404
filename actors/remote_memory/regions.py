"""`/regions/GUEST/NAME` of a mount: the memory of the guests that this host has now, to be read only.

    regions = Regions(hypervisor, environment.memory)
    key = await regions.key("regions", "bank")          # "guest:ID"
    view = await regions.open("region:ID/accounts")
    view.read(0, 4096)

Bytes are those of the running point as they are at that moment; a guest in the middle of a transaction may have stored
half of it. Nothing is shown of guests of other hosts: their hosts show them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.environment import Memory
from everram.runtime.errors import NotFound
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Attributes, Entry, Kind

REGIONS, GUEST, REGION = "regions", "guest:", "region:"


@dataclass(frozen=True, slots=True)
class RegionView:
    """An open region."""

    memory: Memory
    region: pb.Region

    def read(self, offset: int, size: int) -> bytes:
        """Raises FuseError(ESTALE) once it is gone from this host."""
        try:
            memory = self.memory.open(self.region.arena)
        except NotFound:
            raise FuseError(errno.ESTALE) from None
        there = min(size, self.region.size_bytes - offset)
        return memory.read(offset, there) if there > 0 else b""


class Regions:
    """See the module. `hypervisor` gives the ref to this host's."""

    def __init__(self, hypervisor: Callable[[], HypervisorRef], memory: Memory) -> None:
        self._hypervisor, self._memory = hypervisor, memory

    async def key(self, parent: str, name: str) -> str:
        """Raises FuseError(ENOENT)."""
        for entry in await self.entries(parent):
            if entry.name == name:
                return entry.key
        raise FuseError(errno.ENOENT)

    async def entries(self, key: str) -> Sequence[Entry]:
        if key == REGIONS:
            guests = await self._guests()
            return [Entry(guest.name, Kind.FOLDER, GUEST + guest.guest_id) for guest in guests]
        guest = await self._guest(key.removeprefix(GUEST))
        prefix = f"{REGION}{guest.guest_id}/"
        return [Entry(region.name, Kind.FILE, prefix + region.name) for region in guest.regions]

    async def attributes(self, key: str) -> Attributes:
        if key.startswith(GUEST):
            await self._guest(key.removeprefix(GUEST))
            return Attributes(key, Kind.FOLDER, 0o555)
        region = await self._region(key)
        return Attributes(key, Kind.FILE, 0o444, size_bytes=region.size_bytes)

    async def open(self, key: str) -> RegionView:
        return RegionView(self._memory, await self._region(key))

    async def _guests(self) -> list[pb.Guest]:
        return sorted((await self._hypervisor().list(pb.Empty())).guests, key=lambda guest: guest.name)

    async def _guest(self, guest_id: str) -> pb.Guest:
        for guest in await self._guests():
            if guest.guest_id == guest_id:
                return guest
        raise FuseError(errno.ENOENT)

    async def _region(self, key: str) -> pb.Region:
        guest_id, _, name = key.removeprefix(REGION).partition("/")
        for region in (await self._guest(guest_id)).regions:
            if region.name == name:
                return region
        raise FuseError(errno.ENOENT)
