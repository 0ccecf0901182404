"""Deleting snapshots: in any order, a piece at a time, and everything that only they referred to comes back.

    deletion.begin(snapshots, [record])              # from now on nobody sees it
    for _ in deletion.steps(snapshots, record):      # each step is one change; others may work in between
        ...

What only a deleted snapshot refers to is found by comparing its page table with all others of its region at the same
addresses: a node that another table has is passed over with all that lies below it. Of the leaves that are its alone,
the virtblocks that no other leaf of the same chunk names are dead. A deletion that a crash cut off is found by its
record's state and goes on.

When a region's last snapshot goes, its running point needs no table either: the table and its array go with the
snapshot, as a record of their own (`retire`), and the running point begins with an empty one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import NEXT_SEQUENCE_AT
from everram.actors.nvm_device.records import Kind, Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.snapshots import Region, Snapshots
from everram.actors.nvm_device.tables import LEAF, LEVELS, entry_offset
from everram.actors.nvm_device.virtblocks import Place, chain, unpack_location, words_of
from everram.runtime.errors import FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.runs import runs

PIECE = 256
"""So many nodes, pages or records in one change of the metadata."""


def begin(snapshots: Snapshots, records: Sequence[Record]) -> list[Record]:
    """Nobody sees them any more, at once and durably. All that `steps` has to be run for. Raises FailedPrecondition."""
    for record in records:
        running = snapshots.region_of(record).record
        if running.state is State.REVERTING and running.target == record.sequence:
            raise FailedPrecondition(
                f"the region is being reverted to snapshot {record.name!r}: wait until that has ended"
            )
    doomed = [dataclasses.replace(record, state=State.DELETING) for record in records]
    sequences = {record.sequence for record in records}
    bared = [
        region
        for region in snapshots.regions.values()
        if (live := snapshots.live(region)) and all(record.sequence in sequences for record in live)
    ]
    numbers = snapshots.next_numbers(len(bared))
    with Draft(snapshots.media, spare=True) as draft:
        for record in doomed:
            draft.record(record)
        retired = [
            retire(snapshots, draft, region, numbers[at], at, root=draft.new_page()) for at, region in enumerate(bared)
        ]
        draft.commit()
    for record in records:
        snapshots.dropped(record)
        record.state = State.DELETING
    for region, (changed, _) in zip(bared, retired, strict=True):
        snapshots.went_on(region, changed)
    for _, old in retired:
        snapshots.make_record(old)
    return [*records, *(old for _, old in retired)]


def retire(
    snapshots: Snapshots, draft: Draft, region: Region, number: int, nth: int, *, root: int, parent: int = 0
) -> tuple[Record, Record]:
    """Give a region's running point another table; the old one, with its array, becomes a record that is being deleted.
    The region's record as it then is, and the old one's."""
    sequence = snapshots.media.word(NEXT_SEQUENCE_AT) + nth
    old = Record(
        number,
        Kind.SNAPSHOT,
        "",
        root=region.record.root,
        array=region.record.array,
        state=State.DELETING,
        region=region.record.number,
        sequence=sequence,
        parent=region.record.parent,
    )
    changed = dataclasses.replace(region.record, root=root, array=0, parent=parent, target=0, state=State.LIVE)
    draft.record(old)
    draft.record(changed)
    draft.word(NEXT_SEQUENCE_AT, sequence + 1)
    return changed, old


def unfinished(snapshots: Snapshots) -> list[Record]:
    """What is being deleted, in the order in which it is to be gone on with."""
    return [record for _, record in sorted(snapshots.records.items()) if record.state is State.DELETING]


def steps(snapshots: Snapshots, record: Record) -> Iterator[None]:
    """One change each, or a part of a long search; between two of them anything else may happen to the region, other
    deletions among it."""
    changed = True
    while changed:
        changed, given_up = False, snapshots.given_up
        for kind in (_free_leaves, _free_nodes, _free_array_pages, _bequeath_array, _bequeath_children):
            for has_changed in kind(snapshots, record):
                changed |= has_changed
                yield
            if snapshots.given_up != given_up:
                changed = True  # something may have been left to this snapshot alone, by others too
                break
    _erase(snapshots, record)


def others(snapshots: Snapshots, *excepted: Record) -> list[int]:
    """The roots of all other tables of the region."""
    region = snapshots.region_of(excepted[0])
    sequences = {record.sequence for record in excepted}
    roots = {
        record.root
        for record in snapshots.records.values()
        if record.region == region.record.number and record.sequence not in sequences
    }
    return sorted(roots | {region.record.root})


def dead_virtblocks(snapshots: Snapshots, page: int, leaves: Iterable[int], kept_roots: Iterable[int]) -> set[int]:
    """Of the leaves of one chunk, the virtblocks that no leaf of the kept tables names."""
    media = snapshots.media
    kept = {tables.leaf_of(media, root, page) for root in kept_roots} - {0}
    dead: set[int] = set()
    for leaf in set(leaves) - kept:
        dead.update(tables.entries(media, leaf))
    for leaf in kept:
        dead.difference_update(tables.entries(media, leaf))
    dead.discard(0)
    return dead


def _free_leaves(snapshots: Snapshots, record: Record) -> Iterator[bool]:
    """Of its table: the leaves that are its alone, and what no other leaf names. True: something was freed."""
    for found in _own_nodes(snapshots, record):
        for level, page, leaf in found:
            if level == LEAF:
                yield _free_leaf(snapshots, record, page, leaf)
        yield False


def _own_nodes(snapshots: Snapshots, record: Record) -> Iterator[list[tables.Node]]:
    """A turn after the other: nobody else changes the table of what is being deleted, and what it shares with nobody
    will stay so."""
    start = 0
    while True:
        found, start = tables.some_nodes(snapshots.media, record.root, others(snapshots, record), start)
        yield found
        if not start:
            return


def _free_leaf(snapshots: Snapshots, record: Record, page: int, leaf: int) -> bool:
    """False if another table has come by it since it was found."""
    media, kept = snapshots.media, others(snapshots, record)
    if any(tables.leaf_of(media, root, page) == leaf for root in kept):
        return False
    dead = sorted(dead_virtblocks(snapshots, page, (leaf,), kept))
    places = [unpack_location(word) for word in words_of(media, dead)]
    blocks = [number for place, number in places if place is Place.STORE]
    with Draft(media) as draft:
        draft.free_blocks(blocks)
        draft.free_slots([number for place, number in places if place is Place.STORAGE])
        for first, count in runs(dead):
            draft.put(first * WORD_BYTES, bytes(count * WORD_BYTES))
        draft.word(entry_offset(tables.node_at(media, record.root, page, LEAF + 1), page, LEAF + 1), 0)
        draft.free_page(leaf)
        draft.commit()
    snapshots.given_up += 1
    for first, count in runs(sorted(blocks)):
        snapshots.blocks.discard(first, count)
    return True


def _free_nodes(snapshots: Snapshots, record: Record) -> Iterator[bool]:
    """Of its table: the nodes between root and leaves that are its alone, when none of the leaves is."""
    media = snapshots.media
    own: list[tables.Node] = []
    given_up = snapshots.given_up
    for found in _own_nodes(snapshots, record):
        own += found
        yield False
    if any(level == LEAF for level, _, _ in own):  # that another deletion has left to it since
        return
    inner = [one for one in own if one[0] < LEVELS]
    for first in range(0, len(inner), PIECE):
        if snapshots.given_up != given_up:
            return  # something below them may have been left to it since
        with Draft(media) as draft:
            for level, page, node in inner[first : first + PIECE]:
                above = tables.node_at(media, record.root, page, level + 1)
                draft.word(entry_offset(above, page, level + 1), 0)
                draft.free_page(node)
            draft.commit()
        snapshots.given_up = given_up = given_up + 1
        yield True


def _free_array_pages(snapshots: Snapshots, record: Record) -> Iterator[bool]:
    """Of its array: those in which nothing is left."""
    media = snapshots.media
    while True:
        pages = list(chain(media, record.array))
        kept = [(page, words[0]) for page, words in pages if any(words[1:])]
        empty = [page for page, words in pages if not any(words[1:])][:PIECE]
        if not empty:
            return
        links = [page for page, _ in pages if page not in set(empty)]
        changed = dataclasses.replace(record, array=links[0] if links else 0)
        with Draft(media) as draft:
            for (page, next_page), wanted in zip(kept, [*links[1:], 0], strict=False):
                if next_page != wanted:
                    draft.word(page * PAGE_BYTES, wanted)
            for page in empty:
                draft.free_page(page)
            draft.record(changed)
            draft.commit()
        record.array = changed.array
        yield True


def _bequeath_array(snapshots: Snapshots, record: Record) -> Iterator[bool]:
    """What is left of its array is named by others."""
    if not record.array:
        return
    media, heir = snapshots.media, _heir(snapshots, record)
    *_, (last, _) = chain(media, record.array)
    with Draft(media) as draft:
        draft.word(last * PAGE_BYTES, heir.array)
        draft.record(dataclasses.replace(heir, array=record.array))
        draft.record(dataclasses.replace(record, array=0))
        draft.commit()
    heir.array, record.array = record.array, 0
    snapshots.array_changed(heir)
    yield True


def _heir(snapshots: Snapshots, record: Record) -> Record:
    """Who went on from it; but a running point that has no snapshots needs no array and gets none."""
    region = snapshots.region_of(record)
    records = [one for one in snapshots.records.values() if one.region == record.region and one is not record]
    if children := [one for one in records if one.parent == record.sequence]:
        return children[0]
    return region.record if snapshots.live(region) or not records else records[-1]


def _bequeath_children(snapshots: Snapshots, record: Record) -> Iterator[bool]:
    """To its parent."""
    while True:
        region = snapshots.region_of(record).record
        family = [region, *(one for one in snapshots.records.values() if one.region == record.region)]
        children = [one for one in family if one.parent == record.sequence][:PIECE]
        if not children:
            return
        with Draft(snapshots.media) as draft:
            for child in children:
                draft.record(dataclasses.replace(child, parent=record.parent))
            draft.commit()
        for child in children:
            child.parent = record.parent
        yield True


def _erase(snapshots: Snapshots, record: Record) -> None:
    """What is left of it is a root and the record itself."""
    with Draft(snapshots.media) as draft:
        if record.root not in others(snapshots, record):
            draft.free_page(record.root)
        draft.record(record, erase=True)
        draft.commit()
    snapshots.given_up += 1
    snapshots.erased(record)
