"""The VMemFS superblock, version 1: what a host leaves in memory for its successor.

    superblock = Superblock.format(mapping, host)
    superblock.put_guest(guest)
    Superblock.open(mapping).guests()

A two-slot record area (`slots`) with one record for the host and one for each guest. The files of VMemFS are the memory
objects themselves; the guests' records name theirs. docs/formats.md, "VMemFS superblock", has the fields.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.errors import DataLoss, NotFound
from everram.runtime.formats.slots import Format, Record, SlotArea
from everram.runtime.memory.contract import Mapping

MEMORY_NAME = "vmemfs"
MEMORY_BYTES = 8 * 1024 * 1024
"""Sparse. Each of the two slots then holds some 8000 guests of half a KiB: more than a machine runs."""
HOST = 1
GUEST = 2
FORMAT = Format(
    name="VMemFS superblock",
    magic=b"EVRVMEMF",
    version=(1, 0),
    record_types=frozenset({HOST, GUEST}),
    when_full="remove guests that are no longer needed",
)


class Superblock:
    """The host's record and the guests' records; each change is one commit, whole or not at all."""

    def __init__(self, area: SlotArea, host: HostRecord, guests: dict[str, pb.Guest]) -> None:
        self._area = area
        self._host = host
        self._guests = guests

    @staticmethod
    def format(mapping: Mapping, host: HostRecord, guests: tuple[pb.Guest, ...] = ()) -> Superblock:
        """A new superblock; it does not exist before its first commit is published, here at the end."""
        by_id = {guest.guest_id: _stored(guest) for guest in guests}
        return Superblock(SlotArea.format(mapping, FORMAT, _records(host, by_id)), host, by_id)

    @staticmethod
    def open(mapping: Mapping) -> Superblock:
        """Raises DataLoss for a damaged superblock, FailedPrecondition for one of a later everram."""
        area = SlotArea.open(mapping, FORMAT)
        host: HostRecord | None = None
        guests: dict[str, pb.Guest] = {}
        for number, record in enumerate(area.content.records):
            try:
                if record.type == HOST:
                    host = HostRecord.FromString(record.payload)
                elif record.type == GUEST:
                    guest = pb.Guest.FromString(record.payload)
                    guests[guest.guest_id] = guest
            except DecodeError as error:
                raise DataLoss(f"{FORMAT.name} is damaged: record {number} cannot be decoded: {error}") from error
        if host is None or not host.memory_id:
            raise DataLoss(f"{FORMAT.name} is damaged: it has no record of its host's memory")
        return Superblock(area, host, guests)

    @property
    def generation(self) -> int:
        return self._area.content.generation

    @property
    def version(self) -> str:
        """Version of the format it was last written in: "1.0"."""
        return "{}.{}".format(*self._area.content.version)

    @property
    def host(self) -> HostRecord:
        return self._host

    def guests(self) -> list[pb.Guest]:
        """By guest_id."""
        return [self._guests[guest_id] for guest_id in sorted(self._guests)]

    def put_host(self, host: HostRecord) -> int:
        """The new generation; persistent. Raises ResourceExhausted, and then nothing has changed."""
        generation = self._area.commit(_records(host, self._guests))
        self._host = host
        return generation

    def put_guest(self, guest: pb.Guest) -> int:
        """Add or replace by guest_id, without the fields that are answered and not kept."""
        guests = {**self._guests, guest.guest_id: _stored(guest)}
        generation = self._area.commit(_records(self._host, guests))
        self._guests = guests
        return generation

    def remove_guest(self, guest_id: str) -> int:
        """Raises NotFound."""
        if guest_id not in self._guests:
            raise NotFound(f"the superblock has no guest {guest_id}")
        guests = {key: guest for key, guest in self._guests.items() if key != guest_id}
        generation = self._area.commit(_records(self._host, guests))
        self._guests = guests
        return generation

    def mark_clean(self) -> int:
        """This host stops in order: what is here is what it knew."""
        return self._area.commit(_records(self._host, self._guests), clean=True)


def _records(host: HostRecord, guests: dict[str, pb.Guest]) -> list[Record]:
    records = [Record(HOST, host.SerializeToString(deterministic=True), required=True)]
    for guest_id in sorted(guests):
        records.append(Record(GUEST, guests[guest_id].SerializeToString(deterministic=True), required=True))
    return records


def _stored(guest: pb.Guest) -> pb.Guest:
    """What is worth keeping: positions, counts and freezes are asked of those who know them."""
    stored = pb.Guest()
    stored.CopyFrom(guest)
    stored.ClearField("log")
    stored.ClearField("freeze_reasons")
    for region in stored.regions:
        region.ClearField("written_pages")
        region.ClearField("tracking")
    return stored
