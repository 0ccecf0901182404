"""The forwarder of published ports, over real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest
import uvloop

from everram.runtime.cluster.forwarder import PublishedPort
from everram.runtime.cluster.published import PublishedPorts
from everram.runtime.cluster.routes import Route, Routes
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Event, KeyValue
from everram.runtime.errors import AlreadyExists, InvalidArgument


def on_both_loops(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run the test on asyncio's loop and on uvloop, which the supervisor uses."""

    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**arguments))

    own = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*inspect.signature(test).parameters.values(), own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__, run.__name__ = test.__doc__, test.__name__
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return pytest.mark.parametrize("new_loop", loops.values(), ids=loops)(run)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def guest(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    """A server that answers each line; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(answer(line))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def published() -> AsyncIterator[PublishedPort]:
    port = PublishedPort.listen(free_port(), "bank")
    try:
        yield port
    finally:
        await port.close()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@on_both_loops
async def test_connection_made_before_any_incarnation_is_served_when_one_comes() -> None:
    async with published() as port, guest(lambda line: line.upper()) as backend:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"early\n")
        port.lead_to(Route("g", "bank", epoch=1))
        port.lead_to(Route("g", "bank", epoch=1, backend_port=backend))
        assert await reader.readline() == b"EARLY\n"
        assert port.connections == 1
        await closed(writer)


@on_both_loops
async def test_waits_for_a_guest_that_does_not_listen_yet() -> None:
    later = free_port()
    async with published() as port:
        port.lead_to(Route("g", "bank", epoch=1, backend_port=later))
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"x")
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result(await reader.read(1))
            await closed(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", later)
        assert await got == b"x"
        assert await reader.read() == b""
        await closed(writer)
        server.close()
        await server.wait_closed()


@on_both_loops
@pytest.mark.parametrize("then", [Route("g", "bank", epoch=2), None, Route("g", "bank", epoch=2, backend_port=1)])
async def test_new_epoch_or_no_incarnation_resets_old_connections(then: Route | None) -> None:
    async with published() as port, guest(lambda line: line) as backend:
        port.lead_to(Route("g", "bank", epoch=1, backend_port=backend))
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        port.lead_to(then)
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        await closed(writer)


@on_both_loops
async def test_connection_survives_a_change_that_is_not_its_own() -> None:
    async with published() as port, guest(lambda line: line) as backend:
        port.lead_to(Route("g", "bank", epoch=1, backend_port=backend))
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"
        port.lead_to(Route("g", "renamed", epoch=1, backend_port=backend))
        writer.write(b"b\n")
        assert await reader.readline() == b"b\n"
        await closed(writer)


@on_both_loops
async def test_stopped_guest_refuses_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everram.runtime.cluster.forwarder.ENDED_WAIT_S", 0.05)
    async with published() as port:
        port.lead_to(Route("g", "bank", epoch=1, expected=False))
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        await closed(writer)


@on_both_loops
async def test_end_of_stream_passes_one_way_and_the_answer_the_other() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        everything = await reader.read()  # until the client's end of stream
        writer.write(str(len(everything)).encode())
        await closed(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with published() as port:
        port.lead_to(Route("g", "bank", epoch=1, backend_port=server.sockets[0].getsockname()[1]))
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(b"x" * 3_000_000)
        writer.write_eof()
        assert await reader.read() == b"3000000"
        await closed(writer)
    server.close()
    await server.wait_closed()


@on_both_loops
async def test_reader_that_stops_stops_the_writer() -> None:
    """Back-pressure: a guest that sends to a client that does not read is not buffered without end."""
    sent = 0
    blocked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError, TimeoutError):
            while True:
                writer.write(bytes(1 << 16))
                async with asyncio.timeout(0.5):
                    await writer.drain()
                sent += 1 << 16
        blocked.set()
        await closed(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with published() as port:
        port.lead_to(Route("g", "bank", epoch=1, backend_port=server.sockets[0].getsockname()[1]))
        client = socket.create_connection(("127.0.0.1", port.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await blocked.wait()
        assert sent < 64 << 20
        client.close()
    server.close()
    await server.wait_closed()


@on_both_loops
async def test_port_in_use_is_a_plain_error() -> None:
    ports = PublishedPorts()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AlreadyExists, match=r"port \d+ is in use by another program: choose another"):
            ports.reserve(other.getsockname()[1], "bank")
    mine = free_port()
    ports.reserve(mine, "bank")
    ports.reserve(mine, "bank")
    with pytest.raises(AlreadyExists, match='already published for guest "bank"'):
        ports.reserve(mine, "shop")
    for bad in (0, 70000):
        with pytest.raises(InvalidArgument):
            ports.reserve(bad, "bank")
    ports.release(mine, "shop")
    assert [p.port for p in ports.statuses()] == [mine]
    ports.release(mine, "bank")
    assert ports.statuses() == []
    await ports.close()


@on_both_loops
async def test_connections_to_a_cut_off_host_are_reset_and_new_ones_wait() -> None:
    ports = PublishedPorts()
    port = free_port()
    record, serving = directory.guest_key("g1"), directory.serving_key("g1")
    async with guest(lambda line: line) as backend, guest(lambda line: line.upper()) as elsewhere:
        ports._routes.reset([pair(record, name="bank", epoch=1, state="running", publish_port=port)])
        ports._routes.apply(Event(False, pair(serving, host="h1", epoch=1, port=backend)))
        ports.set_cut("h2", True)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"
        ports.set_cut("h1", True)
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        await closed(writer)
        assert [p.backend_port for p in ports.statuses()] == [0]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"b\n")
        ports._routes.apply(Event(False, pair(record, name="bank", epoch=2, state="running", publish_port=port)))
        ports._routes.apply(Event(False, pair(serving, host="h3", epoch=2, port=elsewhere)))
        ports.set_cut("h2", False)
        ports.set_cut("h2", False)
        assert await reader.readline() == b"B\n"
        await closed(writer)
    await ports.close()


def pair(key: bytes, **value: object) -> KeyValue:
    return KeyValue(key, directory.encode(dict(value)), 1, 1, 1)


def test_routes_follow_the_directory() -> None:
    routes = Routes()
    record, serving = directory.guest_key("g1"), directory.serving_key("g1")
    routes.reset([pair(record, name="bank", epoch=1, state="running", publish_port=7070)])
    assert routes.ports() == {7070: Route("g1", "bank", 1, 0)}
    routes.apply(Event(False, pair(serving, host="h1", epoch=1, port=4000)))
    assert routes.ports() == {7070: Route("g1", "bank", 1, 4000, host="h1")}
    # The epoch is raised first: the old incarnation's port no longer counts, though its record is still there.
    routes.apply(Event(False, pair(record, name="bank", epoch=2, state="restarting", publish_port=7070)))
    assert routes.ports() == {7070: Route("g1", "bank", 2, 0)}
    routes.apply(Event(False, pair(serving, host="h2", epoch=2, port=4001)))
    assert routes.ports() == {7070: Route("g1", "bank", 2, 4001, host="h2")}
    routes.apply(Event(True, pair(serving)))
    assert routes.ports() == {7070: Route("g1", "bank", 2, 0)}
    routes.apply(Event(False, pair(record, name="bank", epoch=2, state="STOPPED", publish_port=7070)))
    assert routes.ports() == {7070: Route("g1", "bank", 2, 0, expected=False)}
    routes.apply(Event(True, pair(record)))
    assert routes.ports() == {}
    routes.apply(Event(False, pair(directory.host_key("h1"), address="unix:/x")))
    assert routes.ports() == {}
