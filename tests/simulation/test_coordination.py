"""Coordination behind a simulated network: the embedded store, its deaths, and what its clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from everram.runtime.coordination.api import Put, Range, WatchBatch, prefix
from everram.runtime.errors import DeadlineExceeded, EverramError, NotFound, Outcome, ResourceExhausted, Unavailable
from everram.runtime.simulation.coordination import PLACE, CoordinationServer, SimulatedCoordination
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric


class Rig:
    def __init__(self, seed: int = 1) -> None:
        seeds = Seeds(seed)
        self.loop = SimulationLoop(seeds.stream("loop"))
        self.fabric = Fabric(self.loop, seeds.stream("network"))
        self.server = CoordinationServer(self.loop, self.fabric, seeds.stream("coordination"))
        self.client: SimulatedCoordination = self.server.client("h1")
        self.server.start()

    def run(self, script: Callable[[], Awaitable[None]]) -> None:
        async def scenario() -> None:
            await script()

        self.loop.run_until_complete(scenario())


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.abandon()


def test_what_was_answered_survives_a_kill_and_leases_get_their_time_again(rig: Rig) -> None:
    async def script() -> None:
        lease, ttl_s = await rig.client.lease_grant(2.0)
        assert ttl_s == 2.0
        await rig.client.put(Put(b"a", b"1"))
        await rig.client.put(Put(b"b", b"2", lease))
        rig.server.kill()
        await asyncio.sleep(1.9)
        rig.server.start()
        assert [kv.key for kv in (await rig.client.range(Range(b"\0", b"\0")))[1]] == [b"a", b"b"]
        await rig.client.lease_keepalive(lease)
        await asyncio.sleep(3)
        assert [kv.key for kv in (await rig.client.range(Range(b"\0", b"\0")))[1]] == [b"a"]
        with pytest.raises(NotFound):
            await rig.client.lease_keepalive(lease)

    rig.run(script)


def test_a_client_waits_for_the_server_within_its_deadline(rig: Rig) -> None:
    async def script() -> None:
        rig.server.kill()
        rig.loop.call_later(0.5, rig.server.start)
        await rig.client.put(Put(b"a", b"1"))
        rig.server.kill()
        with pytest.raises(Unavailable) as caught:
            await rig.client.put(Put(b"a", b"2"))
        assert caught.value.outcome is Outcome.FAILED

    rig.run(script)


@pytest.mark.parametrize("fault", ["hang", "cut"])
def test_a_lost_answer_to_a_write_is_unknown(rig: Rig, fault: str) -> None:
    async def script() -> None:
        if fault == "hang":
            rig.server.hang()
        else:
            rig.fabric.cut(PLACE, "h1")
        with pytest.raises(DeadlineExceeded) as caught:
            await rig.client.put(Put(b"a", b"1"))
        assert caught.value.outcome is Outcome.UNKNOWN
        with pytest.raises(DeadlineExceeded) as caught:
            await rig.client.range(Range(b"a"))
        assert caught.value.outcome is Outcome.FAILED

    rig.run(script)


def test_a_full_disk_is_a_plain_refusal_that_a_restart_does_not_undo(rig: Rig) -> None:
    async def script() -> None:
        revision = await rig.client.put(Put(b"a", b"old"))
        rig.server.durable.full = True
        for _ in range(2):
            with pytest.raises(ResourceExhausted) as refused:
                await rig.client.put(Put(b"a", b"new"))
            assert refused.value.outcome is Outcome.FAILED
            now, pairs = await rig.client.range(Range(b"a"))
            assert (now, [kv.value for kv in pairs]) == (revision, [b"old"])
            rig.server.kill()
            rig.server.start()
        rig.server.durable.full = False
        assert await rig.client.put(Put(b"a", b"new")) == revision + 1

    rig.run(script)


def outcome_of_a_killed_write(seed: int) -> tuple[str, bool]:
    """What the client is told, and whether it happened, when the server dies at a drawn time."""
    rig = Rig(seed)
    seen: list[tuple[str, bool]] = []

    async def script() -> None:
        await asyncio.sleep(0.1)
        rig.loop.call_later(Seeds(seed).stream("when").uniform(0, 4e-3), rig.server.kill)
        rig.loop.call_later(0.3, rig.server.start)
        told = "ok"
        try:
            await rig.client.put(Put(b"a", b"1"))
        except EverramError as error:
            told = error.outcome.value
        await asyncio.sleep(1)
        seen.append((told, bool((await rig.client.range(Range(b"a")))[1])))

    rig.run(script)
    rig.loop.abandon()
    return seen[0]


def test_ok_means_done_and_unknown_means_either() -> None:
    outcomes = {outcome_of_a_killed_write(seed) for seed in range(60)}
    assert outcomes == {("ok", True), ("unknown", True), ("unknown", False)}


def test_a_watch_goes_on_over_restarts_without_loss_or_repetition(rig: Rig) -> None:
    seen: list[bytes] = []

    async def collect() -> None:
        async for batch in rig.client.watch(prefix(b"k")):
            assert isinstance(batch, WatchBatch)
            seen.extend(event.kv.value for event in batch.events)

    async def script() -> None:
        task = asyncio.create_task(collect())
        await asyncio.sleep(0.1)
        for number in range(30):
            await rig.client.put(Put(b"k%d" % (number % 3), b"%d" % number))
            if number % 10 == 5:
                rig.server.kill()
                rig.server.start()
                await asyncio.sleep(0.2)
        await asyncio.sleep(2)
        task.cancel()

    rig.run(script)
    assert seen == [b"%d" % number for number in range(30)]
