"""Snapshots after every crash: what was told is there, nothing is half-done, nothing is lost and nothing leaks.

A workload runs once on recorded memories: metadata, store, two arenas and the storage file, of which what is written
is durable only once it is synced. Then every state that a crash could have left is recovered as a new host would, and
has to be what the workload had made before the step that was cut off, or after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from everram.actors.nvm_device import deletion, purging, reverting
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import INTENTS, INTENTS_AT, REDO, Media
from everram.actors.nvm_device.purging import Purge
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.redo import Change, RedoLog
from everram.actors.nvm_device.storage import TRAILER
from everram.actors.nvm_device.virtblocks import Place
from everram.runtime.errors import EverramError, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.memory import CrashState, Recording, SimMapping, power_losses, process_crashes
from tests.snapshot_device import Device, content, moved_by

METADATA, STORE, STORAGE, ARENA_A, ARENA_B = range(5)
METADATA_PAGES = 96
BLOCKS = 12
PAGES = (0, 1, 2, 512, 515)
"""That a region has here: of two chunks."""
TRAILERS_AT = BLOCKS * PAGE_BYTES
"""In the storage file, after the slots: they are written by themselves, before or after the contents."""
STATES_MAX = 5
"""Looked at for one moment of a power loss, and for one store that a process's death cuts off."""
GO_ON_EVERY = 7
"""Of so many recovered states one is worked with, which takes several times as long as looking at it."""

Crashes = Callable[[Recording], Iterator[CrashState]]
Step = Callable[["RecordedDevice"], object]


def losses(recording: Recording) -> Iterator[CrashState]:
    return power_losses(recording, states_max=STATES_MAX, stream=Seeds(1).stream("power"))


def deaths(recording: Recording) -> Iterator[CrashState]:
    return process_crashes(recording, cuts_max=STATES_MAX)


CRASHES = pytest.mark.parametrize("crashes", [deaths, losses])


@dataclass
class RecordedSpace:
    mapping: Mapping

    def map(self) -> Mapping:
        return self.mapping

    def grow(self, size_bytes: int) -> Mapping:
        raise ResourceExhausted("these metadata do not grow")


@dataclass
class RecordedArena:
    """The pages of `PAGES` of a region. What a guest stores counts as persistent."""

    mapping: Mapping

    def read(self, offset: int, length: int) -> bytes:
        return self.mapping.load(self._at(offset), length)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.mapping.persist(self._at(offset), data)

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        offsets = (page * PAGE_BYTES for page in PAGES)
        within = (offset for offset in offsets if start <= offset and (end is None or offset < end))
        return [(offset, PAGE_BYTES) for offset in within if any(self.read(offset, PAGE_BYTES))]

    def punch(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def _at(self, offset: int) -> int:
        return PAGES.index(offset // PAGE_BYTES) * PAGE_BYTES


@dataclass
class RecordedBlocks:
    mapping: Mapping

    def load(self, number: int) -> bytes:
        return self.mapping.load(number * PAGE_BYTES, PAGE_BYTES)

    def load_into(self, first: int, target: memoryview) -> None:
        target[:] = self.view(first, len(target) // PAGE_BYTES)

    def view(self, first: int, count: int) -> memoryview:
        return memoryview(self.mapping.load(first * PAGE_BYTES, count * PAGE_BYTES))

    def persist(self, number: int, data: bytes) -> None:
        self.mapping.persist(number * PAGE_BYTES, data)

    def discard(self, first: int, count: int) -> None:
        self.mapping.persist(first * PAGE_BYTES, bytes(count * PAGE_BYTES))


class RecordedDevice(Device):
    """Made where there is none yet."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.space = RecordedSpace(recording.map(METADATA))
        self.arenas = {"a": RecordedArena(recording.map(ARENA_A)), "b": RecordedArena(recording.map(ARENA_B))}
        self.blocks = RecordedBlocks(recording.map(STORE))
        self.limit = BLOCKS
        self.file = recording.map(STORAGE)
        if Media.is_blank(self.space.map()):
            Media.format(self.space)
        self.restart()

    def store(self, purge: Purge) -> None:
        self.write_storage(purge)
        self.sync_storage()

    def write_storage(self, purge: Purge) -> None:
        for slot, virtblock, data in moved_by(purge):
            self.file.store(slot * PAGE_BYTES, data)
            self.file.store(TRAILERS_AT + slot * TRAILER.size, TRAILER.pack(virtblock, zlib.crc32(data)))

    def sync_storage(self) -> None:
        self.file.flush(0, self.file.size_bytes)
        self.file.drain()

    def load(self, record: Record, page: int) -> bytes | None:
        place, slot = self.snapshots.locate(record, page)
        if place is not Place.STORAGE:
            return super().load(record, page)
        data = self.file.load(slot * PAGE_BYTES, PAGE_BYTES)
        trailer = TRAILER.unpack(self.file.load(TRAILERS_AT + slot * TRAILER.size, TRAILER.size))
        assert trailer == (self.snapshots.virtblock(record, page), zlib.crc32(data))
        return data

    def find(self, name: str, arena: str = "a") -> Record:
        return self.snapshots.find(arena, name)


@dataclass(frozen=True)
class Contents:
    """What there is between two steps."""

    running: dict[str, dict[int, bytes]]
    snapshots: dict[tuple[str, str], dict[int, bytes]]


def contents_of(device: RecordedDevice) -> Contents:
    return Contents(
        {arena: device.running(arena, PAGES) for arena in device.arenas},
        {
            (arena, record.name): device.content(record, PAGES)
            for arena in device.arenas
            for record in device.snapshots.of(arena)
        },
    )


def new_recording() -> Recording:
    arena = bytes(len(PAGES) * PAGE_BYTES)
    return Recording(
        bytes(METADATA_PAGES * PAGE_BYTES),
        bytes(BLOCKS * PAGE_BYTES),
        bytes(TRAILERS_AT + BLOCKS * TRAILER.size),
        arena,
        arena,
    )


# -- workloads


def write(arena: str, *pages: int, data: bytes) -> Step:
    """Whole words, so that a page that a crash has torn can be told."""

    def step(device: RecordedDevice) -> None:
        for page in pages:
            device.write(arena, page, data.ljust(8))

    return step


def take(name: str, *arenas: str) -> Step:
    return lambda device: device.take(*arenas or ("a",), name=name)


def delete(*names: str) -> Step:
    return lambda device: device.delete(*map(device.find, names))


def revert(name: str) -> Step:
    return lambda device: device.revert(device.find(name))


def purge(device: RecordedDevice) -> None:
    device.purge(limit=3)


def forget(device: RecordedDevice) -> None:
    device.snapshots.forget_region("a")


THREE = [
    write("a", 0, 1, 512, data=b"one"),
    take("one", "a", "b"),
    write("a", 0, 2, 512, data=b"two"),
    take("two"),
    write("a", 0, 1, data=b"three"),
    take("three"),
    write("a", 0, 515, data=b"now"),
]
"""Snapshots that share blocks and have others of their own, with holes."""

WORKLOADS: dict[str, tuple[list[Step], list[Step]]] = {
    # name: what comes before, what is recorded
    "first snapshots": ([write("a", 0, 512, data=b"zero")], [take("one"), take("two", "a", "b")]),
    "first writes": (
        [write("a", 0, 1, data=b"zero"), write("b", 1, data=b"of b"), take("one", "a", "b")],
        [write("a", 0, data=b"one"), write("a", 0, data=b"two"), write("a", 2, data=b"hole"), write("b", 1, data=b"b")],
    ),
    "writes after several snapshots": (THREE, [write("a", 1, 2, 0, data=b"later"), write("a", 512, data=b"last")]),
    "purge": (THREE, [purge, write("a", 1, data=b"later"), take("four"), purge]),
    "revert": (THREE, [revert("one")]),
    "fault back": ([*THREE, purge], [revert("two"), write("a", 0, data=b"later"), revert("three")]),
    "delete": (THREE, [delete("two"), delete("one"), delete("three"), forget]),
    "delete purged ones": ([*THREE, purge], [delete("two", "three"), delete("one"), take("new")]),
}


def perform(name: str, make: type[RecordedDevice] = RecordedDevice) -> tuple[Recording, list[Contents]]:
    """Run it recorded; what there is before it and after each step."""
    before, steps = WORKLOADS[name]
    recording = new_recording()
    device = make(recording)
    for step in before:
        step(device)
    recording.restart()
    found = [contents_of(device)]
    for number, step in enumerate(steps, 1):
        step(device)
        found.append(contents_of(device))
        recording.mark(number)
    return recording, found


# -- recovery


def check(states: Iterator[CrashState], contents: list[Contents]) -> int:
    """Recover each; how many different ones there were. `contents[n]`: what the first n steps make."""
    different: set[tuple[int, int]] = set()
    for state in states:
        told = len(state.marks)
        if (key := (told, hash(state.memories))) not in different:
            different.add(key)
            device = RecordedDevice(Recording(*state.memories))
            check_recovered(device, contents[told : told + 2])
            if len(different) % GO_ON_EVERY == 1:
                check_goes_on(device)
    return len(different)


def check_recovered(device: RecordedDevice, allowed: list[Contents]) -> None:
    device.check()
    found = contents_of(device)
    assert found.snapshots in [one.snapshots for one in allowed]
    for arena, running in found.running.items():
        for page in PAGES:
            assert words(running, page) <= set().union(*(words(one.running[arena], page) for one in allowed))


def words(running: dict[int, bytes], page: int) -> set[bytes]:
    data = running.get(page, bytes(8))
    return {data[at : at + 8] for at in range(0, len(data), 8)}


def check_goes_on(device: RecordedDevice) -> None:
    """What was recovered is used as ever, and all of it comes back at the end."""
    device.take("a", name="afterwards")
    before = device.running("a", PAGES)
    device.write("a", 0, b"again   ")
    assert device.content(device.find("afterwards"), PAGES) == before
    device.delete(*device.snapshots.of("a"))
    device.delete(*device.snapshots.of("b"))
    device.check_empty()


@CRASHES
@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(crashes: Crashes, name: str) -> None:
    recording, contents = perform(name)
    assert check(crashes(recording), contents) > 20


@CRASHES
def test_format(crashes: Crashes) -> None:
    recording = new_recording()
    device = RecordedDevice(recording)
    nothing = contents_of(device)
    recording.mark("made")
    check(crashes(recording), [nothing, nothing])


@CRASHES
def test_a_crash_while_recovering_from_a_crash(crashes: Crashes) -> None:
    recording, contents = perform("fault back")
    states = list(crashes(recording))
    for state in states[3 :: len(states) // 12]:
        again = Recording(*state.memories)
        told = len(state.marks)
        RecordedDevice(again)
        for number, second in enumerate(crashes(again)):
            if number % 17 == 0:
                check_recovered(RecordedDevice(Recording(*second.memories)), contents[told : told + 2])


# -- planted bugs, each of one line, and each found by the same check


class CopyUnflushed(RecordedDevice):
    """The entry names a copy that is not persistent."""

    def restart(self, *, finish: bool = True) -> None:
        super().restart(finish=finish)
        self.blocks.persist = lambda number, data: self.blocks.mapping.store(number * PAGE_BYTES, data)  # type: ignore[method-assign]


class WriteBeforeCopy(RecordedDevice):
    """The guest's store comes first."""

    def write(self, arena: str, page: int, data: bytes) -> bool:
        self.arenas[arena].write(page * PAGE_BYTES, content(data))
        return super().write(arena, page, data)


class PublishedBeforeSync(RecordedDevice):
    """The entry names a slot that is not durable."""

    def sync_storage(self) -> None:
        pass


def redo_unflushed(patch: pytest.MonkeyPatch) -> None:
    """Words are stored in place before the record is persistent."""
    persist = SimMapping.persist
    patch.setattr(
        SimMapping,
        "persist",
        lambda self, offset, data: (self.store if offset == REDO * PAGE_BYTES else persist.__get__(self))(offset, data),
    )


def applied_early(patch: pytest.MonkeyPatch) -> None:
    """A record counts as applied before its words are in place."""

    def apply(self: RedoLog, change: Change) -> None:
        self._mapping.publish_u64(self._applied_at, self._sequence + 1)
        applied(self, change)

    applied = RedoLog._apply
    patch.setattr(RedoLog, "_apply", apply)


def page_unwritten(patch: pytest.MonkeyPatch) -> None:
    """A new page is marked and named, but not persistent."""
    patch.setattr(Media, "write_page", lambda self, page, data: self.mapping.store(page * PAGE_BYTES, data))


def entry_unflushed(patch: pytest.MonkeyPatch) -> None:
    """Blocks are freed before the entries that named them are durable."""

    def publish(self: Purge) -> None:
        with pytest.MonkeyPatch.context() as lazy:
            lazy.setattr(self._snapshots.media.mapping, "flush", lambda offset, length: None)
            published(self)

    published = Purge.publish
    patch.setattr(Purge, "publish", publish)


def intents_late(patch: pytest.MonkeyPatch) -> None:
    """Entries name slots that are not taken yet."""

    def publish(self: Purge) -> None:
        with pytest.MonkeyPatch.context() as late:
            late.setattr(purging, "_note", lambda *noted: noted_down.append(noted))
            published(self)
        while noted_down:
            note(*noted_down.pop(0))

    noted_down: list[tuple[Any, ...]] = []
    note, published = purging._note, Purge.publish
    patch.setattr(Purge, "publish", publish)


def intents_unflushed(patch: pytest.MonkeyPatch) -> None:
    """They count before they are durable."""

    def noted(media: Media, *what: Any) -> None:
        with pytest.MonkeyPatch.context() as lazy:
            persist = SimMapping.persist
            lazy.setattr(
                SimMapping,
                "persist",
                lambda self, offset, data: (
                    self.store if INTENTS <= offset // PAGE_BYTES < REDO else persist.__get__(self)
                )(offset, data),
            )
            note(media, *what)

    note = purging._note
    patch.setattr(purging, "_note", noted)


def intents_cleared_first(patch: pytest.MonkeyPatch) -> None:
    """Nobody knows any more of the blocks that are yet to be freed."""

    def end(self: Purge) -> None:
        self._snapshots.media.mapping.publish_u64(INTENTS_AT, 0)
        ended(self)

    ended = Purge.end
    patch.setattr(Purge, "end", end)


def discarded_early(patch: pytest.MonkeyPatch) -> None:
    """A block's memory goes back before the change that frees it."""

    def free_block(self: Draft, block: int) -> None:
        RecordedBlocks(self._media.mapping._recording.map(STORE)).discard(block, 1)  # type: ignore[attr-defined]
        freed(self, block)

    freed = Draft.free_block
    patch.setattr(Draft, "free_block", free_block)


def reverted_unwritten(patch: pytest.MonkeyPatch) -> None:
    """The running point goes on before its pages are there."""
    patch.setattr(RecordedArena, "write", lambda self, offset, data: self.mapping.store(self._at(offset), data))


def erased_early(patch: pytest.MonkeyPatch) -> None:
    """A snapshot's record goes before what only it refers to."""
    patch.setattr(deletion, "_free_leaves", lambda snapshots, record: iter(()))


def begun_silently(patch: pytest.MonkeyPatch) -> None:
    """A reversion is not noted down before its first page."""
    patch.setattr(reverting, "begin", lambda snapshots, record: None)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("first writes", CopyUnflushed), ("first writes", WriteBeforeCopy), ("purge", PublishedBeforeSync)],
)
def test_a_wrong_device_is_found(name: str, wrong: type[RecordedDevice]) -> None:
    recording, contents = perform(name, wrong)
    with pytest.raises((AssertionError, EverramError)):
        check(losses(recording), contents)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("first writes", redo_unflushed),
        ("first writes", applied_early),
        ("first writes", page_unwritten),
        ("purge", entry_unflushed),
        ("purge", intents_late),
        ("purge", intents_unflushed),
        ("purge", intents_cleared_first),
        ("revert", discarded_early),
        ("revert", reverted_unwritten),
        ("revert", begun_silently),
        ("delete", erased_early),
    ],
)
def test_a_planted_bug_is_found(name: str, plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        recording, contents = perform(name)
    with pytest.raises((AssertionError, EverramError)):
        for crashes in (losses, deaths):
            check(crashes(recording), contents)
