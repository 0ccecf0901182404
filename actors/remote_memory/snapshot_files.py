"""`/snapshots/GUEST/REGION/SNAPSHOT` of a mount: what the snapshots of this host's guests hold, to be read only.

    snapshots = SnapshotFiles(guests, lambda: context.ref(NvmDeviceRef))
    taken = await snapshots.lookup("snapshots:ID/accounts", "before")
    file = await snapshots.open(taken.key)              # "snapshot:ID/accounts/before/SEQUENCE"
    await file.read(0, 4096)

Bytes come from wherever the NVM device has them by then: the region, the store of old blocks, or the disk. They never
change, nor do size and time, so the kernel may keep the attributes. A snapshot that was removed is stale for whoever
has it open, also when another has been given its name: a key names the one by its sequence.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everram.actors.remote_memory.views import TOP_VALID_NS, Guests, View, folder
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import ReadSnapshotRequest, SnapshotFilter, SnapshotName, SnapshotRecord
from everram.runtime.errors import NotFound
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Attributes, Entry, Kind

SNAPSHOTS, FOLDER, SNAPSHOT = "snapshots", "snapshots:", "snapshot:"
READ_TIMEOUT_S = 30.0
"""Of 1 MiB, the most that the kernel asks for at a time: 256 places on a disk that may be busy with a purge."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """An open snapshot: `ViewedFile`."""

    device: Callable[[], NvmDeviceRef]
    named: SnapshotName

    async def read(self, offset: int, size: int) -> bytes:
        """Raises FuseError(ESTALE) once it is removed, DataLoss where storage has lost the bytes."""
        request = ReadSnapshotRequest(snapshot=self.named, offset=offset, length=size)
        try:
            return (await self.device().read_snapshot(request, timeout_s=READ_TIMEOUT_S)).data
        except NotFound:
            raise FuseError(errno.ESTALE) from None


class SnapshotFiles(View):
    """See the module. `device` gives the ref to this host's."""

    def __init__(self, guests: Guests, device: Callable[[], NvmDeviceRef]) -> None:
        self._guests, self._device = guests, device

    def has(self, key: str) -> bool:
        return key == SNAPSHOTS or key.startswith((FOLDER, SNAPSHOT))

    async def lookup(self, parent: str, name: str) -> Attributes:
        guest_id, _, region = parent.removeprefix(FOLDER).partition("/")
        if not region:
            return await super().lookup(parent, name)
        try:  # without a look at the others, of which there may be a thousand
            named = SnapshotName(guest_id=guest_id, region=region, name=name)
            return _attributes(await self._device().check_snapshot(named))
        except NotFound:
            raise FuseError(errno.ENOENT) from None

    async def entries(self, key: str) -> Sequence[Entry]:
        if key == SNAPSHOTS:
            return [Entry(guest.name, Kind.FOLDER, FOLDER + guest.guest_id) for guest in await self._guests.all()]
        guest_id, _, region = key.removeprefix(FOLDER).partition("/")
        if not region:
            regions = (await self._guests.find(guest_id)).regions
            return [Entry(one.name, Kind.FOLDER, f"{key}/{one.name}") for one in regions]
        await self._guests.region(guest_id, region)
        taken = await self._device().snapshots(SnapshotFilter(guest_id=guest_id, region=region))
        return [Entry(one.name, Kind.FILE, _key(one)) for one in taken.snapshots]

    async def attributes(self, key: str) -> Attributes:
        if key.startswith(SNAPSHOT):
            return _attributes(await self._record(key))
        guest_id, _, region = key.removeprefix(FOLDER).partition("/")
        if region:
            await self._guests.region(guest_id, region)
        elif key != SNAPSHOTS:
            await self._guests.find(guest_id)
        return folder(key)

    async def open(self, key: str) -> SnapshotFile:
        """Raises FuseError(ESTALE): so the kernel looks up the name once more."""
        await self._record(key)
        return SnapshotFile(self._device, _named(key))

    async def _record(self, key: str) -> SnapshotRecord:
        try:
            return await self._device().check_snapshot(_named(key))
        except NotFound:
            raise FuseError(errno.ESTALE) from None


def _key(record: SnapshotRecord) -> str:
    """At most 9 + 16 + 63 + 63 + 20 bytes, and three slashes."""
    return f"{SNAPSHOT}{record.guest_id}/{record.region}/{record.name}/{record.sequence}"


def _named(key: str) -> SnapshotName:
    guest_id, region, name, sequence = key.removeprefix(SNAPSHOT).split("/")
    return SnapshotName(guest_id=guest_id, region=region, name=name, sequence=int(sequence))


def _attributes(record: SnapshotRecord) -> Attributes:
    return Attributes(
        key=_key(record),
        kind=Kind.FILE,
        mode=0o444,
        size_bytes=record.size_bytes,
        allocated_bytes=record.size_bytes,
        accessed_ns=record.created_ns,
        modified_ns=record.created_ns,
        changed_ns=record.created_ns,
        valid_ns=TOP_VALID_NS,
    )
