"""One suite for every way a message can take: in a host, over the link, over gRPC.

A *way* runs a body with a `Bench`: a ref, and the actor at its other end. A new way is one more entry in `WAYS`: an
async context manager that yields a Bench, and what runs a coroutine to its end (the simulation brings its own loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from everram.runtime.contracts import common_pb2, host_pb2
from everram.runtime.contracts.host_contract import HOST_ECHO, HostActor, HostRef
from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import (
    BY_CODE,
    DeadlineExceeded,
    EverramError,
    Internal,
    Outcome,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from everram.runtime.node import Node
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.transport.channel_carrier import ChannelCarrier
from everram.runtime.transport.front import Front
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links

Message = host_pb2.EchoMessage


class Subject(HostActor):
    """Does what the test puts in its hands."""

    def __init__(self) -> None:
        self.on_echo: Callable[[Message], Any] = lambda request: request
        self.on_count: Callable[[Message], AsyncIterator[Message]] = self.counting
        self.seen: list[int] = []
        self.produced = 0
        self.closed = asyncio.Event()

    def echo(self, request: Message) -> Message | Awaitable[Message]:
        self.seen.append(request.value)
        return self.on_echo(request)

    def count(self, request: Message) -> AsyncIterator[Message]:
        return self.on_count(request)

    async def counting(self, request: Message) -> AsyncIterator[Message]:
        try:
            for value in range(request.value, 0, -1):
                self.produced += 1
                yield Message(value=value, payload=request.payload)
        finally:
            self.closed.set()


@dataclass
class Bench:
    """Two ends of one way."""

    ref: HostRef
    actor: Subject
    node: Node
    ordered: bool = True
    """Messages of one sender arrive in order."""
    sees_take_up: bool = False
    """The asker knows whether its message was taken up before the deadline."""
    cut: Callable[[], Awaitable[None]] | None = None
    """Break the connection under whatever is on its way."""


def subject_node(host: str = "h2", capacity: int = 1024) -> tuple[Node, Subject]:
    node, actor = Node(None, host, check_messages=True), Subject()  # type: ignore[arg-type]
    node.add(lambda: actor, capacity=capacity)
    return node, actor


@contextlib.asynccontextmanager
async def local(capacity: int = 1024) -> AsyncIterator[Bench]:
    node, actor = subject_node("h1", capacity)
    await node.start()
    try:
        yield Bench(node.ref(HostRef), actor, node, sees_take_up=True)
    finally:
        await node.stop()


class MemoryStream:
    """One end of a stream inside this process, as strict as `LinkStream` allows."""

    def __init__(self, inbox: asyncio.Queue[bytes | None], outbox: asyncio.Queue[bytes | None]) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._closed = False

    async def send(self, batch: bytes) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise Unavailable("closed")
        await self._outbox.put(batch)

    async def receive(self) -> bytes:
        if self._closed:
            raise Unavailable("closed")
        data = await self._inbox.get()
        if data is None:
            self.close()
            raise Unavailable("the stream has ended")
        return data

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._inbox.put_nowait(None)
            self._outbox.put_nowait(None)


class MemoryNetwork:
    """Streams between the hosts of one process."""

    def __init__(self, listeners: dict[str, Callable[[LinkStream], Awaitable[None]]], address: str) -> None:
        self._listeners, self._address = listeners, address
        self.streams: list[MemoryStream] = []
        self.accepting: list[asyncio.Task[None]] = []

    def serve(self, accept: Callable[[LinkStream], Awaitable[None]]) -> None:
        self._listeners[self._address] = accept

    async def connect(self, peer: HostAddress) -> LinkStream:
        await asyncio.sleep(0)
        accept = self._listeners.get(peer.address)
        if accept is None:
            raise Unavailable("nobody listens")
        there: asyncio.Queue[bytes | None] = asyncio.Queue()
        here: asyncio.Queue[bytes | None] = asyncio.Queue()
        stream = MemoryStream(here, there)
        self.streams.append(stream)
        self.accepting.append(asyncio.create_task(self._run(accept, MemoryStream(there, here))))
        return stream

    async def _run(self, accept: Callable[[LinkStream], Awaitable[None]], stream: MemoryStream) -> None:
        try:
            await accept(stream)
        finally:
            stream.close()

    async def close(self) -> None:
        for stream in self.streams:
            stream.close()
        await asyncio.gather(*self.accepting)


def links_of(node: Node, network: Any, addresses: dict[str, str]) -> Links:
    async def resolve(host: str) -> HostAddress:
        return HostAddress(host, f"id-{host}", addresses[host])

    tokens = itertools.count()
    me = Identity("cluster", node.host, f"id-{node.host}", f"incarnation-{node.host}")
    links = Links(node, network, me, resolve, lambda: f"{node.host}-{next(tokens)}")
    links.start()
    return links


@contextlib.asynccontextmanager
async def link_in_memory(capacity: int = 1024) -> AsyncIterator[Bench]:
    asking = Node(None, "h1")  # type: ignore[arg-type]
    serving, actor = subject_node("h2", capacity)
    listeners: dict[str, Any] = {}
    networks = [MemoryNetwork(listeners, "memory:h1"), MemoryNetwork(listeners, "memory:h2")]
    addresses = {"h1": "memory:h1", "h2": "memory:h2"}
    links = [links_of(asking, networks[0], addresses), links_of(serving, networks[1], addresses)]
    asking.use_links(links[0])
    await serving.start()

    async def cut() -> None:
        for stream in networks[0].streams:
            stream.close()

    try:
        yield Bench(asking.ref(HostRef, host="h2"), actor, serving, cut=cut)
    finally:
        for link in links:
            await link.close()
        await serving.stop()
        for network in networks:
            await network.close()


@contextlib.asynccontextmanager
async def link_over_grpc(capacity: int = 1024) -> AsyncIterator[Bench]:
    asking = Node(None, "h1")  # type: ignore[arg-type]
    serving, actor = subject_node("h2", capacity)
    with tempfile.TemporaryDirectory() as folder:
        addresses = {host: f"unix:{folder}/{host}.sock" for host in ("h1", "h2")}
        networks = {"h1": GrpcNetwork(), "h2": GrpcNetwork()}
        links = [links_of(node, networks[node.host], addresses) for node in (asking, serving)]
        asking.use_links(links[0])
        fronts = [
            Front(node, f"{folder}/{node.host}.sock", handlers=(networks[node.host].handler,))
            for node in (asking, serving)
        ]
        await serving.start()
        for front in fronts:
            await front.start()
        try:
            yield Bench(asking.ref(HostRef, host="h2"), actor, serving, cut=networks["h1"].close)
        finally:
            for link in links:
                await link.close()
            for front in fronts:
                await front.stop()
            await serving.stop()
            for network in networks.values():
                await network.close()


@contextlib.asynccontextmanager
async def grpc_client(capacity: int = 1024) -> AsyncIterator[Bench]:
    serving, actor = subject_node("h2", capacity)
    with tempfile.TemporaryDirectory() as folder:
        front = Front(serving, f"{folder}/h2.sock")
        await serving.start()
        await front.start()
        carrier = ChannelCarrier(f"unix:{folder}/h2.sock", whom="host h2")
        try:
            yield Bench(HostRef(carrier), actor, serving, ordered=False, cut=front.stop)
        finally:
            await carrier.close()
            await front.stop()
            await serving.stop()


@dataclass(frozen=True)
class Way:
    open: Callable[..., contextlib.AbstractAsyncContextManager[Bench]]
    run: Callable[[Coroutine[Any, Any, None]], None]


WAYS: dict[str, Way] = {
    "local": Way(local, asyncio.run),
    "link in memory": Way(link_in_memory, asyncio.run),
    "link over gRPC": Way(link_over_grpc, uvloop.run),
    "gRPC client": Way(grpc_client, uvloop.run),
}

Body = Callable[[Bench], Awaitable[None]]
BODIES: dict[str, tuple[Body, int]] = {}


def body(function: Body | None = None, *, capacity: int = 1024) -> Any:
    def register(function: Body) -> Body:
        BODIES[function.__name__] = function, capacity
        return function

    return register if function is None else register(function)


async def outcome(ask: Awaitable[Any]) -> EverramError:
    with pytest.raises(EverramError) as caught:
        await ask
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  what is waited for lies on the other side of a connection
            await asyncio.sleep(0.001)


@body
async def an_ask_is_answered(bench: Bench) -> None:
    for payload in (b"", b"x" * 1_000_000):
        reply = await bench.ref.echo(Message(value=7, payload=payload))
        assert reply == Message(value=7, payload=payload)


@body
async def many_asks_at_once_each_get_their_own_answer(bench: Bench) -> None:
    replies = await asyncio.gather(*(bench.ref.echo(Message(value=n)) for n in range(300)))
    assert [reply.value for reply in replies] == list(range(300))
    assert sorted(bench.actor.seen) == list(range(300))


@body
async def tells_arrive_once_and_in_order(bench: Bench) -> None:
    for n in range(200):
        bench.ref.tell(HOST_ECHO, Message(value=n))
    await until(lambda: len(bench.actor.seen) == 200)
    assert sorted(bench.actor.seen) == list(range(200))
    if bench.ordered:
        assert bench.actor.seen == list(range(200))


@body
async def every_error_travels_as_it_is(bench: Bench) -> None:
    for error_class in BY_CODE.values():
        for unknown in (False, True):
            error = error_class(f"a plain sentence, ünïcode too ({error_class.__name__})", unknown=unknown)

            def refuse(_: Message, error: EverramError = error) -> Message:
                raise error

            bench.actor.on_echo = refuse
            caught = await outcome(bench.ref.echo(Message()))
            assert type(caught) is error_class
            assert (caught.message, caught.unknown, caught.fault) == (error.message, unknown, error.fault)


@body
async def a_bug_is_internal(bench: Bench) -> None:
    async def broken(_: Message) -> Message:
        raise ZeroDivisionError("by design")

    bench.actor.on_echo = broken
    caught = await outcome(bench.ref.echo(Message()))
    assert type(caught) is Internal
    assert "ZeroDivisionError" in caught.message
    bench.actor.on_echo = lambda request: request
    await bench.ref.echo(Message())


@body
async def a_wrong_reply_is_internal(bench: Bench) -> None:
    bench.actor.on_echo = lambda _: common_pb2.Empty()
    assert type(await outcome(bench.ref.echo(Message()))) is Internal


@body
async def what_is_not_built_is_unimplemented(bench: Bench) -> None:
    assert type(await outcome(bench.ref.status(common_pb2.Empty()))) is Unimplemented


@body
async def work_handed_over_does_not_block_the_mailbox(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    def handle(request: Message) -> Any:
        return bench.actor.context.later(slow(request)) if request.value == 1 else request

    bench.actor.on_echo = handle
    waiting = asyncio.create_task(bench.ref.echo(Message(value=1)))
    await until(lambda: bench.actor.seen == [1])
    assert (await bench.ref.echo(Message(value=2))).value == 2
    release.set()
    assert (await waiting).value == 1


@body
async def a_deadline_that_passes_while_it_is_handled_is_unknown(bench: Bench) -> None:
    await bench.ref.echo(Message())
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    bench.actor.on_echo = slow
    caught = await outcome(bench.ref.echo(Message(value=1), timeout_s=0.1))
    assert type(caught) is DeadlineExceeded
    assert caught.outcome is Outcome.UNKNOWN
    release.set()


@body
async def a_deadline_that_passes_in_line_is_never_handled(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    bench.actor.on_echo = slow
    first = asyncio.create_task(bench.ref.echo(Message(value=1)))
    await until(lambda: bench.actor.seen == [1])
    caught = await outcome(bench.ref.echo(Message(value=2), timeout_s=0.05))
    assert type(caught) is DeadlineExceeded
    if bench.sees_take_up:
        assert caught.outcome is Outcome.FAILED
    await asyncio.sleep(0.05)  # the other side's own clock may be a little behind
    release.set()
    await first
    await bench.ref.echo(Message(value=3))
    assert bench.actor.seen == [1, 3]


@body
async def an_ask_given_up_in_line_is_never_handled(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    bench.actor.on_echo = slow
    first = asyncio.create_task(bench.ref.echo(Message(value=1)))
    await until(lambda: bench.actor.seen == [1])
    second = asyncio.create_task(bench.ref.echo(Message(value=2)))
    await until(lambda: bench.node.statuses()[0].queued == 1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0.05)  # the cancellation has no answer to wait for
    release.set()
    await first
    await bench.ref.echo(Message(value=3))
    assert bench.actor.seen == [1, 3]


@body
async def cancellable_work_ends_with_its_asker_and_other_work_does_not(bench: Bench) -> None:
    ended: list[str] = []
    release = asyncio.Event()

    async def wait(name: str) -> Message:
        try:
            await release.wait()
        except asyncio.CancelledError:
            ended.append(f"{name} cancelled")
            raise
        ended.append(f"{name} finished")
        return Message()

    later = {1: ("a wait", True), 2: ("a change", False)}

    def handle(request: Message) -> Any:
        name, cancellable = later[request.value]
        return bench.actor.context.later(wait(name), cancellable=cancellable)

    bench.actor.on_echo = handle
    asks = [asyncio.create_task(bench.ref.echo(Message(value=value))) for value in later]
    await until(lambda: len(bench.actor.seen) == 2)
    for ask in asks:
        ask.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
    await until(lambda: ended == ["a wait cancelled"])
    release.set()
    await until(lambda: ended == ["a wait cancelled", "a change finished"])


@body
async def a_stream_gives_every_item_in_order(bench: Bench) -> None:
    values = [reply.value async for reply in bench.ref.count(Message(value=200))]
    assert values == list(range(200, 0, -1))
    assert [reply async for reply in bench.ref.count(Message(value=0))] == []


@body
async def a_stream_gives_its_items_before_its_error(bench: Bench) -> None:
    async def breaking(request: Message) -> AsyncIterator[Message]:
        yield Message(value=1)
        yield Message(value=2)
        raise ResourceExhausted("two is all there is")

    bench.actor.on_count = breaking
    values = []
    with pytest.raises(ResourceExhausted, match="two is all"):
        async for reply in bench.ref.count(Message()):
            values.append(reply.value)
    assert values == [1, 2]


@body
async def a_slow_reader_slows_the_producer(bench: Bench) -> None:
    async with contextlib.aclosing(bench.ref.count(Message(value=100_000, payload=b"x" * 16384))) as replies:
        for _ in range(3):
            await anext(replies)
        seen = -1
        while seen != bench.actor.produced:  # buffers on the way fill up first
            seen = bench.actor.produced
            await asyncio.sleep(0.1)
        assert seen < 2_000
    await asyncio.wait_for(bench.actor.closed.wait(), 5)


@body
async def closing_a_stream_ends_its_producer(bench: Bench) -> None:
    async def endless(request: Message) -> AsyncIterator[Message]:
        try:
            yield Message(value=1)
            await asyncio.Event().wait()
        finally:
            bench.actor.closed.set()

    bench.actor.on_count = endless
    async with contextlib.aclosing(bench.ref.count(Message())) as replies:
        assert (await anext(replies)).value == 1
    await asyncio.wait_for(bench.actor.closed.wait(), 5)


@body
async def a_stream_keeps_its_deadline(bench: Bench) -> None:
    async def endless(request: Message) -> AsyncIterator[Message]:
        try:
            yield Message(value=1)
            await asyncio.Event().wait()
        finally:
            bench.actor.closed.set()

    bench.actor.on_count = endless
    values = []
    with pytest.raises(DeadlineExceeded) as caught:
        async for reply in bench.ref.count(Message(), timeout_s=0.3):
            values.append(reply.value)
    assert values == [1]
    assert caught.value.outcome is Outcome.UNKNOWN
    await asyncio.wait_for(bench.actor.closed.wait(), 5)


@body(capacity=4)
async def an_ask_to_a_full_mailbox_waits_for_room(bench: Bench) -> None:
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    bench.actor.on_echo = slow
    asks = [asyncio.create_task(bench.ref.echo(Message(value=n))) for n in range(20)]
    await until(lambda: bench.node.statuses()[0].queued == 19)
    release.set()
    assert [(await ask).value for ask in asks] == list(range(20))


@body
async def a_stopped_actor_is_unavailable(bench: Bench) -> None:
    await bench.ref.echo(Message())
    await bench.node.stop()
    caught = await outcome(bench.ref.echo(Message(value=5)))
    assert type(caught) is Unavailable
    assert caught.outcome is Outcome.FAILED
    with pytest.raises(Unavailable):
        await anext(bench.ref.count(Message(value=1)))


@body
async def a_connection_that_breaks_leaves_the_outcome_unknown(bench: Bench) -> None:
    if bench.cut is None:
        return
    release = asyncio.Event()

    async def slow(request: Message) -> Message:
        await release.wait()
        return request

    bench.actor.on_echo = lambda request: bench.actor.context.later(slow(request))
    waiting = asyncio.create_task(bench.ref.echo(Message(value=1)))
    await until(lambda: bench.actor.seen == [1])
    reading = bench.ref.count(Message(value=1_000_000, payload=b"x" * 16384))
    await anext(reading)
    await bench.cut()
    caught = await outcome(waiting)
    assert caught.outcome is Outcome.UNKNOWN
    release.set()
    with pytest.raises(EverramError):
        async for _ in reading:
            pass
    await asyncio.wait_for(bench.actor.closed.wait(), 5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BODIES)
def test_transport(way: str, name: str) -> None:
    function, capacity = BODIES[name]

    async def run() -> None:
        async with WAYS[way].open(capacity) as bench:
            async with asyncio.timeout(20):
                await function(bench)

    WAYS[way].run(run())
