"""Reads what is committed in a log ring, record by record, while the guest goes on appending.

    reader = LogReader(ring, ring.applied)
    while True:
        records = reader.run(256 * 1024)
        if not records and reader.announce_sleep():
            ...  # wait for the bell
            reader.awake()

A reader that nobody waits for may be lapped: the guest frees what it has applied and what required destinations hold.
The ring says so (`freed` is published before anything is overwritten), and the reader goes on where the log still is.
"""

from __future__ import annotations

from everram.runtime.log.record import Record, RecordType
from everram.runtime.log.ring import Ring, RingCorrupt
from everram.runtime.log.window import Window


class LogReader:
    """Reads from `lsn` on; `lsn` is then up to where it has read. `skipped_bytes` counts what it was lapped by."""

    def __init__(self, ring: Ring, lsn: int) -> None:
        self.ring = ring
        self.lsn = lsn
        self.skipped_bytes = 0

    def run(self, max_bytes: int) -> list[Record]:
        """The next committed records, pads left out, about `max_bytes` of them; empty if there are none now.

        Raises RingCorrupt for a committed record that is not whole.
        """
        ring, tail = self.ring, self.ring.tail
        start = self.lsn
        found: list[Record] = []
        if tail < start:
            raise RingCorrupt(f"the log's tail went back from {start} to {tail}")
        window = Window(ring)
        while self.lsn < tail and (not found or self.lsn - start < max_bytes):
            at = ring.next_position(self.lsn)
            record = window.record_at(at)
            if self._lapped():
                return found
            if record is None:
                raise RingCorrupt(f"the record at {at} is damaged: the log was committed up to {tail}")
            self.lsn = record.end
            if record.type != RecordType.PAD:
                found.append(record)
        return found

    def verify(self, max_bytes: int) -> bool:
        """As `run`, for whoever wants to know only that the records are whole; whether there were any."""
        ring, tail = self.ring, self.ring.tail
        start = self.lsn
        if tail < start:
            raise RingCorrupt(f"the log's tail went back from {start} to {tail}")
        window = Window(ring)
        while self.lsn < tail and self.lsn - start < max_bytes:
            at = ring.next_position(self.lsn)
            end = window.end_of(at)
            if self._lapped():
                break
            if not end:
                raise RingCorrupt(f"the record at {at} is damaged: the log was committed up to {tail}")
            self.lsn = end
        return self.lsn > start

    def _lapped(self) -> bool:
        """Whether what was just read may have been overwritten while it was; then go on where the log still is."""
        if self.lsn >= self.ring.freed:
            return False
        applied = self.ring.applied
        self.skipped_bytes += applied - self.lsn
        self.lsn = applied
        return True

    def announce_sleep(self) -> bool:
        """Say that the bell is wanted; False if there is something to read after all."""
        self.ring.set_reader_sleeps(True)
        # Again after saying so: a guest that published before saw nobody asleep and rang no bell. The processor may
        # still let this load pass that store, so whoever sleeps wakes up by itself after a while too.
        return self.ring.tail == self.lsn

    def awake(self) -> None:
        self.ring.set_reader_sleeps(False)
