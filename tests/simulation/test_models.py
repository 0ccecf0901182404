"""The simulated disk and network do what real ones may do, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import DataLoss, NotFound, ResourceExhausted, Unavailable
from everram.runtime.simulation.disk import SECTOR_BYTES, DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import WINDOW_BATCHES, Fabric, LinkFaults, SimulatedNetwork


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    yield loop
    loop.abandon()


# -- disk -------------------------------------------------------------------------------------------------------------


def after_power_loss(loop: SimulationLoop, seed: int, *, sync: bool) -> bytes:
    media = Media(Seeds(seed).stream("disk"))

    async def scenario() -> bytes:
        disk = SimulatedDisk(media)
        file = await disk.open("image/regions/0", create=True)
        await file.pwrite(0, b"a" * 4 * SECTOR_BYTES)
        await file.sync()
        await file.pwrite(0, b"b" * 4 * SECTOR_BYTES)
        if sync:
            await file.sync()
        assert await disk.read("image/regions/0") == b"b" * 4 * SECTOR_BYTES
        media.power_loss()
        return await disk.read("image/regions/0")

    return loop.run_until_complete(scenario())


def test_a_power_loss_keeps_loses_or_tears_what_was_not_synced(loop: SimulationLoop) -> None:
    outcomes = {after_power_loss(loop, seed, sync=False) for seed in range(40)}
    old, new = b"a" * 4 * SECTOR_BYTES, b"b" * 4 * SECTOR_BYTES
    assert {old, new} < outcomes
    for outcome in outcomes:
        sectors = [outcome[at : at + SECTOR_BYTES] for at in range(0, len(outcome), SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors)


def test_what_was_synced_stays(loop: SimulationLoop) -> None:
    assert {after_power_loss(loop, seed, sync=True) for seed in range(40)} == {b"b" * 4 * SECTOR_BYTES}


def test_replace_is_old_or_new_for_whoever_dies_in_it(loop: SimulationLoop) -> None:
    outcomes = set()

    async def one(seed: int) -> bytes:
        media = Media(Seeds(seed).stream("disk"), faults=DiskFaults(latency_min_s=1e-3, latency_max_s=1e-3))
        disk = SimulatedDisk(media)
        await disk.replace("marker", b"old")
        domain = loop.domain("host")
        loop.spawn(domain, disk.replace("marker", b"new"))
        await asyncio.sleep(0.5e-3)
        loop.kill(domain)
        media.power_loss()
        return await disk.read("marker")

    for seed in range(20):
        outcomes.add(loop.run_until_complete(one(seed)))
    assert outcomes == {b"old", b"new"}


def test_folders_full_disks_and_errors(loop: SimulationLoop) -> None:
    media = Media(Seeds(1).stream("disk"), capacity_bytes=1000)
    disk = SimulatedDisk(media)

    async def scenario() -> None:
        await disk.replace("image/a", b"x" * 400)
        await disk.replace("image/sub/b", b"x" * 400)
        assert await disk.list("image") == ["a"]
        assert await disk.free_bytes() == 200
        with pytest.raises(ResourceExhausted):
            await disk.replace("c", b"x" * 201)
        await disk.replace("image/a", b"x" * 600)
        file = await disk.open("image/a")
        with pytest.raises(ResourceExhausted):
            await file.pwrite(600, b"x")
        await disk.remove("image")
        assert await disk.list("image") == []
        with pytest.raises(NotFound):
            await disk.read("image/a")
        media.faults.error_rate = 1.0
        with pytest.raises(DataLoss):
            await disk.replace("c", b"")

    loop.run_until_complete(scenario())


# -- network ----------------------------------------------------------------------------------------------------------


class Pair:
    """Host a, connected to host b."""

    def __init__(self, loop: SimulationLoop, faults: LinkFaults | None = None, seed: int = 1) -> None:
        self.loop = loop
        self.fabric = Fabric(loop, Seeds(seed).stream("network"), faults)
        self.a, self.b = loop.domain("a"), loop.domain("b")
        self.network_a: SimulatedNetwork = self.fabric.network("a", self.a)
        self.network_b: SimulatedNetwork = self.fabric.network("b", self.b)
        self.received: list[bytes] = []
        self.address = HostAddress("b", "id", self.network_b.address)
        self.broken_at_b = False

    async def collect(self, stream: LinkStream) -> None:
        try:
            while True:
                self.received.append(await stream.receive())
        except Unavailable:
            self.broken_at_b = True

    async def connect(self) -> LinkStream:
        self.network_b.serve(self.collect)
        return await self.network_a.connect(self.address)


def test_batches_arrive_in_order_and_take_time(loop: SimulationLoop) -> None:
    pair = Pair(loop)

    async def scenario() -> None:
        stream = await pair.connect()
        before = loop.time()
        for number in range(500):
            await stream.send(b"%d" % number)
        await asyncio.sleep(1)
        assert before < loop.time()
        stream.close()
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert pair.received == [b"%d" % number for number in range(500)]
    assert pair.broken_at_b


def test_nobody_listens(loop: SimulationLoop) -> None:
    pair = Pair(loop)
    with pytest.raises(Unavailable, match="nothing listens"):
        loop.run_until_complete(pair.network_a.connect(pair.address))


def test_the_death_of_a_process_ends_its_streams_and_freezing_it_does_not(loop: SimulationLoop) -> None:
    pair = Pair(loop)

    async def scenario() -> tuple[bool, bool]:
        stream = await pair.connect()
        loop.freeze(pair.a)
        await asyncio.sleep(10)
        while_frozen = pair.broken_at_b
        loop.kill(pair.a)
        await asyncio.sleep(1)
        with pytest.raises(Unavailable):
            await stream.send(b"late")
        return while_frozen, pair.broken_at_b

    assert loop.run_until_complete(scenario()) == (False, True)
    assert not pair.received


def test_a_stopped_receiver_stops_the_sender(loop: SimulationLoop) -> None:
    pair = Pair(loop)

    async def scenario() -> int:
        stream = await pair.connect()
        loop.freeze(pair.b)
        sent = 0
        try:
            async with asyncio.timeout(5):
                while True:
                    await stream.send(b"x")
                    sent += 1
        except TimeoutError:
            return sent

    assert loop.run_until_complete(scenario()) == WINDOW_BATCHES


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_direction_holds_or_loses_and_the_other_passes(loop: SimulationLoop, seed: int) -> None:
    pair = Pair(loop, seed=seed)

    async def scenario() -> list[bytes]:
        stream = await pair.connect()
        await stream.send(b"before")
        await asyncio.sleep(1)
        pair.fabric.cut("a", "b")
        await stream.send(b"during")
        await asyncio.sleep(5)
        assert pair.received == [b"before"]
        with pytest.raises(Unavailable, match="does not answer"):
            await pair.network_a.connect(pair.address)
        pair.fabric.heal()
        await stream.send(b"after")
        await asyncio.sleep(1)
        return pair.received

    assert loop.run_until_complete(scenario()) in ([b"before", b"during", b"after"], [b"before", b"after"])


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        (LinkFaults(loss=0.1), "loss"),
        (LinkFaults(duplication=0.1), "duplication"),
        (LinkFaults(reordering=0.5), "reordering"),
    ],
)
def test_link_faults_do_what_their_name_says(loop: SimulationLoop, faults: LinkFaults, kind: str) -> None:
    pair = Pair(loop, faults)

    async def scenario() -> None:
        stream = await pair.connect()
        loop.freeze(pair.b)
        for number in range(40):
            await stream.send(b"%02d" % number)
        await asyncio.sleep(1)
        loop.thaw(pair.b)
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    sent = [b"%02d" % number for number in range(40)]
    if kind == "loss":
        assert len(pair.received) < 40
        assert pair.received == sorted(pair.received)
    elif kind == "duplication":
        assert len(pair.received) > 40
        assert sorted(set(pair.received)) == sent
    else:
        assert pair.received != sent
        assert sorted(pair.received) == sent


def test_a_restarted_host_takes_its_address_over(loop: SimulationLoop) -> None:
    pair = Pair(loop)
    successor: Domain = loop.domain("b2")

    async def scenario() -> None:
        await pair.connect()
        loop.kill(pair.b)
        pair.fabric.network("b", successor).serve(pair.collect)
        stream = await pair.network_a.connect(pair.address)
        await stream.send(b"hello")
        await asyncio.sleep(1)

    loop.run_until_complete(scenario())
    assert pair.received == [b"hello"]
