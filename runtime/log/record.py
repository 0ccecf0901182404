"""One record of the log ring: what a transaction changed, with everything that says whether it is valid.

Layout (little-endian; records are aligned to 8 bytes and never wrap):

    0   u32  CRC-32 of bytes 4 to the record's end
    4   u32  length of the record in bytes, this header included, padding excluded
    8   u64  LSN: the record's position in the guest's log
    16  u64  epoch of the incarnation that wrote it
    24  u16  type
    26  u16  flags
    28  u32  reserved, 0
    32  16s  guest_id
    48  payload

A record is valid at a position only if its LSN is that position, its guest is the ring's, its epoch is possible there
and its checksum holds; never because the tail says so. The payload of `STORES` is a list of (region u32, length u32,
offset u64, bytes), regions numbered as the guest was granted them. Records are physical: applying one twice changes
nothing.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ALIGNMENT_BYTES = 8
_CHECKSUM = struct.Struct("<I")
_CHECKED = struct.Struct("<IQQHHI16s")
WHOLE = struct.Struct("<IIQQHHI16s")
_STORE = struct.Struct("<IIQ")
HEADER_BYTES = WHOLE.size
STORE_HEADER_BYTES = _STORE.size
_ONE_STORE = struct.Struct("<IQQHHI16sIIQ")
ONE_STORE_BYTES = HEADER_BYTES + STORE_HEADER_BYTES
"""Of a record with a single store, besides its data."""


class RecordType(enum.IntEnum):
    PAD = 1
    """Fills the ring's end, because records never wrap."""
    STORES = 2
    # Operations on regions are log records too, so that every destination executes them at their place in the order.
    SNAPSHOT = 16
    REVERT = 17
    CLONE = 18
    GROW = 19
    DELETE = 20


OPERATIONS = frozenset({RecordType.SNAPSHOT, RecordType.DELETE})
"""Those that hosts append: a snapshot was taken, and one was removed. Their payload is a LogOperation
(proto/nvm_device.proto). The others are made while the guest is stopped, and have its copies built anew."""


class RecordFlags(enum.IntFlag):
    NONE = 0
    REQUIRED = 1
    """A reader that does not know the type must stop; without it, it passes over the record."""


class Store(NamedTuple):
    """`data` at `offset` of region number `region`."""

    region: int
    offset: int
    data: bytes


_STORES, _REQUIRED = int(RecordType.STORES), int(RecordFlags.REQUIRED)


class Record(NamedTuple):
    """A valid record. `end` is the LSN of whatever comes next."""

    lsn: int
    epoch: int
    type: int
    flags: int
    guest_id: str
    payload: bytes

    @property
    def end(self) -> int:
        return self.lsn + padded(HEADER_BYTES + len(self.payload))

    def stores(self) -> Iterator[Store]:
        """Of a STORES record. Raises ValueError if the payload is not a list of stores."""
        at, payload = 0, self.payload
        while at < len(payload):
            if at + STORE_HEADER_BYTES > len(payload):
                raise ValueError(f"record at {self.lsn}: a store's header is cut off")
            region, length, offset = _STORE.unpack_from(payload, at)
            at += STORE_HEADER_BYTES
            if at + length > len(payload):
                raise ValueError(f"record at {self.lsn}: a store of {length} bytes is cut off")
            yield Store(region, offset, payload[at : at + length])
            at += length


RawStore = tuple[int, int, bytes]
"""(region, offset, data): a `Store` without its name, for the path on which every tenth of a microsecond counts."""


def padded(length: int) -> int:
    return (length + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES


def pack_stores(stores: Sequence[RawStore]) -> bytes:
    """The payload of a STORES record."""
    if len(stores) == 1:
        region, offset, data = stores[0]
        return _STORE.pack(region, len(data), offset) + data
    parts: list[bytes] = []
    for region, offset, data in stores:
        parts.append(_STORE.pack(region, len(data), offset))
        parts.append(data)
    return b"".join(parts)


def pack(lsn: int, epoch: int, record_type: int, flags: int, guest: bytes, payload: bytes) -> bytes:
    """A whole record, unpadded; `guest` is the guest_id as 16 bytes."""
    checked = _CHECKED.pack(HEADER_BYTES + len(payload), lsn, epoch, record_type, flags, 0, guest) + payload
    return _CHECKSUM.pack(zlib.crc32(checked)) + checked


def pack_one_store(lsn: int, epoch: int, guest: bytes, store: RawStore) -> bytes:
    """What `pack` makes of a STORES record with a single store: most are, so they have a way of their own."""
    region, offset, data = store
    length = len(data)
    size = ONE_STORE_BYTES + length
    checked = _ONE_STORE.pack(size, lsn, epoch, _STORES, _REQUIRED, 0, guest, region, length, offset) + data
    return _CHECKSUM.pack(zlib.crc32(checked)) + checked


def unpack_header(header: bytes) -> tuple[int, int, int, int, int, int, bytes]:
    """(checksum, length, lsn, epoch, type, flags, guest) of HEADER_BYTES bytes, unverified."""
    checksum, length, lsn, epoch, record_type, flags, _, guest = WHOLE.unpack(header)
    return checksum, length, lsn, epoch, record_type, flags, guest


def checksum_holds(record: bytes) -> bool:
    """Whether a whole record's checksum is its own."""
    return int.from_bytes(record[:4], "little") == zlib.crc32(memoryview(record)[4:])
