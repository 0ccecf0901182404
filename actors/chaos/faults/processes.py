"""Processes that are killed, hang, or stand still."""

from __future__ import annotations

import asyncio

from everram.actors.chaos.checks.keeps_promises import Promise
from everram.actors.chaos.fault import ASK_TIMEOUT_S, Fault, Kind, Scene
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import PromiseRequest
from everram.runtime.errors import EverramError
from everram.runtime.simulation.coordination import PLACE


async def _guest_kill(scene: Scene, fault: Fault) -> None:
    found = scene.guest(fault.guest)
    if found is not None:
        scene.cluster.machines[found[0]].kill_guest(found[1])


async def _guest_kill_at_store(scene: Scene, fault: Fault) -> None:
    found = scene.guest(fault.guest)
    gate = scene.cluster.guest_gates.get(found[1]) if found is not None else None
    if gate is not None:
        gate.kill_at = gate.passed + fault.count


async def _host_kill(scene: Scene, fault: Fault) -> None:
    scene.cluster.machines[fault.host].kill_host()


async def _host_kill_at_store(scene: Scene, fault: Fault) -> None:
    gate = scene.cluster.host_gates.get(fault.host)
    if gate is not None:
        gate.kill_at = gate.passed + fault.count


async def _hang(scene: Scene, fault: Fault) -> None:
    scene.cluster.machines[fault.host].hang_host()


async def _suspend(scene: Scene, fault: Fault) -> None:
    """Freeze a guest for a while, as a snapshot or a user would; in half of the cases its host dies meanwhile."""
    found = scene.guest(fault.guest)
    if found is None:
        return
    host, guest_id = found
    machine = scene.cluster.machines[host]
    try:
        await scene.cluster.ask(
            "user", host, lambda node: node.environment.machine.freeze(guest_id, "suspend"), ASK_TIMEOUT_S
        )
    except EverramError:
        pass  # perhaps frozen, perhaps not: nothing is claimed, but it is thawed below
    else:
        epochs = [seen.epoch for seen in machine.seen() if seen.guest_id == guest_id and seen.freeze_reasons]
        for epoch in epochs:
            scene.frozen.froze(guest_id, epoch)
    await asyncio.sleep(fault.length_s / 2)
    if fault.count % 2:
        machine.kill_host()
    await asyncio.sleep(fault.length_s / 2)
    scene.frozen.thawing(guest_id)
    await scene.insist(host, lambda node: node.environment.machine.thaw(guest_id, "suspend"))
    scene.frozen.thawed(guest_id)


async def _coordination_kill(scene: Scene, fault: Fault) -> None:
    scene.world.kill_coordination()


async def _coordination_hang(scene: Scene, fault: Fault) -> None:
    scene.world.hang_coordination()


async def _machine_stuck(scene: Scene, fault: Fault) -> None:
    """A machine that does nothing for longer than a lease, while its host cannot renew: guests keep to it alone."""
    machine, fabric = scene.cluster.machines[fault.host], scene.world.fabric
    scene.incarnations.stuck(fault.host)
    scene.world.loop.freeze(machine.domain)
    fabric.cut(fault.host, PLACE)
    fabric.cut(PLACE, fault.host)
    await asyncio.sleep(scene.cluster.lease_ttl_s + fault.length_s / 2)
    fabric.heal()
    scene.world.loop.thaw(machine.domain)


async def _deposed_leader(scene: Scene, fault: Fault) -> None:
    """Somebody who thinks that it leads has a member promise the guest's own epoch; later that begins a new one, also
    where no answer came: the promise may be made all the same."""
    found = scene.guest(fault.guest)
    if found is None:
        return
    cluster, guest_id = scene.cluster, found[1]
    record = cluster.record(guest_id)
    members = [h for h, memory_id in cluster.memory_ids.items() if memory_id in record.get("required", [])]
    if not members:
        return
    request = PromiseRequest(guest_id=guest_id, epoch=int(record["epoch"]))
    try:
        reply = await cluster.ask(
            "leader", members[0], lambda node: node.ref(ReplicatorRef).promise(request), ASK_TIMEOUT_S
        )
    except EverramError as error:
        scene.world.note("leader", f"{members[0]} has not promised epoch {request.epoch}: {error.message}")
    else:
        if reply.complete:
            scene.promises.made(guest_id, Promise(request.epoch, reply.memory_id, reply.lsn))
    await asyncio.sleep(fault.length_s / 4)
    place = scene.guest(fault.guest)
    assert place is not None, "it was there before"
    cluster.machines[place[0]].kill_guest(guest_id)


KINDS = {
    "guest-kill": Kind(_guest_kill, weight=4, failover=2),
    "guest-kill-at-store": Kind(_guest_kill_at_store, weight=6, failover=3),
    "host-kill": Kind(_host_kill, weight=4, failover=3),
    "host-kill-at-store": Kind(_host_kill_at_store, weight=4, failover=4),
    "hang": Kind(_hang, weight=2, failover=1),
    "suspend": Kind(_suspend, weight=6),
    "coordination-kill": Kind(_coordination_kill, weight=2, failover=2),
    "coordination-hang": Kind(_coordination_hang, weight=1, failover=1),
    "machine-stuck": Kind(_machine_stuck, weight=2, failover=2),
    "deposed-leader": Kind(_deposed_leader, weight=0, failover=3),
}
