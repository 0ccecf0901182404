"""What users build with the test kit: an actor and a workload of their own, under faults, and how a failure is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import UInt64Value

from everram.actors.chaos.testkit import Simulation, try_workload
from everram.examples.own_actor import Tally, TallyRef
from everram.examples.own_workload import PROPERTY, Queue
from everram.runtime.errors import EverramError
from everram.runtime.guest.aio import AsyncGuest

RunSeeds = Callable[..., None]


async def tally_under_faults(sim: Simulation) -> None:
    """What was answered is counted, whatever dies meanwhile; what was not may be."""
    answered = asked = 0
    breaking = asyncio.create_task(
        sim.break_things({"host-kill": 3, "hang": 1, "power-cycle": 1, "one-way": 1}, count=3, within_s=1.5)
    )
    while not breaking.done():
        asked += 1
        try:
            await sim.ask("h1", lambda node: node.ref(TallyRef).add(UInt64Value(value=1)))
            answered += 1
        except EverramError:
            pass
        await asyncio.sleep(sim.stream.uniform(0, 0.1))
    await breaking
    total = (await sim.ask("h2", lambda node: node.ref(TallyRef, host="h1").total(), patience_s=20.0)).value
    if not answered <= total <= asked:
        sim.violate("what was answered is counted", f"{answered} were answered, {asked} asked for: it says {total}")


def test_an_actor_of_ones_own(everram_simulation: RunSeeds) -> None:
    everram_simulation(tally_under_faults, seeds=range(1, 3), hosts=2, actors=[Tally])


def test_the_readmes_own_test(everram_simulation: RunSeeds) -> None:
    """As it stands there, word for word."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (program,) = re.findall(r"```python fixture\n(.*?)```", readme, re.S)
    names: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), names)
    names["test_tally"](everram_simulation)


class Forgetful(Tally):
    """Answers before it is on disk."""

    async def add(self, amount: UInt64Value) -> UInt64Value:
        self._total += amount.value
        return UInt64Value(value=self._total)


def test_a_bug_is_told_with_its_seed(everram_simulation: RunSeeds) -> None:
    with pytest.raises(AssertionError, match=r"seed \d+ \(again: seeds=\[\d+\]\)\n  what was answered is counted at"):
        everram_simulation(tally_under_faults, seeds=range(1, 20), hosts=2, actors=[Forgetful])


def test_a_workload_of_ones_own() -> None:
    try_workload(Queue, seeds=[1, 4])


class Unordered(Queue):
    """Counts before it puts."""

    async def operate(self, me: AsyncGuest) -> int:
        region = me.region(self.region)
        with me.transaction() as tx:
            tx.store_u64(region, 8, self._tail + 1)
        return await super().operate(me)


def test_a_workload_finds_what_breaks_it() -> None:
    with pytest.raises(AssertionError, match=PROPERTY):
        try_workload(Unordered, seeds=range(1, 20))


def test_a_scenario_that_fails_is_told_with_its_seed(everram_simulation: RunSeeds) -> None:
    async def failing(sim: Simulation) -> None:
        raise ValueError("no good")

    with pytest.raises(AssertionError, match="seed 3 ") as found:
        everram_simulation(failing, seeds=[3], hosts=1)
    assert isinstance(found.value.__cause__, ValueError)


def test_faults_that_are_none_are_refused(everram_simulation: RunSeeds) -> None:
    async def scenario(sim: Simulation) -> None:
        await sim.break_things({"earthquake": 1}, count=1, within_s=1.0)

    with pytest.raises(AssertionError) as found:
        everram_simulation(scenario, seeds=[1], hosts=1)
    assert '"earthquake" is no fault' in str(found.value.__cause__)


def test_the_fixture_is_the_kits(everram_simulation: Any) -> None:
    assert everram_simulation.__module__ == "everram.actors.chaos.testkit"
