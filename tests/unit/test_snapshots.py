"""Snapshots of regions: what they hold, what they take up, and that all of it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from benchmarks._pointer_elimination import PointerTables
from everram.actors.nvm_device import accounting, checking, deletion, purging, reverting
from everram.actors.nvm_device.bitmap import Bitmap
from everram.actors.nvm_device.block_store import BlockStore
from everram.actors.nvm_device.budget import Budget, MetadataSpace
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import START_PAGES, Media
from everram.actors.nvm_device.moving import move
from everram.actors.nvm_device.purging import Purge
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Region, Taking
from everram.actors.nvm_device.storage import Load, StorageFile
from everram.actors.nvm_device.tables import CHUNK_PAGES
from everram.actors.nvm_device.turns import in_turns, standing
from everram.actors.nvm_device.virtblocks import Place
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.disk import Media as DiskMedia
from everram.runtime.simulation.disk import SimulatedDisk
from everram.runtime.simulation.entropy import Seeds
from tests.loose_memory import LooseMemory
from tests.snapshot_device import Arena, Device, HeapBlocks, MemfdSpace, Space, content, run


def new_device(*, pages: int = 600, pages_max: int = 1 << 20) -> Device:
    return Device(Space(pages_max), {"a": Arena(pages), "b": Arena(pages)}, HeapBlocks())


def take(device: Device, name: str, arena: str = "a") -> Record:
    return device.take(arena, name=name)[0]


# -- metadata


def test_pages_that_lie_beyond_what_the_bits_named_are_found_after_a_crash() -> None:
    """The memory had grown by more than a page of bits can name, and then the host died."""
    space = Space(pages=64)
    Media.format(space)
    space.grow(40_000 * PAGE_BYTES)
    media = Media.open(space)
    with Draft(media) as draft:
        taken = [draft.new_page() for _ in range(35_000)]
    assert len(set(taken)) == 35_000


def test_every_page_is_taken_before_the_memory_grows() -> None:
    space = Space()
    media = Media.format(space)
    with Draft(media) as draft:
        taken = [draft.new_page() for _ in range(3000)]
    assert sorted(taken) == list(range(46, 3046))


def test_a_limit_that_is_lowered_or_no_round_number() -> None:
    media = Media.format(Space())
    media.store.limit = 70
    with Draft(media) as draft:
        assert [draft.new_block() for _ in range(70)] == list(range(70))
        with pytest.raises(ResourceExhausted):
            draft.new_block()
        media.store.limit = 75
        assert [draft.new_block() for _ in range(5)] == list(range(70, 75))
    media.store.limit = 3
    with Draft(media) as draft:
        for _ in range(3):
            draft.new_block()
        with pytest.raises(ResourceExhausted):
            draft.new_block()


def test_a_change_that_is_too_large_changes_nothing() -> None:
    device = new_device()
    with pytest.raises(ResourceExhausted), Draft(device.media) as draft:
        draft.new_block()
        for _ in range(9):
            draft.put(draft.new_page() * PAGE_BYTES + (1 << 30), bytes(8192))
        draft.commit()
    device.check()


# -- taking


def test_one_instant_holds_a_region_once() -> None:
    device = new_device()
    with pytest.raises(InvalidArgument, match="twice"):
        device.snapshots.take([Taking("a", "one", 4096), Taking("a", "two", 4096)], 0)
    assert not device.snapshots.of("a")


def test_a_snapshot_tree_with_many_branches() -> None:
    """From one snapshot on, again and again: more children than fit into one change of the metadata."""
    device = new_device(pages=4)
    device.write("a", 0, b"trunk")
    trunk = take(device, "trunk")
    branches = []
    for number in range(250):
        device.write("a", 0, b"branch %d" % number)
        branches.append(take(device, f"branch {number}"))
        device.revert(trunk)
    device.delete(trunk)
    device.check()
    assert all(branch.parent == 0 for branch in branches)
    assert device.load(branches[7], 0) == content(b"branch 7")
    device.delete(*branches)
    device.check_empty()


# -- deleting


def test_a_region_without_snapshots_leaves_nothing() -> None:
    device = new_device()
    before = device.media.pages.taken
    device.write("a", 1, b"one")
    one = take(device, "one")
    device.write("a", 1, b"two")
    two = take(device, "two")
    device.write("a", 1, b"three")
    device.revert(one)
    device.write("a", 1, b"four")
    device.delete(one, two)
    device.check_empty()
    device.snapshots.forget_region("a")
    device.check()
    assert device.media.pages.taken == before + 2  # a page of records, and one of bits of the store


@pytest.mark.parametrize("first", [0, 1])
def test_two_deletions_in_turns(first: int) -> None:
    device = new_device(pages=2000)
    records = []
    for name in ("one", "two", "three"):
        for page in (0, 1, 600, 1200):
            device.write("a", page, name.encode())
        records.append(take(device, name))
    device.write("a", 0, b"now")
    doomed = deletion.begin(device.snapshots, records[:2])
    turns = [deletion.steps(device.snapshots, record) for record in doomed]
    turns = turns[first:] + turns[:first]
    number = 0
    while turns:
        for steps in list(turns):
            if next(steps, StopIteration) is StopIteration:
                turns.remove(steps)
            number += 1
            device.write("a", number * 7 % 1300, b"meanwhile")
            device.check()
    assert device.load(records[2], 1200) == content(b"three")
    device.delete(records[2])
    device.check_empty()


def test_what_two_deleted_snapshots_share_goes_with_the_second() -> None:
    """Which had passed it over, because the first one still had it."""
    device = new_device(pages=2000)
    records = []
    for name, pages in (("one", (0, 512)), ("two", (512,)), ("three", (0, 512))):
        for page in pages:
            device.write("a", page, name.encode())
        records.append(take(device, name))
    first, second = (deletion.steps(device.snapshots, one) for one in deletion.begin(device.snapshots, records[:2]))
    next(first)
    run(second)
    run(first)
    device.check()


def test_deletion_needs_no_memory() -> None:
    """Also that of a region's last snapshot."""
    device = new_device(pages_max=64)
    device.write("a", 1, b"one")
    record = take(device, "one")
    with pytest.raises(ResourceExhausted):
        for page in range(100_000):
            device.arenas["a"].pages = 1 << 30
            device.write("a", page * 512, b"two")
    device.check()
    device.delete(record)
    device.check_empty()


# -- reverting


def test_a_snapshot_to_which_a_region_is_being_reverted_stays() -> None:
    device = new_device()
    device.write("a", 1, b"one")
    one = take(device, "one")
    device.write("a", 1, b"two")
    two = take(device, "two")
    reverting.begin(device.snapshots, one)
    with pytest.raises(FailedPrecondition, match="being reverted"):
        deletion.begin(device.snapshots, [one])
    with pytest.raises(FailedPrecondition, match="being reverted"):
        reverting.begin(device.snapshots, two)
    with pytest.raises(FailedPrecondition, match="being reverted"):
        device.snapshots.before_write("a", 1)
    device.restart()
    assert device.running("a") == {1: content(b"one")}
    device.check()


# -- purging


def test_what_was_deleted_since_it_was_found_is_not_purged() -> None:
    device = new_device()
    records = []
    for name in ("one", "two"):
        for page in range(6):
            device.write("a", page, name.encode())
        records.append(take(device, name))
    for page in range(6):
        device.write("a", page, b"now")
    found = purging.batches(device.snapshots, 5)
    next(found)
    device.delete(records[0])
    for batch in found:
        purge = Purge.begin(device.snapshots, batch)
        device.store(purge)
        purge.publish()
        purge.end()
    device.check()
    assert device.content(records[1]) == {page: content(b"two") for page in range(6)}
    device.delete(records[1])
    device.check_empty()


def test_one_purge_at_a_time() -> None:
    device = new_device()
    device.write("a", 1, b"one")
    take(device, "one")
    device.write("a", 1, b"two")
    (batch,) = purging.batches(device.snapshots)
    purge = Purge.begin(device.snapshots, batch)
    device.check()
    assert not Purge.begin(device.snapshots, batch).slots
    purge.publish()
    other = Purge.begin(device.snapshots, {})
    with pytest.raises(FailedPrecondition, match="ended first"):
        other.publish()
    device.check()
    purge.end()
    device.check()
    with pytest.raises(ValueError, match="at most"):
        Purge.begin(device.snapshots, dict.fromkeys(range(purging.BATCH_BLOCKS + 1), 0))


@pytest.mark.parametrize("count", [1, 5])
def test_one_update_for_a_block_that_many_share(count: int) -> None:
    """Pointer elimination, on the same snapshots, needs one for each of their tables."""
    device = new_device()
    for page in range(4):
        device.write("a", page, b"shared")
    for number in range(count):
        take(device, f"snapshot {number}")
        device.write("a", 5, b"%d" % number)  # so the next one has a table of its own
    for page in range(4):
        device.write("a", page, b"now")
    elimination = PointerTables.of(device.snapshots, lambda pages: HeapMapping(pages * PAGE_BYTES))
    eliminated = set()
    for slots, _, load, end in elimination.batches(3):
        target = load(0, memoryview(bytearray(len(slots) * PAGE_BYTES)))
        eliminated.update(bytes(target[at : at + PAGE_BYTES]) for at in range(0, len(target), PAGE_BYTES))
        end()
    assert eliminated >= {content(b"shared")}
    device.restart()
    device.blocks.content.update(dict.fromkeys(range(8), content(b"shared")))  # the baseline has discarded them
    before = device.snapshots.entry_updates
    others = count - 1  # old contents of page 5, of which each is one snapshot's own
    assert device.purge() == elimination.slots == 4 + others
    assert device.snapshots.entry_updates - before == 4 + others
    assert elimination.entry_updates == 4 * count + others


async def ten_to_move() -> tuple[Device, StorageFile]:
    device = new_device()
    for page in range(10):
        device.write("a", page, b"one")
    take(device, "one")
    for page in range(10):
        device.write("a", page, b"two")
    return device, await StorageFile.open(SimulatedDisk(DiskMedia(Seeds(1).stream("disk"))), "storage")


async def told(device: Device, storage: StorageFile) -> list[int]:
    """What was moved, until storage does not take more."""
    found: list[int] = []
    with pytest.raises(EverramError):
        async for moved in move(device.snapshots, storage, list(purging.batches(device.snapshots, 3))):
            found.append(moved)
    device.check()
    assert not device.snapshots.purging
    assert device.media.storage.taken == sum(found)
    slots = dict(purged(device))
    assert len(slots) == sum(found)
    assert await storage.verify(slots) == {}
    return found


def purged(device: Device) -> Iterator[tuple[int, int]]:
    """(slot, virtblock)."""
    record = device.snapshots.find("a", "one")
    for page in range(10):
        place, slot = device.snapshots.locate(record, page)
        if place is Place.STORAGE:
            yield slot, device.snapshots.virtblock(record, page)


async def test_what_storage_has_no_places_for_stays() -> None:
    device, storage = await ten_to_move()
    device.media.storage.limit = 7
    assert await told(device, storage) == [3, 3, 1]


async def test_a_batch_that_storage_does_not_take_does_no_harm_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    device, storage = await ten_to_move()
    written = storage.write

    async def write(slots: Sequence[int], virtblocks: Sequence[int], load: Load) -> None:
        if slots[0] == 3:
            raise DataLoss("no")
        await written(slots, virtblocks, load)

    with monkeypatch.context() as failing:
        failing.setattr(storage, "write", write)
        assert await told(device, storage) in ([3], [3, 3])
    async for _ in move(device.snapshots, storage, purging.search(device.snapshots)):
        pass
    assert dict(purged(device)).keys() == set(range(10))
    device.delete(device.snapshots.find("a", "one"))
    device.check_empty()


# -- large


def large() -> tuple[Device, Record]:
    """Some hundred chunks, written since the first of two snapshots."""
    chunks = 100
    device = Device(Space(), {"a": Arena(chunks * CHUNK_PAGES)}, HeapBlocks())
    device.media.store.limit = device.media.storage.limit = chunks * CHUNK_PAGES
    for page in range(0, chunks * CHUNK_PAGES, 4):
        device.arenas["a"].write(page * PAGE_BYTES, bytes(PAGE_BYTES))
    (record,) = device.take("a", name="first", pages=chunks * CHUNK_PAGES)
    for page in range(0, chunks * CHUNK_PAGES, 4):
        device.snapshots.before_write("a", page)
    device.take("a", name="second", pages=chunks * CHUNK_PAGES)
    return device, record


def test_long_work_is_done_in_many_steps() -> None:
    """Between which others have their turn: a step is about a chunk, or a batch of blocks."""
    device, record = large()
    frozen = standing(device.snapshots)
    kept = [frozen.records[one.sequence] for one in device.snapshots.of("a")]
    walks: dict[str, Iterator[object]] = {
        "check": checking.check_in_turns(frozen),
        "preview": accounting.preview_in_turns(frozen, kept),
        "usage": accounting.usage_in_turns(frozen, kept[1]),
        "purge": purging.search(device.snapshots),
        "revert": reverting.chunks(device.snapshots, record),
    }
    steps = {name: sum(1 for _ in walk) for name, walk in walks.items()}
    assert steps.pop("purge") >= 100 * CHUNK_PAGES // 4 // purging.LOOK_AHEAD_BLOCKS
    assert all(count >= 100 for count in steps.values()), steps


async def test_others_work_during_a_check() -> None:
    device, record = large()
    checked = asyncio.create_task(in_turns(checking.check_in_turns(standing(device.snapshots))))
    turns = 0
    while not checked.done():
        if turns < 50:
            device.write("a", 4 * turns, b"meanwhile")
        elif turns == 50:
            device.delete(record)
        turns += 1
        await asyncio.sleep(0)
    findings, reached = await checked
    assert not findings
    assert len(reached.blocks) == 100 * CHUNK_PAGES // 4
    assert turns > 100
    device.check()


# -- full


class Full:
    """The n-th thing that is taken, of whatever kind, is one too many; `left` of them were not reached."""

    def __init__(self, nth: int, device: Device, patch: pytest.MonkeyPatch) -> None:
        self.left = nth
        for owner, name in ((Bitmap, "take"), (Bitmap, "take_many"), (HeapBlocks, "persist"), (Space, "grow")):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def take(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise ResourceExhausted("there is nothing left")
            return real(*arguments)

        return take


@pytest.mark.parametrize(
    "work",
    [
        lambda device: device.take("a", "b", name="new"),
        lambda device: device.write("a", 0, b"into a leaf that is shared"),
        lambda device: device.write("a", 3, b"into a leaf of its own"),
        lambda device: device.write("a", 550, b"breaks an extent up"),
        lambda device: device.write("b", 1, b"breaks the first extent up"),
        lambda device: device.purge(),
        lambda device: device.revert(device.snapshots.find("a", "one")),
        lambda device: device.delete(device.snapshots.find("a", "two")),
        lambda device: device.delete(*device.snapshots.of("a")),
    ],
)
def test_nothing_is_half_done_when_something_is_full(work: Callable[[Device], object]) -> None:
    """Whatever it is that is full: all snapshots are as they were, and when there is room again it goes on."""
    for nth in itertools.count(1):
        device = new_device()
        for name in ("one", "two", "three"):
            for page in (0, 1, 2):
                device.write("a", page, name.encode())
            device.take("a", "b", name=name)
        device.write("a", 1, b"now")
        held = {record.name: device.content(record) for record in device.snapshots.of("a")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(purging, "PIECE_BLOCKS", 2)
            full = Full(nth, device, patch)
            try:
                work(device)
            except ResourceExhausted:
                assert full.left <= 0
        device.check()
        if full.left > 0:
            break
        assert {record.name: device.content(record) for record in device.snapshots.of("a")} == held
        device.finish()
        work(device)
        device.check()
        device.delete(*device.snapshots.of("a"))
        device.delete(*device.snapshots.of("b"))
        device.check_empty()


# -- accounting


def test_what_is_being_deleted_already_holds_nothing() -> None:
    """A block that it shares with a snapshot comes back with that."""
    device = new_device()
    device.write("a", 1, b"one")
    one = take(device, "one")
    two = take(device, "two")
    device.write("a", 1, b"two")
    (doomed,) = deletion.begin(device.snapshots, [one])
    assert accounting.preview(device.snapshots, [two]).memory_bytes == PAGE_BYTES
    assert accounting.usage(device.snapshots, two).owned_bytes == PAGE_BYTES
    run(deletion.steps(device.snapshots, doomed))
    assert device.media.store.taken == 1
    device.delete(two)
    device.check_empty()


# -- against a model


PAGES = (0, 1, 2, 511, 512, 599, 1100)
"""That are written to: of three chunks, the last of which is no whole one."""
REGION_PAGES = 1101
WHO = st.sampled_from(["a", "b"])
NTH = st.integers(0, 1 << 16)


class Modelled(RuleBasedStateMachine):
    """Two regions, whose running points and snapshots are dictionaries, too. Deletions go on a step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.device = self.new_device()
        self.pages_at_first = self.device.media.pages.taken
        self.running: dict[str, dict[int, bytes]] = {"a": {}, "b": {}}
        self.snapshots: dict[tuple[str, str], dict[int, bytes]] = {}
        """By region and name."""
        self.deleting: list[Iterator[None]] = []
        self.number = 0

    def new_device(self) -> Device:
        arenas = {name: Arena(REGION_PAGES) for name in ("a", "b")}
        return Device(Space(), arenas, HeapBlocks())

    def record(self, nth: int) -> Record:
        arena, name = sorted(self.snapshots)[nth % len(self.snapshots)]
        return self.device.snapshots.find(arena, name)

    def arena(self, record: Record) -> str:
        return self.device.snapshots.region_of(record).record.name

    @rule(arena=WHO, pages=st.sets(st.sampled_from(PAGES), min_size=1, max_size=5))
    def write(self, arena: str, pages: set[int]) -> None:
        for page in sorted(pages):
            self.number += 1
            data = b"%d of %s, " % (self.number, arena.encode())
            self.device.write(arena, page, data)
            self.running[arena][page] = content(data)

    @rule(arenas=st.sets(WHO, min_size=1))
    def take(self, arenas: set[str]) -> None:
        self.number += 1
        name = f"snapshot {self.number}"
        self.device.take(*sorted(arenas), name=name, pages=REGION_PAGES)
        for arena in arenas:
            self.snapshots[arena, name] = dict(self.running[arena])

    @precondition(lambda self: self.snapshots)
    @rule(nth=NTH, count=st.integers(1, 4), at_once=st.booleans())
    def delete(self, nth: int, count: int, at_once: bool) -> None:
        """Some snapshots of one region."""
        arena = self.arena(self.record(nth))
        names = [name for one, name in sorted(self.snapshots) if one == arena]
        doomed = [self.device.snapshots.find(arena, name) for name in names[nth % len(names) :][:count]]
        exact = not self.deleting
        freed = accounting.preview(self.device.snapshots, doomed)
        media = self.device.media
        blocks, slots = media.store.taken, media.storage.taken
        for record in doomed:
            del self.snapshots[arena, record.name]
        steps = [deletion.steps(self.device.snapshots, one) for one in deletion.begin(self.device.snapshots, doomed)]
        if not (at_once and exact):
            self.deleting += steps
            return
        for one in steps:
            run(one)
        assert (blocks - media.store.taken) * PAGE_BYTES == freed.memory_bytes
        assert (slots - media.storage.taken) * PAGE_BYTES == freed.storage_bytes

    @precondition(lambda self: self.deleting)
    @rule(nth=NTH, count=st.integers(1, 3))
    def go_on_deleting(self, nth: int, count: int) -> None:
        steps = self.deleting[nth % len(self.deleting)]
        for _ in range(count):
            if next(steps, StopIteration) is StopIteration:
                self.deleting.remove(steps)
                return

    @rule(limit=st.sampled_from([2, 3, 100]))
    def purge(self, limit: int) -> None:
        self.device.purge(limit)

    @rule(limit=st.sampled_from([2, 100]), pages=st.sets(st.sampled_from(PAGES)), crash=st.booleans())
    def purge_while_others_work(self, limit: int, pages: set[int], crash: bool) -> None:
        batch = next(purging.batches(self.device.snapshots, limit), {})
        purge = Purge.begin(self.device.snapshots, batch)
        self.device.store(purge)
        self.take({"a"})
        self.write("a", pages)
        purge.publish()
        self.write("b", pages)
        if crash:
            self.restart()
        else:
            purge.end()

    @rule(limit=st.sampled_from([2, 100]))
    def purge_in_vain(self, limit: int) -> None:
        for batch in purging.batches(self.device.snapshots, limit):
            Purge.begin(self.device.snapshots, batch).abandon()

    @precondition(lambda self: self.snapshots)
    @rule(nth=NTH, cut_off=st.integers(0, 3))
    def revert(self, nth: int, cut_off: int) -> None:
        """Perhaps cut off by a restart after so many pages."""
        record = self.record(nth)
        arena, name = self.arena(record), record.name
        snapshots = self.device.snapshots
        reverting.begin(snapshots, record)
        for number, page in enumerate(reverting.pages(snapshots, record)):
            reverting.restore(snapshots, record, page, self.device.load(record, page))
            if number + 1 == cut_off:
                self.restart()
                break
        else:
            self.deleting.append(deletion.steps(snapshots, reverting.end(snapshots, record)))
        self.running[arena] = dict(self.snapshots[arena, name])

    @rule()
    def restart(self) -> None:
        """Deletions go on later; all else is finished at once."""
        device = self.device
        device.restart(finish=False)
        purging.recover(device.snapshots)
        for record in reverting.unfinished(device.snapshots):
            device.revert(record)
        self.deleting = [deletion.steps(device.snapshots, one) for one in deletion.unfinished(device.snapshots)]

    @invariant()
    def all_is_as_it_has_to_be(self) -> None:
        device = self.device
        device.check()
        for arena, running in self.running.items():
            assert device.running(arena, PAGES) == running
            assert {record.name for record in device.snapshots.of(arena)} == {
                name for one, name in self.snapshots if one == arena
            }
        for (arena, name), held in self.snapshots.items():
            assert device.content(device.snapshots.find(arena, name), PAGES) == held
        for name, region in device.snapshots.regions.items():
            for page in PAGES:
                assert device.snapshots.is_settled(name, page) == self.is_settled_by_all(region, page)

    def is_settled_by_all(self, region: Region, page: int) -> bool:
        """Asking every snapshot, and not only those that are near."""
        live = self.device.snapshots.live(region)
        own = self.virtblock(region.record, page)
        return not live or (own != 0 and own not in [self.virtblock(record, page) for record in live])

    def virtblock(self, record: Record, page: int) -> int:
        return self.device.snapshots.virtblock(record, page)

    def teardown(self) -> None:
        device = self.device
        for steps in self.deleting:
            run(steps)
        for arena in ("a", "b"):
            device.delete(*device.snapshots.of(arena))
        device.check_empty()
        for arena in ("a", "b"):
            device.snapshots.forget_region(arena)
        device.check()
        kept = sum(bitmap.pages for bitmap in (device.media.store, device.media.storage))
        assert device.media.pages.taken <= self.pages_at_first + kept + 10  # pages of records


class ModelledOnMemfds(Modelled):
    def new_device(self) -> Device:
        self.memory = LooseMemory()
        arenas = {name: self.memory.make(f"region.{name}", REGION_PAGES * PAGE_BYTES) for name in ("a", "b")}
        blocks = BlockStore(self.memory, self.memory.make("nvm.blocks", 0, resizable=True))
        return Device(MemfdSpace(self.memory), arenas, blocks)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.device.space.map().close()
            self.memory.close()


FEW = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestModelled = Modelled.TestCase
TestModelled.settings = FEW
TestModelledOnMemfds = ModelledOnMemfds.TestCase
TestModelledOnMemfds.settings = FEW


async def test_what_the_metadata_has_grown_by_is_no_room_for_blocks() -> None:
    with contextlib.closing(LooseMemory()) as memory:
        budget = Budget(100 * PAGE_BYTES)
        space = await MetadataSpace.open(memory, budget)
        with contextlib.closing(space):
            media = Media.format(space)
            budget.use(media)
            assert media.store.limit == 100
            space.grow((START_PAGES + 64) * PAGE_BYTES)
            assert (media.store.limit, budget.free_bytes) == (36, 36 * PAGE_BYTES)
            with pytest.raises(ResourceExhausted, match="more than there is free"):
                space.grow((START_PAGES + 128) * PAGE_BYTES)
