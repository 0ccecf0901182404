"""Leases, deadlines and the directory's guest records: the plain decisions, then the actor under virtual time with a
machine and a VMemFS of its own, and the embedded coordination store behind a simulated network."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from everram.actors.availability.actor import Availability
from everram.actors.availability.lease_keeper import CLOCK_DRIFT_MAX, RETRY_S, Grant, LeaseKeeper, Renew, Wait
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.availability_pb2 import GuestKey, Registration
from everram.runtime.contracts.common_pb2 import Empty, Guest, GuestSpec
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSActor
from everram.runtime.contracts.vmemfs_pb2 import Generation, HostRecord, StoredGuests
from everram.runtime.coordination.api import Put, Range, prefix
from everram.runtime.coordination.directory import LEADER, decode, encode, guest_key, host_key, name_key, serving_key
from everram.runtime.coordination.resolver import HostResolver
from everram.runtime.environment import Environment, GuestProcess
from everram.runtime.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.node import Node
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.coordination import PLACE, CoordinationServer
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric
from everram.runtime.simulation.objects import Objects, SimulatedMemory

TTL_S = 2.0
SECOND_NS = 1_000_000_000
SERVING_NS = int(2 * SECOND_NS * (1 - CLOCK_DRIFT_MAX))
"""Of a lease: what is left of it when two clocks differ as much as they may."""

# -- the lease keeper


def test_the_deadline_counts_from_the_sending() -> None:
    keeper = LeaseKeeper(TTL_S)
    assert keeper.next_step(0) == Grant()
    keeper.granted(7, sent_ns=100, ttl_s=TTL_S)
    assert keeper.deadline_ns == 100 + SERVING_NS
    assert keeper.next_step(100) == Wait(100 + int(0.3 * SECOND_NS))
    assert keeper.next_step(100 + int(0.3 * SECOND_NS)) == Renew(7)
    keeper.renewed(sent_ns=SECOND_NS, ttl_s=60.0)
    assert keeper.deadline_ns == SECOND_NS + SERVING_NS, "a longer grant does not lengthen what guests are promised"


def test_a_renewal_never_moves_the_deadline_back() -> None:
    keeper = LeaseKeeper(TTL_S)
    keeper.granted(7, sent_ns=SECOND_NS, ttl_s=TTL_S)
    keeper.renewed(sent_ns=SECOND_NS + 1, ttl_s=0.5)
    assert keeper.deadline_ns == SECOND_NS + SERVING_NS


def test_failures_back_off_and_leave_the_deadline() -> None:
    keeper = LeaseKeeper(TTL_S)
    keeper.granted(7, sent_ns=0, ttl_s=TTL_S)
    now_ns = SECOND_NS
    for pause_s in (*RETRY_S, RETRY_S[-1]):
        keeper.failed(now_ns)
        assert keeper.next_step(now_ns) == Wait(now_ns + int(pause_s * SECOND_NS))
        now_ns += int(pause_s * SECOND_NS)
        assert keeper.next_step(now_ns) == Renew(7)
    assert keeper.deadline_ns == SERVING_NS


def test_a_lost_lease_waits_for_the_published_deadline_before_the_next() -> None:
    keeper = LeaseKeeper(TTL_S)
    keeper.granted(7, sent_ns=0, ttl_s=TTL_S)
    keeper.gone()
    assert not keeper.serves(1)
    assert keeper.next_step(1) == Wait(SERVING_NS)
    assert keeper.next_step(SERVING_NS) == Grant()


def test_a_successor_honours_what_its_predecessor_published() -> None:
    keeper = LeaseKeeper(TTL_S, lease=7, published_ns=SECOND_NS)
    assert keeper.next_step(0) == Renew(7)
    keeper.gone()
    assert keeper.next_step(0) == Wait(SECOND_NS)


def test_a_new_incarnation_needs_time_left() -> None:
    keeper = LeaseKeeper(TTL_S)
    keeper.granted(7, sent_ns=0, ttl_s=TTL_S)
    assert keeper.serves(int(1.4 * SECOND_NS))
    assert not keeper.serves(int(1.6 * SECOND_NS))


# -- the actor


class FakeChannel:
    address = "shm:/run/channel"


class FakeMachine:
    """What the machine is told, and the guests it says it runs."""

    def __init__(self) -> None:
        self.deadline_ns = 0
        self.processes: list[GuestProcess] = []

    async def lease(self, deadline_ns: int) -> None:
        self.deadline_ns = max(self.deadline_ns, deadline_ns)

    async def guests(self) -> list[GuestProcess]:
        return self.processes


class FakeVMemFS(VMemFSActor):
    """Keeps the host's record; `records` outlives hosts as the machine's memory does."""

    def __init__(self, records: list[HostRecord]) -> None:
        self._records = records

    def get_host(self, request: Empty) -> HostRecord:
        kept = HostRecord()
        kept.CopyFrom(self._records[-1])
        return kept

    def put_host(self, request: HostRecord) -> Generation:
        self._records.append(request)
        return Generation(generation=len(self._records))

    def put_guest(self, request: Guest) -> Generation:
        raise NotImplementedError

    def guests(self, request: Empty) -> StoredGuests:
        return StoredGuests()

    remove_guest = status = put_guest  # type: ignore[assignment]


class Host:
    """A machine and the hosts that live on it one after the other."""

    def __init__(self, rig: Rig, name: str, host_id: str = "") -> None:
        self.rig = rig
        self.machine = FakeMachine()
        self.memory = SimulatedMemory(Objects(1 << 30))
        self.records = [HostRecord(memory_id=f"memory of {name}")]
        self.config = HostConfig(
            cluster="test", cluster_id="c", host=name, host_id=host_id or f"id of {name}", socket=f"/run/{name}.sock",
            state_dir="/state", coordination="unix:/c.sock", memory_bytes=1 << 30, nvm_bytes=1 << 30,
        )  # fmt: skip
        self.node: Node | None = None

    async def start(self) -> AvailabilityRef:
        unused = cast(Any, None)
        environment = Environment(
            clock=SimulatedClock(self.rig.loop), entropy=unused, disk=unused, memory=self.memory,
            machine=cast(Any, self.machine), network=unused, channel=cast(Any, FakeChannel()),
            coordination=self.rig.server.client(self.config.host), logs=unused, doorbell=unused,
        )  # fmt: skip
        self.node = Node(environment, self.config.host)
        self.node.add(lambda: FakeVMemFS(self.records))
        self.node.add(lambda: Availability(self.config), after=(VMEMFS,))
        await self.node.start()
        return self.node.ref(AvailabilityRef)

    async def stop(self) -> None:
        if self.node is not None:
            node, self.node = self.node, None
            await node.stop()

    async def ring(self, guest_id: str) -> Ring:
        size_bytes = Ring.total_bytes(MIN_CAPACITY_BYTES)
        memory = await self.memory.create(f"log.{guest_id}", size_bytes)
        return Ring.format(memory.map(), guest_id=guest_id, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)


class Rig:
    def __init__(self, seed: int = 1) -> None:
        seeds = Seeds(seed)
        self.loop = SimulationLoop(seeds.stream("loop"))
        self.fabric = Fabric(self.loop, seeds.stream("network"))
        self.server = CoordinationServer(self.loop, self.fabric, seeds.stream("coordination"))
        self.server.start()
        self.hosts: list[Host] = []
        self.observer = self.server.client("observer")

    def host(self, name: str = "h1", host_id: str = "") -> Host:
        self.hosts.append(Host(self, name, host_id))
        return self.hosts[-1]

    def run(self, script: Callable[[], Awaitable[None]]) -> None:
        async def scenario() -> None:
            try:
                await script()
            finally:
                for host in self.hosts:
                    await host.stop()

        self.loop.run_until_complete(scenario())

    async def read(self, key: bytes) -> dict[str, Any]:
        _, found = await self.observer.range(Range(key))
        return decode(found[0].value) if found else {}

    async def keys(self) -> list[bytes]:
        return [kv.key for kv in (await self.observer.range(prefix(b"everram/")))[1]]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 (virtual time: nothing is wasted, and nothing is hidden)
            await asyncio.sleep(0.01)

    async def held(self, availability: AvailabilityRef) -> None:
        while not (await availability.status(Empty())).held:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.01)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.abandon()


def incarnation(guest_id: str = "0000000000000001", epoch: int = 1, name: str = "bank") -> Registration:
    spec = GuestSpec(name=name, publish_port=7000)
    return Registration(guest=Guest(guest_id=guest_id, name=name, epoch=epoch, port=30000 + epoch, spec=spec))


G1, G2 = "0000000000000001", "0000000000000002"


def test_a_host_enters_the_directory_under_its_lease_and_leaves_with_it(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        await host.start()
        await asyncio.sleep(5)
        entry = await rig.read(host_key("h1"))
        assert entry == {
            "host_id": "id of h1", "memory_id": "memory of h1", "address": "unix:/run/h1.sock",
            "channel": "shm:/run/channel", "memory_free_bytes": 1 << 30,
        }  # fmt: skip
        resolver = HostResolver(rig.observer)
        found = await resolver.resolve("h1")
        assert (found.address, found.channel) == ("unix:/run/h1.sock", "shm:/run/channel")
        await host.stop()
        await asyncio.sleep(TTL_S + 0.5)
        assert await rig.keys() == []
        with pytest.raises(NotFound):
            await resolver.resolve("h1")

    rig.run(script)


def test_the_last_known_address_serves_while_coordination_is_away(rig: Rig) -> None:
    async def script() -> None:
        await rig.host().start()
        await asyncio.sleep(1)
        resolver = HostResolver(rig.observer)
        address = await resolver.resolve("h1")
        rig.server.kill()
        assert await resolver.resolve("h1") == address
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await resolver.resolve("h2")

    rig.run(script)


def test_each_renewal_reaches_the_machine_and_every_serving_guest(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        rings = [await host.ring(G1), await host.ring(G2)]
        await availability.register(incarnation(G1, name="a"))
        assert rings[0].lease_deadline_ns > rig.loop.now_ns, "before the guest runs"
        assert rings[1].lease_deadline_ns == 0
        await availability.register(incarnation(G2, name="b"))
        for _ in range(20):
            await asyncio.sleep(0.5)
            for ring in rings:
                left_s = (ring.lease_deadline_ns - rig.loop.now_ns) / SECOND_NS
                assert TTL_S - 0.4 < left_s <= TTL_S
            assert host.machine.deadline_ns == rings[0].lease_deadline_ns
        status = await availability.status(Empty())
        assert status.held
        assert status.failures == 0
        assert status.renewals >= 30

    rig.run(script)


def test_registering_writes_the_record_the_name_and_who_serves(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        await host.ring(G1)
        await availability.register(incarnation())
        assert await rig.read(guest_key(G1)) == {
            "name": "bank", "host": "h1", "memory_id": "memory of h1", "epoch": 1, "state": "running",
            "publish_port": 7000, "copies": 0, "required": [], "destinations": [],
        }  # fmt: skip
        assert await rig.read(name_key("bank")) == {"guest_id": G1}
        assert await rig.read(serving_key(G1)) == {"host": "h1", "epoch": 1, "port": 30001}
        await availability.register(incarnation())  # the answer may have been lost: asking again is no error
        await availability.register(incarnation(epoch=2))
        assert (await rig.read(serving_key(G1)))["epoch"] == 2
        with pytest.raises(FailedPrecondition, match="fenced"):
            await availability.register(incarnation(epoch=1))

    rig.run(script)


def test_members_of_a_record_that_a_newer_version_wrote_are_kept(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        await host.ring(G1)
        await rig.observer.put(
            Put(guest_key(G1), encode({"host": "h1", "memory_id": "memory of h1", "epoch": 3, "new": 7}))
        )
        await availability.register(incarnation(epoch=4))
        assert (await rig.read(guest_key(G1)))["new"] == 7

    rig.run(script)


def test_a_name_belongs_to_one_guest_until_it_is_removed(rig: Rig) -> None:
    async def script() -> None:
        one, two = rig.host("h1"), rig.host("h2")
        first, second = await one.start(), await two.start()
        await one.ring(G1)
        ring = await two.ring(G2)
        await first.register(incarnation(G1))
        with pytest.raises(AlreadyExists, match="everram rm bank"):
            await second.register(incarnation(G2))
        assert ring.lease_deadline_ns == 0, "a refused guest never serves"
        await second.forget(GuestKey(guest_id=G1, epoch=1))
        assert guest_key(G1) in await rig.keys(), "only its own host removes a guest"
        await first.forget(GuestKey(guest_id=G1, epoch=1))
        assert await rig.keys() == [host_key("h1"), host_key("h2"), LEADER]
        await first.forget(GuestKey(guest_id=G1, epoch=1))
        await second.register(incarnation(G2))

    rig.run(script)


def test_giving_back_ends_serving_at_once_and_only_that_epoch(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation(epoch=2))
        await availability.give_back(GuestKey(guest_id=G1, epoch=1))
        assert (await rig.read(serving_key(G1)))["epoch"] == 2, "an older incarnation has nothing to give"
        await availability.give_back(GuestKey(guest_id=G1, epoch=2))
        assert serving_key(G1) not in await rig.keys()
        assert (await rig.read(guest_key(G1)))["state"] == "stopped"
        deadline_ns = ring.lease_deadline_ns
        await asyncio.sleep(1)
        assert ring.lease_deadline_ns == deadline_ns, "its word is no longer renewed"
        await availability.give_back(GuestKey(guest_id=G1, epoch=2))

    rig.run(script)


def test_another_host_serves_only_after_the_lease_is_given_back_or_over(rig: Rig) -> None:
    async def script() -> None:
        one, two = rig.host("h1"), rig.host("h2")
        first, second = await one.start(), await two.start()
        ring = await one.ring(G1)
        await two.ring(G1)
        await first.register(incarnation(epoch=1))
        with pytest.raises(FailedPrecondition, match="h1's since epoch 1"):
            await second.register(incarnation(epoch=2))
        assert (await rig.read(serving_key(G1)))["host"] == "h1"
        await rig.observer.put(
            Put(guest_key(G1), encode({"host": "h2", "memory_id": "memory of h2", "epoch": 1, "state": "chosen"}))
        )
        with pytest.raises(DeadlineExceeded):
            await second.register(incarnation(epoch=2), timeout_s=5.0)
        rig.fabric.cut("h1", PLACE)
        await second.register(incarnation(epoch=2), timeout_s=10.0)
        assert ring.lease_deadline_ns <= rig.loop.now_ns, "the cut-off guest's deadline had passed"
        rig.fabric.heal()
        with pytest.raises(FailedPrecondition, match="fenced"):
            await first.register(incarnation(epoch=1), timeout_s=10.0)
        with pytest.raises(FailedPrecondition, match="fenced"):
            await first.register(incarnation(epoch=3), timeout_s=10.0)

    rig.run(script)


def test_a_guest_that_begins_again_does_not_count_as_stopped(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        await host.ring(G1)
        await availability.register(incarnation())
        await availability.give_back(GuestKey(guest_id=G1, epoch=1, again=True))
        assert serving_key(G1) not in await rig.keys()
        assert (await rig.read(guest_key(G1)))["state"] == "running"

    rig.run(script)


def test_the_directory_is_told_how_much_memory_is_free(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        await host.start()
        await asyncio.sleep(1)
        await host.memory.create("big", 1 << 29)
        await asyncio.sleep(3)
        entry = await rig.read(host_key("h1"))
        assert entry["memory_free_bytes"] == 1 << 29
        revision = (await rig.observer.range(Range(host_key("h1"))))[1][0].mod_revision
        await host.memory.create("small", 1 << 20)
        await asyncio.sleep(5)
        assert (await rig.observer.range(Range(host_key("h1"))))[1][0].mod_revision == revision, (
            "small steps are silent"
        )

    rig.run(script)


def test_a_named_choice_of_an_image_goes_on_though_its_memory_is_new(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        host.config = dataclasses.replace(host.config, open_image="opened")
        availability = await host.start()
        await host.ring(G1)
        record = {"host": "h1", "memory_id": "older", "epoch": 3, "state": "running"}
        await rig.observer.put(Put(guest_key(G1), encode(record)))
        await availability.register(incarnation(epoch=4))
        assert (await rig.read(guest_key(G1)))["memory_id"] == "memory of h1"
        await rig.observer.put(Put(guest_key(G1), encode(record | {"epoch": 5, "required": ["m2"]})))
        with pytest.raises(FailedPrecondition, match="fenced"):
            await availability.register(incarnation(epoch=6))

    rig.run(script)


def test_a_cut_off_host_lets_its_deadline_pass_then_takes_a_new_lease(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation())
        lease = (await availability.status(Empty())).lease_id
        rig.fabric.cut("h1", PLACE)
        await asyncio.sleep(TTL_S + 0.1)
        assert not (await availability.status(Empty())).held
        assert ring.lease_deadline_ns < rig.loop.now_ns
        deadline_ns = ring.lease_deadline_ns
        await asyncio.sleep(2)
        rig.fabric.heal()
        await rig.held(availability)
        assert (await availability.status(Empty())).lease_id != lease
        assert ring.lease_deadline_ns == deadline_ns, "nobody goes on under a lease that it lost"
        await availability.register(incarnation(epoch=2))
        assert ring.lease_deadline_ns > rig.loop.now_ns

    rig.run(script)


def test_a_lease_that_was_revoked_is_outwaited_before_the_next(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation())
        lease = (await availability.status(Empty())).lease_id
        published_ns = ring.lease_deadline_ns
        await rig.observer.lease_revoke(lease)
        await rig.until(lambda: host.records[-1].lease_id != lease)
        assert rig.loop.now_ns >= published_ns
        assert host.machine.deadline_ns >= published_ns

    rig.run(script)


def test_a_restarted_host_goes_on_under_the_unexpired_lease(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation())
        lease = (await availability.status(Empty())).lease_id
        host.machine.processes = [GuestProcess(G1, 1, pid=100)]
        await host.stop()
        await asyncio.sleep(0.5)
        again = await host.start()
        await rig.until(lambda: ring.lease_deadline_ns > rig.loop.now_ns + int(1.6 * SECOND_NS))
        assert (await again.status(Empty())).lease_id == lease
        assert (await rig.read(serving_key(G1)))["epoch"] == 1, "it never stopped serving"
        await again.register(incarnation())

    rig.run(script)


def test_a_restart_of_coordination_ends_nothing(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation())
        lease = (await availability.status(Empty())).lease_id
        for _ in range(3):
            rig.server.kill()
            await asyncio.sleep(0.4)
            rig.server.start()
            await rig.until(lambda: ring.lease_deadline_ns > rig.loop.now_ns + int(1.7 * SECOND_NS))
        status = await availability.status(Empty())
        assert status.lease_id == lease

    rig.run(script)


def test_registering_waits_for_coordination(rig: Rig) -> None:
    async def script() -> None:
        rig.server.kill()
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        with pytest.raises(DeadlineExceeded):
            await availability.register(incarnation(), timeout_s=3.0)
        assert ring.lease_deadline_ns == 0
        rig.server.start()
        await availability.register(incarnation(epoch=2), timeout_s=5.0)

    rig.run(script)


def test_two_hosts_of_one_name_do_not_take_each_others_place(rig: Rig) -> None:
    async def script() -> None:
        await rig.host("h1").start()
        await asyncio.sleep(1)
        await rig.host("h1", host_id="an impostor").start()
        await asyncio.sleep(5)
        assert (await rig.read(host_key("h1")))["host_id"] == "id of h1"

    rig.run(script)


def test_a_damaged_ring_does_not_serve_and_does_not_stop_the_others(rig: Rig) -> None:
    async def script() -> None:
        host = rig.host()
        availability = await host.start()
        ring = await host.ring(G1)
        await availability.register(incarnation())
        await host.stop()
        await host.memory.create(f"log.{G2}", Ring.total_bytes(MIN_CAPACITY_BYTES))
        host.machine.processes = [GuestProcess(G2, 1, pid=101), GuestProcess(G1, 1, pid=100)]
        availability = await host.start()
        with pytest.raises(FailedPrecondition, match="cannot serve"):
            await availability.register(incarnation(G2, name="broken"))
        await asyncio.sleep(TTL_S)
        assert ring.lease_deadline_ns > rig.loop.now_ns

    rig.run(script)
