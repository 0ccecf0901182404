"""The mirror of the directory: after changes, lost connections, compaction and restarts of coordination."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Delete, Put, prefix
from everram.runtime.coordination.directory import encode, guest_key, host_key, machine_key, serving_key
from everram.runtime.coordination.mirror import Mirror
from everram.runtime.simulation.coordination import PLACE, CoordinationServer
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric


class Rig:
    def __init__(self, seed: int) -> None:
        self.seeds = Seeds(seed)
        self.loop = SimulationLoop(self.seeds.stream("loop"))
        self.fabric = Fabric(self.loop, self.seeds.stream("network"))
        self.server = CoordinationServer(self.loop, self.fabric, self.seeds.stream("coordination"))
        self.server.start()
        self.writer = self.server.client("writer")
        self.mirror = Mirror(self.server.client("h1"))
        self.changes = 0
        self.mirror.listeners.append(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def run(self, script: Callable[[], Awaitable[None]]) -> None:
        async def scenario() -> None:
            task = self.loop.spawn(self.loop.domain("h1"), self.mirror.run())
            await self.mirror.filled()
            await script()
            task.cancel()

        self.loop.run_until_complete(scenario())

    async def same(self) -> None:
        """Until the mirror shows what the directory holds."""
        async with asyncio.timeout(20):
            while True:
                _, pairs = await self.writer.range(prefix(directory.ROOT))
                folders = (
                    (directory.GUESTS, self.mirror.guests), (directory.HOSTS, self.mirror.hosts),
                    (directory.SERVING, self.mirror.serving), (directory.MACHINES, self.mirror.machines),
                )  # fmt: skip
                shown = [
                    entry.pair for root, entries in folders for _, entry in sorted(entries.items())
                ] + ([self.mirror.leader.pair] if self.mirror.leader else [])  # fmt: skip
                kept = [pair for pair in pairs if not pair.key.startswith(directory.NAMES)]
                if sorted(shown, key=lambda pair: pair.key) == kept:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture(params=[1, 2, 3])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.loop.abandon()


async def change(rig: Rig, rounds: int = 5) -> None:
    """All kinds of keys come, change and go."""
    stream = rig.seeds.stream("changes")
    for number in range(rounds):
        name = f"g{stream.randrange(3)}"
        await rig.writer.put(Put(guest_key(name), encode({"host": "h1", "epoch": number})))
        await rig.writer.put(Put(host_key(name), encode({"memory_id": f"m{number}"})))
        await rig.writer.put(Put(serving_key(name), encode({"host": "h1", "epoch": number})))
        await rig.writer.put(Put(machine_key(name), encode({"state": "dead"})))
        await rig.writer.put(Put(directory.LEADER, encode({"host": name})))
        await rig.writer.put(Put(directory.name_key(name), encode({"guest_id": name})))
        gone = f"g{stream.randrange(3)}"
        await rig.writer.txn((), [Delete(guest_key(gone)), Delete(serving_key(gone)), Delete(host_key(gone))])


def test_it_shows_what_is_there(rig: Rig) -> None:
    async def script() -> None:
        await change(rig, 30)
        await rig.same()
        await rig.writer.put(Put(guest_key("a"), encode({"host": "h1", "memory_id": "m1", "epoch": 7})))
        await rig.same()
        record = rig.mirror.guests["a"].record
        assert record is not None
        assert (record.owner.host, record.owner.memory_id, record.epoch) == ("h1", "m1", 7)

    rig.run(script)


def test_keys_of_one_lease_go_together(rig: Rig) -> None:
    async def script() -> None:
        lease, _ = await rig.writer.lease_grant(60.0)
        for key in (host_key("h2"), serving_key("g"), directory.LEADER):
            await rig.writer.put(Put(key, encode({"host": "h2"}), lease))
        await rig.same()
        shown = set()
        rig.mirror.listeners.append(
            lambda: shown.add(("h2" in rig.mirror.hosts, "g" in rig.mirror.serving, rig.mirror.leader is not None))
        )
        await rig.writer.lease_revoke(lease)
        await rig.same()
        assert shown == {(False, False, False)}

    rig.run(script)


def test_it_goes_on_after_cuts_and_restarts(rig: Rig) -> None:
    async def script() -> None:
        for _ in range(3):
            rig.fabric.cut("h1", PLACE)
            await change(rig)
            await asyncio.sleep(5)
            rig.fabric.heal()
            await change(rig)
            rig.server.kill()
            await asyncio.sleep(0.3)
            rig.server.start()
            await change(rig)
            await rig.same()

    rig.run(script)


def test_it_reads_everything_again_after_compaction(rig: Rig) -> None:
    async def script() -> None:
        await change(rig)
        await rig.same()
        rig.fabric.cut("h1", PLACE)
        await asyncio.sleep(3)
        await change(rig, 20)
        await rig.writer.delete(Delete(guest_key("g1")))
        before, revision = rig.mirror.guests_revision, await rig.writer.put(Put(host_key("h9"), encode({})))
        service = rig.server.endpoint.service
        assert service is not None
        await service.embedded.compact(revision)
        rig.fabric.heal()
        await rig.same()
        assert "g1" not in rig.mirror.guests
        assert rig.mirror.guests_revision > before
        await change(rig)
        await rig.same()

    rig.run(script)


def test_what_cannot_be_read_is_there_without_a_record(rig: Rig) -> None:
    async def script() -> None:
        for number, value in enumerate((b"", b"\xff", b"[1]", b"{", b'{"epoch": "x"}')):
            await rig.writer.put(Put(guest_key(f"g{number}"), value))
        await rig.writer.put(Put(directory.LEADER, b"me"))
        await rig.writer.put(Put(guest_key("\N{SNOWMAN}"), encode({"epoch": 1})))
        await rig.writer.put(Put(directory.GUESTS + b"\xff\xfe", encode({"epoch": 1})))
        await rig.same()
        assert [rig.mirror.guests[f"g{number}"].record for number in range(5)] == [None] * 5
        assert rig.mirror.leader is not None
        assert rig.mirror.leader.record is None
        await rig.writer.put(Put(guest_key("g0"), encode({"epoch": 9})))
        await rig.same()
        repaired = rig.mirror.guests["g0"].record
        assert repaired is not None
        assert repaired.epoch == 9

    rig.run(script)


def test_listeners_hear_of_each_batch(rig: Rig) -> None:
    async def script() -> None:
        before = rig.changes
        await rig.writer.put(Put(guest_key("g"), encode({})))
        await rig.same()
        assert rig.changes == before + 1

    rig.run(script)
