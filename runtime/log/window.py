"""A window on a log ring: a stretch of the circle, copied out at once, in which records are looked for.

    window = Window(ring)
    record = window.record_at(lsn)          # None: no valid record lies there
    end = window.end_of(lsn)                # the same without making one: for whoever only verifies

What is looked at is a private copy, so a writer who goes on writing changes nothing of it. A record that is not found
in the copy is looked for once more in a fresh one: it may have come since. The copies grow while one record follows the
other, so that a lone record costs little and a run of many is read in few pieces.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from everram.runtime.log.record import HEADER_BYTES, WHOLE, Record, padded

if TYPE_CHECKING:
    from everram.runtime.log.ring import Ring

FIRST_BYTES, MOST_BYTES = 1024, 64 * 1024
"""Of a copy: a record or two of the usual size, and what one pass of the processor's cache holds."""


class Window:
    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._guest_id = ring.guest_id
        self._data = b""
        self._view = memoryview(self._data)
        self._begin = 0
        self._next_bytes = FIRST_BYTES
        self._epoch = self._epoch_start = 0

    def record_at(self, lsn: int) -> Record | None:
        """The valid record at `lsn`, which is no position that a record could not have."""
        length = self._length_at(lsn)
        if not length:
            return None
        at = lsn - self._begin
        _, _, _, epoch, record_type, flags, _, _ = WHOLE.unpack_from(self._data, at)
        payload = self._data[at + HEADER_BYTES : at + length]
        return Record(lsn, epoch, record_type, flags, self._guest_id, payload)

    def end_of(self, lsn: int) -> int:
        """Where the valid record at `lsn` ends; 0 if there is none."""
        length = self._length_at(lsn)
        return lsn + padded(length) if length else 0

    def _length_at(self, lsn: int) -> int:
        length = self._find(lsn)
        if not length:
            self._load(lsn, self._next_bytes)
            self._next_bytes = min(2 * self._next_bytes, MOST_BYTES)
            length = self._find(lsn)
        return length

    def _load(self, lsn: int, length: int) -> None:
        ring = self._ring
        self._data = ring.mapping.load(ring.offset(lsn), min(length, ring.room_before_end(lsn)))
        self._view = memoryview(self._data)
        self._begin = lsn
        self._epoch, self._epoch_start = ring.epoch, ring.epoch_start

    def _find(self, lsn: int) -> int:
        """The length of the valid record at `lsn`, 0 for none in this copy. A record that the copy cuts off is copied
        anew, as a whole."""
        at = lsn - self._begin
        if at < 0 or at + HEADER_BYTES > len(self._data):
            return 0
        checksum, length, found, epoch, _, _, _, guest = WHOLE.unpack_from(self._data, at)
        if found != lsn or guest != self._ring.guest or length < HEADER_BYTES:
            return 0
        if epoch != self._epoch and (lsn >= self._epoch_start or epoch > self._epoch):
            return 0
        if at + length > len(self._data):
            if length > self._ring.room_before_end(lsn):
                return 0
            self._load(lsn, length)
            return self._find(lsn) if len(self._data) >= length else 0
        return int(length) if zlib.crc32(self._view[at + 4 : at + length]) == checksum else 0
