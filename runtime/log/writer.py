"""Appends to a log ring. One writer a guest, under the guest's commit lock.

    writer = LogWriter(ring, ring_bell)
    end = writer.append(RecordType.STORES, RecordFlags.REQUIRED, payload)   # whole in memory, not yet committed
    writer.publish()                                                        # committed: the tail is behind it
    ...                                                                     # store to the regions, flush, drain
    writer.publish_applied()

The order is the whole point: a record is persistent before the tail covers it, and the tail covers it before anything
of it reaches a region, so that whatever a crash leaves can be completed from the log.

A guest's host appends too, records of operations on regions: while the guest stands still, and only if it says in
`committing` that it is between two commits. So a guest says when it begins (`begin`), looks then whether the tail is
where it left it, and says when it has ended (`end`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everram.runtime.log import record as records
from everram.runtime.log.record import (
    HEADER_BYTES,
    ONE_STORE_BYTES,
    RawStore,
    RecordFlags,
    RecordType,
    pack_stores,
    padded,
)
from everram.runtime.log.ring import (
    APPLIED,
    APPLIED_COPY,
    BUSY,
    COMMITTING,
    DATA_OFFSET,
    IDLE,
    SLEEPING,
    TAIL,
    THROTTLE,
    WORD_MASK,
    Ring,
)


class RingFull(Exception):
    """No room until an active destination has acknowledged more."""


def no_bell() -> None:
    """For rings that nobody reads while they are written."""


class LogWriter:
    """The positions are kept here too: nobody else moves them between `begin` and `end`."""

    def __init__(self, ring: Ring, ring_bell: Callable[[], None] = no_bell) -> None:
        self.ring = ring
        self._mapping = ring.mapping
        self._capacity = ring.capacity_bytes
        self._guest = ring.guest
        self._ring_bell = ring_bell
        self._epoch = ring.epoch
        self._tail = self._end = ring.tail
        self._freed = ring.freed
        self._room = ring.capacity_bytes
        """How much may be kept of the log: all of it, or what its host's battery would last for."""
        self._largest_bytes = ring.capacity_bytes // 2 - HEADER_BYTES
        self.largest_payload_bytes = self._largest_bytes - HEADER_BYTES
        """Half a ring, together with what may be passed over before it: whatever lies before the circle's end, a record
        of this size fits after a pad, and a copy never has to be shipped more than half a ring ahead."""

    def begin(self) -> None:
        """A commit begins: from now on the log is this writer's alone."""
        # A host that finds the guest idle has stopped it: it is stopped before this store, and then finds the new tail
        # below, or after it, and then keeps away.
        self._mapping.store_u64(COMMITTING, BUSY)
        limit = self._mapping.load_u64(THROTTLE)
        self._room = limit if 0 < limit < self._capacity else self._capacity
        tail = self._mapping.load_u64(TAIL)
        if tail != self._tail:
            self._tail = self._end = tail
            self._freed = self.ring.freed

    def end(self) -> None:
        self._mapping.store_u64(COMMITTING, IDLE)

    def append(self, record_type: int, flags: int, payload: bytes) -> int:
        """Write a record after the last; returns the LSN behind it.

        Raises RingFull, and ValueError for a payload over `largest_payload_bytes`.
        """
        size = HEADER_BYTES + len(payload)
        if size > self._largest_bytes:
            raise ValueError(f"{len(payload)} bytes in one record, at most {self.largest_payload_bytes} fit")
        at = self._tail
        position = at % self._capacity
        if position + size > self._capacity:
            at = self._pad(at, size)
            position = 0
        end = at + ((size + 7) & -8)
        if end - self._freed > self._room:
            self._free(end)
        whole = records.pack(at, self._epoch, record_type, flags, self._guest, payload)
        self._mapping.persist(DATA_OFFSET + position, whole)
        self._end = end
        return end

    def append_stores(self, stores: Sequence[RawStore]) -> int:
        """Write a transaction's record, as `append` does; a single store that fits where it is takes the short way."""
        size = ONE_STORE_BYTES + len(stores[0][2])
        at = self._tail
        position = at % self._capacity
        end = at + ((size + 7) & -8)
        wraps = position + size > self._capacity
        if len(stores) > 1 or wraps or end - self._freed > self._room or size > self._largest_bytes:
            return self.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores(stores))
        whole = records.pack_one_store(at, self._epoch, self._guest, stores[0])
        self._mapping.persist(DATA_OFFSET + position, whole)
        self._end = end
        return end

    def publish(self) -> None:
        """Commit what was appended, and wake the reader if it says that it sleeps."""
        self._tail = self._end
        self._mapping.publish_u64(TAIL, self._end)
        # Looked at after the publication: a reader that goes to sleep looks at the tail once more after saying so.
        if self._mapping.load_u64(SLEEPING):
            self._ring_bell()

    def publish_applied(self) -> None:
        """What was committed is in the regions, persistently."""
        tail = self._tail
        self._mapping.store_u64(APPLIED_COPY, tail ^ WORD_MASK)
        self._mapping.publish_u64(APPLIED, tail)

    def _pad(self, at: int, size: int) -> int:
        """Fill the circle's end, which is too short for a record of `size`; returns where the next lap begins."""
        ring = self.ring
        room = ring.room_before_end(at)
        if at + room + padded(size) - self._freed > self._capacity:
            self._free(at + room + padded(size))
        if room >= HEADER_BYTES:
            pad = records.pack(at, self._epoch, RecordType.PAD, 0, ring.guest, bytes(room - HEADER_BYTES))
            self._mapping.persist(ring.offset(at), pad)
        return at + room

    def _free(self, end: int) -> None:
        """Give up records that nobody needs any more; published before they are overwritten, so readers can tell."""
        ring = self.ring
        freed = min([ring.applied, *(ring.durable(slot) for slot in ring.holding())])
        freed = max(freed, self._freed)  # what was given up is gone, whoever comes later
        # With nothing outstanding any record may be written: the largest are longer than a small limit.
        if end - freed > (self._room if freed < self._tail else ring.capacity_bytes):
            raise RingFull(f"the log is full: {end - freed} bytes would be kept, {self._room} may be")
        # Half a ring ahead at most, so that this is done once in many appends and the reader may lag meanwhile.
        wanted = max(end - self._room // 2, self._freed)
        self._freed = min(freed, wanted) if end - min(freed, wanted) <= self._room else freed
        ring.set_freed(self._freed)
