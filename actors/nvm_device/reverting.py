"""Reverting a region to a snapshot: its arena gets the snapshot's content, page by page, and its table the snapshot's.

    reverting.begin(snapshots, record)               # durably; nobody may use the region until it has ended
    for page in reverting.pages(snapshots, record):  # those whose content differs
        data = ...                                   # the snapshot's content, from wherever it lies; None: a hole
        reverting.restore(snapshots, record, page, data)
    retired = reverting.end(snapshots, record)       # what is now to be deleted (`deletion.steps`)

What the running point held and later snapshots share is kept for them first. Then the content goes into the arena, and
the snapshot's virtblock is pointed there: the block or the slot that it was in is free. A reversion that a crash cut
off is found by the region's state and run again from the start, which changes nothing that is done already.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from everram.actors.nvm_device import deletion, tables
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.records import Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.snapshots import Region, Snapshots, check_not_reverting
from everram.actors.nvm_device.tables import CHUNK_PAGES, LEAF, entry_offset
from everram.actors.nvm_device.turns import Walk
from everram.actors.nvm_device.virtblocks import Place, location, pack_location
from everram.runtime.errors import FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES


def begin(snapshots: Snapshots, record: Record) -> None:
    """Or begin again. Raises FailedPrecondition."""
    region = snapshots.region_of(record)
    if record.state is not State.LIVE:
        raise FailedPrecondition(f"snapshot {record.name!r} is being deleted")
    if region.record.target != record.sequence:
        check_not_reverting(region)
    changed = dataclasses.replace(region.record, state=State.REVERTING, target=record.sequence)
    with Draft(snapshots.media) as draft:
        draft.record(changed)
        draft.commit()
    region.record = changed


def unfinished(snapshots: Snapshots) -> list[Record]:
    """The snapshots to which regions are being reverted."""
    reverting = [region.record for region in snapshots.regions.values() if region.record.state is State.REVERTING]
    return [snapshots.records[record.target] for record in reverting]


def pages(snapshots: Snapshots, record: Record) -> Iterator[int]:
    """Those whose content in the arena may not be the snapshot's, ascending."""
    return itertools.chain.from_iterable(chunks(snapshots, record))


def chunks(snapshots: Snapshots, record: Record) -> Iterator[list[int]]:
    """The same, a chunk at a time; nothing but the reversion itself changes what it finds."""
    media, region = snapshots.media, snapshots.region_of(record)
    for first, leaf in tables.leaves(media, record.root, [region.record.root]):
        running = tables.entries(media, tables.leaf_of(media, region.record.root, first))
        yield [
            page
            for page, (theirs, ours) in enumerate(zip(tables.entries(media, leaf), running, strict=True), first)
            if theirs != ours and not (theirs and location(media, theirs).place is Place.ARENA)
        ]


@dataclass(slots=True)
class Demand:
    """What a reversion needs before it can begin."""

    slots: dict[int, int] = field(default_factory=dict)
    """Of the storage file, slot -> virtblock: all that has to be read."""
    blocks: int = 0
    """Of the store, that have to be free: later snapshots need them before it gives back its own."""


def demand(snapshots: Snapshots, record: Record) -> Walk[Demand]:
    media, region, found = snapshots.media, snapshots.region_of(record), Demand()
    free = 0
    for chunk in chunks(snapshots, record):
        yield
        if not chunk:
            continue
        first = chunk[0] // CHUNK_PAGES * CHUNK_PAGES
        theirs, ours, *others = (
            tables.entries(media, leaf)
            for one in (record, region.record, *snapshots.near(region))
            if (leaf := tables.leaf_of(media, one.root, first))
        )
        for at in (page - first for page in chunk):
            if ours[at] and any(one[at] == ours[at] for one in others):
                free -= location(media, ours[at]).place is Place.ARENA  # a later snapshot needs what is there
                found.blocks = max(found.blocks, -free)
            if theirs[at]:
                place, number = location(media, theirs[at])
                free += place is Place.STORE
                if place is Place.STORAGE:
                    found.slots[number] = theirs[at]
    return found


def restore(snapshots: Snapshots, record: Record, page: int, data: bytes | None) -> None:
    """Raises ResourceExhausted where a later snapshot needs what is there, and no block is left to keep it in."""
    media, region = snapshots.media, snapshots.region_of(record)
    arena = snapshots.arena_of(region.record.name)
    _keep(snapshots, region, page)
    if data is None:
        arena.punch(page * PAGE_BYTES, PAGE_BYTES)
        return
    arena.write(page * PAGE_BYTES, data)
    virtblock = media.word(entry_offset(tables.leaf_of(media, record.root, page), page, LEAF))
    place, number = location(media, virtblock)
    with Draft(media) as draft:
        draft.word(virtblock * WORD_BYTES, pack_location(Place.ARENA, page))
        if place is Place.STORE:
            draft.free_block(number)
        elif place is Place.STORAGE:
            draft.free_slot(number)
        draft.commit()
    snapshots.entry_updates += 1
    if place is Place.STORE:
        snapshots.blocks.discard(number, 1)


def _is_needed(snapshots: Snapshots, region: Region, page: int) -> int:
    """The virtblock of what the running point holds there, if a snapshot has it, too; 0 if none has."""
    media = snapshots.media
    virtblock = media.word(entry_offset(tables.leaf_of(media, region.record.root, page), page, LEAF))
    if not virtblock or location(media, virtblock).place is not Place.ARENA:
        return 0
    return virtblock if snapshots.is_shared(region, page, virtblock) else 0


def _keep(snapshots: Snapshots, region: Region, page: int) -> None:
    """What the running point holds, for later snapshots that share it."""
    if not (virtblock := _is_needed(snapshots, region, page)):
        return
    media = snapshots.media
    with Draft(media) as draft:
        block = draft.new_block()
        snapshots.blocks.persist(block, snapshots.arena_of(region.record.name).read(page * PAGE_BYTES, PAGE_BYTES))
        draft.word(virtblock * WORD_BYTES, pack_location(Place.STORE, block))
        draft.commit()
    snapshots.blocks_copied += 1
    snapshots.entry_updates += 1


def abandon(snapshots: Snapshots, region: Region) -> None:
    """The region is about to be forgotten, with everything that it is."""
    changed = dataclasses.replace(region.record, state=State.LIVE, target=0)
    with Draft(snapshots.media) as draft:
        draft.record(changed)
        draft.commit()
    region.record = changed


def end(snapshots: Snapshots, record: Record) -> Record:
    """The running point is the snapshot's; what it had of its own is to be deleted."""
    region = snapshots.region_of(record)
    (number,) = snapshots.next_numbers(1)
    with Draft(snapshots.media) as draft:
        changed, old = deletion.retire(snapshots, draft, region, number, 0, root=record.root, parent=record.sequence)
        draft.commit()
    snapshots.went_on(region, changed)
    snapshots.make_record(old)
    return old
