"""Purging: old blocks leave the memory for the storage file, each by ONE store to its virtblock.

    for batch in purging.batches(snapshots, limit):      # the blocks that no running point refers to
        purge = Purge.begin(snapshots, batch)            # slots of the storage file are set apart for them
        ...                                              # their contents (purge.load) into purge.slots, durably
        purge.publish()                                  # one word each: from here on they are read from storage
        purge.end()                                      # and their blocks are free

Non-active blocks are found by address: at each chunk the leaves of a region's snapshots are compared with that of its
running point. A subtree that a snapshot shares with the running point is passed over whole, and a block that many
snapshots share is found once, because they all name the same virtblock (US20220129377A1, claims 1-3).

Between any two steps exactly one valid copy can be reached. While contents are on their way to storage the metadata
know nothing of it: after a crash the slots are as free as before. What `publish` does first is to take the slots and to
write all that it is going to move into the intent pages, so that a crash from then on loses neither blocks nor slots:
`recover` frees the block of what was published and the slot of what was not. Nothing is deleted or reverted between
`begin` and `end`; writes and new snapshots do no harm.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, repeat
from operator import ne, or_

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import INTENT_ENTRIES_MAX, INTENTS, INTENTS_AT, Media
from everram.actors.nvm_device.records import Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.snapshots import Blocks, Region, Snapshots
from everram.actors.nvm_device.tables import CHUNK_PAGES
from everram.actors.nvm_device.virtblocks import Place, pack_location, words_of
from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.runs import runs

BATCH_BLOCKS = INTENT_ENTRIES_MAX
"""16 MiB: the disk is told to be durable once a batch."""
LOOK_AHEAD_BLOCKS = 4 * BATCH_BLOCKS
"""Of which the neighbours are brought together, where they are not found together."""
LONG_RUN_BLOCKS = 16
"""Whoever is found in runs so long, on average, need not wait for others; and is not copied to be written."""
LEAVES_PER_TURN = 64
"""Looked at in some five milliseconds, for which the loop is not served."""
PIECE_BLOCKS = 2048
"""In one change of the metadata, which has room for so many even where each is in another word of a bitmap."""

IN_STORE, ON_STORAGE = pack_location(Place.STORE, 0), pack_location(Place.STORAGE, 0)

Batch = dict[int, int]
"""Block of the store -> virtblock, ascending."""


def everything(record: Record) -> bool:
    return True


def batches(
    snapshots: Snapshots, limit: int = BATCH_BLOCKS, wanted: Callable[[Record], bool] = everything
) -> Iterator[Batch]:
    """What these snapshots of all regions refer to; found some batches ahead. `Purge.begin` leaves out what is gone
    since.

    In the order of the blocks, not of the addresses: what was written at one time lies together in the store, however
    scattered it is in the region, so it is loaded and given back in long runs.
    """
    return filter(None, search(snapshots, limit, wanted))


def search(
    snapshots: Snapshots, limit: int = BATCH_BLOCKS, wanted: Callable[[Record], bool] = everything
) -> Iterator[Batch]:
    """The same, with an empty batch now and then: the search goes on, and others may come in between."""
    found: Batch = {}
    enough = BATCH_BLOCKS
    for region in list(snapshots.regions.values()):
        for some in _non_active(snapshots, region, wanted):
            found |= some
            if len(found) >= enough:
                blocks = sorted(found)
                if enough < LOOK_AHEAD_BLOCKS and len(runs(blocks)) * LONG_RUN_BLOCKS > len(blocks):
                    enough = LOOK_AHEAD_BLOCKS
                    continue
                yield from _in_batches(found, blocks, limit)
                found, enough = {}, BATCH_BLOCKS
            elif not some:
                yield {}
    yield from _in_batches(found, sorted(found), limit)


def _in_batches(found: Batch, blocks: Sequence[int], limit: int) -> Iterator[Batch]:
    for first in range(0, len(blocks), limit):
        yield {block: found[block] for block in blocks[first : first + limit]}


def _non_active(snapshots: Snapshots, region: Region, wanted: Callable[[Record], bool]) -> Iterator[Batch]:
    """For each chunk of a region, the blocks of the store that its running point does not refer to; an empty one after
    so many leaves, too."""
    media = snapshots.media
    chunks: defaultdict[int, set[int]] = defaultdict(set)
    looked_at = 0
    for record in filter(wanted, list(snapshots.live(region))):
        if record.state is State.DELETING:
            continue  # since then
        for first, leaf in list(tables.leaves(media, record.root, [region.record.root])):
            chunks[first].add(leaf)
        yield {}
    for first in sorted(chunks):
        looked_at += len(chunks[first]) + 1
        if looked_at >= LEAVES_PER_TURN:
            looked_at = 0
            yield {}
        if snapshots.regions.get(region.record.name) is not region:
            return  # it was removed since
        virtblocks: set[int] = set()
        present = {tables.leaf_of(media, record.root, first) for record in snapshots.live(region)}
        running = tables.leaf_of(media, region.record.root, first)
        active = before = tables.entries(media, running) if running else (0,) * CHUNK_PAGES
        for leaf in chunks[first] & present:  # it was not deleted since
            # A virtblock stands for one page, so who else names it does so in the same place; and from one leaf to the
            # next most stay the same.
            named = tables.entries(media, leaf)
            virtblocks.update(compress(named, map(ne, named, before)))
            before = named
        virtblocks.difference_update(active)
        virtblocks.discard(0)
        words = zip(words_of(media, virtblocks), virtblocks, strict=True)
        yield {word ^ IN_STORE: virtblock for word, virtblock in words if IN_STORE <= word < ON_STORAGE}


class Purge:
    """One batch on its way: the n-th of `blocks`, which the n-th of `virtblocks` names, goes to the n-th of `slots`."""

    def __init__(self, snapshots: Snapshots, blocks: list[int], virtblocks: list[int], slots: list[int]) -> None:
        self._snapshots = snapshots
        self.blocks, self.virtblocks, self.slots = blocks, virtblocks, slots

    @staticmethod
    def begin(snapshots: Snapshots, batch: Batch) -> Purge:
        """Without those that another purge has on their way. Raises ResourceExhausted where the storage has no room;
        then nothing has changed."""
        media = snapshots.media
        if len(batch) > BATCH_BLOCKS:
            raise ValueError(f"a batch of {len(batch)} blocks, at most {BATCH_BLOCKS} fit")
        if not snapshots.purging.isdisjoint(batch):
            batch = {block: virtblock for block, virtblock in batch.items() if block not in snapshots.purging}
        words = words_of(media, batch.values())
        if words != [IN_STORE | block for block in batch]:
            there = zip(words, batch.items(), strict=True)
            batch = {block: virtblock for word, (block, virtblock) in there if word == IN_STORE | block}
        slots = media.take_slots(len(batch))
        slots.sort()  # neighbours are written in one go
        snapshots.purging.update(batch)
        return Purge(snapshots, list(batch), list(batch.values()), slots)

    def load(self, first: int, target: memoryview) -> memoryview:
        """The contents of some of the blocks, from the n-th on: in `target`, which says of how many, or elsewhere."""
        return load_blocks(self._snapshots.blocks, self.blocks[first : first + len(target) // PAGE_BYTES], target)

    def publish(self) -> None:
        """They are on storage, durably: point each virtblock there. Raises FailedPrecondition between another's
        `publish` and `end`."""
        media = self._snapshots.media
        if media.word(INTENTS_AT):
            raise FailedPrecondition("another purge is to be ended first")
        for first in range(0, len(self.slots), PIECE_BLOCKS):
            some = slice(first, first + PIECE_BLOCKS)
            _note(media, first, self.virtblocks[some], self.blocks[some], self.slots[some])
        words = map(or_, repeat(ON_STORAGE), self.slots)
        media.mapping.publish_words(zip(self.virtblocks, words, strict=False))
        self._snapshots.entry_updates += len(self.slots)

    def end(self) -> None:
        _settle(self._snapshots, self.virtblocks, self.blocks, self.slots)
        self._snapshots.purging.difference_update(self.blocks)

    def abandon(self) -> None:
        """Storage did not take them: all is as before."""
        self._snapshots.media.storage.unreserve(self.slots)
        self._snapshots.purging.difference_update(self.blocks)


def load_blocks(store: Blocks, blocks: Sequence[int], target: memoryview) -> memoryview:
    """Contents of many, ascending, one after the other: where they lie, if they are one long run, else in `target`."""
    found = runs(blocks)
    if len(found) == 1 and len(blocks) >= LONG_RUN_BLOCKS:
        return store.view(*found[0])
    at = 0
    for first, count in found:
        store.load_into(first, target[at : at + count * PAGE_BYTES])
        at += count * PAGE_BYTES
    return target


# -- intents: three columns of words, of virtblocks, blocks and slots


def _note(media: Media, first: int, virtblocks: Sequence[int], blocks: Sequence[int], slots: Sequence[int]) -> None:
    """From now on they are what is being purged, together with those before the `first`."""
    count = len(slots)
    for column, numbers in enumerate((virtblocks, blocks, slots)):
        media.mapping.persist(_intent_offset(column, first), struct.pack(f"<{count}Q", *numbers))
    with Draft(media) as draft:
        draft.reserved_slots(slots)
        draft.word(INTENTS_AT, first + count)
        draft.commit()


def _intent_offset(column: int, nth: int) -> int:
    return INTENTS * PAGE_BYTES + (column * INTENT_ENTRIES_MAX + nth) * WORD_BYTES


def under_way(media: Media) -> tuple[list[int], list[int], list[int]]:
    """Virtblocks, blocks and slots of what is being purged now, or was when a crash came. Raises DataLoss."""
    count = media.word(INTENTS_AT)
    if count > INTENT_ENTRIES_MAX:
        raise DataLoss(f"snapshots: a purge of {count} blocks cannot be under way, {INTENT_ENTRIES_MAX} at most")
    loaded = (media.mapping.load(_intent_offset(column, 0), count * WORD_BYTES) for column in range(3))
    virtblocks, blocks, slots = (list(struct.unpack(f"<{count}Q", numbers)) for numbers in loaded)
    return virtblocks, blocks, slots


def recover(snapshots: Snapshots) -> int:
    """Settle what a crash has left of a purge; the number of blocks."""
    virtblocks, blocks, slots = under_way(snapshots.media)
    _settle(snapshots, virtblocks, blocks, slots)
    return len(slots)


def _settle(snapshots: Snapshots, virtblocks: Sequence[int], blocks: Sequence[int], slots: Sequence[int]) -> None:
    """From the last to the first, so that those whose turn has not come still stand in the intent pages."""
    left = len(slots)
    while left:
        start = max(0, left - PIECE_BLOCKS)
        some = slice(start, left)
        _settle_some(snapshots, start, virtblocks[some], blocks[some], slots[some])
        left = start


def _settle_some(
    snapshots: Snapshots, first: int, virtblocks: Sequence[int], blocks: Sequence[int], slots: Sequence[int]
) -> None:
    """After it, what is being purged are those before the `first`."""
    words = words_of(snapshots.media, virtblocks)
    places = list(map(or_, repeat(ON_STORAGE), slots))
    left: list[int] = []
    if words != places:
        moved = [word == place for word, place in zip(words, places, strict=True)]
        left = [slot for slot, is_moved in zip(slots, moved, strict=True) if not is_moved]
        blocks = [block for block, is_moved in zip(blocks, moved, strict=True) if is_moved]
    with Draft(snapshots.media) as draft:
        draft.free_blocks(blocks)
        draft.free_slots(left)
        draft.word(INTENTS_AT, first)
        draft.commit()
    for run, count in runs(blocks):
        snapshots.blocks.discard(run, count)
