"""The machine's words: what is sent arrives, and nothing malformed gets past `receive`."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from everram.runtime.errors import InvalidArgument, NotFound, Unavailable
from everram.runtime.machine import protocol
from everram.runtime.machine.config import MachineConfig
from everram.runtime.machine.protocol import DATAGRAM_BYTES_MAX, Message


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.setblocking(False)
    right.setblocking(False)
    yield left, right
    left.close()
    right.close()


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("size", [0, 100, DATAGRAM_BYTES_MAX, 10 * DATAGRAM_BYTES_MAX])
def test_payloads_of_any_size_and_descriptors_arrive(pair: Pair, size: int) -> None:
    read, write = os.pipe()
    try:
        protocol.send(pair[0], Message({"DO": "x", "ID": "1"}, {"text": "\udcff" + "x" * size}, [write]))
        got = protocol.receive(pair[1])
        assert got is not None
        assert (got.words, got.payload["text"][1:]) == ({"DO": "x", "ID": "1"}, "x" * size)
        os.write(got.fds[0], b"through")
        assert os.read(read, 10) == b"through"
        assert len(got.fds) == 1 and not os.get_inheritable(got.fds[0])
        got.close()
    finally:
        os.close(read)
        os.close(write)


def test_the_end_and_nothing_to_read_are_told_apart(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        protocol.receive(pair[1])
    protocol.send(pair[0], Message({"READY": "1"}))
    pair[0].close()
    assert protocol.receive(pair[1]) == Message({"READY": "1"})
    assert protocol.receive(pair[1]) is None
    with pytest.raises(Unavailable):
        protocol.send(pair[1], Message({"READY": "1"}))


def test_errors_travel_by_their_code() -> None:
    found = protocol.error_of(Message({"RE": "1", "CODE": "5"}, {"message": "no such guest"}))
    assert isinstance(found, NotFound) and found.message == "no such guest"
    assert protocol.error_of(Message({"RE": "1"})) is None
    assert protocol.error_of(Message({"RE": "1", "CODE": "nonsense"})) is not None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200) | st.text(max_size=100).map(lambda text: f"A=1\nJSON={text}".encode()))
@example(b"JSON=@fd")
@example(b"JSON=" + b"[" * 10000)
@example(b"=x")
def test_any_bytes_are_a_message_or_malformed(pair: Pair, data: bytes) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    protocol.send_bytes(pair[0], data, [0])
    try:
        got = protocol.receive(pair[1])
    except InvalidArgument:
        pass
    else:
        assert got is not None
        got.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_message_too_long_is_refused_whole(pair: Pair) -> None:
    pair[0].sendmsg([b"A=" + b"x" * (2 * DATAGRAM_BYTES_MAX)])
    with pytest.raises(InvalidArgument, match="longer"):
        protocol.receive(pair[1])


def config(**members: object) -> MachineConfig:
    right: dict[str, object] = {
        "cluster_id": "c",
        "machine": "h1",
        "state_dir": "/s",
        "socket": "/r/m",
        "memory_bytes": 1,
        "host_command": ["h"],
    }
    return MachineConfig.from_json(json.dumps(right | members))


def test_a_configuration_survives_its_file() -> None:
    made = config(host_environment={"A": "b"}, lease_margin_s=0.2)
    assert MachineConfig.from_json(made.to_json()) == made
    assert made.limits().lease_margin_ns == 200_000_000
    assert made.mark == "c/h1"


@pytest.mark.parametrize(
    "members",
    [
        {"machine": ""},
        {"machine": "a/b"},
        {"socket": "/" + "x" * 107},
        {"memory_bytes": 0},
        {"memory_bytes": "1"},
        {"host_command": []},
        {"host_command": "host"},
        {"watchdog_timeout_s": 0},
        {"watchdog_timeout_s": True},
        {"lease_margin_s": 10**9},
        {"freezer": "fridge"},
        {"unheard_of": 1},
    ],
)
def test_a_wrong_configuration_is_refused_by_name(members: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(members))):
        config(**members)
