"""What the two ends of a TCP queue pair read of each other, and how a stream is cut into it; no sockets."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everram.runtime.channel.addresses import Addresses
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.tcp_frames import (
    GREETING_BYTES_MAX,
    GREETING_HEADER_BYTES,
    HEADER_BYTES,
    Header,
    Hello,
    Kind,
    Refused,
    Welcome,
    decode,
    decode_operands,
    encode,
    encode_operands,
)
from everram.runtime.channel.tcp_framing import STAGING_BYTES, Framing, Heap, Target
from everram.runtime.channel.turns import Turns
from everram.runtime.memory.atomics import probe

ME = Identity("c", "h", "i")
WORDS = st.integers(0, (1 << 64) - 1)


@given(st.sampled_from([Kind.WRITE, Kind.READ, Kind.WRITE_WITH_IMMEDIATE]), WORDS, WORDS, WORDS)
def test_a_header_says_what_was_said(kind: Kind, number: int, first: int, second: int) -> None:
    data = encode(kind, 100, number, first, second, immediate=number % (1 << 32))
    assert len(data) == HEADER_BYTES
    low = number % (1 << 32)
    assert decode(data) == Header(kind, 0, 0, 100, low, low, first, second)
    assert decode(encode(kind, 100, digest=7)).digest == 7
    assert decode(data).payload_bytes == (0 if kind is Kind.READ else 100)


@given(WORDS, WORDS)
def test_operands_say_what_was_said(expected: int, operand: int) -> None:
    assert decode_operands(encode_operands(expected, operand)) == (expected, operand)


def test_greetings_say_what_was_said() -> None:
    for greeting in (Hello(ME, "t", "to", 1 << 63, True), Welcome(ME, 7), Refused("no \u00e4")):
        data = greeting.encode()
        assert decode(data[:GREETING_HEADER_BYTES]).length == len(data) - GREETING_HEADER_BYTES
        assert type(greeting).decode(data[GREETING_HEADER_BYTES:]) == greeting


def test_no_changed_bit_of_a_header_goes_unnoticed() -> None:
    data = encode(Kind.WRITE_WITH_IMMEDIATE, 100, 7, 1 << 40, 4096, immediate=3, digest=9)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            decode(changed)


@given(st.one_of(st.binary(min_size=n, max_size=n) for n in (GREETING_HEADER_BYTES, HEADER_BYTES)))
def test_a_nonsense_header_is_a_value_error(data: bytes) -> None:
    try:
        decode(data)
    except ValueError:
        pass


def checked(header: bytes) -> bytes:
    """With a right digest, whatever it says."""
    header += bytes(4)
    return header + zlib.crc32(header).to_bytes(4, "little")


@pytest.mark.parametrize(
    "data",
    [
        encode(Kind.HELLO, GREETING_BYTES_MAX + 1),
        encode(Kind.WRITE, (1 << 30) + 1),
        encode(Kind.FETCH_AND_ADD, 8),
        encode(Kind.WRITE, 8, status=1),
        encode(Kind.COMPLETION, 0, status=9),
        b"\0" * HEADER_BYTES,
        checked(b"\4\0\2" + bytes(GREETING_HEADER_BYTES - 3)),
        encode(Kind.WRITE)[:-1],
    ],
)
def test_what_no_peer_says_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


MEMBERS = st.dictionaries(
    st.sampled_from(["version", "cluster_id", "host", "incarnation", "token", "to", "pair", "resume", "expected"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.none(), max_size=1)),
)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=64), MEMBERS.map(lambda members: repr(members).replace("'", '"').encode())))
def test_a_nonsense_greeting_is_a_value_error(data: bytes) -> None:
    for greeting in (Hello, Welcome, Refused):
        try:
            greeting.decode(data)
        except ValueError:
            pass


def test_a_greeting_that_is_too_deep_is_a_value_error() -> None:
    for data in (b"[" * 4000, b"[]", b'{"version": Infinity}'):
        with pytest.raises(ValueError):
            Hello.decode(data)


class Transport:
    """Of a connection that nothing is sent on."""

    closing = False
    paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Recorder(Framing):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bytes] = []
        self.hold_after = 0
        self._content = bytearray()

    def on_frame(self, header: Header, payload: bytes) -> None:
        self._found(payload)

    def on_payload(self, header: Header) -> Target:
        self._content = bytearray(header.length)
        return Heap(memoryview(self._content))

    def on_payload_end(self) -> None:
        self._found(bytes(self._content))

    def _found(self, payload: bytes) -> None:
        self.found.append(payload)
        if self.hold_after and len(self.found) % self.hold_after == 0:
            self.hold()


def feed(framing: Framing, data: bytes, most: int, transport: Transport) -> None:
    """As a loop does: no more than fits, and nothing while reading is paused."""
    at = 0
    while at < len(data) and not transport.closing:
        while transport.paused:
            framing.proceed()
        buffer = framing.get_buffer(-1)
        count = min(len(buffer), len(data) - at, most)
        assert count, "a loop would call an empty buffer an error"
        buffer[:count] = data[at : at + count]
        at += count
        framing.buffer_updated(count)
    while transport.paused:
        framing.proceed()


LENGTHS = st.lists(
    st.one_of(st.integers(0, 70), st.integers(STAGING_BYTES - 70, STAGING_BYTES + 70)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.one_of(st.integers(9, 200), st.integers(1, 1 << 20)), st.integers(0, 3))
def test_however_a_stream_arrives_it_is_cut_into_the_same_frames(lengths: list[int], most: int, hold: int) -> None:
    payloads = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    recorder, transport = Recorder(), Transport()
    recorder.hold_after = hold
    recorder.connection_made(cast(asyncio.BaseTransport, transport))
    feed(recorder, b"".join(map(written, payloads)), most, transport)
    assert recorder.found == payloads and not transport.closing


def written(payload: bytes) -> bytes:
    return encode(Kind.WRITE, len(payload), digest=zlib.crc32(payload)) + payload


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(9, 1 << 20), st.data())
def test_what_was_damaged_on_its_way_is_not_acted_upon(lengths: list[int], most: int, data: st.DataObject) -> None:
    payloads = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    stream = bytearray(b"".join(map(written, payloads)))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    recorder, transport = Recorder(), Transport()
    recorder.connection_made(cast(asyncio.BaseTransport, transport))
    feed(recorder, bytes(stream), most, transport)
    assert len(recorder.found) < len(payloads)
    assert recorder.found == payloads[: len(recorder.found)]


@given(st.binary(max_size=200), st.integers(1, 64))
def test_nonsense_ends_the_connection_or_waits_for_more(data: bytes, most: int) -> None:
    recorder, transport = Recorder(), Transport()
    recorder.connection_made(cast(asyncio.BaseTransport, transport))
    feed(recorder, data, most, transport)


# -- addresses


@given(st.text(alphabet="/a.%2 05é", min_size=1), st.booleans(), st.booleans())
def test_an_address_says_what_was_said(path: str, tcp: bool, boot: bool) -> None:
    said = Addresses(path, ("127.0.0.1", 80) if tcp else None, "b-1" if boot else "")
    assert Addresses.parse(said.encode()) == said


def test_addresses_of_other_versions_are_passed_over() -> None:
    assert Addresses.parse("rdma:fe80::1 tcp:[::1]:5 shm:/x") == Addresses("/x", ("[::1]", 5))
    assert Addresses.parse("") == Addresses()
    for wrong in ("tcp:1.2.3.4", "tcp::5", "tcp:a:99999", "tcp:a:0", "tcp:a:-1", "tcp:a:²"):
        with pytest.raises(ValueError):
            Addresses.parse(wrong)


# -- turns


async def test_turns_come_in_order_and_who_leaves_the_line_holds_up_nobody() -> None:
    turns, order = Turns(), []

    async def work(number: int, turn: Any) -> None:
        async with turn:
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(work(number, turns.take())) for number in range(6)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert order == [0, 1, 3, 4, 5] and not turns.line


def test_this_computer_has_atomic_operations() -> None:
    assert probe() is not None, "install libatomic1"
