"""`/regions/GUEST/NAME` of a mount: the memory of the guests that this host has now, to be read only.

    regions = Regions(guests, environment.memory)
    bank = await regions.lookup("regions", "bank")      # its key is "guest:ID"
    file = await regions.open("region:ID/accounts")
    file.read(0, 4096)

Bytes are those of the running point as they are at that moment; a guest in the middle of a transaction may have stored
half of it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from everram.actors.remote_memory.views import Guests, View, folder
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.environment import Memory
from everram.runtime.errors import NotFound
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Attributes, Entry, Kind

REGIONS, GUEST, REGION = "regions", "guest:", "region:"


@dataclass(frozen=True, slots=True)
class RegionFile:
    """An open region: `ViewedFile`."""

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


class Regions(View):
    """See the module."""

    def __init__(self, guests: Guests, memory: Memory) -> None:
        self._guests, self._memory = guests, memory

    def has(self, key: str) -> bool:
        return key == REGIONS or key.startswith((GUEST, REGION))

    async def entries(self, key: str) -> Sequence[Entry]:
        if key == REGIONS:
            return [Entry(guest.name, Kind.FOLDER, GUEST + guest.guest_id) for guest in await self._guests.all()]
        guest = await self._guests.find(key.removeprefix(GUEST))
        prefix = f"{REGION}{guest.guest_id}/"
        return [Entry(region.name, Kind.FILE, prefix + region.name) for region in guest.regions]

    async def attributes(self, key: str) -> Attributes:
        if key.startswith(REGION):
            size_bytes = (await self._region(key)).size_bytes
            return Attributes(key, Kind.FILE, 0o444, size_bytes=size_bytes, allocated_bytes=size_bytes)
        if key.startswith(GUEST):
            await self._guests.find(key.removeprefix(GUEST))
        return folder(key)

    async def open(self, key: str) -> RegionFile:
        return RegionFile(self._memory, await self._region(key))

    async def _region(self, key: str) -> pb.Region:
        guest_id, _, name = key.removeprefix(REGION).partition("/")
        return await self._guests.region(guest_id, name)
