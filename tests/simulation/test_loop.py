"""What the simulation's loop promises: virtual time, order, and domains that freeze and die like processes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from everram.runtime.simulation.domain import Domain, Killed
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop, SimulationStuck


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    yield loop
    loop.abandon()
    gc.collect()  # nothing left behind may complain


def test_time_jumps_to_the_next_timer(loop: SimulationLoop) -> None:
    async def scenario() -> float:
        before = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - before

    assert loop.run_until_complete(scenario()) == pytest.approx(3600, abs=1e-3)


def test_within_a_domain_callbacks_keep_their_order(loop: SimulationLoop) -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    async def scenario() -> None:
        for name, order in seen.items():
            domain = loop.domain(name)
            for number in range(50):
                loop.run_in(domain, order.append, number)
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert seen == {"a": list(range(50)), "b": list(range(50))}


def interleaving(seed: int) -> tuple[str, str]:
    loop = SimulationLoop(Seeds(seed).stream("loop"))
    order: list[str] = []

    async def scenario() -> None:
        for name in "abc":
            domain = loop.domain(name)
            for _ in range(20):
                loop.run_in(domain, order.append, name)
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    digest = loop.trace.digest()
    loop.abandon()
    return "".join(order), digest


def test_the_seed_alone_decides_the_order_among_domains() -> None:
    assert interleaving(1) == interleaving(1)
    assert interleaving(1) != interleaving(2)


class Process:
    """A task that counts, and notes whether its `finally` block ran."""

    def __init__(self, loop: SimulationLoop) -> None:
        self.loop = loop
        self.domain: Domain = loop.domain("process")
        self.ticks: list[float] = []
        self.cleaned_up = False
        self.task = loop.spawn(self.domain, self.run())

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(0.1)
                self.ticks.append(self.loop.time())
        finally:
            self.cleaned_up = True


def test_a_dead_domain_never_runs_again(loop: SimulationLoop) -> None:
    process = Process(loop)

    async def scenario() -> int:
        await asyncio.sleep(1.05)
        loop.kill(process.domain)
        ticks = len(process.ticks)
        process.task.cancel()
        await asyncio.sleep(5)
        return ticks

    ticks = loop.run_until_complete(scenario())
    assert ticks == 10
    assert len(process.ticks) == ticks
    assert not process.cleaned_up
    assert not process.task.done()


def test_a_frozen_domain_is_held_and_its_timers_fire_late(loop: SimulationLoop) -> None:
    process = Process(loop)

    async def scenario() -> tuple[float, float]:
        await asyncio.sleep(0.25)
        loop.freeze(process.domain)
        frozen = loop.time()
        await asyncio.sleep(3)
        loop.thaw(process.domain)
        thawed = loop.time()
        await asyncio.sleep(0.05)
        return frozen, thawed

    frozen, thawed = loop.run_until_complete(scenario())
    assert not [tick for tick in process.ticks if frozen < tick < thawed]
    assert process.ticks[-1] == pytest.approx(thawed, abs=1e-3)


def test_what_wakes_a_task_of_another_domain_runs_in_that_domain(loop: SimulationLoop) -> None:
    a, b = loop.domain("a"), loop.domain("b")

    async def scenario() -> Domain:
        future: asyncio.Future[None] = loop.create_future()

        async def waiter() -> Domain:
            await future
            return loop.current_domain()

        task = loop.spawn(a, waiter())
        loop.run_in(b, lambda: loop.call_soon(future.set_result, None))
        return await task

    assert loop.run_until_complete(scenario()) is a


def test_a_store_can_be_preempted_and_its_process_killed_half_way(loop: SimulationLoop) -> None:
    victim, other = loop.domain("victim"), loop.domain("other")
    done: list[str] = []

    async def transaction() -> None:
        done.append("first store")
        loop.run_in(other, loop.kill, victim)
        loop.preempt(100_000)
        done.append("second store")

    async def scenario() -> None:
        loop.spawn(victim, transaction())
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert done == ["first store"]


def test_others_run_during_a_preemption_but_not_the_preempted(loop: SimulationLoop) -> None:
    a, b = loop.domain("a"), loop.domain("b")
    order: list[str] = []

    def first() -> None:
        loop.run_in(a, order.append, "a again")
        loop.run_in(b, order.append, "b")
        loop.preempt(100_000)
        order.append("a goes on")

    async def scenario() -> None:
        loop.run_in(a, first)
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert order == ["b", "a goes on", "a again"]


def test_a_domain_counts_as_halted_when_its_callback_has_ended(loop: SimulationLoop) -> None:
    victim, other = loop.domain("victim"), loop.domain("other")
    order: list[str] = []

    def stop() -> None:
        loop.freeze(victim)
        loop.when_halted(victim, lambda: order.append("halted"))

    def work() -> None:
        loop.run_in(other, stop)
        loop.preempt(100_000)
        order.append("store")

    async def scenario() -> None:
        loop.run_in(victim, work)
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert order == ["store", "halted"]


def test_tasks_in_a_set_have_one_order_in_every_run(loop: SimulationLoop) -> None:
    async def scenario() -> list[int]:
        tasks = {loop.create_task(asyncio.sleep(1)) for _ in range(100)}
        done, _ = await asyncio.wait(tasks)
        return [hash(task) for task in done]

    order = loop.run_until_complete(scenario())
    assert order == sorted(order)


def test_a_deadlock_is_an_error_that_names_who_waits(loop: SimulationLoop) -> None:
    async def scenario() -> None:
        await asyncio.Event().wait()

    scenario_task = loop.spawn(loop.domain("h1"), scenario(), name="waits for nobody")
    with pytest.raises(SimulationStuck, match=r"waits for nobody \(h1, running\)"):
        loop.run_until_complete(scenario_task)


def test_a_livelock_is_an_error_and_does_not_stop_time() -> None:
    loop = SimulationLoop(Seeds(1).stream("loop"), steps_max=20_000)
    before = loop.time()

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - spinning is the point
            await asyncio.sleep(0)

    with pytest.raises(SimulationStuck, match="no end"):
        loop.run_until_complete(spin())
    assert loop.time() - before > 0.01
    loop.abandon()


def test_killed_passes_every_except_exception() -> None:
    assert not issubclass(Killed, Exception)


def test_many_cancelled_timers_do_not_pile_up(loop: SimulationLoop) -> None:
    async def scenario() -> int:
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()
        await asyncio.sleep(0)
        return len(loop._timers)

    assert loop.run_until_complete(scenario()) < 1000
