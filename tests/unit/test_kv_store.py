"""The store of examples/kv.py against a dict: over restarts, crashes, full regions, and by its documented layout."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from everram.examples.keyvalue import heap
from everram.examples.keyvalue.heap import Full
from everram.examples.keyvalue.store import Store, TooLarge
from everram.runtime.guest import Guest, LogFull, RegionError
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Destination, Ring
from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.memory import Recording

GUEST_ID = "0123456789abcdef"
REGION_BYTES = 16 * 1024
"""128 chains, and soon full."""
TRANSACTION_BYTES = MIN_CAPACITY_BYTES // 2 - 256
TABLE, BINS, BIN_COUNT, UNIT = 4096, 128, 264, 16
"""The documented layout, on purpose not taken from the code."""
HEAD = struct.Struct("<IIQQII")
NOW_MS = 1_000_000

KEYS = st.integers(0, 25).map(b"%d".__mod__) | st.binary(max_size=6)
VALUES = st.binary(max_size=40) | st.integers(0, 3000).map(bytes)


class Died(BaseException):
    """The process, in the midst of a store."""


class Memory:
    """A guest's memory, and its incarnations."""

    def __init__(self, region_bytes: int = REGION_BYTES) -> None:
        self.log: Mapping = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.mapping: Mapping = HeapMapping(region_bytes)
        Ring.format(self.log, guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)

    def attach(self) -> Guest:
        ring = Ring.open(self.log)
        epoch = ring.epoch + 1
        ring.begin_epoch(epoch)
        region = Region("kv", 0, "logged", self.mapping, self.mapping.size_bytes)
        core = GuestCore(guest_id=GUEST_ID, name="kv", epoch=epoch, ring=ring, regions=[region], now_ns=lambda: 1)
        return Guest(core)

    def store(self) -> Store:
        me = self.attach()
        store = Store(me.begin, me.region("kv"), TRANSACTION_BYTES)
        store.now_ms = NOW_MS
        return store


def word(mapping: Mapping, at: int) -> int:
    return int.from_bytes(mapping.load(at, 8), "little")


def check_layout(mapping: Mapping) -> dict[bytes, bytes]:
    """Blocks lie side by side and none is lost; what the chains hold is what is in use. Returns keys and values."""
    assert mapping.load(0, 8) == b"EVRMKEYV"
    chains = word(mapping, 16)
    generation, end, last_units, count, expiring = struct.unpack("<5Q", mapping.load(64, 40))
    at, before, used, free = TABLE + 8 * chains, 0, set(), {}
    earlier_free = False
    while at < end:
        size, told, following, extra, key_bytes, value_bytes = HEAD.unpack(mapping.load(at, 32))
        units = size & 0x7FFFFFFF
        assert told == before and units >= 3
        if size >> 31:
            assert 32 + key_bytes + value_bytes <= units * UNIT
            used.add(at)
        else:
            assert not earlier_free, "free neighbours are one block"
            free[at] = (units, following, extra)
        earlier_free = not size >> 31
        at, before = at + units * UNIT, units
    assert at == end <= mapping.size_bytes
    assert last_units == before
    assert not earlier_free, "what is free at the end is given back"
    assert set(listed(mapping, free)) == free.keys()
    found: dict[bytes, bytes] = {}
    will_expire = 0
    for chain in range(chains):
        entry = word(mapping, TABLE + 8 * chain)
        at = (entry & (1 << 40) - 1) * UNIT if entry >> 40 == generation else 0
        while at:
            used.remove(at)
            _, _, following, extra, key_bytes, value_bytes = HEAD.unpack(mapping.load(at, 32))
            body = mapping.load(at + 32, key_bytes + value_bytes)
            key = body[:key_bytes]
            assert zlib.crc32(key) % chains == chain and key not in found
            found[key] = body[key_bytes:]
            will_expire += bool(extra)
            at = following
    assert not used
    assert (len(found), will_expire) == (count, expiring)
    return found


def listed(mapping: Mapping, free: dict[int, tuple[int, int, int]]) -> Iterator[int]:
    for number in range(BIN_COUNT):
        at, earlier = word(mapping, BINS + 8 * number), 0
        while at:
            units, following, told = free[at]
            assert told == earlier
            power = units.bit_length() - 1
            assert number == (units if units < 64 else 64 + (power - 6) * 8 + (units >> (power - 3)) % 8)
            yield at
            at, earlier = following, at


class StoreModel(RuleBasedStateMachine):
    """Beside a dict of value and deadline, with commits, rollbacks, restarts and a clock."""

    @initialize()
    def begin(self) -> None:
        self.memory = Memory()
        self.committed: dict[bytes, tuple[bytes, int]] = {}
        self.now_ms = NOW_MS
        self.restart()

    @rule()
    def restart(self) -> None:
        self.store = self.memory.store()
        self.store.now_ms = self.now_ms
        self.model = dict(self.committed)

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed = dict(self.model)
        held = check_layout(self.memory.mapping)
        assert {k: v for k, v in held.items() if k in self.alive()} == self.alive()

    @rule()
    def rollback(self) -> None:
        self.store.rollback()
        self.model = dict(self.committed)

    def alive(self) -> dict[bytes, bytes]:
        return {k: value for k, (value, ms) in self.model.items() if not ms or ms > self.now_ms}

    @rule(key=KEYS, value=VALUES, ttl_ms=st.just(0) | st.integers(1, 100))
    def set(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        expires_ms = self.now_ms + ttl_ms if ttl_ms else 0
        if self.store.crowded:
            self.commit()
        try:
            self.store.set(key, value, expires_ms)
        except Full:
            assert self.store.used_bytes + len(key) + len(value) + 64 > REGION_BYTES
        else:
            self.model[key] = (value, expires_ms)

    @rule(pairs=st.lists(st.tuples(KEYS, VALUES), max_size=6))
    def set_all(self, pairs: list[tuple[bytes, bytes]]) -> None:
        if self.store.crowded:
            self.commit()
        try:
            self.store.set_all(pairs)
        except (Full, TooLarge):
            return
        self.model.update({key: (value, 0) for key, value in pairs})

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        assert self.store.delete(key) == (key in self.alive())
        self.model.pop(key, None)

    @rule(key=KEYS, ttl_ms=st.just(0) | st.integers(1, 100))
    def set_expiry(self, key: bytes, ttl_ms: int) -> None:
        expires_ms = self.now_ms + ttl_ms if ttl_ms else 0
        self.store.set_expiry(key, expires_ms)
        if key in self.alive():
            self.model[key] = (self.model[key][0], expires_ms)

    @rule(passes_ms=st.integers(0, 40), sweep=st.booleans())
    def wait(self, passes_ms: int, sweep: bool) -> None:
        self.now_ms += passes_ms
        self.store.now_ms = self.now_ms
        if sweep:
            self.store.sweep(1000)
            assert self.store.crowded or len(self.store) == len(self.alive())

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model = {}

    @rule(count=st.integers(1, 30))
    def scan(self, count: int) -> None:
        cursor, keys = 0, []
        while True:
            cursor, more = self.store.scan(cursor, count)
            keys += more
            if not cursor:
                break
        assert sorted(keys) == sorted(self.alive())

    @invariant()
    def is_the_same(self) -> None:
        alive = self.alive()
        assert sorted(self.store.keys()) == sorted(alive)
        for key, value in alive.items():
            assert self.store.get(key) == value
            assert self.store.expires_ms(key) == self.model[key][1]


TestStore = StoreModel.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_blocks_are_used_again_whatever_their_sizes() -> None:
    """A region that is filled, emptied and filled with other sizes takes as much as a new one."""
    memory = Memory(256 * 1024)
    store, dice = memory.store(), random.Random(1)
    capacity = {}
    for size in (10, 700, 100, 3000, 10):
        number = 0
        while True:
            if store.crowded:
                store.commit()
            try:
                store.set(b"%d" % number, bytes(size))
            except Full:
                break
            number += 1
        capacity.setdefault(size, number)
        assert number == capacity[size]
        numbers = list(range(number))
        dice.shuffle(numbers)
        for number in numbers:
            store.make_room()
            assert store.delete(b"%d" % number)
        store.commit()
        assert check_layout(memory.mapping) == {}
        assert store.used_bytes == heap.TABLE_AT + 8 * store.heap.chains
    assert capacity[3000] * 3000 > 0.85 * 256 * 1024


def test_a_full_store_keeps_what_it_has_and_goes_on() -> None:
    memory = Memory()
    store = memory.store()
    stored = 0
    with pytest.raises(Full):
        while True:
            store.set(b"%d" % stored, bytes(500))
            stored += 1
    with pytest.raises(Full):
        store.set(b"0", bytes(5000))
    with pytest.raises(Full):
        store.set_all([(b"1", b"changed"), (b"0", bytes(5000))])
    store.set(b"2", bytes(499))
    store.commit()
    store = memory.store()
    assert {key: store.get(key) for key in list(store.keys())} == {
        b"%d" % n: bytes(499 if n == 2 else 500) for n in range(stored)
    }
    assert store.delete(b"3")
    store.set(b"new", bytes(500))


def test_an_entry_too_large_for_a_transaction() -> None:
    store = Memory(256 * 1024).store()
    store.set(b"k", bytes(store.entry_bytes_max - 1))
    with pytest.raises(TooLarge):
        store.set(b"k", bytes(store.entry_bytes_max))
    with pytest.raises(TooLarge):
        store.set_all((b"%d" % n, bytes(1000)) for n in range(100))
    assert list(store.keys()) == [b"k"]
    store.commit()


def test_killed_at_any_store_it_holds_a_whole_number_of_batches() -> None:
    dice = random.Random(7)
    recording = Recording(bytes(Ring.total_bytes(MIN_CAPACITY_BYTES)), bytes(REGION_BYTES))
    Ring.format(recording.map(0), guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
    memory = Memory()
    left = 10**9

    def before_store() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died

    recording.before_store = before_store
    committed: dict[bytes, bytes] = {}
    deaths, store = 0, None
    while deaths < 150:
        wanted = dict(committed)
        try:
            if store is None:
                memory.log, memory.mapping = recording.map(0), recording.map(1)
                store = memory.store()
                left = dice.randrange(150)
            for _ in range(dice.randrange(1, 6)):
                key = b"%d" % dice.randrange(20)
                if dice.random() < 0.4:
                    store.delete(key)
                    wanted.pop(key, None)
                elif dice.random() < 0.03:
                    store.clear()
                    wanted = {}
                else:
                    value = bytes([dice.randrange(256)]) * dice.randrange(300)
                    store.set(key, value)
                    wanted[key] = value
            store.commit()
            committed = wanted
        except Died:
            deaths, left = deaths + 1, 10**9
            memory.log, memory.mapping = recording.map(0), recording.map(1)
            store = memory.store()
            found = check_layout(memory.mapping)
            assert found in (committed, wanted)
            committed, store = found, None


def test_generations_that_are_used_up_begin_again() -> None:
    memory = Memory()
    store = memory.store()
    store.set(b"old", b"1")
    store.heap.generation = (1 << 24) - 2
    store.commit()
    store.clear()
    assert (len(store), store.get(b"old"), store.heap.generation) == (0, None, 1)
    store.set(b"new", b"2")
    store.commit()
    assert check_layout(memory.mapping) == {b"new": b"2"}


def test_an_incarnation_that_died_while_it_began_again_is_succeeded() -> None:
    memory = Memory()
    store = memory.store()
    store.set(b"old", b"1")
    store.commit()
    store.clear()
    store.heap.generation = (1 << 24) - 1  # this is what the first store of it leaves
    store.commit()
    store = memory.store()
    assert (len(store), store.heap.generation) == (0, 1)
    assert check_layout(memory.mapping) == {}
    assert not any(memory.mapping.load(TABLE, 8 * 128))


def test_what_is_something_else_is_left_alone() -> None:
    memory = Memory()
    memory.mapping.store_u64(0, 5)
    with pytest.raises(RegionError, match="region kv holds something else than keys and values of version 1"):
        memory.store()
    memory = Memory()
    memory.store()
    memory.mapping.store_u64(8, 2)
    with pytest.raises(RegionError, match="of version 1"):
        memory.store()
    with pytest.raises(RegionError, match="region kv has 16383 bytes: keys and values take 16384 to"):
        Memory(REGION_BYTES - 1).store()


def test_a_log_without_room_changes_nothing_and_can_be_tried_again() -> None:
    memory = Memory()
    store = memory.store()
    ring = Ring.open(memory.log)
    ring.set_destination(0, Destination(True, "behind", ring.tail))
    with pytest.raises(LogFull):
        while True:
            store.set(b"a", bytes(1000) + b"%d" % ring.tail)
            store.commit()
            last = store.get(b"a")
    assert check_layout(memory.mapping) == {b"a": last}
    wanted = store.get(b"a")
    assert wanted != last
    ring.set_durable(0, ring.tail)
    store.commit()
    assert check_layout(memory.mapping) == {b"a": wanted}


def test_many_changes_of_one_key_are_one_store() -> None:
    memory = Memory()
    store = memory.store()
    store.set(b"n", b"0")
    store.commit()
    ring = Ring.open(memory.log)
    before = ring.tail
    for number in range(100):
        store.set(b"n", b"%d" % number)
    store.commit()
    assert ring.tail - before < 160
