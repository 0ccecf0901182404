"""The superblock, the NVM device's metadata and page tables: kept, counted, and never silently wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogArea
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, NotFound
from everram.runtime.formats.nvm import FORMAT as NVM_FORMAT
from everram.runtime.formats.nvm import Metadata
from everram.runtime.formats.pages import PageTable, State
from everram.runtime.formats.slots import Format, Record, SlotArea
from everram.runtime.formats.vmemfs import FORMAT, Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import Recording, power_losses, process_crashes

SIZE_BYTES = 16 * PAGE_BYTES
FLIPS = st.lists(st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 255)), min_size=1, max_size=8)


def guest(guest_id: str, **fields: object) -> pb.Guest:
    return pb.Guest(guest_id=guest_id, name=f"name-{guest_id}", state=pb.RUNNING, epoch=3, **fields)  # type: ignore[arg-type]


def flip(mapping: HeapMapping, flips: list[tuple[int, int]]) -> None:
    for offset, mask in flips:
        mapping.store(offset, bytes([mapping.load(offset, 1)[0] ^ mask]))


def test_a_successor_finds_what_its_predecessor_left() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    superblock = Superblock.format(mapping, HostRecord(memory_id="m1"))
    superblock.put_guest(guest("b"))
    superblock.put_guest(guest("a"))
    superblock.put_guest(guest("b", restarts=7))
    superblock.put_host(HostRecord(memory_id="m1", lease_id=9))
    superblock.remove_guest("a")
    found = Superblock.open(mapping)
    assert found.guests() == [guest("b", restarts=7)]
    assert found.host == HostRecord(memory_id="m1", lease_id=9)
    assert (found.generation, found.version) == (6, "2.0")
    with pytest.raises(NotFound):
        found.remove_guest("a")


def test_answers_are_not_kept() -> None:
    superblock = Superblock.format(HeapMapping(SIZE_BYTES), HostRecord(memory_id="m1"))
    answered = guest("a", freeze_reasons=["lease"], log=pb.LogPositions(tail=9), degraded=True)
    answered.copies.add(host="h2")
    answered.regions.add(name="r", guest_id="a", written_pages=4, tracking=True)
    superblock.put_guest(answered)
    kept = guest("a")
    kept.regions.add(name="r", guest_id="a")
    assert superblock.guests() == [kept]
    superblock.put_copy(Copy(guest=answered, copy_id="c", lsn=8, held=16))
    assert superblock.copies() == [Copy(guest=kept, copy_id="c", lsn=8)]


def test_copies_are_kept_by_guest_and_copy_id() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    superblock = Superblock.format(mapping, HostRecord(memory_id="m1"))
    earlier = Format(FORMAT.name, FORMAT.magic, (2, 0), frozenset({1, 2}), indexed_since=(2, 0))
    SlotArea.open(mapping, earlier)

    def copies(*keys: str) -> list[Copy]:
        return [Copy(guest=guest(key[0]), copy_id=key[1:], promised_epoch=4) for key in keys]

    for copy in copies("b1", "a2", "a1"):
        superblock.put_copy(copy)
    superblock.put_copy(Copy(guest=guest("b"), copy_id="1", promised_epoch=4))
    assert Superblock.open(mapping).copies() == copies("a1", "a2", "b1")
    with pytest.raises(FailedPrecondition, match=r"2\.0.*2\.0.*type 3"):
        SlotArea.open(mapping, earlier)
    superblock.remove_copy("a", "2")
    assert Superblock.open(mapping).copies() == copies("a1", "b1")
    superblock.put_copy(copies("a2")[0])
    superblock.put_host(HostRecord(memory_id="m1", lease_id=3))
    generation = superblock.remove_copy("a")
    assert Superblock.open(mapping).copies() == copies("b1")
    assert superblock.remove_copy("a") == superblock.remove_copy("b", "2") == generation
    superblock.remove_copy("b")
    SlotArea.open(mapping, earlier)


def test_a_later_everrams_records_survive_this_one() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    Superblock.format(mapping, HostRecord(memory_id="m1"))
    later = Format(FORMAT.name, FORMAT.magic, (2, 5), FORMAT.record_types | {77}, indexed_since=(2, 0))
    area = SlotArea.open(mapping, later)
    area.commit([*area.content.records, Record(77, b"of tomorrow")])
    Superblock.open(mapping).put_guest(guest("a"))
    assert Record(77, b"of tomorrow") in SlotArea.open(mapping, later).content.records


@given(FLIPS)
def test_a_damaged_superblock_is_refused_or_right(flips: list[tuple[int, int]]) -> None:
    mapping = HeapMapping(SIZE_BYTES)
    guests = tuple(guest(f"g{n}", reason="x" * 1000) for n in range(20))
    superblock = Superblock.format(mapping, HostRecord(memory_id="m1"), guests)
    superblock.put_guest(guest("a"))
    right = {g.guest_id: g for g in superblock.guests()}
    flip(mapping, flips)
    try:
        found = Superblock.open(mapping)
    except EverramError as error:
        assert error.message.startswith("VMemFS superblock")
    else:
        assert found.host == superblock.host
        assert right.keys() == {g.guest_id for g in found.guests()} | {d.guest_id for d in found.damaged}
        assert all(right[g.guest_id] == g for g in found.guests())


@given(FLIPS)
def test_damaged_metadata_is_refused_or_right(flips: list[tuple[int, int]]) -> None:
    mapping = HeapMapping(SIZE_BYTES)
    metadata = Metadata.format(mapping)
    regions = [pb.Region(name=f"r{n}", guest_id="g", size_bytes=PAGE_BYTES, arena=f"a{n}") for n in range(300)]
    metadata.add(regions, LogArea(guest_id="g", memory="log.g", capacity_bytes=1 << 20))
    right: list[Message] = [*metadata.regions(), *metadata.logs()]
    flip(mapping, flips)
    try:
        found = Metadata.open(mapping)
    except EverramError as error:
        assert error.message.startswith("NVM device")
    else:
        assert [*found.regions(), *found.logs()] == right


def test_metadata_of_one_guest_goes_as_a_whole() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    metadata = Metadata.format(mapping)
    for guest_id in ("g", "h"):
        region = pb.Region(name="r", guest_id=guest_id, written_pages=3)
        metadata.add([region], LogArea(guest_id=guest_id, memory=f"log.{guest_id}"))
    metadata.remove("g")
    found = Metadata.open(mapping)
    assert found.regions() == [pb.Region(name="r", guest_id="h")]
    assert [log.guest_id for log in found.logs()] == ["h"]


def test_copies_are_kept_apart_and_refused_by_an_everram_that_does_not_know_them() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    metadata = Metadata.format(mapping)
    earlier = Format(NVM_FORMAT.name, NVM_FORMAT.magic, (1, 0), frozenset({1, 2}))
    own, copied = (
        pb.Region(name="r", guest_id="g", arena="a"),
        pb.Region(name="r", guest_id="g", copy_id="c", arena="b"),
    )
    metadata.add([own], LogArea(guest_id="g", memory="log.g"))
    SlotArea.open(mapping, earlier)
    metadata.add([copied], LogArea(guest_id="g", copy_id="c", log_id="l", memory="log.g@l"))
    found = Metadata.open(mapping)
    assert (found.regions(), found.regions(copy_id="c"), found.regions(copy_id="*")) == ([own], [copied], [own, copied])
    assert [log.memory for log in found.logs("g", "*")] == ["log.g", "log.g@l"]
    with pytest.raises(FailedPrecondition, match=r"1\.1.*1\.0.*type 3, 4"):
        SlotArea.open(mapping, earlier)
    found.remove_log("g", "c", "l")
    found.remove("g", "c")
    SlotArea.open(mapping, earlier)
    assert Metadata.open(mapping).regions(copy_id="*") == [own]


def test_every_crash_state_of_a_change_is_before_it_or_after_it() -> None:
    recording = Recording(bytes(SIZE_BYTES), bytes(SIZE_BYTES))
    superblock = Superblock.format(recording.map(0), HostRecord(memory_id="m1"), (guest("a"),))
    metadata = Metadata.format(recording.map(1))
    stream = Seeds(1).stream("crash")

    changes: list[Callable[[], int]] = [
        lambda: metadata.add([pb.Region(name="r", guest_id="b")], LogArea(guest_id="b", memory="log.b")),
        lambda: superblock.put_guest(guest("b")),
        lambda: superblock.remove_guest("a"),
        lambda: superblock.put_copy(Copy(guest=guest("b"), copy_id="c")),
        lambda: superblock.put_copy(Copy(guest=guest("b"), copy_id="c", promised_epoch=9)),
        lambda: superblock.remove_copy("b"),
        superblock.mark_clean,
        lambda: metadata.add([pb.Region(name="r", guest_id="b", copy_id="c", arena="copied")], None),
        lambda: metadata.replace(
            "b", "c", [pb.Region(name="r", guest_id="b", arena="copied")], LogArea(guest_id="b", memory="log.new")
        ),
        lambda: metadata.remove("b"),
    ]

    def seen(memories: tuple[bytes, ...]) -> tuple[list[str], list[str]]:
        mappings = [HeapMapping(SIZE_BYTES) for _ in memories]
        for mapping, content in zip(mappings, memories, strict=True):
            mapping.store(0, content)
        found = Metadata.open(mappings[1])
        superblock = Superblock.open(mappings[0])
        guests = [kept.guest_id for kept in superblock.guests()]
        guests += [f"{copy.copy_id} {copy.promised_epoch}" for copy in superblock.copies()]
        regions = [f"{region.name} {region.copy_id} {region.arena}" for region in found.regions(copy_id="*")]
        return guests, regions + [log.memory for log in found.logs()]

    before = seen(tuple(map(bytes, recording.contents)))
    for change in changes:
        recording.restart()
        change()
        after = seen(tuple(map(bytes, recording.contents)))
        for state in itertools.chain(process_crashes(recording), power_losses(recording, states_max=50, stream=stream)):
            assert seen(state.memories) in (before, after)
        before = after


# -- page tables ------------------------------------------------------------------------------------------------------


def table(pages: int = 10_000) -> tuple[HeapMapping, PageTable]:
    mapping = HeapMapping(PageTable.total_bytes(pages))
    return mapping, PageTable.format(mapping, pages)


def test_a_page_table_counts_what_was_set() -> None:
    mapping, states = table()
    states.set(0, State.WRITTEN)
    states.set(9_999, State.WRITTEN | State.SHARED)
    states.set(5, State.SHARED)
    found = PageTable.open(mapping)
    assert (found.count(State.WRITTEN), found.count(State.SHARED), found.count(State.DIRTY)) == (2, 2, 0)
    assert found.get(9_999) == State.WRITTEN | State.SHARED
    found.clear(State.WRITTEN)
    assert (states.count(State.WRITTEN), states.count(State.SHARED)) == (0, 2)


def test_a_crash_leaves_each_page_with_its_old_state_or_its_new_one() -> None:
    recording = Recording(bytes(PageTable.total_bytes(100)))
    states = PageTable.format(recording.map(0), 100)
    states.set(1, State.WRITTEN | State.SHARED)
    states.set(2, State.WRITTEN)
    recording.restart()
    states.set(3, State.WRITTEN)
    recording.mark("set")
    states.clear(State.WRITTEN)
    recording.mark("cleared")
    stream = Seeds(1).stream("crash")
    for state in itertools.chain(process_crashes(recording), power_losses(recording, states_max=200, stream=stream)):
        mapping = HeapMapping(len(state.memories[0]))
        mapping.store(0, state.memories[0])
        found = PageTable.open(mapping)
        assert found.get(1) in (State.WRITTEN | State.SHARED, State.SHARED)
        assert found.get(2) in (State.WRITTEN, State(0))
        assert found.count(State.WRITTEN) == 0 or "cleared" not in state.marks


@pytest.mark.parametrize("page", [-1, 10_000])
def test_pages_outside_are_a_bug(page: int) -> None:
    with pytest.raises(IndexError):
        table()[1].get(page)


@pytest.mark.parametrize("offset", range(28))
def test_a_damaged_page_table_is_refused(offset: int) -> None:
    mapping, _ = table(100)
    for bit in range(8):
        flip(mapping, [(offset, 1 << bit)])
        with pytest.raises(DataLoss, match="page table"):
            PageTable.open(mapping)
        flip(mapping, [(offset, 1 << bit)])
    PageTable.open(mapping)


def test_a_page_table_that_is_too_small_is_refused() -> None:
    mapping, _ = table(100)
    small = HeapMapping(PAGE_BYTES)
    small.store(0, mapping.load(0, PAGE_BYTES))
    with pytest.raises(DataLoss, match="do not fit"):
        PageTable.open(small)
    with pytest.raises(DataLoss, match="too few"):
        PageTable.open(HeapMapping(64))


def test_a_later_page_table_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everram.runtime.formats.pages.VERSION", (2, 1))
    mapping, _ = table(100)
    monkeypatch.setattr("everram.runtime.formats.pages.VERSION", (1, 0))
    with pytest.raises(FailedPrecondition, match=r"2\.1.*1\.x"):
        PageTable.open(mapping)
