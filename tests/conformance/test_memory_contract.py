"""The memory contract: one suite that shared mappings, scratch memory and the simulation's memories must all pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.mapped import Mapped
from everram.runtime.simulation.memory import Recording
from everram.runtime.simulation.objects import Bytes, GatedMapping

SIZE_BYTES = 2 * PAGE_BYTES + 24
Pair = tuple[Mapping, Mapping]


def mapped(descriptor: int) -> Pair:
    return Mapped(descriptor, SIZE_BYTES), Mapped(descriptor, SIZE_BYTES)


def in_a_file(_: int) -> Pair:
    """As NVM files are mapped: of one length for good."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.truncate(SIZE_BYTES)
        return mapped(file.fileno())


def gated(_: int) -> Pair:
    content = Bytes(SIZE_BYTES)
    return GatedMapping(content), GatedMapping(content)


def recorded(_: int) -> Pair:
    recording = Recording(bytes(SIZE_BYTES))
    return recording.map(0), recording.map(0)


def scratch(_: int) -> Pair:
    mapping = HeapMapping(SIZE_BYTES)
    return mapping, mapping


@pytest.fixture(params=[mapped, in_a_file, gated, recorded, scratch])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two mappings of one memory: what one stores, the other sees."""
    make: Callable[[int], Pair] = request.param
    descriptor = os.memfd_create("contract", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, SIZE_BYTES)
        mappings = make(descriptor)
        yield mappings
        for mapping in {id(mapping): mapping for mapping in mappings}.values():
            mapping.close()
    finally:
        os.close(descriptor)


def test_memory_begins_as_zeros_of_the_size_asked_for(pair: Pair) -> None:
    one, other = pair
    assert one.size_bytes == other.size_bytes == SIZE_BYTES
    assert one.load(0, SIZE_BYTES) == bytes(SIZE_BYTES)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_store_is_seen_by_the_other_mapping(pair: Pair, kind: Callable[[bytes], bytes]) -> None:
    one, other = pair
    one.store(SIZE_BYTES - 5, kind(b"tail!"))
    one.store(3, kind(b""))
    assert other.load(SIZE_BYTES - 6, 6) == b"\0tail!"


def test_words_are_little_endian_and_whole(pair: Pair) -> None:
    one, other = pair
    one.store_u64(16, 0x0102030405060708)
    assert other.load(16, 8) == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    other.store_u64(SIZE_BYTES - 8, 2**64 - 1)
    assert one.load_u64(SIZE_BYTES - 8) == 2**64 - 1
    one.publish_u64(16, 0)
    assert other.load_u64(16) == 0


def test_flush_drain_and_persist_change_nothing_else(pair: Pair) -> None:
    one, other = pair
    one.persist(100, b"abc")
    one.flush(0, SIZE_BYTES)
    one.drain()
    assert other.load(99, 5) == b"\0abc\0"


OUTSIDE: list[Callable[[Mapping], object]] = [
    lambda m: m.load(-1, 1),
    lambda m: m.load(0, SIZE_BYTES + 1),
    lambda m: m.load(SIZE_BYTES, 1),
    lambda m: m.load(8, -1),
    lambda m: m.store(-1, b"x"),
    lambda m: m.store(SIZE_BYTES - 1, b"xy"),
    lambda m: m.persist(-1, b"x"),
    lambda m: m.persist(SIZE_BYTES - 1, b"xy"),
    lambda m: m.load_u64(SIZE_BYTES),
    lambda m: m.load_u64(-8),
    lambda m: m.load_u64(4),
    lambda m: m.store_u64(SIZE_BYTES, 1),
    lambda m: m.store_u64(-8, 1),
    lambda m: m.store_u64(4, 1),
    lambda m: m.publish_u64(-8, 1),
    lambda m: m.publish_u64(4, 1),
]


@pytest.mark.parametrize("access", OUTSIDE)
def test_outside_and_unaligned_is_an_index_error_and_changes_nothing(
    pair: Pair, access: Callable[[Mapping], object]
) -> None:
    one, other = pair
    with pytest.raises(IndexError):
        access(one)
    assert other.load(0, SIZE_BYTES) == bytes(SIZE_BYTES)


CLOSED: list[Callable[[Mapping], object]] = [
    lambda m: m.load(0, 1),
    lambda m: m.store(0, b"x"),
    lambda m: m.persist(0, b"x"),
    lambda m: m.load_u64(0),
    lambda m: m.store_u64(0, 1),
    lambda m: m.publish_u64(0, 1),
]


@pytest.mark.parametrize("access", CLOSED)
def test_a_closed_mapping_is_a_value_error(pair: Pair, access: Callable[[Mapping], object]) -> None:
    pair[0].close()
    with pytest.raises(ValueError):
        access(pair[0])
    pair[0].close()


STORES = st.lists(st.tuples(st.integers(0, SIZE_BYTES), st.binary(max_size=200)), max_size=20)


@given(STORES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_of_stores_leaves_what_a_bytearray_would_hold(pair: Pair, stores: list[tuple[int, bytes]]) -> None:
    one, other = pair
    model = bytearray(one.load(0, SIZE_BYTES))
    for offset, data in stores:
        fitting = data[: SIZE_BYTES - offset]
        one.store(offset, fitting)
        model[offset : offset + len(fitting)] = fitting
    assert other.load(0, SIZE_BYTES) == bytes(model)
