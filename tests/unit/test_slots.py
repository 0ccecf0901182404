"""The two-slot record area: what a commit leaves after every crash, and what a reader says to damage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.formats import slots
from everram.runtime.formats.slots import Content, Format, Record, SlotArea
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import CrashState, Recording, power_losses, process_crashes

SIZE_BYTES = 5 * PAGE_BYTES
KIND = Format("test area", b"EVRTESTS", (1, 0), frozenset({1, 2}))
LATER = Format("test area", b"EVRTESTS", (1, 3), frozenset({1, 2, 9}), optional_features=4)


def record(text: str, kind: int = 1) -> Record:
    return Record(kind, text.encode())


def crash_states(recording: Recording) -> Iterator[CrashState]:
    """What the death of the writer, or a loss of power, may leave."""
    yield from process_crashes(recording)
    yield from power_losses(recording, states_max=300, stream=Seeds(1).stream("crash"))


def in_memory(state: CrashState) -> HeapMapping:
    mapping = HeapMapping(SIZE_BYTES)
    mapping.store(0, state.memories[0])
    return mapping


def test_a_commit_is_read_back() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    assert SlotArea.is_blank(mapping)
    area = SlotArea.format(mapping, KIND, [record("a")])
    assert area.commit([record("b"), Record(2, b"", required=True)], clean=True) == 2
    content = SlotArea.open(mapping, KIND).content
    assert content.records == (record("b"), Record(2, b"", required=True))
    assert (content.generation, content.version, content.clean) == (2, (1, 0), True)
    assert not SlotArea.is_blank(mapping)


def test_every_crash_state_of_a_commit_is_the_old_content_or_the_new() -> None:
    recording = Recording(bytes(SIZE_BYTES))
    area = SlotArea.format(recording.map(0), KIND)
    contents = [(), *(tuple(record(letter * 30 * n) for n in (1, 2, 3)) for letter in "abc")]
    states = 0
    for old, new in itertools.pairwise(contents):
        recording.restart()
        area.commit(new)
        recording.mark("told")
        for state in crash_states(recording):
            states += 1
            found = SlotArea.open(in_memory(state), KIND).content.records
            assert found == new if state.marks else found in (old, new)
    assert states > 300


def test_a_crash_while_formatting_leaves_a_blank_area_or_a_whole_one() -> None:
    recording = Recording(bytes(SIZE_BYTES))
    SlotArea.format(recording.map(0), KIND, [record("a")])
    assert {blank_or_content(state) for state in crash_states(recording)} == {None, (record("a"),)}


def test_a_crash_while_copying_leaves_a_blank_area_or_a_whole_one() -> None:
    source = HeapMapping(SIZE_BYTES)
    SlotArea.format(source, KIND, [record("a")]).commit([record("b")])
    recording = Recording(bytes(SIZE_BYTES))
    SlotArea.copy(source, recording.map(0))
    assert recording.contents[0] == source.load(0, SIZE_BYTES)
    states = power_losses(recording, states_max=300, stream=Seeds(1).stream("crash"))
    assert {blank_or_content(state) for state in states} == {None, (record("b"),)}


def blank_or_content(state: CrashState) -> tuple[Record, ...] | None:
    mapping = in_memory(state)
    return None if SlotArea.is_blank(mapping) else SlotArea.open(mapping, KIND).content.records


def test_a_full_area_says_so_and_keeps_its_content() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    area = SlotArea.format(mapping, KIND, [record("a")])
    with pytest.raises(ResourceExhausted, match="test area is full"):
        area.commit([record("x" * 3 * PAGE_BYTES)])
    assert SlotArea.open(mapping, KIND).content.records == (record("a"),)


def test_unknown_optional_records_and_features_are_kept() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    SlotArea.format(mapping, LATER, [record("a"), record("later", 9)])
    area = SlotArea.open(mapping, KIND)
    area.commit([record("b")])
    content = SlotArea.open(mapping, LATER).content
    assert content.records == (record("b"), record("later", 9))
    assert (content.version, content.optional_features) == ((1, 3), 4)


@pytest.mark.parametrize(
    ("kind", "records", "reason"),
    [
        (Format("test area", b"EVRTESTS", (2, 0), frozenset({1})), [], "a later format"),
        (Format("test area", b"EVRTESTS", (1, 1), frozenset({1}), required_features=2), [], "features 0x2"),
        (LATER, [Record(9, b"", required=True)], "records of type 9"),
    ],
)
def test_what_is_not_understood_is_refused_with_both_versions(kind: Format, records: list[Record], reason: str) -> None:
    mapping = HeapMapping(SIZE_BYTES)
    SlotArea.format(mapping, kind, records)
    before = mapping.load(0, SIZE_BYTES)
    with pytest.raises(FailedPrecondition, match=reason) as caught:
        SlotArea.open(mapping, KIND)
    assert f"version {kind.version[0]}.{kind.version[1]}" in caught.value.message
    assert "version 1.0" in caught.value.message
    assert mapping.load(0, SIZE_BYTES) == before


def outcome(mapping: HeapMapping) -> Content | str:
    try:
        return SlotArea.open(mapping, KIND).content
    except (DataLoss, FailedPrecondition) as error:
        return error.message


def test_every_flipped_bit_is_detected_or_harmless() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    SlotArea.format(mapping, KIND, [record("old")]).commit([record("a" * 40), record("b")])
    right = SlotArea.open(mapping, KIND).content
    used = [*range(96), *range(PAGE_BYTES, PAGE_BYTES + 256), *range(3 * PAGE_BYTES, 3 * PAGE_BYTES + 256)]
    detected = 0
    for offset in used:
        byte = mapping.load(offset, 1)[0]
        for bit in range(8):
            mapping.store(offset, bytes([byte ^ 1 << bit]))
            assert not SlotArea.is_blank(mapping)
            found = outcome(mapping)
            assert found == right or (isinstance(found, str) and found.startswith("test area"))
            detected += found != right
        mapping.store(offset, bytes([byte]))
    assert detected > 8 * 150
    assert outcome(mapping) == right


@given(st.lists(st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 255)), min_size=1, max_size=12))
def test_any_damage_is_detected_or_harmless(flips: list[tuple[int, int]]) -> None:
    mapping = HeapMapping(SIZE_BYTES)
    SlotArea.format(mapping, KIND, [record("x" * 3000)]).commit([record("y" * 3500), record("z")])
    right = SlotArea.open(mapping, KIND).content
    for offset, mask in flips:
        mapping.store(offset, bytes([mapping.load(offset, 1)[0] ^ mask]))
    found = outcome(mapping)
    assert found == right or isinstance(found, str)


@given(st.binary(max_size=600))
def test_any_bytes_are_refused(data: bytes) -> None:
    mapping = HeapMapping(SIZE_BYTES)
    mapping.store(0, data)
    assert isinstance(outcome(mapping), str)


def test_no_generation_is_published_as_a_word_that_one_flip_makes_blank() -> None:
    for power in range(40):
        assert (slots._published(1 << power)).bit_count() > 1
