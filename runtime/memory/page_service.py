"""The page service: serves the page faults of guests' tracked regions. One per host; it owns every userfaultfd.

    service = PageService(environment.memory)
    service.attach(event)                            # an "attached" event of the machine; then `machine.admit`
    service.written_pages("0f3c...", "scratch")      # exact, also after the host was killed
    service.reset("0f3c...", "scratch")              # count from zero

What is decided on a fault, and why a page is protected at all, is in `reasons`, what belongs into a page that is
missing in `absent`; this module moves faults and decisions between the kernel and them. Protection is lifted page by
page and not in larger clusters, although one fault for 64 KiB would be cheaper for a guest that writes sequentially: a
page that was unprotected with its neighbour would count as written although it was not, and a snapshot would save
content that never changes. Neighbouring pages of one batch do share a system call.

A new host attaches what the machine kept for it in the same way. The protection is still in place (it lives in the
guest's page tables, not in the host, and is made before anything is called protected), so if the machine says that an
earlier host served the guest nothing is protected again, which would take long for much memory. Every thread blocked on
a fault that the old host read but did not resolve is woken once and faults again.

Not seen: stores by a forked child, by a second mapping, by write(2) on the descriptor, and holes that the guest
punches.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from everram.runtime.environment import MachineEvent, Memory, TrackedRange
from everram.runtime.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from everram.runtime.formats.page_classes import MEMORY_LABEL
from everram.runtime.formats.pages import PageTable, State, table_name
from everram.runtime.memory import userfaultfd
from everram.runtime.memory.absent import AbsentPages, Fill, keeper_of
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import TRACKED_PREFIX
from everram.runtime.memory.guard import ArenaKeeper, PageGuard
from everram.runtime.memory.paging import PagedMemory, Pager
from everram.runtime.memory.reasons import Keeper, NoteOnly, Reason, ReasonedPages
from everram.runtime.memory.userfaultfd import FaultFlag, Feature, Mode, PageFault
from everram.runtime.runs import runs as runs_of

FAULTS_PER_TURN = 16
"""Then the loop goes round: leases and heartbeats must not wait behind a guest that writes everywhere."""
MAX_PROTECTED_RUNS = 5000
"""Protecting a range costs 2-3 us however short, protecting 1 GiB at once about 20 ms: beyond this many, one call for
everything is cheaper. Pages without a reason then cost one fault that lifts the protection again."""
FEATURES = Feature.PAGEFAULT_FLAG_WP | Feature.WP_SHMEM | Feature.MISSING_SHMEM
ZEROS = bytes(PAGE_BYTES)
TRACKING: Mapping[Reason, Keeper] = {Reason.UNWRITTEN: NoteOnly()}


class FaultKernel(Protocol):
    """What the service needs of the kernel: module `userfaultfd`, or a test's own."""

    def handshake(self, descriptor: int, wanted: Feature) -> Feature | None: ...

    def fill(self, descriptor: int, address: int, data: bytes, *, protected: bool) -> None: ...

    def poison(self, descriptor: int, address: int, length: int) -> None: ...

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None: ...

    def protect(self, descriptor: int, address: int, length: int) -> None: ...

    def unprotect(self, descriptor: int, address: int, length: int) -> None: ...

    def wake(self, descriptor: int, address: int, length: int) -> None: ...

    def read_faults(self, descriptor: int, limit: int) -> list[PageFault]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _ServedRange:
    """One mapping of a tracked region in a guest's address space."""

    region: str
    arena: str
    """Name of the memory that is mapped."""
    address: int
    length: int
    pages: ReasonedPages
    lacking: set[int]
    """Pages with a thread that waits for what belongs there."""

    def address_of(self, page: int) -> int:
        return self.address + page * PAGE_BYTES

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.length


@dataclass(frozen=True, slots=True)
class _ServedGuest:
    descriptor: int
    ranges: tuple[_ServedRange, ...]
    """Ascending by address, disjoint."""
    paged: PagedMemory | None = None
    """Its volatile memory."""

    def find(self, address: int) -> _ServedRange | None:
        index = bisect_right(self.ranges, address, key=lambda served: served.address) - 1
        return self.ranges[index] if index >= 0 and address in self.ranges[index] else None


class PageService:
    """Serves faults on the running loop. Errors of a guest's making end its service, never the host."""

    def __init__(
        self,
        memory: Memory,
        *,
        kernel: FaultKernel = userfaultfd,
        keepers: Mapping[Reason, Keeper] = TRACKING,
        guard: PageGuard | None = None,
    ) -> None:
        """`keepers`: of regions with a page table; `guard`: asked before any region is stored to."""
        self.guard = guard if guard is not None else PageGuard()
        self.absent: list[AbsentPages] = []
        """Asked in this order for pages that are missing."""
        self._memory = memory
        self._kernel = kernel
        self._keepers = keepers
        self._guests: dict[str, _ServedGuest] = {}
        self._unserved: dict[str, tuple[str, ...]] = {}
        """Arenas of guests whose stores nobody sees."""
        self._awaited: set[str] = set()
        """Guests that ran before this host did, whose mappings are not all known yet."""
        self._pager: Pager | None = None

    def use_pager(self, pager: Pager | None) -> None:
        """Who pages guests' volatile memory from now on; told of those that are there already."""
        self._pager = pager
        if pager is not None:
            for guest_id, guest in self._guests.items():
                if guest.paged is not None:
                    pager.attached(guest_id, guest.paged)

    def attach(self, event: MachineEvent) -> None:
        """Serve the ranges of an "attached" event from now on; the descriptor is the service's own, whatever happens.

        Takes a fresh guest and one that an earlier host served alike. Raises InvalidArgument for ranges that do not fit
        their regions, FailedPrecondition if the kernel refuses (the guest has ended, or asked for something else).
        """
        self.detach(event.guest_id)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, event.userfaultfd)
            os.set_blocking(event.userfaultfd, False)
            ranges, paged = [], None
            for tracked in event.ranges:
                if tracked.label == MEMORY_LABEL:
                    _check_range(tracked, self._memory.open(tracked.memory).size_bytes // PAGE_BYTES)
                    paged = PagedMemory.of(event.userfaultfd, event.pid, tracked)
                    continue
                pages = self._pages(event.guest_id, tracked)
                if pages.table is not None:
                    undo.callback(pages.table.close)
                _check_range(tracked, pages.pages)
                ranges.append(
                    _ServedRange(tracked.label, tracked.memory, tracked.address, tracked.length_bytes, pages, set())
                )
            guest = _ServedGuest(event.userfaultfd, tuple(sorted(ranges, key=lambda served: served.address)), paged)
            _check_disjoint(guest.ranges)
            self._take_over(guest, protect=not event.served)
            asyncio.get_running_loop().add_reader(guest.descriptor, self._serve, event.guest_id, guest)
            undo.pop_all()
        self._guests[event.guest_id] = guest
        if paged is not None and self._pager is not None:
            self._pager.attached(event.guest_id, paged)

    def _pages(self, guest_id: str, tracked: TrackedRange) -> ReasonedPages:
        """Of a region with a page table, or of one whose stores are not noted."""
        knowing = ArenaKeeper(self.guard, tracked.memory)
        name = table_name(guest_id, tracked.label)
        if name in self._memory.names():
            table = PageTable.open(self._memory.open(name).map())
            return ReasonedPages(table.pages, table, self._keepers, knowing)
        return ReasonedPages(self._memory.open(tracked.memory).size_bytes // PAGE_BYTES, None, {}, knowing)

    def detach(self, guest_id: str) -> None:
        """Stop serving a guest that has ended or leaves; what was written stays known. Unknown guests are no error."""
        for arena in self._unserved.pop(guest_id, ()):
            self.guard.cover(arena)
        guest = self._guests.pop(guest_id, None)
        if guest is None:
            return
        if guest.paged is not None:
            guest.paged.gone = True
            if self._pager is not None:
                self._pager.detached(guest_id)
        asyncio.get_running_loop().remove_reader(guest.descriptor)
        os.close(guest.descriptor)
        for served in guest.ranges:
            if served.pages.table is not None:
                served.pages.table.close()

    def unserved(self, guest_id: str, arenas: Sequence[str]) -> None:
        """A guest has attached without letting all faults of these memories be served: nobody sees its stores to them,
        until it is detached."""
        for arena in self._unserved.pop(guest_id, ()):
            self.guard.cover(arena)
        self._unserved[guest_id] = tuple(arenas)
        for arena in arenas:
            self.guard.expose(arena)

    def wait_for(self, guest_ids: Iterable[str]) -> None:
        """These guests run on and store, though nobody serves them yet: until `all_came` nothing is said of what they
        map. What an earlier host has protected stays so."""
        self._awaited.update(guest_ids)

    def all_came(self) -> None:
        """Whoever ran before this host did is served by now, or known to be unserved."""
        self._awaited.clear()

    def _is_awaited(self, arena: str) -> bool:
        return any(arena.startswith(f"{TRACKED_PREFIX}{guest_id}.") for guest_id in self._awaited)

    def close(self) -> None:
        """Detach everything. Guests stay protected as long as somebody else, the machine, keeps their descriptors."""
        for guest_id in list(self._guests):
            self.detach(guest_id)

    def is_served(self, guest_id: str, region: str) -> bool:
        """Over its whole length: a guest that names less of it stores to the rest unseen."""
        return any(served.length == served.pages.pages * PAGE_BYTES for served in self._served(guest_id, region))

    def written_pages(self, guest_id: str, region: str) -> int | None:
        """Pages of a region stored to since tracking began or was last reset; None if it has no page table."""
        with contextlib.closing(_Borrowed(self._memory, guest_id, region)) as borrowed:
            return None if borrowed.table is None else borrowed.table.count(State.WRITTEN)

    def reset(self, guest_id: str, region: str) -> None:
        """Count from zero: pages stored to from now on. Exact also while the guest runs.

        Everything is protected before anything is forgotten: a store after that blocks, and is noted on its fault.
        Raises NotFound if the region has no page table, Unavailable if the guest's memory cannot be protected.
        """
        self.protect(guest_id, region)
        with contextlib.closing(_Borrowed(self._memory, guest_id, region)) as borrowed:
            if borrowed.table is None:
                raise NotFound(f"region {region} of guest {guest_id} is not tracked")
            borrowed.table.clear(State.WRITTEN)

    def protect(self, guest_id: str, region: str) -> None:
        """From the return of this call on the guest's next store to any page is asked about. Raises Unavailable."""
        for served in self._served(guest_id, region):
            try:
                self._kernel.protect(self._guests[guest_id].descriptor, served.address, served.length)
            except OSError as error:
                raise Unavailable(f"{region} cannot be protected: its guest is ending ({error.strerror})") from error

    def protect_arena(self, arena: str) -> bool:
        """Every page of a memory object, as `protect_pages`."""
        if self._is_awaited(arena):
            return False
        for guest in list(self._guests.values()):
            for served in guest.ranges:
                if served.arena == arena:
                    try:
                        self._kernel.protect(guest.descriptor, served.address, served.length)
                    except OSError:
                        return False
        return True

    def protect_pages(self, arena: str, pages: Sequence[int]) -> bool:
        """Of a memory object, whoever maps it, ascending: the next store to each is asked about. False if that cannot
        be said, as a guest is ending or has yet to come."""
        if self._is_awaited(arena):
            return False
        runs = runs_of(pages)
        for guest in list(self._guests.values()):
            for served in guest.ranges:
                if served.arena != arena:
                    continue
                end = served.length // PAGE_BYTES
                try:
                    for first, count in runs:
                        if first < end:
                            length = min(count, end - first) * PAGE_BYTES
                            self._kernel.protect(guest.descriptor, served.address + first * PAGE_BYTES, length)
                except OSError:
                    return False
        return True

    def retry(self, guest_id: str, region: str) -> None:
        """A keeper that said "not yet" can go on: ask again for the pages whose threads wait."""
        for served in self._served(guest_id, region):
            guest = self._guests[guest_id]
            for page in sorted(served.lacking):
                if page in served.lacking:  # not brought with another
                    self._bring(guest, served, page)
            self._lift(guest, served, served.pages.retry())

    def retry_all(self) -> None:
        for guest_id, guest in list(self._guests.items()):
            for served in guest.ranges:
                self.retry(guest_id, served.region)

    def waiting_pages(self) -> int:
        """Whose threads wait because a keeper said "not yet"."""
        return sum(len(served.pages.waiting) for guest in self._guests.values() for served in guest.ranges)

    def _served(self, guest_id: str, region: str) -> list[_ServedRange]:
        guest = self._guests.get(guest_id)
        return [] if guest is None else [served for served in guest.ranges if served.region == region]

    def _take_over(self, guest: _ServedGuest, *, protect: bool) -> None:
        """Register and protect what is not yet, then have every blocked thread try again."""
        try:
            self._kernel.handshake(guest.descriptor, FEATURES)
            for served in guest.ranges:
                self._kernel.register(guest.descriptor, served.address, served.length, self._mode(served.arena))
                for first_page, count in _runs_to_protect(served) if protect else ():
                    self._kernel.protect(guest.descriptor, served.address + first_page * PAGE_BYTES, count * PAGE_BYTES)
            for served in guest.ranges:
                self._kernel.wake(guest.descriptor, served.address, served.length)
        except OSError as error:
            raise FailedPrecondition(
                f"the faults of this guest cannot be served: {error.strerror}; its mapped regions are not tracked"
            ) from error

    def _mode(self, arena: str) -> Mode:
        lacks = any(keeper.may_lack(arena) for keeper in self.absent)
        return Mode.WRITE_PROTECT | Mode.MISSING if lacks else Mode.WRITE_PROTECT

    def _serve(self, guest_id: str, guest: _ServedGuest) -> None:
        """The descriptor is readable: resolve at most one turn's faults."""
        try:
            faults = self._kernel.read_faults(guest.descriptor, FAULTS_PER_TURN)
            liftable: dict[_ServedRange, set[int]] = {}
            for fault in faults:
                if guest.paged is not None and fault.address in guest.paged:
                    page, protected = guest.paged.page_of(fault)
                    if self._pager is not None:  # without one it waits: whoever comes has it told again
                        self._pager.fault(guest_id, page, protected=protected)
                    continue
                served = guest.find(fault.address)
                if served is None:
                    continue  # of a range that nobody registered: impossible, and nothing to resolve
                page = (fault.address - served.address) // PAGE_BYTES
                if not fault.flags & FaultFlag.PROTECTED or keeper_of(self.absent, served.arena, page):
                    self._bring(guest, served, page)
                elif served.pages.on_store(page):
                    liftable.setdefault(served, set()).add(page)
            for served, pages in liftable.items():
                self._lift(guest, served, sorted(pages))
        except OSError as error:
            self._end_of(guest_id, error)

    # -- pages that are missing

    def _bring(self, guest: _ServedGuest, served: _ServedRange, page: int) -> None:
        """A thread waits for it."""
        keeper = keeper_of(self.absent, served.arena, page)
        found = keeper.fill(served.arena, page) if keeper is not None else Fill(page, ZEROS)
        if found is None or not self._fill(guest, served, found):
            served.lacking.add(page)

    def _fill(self, guest: _ServedGuest, served: _ServedRange, found: Fill) -> bool:
        """Protected: should it be a store that waits, it faults again, and is asked about with the content in place.
        False if there is no memory for it now."""
        data = found.data[: max(0, served.address + served.length - served.address_of(found.first))]
        if not data:
            return True
        try:
            self._kernel.fill(guest.descriptor, served.address_of(found.first), data, protected=True)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return False
        filled = Fill(found.first, data).pages
        served.lacking.difference_update(filled)
        for keeper in self.absent:
            keeper.filled(served.arena, filled)
        return True

    def supply(self, arena: str, found: Fill) -> bool:
        """Put pages where they are missing, through the mapping of the guest that has the memory, and tell the keepers
        that they are `filled`; those that are still absent then have to be supplied again. False if no guest has the
        memory mapped: then nobody would see how it is written."""
        serving = self._serving(arena)
        for guest_id, guest, served in serving:
            try:
                self._fill(guest, served, found)
            except OSError as error:
                self._end_of(guest_id, error)
        return bool(serving)

    def mapped_pages(self, arena: str) -> int:
        """How many pages from its first on guests have mapped of a memory; 0: none has it."""
        return max((served.length // PAGE_BYTES for _, _, served in self._serving(arena)), default=0)

    def poison(self, arena: str, page: int) -> None:
        """Nobody has what belongs there: who touches it gets SIGBUS, or waits for ever where the kernel cannot do that.
        Its guest has to be ended."""
        for guest_id, guest, served in self._serving(arena):
            try:
                # Its protection is a mark where a page would be, and what is marked is not missing.
                self._kernel.unprotect(guest.descriptor, served.address_of(page), PAGE_BYTES)
                self._kernel.poison(guest.descriptor, served.address_of(page), PAGE_BYTES)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EEXIST):
                    self._end_of(guest_id, error)

    def lacking_pages(self) -> int:
        """Whose threads wait for what belongs there."""
        return sum(len(served.lacking) for guest in self._guests.values() for served in guest.ranges)

    def _serving(self, arena: str) -> list[tuple[str, _ServedGuest, _ServedRange]]:
        return [
            (guest_id, guest, served)
            for guest_id, guest in self._guests.items()
            for served in guest.ranges
            if served.arena == arena
        ]

    def _end_of(self, guest_id: str, error: OSError) -> None:
        """Of a guest whose memory is gone; its end is told by the machine. Raises any other error."""
        if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENOMEM):
            raise error
        self.detach(guest_id)

    def _lift(self, guest: _ServedGuest, served: _ServedRange, pages: Sequence[int]) -> None:
        for first_page, count in runs_of(pages):
            self._kernel.unprotect(guest.descriptor, served.address + first_page * PAGE_BYTES, count * PAGE_BYTES)


class _Borrowed:
    """A region's page table for one look, mapped only if the memory object exists."""

    def __init__(self, memory: Memory, guest_id: str, region: str) -> None:
        name = table_name(guest_id, region)
        self.table = PageTable.open(memory.open(name).map()) if name in memory.names() else None

    def close(self) -> None:
        if self.table is not None:
            self.table.close()


def _runs_to_protect(served: _ServedRange) -> list[tuple[int, int]]:
    pages = served.length // PAGE_BYTES
    runs = [(first, min(count, pages - first)) for first, count in served.pages.protected_runs() if first < pages]
    return runs if len(runs) <= MAX_PROTECTED_RUNS else [(0, pages)]


def _check_range(tracked: TrackedRange, pages: int) -> None:
    """The guest said where it mapped its regions: believe nothing."""
    if tracked.address % PAGE_BYTES or tracked.length_bytes % PAGE_BYTES or tracked.length_bytes <= 0:
        raise InvalidArgument(f"range of {tracked.label}: address and length must be whole pages of {PAGE_BYTES} bytes")
    if tracked.length_bytes > pages * PAGE_BYTES:
        raise InvalidArgument(
            f"range of {tracked.label}: {tracked.length_bytes} bytes, the region has {pages * PAGE_BYTES}"
        )


def _check_disjoint(ranges: tuple[_ServedRange, ...]) -> None:
    for before, after in itertools.pairwise(ranges):
        if before.address + before.length > after.address:
            raise InvalidArgument(f"ranges of {before.region} and {after.region} overlap: map each region once")
