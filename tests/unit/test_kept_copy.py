"""One kept copy: what it acknowledges it can apply, whatever lies in its log region and wherever its host dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from everram.actors.replicator import kept_copy
from everram.actors.replicator.kept_copy import KeptCopy, Run
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import NotFound, ResourceExhausted
from everram.runtime.log.record import HEADER_BYTES, RecordFlags, RecordType, Store, pack, pack_stores
from everram.runtime.log.ring import DATA_OFFSET, EPOCH_START, MIN_CAPACITY_BYTES, Ring, RingCorrupt
from everram.runtime.log.writer import LogWriter
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import CrashState, Recording, power_losses, process_crashes

GUEST_ID = "0123456789abcdef"
CAPACITY = MIN_CAPACITY_BYTES
REGION_BYTES = 4096
LOG, FIRST, SECOND = 0, 1, 2
EPOCH, START = 3, 5 * CAPACITY + 8 * 1000


class RecordedObject:
    def __init__(self, recording: Recording, number: int) -> None:
        self._recording, self._number = recording, number

    def map(self) -> Mapping:
        return self._recording.map(self._number)


class RecordedMemory:
    """The part of a memory that a copy needs."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def open(self, name: str) -> MemoryObject:
        names = ("log", "first", "second")
        if name not in names:
            raise NotFound(name)
        return cast("MemoryObject", RecordedObject(self._recording, names.index(name)))


def record_of(*, start: int = START) -> Copy:
    regions = [
        pb.Region(name="first", kind=pb.LOGGED, arena="first", size_bytes=REGION_BYTES),
        pb.Region(name="scratch", kind=pb.MAPPED, arena="nowhere", size_bytes=REGION_BYTES),
        pb.Region(name="second", kind=pb.LOGGED, arena="second", size_bytes=REGION_BYTES),
    ]
    guest = pb.Guest(guest_id=GUEST_ID, name="test", regions=regions, epoch=EPOCH)
    return Copy(
        guest=guest, copy_id="c", complete=True, epoch=EPOCH, lsn=start, log="log", log_epoch=EPOCH, promised_epoch=0
    )


class Primary:
    """A guest's ring at its primary, and what is shipped of it."""

    def __init__(self, start: int = START) -> None:
        mapping = HeapMapping(Ring.total_bytes(CAPACITY))
        self.ring = Ring.format(mapping, guest_id=GUEST_ID, epoch=EPOCH, capacity_bytes=CAPACITY, start=start)
        self.writer = LogWriter(self.ring)
        self.shipped = start

    def commit(self, *stores: Store) -> int:
        end = self.writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores(stores))
        self.writer.publish()
        self.writer.publish_applied()
        return end

    def operate(self, record_type: RecordType, operation: LogOperation) -> None:
        self.writer.append(record_type, RecordFlags.REQUIRED, operation.SerializeToString())
        self.writer.publish()
        self.writer.publish_applied()

    def ship(self, log: Mapping, limit: int | None = None) -> None:
        """One-sidedly, in two parts where it wraps."""
        limit = self.ring.tail if limit is None else limit
        while self.shipped < limit:
            at = self.shipped % CAPACITY
            length = min(limit - self.shipped, CAPACITY - at)
            log.persist(DATA_OFFSET + at, self.ring.mapping.load(DATA_OFFSET + at, length))
            self.shipped += length


class Kept:
    """A copy on recorded memory."""

    def __init__(self, start: int = START) -> None:
        self.recording = Recording(bytes(Ring.total_bytes(CAPACITY)), bytes(REGION_BYTES), bytes(REGION_BYTES))
        self.log = self.recording.map(LOG)
        Ring.format(self.log, guest_id=GUEST_ID, epoch=EPOCH, capacity_bytes=CAPACITY, start=start)
        self.copy = KeptCopy(record_of(start=start), cast("Memory", RecordedMemory(self.recording)))

    def take(self, acknowledge: Callable[[int], None] = lambda lsn: None) -> int:
        """Everything there is, as the keeper takes it; how many runs."""
        runs = 0
        while run := self.copy.verify():
            runs += 1
            acknowledge(self.copy.held)
            self.copy.apply(run)
        return runs


def catch_up(copy: KeptCopy) -> KeptCopy:
    """As the keeper does before anything else."""
    while run := copy.unapplied():
        copy.apply(run)
    return copy


def settle(copy: KeptCopy) -> str:
    async def apply(run: Run) -> None:
        copy.apply(run)

    return asyncio.run(copy.settle(apply))


def regions_of(recording: Recording) -> tuple[bytes, bytes]:
    return bytes(recording.contents[FIRST]), bytes(recording.contents[SECOND])


def again(recording: Recording, *, start: int = START) -> KeptCopy:
    """What the host's successor makes of the memory."""
    return catch_up(KeptCopy(record_of(start=start), cast("Memory", RecordedMemory(recording))))


def losses(recording: Recording) -> Iterator[CrashState]:
    return power_losses(recording, states_max=150, stream=Seeds(1).stream("power"))


# -- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crashes", [process_crashes, losses])
def test_wherever_its_host_dies_the_next_has_what_was_acknowledged(
    crashes: Callable[[Recording], Iterator[CrashState]],
) -> None:
    primary, kept = Primary(), Kept()
    contents = {START: regions_of(kept.recording)}
    ends = [
        primary.commit(Store(0, 0, b"a" * 40), Store(2, 8, b"b" * 8)),
        primary.commit(Store(0, 16, b"c" * 40)),
        primary.commit(Store(2, 0, b"d" * 16), Store(0, 0, b"e" * 8)),
    ]
    whole = Kept()
    for end in ends:
        Primary.ship(primary, whole.log, end)
        whole.take()
        contents[end] = regions_of(whole.recording)
    primary.shipped = START
    kept.recording.restart()
    for end in ends:
        primary.ship(kept.log, end)
        kept.take(acknowledge=kept.recording.mark)
        kept.recording.mark("told")
    states = 0
    seen = set()
    for state in crashes(kept.recording):
        if (state.memories, state.marks) in seen:
            continue
        seen.add((state.memories, state.marks))
        states += 1
        recording = Recording(*state.memories)
        copy = again(recording)
        acknowledged = max((mark for mark in state.marks if isinstance(mark, int)), default=START)
        assert copy.held >= acknowledged
        assert regions_of(recording) == contents[copy.held], "applied up to what is held, and not a byte beyond"
        assert settle(copy) == ""
        assert regions_of(recording) == contents[copy.record.lsn]
        assert copy.record.lsn >= acknowledged
    assert states > 50


def test_a_hole_before_the_tail_is_no_copy() -> None:
    """Its host died before it had applied what it acknowledged, and that is not whole in the log region any more."""
    primary, kept = Primary(), Kept()
    primary.commit(Store(0, 0, b"a" * 40))
    primary.ship(kept.log)
    assert kept.copy.verify() is not None
    kept.log.store(DATA_OFFSET + START % CAPACITY + 60, b"!")
    with pytest.raises(RingCorrupt, match="damaged"):
        again(kept.recording)
    assert kept.copy.record.complete
    assert "damaged" in settle(kept.copy)
    assert not kept.copy.record.complete, "nobody goes on from what is less than it has acknowledged"


# -- what lies in the log region --------------------------------------------------------------------------------------


def whole(
    lsn: int, payload: bytes, *, epoch: int = EPOCH, guest: str = GUEST_ID, kind: int = 2, flags: int = 1
) -> bytes:
    return pack(lsn, epoch, kind, flags, guest.encode().ljust(16, b"\0"), payload)


STORES = pack_stores([Store(0, 0, b"x" * 8)])


@pytest.mark.parametrize(
    "found",
    [
        bytes(64),
        b"\xff" * 64,
        whole(START, STORES)[:-1] + b"?",
        whole(START, STORES)[:40],
        whole(START + 8, STORES),
        whole(START - 8 * 8192, STORES),
        whole(START + CAPACITY, STORES),
        whole(START - CAPACITY, STORES),
        whole(START, STORES, epoch=EPOCH - 1),
        whole(START, STORES, epoch=EPOCH + 1),
        whole(START, STORES, guest="another"),
        whole(START, STORES, guest=""),
    ],
    ids=["zeros", "ones", "a bit", "cut off", "later", "earlier", "a lap ahead", "a lap behind", "replayed old stream",
         "of a later epoch", "of another guest", "of nobody"],
)  # fmt: skip
def test_what_is_no_record_of_this_log_is_not_taken(found: bytes) -> None:
    kept = Kept()
    kept.log.persist(DATA_OFFSET + START % CAPACITY, found)
    assert kept.take() == 0
    assert (kept.copy.held, settle(kept.copy)) == (START, "")
    assert regions_of(kept.recording) == (bytes(REGION_BYTES), bytes(REGION_BYTES))


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (whole(START, pack_stores([Store(0, REGION_BYTES - 4, b"x" * 8)])), "outside region 0"),
        (whole(START, pack_stores([Store(0, 1 << 63, b"x" * 8)])), "outside region 0"),
        (whole(START, pack_stores([Store(1, 0, b"x" * 8)])), "outside region 1"),
        (whole(START, pack_stores([Store(7, 0, b"x" * 8)])), "outside region 7"),
        (whole(START, pack_stores([Store(0, 0, b"y" * 8), Store(9, 0, b"x" * 8)])), "outside region 9"),
        (whole(START, STORES[:10]), "header is cut off"),
        (whole(START, STORES[:-1]), "8 bytes is cut off"),
        (whole(START, b"", kind=99), "type 99"),
    ],
    ids=[
        "past the end",
        "far away",
        "into a mapped region",
        "into none",
        "in part",
        "half a store",
        "less",
        "later type",
    ],
)
def test_a_valid_record_that_makes_no_sense_is_not_acknowledged(found: bytes, complaint: str) -> None:
    kept = Kept()
    kept.log.persist(DATA_OFFSET + START % CAPACITY, found)
    with pytest.raises(RingCorrupt, match=complaint):
        kept.copy.verify()
    assert kept.copy.held == START
    assert regions_of(kept.recording) == (bytes(REGION_BYTES), bytes(REGION_BYTES))
    assert complaint in settle(kept.copy)
    assert again(kept.recording).held == START, "and the host's successor starts with the copy as it was"


def test_what_lies_before_a_record_that_makes_no_sense_is_taken() -> None:
    primary, kept = Primary(), Kept()
    end = primary.commit(Store(0, 0, b"a" * 8))
    primary.commit(Store(0, REGION_BYTES, b"b" * 8))
    primary.ship(kept.log)
    run = kept.copy.verify()
    assert run is not None
    assert run.end == kept.copy.held == end
    kept.copy.apply(run)
    assert "outside region 0" in settle(kept.copy)
    assert kept.copy.record.lsn == end


def test_an_optional_record_of_a_later_version_is_passed_over() -> None:
    kept = Kept()
    kept.log.persist(DATA_OFFSET + START % CAPACITY, whole(START, b"", kind=99, flags=0))
    assert kept.take() == 1
    assert kept.copy.held == START + HEADER_BYTES


def test_half_a_record_is_taken_when_its_rest_has_come() -> None:
    primary, kept = Primary(), Kept()
    end = primary.commit(Store(0, 0, b"a" * 4000))
    primary.ship(kept.log, START + 1000)
    assert kept.take() == 0
    primary.ship(kept.log)
    assert kept.take() == 1
    assert kept.copy.held == end


def test_records_of_the_epochs_before_are_taken_up_to_where_this_one_began() -> None:
    start = 0
    mapping = HeapMapping(Ring.total_bytes(CAPACITY))
    ring = Ring.format(mapping, guest_id=GUEST_ID, epoch=1, capacity_bytes=CAPACITY)
    for epoch in (2, EPOCH):
        writer = LogWriter(ring)
        writer.append(RecordType.STORES, RecordFlags.REQUIRED, STORES)
        writer.publish()
        writer.publish_applied()
        ring.begin_epoch(epoch)
    LogWriter(ring).append(RecordType.STORES, RecordFlags.REQUIRED, STORES)
    kept = Kept(start)
    kept.copy.ring.publish(EPOCH_START, ring.epoch_start)  # type: ignore[union-attr]
    kept.log.persist(DATA_OFFSET, mapping.load(DATA_OFFSET, CAPACITY))
    assert kept.take() == 1
    assert kept.copy.held == ring.epoch_start + HEADER_BYTES + len(STORES)
    old = whole(kept.copy.held, STORES, epoch=2)
    kept.log.persist(DATA_OFFSET + kept.copy.held, old)
    assert kept.take() == 0, "beyond it a record of an earlier epoch is a replayed one"


# -- many laps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, START, CAPACITY - 8, CAPACITY - HEADER_BYTES, 5 * CAPACITY - 40])
def test_a_copy_follows_over_many_laps_half_a_ring_behind_at_most(start: int) -> None:
    """By the shipper's rule: never beyond half a ring from what is acknowledged. Every record must get through, also
    one of the largest size, behind a gap at the circle's end; and nothing may be overwritten before it is applied."""
    primary, kept = Primary(start), Kept(start)
    acknowledged = start
    stream = Seeds(2).stream("sizes")
    largest = primary.writer.largest_payload_bytes - 16
    for number in range(60):
        room = primary.ring.room_before_end(primary.ring.tail)
        to_gap = room - 24 - HEADER_BYTES - 16
        size = (largest, min(largest, to_gap) if to_gap > 0 else 8, stream.randrange(1, 3000))[number % 3]
        payload = pack_stores([Store(0, 0, bytes([number]) * min(size, REGION_BYTES))])
        payload += pack_stores([Store(2, 0, b"")]) * ((size - min(size, REGION_BYTES)) // 16)
        end = primary.writer.append(RecordType.STORES, RecordFlags.REQUIRED, payload)
        primary.writer.publish()
        primary.writer.publish_applied()
        while acknowledged < end:
            before = acknowledged
            primary.ship(kept.log, max(primary.shipped, min(end, acknowledged + CAPACITY // 2)))
            run = kept.copy.verify()
            if run is not None:
                acknowledged = kept.copy.held
                # The primary goes on at once, and the host dies before it has applied anything of this run.
                primary.ship(kept.log, max(primary.shipped, min(end, acknowledged + CAPACITY // 2)))
                again(kept.recording, start=start).close()
                kept.copy.apply(run)
            assert acknowledged > before, f"record {number} of {size} bytes never arrives"
        assert kept.recording.contents[FIRST][0] == number


def test_a_lost_region_is_told() -> None:
    kept = Kept()
    record = record_of()
    record.guest.regions[0].arena = "gone"
    with pytest.raises(NotFound):
        KeptCopy(record, cast("Memory", RecordedMemory(kept.recording)))


# -- operations -------------------------------------------------------------------------------------------------------


def test_an_operation_is_carried_out_between_what_was_before_it_and_what_came_after() -> None:
    primary, kept = Primary(), Kept()
    primary.commit(Store(0, 0, b"before"))
    primary.operate(RecordType.SNAPSHOT, LogOperation(name="s", regions=["first"]))
    primary.commit(Store(0, 0, b"after!"))
    primary.ship(kept.log)
    seen: list[tuple[str, bytes]] = []
    while run := kept.copy.verify():
        if run.operation is not None:
            assert run.targets == []
            assert (run.operation.epoch, run.operation.type) == (EPOCH, RecordType.SNAPSHOT)
            seen.append((run.operation.what.name, regions_of(kept.recording)[0][:6]))
        kept.copy.apply(run)
    assert seen == [("s", b"before")]
    assert regions_of(kept.recording)[0][:6] == b"after!"


def test_an_operation_that_was_held_and_not_carried_out_is_found_by_the_next_host() -> None:
    primary, kept = Primary(), Kept()
    primary.commit(Store(0, 0, b"before"))
    primary.operate(RecordType.SNAPSHOT, LogOperation(name="s", regions=["first"]))
    primary.commit(Store(0, 0, b"after!"))
    primary.ship(kept.log)
    while kept.copy.verify():
        pass  # its host dies after it has acknowledged all, before it applies any of it
    successor = KeptCopy(record_of(), cast("Memory", RecordedMemory(kept.recording)))
    assert successor.held == primary.ring.tail
    runs: list[str] = []
    while run := successor.unapplied():
        runs.append(run.operation.what.name if run.operation else "stores")
        successor.apply(run)
    assert runs == ["stores", "s", "stores"]


def test_an_operation_that_cannot_be_read_is_not_acknowledged() -> None:
    primary, kept = Primary(), Kept()
    held = primary.commit(Store(0, 0, b"before"))
    primary.writer.append(RecordType.SNAPSHOT, RecordFlags.REQUIRED, b"\xff\xff")
    primary.writer.publish()
    primary.ship(kept.log)
    run = kept.copy.verify()
    assert run is not None
    kept.copy.apply(run)
    assert kept.copy.held == held
    with pytest.raises(RingCorrupt, match="an operation that cannot be read"):
        kept.copy.verify()


@pytest.mark.parametrize("stores", [6, 1], ids=["many stores", "one store"])
def test_a_run_of_more_pages_than_may_be_dirty_is_applied_in_the_end(
    stores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is flushed between two attempts is not charged again."""
    monkeypatch.setattr(kept_copy, "PIECE_BYTES", PAGE_BYTES)
    pages, cap_pages = 6, 3
    data = Seeds(1).stream("data").randbytes(pages * PAGE_BYTES)
    recording = Recording(bytes(Ring.total_bytes(CAPACITY)), bytes(len(data)), bytes(REGION_BYTES))
    primary, log = Primary(), recording.map(LOG)
    Ring.format(log, guest_id=GUEST_ID, epoch=EPOCH, capacity_bytes=CAPACITY, start=START)
    guard = FewDirtyPages(cap_pages)
    copy = KeptCopy(record_of(), cast("Memory", RecordedMemory(recording)), cast("PageGuard", guard))
    length = len(data) // stores
    for at in range(0, len(data), length):
        primary.commit(Store(0, at, data[at : at + length]))
    primary.ship(log)
    refused = 0
    while run := copy.unapplied() or copy.verify():
        while True:
            try:
                copy.apply(run)
                break
            except ResourceExhausted:
                refused += 1
                assert refused < 2 * pages
                guard.flush(1)
    assert refused
    assert bytes(recording.contents[FIRST]) == data


class FewDirtyPages:
    """A guard that charges stores page by page, and what is flushed of it."""

    def __init__(self, cap_pages: int) -> None:
        self._cap_pages = cap_pages
        self._dirty: list[int] = []

    def before_store(self, arena: str, offset: int, length: int) -> None:
        for page in range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1):
            if page in self._dirty:
                continue
            if len(self._dirty) == self._cap_pages:
                raise ResourceExhausted("as much as may be is dirty")
            self._dirty.append(page)

    def flush(self, pages: int) -> None:
        """Those that have been dirty for longest."""
        del self._dirty[:pages]
