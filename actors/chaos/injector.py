"""Carries out the faults of a plan, each at its time, and returns when all are over and undone."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.checks.converges import PROPERTY
from everram.actors.chaos.fault import Fault, Scene
from everram.actors.chaos.faults import KINDS

FAULTS_BOUND_S = 60.0
"""For all faults of a plan: seconds, and what it takes until a host that was killed or cut off answers again."""


async def play(scene: Scene, faults: tuple[Fault, ...]) -> None:
    try:
        async with asyncio.timeout(FAULTS_BOUND_S), asyncio.TaskGroup() as tasks:
            for fault in faults:
                tasks.create_task(_at(scene, fault))
    except TimeoutError:
        scene.world.violate(PROPERTY, f"{FAULTS_BOUND_S:g} s later not all faults could be undone")
    scene.world.fabric.heal()


async def _at(scene: Scene, fault: Fault) -> None:
    await asyncio.sleep(fault.at_s)
    scene.world.note("fault", f"{fault.kind} {fault.host}")
    await KINDS[fault.kind].act(scene, fault)
