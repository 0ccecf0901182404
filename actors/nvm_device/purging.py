"""Purging: old blocks leave the memory for the storage file, each by ONE store to its virtblock.

    for batch in purging.batches(snapshots, limit):      # the blocks that no running point refers to
        purge = Purge.begin(snapshots, batch)            # slots of the storage file are theirs
        ...                                              # purge.contents() into purge.slots, durably
        purge.publish()                                  # one word each: from here on they are read from storage
        purge.end()                                      # and their blocks are free

Non-active blocks are found by address: at each chunk the leaves of a region's snapshots are compared with that of its
running point. A subtree that a snapshot shares with the running point is passed over whole, and a block that many
snapshots share is found once, because they all name the same virtblock (US20220129377A1, claims 1-3).

Between any two steps exactly one valid copy can be reached. The blocks and slots of a purge that is under way stand in
the intent pages, so that a crash loses neither: `recover` frees the block of what was published and the slot of what
was not. Nothing is deleted or reverted between `begin` and `end`; writes and new snapshots do no harm.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.deletion import runs
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import INTENT_ENTRIES_MAX, INTENTS, INTENTS_AT, Media
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Region, Snapshots
from everram.actors.nvm_device.virtblocks import Place, is_at, location, publish
from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES

_INTENT = struct.Struct("<QQQ")
BATCH_BLOCKS = INTENT_ENTRIES_MAX
"""16 MiB: the disk is told to be durable once a batch."""
PIECE_BLOCKS = 512
"""In one change of the metadata."""


class Candidate(NamedTuple):
    virtblock: int
    block: int


class Intent(NamedTuple):
    virtblock: int
    block: int
    slot: int


def batches(
    snapshots: Snapshots, limit: int = BATCH_BLOCKS, wanted: Callable[[Record], bool] = lambda _: True
) -> Iterator[list[Candidate]]:
    """What these snapshots of all regions refer to; found by chunks when a batch is asked for. `Purge.begin` leaves
    out what is gone since."""
    batch: list[Candidate] = []
    for region in list(snapshots.regions.values()):
        for candidates in _non_active(snapshots, region, wanted):
            batch += candidates
            while len(batch) >= limit:
                yield batch[:limit]
                batch = batch[limit:]
    if batch:
        yield batch


def _non_active(snapshots: Snapshots, region: Region, wanted: Callable[[Record], bool]) -> Iterator[list[Candidate]]:
    """For each chunk of a region, the blocks of the store that its running point does not refer to."""
    media = snapshots.media
    chunks: defaultdict[int, set[int]] = defaultdict(set)
    for record in filter(wanted, snapshots.live(region)):
        for first, leaf in tables.leaves(media, record.root, [region.record.root]):
            chunks[first].add(leaf)
    for first in sorted(chunks):
        virtblocks: set[int] = set()
        present = {tables.leaf_of(media, record.root, first) for record in snapshots.live(region)}
        for leaf in chunks[first] & present:  # it was not deleted since
            virtblocks.update(tables.entries(media, leaf))
        running = tables.leaf_of(media, region.record.root, first)
        virtblocks.difference_update(tables.entries(media, running) if running else (), (0,))
        found = []
        for virtblock in sorted(virtblocks):
            place, number = location(media, virtblock)
            if place is Place.STORE:
                found.append(Candidate(virtblock, number))
        yield found


class Purge:
    """One batch on its way."""

    def __init__(self, snapshots: Snapshots, intents: Sequence[Intent]) -> None:
        self._snapshots = snapshots
        self._intents = intents
        self.slots = [intent.slot for intent in intents]

    @staticmethod
    def begin(snapshots: Snapshots, batch: Sequence[Candidate]) -> Purge:
        """Raises FailedPrecondition while another is under way, ResourceExhausted where the storage has no room; then
        nothing has changed."""
        media = snapshots.media
        if len(batch) > BATCH_BLOCKS:
            raise ValueError(f"a batch of {len(batch)} blocks, at most {BATCH_BLOCKS} fit")
        if media.word(INTENTS_AT):
            raise FailedPrecondition("a purge is under way: wait until that has ended")
        batch = [one for one in batch if is_at(media, one.virtblock, Place.STORE, one.block)]
        intents: list[Intent] = []
        try:
            for first in range(0, len(batch), PIECE_BLOCKS):
                piece = batch[first : first + PIECE_BLOCKS]
                with Draft(media) as draft:
                    slots = sorted(draft.new_slot() for _ in piece)  # neighbours are written in one go
                    added = [Intent(*candidate, slot) for candidate, slot in zip(piece, slots, strict=True)]
                    packed = b"".join(_INTENT.pack(*intent) for intent in added)
                    media.mapping.persist(INTENTS * PAGE_BYTES + first * _INTENT.size, packed)
                    draft.word(INTENTS_AT, first + len(added))
                    draft.commit()
                intents += added
        except BaseException:
            _settle(snapshots, intents)
            raise
        return Purge(snapshots, intents)

    def contents(self, first: int = 0, count: int = BATCH_BLOCKS) -> Iterator[tuple[int, int, bytes]]:
        """(slot, virtblock, content) of some of the blocks, each loaded when it is asked for."""
        load = self._snapshots.blocks.load
        return ((one.slot, one.virtblock, load(one.block)) for one in self._intents[first : first + count])

    def publish(self) -> None:
        """They are on storage, durably: point each virtblock there."""
        media = self._snapshots.media
        for intent in self._intents:
            publish(media, intent.virtblock, Place.STORAGE, intent.slot)
        self._snapshots.entry_updates += len(self._intents)

    def end(self) -> None:
        _settle(self._snapshots, self._intents)

    def abandon(self) -> None:
        """Storage did not take them: all is as before."""
        _settle(self._snapshots, self._intents)


def under_way(media: Media) -> list[Intent]:
    """What is being purged now, or was when a crash came. Raises DataLoss."""
    count = media.word(INTENTS_AT)
    if count > INTENT_ENTRIES_MAX:
        raise DataLoss(f"snapshots: a purge of {count} blocks cannot be under way, {INTENT_ENTRIES_MAX} at most")
    packed = media.mapping.load(INTENTS * PAGE_BYTES, count * _INTENT.size)
    return [Intent(*intent) for intent in _INTENT.iter_unpack(packed)]


def recover(snapshots: Snapshots) -> int:
    """Settle what a crash has left of a purge; the number of blocks."""
    intents = under_way(snapshots.media)
    _settle(snapshots, intents)
    return len(intents)


def _settle(snapshots: Snapshots, intents: Sequence[Intent]) -> None:
    """From the last to the first, so that those whose turn has not come still stand in the intent pages."""
    media: Media = snapshots.media
    left = len(intents)
    while left:
        start = max(0, left - PIECE_BLOCKS)
        blocks: list[int] = []
        with Draft(media) as draft:
            for virtblock, block, slot in intents[start:left]:
                if is_at(media, virtblock, Place.STORAGE, slot):
                    draft.free_block(block)
                    blocks.append(block)
                else:
                    draft.free_slot(slot)
            draft.word(INTENTS_AT, start)
            draft.commit()
        for first, count in runs(sorted(blocks)):
            snapshots.blocks.discard(first, count)
        left = start
