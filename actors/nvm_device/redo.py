"""Changes of several words at once that a crash leaves whole or undone: the redo log of the NVM device's metadata.

    change = Change()
    change.word(offset, value)              # 8 aligned bytes
    change.put(offset, data)                # any whole words
    redo.commit(change)                     # all of it, persistently, or none

There is one change at a time, so the log holds one record: it is persistent before the first word is stored in place,
and counted as applied after the last one is. A crash in between leaves a whole record, and `RedoLog.open` stores it
again; its words are absolute, so storing them twice changes nothing. docs/formats.md, "Snapshots", has the layout.
"""

from __future__ import annotations

import struct
import zlib

from everram.runtime.errors import DataLoss
from everram.runtime.memory.contract import Mapping

WORD_BYTES = 8
_FIELDS = struct.Struct("<QIII")
"""Sequence number, length of the body in bytes, its CRC-32, number of ranges."""
_CHECKSUM = struct.Struct("<I")
"""CRC-32 of the fields, which it follows."""
_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_RANGE = struct.Struct("<QQ")
"""Offset, length in bytes; the data follows."""
RANGE_OF_ONE_WORD_BYTES = _RANGE.size + WORD_BYTES


class Change:
    """What is to be stored where. A later store to the same offset replaces the earlier one."""

    def __init__(self) -> None:
        self.ranges: dict[int, bytes] = {}

    def word(self, offset: int, value: int) -> None:
        self.put(offset, value.to_bytes(WORD_BYTES, "little"))

    def put(self, offset: int, data: bytes) -> None:
        self.ranges.pop(offset, None)  # the last to be put is the last to be stored, where longer ones overlap it
        self.ranges[offset] = data

    @property
    def size_bytes(self) -> int:
        """That it takes in the log."""
        return _HEADER_BYTES + len(self.ranges) * _RANGE.size + sum(map(len, self.ranges.values()))


class RedoLog:
    """`size_bytes` at `offset` of a mapping; `applied_at`: the word that counts what has been applied."""

    def __init__(self, mapping: Mapping, offset: int, size_bytes: int, applied_at: int) -> None:
        self._mapping = mapping
        self._offset = offset
        self.size_bytes = size_bytes
        self._applied_at = applied_at
        self._sequence = mapping.load_u64(applied_at)

    @classmethod
    def open(cls, mapping: Mapping, offset: int, size_bytes: int, applied_at: int) -> RedoLog:
        """Apply what a crash has left unapplied. Raises DataLoss for a record that no crash can leave."""
        log = cls(mapping, offset, size_bytes, applied_at)
        header = mapping.load(offset, _HEADER_BYTES)
        sequence, length, checksum, count = _FIELDS.unpack_from(header)
        is_whole = _CHECKSUM.unpack_from(header, _FIELDS.size) == (zlib.crc32(header[: _FIELDS.size]),)
        if sequence != log._sequence + 1 or not is_whole or length > size_bytes - _HEADER_BYTES:
            return log  # none, or one that was not whole: nothing of it was stored in place
        body = mapping.load(offset + _HEADER_BYTES, length)
        if zlib.crc32(body) != checksum:
            return log
        change = Change()
        at = 0
        for _ in range(count):
            target, size = _RANGE.unpack_from(body, at)
            at += _RANGE.size
            if at + size > length or target + size > mapping.size_bytes:
                raise DataLoss(f"redo log: a range of {size} bytes for offset {target} cannot be")
            change.put(target, body[at : at + size])
            at += size
        log._apply(change)
        return log

    def moved(self, mapping: Mapping) -> None:
        """The same memory is mapped anew, longer."""
        self._mapping = mapping

    def commit(self, change: Change) -> None:
        """Persistent and in place when this returns. Raises ValueError for more than the log holds."""
        pack = _RANGE.pack
        body = b"".join([pack(offset, len(data)) + data for offset, data in change.ranges.items()])
        if _HEADER_BYTES + len(body) > self.size_bytes:
            raise ValueError(f"a change of {len(body)} bytes does not fit into a log of {self.size_bytes}")
        header = _FIELDS.pack(self._sequence + 1, len(body), zlib.crc32(body), len(change.ranges))
        self._mapping.persist(self._offset, header + zlib.crc32(header).to_bytes(4, "little") + body)
        self._apply(change)

    def _apply(self, change: Change) -> None:
        mapping = self._mapping
        for offset, data in change.ranges.items():
            if len(data) == WORD_BYTES:
                mapping.store_u64(offset, int.from_bytes(data, "little"))
            else:
                mapping.store(offset, data)
            mapping.flush(offset, len(data))
        mapping.drain()
        self._sequence += 1
        mapping.publish_u64(self._applied_at, self._sequence)
