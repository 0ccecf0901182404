"""The memory contract: how everram's own structures touch memory that outlives a process.

Shaped like PMDK's `struct pmem_ops`: `store` writes, `flush` starts the way to the persistence domain, `drain` waits
for it. On DRAM kept by a machine flush and drain cost nothing; the simulation uses them to lose and reorder what was
not flushed. Code that follows the contract is therefore right on both. Stores become visible to other processes in
program order (x86-64); `store_u64` is one aligned 8-byte store, never seen half-done, and is how things are published.

Implementations: `everram.runtime.memory.mapped` (mmap), `everram.runtime.simulation.memory` (records and crashes).
Standard library only: guests import this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

PAGE_BYTES = 4096
PAGE_SHIFT = 12
CACHE_LINE_BYTES = 64


class Mapping(Protocol):
    """A range of persistent memory, addressed by offsets from 0.

    Offsets and lengths outside `size_bytes` raise IndexError (a bug in the caller); words demand 8-byte alignment.
    Implementations derive from this class, for the methods that are made of others.
    """

    size_bytes: int

    def load(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes."""

    def load_u64(self, offset: int) -> int:
        """One aligned little-endian 8-byte load, never seen half-done."""

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` in; a crash may leave any part of it."""

    def store_u64(self, offset: int, value: int) -> None:
        """Publish one aligned 8-byte word (after a crash: the old or the new value)."""

    def flush(self, offset: int, length: int) -> None:
        """Start writing the lines of this range back; they are persistent after the next `drain`."""

    def drain(self) -> None:
        """Fence: everything flushed before is persistent when this returns."""

    def persist(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store, flush and drain in one: what the hot paths call, so that DRAM pays for one call and not for three."""
        self.store(offset, data)
        self.flush(offset, len(data))
        self.drain()

    def publish_u64(self, offset: int, value: int) -> None:
        """`store_u64`, flush and drain in one."""
        self.store_u64(offset, value)
        self.flush(offset, 8)
        self.drain()

    def load_words(self, numbers: Iterable[int]) -> list[int]:
        """`load_u64` of many, each by its number: its offset in words."""
        load = self.load_u64
        return [load(number * 8) for number in numbers]

    def publish_words(self, words: Iterable[tuple[int, int]]) -> None:
        """`publish_u64` of many (number, value), one after the other: a crash leaves the first so many."""
        publish = self.publish_u64
        for number, value in words:
            publish(number * 8, value)

    def close(self) -> None:
        """Unmap. Later accesses raise ValueError."""
