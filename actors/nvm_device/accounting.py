"""What snapshots take up, exactly: their own, what they share, and what deleting some of them would give back.

    usage(snapshots, record)                     # one snapshot
    preview(snapshots, [first, second])          # deleting exactly these

A block is a snapshot's own if no other snapshot and no running point refers to it. What several snapshots share with
each other alone belongs to none of them and comes back only when all of them go: `preview` of all of them counts it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from everram.actors.nvm_device import deletion, tables
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.tables import CHUNK_PAGES
from everram.actors.nvm_device.turns import Walk, at_once
from everram.actors.nvm_device.virtblocks import KIND_SHIFT, Place, words_of
from everram.runtime.memory.contract import PAGE_BYTES


@dataclass(slots=True)
class Freed:
    """What a deletion would give back."""

    memory_bytes: int = 0
    """Of old blocks."""
    storage_bytes: int = 0
    """Of purged ones."""


@dataclass(slots=True)
class Usage:
    """Of one snapshot. What it names = owned + shared; purged lies on storage, and is one or the other."""

    named_bytes: int = 0
    """All that it holds that is no hole."""
    owned_bytes: int = 0
    """Nobody else refers to it."""
    shared_bytes: int = 0
    """With other snapshots or the running point."""
    purged_bytes: int = 0
    """On storage."""


def preview(snapshots: Snapshots, records: Sequence[Record]) -> Freed:
    """Of one region's snapshots."""
    return at_once(preview_in_turns(snapshots, records))


def preview_in_turns(snapshots: Snapshots, records: Sequence[Record]) -> Walk[Freed]:
    places: Counter[int] = Counter()
    for dead in _dead(snapshots, records):
        yield
        places.update(word >> KIND_SHIFT for word in words_of(snapshots.media, dead))
    return Freed(places[Place.STORE] * PAGE_BYTES, places[Place.STORAGE] * PAGE_BYTES)


def usage(snapshots: Snapshots, record: Record) -> Usage:
    return at_once(usage_in_turns(snapshots, record))


def usage_in_turns(snapshots: Snapshots, record: Record) -> Walk[Usage]:
    media, region = snapshots.media, snapshots.region_of(record)
    found = Usage()
    broken_up = set()
    for first, leaf in tables.leaves(media, record.root):
        yield
        broken_up.add(first // CHUNK_PAGES)
        words = words_of(media, filter(None, tables.entries(media, leaf)))
        found.named_bytes += PAGE_BYTES * len(words)
        found.purged_bytes += PAGE_BYTES * sum(word >> KIND_SHIFT == Place.STORAGE for word in words)
    for offset, length in snapshots.arena_of(region.record.name).extents(0, record.size_bytes):
        at, end = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        while at < end:
            chunk = at // CHUNK_PAGES
            until = min(end, (chunk + 1) * CHUNK_PAGES)
            found.named_bytes += PAGE_BYTES * (until - at) * (chunk not in broken_up)
            at = until
    for dead in _dead(snapshots, [record]):
        yield
        found.owned_bytes += PAGE_BYTES * len(dead)
    found.shared_bytes = found.named_bytes - found.owned_bytes
    return found


def _dead(snapshots: Snapshots, records: Sequence[Record]) -> Iterator[set[int]]:
    """The virtblocks that only these snapshots name, a chunk at a time."""
    media = snapshots.media
    if not records:
        return
    region = snapshots.region_of(records[0])
    going = {record.sequence for record in records}
    # What is being deleted already keeps nothing, though its table is still there.
    kept = {region.record.root, *(one.root for one in snapshots.live(region) if one.sequence not in going)}
    chunks: defaultdict[int, set[int]] = defaultdict(set)
    for record in records:
        for first, leaf in tables.leaves(media, record.root, kept):
            chunks[first].add(leaf)
    for first, leaves in chunks.items():
        yield deletion.dead_virtblocks(snapshots, first, leaves, kept)
