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

MOVE_TIMEOUT_S = 5.0
SNAPSHOTS_MAX = 40
REFUSED_MAX = 4
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
    that finds in the midst of being copied that there is no room is taken back."""
    found = scene.guest(fault.guest)
    if found is None:
        return
    host, guest_id = found
    full = asyncio.create_task(disk_full(scene, replace(fault, host=host)))
    region = nvm.RegionName(guest_id=guest_id, region=Workload.region)
    refused = 0
    for number in range(SNAPSHOTS_MAX):
        request = nvm.SnapshotRequest(regions=[region], name=f"full-{fault.at_s:.6f}-{number}")
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
    await full


KINDS = {
    "move": Kind(_move, weight=2, failover=4),
    "snapshots-fill": Kind(_snapshots_fill, weight=4, failover=1),
}
