"""The NVM device, VMemFS and the power monitor as actors of a node, over hosts that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.nvm_device.device import Device
from everram.actors.power_monitor.actor import PowerMonitor
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import CreateRegionsRequest, RegionFilter
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import PowerStatus, SaveRequest
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import GuestId, HostRecord
from everram.runtime.environment import Environment
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
from everram.runtime.log.ring import DEFAULT_CAPACITY_BYTES, Ring
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.node import Node
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

MIB = 1 << 20
NVM_BYTES = 64 * MIB


class Clock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


@dataclass
class Freezer:
    """The part of a machine that freezes and thaws."""

    frozen: set[str] = field(default_factory=set)
    """The reasons for which the whole machine is frozen."""
    broken: bool = False
    """Whether there is a guest that does not stop."""

    async def freeze(self, guest_id: str, reason: str) -> None:
        assert guest_id == "", "guests that start during a save must not run either"
        self.frozen.add(reason)
        if self.broken:
            raise FailedPrecondition("a guest does not stop")

    async def thaw(self, guest_id: str, reason: str) -> None:
        assert guest_id == ""
        self.frozen.discard(reason)


@dataclass
class Machine:
    objects: Objects = field(default_factory=lambda: Objects(1 << 34))
    freezer: Freezer = field(default_factory=Freezer)
    media: Media = field(
        default_factory=lambda: Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
    )
    hosts: int = 0

    async def host(self, *, tracking: bool = True) -> Node:
        self.hosts += 1
        nothing = cast("Any", None)
        environment = Environment(
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
        node = Node(environment, "h1", check_messages=True)
        node.add(VMemFS)
        node.add(lambda: NvmDevice(NVM_BYTES, tracking=tracking), after=(VMEMFS,))
        node.add(PowerMonitor, after=(VMEMFS,))
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
    assert memory.names() == ["log.g", "nvm", "pages.g.scratch", "region.g.ledger", "region.g.scratch", "vmemfs"]
    assert memory.open("region.g.ledger").extents() == []
    ring = Ring.open(memory.open(made.log).map())
    assert (ring.epoch, ring.capacity_bytes) == (0, DEFAULT_CAPACITY_BYTES)
    assert PageTable.open(memory.open("pages.g.scratch").map()).pages == 256
    status = await nvm.status(pb.Empty())
    assert (status.regions, status.capacity_bytes) == (2, NVM_BYTES)
    assert status.allocated_bytes == sum(
        memory.open(name).size_bytes for name in memory.names() if name not in ("nvm", "vmemfs")
    )
    await nvm.remove_regions(RegionFilter(guest_id="g"))
    assert memory.names() == ["nvm", "vmemfs"]
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
    assert memory.names() == ["log.g", "nvm", "region.g.ledger", "vmemfs"]
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
    assert sorted(machine.objects.by_name) == ["nvm", "vmemfs"]
    await nvm.create_regions(request(region("x", MIB)))
    await node.stop()


async def test_creation_is_all_or_nothing(machine: Machine) -> None:
    node = await machine.host()
    present_bytes = sum(kept.size_bytes for kept in machine.objects.by_name.values())
    node.environment.memory.capacity_bytes = present_bytes + 8 * MIB
    with pytest.raises(ResourceExhausted):
        await node.ref(NvmDeviceRef).create_regions(request(region("a", MIB), region("b", 30 * MIB)))
    assert sorted(machine.objects.by_name) == ["nvm", "vmemfs"]
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
        device.plan("g", [region("ledger", 1 << 40)], 0)
    assert "4.0 GiB of 4.0 GiB are free: ask for less, or start the machine with more --nvm" in caught.value.message


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
    await first.stop()
    second = await machine.host()
    vmemfs = second.ref(VMemFSRef)
    assert [guest.name for guest in (await vmemfs.guests(pb.Empty())).guests] == ["bank"]
    after = await vmemfs.get_host(pb.Empty())
    assert (after.memory_id, after.lease_id, after.hosts) == (before.memory_id, 7, before.hosts + 1)
    status = await vmemfs.status(pb.Empty())
    assert (status.version, status.memory_id, status.hosts) == ("1.0", after.memory_id, 2)
    assert [file.name for file in status.files] == ["nvm", "vmemfs"]
    assert all(0 < file.present_bytes <= 64 * 1024 for file in status.files)
    await second.stop()


async def test_a_damaged_superblock_stops_the_host_with_its_reason(machine: Machine) -> None:
    first = await machine.host()
    await first.stop()
    machine.objects.by_name["vmemfs"].content[3] ^= 1
    with pytest.raises(EverramError, match="VMemFS superblock is damaged at offset 0"):
        await machine.host()


# -- the power monitor ------------------------------------------------------------------------------------------------


async def test_a_save_freezes_everybody_and_leaves_an_image(machine: Machine) -> None:
    node = await machine.host()
    power = node.ref(PowerMonitorRef)
    assert await power.status(pb.Empty()) == PowerStatus(image="none")
    await node.ref(NvmDeviceRef).create_regions(request(region("ledger", MIB)))
    report = await power.save(SaveRequest(cause="down"))
    assert (report.generation, report.objects) == (1, 4)
    assert machine.freezer.frozen == {"down"}
    assert await power.status(pb.Empty()) == PowerStatus(image="complete", image_generation=1)
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
