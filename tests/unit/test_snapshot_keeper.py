"""The keeper of a host's snapshots: what it writes into the logs of guests, and what it does where there is no room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.nvm_device.budget import Budget
from everram.actors.nvm_device.guest_log import GuestLog
from everram.actors.nvm_device.keeper import Arenas, SnapshotKeeper
from everram.actors.nvm_device.media import Media
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.writers import Writers
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.errors import FailedPrecondition, ResourceExhausted, Unavailable
from everram.runtime.log.record import RecordFlags, RecordType, pack_stores
from everram.runtime.log.ring import BUSY, COMMITTING, IDLE, MIN_CAPACITY_BYTES, Ring, log_name
from everram.runtime.log.writer import LogWriter
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.disk import DiskFaults, SimulatedDisk
from everram.runtime.simulation.disk import Media as DiskMedia
from everram.runtime.simulation.entropy import Seeds
from tests.loose_memory import LooseMemory
from tests.snapshot_device import HeapBlocks, Space

GUESTS = ("g1", "g2")


def ring_of(guest_id: str = "g") -> Ring:
    mapping = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
    return Ring.format(mapping, guest_id=guest_id, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)


def test_what_a_host_appended_is_no_commit_of_the_guest() -> None:
    """A guest that has not attached yet, or never does, says nothing of commits, and makes none."""
    ring = ring_of()
    log = GuestLog(ring)
    for _ in range(2):
        assert log.is_still()
        log.append(RecordType.SNAPSHOT, LogOperation(name="s", regions=["r"]))
        log.publish()
    writer = LogWriter(ring)
    writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores([(0, 0, b"guest")]))
    writer.publish()
    writer.publish_applied()
    with pytest.raises(FailedPrecondition, match="does not say when it commits"):
        log.is_still()


class Trapped:
    """`Writers` of guests that can be trapped."""

    def is_served(self, guest_id: str, region: str) -> bool:
        return True

    def protect(self, guest_id: str, region: str) -> None:
        pass

    def retry_all(self) -> None:
        pass

    def waiting_pages(self) -> int:
        return 0


class TrappedUnlessEnding(Trapped):
    """And of which one is ending."""

    def protect(self, guest_id: str, region: str) -> None:
        if guest_id == "g2":
            raise Unavailable("its guest is ending")


class FullBlocks(HeapBlocks):
    """Room for two blocks."""

    def persist(self, number: int, data: bytes) -> None:
        if len(self.content) == 2:
            raise ResourceExhausted("the machine has no memory left")
        super().persist(number, data)


class FakeMachine:
    async def guests(self) -> list[Any]:
        return [SimpleNamespace(guest_id=guest_id, pid=1) for guest_id in GUESTS]

    async def freeze(self, guest_id: str, reason: str) -> None:
        pass

    async def thaw(self, guest_id: str, reason: str) -> None:
        pass


class World:
    """Two guests that run, each with a region of which three pages hold something."""

    def __init__(self, memory: LooseMemory, writers: Writers | None) -> None:
        self.regions = [
            pb.Region(name="r", guest_id=guest_id, arena=f"region.{guest_id}.r", kind=pb.LOGGED, size_bytes=1 << 20)
            for guest_id in GUESTS
        ]
        self.rings: list[Ring] = []
        for region in self.regions:
            memory.make(region.arena, region.size_bytes).write(0, b"x" * 3 * PAGE_BYTES)
            log = memory.make(log_name(region.guest_id), Ring.total_bytes(MIN_CAPACITY_BYTES)).map()
            ring = Ring.format(log, guest_id=region.guest_id, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
            ring.publish(COMMITTING, IDLE)
            self.rings.append(ring)
        arenas, budget = Arenas(memory), Budget(1 << 30)
        self.snapshots = Snapshots(Media.format(Space()), arenas.open, FullBlocks())
        budget.use(self.snapshots.media)
        clock = SimpleNamespace(wall_ns=lambda: 1, now_ns=lambda: 1)
        disk = SimulatedDisk(DiskMedia(Seeds(1).stream("disk"), 1 << 30, DiskFaults()))
        environment = SimpleNamespace(memory=memory, clock=clock, machine=FakeMachine(), disk=disk)
        spawn = lambda work, name: asyncio.ensure_future(work)  # noqa: E731
        context = cast(Any, SimpleNamespace(environment=environment, spawn=spawn, log=logging.getLogger("test")))
        guard = PageGuard()
        self.keeper = SnapshotKeeper(context, self.snapshots, arenas, guard, writers, budget)
        guard.keeper = self.keeper

    def logged(self) -> list[list[int]]:
        """Types of the records that count, or would if the guest died now."""
        return [[record.type for record in ring.chain(0)] for ring in self.rings]

    def close(self) -> None:
        for ring in self.rings:
            ring.mapping.close()


@pytest.fixture
def memory() -> Iterator[LooseMemory]:
    with contextlib.closing(LooseMemory()) as loose:
        yield loose


async def test_what_is_not_taken_is_in_no_log(memory: LooseMemory) -> None:
    with contextlib.closing(World(memory, TrappedUnlessEnding())) as world:
        with pytest.raises(Unavailable, match="ending"):
            await world.keeper.take(world.regions, "s")
        assert world.logged() == [[], []]
        assert not world.snapshots.records
        await world.keeper.take(world.regions[:1], "s")
        assert world.logged() == [[RecordType.SNAPSHOT], []]


async def test_what_cannot_be_copied_whole_is_taken_back(memory: LooseMemory) -> None:
    """Where nobody sees stores, a snapshot that is not copied would change with the next one. There is no storage."""
    with contextlib.closing(World(memory, None)) as world:
        with pytest.raises(ResourceExhausted, match="no place on storage"):
            await world.keeper.take(world.regions, "s")
        assert [list(world.snapshots.of(region.arena)) for region in world.regions] == [[], []]
        assert world.logged() == [[RecordType.SNAPSHOT, RecordType.DELETE]] * 2


async def test_a_snapshot_is_removed_while_its_guest_waits_for_the_room(memory: LooseMemory) -> None:
    """It does so in the midst of a commit, where nothing can be written into its log."""
    with contextlib.closing(World(memory, Trapped())) as world:
        taken = await world.keeper.take(world.regions, "s")
        world.rings[0].publish(COMMITTING, BUSY)
        await world.keeper.remove_everywhere(list(zip(world.regions, taken, strict=True)))
        assert not world.snapshots.records
        assert world.logged() == [[RecordType.SNAPSHOT]] * 2
        world.rings[0].publish(COMMITTING, IDLE)
        again = await world.keeper.take(world.regions, "s")
        await world.keeper.remove_everywhere(list(zip(world.regions, again, strict=True)))
        assert world.logged() == [[RecordType.SNAPSHOT, RecordType.SNAPSHOT, RecordType.DELETE]] * 2


async def test_a_clone_has_the_holes_of_its_snapshot(memory: LooseMemory) -> None:
    with contextlib.closing(World(memory, Trapped())) as world:
        (taken,) = await world.keeper.take(world.regions[:1], "s")
        clone = memory.make("clone", 1 << 20)
        await world.keeper.fill(taken, clone)
        assert clone.read(0, 4 * PAGE_BYTES) == b"x" * 3 * PAGE_BYTES + bytes(PAGE_BYTES)
        assert sum(length for _, length in clone.extents()) == 3 * PAGE_BYTES
