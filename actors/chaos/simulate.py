"""One seed: draws a scenario, runs it in a world, and says what was found.

result = simulate(17)
result = simulate(17, plant="lost-wakeup", echo=print, until_s=1.5)      # a replay, readable
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from everram.actors.chaos.plan import ClusterPlan
from everram.actors.chaos.planted import planted
from everram.actors.chaos.ring import RingPlan, RingScenario
from everram.actors.chaos.scenario import ClusterScenario
from everram.runtime.simulation.world import Violation, World

TIERS: dict[str, float] = {"quick": 1.0, "swarm": 3.0, "nightly": 10.0}
"""How much longer a scenario is than the shortest that is worth running."""


@dataclass(frozen=True, slots=True)
class Result:
    seed: int
    configuration: str
    """What the seed drew."""
    violations: tuple[Violation, ...]
    digest: str
    steps: int
    virtual_s: float

    def to_json(self) -> dict[str, Any]:
        violations = [{"property": v.property, "at_s": v.at_s, "what": v.what} for v in self.violations]
        return {
            "seed": self.seed,
            "configuration": self.configuration,
            "violations": violations,
            "digest": self.digest,
            "steps": self.steps,
            "virtual_s": self.virtual_s,
        }


def simulate(
    seed: int,
    *,
    tier: str = "quick",
    plant: str = "",
    scenario: str = "",
    echo: Callable[[str], None] | None = None,
    until_s: float | None = None,
    to_first: bool = False,
) -> Result:
    """Run one seed to its end, to `until_s` of virtual time, or `to_first` violation. `scenario`: one of SCENARIOS
    instead of a draw."""
    world = World(seed, echo)
    with planted(plant):
        configuration, story = _draw(world, TIERS[tier], scenario)
        world.note("seed", f"{seed}: {configuration}")
        if to_first:
            story = _to_first_violation(world, story)
        world.run(story if until_s is None else _until(story, until_s))
    return Result(seed, configuration, tuple(world.violations), world.digest, world.loop.steps, world.now_s)


SCENARIOS = ("cluster", "ring", "failover")


def _draw(world: World, scale: float, scenario: str) -> tuple[str, Coroutine[Any, Any, None]]:
    stream = world.stream("plan")
    kind = scenario or stream.choice(SCENARIOS)
    if kind == "ring":
        ring = RingPlan.draw(stream, scale)
        return str(ring), RingScenario(world, ring).run()
    draw = ClusterPlan.draw_failover if kind == "failover" else ClusterPlan.draw
    cluster = draw(stream, scale)
    return str(cluster), ClusterScenario(world, cluster).run()


async def _until(scenario: Coroutine[Any, Any, None], until_s: float) -> None:
    try:
        async with asyncio.timeout(until_s):
            await scenario
    except TimeoutError:
        return


async def _to_first_violation(world: World, scenario: Coroutine[Any, Any, None]) -> None:
    found = asyncio.Event()
    world.violated = found.set
    running = asyncio.ensure_future(scenario)
    finding = asyncio.ensure_future(found.wait())
    await asyncio.wait((running, finding), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
