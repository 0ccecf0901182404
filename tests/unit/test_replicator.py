"""Two replicators over a channel and links of this test: sessions, required sets and copies, with everything that can
come between two steps."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest

from everram.actors.nvm_device import deletion
from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.nvm_device.guest_log import GuestLog
from everram.actors.nvm_device.keeper import SnapshotKeeper
from everram.actors.replicator import copy_keeper, shipper
from everram.actors.replicator.actor import Replicator
from everram.actors.replicator.copy_keeper import continues
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.channel.contract import Access, ChannelError, Status
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import replicator_pb2 as rp
from everram.runtime.contracts.availability_contract import AvailabilityActor
from everram.runtime.contracts.availability_pb2 import Members
from everram.runtime.contracts.nvm_device_contract import NVM_DEVICE, NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import (
    AdoptRequest,
    CopyOperation,
    CreateRegionsRequest,
    LogOperation,
    RegionFilter,
)
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSRef
from everram.runtime.coordination.api import KeyValue, Range
from everram.runtime.coordination.directory import encode
from everram.runtime.environment import Environment
from everram.runtime.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.formats.config import HostConfig
from everram.runtime.formats.vmemfs import MEMORY_NAME
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import LogFull
from everram.runtime.guest.region import Region
from everram.runtime.log.record import RecordType
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.guard import PageGuard
from everram.runtime.node import Node
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

MIB = 1 << 20
CLUSTER_ID = "c1"
GUEST_ID = "guest"
PATIENCE_S = 10.0


class Clock:
    def now_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * 1e9)

    def wall_ns(self) -> int:
        return 0


class Bell:
    async def wait(self, timeout_s: float) -> bool:
        await asyncio.sleep(min(timeout_s, 0.001))
        return False

    def close(self) -> None:
        pass


class Directory:
    """Where every host is, and the epoch of every guest."""

    epoch = 1

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        host = op.key.decode().rpartition("/")[2]
        value = encode({"host_id": host, "address": host, "channel": host, "epoch": self.epoch})
        return 1, [KeyValue(op.key, value, 1, 1, 1, 0)]


class Registered:
    def __init__(self, wire: Wire, memory: str, offset: int, length: int, access: Access) -> None:
        self.wire, self.memory, self.offset, self.length, self.access = wire, memory, offset, length, access
        self.rkey = wire.net.next()
        wire.net.registered[self.rkey] = self

    def deregister(self) -> None:
        self.wire.net.registered.pop(self.rkey, None)


class Pair:
    def __init__(self, wire: Wire, peer: str) -> None:
        self._wire, self.peer = wire, peer
        self._broken = asyncio.Event()
        wire.net.pairs.append(self)

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        await self.write_with_immediate(rkey, offset, data, 0)

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        await self._wire.net.on_write(self._wire.host, self.peer, len(data))
        if self._broken.is_set():
            raise ChannelError(Status.WR_FLUSH_ERR, "broken")
        found = self._wire.net.registered.get(rkey)
        if found is None or offset + len(data) > found.length or found.wire.host != self.peer:
            raise ChannelError(Status.REM_ACCESS_ERR, "no such region")
        found.wire.memory.open(found.memory).write(found.offset + offset, data)
        if handler := found.wire.handlers.get(immediate):
            handler()

    async def wait_broken(self) -> None:
        await self._broken.wait()

    def close(self) -> None:
        self._broken.set()


class Wire:
    """The channel of one host."""

    def __init__(self, net: Net, host: str, memory: SimulatedMemory) -> None:
        self.net, self.host, self.memory = net, host, memory
        self.address = host
        self.handlers: dict[int, Callable[[], None]] = {}
        self.registrations_left = 1000

    def register(self, memory: str, offset: int, length: int, access: Access) -> Registered:
        self.memory.open(memory)
        self.registrations_left -= 1
        if self.registrations_left < 0:
            raise ResourceExhausted("no more regions can be registered")
        return Registered(self, memory, offset, length, access)

    def receive(self, handler: Callable[[], None]) -> int:
        immediate = self.net.next()
        self.handlers[immediate] = handler
        return immediate

    def unreceive(self, immediate: int) -> None:
        self.handlers.pop(immediate, None)

    async def connect(self, host: str, address: str, lane: str = "") -> Pair:
        return Pair(self, host)


class Net:
    """What connects the hosts."""

    def __init__(self) -> None:
        self.registered: dict[int, Registered] = {}
        self.pairs: list[Pair] = []
        self.nodes: dict[str, Node] = {}
        self._last = 0

    def next(self) -> int:
        self._last += 1
        return self._last

    async def on_write(self, source: str, target: str, length: int) -> None:
        """Before each one-sided write; tests replace it."""
        await asyncio.sleep(0)

    def cut(self) -> None:
        for pair in self.pairs:
            pair.close()
        self.pairs.clear()


class Links:
    """Carriers to other hosts: straight into their mailboxes."""

    def __init__(self, net: Net, host: str) -> None:
        self._net, self._host = net, host

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def statuses(self) -> list[Any]:
        return []

    def carrier(self, host: str) -> Any:
        net = self._net

        class Carrier:
            def tell(self, method: Any, request: Any) -> None:
                raise NotImplementedError

            async def ask(self, method: Any, request: Any, timeout_s: float) -> Any:
                node = net.nodes.get(host)
                route = node.route(method.path) if node is not None else None
                if route is None:
                    raise Unavailable(f"{host} is down")
                return await route[0].ask(method, request, timeout_s)

            stream = tell

        return Carrier()


class Committed(AvailabilityActor):
    """The required set as a directory has it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def set_members(self, request: Members) -> pb.Empty:
        await self._host.on_set_members(list(request.required))
        self._host.members.append(list(request.required))
        await self._host.after_set_members()
        return pb.Empty()


class NoGuests:
    """The part of a machine that knows guests' processes."""

    async def guests(self) -> list[Any]:
        return []


class FullDisk:
    """Of a host, as far as its snapshots' old blocks would go there."""

    async def remove(self, name: str) -> None:
        """There is nothing."""

    async def open(self, name: str) -> Any:
        raise ResourceExhausted("the disk is full")


class Host:
    """A machine's memory, and the host that serves it now."""

    def __init__(self, net: Net, name: str, *, nvm_bytes: int = 64 * MIB) -> None:
        self.net, self.name, self.nvm_bytes = net, name, nvm_bytes
        self.objects = Objects(1 << 30)
        self.memory = SimulatedMemory(self.objects)
        self.lives = 0
        self.directory = Directory()
        self.members: list[list[str]] = []
        """What was committed, in order."""

    async def on_set_members(self, required: list[str]) -> None:
        """Before a set is committed; tests replace it."""

    async def after_set_members(self) -> None:
        """After it, before the answer."""

    async def start(self) -> None:
        self.lives += 1
        entropy = SimulatedEntropy(Seeds(self.lives).stream(f"entropy/{self.name}"))
        self.wire = Wire(self.net, self.name, self.memory)
        nothing, guard = cast("Any", None), PageGuard()
        environment = Environment(
            Clock(), entropy, cast("Any", FullDisk()), self.memory, cast("Any", NoGuests()), nothing,
            cast("Any", self.wire), cast("Any", self.directory), nothing, lambda guest_id: Bell(),
        )  # fmt: skip
        config = HostConfig("test", CLUSTER_ID, self.name, self.name, "", "", "", 1 << 30, self.nvm_bytes)
        node = self.node = Node(environment, self.name, check_messages=True)
        node.use_links(Links(self.net, self.name))
        node.add(VMemFS)
        node.add(lambda: NvmDevice(self.nvm_bytes, self.nvm_bytes, guard=guard), after=(VMEMFS,))
        node.add(lambda: Replicator(config, guard), after=(NVM_DEVICE,))
        node.add(lambda: Committed(self))
        await node.start()
        self.net.nodes[self.name] = node
        self.memory_id = (await self.vmemfs.get_host(pb.Empty())).memory_id

    async def stop(self) -> None:
        """As after a death: memory stays, registrations go."""
        self.net.nodes.pop(self.name, None)
        await self.node.stop()
        for registered in list(self.net.registered.values()):
            if registered.wire is self.wire:
                registered.deregister()

    async def restart(self) -> None:
        await self.stop()
        self.net.cut()
        await self.start()

    @property
    def replicator(self) -> ReplicatorRef:
        return self.node.ref(ReplicatorRef)

    @property
    def vmemfs(self) -> VMemFSRef:
        return self.node.ref(VMemFSRef)

    @property
    def nvm(self) -> NvmDeviceRef:
        return self.node.ref(NvmDeviceRef)

    async def copies(self) -> list[rp.Copy]:
        return list((await self.replicator.copies(pb.Empty())).copies)

    def target(self) -> rp.Destination:
        return rp.Destination(host=self.name, memory_id=self.memory_id)

    def registered(self) -> int:
        return sum(each.wire is self.wire for each in self.net.registered.values())


class Guest:
    """A guest of a host, whose program is this test."""

    def __init__(self, host: Host, record: pb.Guest) -> None:
        self.host, self.record = host, record

    @staticmethod
    async def run(host: Host, *, copies: int = 1, region_bytes: int = 64 * 1024) -> Guest:
        spec = pb.GuestSpec(name="test", copies=copies, log_bytes=MIN_CAPACITY_BYTES)
        regions = [
            pb.RegionSpec(name="r", size_bytes=region_bytes, kind=pb.LOGGED),
            pb.RegionSpec(name="scratch", size_bytes=4096, kind=pb.MAPPED),
        ]
        made = await host.nvm.create_regions(
            CreateRegionsRequest(guest_id=GUEST_ID, regions=regions, log_bytes=MIN_CAPACITY_BYTES)
        )
        guest = Guest(host, pb.Guest(guest_id=GUEST_ID, name="test", spec=spec, regions=made.regions))
        await guest.begin()
        return guest

    async def begin(self) -> None:
        self.ring = Ring.open(self.host.memory.open(f"log.{GUEST_ID}").map())
        before, self.record = self.record, pb.Guest()
        self.record.CopyFrom(before)  # what was sent may not change afterwards
        self.record.previous_epoch = self.ring.epoch
        self.record.epoch = self.ring.epoch + 1
        self.ring.set_copies(self.record.spec.copies)
        self.ring.begin_epoch(self.record.epoch)
        await self.host.vmemfs.put_guest(self.record)
        await self.host.replicator.follow(rp.FollowRequest(guest_id=GUEST_ID, log=f"log.{GUEST_ID}"))
        arenas = [self.host.memory.open(region.arena).map() for region in self.record.regions]
        self.core = GuestCore(
            guest_id=GUEST_ID,
            name="test",
            epoch=self.record.epoch,
            ring=self.ring,
            regions=[
                Region("r", 0, "logged", arenas[0], arenas[0].size_bytes),
                Region("scratch", 1, "mapped", arenas[1], 4096),
            ],
            now_ns=lambda: 0,
        )

    async def ship(self, *targets: Host, required: list[str] | None = None) -> None:
        last = self.host.members[-1] if self.host.members else []
        await self.host.replicator.ship(
            rp.ShipRequest(
                guest=self.record,
                destinations=[target.target() for target in targets],
                required=last if required is None else required,
            )
        )

    def commit(self, value: int, length: int = 64, offset: int = 0) -> int:
        return self.core.commit([(0, offset, bytes([value & 255]) * length)])

    async def positions(self) -> pb.LogPositions:
        return await self.host.replicator.positions(rp.FollowRequest(guest_id=GUEST_ID))

    async def state(self) -> str:
        return next(iter((await self.positions()).copies)).state

    async def in_sync(self) -> None:
        async def synced() -> bool:
            positions = await self.positions()
            return bool(positions.copies) and all(c.state == "in-sync" and c.required for c in positions.copies)

        await until(synced, "in sync")

    async def replicated(self) -> int:
        lsn = self.core.lsn
        await until(lambda: self.core.replicated(lsn), "replicated")
        return lsn

    def content(self) -> bytes:
        return self.host.memory.open(self.record.regions[0].arena).read(0, self.record.regions[0].size_bytes)


async def content_of(host: Host) -> bytes:
    (copy,) = await host.copies()
    return host.memory.open(copy.guest.regions[0].arena).read(0, copy.guest.regions[0].size_bytes)


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = condition()
                if found if isinstance(found, bool) else await found:
                    return
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S} s: {what}") from None


@pytest.fixture
async def hosts() -> AsyncIterator[list[Host]]:
    net = Net()
    hosts = [Host(net, name) for name in ("h1", "h2", "h3")]
    for host in hosts:
        await host.start()
    yield hosts
    for host in hosts:
        if host.name in net.nodes:
            await host.stop()
    assert net.registered == {}, "every registration is given back"
    assert all(host.wire.handlers == {} for host in hosts)


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_copy_is_built_while_the_guest_writes(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    for number in range(100):
        guest.commit(number, 1000, 1000 * (number % 60))
    await guest.ship(target)
    for number in range(500):
        guest.commit(number, 1000, 1000 * (number * 7 % 60))
        await asyncio.sleep(0)
    await guest.in_sync()
    await guest.replicated()
    (copy,) = await target.copies()
    assert (copy.complete, copy.held) == (True, guest.ring.tail)

    async def same() -> bool:
        return await content_of(target) == guest.content()

    await until(same, "applied")
    assert primary.members == [[], [target.memory_id]] or primary.members == [[target.memory_id]]


async def test_an_empty_required_set_satisfies_nobody(hosts: list[Host]) -> None:
    guest = await Guest.run(hosts[0])
    lsn = guest.commit(1)
    await guest.ship()
    await asyncio.sleep(0.01)
    assert not guest.core.replicated(lsn)


async def test_a_copy_goes_on_where_it_was_after_either_host_died(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    (before,) = await target.copies()
    for host in (target, primary):
        guest.commit(1)
        await host.restart()
        guest.commit(2)
        if host is primary:
            await guest.ship(target)
        await guest.in_sync()
        await guest.replicated()
        (after,) = await target.copies()
        assert after.copy_id == before.copy_id, "not built anew"


async def test_many_sessions_leave_nothing_behind(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    names = set(target.memory.names())
    registered = primary.registered(), target.registered()
    logs = {name for name in names if name.startswith("log.")}
    for number in range(20):
        primary.net.cut()
        guest.commit(number)
        await guest.replicated()
    await guest.in_sync()
    now = set(target.memory.names())
    assert len(now) == len(names)
    assert names - now == logs, "its log region is another, and everything else is the same"
    assert (primary.registered(), target.registered()) == registered
    assert len(target.wire.handlers) == 1


async def test_a_new_epoch_is_a_new_log_region_in_the_same_copy(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    guest.commit(1)
    (before,) = await target.copies()
    await guest.begin()
    guest.commit(2)
    await guest.ship(target)
    await guest.in_sync()
    await guest.replicated()
    (after,) = await target.copies()
    assert after.copy_id == before.copy_id
    assert after.log != before.log
    assert (after.epoch, after.held) == (2, guest.ring.tail)


async def test_regions_that_changed_without_the_log_are_copied_anew_before_anybody_writes(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    guest.commit(1)
    await guest.replicated()
    (before,) = await target.copies()
    primary.memory.open(guest.record.regions[0].arena).write(0, b"reverted")
    await asyncio.sleep(0.1)  # nothing is left to be shipped
    guest.record = copy.deepcopy(guest.record)  # what was sent may not change afterwards
    guest.record.regions_generation += 1
    await guest.begin()
    await guest.ship(target)

    async def anew() -> bool:
        copies = await target.copies()
        return [one.complete for one in copies] == [True] and copies[0].copy_id != before.copy_id

    await until(anew, "another copy")
    assert (await content_of(target)).startswith(b"reverted")


async def test_a_guest_that_writes_faster_than_a_copy_is_opened_still_gets_one(hosts: list[Host]) -> None:
    """Its ring is lapped while the destination is asked; the next session holds it back meanwhile."""
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)

    async def write() -> None:
        number = 0
        while True:
            try:
                for _ in range(100):
                    number += 1
                    guest.commit(number, 2000)
            except LogFull:
                pass
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    try:
        await guest.in_sync()
    finally:
        writer.cancel()


# -- the required set -------------------------------------------------------------------------------------------------


async def test_a_complete_copy_that_lags_is_no_member_before_it_has_caught_up(hosts: list[Host]) -> None:
    """What others were waited for would be missing in the only member left."""
    primary, target, other = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    await guest.ship(other)  # replaces it; its copy stays there for now
    await guest.in_sync()
    assert primary.members[-1] == [other.memory_id]
    guest.commit(1)
    lsn = await guest.replicated()
    released = asyncio.Event()

    async def hold_back(source: str, destination: str, length: int) -> None:
        if (source, destination) == (primary.name, target.name):
            await released.wait()

    primary.net.on_write = hold_back  # type: ignore[method-assign]
    await guest.ship(target)  # now the other one is to be replaced

    async def lags() -> bool:
        return await guest.state() == "catching-up"

    await until(lags, "its copy goes on, and lags")
    for _ in range(50):
        await asyncio.sleep(0)
    assert primary.members[-1] == [other.memory_id]
    assert await lags()
    released.set()
    await guest.in_sync()
    assert primary.members[-1] == [target.memory_id]
    (copy,) = await target.copies()
    assert copy.held >= lsn


async def test_the_bit_is_set_before_a_larger_set_is_committed_and_cleared_after_a_smaller_one(
    hosts: list[Host],
) -> None:
    primary, target, other = hosts
    guest = await Guest.run(primary)
    seen: list[tuple[list[str], set[str]]] = []

    async def look(required: list[str]) -> None:
        slots = (guest.ring.destination(slot) for slot in guest.ring.required())
        seen.append((required, {slot.memory_id for slot in slots if slot is not None}))

    primary.on_set_members = look  # type: ignore[method-assign]
    await guest.ship(target)
    await guest.in_sync()
    await guest.ship(target, other)
    await guest.in_sync()
    await guest.ship(other)
    await guest.in_sync()
    await until(lambda: len(guest.ring.required()) == 1, "the slot is cleared")
    before: set[str] = set()
    for required, bits in seen:
        if before:
            assert set(required) | before <= bits, "whoever is in the old set or the new one is waited for"
        else:
            assert not bits, "nobody may count on a set that is not committed, and there was none before"
        before = set(required)


async def test_a_change_that_may_have_happened_is_made_certain_before_a_slot_is_cleared(hosts: list[Host]) -> None:
    """The directory has the larger set, its answer was lost, and the new member falls out of sync at once."""
    primary, target, other = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()

    async def lose() -> None:
        if len(primary.members[-1]) == 2:
            primary.after_set_members = Host.after_set_members.__get__(primary)  # type: ignore[method-assign]
            await other.stop()
            primary.net.cut()
            raise Unavailable("the answer was lost", unknown=True)

    primary.after_set_members = lose  # type: ignore[method-assign]
    await guest.ship(target, other)

    async def consistent() -> bool:
        slots = (guest.ring.destination(slot) for slot in guest.ring.required())
        bits = {slot.memory_id for slot in slots if slot is not None}
        assert set(primary.members[-1]) <= bits, "the directory's set is waited for at any time"
        return any(len(members) == 2 for members in primary.members) and len(primary.members[-1]) == 1

    await until(consistent, "the set is what this host knows it to be")
    await guest.replicated()


@pytest.mark.parametrize("error", [Aborted("lost ten races"), Unavailable("down"), FailedPrecondition("fenced")])
async def test_a_refused_change_is_tried_again(hosts: list[Host], error: EverramError) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    failures = [error, error]

    async def fail(required: list[str]) -> None:
        if required and failures:
            raise failures.pop()

    primary.on_set_members = fail  # type: ignore[method-assign]
    await guest.ship(target)
    await until(lambda: len(failures) < 2, "it was tried")
    if isinstance(error, FailedPrecondition):
        await guest.ship(target)  # the next look of the performer
        await until(lambda: not failures, "and again")
        await guest.ship(target)
    await guest.in_sync()
    assert primary.node.statuses()[2].restarts == 0


async def test_no_set_is_committed_while_the_memory_is_saved(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await primary.replicator.quiesce(rp.QuiesceRequest(on=True))
    await guest.ship(target)

    async def synced() -> bool:
        return await guest.state() == "in-sync"

    await until(synced, "in sync")
    await asyncio.sleep(0.01)
    assert [target.memory_id] not in primary.members
    await primary.replicator.quiesce(rp.QuiesceRequest(on=False))
    await guest.in_sync()


async def test_a_member_without_a_host_does_not_hold_the_log_of_a_primarys_successor(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    await target.stop()
    await primary.restart()
    await guest.ship(required=[target.memory_id])
    for number in range(200):
        guest.commit(number, 1000)
        await asyncio.sleep(0)
    assert not guest.core.replicated(guest.core.lsn)


async def test_logs_are_followed_again_after_the_actor_was_started_again(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    await primary.restart()
    await guest.ship(target)
    await guest.in_sync()


# -- copies -----------------------------------------------------------------------------------------------------------


async def promised(host: Host, epoch: int) -> rp.PromiseReply:
    return await host.replicator.promise(rp.PromiseRequest(guest_id=GUEST_ID, epoch=epoch))


async def test_after_a_promise_nothing_of_a_lower_epoch_is_acknowledged(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    guest.commit(1)
    lsn = await guest.replicated()
    reply = await promised(target, 2)
    assert (reply.memory_id, reply.complete, reply.epoch, reply.lsn) == (target.memory_id, True, 1, lsn)
    guest.commit(2)

    async def refused() -> bool:
        return await guest.state() == "unreachable"

    await until(refused, "the old primary is refused")
    assert not guest.core.replicated(guest.core.lsn)
    assert await promised(target, 2) == reply, "asking again changes nothing"
    with pytest.raises(FailedPrecondition, match="later epoch"):
        await promised(target, 1)
    await target.restart()
    assert await promised(target, 2) == reply
    with pytest.raises(FailedPrecondition, match="fenced"):
        await target.replicator.open(request_of(guest, target))
    handed = await target.replicator.hand_over(rp.GuestCopy(guest_id=GUEST_ID))
    assert (handed.epoch, handed.lsn) == (1, lsn)
    (copy,) = await target.copies()
    assert copy.log == ""


def request_of(guest: Guest, target: Host, **changes: Any) -> rp.OpenRequest:
    ring = guest.ring
    request = rp.OpenRequest(
        guest=guest.record,
        cluster_id=CLUSTER_ID,
        source_host=guest.host.name,
        source_memory_id=guest.host.memory_id,
        memory_id=target.memory_id,
        capacity_bytes=ring.capacity_bytes,
        epoch_start=ring.epoch_start,
        freed=ring.freed,
        tail=ring.tail,
        applied=ring.applied,
        ack_rkey=1,
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cluster_id": "another"}, "belongs to cluster c1, not to yours"),
        ({"memory_id": "before"}, "what that held is gone"),
        ({"source_memory_id": "own"}, "would be none"),
    ],
    ids=["another cluster", "another memory", "its own memory"],
)
async def test_who_may_not_open_a_copy_is_told(hosts: list[Host], changes: dict[str, Any], sentence: str) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    if changes.get("source_memory_id") == "own":
        changes = {"source_memory_id": target.memory_id}
    with pytest.raises(FailedPrecondition, match=sentence):
        await target.replicator.open(request_of(guest, target, **changes))
    assert await target.copies() == []


async def test_who_has_the_guest_itself_keeps_no_copy_for_an_earlier_primary(hosts: list[Host]) -> None:
    """The copy that had promised itself has become the guest's memory, and its promise is not forgotten."""
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    assert (await promised(target, 2)).complete
    handed = await target.replicator.hand_over(rp.GuestCopy(guest_id=GUEST_ID))
    adoption = AdoptRequest(guest_id=GUEST_ID, copy_id=handed.copy_id, log_bytes=MIN_CAPACITY_BYTES)
    adoption.log_start, adoption.log_epoch = handed.lsn, handed.epoch
    await target.nvm.adopt_copy(adoption)
    await target.replicator.release(rp.GuestCopy(guest_id=GUEST_ID))
    with pytest.raises(FailedPrecondition, match="fenced: this host has the guest itself, since epoch 1"):
        await target.replicator.open(request_of(guest, target))
    await guest.begin()
    assert (await target.replicator.open(request_of(guest, target))).rebuild, "its next primary may come back to it"


async def test_a_full_destination_is_told_of_and_keeps_what_it_has(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary, region_bytes=40 * MIB)
    await guest.ship(target)
    await guest.in_sync()
    guest.commit(1)
    lsn = await guest.replicated()
    await target.stop()
    primary.net.cut()
    for number in range(300):
        guest.commit(number, 1000)  # beyond what the log holds: it has to be built anew, and there is no room for two
        await asyncio.sleep(0)
    await target.start()

    async def told() -> bool:
        return "free" in await reason(guest)

    await until(told, "it is said why it has no copy")
    (copy,) = await target.copies()
    assert (copy.complete, copy.lsn >= lsn) == (True, True)
    assert (await promised(target, 2)).complete


PAGE_BYTES, CRAMPED_PAGES = 4096, 1024


async def cramped(hosts: list[Host]) -> Guest:
    """A guest whose copy has a snapshot, on a host that has room for half of what that needs and whose disk is full."""
    primary, target, _ = hosts
    await target.stop()
    target.nvm_bytes = 7 * MIB
    await target.start()
    guest = await Guest.run(primary, region_bytes=CRAMPED_PAGES * PAGE_BYTES)
    await guest.ship(target)
    await guest.in_sync()
    await store_everywhere(guest, 1)
    with GuestLog.open(primary.memory, GUEST_ID) as log:
        log.append(RecordType.SNAPSHOT, LogOperation(name="before", regions=["r"], created_ns=1))
        log.publish()
    await until(lambda: snapshots_of(target) == ["before"], "the copy has it, too")
    return guest


async def store_everywhere(guest: Guest, value: int, pages: int = CRAMPED_PAGES) -> None:
    """Each page, all of it replicated."""
    for first in range(0, pages, 64):
        guest.core.commit([(0, page * PAGE_BYTES, bytes([value]) * 8) for page in range(first, first + 64)])
        await guest.replicated()


def keeper_of(host: Host) -> SnapshotKeeper:
    actor = host.node._cells["everram.v1.NvmDevice"]._incarnation.actor  # type: ignore[union-attr]
    return cast("SnapshotKeeper", actor._keeper)


def snapshots_of(host: Host) -> list[str]:
    return [record.name for record in keeper_of(host).snapshots.records.values() if record.name]


async def test_a_copy_without_room_for_what_its_snapshots_need_gives_them_up(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its guest waits neither for a full disk of another host, nor for it when it has to go on there."""
    monkeypatch.setattr(copy_keeper, "ROOM_RETRY_S", 0.01)
    guest = await cramped(hosts)
    await store_everywhere(guest, 2)
    assert (snapshots_of(hosts[1]), await content_of(hosts[1])) == ([], guest.content())
    assert "gives up its snapshots (before): there is no room beside them" in caplog.text


async def test_a_copy_gives_up_its_snapshots_where_its_next_log_has_no_room_beside_them(hosts: list[Host]) -> None:
    """Their removal would come by that log."""
    guest, target = await cramped(hosts), hosts[1]
    await store_everywhere(guest, 2, CRAMPED_PAGES // 4)
    target.nvm_bytes = 5 * MIB
    await target.restart()
    await guest.in_sync()
    assert snapshots_of(target) == []
    guest.commit(3)
    await guest.replicated()


async def test_snapshots_are_not_given_up_while_something_is_moved_which_may_make_room(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor when that is over: by then the copy may be its guest's own memory."""
    monkeypatch.setattr(copy_keeper, "ROOM_RETRY_S", 0.01)
    guest, target = await cramped(hosts), hosts[1]
    filling = asyncio.create_task(store_everywhere(guest, 2))
    async with keeper_of(target)._moving:
        await until(lambda: "keeps its snapshots: " in caplog.text, "nobody waits for it any more")
        device = target.node._cells["everram.v1.NvmDevice"]._incarnation.actor  # type: ignore[union-attr]
        device._device.capacity_bytes = device._budget.capacity_bytes = 64 * MIB
        device._budget._limit()
        await filling
    await until(lambda: not keeper_of(target)._moving.locked(), "nothing waits for it")
    assert snapshots_of(target) == ["before"]


async def test_only_snapshots_of_one_copy_are_given_up(hosts: list[Host]) -> None:
    for everything in (RegionFilter(), RegionFilter(guest_id=GUEST_ID), RegionFilter(guest_id=GUEST_ID, copy_id="*")):
        with pytest.raises(InvalidArgument, match="name its guest_id and its copy_id"):
            await hosts[1].nvm.give_up_copy_snapshots(everything)


@pytest.mark.parametrize(("regions", "snapshots"), [(9, 1), (3, 40)])
async def test_many_snapshots_are_given_up_in_parts(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, regions: int, snapshots: int
) -> None:
    monkeypatch.setattr(deletion, "PIECE", 16)
    target, names = hosts[1], [f"r{number}" for number in range(regions)]
    specs = [pb.RegionSpec(name=name, size_bytes=65536, kind=pb.LOGGED) for name in names]
    await target.nvm.create_regions(CreateRegionsRequest(guest_id="g", copy_id="c", regions=specs))
    for number in range(1, snapshots + 1):
        what = LogOperation(name=f"s{number}", regions=names, created_ns=number)
        taking = CopyOperation(guest_id="g", copy_id="c", type=RecordType.SNAPSHOT, what=what, epoch=1, lsn=number)
        await target.nvm.follow_operation(taking)
    keeper = keeper_of(target)
    keeper._budget.capacity_bytes = 0
    keeper._budget._limit()
    with contextlib.suppress(ResourceExhausted):
        while True:
            keeper.snapshots.media.take_page()  # the metadata is full, too

    async def gone() -> bool:
        given_up = await target.nvm.give_up_copy_snapshots(RegionFilter(guest_id="g", copy_id="c"))
        return not given_up.snapshots

    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if await gone():
                    break
            except (ResourceExhausted, Unavailable):  # until what was given up before is gone
                await asyncio.sleep(0.001)
    await until(lambda: not keeper.snapshots.records, "all are deleted")


async def test_who_waits_for_a_copy_is_not_starved_by_its_primary(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    keeper = target.node._cells["everram.v1.Replicator"]._incarnation.actor._keeper  # type: ignore[union-attr]
    take, taken = keeper._take, 0

    async def always(kept: Any, session: Any) -> bool:
        nonlocal taken
        taken += 1
        await take(kept, session)
        return True

    keeper._take = always
    guest.commit(1)
    await until(lambda: taken > 10, "there is always one more run")
    await target.replicator.quiesce(rp.QuiesceRequest(on=True), timeout_s=PATIENCE_S / 2)


async def test_a_snapshot_that_was_waited_for_too_long_is_not_taken_late(hosts: list[Host]) -> None:
    """The copy's regions have what followed by then."""
    target, names = hosts[1], ["r"]
    spec = pb.RegionSpec(name="r", size_bytes=65536, kind=pb.LOGGED)
    await target.nvm.create_regions(CreateRegionsRequest(guest_id="g", copy_id="c", regions=[spec]))
    taking = CopyOperation(guest_id="g", copy_id="c", type=RecordType.SNAPSHOT, epoch=1, lsn=1)
    taking.what.CopyFrom(LogOperation(name="nightly", regions=names, created_ns=1))
    await target.nvm.follow_operation(taking)
    again = CopyOperation()
    again.CopyFrom(taking)
    again.what.created_ns = 2  # nobody had told of the removal of the one before
    async with keeper_of(target)._moving:
        with pytest.raises(DeadlineExceeded):
            await target.nvm.follow_operation(again, timeout_s=0.05)
    await asyncio.sleep(0)
    assert [record.created_ns for record in keeper_of(target).snapshots.records.values()] == [1]


async def test_damaged_snapshots_of_a_copy_are_given_up(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nobody could ever go on with it."""
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    with GuestLog.open(primary.memory, GUEST_ID) as log:
        log.append(RecordType.SNAPSHOT, LogOperation(name="s", regions=["r"], created_ns=1))
        log.publish()
    await until(lambda: snapshots_of(target) == ["s"], "the copy has it, too")
    snapshots = keeper_of(target).snapshots

    def damaged(arena: str, *arguments: object) -> bool:
        if snapshots.of(arena):
            raise DataLoss("a page of the metadata is damaged")
        return False

    monkeypatch.setattr(snapshots, "before_write", damaged)
    guest.commit(1)
    lsn = await guest.replicated()
    promise = await promised(target, 2)
    assert (promise.complete, promise.lsn >= lsn, snapshots_of(target)) == (True, True, [])


async def test_damage_in_the_snapshots_of_a_copy_ends_its_session_and_not_its_host(
    hosts: list[Host], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()

    def damaged(*arguments: object) -> bool:
        raise DataLoss("a page of the metadata is damaged")

    with monkeypatch.context() as patched:
        patched.setattr(PageGuard, "before_store", damaged)
        guest.commit(1)
        await until(lambda: "is not followed: a page of the metadata is damaged" in caplog.text, "it is told")
        await target.restart()
        assert len(await target.copies()) == 1
    assert "is caught up with later: a page of the metadata is damaged" in caplog.text
    await guest.replicated()


async def test_memory_is_saved_though_a_copy_has_no_room(hosts: list[Host], caplog: pytest.LogCaptureFixture) -> None:
    guest, target = await cramped(hosts), hosts[1]
    filling = asyncio.create_task(store_everywhere(guest, 2))
    await until(lambda: "copy of test waits: no block" in caplog.text, "it waits for room")
    await target.replicator.quiesce(rp.QuiesceRequest(on=True), timeout_s=2.0)
    assert snapshots_of(target) == ["before"]
    await target.replicator.quiesce(rp.QuiesceRequest(on=False))
    await filling


async def reason(guest: Guest) -> str:
    log = guest.host.node._cells["everram.v1.Replicator"]._incarnation.actor._logs[GUEST_ID]  # type: ignore[union-attr]
    return next(iter(log._shippers.values()))[0].reason


async def test_a_copy_whose_record_is_damaged_is_built_anew_and_its_promise_is_not_forgotten(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    (before,) = await target.copies()
    arenas = {region.arena for region in before.guest.regions}
    await target.stop()
    primary.net.cut()
    superblock = target.memory.open(MEMORY_NAME)
    whole = superblock.read(0, superblock.size_bytes)
    field = bytes([2 << 3 | 2, len(before.copy_id)]) + before.copy_id.encode()  # in its record, in each of the slots
    superblock.write(0, whole.replace(field, field[:-1] + b"?"))
    target.directory.epoch = 2  # it may have promised that: a leader raises the epoch before it asks
    for _ in range(2):
        await target.start()
        (lost,) = await target.copies()
        assert (lost.guest.guest_id, lost.copy_id, lost.complete) == (GUEST_ID, before.copy_id, False)
        assert "its record in the VMemFS superblock is damaged" in lost.damaged
        assert arenas <= target.objects.by_name.keys(), "its memory may be all that is left"
        assert not (await promised(target, 2)).complete
        with pytest.raises(FailedPrecondition, match="fenced: it is in epoch 2"):
            await target.replicator.open(request_of(guest, target))
        await target.stop()
    target.directory.epoch = 1
    await target.start()
    await guest.in_sync()
    (after,) = await target.copies()
    assert (after.damaged, after.complete) == ("", True)
    assert after.copy_id != before.copy_id
    assert not arenas & target.objects.by_name.keys()
    assert await content_of(target) == guest.content()
    assert [copy.copy_id for copy in (await target.vmemfs.copies(pb.Empty())).copies] == [after.copy_id]


async def test_registrations_that_fail_are_given_back(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    target.wire.registrations_left = 1
    for _ in range(3):
        with pytest.raises(ResourceExhausted):
            await target.replicator.open(request_of(guest, target))
        target.wire.registrations_left = 1
    assert target.registered() == 0
    assert target.wire.handlers == {}
    target.wire.registrations_left = 10
    await guest.ship(target)
    await guest.in_sync()
    assert len(await target.copies()) == 1


async def test_what_a_dead_host_left_half_done_is_removed(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    (copy,) = await target.copies()
    names = target.memory.names()
    # It died between making a log region and recording it; another time between forgetting a copy and removing it.
    await target.nvm.create_regions(
        CreateRegionsRequest(guest_id=GUEST_ID, copy_id=copy.copy_id, log_id="left", log_bytes=MIN_CAPACITY_BYTES)
    )
    await target.nvm.create_regions(
        CreateRegionsRequest(guest_id="other", copy_id="x", regions=[pb.RegionSpec(name="r", size_bytes=4096)])
    )
    await target.nvm.create_regions(
        CreateRegionsRequest(guest_id="third", copy_id="y", log_id="alone", log_bytes=MIN_CAPACITY_BYTES)
    )
    await guest.ship()
    await target.restart()
    assert target.memory.names() == names
    assert (await target.copies())[0].held == copy.held


async def test_a_complete_copy_outlives_the_building_of_another(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    guest.commit(1)
    lsn = await guest.replicated()
    await guest.ship()
    for number in range(200):
        guest.commit(number, 1000)
        await asyncio.sleep(0)
    stuck = asyncio.Event()

    async def hold_back(source: str, destination: str, length: int) -> None:
        if destination == target.name:
            await stuck.wait()

    primary.net.on_write = hold_back  # type: ignore[method-assign]
    await guest.ship(target)

    async def two() -> bool:
        return len(await target.copies()) == 2

    await until(two, "another is being built")
    await target.restart()
    reply = await promised(target, 2)
    assert (reply.complete, reply.lsn) == (True, lsn)
    stuck.set()


async def test_a_release_erases_everything_of_the_copy(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    names = target.memory.names()
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    await guest.ship()
    await target.replicator.release(rp.GuestCopy(guest_id=GUEST_ID))
    assert target.memory.names() == names
    assert await target.copies() == []
    assert (await target.nvm.list_regions(RegionFilter(copy_id="*"))).logs == []
    with pytest.raises(NotFound):
        await target.replicator.hand_over(rp.GuestCopy(guest_id=GUEST_ID))
    reply = await promised(target, 9)
    assert not reply.complete


async def test_while_memory_is_saved_nothing_is_promised_or_acknowledged(hosts: list[Host]) -> None:
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    await target.replicator.quiesce(rp.QuiesceRequest(on=True))
    guest.commit(1)
    with pytest.raises(Unavailable, match="is being saved"):
        await promised(target, 2)
    assert target.registered() == 0
    assert not guest.core.replicated(guest.core.lsn)
    await target.replicator.quiesce(rp.QuiesceRequest(on=False))
    await guest.replicated()


async def test_a_destination_that_stops_acknowledging_holds_the_log_for_a_while_only(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "STALL_S", 0.05)
    primary, target, _ = hosts
    guest = await Guest.run(primary)
    await guest.ship(target)
    await guest.in_sync()
    silent = True

    async def swallow(source: str, destination: str, length: int) -> None:
        if source == target.name and silent:
            raise ChannelError(Status.RETRY_EXC_ERR, "does not answer")

    primary.net.on_write = swallow  # type: ignore[method-assign]
    for number in range(200):
        while True:
            try:
                guest.commit(number, 1000)
                break
            except LogFull:
                await asyncio.sleep(0.001)
    silent = False
    await guest.in_sync()
    await guest.replicated()


# -- where a copy may go on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "lsn", "complete", "expected"),
    [
        (5, 100, True, True),
        (5, 400, True, True),
        (5, 408, True, False),
        (5, 92, True, False),
        (5, 200, False, False),
        (4, 200, True, True),
        (4, 300, True, True),
        (4, 308, True, False),
        (3, 200, True, False),
        (6, 200, True, False),
    ],
    ids=["freed", "tail", "beyond", "given up", "in part", "epoch before", "its end", "beyond it", "older", "later"],
)
def test_continues(epoch: int, lsn: int, complete: bool, expected: bool) -> None:
    request = rp.OpenRequest(guest=pb.Guest(epoch=5, previous_epoch=4), freed=100, tail=400, epoch_start=300)
    assert continues(rp.Copy(epoch=epoch, lsn=lsn, complete=complete), request) is expected
