"""The store: blocks of old content, in one memory object of the machine that grows as blocks are taken.

    blocks = await BlockStore.open(environment.memory)
    blocks.persist(7, content)           # block 7
    blocks.discard(7, 1)                 # its memory is the computer's again

Read and written by descriptor, never mapped: a mapping would have to follow the growth, and a read of a hole through it
would make a page.
"""

from __future__ import annotations

from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.formats.nvm import STORE_NAME
from everram.runtime.memory.contract import PAGE_BYTES

STEP_BLOCKS = 256
"""It grows by that many at once."""


class BlockStore:
    """`snapshots.Blocks`."""

    def __init__(self, memory: Memory, kept: MemoryObject) -> None:
        self._memory = memory
        self._kept = kept
        self._blocks = kept.size_bytes // PAGE_BYTES

    @staticmethod
    async def open(memory: Memory) -> BlockStore:
        if STORE_NAME not in memory.names():
            await memory.create(STORE_NAME, 0, resizable=True)
        return BlockStore(memory, memory.open(STORE_NAME))

    def load(self, number: int) -> bytes:
        return self._kept.read(number * PAGE_BYTES, PAGE_BYTES)

    def persist(self, number: int, data: bytes) -> None:
        """Raises ResourceExhausted where the machine has no memory left."""
        if number >= self._blocks:
            blocks = (number // STEP_BLOCKS + 1) * STEP_BLOCKS
            self._memory.resize(STORE_NAME, blocks * PAGE_BYTES)
            self._blocks = blocks
        self._kept.write(number * PAGE_BYTES, data)

    def discard(self, first: int, count: int) -> None:
        self._kept.punch(first * PAGE_BYTES, count * PAGE_BYTES)
