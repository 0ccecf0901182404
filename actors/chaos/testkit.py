"""For those who write actors, guests and workloads of their own: try them in simulated clusters, by seed.

    def test_mine(everram_simulation):                          # the fixture of the pytest plugin is `run_seeds`
        everram_simulation(scenario, seeds=range(1, 51), hosts=3, actors=[Tally])

    async def scenario(sim: Simulation) -> None:
        await sim.ask("h1", lambda node: node.ref(TallyRef).add(UInt64Value(value=5)))
        await sim.break_things({"host-kill": 3, "partition": 1}, count=5, within_s=3.0)
        ...

Every host has everram's own actors, and those that are given. A scenario that raises, or a property that does not hold,
fails with the seed that does it again, exactly. `try_workload` puts a workload through all that `everram chaos sim`
does to its own. Faults by name: `everram.actors.chaos.faults`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from everram.actors.chaos import injector
from everram.actors.chaos.checks.keeps_promises import KeepsPromises
from everram.actors.chaos.checks.one_incarnation import OneIncarnation
from everram.actors.chaos.checks.stays_frozen import StaysFrozen
from everram.actors.chaos.cluster import Cluster, announce
from everram.actors.chaos.fault import Fault, Scene
from everram.actors.chaos.faults import KINDS
from everram.actors.chaos.plan import ClusterPlan
from everram.actors.chaos.scenario import WORKLOADS, ClusterScenario
from everram.actors.chaos.simulate import to_first_violation
from everram.actors.chaos.workload import Workload
from everram.runtime.actor import Actor
from everram.runtime.errors import EverramError, InvalidArgument
from everram.runtime.node import Node
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.machine import GuestProgram
from everram.runtime.simulation.world import World

T = TypeVar("T")

ASK_TIMEOUT_S, PATIENCE_S, LOOK_S = 1.0, 20.0, 0.02
LASTING_S = (0.05, 0.3, 1.0, 3.0)
LINES_SHOWN = 25
OWN_PROGRAM = "/own"


class Simulation:
    """One seed's cluster. `world` has the clock, the trace and the violations."""

    def __init__(
        self, world: World, hosts: int, actors: Sequence[Callable[[], Actor]], programs: Mapping[str, GuestProgram]
    ) -> None:
        self.world = world
        self.cluster = Cluster(world, hosts=hosts, programs=programs)
        self.cluster.extend = self._extend
        self._actors = actors
        self.stream: Stream = world.stream("test")
        """Randomness of this seed."""
        self._incarnations = OneIncarnation(world)
        self.cluster.observers.append(self._incarnations.observe)

    def _extend(self, node: Node) -> None:
        for actor in self._actors:
            node.add(actor)

    @property
    def hosts(self) -> list[str]:
        return self.cluster.names

    async def ask(
        self, host: str, act: Callable[[Node], Awaitable[T]], *, patience_s: float = 0.0, source: str = "test"
    ) -> T:
        """As a client outside asks; for so long again while nobody answers. Raises an EverramError."""
        until_s = self.world.now_s + patience_s
        while True:
            try:
                return await self.cluster.ask(source, host, act, ASK_TIMEOUT_S)
            except EverramError:
                if self.world.now_s >= until_s:
                    raise
            await asyncio.sleep(LOOK_S)

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, within_s: float = PATIENCE_S) -> None:
        """Raises AssertionError if it takes longer."""
        until_s = self.world.now_s + within_s
        while not await holds():
            assert self.world.now_s < until_s, f"not within {within_s:g} s: {what}"
            await asyncio.sleep(LOOK_S)

    async def break_things(self, kinds: Mapping[str, int], *, count: int, within_s: float) -> None:
        """Faults drawn from the seed, by their names and weights; returns when all are over and undone. Raises
        InvalidArgument."""
        for kind in kinds:
            if kind not in KINDS:
                raise InvalidArgument(f'"{kind}" is no fault: there are {", ".join(sorted(KINDS))}')
        scene = Scene(
            self.cluster,
            lambda index: None,
            StaysFrozen(self.world),
            self._incarnations,
            KeepsPromises(self.world, _none),
        )
        draw = self.stream
        faults = [
            Fault(
                at_s=draw.uniform(0, within_s),
                kind=draw.choices(list(kinds), weights=list(kinds.values()))[0],
                host=draw.choice(self.hosts),
                guest=0,
                length_s=draw.choice(LASTING_S),
                count=draw.randrange(1, 80),
            )
            for _ in range(count)
        ]
        await injector.play(scene, tuple(sorted(faults, key=lambda fault: fault.at_s)))

    def violate(self, claim: str, what: str) -> None:
        """A property does not hold. The scenario goes on: what follows may explain it."""
        self.world.violate(claim, what)


def _none(guest_id: str) -> list[str]:
    return []


Scenario = Callable[[Simulation], Coroutine[Any, Any, None]]


def run_seeds(
    scenario: Scenario,
    *,
    seeds: Iterable[int] = range(1, 11),
    hosts: int = 3,
    actors: Sequence[Callable[[], Actor]] = (),
    programs: Mapping[str, GuestProgram] | None = None,
) -> None:
    """Raises AssertionError with the first seed in which something went wrong."""
    for seed in seeds:
        world, error = _play(seed, None, scenario, hosts, actors, programs or {})
        if error is not None or world.violations:
            lines: list[str] = []
            _play(seed, lines.append, scenario, hosts, actors, programs or {})  # the same again, with its trace
            raise AssertionError(_told(seed, world, lines)) from error


def _play(
    seed: int,
    echo: Callable[[str], None] | None,
    scenario: Scenario,
    hosts: int,
    actors: Sequence[Callable[[], Actor]],
    programs: Mapping[str, GuestProgram],
) -> tuple[World, Exception | None]:
    """The world in which it was played, and what the scenario raised."""
    world = World(seed, echo)
    simulation = Simulation(world, hosts, actors, programs)
    failed: list[Exception] = []

    async def course() -> None:
        simulation.cluster.start()
        await announce(world)
        try:
            await scenario(simulation)
        except Exception as error:
            failed.append(error)

    world.run(course())
    return world, failed[0] if failed else None


def try_workload(workload: type[Workload], *, seeds: Iterable[int] = range(1, 11), copies: int = 0) -> None:
    """All guests of the clusters that the seeds draw run this workload, and everything is broken that a seed breaks.

    `copies`: on other hosts; then `recover` is told where an incarnation runs on one. Raises AssertionError with the
    first seed in which something went wrong.
    """
    before = WORKLOADS.get(OWN_PROGRAM)
    WORKLOADS[OWN_PROGRAM] = workload
    try:
        for seed in seeds:
            if (world := _try(seed, None, copies)).violations:
                lines: list[str] = []
                _try(seed, lines.append, copies)
                raise AssertionError(_told(seed, world, lines))
    finally:
        if before is None:
            del WORKLOADS[OWN_PROGRAM]
        else:
            WORKLOADS[OWN_PROGRAM] = before


def _try(seed: int, echo: Callable[[str], None] | None, copies: int) -> World:
    world = World(seed, echo)
    drawn = (ClusterPlan.draw_failover if copies else ClusterPlan.draw)(world.stream("plan"), 1.0)
    least = min(copies, drawn.hosts - 1)
    guests = tuple(replace(guest, program=OWN_PROGRAM, copies=least) for guest in drawn.guests)
    world.run(to_first_violation(world, ClusterScenario(world, replace(drawn, guests=guests)).run()))
    return world


def _told(seed: int, world: World, lines: Sequence[str]) -> str:
    violations = [f"  {violation}" for violation in world.violations]
    last = [f"  {line}" for line in lines[-LINES_SHOWN:]]
    return "\n".join([f"seed {seed} (again: seeds=[{seed}])", *violations, "the last that happened:", *last])
