"""The VMemFS superblock, version 2: what a host leaves in memory for its successor.

    superblock = Superblock.format(mapping, host)
    superblock.put_guest(guest, files)
    Superblock.open(mapping).guests()

A two-slot record area (`slots`) with one record for the host, one for each guest, one for each copy that is kept for
another host, one for each file, and the history of the hosts that have served this memory. A file is what of the
memory objects belongs together (`vmemfs_files`). A guest or a copy whose record is damaged is named and costs no other.

A version reads what earlier ones have written. It goes on writing the version before where it has found that, until
`write_latest`: software that never came to serve leaves nothing that the former one cannot take. `roll_back` writes the
version before again. docs/formats.md, "VMemFS superblock", has the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.contracts.vmemfs_pb2 import FileRecord, History, Hop, HostRecord
from everram.runtime.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from everram.runtime.formats.slots import Format, Record, SlotArea
from everram.runtime.memory.contract import Mapping

MEMORY_NAME = "vmemfs"
MEMORY_BYTES = 8 * 1024 * 1024
"""Sparse. Each of the two slots then holds some 4000 guests of one KiB with their files: more than a machine runs."""
HOST, GUEST, COPY, FILE, HISTORY = 1, 2, 3, 4, 5
VOLATILE = 1
"""Required feature while a guest with volatile memory runs: who cannot page would let it wait for pages for ever."""
ENDED = frozenset({pb.STOPPED, pb.EXITED, pb.FAILED})
"""States of guests without a process."""
NAME, MAGIC, WHEN_FULL = "VMemFS superblock", b"EVRVMEMF", "remove guests that are no longer needed"
FORMAT = Format(
    name=NAME,
    magic=MAGIC,
    version=(2, 0),
    record_types=frozenset({HOST, GUEST, COPY, FILE, HISTORY}),
    required_features=VOLATILE,
    when_full=WHEN_FULL,
    indexed_since=(2, 0),
)
BEFORE = Format(
    name=NAME, magic=MAGIC, version=(1, 1), record_types=frozenset({HOST, GUEST, COPY}), when_full=WHEN_FULL
)
"""The version before, which this one can write: it has no files, no history and no index."""
HOPS_MAX = 16
"""Of the history that is kept."""

_DAMAGED = f"its record in the {NAME} is damaged"
_CopyKey = tuple[str, str]
"""guest_id, copy_id."""


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A guest's record that does not verify; its name is from the index."""

    guest_id: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Content:
    """What one commit holds."""

    host: HostRecord
    guests: dict[str, pb.Guest] = field(default_factory=dict)
    copies: dict[_CopyKey, Copy] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    hops: tuple[Hop, ...] = ()

    def volatile(self) -> list[pb.Guest]:
        """Guests that run with volatile memory."""
        return [each for each in self.guests.values() if each.spec.memory_bytes and each.state not in ENDED]

    def features(self) -> int:
        """What its readers have to know."""
        return VOLATILE if self.volatile() else 0

    def records(self, kind: Format) -> list[Record]:
        records = [_record(HOST, self.host)]
        records += (_record(GUEST, guest, f"{guest.guest_id} {guest.name}") for _, guest in sorted(self.guests.items()))
        records += (_record(COPY, self.copies[key], " ".join(key)) for key in sorted(self.copies))
        if FILE in kind.record_types:
            records += (_record(FILE, self.files[name], name, required=False) for name in sorted(self.files))
        if HISTORY in kind.record_types and self.hops:
            records.append(_record(HISTORY, History(hops=self.hops), required=False))
        return records


class Superblock:
    """The host's record, the guests' and the copies'; each change is one commit, whole or not at all."""

    def __init__(self, area: SlotArea, content: _Content, damaged: Sequence[DamagedRecord] = ()) -> None:
        self._area = area
        self._content = content
        self._kind = FORMAT if area.content.version >= FORMAT.version else BEFORE
        self._rolled_back = bool(area.content.required_features)
        self.damaged = tuple(damaged)
        """Guests whose records do not verify; `succeed` puts others in their place."""

    @staticmethod
    def format(mapping: Mapping, host: HostRecord, guests: tuple[pb.Guest, ...] = ()) -> Superblock:
        """A new superblock; it does not exist before its first commit is published, here at the end."""
        content = _Content(host, {guest.guest_id: _stored(guest) for guest in guests})
        area = SlotArea.format(mapping, FORMAT, content.records(FORMAT), features=content.features())
        return Superblock(area, content)

    @staticmethod
    def open(mapping: Mapping) -> Superblock:
        """Raises DataLoss for a damaged superblock, FailedPrecondition for one of a later everram."""
        area = SlotArea.open(mapping, FORMAT)
        content = _decoded(area.content.records)
        damaged = []
        for record in area.content.damaged:
            if record.type == HOST:  # without it nothing can be gone on with
                raise DataLoss(
                    f"{NAME} is damaged at offset {record.offset}: the record of its host does not match its checksum"
                )
            key, _, name = record.key.partition(" ")
            if record.type == GUEST:
                damaged.append(DamagedRecord(key, name, _DAMAGED))
            elif record.type == COPY:  # its place is kept: it may have promised something that nobody knows any more
                content.copies[key, name] = Copy(guest=pb.Guest(guest_id=key), copy_id=name, damaged=_DAMAGED)
        return Superblock(area, content, damaged)

    @property
    def generation(self) -> int:
        return self._area.content.generation

    @property
    def version(self) -> str:
        """Version of the format it was last written in: "2.0"."""
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

    def files(self) -> list[FileRecord]:
        """By name."""
        return [self._content.files[name] for name in sorted(self._content.files)]

    def history(self) -> tuple[Hop, ...]:
        """The latest hosts, oldest first."""
        return self._content.hops

    def succeed(self, software: str, damaged: Sequence[DamagedRecord] = ()) -> int:
        """Another host has taken this memory: count it, and note what it found.

        Guests that are damaged, by their records or as `damaged` says, are so in the same commit: if this host is
        killed before it has isolated one, the next still knows that it was there.
        """
        host = HostRecord()
        host.CopyFrom(self.host)
        host.hosts += 1
        hop = Hop(number=host.hosts, software=software)
        if host.hosts > 1:
            hop.found, hop.producer, hop.clean = self.version, self.producer, self.clean
        guests = dict(self._content.guests)
        for record in (*self.damaged, *damaged):
            guest = pb.Guest(guest_id=record.guest_id, name=record.name)
            if record.guest_id in guests:
                guest.CopyFrom(guests[record.guest_id])
            guest.damaged = guest.damaged or record.reason
            guests[record.guest_id] = guest
        hops = (*self._content.hops, hop)[-HOPS_MAX:]
        return self._commit(replace(self._content, host=host, guests=guests, hops=hops))

    def lost_by_rollback(self) -> list[str]:
        """What the version before has no place for, in sentences."""
        lost = []
        if self._content.hops:
            lost.append(f"the history of {len(self._content.hops)} hosts that have served this memory")
        if self._content.files:
            lost.append(f"the records of {len(self._content.files)} files: damage to them will not be noticed")
        unknown = sorted({r.type for r in self._area.content.records if r.type not in FORMAT.record_types})
        if unknown:
            lost.append(f"records of a later everram (types {', '.join(map(str, unknown))})")
        return lost

    def roll_back(self) -> int:
        """Write the version before, now and at every change that follows, until `write_latest`.

        Raises FailedPrecondition if that one may not know something that is in use.
        """
        self.check_rollback()
        self._kind, self._rolled_back = BEFORE, True
        return self._commit(self._content)

    def check_rollback(self) -> None:
        """Raises FailedPrecondition, with what is to be done."""
        names = [guest.name or guest.guest_id for guest in self._content.volatile()]
        if names:
            raise FailedPrecondition(
                f"the everram before may know nothing of volatile memory, which {', '.join(names)} "
                f"{'has' if len(names) == 1 else 'have'}: stop {'it' if len(names) == 1 else 'them'} first"
            )

    def write_latest(self) -> int:
        """Write this version, now and at every change that follows. Raises ResourceExhausted, and goes on as before."""
        if self._kind is FORMAT:
            return self.generation
        before, (self._kind, self._rolled_back) = (self._kind, self._rolled_back), (FORMAT, False)
        try:
            return self._commit(self._content)
        except ResourceExhausted:
            self._kind, self._rolled_back = before
            raise

    def put_host(self, host: HostRecord) -> int:
        """The new generation; persistent. Raises ResourceExhausted, and then nothing has changed."""
        return self._commit(replace(self._content, host=host))

    def put_guest(self, guest: pb.Guest, files: Sequence[FileRecord] = ()) -> int:
        """Add or replace by guest_id, without the fields that are answered and not kept; `files` are all of its."""
        guests = {**self._content.guests, guest.guest_id: _stored(guest)}
        kept = {name: file for name, file in self._content.files.items() if file.guest_id != guest.guest_id}
        return self._commit(replace(self._content, guests=guests, files=kept | {file.name: file for file in files}))

    def remove_guest(self, guest_id: str) -> int:
        """Raises NotFound."""
        if guest_id not in self._content.guests:
            raise NotFound(f"the superblock has no guest {guest_id}")
        guests = {key: guest for key, guest in self._content.guests.items() if key != guest_id}
        files = {name: file for name, file in self._content.files.items() if file.guest_id != guest_id}
        return self._commit(replace(self._content, guests=guests, files=files))

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

    def mark_clean(self, files: Sequence[FileRecord] = ()) -> int:
        """This host stops in order: what is here is what it knew, and `files` are all that there are."""
        return self._commit(replace(self._content, files={file.name: file for file in files}), clean=True)

    def _commit(self, content: _Content, *, clean: bool = False) -> int:
        records, features = content.records(self._kind), content.features()
        if self._kind is FORMAT:
            generation = self._area.commit(records, clean=clean, features=features)
        else:
            # Where 1.1 was found, its software runs such guests already and has to be able to take them back.
            required = features if self._rolled_back else 0
            generation = self._area.rewrite(records, self._kind, clean=clean, features=required)
        self._content = content
        return generation


_Message = HostRecord | pb.Guest | Copy | FileRecord | History


def _record(kind: int, message: _Message, key: str = "", *, required: bool = True) -> Record:
    return Record(kind, message.SerializeToString(deterministic=True), required, key)


def _decoded(records: Sequence[Record]) -> _Content:
    """Raises DataLoss."""
    host = HostRecord()
    content = _Content(host)
    hops: tuple[Hop, ...] = ()
    for number, record in enumerate(records):
        try:
            if record.type == HOST:
                host.MergeFromString(record.payload)
            elif record.type == GUEST:
                guest = pb.Guest.FromString(record.payload)
                content.guests[guest.guest_id] = guest
            elif record.type == COPY:
                copy = Copy.FromString(record.payload)
                content.copies[_copy_key(copy)] = copy
            elif record.type == FILE:
                file = FileRecord.FromString(record.payload)
                content.files[file.name] = file
            elif record.type == HISTORY:
                hops = tuple(History.FromString(record.payload).hops)
        except DecodeError as error:
            raise DataLoss(f"{NAME} is damaged: record {number} cannot be decoded: {error}") from error
    if not host.memory_id:
        raise DataLoss(f"{NAME} is damaged: it has no record of its host's memory")
    return replace(content, hops=hops)


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
