"""What only the TCP carrier has: cuts and resumption, duplicates, strangers, and the choice between carriers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everram.runtime.channel import tcp_pair, tcp_responder
from everram.runtime.channel.completions import CompletionQueue
from everram.runtime.channel.contract import Access, ChannelError, Opcode, Status, WorkRequest
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.host_channel import HostChannel, Reach
from everram.runtime.channel.tcp_frames import (
    Header,
    Hello,
    Kind,
    Welcome,
    decode,
    encode,
    encode_operands,
    header_bytes,
)
from everram.runtime.channel.tcp_framing import DIGEST_BYTES_MAX, Line
from everram.runtime.channel.tcp_pair import TcpPair
from everram.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from everram.runtime.formats.faults import LINK_CORRUPT, LINK_DELAY, LINK_SLOW, ONE_WAY
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production.weather import Weather
from tests.conformance.test_channel import (
    ATOMIC,
    BOTH,
    CHUNK_BYTES,
    TOKEN,
    Owner,
    RealBench,
    RealHost,
    Rings,
    fails,
    kept_memory,
    on_real,
    on_tcp,
    two,
    until,
)


def tcp_address(host: RealHost) -> tuple[str, int]:
    assert host.channel.tcp is not None
    return host.channel.tcp.address


def cut(pair: TcpPair) -> None:
    """The connection goes, as a network that was cut for a moment makes it go; both ends notice."""
    if pair._connection is not None:
        pair._connection.end()


async def read_header(reader: asyncio.StreamReader) -> Header:
    first = await reader.readexactly(1)
    return decode(first + await reader.readexactly(header_bytes(first[0]) - 1))


class Raw:
    """A peer that says what it likes, at its own pace."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @staticmethod
    async def dial(host: RealHost) -> Raw:
        return Raw(*await asyncio.open_connection(*tcp_address(host)))

    async def greet(self, *, pair: int = 1, resume: bool = False, **changes: Any) -> tuple[Kind, bytes]:
        hello = {"identity": Identity("c1", "r", "r.1"), "token": TOKEN, "to": "a", "pair": pair, "resume": resume}
        self.writer.write(Hello(**(hello | changes)).encode())
        header, payload = await self.frame()
        return header.kind, payload

    async def frame(self) -> tuple[Header, bytes]:
        header = await read_header(self.reader)
        return header, await self.reader.readexactly(header.payload_bytes)

    async def ask(self, data: bytes) -> Header:
        self.writer.write(data)
        return (await self.frame())[0]

    async def ended(self) -> None:
        """Until the other side has closed."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
        self.close()

    def close(self) -> None:
        self.writer.transport.abort()


def add(number: int, rkey: int, offset: int = 0) -> bytes:
    return encode(Kind.FETCH_AND_ADD, 16, number, rkey, offset) + encode_operands(0, 1)


# -- cuts


def test_a_cut_connection_is_resumed_and_nothing_happens_twice() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench, 8 * CHUNK_BYTES)
        assert isinstance(pair, TcpPair)
        region = owner.channel.register("m", 0, 8 * CHUNK_BYTES, ATOMIC)
        rings, finished = Rings(), asyncio.Event()
        rung = owner.channel.receive(rings)

        async def disturb() -> None:
            for turn in range(30):
                for _ in range(turn * 3):
                    await asyncio.sleep(0)
                cut(pair)
                await until(lambda: pair._connection is not None)
            finished.set()

        async def count(word: int) -> list[int]:
            found = []
            while not finished.is_set():
                found.append(await pair.fetch_and_add(region.rkey, 8 * word, 1))
            return found

        async def copy(at: int) -> None:
            number = 0
            while not finished.is_set():
                number += 1
                data = bytes([number & 255]) * (CHUNK_BYTES + 7)
                await pair.write_with_immediate(region.rkey, at, data, rung)
                assert await pair.read(region.rkey, at, len(data)) == data

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(disturb())
            counts = [tasks.create_task(count(word)) for word in range(4)]
            for place in range(1, 4):
                tasks.create_task(copy(place * 2 * CHUNK_BYTES))
        for task in counts:
            assert task.result() == list(range(len(task.result()))), "each addition happened once"
        assert rings.count

    on_tcp(body)


def test_an_owner_that_forgot_the_queue_pair_leaves_the_outcome_unknown() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        assert isinstance(pair, TcpPair) and isinstance(owner, RealHost) and owner.channel.tcp is not None
        region = owner.channel.register("m", 0, 64, ATOMIC)
        await pair.fetch_and_add(region.rkey, 0, 1)
        first = asyncio.ensure_future(pair.fetch_and_add(region.rkey, 0, 1))
        second = asyncio.ensure_future(pair.fetch_and_add(region.rkey, 0, 1))
        await asyncio.sleep(0)
        owner.channel.tcp.hang_up()
        await fails(cast(Any, first), Status.RETRY_EXC_ERR)
        await fails(cast(Any, second), Status.WR_FLUSH_ERR)
        await pair.wait_broken()

    on_tcp(body)


def test_an_owner_that_forgets_while_nothing_is_under_way_breaks_the_queue_pair() -> None:
    async def body(bench: RealBench) -> None:
        owner, peer, pair = await two(bench)
        assert isinstance(owner, RealHost) and owner.channel.tcp is not None
        owner.channel.tcp.hang_up()
        await pair.wait_broken()
        region = owner.channel.register("m", 0, 64, BOTH)
        await (await peer.channel.connect("a", owner.channel.address)).write(region.rkey, 0, b"x")

    on_tcp(body)


def test_a_queue_pair_that_does_not_come_back_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_responder, "RESUME_S", 0.01)

    async def body(bench: RealBench) -> None:
        owner, _, _ = await two(bench)
        assert owner.channel.tcp is not None
        raw = await Raw.dial(owner)
        assert (await raw.greet())[0] is Kind.WELCOME
        assert set(owner.channel.tcp.sessions) == {"b", "r"}
        raw.close()
        await until(lambda: set(owner.channel.tcp.sessions) == {"b"})

    on_tcp(body)


# -- requests that come again


def test_duplicates_are_answered_and_not_carried_out() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, _ = await two(bench)
        region, rings = owner.channel.register("m", 0, PAGE_BYTES, ATOMIC), Rings()
        rung = owner.channel.receive(rings)
        raw = await Raw.dial(owner)
        assert (await raw.greet())[0] is Kind.WELCOME
        assert [(await raw.ask(add(number, region.rkey))).first for number in (1, 2, 1, 2)] == [0, 1, 0, 1]
        data = encode(Kind.WRITE_WITH_IMMEDIATE, 100, 3, region.rkey, 8, immediate=rung)
        assert (await raw.ask(data + b"x" * 100)).status == 0
        await rings.rang.wait()
        # The connection is cut; the same queue pair goes on, and sends again what it does not know of.
        raw.close()
        raw = await Raw.dial(owner)
        kind, payload = await raw.greet(resume=True)
        assert (kind, Welcome.decode(payload).expected) == (Kind.WELCOME, 4)
        assert (await raw.ask(data + b"y" * 100)).status == 0
        assert (await raw.ask(add(2, region.rkey))).first == 1
        assert (await raw.ask(add(4, region.rkey))).first == 2
        assert owner.memory.open("m").read(0, 108) == (3).to_bytes(8, "little") + b"x" * 100
        assert rings.count == 1
        # What was read is read again; what is no longer allowed ends the queue pair.
        raw.writer.write(encode(Kind.READ, 24, 5, region.rkey, 0) * 2)
        assert await raw.frame() == await raw.frame()
        region.deregister()
        assert (await raw.ask(encode(Kind.READ, 24, 5, region.rkey, 0))).status != 0
        raw.close()

    on_tcp(body)


@pytest.mark.parametrize("number", [0, 3, 1 << 31, (1 << 32) - 1])
def test_a_number_out_of_turn_ends_the_connection(number: int) -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, ATOMIC)
        raw = await Raw.dial(owner)
        await raw.greet()
        assert (await raw.ask(add(1, region.rkey))).first == 0
        raw.writer.write(add(number, region.rkey))
        await raw.ended()
        assert await pair.fetch_and_add(region.rkey, 0, 1) == 1

    on_tcp(body)


def test_numbers_go_on_after_32_bits() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        assert isinstance(pair, TcpPair) and owner.channel.tcp is not None
        region = owner.channel.register("m", 0, 64, ATOMIC)
        pair._numbers = (1 << 32) - 3
        owner.channel.tcp.sessions["b"].expected = (1 << 32) - 2
        assert [await pair.fetch_and_add(region.rkey, 0, 1) for _ in range(3)] == [0, 1, 2]
        cut(pair)
        assert [await pair.fetch_and_add(region.rkey, 0, 1) for _ in range(3)] == [3, 4, 5]

    on_tcp(body)


# -- memory that is taken back meanwhile


def test_nothing_lands_after_a_region_was_revoked() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, _ = await two(bench, 4 * CHUNK_BYTES)
        region, memory = owner.channel.register("m", 0, 4 * CHUNK_BYTES, BOTH), owner.memory.open("m")
        raw = await Raw.dial(owner)
        await raw.greet()
        raw.writer.write(encode(Kind.WRITE, 3 * CHUNK_BYTES, 1, region.rkey, 0) + b"x" * CHUNK_BYTES)
        await until(lambda: memory.read(CHUNK_BYTES - 1, 1) == b"x")
        region.deregister()
        header = await raw.ask(b"y" * (2 * CHUNK_BYTES))
        assert (header.kind, header.status) == (Kind.COMPLETION, 4)
        assert memory.read(CHUNK_BYTES, 2 * CHUNK_BYTES) == bytes(2 * CHUNK_BYTES)
        raw.close()

    on_tcp(body)


def test_nothing_is_sent_of_a_region_after_it_was_revoked() -> None:
    async def body(bench: RealBench) -> None:
        owner, peer, pair = await two(bench, 32 * CHUNK_BYTES)
        memory = owner.memory.open("m")
        memory.write(0, b"x" * (32 * CHUNK_BYTES))
        region = owner.channel.register("m", 0, 32 * CHUNK_BYTES, BOTH)
        raw = await Raw.dial(owner)
        await raw.greet()
        raw.writer.write(encode(Kind.READ, 32 * CHUNK_BYTES, 1, region.rkey, 0))
        await raw.reader.readexactly(CHUNK_BYTES)  # the rest fits into no buffer on the way
        region.deregister()
        memory.write(0, b"y" * (32 * CHUNK_BYTES))
        found = bytearray()
        try:
            while piece := await raw.reader.read(1 << 20):
                found += piece
        except ConnectionError:
            pass
        assert b"y" not in found and len(found) < 31 * CHUNK_BYTES
        assert pair is not None and peer is not owner
        raw.close()

    on_tcp(body)


# -- strangers, nonsense, half-open connections


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": ""}, "token"),
        ({"token": TOKEN + "x"}, "token"),
        ({"identity": Identity("c2", "r", "r.1")}, "of cluster c1, host r of cluster c2"),
        ({"to": "z"}, "answers host a, not z"),
        ({"version": 0}, "upgrade one of them"),
        ({"version": 3}, "upgrade one of them"),
        ({"resume": True}, "connect again"),
    ],
)
def test_strangers_are_refused(changes: dict[str, Any], message: str) -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        raw = await Raw.dial(owner)
        kind, payload = await raw.greet(**changes)
        assert kind is Kind.REFUSED and message in payload.decode()
        await raw.ended()
        assert not pair.broken  # type: ignore[attr-defined]

    on_tcp(body)


def test_it_stays_on_loopback_and_asks_for_a_token() -> None:
    async def body(bench: RealBench) -> None:
        with pytest.raises(FailedPrecondition, match="token"):
            await bench.host("a", token="")
        memory = (await bench.host("b")).memory
        me = Identity("c1", "x", "x")
        for host in ("0.0.0.0", "192.0.2.1", "example.org", "::"):
            with pytest.raises(FailedPrecondition, match="loopback"):
                await HostChannel.open(memory, os.urandom, me, Reach("", "tcp", TOKEN, tcp_host=host))
        with pytest.raises(InvalidArgument, match="auto, shm or tcp"):
            await HostChannel.open(memory, os.urandom, me, Reach("", "udp", TOKEN))
        peer = await bench.host("c")
        with pytest.raises(Unavailable, match="loopback"):
            await peer.channel.connect("x", "tcp:192.0.2.1:80")

    on_tcp(body)


def test_half_open_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_responder, "GREETING_TIMEOUT_S", 0.05)

    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        hello = Hello(Identity("c1", "r", "r"), TOKEN, "a", 1, False).encode()
        raws = [await Raw.dial(owner) for _ in range(3)]
        raws[1].writer.write(hello[:10])
        raws[2].writer.write(hello[:60])
        for raw in raws:
            await raw.ended()
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")

    on_tcp(body)


REQUESTS = st.builds(
    lambda kind, status, reserved, length, number, immediate, rest: (
        bytes([kind, status])
        + reserved.to_bytes(2, "little")
        + length.to_bytes(4, "little")
        + number.to_bytes(4, "little")
        + immediate.to_bytes(4, "little")
        + rest
    ),
    st.integers(0, 12),
    st.sampled_from([0, 0, 0, 1, 200]),
    st.sampled_from([0, 0, 0, 7]),
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 4), st.integers(0, (1 << 32) - 1)),
    st.integers(0, (1 << 32) - 1),
    st.binary(min_size=16, max_size=80),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(REQUESTS, st.binary(max_size=64)), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_nonsense_harms_nobody_but_who_says_it(said: list[bytes], greeted: bool, honest_rkey: bool) -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        closed = owner.channel.register("m", PAGE_BYTES, PAGE_BYTES, Access.REMOTE_READ)
        region = owner.channel.register("m", 0, 64, BOTH)
        raw = await Raw.dial(owner)
        if greeted:
            await raw.greet()
        for data in said:
            rkey = closed.rkey.to_bytes(8, "little") if honest_rkey else data[16:24]
            raw.writer.write(data[:16] + rkey + data[24:])
        raw.writer.write_eof()
        await raw.ended()
        await pair.write(region.rkey, 0, b"x" * 64)
        assert owner.memory.open("m").read(0, 2 * PAGE_BYTES) == b"x" * 64 + bytes(2 * PAGE_BYTES - 64)

    on_tcp(body)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(REQUESTS, st.binary(max_size=64)), min_size=1, max_size=4), st.booleans())
def test_nonsense_from_an_owner_breaks_the_queue_pair_and_nothing_else(said: list[bytes], greets: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = await read_header(reader)
        await reader.readexactly(header.payload_bytes)
        if greets:
            writer.write(Welcome(Identity("c1", "a", "a"), 1).encode())
        for data in said:
            writer.write(data)
        writer.write_eof()
        await reader.read()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            pair = await TcpPair.open("127.0.0.1", port, "a", Identity("c1", "b", "b"), TOKEN, 1)
        except Unavailable:
            pass
        else:
            found = CompletionQueue()
            pair.post(WorkRequest(Opcode.READ, 1, length=64), found)
            server.close()
            await pair.wait_broken()
            assert len(await found.wait()) == 1
        finally:
            server.close()

    uvloop.run(asyncio.wait_for(scenario(), 30))


# -- a peer of version 1, which has no digests


OLD_REFUSAL = (
    b"\x03\x00\x00\x00"
    + (96).to_bytes(4, "little")
    + bytes(24)
    + (b'{"message": "host a speaks version 1 of the channel over TCP, not 2: upgrade one of them"}'.ljust(96))
)
"""As an owner of that version said it."""
OLD = struct.Struct("<BBHIIIQQ")
"""Its headers: kind, status, 0, length, number, immediate, rkey, offset."""


def test_a_peer_of_version_1_is_answered_as_such() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, _ = await two(bench)
        region = owner.channel.register("m", 0, PAGE_BYTES, ATOMIC)
        raw = await Raw.dial(owner)
        kind, payload = await raw.greet(version=1)
        assert (kind, Welcome.decode(payload).version) == (Kind.WELCOME, 1)
        for number, size in ((1, 8), (2, 1000)):
            raw.writer.write(OLD.pack(4, 0, 0, size, number, 0, region.rkey, 8) + b"x" * size)
            assert OLD.unpack(await raw.reader.readexactly(32))[:5] == (9, 0, 0, 0, number)
        for number, size in ((3, 8), (4, 1000)):
            raw.writer.write(OLD.pack(6, 0, 0, size, number, 0, region.rkey, 8))
            assert OLD.unpack(await raw.reader.readexactly(32))[:5] == (9, 0, 0, size, number)
            assert await raw.reader.readexactly(size) == b"x" * size
        raw.writer.write(OLD.pack(8, 0, 0, 16, 5, 0, region.rkey, 0) + encode_operands(0, 7))
        assert OLD.unpack(await raw.reader.readexactly(32)) == (9, 0, 0, 0, 5, 0, 0, 0)
        raw.writer.write(OLD.pack(4, 0, 0, 8, 6, 0, region.rkey + 1, 0) + bytes(8))
        assert OLD.unpack(await raw.reader.readexactly(32))[:2] == (9, 2)
        raw.close()

    on_tcp(body)


def test_an_owner_of_version_1_is_spoken_to_as_such() -> None:
    kept = bytearray(4096)
    greeted: list[int] = []

    async def old_owner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            (kind, _, _, length, *_) = OLD.unpack(await reader.readexactly(32))
            hello = Hello.decode(await reader.readexactly(length))
            greeted.append(hello.version)
            if kind != 1 or hello.version != 1:
                writer.write(OLD_REFUSAL)
                writer.close()
                return
            text = b'{"version": 1, "cluster_id": "c1", "host": "a", "incarnation": "a.0", "expected": 1}'
            writer.write(OLD.pack(2, 0, 0, len(text), 0, 0, 0, 0) + text)
            while True:
                kind, status, zero, length, number, _, _, offset = OLD.unpack(await reader.readexactly(32))
                assert (status, zero) == (0, 0)
                if kind == 4:
                    kept[offset : offset + length] = await reader.readexactly(length)
                data = kept[offset : offset + length] if kind == 6 else b""
                writer.write(OLD.pack(9, 0, 0, len(data), number, 0, 0, 0) + data)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(old_owner, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pair = await TcpPair.open("127.0.0.1", port, "a", Identity("c1", "b", "b"), TOKEN, 1, Line(digests=True))
        for size in (8, 1000):
            await pair.write(5, 16, b"y" * size)
            assert await pair.read(5, 16, size) == b"y" * size
        assert greeted == [2, 1]
        pair.close()
        server.close()

    uvloop.run(asyncio.wait_for(scenario(), 30))


# -- bad weather


class Drawn:
    """`Entropy`, as far as weather needs it."""

    def __init__(self) -> None:
        self._random = random.Random(7)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def in_weather(body: Callable[[RealBench, Weather], Awaitable[None]]) -> None:
    async def with_line(bench: RealBench) -> None:
        weather = Weather(cast(Any, Drawn()))
        bench.line = Line(digests=True, weather=weather)
        await body(bench, weather)

    on_tcp(with_line)


def test_damaged_bytes_are_sent_again_and_never_taken() -> None:
    async def body(bench: RealBench, weather: Weather) -> None:
        owner, _, pair = await two(bench, 64 * PAGE_BYTES)
        region = owner.channel.register("m", 0, 64 * PAGE_BYTES, ATOMIC)
        weather.set(LINK_CORRUPT)
        for number in range(60):
            data = bytes([number]) * (8 if number % 2 else 40 * PAGE_BYTES)
            await pair.write(region.rkey, PAGE_BYTES, data)
            assert await pair.read(region.rkey, PAGE_BYTES, len(data)) == data
            assert await pair.fetch_and_add(region.rkey, 0, 1) == number
        assert weather.damages > 10
        assert owner.memory.open("m").read(0, 8) == (60).to_bytes(8, "little")

    in_weather(body)


def test_what_does_not_agree_with_its_digest_does_not_land() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, _ = await two(bench)
        region = owner.channel.register("m", 0, 8 * PAGE_BYTES, BOTH)
        for size in (8, 100, DIGEST_BYTES_MAX):
            raw = await Raw.dial(owner)
            await raw.greet(pair=size)
            told = zlib.crc32(b"x" * size)
            raw.writer.write(encode(Kind.WRITE, size, 1, region.rkey, 0, digest=told) + b"x" * (size - 1) + b"y")
            await raw.ended()
        assert owner.memory.open("m").read(0, 8 * PAGE_BYTES) == bytes(8 * PAGE_BYTES)

    on_tcp(body)


def test_nothing_arrives_one_way_and_all_of_it_later() -> None:
    async def body(bench: RealBench, weather: Weather) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, PAGE_BYTES, BOTH)
        await pair.write(region.rkey, 0, b"before")
        weather.set(ONE_WAY)
        writing = asyncio.ensure_future(pair.write(region.rkey, 0, b"during"))
        await asyncio.wait([writing], timeout=0.05)
        assert owner.memory.open("m").read(0, 6) == b"before" and not writing.done()
        weather.set("")
        await writing
        assert owner.memory.open("m").read(0, 6) == b"during"

    in_weather(body)


def test_a_slow_line_only_takes_longer() -> None:
    async def body(bench: RealBench, weather: Weather) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 8 * PAGE_BYTES, BOTH)
        for fault in (LINK_DELAY, LINK_SLOW):
            weather.set(fault)
            await asyncio.gather(*(pair.write(region.rkey, at * PAGE_BYTES, fault.encode()) for at in range(8)))
            assert await pair.read(region.rkey, 7 * PAGE_BYTES, len(fault)) == fault.encode()

    in_weather(body)


# -- bounds


def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_pair, "WINDOW_BYTES", 2 * CHUNK_BYTES)
    monkeypatch.setattr(tcp_pair, "POSTED_MAX", 8)

    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench, 8 * CHUNK_BYTES)
        assert isinstance(pair, TcpPair)
        region = owner.channel.register("m", 0, 8 * CHUNK_BYTES, BOTH)
        completions, data = CompletionQueue(), b"x" * CHUNK_BYTES
        most = 0
        for number in range(8):
            pair.post(WorkRequest(Opcode.WRITE, region.rkey, number * CHUNK_BYTES, data), completions)
            most = max(most, pair._sent_bytes)
        with pytest.raises(ResourceExhausted):
            pair.post(WorkRequest(Opcode.WRITE, region.rkey, 0, data), completions)
        assert most == 2 * CHUNK_BYTES
        await pair.write(region.rkey, 0, b"y" * (8 * CHUNK_BYTES))  # one larger than the window goes alone
        assert len(completions) == 8
        assert owner.memory.open("m").read(8 * CHUNK_BYTES - 1, 1) == b"y"

    on_tcp(body)


def test_a_peer_that_takes_no_answers_is_read_no_further() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench, 16 * CHUNK_BYTES)
        region = owner.channel.register("m", 0, 16 * CHUNK_BYTES, BOTH)
        raw = await Raw.dial(owner)
        await raw.greet()
        for number in range(1, 1001):
            raw.writer.write(encode(Kind.READ, 16 * CHUNK_BYTES, number, region.rkey, 0))
        for _ in range(20):
            await pair.write(region.rkey, 0, b"x" * 64)
        assert owner.channel.tcp is not None
        assert owner.channel.tcp.sessions["r"].expected < 10
        # When it does take them, everything goes on.
        for number in range(1, 4):
            header, payload = await raw.frame()
            assert (header.number, len(payload)) == (number, 16 * CHUNK_BYTES)
        raw.close()

    on_tcp(body)


# -- which carrier


def on_auto(body: Callable[[Any], Any]) -> None:
    on_real(body, "auto")


def test_the_better_carrier_of_both_is_chosen() -> None:
    async def body(bench: RealBench) -> None:
        modes = {"a": "auto", "b": "auto", "s": "shm", "t": "tcp"}
        hosts = {name: await bench.host(name, mode=mode) for name, mode in modes.items()}
        words = {name: [word.split(":")[0] for word in host.channel.address.split()] for name, host in hosts.items()}
        assert words == {"a": ["shm", "tcp"], "b": ["shm", "tcp"], "s": ["shm"], "t": ["tcp"]}
        chosen = {}
        for source, host in hosts.items():
            for target in hosts:
                if {source, target} != {"s", "t"}:
                    pair = await host.channel.connect(target, hosts[target].channel.address)
                    chosen[source + target] = pair.carrier
        assert chosen == {
            "aa": "shm", "ab": "shm", "as": "shm", "at": "tcp", "ba": "shm", "bb": "shm", "bs": "shm", "bt": "tcp",
            "sa": "shm", "sb": "shm", "ss": "shm", "ta": "tcp", "tb": "tcp", "tt": "tcp",
        }  # fmt: skip
        for source, target in ("st", "ts"):
            with pytest.raises(Unavailable, match="--channel"):
                await hosts[source].channel.connect(target, hosts[target].channel.address)
        assert hosts["t"].channel.carriers() == {"a": "tcp", "b": "tcp", "t": "tcp"}

    on_auto(body)


def test_a_path_of_another_computer_is_not_tried() -> None:
    async def body(bench: RealBench) -> None:
        owner, peer = await bench.host("a"), await bench.host("b")
        tcp = ":".join(("tcp", *map(str, tcp_address(owner))))
        for address in (f"shm:{bench.folder}/nobody {tcp}", f"boot:x shm:{bench.folder}/a.ch {tcp}"):
            peer.channel._boot_id = "y"
            assert (await peer.channel.connect("a", address)).carrier == "tcp"
        assert (await peer.channel.connect("a", f"boot:y shm:{bench.folder}/a.ch {tcp}")).carrier == "shm"
        assert (await peer.channel.connect("a", f"future:1 shm:{bench.folder}/a.ch {tcp}")).carrier == "shm"

    on_auto(body)


def test_one_region_is_reached_by_both_carriers_at_once() -> None:
    async def body(bench: RealBench) -> None:
        owner = await bench.host("a")
        await owner.memory.create("m", PAGE_BYTES)
        region = owner.channel.register("m", 0, 64, ATOMIC)
        near = await (await bench.host("b")).channel.connect("a", owner.channel.address)
        far = await (await bench.host("c", mode="tcp")).channel.connect("a", owner.channel.address)
        assert (near.carrier, far.carrier) == ("shm", "tcp")
        await near.write(region.rkey, 8, b"x" * 8)
        assert await far.read(region.rkey, 8, 8) == b"x" * 8
        region.deregister()
        await fails(near.write(region.rkey, 8, b"y"), Status.REM_ACCESS_ERR)
        await fails(far.write(region.rkey, 8, b"y"), Status.REM_ACCESS_ERR)

    on_auto(body)


@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_a_cut_machine_reaches_nobody_and_nobody_reaches_it(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_pair, "DEADLINE_S", 0.2)

    async def body(bench: RealBench) -> None:
        owner, peer, pair = await two(bench)
        assert isinstance(owner, RealHost)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        back = await owner.channel.connect("b", peer.channel.address)
        owner.channel.sever()
        with pytest.raises(ChannelError):
            await pair.write(region.rkey, 0, b"y")
        await pair.wait_broken()
        await back.wait_broken()
        with pytest.raises(Unavailable):
            await peer.channel.connect("a", owner.channel.address)
        with pytest.raises(Unavailable, match="cut off"):
            await owner.channel.connect("b", peer.channel.address)
        assert owner.memory.open("m").read(0, 1) == b"x"
        owner.channel.mend()
        pair = await peer.channel.connect("a", owner.channel.address)
        await fails(pair.write(region.rkey, 0, b"y"), Status.REM_ACCESS_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        await pair.write(owner.channel.register("m", 0, 64, BOTH).rkey, 0, b"z")

    on_real(body, mode)


# -- an owner in a process of its own


@pytest.mark.process
def test_an_owner_over_tcp_is_stopped_continued_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(bench: RealBench) -> None:
        peer = await bench.host("b")
        with kept_memory() as kept:
            owner = Owner(bench.folder, kept)
            try:
                rkey, immediate, address = (owner.told[name] for name in ("rkey", "immediate", "address"))
                pair = await peer.channel.connect("a", address)
                for number in range(2_000):
                    await pair.write(rkey, 0, (number << 32 | number).to_bytes(8, "little"))
                await pair.write_with_immediate(rkey, 8, (1).to_bytes(8, "little"), immediate)
                assert await asyncio.to_thread(owner.line) == "rang 1\n"
                # A short stop is waited out ...
                owner.process.send_signal(signal.SIGSTOP)
                slow = asyncio.ensure_future(pair.fetch_and_add(rkey, 16, 1))
                large = asyncio.ensure_future(pair.write(rkey, 4096, b"7" * 500_000))
                await asyncio.sleep(0.1)
                assert not slow.done() and not large.done()
                owner.process.send_signal(signal.SIGCONT)
                await large
                assert await slow == 0
                # ... a long one ends in the deadline.
                monkeypatch.setattr(tcp_pair, "DEADLINE_S", 0.4)
                monkeypatch.setattr(tcp_pair, "ANSWER_TIMEOUT_S", 0.4)
                owner.process.send_signal(signal.SIGSTOP)
                first = asyncio.ensure_future(pair.fetch_and_add(rkey, 16, 1))
                second = asyncio.ensure_future(pair.write(rkey, 0, bytes(8)))
                await fails(cast(Any, first), Status.RETRY_EXC_ERR)
                await fails(cast(Any, second), Status.WR_FLUSH_ERR)
                with pytest.raises(Unavailable):
                    await peer.channel.connect("a", address)
                monkeypatch.undo()
                owner.process.send_signal(signal.SIGCONT)
                pair = await peer.channel.connect("a", address)
                assert await pair.fetch_and_add(rkey, 16, 0) in (1, 2)  # unknown means unknown
                under_way = asyncio.ensure_future(pair.write(rkey, 4096, b"8" * 900_000))
                await asyncio.sleep(0)
                owner.end()
                await pair.wait_broken()
                await asyncio.wait([under_way])
                assert under_way.exception() is None or isinstance(under_way.exception(), ChannelError)
                with pytest.raises(Unavailable):
                    await peer.channel.connect("a", address)
            finally:
                owner.end()

    on_tcp(body)


@pytest.mark.process
def test_atomic_operations_by_both_carriers_at_once_lose_nothing() -> None:
    async def body(bench: RealBench) -> None:
        near_host, far_host = await bench.host("b"), await bench.host("c", mode="tcp")
        with kept_memory() as kept:
            owner = Owner(bench.folder, kept)
            try:
                rkey, address = owner.told["rkey"], owner.told["address"]
                near = await near_host.channel.connect("a", address)
                far = await far_host.channel.connect("a", address)
                assert (near.carrier, far.carrier) == ("shm", "tcp")
                completions = CompletionQueue()
                for _ in range(1000):  # the owner's process does these ...
                    far.post(WorkRequest(Opcode.FETCH_AND_ADD, rkey, 64, operand=1), completions)
                found = []
                while len(completions) < 1000:  # ... and this one those, at the same time
                    found += [await near.fetch_and_add(rkey, 64, 1) for _ in range(50)]
                    await asyncio.sleep(0)
                found += [completion.value for completion in completions.poll(1000)]
                assert sorted(found) == list(range(len(found)))
            finally:
                owner.end()

    on_auto(body)
