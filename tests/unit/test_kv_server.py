"""The server of examples/kv.py in this process: one transaction a batch, and no answer before it is promised."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from everram.examples.keyvalue import server
from everram.examples.keyvalue.server import Server
from everram.runtime.guest import AsyncGuest, Fenced
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Destination, Ring
from everram.runtime.memory.heap import HeapMapping

GUEST_ID = "0123456789abcdef"
REGION_BYTES = 256 * 1024
PATIENCE_S = 20.0


class Running:
    """A server on a port, and what its guest lies on."""

    def __init__(self, ack: str) -> None:
        log = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.ring = Ring.format(log, guest_id=GUEST_ID, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
        region = Region("kv", 0, "logged", HeapMapping(REGION_BYTES), REGION_BYTES)
        self.commits = 0
        core = GuestCore(
            guest_id=GUEST_ID,
            name="kv",
            epoch=1,
            ring=self.ring,
            regions=[region],
            now_ns=lambda: 1,
            ring_bell=self.rung,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.server = Server(AsyncGuest(core), region, ack=ack)
        self.task = asyncio.create_task(self.server.serve(self.port))
        self.clients: list[Client] = []
        self.ring.set_reader_sleeps(True)  # so that every commit rings

    def rung(self) -> None:
        self.commits += 1

    def copy_that_holds(self, lsn: int) -> None:
        self.ring.set_copies(1)
        self.ring.set_destination(0, Destination(True, "copy", lsn))

    async def end(self) -> None:
        self.server.stop()
        await asyncio.gather(self.task, return_exceptions=True)
        for client in self.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()

    async def connect(self) -> Client:
        while True:
            try:
                client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
                self.clients.append(client)
                return client
            except ConnectionRefusedError:
                assert not self.task.done()
                await asyncio.sleep(0.001)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes, answer: bytes) -> None:
        self.writer.write(request)
        await self.answered(answer)

    async def answered(self, answer: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            assert await self.reader.readexactly(len(answer)) == answer

    async def ended(self) -> None:
        """Without another byte."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                assert await self.reader.read() == b""
            except ConnectionResetError:
                pass


@pytest.fixture
async def local() -> AsyncIterator[Running]:
    running = Running("local")
    yield running
    await running.end()


@pytest.fixture
async def replicated() -> AsyncIterator[Running]:
    running = Running("replicated")
    yield running
    await running.end()


async def test_requests_that_were_read_together_are_one_transaction(local: Running) -> None:
    client = await local.connect()
    before = local.commits
    await client.ask(b"SET a 1\r\nINCR a\r\nGET a\r\nSET b 1\r\n" * 20, b"+OK\r\n:2\r\n$1\r\n2\r\n+OK\r\n" * 20)
    assert local.commits == before + 1
    await client.ask(b"GET a\r\nPING\r\n", b"$1\r\n2\r\n+PONG\r\n")
    assert local.commits == before + 1
    await client.ask(b"QUIT\r\nPING\r\n", b"+OK\r\n")
    await client.ended()


async def test_a_batch_larger_than_a_transaction_is_several(local: Running) -> None:
    client = await local.connect()
    before = local.commits
    value = b"v" * 4000
    await client.ask(
        b"SET a %b\r\n" % value * 1 + b"".join(b"SET %d %b\r\n" % (n, value) for n in range(40)), b"+OK\r\n" * 41
    )
    assert 2 < local.commits - before < 41
    await client.ask(b"DBSIZE\r\n", b":41\r\n")


async def test_what_cannot_be_read_is_said_and_ends_the_connection(local: Running) -> None:
    client = await local.connect()
    await client.ask(b"PING\r\n*1\r\n:4\r\n", b"+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n")
    await client.ended()


async def test_who_does_not_take_answers_is_not_read_from(local: Running) -> None:
    greedy, other = await local.connect(), await local.connect()
    await greedy.ask(b"SET k %b\r\n" % (b"v" * 8000), b"+OK\r\n")
    asked = 4000
    greedy.writer.write(b"GET k\r\n" * asked)
    await other.ask(b"PING\r\n", b"+PONG\r\n")
    answer = b"$8000\r\n%b\r\n" % (b"v" * 8000)
    for _ in range(asked):
        await greedy.answered(answer)


async def test_what_has_expired_is_swept(local: Running) -> None:
    client = await local.connect()
    await client.ask(b"SET k v PX 1\r\n", b"+OK\r\n")
    async with asyncio.timeout(PATIENCE_S):
        while len(local.server.store):  # noqa: ASYNC110 - what the sweep does is seen from outside only
            await asyncio.sleep(0.01)


async def test_an_answer_waits_until_the_copy_holds_it(replicated: Running) -> None:
    replicated.copy_that_holds(0)
    writer, reader = await replicated.connect(), await replicated.connect()
    writer.writer.write(b"SET k v\r\nPING\r\n")
    async with asyncio.timeout(PATIENCE_S):
        while not replicated.commits:  # noqa: ASYNC110 - a word in memory
            await asyncio.sleep(0.001)
    reader.writer.write(b"GET k\r\n")
    for client in (writer, reader):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)
    replicated.ring.set_durable(0, replicated.ring.tail)
    await writer.answered(b"+OK\r\n+PONG\r\n")
    await reader.answered(b"$1\r\nv\r\n")
    await reader.ask(b"GET k\r\n", b"$1\r\nv\r\n")


async def test_who_has_said_all_gets_its_answers_yet(replicated: Running) -> None:
    replicated.copy_that_holds(0)
    client = await replicated.connect()
    client.writer.write(b"SET k v\r\n")
    client.writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        while not replicated.commits:  # noqa: ASYNC110 - a word in memory
            await asyncio.sleep(0.001)
    replicated.ring.set_durable(0, replicated.ring.tail)
    await client.answered(b"+OK\r\n")
    await client.ended()


async def test_what_is_not_known_in_time_gets_no_answer(replicated: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REPLICATED_TIMEOUT_S", 0.05)
    replicated.copy_that_holds(0)
    client = await replicated.connect()
    client.writer.write(b"SET k v\r\n")
    await client.ended()
    replicated.ring.set_durable(0, replicated.ring.tail)
    client = await replicated.connect()
    await client.ask(b"GET k\r\n", b"$1\r\nv\r\n")


@pytest.mark.parametrize("request_line", [b"SET k v\r\n", b"GET k\r\n"])
async def test_a_fenced_server_stops_without_an_answer(local: Running, request_line: bytes) -> None:
    client = await local.connect()
    local.ring.set_lease_deadline_ns(1)
    client.writer.write(request_line)
    await client.ended()
    with pytest.raises(Fenced):
        await local.task


async def test_a_fenced_server_stops_while_answers_wait(replicated: Running) -> None:
    replicated.copy_that_holds(0)
    client = await replicated.connect()
    client.writer.write(b"SET k v\r\n")
    async with asyncio.timeout(PATIENCE_S):
        while not replicated.commits:  # noqa: ASYNC110 - a word in memory
            await asyncio.sleep(0.001)
    replicated.ring.set_lease_deadline_ns(1)
    await client.ended()
    with pytest.raises(Fenced):
        await replicated.task


async def test_a_full_log_is_waited_for(local: Running) -> None:
    client, other = await local.connect(), await local.connect()
    local.copy_that_holds(0)
    value = b"v" * 7000
    requests = [b"SET k%d %b\r\n" % (number, value) for number in range(20)]
    client.writer.write(b"".join(requests))
    async with asyncio.timeout(PATIENCE_S):
        while not local.server.log_is_full:  # noqa: ASYNC110 - a state of the server
            await asyncio.sleep(0.001)
    other.writer.write(b"GET k0\r\n")
    local.copy_that_holds(local.ring.tail)
    local.ring.set_destination(0, None)
    await client.answered(b"+OK\r\n" * 20)
    await other.answered(b"$7000\r\n%b\r\n" % value)


async def test_a_log_that_stays_full_ends_connections_without_an_answer(
    local: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ROOM_WAIT_S", 0.05)
    client = await local.connect()
    local.copy_that_holds(0)
    client.writer.write(b"".join(b"SET k%d %b\r\n" % (number, b"v" * 7000) for number in range(20)))
    async with asyncio.timeout(PATIENCE_S):
        try:
            while data := await client.reader.read(1000):
                assert set(data.split(b"\r\n")) <= {b"+OK", b""}
        except ConnectionResetError:
            pass
    local.ring.set_destination(0, None)
    client = await local.connect()
    await client.ask(b"SET k v\r\n", b"+OK\r\n")


async def test_sigterm_ends_it(local: Running, capsys: pytest.CaptureFixture[str]) -> None:
    client = await local.connect()
    await client.ask(b"PING\r\n", b"+PONG\r\n")
    os.kill(os.getpid(), signal.SIGTERM)
    await local.task
    await client.ended()
    assert capsys.readouterr().out == f"kv: 0 keys; serving 127.0.0.1:{local.port}\n"
