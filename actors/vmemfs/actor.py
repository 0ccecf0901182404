"""VMemFS's actor: keeps, in memory that outlives the host, what the host's successor needs to go on.

In this version that is the superblock: a record of each guest, of each copy of another host's guest, and of the host.
Its files are the memory objects.
"""

from __future__ import annotations

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import vmemfs_pb2
from everram.runtime.contracts.replicator_pb2 import Copy, CopyList, GuestCopy
from everram.runtime.contracts.vmemfs_contract import VMemFSActor
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.errors import InvalidArgument
from everram.runtime.formats.slots import SlotArea
from everram.runtime.formats.vmemfs import MEMORY_BYTES, MEMORY_NAME, Superblock
from everram.runtime.memory.contract import Mapping


class VMemFS(VMemFSActor):
    """Opens the superblock of this machine's memory, or makes one if the memory is new (and then a new memory_id)."""

    async def on_start(self) -> None:
        environment = self.context.environment
        if MEMORY_NAME in environment.memory.names():
            mapping = environment.memory.open(MEMORY_NAME).map()
        else:
            mapping = (await environment.memory.create(MEMORY_NAME, MEMORY_BYTES)).map()
        self.context.resources.callback(mapping.close)
        self._superblock = self._open(mapping)
        host = HostRecord()
        host.CopyFrom(self._superblock.host)
        host.hosts += 1
        self._superblock.put_host(host)

    def _open(self, mapping: Mapping) -> Superblock:
        if SlotArea.is_blank(mapping):
            return Superblock.format(mapping, HostRecord(memory_id=self.context.environment.entropy.token()))
        return Superblock.open(mapping)

    async def on_stop(self) -> None:
        self._superblock.mark_clean()

    def put_guest(self, request: pb.Guest) -> vmemfs_pb2.Generation:
        if not request.guest_id:
            raise InvalidArgument("a guest without a guest_id cannot be kept")
        return vmemfs_pb2.Generation(generation=self._superblock.put_guest(request))

    def remove_guest(self, request: vmemfs_pb2.GuestId) -> vmemfs_pb2.Generation:
        return vmemfs_pb2.Generation(generation=self._superblock.remove_guest(request.guest_id))

    def guests(self, request: pb.Empty) -> vmemfs_pb2.StoredGuests:
        return vmemfs_pb2.StoredGuests(guests=self._superblock.guests())

    def put_copy(self, request: Copy) -> vmemfs_pb2.Generation:
        if not request.guest.guest_id or not request.copy_id:
            raise InvalidArgument("a copy without a guest_id and a copy_id cannot be kept")
        return vmemfs_pb2.Generation(generation=self._superblock.put_copy(request))

    def remove_copy(self, request: GuestCopy) -> vmemfs_pb2.Generation:
        """Without a copy_id, all of the guest's; nothing to do where there is none."""
        if not request.guest_id:
            raise InvalidArgument("whose copy is to be removed? give a guest_id")
        return vmemfs_pb2.Generation(generation=self._superblock.remove_copy(request.guest_id, request.copy_id))

    def copies(self, request: pb.Empty) -> CopyList:
        return CopyList(copies=self._superblock.copies())

    def put_host(self, request: HostRecord) -> vmemfs_pb2.Generation:
        """What the host says of itself; the memory's own identity and history are not its to change."""
        host = HostRecord()
        host.CopyFrom(self._superblock.host)
        host.lease_id = request.lease_id
        return vmemfs_pb2.Generation(generation=self._superblock.put_host(host))

    def get_host(self, request: pb.Empty) -> HostRecord:
        host = HostRecord()
        host.CopyFrom(self._superblock.host)
        return host

    def status(self, request: pb.Empty) -> vmemfs_pb2.VMemFSStatus:
        memory, host = self.context.environment.memory, self._superblock.host
        files = []
        for name in memory.names():
            stored = memory.open(name)
            present_bytes = sum(length for _, length in stored.extents())
            files.append(vmemfs_pb2.StoredFile(name=name, size_bytes=stored.size_bytes, present_bytes=present_bytes))
        return vmemfs_pb2.VMemFSStatus(
            version=self._superblock.version,
            generation=self._superblock.generation,
            hosts=host.hosts,
            files=files,
            memory_id=host.memory_id,
        )
