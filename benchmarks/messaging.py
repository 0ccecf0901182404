"""Messages: inside a host against a bare asyncio.Queue, between two host processes against unary gRPC calls.

- `tell_vs_queue`: a typed tell of a protobuf message through a ref to a plain handler, against `put_nowait` and `get`
of the
  same object on an asyncio.Queue; both on uvloop, in bursts of 64 messages, rounds of both taking turns.
- `link_ask50_vs_unary`: an ask of a 64-byte message to an actor in another process over the link, 50 in flight,
against a
  unary grpc.aio call of the same handler, 50 in flight, to the same process over the same kind of socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import uvloop

from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HOST_ECHO, HostActor, HostRef
from everram.runtime.environment import HostAddress
from everram.runtime.errors import NotFound
from everram.runtime.node import Node
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.transport.front import Front
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links

ROUNDS = 7
BURST = 64
TELLS = 64_000
ASKS = 20_000
REMOTE_ASKS = 5_000
UNARY_CALLS = 1_000
IN_FLIGHT = 50

Message = host_pb2.EchoMessage


class Echo(HostActor):
    """Answers what it is asked and counts what it is told."""

    def __init__(self) -> None:
        self.count_seen = 0

    def echo(self, request: Message) -> Message:
        self.count_seen += 1
        return request


async def tells_us(ref: HostRef, actor: Echo) -> float:
    """Microseconds per tell, until the handler has seen all."""
    message, target, tell = Message(value=1), actor.count_seen + TELLS, ref.tell
    began = time.perf_counter()
    for _ in range(TELLS // BURST):
        for _ in range(BURST):
            tell(HOST_ECHO, message)
        await asyncio.sleep(0)
    while actor.count_seen < target:  # noqa: ASYNC110  the hand-over itself is measured
        await asyncio.sleep(0)
    return (time.perf_counter() - began) / TELLS * 1e6


async def queue_us() -> float:
    """Microseconds per message through a bare queue, until the consumer has got all."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    message = Message(value=1)

    async def consume() -> None:
        for _ in range(TELLS):
            await queue.get()

    consumer = asyncio.create_task(consume())
    began = time.perf_counter()
    for _ in range(TELLS // BURST):
        for _ in range(BURST):
            queue.put_nowait(message)
        await asyncio.sleep(0)
    await consumer
    return (time.perf_counter() - began) / TELLS * 1e6


async def asks_us(ref: HostRef, count: int) -> float:
    """Microseconds per ask, one after another."""
    message = Message(value=1)
    began = time.perf_counter()
    for _ in range(count):
        await ref.echo(message)
    return (time.perf_counter() - began) / count * 1e6


async def inside_a_host() -> dict[str, float]:
    actor, node = Echo(), Node(None, "h1")  # type: ignore[arg-type]
    node.add(lambda: actor)
    await node.start()
    ref = node.ref(HostRef)
    tells, queues, asks = [], [], []
    for _ in range(ROUNDS):
        tells.append(await tells_us(ref, actor))
        queues.append(await queue_us())
        asks.append(await asks_us(ref, ASKS))
    await node.stop()
    tell, queue = statistics.median(tells), statistics.median(queues)
    return {"tell_vs_queue": tell / queue, "tell_us": tell, "queue_us": queue, "ask_us": statistics.median(asks)}


async def in_flight_us(call: Callable[[], Awaitable[Any]], count: int) -> float:
    """Microseconds per call with IN_FLIGHT under way."""

    async def worker(calls: int) -> None:
        for _ in range(calls):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(worker(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))
    return (time.perf_counter() - began) / count * 1e6


def addresses(folder: str) -> Callable[[str], Awaitable[HostAddress]]:
    async def resolve(host: str) -> HostAddress:
        if host not in ("h1", "h2"):
            raise NotFound(host)
        return HostAddress(host, f"id-{host}", f"unix:{folder}/{host}.sock")

    return resolve


@contextlib.asynccontextmanager
async def host(name: str, folder: str) -> AsyncIterator[Node]:
    """A node with an Echo actor, its links and its front, as a host process has them."""
    network, node = GrpcNetwork(), Node(None, name)  # type: ignore[arg-type]
    node.add(Echo)
    me = Identity("benchmark", name, f"id-{name}", f"{name}-{os.getpid()}")
    numbers = iter(range(1 << 30))
    node.use_links(Links(node, network, me, addresses(folder), lambda: f"{name}-{next(numbers)}"))
    front = Front(node, f"{folder}/{name}.sock", handlers=(network.handler,))
    await node.start()
    await front.start()
    try:
        yield node
    finally:
        await node.stop()
        await front.stop()
        await network.close()


async def serve(folder: str) -> None:
    """The other process: serve until its standard input ends."""
    async with host("h2", folder):
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def between_hosts() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        pipe = asyncio.subprocess.PIPE
        program = (sys.executable, "-m", "benchmarks.messaging", folder)
        other = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            await other.stdout.readline()
            async with host("h1", folder) as node:
                return await compare(node.ref(HostRef, host="h2"), f"unix:{folder}/h2.sock")
        finally:
            other.stdin.close()
            await other.wait()


async def compare(ref: HostRef, address: str) -> dict[str, float]:
    message = Message(value=1, payload=b"x" * 64)
    async with grpc.aio.insecure_channel(address) as channel:
        unary: Any = channel.unary_unary(
            HOST_ECHO.path, request_serializer=Message.SerializeToString, response_deserializer=Message.FromString
        )
        await ref.echo(message)
        await unary(message, timeout=5)
        links, unaries, alone = [], [], []
        for _ in range(ROUNDS):
            links.append(await in_flight_us(lambda: ref.echo(message), REMOTE_ASKS))
            unaries.append(await in_flight_us(lambda: unary(message, timeout=5), UNARY_CALLS))
            alone.append(await asks_us(ref, 200))
    link, call = statistics.median(links), statistics.median(unaries)
    return {
        "link_ask50_vs_unary": link / call,
        "link_ask50_us": link,
        "unary50_us": call,
        "link_ask_alone_us": statistics.median(alone),
    }


def run() -> dict[str, Any]:
    inside = uvloop.run(inside_a_host())
    between = uvloop.run(between_hosts())
    ratios = {"tell_vs_queue": inside.pop("tell_vs_queue"), "link_ask50_vs_unary": between.pop("link_ask50_vs_unary")}
    return {**ratios, **inside, **between}


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
