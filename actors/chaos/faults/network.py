"""Links that are cut one way or both, clogged, or lossy."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.fault import Fault, Kind, Scene
from everram.runtime.simulation.coordination import PLACE
from everram.runtime.simulation.network import LinkFaults

LOSSY = LinkFaults(loss=0.02, duplication=0.05, reordering=0.05, delay_max_s=0.02)
CLOGGED = LinkFaults(delay_min_s=0.02, delay_max_s=0.25)


async def _partition(scene: Scene, fault: Fault) -> None:
    """A host and coordination, one way or both."""
    fabric = scene.world.fabric
    fabric.cut(fault.host, PLACE)
    if fault.count % 2:
        fabric.cut(PLACE, fault.host)
    await asyncio.sleep(fault.length_s)
    fabric.heal()


async def _one_way(scene: Scene, fault: Fault) -> None:
    """What one host sends to another does not arrive; what that one answers would."""
    others = [name for name in scene.cluster.names if name != fault.host]
    if others:
        other = others[fault.count % len(others)]
        scene.world.fabric.cut(*((fault.host, other) if fault.count % 2 else (other, fault.host)))
        await asyncio.sleep(fault.length_s)
        scene.world.fabric.heal()


async def _isolation(scene: Scene, fault: Fault) -> None:
    """A host and all others; coordination still hears it."""
    fabric = scene.world.fabric
    for other in scene.cluster.names:
        if other != fault.host:
            fabric.cut(fault.host, other)
            if fault.count % 2:
                fabric.cut(other, fault.host)
    await asyncio.sleep(fault.length_s)
    fabric.heal()


async def _cut_off(scene: Scene, fault: Fault) -> None:
    """A machine and everybody else."""
    fabric = scene.world.fabric
    for other in (PLACE, *scene.cluster.names):
        if other != fault.host:
            fabric.cut(fault.host, other)
            fabric.cut(other, fault.host)
    await asyncio.sleep(fault.length_s)
    fabric.heal()


async def _weather(scene: Scene, weather: LinkFaults, length_s: float) -> None:
    """For all links; what began last ends last."""
    fabric = scene.world.fabric
    fabric.faults = weather
    await asyncio.sleep(length_s)
    if fabric.faults is weather:
        fabric.faults = LinkFaults()


async def _link_faults(scene: Scene, fault: Fault) -> None:
    await _weather(scene, LOSSY, fault.length_s)


async def _clogged(scene: Scene, fault: Fault) -> None:
    await _weather(scene, CLOGGED, fault.length_s)


KINDS = {
    "partition": Kind(_partition, weight=3, failover=2),
    "one-way": Kind(_one_way, weight=2, failover=2),
    "isolation": Kind(_isolation, weight=2, failover=2),
    "cut-off": Kind(_cut_off, weight=3, failover=4),
    "link-faults": Kind(_link_faults, weight=2, failover=1),
    "clogged": Kind(_clogged, weight=1, failover=1),
}
