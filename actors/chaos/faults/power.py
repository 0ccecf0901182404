"""Machines that are switched off and on, in order or not, lose their mains, or die with their memory."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.fault import POWERLESS_S, Fault, Kind, Scene
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import SaveRequest
from everram.runtime.errors import EverramError

SAVE_TIMEOUT_S = 8.0
DISK_ERROR_RATE = 0.3
FLICKER_STEP_S = 0.0001
"""A host has drained, saved and handed over within some milliseconds: about half of the flickers are over before."""


async def _save_fails(scene: Scene, fault: Fault) -> None:
    """A save on a failing disk: a plain error, and the guests go on."""
    if fault.host in scene.cycling:
        return
    media = scene.world.media(fault.host)
    media.faults.error_rate = DISK_ERROR_RATE
    await _save_and_cycle(scene, fault.host)
    media.faults.error_rate = 0.0


async def _power_cycle(scene: Scene, fault: Fault) -> None:
    """An orderly stop and start: saved, switched off, switched on, restored."""
    if fault.host not in scene.cycling:
        await _save_and_cycle(scene, fault.host)


async def _save_and_cycle(scene: Scene, host: str) -> None:
    scene.cycling.add(host)
    try:
        request = SaveRequest(cause="chaos")
        await scene.cluster.ask(
            "user",
            host,
            lambda node: node.ref(PowerMonitorRef).save(request, timeout_s=SAVE_TIMEOUT_S),
            SAVE_TIMEOUT_S,
        )
    except EverramError as error:
        # Not saved, so not switched off. If the host died in it, what it froze waits for somebody to say so.
        scene.world.note("user", f"{host} was not saved: {error.message}")
        await scene.insist(host, lambda node: node.ref(PowerMonitorRef).resume(Empty()))
    else:
        scene.world.media(host).faults.error_rate = 0.0
        scene.cluster.power_off(host)
        await asyncio.sleep(POWERLESS_S)
        scene.cluster.power_on(host)
    finally:
        scene.cycling.discard(host)


async def _machine_kill(scene: Scene, fault: Fault) -> None:
    """Its memory is lost, and what lay only there with it: after its death is proven it comes back empty."""
    host = fault.host
    if host in scene.cycling:
        return
    scene.cycling.add(host)
    scene.lose(host, scene.cluster.memory_ids.get(host, ""))
    await scene.cluster.lose(host)
    await asyncio.sleep(POWERLESS_S)
    await scene.cluster.raise_again(host)
    await scene.started(host)
    scene.cycling.discard(host)


async def _mains_cut(scene: Scene, fault: Fault) -> None:
    """For as long as it lasts the battery carries the machine. Whether its memory is there again afterwards shows in
    what its host says that it has."""
    await _cut(scene, fault.host, fault.length_s)


async def _mains_flicker(scene: Scene, fault: Fault) -> None:
    """They are back while the host is at what it does on battery, which then is taken back, if it is not too late."""
    await _cut(scene, fault.host, fault.count * FLICKER_STEP_S)


async def _cut(scene: Scene, host: str, length_s: float) -> None:
    cluster = scene.cluster
    if host in scene.cycling or not cluster.machines[host].on:
        return
    scene.cycling.add(host)
    before = cluster.memory_ids.get(host, "")
    went_off = await cluster.cut_mains(host, length_s)
    if went_off:
        await scene.started(host)
        while cluster.machines[host].core.host.state != "ready" or cluster.node(host) is None:  # noqa: ASYNC110
            await asyncio.sleep(POWERLESS_S / 10)
        if before and cluster.memory_ids.get(host) != before:
            scene.lose(host, before)
    scene.cycling.discard(host)


KINDS = {
    "save-fails": Kind(_save_fails, weight=2),
    "power-cycle": Kind(_power_cycle, weight=2, failover=2),
    "machine-kill": Kind(_machine_kill, weight=5, failover=8),
    "mains-cut": Kind(_mains_cut, weight=3, failover=4),
    "mains-flicker": Kind(_mains_flicker, weight=2, failover=2),
}
