"""A simulated machine keeps the production core's promises: hosts restart, guests freeze by reason, memory stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from everram.runtime.environment import Grant, GuestLaunch
from everram.runtime.errors import FailedPrecondition, NotFound
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.machine import MachinePort, Seat, SimulatedMachine
from everram.runtime.simulation.objects import Gate, SimulatedMemory

SECOND_NS = 1_000_000_000


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    yield loop
    loop.abandon()


class Rig:
    """One machine whose host runs `script` in its first incarnation, renews the lease and pings in all of them."""

    def __init__(
        self, loop: SimulationLoop, script: Callable[[Rig], Awaitable[None]], gate: Gate | None = None
    ) -> None:
        self.loop = loop
        self.script = script
        self.ticks = 0
        self.lives = 0
        self.finished: asyncio.Future[None] = loop.create_future()
        self.machine = SimulatedMachine(
            loop,
            "h1",
            Seeds(1).stream("machine"),
            memory_bytes=1 << 20,
            start_host=self.live,
            programs={"tick": self.tick, "fail": self.fail},
            guest_gate=lambda guest_id, epoch: gate,
        )
        self.port: MachinePort

    async def live(self, machine: SimulatedMachine, port: MachinePort, domain: Domain) -> None:
        self.lives += 1
        self.port = port
        self.memory = SimulatedMemory(machine.objects)
        await port.lease(self.loop.now_ns + 100 * SECOND_NS)
        await port.ready()
        if self.lives == 1:
            self.loop.spawn(domain, self.play())
        while True:
            port.alive()
            await asyncio.sleep(port.watchdog_interval_s)

    async def play(self) -> None:
        try:
            await self.script(self)
            self.finished.set_result(None)
        except Exception as error:
            self.finished.set_exception(error)

    def launch(self, program: str = "tick", epoch: int = 1) -> GuestLaunch:
        grants = (Grant("log", "log", "log.g", 4096),)
        return GuestLaunch("g", "bank", epoch, (program.encode(),), b"/", (), "guests/g.log", grants)

    async def tick(self, seat: Seat) -> int:
        _, mapping = (await seat.attach())["log"]
        while True:
            mapping.store_u64(0, mapping.load_u64(0) + 1)
            self.ticks += 1
            await asyncio.sleep(0.01)

    async def fail(self, seat: Seat) -> int:
        return 3

    def run(self, after: Callable[[], Awaitable[None]] | None = None) -> None:
        async def scenario() -> None:
            self.machine.power_on()
            await self.finished
            if after is not None:
                await after()

        self.loop.run_until_complete(scenario())
        assert not self.machine.failures
        self.machine.core.validate()


def test_a_guest_is_started_frozen_by_reasons_and_killed(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        process = await rig.port.spawn(rig.launch())
        assert process.pid and process.epoch == 1
        await asyncio.sleep(1)
        await rig.port.freeze("g", "suspend")
        await rig.port.freeze("g", "snapshot")
        await rig.port.thaw("g", "suspend")
        ticks = rig.ticks
        assert ticks > 50
        await asyncio.sleep(1)
        assert rig.ticks == ticks
        (seen,) = await rig.port.guests()
        assert seen.freeze_reasons == ("snapshot",)
        await rig.port.thaw("g", "snapshot")
        await asyncio.sleep(1)
        assert rig.ticks > ticks
        ended = await rig.port.kill("g")
        assert (ended.pid, ended.exit_status) == (0, 137)
        await rig.port.forget("g")
        assert not await rig.port.guests()

    Rig(loop, script).run()


def test_a_guests_own_end_is_told(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.port.spawn(rig.launch("fail"))
        async for event in rig.port.events():
            if event.kind == "exited":
                assert (event.guest_id, event.epoch, event.exit_status) == ("g", 1, 3)
                return

    Rig(loop, script).run()


def test_what_the_rules_refuse_is_refused(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        with pytest.raises(NotFound):
            await rig.port.spawn(rig.launch("nothing"))
        with pytest.raises(NotFound):
            await rig.port.freeze("nobody", "suspend")
        await rig.port.spawn(rig.launch())
        with pytest.raises(FailedPrecondition):
            await rig.port.spawn(rig.launch(epoch=2))

    Rig(loop, script).run()


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_the_guest_goes_on_and_the_host_comes_back(loop: SimulationLoop, fault: str) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        await rig.port.spawn(rig.launch())

    rig = Rig(loop, script)

    async def after() -> None:
        if fault == "kill":
            rig.machine.kill_host()
        else:
            rig.machine.hang_host()
        before = rig.ticks
        await asyncio.sleep(2)
        assert rig.lives == 2
        assert rig.ticks > before + 150
        (seen,) = rig.machine.seen()
        assert seen.pid

    rig.run(after)


def test_a_guest_dies_at_a_store_and_leaves_no_later_one(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        await rig.port.spawn(rig.launch())
        async for event in rig.port.events():
            if event.kind == "exited":
                assert event.exit_status == 137
                break
        # Two gates a store: the 9th gate is before the 5th store.
        assert rig.memory.open("log.g").map().load_u64(0) == 4

    Rig(loop, script, Gate(loop, Seeds(1).stream("gate"), kill_at=9)).run()


def test_without_renewal_the_machine_freezes_for_good(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        await rig.port.spawn(rig.launch())
        await asyncio.sleep(101)
        ticks = rig.ticks
        (seen,) = await rig.port.guests()
        assert seen.freeze_reasons == ("lease",)
        with pytest.raises(FailedPrecondition):
            await rig.port.thaw("g", "lease")
        await asyncio.sleep(1)
        assert rig.ticks == ticks

    Rig(loop, script).run()


def test_the_machines_death_takes_everything_and_its_memory(loop: SimulationLoop) -> None:
    async def script(rig: Rig) -> None:
        await rig.memory.create("log.g", 4096)
        await rig.port.spawn(rig.launch())
        await asyncio.sleep(0.5)

    rig = Rig(loop, script)

    async def after() -> None:
        mapping = rig.memory.open("log.g").map()
        assert mapping.load_u64(0)
        rig.machine.power_off()
        ticks = rig.ticks
        await asyncio.sleep(1)
        assert rig.ticks == ticks
        assert mapping.load_u64(0) == 0
        assert rig.memory.names() == []

    rig.run(after)
