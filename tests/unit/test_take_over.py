"""A hypervisor that takes a guest over, or gives it up: from what was chosen, and from nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from everram.actors.hypervisor.actor import Hypervisor
from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import hypervisor_pb2 as hv
from everram.runtime.contracts import replicator_pb2 as rp
from everram.runtime.contracts.availability_contract import AvailabilityActor
from everram.runtime.contracts.availability_pb2 import GuestKey, GuestLimits, ReachedGuest, Registration
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.memory_scheduler_contract import MemorySchedulerActor
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemory, GuestMemoryKey, GuestMemoryKeys, MemoryGrant
from everram.runtime.contracts.nvm_device_contract import NVM_DEVICE, NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import CreateRegionsRequest, GrowRequest, RegionFilter, RegionName
from everram.runtime.contracts.replicator_contract import ReplicatorActor
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSRef
from everram.runtime.environment import Environment, GuestLaunch, GuestProcess, MachineEvent
from everram.runtime.errors import Aborted, NotFound, ResourceExhausted, Unavailable
from everram.runtime.log.record import RecordFlags, RecordType, Store, pack_stores
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.log.writer import LogWriter
from everram.runtime.node import Node
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

MIB = 1 << 20
GUEST_ID = "guest"
REGION = pb.RegionSpec(name="r", size_bytes=MIB, kind=pb.LOGGED)


class Clock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


class Computer:
    """A machine, its disk and its logs, as far as a hypervisor uses them."""

    def __init__(self) -> None:
        self.processes: dict[str, GuestProcess] = {}
        self.launches: list[GuestLaunch] = []
        self.launched = asyncio.Event()
        self.kept: dict[str, bytes] = {}
        self.frozen = False
        self.being_started: list[GuestProcess] = []
        """What it says of its guests at the next looks."""

    async def tracked(self) -> list[MachineEvent]:
        return []

    async def guests(self) -> list[GuestProcess]:
        if self.being_started:
            return [self.being_started.pop()]
        return [self.processes[guest_id] for guest_id in sorted(self.processes)]

    async def events(self) -> AsyncIterator[MachineEvent]:
        await asyncio.Event().wait()
        yield MachineEvent("")

    async def free_port(self) -> int:
        return 1

    async def spawn(self, launch: GuestLaunch) -> GuestProcess:
        if self.frozen:
            self.frozen = False
            raise Unavailable("the machine is frozen")
        self.launches.append(launch)
        self.launched.set()
        process = self.processes[launch.guest_id] = GuestProcess(launch.guest_id, launch.epoch, 100)
        return process

    async def kill(self, guest_id: str) -> GuestProcess:
        ended = self.processes[guest_id] = GuestProcess(guest_id, self.processes[guest_id].epoch, 0, 137)
        return ended

    async def forget(self, guest_id: str) -> None:
        self.processes.pop(guest_id, None)

    async def remove(self, path: str) -> None:
        """Of a log."""

    async def replace(self, name: str, content: bytes) -> None:
        """On the disk."""
        self.kept[name] = content


class Copies(ReplicatorActor):
    """A replicator that keeps one promised copy, or none."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def follow(self, request: rp.FollowRequest) -> pb.Empty:
        return pb.Empty()

    def unfollow(self, request: rp.FollowRequest) -> pb.Empty:
        return pb.Empty()

    def positions(self, request: rp.FollowRequest) -> pb.LogPositions:
        raise NotFound("not followed")

    def hand_over(self, request: rp.GuestCopy) -> rp.HandedOver:
        if self._host.copy is None:
            raise NotFound("no copy")
        handed = rp.HandedOver()
        handed.CopyFrom(self._host.copy)
        return handed

    def release(self, request: rp.GuestCopy) -> pb.Empty:
        if self._host.release_fails:
            raise Unavailable("the host dies here")
        self._host.released.append(request.copy_id)
        self._host.copy = None
        return pb.Empty()


class Scheduler(MemorySchedulerActor):
    """Of guests' volatile memory, which most guests here do not have."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def prepare(self, request: GuestMemory) -> MemoryGrant:
        if self._host.memory_is_full:
            raise ResourceExhausted("it would only page")
        self._host.prepared.append(request)
        return MemoryGrant(memory="m", memory_bytes=request.memory_bytes, classes="c", classes_bytes=4096)

    def release(self, request: GuestMemoryKey) -> pb.Empty:
        return pb.Empty()

    def retain(self, request: GuestMemoryKeys) -> pb.Empty:
        return pb.Empty()


class Directory(AvailabilityActor):
    def __init__(self, host: Host) -> None:
        self._host = host

    def reached(self, request: GuestKey) -> ReachedGuest:
        limits = GuestLimits(guest_id=request.guest_id, min_bytes=4096, max_bytes=MIB // 2)
        return ReachedGuest(guest_id=request.guest_id, epoch=10, limits=limits)

    def register(self, request: Registration) -> pb.Empty:
        if self._host.is_raised:
            self._host.is_raised = False
            raise Aborted("the leader has raised it to this epoch meanwhile")
        return pb.Empty()

    def give_back(self, request: GuestKey) -> pb.Empty:
        return pb.Empty()


class Host:
    """A machine's memory, and the host that serves it now."""

    def __init__(self) -> None:
        self.computer = Computer()
        self.memory = SimulatedMemory(Objects(1 << 30))
        self.copy: rp.HandedOver | None = None
        self.released: list[str] = []
        self.release_fails = False
        self.memory_is_full = False
        self.is_raised = False
        """By a leader, just before the next incarnation is registered."""
        self.prepared: list[GuestMemory] = []
        self.lives = 0

    async def start(self) -> None:
        self.lives += 1
        nothing, computer = cast("Any", None), cast("Any", self.computer)
        entropy = SimulatedEntropy(Seeds(self.lives).stream("entropy"))
        environment = Environment(
            Clock(), entropy, computer, self.memory, computer, nothing, nothing, nothing, computer, nothing
        )
        node = self.node = Node(environment, "h1")
        node.add(VMemFS)
        node.add(lambda: NvmDevice(64 * MIB, 64 * MIB), after=(VMEMFS,))
        node.add(lambda: Copies(self))
        node.add(lambda: Directory(self))
        node.add(lambda: Scheduler(self))
        node.add(lambda: Hypervisor("h1"), after=(NVM_DEVICE,))
        await node.start()

    @property
    def hypervisor(self) -> HypervisorRef:
        return self.node.ref(HypervisorRef)

    async def keep_copy(self, copy_id: str, epoch: int, lsn: int, content: bytes, memory_bytes: int = 0) -> None:
        made = await self.node.ref(NvmDeviceRef).create_regions(
            CreateRegionsRequest(guest_id=GUEST_ID, copy_id=copy_id, regions=[REGION])
        )
        self.memory.open(made.regions[0].arena).write(0, content)
        guest = pb.Guest(guest_id=GUEST_ID, name="bank", epoch=epoch, regions=made.regions)
        guest.spec.CopyFrom(pb.GuestSpec(name="bank", copies=1, argv=[b"x"], log_bytes=MIN_CAPACITY_BYTES))
        guest.spec.memory_bytes, guest.spec.memory_min_bytes = memory_bytes, memory_bytes
        self.copy = rp.HandedOver(guest=guest, epoch=epoch, lsn=lsn, copy_id=copy_id)

    async def leave_old_primary(self, epoch: int, content: bytes) -> None:
        """What this host had of the guest before another went on with it, with a record that reached nobody."""
        made = await self.node.ref(NvmDeviceRef).create_regions(
            CreateRegionsRequest(guest_id=GUEST_ID, regions=[REGION], log_bytes=MIN_CAPACITY_BYTES)
        )
        self.memory.open(made.regions[0].arena).write(0, content)
        ring = Ring.open(self.memory.open(made.log).map())
        ring.begin_epoch(epoch)
        LogWriter(ring).append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores([Store(0, 0, b"x")]))
        guest = pb.Guest(guest_id=GUEST_ID, name="bank", epoch=epoch, regions=made.regions, state=pb.FAILED)
        await self.node.ref(VMemFSRef).put_guest(guest)
        await self.node.stop()
        await self.start()

    def content(self) -> bytes:
        """What the latest incarnation was given."""
        grants = self.computer.launches[-1].grants
        (arena,) = [grant.memory for grant in grants if (grant.role, grant.label) == ("logged", "r")]
        return self.memory.open(arena).read(0, 3)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.start()
    yield host
    await host.node.stop()


TAKE = hv.TakeOverRequest(guest_id=GUEST_ID, epoch=9)


async def test_a_copy_becomes_the_guest(host: Host) -> None:
    await host.keep_copy("c1", 7, 800, b"new")
    taken = await host.hypervisor.take_over(TAKE)
    assert (taken.state, taken.epoch, taken.previous_epoch) == (pb.RUNNING, 11, 7)
    assert (host.content(), host.released) == (b"new", [""])
    ring = Ring.open(host.memory.open(f"log.{GUEST_ID}").map())
    assert (ring.epoch_start, ring.tail, ring.required()) == (800, 800, [])
    assert await host.hypervisor.take_over(TAKE) == taken, "asking again is no error"
    assert len(host.computer.launches) == 1


async def test_a_copy_waits_for_memory_and_has_the_limits_that_were_set(host: Host) -> None:
    await host.keep_copy("c1", 7, 800, b"new", memory_bytes=MIB)
    host.memory_is_full = True
    with pytest.raises(Unavailable, match="it waits for memory: it would only page"):
        await host.hypervisor.take_over(TAKE)
    waiting = await host.hypervisor.inspect(hv.GuestName(guest=GUEST_ID))
    assert (waiting.state, waiting.reason) == (pb.RESTARTING, "it waits for memory: it would only page")
    host.memory_is_full = False
    assert (await host.hypervisor.take_over(TAKE)).epoch == 11, "no epoch was begun without memory"
    (wish,) = host.prepared
    assert (wish.min_bytes, wish.max_bytes, wish.limits_set, wish.again) == (4096, MIB // 2, True, True)


async def test_a_guest_whose_epoch_was_begun_is_begun_though_nobody_asks_again(host: Host) -> None:
    """The directory has it as this host's own from its registration on, whatever becomes of its process."""
    await host.keep_copy("c1", 7, 800, b"new")
    host.computer.frozen = True
    with pytest.raises(Unavailable, match="the machine is frozen"):
        await host.hypervisor.take_over(TAKE)
    async with asyncio.timeout(10):
        await host.computer.launched.wait()
    assert (host.computer.launches[0].epoch, host.content()) == (12, b"new")


async def test_a_guest_that_is_just_being_started_is_not_taken_for_one_that_has_ended(host: Host) -> None:
    """The host that had ordered it is gone, and its successor looks before there is a pid."""
    await host.keep_copy("c1", 7, 800, b"new")
    taken = await host.hypervisor.take_over(TAKE)
    await host.node.stop()
    host.computer.being_started = [GuestProcess(GUEST_ID, taken.epoch, 0, -1)] * 2
    await host.start()
    found = await host.hypervisor.inspect(hv.GuestName(guest=GUEST_ID))
    assert (found.state, found.epoch, found.pid, host.computer.being_started) == (pb.RUNNING, taken.epoch, 100, [])


async def test_an_epoch_that_a_leader_raised_meanwhile_is_left_out(host: Host) -> None:
    await host.keep_copy("c1", 7, 800, b"new")
    await host.hypervisor.take_over(TAKE)
    await host.node.stop()
    host.computer.processes.clear()
    host.computer.launched.clear()
    host.is_raised = True
    await host.start()
    async with asyncio.timeout(10):
        await host.computer.launched.wait()
    assert [launch.epoch for launch in host.computer.launches] == [11, 13]


async def test_a_person_who_starts_a_guest_without_room_is_told_so(host: Host) -> None:
    """Nobody would try again, so it does not say that it waits."""
    made = await host.node.ref(NvmDeviceRef).create_regions(
        CreateRegionsRequest(guest_id=GUEST_ID, regions=[REGION], log_bytes=MIN_CAPACITY_BYTES)
    )
    guest = pb.Guest(guest_id=GUEST_ID, name="bank", epoch=1, regions=made.regions, state=pb.STOPPED)
    guest.spec.CopyFrom(pb.GuestSpec(name="bank", argv=[b"x"], log_bytes=MIN_CAPACITY_BYTES, memory_bytes=MIB))
    await host.node.ref(VMemFSRef).put_guest(guest)
    await host.node.stop()
    await host.start()
    host.memory_is_full = True
    with pytest.raises(ResourceExhausted, match=r"^it would only page"):
        await host.hypervisor.start(hv.GuestName(guest=GUEST_ID))
    failed = await host.hypervisor.inspect(hv.GuestName(guest=GUEST_ID))
    assert (failed.state, failed.reason) == (pb.FAILED, "it would only page")
    host.memory_is_full = False
    host.is_raised = True
    started = await host.hypervisor.start(hv.GuestName(guest=GUEST_ID))
    assert (started.state, started.epoch) == (pb.RUNNING, 12), "nobody has to know that a leader raised it to 11"


async def test_what_was_chosen_is_the_copy_and_not_an_old_primarys_memory(host: Host) -> None:
    """It had come back as a destination, and the guest was never demoted here."""
    await host.leave_old_primary(5, b"old")
    await host.keep_copy("c1", 7, 800, b"new")
    taken = await host.hypervisor.take_over(TAKE)
    assert (taken.state, taken.previous_epoch, host.content()) == (pb.RUNNING, 7, b"new")
    assert sorted(host.computer.kept) == [f"set-aside/{GUEST_ID}.5.json", f"set-aside/{GUEST_ID}.5.log"]
    assert len((await host.node.ref(VMemFSRef).guests(pb.Empty())).guests) == 1


async def test_its_own_memory_goes_on_where_no_copy_knows_more(host: Host) -> None:
    await host.leave_old_primary(5, b"own")
    await host.keep_copy("c1", 4, 0, b"old")
    taken = await host.hypervisor.take_over(TAKE)
    assert (taken.state, taken.previous_epoch, host.content()) == (pb.RUNNING, 5, b"own")


async def test_a_late_demotion_leaves_a_guest_alone_that_has_come_back(host: Host) -> None:
    await host.keep_copy("c1", 7, 800, b"new")
    taken = await host.hypervisor.take_over(TAKE)
    await host.hypervisor.demote(hv.DemoteRequest(guest_id=GUEST_ID, epoch=8, start=400, host="h2"))
    assert await host.hypervisor.inspect(hv.GuestName(guest=GUEST_ID)) == taken
    assert host.computer.processes[GUEST_ID].pid
    await host.hypervisor.demote(hv.DemoteRequest(guest_id=GUEST_ID, epoch=12, start=800, host="h2"))
    with pytest.raises(NotFound):
        await host.hypervisor.inspect(hv.GuestName(guest=GUEST_ID))
    regions = await host.node.ref(NvmDeviceRef).list_regions(RegionFilter(guest_id=GUEST_ID, copy_id="*"))
    assert (list(regions.regions), list(regions.logs), host.computer.processes) == ([], [], {})


async def test_a_take_over_that_was_cut_off_is_finished_by_the_next_host(host: Host) -> None:
    """It died after the copy was adopted and recorded as such, or just before."""
    await host.keep_copy("c1", 7, 800, b"new")
    host.release_fails = True
    with contextlib.suppress(Unavailable):
        await host.hypervisor.take_over(TAKE)
    record = (await host.node.ref(VMemFSRef).guests(pb.Empty())).guests[0]
    unfinished = pb.Guest()
    unfinished.CopyFrom(record)
    unfinished.regions[0].copy_id = "c1"
    await host.node.ref(VMemFSRef).put_guest(unfinished)
    await host.node.stop()
    host.release_fails = False
    await host.start()
    async with asyncio.timeout(10):
        await host.computer.launched.wait()
    assert (host.content(), host.released, host.copy) == (b"new", ["c1"], None)


async def test_a_record_follows_what_a_host_did_to_regions_before_it_died(host: Host) -> None:
    """It had made one longer, and another for which it never came to a record."""
    nvm = host.node.ref(NvmDeviceRef)
    made = await nvm.create_regions(
        CreateRegionsRequest(guest_id=GUEST_ID, regions=[REGION], log_bytes=MIN_CAPACITY_BYTES)
    )
    guest = pb.Guest(guest_id=GUEST_ID, name="bank", epoch=1, regions=made.regions, state=pb.STOPPED)
    guest.spec.CopyFrom(pb.GuestSpec(name="bank", argv=[b"x"], regions=[REGION], log_bytes=MIN_CAPACITY_BYTES))
    await host.node.ref(VMemFSRef).put_guest(guest)
    host.memory.open(made.regions[0].arena).write(0, b"own")
    await nvm.grow_region(GrowRequest(region=RegionName(guest_id=GUEST_ID, region="r"), size_bytes=2 * MIB))
    half = pb.RegionSpec(name="half", size_bytes=MIB, kind=pb.LOGGED)
    await nvm.create_regions(CreateRegionsRequest(guest_id=GUEST_ID, regions=[half]))
    await host.node.stop()
    await host.start()
    begun = await host.hypervisor.start(hv.GuestName(guest=GUEST_ID))
    assert [(region.name, region.size_bytes) for region in begun.regions] == [("r", 2 * MIB)]
    assert [spec.size_bytes for spec in begun.spec.regions] == [2 * MIB]
    assert host.content() == b"own"
    found = await host.node.ref(NvmDeviceRef).list_regions(RegionFilter(guest_id=GUEST_ID))
    assert [region.name for region in found.regions] == ["r"]
