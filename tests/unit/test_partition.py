"""A host whose machine is cut off from the network: what it asks, watches and is connected to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio
import pytest

from everram.runtime.coordination.api import Delete, Put, Range, prefix
from everram.runtime.coordination.embedded import Embedded, LocalCoordination
from everram.runtime.coordination.store import Saved
from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import Outcome, Unavailable
from everram.runtime.formats.faults import LINK_CORRUPT, LINK_DELAY, ONE_WAY
from everram.runtime.production.entropy import SystemEntropy
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.production.partition import Cut, CutCoordination
from everram.runtime.production.weather import Weather
from everram.runtime.tasks import TaskScope

SHORT_S = 0.05


class Forgetful:
    """Persistence that takes its time, and only when it is told so."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()

    def load(self) -> Saved:
        return Saved(cluster_id=1)

    async def append(self, *_: object) -> None:
        await self.go_on.wait()


class Bench:
    def __init__(self, direct: LocalCoordination, storage: Forgetful) -> None:
        self.direct = direct
        self.storage = storage
        self.cut = Cut()
        self.through = CutCoordination(direct, self.cut, timeout_s=SHORT_S)


@contextlib.asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    numbers, storage = random.Random(1), Forgetful()
    embedded = Embedded(storage, time.monotonic_ns, lambda: numbers.getrandbits(62) + 1)
    scope = TaskScope("test")
    scope.start(embedded.run(), name="coordination")
    made = Bench(LocalCoordination(embedded), storage)
    try:
        yield made
    finally:
        await made.through.close()
        await scope.close()


async def test_watchers_are_told_of_changes_only_and_until_they_leave() -> None:
    cut, told = Cut(), []
    leave = cut.watch(lambda: told.append("cut"), lambda: told.append("healed"))
    cut.watch(lambda: told.append("also cut"))
    cut.check("host h2")
    cut.set(connected=True)
    cut.set(connected=False)
    cut.set(connected=False)
    with pytest.raises(Unavailable, match="host h2 cannot be reached: this machine is cut off"):
        cut.check("host h2")
    cut.set(connected=True)
    leave()
    leave()
    cut.set(connected=False)
    assert told == ["cut", "also cut", "healed", "also cut"]


async def test_what_is_asked_of_a_cut_network_waits_for_its_deadline_or_for_the_heal() -> None:
    async with bench() as b:
        lease, _ = await b.through.lease_grant(60.0)
        await b.through.put(Put(b"k", b"1", lease))
        b.cut.set(connected=False)
        with pytest.raises(Unavailable, match="cut off") as refused:
            await b.through.put(Put(b"k", b"2"))
        assert refused.value.outcome is Outcome.FAILED, "it was never sent"
        with pytest.raises(Unavailable):
            await b.through.range(Range(b"k"))
        waiting = asyncio.create_task(b.through.lease_keepalive(lease))
        await asyncio.sleep(0)
        assert not waiting.done()
        b.cut.set(connected=True)
        assert await waiting > 0
        assert [kv.value for kv in (await b.through.range(Range(b"k")))[1]] == [b"1"]
        assert await b.through.delete(Delete(b"k")) == 1


async def test_a_write_under_way_is_cut_with_outcome_unknown() -> None:
    async with bench() as b:
        b.storage.go_on.clear()
        writing = asyncio.create_task(b.through.put(Put(b"k", b"1")))
        await asyncio.sleep(0.01)
        b.cut.set(connected=False)
        b.cut.set(connected=True)
        b.cut.set(connected=False)
        with pytest.raises(Unavailable) as lost:
            await writing
        assert lost.value.outcome is Outcome.UNKNOWN
        b.storage.go_on.set()


async def test_a_callers_own_deadline_stays_its_own() -> None:
    async with bench() as b:
        b.storage.go_on.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await b.through.put(Put(b"k", b"1"))
        b.storage.go_on.set()


@pytest.mark.parametrize("from_now", [True, False])
async def test_a_watch_goes_on_after_the_heal_and_misses_nothing(from_now: bool) -> None:
    async with bench() as b:
        revision = await b.direct.put(Put(b"before", b""))
        seen: list[bytes] = []
        changed = asyncio.Event()

        async def follow() -> None:
            start = 0 if from_now else revision + 1
            async with aclosing(b.through.watch(prefix(b"k"), start)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    seen.extend(event.kv.key for event in batch.events)
                    changed.set()

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        if not from_now:
            await b.direct.put(Put(b"k1", b""))
            await changed.wait()
        b.cut.set(connected=False)
        b.cut.set(connected=True)  # too short to be noticed
        await asyncio.sleep(0.01)
        b.cut.set(connected=False)
        await b.direct.put(Put(b"k2", b""))
        await b.direct.put(Put(b"k3", b""))
        await asyncio.sleep(0.01)
        assert seen == ([] if from_now else [b"k1"])
        b.cut.set(connected=True)
        while len(seen) < (2 if from_now else 3):
            changed.clear()
            await changed.wait()
        assert seen[-2:] == [b"k2", b"k3"]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_closing_ends_what_waits_for_the_heal() -> None:
    async with bench() as b:
        b.cut.set(connected=False)
        batches = b.through.watch(prefix(b"k"), 1)
        waiting = [asyncio.create_task(anext(batches)), asyncio.create_task(b.through.lease_keepalive(1))]  # type: ignore[list-item, arg-type]
        await asyncio.sleep(0)
        await b.through.close()
        for each in waiting:
            with pytest.raises(Unavailable, match="closed"):
                await each


class Pair:
    """Two hosts' networks; `accepted` are the streams that h2 was asked for."""

    def __init__(self, folder: str) -> None:
        self.cuts = {"h1": Cut(), "h2": Cut()}
        self.weather = Weather(SystemEntropy())
        """At h1."""
        self.h1, self.h2 = GrpcNetwork(self.cuts["h1"], self.weather), GrpcNetwork(self.cuts["h2"])
        self.accepted: asyncio.Queue[LinkStream] = asyncio.Queue()
        self.address = HostAddress("h2", "id-h2", f"unix:{folder}/h2.sock")
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self.h2.handler,))
        self.server.add_insecure_port(self.address.address)
        self.h2.serve(self._accept)

    async def _accept(self, stream: LinkStream) -> None:
        self.accepted.put_nowait(stream)
        with contextlib.suppress(Unavailable):
            while True:
                await stream.send(b"echo " + await stream.receive())

    async def talk(self) -> LinkStream:
        stream = await self.h1.connect(self.address)
        await stream.send(b"hello")
        assert await stream.receive() == b"echo hello"
        return stream


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = Pair(folder)
        await made.server.start()
        try:
            yield made
        finally:
            await made.h1.close()
            await made.server.stop(None)


@pytest.mark.parametrize("side", ["h1", "h2"])
async def test_streams_end_at_both_ends_and_none_begins_until_the_heal(side: str) -> None:
    async with pair() as p:
        stream = await p.talk()
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)
        p.cuts[side].set(connected=False)
        with pytest.raises(Unavailable):
            await waiting
        accepted = await p.accepted.get()
        with pytest.raises(Unavailable):
            await accepted.receive()
        with pytest.raises(Unavailable):
            await p.talk()
        assert p.accepted.empty()
        p.cuts[side].set(connected=True)
        (await p.talk()).close()


async def test_what_is_sent_one_way_arrives_when_the_weather_changes() -> None:
    async with pair() as p:
        stream = await p.talk()
        p.weather.set(ONE_WAY)
        await stream.send(b"heard")
        waiting = asyncio.create_task(stream.receive())
        await asyncio.wait([waiting], timeout=SHORT_S)
        assert not waiting.done()
        p.weather.set("")
        assert await waiting == b"echo heard"
        p.weather.set(ONE_WAY)
        await stream.send(b"too late")
        waiting = asyncio.create_task(stream.receive())
        await asyncio.wait([waiting], timeout=SHORT_S)
        stream.close()
        with pytest.raises(Unavailable):
            await waiting


async def test_bad_weather_changes_bits_and_takes_longer() -> None:
    async with pair() as p:
        stream = await p.talk()
        p.weather.set(LINK_CORRUPT)
        while not p.weather.damages:
            await stream.send(bytes(64))
            changed = await stream.receive()
        assert (int.from_bytes(changed) ^ int.from_bytes(b"echo " + bytes(64))).bit_count() == 1
        p.weather.set(LINK_DELAY)
        await stream.send(b"late")
        assert await stream.receive() == b"echo late"
        stream.close()
