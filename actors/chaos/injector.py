"""Carries out the faults of a plan, and undoes what lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from everram.actors.chaos.checks.converges import PROPERTY
from everram.actors.chaos.checks.keeps_promises import KeepsPromises, Promise
from everram.actors.chaos.checks.one_incarnation import OneIncarnation
from everram.actors.chaos.checks.stays_frozen import StaysFrozen
from everram.actors.chaos.cluster import Cluster
from everram.actors.chaos.plan import Fault
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import SaveRequest
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import PromiseRequest
from everram.runtime.errors import EverramError, NotFound
from everram.runtime.node import Node
from everram.runtime.simulation.coordination import PLACE
from everram.runtime.simulation.network import LinkFaults

ASK_TIMEOUT_S = 2.0
SAVE_TIMEOUT_S = 8.0
POWERLESS_S = 0.3
RETRY_S = 0.1
DISK_ERROR_RATE = 0.3
FAULTS_BOUND_S = 60.0
"""For all faults of a plan: seconds, and what it takes until a host that was killed or cut off answers again."""


class Injector:
    """`guest(index)` is (host, guest_id) of a guest of the plan, None while it has none."""

    def __init__(
        self,
        cluster: Cluster,
        guest: Callable[[int], tuple[str, str] | None],
        frozen: StaysFrozen,
        incarnations: OneIncarnation,
        promises: KeepsPromises,
    ) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._guest = guest
        self._frozen = frozen
        self._incarnations = incarnations
        self._promises = promises
        self.losing: list[Callable[[str], None]] = []
        """Told of each machine before it dies with its memory."""
        self._cycling: set[str] = set()
        """Machines that are being saved and powered off and on."""
        self._acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "guest-kill": self._guest_kill,
            "guest-kill-at-store": self._guest_kill_at_store,
            "host-kill": self._host_kill,
            "host-kill-at-store": self._host_kill_at_store,
            "hang": self._hang,
            "suspend": self._suspend,
            "coordination-kill": self._coordination_kill,
            "coordination-hang": self._coordination_hang,
            "partition": self._partition,
            "isolation": self._isolation,
            "cut-off": self._cut_off,
            "link-faults": self._link_faults,
            "save-fails": self._save_fails,
            "power-cycle": self._power_cycle,
            "machine-kill": self._machine_kill,
            "machine-stuck": self._machine_stuck,
            "deposed-leader": self._deposed_leader,
        }

    async def play(self, faults: tuple[Fault, ...]) -> None:
        """Every fault at its time; returns when all are over and undone."""
        try:
            async with asyncio.timeout(FAULTS_BOUND_S), asyncio.TaskGroup() as tasks:
                for fault in faults:
                    tasks.create_task(self._at(fault))
        except TimeoutError:
            self._world.violate(PROPERTY, f"{FAULTS_BOUND_S:g} s later not all faults could be undone")
        self._world.fabric.heal()

    async def _at(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        self._world.note("fault", f"{fault.kind} {fault.host}")
        await self._acts[fault.kind](fault)

    # -- processes ----------------------------------------------------------------------------------------------------

    async def _guest_kill(self, fault: Fault) -> None:
        found = self._guest(fault.guest)
        if found is not None:
            self._cluster.machines[found[0]].kill_guest(found[1])

    async def _guest_kill_at_store(self, fault: Fault) -> None:
        found = self._guest(fault.guest)
        gate = self._cluster.guest_gates.get(found[1]) if found is not None else None
        if gate is not None:
            gate.kill_at = gate.passed + fault.count

    async def _host_kill(self, fault: Fault) -> None:
        self._cluster.machines[fault.host].kill_host()

    async def _host_kill_at_store(self, fault: Fault) -> None:
        gate = self._cluster.host_gates.get(fault.host)
        if gate is not None:
            gate.kill_at = gate.passed + fault.count

    async def _hang(self, fault: Fault) -> None:
        self._cluster.machines[fault.host].hang_host()

    async def _suspend(self, fault: Fault) -> None:
        """Freeze a guest for a while, as a snapshot or a user would; in half of the cases its host dies meanwhile."""
        found = self._guest(fault.guest)
        if found is None:
            return
        host, guest_id = found
        machine = self._cluster.machines[host]
        try:
            await self._cluster.ask(
                "user", host, lambda node: node.environment.machine.freeze(guest_id, "suspend"), ASK_TIMEOUT_S
            )
        except EverramError:
            pass  # perhaps frozen, perhaps not: nothing is claimed, but it is thawed below
        else:
            epochs = [seen.epoch for seen in machine.seen() if seen.guest_id == guest_id and seen.freeze_reasons]
            for epoch in epochs:
                self._frozen.froze(guest_id, epoch)
        await asyncio.sleep(fault.length_s / 2)
        if fault.count % 2:
            machine.kill_host()
        await asyncio.sleep(fault.length_s / 2)
        self._frozen.thawing(guest_id)
        await self._insist(host, lambda node: node.environment.machine.thaw(guest_id, "suspend"))

    async def _insist(self, host: str, act: Callable[[Node], Awaitable[object]]) -> None:
        """Ask until it is done, or there is nothing to do it to."""
        while True:
            try:
                await self._cluster.ask("user", host, act, ASK_TIMEOUT_S)
                return
            except NotFound:
                return
            except EverramError:
                await asyncio.sleep(RETRY_S)

    # -- coordination and network -------------------------------------------------------------------------------------

    async def _coordination_kill(self, fault: Fault) -> None:
        self._world.kill_coordination()

    async def _coordination_hang(self, fault: Fault) -> None:
        self._world.hang_coordination()

    async def _partition(self, fault: Fault) -> None:
        """A host and coordination, one way or both."""
        fabric = self._world.fabric
        fabric.cut(fault.host, PLACE)
        if fault.count % 2:
            fabric.cut(PLACE, fault.host)
        await asyncio.sleep(fault.length_s)
        fabric.heal()

    async def _isolation(self, fault: Fault) -> None:
        """A host and all others; coordination still hears it."""
        fabric = self._world.fabric
        for other in self._cluster.names:
            if other != fault.host:
                fabric.cut(fault.host, other)
                if fault.count % 2:
                    fabric.cut(other, fault.host)
        await asyncio.sleep(fault.length_s)
        fabric.heal()

    async def _cut_off(self, fault: Fault) -> None:
        """A machine and everybody else."""
        fabric = self._world.fabric
        for other in (PLACE, *self._cluster.names):
            if other != fault.host:
                fabric.cut(fault.host, other)
                fabric.cut(other, fault.host)
        await asyncio.sleep(fault.length_s)
        fabric.heal()

    async def _link_faults(self, fault: Fault) -> None:
        fabric, before = self._world.fabric, self._world.fabric.faults
        fabric.faults = LinkFaults(loss=0.02, duplication=0.05, reordering=0.05, delay_max_s=0.02)
        await asyncio.sleep(fault.length_s)
        fabric.faults = before if before.loss == 0 else LinkFaults()

    async def _machine_stuck(self, fault: Fault) -> None:
        """A machine that does nothing for longer than a lease, while its host cannot renew: guests keep to it alone."""
        machine, fabric = self._cluster.machines[fault.host], self._world.fabric
        self._incarnations.stuck(fault.host)
        self._world.loop.freeze(machine.domain)
        fabric.cut(fault.host, PLACE)
        fabric.cut(PLACE, fault.host)
        await asyncio.sleep(self._cluster.lease_ttl_s + fault.length_s / 2)
        fabric.heal()
        self._world.loop.thaw(machine.domain)

    async def _deposed_leader(self, fault: Fault) -> None:
        """Somebody who thinks that it leads has a member promise the guest's own epoch; later that begins a new one."""
        found = self._guest(fault.guest)
        if found is None:
            return
        guest_id = found[1]
        record = self._cluster.record(guest_id)
        members = [h for h, memory_id in self._cluster.memory_ids.items() if memory_id in record.get("required", [])]
        if not members:
            return
        request = PromiseRequest(guest_id=guest_id, epoch=int(record["epoch"]))
        try:
            reply = await self._cluster.ask(
                "leader", members[0], lambda node: node.ref(ReplicatorRef).promise(request), ASK_TIMEOUT_S
            )
        except EverramError:
            return
        if reply.complete:
            self._promises.made(guest_id, Promise(request.epoch, reply.memory_id, reply.lsn))
        await asyncio.sleep(fault.length_s / 4)
        self._cluster.machines[self._guest_host(fault.guest)].kill_guest(guest_id)

    def _guest_host(self, index: int) -> str:
        found = self._guest(index)
        assert found is not None, "it was there before"
        return found[0]

    # -- power and disks ----------------------------------------------------------------------------------------------

    async def _save_fails(self, fault: Fault) -> None:
        """A save on a failing disk: a plain error, and the guests go on."""
        if fault.host in self._cycling:
            return
        media = self._world.media(fault.host)
        media.faults.error_rate = DISK_ERROR_RATE
        await self._save_and_cycle(fault.host)
        media.faults.error_rate = 0.0

    async def _power_cycle(self, fault: Fault) -> None:
        """An orderly stop and start: saved, switched off, switched on, restored."""
        if fault.host not in self._cycling:
            await self._save_and_cycle(fault.host)

    async def _save_and_cycle(self, host: str) -> None:
        self._cycling.add(host)
        try:
            request = SaveRequest(cause="chaos")
            await self._cluster.ask(
                "user",
                host,
                lambda node: node.ref(PowerMonitorRef).save(request, timeout_s=SAVE_TIMEOUT_S),
                SAVE_TIMEOUT_S,
            )
        except EverramError as error:
            # Not saved, so not switched off. If the host died in it, what it froze waits for somebody to say so.
            self._world.note("user", f"{host} was not saved: {error.message}")
            await self._insist(host, lambda node: node.ref(PowerMonitorRef).resume(Empty()))
        else:
            self._world.media(host).faults.error_rate = 0.0
            await self._cycle(host)
        finally:
            self._cycling.discard(host)

    async def _cycle(self, host: str) -> None:
        self._cluster.power_off(host)
        await asyncio.sleep(POWERLESS_S)
        self._cluster.power_on(host)

    async def _machine_kill(self, fault: Fault) -> None:
        """Its memory is lost, and what lay only there with it: after its death is proven it comes back empty.

        Where its disk has an image that was opened before, its host has to refuse to start; a user then discards that.
        """
        host = fault.host
        if host in self._cycling:
            return
        self._cycling.add(host)
        for observer in self.losing:
            observer(host)
        await self._cluster.lose(host)
        await asyncio.sleep(POWERLESS_S)
        await self._cluster.raise_again(host)
        machine = self._cluster.machines[host]
        while machine.core.host.state not in ("ready", "refused"):  # noqa: ASYNC110 - an observer, outside the world
            await asyncio.sleep(RETRY_S)
        if machine.core.host.state == "refused":
            self._world.note("user", f"{host} refuses to start; its image is discarded")
            self._world.media(host).files.clear()
            machine.retry_host()
        self._cycling.discard(host)
