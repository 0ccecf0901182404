"""What a bank keeps in its volatile memory: blocks whose content is known, so that whoever looks sees what is wrong.

    vault = Vault(memory)
    looked, wrong = await vault.keep(20)           # 20 blocks from now on; some were looked at, and not as stored

A host may promise more memory than it has, so blocks are thrown away, given back and swapped out as the memory
scheduler likes. A block that is stored is data that is nowhere else, and comes back as it was.
"""

from __future__ import annotations

import asyncio

from everram.runtime.guest.errors import OutOfMemory
from everram.runtime.guest.volatile import Block, Volatile

BLOCK_BYTES = 1 << 20
LOOKED_AT = 4
"""Blocks in one turn, the oldest look first."""


class Vault:
    def __init__(self, memory: Volatile) -> None:
        self._memory = memory
        self._blocks: list[Block] = []
        self._next = 0

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    async def keep(self, blocks: int) -> tuple[int, int]:
        """Others have their turn after each block, for a page that was swapped out is waited for."""
        while len(self._blocks) > blocks:
            self._memory.free(self._blocks.pop())
        looked, wrong = min(LOOKED_AT, len(self._blocks)), 0
        for _ in range(looked):
            self._next = (self._next + 1) % len(self._blocks)
            wrong += self._blocks[self._next].load() != content(self._next)
            await asyncio.sleep(0)
        while len(self._blocks) < blocks:
            try:
                block = self._memory.allocate(BLOCK_BYTES)
            except OutOfMemory:
                break
            block.store(0, content(len(self._blocks)))
            self._blocks.append(block)
            await asyncio.sleep(0)
        return looked, wrong


def content(number: int) -> bytes:
    """Of the block with that number: no two pages are alike."""
    return b"".join((number << 32 | page).to_bytes(8, "little") * 512 for page in range(BLOCK_BYTES // 4096))
