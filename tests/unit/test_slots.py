"""The two-slot record area: what a commit leaves after every crash, and what a reader says to damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.formats import slots
from everram.runtime.formats.slots import Content, Format, Record, SlotArea
from everram.runtime.memory.contract import CACHE_LINE_BYTES, PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping

SIZE_BYTES = 5 * PAGE_BYTES
KIND = Format("test area", b"EVRTESTS", (1, 0), frozenset({1, 2}))
LATER = Format("test area", b"EVRTESTS", (1, 3), frozenset({1, 2, 9}), optional_features=4)


def record(text: str, kind: int = 1) -> Record:
    return Record(kind, text.encode())


class Recorder(HeapMapping):
    """Remembers which lines were stored to but not drained, and can say what a crash now might leave."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.durable = HeapMapping(size_bytes)
        self.pending: list[tuple[int, bytes]] = []
        self.flushed: list[tuple[int, int]] = []
        self.at_store: Callable[[], None] = lambda: None

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        for at in range(offset, offset + len(data)):
            if at == offset or at % CACHE_LINE_BYTES == 0:
                end = min(offset + len(data), (at // CACHE_LINE_BYTES + 1) * CACHE_LINE_BYTES)
                piece = bytes(data[at - offset : end - offset])
                super().store(at, piece)
                self.pending.append((at, piece))
                self.at_store()

    def store_u64(self, offset: int, value: int) -> None:
        super().store_u64(offset, value)
        self.pending.append((offset, value.to_bytes(8, "little")))
        self.at_store()

    def flush(self, offset: int, length: int) -> None:
        first = offset // CACHE_LINE_BYTES * CACHE_LINE_BYTES
        self.flushed.append((first, -(-(offset + length) // CACHE_LINE_BYTES) * CACHE_LINE_BYTES))

    def drain(self) -> None:
        kept = []
        for at, piece in self.pending:
            if any(first <= at and at + len(piece) <= end for first, end in self.flushed):
                self.durable.store(at, piece)
            else:
                kept.append((at, piece))
        self.pending, self.flushed = kept, []

    def crash_states(self) -> Iterator[HeapMapping]:
        """Nothing of what was not drained, all of it, each line alone, and all but each line."""
        count = len(self.pending)
        choices = [range(0), range(count)]
        choices += [range(i, i + 1) for i in range(count)]
        choices += [[j for j in range(count) if j != i] for i in range(count)]
        for choice in choices:
            state = HeapMapping(self.size_bytes)
            state.store(0, self.durable.load(0, self.size_bytes))
            for i in choice:
                state.store(*self.pending[i])
            yield state


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
    mapping = Recorder(SIZE_BYTES)
    area = SlotArea.format(mapping, KIND)
    contents = [()] + [tuple(record(letter * 70 * n) for n in (1, 2, 3)) for letter in "abc"]
    states = 0
    step = 0

    def check() -> None:
        nonlocal states
        for state in mapping.crash_states():
            states += 1
            assert SlotArea.open(state, KIND).content.records in contents[step : step + 2]

    for step in range(3):
        mapping.at_store = check
        area.commit(contents[step + 1])
        mapping.at_store = lambda: None
        assert [SlotArea.open(s, KIND).content.records for s in mapping.crash_states()] == [contents[step + 1]] * 2
    assert states > 200


def test_a_crash_while_formatting_leaves_a_blank_area_or_a_whole_one() -> None:
    mapping = Recorder(SIZE_BYTES)

    def check() -> None:
        for state in mapping.crash_states():
            if not SlotArea.is_blank(state):
                assert SlotArea.open(state, KIND).content.records == (record("a"),)

    mapping.at_store = check
    SlotArea.format(mapping, KIND, [record("a")])


def test_a_crash_while_copying_leaves_a_blank_area_or_a_whole_one() -> None:
    source = HeapMapping(SIZE_BYTES)
    SlotArea.format(source, KIND, [record("a")]).commit([record("b")])
    mapping = Recorder(SIZE_BYTES)

    def check() -> None:
        for state in mapping.crash_states():
            if not SlotArea.is_blank(state):
                assert SlotArea.open(state, KIND).content.records == (record("b"),)

    mapping.at_store = check
    SlotArea.copy(source, mapping)
    assert mapping.load(0, SIZE_BYTES) == source.load(0, SIZE_BYTES)


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
