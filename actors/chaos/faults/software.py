"""Upgrades of the host software under running guests, back to the version before among them, some of them killed."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.fault import Fault, Kind, Scene
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import RollbackRequest
from everram.runtime.errors import FailedPrecondition
from everram.runtime.node import Node

LOOK_S = 0.01


async def _upgrade(scene: Scene, fault: Fault) -> None:
    """With the guests stopped for it or not."""
    await _replace(scene, fault)


async def _upgrade_killed(scene: Scene, fault: Fault) -> None:
    """The successor, the host or both die in it."""
    upgrading = asyncio.create_task(_replace(scene, fault))
    await asyncio.sleep(fault.length_s * fault.count / 160)
    machine = scene.cluster.machines[fault.host]
    if fault.count % 3 != 1:
        machine.kill_successor()
    if fault.count % 3 != 2:
        machine.kill_host()
    await upgrading


async def _downgrade(scene: Scene, fault: Fault) -> None:
    """The memory is written for the version before, and then its software takes it over; not where guests have volatile
    memory, of which that version may know nothing."""
    refusals: list[FailedPrecondition] = []

    async def roll_back(node: Node) -> None:
        try:
            await node.ref(VMemFSRef).rollback(RollbackRequest())
        except FailedPrecondition as refused:
            refusals.append(refused)

    await scene.insist(fault.host, roll_back)
    if refusals:
        scene.world.note("user", f"{fault.host} keeps its software: {refusals[0].message}")
    else:
        await _replace(scene, fault)


async def _replace(scene: Scene, fault: Fault) -> None:
    """Returns when it has ended, well or not, or with the machine."""
    machine = scene.cluster.machines[fault.host]
    if fault.host in scene.cycling:
        return
    ended = len(machine.upgrades.ended)
    machine.upgrade(pause=fault.count % 2 == 0)
    while machine.on and len(machine.upgrades.ended) == ended:  # noqa: ASYNC110 - an observer, outside the world
        await asyncio.sleep(LOOK_S)
    scene.world.note("fault", f"the upgrade of {fault.host} is over: {machine.upgrades.ended[ended:]}")


KINDS = {
    "upgrade": Kind(_upgrade, weight=3, failover=3),
    "upgrade-killed": Kind(_upgrade_killed, weight=2, failover=2),
    "downgrade": Kind(_downgrade, weight=1, failover=1),
}
