"""No page of a guest's volatile memory is lost, or becomes another, by what its host takes back."""

from __future__ import annotations

from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.world import World

PROPERTY = "no page is lost by reclaim"


class NoPageLost:
    """Of one guest: what each of its blocks has to hold, as told by whoever stored it."""

    def __init__(self, world: World, guest: str) -> None:
        self._world = world
        self._guest = guest
        self._blocks: dict[int, bytearray] = {}
        self.looked = 0
        """Pages that were compared."""

    def begin(self) -> None:
        """A new incarnation has nothing."""
        self._blocks.clear()

    def stored(self, block: int, offset: int, data: bytes) -> None:
        """The store has returned; what a block holds beside what was stored is not looked at."""
        kept = self._blocks.setdefault(block, bytearray())
        kept.extend(bytes(max(0, offset + len(data) - len(kept))))
        kept[offset : offset + len(data)] = data

    def freed(self, block: int) -> None:
        self._blocks.pop(block, None)

    def found(self, block: int, offset: int, content: bytes) -> None:
        self.looked += 1
        wanted = self._blocks[block][offset : offset + len(content)]
        if content == wanted:
            return
        zeros = " (zeros)" if not any(content) else ""
        at = next(number for number, (a, b) in enumerate(zip(content, wanted, strict=True)) if a != b)
        self.wrong(f"block {block} differs from byte {offset + at} on, in its page {offset // PAGE_BYTES}{zeros}")

    def wrong(self, what: str) -> None:
        self._world.violate(PROPERTY, f"{self._guest}: {what}")
