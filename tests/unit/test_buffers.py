"""Buffers that are kept from one read to the next: whose they are, and when never again anybody's."""

from __future__ import annotations

import pytest

from everram.actors.remote_memory.buffers import BUFFER_BYTES, SPARE_MAX, Buffers


def test_a_buffer_is_lent_again_only_after_it_was_given_back() -> None:
    buffers = Buffers()
    with buffers.lend(10) as first, buffers.lend(BUFFER_BYTES) as second:
        assert (len(first), len(second)) == (10, BUFFER_BYTES)
        assert first.obj is not second.obj
        assert buffers.spare == 0
    with buffers.lend(5) as again:
        assert again.obj in (first.obj, second.obj)
    assert buffers.spare == 2


def test_a_buffer_that_the_channel_may_still_hold_is_lent_to_nobody() -> None:
    buffers = Buffers()
    with pytest.raises(KeyboardInterrupt), buffers.lend(10):
        raise KeyboardInterrupt
    assert buffers.spare == 0


def test_so_many_are_kept() -> None:
    buffers = Buffers()
    lent = [buffers.lend(1) for _ in range(SPARE_MAX + 2)]
    for one in lent:
        one.__enter__()
    for one in lent:
        one.__exit__(None, None, None)
    assert buffers.spare == SPARE_MAX
