"""Dictionaries and records against models: whatever is done to them, over restarts, they are what Python's are."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from everram.runtime.guest import Guest, RegionError
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.dictionary import MAGIC, MIN_REGION_BYTES, Dictionary, Key
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.heap import HeapMapping

GUEST_ID = "0123456789abcdef"
DICTIONARY_BYTES = 16 * 1024
"""64 chains, and soon full."""
TABLE, FREE, SMALLEST_BYTES = 512, 64, 32
"""The documented layout, on purpose not taken from the code."""

KEYS = st.one_of(st.text(max_size=8), st.binary(max_size=8), st.integers(0, 30).map(str))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALUES = st.one_of(JSON, st.binary(max_size=600), st.integers(0, 3000).map(bytes))


class Memory:
    """A guest's memory in this process, and its incarnations."""

    def __init__(self, *sizes_bytes: int) -> None:
        self.log = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.regions = [HeapMapping(size) for size in sizes_bytes]
        Ring.format(self.log, guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)

    def attach(self) -> Guest:
        ring = Ring.open(self.log)
        epoch = ring.epoch + 1
        ring.begin_epoch(epoch)
        regions = [
            Region(f"r{number}", number, "logged", mapping, mapping.size_bytes)
            for number, mapping in enumerate(self.regions)
        ]
        return Guest(
            GuestCore(guest_id=GUEST_ID, name="test", epoch=epoch, ring=ring, regions=regions, now_ns=lambda: 0)
        )


def word(region: Region, offset: int) -> int:
    return region.load_u64(offset)


def blocks(region: Region) -> Iterator[tuple[int, int, bool]]:
    """(offset, size, in use) of every block of a dictionary, read by the documented layout."""
    for chain in range(word(region, 16)):
        at = word(region, TABLE + 8 * chain)
        while at:
            following, _, _, power = struct.unpack("<QIIQ", region.load(at, 24))
            yield at, 1 << power, True
            at = following
    for power in range(56):
        at = word(region, FREE + 8 * power)
        while at:
            yield at, 1 << power, False
            at = word(region, at)


def check_layout(region: Region) -> None:
    """Blocks lie side by side from the table's end to the heap's: none overlaps another, none is lost."""
    assert word(region, 0) == MAGIC
    found = sorted(blocks(region))
    at = TABLE + 8 * word(region, 16)
    for offset, size, _ in found:
        assert offset == at
        at += size
    assert at == word(region, 32) <= region.size_bytes
    assert word(region, 24) == sum(used for _, _, used in found)


class DictionaryModel(RuleBasedStateMachine):
    """`me.dict` beside a dict, with several changes in one transaction, exceptions and restarts."""

    keys = Bundle("keys")

    @initialize()
    def begin(self) -> None:
        self.memory = Memory(DICTIONARY_BYTES)
        self.model: dict[Key, Any] = {}
        self.restart()

    @rule()
    def restart(self) -> None:
        self.me = self.memory.attach()
        self.held = self.me.dict("r0")

    @rule(target=keys, key=KEYS)
    def choose(self, key: Key) -> Key:
        return key

    @rule(key=keys, value=VALUES)
    def set(self, key: Key, value: Any) -> None:
        try:
            self.held[key] = value
        except RegionError as error:
            assert "full" in str(error)
        else:
            self.model[key] = value

    @rule(key=consumes(keys))
    def delete(self, key: Key) -> None:
        assert self.held.delete(key) == (key in self.model)
        self.model.pop(key, None)

    @rule(changes=st.lists(st.tuples(keys, st.none() | VALUES), max_size=5), fails=st.booleans())
    def together(self, changes: list[tuple[Key, Any]], fails: bool) -> None:
        """Several changes in one transaction, each of which sees those before it; or none, if it fails."""
        wanted = dict(self.model)
        try:
            with self.me.transaction() as tx:
                for key, value in changes:
                    if value is None:
                        assert self.held.delete(key, tx) == (key in wanted)
                        wanted.pop(key, None)
                    else:
                        self.held.set(key, value, tx)
                        wanted[key] = value
                    assert self.held.get(key, None, tx) == value
                if fails:
                    raise InterruptedError
        except InterruptedError:
            return
        except RegionError as error:
            assert "full" in str(error)
            return
        self.model = wanted

    @rule(key=keys)
    def get(self, key: Key) -> None:
        assert self.held.get(key, "nothing") == self.model.get(key, "nothing")
        assert (key in self.held) == (key in self.model)

    @invariant()
    def is_the_same(self) -> None:
        assert dict(self.held.items()) == self.model
        assert len(self.held) == len(self.model)
        check_layout(self.me.region("r0"))


TestDictionary = DictionaryModel.TestCase
TestDictionary.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_str_and_bytes_are_different_keys() -> None:
    held = Memory(DICTIONARY_BYTES).attach().dict("r0")
    held["a"] = "text"
    held[b"a"] = "bytes"
    assert (held["a"], held[b"a"], sorted(held, key=repr)) == ("text", "bytes", ["a", b"a"])
    assert [type(key) for key in sorted(held, key=repr)] == [str, bytes]


def test_missing_keys_raise_as_a_dicts_do() -> None:
    held = Memory(DICTIONARY_BYTES).attach().dict("r0")
    with pytest.raises(KeyError):
        held["nobody"]
    with pytest.raises(KeyError):
        del held["nobody"]
    assert held.get("nobody") is None


def test_a_value_is_bytes_or_json() -> None:
    held = Memory(DICTIONARY_BYTES).attach().dict("r0")
    with pytest.raises(RegionError, match="bytes or what JSON can say, not set"):
        held["a"] = {1, 2}
    assert len(held) == 0


def test_blocks_are_used_again() -> None:
    me = Memory(DICTIONARY_BYTES).attach()
    held = me.dict("r0")
    held["a"] = bytes(1100)
    end = word(me.region("r0"), 32)
    for number in range(50):
        del held["a" if number == 0 else str(number - 1)]
        held[str(number)] = bytes(1200)
    assert word(me.region("r0"), 32) == end
    held["in place"] = b"1"
    first = me.core.lsn
    held["in place"] = b"2"
    assert me.core.lsn - first < 200, "a value of the same size class is changed where it lies"


def test_a_full_dictionary_says_so_and_keeps_what_it_has() -> None:
    memory = Memory(DICTIONARY_BYTES)
    held = memory.attach().dict("r0")
    stored = 0
    with pytest.raises(RegionError, match="dictionary r0 is full: delete something, or run it with a larger region"):
        while True:
            held[str(stored)] = bytes(500)
            stored += 1
    assert stored > 10
    with pytest.raises(RegionError):
        held["0"] = bytes(DICTIONARY_BYTES)  # its old block has been given up by then, in the same transaction
    held = memory.attach().dict("r0")
    assert dict(held.items()) == {str(number): bytes(500) for number in range(stored)}
    del held["3"]
    held["new"] = bytes(500)


def test_what_is_no_dictionary_is_left_alone() -> None:
    memory = Memory(DICTIONARY_BYTES)
    memory.attach().records("r0", "<q")[0] = (5,)
    with pytest.raises(RegionError, match="region r0 holds something else than a dictionary of version 1"):
        memory.attach().dict("r0")
    assert memory.attach().records("r0", "<q")[0] == (5,)


def test_a_later_version_is_refused() -> None:
    memory = Memory(DICTIONARY_BYTES)
    memory.attach().dict("r0")
    memory.regions[0].store_u64(8, 2)
    with pytest.raises(RegionError, match="of version 1"):
        memory.attach().dict("r0")


@pytest.mark.parametrize("size_bytes", [MIN_REGION_BYTES, MIN_REGION_BYTES + 8, 3 * MIN_REGION_BYTES])
def test_a_dictionary_fits_into_any_region_that_is_not_too_small(size_bytes: int) -> None:
    me = Memory(size_bytes).attach()
    held = me.dict("r0")
    held["key"] = "value"
    assert held["key"] == "value"
    check_layout(me.region("r0"))


def test_too_small_a_region() -> None:
    with pytest.raises(RegionError, match="too small for a dictionary: give it at least 4096"):
        Memory(MIN_REGION_BYTES - 1).attach().dict("r0")


def test_threads_that_set_lose_nothing() -> None:
    """Each change reads what it links to, so two at once must not both read first."""
    me = Memory(256 * 1024).attach()
    held = me.dict("r0")

    def work(mine: int) -> None:
        for number in range(100):
            held[f"{mine}.{number}"] = number
            if number % 3 == 0:
                del held[f"{mine}.{number}"]

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == sorted(f"{mine}.{n}" for mine in range(4) for n in range(100) if n % 3)
    check_layout(me.region("r0"))


def test_the_layout_is_the_documented_one() -> None:
    me = Memory(DICTIONARY_BYTES).attach()
    Dictionary(me.core.transaction, me.region("r0"))["k"] = [1]
    region = me.region("r0")
    assert region[0:8] == b"EVRMDICT"
    assert struct.unpack("<4Q", region.load(8, 32)) == (1, 64, 1, TABLE + 8 * 64 + SMALLEST_BYTES)
    (at,) = [at for at, size, _ in blocks(region) if size == SMALLEST_BYTES]
    assert region.load(at, 31) == struct.pack("<QIIQ", 0, 2, 4, 5) + b"sk" + b"j[1]" + b"\0"
    assert json.loads(region.load(at + 27, 3)) == [1]


RECORDS = st.tuples(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=16))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-40, 39), RECORDS), max_size=6), max_size=6))
def test_records_are_an_array(transactions: list[list[tuple[int, tuple[int, bytes]]]]) -> None:
    """Each inner list is one transaction; the guest starts anew after it."""
    memory = Memory(1000)
    model = [(0, bytes(16))] * 41
    for changes in transactions:
        me = memory.attach()
        held = me.records("r0", "<q16s")
        assert len(held) == 41
        with me.transaction() as tx:
            for index, (number, text) in changes:
                held.set(index, (number, text), tx)
                model[index] = (number, text.ljust(16, b"\0"))
                assert held.get(index, tx) == model[index]
        assert [held[index] for index in range(41)] == model
    assert [memory.attach().records("r0", "<q16s")[index - 41] for index in range(41)] == model


def test_records_refuse_what_does_not_fit() -> None:
    me = Memory(1000).attach()
    with pytest.raises(RegionError, match="'<nonsense' is not a record's layout"):
        me.records("r0", "<nonsense")
    with pytest.raises(RegionError, match="records of 2000 bytes do not fit into region r0"):
        me.records("r0", "2000s")
    with pytest.raises(RegionError, match="records of 0 bytes"):
        me.records("r0", "")
    held = me.records("r0", "<H")
    for wrong in ((70_000,), (1, 2), ("text",)):
        with pytest.raises(RegionError, match="does not fit the layout <H"):
            held[0] = wrong
    for index in (500, -501):
        with pytest.raises(IndexError):
            held[index] = (1,)
        with pytest.raises(IndexError):
            held[index]
    assert me.core.lsn == 0
