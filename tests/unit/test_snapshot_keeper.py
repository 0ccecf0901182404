"""Snapshots as their actor keeps them: guests that come, go and write meanwhile, hosts that die, storage that fails."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import random
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.nvm_device import reverting, tables
from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.nvm_device.media import SPARE_PAGES
from everram.actors.nvm_device.storage import content_offset
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.hypervisor_contract import HypervisorActor
from everram.runtime.contracts.hypervisor_pb2 import FailRequest
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.vmemfs_contract import VMEMFS, VMemFSRef
from everram.runtime.environment import Environment, GuestProcess
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    EverramError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.formats.pages import PageTable, table_name
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import LogFull
from everram.runtime.guest.region import Region
from everram.runtime.log.record import RecordType
from everram.runtime.log.ring import BUSY, COMMITTING, IDLE, MIN_CAPACITY_BYTES, Ring, log_name
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.guard import ArenaKeeper, GuardedMapping, PageGuard
from everram.runtime.memory.old_pages import SLOTS_MAX, OldPages, old_pages_name
from everram.runtime.node import Node
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
NVM_BYTES = 4 * MIB
STORAGE_BYTES = 16 * MIB
PAGES = 32
GUEST_ID = "g"
STATIC_BYTES = 24
"""Of the metadata's superblock; then comes their checksum."""


class Clock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


class Traps:
    """Sees every store of guests that go through the guard."""

    def __init__(self) -> None:
        self.served = True
        self.ends: list[str] = []
        """Guests that end while their memory is being protected."""
        self.retried = 0

    def is_served(self, guest_id: str, region: str) -> bool:
        return self.served

    def protect(self, guest_id: str, region: str) -> None:
        if self.ends:
            self.ends.pop()
            raise Unavailable("its guest is ending")

    def retry_all(self) -> None:
        self.retried += 1

    def waiting_pages(self) -> int:
        return 0


@dataclass
class Computer:
    """The part of a machine that stops guests. `frozen` holds what runs whenever one was stopped."""

    processes: dict[str, GuestProcess] = field(default_factory=dict)
    standing: set[str] = field(default_factory=set)
    on_freeze: list[Callable[[], None]] = field(default_factory=list)

    async def guests(self) -> list[GuestProcess]:
        await asyncio.sleep(0)
        return list(self.processes.values())

    async def freeze(self, guest_id: str, reason: str) -> None:
        if guest_id not in self.processes:
            raise NotFound(f"there is no guest {guest_id}")
        self.standing.add(guest_id)
        await asyncio.sleep(0)
        if self.on_freeze:
            self.on_freeze.pop(0)()

    async def thaw(self, guest_id: str, reason: str) -> None:
        self.standing.discard(guest_id)


class Died(Exception):
    """A host ends here."""


class Dying:
    """A gate at which a host dies: before each store, and in the middle of long ones."""

    def __init__(self) -> None:
        self.passes = 10**9

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

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> Any:
        self.gate()
        return await super().create(name, size_bytes, resizable=resizable)

    async def remove(self, name: str) -> None:
        self.gate()
        await super().remove(name)


class Box:
    """A machine with one guest, and the host that serves it now."""

    def __init__(
        self,
        *,
        trapped: bool = True,
        saving: bool = False,
        nvm_bytes: int = NVM_BYTES,
        storage_bytes: int = STORAGE_BYTES,
    ) -> None:
        """`trapped`: the guest's stores are seen; `saving`: it saves old content itself. Otherwise nobody sees them."""
        self.saving = saving
        self.computer = Computer()
        self.objects = Objects(64 * MIB)
        self.media = Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
        self.traps = Traps() if trapped else None
        self.nvm_bytes, self.storage_bytes = nvm_bytes, storage_bytes
        self.gate, self.guest_gate = Dying(), Dying()
        self.lives = 0

    async def host(self, *others: type[Any]) -> NvmDeviceRef:
        self.lives += 1
        self.gate = Dying()
        self.memory = DyingMemory(self.objects, self.gate)
        self.guard = PageGuard()
        nothing, machine = cast("Any", None), cast("Any", self.computer)
        entropy = SimulatedEntropy(Seeds(self.lives).stream("entropy"))
        disk = SimulatedDisk(self.media)
        environment = Environment(
            Clock(), entropy, disk, self.memory, machine, nothing, nothing, nothing, nothing, nothing
        )
        self.node = Node(environment, "h1", check_messages=True)
        self.node.add(VMemFS)
        for other in others:
            self.node.add(other)
        self.node.add(
            lambda: NvmDevice(self.nvm_bytes, self.storage_bytes, guard=self.guard, writers=cast("Any", self.traps)),
            after=(VMEMFS,),
        )
        await self.node.start()
        return self.nvm

    @property
    def nvm(self) -> NvmDeviceRef:
        return self.node.ref(NvmDeviceRef)

    async def make(self, *names: str, kind: pb.RegionKind = pb.LOGGED, pages: int = PAGES) -> None:
        specs = [pb.RegionSpec(name=name, size_bytes=pages * PAGE_BYTES, kind=kind) for name in names]
        asked = nvm.CreateRegionsRequest(guest_id=GUEST_ID, regions=specs, log_bytes=MIN_CAPACITY_BYTES)
        self.regions = list((await self.nvm.create_regions(asked)).regions)
        await self.node.ref(VMemFSRef).put_guest(pb.Guest(guest_id=GUEST_ID, name="guest", regions=self.regions))

    def ring(self) -> Ring:
        return Ring.open(self.memory.open(log_name(GUEST_ID)).map())

    def begin(self) -> GuestCore:
        """The guest's next incarnation."""
        epoch = self.ring().epoch + 1
        self.ring().begin_epoch(epoch)
        self.computer.processes[GUEST_ID] = GuestProcess(GUEST_ID, epoch, 100)
        return self.attach(epoch)

    def attach(self, epoch: int) -> GuestCore:
        self.guest_gate = Dying()
        self.guest_memory = DyingMemory(self.objects, self.guest_gate)
        mappings = [self.guest_memory.open(region.arena).map() for region in self.regions]
        return GuestCore(
            guest_id=GUEST_ID,
            name="guest",
            epoch=epoch,
            ring=Ring.open(self.guest_memory.open(log_name(GUEST_ID)).map()),
            regions=[
                Region(
                    region.name,
                    number,
                    "mapped" if region.kind == pb.MAPPED else "logged",
                    GuardedMapping(mapping, self.guard, region.arena) if self.traps else mapping,
                    region.size_bytes,
                    old=self.old_pages(region) if self.saving and region.keeps_old else None,
                )
                for number, (region, mapping) in enumerate(zip(self.regions, mappings, strict=True))
            ],
            now_ns=lambda: 1,
        )

    def old_pages(self, region: pb.Region) -> OldPages:
        return OldPages.open(self.guest_memory.open(old_pages_name(GUEST_ID, region.name)).map())

    def end(self) -> None:
        del self.computer.processes[GUEST_ID]
        self.ring().say_ended()

    def content(self, name: str = "r") -> bytes:
        region = next(region for region in self.regions if region.name == name)
        return self.memory.open(region.arena).read(0, region.size_bytes)

    # -- as a client asks

    async def take(self, name: str, *regions: str) -> list[nvm.SnapshotRecord]:
        named = [nvm.RegionName(guest_id=GUEST_ID, region=region) for region in regions or ("r",)]
        return list((await self.nvm.snapshot(nvm.SnapshotRequest(regions=named, name=name))).snapshots)

    async def read(self, name: str, region: str = "r") -> bytes:
        asked = nvm.ReadSnapshotRequest(snapshot=named(name, region), length=MIB)
        return (await self.nvm.read_snapshot(asked)).data

    async def remove(self, *names: str) -> nvm.Freed:
        return await self.nvm.remove_snapshots(nvm.SnapshotNames(snapshots=[named(name) for name in names]))

    async def is_empty(self) -> bool:
        findings = list((await self.nvm.check(pb.Empty())).findings)
        assert not findings, findings
        status = await self.nvm.status(pb.Empty())
        return (status.snapshots, status.store_bytes, status.storage_bytes) == (0, 0, 0)

    async def is_usable(self) -> bool:
        (region,) = (await self.nvm.list_regions(nvm.RegionFilter(guest_id=GUEST_ID))).regions
        return not region.reverting

    async def is_content(self) -> bool:
        return not (await self.nvm.status(pb.Empty())).warning


def named(name: str, region: str = "r") -> nvm.SnapshotName:
    return nvm.SnapshotName(guest_id=GUEST_ID, region=region, name=name)


def store(core: GuestCore, page: int, value: int, region: str = "r") -> None:
    with core.transaction() as tx:
        tx.store(core.region(region), page * PAGE_BYTES, bytes([value]) * 8)


@pytest.fixture(params=["trapped", "saving", "unseen"])
async def box(request: pytest.FixtureRequest) -> Any:
    made = Box(trapped=request.param == "trapped", saving=request.param == "saving")
    await made.host()
    await made.make("r")
    yield made
    await made.node.stop()


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Of what has no event: somebody else's task goes on."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


# -- guests that come and go ------------------------------------------------------------------------------------------


async def test_a_guest_that_begins_anew_while_it_is_stopped_is_stopped_again(box: Box) -> None:
    core = box.begin()
    store(core, 1, 1)
    later: list[GuestCore] = []

    def restart() -> None:
        later.append(box.begin())
        box.computer.standing.clear()
        store(later[0], 2, 2)

    box.computer.on_freeze.append(restart)
    (told,) = await box.take("s")
    assert (told.epoch, box.computer.standing) == (later[0].epoch, set())
    before = box.content()
    store(later[0], 3, 3)
    assert await box.read("s") == before
    types = [record.type for record in box.ring().chain(0)]
    assert types == [RecordType.STORES, RecordType.STORES, RecordType.SNAPSHOT, RecordType.STORES]


async def test_a_guest_that_dies_while_it_is_stopped_is_snapshotted_as_it_left_things(box: Box) -> None:
    core = box.begin()
    store(core, 1, 1)
    box.computer.on_freeze.append(box.end)
    (told,) = await box.take("s")
    assert told.lsn == core.lsn
    assert (await box.read("s")) == box.content()


async def test_a_guest_that_is_being_started_is_waited_for(box: Box) -> None:
    store(box.begin(), 1, 1)
    box.end()
    epoch = box.ring().epoch + 1
    box.ring().begin_epoch(epoch)  # it has no process yet, and will have one
    with pytest.raises(Unavailable, match="was starting"):
        await box.take("s")
    assert box.ring().tail == box.ring().applied == box.ring().epoch_start, "nothing was written to its log"
    box.computer.processes[GUEST_ID] = GuestProcess(GUEST_ID, epoch, 100)
    core = box.attach(epoch)
    assert len(await box.take("s")) == 1
    store(core, 1, 2)
    assert (await box.read("s"))[PAGE_BYTES] == 1


async def test_a_guest_in_the_midst_of_a_commit_is_let_go_on_with_it(box: Box) -> None:
    core = box.begin()
    commits = 0

    def commit() -> None:
        nonlocal commits
        core._writer.end()
        store(core, 1, commits := commits + 1)
        if commits < 3:
            core._writer.begin()

    core._writer.begin()
    box.computer.on_freeze += [lambda: None, commit, commit, commit]
    (told,) = await box.take("s")
    assert (commits, told.lsn, (await box.read("s"))[PAGE_BYTES]) == (3, core.lsn, 3)


async def test_what_keeps_a_snapshot_from_being_taken_leaves_the_log_as_it_was(box: Box) -> None:
    core = box.begin()
    store(core, 1, 1)
    await box.take("s")
    tail = box.ring().tail
    with pytest.raises(AlreadyExists):
        await box.take("s")
    if box.traps is not None:
        box.traps.ends = ["it ends as it is protected"]
        await box.take("t")  # asked again
        assert not box.traps.ends
        await box.remove("t")
        tail = box.ring().tail
    assert (box.ring().committed_end(), box.computer.standing) == (tail, set())
    store(core, 1, 2)
    assert [record.type for record in box.ring().chain(tail)] == [RecordType.STORES]


async def test_a_guest_that_a_dead_host_left_stopped_goes_on(box: Box) -> None:
    store(box.begin(), 1, 1)
    process = box.computer.processes[GUEST_ID]
    box.computer.processes[GUEST_ID] = dataclasses.replace(process, freeze_reasons=("down", "snapshot"))
    box.computer.standing.add(GUEST_ID)
    await box.node.stop()
    await box.host()
    assert box.computer.standing == set()


async def test_a_snapshot_is_removed_while_its_guest_waits_for_the_room(box: Box) -> None:
    """It does so in the midst of a commit, where nothing can be written into its log."""
    box.begin()
    await box.take("s")
    box.ring().publish(COMMITTING, BUSY)
    await box.remove("s")
    assert await box.is_empty()
    box.ring().publish(COMMITTING, IDLE)
    await box.take("s")
    await box.remove("s")
    types = [record.type for record in box.ring().chain(0)]
    assert types == [RecordType.SNAPSHOT, RecordType.SNAPSHOT, RecordType.DELETE], "the first is told by the second"


async def test_a_clone_has_the_holes_of_its_snapshot(box: Box) -> None:
    store(box.begin(), 3, 7)
    await box.take("s")
    await box.nvm.clone_snapshot(nvm.CloneRequest(snapshot=named("s"), name="clone"))
    (clone,) = [
        one for one in (await box.nvm.list_regions(nvm.RegionFilter(guest_id=GUEST_ID))).regions if one.name != "r"
    ]
    memory = box.memory.open(clone.arena)
    assert memory.read(0, clone.size_bytes) == box.content()
    assert memory.extents() == [(3 * PAGE_BYTES, PAGE_BYTES)]


async def test_several_snapshots_of_one_guest_come_one_after_the_other(box: Box) -> None:
    core = box.begin()
    store(core, 1, 1)
    await asyncio.gather(*(box.take(f"s{number}") for number in range(5)))
    assert {await box.read(f"s{number}") for number in range(5)} == {box.content()}
    assert len(list(box.ring().chain(0))) == 6


# -- hosts that die ---------------------------------------------------------------------------------------------------


async def every_death(
    box: Box, work: Callable[[NvmDeviceRef], Awaitable[object]], look: Callable[[Box], Awaitable[None]], every: int = 1
) -> None:
    """A host that dies at each of its stores while it works, and what its successor finds."""
    await box.node.stop()
    objects, media, passes = box.objects, box.media, 0
    while True:
        box.objects = Objects(objects.capacity_bytes)
        box.objects.by_name = copy.deepcopy(objects.by_name)
        box.media = copy.deepcopy(media)
        ref = await box.host()
        box.gate.passes = passes
        try:
            await work(ref)
        except EverramError:  # as the asker of a handler that broke is told
            pass
        died = box.gate.passes < 0
        box.gate.passes = 0
        await box.node.stop()
        await box.host()
        await look(box)
        await box.node.stop()
        passes += every
        if not died:
            await box.host()
            return


async def test_a_snapshot_that_a_death_cut_off_is_whole_or_nothing() -> None:
    box = Box(trapped=False)
    await box.host()
    await box.make("r", pages=4)
    core = box.begin()
    for page in range(3):
        store(core, page, page + 1)
    before = box.content()
    seen = set()

    async def look(box: Box) -> None:
        found = await box.nvm.snapshots(nvm.SnapshotFilter(guest_id=GUEST_ID))
        seen.add(len(found.snapshots))
        for page in range(3):  # of a guest whose stores nobody sees
            box.memory.open(box.regions[0].arena).write(page * PAGE_BYTES, b"later")
        if found.snapshots:
            assert await box.read("s") == before
            await box.remove("s")
        await until(box.is_empty)

    await every_death(box, lambda _: box.take("s"), look)
    assert seen == {0, 1}
    await box.node.stop()


async def test_a_reversion_that_a_death_cut_off_goes_on_and_is_told_of_meanwhile() -> None:
    box = Box()
    await box.host()
    await box.make("r", pages=4)
    core = box.begin()
    contents = {}
    for number in range(3):
        for page in range(number, 4):
            store(core, page, 10 * number + page + 1)
        contents[f"s{number}"] = box.content()
        await box.take(f"s{number}")
    store(core, 0, 99)
    box.end()
    await box.nvm.purge(nvm.PurgeRequest())
    store_all = box.content()
    states = set()

    async def look(box: Box) -> None:
        states.add(await box.is_usable())
        await until(box.is_usable)
        assert box.content() in (store_all, contents["s0"])
        for name, content in contents.items():
            assert await box.read(name) == content
        await box.remove(*contents)
        await until(box.is_empty)

    await every_death(box, lambda ref: ref.revert(named("s0")), look, every=3)
    assert states == {False, True}
    await box.node.stop()


async def test_a_reversion_whose_region_went_as_its_host_died_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box()
    await box.host()
    await box.make("r", pages=256)
    core = box.begin()
    for number in range(3):
        for page in range(256):
            store(core, page, number + 1)
        await box.take(f"s{number}")
    box.end()

    async def is_reverting() -> bool:
        return not await box.is_usable()

    def die(snapshots: object, region: object) -> None:
        box.gate.passes = 0
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(reverting, "abandon", die)
        reversion = asyncio.create_task(box.nvm.revert(named("s0")))
        await until(is_reverting)
        with pytest.raises(EverramError, match="Died"):
            await box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID))
    await box.node.stop()
    await asyncio.wait([reversion])
    assert reversion.exception() is not None
    await box.host()
    await until(box.is_empty)
    assert not [name for name in box.memory.names() if name.startswith(("region.", "log.", "pages."))]
    await box.node.stop()


async def test_a_region_that_a_death_left_half_grown_has_tables_that_fit() -> None:
    box = Box()
    await box.host()
    await box.make("r", kind=pb.MAPPED, pages=4)
    box.memory.open(box.regions[0].arena).write(0, b"x" * PAGE_BYTES)
    box.ring().say_ended()
    await box.take("s")
    sizes = set()

    async def look(box: Box) -> None:
        (region,) = (await box.nvm.list_regions(nvm.RegionFilter(guest_id=GUEST_ID))).regions
        table = PageTable.open(box.memory.open(table_name(GUEST_ID, "r")).map())
        assert table.pages * PAGE_BYTES == region.size_bytes == box.memory.open(region.arena).size_bytes
        assert box.memory.open(region.arena).read(0, PAGE_BYTES) == b"x" * PAGE_BYTES
        assert [name for name in box.memory.names() if name.startswith("region.")] == [region.arena]
        sizes.add(table.pages)

    asked = nvm.GrowRequest(region=nvm.RegionName(guest_id=GUEST_ID, region="r"), size_bytes=8 * PAGE_BYTES)
    await every_death(box, lambda ref: ref.grow_region(asked), look)
    assert sizes == {4, 8}
    await box.node.stop()


# -- guests that save old content themselves --------------------------------------------------------------------------


SAVED_PAGES = 520
"""More than one chunk."""


async def commit(core: GuestCore, stores: list[tuple[int, bytes]]) -> None:
    """As the blocking form of a guest does it: while there is no room it is tried again."""
    for _ in range(1000):
        try:
            with core.transaction() as tx:
                for offset, data in stores:
                    tx.store(core.region("r"), offset, data)
        except LogFull:
            await asyncio.sleep(0.001)
        else:
            return
    raise AssertionError("the host does not take out what the guest has saved")


ACTS = {
    "store": 12,
    "guest dies": 3,
    "take": 4,
    "host dies": 2,
    "purge": 1,
    "remove": 1,
    "revert": 1,
    "clone": 1,
    "grow": 1,
}
"""Each with its weight in the draw."""


class Life:
    """A guest and its host, everything that can become of them, and what their snapshots have to hold."""

    def __init__(self, box: Box, dice: random.Random) -> None:
        self.box, self.dice = box, dice
        self.taken: dict[str, bytes] = {}
        self.deaths = 0
        self.core = box.begin()

    @property
    def any_taken(self) -> str:
        return self.dice.choice(sorted(self.taken))

    async def take(self, name: str) -> None:
        await self.box.take(name)
        self.taken[name] = self.box.content()

    async def act(self, what: str, name: str) -> None:
        box, dice = self.box, self.dice
        size_bytes = box.regions[0].size_bytes
        stores = [
            (dice.randrange(size_bytes - 9000), dice.randbytes(dice.choice([8, 100, 9000])))
            for _ in range(dice.randint(1, 3))
        ]
        if what == "store":
            await commit(self.core, stores)
        elif what == "guest dies":
            box.guest_gate.passes = dice.randrange(20)
            with contextlib.suppress(Died):
                await commit(self.core, stores)
            self.deaths += box.guest_gate.passes < 0
            box.end()
            if dice.random() < 0.5:
                await self.take(name)  # brings what was committed into the region
            self.core = box.begin()
        elif what == "take":
            await self.take(name)
        elif what == "host dies":
            box.gate.passes = dice.randrange(80)
            with contextlib.suppress(EverramError):
                await box.take(name)
            box.gate.passes = 0
            await box.node.stop()
            await box.host()
            self.core = box.attach(self.core.epoch)  # where it stores is asked of the new host
            listed = await box.nvm.snapshots(nvm.SnapshotFilter(guest_id=GUEST_ID))
            if name in {one.name for one in listed.snapshots}:
                self.taken[name] = box.content()
        elif what == "purge":
            await box.nvm.purge(nvm.PurgeRequest())
        elif what == "grow":
            await self.grow(size_bytes + 8 * PAGE_BYTES)
        elif self.taken and what == "remove":
            name = self.any_taken
            await box.remove(name)
            del self.taken[name]
        elif self.taken and what == "revert":
            name = self.any_taken
            box.end()
            await box.nvm.revert(named(name))
            held = self.taken[name]
            assert box.content()[: len(held)] == held
            self.core = box.begin()
        elif self.taken and what == "clone":
            name = self.any_taken
            clone = await box.nvm.clone_snapshot(nvm.CloneRequest(snapshot=named(name), name="clone"))
            assert box.memory.open(clone.arena).read(0, clone.size_bytes) == self.taken[name]
            await box.nvm.remove_region(nvm.RegionName(guest_id=GUEST_ID, region="clone"))

    async def grow(self, size_bytes: int) -> None:
        box = self.box
        box.end()
        grown = nvm.GrowRequest(region=nvm.RegionName(guest_id=GUEST_ID, region="r"), size_bytes=size_bytes)
        before = box.content()
        box.regions = [await box.nvm.grow_region(grown)]
        assert box.content() == before.ljust(size_bytes, b"\0")
        await box.node.ref(VMemFSRef).put_guest(pb.Guest(guest_id=GUEST_ID, name="guest", regions=box.regions))
        self.core = box.begin()


@pytest.mark.parametrize("kind", ["trapped", "saving"])
@pytest.mark.parametrize("seed", range(4))
async def test_snapshots_are_exact_whatever_is_done_and_whoever_dies(seed: int, kind: str) -> None:
    box = Box(trapped=kind == "trapped", saving=kind == "saving", nvm_bytes=32 * MIB, storage_bytes=256 * MIB)
    await box.host()
    await box.make("r", pages=SAVED_PAGES)
    dice = random.Random(seed)
    life = Life(box, dice)
    for step in range(100):
        what = dice.choices(list(ACTS), weights=list(ACTS.values()))[0]
        await life.act(what, f"s{step}")
        if life.taken and step % 4 == 0:
            name = life.any_taken
            assert await read_whole(box, name, len(life.taken[name])) == life.taken[name]
    for name, content in life.taken.items():
        assert await read_whole(box, name, len(content)) == content
    assert life.deaths
    await box.remove(*life.taken)
    await until(box.is_empty)
    await box.node.stop()


async def read_whole(box: Box, name: str, size_bytes: int) -> bytes:
    pieces = []
    for offset in range(0, size_bytes, MIB):
        asked = nvm.ReadSnapshotRequest(snapshot=named(name), offset=offset, length=MIB)
        pieces.append((await box.nvm.read_snapshot(asked)).data)
    return b"".join(pieces)


async def test_what_a_guest_saved_is_read_before_its_host_has_taken_it_out() -> None:
    box = Box(trapped=False, saving=True)
    await box.host()
    await box.make("r")
    core = box.begin()
    store(core, 1, 1)
    await box.take("s")
    before = box.content()
    await box.nvm.quiesce(nvm.QuiesceMoves(on=True))  # nothing is taken out meanwhile
    store(core, 1, 2)
    store(core, 2, 2)
    assert await box.read("s") == before
    assert (await box.nvm.status(pb.Empty())).store_bytes == 0
    await box.nvm.quiesce(nvm.QuiesceMoves(on=False))
    await box.take("t")
    assert (await box.nvm.status(pb.Empty())).store_bytes == PAGE_BYTES, "of page 1: page 2 was a hole"
    assert (await box.read("s"), await box.read("t")) == (before, box.content())
    await box.node.stop()


async def test_a_guest_waits_while_there_is_no_place_for_what_it_has_to_save() -> None:
    box = Box(trapped=False, saving=True, nvm_bytes=8 * MIB)
    await box.host()
    await box.make("r", pages=2 * SLOTS_MAX)
    core = box.begin()
    await box.take("s")
    await box.nvm.quiesce(nvm.QuiesceMoves(on=True))
    for page in range(SLOTS_MAX):
        store(core, page, 1)
    tail = box.ring().tail
    with pytest.raises(LogFull, match="nothing was written"):
        store(core, SLOTS_MAX, 1)
    assert (box.ring().tail, box.ring().mapping.load_u64(COMMITTING)) == (tail, IDLE)
    store(core, 0, 2)  # saved before
    await box.nvm.quiesce(nvm.QuiesceMoves(on=False))
    await commit(core, [(page * PAGE_BYTES, b"x") for page in range(2 * SLOTS_MAX)])
    assert await box.read("s") == bytes(2 * SLOTS_MAX * PAGE_BYTES)
    await box.node.stop()


async def test_what_a_guest_saved_and_is_not_that_any_more_is_told_and_ends_the_guest() -> None:
    box = Box(trapped=False, saving=True)
    await box.host()
    await box.make("r")
    core = box.begin()
    store(core, 1, 1)
    await box.take("s")
    await box.nvm.quiesce(nvm.QuiesceMoves(on=True))
    store(core, 1, 2)
    old = box.memory.open(old_pages_name(GUEST_ID, "r"))
    old.write(old.size_bytes - PAGES * PAGE_BYTES, b"not that")
    await box.nvm.quiesce(nvm.QuiesceMoves(on=False))
    with pytest.raises(DataLoss, match="what its guest saved of page 1 does not match its checksum"):
        await box.take("t")

    async def is_told() -> bool:
        return "region r of guest g cannot be written to" in (await box.nvm.status(pb.Empty())).warning

    await until(is_told)
    assert box.computer.standing == set()
    await box.node.stop()


async def test_metadata_that_is_damaged_ends_the_guest_whose_store_met_it() -> None:
    box = Box()
    ended: list[FailRequest] = []

    class Ending(HypervisorActor):
        def fail(self, request: FailRequest) -> pb.Guest:
            ended.append(request)
            return pb.Guest()

    await box.host(Ending)
    await box.make("r")
    core = box.begin()
    store(core, 1, 1)
    await box.take("s")
    store(core, 2, 1)
    await box.take("t")
    snapshots = box.guard.keeper.snapshots  # type: ignore[union-attr]
    region = snapshots.regions[box.regions[0].arena]
    leaf = tables.leaf_of(snapshots.media, region.record.root, 1)
    snapshots.media.mapping.store_u64(tables.entry_offset(leaf, 1, tables.LEAF), 1 << 40)
    assert not ArenaKeeper(box.guard, box.regions[0].arena).lift(1), "the store does not take place"
    await until(lambda: asyncio.sleep(0, bool(ended)))
    assert ended[0].guest == GUEST_ID
    assert "region r of guest g cannot be written to" in ended[0].reason
    assert (await box.nvm.status(pb.Empty())).warning == ended[0].reason
    await box.node.stop()


# -- removing, reverting, reading, all at once ------------------------------------------------------------------------


async def test_a_snapshot_that_is_being_removed_is_not_read_as_something_else(box: Box) -> None:
    core = box.begin()
    for page in range(PAGES):
        store(core, page, 1)
    before = box.content()
    await box.take("s")
    for page in range(PAGES):
        store(core, page, 2)
    await box.take("t")
    await box.nvm.purge(nvm.PurgeRequest())

    async def read() -> bytes | None:
        try:
            return await box.read("s")
        except NotFound:
            return None

    async def remove(after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        await box.remove("s")

    found, _ = await asyncio.gather(read(), remove(20))
    assert found in (before, None)
    assert await box.read("t") == box.content()


async def test_a_region_goes_while_it_is_purged_reverted_and_its_snapshots_deleted(box: Box) -> None:
    core = box.begin()
    for number in range(4):
        for page in range(PAGES):
            store(core, page, number)
        await box.take(f"s{number}")
    box.end()
    going = [
        asyncio.create_task(work)
        for work in (
            box.nvm.purge(nvm.PurgeRequest()),
            box.nvm.revert(named("s1")),
            box.remove("s2"),
            box.nvm.remove_region(nvm.RegionName(guest_id=GUEST_ID, region="r")),
        )
    ]
    purged, reverted, removed, gone = await asyncio.gather(*going, return_exceptions=True)
    assert isinstance(reverted, EverramError)
    assert [isinstance(one, BaseException) for one in (purged, removed, gone)] == [False] * 3
    assert await box.is_empty()
    assert not [name for name in box.memory.names() if name.startswith("region.")]


def actor_of(box: Box) -> NvmDevice:
    return cast("NvmDevice", box.node._cells["everram.v1.NvmDevice"]._incarnation.actor)  # type: ignore[union-attr]


def wanted(guest_id: str, *names: str) -> nvm.CreateRegionsRequest:
    specs = [pb.RegionSpec(name=name, size_bytes=PAGE_BYTES) for name in names]
    return nvm.CreateRegionsRequest(guest_id=guest_id, regions=specs, log_bytes=MIN_CAPACITY_BYTES)


async def test_nobody_waits_for_the_snapshots_of_a_region_that_went_but_who_removes_it(box: Box) -> None:
    store(box.begin(), 1, 1)
    await box.take("s")
    box.end()
    async with actor_of(box)._keeper._moving:
        removing = asyncio.create_task(box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID)))
        assert len((await box.nvm.create_regions(wanted("other", "r"))).regions) == 1
        await box.nvm.remove_regions(nvm.RegionFilter(guest_id="other"))
        with pytest.raises(Unavailable, match="an earlier region r are still being removed"):
            await box.nvm.create_regions(wanted(GUEST_ID, "r"))
        assert not removing.done()
    await removing
    assert len((await box.nvm.create_regions(wanted(GUEST_ID, "r"))).regions) == 1
    assert await box.is_empty()


async def test_snapshots_that_could_not_be_removed_are_no_other_regions(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(box.begin(), 1, 1)
    await box.take("s")
    box.end()

    async def fail(records: object) -> None:
        raise DataLoss("gone")

    with monkeypatch.context() as patched:
        patched.setattr(actor_of(box)._keeper, "remove", fail)
        with pytest.raises(DataLoss):
            await box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID))
        with pytest.raises(Unavailable):
            await box.nvm.create_regions(wanted(GUEST_ID, "r"))
    with pytest.raises(Unavailable):  # but now it is tried again
        await box.nvm.create_regions(wanted(GUEST_ID, "r"))

    async def is_forgotten() -> bool:
        return not actor_of(box)._keeper.snapshots.regions

    await until(is_forgotten)
    assert len((await box.nvm.create_regions(wanted(GUEST_ID, "r"))).regions) == 1
    assert await box.is_empty()


async def test_of_regions_that_go_while_they_are_caught_up_with_no_snapshot_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Box(trapped=False)
    await box.host()
    await box.make("a", "b", kind=pb.MAPPED)
    box.ring().say_ended()
    await box.take("s", "b")
    removing: list[asyncio.Task[Any]] = []
    snapshots = actor_of(box)._keeper.snapshots
    catch_up = snapshots.catch_up

    def caught_up(origin: str) -> Any:
        removing.append(asyncio.create_task(box.nvm.remove_region(nvm.RegionName(guest_id=GUEST_ID, region="a"))))
        for _ in range(20):
            yield
        yield from catch_up(origin)

    monkeypatch.setattr(snapshots, "catch_up", caught_up)
    with pytest.raises(EverramError):
        await box.take("t", "a", "b")
    await asyncio.gather(*removing)
    assert "region.g.a" not in snapshots.regions
    assert [one.name for one in (await box.nvm.snapshots(nvm.SnapshotFilter())).snapshots] == ["s"]
    await box.node.stop()


async def test_many_regions_go_where_there_are_no_metadata_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box()
    await box.host()
    names = [f"r{number}" for number in range(4 * SPARE_PAGES)]
    await box.make(*names, pages=1)
    box.ring().say_ended()
    for name in names:
        await box.take("s", name)
    media = actor_of(box)._keeper.snapshots.media

    def no_room(media: object) -> None:
        raise ResourceExhausted("no room for more metadata")

    monkeypatch.setattr(type(media), "_add_pages", no_room)
    while media.pages.free > SPARE_PAGES:
        media.pages.take()
    await box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID))
    status = await box.nvm.status(pb.Empty())
    assert (status.regions, status.snapshots, status.store_bytes) == (0, 0, 0)
    await box.node.stop()


async def test_who_waits_for_deletions_that_go_on_by_themselves_begins_none_of_them_again(box: Box) -> None:
    """They go on beside each other, so one may have ended while another was waited for."""
    core = box.begin()
    for number in range(8):
        for page in range(PAGES):
            store(core, page, number)
        await box.take(f"s{number}")
    box.end()
    keeper = actor_of(box)._keeper
    (origin,) = keeper.snapshots.regions
    await keeper.begin_removal(keeper.snapshots.of(origin))
    assert await keeper.removals_end([origin])
    assert (keeper.snapshots.records, await keeper.removals_end([origin])) == ({}, False)


async def test_a_clone_counts_only_if_there_is_still_room_and_somebody_to_have_it(box: Box) -> None:
    store(box.begin(), 1, 1)
    await box.take("s")
    ask = nvm.CloneRequest(snapshot=named("s"), name="c")
    cloned, again = await asyncio.gather(
        box.nvm.clone_snapshot(ask), box.nvm.clone_snapshot(ask), return_exceptions=True
    )
    assert isinstance(again, AlreadyExists)
    assert isinstance(cloned, pb.Region)
    assert box.memory.open(cloned.arena).read(0, 2 * PAGE_BYTES) == box.content()[: 2 * PAGE_BYTES]
    box.end()
    gone = nvm.CloneRequest(snapshot=named("s"), name="d")
    _, refused = await asyncio.gather(
        box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID)),
        box.nvm.clone_snapshot(gone),
        return_exceptions=True,
    )
    assert isinstance(refused, EverramError)
    assert await box.is_empty()
    assert not [name for name in box.memory.names() if name.startswith(("region.", "log.", "pages."))]


async def test_who_saves_the_memory_is_heard_while_a_removal_waits_for_it(box: Box) -> None:
    store(box.begin(), 1, 1)
    await box.take("s")
    box.end()
    await box.nvm.quiesce(nvm.QuiesceMoves(on=True))
    if box.traps is not None:
        assert box.guard.keeper is not None
        with pytest.raises(ResourceExhausted, match="being saved"):
            box.guard.keeper.before_write(box.regions[0].arena, 1)
    taking = asyncio.create_task(box.take("t"))
    removing = asyncio.create_task(box.nvm.remove_regions(nvm.RegionFilter(guest_id=GUEST_ID)))
    with pytest.raises(Unavailable, match="being saved"):
        await box.nvm.create_regions(wanted("other", "r"))
    await box.nvm.remove_regions(nvm.RegionFilter(guest_id="other"))  # as who asked for it does then
    for _ in range(20):
        await asyncio.sleep(0)
    assert not removing.done()
    assert box.regions[0].arena in box.memory.names(), "what is saved stays"
    async with asyncio.timeout(5):
        await box.nvm.quiesce(nvm.QuiesceMoves(on=False))
        await removing
        await asyncio.wait([taking])
    assert taking.exception() is not None
    assert await box.is_empty()


async def test_a_region_that_is_made_longer_gives_way_to_who_saves_the_memory() -> None:
    box = Box(nvm_bytes=32 * MIB)
    await box.host()
    await box.make("r", kind=pb.MAPPED, pages=2048)
    arena = box.memory.open(box.regions[0].arena)
    arena.write(0, b"x" * arena.size_bytes)
    asked = nvm.GrowRequest(
        region=nvm.RegionName(guest_id=GUEST_ID, region="r"), size_bytes=arena.size_bytes + PAGE_BYTES
    )
    growing = asyncio.create_task(box.nvm.grow_region(asked))

    async def has_begun() -> bool:
        return len([name for name in box.memory.names() if name.startswith("region.")]) == 2

    await until(has_begun)
    await box.nvm.quiesce(nvm.QuiesceMoves(on=True))
    with pytest.raises(Unavailable, match="being saved"):
        await growing
    assert [name for name in box.memory.names() if name.startswith("region.")] == [box.regions[0].arena]
    await box.nvm.quiesce(nvm.QuiesceMoves(on=False))
    assert (await box.nvm.grow_region(asked)).size_bytes == asked.size_bytes
    await box.node.stop()


# -- what a later or a damaged everram left ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "value", "error", "said"),
    [
        (8, 9, FailedPrecondition, "written in version 9"),
        (16, 1, DataLoss, "does not match its checksum"),
        (0, 1, DataLoss, "is not their magic"),
    ],
)
async def test_metadata_that_cannot_be_read_is_refused_and_left_alone(
    at: int, value: int, error: type[EverramError], said: str
) -> None:
    box = Box()
    await box.host()
    await box.make("r")
    await box.node.stop()
    metadata = box.memory.open("nvm.snapshots")
    superblock = bytearray(metadata.read(0, PAGE_BYTES))
    superblock[at] = value
    if error is FailedPrecondition:
        superblock[STATIC_BYTES : STATIC_BYTES + 4] = zlib.crc32(superblock[:STATIC_BYTES]).to_bytes(4, "little")
    metadata.write(0, bytes(superblock))
    with pytest.raises(error, match=said):
        await box.host()
    assert box.memory.open("nvm.snapshots").read(0, PAGE_BYTES) == superblock


# -- storage and room -------------------------------------------------------------------------------------------------


async def test_a_block_that_storage_has_lost_stops_what_needs_it_and_nothing_else() -> None:
    box = Box()
    await box.host()
    await box.make("r", pages=4)
    core = box.begin()
    for page in range(4):
        store(core, page, 1)
    await box.take("s")
    for page in range(4):
        store(core, page, 2)
    now = box.content()
    await box.nvm.purge(nvm.PurgeRequest())
    file = box.media.files["nvm/purged"]
    file.cached[content_offset(0) + 17] ^= 1
    with pytest.raises(DataLoss, match="slot 0 at offset 69632 does not match its checksum"):
        await box.read("s")
    assert len((await box.nvm.check(pb.Empty())).findings) == 1
    box.end()
    with pytest.raises(DataLoss, match="nothing has changed"):
        await box.nvm.revert(named("s"))
    assert box.content() == now
    assert await box.is_usable()
    await box.node.stop()
    await box.host()  # nor does it keep a successor from starting
    await box.remove("s")
    assert await box.is_empty()
    await box.node.stop()


async def test_a_full_device_and_full_storage_are_told_of_until_there_is_room() -> None:
    box = Box(storage_bytes=4 * PAGE_BYTES)
    await box.host()
    await box.make("r", pages=256)
    core = box.begin()
    for page in range(256):
        store(core, page, 1)
    before = box.content()
    await box.take("s")
    with pytest.raises(ResourceExhausted):
        for number in range(1, 9):
            for page in range(256):
                store(core, page, number)
            await box.take(f"s{number}")

    async def has_taken_what_it_can() -> bool:
        return (await box.nvm.status(pb.Empty())).storage_bytes == box.storage_bytes

    await until(has_taken_what_it_can)
    status = await box.nvm.status(pb.Empty())
    assert status.allocated_bytes <= status.capacity_bytes
    warned = status.warning
    assert warned.startswith(("old blocks are not purged: no place on storage", "only "))
    assert await box.read("s") == before
    listed = await box.nvm.snapshots(nvm.SnapshotFilter(guest_id=GUEST_ID, usage=True))
    await box.remove(*(one.name for one in listed.snapshots))
    await until(box.is_content)
    assert await box.is_empty()
    core = box.attach(core.epoch)
    store(core, 1, 9)
    await box.node.stop()


async def test_a_copy_for_which_there_is_no_room_leaves_no_snapshot() -> None:
    box = Box(trapped=False, nvm_bytes=2 * MIB, storage_bytes=4 * PAGE_BYTES)
    await box.host()
    await box.make("r", pages=256)
    core = box.begin()
    for page in range(256):
        store(core, page, 1)
    with pytest.raises(ResourceExhausted):
        for number in range(4):
            await box.take(f"s{number}")
            for page in range(256):
                store(core, page, number)
    assert box.computer.standing == set()
    listed = await box.nvm.snapshots(nvm.SnapshotFilter(guest_id=GUEST_ID))
    await box.nvm.control_purge(nvm.PurgeControl(paused=True))
    with pytest.raises(ResourceExhausted, match=r"paused|too little"):
        await asyncio.wait_for(box.take("more"), 5)
    assert [one.name for one in listed.snapshots] == [
        one.name for one in (await box.nvm.snapshots(nvm.SnapshotFilter(guest_id=GUEST_ID))).snapshots
    ]
    if listed.snapshots:
        await box.remove(*(one.name for one in listed.snapshots))
    assert await box.is_empty()
    await box.node.stop()
