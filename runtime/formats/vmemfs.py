"""The VMemFS superblock, version 1: what a host leaves in memory for its successor.

    superblock = Superblock.format(mapping, host)
    superblock.put_guest(guest)
    Superblock.open(mapping).guests()

A two-slot record area (`slots`) with one record for the host, one for each guest and one for each copy that is kept for
another host. The files of VMemFS are the memory objects themselves; the records of guests and copies name theirs.
docs/formats.md, "VMemFS superblock", has the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.errors import DataLoss, NotFound
from everram.runtime.formats.slots import Format, Record, SlotArea
from everram.runtime.memory.contract import Mapping

MEMORY_NAME = "vmemfs"
MEMORY_BYTES = 8 * 1024 * 1024
"""Sparse. Each of the two slots then holds some 8000 guests of half a KiB: more than a machine runs."""
HOST, GUEST, COPY = 1, 2, 3
FORMAT = Format(
    name="VMemFS superblock",
    magic=b"EVRVMEMF",
    version=(1, 1),
    record_types=frozenset({HOST, GUEST, COPY}),
    when_full="remove guests that are no longer needed",
)


_CopyKey = tuple[str, str]
"""guest_id, copy_id."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What one commit holds."""

    host: HostRecord
    guests: dict[str, pb.Guest] = field(default_factory=dict)
    copies: dict[_CopyKey, Copy] = field(default_factory=dict)

    def records(self) -> list[Record]:
        messages: list[tuple[int, HostRecord | pb.Guest | Copy]] = [(HOST, self.host)]
        messages += ((GUEST, self.guests[guest_id]) for guest_id in sorted(self.guests))
        messages += ((COPY, self.copies[key]) for key in sorted(self.copies))
        return [Record(kind, m.SerializeToString(deterministic=True), required=True) for kind, m in messages]


class Superblock:
    """The host's record, the guests' and the copies'; each change is one commit, whole or not at all."""

    def __init__(self, area: SlotArea, content: _Content) -> None:
        self._area = area
        self._content = content

    @staticmethod
    def format(mapping: Mapping, host: HostRecord, guests: tuple[pb.Guest, ...] = ()) -> Superblock:
        """A new superblock; it does not exist before its first commit is published, here at the end."""
        content = _Content(host, {guest.guest_id: _stored(guest) for guest in guests})
        return Superblock(SlotArea.format(mapping, FORMAT, content.records()), content)

    @staticmethod
    def open(mapping: Mapping) -> Superblock:
        """Raises DataLoss for a damaged superblock, FailedPrecondition for one of a later everram."""
        area = SlotArea.open(mapping, FORMAT)
        host: HostRecord | None = None
        guests: dict[str, pb.Guest] = {}
        copies: dict[_CopyKey, Copy] = {}
        for number, record in enumerate(area.content.records):
            try:
                if record.type == HOST:
                    host = HostRecord.FromString(record.payload)
                elif record.type == GUEST:
                    guest = pb.Guest.FromString(record.payload)
                    guests[guest.guest_id] = guest
                elif record.type == COPY:
                    copy = Copy.FromString(record.payload)
                    copies[_copy_key(copy)] = copy
            except DecodeError as error:
                raise DataLoss(f"{FORMAT.name} is damaged: record {number} cannot be decoded: {error}") from error
        if host is None or not host.memory_id:
            raise DataLoss(f"{FORMAT.name} is damaged: it has no record of its host's memory")
        return Superblock(area, _Content(host, guests, copies))

    @property
    def generation(self) -> int:
        return self._area.content.generation

    @property
    def version(self) -> str:
        """Version of the format it was last written in: "1.1"."""
        return "{}.{}".format(*self._area.content.version)

    @property
    def producer(self) -> str:
        """The everram that wrote it."""
        return self._area.content.producer

    @property
    def clean(self) -> bool:
        """Whether its host stopped in order after its last change."""
        return self._area.content.clean

    @property
    def host(self) -> HostRecord:
        return self._content.host

    def guests(self) -> list[pb.Guest]:
        """By guest_id."""
        guests = self._content.guests
        return [guests[guest_id] for guest_id in sorted(guests)]

    def copies(self) -> list[Copy]:
        """By guest_id and copy_id."""
        copies = self._content.copies
        return [copies[key] for key in sorted(copies)]

    def put_host(self, host: HostRecord) -> int:
        """The new generation; persistent. Raises ResourceExhausted, and then nothing has changed."""
        return self._commit(replace(self._content, host=host))

    def put_guest(self, guest: pb.Guest) -> int:
        """Add or replace by guest_id, without the fields that are answered and not kept."""
        guests = {**self._content.guests, guest.guest_id: _stored(guest)}
        return self._commit(replace(self._content, guests=guests))

    def remove_guest(self, guest_id: str) -> int:
        """Raises NotFound."""
        if guest_id not in self._content.guests:
            raise NotFound(f"the superblock has no guest {guest_id}")
        guests = {key: guest for key, guest in self._content.guests.items() if key != guest_id}
        return self._commit(replace(self._content, guests=guests))

    def put_copy(self, copy: Copy) -> int:
        """Add or replace by guest_id and copy_id, without the fields that are answered and not kept."""
        copies = {**self._content.copies, _copy_key(copy): _stored_copy(copy)}
        return self._commit(replace(self._content, copies=copies))

    def remove_copy(self, guest_id: str, copy_id: str = "") -> int:
        """Without a copy_id, all of the guest's; where there is none nothing changes."""
        kept = {
            key: copy
            for key, copy in self._content.copies.items()
            if key[0] != guest_id or (copy_id and key[1] != copy_id)
        }
        if len(kept) == len(self._content.copies):
            return self.generation
        return self._commit(replace(self._content, copies=kept))

    def mark_clean(self) -> int:
        """This host stops in order: what is here is what it knew."""
        return self._commit(self._content, clean=True)

    def _commit(self, content: _Content, *, clean: bool = False) -> int:
        generation = self._area.commit(content.records(), clean=clean)
        self._content = content
        return generation


def _copy_key(copy: Copy) -> _CopyKey:
    return copy.guest.guest_id, copy.copy_id


def _stored(guest: pb.Guest) -> pb.Guest:
    """What is worth keeping: positions, counts and freezes are asked of those who know them."""
    stored = pb.Guest()
    stored.CopyFrom(guest)
    stored.ClearField("log")
    stored.ClearField("freeze_reasons")
    stored.ClearField("copies")
    stored.ClearField("degraded")
    for region in stored.regions:
        region.ClearField("written_pages")
        region.ClearField("tracking")
    return stored


def _stored_copy(copy: Copy) -> Copy:
    stored = Copy()
    stored.CopyFrom(copy)
    stored.ClearField("held")
    stored.guest.CopyFrom(_stored(copy.guest))
    return stored
