"""One seed: draws a scenario, runs it in a world, and says what was found.

result = simulate(17)
result = simulate(17, plant="lost-wakeup", echo=print, until_s=1.5)      # a replay, readable
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from everram.actors.chaos.marks import marking
from everram.actors.chaos.plan import LEASE_WEIGHTS, MANY_HOSTS, ClusterPlan
from everram.actors.chaos.planted import planted
from everram.actors.chaos.ring import RingPlan, RingScenario
from everram.actors.chaos.scenario import ClusterScenario
from everram.runtime.simulation.entropy import Seeds, Stream
from everram.runtime.simulation.world import Violation, World

SCENARIOS = ("cluster", "ring", "failover", "leases", "files", "memory", "everything")


@dataclass(frozen=True, slots=True)
class Tier:
    scenarios: tuple[str, ...]
    """A seed draws one of them; one that is named twice is drawn more often."""
    scale: float
    """How much longer a scenario is than the shortest that is worth running."""
    hosts: tuple[int, ...] = MANY_HOSTS
    """Of "everything"."""
    timeout_s: float = 120.0
    """Of processor time for one seed: many times what it takes; more is a loop without end."""


TIERS: dict[str, Tier] = {
    "quick": Tier(("cluster", "ring", "ring", "failover", "files", "memory"), 1.0),
    "swarm": Tier(("everything", "everything", "failover", "ring", "memory"), 1.5, timeout_s=900.0),
    "nightly": Tier(("everything",), 5.0, hosts=(10, 20, 50), timeout_s=7200.0),
}


@dataclass(frozen=True, slots=True)
class Result:
    seed: int
    configuration: str
    """What the seed drew."""
    violations: tuple[Violation, ...]
    digest: str
    steps: int
    virtual_s: float
    faults: int
    """How many the seed drew, of a scenario that has a list of them."""
    marks: dict[str, int]
    """How often each mark was reached."""

    def to_json(self) -> dict[str, Any]:
        violations = [{"property": v.property, "at_s": v.at_s, "what": v.what} for v in self.violations]
        return {
            "seed": self.seed,
            "configuration": self.configuration,
            "violations": violations,
            "digest": self.digest,
            "steps": self.steps,
            "virtual_s": self.virtual_s,
            "faults": self.faults,
            "marks": self.marks,
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
    faults: frozenset[int] | None = None,
) -> Result:
    """Run one seed to its end, to `until_s` of virtual time, or `to_first` violation. `scenario`: one of SCENARIOS
    instead of a draw. `faults`: the numbers of those to keep, of what the seed draws; None: all. Raises InvalidArgument
    if it draws no such one."""
    with marking() as reached, planted(plant):
        plan, drawn = _draw(Seeds(seed).stream("plan"), TIERS[tier], scenario), 0
        if isinstance(plan, ClusterPlan):
            drawn, plan = len(plan.faults), plan.with_faults(faults)
        world = World(seed, echo)
        if isinstance(plan, ClusterPlan):
            reached.update(f"fault {fault.kind}" for fault in plan.faults)
            story = ClusterScenario(world, plan).run()
        else:
            story = RingScenario(world, plan).run()
        configuration = str(plan)
        world.note("seed", f"{seed}: {configuration}")
        if to_first:
            story = to_first_violation(world, story)
        world.run(story if until_s is None else _until(story, until_s))
    return Result(
        seed,
        configuration,
        tuple(world.violations),
        world.digest,
        world.loop.steps,
        world.now_s,
        drawn,
        dict(sorted(reached.items())),
    )


def _draw(stream: Stream, tier: Tier, scenario: str) -> ClusterPlan | RingPlan:
    kind = scenario or stream.choice(tier.scenarios)
    if kind == "ring":
        return RingPlan.draw(stream, tier.scale)
    if kind == "everything":
        return ClusterPlan.draw_everything(stream, tier.scale, tier.hosts)
    if kind == "files":
        return ClusterPlan.draw_files(stream, tier.scale)
    if kind == "leases":
        return ClusterPlan.draw_failover(stream, tier.scale, LEASE_WEIGHTS)
    if kind == "memory":
        return ClusterPlan.draw_memory(stream, tier.scale)
    return (ClusterPlan.draw_failover if kind == "failover" else ClusterPlan.draw)(stream, tier.scale)


async def _until(scenario: Coroutine[Any, Any, None], until_s: float) -> None:
    try:
        async with asyncio.timeout(until_s):
            await scenario
    except TimeoutError:
        return


async def to_first_violation(world: World, scenario: Coroutine[Any, Any, None]) -> None:
    found = asyncio.Event()
    world.violated = found.set
    running = asyncio.ensure_future(scenario)
    finding = asyncio.ensure_future(found.wait())
    await asyncio.wait((running, finding), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
