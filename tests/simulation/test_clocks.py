"""Clocks of their own: timers go by them, and leases stay safe within the bound on their drift."""

from __future__ import annotations

import asyncio

import pytest

from everram.actors.availability.lease_keeper import CLOCK_DRIFT_MAX
from everram.actors.chaos.simulate import simulate
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import START_NS, SimulationLoop

PPM = 1_000_000


@pytest.mark.parametrize("drift_ppm", [-5000, -1, 0, 3, 5000])
def test_a_clock_shows_a_time_at_the_moment_that_it_names_and_not_before(drift_ppm: int) -> None:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    clock = SimulatedClock(loop, drift_ppm=drift_ppm, offset_ns=17_000_000_001)
    for local_ns in range(clock.now_ns() + 1, clock.now_ns() + 2_000_000, 77_777):
        when_ns = clock.when(local_ns)
        assert clock.shows(when_ns) >= local_ns > clock.shows(when_ns - 1)
    assert clock.wall_ns() == SimulatedClock(loop, drift_ppm=drift_ppm).wall_ns(), "people set their clocks"
    loop.abandon()


def test_a_process_sleeps_by_its_own_clock() -> None:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    clock = SimulatedClock(loop, drift_ppm=PPM, offset_ns=5_000_000_000)  # twice as fast
    domain = loop.domain("fast", clock)

    async def live() -> tuple[float, float]:
        began_s = loop.time()
        await asyncio.sleep(1.0)
        loop.call_at(loop.time() + 1.0, ended.set_result, None)
        await ended
        return loop.time() - began_s, loop.now_ns - START_NS

    ended: asyncio.Future[None] = loop.create_future()
    own_s, took_ns = loop.run_until_complete(loop.spawn(domain, live()))
    assert own_s == pytest.approx(2.0, abs=1e-4)
    assert took_ns == pytest.approx(1e9, abs=1e5)
    loop.abandon()


def test_leases_are_safe_while_clocks_differ_as_much_as_they_may() -> None:
    seeds = [seed for seed in range(1, 30) if f"{round(CLOCK_DRIFT_MAX * PPM)} ppm" in _drawn(seed)][:2]
    assert len(seeds) == 2
    for seed in seeds:
        assert not simulate(seed, scenario="leases").violations


def _drawn(seed: int) -> str:
    return simulate(seed, scenario="leases", until_s=0.001).configuration
