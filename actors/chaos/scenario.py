"""The cluster scenario: guests, clients and faults as planned, then calm, then everything has to work again.

Start the machines, run the guests through their hosts' contracts, play the faults while clients work and checkers
watch, stop the faults, demand convergence, and look at everything once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from everram.actors.chaos import injector
from everram.actors.chaos.checks import converges, copies_exact, namespace_intact
from everram.actors.chaos.checks.answered import Answered
from everram.actors.chaos.checks.keeps_promises import KeepsPromises
from everram.actors.chaos.checks.one_incarnation import OneIncarnation
from everram.actors.chaos.checks.promised_is_held import PromisedIsHeld
from everram.actors.chaos.checks.reader_wakes import ReaderWakes
from everram.actors.chaos.checks.revert_exact import RevertExact
from everram.actors.chaos.checks.snapshots_exact import SnapshotsExact
from everram.actors.chaos.checks.stays_frozen import StaysFrozen
from everram.actors.chaos.checks.under_lease import UnderLease
from everram.actors.chaos.cluster import NVM_BYTES, Cluster, Preemption, announce
from everram.actors.chaos.counter import Counter
from everram.actors.chaos.fault import Scene
from everram.actors.chaos.file_user import FileUser
from everram.actors.chaos.ledger import Ledger
from everram.actors.chaos.ledger_region import understand
from everram.actors.chaos.mapped import Mapped
from everram.actors.chaos.plan import ClusterPlan, GuestPlan
from everram.actors.chaos.snapshots import SnapshotUser, clear
from everram.actors.chaos.volatile import VolatileUser
from everram.actors.chaos.workload import Workload
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HostRef
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.hypervisor_pb2 import GuestName
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import FollowRequest
from everram.runtime.coordination.file_directory import ROOT as FILES_ROOT
from everram.runtime.errors import AlreadyExists, EverramError, ResourceExhausted, Unavailable
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import GuestError
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring, log_name
from everram.runtime.memory.old_pages import OldPages
from everram.runtime.node import Node
from everram.runtime.simulation.domain import State
from everram.runtime.simulation.endpoint import Endpoint
from everram.runtime.simulation.machine import Seat, leaves
from everram.runtime.simulation.world import World

START_BOUND_S = 10.0
CONVERGENCE_BOUND_S = 20.0
"""A lease that was lost costs its TTL, a guest that died often a back-off of seconds."""
APPLY_BOUND_S = 0.05
"""From a destination's last acknowledgement to its last store."""
FREEZE_REASON = "suspend"
ASK_TIMEOUT_S = 0.4
PROBE_EVERY_S = 0.15
FILES_PAUSE_S = 0.04
FILES_BOUND_S = 40.0
"""A host waits for a while before it gives back memory that a manager was about to name."""
FIRST_LOOK_S, LAST_LOOK_S = 0.0004, 0.005
WORKLOADS: dict[str, type[Workload]] = {"/ledger": Ledger, "/counter": Counter, "/mapped": Mapped}


class Tenant:
    """One guest of the plan, over all its incarnations."""

    def __init__(self, scenario: ClusterScenario, plan: GuestPlan, index: int) -> None:
        self.plan = plan
        self.guest_id = ""
        """Once its host has told; its program knows it before."""
        world = scenario.world
        self.host = plan.host
        """Where its latest incarnation was begun."""
        self.memory_id = ""
        """That its latest incarnation found."""
        self.lost = False
        """Whether every memory that held it has died: nothing can be expected of it any more."""
        self.door: Endpoint[Service] = Endpoint(world.fabric, plan.name)
        self.snapshots = SnapshotsExact(
            world, plan.name, understand if plan.program == "/ledger" else None, stays=plan.copies == 0
        )
        memory = scenario.plan.memory
        self.memory = VolatileUser(world, plan.name, memory, index) if memory is not None else None
        """Uses its volatile memory, if it has any."""
        self.wakes = ReaderWakes(world, partial(scenario.reader, self), partial(scenario.verified, self))
        committed, replicated = partial(scenario.committed, self), partial(scenario.replicated, self)
        self.workload = WORKLOADS[plan.program](
            world, plan.name, pause_s=plan.pause_s, committed=committed, replicated=replicated
        )
        self.workload.waits = plan.waits


class Service:
    """What clients reach of one incarnation."""

    def __init__(self, workload: Workload, me: AsyncGuest) -> None:
        self._workload = workload
        self._me = me

    async def operate(self) -> int:
        """Raises Unavailable if the guest may not serve any more."""
        try:
            return await self._workload.operate(self._me)
        except GuestError as error:
            raise Unavailable(str(error)) from error


class ClusterScenario:
    def __init__(self, world: World, plan: ClusterPlan) -> None:
        self.world = world
        self.plan = plan
        preemption = Preemption(plan.preemption_guests, plan.preemption_hosts)
        programs = dict.fromkeys(WORKLOADS, self._program)
        self.cluster = Cluster(
            world,
            hosts=plan.hosts,
            programs=programs,
            preemption=preemption,
            battery_s=plan.battery_s,
            memory=plan.memory,
            nvm_bytes=plan.nvm_bytes,
            clock_drift_ppm=plan.clock_drift_ppm,
        )
        self.frozen = StaysFrozen(world)
        self.incarnations = OneIncarnation(world)
        self.lease = UnderLease(world, self.cluster.lease_deadline_ns)
        self.answered = Answered(world)
        self.held = PromisedIsHeld(world, self.cluster.required, self.cluster.held)
        self.promises = KeepsPromises(world, self.cluster.required)
        self.tenants = [Tenant(self, guest, index) for index, guest in enumerate(plan.guests)]
        self.scene = Scene(self.cluster, self._place, self.frozen, self.incarnations, self.promises, [self._losing])
        self.file_users = [
            FileUser(world, self.cluster, self.answered, number, pause_s=FILES_PAUSE_S)
            for number in range(plan.file_users)
        ]
        self._begun: dict[tuple[str, int], str] = {}
        """The host of each incarnation, by guest_id and epoch."""
        self.cluster.observers.append(self._observe)
        self.cluster.observers += [self.frozen.observe, self.incarnations.observe]
        self.cluster.also.append(self._probe)

    async def run(self) -> None:
        self.cluster.start()
        await announce(self.world)
        async with asyncio.timeout(START_BOUND_S):
            for tenant in self.tenants:
                await self._run_guest(tenant)
        clients = [self._client(tenant, number) for tenant in self.tenants for number in range(self.plan.clients)]
        users = [self._snapshot_user(tenant) for tenant in self.tenants if self.plan.snapshot_pause_s]
        using = [self.world.loop.spawn(self.world.loop.system, user.live()) for user in users]
        programs = [self.world.loop.spawn(self.world.loop.system, user.live()) for user in self.file_users]
        faults = asyncio.create_task(injector.play(self.scene, self.plan.faults))
        await asyncio.sleep(self.plan.duration_s)
        await faults
        self.world.note("calm", "the faults are over")
        for user in users:
            user.calm_down()
        for tenant in self.tenants:
            if not tenant.lost:
                await converges.check(
                    self.world, f"{tenant.plan.name} serves", CONVERGENCE_BOUND_S, partial(self._serves, tenant)
                )
        for host in self.cluster.names:
            await converges.check(self.world, f"{host} answers", CONVERGENCE_BOUND_S, partial(self._answers, host))
        for user in users:
            await converges.check(self.world, f"{user.name} reverts nothing", CONVERGENCE_BOUND_S, partial(_idle, user))
        await self._memory_is_whole()
        for client in (*clients, *using):
            client.cancel()
        for file_user in self.file_users:
            file_user.stop()
        await asyncio.gather(*programs)
        for user in users:
            await user.read_all()
        for tenant in self.tenants:
            if not tenant.lost:
                await self._look_once_more(tenant)
        if users:
            for host in self.cluster.names:
                await converges.check(
                    self.world,
                    f"{host} gives back",
                    CONVERGENCE_BOUND_S,
                    partial(clear, self.world, self.cluster, host),
                )
        await self._look_at_files()
        self._report_failures()

    async def _memory_is_whole(self) -> None:
        """All that guests have in volatile memory is looked at, wherever it is by now."""
        users = {tenant.plan.name: tenant.memory for tenant in self.tenants if tenant.memory and not tenant.lost}
        for user in users.values():
            user.look_whole()
        for name, user in users.items():
            await converges.check(self.world, f"{name} has all its memory", CONVERGENCE_BOUND_S, partial(_whole, user))

    async def _look_at_files(self) -> None:
        """Names and bytes; then, after one more restart of every host, that nobody keeps memory for no file."""
        for number, user in enumerate(self.file_users):
            what = f"the files of user {number} can be looked at"
            await converges.check(self.world, what, CONVERGENCE_BOUND_S, user.look_once_more)
        if self.file_users:
            for host in self.cluster.names:
                self.cluster.machines[host].kill_host()
            await converges.check(self.world, "files and memory are one", FILES_BOUND_S, self._files_are_settled)

    async def _files_are_settled(self) -> bool:
        memories = {host: (memory_id, list(self.cluster.machines[host].objects.by_name)) for host, memory_id in
                    self.cluster.memory_ids.items()}  # fmt: skip
        pairs = self.world.coordination.durable.pairs(FILES_ROOT)
        wrong = namespace_intact.unsettled(pairs, memories)
        if wrong is not None:
            self.world.note("files", wrong)
        return wrong is None and all([await self._answers(host) for host in self.cluster.names])

    def _snapshot_user(self, tenant: Tenant) -> SnapshotUser:
        return SnapshotUser(
            self.world,
            self.cluster,
            tenant.plan.name,
            lambda: (tenant.host, tenant.guest_id) if tenant.guest_id else None,
            (tenant.workload.region, tenant.workload.region_bytes),
            tenant.snapshots,
            self.plan.snapshot_pause_s,
            self._reverts(tenant),
        )

    def _reverts(self, tenant: Tenant) -> RevertExact | None:
        """Not where copies may have what was there before, nor where nobody would make the room that a reversion waits
        for, or bring back what it needs."""
        plan, workload = self.plan, tenant.workload
        rots = any(fault.kind == "bit-rot" for fault in plan.faults)
        if not isinstance(workload, Ledger) or tenant.plan.copies or rots or plan.nvm_bytes < NVM_BYTES:
            return None
        return workload.reverts

    async def _look_once_more(self, tenant: Tenant) -> None:
        """At its copies, while it stands still; then let a last incarnation find what the others left."""
        if tenant.plan.copies:
            await converges.check(
                self.world, f"{tenant.plan.name} stands still", CONVERGENCE_BOUND_S, partial(self._freeze, tenant)
            )
            await converges.check(
                self.world, f"{tenant.plan.name} is copied", CONVERGENCE_BOUND_S, partial(self._is_copied, tenant)
            )
        self.cluster.machines[tenant.host].kill_guest(tenant.guest_id)
        await asyncio.sleep(0.01)
        await converges.check(
            self.world, f"{tenant.plan.name} serves again", CONVERGENCE_BOUND_S, partial(self._serves, tenant)
        )

    async def _freeze(self, tenant: Tenant) -> bool:
        """One that ends just then, or is in the midst of a commit, does not stand still."""
        try:
            return await self.cluster.ask(
                "user", tenant.host, partial(_stand_still, guest_id=tenant.guest_id), ASK_TIMEOUT_S
            )
        except EverramError:
            return False

    async def _is_copied(self, tenant: Tenant) -> bool:
        """Whether every destination holds all of its log; then the copies have to be the same, byte for byte."""
        try:
            stands, guest = await self._freeze(tenant), await self._inspect(tenant)
            if not stands or guest.degraded or any(copy.durable < guest.log.tail for copy in guest.copies):
                return False
            await asyncio.sleep(APPLY_BOUND_S)
            epoch = (await self._inspect(tenant)).epoch
            if epoch != guest.epoch or not await self._freeze(tenant):
                return False
        except EverramError:
            return False
        region = guest.regions[0]
        original = bytes(self.cluster.machines[tenant.host].objects.by_name[region.arena].content)
        for copy in guest.copies:
            wrong = copies_exact.check(
                region.name, original, self.cluster.kept_of(tenant.guest_id, region.name, copy.memory_id)
            )
            if wrong is not None:
                self.world.violate(copies_exact.PROPERTY, f"{tenant.plan.name} on {copy.host}: {wrong}")
        return True

    def _report_failures(self) -> None:
        """A host that ended by an error of ours was refused something; by any other it has a bug."""
        for name, error in self.cluster.failures:
            bugs = [leaf for leaf in leaves(error) if not isinstance(leaf, EverramError)]
            if bugs:
                self.world.violate("no unhandled errors", f"{name}: {type(bugs[0]).__name__}: {bugs[0]}")

    # -- guests -------------------------------------------------------------------------------------------------------

    async def _run_guest(self, tenant: Tenant) -> None:
        """As a user would: tried again until it runs, on the next host where one has no memory for it."""
        plan, workload = tenant.plan, tenant.workload
        kind = pb.MAPPED if workload.kind == "mapped" else pb.LOGGED
        region = pb.RegionSpec(name=workload.region, size_bytes=workload.region_bytes, kind=kind)
        spec = pb.GuestSpec(
            name=plan.name,
            argv=[plan.program.encode()],
            regions=[region],
            restart=pb.ALWAYS,
            copies=plan.copies,
            log_bytes=MIN_CAPACITY_BYTES,
            memory_bytes=self.plan.memory.guest_bytes if self.plan.memory else 0,
        )
        while True:
            try:
                guest = await self.cluster.ask(
                    "user", tenant.host, lambda node: node.ref(HypervisorRef).run(spec, timeout_s=5.0), 5.0
                )
                tenant.guest_id = guest.guest_id
                return
            except AlreadyExists:
                tenant.guest_id = (await self._inspect(tenant)).guest_id
                return
            except ResourceExhausted as error:
                names = self.cluster.names
                tenant.host = names[(names.index(tenant.host) + 1) % len(names)]
                self.world.note("user", f"{plan.name} is to run on {tenant.host}: {error.message}")
                await asyncio.sleep(0.05)
            except EverramError:
                await asyncio.sleep(0.05)

    async def _program(self, seat: Seat) -> int:
        """Every guest's program: attach, check what is there, serve and work."""
        tenant = next(tenant for tenant in self.tenants if tenant.plan.name == seat.launch.name)
        tenant.guest_id = seat.launch.guest_id
        try:
            me = await attach(seat)
            memory_id = self.cluster.memory_ids.get(seat.machine.name, "")
            moved = tenant.memory_id not in ("", memory_id)
            tenant.memory_id = memory_id
            if not tenant.lost:
                tenant.workload.recover(me, moved=moved)
            self._note_state(tenant, me, 0)
            tenant.door.open(seat.domain, Service(tenant.workload, me))
            if tenant.memory is not None:
                self.world.loop.spawn(seat.domain, tenant.memory.live(seat))
            await tenant.workload.work(me)
        except GuestError as error:
            self.world.note(tenant.plan.name, f"ends: {error}")
        return 1

    def committed(self, tenant: Tenant, me: AsyncGuest, lsn: int) -> None:
        host = self._begun[me.guest_id, me.epoch]
        self.frozen.committed(me.guest_id, me.epoch)
        self.incarnations.committed(me.guest_id, me.epoch)
        self.lease.committed(host, me.guest_id)
        tenant.wakes.committed(lsn)
        self._note_state(tenant, me, lsn)

    def _note_state(self, tenant: Tenant, me: AsyncGuest, lsn: int) -> None:
        """Of a region as whoever stands still now has it; `lsn` 0: at its begin."""
        if (state := tenant.workload.state()) is not None:
            tenant.snapshots.history.note(me.epoch, lsn, state)

    def replicated(self, tenant: Tenant, me: AsyncGuest, lsn: int) -> None:
        if not tenant.lost:
            self.held.promised(me.guest_id, lsn)
            self.promises.promised(me.guest_id, me.epoch, lsn)

    def _place(self, index: int) -> tuple[str, str] | None:
        tenant = self.tenants[index]
        return (tenant.host, tenant.guest_id) if tenant.guest_id else None

    def _observe(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        if what != "started":
            return
        self._begun[guest_id, epoch] = host
        for tenant in self.tenants:
            if tenant.guest_id == guest_id:
                tenant.host = host

    def _losing(self, host: str, gone: str) -> None:
        """A machine's memory is about to die, or has: a guest that it alone holds dies with it, and that is nobody's
        fault."""
        for tenant in self.tenants:
            self.held.dies(tenant.guest_id, gone)
            holders = self.cluster.holders(tenant.guest_id) if tenant.guest_id else []
            living = set(self.cluster.memory_ids.values()) - {gone}
            if (not holders and tenant.host == host) or (gone in holders and not living & set(holders)):
                tenant.lost = True
                self.world.note(tenant.plan.name, f"was held by {host} alone")

    # -- clients ------------------------------------------------------------------------------------------------------

    def _client(self, tenant: Tenant, number: int) -> asyncio.Task[None]:
        name = f"client {number} of {tenant.plan.name}"
        stream = self.world.stream(name)

        async def live() -> None:
            while True:
                ask = self._operate(tenant, name)
                await self.answered.watch(f"{name}'s request", ask, ASK_TIMEOUT_S)
                await asyncio.sleep(stream.uniform(0.001, 0.1))

        return self.world.loop.spawn(self.world.loop.domain(name), live())

    async def _operate(self, tenant: Tenant, source: str) -> int:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await tenant.door.call(source, Service.operate)
        except TimeoutError:
            raise Unavailable(f"{tenant.plan.name} did not answer", unknown=True) from None

    async def _probe(self, host: str, node: Node) -> None:
        """Each host asks the others, over the links."""
        others = [other for other in self.cluster.names if other != host]
        stream = self.world.stream(f"probe/{host}/{self.world.loop.current_domain().name}")
        while others:
            other = stream.choice(others)
            payload = stream.randbytes(stream.randrange(200))
            message = host_pb2.EchoMessage(value=stream.getrandbits(32), payload=payload)
            ask = node.ref(HostRef, host=other).echo(message, timeout_s=ASK_TIMEOUT_S)
            answer = await self.answered.watch(f"{host}'s echo from {other}", ask, ASK_TIMEOUT_S)
            if answer is not None and answer != message:
                self.world.violate("answers are the asks' own", f"{host} asked {other} for another echo than it got")
            await asyncio.sleep(stream.uniform(0, 2 * PROBE_EVERY_S))

    # -- what checkers look at ----------------------------------------------------------------------------------------

    def reader(self, tenant: Tenant) -> Node | None:
        """The node whose replicator reads this guest's log; none while its process is stopped."""
        machine = self.cluster.machines[tenant.host]
        if machine.host is None or machine.host.domain.state is not State.RUNNING:
            return None
        return self.cluster.node(tenant.host)

    async def verified(self, tenant: Tenant) -> int | None:
        node = self.reader(tenant)
        if node is None:
            return None
        try:
            request = FollowRequest(guest_id=tenant.guest_id)
            return (await node.ref(ReplicatorRef).positions(request, timeout_s=ASK_TIMEOUT_S)).verified
        except EverramError:
            return None

    async def _inspect(self, tenant: Tenant) -> pb.Guest:
        name = GuestName(guest=tenant.plan.name)
        return await self.cluster.ask(
            "user", tenant.host, lambda node: node.ref(HypervisorRef).inspect(name, timeout_s=2.0), 2.0
        )

    async def _serves(self, tenant: Tenant) -> bool:
        try:
            guest = await self._inspect(tenant)
            whole = not guest.degraded or tenant.plan.copies == 0
            return whole and guest.state == pb.RUNNING and bool(await self._operate(tenant, "user"))
        except EverramError:
            return False

    async def _answers(self, host: str) -> bool:
        try:
            status = await self.cluster.ask(
                "user", host, lambda node: node.ref(HostRef).status(pb.Empty(), timeout_s=2.0), 2.0
            )
            return all(actor.state == "running" for actor in status.actors)
        except EverramError:
            return False


async def _stand_still(node: Node, guest_id: str) -> bool:
    """Whether it stands still between two commits, with all of them in its regions; else it goes on."""
    machine = node.environment.machine
    await machine.freeze(guest_id, FREEZE_REASON)
    processes = [each for each in await machine.guests() if each.guest_id == guest_id and each.pid]
    ring = Ring.open(node.environment.memory.open(log_name(guest_id)).map())
    if any(FREEZE_REASON in each.freeze_reasons for each in processes) and ring.applied == ring.tail:
        return True
    await machine.thaw(guest_id, FREEZE_REASON)
    return False


async def _whole(user: VolatileUser) -> bool:
    return user.seen_whole


async def _idle(user: SnapshotUser) -> bool:
    return not user.is_reverting


async def attach(seat: Seat) -> AsyncGuest:
    """As `everram.runtime.guest.attach` in a real process. Raises GuestError and what the machine refuses with."""
    launch, memory = seat.launch, await seat.attach()
    regions: list[Region] = []
    for label, (grant, mapping) in memory.items():
        if grant.role in ("logged", "mapped"):
            saved = memory.get(f"{label}/old")
            old = OldPages.open(saved[1]) if saved is not None else None
            regions.append(Region(label, len(regions), grant.role, mapping, grant.size_bytes, old=old))
    core = GuestCore(
        guest_id=launch.guest_id,
        name=launch.name,
        epoch=launch.epoch,
        ring=Ring.open(memory["log"][1]),
        regions=regions,
        now_ns=seat.machine.clock.now_ns,
        ring_bell=seat.ring,
        recovered=launch.epoch > 1,
        port=launch.port,
    )
    return AsyncGuest(core, _pauses_s)


def _pauses_s() -> Iterator[float]:
    """Of a guest that waits for its copies: longer and longer, so that few of the simulation's steps are looks."""
    pause_s = FIRST_LOOK_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LAST_LOOK_S)
