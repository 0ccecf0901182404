"""Links between hosts in one process: opened on first use, one per pair, found again after a restart, watched."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HOST_ECHO, HostActor, HostRef
from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import InvalidArgument, NotFound, Outcome, ResourceExhausted, Unavailable, Unimplemented
from everram.runtime.method import Method
from everram.runtime.node import Node
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links
from everram.runtime.transport.outbound import MAX_IN_FLIGHT, MAX_QUEUED

Message = host_pb2.EchoMessage


class Echo(HostActor):
    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.release.set()
        self.under_way = 0
        self.most_under_way = 0

    def echo(self, request: Message) -> Any:
        return request if self.release.is_set() else self.context.later(self.slow(request))

    async def slow(self, request: Message) -> Message:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.release.wait()
        self.under_way -= 1
        return request


class Garbage:
    """A request that is no message."""

    def SerializeToString(self) -> bytes:
        return b"\xff\xff"


class End:
    """One end of a stream; `silent` swallows what is sent, as a stopped process would."""

    def __init__(self, inbox: asyncio.Queue[bytes | None], outbox: asyncio.Queue[bytes | None]) -> None:
        self.inbox, self.outbox = inbox, outbox
        self.closed = False
        self.silent = False

    async def send(self, batch: bytes) -> None:
        await asyncio.sleep(0)
        if self.closed:
            raise Unavailable("closed")
        if not self.silent:
            self.outbox.put_nowait(batch)

    async def receive(self) -> bytes:
        data = None if self.closed else await self.inbox.get()
        if data is None:
            self.close()
            raise Unavailable("the stream has ended")
        return data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.inbox.put_nowait(None)
            self.outbox.put_nowait(None)


class World:
    """Hosts and the streams between them."""

    def __init__(self) -> None:
        self.hosts: dict[str, OneHost] = {}
        self.streams: list[tuple[str, str, End, End]] = []
        self.accepting: list[asyncio.Task[None]] = []
        self.delay = asyncio.Event()
        self.delay.set()

    async def resolve(self, host: str) -> HostAddress:
        if host not in self.hosts:
            raise NotFound(f"there is no host {host}")
        return HostAddress(host, f"id-{host}", host)

    def open_streams(self) -> int:
        return sum(1 for _, _, here, _ in self.streams if not here.closed)

    async def close(self) -> None:
        for host in self.hosts.values():
            await host.node.stop()
        await asyncio.gather(*self.accepting)


class OneHost:
    """A node with an Echo actor; its own `environment.Network`."""

    def __init__(self, world: World, name: str, cluster: str = "c1", life: int = 1) -> None:
        self.world, self.name = world, name
        self.actor = Echo()
        self.accept: Callable[[LinkStream], Awaitable[None]] | None = None
        self.node = Node(None, name, check_messages=True)  # type: ignore[arg-type]
        self.node.add(lambda: self.actor)
        tokens = itertools.count()
        me = Identity(cluster, name, f"id-{name}", f"{name}-{life}")
        self.links = Links(self.node, self, me, world.resolve, lambda: f"{name}-{life}-{next(tokens)}")
        self.node.use_links(self.links)
        world.hosts[name] = self

    def ref(self, host: str) -> HostRef:
        return self.node.ref(HostRef, host=host)

    def serve(self, accept: Callable[[LinkStream], Awaitable[None]]) -> None:
        self.accept = accept

    async def connect(self, peer: HostAddress) -> LinkStream:
        await self.world.delay.wait()
        other = self.world.hosts[peer.host]
        if other.accept is None:
            raise Unavailable("nobody listens")
        there: asyncio.Queue[bytes | None] = asyncio.Queue()
        here: asyncio.Queue[bytes | None] = asyncio.Queue()
        mine, theirs = End(here, there), End(there, here)
        self.world.streams.append((self.name, peer.host, mine, theirs))
        self.world.accepting.append(asyncio.create_task(self._run(other.accept, theirs)))
        return mine

    async def _run(self, accept: Callable[[LinkStream], Awaitable[None]], stream: End) -> None:
        try:
            await accept(stream)
        finally:
            stream.close()


async def two(*names: str) -> World:
    world = World()
    for name in names or ("h1", "h2"):
        await OneHost(world, name).node.start()
    return world


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_link_is_opened_on_first_use_and_used_both_ways() -> None:
    world = await two()
    one, other = world.hosts["h1"], world.hosts["h2"]
    assert world.streams == []
    assert (await one.ref("h2").echo(Message(value=1))).value == 1
    assert (await other.ref("h1").echo(Message(value=2))).value == 2
    assert len(world.streams) == 1
    (status,) = one.node.link_statuses()
    assert (status.peer, status.state, status.sent, status.received) == ("h2", "up", 2, 2)
    world.streams[0][3].close()
    await until(lambda: one.node.link_statuses()[0].state == "idle")  # nobody has anything to send
    await world.close()


@pytest.mark.parametrize("names", [("h1", "h2"), ("h2", "h1")])
async def test_both_open_at_once_and_the_lower_host_id_wins(names: tuple[str, str]) -> None:
    world = await two()
    one, other = (world.hosts[name] for name in names)
    world.delay.clear()
    asks = [
        asyncio.create_task(a.ref(b.name).echo(Message(value=n)))
        for n, (a, b) in enumerate([(one, other), (other, one)])
    ]
    await asyncio.sleep(0.01)
    world.delay.set()
    assert [(await ask).value for ask in asks] == [0, 1]
    await until(lambda: world.open_streams() == 1)
    assert [here for here, _, mine, _ in world.streams if not mine.closed] == ["h1"]
    for n in range(20):
        assert (await one.ref(other.name).echo(Message(value=n))).value == n
        assert (await other.ref(one.name).echo(Message(value=n))).value == n
    assert world.open_streams() == 1
    await world.close()


async def test_nobody_there_fails_and_is_found_when_it_has_started() -> None:
    world = World()
    one, other = OneHost(world, "h1"), OneHost(world, "h2")
    await one.node.start()
    with pytest.raises(Unavailable, match="h2 cannot be reached") as caught:
        await one.ref("h2").echo(Message())
    assert caught.value.outcome is Outcome.FAILED
    with pytest.raises(Unavailable, match="there is no host h9") as caught:
        await one.ref("h9").echo(Message())
    assert caught.value.outcome is Outcome.FAILED
    await other.node.start()
    assert (await one.ref("h2").echo(Message(value=4))).value == 4
    await world.close()


@pytest.mark.parametrize("names", [("h1", "h2"), ("h2", "h1")])
async def test_a_host_that_leaves_to_its_successor_costs_nobody_an_ask(names: tuple[str, str]) -> None:
    world = await two()
    one, before = (world.hosts[name] for name in names)
    answered = 0
    enough = False

    async def ask_on() -> None:
        nonlocal answered
        while not enough:
            await one.ref(before.name).echo(Message(value=1))
            answered += 1

    asking = [asyncio.create_task(ask_on()) for _ in range(20)]
    await until(lambda: answered > 100)
    before.actor.release.clear()
    slow = asyncio.create_task(one.ref(before.name).echo(Message(value=7)))
    await until(lambda: before.actor.under_way == 21)
    after = OneHost(world, before.name, life=2)  # from now on it is the one that is found
    world.delay.clear()
    await before.node.leave()
    before.actor.release.set()
    await before.node.stop()
    assert (await slow).value == 7, "what was asked before is answered"
    await after.node.start()
    world.delay.set()
    answered = 0
    await until(lambda: answered > 100)
    enough = True
    await asyncio.gather(*asking)
    await world.close()


async def test_a_restarted_host_is_found_again_and_its_old_stream_is_dropped() -> None:
    world = await two()
    one, before = world.hosts["h1"], world.hosts["h2"]
    before.actor.release.clear()
    waiting = asyncio.create_task(one.ref("h2").echo(Message(value=1)))
    await until(lambda: before.actor.under_way == 1)
    _, _, mine, theirs = world.streams[0]
    theirs.silent = mine.silent = True  # it died, and no end of the stream ever came
    after = OneHost(world, "h2", life=2)
    await after.node.start()
    assert (await after.ref("h1").echo(Message(value=2))).value == 2
    with pytest.raises(Unavailable, match="opened a new stream") as caught:
        await waiting
    assert caught.value.outcome is Outcome.UNKNOWN
    assert (await one.ref("h2").echo(Message(value=3))).value == 3
    before.actor.release.set()
    await before.node.stop()
    await world.close()


async def test_what_was_queued_while_the_stream_broke_goes_out_on_the_next() -> None:
    world = await two()
    one = world.hosts["h1"]
    await one.ref("h2").echo(Message())
    world.streams[0][2].close()
    asks = [asyncio.create_task(one.ref("h2").echo(Message(value=n))) for n in range(3)]
    results = await asyncio.gather(*asks, return_exceptions=True)
    assert [reply.value for reply in results if isinstance(reply, Message)] in ([0, 1, 2], [])
    assert all(reply.unknown for reply in results if isinstance(reply, Unavailable))
    assert (await one.ref("h2").echo(Message(value=9))).value == 9
    await world.close()


async def test_another_cluster_is_refused_with_a_plain_error() -> None:
    world = World()
    one, other = OneHost(world, "h1"), OneHost(world, "h2", cluster="c2")
    await one.node.start()
    await other.node.start()
    with pytest.raises(Unavailable, match="h2 belongs to cluster c2, not to c1") as caught:
        await one.ref("h2").echo(Message())
    assert caught.value.outcome is Outcome.FAILED
    await world.close()


async def test_asks_beyond_the_window_wait_in_line_and_tells_beyond_the_queue_are_refused() -> None:
    world = await two()
    one, other = world.hosts["h1"], world.hosts["h2"]
    other.actor.release.clear()
    asks = [asyncio.create_task(one.ref("h2").echo(Message(value=n))) for n in range(MAX_IN_FLIGHT + 100)]
    await until(lambda: other.actor.under_way == MAX_IN_FLIGHT)
    for _ in range(MAX_QUEUED - 100):
        one.ref("h2").tell(HOST_ECHO, Message())
    with pytest.raises(ResourceExhausted, match="wait for the link to h2"):
        one.ref("h2").tell(HOST_ECHO, Message())
    other.actor.release.set()
    assert [(await ask).value for ask in asks] == list(range(MAX_IN_FLIGHT + 100))
    assert other.actor.most_under_way <= MAX_IN_FLIGHT
    await world.close()


async def test_malformed_requests_and_unknown_methods_are_refused() -> None:
    world = await two()
    carrier = world.hosts["h1"].links.carrier("h2")
    stranger = Method("everram.v1.Host", "Nothing", Message, Message)
    with pytest.raises(Unimplemented, match=r"no actor of this host answers /everram.v1.Host/Nothing") as caught:
        await carrier.ask(stranger, Message(), 5)
    assert caught.value.outcome is Outcome.FAILED
    with pytest.raises(InvalidArgument, match="is malformed: it is no EchoMessage"):
        await carrier.ask(HOST_ECHO, Garbage(), 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="the link takes up to"):
        await carrier.ask(HOST_ECHO, Message(payload=bytes(17 << 20)), 5)
    assert (await carrier.ask(HOST_ECHO, Message(value=1), 5)).value == 1
    await world.close()


async def test_heartbeats_only_while_somebody_watches_and_silence_is_noticed() -> None:
    world = await two()
    one, other = world.hosts["h1"], world.hosts["h2"]
    changes: list[tuple[str, bool]] = []
    unwatch = one.links.watch("h2", lambda host, suspect, why: changes.append((host, suspect)), suspect_after_s=0.2)
    await until(lambda: one.node.link_statuses()[0].state == "up")
    await asyncio.sleep(0.3)
    assert (changes, other.node.link_statuses()[0].state) == ([], "up")
    _, _, _, theirs = world.streams[0]
    theirs.silent = True
    await until(lambda: changes == [("h2", True)])
    assert one.node.link_statuses()[0].state == "suspect"
    theirs.close()  # now the stream ends, and the next one is opened at once
    await until(lambda: changes == [("h2", True), ("h2", False)])
    unwatch()
    await world.close()


async def test_the_end_of_a_watched_stream_is_told_and_the_link_comes_back() -> None:
    world = await two()
    changes: list[bool] = []
    world.hosts["h1"].links.watch("h2", lambda host, suspect, why: changes.append(suspect))
    await until(lambda: world.open_streams() == 1)
    await until(lambda: world.hosts["h1"].node.link_statuses()[0].state == "up")
    world.streams[0][3].close()
    await until(lambda: changes == [True, False])
    await world.close()


async def test_answers_that_are_ready_leave_before_the_links_close() -> None:
    world = await two()
    one, other = world.hosts["h1"], world.hosts["h2"]
    other.actor.release.clear()
    asks = [asyncio.create_task(one.ref("h2").echo(Message(value=n))) for n in range(10)]
    await until(lambda: other.actor.under_way == 10)
    stopping = asyncio.create_task(other.node.stop())
    other.actor.release.set()
    assert [(await ask).value for ask in asks] == list(range(10))
    await stopping
    await world.close()
