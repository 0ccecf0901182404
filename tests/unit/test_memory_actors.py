"""The NVM device, VMemFS and the power monitor as actors of a node, over hosts that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.nvm_device.device import Device
from everram.actors.power_monitor.actor import PowerMonitor
from everram.actors.power_monitor.report import SAVED, UNDER_WAY, read_report
from everram.actors.power_monitor.save import restore
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import AdoptRequest, CreateRegionsRequest, RegionFilter, RegionSet
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import PowerStatus, SaveRequest
from everram.runtime.contracts.remote_memory_contract import MemoryAgentActor
from everram.runtime.contracts.remote_memory_pb2 import QuiesceFiles
from everram.runtime.contracts.replicator_contract import ReplicatorActor
from everram.runtime.contracts.replicator_pb2 import Copy, GuestCopy, QuiesceRequest
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import GuestId, HostRecord
from everram.runtime.environment import Environment, GuestProcess, MachineEvent, Memory, MemoryObject
from everram.runtime.errors import (
    AlreadyExists,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from everram.runtime.formats.nvm import Metadata
from everram.runtime.formats.pages import PageTable
from everram.runtime.log.ring import DEFAULT_CAPACITY_BYTES, MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.node import Node
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

MIB = 1 << 20
NVM_BYTES = 64 * MIB

ON_MAINS: Any = {"mains": True, "state": "on mains"}
SNAPSHOTS = ["nvm.blocks", "nvm.snapshots"]
METADATA = ("nvm", *SNAPSHOTS, "vmemfs")


class NoWriters:
    """Traps stores of guests of which there are none."""

    def is_served(self, guest_id: str, region: str) -> bool:
        return False

    def protect(self, guest_id: str, region: str) -> None:
        pass

    def retry_all(self) -> None:
        pass

    def waiting_pages(self) -> int:
        return 0


class Clock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


@dataclass
class Freezer:
    """The part of a machine that freezes and thaws."""

    battery_s: float = 30.0
    frozen: set[str] = field(default_factory=set)
    """The reasons for which the whole machine is frozen."""
    broken: bool = False
    """Whether there is a guest that does not stop."""
    mains: asyncio.Queue[MachineEvent] = field(default_factory=asyncio.Queue)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """The host has switched the machine off, or goes on."""

    async def guests(self) -> list[GuestProcess]:
        return []

    async def freeze(self, guest_id: str, reason: str) -> None:
        assert guest_id == "", "guests that start during a save must not run either"
        self.frozen.add(reason)
        if self.broken:
            raise FailedPrecondition("a guest does not stop")

    async def thaw(self, guest_id: str, reason: str) -> None:
        assert guest_id == ""
        self.frozen.discard(reason)

    async def power_events(self) -> AsyncIterator[MachineEvent]:
        while True:
            yield await self.mains.get()

    def tell(self, *, mains: bool) -> None:
        self.mains.put_nowait(MachineEvent("mains", mains=mains, deadline_ns=0 if mains else 10**12))

    async def power_off(self) -> None:
        self.done.set()

    async def power_kept(self) -> None:
        self.done.set()


class Quietable(ReplicatorActor):
    """The part of a replicator that a save needs."""

    def __init__(self, told: list[bool]) -> None:
        self._told = told

    def quiesce(self, request: QuiesceRequest) -> pb.Empty:
        self._told.append(request.on)
        return pb.Empty()


class QuietFiles(MemoryAgentActor):
    """The part of a memory agent that a save needs."""

    def __init__(self, told: list[bool]) -> None:
        self._told = told

    def quiesce(self, request: QuiesceFiles) -> pb.Empty:
        self._told.append(request.on)
        return pb.Empty()


@dataclass
class Machine:
    objects: Objects = field(default_factory=lambda: Objects(1 << 34))
    freezer: Freezer = field(default_factory=Freezer)
    media: Media = field(
        default_factory=lambda: Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
    )
    hosts: int = 0
    quiesced: list[bool] = field(default_factory=list)
    """What the replicators of its hosts were told."""
    closed: list[bool] = field(default_factory=list)
    """What the memory agents of its hosts were told."""

    def environment(self) -> Environment:
        self.hosts += 1
        nothing = cast("Any", None)
        return Environment(
            Clock(),
            SimulatedEntropy(Seeds(self.hosts).stream("entropy")),
            SimulatedDisk(self.media),
            SimulatedMemory(self.objects),
            cast("Any", self.freezer),
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
        )

    async def host(self, *, tracking: bool = True) -> Node:
        node = Node(self.environment(), "h1", check_messages=True)
        node.add(VMemFS)
        node.add(lambda: NvmDevice(NVM_BYTES, NVM_BYTES, writers=NoWriters() if tracking else None), after=(VMEMFS,))
        node.add(PowerMonitor, after=(VMEMFS,))
        node.add(lambda: Quietable(self.quiesced))
        node.add(lambda: QuietFiles(self.closed))
        await node.start()
        return node


@pytest.fixture
def machine() -> Machine:
    return Machine()


def request(*regions: pb.RegionSpec, guest_id: str = "g", log_bytes: int = 0) -> CreateRegionsRequest:
    return CreateRegionsRequest(guest_id=guest_id, regions=regions, log_bytes=log_bytes)


def region(name: str, size_bytes: int, kind: pb.RegionKind = pb.LOGGED) -> pb.RegionSpec:
    return pb.RegionSpec(name=name, size_bytes=size_bytes, kind=kind)


# -- the NVM device ---------------------------------------------------------------------------------------------------


async def test_regions_are_made_with_their_log_and_page_tables(machine: Machine) -> None:
    node = await machine.host()
    nvm = node.ref(NvmDeviceRef)
    made = await nvm.create_regions(request(region("ledger", 5 * MIB + 1), region("scratch", MIB, pb.MAPPED)))
    ledger, scratch = made.regions
    assert (ledger.kind, ledger.size_bytes, ledger.tracked) == (pb.LOGGED, 5 * MIB + 4096, False)
    assert (scratch.kind, scratch.arena, scratch.tracked) == (pb.MAPPED, "region.g.scratch", True)
    memory = SimulatedMemory(machine.objects)
    assert memory.names() == [
        "log.g",
        "nvm",
        *SNAPSHOTS,
        "pages.g.scratch",
        "region.g.ledger",
        "region.g.scratch",
        "vmemfs",
    ]
    assert memory.open("region.g.ledger").extents() == []
    ring = Ring.open(memory.open(made.log).map())
    assert (ring.epoch, ring.capacity_bytes) == (0, DEFAULT_CAPACITY_BYTES)
    assert PageTable.open(memory.open("pages.g.scratch").map()).pages == 256
    status = await nvm.status(pb.Empty())
    assert (status.regions, status.capacity_bytes) == (2, NVM_BYTES)
    assert status.allocated_bytes == sum(
        memory.open(name).size_bytes for name in memory.names() if name not in METADATA
    )
    await nvm.remove_regions(RegionFilter(guest_id="g"))
    assert memory.names() == list(METADATA)
    assert (await nvm.status(pb.Empty())).allocated_bytes == 0
    await nvm.remove_regions(RegionFilter(guest_id="g"))
    await node.stop()


async def test_without_tracking_mapped_regions_have_no_page_table(machine: Machine) -> None:
    node = await machine.host(tracking=False)
    made = await node.ref(NvmDeviceRef).create_regions(request(region("scratch", MIB, pb.MAPPED)))
    assert not made.regions[0].tracked
    assert "pages.g.scratch" not in machine.objects.by_name
    await node.stop()


async def test_a_successor_finds_the_regions(machine: Machine) -> None:
    first = await machine.host()
    made = await first.ref(NvmDeviceRef).create_regions(request(region("ledger", MIB)))
    await first.ref(NvmDeviceRef).create_regions(request(guest_id="h"))
    await first.stop()
    second = await machine.host()
    nvm = second.ref(NvmDeviceRef)
    assert await nvm.list_regions(RegionFilter(guest_id="g")) == made
    everything = await nvm.list_regions(RegionFilter())
    assert ([r.name for r in everything.regions], list(everything.guest_ids)) == (["ledger"], ["g", "h"])
    more = await nvm.create_regions(request(region("more", MIB)))
    assert ([r.name for r in more.regions], more.log) == (["ledger", "more"], "log.g")
    await second.stop()


async def test_what_a_dying_host_left_half_made_is_removed(machine: Machine) -> None:
    first = await machine.host()
    await first.ref(NvmDeviceRef).create_regions(request(region("ledger", MIB)))
    await first.stop()
    memory = SimulatedMemory(machine.objects)
    for name in ("region.x.half", "pages.x.half", "log.x", "region.g.half"):
        await memory.create(name, MIB)
    second = await machine.host()
    assert memory.names() == ["log.g", "nvm", "nvm.blocks", "nvm.snapshots", "region.g.ledger", "vmemfs"]
    await second.stop()


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (request(region("x", 0)), InvalidArgument, "region x cannot have 0 bytes"),
        (request(region("x", 1 << 62)), InvalidArgument, "64.0 TiB"),
        (request(region("", MIB)), InvalidArgument, "cannot be a region's name"),
        (request(region("../x", MIB)), InvalidArgument, "cannot be a region's name"),
        (request(region("log", MIB)), InvalidArgument, "cannot be a region's name"),
        (request(region("x", MIB), region("x", MIB)), AlreadyExists, "a region x already"),
        (request(guest_id=""), InvalidArgument, "guest_id"),
        (request(guest_id="a.b"), InvalidArgument, "guest_id"),
        (request(log_bytes=5), InvalidArgument, "a log of 5 B cannot be"),
        (request(*(region(f"r{n}", 1) for n in range(65))), InvalidArgument, "65 regions"),
        (request(region("ledger", 1 << 40)), ResourceExhausted, "region ledger wants 1.0 TiB"),
        (request(log_bytes=100 * MIB), ResourceExhausted, "the guest's log wants 100.0 MiB, 64.0 MiB of 64.0 MiB"),
    ],
)
async def test_bad_requests_are_told_and_change_nothing(
    machine: Machine, bad: CreateRegionsRequest, error: type[EverramError], words: str
) -> None:
    node = await machine.host()
    nvm = node.ref(NvmDeviceRef)
    with pytest.raises(error, match=words):
        await nvm.create_regions(bad)
    assert sorted(machine.objects.by_name) == list(METADATA)
    await nvm.create_regions(request(region("x", MIB)))
    await node.stop()


async def test_creation_is_all_or_nothing(machine: Machine) -> None:
    node = await machine.host()
    present_bytes = sum(kept.size_bytes for kept in machine.objects.by_name.values())
    node.environment.memory.capacity_bytes = present_bytes + 8 * MIB
    with pytest.raises(ResourceExhausted):
        await node.ref(NvmDeviceRef).create_regions(request(region("a", MIB), region("b", 30 * MIB)))
    assert sorted(machine.objects.by_name) == list(METADATA)
    assert not (await node.ref(NvmDeviceRef).list_regions(RegionFilter())).guest_ids
    await node.stop()


async def test_removing_everybodys_regions_needs_a_name(machine: Machine) -> None:
    node = await machine.host()
    with pytest.raises(InvalidArgument, match="whose regions"):
        await node.ref(NvmDeviceRef).remove_regions(RegionFilter())
    await node.stop()


def test_a_full_device_says_what_is_free() -> None:
    device = Device(Metadata.format(HeapMapping(1 << 16)), 4 << 30, tracking=False)
    with pytest.raises(ResourceExhausted) as caught:
        device.plan(request(region("ledger", 1 << 40)))
    assert "4.0 GiB of 4.0 GiB are free: ask for less, or start the machine with more --nvm" in caught.value.message


# -- copies -----------------------------------------------------------------------------------------------------------


def copy_request(*regions: pb.RegionSpec, log_id: str = "", **fields: int) -> CreateRegionsRequest:
    return CreateRegionsRequest(
        guest_id="g", regions=regions, copy_id="c1", log_id=log_id, log_bytes=MIN_CAPACITY_BYTES, **fields
    )


COPIED = (region("ledger", 8192), region("scratch", 4096, pb.MAPPED))
START = 5 * MIN_CAPACITY_BYTES + 8
ADOPT = AdoptRequest(guest_id="g", copy_id="c1", log_bytes=MIN_CAPACITY_BYTES, log_start=START, log_epoch=7)


async def make_copy(nvm: NvmDeviceRef, memory: Memory) -> None:
    await nvm.create_regions(copy_request(*COPIED, log_id="l1", log_start=64, log_epoch=6))
    mapping = memory.open("region.g.ledger@c1").map()
    mapping.store(100, b"shipped")
    mapping.close()


async def test_a_copy_lies_beside_the_guests_own_regions(machine: Machine) -> None:
    node = await machine.host()
    nvm, memory = node.ref(NvmDeviceRef), SimulatedMemory(machine.objects)
    own = await nvm.create_regions(request(region("ledger", MIB)))
    made = await nvm.create_regions(copy_request(*COPIED, log_id="l1", log_start=64, log_epoch=6))
    assert [(r.arena, r.copy_id, r.tracked) for r in made.regions] == [
        ("region.g.ledger@c1", "c1", False),
        ("region.g.scratch@c1", "c1", False),
    ]
    ring = Ring.open(memory.open(made.log).map())
    assert (made.log, ring.guest_id, ring.capacity_bytes) == ("log.g@l1", "g", MIN_CAPACITY_BYTES)
    assert (ring.epoch, ring.tail, ring.applied, ring.freed, ring.epoch_start) == (6, 64, 64, 64, 64)
    again = await nvm.create_regions(copy_request(log_id="l2", log_start=128, log_epoch=7))
    assert (list(again.regions), again.log, len(again.logs)) == (list(made.regions), "log.g@l2", 2)
    assert await nvm.list_regions(RegionFilter(guest_id="g")) == own
    chosen = RegionFilter(guest_id="g", copy_id="c1", log_id="l1")
    assert (await nvm.list_regions(chosen)).log == "log.g@l1"
    everything = await nvm.list_regions(RegionFilter(guest_id="g", copy_id="*"))
    assert (len(everything.regions), len(everything.logs), everything.log) == (3, 3, "log.g")
    status = await nvm.status(pb.Empty())
    kept_bytes = sum(memory.open(name).size_bytes for name in memory.names() if name not in METADATA)
    assert (status.regions, status.allocated_bytes) == (3, kept_bytes)
    await node.stop()
    successor = await machine.host()
    nvm = successor.ref(NvmDeviceRef)
    assert await nvm.list_regions(RegionFilter(guest_id="g", copy_id="*")) == everything
    await successor.stop()


async def test_only_guests_with_regions_of_their_own_are_told(machine: Machine) -> None:
    node = await machine.host()
    nvm = node.ref(NvmDeviceRef)
    await nvm.create_regions(copy_request(*COPIED, log_id="l1"))
    await nvm.create_regions(request(guest_id="h"))
    assert list((await nvm.list_regions(RegionFilter())).guest_ids) == ["h"]
    assert list((await nvm.list_regions(RegionFilter(copy_id="*"))).guest_ids) == ["g", "h"]
    await node.stop()


async def test_what_is_removed_is_what_was_named(machine: Machine) -> None:
    node = await machine.host()
    nvm, memory = node.ref(NvmDeviceRef), SimulatedMemory(machine.objects)
    await nvm.create_regions(request())
    await nvm.create_regions(copy_request(region("ledger", 4096), log_id="l1"))
    await nvm.create_regions(copy_request(log_id="l2"))
    await nvm.remove_regions(RegionFilter(guest_id="g", copy_id="c1", log_id="l1"))
    await nvm.remove_regions(RegionFilter(guest_id="g", copy_id="c1", log_id="l1"))
    assert memory.names() == ["log.g", "log.g@l2", "nvm", "nvm.blocks", "nvm.snapshots", "region.g.ledger@c1", "vmemfs"]
    await nvm.remove_regions(RegionFilter(guest_id="g"))
    assert memory.names() == ["log.g@l2", "nvm", "nvm.blocks", "nvm.snapshots", "region.g.ledger@c1", "vmemfs"]
    await nvm.create_regions(request())
    await nvm.remove_regions(RegionFilter(guest_id="g", copy_id="c1"))
    assert memory.names() == ["log.g", "nvm", "nvm.blocks", "nvm.snapshots", "vmemfs"]
    await nvm.create_regions(copy_request(region("ledger", 4096), log_id="l1"))
    await nvm.remove_regions(RegionFilter(guest_id="g", copy_id="*"))
    assert memory.names() == list(METADATA)
    with pytest.raises(InvalidArgument, match="of which copy"):
        await nvm.remove_regions(RegionFilter(guest_id="g", log_id="l1"))
    await node.stop()


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (CreateRegionsRequest(guest_id="g", copy_id="a.b"), InvalidArgument, "a copy_id"),
        (CreateRegionsRequest(guest_id="g", copy_id="*"), InvalidArgument, "a copy_id"),
        (CreateRegionsRequest(guest_id="g", copy_id="c1", log_id="17 letters or not"), InvalidArgument, "a log_id"),
        (CreateRegionsRequest(guest_id="g", log_id="l1"), InvalidArgument, "of which copy"),
        (copy_request(log_id="l1", log_start=12), InvalidArgument, "cannot begin at 12"),
        (copy_request(log_id="old"), AlreadyExists, "a log region old here already"),
        (copy_request(region("old", MIB)), AlreadyExists, "a region old already"),
    ],
)
async def test_bad_requests_for_copies_change_nothing(
    machine: Machine, bad: CreateRegionsRequest, error: type[EverramError], words: str
) -> None:
    node = await machine.host()
    nvm = node.ref(NvmDeviceRef)
    await nvm.create_regions(copy_request(region("old", MIB), log_id="old"))
    before = sorted(machine.objects.by_name)
    with pytest.raises(error, match=words):
        await nvm.create_regions(bad)
    assert sorted(machine.objects.by_name) == before
    await node.stop()


def check_adopted(memory: Memory, adopted: RegionSet) -> None:
    assert [(r.name, r.copy_id, r.arena, r.tracked) for r in adopted.regions] == [
        ("ledger", "", "region.g.ledger@c1", False),
        ("scratch", "", "region.g.scratch@c1", True),
    ]
    assert memory.open("region.g.ledger@c1").read(100, 7) == b"shipped"
    ring = Ring.open(memory.open(adopted.log).map())
    assert (adopted.log, ring.epoch, ring.tail, ring.applied, ring.freed) == ("log.g", 7, START, START, START)
    assert ring.begin_epoch(8) == START
    assert PageTable.open(memory.open("pages.g.scratch").map()).pages == 1
    assert [name for name in memory.names() if name.startswith(("log.", "pages.", "region."))] == [
        "log.g",
        "pages.g.scratch",
        "region.g.ledger@c1",
        "region.g.scratch@c1",
    ]


async def test_an_adopted_copy_is_the_guests_own(machine: Machine) -> None:
    node = await machine.host()
    nvm, memory = node.ref(NvmDeviceRef), SimulatedMemory(machine.objects)
    await nvm.create_regions(request(region("ledger", MIB), region("scratch", MIB, pb.MAPPED)))
    await make_copy(nvm, memory)
    await nvm.create_regions(copy_request(log_id="l2", log_start=64, log_epoch=6))
    adopted = await nvm.adopt_copy(ADOPT)
    assert await nvm.adopt_copy(ADOPT) == adopted == await nvm.list_regions(RegionFilter(guest_id="g", copy_id="*"))
    check_adopted(memory, adopted)
    more = await nvm.create_regions(request(region("more", 4096)))
    assert (len(more.regions), more.log) == (3, "log.g")
    other = AdoptRequest(guest_id="g", copy_id="c2", log_epoch=7)
    with pytest.raises(NotFound, match="no copy c2 of guest g"):
        await nvm.adopt_copy(other)
    await nvm.remove_regions(RegionFilter(guest_id="g"))
    with pytest.raises(NotFound, match="no copy c1 of guest g"):
        await nvm.adopt_copy(ADOPT)
    assert memory.names() == list(METADATA)
    await node.stop()


async def test_a_full_device_can_adopt_what_it_keeps(machine: Machine) -> None:
    node = await machine.host(tracking=False)
    nvm = node.ref(NvmDeviceRef)
    log_bytes = Ring.total_bytes(MIN_CAPACITY_BYTES)
    await nvm.create_regions(copy_request(region("ledger", NVM_BYTES - log_bytes), log_id="l1"))
    with pytest.raises(ResourceExhausted, match="the guest's log"):
        await nvm.create_regions(copy_request(log_id="l2"))
    too_much = AdoptRequest(guest_id="g", copy_id="c1", log_bytes=MIB)
    with pytest.raises(ResourceExhausted, match="the guest's log"):
        await nvm.adopt_copy(too_much)
    await nvm.adopt_copy(ADOPT)
    assert (await nvm.status(pb.Empty())).allocated_bytes == NVM_BYTES
    await node.stop()


class Died(Exception):
    """The host's process ended here."""


class Dying:
    """A gate at which a host dies: before and after each store, in the middle of long ones, at each object."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def split(self, length: int) -> int:
        return length // 2 if length > 8 else length

    def __call__(self) -> None:
        self.passes -= 1
        if self.passes < 0:
            raise Died


class DyingMemory(SimulatedMemory):
    def __init__(self, objects: Objects, gate: Dying) -> None:
        super().__init__(objects, cast("Any", gate))
        self.gate = gate

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> MemoryObject:
        self.gate()
        return await super().create(name, size_bytes, resizable=resizable)

    async def remove(self, name: str) -> None:
        self.gate()
        await super().remove(name)


async def every_crash(
    machine: Machine, work: Callable[[NvmDeviceRef], Awaitable[object]]
) -> AsyncIterator[tuple[NvmDeviceRef, SimulatedMemory]]:
    """The device of a successor, for each store and each object at which the host may die while it works."""
    for passes in itertools.count():
        objects = Objects(machine.objects.capacity_bytes)
        objects.by_name = copy.deepcopy(machine.objects.by_name)
        gate = Dying(10**9)
        environment = dataclasses.replace(machine.environment(), memory=DyingMemory(objects, gate))
        host = Node(environment, "h1", check_messages=True)
        host.add(lambda: NvmDevice(NVM_BYTES, NVM_BYTES, writers=NoWriters()))
        await host.start()
        gate.passes = passes
        with contextlib.suppress(EverramError):  # as the asker of a handler that broke is told
            await work(host.ref(NvmDeviceRef))
        died = gate.passes < 0
        gate.passes = 0
        await host.stop()
        memory = SimulatedMemory(objects)
        successor = Node(dataclasses.replace(environment, memory=memory), "h1", check_messages=True)
        successor.add(lambda: NvmDevice(NVM_BYTES, NVM_BYTES, writers=NoWriters()))
        await successor.start()
        yield successor.ref(NvmDeviceRef), memory
        await successor.stop()
        if not died:
            return


@pytest.mark.parametrize("has_own", [False, True])
async def test_a_crash_leaves_a_copy_or_what_it_has_become(machine: Machine, has_own: bool) -> None:
    node = await machine.host()
    if has_own:
        await node.ref(NvmDeviceRef).create_regions(request(region("old", 4096), region("scratch", 4096, pb.MAPPED)))
    await make_copy(node.ref(NvmDeviceRef), SimulatedMemory(machine.objects))
    await node.stop()
    seen = set()
    async for nvm, memory in every_crash(machine, lambda nvm: nvm.adopt_copy(ADOPT)):
        copied = await nvm.list_regions(RegionFilter(guest_id="g", copy_id="c1"))
        own = await nvm.list_regions(RegionFilter(guest_id="g"))
        assert [r.name for r in (copied.regions or own.regions)] == ["ledger", "scratch"]
        named = {r.arena for r in [*copied.regions, *own.regions]} | {log.memory for log in [*copied.logs, *own.logs]}
        kept = {name for name in memory.names() if name.startswith(("log.", "region."))}
        assert named == kept, "nothing is missing, and nothing is left over"
        seen.add((bool(copied.regions), bool(own.regions)))
        adopted = await nvm.adopt_copy(ADOPT)
        check_adopted(memory, adopted)
    assert seen == {(True, False), (False, True)} | ({(True, True)} if has_own else set())


async def test_a_crash_leaves_a_new_copy_whole_or_nothing_of_it(machine: Machine) -> None:
    node = await machine.host()
    await node.stop()
    asked = copy_request(*COPIED, log_id="l1", log_start=64, log_epoch=6)
    seen = set()
    async for nvm, memory in every_crash(machine, lambda nvm: nvm.create_regions(asked)):
        found = await nvm.list_regions(RegionFilter(guest_id="g", copy_id="*"))
        names = sorted({r.arena for r in found.regions} | {log.memory for log in found.logs})
        assert names == [name for name in memory.names() if name not in METADATA]
        seen.add(len(names))
        if names:
            assert Ring.open(memory.open("log.g@l1").map()).tail == 64
        else:
            await nvm.create_regions(asked)
    assert seen == {0, 3}


# -- VMemFS -----------------------------------------------------------------------------------------------------------


async def test_guests_and_the_memorys_identity_outlive_hosts(machine: Machine) -> None:
    first = await machine.host()
    vmemfs = first.ref(VMemFSRef)
    await vmemfs.put_guest(pb.Guest(guest_id="a", name="bank"))
    await vmemfs.put_guest(pb.Guest(guest_id="b", name="other"))
    await vmemfs.put_host(HostRecord(memory_id="not its to change", lease_id=7))
    before = await vmemfs.get_host(pb.Empty())
    await vmemfs.remove_guest(GuestId(guest_id="b"))
    with pytest.raises(NotFound):
        await vmemfs.remove_guest(GuestId(guest_id="b"))
    with pytest.raises(InvalidArgument):
        await vmemfs.put_guest(pb.Guest(name="nobody"))
    copied = Copy(guest=pb.Guest(guest_id="c"), copy_id="c1", promised_epoch=4, held=8)
    await vmemfs.put_copy(copied)
    await vmemfs.put_copy(Copy(guest=pb.Guest(guest_id="d"), copy_id="c1"))
    await vmemfs.remove_copy(GuestCopy(guest_id="d"))
    await vmemfs.remove_copy(GuestCopy(guest_id="d", copy_id="c1"))
    with pytest.raises(InvalidArgument):
        await vmemfs.put_copy(Copy(guest=pb.Guest(guest_id="c")))
    with pytest.raises(InvalidArgument):
        await vmemfs.remove_copy(GuestCopy(copy_id="c1"))
    await first.stop()
    second = await machine.host()
    vmemfs = second.ref(VMemFSRef)
    copied.ClearField("held")
    assert list((await vmemfs.copies(pb.Empty())).copies) == [copied]
    assert [guest.name for guest in (await vmemfs.guests(pb.Empty())).guests] == ["bank"]
    after = await vmemfs.get_host(pb.Empty())
    assert (after.memory_id, after.lease_id, after.hosts) == (before.memory_id, 7, before.hosts + 1)
    status = await vmemfs.status(pb.Empty())
    assert (status.version, status.memory_id, status.hosts) == ("2.0", after.memory_id, 2)
    assert [(hop.number, hop.clean) for hop in status.history.hops] == [(1, False), (2, True)]
    assert [file.name for file in status.files] == list(METADATA)
    assert all(0 < file.present_bytes <= 64 * 1024 for file in status.files if file.name != "nvm.blocks")
    await second.stop()


async def test_a_damaged_superblock_stops_the_host_with_its_reason(machine: Machine) -> None:
    first = await machine.host()
    await first.stop()
    machine.objects.by_name["vmemfs"].content[3] ^= 1
    with pytest.raises(EverramError, match="VMemFS superblock is damaged at offset 0"):
        await machine.host()


# -- the power monitor ------------------------------------------------------------------------------------------------


async def without_budget(power: PowerMonitorRef) -> PowerStatus:
    status = PowerStatus()
    status.CopyFrom(await power.status(pb.Empty()))
    assert status.budget.covered
    status.ClearField("budget")
    return status


async def test_a_save_freezes_everybody_and_leaves_an_image(machine: Machine) -> None:
    node = await machine.host()
    power = node.ref(PowerMonitorRef)
    assert await without_budget(power) == PowerStatus(image="none", **ON_MAINS)
    await node.ref(NvmDeviceRef).create_regions(request(region("ledger", MIB)))
    report = await power.save(SaveRequest(cause="down"))
    assert (report.generation, report.objects) == (1, 6)
    assert machine.freezer.frozen == {"down"}
    assert await without_budget(power) == PowerStatus(image="complete", image_generation=1, **ON_MAINS)
    await node.stop()


async def test_a_failed_save_lets_the_guests_go_on(machine: Machine) -> None:
    node = await machine.host()

    async def fails(prepare: Callable[[], None], undo: Callable[[], None], error: type[EverramError]) -> None:
        prepare()
        with pytest.raises(error):
            await node.ref(PowerMonitorRef).save(SaveRequest(cause="down"))
        undo()
        assert machine.freezer.frozen == set()
        assert machine.media.files == {}

    await fails(
        lambda: setattr(machine.freezer, "broken", True),
        lambda: setattr(machine.freezer, "broken", False),
        FailedPrecondition,
    )
    await fails(
        lambda: setattr(machine.media, "capacity_bytes", 6000),
        lambda: setattr(machine.media, "capacity_bytes", 1 << 30),
        ResourceExhausted,
    )
    await node.ref(PowerMonitorRef).save(SaveRequest(cause="down"))
    await node.stop()


async def test_a_save_that_is_taken_back_never_opens_silently(machine: Machine) -> None:
    first = await machine.host()
    await first.ref(PowerMonitorRef).save(SaveRequest(cause="down"))
    await first.stop()
    second = await machine.host()
    power = second.ref(PowerMonitorRef)
    assert machine.freezer.frozen == {"down"}, "a new host does not know whether the machine is about to end"
    assert (await power.status(pb.Empty())).image == "complete"
    await power.resume(pb.Empty())
    assert machine.quiesced == [True, True, False], "nor may it acknowledge what the image would not have"
    assert machine.closed == machine.quiesced, "nor let anybody write to files"
    assert machine.freezer.frozen == set()
    assert (await power.status(pb.Empty())).image == "opened"
    await power.resume(pb.Empty())
    await second.stop()


async def test_one_save_at_a_time(machine: Machine) -> None:
    node = await machine.host()
    power = node.ref(PowerMonitorRef)

    results = await asyncio.gather(power.save(SaveRequest()), power.save(SaveRequest()), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["SaveReport", "FailedPrecondition"]
    await node.stop()


async def outcome_of(machine: Machine) -> str:
    """Of a loss of the mains, when it is known."""
    async with asyncio.timeout(5):
        while (report := await read_report(SimulatedDisk(machine.media))) is None or report.outcome == UNDER_WAY:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return report.outcome


async def test_mains_that_are_lost_during_a_save_wait_for_it(machine: Machine) -> None:
    """Two saves at once would remove each other's files."""
    node = await machine.host()
    await node.ref(NvmDeviceRef).create_regions(request(region("ledger", MIB)))
    SimulatedMemory(machine.objects).open("region.g.ledger").write(0, b"x" * 4096)
    saving = asyncio.ensure_future(node.ref(PowerMonitorRef).save(SaveRequest(cause="down")))
    await asyncio.sleep(0)
    machine.freezer.tell(mains=False)
    assert (await saving).generation == 1
    await asyncio.wait_for(machine.freezer.done.wait(), 5)
    assert await outcome_of(machine) == SAVED
    await node.stop()
    machine.objects = Objects(1 << 34)
    outcome = await restore(machine.environment())
    assert (outcome.kind, outcome.generation) == ("restored", 2)
    assert SimulatedMemory(machine.objects).open("region.g.ledger").read(0, 4096) == b"x" * 4096


async def test_mains_that_come_back_while_no_host_runs_leave_nobody_frozen(machine: Machine) -> None:
    machine.freezer.frozen.add("power")  # by a host that died on battery
    node = await machine.host()
    machine.freezer.tell(mains=True)
    await asyncio.wait_for(machine.freezer.done.wait(), 5)
    assert machine.freezer.frozen == set()
    await node.stop()


async def test_logs_that_cannot_be_drained_are_saved_all_the_same(machine: Machine) -> None:
    node = await machine.host()
    await node.ref(NvmDeviceRef).create_regions(request(log_bytes=MIN_CAPACITY_BYTES))
    await node.ref(VMemFSRef).put_guest(pb.Guest(guest_id="g", name="bank"))
    machine.freezer.tell(mains=False)
    assert await outcome_of(machine) == SAVED, "though nobody here can say how far the log is"
    await node.stop()


async def test_memory_that_storage_did_not_take_on_battery_is_never_passed_over(machine: Machine) -> None:
    node = await machine.host()
    machine.media.capacity_bytes = 6000
    machine.freezer.tell(mains=False)
    assert "free some" in await outcome_of(machine)
    await node.stop()
    machine.objects = Objects(1 << 34)
    with pytest.raises(FailedPrecondition, match=r"nothing of its memory was saved; .* saving takes .* --open empty"):
        await restore(machine.environment())
    assert (await restore(machine.environment(), "empty")).kind == "empty"
    assert (await restore(machine.environment())).kind == "empty", "it has been said once"
