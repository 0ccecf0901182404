"""Elections, failovers, moves and duties by the real availability actors of several hosts, under virtual time, with the
embedded coordination store behind a simulated network. Hypervisors and replicators only note what they are asked and
keep what their machine's memory would keep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.availability import failover
from everram.actors.availability.actor import Availability
from everram.actors.availability.election import Term
from everram.actors.availability.leader import GRACE_S
from everram.runtime.contracts.availability_contract import AVAILABILITY, AvailabilityRef
from everram.runtime.contracts.availability_pb2 import AimRequest, GuestKey, HandToRequest, Members, Registration
from everram.runtime.contracts.common_pb2 import Empty, Guest, GuestSpec
from everram.runtime.contracts.hypervisor_contract import HypervisorActor
from everram.runtime.contracts.hypervisor_pb2 import DemoteRequest, TakeOverRequest
from everram.runtime.contracts.replicator_contract import REPLICATOR, ReplicatorActor
from everram.runtime.contracts.replicator_pb2 import (
    Copy,
    CopyList,
    GuestCopy,
    PromiseReply,
    PromiseRequest,
    ShipRequest,
)
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSActor
from everram.runtime.contracts.vmemfs_pb2 import Generation, HostRecord, StoredGuests
from everram.runtime.coordination.api import Delete, Put, Range, prefix
from everram.runtime.coordination.directory import LEADER, decode, encode, guest_key, machine_key, serving_key
from everram.runtime.coordination.records import GuestRecord, Place
from everram.runtime.environment import Environment
from everram.runtime.errors import FailedPrecondition, NotFound, Unavailable
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.method import Method
from everram.runtime.node import Node
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.coordination import PLACE, CoordinationServer
from everram.runtime.simulation.endpoint import Endpoint
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric
from everram.runtime.simulation.objects import Objects, SimulatedMemory

TTL_S = 2.0
G = "0000000000000001"
FAST_S = 0.1
"""A failover with proof of death: a handful of commits of at most 3 ms each, and asks of under 1 ms."""


class Machine:
    """One machine and the memory in it; `host` is the process that lives on it now."""

    def __init__(self, rig: Rig, name: str, life: int) -> None:
        self.rig, self.name = rig, name
        self.memory_id = f"memory {life} of {name}"
        self.memory = SimulatedMemory(Objects(1 << 30))
        self.records = [HostRecord(memory_id=self.memory_id)]
        self.guests: dict[str, Guest] = {}
        self.copies: dict[str, Copy] = {}  # by copy_id
        self.promised: dict[str, int] = {}
        self.told: list[tuple[str, Any]] = []  # what the hypervisor and the replicator were asked
        self.takes_over = True  # whether a take-over succeeds
        self.answers = True  # whether promises are answered
        self.slow_copies = False  # whether the replicator takes long to say what it has
        self.promises_as = self.memory_id  # the memory that its promises name
        self.on_promise: Callable[[], None] = lambda: None
        self.config = HostConfig(
            cluster="test", cluster_id="c", host=name, host_id=f"id of {name}", socket=f"/run/{name}.sock",
            state_dir="/state", coordination="unix:/c.sock", memory_bytes=1 << 30, nvm_bytes=1 << 30,
        )  # fmt: skip
        self.starts = 0

    async def lease(self, deadline_ns: int) -> None: ...

    async def guests_running(self) -> list[Any]:
        return []

    def holds(self, lsn: int, *, epoch: int = 1, complete: bool = True, copy_id: str = "c1") -> None:
        """Keep a copy of G."""
        self.copies[copy_id] = Copy(guest=Guest(guest_id=G), copy_id=copy_id, complete=complete, epoch=epoch, lsn=lsn)

    async def ring(self) -> None:
        if f"log.{G}" not in self.memory.names():
            created = await self.memory.create(f"log.{G}", Ring.total_bytes(MIN_CAPACITY_BYTES))
            Ring.format(created.map(), guest_id=G, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)

    async def start(self) -> None:
        """A host begins on this machine, in a process of its own."""
        self.starts += 1
        self.domain = self.rig.loop.domain(f"{self.memory_id}.{self.starts}")
        await self.rig.loop.spawn(self.domain, self._start())

    async def _start(self) -> None:
        unused = cast(Any, None)
        environment = Environment(
            clock=SimulatedClock(self.rig.loop), entropy=unused, disk=unused, memory=self.memory,
            machine=cast(Any, _MachinePort(self)), network=unused,
            channel=cast(Any, SimpleNamespace(address="")), coordination=self.rig.server.client(self.name),
            logs=unused, doorbell=unused,
        )  # fmt: skip
        node = Node(environment, self.name)
        node.use_links(cast(Any, Wires(self.rig, self.name)))
        node.add(lambda: FakeVMemFS(self))
        node.add(lambda: FakeReplicator(self))
        node.add(lambda: Availability(self.config), after=(VMEMFS, REPLICATOR))
        node.add(lambda: FakeHypervisor(self), after=(AVAILABILITY,))
        await node.start()
        self.rig.endpoints[self.name].open(self.domain, node)

    def kill_host(self) -> None:
        self.rig.loop.kill(self.domain)

    async def kill(self, *, proof: bool = True) -> None:
        """The machine dies; with `proof` the supervisor says so, otherwise its lease has to run out."""
        self.kill_host()
        if proof:
            await self.rig.observer.lease_revoke(self.records[-1].lease_id)
            await self.rig.observer.put(Put(machine_key(self.name), encode({"state": "dead"})))

    def asked(self, kind: str) -> list[Any]:
        return [request for what, request in self.told if what == kind]


class _MachinePort:
    def __init__(self, machine: Machine) -> None:
        self.lease, self.guests = machine.lease, machine.guests_running


class FakeVMemFS(VMemFSActor):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def get_host(self, request: Empty) -> HostRecord:
        kept = HostRecord()
        kept.CopyFrom(self._machine.records[-1])
        return kept

    def put_host(self, request: HostRecord) -> Generation:
        self._machine.records.append(request)
        return Generation()

    def guests(self, request: Empty) -> StoredGuests:
        return StoredGuests(guests=self._machine.guests.values())


class FakeHypervisor(HypervisorActor):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def take_over(self, request: TakeOverRequest) -> Awaitable[Guest]:
        return self.context.later(self._take_over(request))

    async def _take_over(self, request: TakeOverRequest) -> Guest:
        self._machine.told.append(("take over", request))
        if not self._machine.takes_over:
            raise Unavailable("it does not start")
        return await begin(self._machine, self.context.ref(AvailabilityRef))

    def demote(self, request: DemoteRequest) -> Empty:
        self._machine.told.append(("demote", request))
        self._machine.guests.pop(request.guest_id, None)
        return Empty()


async def begin(machine: Machine, availability: AvailabilityRef, copies: int = 1) -> Guest:
    """What a hypervisor does for a new incarnation."""
    await machine.ring()
    reached = await availability.reached(GuestKey(guest_id=G))
    guest = Guest(guest_id=G, name="bank", epoch=reached.epoch + 1, port=30000)
    guest.spec.CopyFrom(GuestSpec(name="bank", copies=copies))
    machine.guests[G] = guest
    machine.copies.clear()
    await availability.register(Registration(guest=guest), timeout_s=20.0)
    return guest


class FakeReplicator(ReplicatorActor):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def promise(self, request: PromiseRequest) -> PromiseReply:
        machine = self._machine
        machine.told.append(("promise", request))
        machine.on_promise()
        if not machine.answers:
            raise Unavailable("its copies cannot be read now")
        machine.promised[request.guest_id] = max(machine.promised.get(request.guest_id, 0), request.epoch)
        best = max((c for c in machine.copies.values() if c.complete), key=lambda c: (c.epoch, c.lsn), default=Copy())
        return PromiseReply(memory_id=machine.promises_as, complete=best.complete, epoch=best.epoch, lsn=best.lsn)

    def ship(self, request: ShipRequest) -> Empty:
        self._machine.told.append(("ship", request))
        return Empty()

    def release(self, request: GuestCopy) -> Empty:
        self._machine.told.append(("release", request))
        self._machine.copies.pop(request.copy_id, None)
        return Empty()

    def copies(self, request: Empty) -> Awaitable[CopyList]:
        return self.context.later(self._copies())

    async def _copies(self) -> CopyList:
        if self._machine.slow_copies:
            await asyncio.sleep(0.9)
        return CopyList(copies=self._machine.copies.values())


class Wires:
    """Links of one host: an ask travels over the simulated network to the node that lives at the other end."""

    def __init__(self, rig: Rig, source: str) -> None:
        self._rig, self._source = rig, source

    def start(self) -> None: ...

    async def close(self) -> None: ...

    def carrier(self, host: str) -> Wire:
        return Wire(self._rig, self._source, host)


class Wire:
    def __init__(self, rig: Rig, source: str, host: str) -> None:
        self._rig, self._source, self._host = rig, source, host

    def tell(self, method: Any, request: Any) -> None:
        raise NotImplementedError

    stream = tell

    async def ask(self, method: Method[Any, Any], request: Any, timeout_s: float) -> Any:
        async def act(node: Node) -> Any:
            route = node.route(method.path)
            assert route is not None
            return await route[0].ask(method, request, timeout_s)

        try:
            async with asyncio.timeout(timeout_s):
                return await self._rig.endpoints[self._host].call(self._source, act)
        except TimeoutError:
            raise Unavailable(f"{self._host} did not answer") from None


class Rig:
    """Machines h1, h2, ... and who watches over one guest's record."""

    def __init__(self, seed: int = 1) -> None:
        seeds = Seeds(seed)
        self.loop = SimulationLoop(seeds.stream("loop"))
        self.fabric = Fabric(self.loop, seeds.stream("network"))
        self.server = CoordinationServer(self.loop, self.fabric, seeds.stream("coordination"))
        self.server.start()
        self.observer = self.server.client("observer")
        self.endpoints: dict[str, Endpoint[Node]] = {}
        self.machines: dict[str, Machine] = {}
        self.lives = 0
        self.guarded = False  # whether there is a guest whose history is checked
        self.records: list[dict[str, Any]] = []  # every version of the guest's record, by `watch`

    async def machine(self, name: str) -> Machine:
        """A machine with empty memory, and its host; under a name that died before: another life of it."""
        self.lives += 1
        self.endpoints.setdefault(name, Endpoint(self.fabric, name))
        machine = self.machines[name] = Machine(self, name, self.lives)
        await machine.start()
        return machine

    async def cluster(self, count: int, leader: str = "h1") -> list[Machine]:
        """`leader` leads, because it was first."""
        names = [leader, *(f"h{n}" for n in range(1, count + 1) if f"h{n}" != leader)]
        for name in names:
            await self.machine(name)
            await self.led()
        assert (await self.read(LEADER))["host"] == leader
        await self.until_async(lambda: self.count_hosts(count))
        return [self.machines[f"h{n}"] for n in range(1, count + 1)]

    async def guest(self, primary: Machine, members: list[Machine], *, copies: int | None = None) -> None:
        """A guest in sync with its members, placed by the leader."""
        self.guarded = True
        available = self.availability(primary)
        await self.ask(primary, lambda a: begin(primary, a, len(members) if copies is None else copies))
        for lsn, member in enumerate(members):
            await available("aim", AimRequest(guest_id=G, host=member.name))
            member.holds(100 + lsn)
        required = [member.memory_id for member in members]
        if required:
            await available("set_members", Members(guest_id=G, epoch=1, required=required))
        await available("aim", AimRequest(guest_id=G))
        await asyncio.sleep(0.3)

    async def ask(self, machine: Machine, act: Callable[[AvailabilityRef], Awaitable[Any]]) -> Any:
        return await self.endpoints[machine.name].call("client", lambda node: act(node.ref(AvailabilityRef)))

    def availability(self, machine: Machine) -> Callable[[str, Any], Awaitable[Any]]:
        return lambda name, request: self.ask(machine, lambda a: getattr(a, name)(request))

    async def leader(self, machine: Machine) -> str:
        return str((await self.ask(machine, lambda a: a.status(Empty()))).leader)

    def run(self, script: Callable[[], Awaitable[None]]) -> None:
        async def scenario() -> None:
            watcher = self.loop.spawn(self.loop.domain("observer"), self._watch())
            await script()
            watcher.cancel()
            self.check()

        self.loop.run_until_complete(scenario())

    async def _watch(self) -> None:
        async for batch in self.observer.watch(Range(guest_key(G)), 1):
            self.records += [decode(event.kv.value) for event in batch.events if not event.deleted]

    def check(self) -> None:
        """What holds of every history of a record."""
        assert self.records or not self.guarded
        for before, after in zip(self.records, self.records[1:], strict=False):
            assert after["epoch"] >= before["epoch"], "an epoch never falls"
            if after["memory_id"] != before["memory_id"]:
                assert before["state"] == "failing-over", "an owner changes only by a choice"
                assert after["state"] == "chosen"
                previous = before.get("previous", {}).get("memory_id")
                assert after["memory_id"] in [*before["required"], previous], "and only to one that has everything"
            if len(after.get("required", [])) < len(before.get("required", [])):
                assert after["state"] == "chosen" or after["required"], "a required set never becomes empty otherwise"

    async def read(self, key: bytes) -> dict[str, Any]:
        _, found = await self.observer.range(Range(key))
        return decode(found[0].value) if found else {}

    async def count_hosts(self, count: int) -> bool:
        return len((await self.observer.range(prefix(b"everram/hosts/")))[1]) == count

    async def led(self) -> None:
        await self.until_async(lambda: self.read(LEADER))

    async def until_async(self, condition: Callable[[], Awaitable[Any]], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not await condition():  # noqa: ASYNC110 (virtual time: nothing is wasted)
                await asyncio.sleep(0.005)

    async def until(self, timeout_s: float = 30.0, **members: Any) -> float:
        """Until the guest's record has these members; gives back how long it took."""
        began = self.loop.time()

        async def there() -> bool:
            found = await self.read(guest_key(G))
            return all(found.get(name) == value for name, value in members.items())

        await self.until_async(there, timeout_s)
        return self.loop.time() - began


@pytest.fixture(params=[1, 2, 3])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.loop.abandon()


# -- elections


def test_one_host_leads_and_another_after_it(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3)
        await asyncio.sleep(0.5)
        assert {await rig.leader(h) for h in (h1, h2, h3)} == {"h1"}
        await h1.kill()
        await asyncio.sleep(0.1)
        successor = await rig.leader(h2)
        assert successor == await rig.leader(h3) != "h1"

    rig.run(script)


def test_a_restarted_host_goes_on_leading_under_its_lease(rig: Rig) -> None:
    async def script() -> None:
        h1, _h2 = await rig.cluster(2)
        _, before = await rig.observer.range(Range(LEADER))
        h1.kill_host()
        await asyncio.sleep(0.3)
        await h1.start()
        await asyncio.sleep(3)
        _, after = await rig.observer.range(Range(LEADER))
        assert after[0].create_revision == before[0].create_revision

    rig.run(script)


def test_a_leader_that_renewed_late_goes_on(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        # Its renewals arrive and their answers do not: it may not decide, and nobody else leads.
        rig.fabric.cut(PLACE, "h3")
        await asyncio.sleep(TTL_S + 0.5)
        assert (await rig.read(LEADER))["host"] == "h3"
        await h1.kill()
        await asyncio.sleep(0.5)
        assert (await rig.read(guest_key(G)))["epoch"] == 1
        rig.fabric.heal()
        await rig.until(state="running", host="h2")
        assert h3.asked("demote") == []

    rig.run(script)


def test_coordination_may_end_and_begin_again(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        for _ in range(3):
            rig.server.kill()
            await asyncio.sleep(0.4)
            rig.server.start()
            await asyncio.sleep(1.0)
        assert (await rig.read(guest_key(G)))["epoch"] == 1
        rig.server.kill()
        h1.kill_host()
        await asyncio.sleep(0.3)
        rig.server.start()
        await rig.until(state="running", host="h2")

    rig.run(script)


# -- the death of a primary's machine


def test_a_proved_death_is_failed_over_at_once(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h3_revision = (await rig.read(guest_key(G)))["epoch"]
        await h1.kill()
        took_s = await rig.until(state="running", host="h2")
        assert took_s < FAST_S
        record = await rig.read(guest_key(G))
        assert (record["epoch"], record["start"], record["required"]) == (h3_revision + 2, 100, [])
        assert "previous" not in record
        assert h2.promised[G] == 2
        await rig.until(destinations=[{"host": "h3", "memory_id": h3.memory_id}])
        await asyncio.sleep(0.1)
        assert [d.host for d in h2.asked("ship")[-1].destinations] == ["h3"]

    rig.run(script)


def test_the_leaders_own_machine_may_be_the_primarys(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h1")
        await rig.guest(h1, [h2])
        await h1.kill()
        assert await rig.until(state="running", host="h2") < FAST_S

    rig.run(script)


def test_without_proof_the_lease_is_waited_for(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        await h1.kill(proof=False)
        assert TTL_S - 0.5 < await rig.until(state="running", host="h2") < TTL_S + 0.6

    rig.run(script)


def test_the_leaders_own_lease_ends_with_the_primarys(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h1")
        await rig.guest(h1, [h2])
        await h1.kill(proof=False)
        assert await rig.until(state="running", host="h2") < TTL_S + 0.6, "all have seen it served: no grace"

    rig.run(script)


def test_the_furthest_member_is_chosen_and_the_others_stay_required(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, _h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        await h1.kill()
        await rig.until(state="running", host="h3", required=[h2.memory_id])
        assert h2.promised[G] == h3.promised[G] == 2
        assert (await rig.read(guest_key(G)))["start"] == 101

    rig.run(script)


def test_a_copy_that_is_being_built_is_not_chosen(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2, h3])
        h3.holds(900, complete=False)
        await h1.kill()
        await rig.until(state="running", host="h2")

    rig.run(script)


def test_a_member_that_does_not_answer_is_not_waited_for_long(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, _h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        rig.fabric.cut("h4", "h3")
        await h1.kill()
        assert 0.9 < await rig.until(state="running", host="h2") < 1.3

    rig.run(script)


def test_a_promise_in_another_memorys_name_does_not_count(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, _h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        h3.promises_as = "a memory that came after it"
        await h1.kill()
        await rig.until(state="running", host="h2")

    rig.run(script)


def test_a_slow_look_at_this_hosts_copies_delays_no_take_over(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.slow_copies = True
        await asyncio.sleep(4.0)  # into the middle of its looks
        await h1.kill()
        assert await rig.until(state="running", host="h2") < FAST_S

    rig.run(script)


def test_no_member_answers_until_one_does(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.answers = False
        await h1.kill()
        await asyncio.sleep(3)
        assert (await rig.read(guest_key(G)))["state"] == "failing-over"
        assert (await rig.read(guest_key(G)))["epoch"] == 2, "raised once"
        h2.answers = True
        assert await rig.until(state="running", host="h2") < 1.0

    rig.run(script)


def test_a_member_that_is_down_is_waited_for_and_asked_when_it_is_back(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.kill_host()
        await asyncio.sleep(TTL_S + 1)
        await h1.kill()
        await asyncio.sleep(2)
        assert (await rig.read(guest_key(G)))["state"] == "failing-over"
        await h2.start()
        await rig.until(state="running", host="h2")

    rig.run(script)


def test_a_member_that_came_back_empty_is_never_asked(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2], copies=1)
        rig.fabric.cut("h1", PLACE)  # the primary replaces nobody meanwhile
        await h2.kill()
        empty = await rig.machine("h2")
        empty.holds(900)
        await asyncio.sleep(TTL_S + 3)
        assert empty.asked("promise") == []
        assert (await rig.read(guest_key(G)))["state"] == "failing-over"
        rig.fabric.heal()
        await rig.until(state="chosen", host="h1")

    rig.run(script)


def test_the_primarys_own_memory_may_come_back_first(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.answers = False
        await h1.kill(proof=False)
        await rig.until(state="failing-over")
        await h1.start()
        await rig.until(state="running", host="h1")
        assert h1.asked("take over")[-1].epoch == 2
        assert h1.asked("demote") == []

    rig.run(script)


def test_a_chosen_host_that_dies_before_it_serves(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, _h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        h3.takes_over = False
        await h1.kill()
        await rig.until(state="chosen", host="h3")
        await asyncio.sleep(1)
        assert len(h3.asked("take over")) >= 3, "told again and again"
        await h3.kill()
        await rig.until(state="running", host="h2")

    rig.run(script)


def test_the_last_owner_has_it_back_if_the_chosen_one_dies_with_the_only_copy(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.takes_over = False
        await h1.kill(proof=False)
        await rig.until(state="chosen", host="h2")
        await h1.start()
        await asyncio.sleep(1)
        assert h1.asked("demote") == [], "nobody has registered since"
        await h2.kill()
        await rig.until(state="running", host="h1")

    rig.run(script)


def test_a_restarted_chosen_host_is_told_again(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.takes_over = False
        await h1.kill()
        await rig.until(state="chosen", host="h2")
        h2.kill_host()
        h2.takes_over = True
        await h2.start()
        await rig.until(state="running", host="h2")

    rig.run(script)


def test_a_host_that_restarts_within_its_lease_keeps_its_guests(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h1.kill_host()
        await asyncio.sleep(0.5)
        await h1.start()
        await asyncio.sleep(5)
        record = await rig.read(guest_key(G))
        assert (record["state"], record["epoch"], record["host"]) == ("running", 1, "h1")
        assert h1.asked("ship")[-1].guest.epoch == 1

    rig.run(script)


def test_a_stopped_guest_and_one_that_begins_again_are_left_alone(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        await rig.availability(h1)("give_back", GuestKey(guest_id=G, epoch=1, again=True))
        await asyncio.sleep(1)
        assert (await rig.read(guest_key(G)))["epoch"] == 1, "its host begins it again"
        await rig.ask(h1, lambda a: begin(h1, a))
        await rig.availability(h1)("give_back", GuestKey(guest_id=G, epoch=2))
        await h1.kill()
        await asyncio.sleep(10)
        assert (await rig.read(guest_key(G)))["state"] == "stopped"

    rig.run(script)


def test_a_guest_that_dies_between_two_incarnations_is_failed_over(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        await rig.availability(h1)("give_back", GuestKey(guest_id=G, epoch=1, again=True))
        await h1.kill()
        assert await rig.until(state="running", host="h2") < FAST_S

    rig.run(script)


def test_a_guest_without_copies_is_lost_only_with_its_machine(rig: Rig) -> None:
    async def script() -> None:
        h1, _h2 = await rig.cluster(2, leader="h2")
        await rig.guest(h1, [])
        rig.fabric.cut("h1", PLACE)
        await asyncio.sleep(10)
        assert (await rig.read(guest_key(G)))["state"] == "running", "it may come back"
        rig.fabric.heal()
        await asyncio.sleep(3)
        await h1.kill()
        await rig.until(state="lost", epoch=1)

    rig.run(script)


def test_a_machine_that_came_back_empty_has_lost_its_guests(rig: Rig) -> None:
    async def script() -> None:
        h1, _h2 = await rig.cluster(2, leader="h2")
        await rig.guest(h1, [])
        await h1.kill(proof=False)
        await rig.machine("h1")
        await rig.until(state="lost")

    rig.run(script)


def test_an_earlier_death_of_a_machine_proves_nothing_about_its_next_life(rig: Rig) -> None:
    async def script() -> None:
        h1, _h2 = await rig.cluster(2, leader="h2")
        await h1.kill()
        h1 = await rig.machine("h1")  # and nobody has taken "dead" back
        await rig.until_async(lambda: rig.count_hosts(2))
        await rig.guest(h1, [])
        rig.fabric.cut("h1", PLACE)
        await asyncio.sleep(10)
        assert (await rig.read(guest_key(G)))["state"] == "running"

    rig.run(script)


# -- leaders that die or come too late


@pytest.mark.parametrize("step", ["failing-over", "promise", "chosen"])
def test_a_leader_dies_half_way(rig: Rig, step: str) -> None:
    async def script() -> None:
        h1, h2, h3, h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        done = asyncio.Event()
        if step == "promise":
            h2.on_promise = done.set
        await h1.kill()
        if step == "promise":
            await done.wait()
        else:
            await rig.until_async(lambda: _reached(rig, step))
        await h4.kill()
        await rig.until(state="running", host="h3", required=[h2.memory_id])
        assert len([r for r in rig.records if r["state"] == "chosen"]) >= 1

    rig.run(script)


async def _reached(rig: Rig, state: str) -> bool:
    return any(record["state"] in (state, "running") and record["epoch"] > 1 for record in rig.records)


def test_a_leader_that_was_stopped_decides_nothing_when_it_continues(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        # The old leader stops in the middle of asking; its successor finishes; then it goes on where it was.
        h2.on_promise = lambda: rig.loop.freeze(h4.domain)
        await h1.kill()
        await rig.until_async(lambda: _running_elsewhere(rig))
        h2.on_promise = lambda: None
        before = await rig.read(guest_key(G))
        assert before["host"] == "h3"
        rig.loop.thaw(h4.domain)
        await asyncio.sleep(3)
        after = await rig.read(guest_key(G))
        assert (after["epoch"], after["host"], after["state"]) == (before["epoch"], "h3", "running")
        assert len({record["memory_id"] for record in rig.records}) == 2, "one choice"
        assert await rig.leader(h4) == (await rig.read(LEADER))["host"] != "h4"

    rig.run(script)


def test_a_choice_of_an_ended_term_is_not_made(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, h4 = await rig.cluster(4, leader="h4")
        await rig.guest(h1, [h2, h3])
        asked = asyncio.Event()

        def stop_the_leader() -> None:
            rig.loop.freeze(h4.domain)  # with the promises on their way to it
            asked.set()

        h3.on_promise = stop_the_leader
        await h1.kill()
        await asked.wait()
        _, found = await rig.observer.range(Range(LEADER))
        ended = Term(found[0].create_revision)
        await asyncio.sleep(0.1)
        h2.answers = h3.answers = False
        await asyncio.sleep(TTL_S + 1)
        _, found = await rig.observer.range(Range(guest_key(G)))
        record = GuestRecord.read(decode(found[0].value))
        assert (record.state, record.epoch) == ("failing-over", 2)
        rig.loop.thaw(h4.domain)
        await asyncio.sleep(3)
        assert (await rig.observer.range(Range(guest_key(G))))[1] == found
        chosen = failover.appointed(record, Place("h3", h3.memory_id), 101)
        plan = failover.plan(G, found[0].mod_revision, chosen, ended, unserved=True)
        assert not (await rig.observer.txn(plan.compare, plan.success)).succeeded
        h2.answers = h3.answers = True
        await rig.until(state="running", host="h3")

    rig.run(script)


async def _running_elsewhere(rig: Rig) -> bool:
    record = await rig.read(guest_key(G))
    return bool(record["state"] == "running" and record["host"] != "h1")


def test_a_leader_that_is_cut_off_from_coordination_is_replaced(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        rig.fabric.cut("h3", PLACE)
        await asyncio.sleep(0.2)
        await h1.kill()
        await rig.until(state="running", host="h2")
        assert (await rig.read(LEADER))["host"] == "h2"

    rig.run(script)


def test_a_new_leader_that_never_saw_the_primary_gives_it_time(rig: Rig) -> None:
    async def script() -> None:
        h1, h2 = await rig.cluster(2)
        await rig.guest(h1, [h2])
        for machine in (h1, h2):
            machine.kill_host()
        await asyncio.sleep(TTL_S + 1)
        assert await rig.read(serving_key(G)) == {}
        await h2.start()
        await rig.led()
        await asyncio.sleep(TTL_S + GRACE_S - 0.5)
        assert (await rig.read(guest_key(G)))["epoch"] == 1
        await rig.until(2.0, state="running", host="h2")

    rig.run(script)


def test_a_whole_cluster_that_starts_again_fails_nothing_over(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = machines = await rig.cluster(3)
        await rig.guest(h1, [h2])
        before = await rig.read(guest_key(G))
        destinations = before["destinations"]
        for machine in machines:
            machine.kill_host()
        await asyncio.sleep(TTL_S + 1)
        for machine in (h1, h3, h2):
            await machine.start()
            await asyncio.sleep(1)
        await rig.ask(h1, lambda a: begin(h1, a))
        await asyncio.sleep(10)
        record = await rig.read(guest_key(G))
        assert (record["state"], record["host"], record["epoch"]) == ("running", "h1", 2)
        assert rig.records[-1]["destinations"] == destinations
        assert all(r["destinations"] in ([], destinations) for r in rig.records[rig.records.index(before) :]), (
            "h2 is waited for"
        )

    rig.run(script)


# -- fencing


def test_a_returned_primary_is_demoted_once_and_becomes_a_destination(rig: Rig) -> None:
    async def script() -> None:
        h1, h2 = await rig.cluster(2, leader="h2")
        await rig.guest(h1, [h2])
        rig.fabric.cut("h1", PLACE)
        await rig.until(state="running", host="h2")
        with pytest.raises(FailedPrecondition):
            await rig.availability(h2)("set_members", Members(guest_id=G, epoch=1, required=[h1.memory_id]))
        assert h1.asked("demote") == []
        rig.fabric.heal()
        await rig.until(destinations=[{"host": "h1", "memory_id": h1.memory_id}])
        await asyncio.sleep(5)
        (request,) = h1.asked("demote")
        assert (request.guest_id, request.epoch, request.start, request.host) == (G, 3, 100, "h2")
        with pytest.raises(FailedPrecondition, match="fenced"):
            await rig.ask(h1, lambda a: begin(h1, a))

    rig.run(script)


def test_a_record_that_cannot_be_read_stops_nobody(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        for broken in (b"", b"[]", b'{"epoch": "many"}', b'{"destinations": 5}'):
            await rig.observer.put(Put(guest_key(f"broken {len(broken)}"), broken))
        await rig.observer.put(Put(b"everram/hosts/h9", b"nonsense"))
        await rig.observer.put(Put(b"everram/machines/h9", b"nonsense"))
        h2.copies["of a broken one"] = Copy(guest=Guest(guest_id="broken 2"), copy_id="of a broken one", complete=True)
        await rig.guest(h1, [h2])
        await h1.kill()
        await rig.until_async(lambda: _running_elsewhere(rig))
        assert h2.asked("release") == [], "nothing follows from what cannot be read"

    rig.run(script)


# -- placement, shipping, releasing


def test_a_guest_gets_the_copies_that_it_asked_for_and_its_log_is_shipped(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3)
        await rig.ask(h1, lambda a: begin(h1, a, copies=2))
        named = [{"host": h.name, "memory_id": h.memory_id} for h in (h2, h3)]
        await rig.until(destinations=named)
        await asyncio.sleep(0.1)
        request = h1.asked("ship")[-1]
        assert [(d.host, d.required) for d in request.destinations] == [("h2", False), ("h3", False)]
        await rig.availability(h1)("set_members", Members(guest_id=G, epoch=1, required=[h2.memory_id]))
        await asyncio.sleep(0.1)
        assert [d.required for d in h1.asked("ship")[-1].destinations] == [True, False]
        assert list(h1.asked("ship")[-1].required) == [h2.memory_id]
        count = len(h1.asked("ship"))
        await asyncio.sleep(30)
        assert 5 <= len(h1.asked("ship")) - count <= 12, "told again now and then: the replicator may have restarted"
        await h2.kill()
        await rig.until(destinations=[named[1]], required=[h2.memory_id])
        empty = await rig.machine("h2")
        await rig.until(destinations=[named[1], {"host": "h2", "memory_id": empty.memory_id}])

    rig.run(script)


def test_a_destination_that_is_replaced_releases_its_copy(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3, _h4 = await rig.cluster(4)
        await rig.guest(h1, [h2])
        rig.fabric.cut("h2", PLACE)
        await rig.until(destinations=[{"host": "h3", "memory_id": h3.memory_id}])
        await asyncio.sleep(5)
        assert h2.asked("release") == [], "still required"
        h3.holds(200)
        await rig.availability(h1)("set_members", Members(guest_id=G, epoch=1, required=[h3.memory_id]))
        await asyncio.sleep(2)
        assert h2.asked("release") == [], "it cannot know yet"
        rig.fabric.heal()
        await rig.until_async(lambda: _true(h2.asked("release")))
        assert h2.copies == {}
        await rig.observer.txn((), [Delete(guest_key(G)), Delete(serving_key(G))])
        await rig.until_async(lambda: _true(h3.asked("release")))

    rig.run(script)


async def _true(value: object) -> bool:
    return bool(value)


def test_nothing_is_released_on_an_old_view(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h3])
        # h2 sees nothing of what follows: it becomes a member.
        rig.fabric.cut(PLACE, "h2")
        record = await rig.read(guest_key(G))
        record["destinations"].append({"host": "h2", "memory_id": h2.memory_id})
        record["required"].append(h2.memory_id)
        await rig.observer.put(Put(guest_key(G), encode(record)))
        h2.holds(500)
        await asyncio.sleep(8)
        rig.fabric.heal()
        await asyncio.sleep(8)
        assert h2.asked("release") == []

    rig.run(script)


# -- moves


def test_a_guest_is_moved(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        ask = rig.availability(h1)
        with pytest.raises(NotFound):
            await ask("aim", AimRequest(guest_id=G, host="h9"))
        await ask("aim", AimRequest(guest_id=G, host="h3"))
        await asyncio.sleep(3)
        named = [{"host": h.name, "memory_id": h.memory_id} for h in (h2, h3)]
        assert (await rig.read(guest_key(G)))["destinations"] == named
        with pytest.raises(FailedPrecondition, match="in sync"):
            await ask("hand_to", HandToRequest(guest_id=G, epoch=1, host="h3"))
        h3.holds(100)
        await ask("set_members", Members(guest_id=G, epoch=1, required=[h2.memory_id, h3.memory_id]))
        await ask("hand_to", HandToRequest(guest_id=G, epoch=1, host="h3"))
        assert await rig.until(state="running", host="h3", required=[h2.memory_id]) < FAST_S
        record = await rig.read(guest_key(G))
        assert "prefer" not in record and "aim" not in record
        await rig.until_async(lambda: _true(h1.asked("demote")))
        await asyncio.sleep(3)
        assert (await rig.read(guest_key(G)))["destinations"] == named[:1]

    rig.run(script)


def test_a_move_whose_target_dies_goes_on_somewhere(rig: Rig) -> None:
    async def script() -> None:
        h1, h2, _h3 = await rig.cluster(3, leader="h3")
        await rig.guest(h1, [h2])
        h2.answers = False
        await rig.availability(h1)("hand_to", HandToRequest(guest_id=G, epoch=1, host="h2"))
        await rig.until(state="running", host="h1")
        assert h1.asked("demote") == []

    rig.run(script)
