"""The dirty cap under fire: writers, flushes, saves, losses of power and of hosts at random instants. What is restored
silently is what was there when the guests were stopped, page for page; what a cut-off save left is named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.chaos.checks.dirty_cap import DirtyCapKept
from everram.actors.power_monitor.flusher import Flusher
from everram.actors.power_monitor.save import restore, save
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment
from everram.runtime.errors import FailedPrecondition, ResourceExhausted
from everram.runtime.formats import nvm
from everram.runtime.formats.image import examine
from everram.runtime.formats.image_files import segment_files
from everram.runtime.formats.image_reader import Image
from everram.runtime.formats.vmemfs import Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.memory.guard import ArenaKeeper, GuardedMapping, PageGuard
from everram.runtime.simulation.disk import SimulatedDisk
from everram.runtime.simulation.entropy import SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory
from everram.runtime.simulation.world import World

SEEDS = 20
"""Here; thousands take some minutes."""
PAGES = 48
CAP = 12
GUESTS_REGION, COPYS_REGION = "region.g.data", "region.h.copy@1"


class Guests:
    """`flusher.Writers`: one mapping of a region, protected page by page."""

    def __init__(self, guard: PageGuard, arena: str) -> None:
        self._keeper = ArenaKeeper(guard, arena)
        self._arena = arena
        self.protected = set(range(PAGES))
        self.again = asyncio.Event()

    def protect_arena(self, arena: str) -> bool:
        if arena == self._arena:
            self.protected = set(range(PAGES))
        return True

    def protect_pages(self, arena: str, pages: Sequence[int]) -> bool:
        if arena == self._arena:
            self.protected.update(pages)
        return True

    def retry_all(self) -> None:
        self.again.set()

    async def may_store(self, page: int) -> None:
        """Returns in the instant in which it may."""
        while page in self.protected:
            if not self._keeper.holds(page) or self._keeper.lift(page):
                self.protected.discard(page)
                return
            self.again.clear()
            await self.again.wait()


class Host:
    """One host's part of it: charges, flushes, saves."""

    def __init__(self, machine: Machine) -> None:
        world = machine.world
        nothing = cast("Any", None)
        entropy = SimulatedEntropy(world.stream(f"entropy{machine.hosts}"))
        self.memory = SimulatedMemory(machine.objects)
        disk = SimulatedDisk(machine.media)
        self.environment = Environment(
            world.clock, entropy, disk, self.memory, nothing, nothing, nothing, nothing, nothing, nothing
        )
        self.guard = PageGuard()
        self.cap = self.guard.cap = DirtyCap(self.memory, lambda: world.clock.now_ns() / 1e9)
        self.cap.target_pages = CAP
        self.guests = Guests(self.guard, GUESTS_REGION)
        context = SimpleNamespace(environment=self.environment, log=logging.getLogger("everram.actor"))
        self.flusher = Flusher(cast("Any", context), self.cap, self.guests)

    def segments(self) -> list[int]:
        base = [ref.number for ref in self.flusher._segments.base]
        return sorted({*base, *self.flusher._segments.needed})


class Machine:
    def __init__(self, world: World) -> None:
        self.world = world
        self.draw = world.stream("test")
        self.media = world.media("h1")
        self.objects = Objects(1 << 24)
        self.hosts = 0
        self.stores = 0
        self.checker = DirtyCapKept(world, self.objects, self.media)
        self.outcomes: list[str] = []

    async def make_memory(self) -> None:
        memory = SimulatedMemory(self.objects)
        size = 16 * PAGE_BYTES
        Superblock.format((await memory.create("vmemfs", size)).map(), HostRecord(memory_id="m1"))
        nvm.Metadata.format((await memory.create("nvm", size)).map())
        await memory.create("log.g", 8 * PAGE_BYTES)
        for name in (GUESTS_REGION, COPYS_REGION):
            await memory.create(name, PAGES * PAGE_BYTES)

    def content(self) -> dict[str, bytes]:
        return {name: bytes(self.objects.by_name[name].content) for name in (GUESTS_REGION, COPYS_REGION, "log.g")}

    def _data(self) -> bytes:
        self.stores += 1
        return b"" if self.draw.random() < 0.1 else b"%d." % self.stores

    async def guest(self, host: Host) -> None:
        while True:
            page = min(self.draw.randrange(PAGES), self.draw.randrange(PAGES))
            await host.guests.may_store(page)
            host.memory.open(GUESTS_REGION).write(page * PAGE_BYTES, self._data().ljust(64, b"\0"))
            host.memory.open("log.g").write(0, b"%d" % self.stores)
            await asyncio.sleep(self.draw.uniform(0, 0.002))

    async def copy(self, host: Host) -> None:
        mapping = GuardedMapping(host.memory.open(COPYS_REGION).map(), host.guard, COPYS_REGION)
        while True:
            offset = self.draw.randrange(PAGES * PAGE_BYTES - 64)
            with contextlib.suppress(ResourceExhausted):
                mapping.persist(offset, self._data().ljust(64, b"\0"))
            await asyncio.sleep(self.draw.uniform(0, 0.002))

    async def run(self) -> None:
        await self.make_memory()
        restored = None
        for _ in range(4):
            restored = await self.life(restored)

    async def life(self, restored: Any) -> Any:
        """From a start of the machine to its next one: what it was restored from."""
        began = False
        for _ in range(self.draw.choice((1, 1, 2, 3))):
            host = await self.begin(None if began else restored)
            began = True
            await self.use(host)
        before = self.content()
        saving = asyncio.ensure_future(self.save(host))
        cut_s = self.draw.choice((60.0, 60.0, 0.002, 0.005))
        await asyncio.wait([saving], timeout=self.draw.uniform(0, cut_s) if cut_s < 1 else cut_s)
        saved = saving.done() and saving.exception() is None
        self.media.faults.error_rate = 1.0  # whoever gives up now changes nothing any more
        saving.cancel()
        await asyncio.wait([saving])
        if not saving.cancelled():
            saving.exception()
        self.media.faults.error_rate = 0.0
        self.media.power_loss()
        self.objects.wipe()
        self.objects.gone = False
        return await self.come_back(before, saved)

    async def begin(self, restored: Any) -> Host:
        self.hosts += 1
        host = Host(self)
        await host.flusher.begin("m1", restored)
        await host.flusher.tidy()
        return host

    async def use(self, host: Host) -> None:
        tasks = [asyncio.ensure_future(one) for one in (host.flusher.run(), self.guest(host), self.copy(host))]
        for _ in range(self.draw.choice((1, 3, 8))):
            await asyncio.sleep(self.draw.uniform(0, 0.03))
            allowed = max(CAP, host.cap.dirty_pages)
            self.checker.look(host.cap, host.segments(), allowed)
            if self.hosts == 1:
                assert host.cap.most_dirty_pages <= CAP
        for task in tasks:
            task.cancel()
        for task in (await asyncio.wait(tasks))[0]:
            if not task.cancelled():
                raise task.exception() or AssertionError("it has ended")

    async def save(self, host: Host) -> None:
        async with host.flusher.stopped() as flushed:
            await save(host.environment, "test", "m1", flushed)

    async def come_back(self, before: dict[str, bytes], saved: bool) -> Any:
        host = Host(self)
        survey = await examine(host.environment.disk)
        self.outcomes.append(survey.state)
        if survey.state == "complete":
            outcome = await restore(host.environment)
            assert self.content() == before, "what is opened silently is what was there"
            return outcome.image
        assert not saved, f"the save has returned, and the image is {survey.state}"
        if survey.state == "incomplete":
            await self.check_incomplete(host, survey.generation, before)
        try:
            assert (await restore(host.environment)).kind == "empty", "opened silently"
        except FailedPrecondition:
            assert survey.state != "none"
        self.media.files.clear()
        self.objects.by_name.clear()
        await self.make_memory()
        return None

    async def check_incomplete(self, host: Host, generation: int, before: dict[str, bytes]) -> None:
        """Nothing in it is anything but what was there, and what is missing is said."""
        image = await Image.open(host.environment.disk, generation, None)
        found = {name: bytearray(len(content)) for name, content in before.items()}
        async for run in image.runs():
            if run.name in found:
                found[run.name][run.offset : run.offset + len(run.data)] = run.data
        await image.close()
        for name, content in before.items():
            for page in range(len(content) // PAGE_BYTES):
                where = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
                if found[name][where] != content[where]:
                    assert not any(found[name][where]), f"page {page} of {name} holds what it did not hold"
                    assert image.lost, "something is missing, and nothing is said"


def play(seed: int) -> Machine:
    world = World(seed)
    machine = Machine(world)
    failed: list[BaseException] = []

    async def scenario() -> None:
        try:
            await machine.run()
        except BaseException as error:
            failed.append(error)

    world.run(scenario())
    if failed:
        raise failed[0]
    assert not world.violations, world.violations
    return machine


@pytest.mark.parametrize("first", range(0, SEEDS, 5))
def test_whatever_happens_to_it(first: int) -> None:
    machines = [play(seed) for seed in range(first, first + 5)]
    outcomes = {outcome for machine in machines for outcome in machine.outcomes}
    assert {"complete", "opened"} & outcomes
    assert any(machine.checker.most_differing > CAP // 2 for machine in machines)


def test_a_seed_gives_the_same_again() -> None:
    assert play(3).world.digest == play(3).world.digest


@pytest.mark.parametrize("slow", ["list", "remove"])
def test_what_a_save_writes_is_not_tidied_away_and_tidying_keeps_no_save_waiting(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start of a host the mains are lost while a busy disk is asked for what is unneeded, or removes it."""
    world = World(1)
    machine = Machine(world)

    async def scenario() -> None:
        await machine.make_memory()
        host = Host(machine)
        disk = host.environment.disk
        for name in segment_files(0):  # of a save that was given up
            await (await disk.open(name, create=True)).close()
        real, real_open, reached, gone_on = getattr(disk, slow), disk.open, asyncio.Event(), asyncio.Event()

        async def slowly(name: str) -> Any:
            if not reached.is_set():
                reached.set()
                await gone_on.wait()
            return await real(name)

        monkeypatch.setattr(disk, slow, slowly)

        async def begin_segment(name: str, *, create: bool = False) -> Any:
            """It is seen by whoever is told only now what there is."""
            file = await real_open(name, create=create)
            if create and name.startswith("image/index."):
                gone_on.set()
                await asyncio.wait([tidying])
            return file

        tidying = asyncio.ensure_future(host.flusher.tidy())
        await reached.wait()
        if slow == "list":
            monkeypatch.setattr(disk, "open", begin_segment)
        saving = asyncio.ensure_future(machine.save(host))
        if slow == "list":
            await asyncio.sleep(0.1)
        else:
            await saving
        gone_on.set()
        await asyncio.gather(tidying, saving)
        assert not [name for name in await disk.list("image") if name.endswith(".0")]
        before = machine.content()
        machine.objects.wipe()
        machine.objects.gone = False
        await machine.come_back(before, saved=True)
        assert machine.outcomes == ["complete"]

    world.run(scenario())
    assert not world.violations
