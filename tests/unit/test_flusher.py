"""What hosts that die, segments that vanish and saves that come to nothing leave to the flusher: what is called clean
is in a segment of the next image."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.power_monitor import segments
from everram.actors.power_monitor.flusher import Flusher
from everram.actors.power_monitor.save import restore, save
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment, MachineEvent, TrackedRange
from everram.runtime.errors import EverramError
from everram.runtime.formats import nvm
from everram.runtime.formats.dirty_book import DirtyBook, book_bytes
from everram.runtime.formats.image import examine
from everram.runtime.formats.image_files import index_name, pages_name
from everram.runtime.formats.vmemfs import Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.page_service import PageService
from everram.runtime.memory.userfaultfd import Feature, Mode
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Bytes, Objects, SimulatedMemory
from tests.loose_memory import LooseMemory

REGION = "region.g.data"
PAGES = 48


class Clock:
    at_ns = 1

    def now_ns(self) -> int:
        self.at_ns += 1000
        return self.at_ns

    wall_ns = now_ns


class Writers:
    """Of guests that ask before every store."""

    def protect_arena(self, arena: str) -> bool:
        return True

    def protect_pages(self, memory: str, pages: Sequence[int]) -> bool:
        return True

    def retry_all(self) -> None:
        pass


class Host:
    def __init__(self, machine: Machine, target: int = 20) -> None:
        nothing = cast("Any", None)
        self.memory = SimulatedMemory(machine.objects)
        self.environment = Environment(
            Clock(),
            SimulatedEntropy(Seeds(3).stream("entropy")),
            SimulatedDisk(machine.media),
            self.memory,
            *(nothing,) * 6,
        )
        self.guard = PageGuard()
        self.cap = self.guard.cap = DirtyCap(self.memory, lambda: 0.0)
        self.cap.target_pages = target
        self.flusher = self.new_flusher()

    def new_flusher(self) -> Flusher:
        context = SimpleNamespace(environment=self.environment, log=logging.getLogger("everram.actor"))
        return Flusher(cast("Any", context), self.cap, Writers())

    def store(self, page: int, data: bytes) -> None:
        self.guard.before_store(REGION, page * PAGE_BYTES, len(data))
        self.memory.open(REGION).write(page * PAGE_BYTES, data)

    async def flush(self) -> None:
        self.cap.target_pages, target = 0, self.cap.target_pages
        await self.flusher._flush_some()
        self.cap.target_pages = target

    async def save(self) -> None:
        async with self.flusher.stopped() as flushed:
            await save(self.environment, "power", "m1", flushed)
        assert (await examine(self.environment.disk)).state == "complete"


class Machine:
    """Its memory outlives its hosts, and its disk its memory."""

    def __init__(self) -> None:
        self.media = Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
        self.objects = Objects(1 << 24)

    async def furnish(self) -> Machine:
        memory = SimulatedMemory(self.objects)
        Superblock.format((await memory.create("vmemfs", 16 * PAGE_BYTES)).map(), HostRecord(memory_id="m1"))
        nvm.Metadata.format((await memory.create("nvm", 16 * PAGE_BYTES)).map())
        await memory.create(REGION, PAGES * PAGE_BYTES)
        return self

    def regions(self) -> dict[str, bytes]:
        return {name: bytes(o.content) for name, o in self.objects.by_name.items() if name.startswith("region.")}

    async def lose_power(self) -> None:
        """And come back."""
        self.media.power_loss()
        self.objects.wipe()
        self.objects.gone = False
        await restore(Host(self).environment)


async def check_that_the_next_host_saves_all(machine: Machine) -> None:
    host = Host(machine)
    await host.flusher.begin("m1")
    before = machine.regions()
    await host.save()
    await machine.lose_power()
    assert machine.regions() == before


def vanish(media: Media, number: int) -> None:
    for name in (index_name(number), pages_name(number)):
        del media.files[name]


def vanish_in_part(media: Media, number: int) -> None:
    del media.files[index_name(number)]


def rot(media: Media, number: int) -> None:
    index = media.files[index_name(number)]
    for content in (index.cached, index.durable):
        content[130] ^= 1


@pytest.mark.parametrize("harm", [vanish, vanish_in_part, rot])
async def test_what_was_in_a_segment_that_is_gone_is_saved_again(harm: Callable[[Media, int], None]) -> None:
    machine = await Machine().furnish()
    one = Host(machine)
    await one.flusher.begin("m1")
    for page in (7, 8):
        one.store(page, b"committed")
        await one.flush()
    assert one.cap.dirty_pages == 0
    await one.flusher.settle()
    harm(machine.media, 1)
    await check_that_the_next_host_saves_all(machine)


async def test_pages_of_zeros_that_no_segment_has_stay_clean() -> None:
    machine = await Machine().furnish()
    one = Host(machine)
    await one.flusher.begin("m1")
    one.store(7, b"committed")
    await one.flush()
    await one.flusher.settle()
    one.memory.open(REGION).write(9 * PAGE_BYTES, bytes(8))  # a guest's look at a hole makes a page there
    two = Host(machine)
    await two.flusher.begin("m1")
    assert two.cap.dirty_pages == 0


class Killed(BaseException):
    pass


class Deadly(HeapMapping):
    """Its host dies just before one of its stores."""

    left = 1 << 30

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._step()
        super().store(offset, data)

    def store_u64(self, offset: int, value: int) -> None:
        self._step()
        super().store_u64(offset, value)

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_a_host_that_dies_while_it_takes_up_a_region_calls_nothing_of_it_clean() -> None:
    for steps in range(100):
        objects = Objects(1 << 24)
        objects.by_name[REGION] = Bytes(PAGES * PAGE_BYTES, identity=1)
        objects.by_name[REGION].write(5 * PAGE_BYTES, b"committed")
        mapping = Deadly(book_bytes(PAGES))
        book = DirtyBook.format(mapping)
        mapping.left = steps
        killed = False
        try:
            DirtyCap(SimulatedMemory(objects), lambda: 0.0).open(book)
        except Killed:
            killed = True
        mapping.left = 1 << 30
        successor = DirtyCap(SimulatedMemory(objects), lambda: 0.0)
        successor.open(DirtyBook.open(mapping))
        assert successor.is_settled(REGION, 5), steps
        if not killed:
            assert steps > 2
            return
    raise AssertionError("it never came to its end")


async def test_a_save_that_comes_to_nothing_leaves_no_pages_to_regions_made_later() -> None:
    machine = await Machine().furnish()
    await SimulatedMemory(machine.objects).create("log.g", 8 * PAGE_BYTES)
    one = Host(machine)
    await one.flusher.begin("m1")
    one.memory.open("log.g").write(0, b"of the log")
    one.store(1, b"x")
    await one.flush()
    one.store(2, b"y")
    segment = one.flusher._segments.writer
    assert segment is not None

    async def cut_off() -> None:  # the mains are back while the storage syncs what was saved
        raise asyncio.CancelledError

    segment._index.sync = cut_off  # type: ignore[method-assign]
    with contextlib.suppress(asyncio.CancelledError):
        await one.save()
    del segment._index.sync
    await one.flusher.go_on()
    for number in range(6):
        await one.memory.create(f"region.h.new{number}", PAGES * PAGE_BYTES)
    one.cap.sync()
    await one.flusher.settle()
    await check_that_the_next_host_saves_all(machine)


async def test_a_flusher_that_cannot_go_on_with_a_book_has_everything_saved() -> None:
    """The actor was started again on a cap that charged until then."""
    machine = await Machine().furnish()
    host = Host(machine)
    await host.flusher.begin("m1")
    host.store(7, b"committed")
    await host.flush()
    assert host.cap.dirty_pages == 0
    await host.flusher.settle()
    host.flusher = host.new_flusher()
    machine.media.faults.error_rate = 1.0
    with pytest.raises(EverramError):
        await host.flusher.begin("m1")
    machine.media.faults.error_rate = 0.0
    assert not host.cap.active
    before = machine.regions()
    await host.save()
    await machine.lose_power()
    assert machine.regions() == before


# -- writers that never wait


class Greedy(Writers):
    """Whenever they may, they store to whatever they may."""

    def __init__(self, host: Host) -> None:
        self._host, self._stream = host, Seeds(1).stream("stores")

    def retry_all(self) -> None:
        while self._host.cap.admit(REGION, self._stream.randrange(PAGES), patient=False):
            pass


async def test_garbage_is_taken_away_though_writers_never_let_a_flush_be_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_PAGES", PAGES)
    machine = await Machine().furnish()
    host = Host(machine)
    writers = host.flusher._writers = Greedy(host)
    await host.flusher.begin("m1")
    writers.retry_all()
    running = asyncio.create_task(host.flusher.run())
    most_bytes = 0
    while host.flusher.flushed_pages < 50 * PAGES:
        await asyncio.sleep(0)
        assert not running.done()
        most_bytes = max(most_bytes, machine.media.used_bytes())
    running.cancel()
    await asyncio.wait([running])
    await host.flusher.settle()
    assert host.flusher.trouble == ""
    assert most_bytes < 10 * PAGES * PAGE_BYTES, "of fifty times as much that was flushed"


# -- guests that run on while their host is replaced


ARENA, BASE = "region.g.ledger", 1 << 40


class Kernel:
    """Protection bits of the only guest, which has one mapping."""

    def __init__(self) -> None:
        self.protected: set[int] = set()

    def handshake(self, descriptor: int, wanted: Feature) -> Feature | None:
        return wanted

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None:
        pass

    def wake(self, descriptor: int, address: int, length: int) -> None:
        pass

    def protect(self, descriptor: int, address: int, length: int) -> None:
        self.protected.update(range((address - BASE) // PAGE_BYTES, (address - BASE + length) // PAGE_BYTES))

    def unprotect(self, descriptor: int, address: int, length: int) -> None:
        self.protected.difference_update(range((address - BASE) // PAGE_BYTES, (address - BASE + length) // PAGE_BYTES))


class Running:
    """A guest that runs, and its hosts, one after the other."""

    def __init__(self) -> None:
        self.media = Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
        self.memory = LooseMemory()
        self.memory.capacity_bytes = 1 << 22
        self.region = self.memory.make(ARENA, PAGES * PAGE_BYTES)
        self.kernel = Kernel()
        self.begin_host()

    def begin_host(self) -> None:
        self.service = PageService(cast("Any", self.memory), kernel=cast("Any", self.kernel))
        self.cap = self.service.guard.cap = DirtyCap(cast("Any", self.memory), lambda: 0.0)
        self.cap.target_pages = 10
        environment = SimpleNamespace(disk=SimulatedDisk(self.media), memory=self.memory)
        context = SimpleNamespace(environment=environment, log=logging.getLogger("everram.actor"))
        self.flusher = Flusher(cast("Any", context), self.cap, self.service)

    def attach(self) -> None:
        tracked = TrackedRange("ledger", ARENA, BASE, PAGES * PAGE_BYTES)
        descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.service.attach(MachineEvent("attached", "g", 1, userfaultfd=descriptor, ranges=(tracked,)))
        self.service.all_came()

    def store(self, page: int, data: bytes) -> None:
        """What the guest does; of a page that is protected it asks, and is let."""
        if page in self.kernel.protected:
            assert self.cap.admit(ARENA, page)
            self.kernel.protected.discard(page)
        self.region.write(page * PAGE_BYTES, data)

    def dirty(self) -> set[int]:
        return {page for first, count in self.cap.regions[ARENA].table.runs() for page in range(first, first + count)}


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    yield running
    await running.flusher.settle()
    running.service.close()
    running.memory.close()


async def test_nothing_becomes_clean_while_its_guest_is_not_served_yet(running: Running) -> None:
    await running.flusher.begin("m1")
    running.attach()
    for page in range(9):
        running.store(page, b"old")
    running.service.close()
    await running.flusher.settle()
    running.begin_host()
    running.service.wait_for(["g"])
    await running.flusher.begin("m1")
    assert running.cap.wants_flush()
    assert not await running.flusher._flush_some()
    for page in range(9):
        running.store(page, b"new")
    running.attach()
    assert running.dirty() == set(range(9))
    assert await running.flusher._flush_some()
    assert running.cap.dirty_pages < 9


async def test_a_new_book_calls_nothing_clean_of_a_guest_that_is_not_served_yet(running: Running) -> None:
    running.service.wait_for(["g", "another"])
    await running.flusher.begin("m1")
    assert running.cap.is_exposed(ARENA)
    running.store(7, b"committed")
    running.attach()
    running.cap.sync()
    assert running.kernel.protected == set(range(PAGES))
    assert 7 in running.dirty()
