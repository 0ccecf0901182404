"""The trace of a simulation: a running digest of everything that happened, and the lines a person reads.

`Trace.step` takes every callback of the loop (when, and in which domain), `Trace.note` what a component did, in words
that depend on the seed alone: no addresses, no process ids, no wall clock. Two runs of one seed are equal if and only
if their digests are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from hashlib import blake2b

DOMAIN_BITS = 16
"""Low bits of a step's word; 48 bits of nanoseconds above them are 78 hours of virtual time."""


class Trace:
    """`echo` gets each line as it is written (a replay prints it); without it lines are hashed and not kept."""

    def __init__(self, echo: Callable[[str], None] | None = None, *, origin_ns: int = 0) -> None:
        """`origin_ns` is the moment that the lines call 0."""
        self._hash = blake2b(digest_size=16)
        self._steps: list[int] = []
        self.step = self._steps.append
        """Takes one callback of the loop: nanoseconds << DOMAIN_BITS | the domain's number."""
        self._echo = echo
        self._origin_ns = origin_ns

    @property
    def readable(self) -> bool:
        """Whether somebody reads the lines: only then is a costly line worth writing."""
        return self._echo is not None

    def settle(self) -> None:
        """Hash the steps gathered so far; the loop calls it now and then."""
        if self._steps:
            self._hash.update(array("Q", self._steps).tobytes())
            self._steps.clear()

    def note(self, now_ns: int, who: str, what: str) -> None:
        """Something worth reading, part of the digest."""
        self.settle()
        line = f"{(now_ns - self._origin_ns) / 1e9:10.6f}  {who:<16} {what}"
        self._hash.update(line.encode())
        if self._echo is not None:
            self._echo(line)

    def remark(self, now_ns: int, who: str, what: str) -> None:
        """A line for people that is no part of the digest (log messages may name objects)."""
        if self._echo is not None:
            self._echo(f"{(now_ns - self._origin_ns) / 1e9:10.6f}  {who:<16} {what}")

    def digest(self) -> str:
        """Of everything up to now; 32 hexadecimal digits."""
        self.settle()
        return self._hash.hexdigest()
