"""The log ring: its words, appending and reading along, epochs, laps, damage."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everram.runtime.log.reader import LogReader
from everram.runtime.log.record import HEADER_BYTES, Record, RecordFlags, RecordType, Store, pack_stores
from everram.runtime.log.replay import replay
from everram.runtime.log.ring import (
    APPLIED,
    APPLIED_COPY,
    DATA_OFFSET,
    DESTINATIONS,
    EPOCH,
    EPOCH_START,
    FREED,
    MIN_CAPACITY_BYTES,
    TAIL,
    WORD_MASK,
    Destination,
    Ring,
    RingCorrupt,
)
from everram.runtime.log.window import FIRST_BYTES, Window
from everram.runtime.log.writer import LogWriter, RingFull
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import Recording, power_losses, process_crashes

CAPACITY = MIN_CAPACITY_BYTES
GUEST_ID = "guest-1"


def new_ring(epoch: int = 1) -> Ring:
    return Ring.format(HeapMapping(Ring.total_bytes(CAPACITY)), guest_id=GUEST_ID, epoch=epoch, capacity_bytes=CAPACITY)


def commit(writer: LogWriter, payload: bytes, kind: int = RecordType.STORES, flags: int = RecordFlags.REQUIRED) -> int:
    lsn = writer.append(kind, flags, payload)
    writer.publish()
    writer.publish_applied()
    return lsn


def payloads(records: list[Record]) -> list[bytes]:
    return [record.payload for record in records]


# -- the header


def test_a_new_ring_is_empty_and_knows_its_guest() -> None:
    ring = new_ring(epoch=4)
    again = Ring.open(ring.mapping)
    assert (again.guest_id, again.capacity_bytes, again.epoch, again.features) == (GUEST_ID, CAPACITY, 4, 0)
    assert [again.tail, again.applied, again.freed, again.epoch_start, again.lease_deadline_ns] == [0] * 5
    assert not again.reader_sleeps
    assert [again.destination(slot) for slot in range(DESTINATIONS)] == [None] * DESTINATIONS


def test_words_are_kept_apart() -> None:
    ring = new_ring()
    ring.set_lease_deadline_ns(1)
    ring.set_throttle(2)
    ring.set_copies(3)
    ring.set_reader_sleeps(True)
    ring.set_tail(64)
    ring.set_applied(56)
    ring.set_freed(48)
    for slot in range(DESTINATIONS):
        ring.set_destination(slot, Destination(slot % 2 == 0, f"memory{slot}", slot))
    ring.set_durable(7, 2**63)
    again = Ring.open(ring.mapping)
    assert (again.lease_deadline_ns, again.throttle, again.copies, again.reader_sleeps) == (1, 2, 3, True)
    assert (again.tail, again.applied, again.freed) == (64, 56, 48)
    assert again.destination(6) == Destination(True, "memory6", 6)
    assert again.durable(7) == 2**63
    assert (again.required(), again.holding()) == ([0, 2, 4, 6], list(range(8)))
    again.set_destination(2, None)
    assert (again.required(), again.holding()) == ([0, 4, 6], [0, 1, 3, 4, 5, 6, 7])
    assert again.destination(2) is None


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("required", [False, True])
def test_a_slots_bits_are_independent_and_change_by_one_store(active: bool, required: bool) -> None:
    recording = Recording(bytes(Ring.total_bytes(CAPACITY)))
    ring = Ring.format(recording.map(0), guest_id=GUEST_ID, epoch=1, capacity_bytes=CAPACITY)
    with pytest.raises(ValueError, match="slot 1 is empty"):
        ring.set_slot_state(1, active=active, required=required)
    ring.set_destination(1, Destination(not required, "memory1", 8, not active))
    recording.restart()
    ring.set_slot_state(1, active=active, required=required)
    states = {state.memories[0] for state in process_crashes(recording)}
    assert len(states) == 2, "before the store and after it"
    assert ring.destination(1) == Destination(required, "memory1", 8, active)
    assert (ring.required(), ring.holding()) == ([1] if required else [], [1] if active else [])


def test_a_half_filled_slot_is_empty_or_what_it_was() -> None:
    recording = Recording(bytes(Ring.total_bytes(CAPACITY)))
    ring = Ring.format(recording.map(0), guest_id=GUEST_ID, epoch=1, capacity_bytes=CAPACITY)
    before, after = Destination(True, "before", 8), Destination(False, "after", 16, active=False)
    ring.set_destination(3, before)
    recording.restart()
    ring.set_destination(3, after)
    stream = Seeds(1).stream("power")
    for state in (*process_crashes(recording), *power_losses(recording, states_max=200, stream=stream)):
        mapping = HeapMapping(len(state.memories[0]))
        mapping.store(0, state.memories[0])
        assert Ring.open(mapping).destination(3) in (before, None, after)


@pytest.mark.parametrize("start", [8, CAPACITY - 16, CAPACITY, 5 * CAPACITY + 4096, 2**50])
def test_an_empty_log_may_begin_anywhere(start: int) -> None:
    mapping = HeapMapping(Ring.total_bytes(CAPACITY))
    Ring.format(mapping, guest_id=GUEST_ID, epoch=3, capacity_bytes=CAPACITY, start=start)
    ring = Ring.open(mapping)
    assert [ring.tail, ring.applied, ring.freed, ring.epoch_start, ring.surely_applied] == [start] * 5
    assert (ring.committed_end(), ring.epoch) == (start, 3)
    assert ring.begin_epoch(4) == start
    writer, reader = LogWriter(ring), LogReader(ring, start)
    written = [bytes([number]) * 700 for number in range(200)]
    read = []
    for payload in written:
        commit(writer, payload)
        read += payloads(reader.run(CAPACITY))
    assert (read, reader.skipped_bytes) == (written, 0)
    assert ring.freed <= ring.applied == ring.tail <= ring.freed + CAPACITY


@pytest.mark.parametrize("start", [-8, 4, 2**64])
def test_a_log_begins_where_a_record_can(start: int) -> None:
    with pytest.raises(ValueError, match="cannot begin"):
        Ring.format(HeapMapping(1 << 20), guest_id="g", epoch=0, capacity_bytes=CAPACITY, start=start)


@pytest.mark.parametrize("capacity", [0, 4096, CAPACITY + 1, CAPACITY * 2])
def test_a_ring_of_no_use_is_not_made(capacity: int) -> None:
    with pytest.raises(ValueError, match=r"capacity|fit"):
        Ring.format(HeapMapping(Ring.total_bytes(CAPACITY)), guest_id="g", epoch=0, capacity_bytes=capacity)


@pytest.mark.parametrize("guest_id", ["", "seventeen letters"])
def test_a_guest_id_has_1_to_16_bytes(guest_id: str) -> None:
    with pytest.raises(ValueError, match="guest_id"):
        Ring.format(HeapMapping(Ring.total_bytes(CAPACITY)), guest_id=guest_id, epoch=0, capacity_bytes=CAPACITY)


def edited(offset: int, data: bytes) -> HeapMapping:
    """A ring's memory with static fields changed and the checksum made right again."""
    mapping = new_ring().mapping
    mapping.store(offset, data)
    mapping.store_u64(120, zlib.crc32(mapping.load(0, 120)))
    assert isinstance(mapping, HeapMapping)
    return mapping


def test_versions_and_features() -> None:
    Ring.open(edited(10, b"\x09\0"))  # a later minor
    Ring.open(edited(32, b"\xff" * 8))  # optional features nobody knows
    with pytest.raises(RingCorrupt, match=r"2\.0.*1\.0"):
        Ring.open(edited(8, b"\x02\0"))
    with pytest.raises(RingCorrupt, match="0x20"):
        Ring.open(edited(24, b"\x20"))
    with pytest.raises(RingCorrupt, match="claims"):
        Ring.open(edited(16, (2 * CAPACITY).to_bytes(8, "little")))


def test_blank_and_short_memory_is_no_ring() -> None:
    with pytest.raises(RingCorrupt, match="too few"):
        Ring.open(HeapMapping(100))
    with pytest.raises(RingCorrupt, match="no log ring"):
        Ring.open(HeapMapping(Ring.total_bytes(CAPACITY)))


# -- appending and reading along


@given(st.lists(st.integers(0, CAPACITY // 2 - 2 * HEADER_BYTES), min_size=1, max_size=60), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_what_is_appended_is_read_in_order_over_many_laps(sizes: list[int], read_every: int) -> None:
    ring = new_ring()
    writer, reader = LogWriter(ring), LogReader(ring, 0)
    ring.set_destination(0, Destination(True, "m", 0))
    written: list[bytes] = []
    read: list[bytes] = []

    def catch_up() -> None:
        while records := reader.run(1024):
            read.extend(payloads(records))
        ring.set_durable(0, reader.lsn)

    for number, size in enumerate(sizes):
        payload = bytes([number % 256]) * size
        try:
            commit(writer, payload)
        except RingFull:
            catch_up()
            commit(writer, payload)
        written.append(payload)
        if number % read_every == 0:
            catch_up()
        assert ring.freed <= ring.applied <= ring.tail <= ring.freed + CAPACITY
    catch_up()
    assert read == written
    assert reader.skipped_bytes == 0


def test_records_lie_where_their_lsn_says_and_never_wrap() -> None:
    ring = new_ring()
    writer = LogWriter(ring)
    for _ in range(200):
        end = commit(writer, bytes(1000))
        start = end - 1048
        assert ring.record_at(start) == Record(start, 1, RecordType.STORES, RecordFlags.REQUIRED, GUEST_ID, bytes(1000))
        assert start % CAPACITY + 1048 <= CAPACITY


@pytest.mark.parametrize("lap", [0, 1])
def test_a_record_may_take_half_the_ring_and_no_more_wherever_it_would_begin(lap: int) -> None:
    ring = new_ring()
    writer = LogWriter(ring)
    for _ in range(lap):
        commit(writer, bytes(5000))
    largest = writer.largest_payload_bytes
    commit(writer, bytes(largest))
    commit(writer, bytes(largest))
    before = ring.tail
    with pytest.raises(ValueError, match="at most"):
        writer.append(RecordType.STORES, RecordFlags.REQUIRED, bytes(largest + 1))
    assert ring.tail == before


def test_a_full_ring_says_so_and_goes_on_when_there_is_room() -> None:
    ring = new_ring()
    ring.set_destination(3, Destination(True, "m", 0))
    ring.set_destination(4, Destination(True, "not reached, so not waited for", 0, active=False))
    writer = LogWriter(ring)
    with pytest.raises(RingFull):
        for _ in range(100):
            commit(writer, bytes(952))
    full_at = ring.tail
    assert CAPACITY - 2000 < full_at <= CAPACITY
    ring.set_durable(3, 1000)
    commit(writer, bytes(900))
    assert ring.freed <= 1000
    with pytest.raises(RingFull):
        commit(writer, bytes(952))
    assert LogReader(ring, full_at).run(10_000)[0].payload == bytes(900)


def test_a_destination_that_is_behind_what_was_freed_frees_nothing_back() -> None:
    ring = new_ring()
    writer = LogWriter(ring)
    for _ in range(100):
        commit(writer, bytes(952))
    freed = ring.freed
    assert freed > 0
    ring.set_destination(0, Destination(True, "new, and empty", 0))
    with pytest.raises(RingFull):
        for _ in range(200):
            commit(writer, bytes(952))
    assert ring.freed >= freed
    assert ring.tail - ring.freed <= CAPACITY


def test_a_reader_that_nobody_waits_for_may_be_lapped() -> None:
    ring = new_ring()
    writer, reader = LogWriter(ring), LogReader(ring, 0)
    for _ in range(3 * CAPACITY // 1000):
        commit(writer, bytes(952))
    assert reader.run(CAPACITY) == []
    assert reader.skipped_bytes == ring.tail == reader.lsn
    commit(writer, b"next")
    assert payloads(reader.run(CAPACITY)) == [b"next"]


def test_a_reader_overtaken_in_the_middle_gives_only_what_it_read_before() -> None:
    ring = new_ring()
    writer, reader = LogWriter(ring), LogReader(ring, 0)
    for number in range(10):
        commit(writer, bytes([number]) * 100)
    load, loads = ring.mapping.load, 0

    def overtaken(offset: int, length: int) -> bytes:
        nonlocal loads
        loads += 1
        if loads == 2:  # the first copy has six whole records and the beginning of a seventh
            for _ in range(100):
                commit(writer, bytes(1500))
        return load(offset, length)

    ring.mapping.load = overtaken  # type: ignore[method-assign]
    assert payloads(reader.run(CAPACITY)) == [bytes([number]) * 100 for number in range(6)]
    assert reader.lsn == ring.applied


def test_a_record_that_comes_after_a_copy_was_made_is_found_all_the_same() -> None:
    ring = new_ring()
    writer, window = LogWriter(ring), Window(ring)
    first = commit(writer, b"first")
    assert window.end_of(0) == first
    assert window.record_at(first) is None
    second = commit(writer, bytes(3 * FIRST_BYTES))
    assert window.end_of(first) == second
    found = window.record_at(first)
    assert found is not None
    assert (found.lsn, found.end, len(found.payload)) == (first, second, 3 * FIRST_BYTES)


def test_verifying_and_reading_go_equally_far() -> None:
    ring = new_ring()
    writer = LogWriter(ring)
    for number in range(300):  # several laps
        commit(writer, bytes(number * 7 % 1500))
    verifier, reader = LogReader(ring, ring.applied), LogReader(ring, ring.applied)
    for number in range(40):
        commit(writer, bytes(number * 31 % 900))
    while verifier.verify(4096):
        pass
    while reader.run(4096):
        pass
    assert verifier.lsn == reader.lsn == ring.tail
    position = ring.tail
    commit(writer, b"damaged")
    ring.mapping.store(ring.offset(position) + 50, b"x")
    with pytest.raises(RingCorrupt, match="damaged"):
        verifier.verify(4096)


def test_a_run_is_about_as_long_as_asked() -> None:
    ring = new_ring()
    writer, reader = LogWriter(ring), LogReader(ring, 0)
    for _ in range(10):
        commit(writer, bytes(952))
    assert [len(reader.run(2500)) for _ in range(5)] == [3, 3, 3, 1, 0]


def test_the_bell_rings_only_for_a_sleeper() -> None:
    ring = new_ring()
    rings: list[int] = []
    writer, reader = LogWriter(ring, lambda: rings.append(ring.tail)), LogReader(ring, 0)
    commit(writer, b"a")
    assert not reader.announce_sleep()
    reader.awake()
    assert rings == []
    reader.run(1000)
    assert reader.announce_sleep()
    tail = commit(writer, b"b")
    assert rings == [tail]
    reader.awake()
    commit(writer, b"c")
    assert len(rings) == 1


# -- epochs


def test_a_new_epoch_begins_where_the_old_one_ended() -> None:
    ring = new_ring()
    commit(LogWriter(ring), b"old")
    end = ring.tail
    assert ring.begin_epoch(5) == end
    assert (ring.epoch, ring.epoch_start, ring.tail) == (5, end, end)
    commit(LogWriter(ring), b"new")
    assert [(r.epoch, r.payload) for r in LogReader(ring, 0).run(1000)] == [(1, b"old"), (5, b"new")]
    for epoch in (0, 4, 5):
        with pytest.raises(ValueError, match="cannot follow"):
            ring.begin_epoch(epoch)


def test_a_late_record_of_an_older_epoch_is_never_valid() -> None:
    """A fenced incarnation that still runs writes where the new one will: its record is not taken."""
    ring = new_ring()
    old = LogWriter(ring)
    commit(old, b"told")
    ring.begin_epoch(2)
    start = ring.tail
    old.append(RecordType.STORES, RecordFlags.REQUIRED, b"late")
    assert ring.record_at(start) is None
    assert ring.begin_epoch(3) == start
    assert payloads(list(ring.chain(0))) == [b"told"]


def test_types_that_nobody_knows() -> None:
    ring, region = new_ring(), HeapMapping(100)
    writer = LogWriter(ring)
    writer.append(99, RecordFlags.NONE, b"a hint of a later everram")
    writer.publish()
    writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores([Store(0, 5, b"hello")]))
    writer.publish()
    assert replay(ring, [region]) == 1
    assert region.load(5, 5) == b"hello"
    assert ring.applied == ring.tail
    writer.append(99, RecordFlags.REQUIRED, b"")
    writer.publish()
    with pytest.raises(RingCorrupt, match="type 99"):
        replay(ring, [region])


def test_a_record_that_does_not_fit_its_region_is_refused_before_anything_is_applied() -> None:
    ring, region = new_ring(), HeapMapping(100)
    writer = LogWriter(ring)
    for stores in ([Store(0, 0, b"first")], [Store(0, 98, b"beyond")]):
        writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores(stores))
        writer.publish()
    with pytest.raises(RingCorrupt, match="outside"):
        replay(ring, [region])
    assert region.load(0, 100) == bytes(100)
    with pytest.raises(RingCorrupt, match="outside"):
        replay(ring, [None])


# -- damage


def history() -> tuple[bytes, list[bytes]]:
    """A ring's memory after a crash with the last transaction not applied, and what the region may be recovered to."""
    ring, region = new_ring(), HeapMapping(256)
    writer = LogWriter(ring)
    contents = []
    for number in range(40):
        stores = [Store(0, number % 20 * 8, bytes([number]) * 24), Store(0, 200, bytes([number]))]
        writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores(stores))
        writer.publish()
        contents.append(region.load(0, 256))
        if number < 39:
            for store in stores:
                region.store(store.offset, store.data)
            writer.publish_applied()
        if number == 20:
            ring.begin_epoch(2)
            writer = LogWriter(ring)
    before = region.load(0, 256)
    for store in stores:
        region.store(store.offset, store.data)
    return ring.mapping.load(0, ring.mapping.size_bytes), [before, region.load(0, 256)]


def recover(memory: bytes, before: bytes) -> bytes:
    """What the next incarnation makes of it. Raises RingCorrupt, or ValueError for an epoch that cannot follow."""
    log, region = HeapMapping(len(memory)), HeapMapping(256)
    log.store(0, memory)
    region.store(0, before)
    ring = Ring.open(log)
    assert ring.capacity_bytes == CAPACITY
    ring.begin_epoch(ring.epoch + 1)
    replay(ring, [region])
    return region.load(0, 256)


def used_bytes(memory: bytes) -> range:
    return range(DATA_OFFSET + int.from_bytes(memory[TAIL : TAIL + 8], "little"))


@pytest.mark.parametrize("flip", [0xFF, 0x10])
def test_every_flipped_header_byte_is_refused_or_does_no_harm(flip: int) -> None:
    memory, (before, after) = history()
    for at in range(DATA_OFFSET):
        damaged = bytearray(memory)
        damaged[at] ^= flip
        try:
            recovered = recover(bytes(damaged), before)
        except ValueError:
            assert at < EPOCH_START + 8
        else:
            assert recovered == after, f"byte {at}"


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_flipped_bytes_of_records_are_refused_or_do_no_harm(data: st.DataObject) -> None:
    memory, (before, after) = history()
    damaged = bytearray(memory)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(DATA_OFFSET, used_bytes(memory).stop + 100))] ^= data.draw(st.integers(1, 255))
    try:
        recovered = recover(bytes(damaged), before)
    except RingCorrupt as error:
        assert "damaged" in str(error)
    else:
        assert recovered == after


def test_every_flipped_byte_of_what_is_replayed_is_refused() -> None:
    memory, (before, after) = history()
    applied = int.from_bytes(memory[APPLIED : APPLIED + 8], "little")
    payload_end = used_bytes(memory).stop - 7  # then padding, which nobody looks at
    for at in range(DATA_OFFSET + applied, payload_end):
        damaged = bytearray(memory)
        damaged[at] ^= 0x10
        with pytest.raises(RingCorrupt, match="damaged"):
            recover(bytes(damaged), before)
    assert recover(memory, before) == after


def test_a_damaged_applied_word_skips_nothing() -> None:
    """Even if it happens to name another record's beginning."""
    memory, (before, after) = history()
    positions = [record.lsn for record in Ring.open(mapping_of(memory)).chain(0)]
    tail = Ring.open(mapping_of(memory)).tail
    for word in (APPLIED, APPLIED_COPY):
        for position in [*positions, tail]:
            log = mapping_of(memory)
            log.store_u64(word, position if word == APPLIED else ~position & WORD_MASK)
            assert recover(log.load(0, len(memory)), before) == after


def mapping_of(memory: bytes) -> HeapMapping:
    mapping = HeapMapping(len(memory))
    mapping.store(0, memory)
    return mapping


WORDS: list[tuple[int, Callable[[Ring], int]]] = [
    (TAIL, lambda ring: ring.applied - 8),
    (TAIL, lambda ring: ring.tail + 2 * CAPACITY),
    (TAIL, lambda ring: ring.tail + 4),
    (APPLIED, lambda ring: ring.tail + 8),
    (FREED, lambda ring: ring.tail + 8),
    (EPOCH, lambda ring: ring.epoch - 1),
]


@pytest.mark.parametrize(("word", "value"), WORDS)
def test_words_that_contradict_each_other_are_refused(word: int, value: Callable[[Ring], int]) -> None:
    memory, (before, _) = history()
    log = mapping_of(memory)
    log.store_u64(word, value(Ring.open(log)))
    with pytest.raises(RingCorrupt):
        recover(log.load(0, len(memory)), before)


def test_a_reader_says_that_a_committed_record_is_damaged() -> None:
    ring = new_ring()
    commit(LogWriter(ring), b"one")
    end = commit(LogWriter(ring), b"two")
    ring.mapping.store(ring.offset(end - 56) + HEADER_BYTES, b"T")
    reader = LogReader(ring, 0)
    with pytest.raises(RingCorrupt, match="damaged"):
        reader.run(1000)
