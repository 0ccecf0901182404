"""One suite that every coordination must pass: the embedded server, the same in this process, the simulated one, and
real etcd; then what only the embedded server promises (no lease ended by a pause, a full disk, the token)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import (
    Compare,
    Coordination,
    Delete,
    Event,
    Put,
    Range,
    Relation,
    Target,
    WatchBatch,
    prefix,
)
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.coordination.embedded import Embedded, LocalCoordination
from everram.runtime.coordination.mirror import Mirror
from everram.runtime.coordination.refusals import NoSpace
from everram.runtime.coordination.sqlite import SqlitePersistence
from everram.runtime.coordination.store import Change, Saved
from everram.runtime.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Outcome,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from everram.runtime.production.partition import Cut, CutCoordination
from everram.runtime.simulation.coordination import CoordinationServer
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.network import Fabric
from everram.runtime.tasks import TaskScope

ETCD = shutil.which("etcd")


class MemoryPersistence:
    """Keeps nothing; `full` refuses as a full disk does."""

    full = False

    def load(self) -> Saved:
        return Saved(cluster_id=1)

    async def append(self, changes: Sequence[Change], compacted: int) -> None:
        if self.full:
            raise NoSpace
        await asyncio.sleep(0)


class Server:
    """An embedded server process."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.data = folder / "c.sock", folder / "data"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def start(self, *more: str) -> None:
        module = [sys.executable, "-m", "everram.runtime.coordination.server"]
        arguments = ["--socket", str(self.socket), "--data", str(self.data), *more]
        self.process = subprocess.Popen([*module, *arguments], stderr=subprocess.PIPE)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """Exit status after SIGTERM."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Exit status once it has ended by itself."""
        assert self.process is not None
        _, self.errors = self.process.communicate(timeout=10)
        status, self.process = self.process.returncode, None
        return status

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.wait()

    def client(self, timeout_s: float = 5.0) -> CoordinationClient:
        return CoordinationClient(self.address, timeout_s=timeout_s)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.end()


@contextlib.asynccontextmanager
async def local_coordination(persistence: MemoryPersistence) -> AsyncIterator[LocalCoordination]:
    numbers = random.Random(1)
    embedded = Embedded(persistence, time.monotonic_ns, lambda: numbers.getrandbits(62) + 1)
    scope = TaskScope("test")
    scope.start(embedded.run(), name="coordination")
    try:
        yield LocalCoordination(embedded)
    finally:
        await scope.close()


class Etcd:
    """A real etcd with a short election timeout, so that leases may be short; its least TTL is still one second."""

    def __init__(self, folder: Path) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in _free_ports(2))
        self.address = client.removeprefix("http://")
        assert ETCD is not None
        self._command = [
            ETCD, "--data-dir", str(folder / "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--election-timeout", "200", "--heartbeat-interval", "20",
        ]  # fmt: skip

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


class Compacting(Coordination, Protocol):
    """What each of them can do besides the contract, for tests."""

    async def compact(self, revision: int) -> None: ...


Test = Callable[[Compacting], Awaitable[None]]


class Place(Protocol):
    """Where a coordination lives, empty at first."""

    def run(self, test: Test) -> None:
        """Give the test a client, on a loop of the place's own kind of time."""

    def restart(self) -> None:
        """kill -9, and another process on the same disk."""


class ProcessPlace:
    """A server process, ours or etcd, in real time; `network`: seen through what cuts a host off, uncut."""

    def __init__(self, server: Server | Etcd, *, network: bool = False) -> None:
        self._server = server
        self._network = network

    def run(self, test: Test) -> None:
        asyncio.run(self._run(test))

    async def _run(self, test: Test) -> None:
        direct = CoordinationClient(self._server.address, timeout_s=10.0)
        client = cast("Compacting", Uncut(direct) if self._network else direct)
        try:
            await client.delete(Delete(b"\0", b"\0"))
            await test(client)
        finally:
            await client.close()

    def restart(self) -> None:
        self._server.kill()
        self._server.start()


class Uncut(CutCoordination):
    """As a host's production environment has it."""

    def __init__(self, client: CoordinationClient) -> None:
        super().__init__(client, Cut(), timeout_s=10.0)
        self._direct = client

    async def compact(self, revision: int) -> None:
        await self._direct.compact(revision)


class LocalPlace:
    """Inside this process, without a network or a disk."""

    def run(self, test: Test) -> None:
        asyncio.run(self._run(test))

    async def _run(self, test: Test) -> None:
        async with local_coordination(MemoryPersistence()) as local:
            await test(local)

    def restart(self) -> None:
        raise NotImplementedError("nothing of it outlives a process")


class SimulatedPlace:
    """Behind a simulated network, in virtual time."""

    def run(self, test: Test) -> None:
        seeds = Seeds(1)
        loop = SimulationLoop(seeds.stream("loop"))
        fabric = Fabric(loop, seeds.stream("network"))
        self._server = CoordinationServer(loop, fabric, seeds.stream("coordination"))
        self._server.start()

        async def scenario() -> None:
            await test(self._server.client("h1"))

        try:
            loop.run_until_complete(scenario())
        finally:
            loop.abandon()

    def restart(self) -> None:
        self._server.kill()
        self._server.start()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("embedded"))
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path_factory.mktemp("etcd"))
    etcd.start()
    yield etcd
    etcd.kill()


EMBEDDED, NETWORK, LOCAL, SIMULATED = "embedded", "network", "local", "simulated"
REAL_ETCD = pytest.param("etcd", marks=pytest.mark.needs("etcd"))


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == LOCAL:
        return LocalPlace()
    if request.param == SIMULATED:
        return SimulatedPlace()
    server = request.getfixturevalue("shared_server" if request.param in (EMBEDDED, NETWORK) else "shared_etcd")
    return ProcessPlace(server, network=request.param == NETWORK)


def on(*places: Any) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Make of a coroutine that tests `coordination` (and may ask for its `place`) a test that runs on each of these."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        asked = inspect.signature(test).parameters

        @functools.wraps(test)
        def run(place: Place, **arguments: Any) -> None:
            if "place" in asked:
                arguments["place"] = place
            place.run(lambda coordination: test(coordination, **arguments))

        others = [each for name, each in asked.items() if name not in ("coordination", "place")]
        first = inspect.Parameter("place", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([first, *others])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("place", places, indirect=True)(run)

    return decorate


everywhere = on(EMBEDDED, NETWORK, LOCAL, SIMULATED, REAL_ETCD)
where_a_process_may_die = on(EMBEDDED, SIMULATED, REAL_ETCD)
on_ours = on(EMBEDDED, LOCAL, SIMULATED)
"""etcd's least TTL is a second or more; see `Etcd`."""


async def take(watch: AsyncIterator[WatchBatch], count: int) -> list[Event]:
    """The next `count` events."""
    events: list[Event] = []
    async with asyncio.timeout(15):
        while len(events) < count:
            events += (await anext(watch)).events
    assert len(events) == count
    return events


# -- keys


@everywhere
async def test_put_range_delete(coordination: Compacting) -> None:
    first = await coordination.put(Put(b"k/1", b"one"))
    second = await coordination.put(Put(b"k/2", b"two"))
    again = await coordination.put(Put(b"k/1", b"uno"))
    assert first < second < again
    revision, pairs = await coordination.range(prefix(b"k/"))
    assert revision == again
    assert [(kv.key, kv.value, kv.version) for kv in pairs] == [(b"k/1", b"uno", 2), (b"k/2", b"two", 1)]
    assert (pairs[0].create_revision, pairs[0].mod_revision) == (first, again)
    assert await coordination.delete(Delete(b"k/1")) == 1
    assert await coordination.delete(Delete(b"k/1")) == 0
    revision, pairs = await coordination.range(Range(b"k/1"))
    assert (revision, pairs) == (again + 1, [])


@everywhere
async def test_range_by_limit_and_by_an_earlier_revision(coordination: Compacting) -> None:
    revisions = [await coordination.put(Put(b"k%d" % i, b"")) for i in range(4)]
    _, limited = await coordination.range(Range(b"k", b"l", limit=2))
    assert [kv.key for kv in limited] == [b"k0", b"k1"]
    _, earlier = await coordination.range(Range(b"k", b"l", revision=revisions[1]))
    assert [kv.key for kv in earlier] == [b"k0", b"k1"]
    with pytest.raises((FailedPrecondition, InvalidArgument)):
        await coordination.range(Range(b"k", revision=revisions[3] + 1000))


@everywhere
async def test_every_key_from_one_on(coordination: Compacting) -> None:
    await coordination.put(Put(b"a", b""))
    await coordination.put(Put(b"\xff\xff", b""))
    _, pairs = await coordination.range(Range(b"a", b"\0"))
    assert [kv.key for kv in pairs] == [b"a", b"\xff\xff"]


@everywhere
async def test_an_empty_key_is_refused(coordination: Compacting) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await coordination.put(Put(b"", b"x"))
    assert refused.value.outcome is Outcome.FAILED


# -- transactions


@everywhere
async def test_create_if_missing_then_compare_and_raise(coordination: Compacting) -> None:
    missing = Compare(b"g", Target.CREATE, Relation.EQUAL, 0)
    created = await coordination.txn((missing,), (Put(b"g", b"1"), Range(b"g")))
    assert created.succeeded
    ((), (kv,)) = created.ranges
    assert (kv.value, kv.mod_revision) == (b"1", created.revision)
    lost = await coordination.txn((missing,), (Put(b"g", b"2"),), (Range(b"g"),))
    assert not lost.succeeded
    assert lost.ranges[0][0].value == b"1"
    unchanged = Compare(b"g", Target.MOD, Relation.EQUAL, kv.mod_revision)
    assert (await coordination.txn((unchanged,), (Put(b"g", b"2"),))).succeeded
    assert not (await coordination.txn((unchanged,), (Put(b"g", b"3"),))).succeeded


@everywhere
@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(b"k", Target.VALUE, Relation.EQUAL, b"v"), True),
        (Compare(b"k", Target.VALUE, Relation.NOT_EQUAL, b"v"), False),
        (Compare(b"k", Target.VALUE, Relation.GREATER, b"u"), True),
        (Compare(b"k", Target.VALUE, Relation.LESS, b"u"), False),
        (Compare(b"k", Target.VERSION, Relation.EQUAL, 1), True),
        (Compare(b"k", Target.VERSION, Relation.GREATER, 1), False),
        (Compare(b"k", Target.LEASE, Relation.EQUAL, 0), True),
        (Compare(b"none", Target.VERSION, Relation.EQUAL, 0), True),
        (Compare(b"none", Target.MOD, Relation.LESS, 1), True),
        (Compare(b"none", Target.VALUE, Relation.EQUAL, b""), False),
        (Compare(b"none", Target.VALUE, Relation.NOT_EQUAL, b"x"), False),
        (Compare(b"k", Target.VERSION, Relation.EQUAL, 1, b"l"), True),
    ],
)
async def test_comparisons(coordination: Compacting, compare: Compare, holds: bool) -> None:
    await coordination.put(Put(b"k", b"v"))
    assert (await coordination.txn((compare,), ())).succeeded is holds


@everywhere
async def test_a_transaction_is_one_revision_and_refuses_a_key_twice(coordination: Compacting) -> None:
    result = await coordination.txn((), (Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"c")))
    _, pairs = await coordination.range(Range(b"a", b"c"))
    assert {kv.mod_revision for kv in pairs} == {result.revision}
    with pytest.raises(InvalidArgument):
        await coordination.txn((), (Put(b"a", b"1"), Put(b"a", b"2")))
    revision, _ = await coordination.range(Range(b"a"))
    assert revision == result.revision


@everywhere
async def test_one_of_many_concurrent_creators_wins(coordination: Compacting) -> None:
    missing = Compare(b"leader", Target.CREATE, Relation.EQUAL, 0)
    results = await asyncio.gather(*(coordination.txn((missing,), (Put(b"leader", b"%d" % i),)) for i in range(20)))
    assert [result.succeeded for result in results].count(True) == 1


# -- leases


@everywhere
async def test_a_lease_that_is_not_renewed_takes_its_keys(coordination: Compacting) -> None:
    lease, ttl_s = await coordination.lease_grant(1.0)
    revision = await coordination.put(Put(b"mine/1", b"", lease))
    await coordination.put(Put(b"mine/2", b"", lease))
    await coordination.put(Put(b"other", b""))
    events = await take(coordination.watch(prefix(b"mine/"), revision + 2), 2)
    assert [(event.deleted, event.kv.key) for event in events] == [(True, b"mine/1"), (True, b"mine/2")]
    assert len({event.kv.mod_revision for event in events}) == 1
    with pytest.raises(NotFound):
        await coordination.lease_keepalive(lease)
    with pytest.raises(NotFound):
        await coordination.put(Put(b"mine/1", b"", lease))
    _, pairs = await coordination.range(Range(b"other"))
    assert len(pairs) == 1
    assert ttl_s >= 1.0


@everywhere
async def test_a_renewed_lease_keeps_its_keys(coordination: Compacting) -> None:
    lease, ttl_s = await coordination.lease_grant(1.0)
    await coordination.put(Put(b"mine", b"", lease))
    loop = asyncio.get_running_loop()
    end = loop.time() + 2 * ttl_s
    while loop.time() < end:
        assert await coordination.lease_keepalive(lease) == ttl_s
        await asyncio.sleep(ttl_s / 5)
    _, pairs = await coordination.range(Range(b"mine"))
    assert pairs[0].lease == lease


@on_ours
async def test_a_ttl_may_be_less_than_a_second(coordination: Compacting) -> None:
    loop = asyncio.get_running_loop()
    lasted_s = []
    for _ in range(5):
        lease, ttl_s = await coordination.lease_grant(0.3)
        assert ttl_s == 0.3
        revision = await coordination.put(Put(b"mine", b"", lease))
        for _ in range(5):
            await asyncio.sleep(0.1)
            renewed_s = loop.time()
            assert await coordination.lease_keepalive(lease) == 0.3
        await take(coordination.watch(Range(b"mine"), revision + 1), 1)
        lasted_s.append(loop.time() - renewed_s)
        assert lasted_s[-1] >= 0.3
        if lasted_s[-1] < 0.8:
            return
    raise AssertionError(f"not one lease of 0.3 s ended within 0.8 s of its last renewal: {lasted_s}")


@everywhere
async def test_revoking_ends_a_lease_at_once(coordination: Compacting) -> None:
    lease, _ = await coordination.lease_grant(60.0)
    await coordination.put(Put(b"mine", b"", lease))
    await coordination.lease_revoke(lease)
    assert (await coordination.range(Range(b"mine")))[1] == []
    with pytest.raises(NotFound):
        await coordination.lease_revoke(lease)
    with pytest.raises(NotFound):
        await coordination.lease_keepalive(lease)


# -- watches


@everywhere
async def test_a_watch_sees_every_change_once_and_in_order(coordination: Compacting) -> None:
    start, _ = await coordination.range(Range(b"w"))
    watch = coordination.watch(prefix(b"w/"), start + 1)
    await coordination.put(Put(b"w/1", b"a"))
    await coordination.put(Put(b"x", b"not meant"))
    await coordination.delete(Delete(b"w/1"))
    await coordination.txn((), (Put(b"w/2", b"b"), Put(b"w/3", b"c")))
    seen = [(event.deleted, event.kv.key, event.kv.value) for event in await take(watch, 4)]
    expected = [(False, b"w/1", b"a"), (True, b"w/1", b""), (False, b"w/2", b"b"), (False, b"w/3", b"c")]
    assert seen == expected
    for i in range(20):
        await coordination.put(Put(b"w/4", b"%d" % i))
    assert [event.kv.value for event in await take(watch, 20)] == [b"%d" % i for i in range(20)]


@everywhere
async def test_a_watch_from_now_on(coordination: Compacting) -> None:
    await coordination.put(Put(b"w", b"before"))
    scope = TaskScope("test")
    taken = scope.start(take(coordination.watch(Range(b"w")), 1), name="take")
    count = 0
    while not taken.done():
        count += 1
        await coordination.put(Put(b"w", b"%d" % count))
    (event,) = taken.result()
    assert event.kv.value != b"before"
    await scope.close()


@everywhere
async def test_a_watch_can_be_left_and_taken_up_again(coordination: Compacting) -> None:
    revision = await coordination.put(Put(b"w", b"1"))
    for _ in range(5):
        watch = coordination.watch(Range(b"w"), revision)
        (event,) = await take(watch, 1)
        assert event.kv.value == b"1"
        await watch.aclose()  # type: ignore[attr-defined]


@everywhere
async def test_watching_from_a_compacted_revision_is_refused(coordination: Compacting) -> None:
    revision = await coordination.put(Put(b"w", b"1"))
    last = await coordination.put(Put(b"w", b"2"))
    await coordination.compact(last)
    with pytest.raises(FailedPrecondition):
        await anext(coordination.watch(Range(b"w"), revision))
    with pytest.raises(FailedPrecondition):
        await coordination.range(Range(b"w", revision=revision))
    (kv,) = (await coordination.range(Range(b"w")))[1]
    assert kv.value == b"2"


@everywhere
async def test_a_mirror_of_the_directory(coordination: Coordination) -> None:
    mirror, seen = Mirror(coordination), asyncio.Event()
    mirror.listeners.append(seen.set)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                seen.clear()
                await seen.wait()

    lease, _ = await coordination.lease_grant(60.0)
    await coordination.put(Put(directory.guest_key("a"), directory.encode({"host": "h1", "epoch": 1})))
    scope = TaskScope("mirror")
    scope.start(mirror.run(), name="mirror")
    await until(lambda: "a" in mirror.guests)
    for epoch in range(2, 20):
        await coordination.put(Put(directory.guest_key("a"), directory.encode({"host": "h1", "epoch": epoch})))
    for key in (directory.host_key("h1"), directory.serving_key("a"), directory.LEADER):
        await coordination.put(Put(key, directory.encode({"host": "h1"}), lease))
    last = await coordination.put(Put(directory.guest_key("b"), b"nonsense"))
    await until(lambda: "b" in mirror.guests)
    record = mirror.guests["a"].record
    assert record is not None
    assert (record.epoch, mirror.guests["b"].record, mirror.guests["b"].mod_revision) == (19, None, last)
    assert mirror.leader is not None
    assert (mirror.leader.pair.lease, mirror.serving["a"].pair.lease) == (lease, lease)
    await coordination.lease_revoke(lease)
    await coordination.delete(Delete(directory.guest_key("a")))
    await until(lambda: "a" not in mirror.guests)
    assert (mirror.hosts, mirror.serving, mirror.leader) == ({}, {}, None)
    await scope.close()


# -- a server that dies and is started again


@where_a_process_may_die
async def test_kill_9_under_load_loses_no_acknowledged_write(coordination: Compacting, place: Place) -> None:
    """Writers count up; whatever the server acknowledged is there after each of several kills, and nothing invented."""
    acknowledged: dict[bytes, int] = {}
    begun: dict[bytes, int] = {}
    progress = asyncio.Event()

    async def write(key: bytes) -> None:
        for value in range(1, 1_000_000):
            begun[key] = value
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                await coordination.put(Put(key, b"%d" % value))
                acknowledged[key] = value
                progress.set()

    scope = TaskScope("writers")
    keys = [b"load/%d" % i for i in range(8)]
    for key in keys:
        scope.start(write(key), name="writer")
    for _ in range(4):
        before = dict(acknowledged)
        while acknowledged.keys() != set(keys) or any(acknowledged[k] < before.get(k, 0) + 20 for k in keys):
            progress.clear()
            await progress.wait()
        floor = dict(acknowledged)
        place.restart()
        _, pairs = await coordination.range(prefix(b"load/"))
        held = {kv.key: int(kv.value) for kv in pairs}
        assert all(floor[key] <= held[key] <= begun[key] for key in keys)
    await scope.close()


@where_a_process_may_die
async def test_a_watch_goes_on_over_restarts_without_loss_or_repetition(coordination: Compacting, place: Place) -> None:
    start = await coordination.put(Put(b"w", b"0"))
    scope = TaskScope("test")
    taken = scope.start(take(coordination.watch(Range(b"w"), start), 31), name="take")
    for i in range(1, 31):
        await coordination.put(Put(b"w", b"%d" % i))
        if i % 10 == 0:
            place.restart()  # what was acknowledged and not yet seen comes from the history on disk
            await coordination.range(Range(b"w"))  # asked again until it is there; a write is not, and would be unknown
    for events in (await taken, await take(coordination.watch(Range(b"w"), start), 31)):
        assert [event.kv.value for event in events] == [b"%d" % i for i in range(31)]
    await scope.close()


async def put_surely(writer: CoordinationClient, put: Put) -> None:
    """Again, if the death of a server may have taken it along: it says the same."""
    while True:
        try:
            await writer.put(put)
            return
        except Unavailable as error:
            if not error.unknown:
                raise


@pytest.mark.process
async def test_a_mirror_goes_on_over_restarts(server: Server) -> None:
    watcher, writer = server.client(), server.client()
    mirror, seen = Mirror(watcher), asyncio.Event()
    mirror.listeners.append(seen.set)
    scope = TaskScope("mirror")
    scope.start(mirror.run(), name="mirror")
    await mirror.filled()
    for epoch in range(1, 31):
        await put_surely(writer, Put(directory.guest_key("a"), directory.encode({"epoch": epoch})))
        if epoch % 10 == 0:
            server.kill()
            server.start()
    async with asyncio.timeout(15):
        while "a" not in mirror.guests or (record := mirror.guests["a"].record) is None or record.epoch < 30:
            seen.clear()
            await seen.wait()
    await scope.close()
    await watcher.close()
    await writer.close()


@where_a_process_may_die
async def test_after_a_restart_every_lease_has_its_full_ttl(coordination: Compacting, place: Place) -> None:
    loop = asyncio.get_running_loop()
    lease, ttl_s = await coordination.lease_grant(2.0)
    await coordination.put(Put(b"mine", b"", lease))
    await asyncio.sleep(0.75 * ttl_s)
    restarted_s = loop.time()
    place.restart()
    revision, pairs = await coordination.range(Range(b"mine"))
    assert len(pairs) == 1
    await take(coordination.watch(Range(b"mine"), revision + 1), 1)
    assert loop.time() - restarted_s >= ttl_s
    with pytest.raises(NotFound):
        await coordination.lease_keepalive(lease)


@where_a_process_may_die
async def test_after_a_restart_leases_are_renewed_and_comparisons_hold(coordination: Compacting, place: Place) -> None:
    """What a host does whose coordination was replaced: it renews its lease, and compares with what it knew."""
    lease, ttl_s = await coordination.lease_grant(2.0)
    revision = await coordination.put(Put(b"mine", b"1", lease))
    place.restart()
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(Unavailable, DeadlineExceeded):
                assert await coordination.lease_keepalive(lease) == ttl_s
                break
            await asyncio.sleep(0.05)
    unchanged = Compare(b"mine", Target.MOD, Relation.EQUAL, revision)
    held = Compare(b"mine", Target.LEASE, Relation.EQUAL, lease)
    assert (await coordination.txn((unchanged, held), (Put(b"mine", b"2", lease),))).succeeded
    assert not (await coordination.txn((unchanged,), (Put(b"mine", b"3"),))).succeeded
    await coordination.lease_revoke(lease)
    assert (await coordination.range(Range(b"mine")))[1] == []


# -- the embedded server's own promises


@pytest.mark.process
async def test_a_stopped_server_ends_no_lease_when_it_continues(server: Server) -> None:
    patient, client = server.client(), server.client(timeout_s=0.3)
    lease, _ = await patient.lease_grant(1.0)
    revision = await patient.put(Put(b"mine", b"", lease))
    await patient.close()
    await client.range(Range(b"k"))
    server.signal(signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded) as lost:
        await client.put(Put(b"k", b""))
    assert lost.value.outcome is Outcome.UNKNOWN
    with pytest.raises(DeadlineExceeded) as unread:
        await client.range(Range(b"k"))
    assert unread.value.outcome is Outcome.FAILED
    with pytest.raises(Unavailable):
        await client.lease_keepalive(lease)
    await asyncio.sleep(1.5)
    server.signal(signal.SIGCONT)
    while True:
        with contextlib.suppress(Unavailable):
            await client.lease_keepalive(lease)
            break
    now, pairs = await client.range(Range(b"mine"))
    assert [kv.mod_revision for kv in pairs] == [revision]
    assert now >= revision
    await client.close()


@pytest.mark.process
async def test_a_write_that_never_left_is_failed_not_unknown(tmp_path: Path) -> None:
    client = CoordinationClient(f"unix:{tmp_path / 'nobody.sock'}", timeout_s=0.3)
    with pytest.raises(Unavailable) as refused:
        await client.put(Put(b"k", b""))
    assert refused.value.outcome is Outcome.FAILED
    assert "is it running" in refused.value.message
    await client.close()


async def test_a_full_disk_is_a_plain_refusal_and_changes_nothing() -> None:
    persistence = MemoryPersistence()
    async with local_coordination(persistence) as local:
        revision = await local.put(Put(b"k", b"old"))
        lease, _ = await local.lease_grant(0.2)
        await local.put(Put(b"mine", b"", lease))
        persistence.full = True
        results = await asyncio.gather(*(local.put(Put(b"k", b"new")) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, ResourceExhausted) for result in results)
        now, pairs = await local.range(Range(b"k", b"\0"))
        assert (now, [kv.value for kv in pairs]) == (revision + 1, [b"old", b""])
        await asyncio.sleep(0.5)
        assert await local.lease_keepalive(lease) == 0.2, "an end that could not be kept has not happened"
        persistence.full = False
        assert await local.put(Put(b"k", b"new")) == revision + 2
        await take(local.watch(Range(b"mine"), revision + 2), 1)


@contextlib.contextmanager
def small_disk(parent: Path) -> Iterator[Path]:
    folder = parent / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize_disk(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.mark.process
@pytest.mark.needs("root")
async def test_a_really_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path) as folder, contextlib.ExitStack() as ends:
        server = Server(folder)
        server.start()
        ends.callback(server.end)
        client = server.client()
        kept = 0
        with pytest.raises(ResourceExhausted) as refused:
            for i in range(1000):
                await client.put(Put(b"k%03d" % i, b"x" * 4000))
                kept += 1
        assert "free some" in refused.value.message
        assert 0 < kept < 1000
        _, pairs = await client.range(prefix(b"k"))
        assert len(pairs) == kept
        server.kill()
        resize_disk(folder, "4m")
        server.start()
        _, pairs = await client.range(prefix(b"k"))
        assert len(pairs) == kept
        await client.put(Put(b"k999", b"x" * 4000))
        await client.close()


@pytest.mark.process
async def test_sigterm_ends_watches_and_streams_cleanly(server: Server) -> None:
    client = server.client(timeout_s=3.0)
    lease, _ = await client.lease_grant(5.0)
    await client.lease_keepalive(lease)
    scope = TaskScope("test")
    watching = scope.start(anext(client.watch(Range(b"w"))), name="watch")  # type: ignore[arg-type]
    await client.put(Put(b"k", b""))
    began_s = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began_s < 2.0
    assert b"Traceback" not in server.errors
    assert not watching.done(), "the watch waits for the next server"
    with pytest.raises(Unavailable):
        await client.put(Put(b"k", b""))
    await scope.close()
    await client.close()


@pytest.mark.process
async def test_a_second_server_on_the_same_folder_is_refused(server: Server) -> None:
    client = server.client()
    await client.put(Put(b"k", b""))
    other = Server(server.socket.parent)
    other.socket = server.socket.parent / "other.sock"
    other.start()
    assert other.wait() == 1
    assert b"another coordination server has" in other.errors
    assert b"Traceback" not in other.errors
    await client.put(Put(b"k", b"still here"))
    await client.close()


@pytest.mark.process
async def test_health_and_reflection(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"unix:{server.socket}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.process
async def test_tcp_asks_for_the_token(tmp_path: Path) -> None:
    server, (port,) = Server(tmp_path), _free_ports(1)
    server.start("--tcp", str(port))
    assert server.wait() == 1
    assert b"--token-file" in server.errors
    (tmp_path / "token").write_text("a secret\n")
    server.start("--tcp", str(port), "--token-file", str(tmp_path / "token"))
    for token, accepted in (("a secret", True), ("", False), ("another", False)):
        client = CoordinationClient(f"127.0.0.1:{port}", timeout_s=5.0, token=token)
        with contextlib.nullcontext() if accepted else pytest.raises(Unauthenticated, match="token"):
            await client.put(Put(b"k", b""))
        with contextlib.nullcontext() if accepted else pytest.raises((Unauthenticated, Unavailable)):
            lease, _ = await client.lease_grant(5.0)
            await client.lease_keepalive(lease)
        with contextlib.nullcontext() if accepted else pytest.raises(Unauthenticated, match="token"):
            await take(client.watch(Range(b"k"), 2), 1)
        await client.close()
    assert server.stop() == 0
    assert b"Traceback" not in server.errors


@pytest.mark.process
async def test_closing_a_client_ends_what_waits(server: Server) -> None:
    client = server.client()
    await client.put(Put(b"k", b""))
    scope = TaskScope("test")
    waiting = [
        scope.start(take(client.watch(Range(b"w")), 1), name="watch"),
        scope.start(take(client.watch(Range(b"k"), 100), 1), name="watch"),
    ]
    await client.range(Range(b"k"))
    await client.close()
    async with asyncio.timeout(5):
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in ended), ended
    with pytest.raises(Unavailable, match="closed"):
        await client.put(Put(b"k", b""))
    with contextlib.suppress(Unavailable):
        await scope.close()


async def test_closing_a_client_that_never_connected(tmp_path: Path) -> None:
    client = CoordinationClient(f"unix:{tmp_path / 'nobody.sock'}", timeout_s=30.0)
    scope = TaskScope("test")
    waiting = [
        scope.start(client.put(Put(b"k", b"")), name="put"),
        scope.start(client.lease_keepalive(7), name="renewal"),
        scope.start(take(client.watch(Range(b"w")), 1), name="watch"),
    ]
    await asyncio.sleep(0.1)
    await client.close()
    async with asyncio.timeout(5):
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in ended), ended
    with contextlib.suppress(Unavailable):
        await scope.close()


@pytest.mark.process
async def test_renewals_of_several_leases_share_a_stream(server: Server) -> None:
    client = server.client()
    leases = [(await client.lease_grant(5.0 + i))[0] for i in range(5)]
    renewed = await asyncio.gather(*(client.lease_keepalive(lease) for lease in leases * 3))
    assert renewed == [5.0, 6.0, 7.0, 8.0, 9.0] * 3
    await client.lease_revoke(leases[0])
    with pytest.raises(NotFound):
        await client.lease_keepalive(leases[0])
    assert await client.lease_keepalive(leases[1]) == 6.0
    await client.close()


@pytest.mark.process
async def test_malformed_messages_are_refused(server: Server) -> None:
    client = server.client()
    await client.put(Put(b"k", b""))
    async with grpc.aio.insecure_channel(f"unix:{server.socket}") as channel:
        for method in ("KV/Range", "KV/Txn", "Lease/LeaseGrant", "Cluster/MemberList"):
            for body in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"/etcdserverpb.{method}")(body, timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await channel.unary_unary("/etcdserverpb.KV/Nonsense")(b"", timeout=5)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len((await client.range(Range(b"k")))[1]) == 1
    await client.close()


def test_a_damaged_store_is_explained(tmp_path: Path) -> None:
    (tmp_path / "coordination.db").write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(DataLoss, match="cannot be used"):
        SqlitePersistence(tmp_path)


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    persistence = SqlitePersistence(tmp_path)
    persistence._database.execute("PRAGMA user_version=99")
    persistence.close()
    with pytest.raises(FailedPrecondition, match="format 99"):
        SqlitePersistence(tmp_path)


class Etcdctl:
    """etcd's own command line on one server, without any of our code."""

    def __init__(self, server: Server) -> None:
        # Its own 5 s a command are too few for a server that starts on a busy computer.
        self._command = ["etcdctl", "--endpoints", f"unix://{server.socket}", "--command-timeout", "18s"]
        self._environment = {"ETCDCTL_API": "3", "PATH": os.environ["PATH"]}

    def __call__(self, *arguments: str, text: str = "") -> str:
        done = self._run(arguments, text)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """What it complains."""
        done = self._run(arguments, "")
        assert done.returncode != 0, done.stdout
        return done.stderr

    def _run(self, arguments: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments], env=self._environment, input=text, capture_output=True, text=True, timeout=20,
            check=False,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip


@pytest.mark.process
@pytest.mark.needs("etcdctl")
def test_etcdctl_talks_to_the_embedded_server(server: Server) -> None:
    etcdctl = Etcdctl(server)
    assert etcdctl("put", "k", "v").strip() == "OK"
    assert etcdctl("get", "k").split() == ["k", "v"]
    assert etcdctl("put", "--prev-kv", "k", "w").split() == ["OK", "k", "v"]
    assert etcdctl("txn", text='value("k") = "w"\n\nput k x\nget k\n\nget k\n\n').split() == [
        "SUCCESS", "OK", "k", "x",
    ]  # fmt: skip
    assert etcdctl("get", "--prefix", "--sort-by=MODIFY", "--order=DESCEND", "--keys-only", "k").split() == ["k"]
    lease = etcdctl("lease", "grant", "60").split()[1]
    etcdctl("put", f"--lease={lease}", "leased", "1")
    assert "leased" in etcdctl("lease", "timetolive", "--keys", lease)
    assert lease in etcdctl("lease", "list")
    assert "keepalived" in etcdctl("lease", "keep-alive", "--once", lease)
    etcdctl("lease", "revoke", lease)
    assert etcdctl("get", "leased") == ""
    assert etcdctl("del", "k").strip() == "1"
    assert "everram" in etcdctl("member", "list")
    assert "3.4.0" in etcdctl("endpoint", "status")
    assert etcdctl("lock", "name", "echo", "inside").split() == ["inside"]


@pytest.mark.process
@pytest.mark.needs("etcdctl")
def test_etcdctl_watches_over_a_restart_and_is_told_what_was_compacted(server: Server) -> None:
    etcdctl = Etcdctl(server)
    for number in range(3):
        etcdctl("put", f"w{number}", "before")  # revisions 2, 3 and 4
    with etcdctl.start("watch", "--prefix", "w", "--rev", "3") as watch:
        assert watch.stdout is not None
        try:
            lines = [watch.stdout.readline().strip() for _ in range(6)]
            assert lines == ["PUT", "w1", "before", "PUT", "w2", "before"]
            server.kill()
            server.start()
            etcdctl("put", "w1", "after")  # revision 5
            etcdctl("del", "w2")
            lines = [watch.stdout.readline().strip() for _ in range(5)]
            assert lines == ["PUT", "w1", "after", "DELETE", "w2"]
        finally:
            watch.kill()
    assert etcdctl("get", "w1", "--rev", "4").split() == ["w1", "before"]
    assert "compacted revision 5" in etcdctl("compaction", "5")
    assert "has been compacted" in etcdctl.refused("get", "w1", "--rev", "4")
    assert "has been compacted" in etcdctl.refused("watch", "w1", "--rev", "2")
    assert "has been compacted" in etcdctl.refused("compaction", "3")
    assert "future revision" in etcdctl.refused("compaction", "99")
    assert etcdctl("get", "w1").split() == ["w1", "after"]
