"""VMemFS's actor: keeps, in memory that outlives the host, what the host's successor needs to go on.

That is the superblock: a record of each guest, of each copy of another host's guest, of each file and of the host, and
which hosts have served this memory. What of it does not verify at the start is one guest's damage: it is named to the
hypervisor, which isolates that guest.
"""

from __future__ import annotations

import contextlib

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import vmemfs_pb2
from everram.runtime.contracts.replicator_pb2 import Copy, CopyList, GuestCopy
from everram.runtime.contracts.vmemfs_contract import VMemFSActor
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.errors import InvalidArgument, NotFound, ResourceExhausted
from everram.runtime.formats.slots import SlotArea
from everram.runtime.formats.vmemfs import BEFORE, ENDED, MEMORY_BYTES, MEMORY_NAME, DamagedRecord, Superblock
from everram.runtime.formats.vmemfs_files import check, device_files, guest_files, object_names
from everram.runtime.memory.contract import Mapping
from everram.runtime.version import PACKAGE_VERSION


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
        self._damaged = self._find_damage()
        for damaged in self._damaged:
            about = self.context.log.about(guest=damaged.guest.guest_id, epoch=damaged.guest.epoch)
            about.error("guest %s is damaged: %s", damaged.guest.name, damaged.reason)
        found = [DamagedRecord(each.guest.guest_id, each.guest.name, each.reason) for each in self._damaged]
        self._superblock.succeed(PACKAGE_VERSION, found)

    def _open(self, mapping: Mapping) -> Superblock:
        if SlotArea.is_blank(mapping):
            return Superblock.format(mapping, HostRecord(memory_id=self.context.environment.entropy.token()))
        return Superblock.open(mapping)

    def _find_damage(self) -> list[vmemfs_pb2.DamagedGuest]:
        """Guests whose record, or a file of them, does not verify. Of a host that was killed the files may be out of
        date, but never overlap."""
        superblock, sizes = self._superblock, self._sizes()
        damaged = {
            record.guest_id: vmemfs_pb2.DamagedGuest(
                guest=pb.Guest(guest_id=record.guest_id, name=record.name), reason=record.reason
            )
            for record in superblock.damaged
        }
        known = {guest.guest_id: guest for guest in superblock.guests()}
        for guest in known.values():
            if guest.damaged and guest.state not in ENDED:  # a host before this one had not come to isolating it
                damaged[guest.guest_id] = vmemfs_pb2.DamagedGuest(guest=guest, reason=guest.damaged)
        for fault in check(superblock.files(), sizes if superblock.clean else None):
            if fault.guest_id in known and fault.guest_id not in damaged:
                reason = f"{fault.file.rpartition('/')[2]}: {fault.reason}"
                damaged[fault.guest_id] = vmemfs_pb2.DamagedGuest(guest=known[fault.guest_id], reason=reason)
            elif not fault.guest_id:
                self.context.log.error("%s: %s", fault.file, fault.reason)
        return [damaged[guest_id] for guest_id in sorted(damaged)]

    def _sizes(self) -> dict[str, int]:
        memory = self.context.environment.memory
        return {name: memory.open(name).size_bytes for name in memory.names()}

    async def on_stop(self) -> None:
        sizes = self._sizes()
        files = [file for guest in self._superblock.guests() for file in guest_files(guest, sizes)]
        self._superblock.mark_clean([*files, *device_files(sizes)])

    def put_guest(self, request: pb.Guest) -> vmemfs_pb2.Generation:
        if not request.guest_id:
            raise InvalidArgument("a guest without a guest_id cannot be kept")
        self._damaged = [damaged for damaged in self._damaged if damaged.guest.guest_id != request.guest_id]
        files = guest_files(request, self._sizes_of(request))
        return vmemfs_pb2.Generation(generation=self._superblock.put_guest(request, files))

    def _sizes_of(self, guest: pb.Guest) -> dict[str, int]:
        """Of its own memory objects: the machine may have thousands of others."""
        sizes: dict[str, int] = {}
        for name in object_names(guest):
            with contextlib.suppress(NotFound):
                sizes[name] = self.context.environment.memory.open(name).size_bytes
        return sizes

    def remove_guest(self, request: vmemfs_pb2.GuestId) -> vmemfs_pb2.Generation:
        return vmemfs_pb2.Generation(generation=self._superblock.remove_guest(request.guest_id))

    def guests(self, request: pb.Empty) -> vmemfs_pb2.StoredGuests:
        """Those that are damaged are among the damaged only, until they are put anew."""
        damaged = {each.guest.guest_id for each in self._damaged}
        whole = [guest for guest in self._superblock.guests() if guest.guest_id not in damaged]
        return vmemfs_pb2.StoredGuests(guests=whole, damaged=self._damaged)

    def write_latest(self, request: pb.Empty) -> vmemfs_pb2.Generation:
        """This version's format from now on: this host serves, or the software before did not take the memory."""
        superblock, found = self._superblock, self._superblock.version
        try:
            superblock.write_latest()
        except ResourceExhausted as error:
            self.context.log.error("version %s of the superblock is written on: %s", found, error.message)
        return vmemfs_pb2.Generation(generation=superblock.generation)

    def rollback(self, request: vmemfs_pb2.RollbackRequest) -> vmemfs_pb2.RollbackReport:
        """Write the version before from now on, so that its everram can take over: `everram upgrade --rollback`."""
        superblock = self._superblock
        superblock.check_rollback()
        report = vmemfs_pb2.RollbackReport(lost=superblock.lost_by_rollback())
        if not request.only_ask:
            superblock.roll_back()
        report.format = "{}.{}".format(*BEFORE.version)
        return report

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
            producer=self._superblock.producer,
            history=vmemfs_pb2.History(hops=self._superblock.history()),
            records=self._superblock.files(),
        )
