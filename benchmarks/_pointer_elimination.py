"""Pointer elimination (US10691591), the way of purging that virtblocks are compared with.

    tables = PointerTables.of(snapshots, map_pages)     # the same snapshots, in tables of its own, on the same memory
    for slots, blocks, load, end in tables.batches(limit):  # of what the running point has no more
        ...                                                 # onto storage (`StorageFile.write`), durably
        end()                                               # every pointer, and every count

Here the level-1 entry of each snapshot's page table names the block itself, and each block has a count of the entries
that do. To purge, each entry of each snapshot whose block the running point does not have is pointed at the storage,
and the count goes down by one; the block leaves when it is zero. So a block that k snapshots share, in tables of their
own, costs k entries and k counts, each stored persistently, since a crash may come at any time. What the tables share
is updated once here, too, and everything else (finding, loading, batches, the file, two of them on their way at once)
is what virtblocks use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.purging import load_blocks
from everram.actors.nvm_device.snapshots import Blocks, Snapshots
from everram.actors.nvm_device.storage import Load
from everram.actors.nvm_device.virtblocks import WORDS, Place, pack_location, unpack_location
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.runs import runs

WORD_BYTES = 8
Elimination = tuple[Sequence[int], Sequence[int], Load, Callable[[], None]]
"""One batch: slots, blocks, how to load their contents, and what is to be done once they are durable."""
_STORE = pack_location(Place.STORE, 0)
_STORAGE = pack_location(Place.STORAGE, 0)


@dataclass
class PointerTables:
    """Leaves of 512 entries and counts, in one mapping: the counts first."""

    mapping: Mapping
    blocks: Blocks
    chunks: dict[int, set[int]] = field(default_factory=dict)
    """First page of a chunk -> pages of the mapping with the leaves that snapshots have for it."""
    slots: int = 0
    """The next on storage."""
    entry_updates: int = 0

    @staticmethod
    def of(snapshots: Snapshots, map_pages: Callable[[int], Mapping]) -> PointerTables:
        """Of one region's snapshots. `map_pages`: so many, zeroed."""
        (region,) = snapshots.regions.values()
        media = snapshots.media
        found: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        seen = set()
        for record in snapshots.live(region):
            for first, leaf in tables.leaves(media, record.root):
                if leaf not in seen:
                    seen.add(leaf)
                    found[first].append(tables.entries(media, leaf))
        counts_pages = -(-snapshots.media.store.limit * WORD_BYTES // PAGE_BYTES)
        made = PointerTables(map_pages(counts_pages + len(seen)), snapshots.blocks)
        page = counts_pages
        for first, leaves in found.items():
            made.chunks[first] = set()
            for virtblocks in leaves:
                made._make(page, [media.word(one * WORD_BYTES) if one else 0 for one in virtblocks])
                made.chunks[first].add(page)
                page += 1
        return made

    def _make(self, page: int, entries: list[int]) -> None:
        self.mapping.store(page * PAGE_BYTES, WORDS.pack(*entries))
        for entry in entries:
            place, number = unpack_location(entry)
            if place is Place.STORE:
                self.mapping.store_u64(number * WORD_BYTES, self.mapping.load_u64(number * WORD_BYTES) + 1)

    def batches(self, limit: int) -> Iterator[Elimination]:
        pointers: list[tuple[int, int]] = []
        """Offset, block."""
        blocks: set[int] = set()
        for first in sorted(self.chunks):
            for leaf in sorted(self.chunks[first]):
                offset = leaf * PAGE_BYTES
                for entry in WORDS.unpack(self.mapping.load(offset, PAGE_BYTES)):
                    if _STORE <= entry < _STORAGE:  # the running point's own lie in the arena
                        blocks.add(entry ^ _STORE)
                        pointers.append((offset, entry ^ _STORE))
                    offset += WORD_BYTES
            if len(blocks) >= limit:
                yield from self._batch(pointers, sorted(blocks))
                pointers, blocks = [], set()
        if blocks:
            yield from self._batch(pointers, sorted(blocks))

    def _batch(self, pointers: list[tuple[int, int]], blocks: list[int]) -> Iterator[Elimination]:
        def load(first: int, target: memoryview) -> memoryview:
            return load_blocks(self.blocks, blocks[first : first + len(target) // PAGE_BYTES], target)

        slots = range(self.slots, self.slots + len(blocks))
        self.slots += len(blocks)
        yield slots, blocks, load, lambda: self._eliminate(pointers, dict(zip(blocks, slots, strict=True)))

    def _eliminate(self, pointers: list[tuple[int, int]], slot_of: dict[int, int]) -> None:
        """The content is on storage: every pointer goes there, one by one, and takes its count with it."""
        mapping = self.mapping
        free: list[int] = []
        for offset, block in pointers:
            mapping.publish_u64(offset, _STORAGE | slot_of[block])
            left = mapping.load_u64(block * WORD_BYTES) - 1
            mapping.publish_u64(block * WORD_BYTES, left)
            if not left:
                free.append(block)
        for first, count in runs(sorted(free)):
            self.blocks.discard(first, count)
        self.entry_updates += len(pointers)
