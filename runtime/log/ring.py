"""The log ring: one guest's log in shared memory, a header of single words and a circle of records.

The guest appends (`writer`), the host reads (`reader`), either may die at any store. Positions are LSNs: bytes since
the log began, never wrapping; the byte at LSN x lies at `DATA_OFFSET + x % capacity`. Each word has a cache line of its
own and one writer; it is published by one 8-byte store:

    tail        guest   everything before it is committed
    applied     guest   everything before it is in the regions
    freed       guest   records before it may be overwritten; min(applied, durable LSN of every active destination)
    epoch       host    of the current incarnation
    epoch start host    where it began: records before are of older epochs, records from here on of this one
    lease       host    CLOCK_MONOTONIC in ns until which the guest may serve; 0: no lease is kept
    throttle    host    how many bytes of log may be outstanding; 0: as many as the ring holds
    sleeping    host    1 while the reader sleeps and wants the bell
    copies      host    how many other hosts must hold a record before it counts as replicated
    committing  guest   1 from the beginning of a commit to its end, else 2; 0: not yet said; 3: it has ended
    slots       host    for each destination: state bits, memory_id, durable LSN

applied <= tail, freed <= applied, tail - freed <= capacity. docs/formats.md describes every field.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from everram.runtime.log import record as records
from everram.runtime.log.record import HEADER_BYTES, Record, RecordType
from everram.runtime.log.window import Window
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MAGIC = b"EVRMRING"
MAJOR, MINOR = 1, 0
REQUIRED_FEATURES_KNOWN = 0
DATA_OFFSET = PAGE_BYTES
MIN_CAPACITY_BYTES = 64 * 1024
"""Room for a few records of the largest size that such a ring allows."""
DEFAULT_CAPACITY_BYTES = 4 * 1024 * 1024
"""Seconds of a busy guest's writes while a destination is slow."""
MAX_CAPACITY_BYTES = 16 * 1024**3
DESTINATIONS = 8
"""Slots; more copies than that have no use and would cost the guest time at every commit."""
COPIES_MAX = DESTINATIONS // 2
"""That a guest may have: one that is being replaced takes two slots."""
GUEST_ID_BYTES = 16

_STATIC = struct.Struct("<8sHHIQQQ16s")
_STATIC_CRC_AT = 120
_LINE = 64
TAIL, APPLIED, FREED, EPOCH, EPOCH_START, LEASE, THROTTLE, SLEEPING, COPIES, COMMITTING = (
    128 + i * _LINE for i in range(10)
)
"""Offsets of the words."""
UNSAID, BUSY, IDLE, ENDED = 0, 1, 2, 3
"""What `committing` says. While a guest that is idle stands still its host may append to the log: see `LogWriter`.
ENDED: no process has this log, and none will before a new epoch begins."""
APPLIED_COPY = APPLIED + 8
"""The complement of `applied`, stored just before it: the one word whose damage no checksum would show."""
WORD_MASK = (1 << 64) - 1
_SLOTS = 1024
_STATE_WORDS = tuple(range(_SLOTS // 8, (_SLOTS + DESTINATIONS * _LINE) // 8, _LINE // 8))
"""Where each destination's state is, as the number of its word."""
SLOT_ACTIVE, SLOT_REQUIRED, SLOT_TAKEN = 1, 2, 4
"""Bits of a slot's state; independent, but none without the last: an empty slot is 0."""


def log_name(guest_id: str, log_id: str = "") -> str:
    """Of the memory object that holds a guest's ring; with a log_id, of one copy of it."""
    return f"log.{guest_id}" + (f"@{log_id}" if log_id else "")


class RingCorrupt(ValueError):
    """The ring is not what a guest's log can be; the message says what was found."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One slot: another host's memory that records are shipped to.

    A member that cannot be reached is required and not active: the log goes on without it, waits do not. One that is
    being filled is active and not required.
    """

    required: bool
    """`wait_replicated` needs it: what it has not acknowledged does not count as replicated."""
    memory_id: str
    durable_lsn: int
    active: bool = True
    """The log keeps what it has not acknowledged."""


class Ring:
    """A guest's ring in `mapping`. Make one with `format` (new) or `open` (existing)."""

    def __init__(self, mapping: Mapping, guest: bytes, capacity_bytes: int) -> None:
        self.mapping = mapping
        self.guest = guest
        self.capacity_bytes = capacity_bytes

    @staticmethod
    def total_bytes(capacity_bytes: int) -> int:
        """Size of the memory object that a ring of this capacity needs."""
        return DATA_OFFSET + capacity_bytes

    @staticmethod
    def format(mapping: Mapping, *, guest_id: str, epoch: int, capacity_bytes: int, start: int = 0) -> Ring:
        """Make an empty ring whose log begins at `start`, as if all before it had been there and been given up.

        The static header goes in last, so a half-made ring is none. Raises ValueError.
        """
        if capacity_bytes % PAGE_BYTES or not MIN_CAPACITY_BYTES <= capacity_bytes <= MAX_CAPACITY_BYTES:
            raise ValueError(f"a ring's capacity is whole pages from {MIN_CAPACITY_BYTES} bytes, not {capacity_bytes}")
        if Ring.total_bytes(capacity_bytes) > mapping.size_bytes:
            raise ValueError(f"a ring of {capacity_bytes} bytes does not fit into {mapping.size_bytes}")
        if start % records.ALIGNMENT_BYTES or not 0 <= start < WORD_MASK:
            raise ValueError(f"a log cannot begin at {start}: records lie at multiples of {records.ALIGNMENT_BYTES}")
        guest = guest_id.encode()
        if not 0 < len(guest) <= GUEST_ID_BYTES:
            raise ValueError(f"{guest_id!r} is not a guest_id")
        guest = guest.ljust(GUEST_ID_BYTES, b"\0")
        mapping.persist(0, bytes(DATA_OFFSET))
        mapping.publish_u64(EPOCH, epoch)
        ring = Ring(mapping, guest, capacity_bytes)
        ring.set_tail(start)
        ring.set_applied(start)
        ring.set_freed(start)
        ring.publish(EPOCH_START, start)
        static = _STATIC.pack(MAGIC, MAJOR, MINOR, DATA_OFFSET, capacity_bytes, 0, 0, guest).ljust(
            _STATIC_CRC_AT, b"\0"
        )
        mapping.persist(0, static + zlib.crc32(static).to_bytes(8, "little"))
        return ring

    @staticmethod
    def open(mapping: Mapping) -> Ring:
        """Raises RingCorrupt for anything but a ring of a version and with features that this code knows."""
        if mapping.size_bytes < DATA_OFFSET:
            raise RingCorrupt(f"{mapping.size_bytes} bytes are too few for a log ring")
        static = mapping.load(0, _STATIC_CRC_AT)
        magic, major, minor, header_bytes, capacity, required, _, guest = _STATIC.unpack_from(static)
        if magic != MAGIC:
            raise RingCorrupt(f"there is no log ring: it begins with {magic!r}")
        if mapping.load_u64(_STATIC_CRC_AT) != zlib.crc32(static):
            raise RingCorrupt("the ring's header does not match its checksum")
        if (major, minor) > (MAJOR, MINOR) and major != MAJOR:
            raise RingCorrupt(f"the ring is of version {major}.{minor}; this everram reads up to {MAJOR}.{MINOR}")
        if required & ~REQUIRED_FEATURES_KNOWN:
            raise RingCorrupt(f"the ring needs features {required:#x}; this everram ({MAJOR}.{MINOR}) lacks some")
        if header_bytes != DATA_OFFSET or Ring.total_bytes(capacity) > mapping.size_bytes or capacity % PAGE_BYTES:
            raise RingCorrupt(f"the ring claims {capacity} bytes in a memory object of {mapping.size_bytes}")
        ring = Ring(mapping, guest, capacity)
        ring.check()
        return ring

    def check(self) -> None:
        """Raises RingCorrupt if the words contradict each other."""
        # Readers load in this order while the guest publishes: each word may only grow, so the relations still hold.
        freed, applied, tail = self.freed, self.applied, self.tail
        if not freed <= applied <= tail or tail - applied > self.capacity_bytes:
            raise RingCorrupt(f"the ring's words contradict each other: freed {freed}, applied {applied}, tail {tail}")
        if tail % records.ALIGNMENT_BYTES or applied % records.ALIGNMENT_BYTES:
            raise RingCorrupt(f"the ring's words are not positions of records: applied {applied}, tail {tail}")

    # -- words

    @property
    def guest_id(self) -> str:
        return self.guest.rstrip(b"\0").decode(errors="replace")

    @property
    def tail(self) -> int:
        return self.mapping.load_u64(TAIL)

    @property
    def applied(self) -> int:
        return self.mapping.load_u64(APPLIED)

    @property
    def surely_applied(self) -> int:
        """`applied`, or what its copy says if that is less: where to recover from, even if one of them is damaged.

        Between its two stores the copy is ahead. From too early a position the same is stored once more, which changes
        nothing; from a wrong one no record is found.
        """
        return min(self.applied, ~self.mapping.load_u64(APPLIED_COPY) & WORD_MASK)

    @property
    def freed(self) -> int:
        return self.mapping.load_u64(FREED)

    @property
    def epoch(self) -> int:
        return self.mapping.load_u64(EPOCH)

    @property
    def epoch_start(self) -> int:
        return self.mapping.load_u64(EPOCH_START)

    @property
    def lease_deadline_ns(self) -> int:
        return self.mapping.load_u64(LEASE)

    @property
    def throttle(self) -> int:
        return self.mapping.load_u64(THROTTLE)

    @property
    def reader_sleeps(self) -> bool:
        return self.mapping.load_u64(SLEEPING) != 0

    @property
    def copies(self) -> int:
        return self.mapping.load_u64(COPIES)

    @property
    def features(self) -> int:
        """The optional features of whoever formatted the ring."""
        return int.from_bytes(self.mapping.load(32, 8), "little")

    def publish(self, word: int, value: int) -> None:
        self.mapping.publish_u64(word, value)

    def set_tail(self, lsn: int) -> None:
        self.publish(TAIL, lsn)

    def set_applied(self, lsn: int) -> None:
        self.mapping.store_u64(APPLIED_COPY, ~lsn & WORD_MASK)
        self.publish(APPLIED, lsn)  # flushes both: they share a line

    def set_freed(self, lsn: int) -> None:
        self.publish(FREED, lsn)

    def set_lease_deadline_ns(self, deadline_ns: int) -> None:
        self.publish(LEASE, deadline_ns)

    def set_throttle(self, level: int) -> None:
        self.publish(THROTTLE, level)

    def set_reader_sleeps(self, sleeps: bool) -> None:
        self.publish(SLEEPING, int(sleeps))

    def set_copies(self, copies: int) -> None:
        self.publish(COPIES, copies)

    # -- destinations

    def destination(self, slot: int) -> Destination | None:
        """The destination in a slot, or None if it is empty."""
        at = _SLOTS + slot * _LINE
        state = self.mapping.load_u64(at)
        if not state:
            return None
        memory_id = self.mapping.load(at + 16, GUEST_ID_BYTES).rstrip(b"\0").decode(errors="replace")
        return Destination(bool(state & SLOT_REQUIRED), memory_id, self.durable(slot), bool(state & SLOT_ACTIVE))

    @staticmethod
    def durable_offset(slot: int) -> int:
        """Where the destination in `slot` acknowledges: one word, which it may write from afar."""
        return _SLOTS + slot * _LINE + 8

    def durable(self, slot: int) -> int:
        """Up to where the destination in `slot` has acknowledged."""
        return self.mapping.load_u64(_SLOTS + slot * _LINE + 8)

    def set_durable(self, slot: int, lsn: int) -> None:
        self.publish(self.durable_offset(slot), lsn)

    def set_destination(self, slot: int, destination: Destination | None) -> None:
        """Fill or clear a slot. Its state is published last, so a half-filled slot is an empty one."""
        at = _SLOTS + slot * _LINE
        self.publish(at, 0)
        if destination is None:
            return
        self.mapping.persist(at + 16, destination.memory_id.encode().ljust(GUEST_ID_BYTES, b"\0"))
        self.publish(at + 8, destination.durable_lsn)
        self.publish(at, _slot_state(destination.active, destination.required))

    def set_slot_state(self, slot: int, *, active: bool, required: bool) -> None:
        """Change both bits at once. Raises ValueError for an empty slot."""
        at = _SLOTS + slot * _LINE
        if not self.mapping.load_u64(at):
            raise ValueError(f"slot {slot} is empty: put a destination there first")
        self.publish(at, _slot_state(active, required))

    def holding(self) -> list[int]:
        """Slots whose destinations must hold a record before it may be overwritten."""
        states = self.mapping.load_words(_STATE_WORDS)
        return [slot for slot, state in enumerate(states) if state & SLOT_ACTIVE]

    def required(self) -> list[int]:
        """Slots whose destinations must hold a record before it counts as replicated."""
        states = self.mapping.load_words(_STATE_WORDS)
        return [slot for slot, state in enumerate(states) if state & SLOT_REQUIRED]

    # -- records

    def offset(self, lsn: int) -> int:
        return DATA_OFFSET + lsn % self.capacity_bytes

    def room_before_end(self, lsn: int) -> int:
        """Bytes between `lsn` and the end of the circle."""
        return self.capacity_bytes - lsn % self.capacity_bytes

    def next_position(self, lsn: int) -> int:
        """Where a record after `lsn` begins: what is too short for a header at the circle's end is passed over."""
        room = self.room_before_end(lsn)
        return lsn + room if room < HEADER_BYTES else lsn

    def record_at(self, lsn: int) -> Record | None:
        """The record at `lsn` if a valid one lies there."""
        return Window(self).record_at(lsn)

    def chain(self, lsn: int) -> Iterator[Record]:
        """The valid records from `lsn` on, in order, pads included; ends before the first that is not valid.

        At most one lap, so that it ends whatever lies in the ring.
        """
        limit = lsn + self.capacity_bytes
        at, window = self.next_position(lsn), Window(self)
        while at < limit:
            record = window.record_at(at)
            if record is None or record.end > limit:
                return
            yield record
            at = self.next_position(record.end)

    def committed_end(self) -> int:
        """Where the log ends: after the last valid record from `applied` on, at or after the tail.

        A record beyond the tail was whole but not yet published when its guest died: nobody was told of it, and taking
        it is as right as leaving it. Raises RingCorrupt if the valid records end before the tail.
        """
        self.check()
        end = self.surely_applied
        for record in self.chain(end):
            end = record.end
        tail = self.tail
        if end < tail and self.next_position(end) != tail:
            raise RingCorrupt(f"records between {end} and {tail} are damaged: the log was committed up to {tail}")
        return max(end, tail)

    def say_ended(self) -> None:
        """By the host, of a guest that has no process: whatever happens next is a new epoch."""
        self.publish(COMMITTING, ENDED)

    def begin_epoch(self, epoch: int) -> int:
        """Begin a new incarnation's epoch at the end of what its predecessor left; returns its first LSN.

        In this order, so that a crash between any two leaves every committed record valid: take what is whole, then say
        where the new epoch begins, then that it has. Raises ValueError for an epoch that is not higher, RingCorrupt.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} cannot follow {self.epoch}")
        end = self.committed_end()
        # What the dead guest stored last it may not have flushed: it has to be persistent before the tail covers it.
        for record in self.chain(self.tail):
            self.mapping.flush(self.offset(record.lsn), record.end - record.lsn)
        self.mapping.drain()
        self.set_tail(end)
        self.publish(COMMITTING, UNSAID)
        self.publish(EPOCH_START, end)
        self.publish(EPOCH, epoch)
        return end


def _slot_state(active: bool, required: bool) -> int:
    return SLOT_TAKEN | (SLOT_ACTIVE if active else 0) | (SLOT_REQUIRED if required else 0)


PASSED_OVER = frozenset({RecordType.PAD, *records.OPERATIONS})
"""By whoever brings regions to where the log is: operations were carried out by the host that appended them."""


def is_stores(record: Record) -> bool:
    """Whether to apply it. Raises RingCorrupt for a required type that this code does not know."""
    if record.type == RecordType.STORES:
        return True
    if record.type not in PASSED_OVER and record.flags & records.RecordFlags.REQUIRED:
        raise RingCorrupt(f"the record at {record.lsn} is of type {record.type}, which this everram does not know")
    return False
