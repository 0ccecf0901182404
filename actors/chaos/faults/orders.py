"""What people order in the midst of everything else: guests are moved, and snapshots taken until there is no room."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from everram.actors.chaos.fault import ASK_TIMEOUT_S, Fault, Kind, Scene
from everram.actors.chaos.faults.disks import disk_full
from everram.actors.chaos.workload import Workload
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.hypervisor_pb2 import MoveRequest
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.errors import EverramError
from everram.runtime.node import Node

MOVE_TIMEOUT_S = 5.0
SNAPSHOTS_MAX = 40
REFUSED_MAX = 4
COPIES_FULL_S = 3.0
"""Longer than a copy waits for room."""
REMOVE_TRIES = 50
AGAIN_S = 0.1
"""After a refusal: by then a host that had died may be there again, or there may be room."""


async def _move(scene: Scene, fault: Fault) -> None:
    """A guest that has copies, in order; whatever else breaks meanwhile."""
    found = scene.guest(fault.guest)
    if found is None or not scene.cluster.required(found[1]):
        return
    host, guest_id = found
    others = [name for name in scene.cluster.names if name != host]
    request = MoveRequest(guest=guest_id, host=others[fault.count % len(others)])
    try:
        await scene.cluster.ask(
            "user",
            host,
            lambda node: node.ref(HypervisorRef).move(request, timeout_s=MOVE_TIMEOUT_S),
            MOVE_TIMEOUT_S,
        )
    except EverramError as error:
        scene.world.note("user", f"{guest_id} was not moved to {request.host}: {error.message}")


async def _snapshots_fill(scene: Scene, fault: Fault) -> None:
    """Snapshots, one after the other, while the disk is full and nothing can be purged, until several were refused. One
    that finds in the midst of being copied that there is no room is taken back. Where the guest has copies it is their
    disks that are full, and they give their snapshots up. In the end all are removed: until somebody makes room, others
    wait for it."""
    found = scene.guest(fault.guest)
    if found is None:
        return
    host, guest_id = found
    required = scene.cluster.required(guest_id)
    copied_to = [name for name, memory_id in scene.cluster.memory_ids.items() if memory_id in required]
    length_s = COPIES_FULL_S if copied_to else fault.length_s
    filled = [replace(fault, host=name, length_s=length_s) for name in copied_to or [host]]
    full = [asyncio.create_task(disk_full(scene, one)) for one in filled]
    region = nvm.RegionName(guest_id=guest_id, region=Workload.region)
    prefix, refused = f"full-{fault.at_s:.6f}-", 0
    for number in range(SNAPSHOTS_MAX):
        request = nvm.SnapshotRequest(regions=[region], name=f"{prefix}{number}")
        try:
            await scene.cluster.ask(
                "user",
                host,
                lambda node, request=request: node.ref(NvmDeviceRef).snapshot(request, timeout_s=ASK_TIMEOUT_S),  # type: ignore[misc]
                ASK_TIMEOUT_S,
            )
        except EverramError as error:
            scene.world.note("user", f"snapshot {number} of {guest_id} is refused: {error.message}")
            refused += 1
            if refused == REFUSED_MAX:
                break
            await asyncio.sleep(AGAIN_S)
    await asyncio.gather(*full)
    await _remove(scene, fault, prefix)


async def _remove(scene: Scene, fault: Fault, prefix: str) -> None:
    """Its snapshots of that name, wherever the guest is by now."""

    async def remove(node: Node) -> None:
        device = node.ref(NvmDeviceRef)
        there = (await device.snapshots(nvm.SnapshotFilter(guest_id=guest_id), timeout_s=ASK_TIMEOUT_S)).snapshots
        names = [
            nvm.SnapshotName(guest_id=guest_id, region=one.region, name=one.name)
            for one in there
            if one.name.startswith(prefix)
        ]
        if names:
            await device.remove_snapshots(nvm.SnapshotNames(snapshots=names), timeout_s=ASK_TIMEOUT_S)

    for _ in range(REMOVE_TRIES):
        found = scene.guest(fault.guest)
        if found is None:
            return
        host, guest_id = found
        try:
            await scene.cluster.ask("user", host, remove, ASK_TIMEOUT_S)
            return
        except EverramError as error:
            scene.world.note("user", f"snapshots of {guest_id} are not removed: {error.message}")
        await asyncio.sleep(AGAIN_S)


KINDS = {
    "move": Kind(_move, weight=2, failover=4),
    "snapshots-fill": Kind(_snapshots_fill, weight=4, failover=1),
}
