"""The consistency check of a device's snapshots: everything that is reachable, against everything that is taken.

    findings, reached = finish(check(snapshots))     # plain sentences; none: all is as it has to be

It reads all tables, arrays and bitmaps, in steps between which these must not change, and changes nothing. What lies
on storage is verified by whoever can read it (`Reached.slots` are those that are referred to).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from everram.actors.nvm_device import purging, tables
from everram.actors.nvm_device.bitmap import BITS_PER_PAGE, Bitmap, ones
from everram.actors.nvm_device.media import (
    FIRST,
    PAGES_DIRECTORY,
    RECORDS_DIRECTORY,
    STORAGE_DIRECTORY,
    STORE_DIRECTORY,
    WORDS_PER_PAGE,
)
from everram.actors.nvm_device.records import Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.snapshots import Region, Snapshots
from everram.actors.nvm_device.tables import LEAF
from everram.actors.nvm_device.turns import Walk, at_once, slices
from everram.actors.nvm_device.virtblocks import Place, chain, location, pack_location
from everram.runtime.errors import DataLoss
from everram.runtime.memory.contract import PAGE_BYTES


@dataclass(slots=True)
class Reached:
    """What the tables refer to."""

    pages: set[int] = field(default_factory=set)
    blocks: dict[int, int] = field(default_factory=dict)
    """Block of the store -> virtblock."""
    slots: dict[int, int] = field(default_factory=dict)
    """Slot of the storage file -> virtblock."""
    named: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Virtblock -> (number of the region's record, page)."""
    in_arrays: set[int] = field(default_factory=set)
    """Virtblocks of pages that an array has."""


Finding = str | None
"""None: nothing was found, but it took a while."""


def check(snapshots: Snapshots) -> tuple[list[str], Reached]:
    """What is wrong, in sentences, and what was reached."""
    return at_once(check_in_turns(snapshots))


def check_in_turns(snapshots: Snapshots) -> Walk[tuple[list[str], Reached]]:
    findings: list[str] = []
    reached = Reached(pages=set(range(FIRST)))
    for directory in (PAGES_DIRECTORY, STORE_DIRECTORY, STORAGE_DIRECTORY, RECORDS_DIRECTORY):
        reached.pages.update(snapshots.media.directory(directory))
    seen: set[tuple[int, int]] = set()
    for record in _owners(snapshots):
        yield from _noting(findings, record, _arrays(snapshots, record, reached))
    for record in _owners(snapshots):
        yield from _noting(findings, record, _tables(snapshots, record, reached, seen))
    media = snapshots.media
    for virtblock, block, slot in zip(*purging.under_way(media), strict=True):
        reached.blocks.setdefault(block, virtblock)
        reached.slots.setdefault(slot, virtblock)
    unnamed: list[int] = []
    for some in slices(reached.in_arrays):
        unnamed += (virtblock for virtblock in some if virtblock not in reached.named)
        yield
    if unnamed:
        findings.append(f"{len(unnamed)} times no table names a virtblock, such as {min(unnamed)}")
    for region in snapshots.regions.values():
        if region.record.state is State.LIVE:
            yield from _noting(findings, region.record, _running(snapshots, region))
    findings += yield from _compared(media.pages, reached.pages, "page of the metadata")
    findings += yield from _compared(media.store, reached.blocks, "block of the store")
    findings += yield from _compared(media.storage, reached.slots, "slot of the storage file")
    return findings, reached


def _noting(findings: list[str], record: Record, looking: Iterator[Finding]) -> Walk[None]:
    """All that one look at a record finds."""
    try:
        for finding in looking:
            if finding is not None:
                findings.append(finding)
            yield
    except DataLoss as error:
        findings.append(f"{_described(record)}: {error.message}")


def _owners(snapshots: Snapshots) -> Iterator[Record]:
    yield from (region.record for region in snapshots.regions.values())
    yield from snapshots.records.values()


def _described(record: Record) -> str:
    if record.sequence:
        return f"snapshot {record.name or record.sequence}"
    return f"region {record.name}"


def _arrays(snapshots: Snapshots, record: Record, reached: Reached) -> Iterator[Finding]:
    for page, words in chain(snapshots.media, record.array):
        yield None
        if page in reached.pages:
            yield f"{_described(record)}: page {page} of its array is used for something else, too"
        reached.pages.add(page)
        reached.in_arrays.update(page * WORDS_PER_PAGE + at for at in range(1, WORDS_PER_PAGE) if words[at])
        yield None


def _tables(snapshots: Snapshots, record: Record, reached: Reached, seen: set[tuple[int, int]]) -> Iterator[Finding]:
    """`seen`: (level, node) of tables that were looked at before, with what lies below."""
    for level, first, node in tables.nodes(snapshots.media, record.root):
        yield None
        if (level, node) in seen:
            continue
        if node in reached.pages:
            yield f"{_described(record)}: page {node}, a node of its table, is used for something else, too"
        seen.add((level, node))
        reached.pages.add(node)
        if level == LEAF:
            yield from _leaf(snapshots, record, first, node, reached)
        yield None


def _leaf(snapshots: Snapshots, record: Record, first: int, leaf: int, reached: Reached) -> Iterator[str]:
    region = record.region if record.sequence else record.number
    for page, virtblock in enumerate(tables.entries(snapshots.media, leaf), first):
        if not virtblock or reached.named.get(virtblock) == (region, page):
            continue  # a hole, or seen in another leaf
        if virtblock not in reached.in_arrays:
            yield f"{_described(record)}, page {page}: its virtblock {virtblock} is in no array"
        elif virtblock in reached.named:
            yield f"{_described(record)}, page {page}: its virtblock {virtblock} is named for another page, too"
        else:
            reached.named[virtblock] = region, page
            if wrong := _placed(snapshots, page, virtblock, reached):
                yield f"{_described(record)}, page {page}: {wrong}"


def _placed(snapshots: Snapshots, page: int, virtblock: int, reached: Reached) -> str:
    """What is wrong with where a virtblock says that its content lies; empty if nothing is."""
    place, number = location(snapshots.media, virtblock)
    if place is Place.ARENA:
        return "" if number == page else f"its content is said to lie in page {number} of the arena"
    taken, what = (reached.blocks, "block") if place is Place.STORE else (reached.slots, "slot")
    if taken.setdefault(number, virtblock) != virtblock:
        return f"its {what} {number} has the content of another virtblock, too"
    return ""


def _running(snapshots: Snapshots, region: Region) -> Iterator[Finding]:
    """What lies in the arena is what the running point names, for its snapshots, too."""
    media = snapshots.media
    for first, leaf in tables.leaves(media, region.record.root):
        yield None
        running = tables.entries(media, leaf)
        for page, virtblock in enumerate(running, first):
            if virtblock and media.word(virtblock * WORD_BYTES) != pack_location(Place.ARENA, page):
                yield f"region {region.record.name}, page {page}: its virtblock {virtblock} names another place"
        for record in snapshots.live(region):
            yield None
            theirs = tables.leaf_of(media, record.root, first)
            if not theirs:
                yield f"{_described(record)}: it has no leaf for page {first}, its region has one"
            if theirs in (0, leaf):
                continue
            for page, (virtblock, own) in enumerate(zip(tables.entries(media, theirs), running, strict=True), first):
                if virtblock not in (0, own) and location(media, virtblock).place is Place.ARENA:
                    yield f"{_described(record)}, page {page}: its content is not what lies in the arena"
            yield None


def _compared(bitmap: Bitmap, reached: Iterable[int], what: str) -> Walk[list[str]]:
    """By pages of bits, as whole numbers: one by one only where they differ."""
    by_page: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(PAGE_BYTES))
    for some in slices(reached):
        for number in some:
            by_page[number // BITS_PER_PAGE][number % BITS_PER_PAGE >> 3] |= 1 << (number & 7)
        yield
    lost: list[int] = []
    free: list[int] = []
    for page in sorted({*by_page, *range(bitmap.pages)}):
        taken = bitmap.taken_of_page(page)
        wanted = int.from_bytes(by_page[page], "little")
        lost += _numbers(page, taken & ~wanted)
        free += _numbers(page, wanted & ~taken)
        yield
    findings = []
    if lost:
        findings.append(f"{len(lost)} times a {what} is taken and nothing refers to it, such as {lost[0]}")
    if free:
        findings.append(f"{len(free)} times a {what} is referred to and not taken, such as {free[0]}")
    return findings


def _numbers(page: int, bits: int) -> Iterator[int]:
    return (page * BITS_PER_PAGE + first + at for first, count in ones(bits) for at in range(count))


def is_at_rest(snapshots: Snapshots) -> bool:
    """Whether nothing is being deleted or reverted."""
    states = {record.state for record in _owners(snapshots)}
    return states <= {State.LIVE}
