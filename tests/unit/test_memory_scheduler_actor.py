"""The memory scheduler as an actor of a node: its swap file, over storage that fails and hosts that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.memory_scheduler import actor as module
from everram.actors.memory_scheduler import pager as pager_module
from everram.actors.memory_scheduler.actor import MemoryScheduler
from everram.actors.memory_scheduler.estimates import Estimate
from everram.actors.memory_scheduler.reclaimer import TICK_NS
from everram.actors.memory_scheduler.swap_file import NAME
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.availability_contract import AvailabilityActor
from everram.runtime.contracts.availability_pb2 import GuestLimits, MemoryFigures
from everram.runtime.contracts.memory_scheduler_contract import MemorySchedulerRef
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemory, GuestMemoryKey, MemoryLimits
from everram.runtime.contracts.vmemfs_contract import VMEMFS
from everram.runtime.environment import Environment, MemoryObject
from everram.runtime.errors import DataLoss, ResourceExhausted, Unavailable
from everram.runtime.formats.config import HostConfig
from everram.runtime.formats.page_classes import PageClass
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import Pager
from everram.runtime.node import Node
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk, SimulatedFile
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

MIB = 1 << 20
PAGE, CONTENT = 3, b"what the guest stored".ljust(PAGE_BYTES, b".")


class Clock:
    def now_ns(self) -> int:
        return 7_000_000_000

    def wall_ns(self) -> int:
        return 2


class Storage(SimulatedDisk):
    """Whose swap file cannot be opened while it fails."""

    failing = False

    def __init__(self, media: Media) -> None:
        super().__init__(media)
        self.opened: list[SimulatedFile] = []

    async def open(self, name: str, *, create: bool = False) -> SimulatedFile:
        if name == NAME and self.failing:
            raise DataLoss("the disk is not there")
        self.opened.append(await super().open(name, create=create))
        return self.opened[-1]

    @property
    def open_files(self) -> int:
        return sum(file._open for file in self.opened)


class Directory(AvailabilityActor):
    """What the directory was told."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def limit(self, request: GuestLimits) -> pb.Empty:
        if not self._machine.directory_answers:
            raise Unavailable("coordination does not answer")
        self._machine.limits = request.min_bytes, request.max_bytes
        return pb.Empty()

    def note_memory(self, request: MemoryFigures) -> pb.Empty:
        self._machine.figures.append(request)
        return pb.Empty()


class Freezer:
    """The part of a machine that freezes and thaws."""

    def __init__(self) -> None:
        self.frozen: set[str] = set()

    async def guests(self) -> list[Any]:
        return []

    async def freeze(self, guest_id: str, reason: str) -> None:
        self.frozen.add(guest_id)

    async def thaw(self, guest_id: str, reason: str) -> None:
        self.frozen.discard(guest_id)


class Paged:
    """`PagedMemory` of guest g, with a thread that waits for a page whenever it is missing."""

    gone = False
    pages = MIB // PAGE_BYTES

    def __init__(self, memory: MemoryObject) -> None:
        self.memory = memory

    def fill(self, page: int, data: bytes) -> bool:
        self.memory.write(page * PAGE_BYTES, data)
        return True

    def watch(self, *pages: int) -> None: ...
    def protect(self, first_page: int, count: int) -> None: ...
    def unprotect(self, first_page: int, count: int = 1) -> None: ...
    def wake_all(self) -> None: ...
    def forget_touches(self, pages: list[int]) -> None: ...

    def touched(self, pages: list[int]) -> set[int]:
        return set(pages)


@dataclass
class Machine:
    """`Faults` of its hosts as well."""

    objects: Objects = field(default_factory=lambda: Objects(1 << 34))
    freezer: Freezer = field(default_factory=Freezer)
    hosts: int = 0
    paged: Paged | None = None
    limits: tuple[int, int] | None = None
    directory_answers: bool = True
    figures: list[MemoryFigures] = field(default_factory=list)
    scheduler: MemoryScheduler = field(init=False)

    def __post_init__(self) -> None:
        faults = DiskFaults(latency_min_s=0, latency_max_s=0)
        self.disk = Storage(Media(Seeds(1).stream("disk"), 1 << 30, faults))

    def use_pager(self, pager: Pager | None) -> None:
        if pager is not None and self.paged is not None:
            pager.attached("g", cast(Any, self.paged))

    def _new(self) -> MemoryScheduler:
        sizes = {"memory_bytes": 8 * MIB, "nvm_bytes": MIB}
        self.scheduler = MemoryScheduler(HostConfig("c", "c", "h1", "i", "", "", "", **sizes), self)
        return self.scheduler

    async def host(self) -> Node:
        self.hosts += 1
        memory, nothing = SimulatedMemory(self.objects), cast(Any, None)
        entropy, machine = SimulatedEntropy(Seeds(self.hosts).stream("entropy")), cast(Any, self.freezer)
        environment = Environment(Clock(), entropy, self.disk, memory, machine, *[nothing] * 5)
        node = Node(environment, "h1", check_messages=True)
        node.add(VMemFS)
        node.add(lambda: Directory(self))
        node.add(self._new, after=(VMEMFS,))
        await node.start()
        return node


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (of a host that tells nobody)
            await asyncio.sleep(0.001)


@pytest.fixture
async def swapped(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Machine, Node]]:
    """A host that has swapped out a page of guest g."""
    monkeypatch.setattr(module, "REOPEN_S", 0.001)
    monkeypatch.setattr(pager_module, "RETRY_S", 0.001)
    machine = Machine()
    node = await machine.host()
    await node.ref(MemorySchedulerRef).prepare(GuestMemory(guest_id="g", name="guest", memory_bytes=MIB))
    memory = SimulatedMemory(machine.objects).open("volatile.g")
    memory.write(PAGE * PAGE_BYTES, CONTENT)
    machine.paged = Paged(memory)
    machine.scheduler._pager.attached("g", cast(Any, machine.paged))
    assert await machine.scheduler._pager.swap_out(machine.scheduler._guests["g"], [PAGE]) == 1
    yield machine, node


async def test_a_new_guest_dates_its_accesses_from_the_start(swapped: tuple[Machine, Node]) -> None:
    machine, node = swapped
    assert machine.scheduler._guests["g"].classes.tick == node.environment.clock.now_ns() // TICK_NS == 7
    await node.stop()


async def test_a_swap_file_that_a_new_host_cannot_open_is_opened_later(swapped: tuple[Machine, Node]) -> None:
    machine, first = swapped
    await first.stop()
    assert machine.disk.open_files == 0
    machine.disk.failing = True
    second = await machine.host()
    scheduler = second.ref(MemorySchedulerRef)
    machine.scheduler._pager.fault("g", PAGE, protected=False)
    await until(lambda: machine.freezer.frozen)
    status = await scheduler.status(pb.Empty())
    assert "the disk is not there" in status.swapping
    assert "cannot be used" in status.guests[0].paused
    machine.disk.failing = False
    await until(lambda: not machine.freezer.frozen)
    status = await scheduler.status(pb.Empty())
    assert (status.swapping, status.guests[0].paused, status.swap_used_bytes) == ("", "", 0)
    assert machine.paged is not None
    assert machine.paged.memory.read(PAGE * PAGE_BYTES, PAGE_BYTES) == CONTENT
    await second.stop()
    assert machine.disk.open_files == 0


async def test_a_restart_of_the_scheduler_leaves_no_file_open(swapped: tuple[Machine, Node]) -> None:
    machine, node = swapped
    before = machine.scheduler

    async def fail() -> None:
        raise RuntimeError("a bug")

    before.context.spawn(fail(), name="a bug")
    await until(lambda: machine.scheduler is not before)
    assert (await node.ref(MemorySchedulerRef).status(pb.Empty())).swap_used_bytes == PAGE_BYTES
    assert machine.disk.open_files == 1
    await node.stop()
    assert machine.disk.open_files == 0


async def test_a_guest_that_has_ended_is_not_said_to_wait(swapped: tuple[Machine, Node]) -> None:
    machine, node = swapped
    await node.ref(MemorySchedulerRef).release(GuestMemoryKey(guest="g"))
    machine.scheduler._broken("g")  # the storage failed just before
    await node.stop()


async def test_a_guest_that_is_let_breathe_is_paused_still_and_said_so_once(
    swapped: tuple[Machine, Node], caplog: pytest.LogCaptureFixture
) -> None:
    machine, node = swapped
    scheduler, starved = machine.scheduler, machine.scheduler._guests["g"]
    starved.starved = True
    for standing in ({"g"}, set(), {"g"}):
        scheduler._reclaimer.to_pause = lambda standing=standing: standing
        await scheduler._pause_and_resume()
        assert (machine.freezer.frozen, "no memory left" in starved.paused) == (standing, True)
    assert caplog.text.count("is paused: ") == 1
    starved.starved = False
    scheduler._reclaimer.to_pause = set
    await scheduler._pause_and_resume()
    assert (machine.freezer.frozen, starved.paused) == (set(), "")
    await node.stop()


async def test_a_swap_file_that_is_missing_is_waited_for_and_not_begun_anew(swapped: tuple[Machine, Node]) -> None:
    machine, first = swapped
    await first.stop()
    files = machine.disk._media.files
    away = files.pop(NAME)
    second = await machine.host()
    scheduler = second.ref(MemorySchedulerRef)
    machine.scheduler._pager.fault("g", PAGE, protected=False)
    await until(lambda: machine.freezer.frozen)
    status = await scheduler.status(pb.Empty())
    assert "is missing in the host's folder, and guests have pages in it (1 in all): put it back" in status.swapping
    assert (status.guests[0].waiting_pages, status.guests[0].paused != "") == (1, True)
    assert f"page {PAGE} cannot be read from the swap file" in status.guests[0].waiting
    away.cached[:64] = away.durable[:64] = bytes(64)  # and its first page is damaged: pages have their own checksums
    files[NAME] = away
    await until(lambda: not machine.freezer.frozen)
    assert machine.paged is not None
    assert machine.paged.memory.read(PAGE * PAGE_BYTES, PAGE_BYTES) == CONTENT
    assert not (await scheduler.status(pb.Empty())).guests[0].waiting
    await second.stop()


async def test_a_guest_whose_swap_file_is_gone_may_begin_without_it(swapped: tuple[Machine, Node]) -> None:
    machine, first = swapped
    await first.stop()
    del machine.disk._media.files[NAME]
    machine.paged = None
    second = await machine.host()
    scheduler = second.ref(MemorySchedulerRef)
    assert "missing" in (await scheduler.status(pb.Empty())).swapping
    await scheduler.prepare(GuestMemory(guest_id="g", name="guest", memory_bytes=MIB, again=True))
    assert not (await scheduler.status(pb.Empty())).swapping
    await second.stop()


async def test_limits_go_where_the_guest_goes_or_nowhere(swapped: tuple[Machine, Node]) -> None:
    machine, node = swapped
    scheduler = node.ref(MemorySchedulerRef)
    set_limits = MemoryLimits(guest="guest", min_bytes=64 * 1024, max_bytes=MIB // 2)
    machine.directory_answers = False
    with pytest.raises(Unavailable):
        await scheduler.set_limits(set_limits)
    assert (await scheduler.status(pb.Empty())).guests[0].min_bytes == 0
    machine.directory_answers = True
    await scheduler.set_limits(set_limits)
    assert machine.limits == (64 * 1024, MIB // 2)
    # Its next incarnation here: with what the directory says, and without that as it was set.
    wish = GuestMemory(guest_id="g", name="guest", memory_bytes=MIB, min_bytes=4096, limits_set=True, again=True)
    await scheduler.prepare(wish)
    assert (await scheduler.status(pb.Empty())).guests[0].min_bytes == 4096
    await node.stop()


async def test_what_guests_work_with_is_told_for_placement(swapped: tuple[Machine, Node]) -> None:
    machine, node = swapped
    await until(lambda: machine.figures and machine.figures[-1].guests)
    (told,) = machine.figures[-1].guests
    assert told.guest_id == "g"
    limit_bytes = machine.scheduler._reclaimer.limit_bytes
    assert machine.figures[-1].available_bytes == limit_bytes * 3 // 4 - told.working_set_bytes
    await node.ref(MemorySchedulerRef).release(GuestMemoryKey(guest="g"))
    await until(lambda: not machine.figures[-1].guests)
    assert machine.figures[-1].available_bytes == limit_bytes * 3 // 4
    await node.stop()


async def test_a_guest_that_ran_before_is_not_turned_away_for_others(swapped: tuple[Machine, Node]) -> None:
    """What the others work with keeps a new guest out, but not one that comes back, or over from a lost host."""
    machine, node = swapped
    scheduler, others = node.ref(MemorySchedulerRef), machine.scheduler._guests["g"]
    others.usage.totals = {known: Estimate(1e6, 1e6, 1e6) for known in PageClass}
    with pytest.raises(ResourceExhausted, match="would only page"):
        await scheduler.prepare(GuestMemory(guest_id="h", name="other", memory_bytes=MIB))
    await scheduler.prepare(GuestMemory(guest_id="h", name="other", memory_bytes=MIB, again=True))
    await node.stop()
