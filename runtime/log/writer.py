"""Appends to a log ring. One writer a guest, under the guest's commit lock.

    writer = LogWriter(ring, ring_bell)
    end = writer.append(RecordType.STORES, RecordFlags.REQUIRED, payload)   # whole in memory, not yet committed
    writer.publish()                                                        # committed: the tail is behind it
    ...                                                                     # store to the regions, flush, drain
    writer.publish_applied()

The order is the whole point: a record is persistent before the tail covers it, and the tail covers it before anything of
it reaches a region, so that whatever a crash leaves can be completed from the log.
"""

from __future__ import annotations

from collections.abc import Callable

from everram.runtime.log import record as records
from everram.runtime.log.record import HEADER_BYTES, RecordFlags, RecordType, padded
from everram.runtime.log.ring import Ring


class LogFull(Exception):
    """No room until a required destination has acknowledged more."""


def no_bell() -> None:
    """For rings that nobody reads while they are written."""


class LogWriter:
    """The positions are kept here too: the writer is the only one who moves them."""

    def __init__(self, ring: Ring, ring_bell: Callable[[], None] = no_bell) -> None:
        self.ring = ring
        self._ring_bell = ring_bell
        self._epoch = ring.epoch
        self._tail = self._end = ring.tail
        self._freed = ring.freed
        self.largest_payload_bytes = ring.capacity_bytes // 2 - HEADER_BYTES
        """Half a ring: whatever lies before the circle's end, a record of this size fits after a pad."""

    def append(self, record_type: RecordType, flags: RecordFlags, payload: bytes) -> int:
        """Write a record after the last; returns the LSN behind it.

        Raises LogFull, and ValueError for a payload over `largest_payload_bytes`.
        """
        if len(payload) > self.largest_payload_bytes:
            raise ValueError(f"{len(payload)} bytes do not fit into one record: at most {self.largest_payload_bytes}")
        ring, size = self.ring, HEADER_BYTES + len(payload)
        at = ring.next_position(self._tail)
        room = ring.room_before_end(at)
        pad = room if size > room else 0
        end = at + pad + padded(size)
        if end - self._freed > ring.capacity_bytes:
            self._free(end)
        if pad:
            self._write(at, RecordType.PAD, RecordFlags.NONE, bytes(pad - HEADER_BYTES))
            at += pad
        self._write(at, record_type, flags, payload)
        ring.mapping.drain()
        self._end = end
        return end

    def publish(self) -> None:
        """Commit what was appended, and wake the reader if it says that it sleeps."""
        self.ring.set_tail(self._end)
        self._tail = self._end
        # Looked at after the publication: a reader that goes to sleep looks at the tail once more after saying so.
        if self.ring.reader_sleeps:
            self._ring_bell()

    def publish_applied(self) -> None:
        """What was committed is in the regions, persistently."""
        self.ring.set_applied(self._tail)

    def _write(self, at: int, record_type: RecordType, flags: RecordFlags, payload: bytes) -> None:
        ring = self.ring
        whole = records.pack(at, self._epoch, record_type, flags, ring.guest, payload)
        offset = ring.offset(at)
        ring.mapping.store(offset, whole)
        ring.mapping.flush(offset, len(whole))

    def _free(self, end: int) -> None:
        """Give up records that nobody needs any more; published before they are overwritten, so readers can tell."""
        ring = self.ring
        freed = min([ring.applied, *(ring.durable(slot) for slot in ring.required())])
        if end - freed > ring.capacity_bytes:
            raise LogFull(f"the log is full: {end - freed} bytes would be kept, {ring.capacity_bytes} is its size")
        # Half a ring ahead at most, so that this is done once in many appends and the reader may lag meanwhile.
        wanted = max(end - ring.capacity_bytes // 2, self._freed)
        self._freed = min(freed, wanted) if end - min(freed, wanted) <= ring.capacity_bytes else freed
        ring.set_freed(self._freed)
