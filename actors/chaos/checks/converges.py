"""When faults have stopped, everything works again within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from everram.runtime.simulation.world import World

PROPERTY = "convergence after the faults stop"
POLL_S = 0.05


async def check(world: World, what: str, bound_s: float, holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask `holds` until it does, for at most `bound_s` of virtual time."""
    deadline_s = world.loop.time() + bound_s
    while not await holds():
        if world.loop.time() > deadline_s:
            world.violate(PROPERTY, f"{bound_s:g} s later still not: {what}")
            return
        await asyncio.sleep(POLL_S)
