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

import itertools
import operator
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.deletion import runs
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import INTENT_ENTRIES_MAX, INTENTS, INTENTS_AT, Media
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Region, Snapshots
from everram.actors.nvm_device.virtblocks import Place, pack_location, publish, words_of
from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES

_INTENT = struct.Struct("<QQQ")
BATCH_BLOCKS = INTENT_ENTRIES_MAX
"""16 MiB: the disk is told to be durable once a batch."""
LOOK_AHEAD_BLOCKS = 4 * BATCH_BLOCKS
"""Found in one go, in some ten milliseconds."""
PIECE_BLOCKS = 512
"""In one change of the metadata."""
LOAD_BLOCKS_MAX = 64
"""That are loaded at once, where they are neighbours."""


IN_STORE, ON_STORAGE = pack_location(Place.STORE, 0), pack_location(Place.STORAGE, 0)

Candidate = tuple[int, int]
"""Virtblock, block of the store."""
Intent = tuple[int, int, int]
"""Virtblock, block of the store, slot of the storage file."""


def everything(record: Record) -> bool:
    return True


def batches(
    snapshots: Snapshots, limit: int = BATCH_BLOCKS, wanted: Callable[[Record], bool] = everything
) -> Iterator[list[Candidate]]:
    """What these snapshots of all regions refer to; found some batches ahead. `Purge.begin` leaves out what is gone
    since.

    In the order of the blocks, not of the addresses: what was written at one time lies together in the store, however
    scattered it is in the region, so it is loaded and given back in long runs.
    """
    return filter(None, search(snapshots, limit, wanted))


def search(
    snapshots: Snapshots, limit: int = BATCH_BLOCKS, wanted: Callable[[Record], bool] = everything
) -> Iterator[list[Candidate]]:
    """The same, with an empty batch for each chunk that was looked through: others may come in between."""
    found: list[Candidate] = []
    for region in list(snapshots.regions.values()):
        for candidates in _non_active(snapshots, region, wanted):
            found += candidates
            yield []
            if len(found) >= LOOK_AHEAD_BLOCKS:
                yield from _in_batches(found, limit)
                found = []
    yield from _in_batches(found, limit)


def _in_batches(found: list[Candidate], limit: int) -> Iterator[list[Candidate]]:
    found.sort(key=operator.itemgetter(1))
    for first in range(0, len(found), limit):
        yield found[first : first + limit]


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
        if not present:
            return  # of a region that is gone since
        for leaf in chunks[first] & present:  # it was not deleted since
            virtblocks.update(tables.entries(media, leaf))
        running = tables.leaf_of(media, region.record.root, first)
        virtblocks.difference_update(tables.entries(media, running) if running else (), (0,))
        ascending = sorted(virtblocks)
        words = zip(ascending, words_of(media, ascending), strict=True)
        yield [(virtblock, word ^ IN_STORE) for virtblock, word in words if IN_STORE <= word < ON_STORAGE]


class Purge:
    """One batch on its way."""

    def __init__(self, snapshots: Snapshots, intents: Sequence[Intent]) -> None:
        self._snapshots = snapshots
        self._intents = intents
        self.slots = [slot for _, _, slot in intents]

    @staticmethod
    def begin(snapshots: Snapshots, batch: Sequence[Candidate]) -> Purge:
        """Raises FailedPrecondition while another is under way, ResourceExhausted where the storage has no room; then
        nothing has changed."""
        media = snapshots.media
        if len(batch) > BATCH_BLOCKS:
            raise ValueError(f"a batch of {len(batch)} blocks, at most {BATCH_BLOCKS} fit")
        if media.word(INTENTS_AT):
            raise FailedPrecondition("a purge is under way: wait until that has ended")
        there = words_of(media, (virtblock for virtblock, _ in batch))
        batch = [one for one, word in zip(batch, there, strict=True) if word == IN_STORE | one[1]]
        intents: list[Intent] = []
        try:
            for first in range(0, len(batch), PIECE_BLOCKS):
                piece = batch[first : first + PIECE_BLOCKS]
                with Draft(media) as draft:
                    slots = sorted(draft.new_slots(len(piece)))  # neighbours are written in one go
                    added = [(virtblock, block, slot) for (virtblock, block), slot in zip(piece, slots, strict=True)]
                    packed = struct.pack(f"<{3 * len(added)}Q", *itertools.chain.from_iterable(added))
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
        load_run = self._snapshots.blocks.load_run
        intents = self._intents[first : first + count]
        at = 0
        while at < len(intents):
            block = intents[at][1]
            end = min(len(intents), at + LOAD_BLOCKS_MAX)
            stop = next((other for other in range(at + 1, end) if intents[other][1] != block + other - at), end)
            data = load_run(block, stop - at)
            for nth, (virtblock, _, slot) in enumerate(intents[at:stop]):
                yield slot, virtblock, data[nth * PAGE_BYTES : (nth + 1) * PAGE_BYTES]
            at = stop

    def publish(self) -> None:
        """They are on storage, durably: point each virtblock there."""
        places = ((virtblock, slot) for virtblock, _, slot in self._intents)
        publish(self._snapshots.media, places, Place.STORAGE)
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
    return [(virtblock, block, slot) for virtblock, block, slot in _INTENT.iter_unpack(packed)]


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
        piece = intents[start:left]
        there = words_of(media, (virtblock for virtblock, _, _ in piece))
        moved = [word == ON_STORAGE | slot for word, (_, _, slot) in zip(there, piece, strict=True)]
        blocks = [block for (_, block, _), is_moved in zip(piece, moved, strict=True) if is_moved]
        with Draft(media) as draft:
            draft.free_blocks(blocks)
            draft.free_slots([slot for (_, _, slot), is_moved in zip(piece, moved, strict=True) if not is_moved])
            draft.word(INTENTS_AT, start)
            draft.commit()
        for first, count in runs(sorted(blocks)):
            snapshots.blocks.discard(first, count)
        left = start
