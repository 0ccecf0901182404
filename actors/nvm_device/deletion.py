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
from everram.actors.nvm_device.tables import LEAF, entry_offset
from everram.actors.nvm_device.virtblocks import Place, chain, location
from everram.runtime.memory.contract import PAGE_BYTES


def begin(snapshots: Snapshots, records: Sequence[Record]) -> list[Record]:
    """Nobody sees them any more, at once and durably. All that `steps` has to be run for."""
    doomed = [dataclasses.replace(record, state=State.DELETING) for record in records]
    sequences = {record.sequence for record in records}
    bared = [
        region
        for region in snapshots.regions.values()
        if (live := snapshots.live(region)) and all(record.sequence in sequences for record in live)
    ]
    numbers = snapshots.next_numbers(len(bared))
    with Draft(snapshots.media) as draft:
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
    """One change each; between two of them anything else may happen to the region."""
    found = True
    while found:  # a running point that copies a node leaves the old one to the snapshots alone
        found = False
        for page, leaf in tables.leaves(snapshots.media, record.root, others(snapshots, record)):
            if _free_leaf(snapshots, record, page, leaf):
                found = True
                yield
    yield from _drop_empty_pages(snapshots, record)
    _finish(snapshots, record)


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


def _free_leaf(snapshots: Snapshots, record: Record, page: int, leaf: int) -> bool:
    """False if another table has come by it since it was found."""
    media, kept = snapshots.media, others(snapshots, record)
    if any(tables.leaf_of(media, root, page) == leaf for root in kept):
        return False
    dead = sorted(dead_virtblocks(snapshots, page, (leaf,), kept))
    blocks: list[int] = []
    with Draft(media) as draft:
        for virtblock in dead:
            place, number = location(media, virtblock)
            if place is Place.STORE:
                draft.free_block(number)
                blocks.append(number)
            elif place is Place.STORAGE:
                draft.free_slot(number)
        for first, count in runs(dead):
            draft.put(first * WORD_BYTES, bytes(count * WORD_BYTES))
        draft.word(entry_offset(tables.node_at(media, record.root, page, LEAF + 1), page, LEAF + 1), 0)
        draft.free_page(leaf)
        draft.commit()
    for first, count in runs(sorted(blocks)):
        snapshots.blocks.discard(first, count)
    return True


def _drop_empty_pages(snapshots: Snapshots, record: Record) -> Iterator[None]:
    """Of its array: those in which nothing is left."""
    media = snapshots.media
    pages = list(chain(media, record.array))
    at, kept_last = 0, 0
    while at < len(pages):
        changed = dataclasses.replace(record)
        with Draft(media) as draft:
            while at < len(pages) and draft.size_bytes < media.change_bytes_max // 2:
                page, words = pages[at]
                at += 1
                if any(words[1:]):
                    kept_last = page
                    continue
                draft.free_page(page)
                if kept_last:
                    draft.word(kept_last * PAGE_BYTES, words[0])
                else:
                    changed.array = words[0]
                    draft.record(changed)
            draft.commit()
        record.array = changed.array
        yield


def _finish(snapshots: Snapshots, record: Record) -> None:
    """The nodes that are its alone, its array to its heir, its children to its parent, and the record itself."""
    media, kept = snapshots.media, others(snapshots, record)
    region = snapshots.region_of(record)
    children = [child for child in snapshots.records.values() if child.parent == record.sequence]
    children = [child for child in children if child.region == record.region]
    heir = children[0] if children else region.record
    changes = {id(one): dataclasses.replace(one) for one in (*children, heir)}
    if region.record.parent == record.sequence:
        changes[id(region.record)] = dataclasses.replace(region.record)
    with Draft(media) as draft:
        for level, page, node in tables.nodes(media, record.root):
            if not any(tables.node_at(media, root, page, level) == node for root in kept):
                draft.free_page(node)
        if record.array:
            last = [page for page, _ in chain(media, record.array)][-1]
            draft.word(last * PAGE_BYTES, heir.array)
            changes[id(heir)].array = record.array
        for changed in changes.values():
            if changed.parent == record.sequence:
                changed.parent = record.parent
            draft.record(changed)
        draft.record(record, erase=True)
        draft.commit()
    for one in (*children, region.record):
        if changed_ := changes.get(id(one)):
            one.array, one.parent = changed_.array, changed_.parent
            snapshots.array_changed(one)
    snapshots.erased(record)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of neighbours."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][0] + found[-1][1]:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((number, 1))
    return found
