"""Disks that are full or slow, fail now and then, or give back other bytes than they were given."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.fault import Fault, Kind, Scene
from everram.actors.chaos.faults.power import DISK_ERROR_RATE
from everram.runtime.formats.nvm import PURGED_FILE, PURGED_FOLDER

SLOW_S = (0.005, 0.06)
"""An operation of a disk that is about to fail, or that somebody else keeps busy."""


async def disk_full(scene: Scene, fault: Fault) -> None:
    media = scene.world.media(fault.host)
    capacity_bytes = media.capacity_bytes
    media.capacity_bytes = min(capacity_bytes, media.used_bytes())
    await asyncio.sleep(fault.length_s)
    media.capacity_bytes = max(capacity_bytes, media.capacity_bytes)


async def _disk_slow(scene: Scene, fault: Fault) -> None:
    faults = scene.world.media(fault.host).faults
    quick = (faults.latency_min_s, faults.latency_max_s)
    if quick == SLOW_S:
        return
    faults.latency_min_s, faults.latency_max_s = SLOW_S
    await asyncio.sleep(fault.length_s)
    faults.latency_min_s, faults.latency_max_s = quick


async def _disk_fails(scene: Scene, fault: Fault) -> None:
    """A part of its operations, while everything else goes on. Then it is well whatever goes on: a machine that comes
    back meanwhile may not start before."""
    faults = scene.world.media(fault.host).faults
    faults.error_rate = DISK_ERROR_RATE
    await asyncio.sleep(fault.length_s)
    faults.error_rate = 0.0


async def _bit_rot(scene: Scene, fault: Fault) -> None:
    """In what was purged: whoever reads it has to see that it is not what was written."""
    if scene.world.media(fault.host).rot(f"{PURGED_FOLDER}/{PURGED_FILE}"):
        scene.world.note("fault", f"a bit has changed on the disk of {fault.host}")


KINDS = {
    "disk-full": Kind(disk_full, weight=2, failover=1),
    "disk-slow": Kind(_disk_slow, weight=2, failover=1),
    "bit-rot": Kind(_bit_rot, weight=2),
    "disk-fails": Kind(_disk_fails, weight=1),
}
