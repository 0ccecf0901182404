"""Snapshots of regions: taken in constant time, and kept when the running point is written to. Awaits nothing.

    snapshots = Snapshots.open(media, arena_of, blocks)
    taken = snapshots.take([Taking("region.0f3c.ledger", "before", size_bytes)], created_ns)
    snapshots.before_write("region.0f3c.ledger", page)      # and only then may the page be stored to
    snapshots.locate(taken[0], page)                        # where a snapshot's content of a page lies

The running point of a region lies in its arena, page by page at the same offset, and stays there: on the first write
after a snapshot the OLD content is copied to a block of the store and the virtblock that all snapshots share is
pointed at it, and the running point gets a virtblock of its own (large-page preservation, US10705954). Mappings never
change. The copy is persistent before the virtblock names it, and both before the write.

How snapshots are deleted is in `deletion`, how the running point goes back to one in `reverting`, how old blocks leave
the memory in `purging`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from everram.actors.nvm_device import tables
from everram.actors.nvm_device.draft import RECORDS_PER_PAGE, Draft
from everram.actors.nvm_device.media import NEXT_SEQUENCE_AT, RECORDS_DIRECTORY, WORDS_PER_PAGE, Media
from everram.actors.nvm_device.records import NAME_BYTES_MAX, RECORD_BYTES, Kind, Record, State
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.actors.nvm_device.tables import CHUNK_PAGES, LEAF, LEVELS, entry_offset
from everram.actors.nvm_device.virtblocks import Array, Location, Place, location, pack_location
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from everram.runtime.memory.contract import PAGE_BYTES


class Arena(Protocol):
    """Where a region's running point lies: `environment.MemoryObject`, or a test's own."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]: ...

    def punch(self, offset: int, length: int) -> None: ...


class Blocks(Protocol):
    """The store: blocks of PAGE_BYTES that hold old content."""

    def load(self, number: int) -> bytes: ...

    def load_into(self, first: int, target: memoryview) -> None:
        """So many neighbours as there is room for."""

    def view(self, first: int, count: int) -> memoryview:
        """So many neighbours where they lie, until they are discarded."""

    def persist(self, number: int, data: bytes) -> None:
        """Persistent when this returns. Raises ResourceExhausted where the machine has no memory left."""

    def discard(self, first: int, count: int) -> None:
        """The content of so many is not needed any more."""


@dataclass(frozen=True, slots=True)
class Taking:
    """One snapshot to be taken."""

    arena: str
    name: str
    size_bytes: int
    epoch: int = 0
    lsn: int = 0
    whole: bool = True
    """Otherwise it counts only after `took`: see State.TAKING."""


@dataclass(slots=True)
class Region:
    """The running point of a region that has, or had, snapshots."""

    record: Record
    array: Array
    owned: set[int] = field(default_factory=set)
    """Nodes of its page table that are known to be its alone."""
    leaves: dict[int, int] = field(default_factory=dict)
    """By chunk: the leaves among them."""
    near: Sequence[Record] | None = None
    """The snapshots that its running point may share something with that it shares with no other; None: to be found."""

    def forget(self) -> None:
        """Its snapshots, or its table, are others from now on."""
        self.owned.clear()
        self.leaves.clear()
        self.near = None


HOLE = Location(Place.FREE, 0)
SNAPSHOTS_MAX = 1000
"""Of a region. Each has a table, and where the first page of an extent is written to, one change reaches all of them;
so does the change that deletes all of them at once."""


def check_not_reverting(region: Region) -> None:
    """Raises FailedPrecondition."""
    if region.record.state is State.REVERTING:
        raise FailedPrecondition("this region is being reverted: wait until that has ended")


class Snapshots:
    """See the module."""

    def __init__(self, media: Media, arena_of: Callable[[str], Arena], blocks: Blocks) -> None:
        self.media = media
        self.blocks = blocks
        self.arena_of = arena_of
        """The arena of that name, open. Raises NotFound."""
        self.regions: dict[str, Region] = {}
        """By the name of their arena."""
        self.records: dict[int, Record] = {}
        """Of snapshots, by sequence: those that are being deleted, too."""
        self._live: dict[int, list[Record]] = {}
        """Those that are not, by their region's record, latest first."""
        self._arrays: dict[int, Array] = {}
        """Of snapshots, by sequence: those that grow still, because extents of theirs are broken up."""
        self._free_numbers: list[int] = []
        self.purging: set[int] = set()
        """Blocks of the store that are on their way to storage."""
        self.given_up = 0
        """How often a table has let go of a node, since this host began: another may have it alone from then on."""
        self.blocks_copied = 0
        self.entry_updates = 0
        """Virtblocks pointed elsewhere, since this host began."""

    @staticmethod
    def open(media: Media, arena_of: Callable[[str], Arena], blocks: Blocks) -> Snapshots:
        """Raises DataLoss."""
        opened = Snapshots(media, arena_of, blocks)
        opened._load()
        return opened

    def _load(self) -> None:
        snapshots: list[Record] = []
        for number_of_page, page in enumerate(self.media.directory(RECORDS_DIRECTORY)):
            content = self.media.load_page(page)
            for place in range(RECORDS_PER_PAGE):
                number = number_of_page * RECORDS_PER_PAGE + place
                record = Record.unpack(number, content[place * RECORD_BYTES : (place + 1) * RECORD_BYTES])
                if record is None:
                    self._free_numbers.append(number)
                elif record.kind is Kind.REGION:
                    self._add_region(record)
                else:
                    snapshots.append(record)
        self._free_numbers.reverse()
        for record in sorted(snapshots, key=lambda one: one.sequence):
            if record.region not in self._live:
                raise DataLoss(f"snapshots: {record.name!r} (record {record.number}) belongs to no region")
            self._add_snapshot(record)

    def _add_region(self, record: Record) -> None:
        self.regions[record.name] = Region(record, Array(self.media, record.array))
        self._live.setdefault(record.number, [])

    def _add_snapshot(self, record: Record) -> None:
        self.records[record.sequence] = record
        if record.state is not State.DELETING:
            self._live[record.region].insert(0, record)

    # -- looking

    def live(self, region: Region) -> Sequence[Record]:
        """Its snapshots, latest first, without those that are being deleted; none of a region that is forgotten."""
        return self._live.get(region.record.number, ())

    def of(self, arena: str) -> Sequence[Record]:
        region = self.regions.get(arena)
        return [] if region is None else self.live(region)

    def find(self, arena: str, name: str) -> Record:
        """Raises NotFound."""
        for record in self.of(arena):
            if record.name == name:
                return record
        known = ", ".join(sorted(record.name for record in self.of(arena))) or "none"
        raise NotFound(f"there is no snapshot {name!r} of this region (there is: {known})")

    def region_of(self, record: Record) -> Region:
        return next(region for region in self.regions.values() if region.record.number == record.region)

    def locate(self, record: Record, page: int) -> Location:
        """Where a snapshot's content of a page lies; HOLE if it is zeros. To be read before anything is awaited."""
        if not tables.leaf_of(self.media, record.root, page):
            return Location(Place.ARENA, page)
        virtblock = self.virtblock(record, page)
        return location(self.media, virtblock) if virtblock else HOLE

    def virtblock(self, record: Record, page: int) -> int:
        """Which a table names for a page, and what proves a slot on storage; 0: an extent of the arena, or a hole."""
        leaf = tables.leaf_of(self.media, record.root, page)
        return self.media.word(entry_offset(leaf, page, LEAF)) if leaf else 0

    def is_settled(self, arena: str, page: int) -> bool:
        """Whether the page may be written to without more ado: no snapshot needs what is there."""
        region = self.regions.get(arena)
        if region is None or not self.live(region):
            return True
        leaf = tables.leaf_of(self.media, region.record.root, page)
        return bool(leaf) and self._is_private(region, page, self.media.word(entry_offset(leaf, page, LEAF)))

    def _is_private(self, region: Region, page: int, virtblock: int) -> bool:
        return bool(virtblock) and not self.is_shared(region, page, virtblock)

    def is_shared(self, region: Region, page: int, virtblock: int) -> bool:
        """Whether a snapshot of the region names this virtblock for this page. The running point does."""
        for record in self.near(region):
            leaf = tables.leaf_of(self.media, record.root, page)
            if leaf and self.media.word(entry_offset(leaf, page, LEAF)) == virtblock:
                return True
        return False

    def near(self, region: Region) -> Sequence[Record]:
        """Those that have to be asked, of any number.

        Who names a virtblock (or has a node) is connected in the tree of who went on from whom, for it is inherited
        until it is replaced. So if anybody shares it with the running point, then so does whoever comes first on the
        way there: the nearest snapshot above that was not deleted, or below one that was, on the way down.
        """
        if region.near is None:
            above = self._live_above(region.record)
            region.near = [
                record for record in self.live(region) if above in (record.sequence, self._live_above(record))
            ]
        return region.near

    def _live_above(self, record: Record) -> int:
        """The nearest snapshot above that is not being deleted; 0: none."""
        while record.parent and self.records[record.parent].state is State.DELETING:
            record = self.records[record.parent]
        return record.parent

    # -- taking

    def take(self, takings: Sequence[Taking], created_ns: int) -> list[Record]:
        """All of them at this instant, or none. Every page of their regions has to be write-protected before its
        guests go on. Raises InvalidArgument, AlreadyExists, FailedPrecondition, ResourceExhausted."""
        if len({taking.arena for taking in takings}) != len(takings):
            raise InvalidArgument("a region is named twice: one instant makes one snapshot of each")
        for taking in takings:
            self._check(taking)
        for taking in takings:
            self.region(taking.arena)
        self._make_places(len(takings))
        sequence = self.media.word(NEXT_SEQUENCE_AT)
        taken: list[Record] = []
        with Draft(self.media) as draft:
            for at, taking in enumerate(takings):
                region = self.regions[taking.arena].record
                record = Record(
                    number=self._free_numbers[-1 - at],
                    kind=Kind.SNAPSHOT,
                    name=taking.name,
                    root=region.root,
                    array=region.array,
                    state=State.LIVE if taking.whole else State.TAKING,
                    region=region.number,
                    sequence=sequence + at,
                    parent=region.parent,
                    size_bytes=taking.size_bytes,
                    epoch=taking.epoch,
                    lsn=taking.lsn,
                    created_ns=created_ns,
                )
                draft.record(record)
                draft.record(dataclasses.replace(region, array=0, parent=record.sequence))
                taken.append(record)
            draft.word(NEXT_SEQUENCE_AT, sequence + len(takings))
            draft.commit()
        del self._free_numbers[-len(takings) :]
        for record in taken:
            region_ = self.region_of(record)
            region_.record.array, region_.record.parent = 0, record.sequence
            self._arrays[record.sequence] = region_.array
            region_.array = Array(self.media, 0)
            region_.forget()
            self._add_snapshot(record)
        return taken

    def took(self, records: Iterable[Record]) -> None:
        """What they hold was copied out."""
        whole = [record for record in records if record.state is State.TAKING]
        with Draft(self.media) as draft:
            for record in whole:
                draft.record(dataclasses.replace(record, state=State.LIVE))
            draft.commit()
        for record in whole:
            record.state = State.LIVE

    def half_taken(self) -> list[Record]:
        """What a host has left that died before `took`."""
        return [record for _, record in sorted(self.records.items()) if record.state is State.TAKING]

    def _check(self, taking: Taking) -> None:
        if any(record.name == taking.name for record in self.of(taking.arena)):
            raise AlreadyExists(
                f"there is a snapshot {taking.name!r} of this region: choose another name, or remove it"
            )
        if len(taking.name.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(f"a snapshot's name has {NAME_BYTES_MAX} bytes at most")
        if len(self.of(taking.arena)) >= SNAPSHOTS_MAX:
            raise ResourceExhausted(f"this region has {SNAPSHOTS_MAX} snapshots, which is the most: remove some")
        region = self.regions.get(taking.arena)
        if region is not None:
            check_not_reverting(region)

    def region(self, arena: str) -> Region:
        """Known from now on, if it was not yet. Raises ResourceExhausted."""
        if arena not in self.regions:
            self._make_places(1)
            with Draft(self.media) as draft:
                record = Record(self._free_numbers[-1], Kind.REGION, arena, root=draft.new_page())
                draft.record(record)
                draft.commit()
            self._free_numbers.pop()
            self._add_region(record)
        return self.regions[arena]

    def forget_region(self, arena: str) -> None:
        """A region without snapshots goes for good. Raises FailedPrecondition."""
        region = self.regions.get(arena)
        if region is None:
            return
        if any(record.region == region.record.number for record in self.records.values()):
            names = ", ".join(record.name for record in self.live(region)) or "one that is being deleted"
            raise FailedPrecondition(f"this region has snapshots ({names}): remove them first")
        with Draft(self.media) as draft:
            draft.free_page(region.record.root)  # an empty root: the last snapshot took everything else with it
            draft.record(region.record, erase=True)
            draft.commit()
        del self.regions[arena], self._live[region.record.number]
        self._free_numbers.append(region.record.number)

    # -- for deletions and reversions, once their changes are committed

    def next_numbers(self, count: int) -> list[int]:
        """Places for so many records more. Raises ResourceExhausted."""
        self._make_places(count, spare=True)
        return self._free_numbers[-count:] if count else []

    def make_record(self, record: Record) -> None:
        """Of a table that was retired."""
        self._free_numbers.remove(record.number)
        self._add_snapshot(record)

    def dropped(self, record: Record) -> None:
        """It is being deleted: nobody sees it any more."""
        self._live[record.region] = [one for one in self._live[record.region] if one is not record]
        self.region_of(record).forget()

    def erased(self, record: Record) -> None:
        """There is nothing left of it."""
        del self.records[record.sequence]
        self._arrays.pop(record.sequence, None)
        self._free_numbers.append(record.number)

    def array_changed(self, record: Record) -> None:
        """It has inherited from another."""
        if record.kind is Kind.SNAPSHOT:
            self._arrays.pop(record.sequence, None)
        else:
            self.regions[record.name].array.reset(record.array)

    def went_on(self, region: Region, record: Record) -> None:
        """The running point has another table."""
        self.given_up += 1
        region.record = record
        region.array = Array(self.media, record.array)
        region.forget()

    def _make_places(self, count: int, *, spare: bool = False) -> None:
        while len(self._free_numbers) < count:
            pages = len(self.media.directory(RECORDS_DIRECTORY))
            if pages == WORDS_PER_PAGE:
                raise ResourceExhausted("no more snapshots can be recorded: remove some")
            with Draft(self.media, spare=spare) as draft:
                page = draft.new_page()
                draft.word(RECORDS_DIRECTORY * PAGE_BYTES + pages * WORD_BYTES, page)
                draft.commit()
            first = pages * RECORDS_PER_PAGE
            self._free_numbers[:0] = reversed(range(first, first + RECORDS_PER_PAGE))

    # -- writing

    def before_write(
        self, arena: str, page: int, old: bytes | None = None, holes: Collection[int] = frozenset()
    ) -> bool:
        """Keep what a page holds for the snapshots that need it. The page may be stored to when this returns. True if
        its content was copied. `old`: what it held before, where it was stored to since; `holes`: pages that were zeros
        until then.

        Raises ResourceExhausted; then nothing has changed and the store has to wait. Raises FailedPrecondition for a
        region that is being reverted.
        """
        region = self.regions.get(arena)
        if region is None or not self.live(region):
            return False
        check_not_reverting(region)
        leaf = region.leaves.get(page // CHUNK_PAGES) or tables.leaf_of(self.media, region.record.root, page)
        if not leaf:
            self._break_extent(region, page, holes)
            leaf = tables.leaf_of(self.media, region.record.root, page)
        virtblock = self.media.word(entry_offset(leaf, page, LEAF))
        if virtblock and not self.is_shared(region, page, virtblock):
            return False
        try:
            return self._make_private(region, page, virtblock, old)
        except BaseException:
            region.array.reset(region.record.array)
            raise

    def catch_up(self, arena: str) -> Generator[None, None, None]:
        """Of a region whose stores nobody sees: the running point gets virtblocks for pages that are holes no more. In
        turns: meanwhile nobody may store to it. Raises ResourceExhausted."""
        region = self.regions.get(arena)
        if region is None:
            return
        for first, _ in list(tables.leaves(self.media, region.record.root)):
            yield
            if self.regions.get(arena) is not region or not tables.leaf_of(self.media, region.record.root, first):
                continue  # its snapshots were removed since
            try:
                for page in self._present(region, first):
                    if not self.virtblock(region.record, page):
                        self._make_private(region, page, 0)
            except BaseException:
                region.array.reset(region.record.array)
                raise

    def _make_private(self, region: Region, page: int, virtblock: int, old: bytes | None = None) -> bool:
        """`virtblock`: which snapshots name for what the page holds; 0 if it is a hole."""
        media, record = self.media, region.record
        copied = bool(virtblock) and location(media, virtblock).place is Place.ARENA
        with Draft(media) as draft:
            if copied:
                block = draft.new_block()
                content = self.arena_of(record.name).read(page * PAGE_BYTES, PAGE_BYTES) if old is None else old
                self.blocks.persist(block, content)
                draft.word(virtblock * WORD_BYTES, pack_location(Place.STORE, block))
            (own,) = region.array.take(draft, 1)
            draft.word(own * WORD_BYTES, pack_location(Place.ARENA, page))
            leaf = region.leaves.get(page // CHUNK_PAGES)
            if leaf is None:
                nodes = self._own_path(draft, region, page)
                leaf = nodes[-1]
                record = dataclasses.replace(record, root=nodes[0])
            draft.word(entry_offset(leaf, page, LEAF), own)
            if region.array.head != record.array:
                record = dataclasses.replace(record, array=region.array.head)
            if record is not region.record:
                draft.record(record)
            draft.commit()
        if record is not region.record:
            region.record = record
        if page // CHUNK_PAGES not in region.leaves:
            region.owned.update(nodes)
            region.leaves[page // CHUNK_PAGES] = leaf
        self.blocks_copied += copied
        self.entry_updates += copied
        return copied

    def _own_path(self, draft: Draft, region: Region, page: int) -> list[int]:
        """The nodes from the root to a page's leaf as they are when those that snapshots share are copied."""
        nodes = tables.path(self.media, region.record.root, page)
        shared_from = next((at for at, node in enumerate(nodes) if not self._owns(region, node, page, at)), len(nodes))
        self.given_up += shared_from < len(nodes)
        for at in range(shared_from, len(nodes)):
            nodes[at] = draft.new_page(self.media.load_page(nodes[at]))
            if at > 0:
                draft.word(entry_offset(nodes[at - 1], page, LEVELS - at + 1), nodes[at])
        return nodes

    def _owns(self, region: Region, node: int, page: int, depth: int) -> bool:
        """Whether no snapshot has this node of the running point's table."""
        if node in region.owned:
            return True
        level = LEVELS - depth
        if any(tables.node_at(self.media, record.root, page, level) == node for record in self.near(region)):
            return False
        region.owned.add(node)
        return True

    def _break_extent(self, region: Region, page: int, holes: Collection[int]) -> None:
        """Give the pages of a chunk that lies in the arena for everybody virtblocks of their own, in a leaf that
        everybody shares. They belong to the first snapshot, which found them there."""
        media, first = self.media, page // CHUNK_PAGES * CHUNK_PAGES
        oldest = self.live(region)[-1]
        array = self._arrays.setdefault(oldest.sequence, Array(media, oldest.array))
        try:
            with Draft(media) as draft:
                leaf = draft.new_page()
                present = [at for at in self._present(region, first) if at not in holes]
                for at, virtblock in zip(present, array.take(draft, len(present)), strict=True):
                    draft.word(virtblock * WORD_BYTES, pack_location(Place.ARENA, at))
                    draft.word(entry_offset(leaf, at, LEAF), virtblock)
                self._insert(draft, region, first, leaf)
                changed = dataclasses.replace(oldest, array=array.head)
                if changed != oldest:
                    draft.record(changed)
                draft.commit()
        except BaseException:
            array.reset(oldest.array)
            raise
        oldest.array = array.head

    def _present(self, region: Region, first: int) -> list[int]:
        """The pages of a chunk that are no holes."""
        start, end = first * PAGE_BYTES, (first + CHUNK_PAGES) * PAGE_BYTES
        extents = self.arena_of(region.record.name).extents(start, end)
        pages = (range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)) for offset, length in extents)
        return [page for run in pages for page in run]

    def _insert(self, draft: Draft, region: Region, page: int, leaf: int) -> None:
        """Into the tables of everybody, none of which has anything there."""
        nodes: Iterable[int] = {region.record.root, *(record.root for record in self.live(region))}
        for level in range(LEVELS, LEAF, -1):
            below = {self.media.word(entry_offset(node, page, level)) for node in nodes}
            if below == {0}:
                for above in range(level, LEAF, -1):
                    child = leaf if above - 1 == LEAF else draft.new_page()
                    for node in nodes:
                        draft.word(entry_offset(node, page, above), child)
                    nodes = {child}
                return
            if 0 in below:
                raise DataLoss(f"snapshots: some tables of {region.record.name} have page {page}, others do not")
            nodes = below
        raise DataLoss(f"snapshots: a table of {region.record.name} has page {page} already")
