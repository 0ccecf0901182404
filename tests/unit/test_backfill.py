"""Restoring lazily: on real memory, from a simulated disk, with a guest of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.power_monitor.backfill import RECORD, Backfill
from everram.actors.power_monitor.budget_keeper import SLOWEST_READ_BYTES_PER_S, BudgetKeeper
from everram.actors.power_monitor.flusher import Flusher
from everram.actors.power_monitor.save import RestoreOutcome, restore, save
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment, MachineEvent, Memory, Stretch, TrackedRange
from everram.runtime.errors import DataLoss, ResourceExhausted
from everram.runtime.formats import nvm
from everram.runtime.formats.image_files import pages_name
from everram.runtime.formats.segment import SegmentWriter
from everram.runtime.formats.vmemfs import Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.memory.mapped import Mapped
from everram.runtime.memory.page_service import PageService
from everram.runtime.memory.userfaultfd import FaultFlag, Feature, Mode, PageFault
from everram.runtime.production.disk import Folder
from everram.runtime.production.memory import KeptObject
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from tests.loose_memory import LooseMemory

ARENA, OTHER, SMALL, COPY = "region.g.ledger", "region.h.ledger", "region.g.small", "region.f.ledger@c"
PAGES = 400
BASE = 0x7F00_0000_0000


def content(page: int) -> bytes:
    """Of a page that was saved; each fifth was never written."""
    return bytes(PAGE_BYTES) if page % 5 == 4 else page.to_bytes(8, "little") * (PAGE_BYTES // 8)


class FixedClock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


@dataclass
class GuestMapping:
    """A guest that has ARENA mapped, and its threads that wait. What it is given goes to the real memory."""

    arena: KeptObject
    mode: Mode = Mode.WRITE_PROTECT
    waiting: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    poisoned: set[int] = field(default_factory=set)
    gone: bool = False

    def __post_init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def event(self) -> MachineEvent:
        tracked = TrackedRange("ledger", ARENA, BASE, PAGES * PAGE_BYTES)
        return MachineEvent("attached", "g", 1, userfaultfd=os.dup(self.descriptor), ranges=(tracked,))

    def touch(self, page: int) -> None:
        self.waiting.append(page)
        os.eventfd_write(self.descriptor, 1)

    def handshake(self, descriptor: int, wanted: Feature) -> Feature | None:
        return wanted

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None:
        self.mode = mode

    def protect(self, descriptor: int, address: int, length: int) -> None:
        pass

    def unprotect(self, descriptor: int, address: int, length: int) -> None:
        pass

    def wake(self, descriptor: int, address: int, length: int) -> None:
        self.waiting += self.told
        self.told = []
        if self.waiting:
            os.eventfd_write(self.descriptor, 1)

    def fill(self, descriptor: int, address: int, data: bytes, *, protected: bool) -> None:
        if self.gone:
            raise OSError(errno.ESRCH, "No such process")
        first = (address - BASE) // PAGE_BYTES
        for n in range(len(data) // PAGE_BYTES):
            if not present(self.arena, first + n):
                self.arena.fill((first + n) * PAGE_BYTES, data[n * PAGE_BYTES : (n + 1) * PAGE_BYTES])
        filled = range(first, first + len(data) // PAGE_BYTES)
        self.told = [page for page in self.told if page not in filled]

    def poison(self, descriptor: int, address: int, length: int) -> None:
        self.poisoned.add((address - BASE) // PAGE_BYTES)

    def read_faults(self, descriptor: int, limit: int) -> list[PageFault]:
        os.eventfd_read(descriptor)
        pages, self.waiting = self.waiting, []
        self.told += pages
        return [PageFault(BASE + page * PAGE_BYTES, FaultFlag(0)) for page in pages]


def present(kept: KeptObject, page: int) -> bool:
    lack, kept.lack = kept.lack, None
    try:
        return bool(kept.extents(page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
    finally:
        kept.lack = lack


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of state of the test's own kernel, which signals nobody
            await asyncio.sleep(0)


@dataclass
class Bench:
    """A machine's disk and memory, hosts that come and go, and the tasks of the last one."""

    media: Media
    memory: LooseMemory = field(default_factory=LooseMemory)
    guest: GuestMapping | None = None
    hosts: int = 0
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    services: list[PageService] = field(default_factory=list)

    def environment(self) -> Environment:
        nothing = cast("Any", None)
        entropy = SimulatedEntropy(Seeds(self.hosts).stream("entropy"))
        disk, memory = SimulatedDisk(self.media), cast("Memory", self.memory)
        return Environment(FixedClock(), entropy, disk, memory, nothing, nothing, nothing, nothing, nothing, nothing)

    async def restored(self) -> tuple[RestoreOutcome, PageService]:
        self.hosts += 1
        kernel = cast("Any", self.guest) if self.guest is not None else GuestMapping(cast("Any", None))
        faults = PageService(cast("Memory", self.memory), kernel=kernel)
        self.services.append(faults)
        return await restore(self.environment(), faults=faults), faults

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def start(self, backfill: Backfill) -> None:
        backfill.start(self.spawn, lambda guest_id, why: self.damages.append(guest_id))

    async def kill_host(self) -> None:
        """Nothing of it goes on; what it knew is gone."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        for service in self.services:
            service.close()
        for name in self.memory.names():
            self.memory.open(name).lack = None

    def lose_memory(self) -> None:
        for name in self.memory.names():
            os.close(self.memory.open(name).descriptor)
        self.memory = LooseMemory()

    def mapped(self) -> GuestMapping:
        self.guest = GuestMapping(self.memory.open(ARENA))
        return self.guest

    def found(self, name: str = ARENA) -> list[bytes]:
        kept = self.memory.open(name)
        return [kept.read(page * PAGE_BYTES, PAGE_BYTES) for page in range(kept.size_bytes // PAGE_BYTES)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    media = Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
    bench = Bench(media)
    memory = bench.memory
    first = Superblock.format(memory.make("vmemfs", 16 * PAGE_BYTES).map(), HostRecord(memory_id="m1", lease_id=5))
    first.put_guest(pb.Guest(guest_id="g", name="bank"))
    metadata = nvm.Metadata.format(memory.make("nvm", 16 * PAGE_BYTES).map())
    metadata.add([pb.Region(name="ledger", guest_id="g", arena=ARENA, size_bytes=PAGES * PAGE_BYTES)], None)
    for name, pages, other in ((ARENA, PAGES, 0), (OTHER, PAGES, 0), (SMALL, 8, 1000), (COPY, PAGES, 1000)):
        kept = memory.make(name, pages * PAGE_BYTES)
        for page in range(pages):
            if page % 5 != 4:
                kept.write(page * PAGE_BYTES, content(page + other))
    await save(bench.environment(), "down", "m1")
    bench.lose_memory()
    yield bench
    await bench.kill_host()
    if bench.guest is not None:
        os.close(bench.guest.descriptor)
    bench.lose_memory()


async def test_only_regions_of_guests_are_left_in_the_image(bench: Bench) -> None:
    outcome, _ = await bench.restored()
    assert (outcome.kind, outcome.generation) == ("restored", 1)
    assert outcome.backfill is not None
    assert outcome.backfill.left_pages == 2 * PAGES * 4 // 5
    assert [name for name in bench.memory.names() if bench.memory.open(name).lack is not None] == [ARENA, OTHER]
    assert bench.found(SMALL) == [content(page + 1000) for page in range(8)]
    assert bench.found(COPY) == [content(page + 1000) for page in range(PAGES)]


async def test_everything_comes_by_itself(bench: Bench) -> None:
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    await asyncio.gather(*bench.tasks)
    assert outcome.backfill.left_pages == 0
    assert faults.absent == []
    assert RECORD not in bench.memory.names()
    for name in (ARENA, OTHER):
        assert bench.memory.open(name).lack is None
        assert bench.found(name) == [content(page) for page in range(PAGES)]


async def test_eagerly_by_choice(bench: Bench) -> None:
    faults = PageService(cast("Memory", bench.memory))
    outcome = await restore(bench.environment(), faults=faults, lazily=False)
    assert outcome.backfill is None
    assert bench.found() == [content(page) for page in range(PAGES)]


async def test_what_a_guest_touches_comes_at_once(bench: Bench) -> None:
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    guest = bench.mapped()
    faults._kernel = cast("Any", guest)
    faults.attach(guest.event())
    assert guest.mode & Mode.MISSING
    guest.touch(207)
    await until(lambda: faults.lacking_pages() > 0)
    bench.start(outcome.backfill)
    await until(lambda: not guest.told and present(guest.arena, 207))
    assert guest.arena.read(207 * PAGE_BYTES, PAGE_BYTES) == content(207)
    await outcome.backfill.finished()
    assert bench.found() == [content(page) for page in range(PAGES)]


@pytest.mark.parametrize("seed", range(8))
async def test_the_host_never_sees_a_hole_and_never_loses_a_store(bench: Bench, seed: int) -> None:
    """Accesses of every kind, at random, while pages come; the host dies in the midst of it, again and again."""
    dice = random.Random(seed)
    outcome, _ = await bench.restored()
    expected = [content(page) for page in range(PAGES)]
    for _ in range(6):
        if outcome.backfill is not None:
            bench.start(outcome.backfill)
        kept = bench.memory.open(ARENA)
        for _ in range(dice.randrange(12)):
            access(kept, dice, expected)
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
        await bench.kill_host()
        outcome, _ = await bench.restored()
        assert outcome.kind == "kept"
    assert bench.found() == expected
    assert bench.found(OTHER) == [content(page) for page in range(PAGES)]


def access(kept: KeptObject, dice: random.Random, expected: list[bytes]) -> None:
    page, count = dice.randrange(PAGES - 20), dice.randrange(1, 20)
    offset, length = page * PAGE_BYTES, count * PAGE_BYTES
    kind = dice.choice(("read", "read into", "write", "write within", "view", "punch", "extents"))
    if kind == "read":
        assert kept.read(offset, length) == b"".join(expected[page : page + count])
    elif kind == "read into":
        target = bytearray(length)
        kept.read_into(offset, memoryview(target))
        assert target == b"".join(expected[page : page + count])
    elif kind == "view":
        view = kept.view(offset, length)
        assert view == b"".join(expected[page : page + count])
    elif kind == "write":
        kept.write(offset, b"w" * length)
        expected[page : page + count] = [b"w" * PAGE_BYTES] * count
    elif kind == "write within":
        kept.write(offset + 100, b"v" * 50)
        expected[page] = expected[page][:100] + b"v" * 50 + expected[page][150:]
    elif kind == "punch":
        kept.punch(offset, length)
        expected[page : page + count] = [bytes(PAGE_BYTES)] * count
    else:
        inside = {at // PAGE_BYTES for o, n in kept.extents() for at in range(o, o + n, PAGE_BYTES)}
        assert inside >= {at for at, there in enumerate(expected) if any(there)}


async def test_a_mapping_brings_what_is_touched(bench: Bench) -> None:
    outcome, _ = await bench.restored()
    assert outcome.backfill is not None
    mapping = bench.memory.open(ARENA).map()
    before = outcome.backfill.left_pages
    assert mapping.load(7 * PAGE_BYTES, 8) == content(7)[:8]
    mapping.store(50 * PAGE_BYTES + 8, b"stored here")
    mapping.publish_u64(100 * PAGE_BYTES, 77)
    assert mapping.load_words([150 * 512]) == [150]
    assert before > outcome.backfill.left_pages > before - 80, "no more than it takes"
    expected = [content(page) for page in range(PAGES)]
    expected[50] = content(50)[:8] + b"stored here" + content(50)[19:]
    expected[100] = (77).to_bytes(8, "little") + content(100)[8:]
    assert [mapping.load(page * PAGE_BYTES, PAGE_BYTES) for page in range(PAGES)] == expected
    assert bench.memory.open(ARENA).lack is None, "it lacks nothing any more"
    mapping.close()
    other = bench.memory.open(OTHER).map()
    assert isinstance(other, Mapped)
    assert bytes(other.view) == b"".join(map(content, range(PAGES)))
    other.close()


async def test_what_is_made_anew_under_an_old_name_is_left_alone(bench: Bench) -> None:
    outcome, _ = await bench.restored()
    assert outcome.backfill is not None
    await bench.memory.remove(ARENA)
    bench.memory.make(ARENA, PAGES * PAGE_BYTES)
    assert not outcome.backfill.may_lack(ARENA)
    await bench.memory.remove(OTHER)
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    assert bench.found() == [bytes(PAGE_BYTES)] * PAGES


async def test_a_successor_knows_what_was_made_anew(bench: Bench) -> None:
    await bench.restored()
    await bench.memory.remove(ARENA)
    bench.memory.make(ARENA, PAGES * PAGE_BYTES)
    await bench.kill_host()
    outcome, _ = await bench.restored()
    assert outcome.backfill is not None
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    assert bench.found() == [bytes(PAGE_BYTES)] * PAGES
    assert bench.found(OTHER) == [content(page) for page in range(PAGES)]


def damage(bench: Bench, page: int) -> None:
    """Of ARENA, as it lies in the image; pages that hold nothing are not there."""
    file = bench.media.files[pages_name(1)]
    for copy in (file.cached, file.durable):
        at = copy.find(content(page))
        copy[at + 70] ^= 4


async def test_a_page_that_is_damaged_costs_one_guest(bench: Bench) -> None:
    damage(bench, 123)
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    guest = bench.mapped()
    faults._kernel = cast("Any", guest)
    faults.attach(guest.event())
    bench.start(outcome.backfill)
    guest.touch(123)
    await until(lambda: bool(bench.damages))
    assert guest.poisoned >= {123}
    assert len(guest.poisoned) <= 16
    await outcome.backfill.finished()
    assert set(bench.damages) == {"g"}
    assert bench.found(OTHER) == [content(page) for page in range(PAGES)]
    good = set(range(PAGES)) - guest.poisoned
    found = bench.found()
    assert [found[page] for page in good] == [content(page) for page in good]


async def test_the_host_is_told_of_damage_and_so_is_its_successor(bench: Bench) -> None:
    damage(bench, 123)
    for _ in range(2):
        outcome, _ = await bench.restored()
        assert outcome.backfill is not None
        bench.start(outcome.backfill)
        with pytest.raises(DataLoss, match=r"region.g.ledger.*do not match their checksum"):
            bench.memory.open(ARENA).read(0, PAGES * PAGE_BYTES)
        await outcome.backfill.had.wait()
        with pytest.raises(DataLoss):
            bench.memory.open(ARENA).read(123 * PAGE_BYTES, 1)
        await bench.kill_host()
    assert set(bench.damages) == {"g"}


async def test_damage_that_was_found_early_is_told_to_those_who_come_later(bench: Bench) -> None:
    """By the host before guests are served, or by the restore before this guest is there."""
    damage(bench, 123)
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    with pytest.raises(DataLoss):
        bench.memory.open(ARENA).read(123 * PAGE_BYTES, 8)
    bench.start(outcome.backfill)
    assert bench.damages == ["g"]
    await outcome.backfill.had.wait()
    guest = bench.mapped()
    faults._kernel = cast("Any", guest)
    faults.attach(guest.event())
    guest.touch(123)
    await until(lambda: 123 in guest.poisoned)
    assert bench.damages[-1] == "g"


async def test_a_guest_that_maps_a_part_gets_that_and_memory_the_rest(bench: Bench) -> None:
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    guest = bench.mapped()
    faults._kernel = cast("Any", guest)
    tracked = TrackedRange("ledger", ARENA, BASE, 100 * PAGE_BYTES)
    faults.attach(MachineEvent("attached", "g", 1, userfaultfd=os.dup(guest.descriptor), ranges=(tracked,)))
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    assert bench.found() == [content(page) for page in range(PAGES)]


async def test_what_a_disk_writes_is_brought_by_the_loop(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, _ = await bench.restored()
    assert outcome.backfill is not None
    threads = set()
    real = outcome.backfill.bring_now

    def bring_now(*arguments: Any, **named: Any) -> None:
        threads.add(threading.current_thread())
        real(*arguments, **named)

    monkeypatch.setattr(outcome.backfill, "bring_now", bring_now)
    file = await Folder(tmp_path).open("x", create=True)
    await file.pwrite_all(0, [Stretch(bench.memory.open(ARENA), 0, PAGES * PAGE_BYTES)], 65536)
    await file.close()
    assert threads == {threading.main_thread()}
    assert (tmp_path / "x").read_bytes() == b"".join(content(page) for page in range(PAGES))


async def test_memory_that_runs_out_for_a_while_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = await bench.restored()
    assert outcome.backfill is not None
    kept = bench.memory.open(ARENA)
    real, tries = kept.fill, 0

    def fill(offset: int, data: bytes | memoryview) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise ResourceExhausted("no memory now")
        real(offset, data)

    monkeypatch.setattr(kept, "fill", fill)
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    assert bench.found() == [content(page) for page in range(PAGES)]


async def test_lost_pages_of_one_guest_do_not_keep_the_others_from_being_saved(bench: Bench) -> None:
    """Not even those that count as dirty, because they were lacking when counting began."""
    damage(bench, 123)
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    bench.memory.capacity_bytes = 1 << 24
    cap = faults.guard.cap = DirtyCap(cast("Any", bench.memory), lambda: 1.0)
    cap.target_pages = 300
    context = SimpleNamespace(environment=bench.environment(), log=logging.getLogger("test"))
    flusher = Flusher(cast("Any", context), cap, cast("Any", faults))
    await flusher.begin("m1")
    bench.start(outcome.backfill)
    await outcome.backfill.had.wait()
    async with flusher.stopped() as flushed:
        await save(bench.environment(), "power", "m1", flushed)
    await bench.kill_host()
    bench.lose_memory()
    await bench.restored()
    assert bench.found(OTHER) == [content(page) for page in range(PAGES)]


async def flusher_of(bench: Bench) -> tuple[Flusher, DirtyCap, PageService]:
    """With a cap of ten pages, when everything has been restored."""
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    bench.memory.capacity_bytes = 1 << 24
    cap = faults.guard.cap = DirtyCap(cast("Any", bench.memory), lambda: 1.0)
    cap.target_pages = 10
    context = SimpleNamespace(environment=bench.environment(), log=logging.getLogger("test"))
    flusher = Flusher(cast("Any", context), cap, cast("Any", faults))
    await flusher.begin("m1")
    return flusher, cap, faults


async def test_a_region_removed_while_it_is_flushed_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was flushed with it is flushed again, and what was never there is not missed."""
    flusher, cap, _ = await flusher_of(bench)
    add = flusher._add

    async def removed(segment: SegmentWriter, name: str, pages: Sequence[int]) -> None:
        await add(segment, name, pages)
        if name == OTHER and name in bench.memory.names():
            await bench.memory.remove(OTHER)

    monkeypatch.setattr(flusher, "_add", removed)
    flushing = asyncio.ensure_future(flusher.run())
    try:
        await until(lambda: flushing.done() or (OTHER not in bench.memory.names() and not cap.wants_flush()))
        assert not flushing.done()
        assert flusher.trouble == "" and OTHER not in cap.regions
        assert cap.dirty_pages <= 10
    finally:
        flushing.cancel()
        await asyncio.wait([flushing])
        await flusher.settle()


async def test_writers_that_are_slowed_have_one_timer() -> None:
    """However many they are, and however often each says that it still has to wait."""
    memory = LooseMemory()
    asked: list[float] = []
    done = asyncio.Event()

    class Writers:
        def protect_arena(self, arena: str) -> bool:
            return True

        def retry_all(self) -> None:
            """64 writers whose time has not come."""
            asked.append(asyncio.get_running_loop().time())
            if len(asked) == 5:
                done.set()
                return
            for writer in range(64):
                cap.on_delay(0.0004 + 0.0001 * writer)

    cap = DirtyCap(cast("Any", memory), lambda: 1.0)
    Flusher(cast("Any", SimpleNamespace(environment=SimpleNamespace(disk=None))), cap, cast("Any", Writers()))
    for writer in reversed(range(64)):
        cap.on_delay(0.0004 + 0.0001 * writer)
    await done.wait()
    assert all(after - before >= 0.0005 for before, after in itertools.pairwise(asked))


async def test_an_image_that_went_away_is_no_memory(bench: Bench) -> None:
    await bench.restored()
    await bench.kill_host()
    with contextlib.suppress(KeyError):
        del bench.media.files["image/marker"]
    with pytest.raises(DataLoss, match="being restored from generation 1"):
        await bench.restored()


@pytest.mark.parametrize("tracked", [True, False])
async def test_a_loss_of_the_mains_during_a_restore(bench: Bench, tracked: bool) -> None:
    """What was not read yet is in the image still, and is left there; where that is not possible, its time counts."""
    outcome, faults = await bench.restored()
    backfill = outcome.backfill
    assert backfill is not None and outcome.image is not None
    bench.memory.capacity_bytes = 1 << 24
    cap = faults.guard.cap = DirtyCap(cast("Any", bench.memory), lambda: 1.0)
    environment = dataclasses.replace(bench.environment(), clock=MovingClock())
    context = SimpleNamespace(environment=environment, log=logging.getLogger("test"), spawn=bench.spawn)
    keeper = BudgetKeeper(cast("Any", context), cap, faults, lambda: 1000.0, 0, backfill.absent_pages)
    await keeper.begin("m1", outcome.image if tracked else None)
    left = backfill.left_pages
    assert left and (keeper.status().tracking, keeper.memory.absent_bytes) == (tracked, 0 if tracked else 4096 * left)
    assert keeper.status().covered
    if tracked:
        assert cap.admit(ARENA, 7)
        bench.memory.open(ARENA).write(7 * PAGE_BYTES, b"stored to")
        before = backfill.left_pages
        assert left - 16 <= before < left
        async with keeper.flusher.stopped() as flushed:
            report = await save(environment, "a loss of the mains", "m1", flushed)
        cap.expose(OTHER)  # it is saved as a whole, so what lacks of it has to be read
        assert keeper.memory.absent_bytes == PAGE_BYTES * backfill.absent_pages()[OTHER].count(1) > 0
        cap.cover(OTHER)  # dirty as a whole from now on
        assert keeper.memory.absent_bytes == PAGE_BYTES * backfill.absent_pages()[OTHER].count(1)
        assert backfill.left_pages == before, "nothing was read in order to be written again"
        assert report.saved_bytes < 20 * PAGE_BYTES
        bench.start(backfill)
        await backfill.finished()
        bench.spawn(keeper.run(), name="budget")
        await until(lambda: not keeper.status().tracking)
    else:
        now_s = environment.clock.now_ns() / 1e9
        keeper._battery_s = lambda: 0.1
        keeper.believe(1e12)
        assert not keeper.status().covered and now_s
        bench.start(backfill)
        await backfill.finished()
        keeper.believe(1e12)
        assert keeper.status().covered, "all of it is read"
        assert keeper._read_bytes_per_s >= SLOWEST_READ_BYTES_PER_S, "whatever one moment was like"
    await keeper.close()


class MovingClock:
    """A second passes from one look to the next."""

    def __init__(self) -> None:
        self.seconds = 0

    def now_ns(self) -> int:
        self.seconds += 1
        return self.seconds * 1_000_000_000

    def wall_ns(self) -> int:
        return 2


async def test_what_a_flush_looks_at_makes_no_memory_and_keeps_none(bench: Bench) -> None:
    """Dirty pages may be holes; and a window on a region must not outlive it, though nothing can be flushed."""
    outcome, faults = await bench.restored()
    assert outcome.backfill is not None
    bench.start(outcome.backfill)
    await outcome.backfill.finished()
    bench.memory.capacity_bytes = 1 << 24
    cap = faults.guard.cap = DirtyCap(cast("Any", bench.memory), lambda: 1.0)
    cap.target_pages = 4 * PAGES
    context = SimpleNamespace(environment=bench.environment(), log=logging.getLogger("test"))
    flusher = Flusher(cast("Any", context), cap, cast("Any", faults))
    await flusher.begin("m1")
    before = bench.memory.open(ARENA).present_bytes
    for page in range(4, PAGES, 5):  # never stored to
        assert cap.admit(ARENA, page)
    cap.target_pages = 4
    while await flusher._flush_some():
        pass
    assert bench.memory.open(ARENA).present_bytes == before
    assert set(flusher._windows) == {ARENA, COPY, OTHER, SMALL}
    await bench.memory.remove(OTHER)
    bench.media.faults.error_rate = 1.0
    flusher._resting = True
    flushing = asyncio.ensure_future(flusher.run())
    await until(lambda: OTHER not in flusher._windows)
    flushing.cancel()
    await asyncio.wait([flushing])
    bench.media.faults.error_rate = 0.0
    await flusher.settle()


async def test_a_flush_that_cannot_protect_loses_no_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    flusher, cap, faults = await flusher_of(bench)

    def breaks(name: str, pages: Sequence[int]) -> bool:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(faults, "protect_pages", breaks)
    with pytest.raises(RuntimeError):
        await flusher._flush_some()
    monkeypatch.undo()
    while await flusher._flush_some():
        pass
    assert cap.dirty_pages < 10
    await flusher.settle()
