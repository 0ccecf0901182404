"""Persistent memory behind processor caches: what was stored but not written back may be lost when power fails.

    memory = CachedBytes(size_bytes)             # used like the `Bytes` of any object
    memory.lose_power(stream)                    # when no process uses it any more

A cache writes a line back when it likes and always as a whole, so after a power loss each line that was not flushed and
drained holds what the first few stores to it made of it, independently of every other line. `Recording` in
`everram.runtime.simulation.memory` enumerates such states for short pieces of work; this draws one during a run.
"""

from __future__ import annotations

from everram.runtime.memory.contract import CACHE_LINE_BYTES
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.objects import WORD_BYTES, Bytes


class CachedBytes(Bytes):
    """`content` is what processors see; `durable` what a power loss leaves for certain."""

    __slots__ = ("_cached", "durable")
    volatile = True

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.durable = bytearray(size_bytes)
        self._cached: dict[int, list[tuple[int, bytes]]] = {}
        """By line: the words stored to it since it was written back, in their order, as (offset, data)."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().write(offset, data)
        at, end = offset, offset + len(data)
        while at < end:
            stop = min(end, at - at % WORD_BYTES + WORD_BYTES)
            self._cached.setdefault(at // CACHE_LINE_BYTES, []).append((at, bytes(data[at - offset : stop - offset])))
            at = stop

    def write_back(self, offset: int, length: int) -> None:
        """These lines are persistent."""
        for line in range(offset // CACHE_LINE_BYTES, -(-(offset + length) // CACHE_LINE_BYTES)):
            self._keep(self._cached.pop(line, []))

    def lose_power(self, stream: Stream) -> None:
        for line in sorted(self._cached):
            words = self._cached[line]
            self._keep(words[: stream.randrange(len(words) + 1)])
        self._cached.clear()
        self.content[:] = self.durable

    def _keep(self, words: list[tuple[int, bytes]]) -> None:
        for at, data in words:
            self.durable[at : at + len(data)] = data
