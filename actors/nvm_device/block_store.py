"""The store for old blocks: one memory object, kept by the machine, of which only what is taken takes memory.

    store = await BlockStore.open(memory)
    store.persist(block, data)              # in `Snapshots`, before a virtblock names it
    store.load(block)                       # or view(first, count), without a copy
    store.discard(first, count)             # the memory goes back, the object stays as long

Which blocks are taken is for the metadata to know (`Media.store`). The object is read and written by its descriptor, a
block at a time: a mapping would have to be made anew whenever it grows.
"""

from __future__ import annotations

from everram.actors.nvm_device.bitmap import Bitmap
from everram.actors.nvm_device.turns import Walk
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.formats.nvm import STORE_NAME
from everram.runtime.memory.contract import PAGE_BYTES

GROW_BLOCKS = 1024
"""4 MiB: the object counts in full against the machine's memory, whatever of it is taken."""
TRIM_BLOCKS = 512
"""Looked at in one turn."""


class BlockStore:
    """`snapshots.Blocks`."""

    def __init__(self, memory: Memory, kept: MemoryObject) -> None:
        self._memory = memory
        self._kept = kept
        self._blocks = kept.size_bytes // PAGE_BYTES

    @staticmethod
    async def open(memory: Memory, name: str = STORE_NAME) -> BlockStore:
        """As it was left, or a new one. Raises ResourceExhausted."""
        if name in memory.names():
            return BlockStore(memory, memory.open(name))
        return BlockStore(memory, await memory.create(name, 0, resizable=True))

    @property
    def size_bytes(self) -> int:
        """What it counts against the machine's memory."""
        return self._blocks * PAGE_BYTES

    def load(self, number: int) -> bytes:
        return self._kept.read(number * PAGE_BYTES, PAGE_BYTES)

    def load_into(self, first: int, target: memoryview) -> None:
        self._kept.read_into(first * PAGE_BYTES, target)

    def view(self, first: int, count: int) -> memoryview:
        return self._kept.view(first * PAGE_BYTES, count * PAGE_BYTES)

    def persist(self, number: int, data: bytes) -> None:
        """Raises ResourceExhausted; then nothing has changed."""
        if number >= self._blocks:
            self._resize((number // GROW_BLOCKS + 1) * GROW_BLOCKS)
        self._kept.write(number * PAGE_BYTES, data)

    def discard(self, first: int, count: int) -> None:
        last = min(first + count, self._blocks)  # what was never written may lie beyond the end
        if first < last:
            self._kept.punch(first * PAGE_BYTES, (last - first) * PAGE_BYTES)

    def trim(self, taken: Bitmap) -> Walk[int]:
        """Give back what a crash has left of blocks that are not taken, and what lies beyond the last that is. How many
        blocks had been left. Others may take and free blocks between two turns."""
        left = 0
        for start in range(0, self._blocks, TRIM_BLOCKS):
            end = min(start + TRIM_BLOCKS, self._blocks)
            for offset, length in self._kept.extents(start * PAGE_BYTES, end * PAGE_BYTES):
                for block in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)):
                    if not taken.is_taken(block):
                        self.discard(block, 1)
                        left += 1
            yield
        self._resize(-(-(taken.last_taken + 1) // GROW_BLOCKS) * GROW_BLOCKS)
        return left

    def _resize(self, blocks: int) -> None:
        if blocks != self._blocks:
            self._memory.resize(self._kept.name, blocks * PAGE_BYTES)
            self._blocks = blocks
