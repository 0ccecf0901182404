"""Memory into which what others' files hold is read before a program gets it, kept from one read to the next.

    with buffers.lend(length) as buffer:
        await pair.read_into(rkey, offset, buffer)

A fresh buffer of 1 MiB is 256 page faults, and that is most of the cost of a read over TCP: 0.6 GB/s with one for each
read and a copy of it, 1.7 GB/s into one that was there. What is lent is whoever's until the end of the `with` block; it
is then the next one's, but not before the loop has come to another task, so a reply that goes out at once may refer to
it. After an error, a cancellation too, the channel may still hold the buffer: it is not lent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BUFFER_BYTES = 1 << 20
"""The most that the kernel asks of a mount at a time."""
SPARE_MAX = 8
"""Kept when nobody reads: 8 MiB a host. More are made while more reads are under way."""


class Buffers:
    """See the module."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    @property
    def spare(self) -> int:
        return len(self._spare)

    @contextmanager
    def lend(self, length: int) -> Iterator[memoryview]:
        """Holds anything at first. `length` is at most BUFFER_BYTES."""
        assert length <= BUFFER_BYTES
        buffer = self._spare.pop() if self._spare else bytearray(BUFFER_BYTES)
        yield memoryview(buffer)[:length]
        if len(self._spare) < SPARE_MAX:
            self._spare.append(buffer)
