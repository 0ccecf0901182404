"""A fault of the simulation: what a plan draws, what carries it out, and what it gets to do that with.

A kind is a function in one of the modules of `faults`, named in its table KINDS with its weights in the draw:

    async def _host_kill(scene: Scene, fault: Fault) -> None:
        scene.cluster.machines[fault.host].kill_host()

    KINDS = {"host-kill": Kind(_host_kill, weight=4, failover=3)}
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from everram.actors.chaos.checks.keeps_promises import KeepsPromises
from everram.actors.chaos.checks.one_incarnation import OneIncarnation
from everram.actors.chaos.checks.stays_frozen import StaysFrozen
from everram.actors.chaos.cluster import Cluster
from everram.runtime.errors import EverramError, NotFound
from everram.runtime.node import Node
from everram.runtime.simulation.world import World

ASK_TIMEOUT_S = 2.0
RETRY_S = 0.1
POWERLESS_S = 0.3


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    """After the guests run."""
    kind: str
    host: str
    guest: int
    """Index into the guests of the plan."""
    length_s: float
    """How long it lasts, for those that last."""
    count: int
    """How many stores later, for those at a store; otherwise whatever else a kind wants to have drawn."""

    def __str__(self) -> str:
        return f"{self.kind} {self.host} at {self.at_s:.3f} s"


@dataclass(slots=True)
class Scene:
    """What there is to break, and who has to be told before it is."""

    cluster: Cluster
    guest: Callable[[int], tuple[str, str] | None]
    """(host, guest_id) of a guest of the plan, None while it has none."""
    frozen: StaysFrozen
    incarnations: OneIncarnation
    promises: KeepsPromises
    losing: list[Callable[[str, str], None]] = field(default_factory=list)
    """Told of each machine and its memory_id before they die, or as soon as it is known that they have."""
    cycling: set[str] = field(default_factory=set)
    """Machines that are being saved, or powered off and on: no other fault does that to them."""

    @property
    def world(self) -> World:
        return self.cluster.world

    def lose(self, host: str, memory_id: str) -> None:
        for observer in self.losing:
            observer(host, memory_id)

    async def insist(self, host: str, act: Callable[[Node], Awaitable[object]]) -> None:
        """Ask until it is done, or there is nothing to do it to."""
        while True:
            try:
                await self.cluster.ask("user", host, act, ASK_TIMEOUT_S)
                return
            except NotFound:
                return
            except EverramError:
                await asyncio.sleep(RETRY_S)

    async def started(self, host: str) -> None:
        """Until its host is ready. Where its disk has only what may not be opened silently, it has to refuse to start;
        a user then discards that."""
        machine = self.cluster.machines[host]
        while machine.core.host.state not in ("ready", "refused"):  # noqa: ASYNC110 - an observer, outside the world
            await asyncio.sleep(RETRY_S)
        if machine.core.host.state == "refused":
            self.world.note("user", f"{host} refuses to start; its image is discarded")
            self.world.media(host).files.clear()
            machine.retry_host()


@dataclass(frozen=True, slots=True)
class Kind:
    act: Callable[[Scene, Fault], Awaitable[None]]
    """Breaks something, and undoes what lasts."""
    weight: int
    """In the draw, among all; 0: not drawn."""
    failover: int = 0
    """The same where guests have copies: what makes them go on elsewhere, and what may happen meanwhile."""
