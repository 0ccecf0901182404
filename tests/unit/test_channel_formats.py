"""What the channel's peers read of each other: datagrams and the generation table, well-formed or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.channel import frames, generations
from everram.runtime.channel.frames import Drop, Hello, Identity, Refused, Resolve, Resolved, Ring, Unknown, Welcome
from everram.runtime.channel.generations import DYING, Generations
from everram.runtime.memory.heap import HeapMapping

ME = Identity("c", "h", "i")
EACH = [
    Hello(ME), Welcome(ME), Refused("no \u00e4"), Resolve(1 << 63), Resolved(1, 2, 3, 4, 5, 6, 7, 8, 1),
    Unknown(9), Drop(10), Ring((1, (1 << 32) - 1)), Ring(()),
]  # fmt: skip


@pytest.mark.parametrize("frame", EACH, ids=lambda frame: type(frame).__name__)
def test_a_datagram_says_what_was_said(frame: frames.Frame) -> None:
    assert frames.decode(frame.encode()) == frame


def test_the_hot_path_says_the_same() -> None:
    assert frames.encode_ring(7) == Ring((7,)).encode()


KNOWN_KINDS = st.builds(lambda kind, rest: bytes([kind, 0, 0, 0]) + rest, st.integers(1, 9), st.binary())


@given(st.one_of(st.binary(max_size=64), KNOWN_KINDS))
def test_nonsense_is_a_value_error(data: bytes) -> None:
    try:
        frames.decode(data)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"version": Infinity, "cluster_id": "", "host": "", "incarnation": ""}', "[" * 10_000]
)
def test_nonsense_in_a_greeting_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        frames.decode(b"\1\0\0\0" + text.encode())


def table() -> Generations:
    return Generations.format(HeapMapping(generations.MEMORY_BYTES))


def test_a_word_only_grows_and_is_odd_while_it_is_registered() -> None:
    made = table()
    assert (made.take(3), made.word(3)) == (1, 1)
    made.revoke(3)
    made.revoke(3)
    assert made.word(3) == 2
    assert made.take(3) == 3
    assert made.take(4) == 1
    again = Generations.open(made.mapping)
    again.revoke_all()
    assert [again.word(slot) for slot in range(2, 6)] == [0, 4, 2, 0]


def test_nothing_is_valid_in_a_dying_table() -> None:
    made = table()
    made.take(0)
    generations.kill(made.mapping)
    assert made.take(1) == 0
    made.revoke(0)
    made.revoke_all()
    assert {made.word(slot) for slot in range(generations.SLOTS)} == {DYING}


@pytest.mark.parametrize(("offset", "data"), [(0, b"X"), (8, b"\2"), (12, b"\0\1"), (16, b"\xff\xff"), (120, b"\0\0")])
def test_a_damaged_header_is_refused(offset: int, data: bytes) -> None:
    made = table()
    made.mapping.store(offset, data)
    with pytest.raises(ValueError, match="generation table"):
        Generations.open(made.mapping)


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Generations.open(HeapMapping(64))
