"""The records of regions and snapshots in the metadata: what each page-table root belongs to.

    record = Record(REGION, name="region.0f3c.ledger", root=57, ...)
    record.pack()                            # RECORD_BYTES bytes
    Record.unpack(number, data)              # None for an empty place; raises DataLoss

A record has a fixed place, its number; a region's is what its snapshots name it by. docs/formats.md, "Snapshots".
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass

from everram.runtime.errors import DataLoss

RECORD_BYTES = 256
_FIXED = struct.Struct("<BBHIQQQQQQQQQ")
_CHECKSUM = struct.Struct("<I")
NAME_AT = _FIXED.size + 8
NAME_BYTES_MAX = RECORD_BYTES - NAME_AT


class Kind(enum.IntEnum):
    EMPTY = 0
    REGION = 1
    """The running point of a region."""
    SNAPSHOT = 2


class State(enum.IntEnum):
    LIVE = 1
    DELETING = 2
    """A snapshot that nobody sees any more; what only it refers to is being given back."""
    REVERTING = 3
    """A region whose running point is being made that of the snapshot `target`; nobody may use it before."""
    TAKING = 4
    """A snapshot whose content is being copied out, because nobody sees the stores that would change it: a host that
    dies before the copy is whole has told nobody of it, and its successor deletes it."""


@dataclass(slots=True)
class Record:
    number: int
    kind: Kind
    name: str
    """Of a region, its arena; of a snapshot, the user's."""
    root: int
    """Metadata page of the top node of its page table."""
    array: int = 0
    """The first metadata page of its virtblock array; 0: it owns no block."""
    state: State = State.LIVE
    region: int = 0
    """Of a snapshot: the number of its region's record."""
    sequence: int = 0
    """Of a snapshot: its number, ascending in time."""
    parent: int = 0
    """The sequence of the snapshot from which its content went on; 0: none."""
    target: int = 0
    """Of a region that is being reverted: the sequence of the snapshot."""
    size_bytes: int = 0
    epoch: int = 0
    lsn: int = 0
    """Of a logged region's snapshot: it holds what the log had committed before this position."""
    created_ns: int = 0
    """Wall clock, for people."""

    def pack(self) -> bytes:
        name = self.name.encode()
        if len(name) > NAME_BYTES_MAX:
            raise ValueError(f"a name of {len(name)} bytes, at most {NAME_BYTES_MAX} fit")
        fixed = _FIXED.pack(
            self.kind,
            self.state,
            len(name),
            self.region,
            self.root,
            self.array,
            self.sequence,
            self.parent,
            self.target,
            self.size_bytes,
            self.epoch,
            self.lsn,
            self.created_ns,
        )
        named = name.ljust(NAME_BYTES_MAX, b"\0")
        return fixed + _CHECKSUM.pack(zlib.crc32(fixed + named)) + bytes(4) + named

    @staticmethod
    def unpack(number: int, data: bytes) -> Record | None:
        if not any(data):
            return None
        fixed, named = data[: _FIXED.size], data[NAME_AT:]
        if _CHECKSUM.unpack_from(data, _FIXED.size) != (zlib.crc32(fixed + named),):
            raise DataLoss(f"snapshots: record {number} does not match its checksum")
        kind, state, length, region, root, array, *others = _FIXED.unpack(fixed)
        try:
            name = named[:length].decode()
            return Record(number, Kind(kind), name, root, array, State(state), region, *others)
        except ValueError as error:
            raise DataLoss(f"snapshots: record {number} cannot be read: {error}") from error
