"""The page service's decisions and its driver, on a kernel of the test's own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.hypervisor.actor import Hypervisor
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.environment import MachineEvent, Memory, TrackedRange
from everram.runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from everram.runtime.formats.pages import PageTable, State, table_name
from everram.runtime.memory import page_service
from everram.runtime.memory.absent import Fill
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.page_service import FAULTS_PER_TURN, PageService
from everram.runtime.memory.reasons import TABLED, Keeper, NoteOnly, Reason, ReasonedPages, holds, lifted
from everram.runtime.memory.userfaultfd import FaultFlag, Feature, Mode, PageFault
from tests.loose_memory import LooseMemory

BASE = 0x7F00_0000_0000
PAGES = 64

# -- decisions --------------------------------------------------------------------------------------------------------


def table() -> PageTable:
    return PageTable.format(HeapMapping(PageTable.total_bytes(PAGES)), PAGES)


@dataclass
class Recorded:
    """A keeper that notes when it was called, and may refuse."""

    name: str
    calls: list[tuple[str, int]]
    willing: bool = True

    def lift(self, page: int) -> bool:
        self.calls.append((self.name, page))
        return self.willing


@dataclass
class Sharing(Recorded):
    """A keeper that knows by itself for which pages it is asked."""

    pages: set[int] = field(default_factory=set)

    def holds_anywhere(self) -> bool:
        return bool(self.pages)

    def holds(self, page: int) -> bool:
        return page in self.pages

    def lift(self, page: int) -> bool:
        self.pages.discard(page)
        return super().lift(page)


@pytest.mark.parametrize("reason", TABLED)
def test_a_lifted_reason_no_longer_holds_and_leaves_the_others(reason: Reason) -> None:
    for state in map(State, range(16)):
        after = lifted(reason, state)
        assert not holds(reason, after)
        assert all(holds(other, after) == holds(other, state) for other in TABLED if other != reason)


def test_keepers_are_called_in_order_and_only_those_whose_reason_holds() -> None:
    calls: list[tuple[str, int]] = []
    keepers = {reason: Recorded(reason.name, calls) for reason in TABLED}
    states = table()
    states.set(3, State.SWAPPED)
    states.set(4, State.WRITTEN)
    pages = ReasonedPages(PAGES, states, keepers, Sharing("SHARED_WITH_SNAPSHOT", calls, pages={3, 4}))
    assert pages.on_store(3)
    assert [name for name, _ in calls] == ["SWAPPED_OUT", "SHARED_WITH_SNAPSHOT", "CLEAN_UNDER_CAP", "UNWRITTEN"]
    calls.clear()
    assert pages.on_store(4)
    assert calls == [("SHARED_WITH_SNAPSHOT", 4), ("CLEAN_UNDER_CAP", 4)]
    calls.clear()
    assert pages.on_store(3)
    assert calls == []


def test_a_page_stays_protected_until_its_last_reason_is_gone() -> None:
    calls: list[tuple[str, int]] = []
    cap = Recorded("cap", calls, willing=False)
    pages = ReasonedPages(PAGES, table(), {Reason.CLEAN_UNDER_CAP: cap, Reason.UNWRITTEN: NoteOnly()})
    assert not pages.on_store(5)
    assert (pages.waiting, pages.table.count(State.WRITTEN)) == ({5}, 0)
    assert list(pages.protected_runs()) == [(0, PAGES)]
    assert pages.retry() == []
    cap.willing = True
    assert pages.retry() == [5]
    assert pages.waiting == set()
    assert list(pages.protected_runs()) == [(0, 5), (6, PAGES - 6)]


def test_what_snapshots_share_is_asked_of_who_knows_it_and_protects_the_whole_region() -> None:
    calls: list[tuple[str, int]] = []
    sharing = Sharing("share", calls, pages={5})
    pages = ReasonedPages(PAGES, None, {}, sharing)
    assert list(pages.protected_runs()) == [(0, PAGES)]
    assert pages.on_store(6)
    assert calls == []
    assert pages.on_store(5)
    assert calls == [("share", 5)]
    assert list(pages.protected_runs()) == []


def test_a_successor_decides_from_the_same_table() -> None:
    states = table()
    ReasonedPages(PAGES, states, {Reason.UNWRITTEN: NoteOnly()}).on_store(7)
    calls: list[tuple[str, int]] = []
    successor = ReasonedPages(PAGES, states, {Reason.UNWRITTEN: Recorded("track", calls)})
    assert successor.on_store(7)
    assert successor.on_store(8)
    assert calls == [("track", 8)]


# -- the driver -------------------------------------------------------------------------------------------------------


@dataclass
class FakeKernel:
    """Protection bits of one guest, and threads blocked on them."""

    protected: set[int] = field(default_factory=set)
    blocked: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    gone: bool = False
    full: bool = False
    largest_read: int = 0
    mode: Mode = Mode.WRITE_PROTECT
    present: dict[int, bytes] = field(default_factory=dict)
    """Content of the pages that are there."""
    poisoned: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    """Of those told or blocked: because nothing is there."""

    def handshake(self, descriptor: int, wanted: Feature) -> Feature | None:
        return wanted

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None:
        if self.gone:
            raise OSError(errno.ESRCH, "No such process")
        self.calls.append("register")
        self.mode = mode

    def fill(self, descriptor: int, address: int, data: bytes, *, protected: bool) -> None:
        if self.gone:
            raise OSError(errno.ESRCH, "No such process")
        if self.full:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        for at in range(0, len(data), PAGE_BYTES):
            page = (address - BASE + at) // PAGE_BYTES
            if page not in self.present:
                self.present[page] = data[at : at + PAGE_BYTES]
                self.protected |= {page} if protected else set()
        woken = [page for page in self.told if page in self._pages(address, len(data))]
        self.told = [page for page in self.told if page not in woken]
        self.missing -= set(woken)
        self.store(descriptor, *woken)

    def poison(self, descriptor: int, address: int, length: int) -> None:
        self.poisoned |= self._pages(address, length)

    def protect(self, descriptor: int, address: int, length: int) -> None:
        self.calls.append("protect")
        self.protected |= self._pages(address, length)

    def unprotect(self, descriptor: int, address: int, length: int) -> None:
        if self.gone:
            raise OSError(errno.ESRCH, "No such process")
        self.calls.append(f"unprotect {length // PAGE_BYTES}")
        self.protected -= self._pages(address, length)
        self.told = [page for page in self.told if page in self.protected]

    def wake(self, descriptor: int, address: int, length: int) -> None:
        self.calls.append("wake")
        self.blocked += self.told  # woken threads fault again
        self.told = []

    def read_faults(self, descriptor: int, limit: int) -> list[PageFault]:
        pages, self.blocked = self.blocked[:limit], self.blocked[limit:]
        self.largest_read = max(self.largest_read, len(pages))
        self.told += pages
        if not self.blocked:
            os.eventfd_read(descriptor)
        return [
            PageFault(
                BASE + page * PAGE_BYTES,
                FaultFlag.WRITE if page in self.missing else FaultFlag.WRITE | FaultFlag.PROTECTED,
            )
            for page in pages
        ]

    def store(self, descriptor: int, *pages: int) -> None:
        """Threads of the guest store to pages."""
        if self.mode & Mode.MISSING:
            self.missing |= {page for page in pages if page not in self.present}
        faults = [page for page in pages if page in self.protected | self.missing]
        if faults:
            self.blocked += faults
            os.eventfd_write(descriptor, 1)

    def _pages(self, address: int, length: int) -> set[int]:
        return set(range((address - BASE) // PAGE_BYTES, (address - BASE + length) // PAGE_BYTES))


class TablesOnly:
    """A machine's memory with page tables; their bytes outlive the service."""

    def __init__(self) -> None:
        self.mappings = {table_name("g", "scratch"): HeapMapping(PageTable.total_bytes(PAGES))}
        for mapping in self.mappings.values():
            mapping.close = lambda: None  # type: ignore[method-assign]
            PageTable.format(mapping, PAGES)

    def names(self) -> list[str]:
        return sorted(self.mappings)

    def open(self, name: str) -> TablesOnly:
        if name not in self.mappings:
            raise NotFound(name)
        self._opened = self.mappings[name]
        return self

    def map(self) -> HeapMapping:
        return self._opened


class Bench:
    """A guest, its machine, and hosts that come and go."""

    def __init__(self) -> None:
        self.memory = TablesOnly()
        self.kernel = FakeKernel()
        self.kept = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.services: list[PageService] = []

    def service(self, **keepers: Keeper) -> PageService:
        chosen = {Reason[name]: keeper for name, keeper in keepers.items()} or page_service.TRACKING
        self.services.append(PageService(cast("Memory", self.memory), kernel=self.kernel, keepers=chosen))
        return self.services[-1]

    def event(self, *ranges: tuple[int, int], label: str = "scratch") -> MachineEvent:
        tracked = tuple(TrackedRange(label, "memory", a, length) for a, length in ranges)
        return MachineEvent("attached", "g", 1, userfaultfd=os.dup(self.kept), ranges=tracked)

    def attached(self, *, served: bool = False, **keepers: Keeper) -> PageService:
        service = self.service(**keepers)
        service.attach(replace(self.event((BASE, PAGES * PAGE_BYTES)), served=served))
        return service

    def store(self, *pages: int) -> None:
        self.kernel.store(self.kept, *pages)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    before = _descriptors()
    yield bench
    for service in bench.services:
        service.close()
    assert _descriptors() == before
    os.close(bench.kept)


def _descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it waits for the fake kernel's state, which signals nobody
            await asyncio.sleep(0)


async def test_stores_are_counted_exactly(bench: Bench) -> None:
    service = bench.attached()
    assert bench.kernel.protected == set(range(PAGES))
    assert service.is_served("g", "scratch")
    assert service.written_pages("g", "scratch") == 0
    bench.store(3, 4, 4, 9)
    await until(lambda: not bench.kernel.told and not bench.kernel.blocked)
    assert service.written_pages("g", "scratch") == 3
    assert bench.kernel.protected == set(range(PAGES)) - {3, 4, 9}
    assert bench.kernel.calls[-2:] == ["unprotect 2", "unprotect 1"]
    assert service.written_pages("g", "other") is None


@dataclass
class Elsewhere:
    """A keeper of absent pages, each full of its own number."""

    absent: set[int]
    now: bool = True
    asked: list[int] = field(default_factory=list)

    def may_lack(self, arena: str) -> bool:
        return arena == "memory"

    def is_absent(self, arena: str, page: int) -> bool:
        return page in self.absent

    def fill(self, arena: str, page: int) -> Fill | None:
        self.asked.append(page)
        return self.content(page) if self.now else None

    def filled(self, arena: str, pages: range) -> None:
        self.absent.difference_update(pages)

    def content(self, page: int) -> Fill:
        pages = [page] if page + 1 not in self.absent else [page, page + 1]
        return Fill(page, b"".join(bytes([each]) * PAGE_BYTES for each in pages))


async def test_pages_are_brought_before_anything_else_is_done_about_them(bench: Bench) -> None:
    service = bench.service()
    elsewhere = Elsewhere({3, 4, 9})
    service.absent.append(elsewhere)
    service.attach(bench.event((BASE, PAGES * PAGE_BYTES)))
    assert bench.kernel.mode == Mode.WRITE_PROTECT | Mode.MISSING
    bench.store(3, 7)
    await until(lambda: service.written_pages("g", "scratch") == 2)
    assert bench.kernel.present == {3: b"\3" * PAGE_BYTES, 4: b"\4" * PAGE_BYTES, 7: bytes(PAGE_BYTES)}
    assert (elsewhere.asked, elsewhere.absent) == ([3], {9})
    assert bench.kernel.protected == set(range(PAGES)) - {3, 7}, "a neighbour that was brought along is not written"


async def test_a_page_that_takes_a_while_is_supplied_later(bench: Bench) -> None:
    service = bench.service()
    elsewhere = Elsewhere({3, 9}, now=False)
    service.absent.append(elsewhere)
    assert not service.supply("memory", elsewhere.content(9)), "nobody has it mapped"
    service.attach(bench.event((BASE, PAGES * PAGE_BYTES)))
    bench.store(3)
    await until(lambda: service.lacking_pages() == 1)
    assert service.written_pages("g", "scratch") == 0
    bench.kernel.full = True
    assert service.supply("memory", elsewhere.content(3))
    assert (service.lacking_pages(), elsewhere.absent) == (1, {3, 9}), "there is no memory for it"
    bench.kernel.full = False
    assert service.supply("memory", elsewhere.content(9)), "before anybody asks"
    assert service.supply("memory", elsewhere.content(3))
    await until(lambda: service.written_pages("g", "scratch") == 1)
    assert (service.lacking_pages(), elsewhere.absent) == (0, set())


async def test_what_waits_for_memory_is_asked_for_again(bench: Bench) -> None:
    service = bench.service()
    service.absent.append(Elsewhere({3}))
    service.attach(bench.event((BASE, PAGES * PAGE_BYTES)))
    bench.kernel.full = True
    bench.store(3)
    await until(lambda: service.lacking_pages() == 1)
    bench.kernel.full = False
    service.retry_all()
    await until(lambda: service.written_pages("g", "scratch") == 1)


async def test_a_page_that_nobody_has_is_poisoned(bench: Bench) -> None:
    service = bench.attached()
    service.poison("memory", 5)
    assert bench.kernel.poisoned == {5}


async def test_a_guest_that_ends_while_it_is_filled_leaves_its_pages_absent(bench: Bench) -> None:
    service = bench.service()
    elsewhere = Elsewhere({3})
    service.absent.append(elsewhere)
    service.attach(bench.event((BASE, PAGES * PAGE_BYTES)))
    bench.kernel.gone = True
    bench.store(3)
    await until(lambda: not service.is_served("g", "scratch"))
    assert elsewhere.absent == {3}


async def test_a_turn_is_bounded(bench: Bench) -> None:
    service = bench.attached()
    bench.store(*range(PAGES))
    await until(lambda: service.written_pages("g", "scratch") == PAGES)
    assert bench.kernel.largest_read == FAULTS_PER_TURN


@pytest.mark.parametrize("served", [False, True])
async def test_a_new_host_goes_on_where_the_old_one_died(bench: Bench, served: bool) -> None:
    service = bench.attached()
    bench.store(1, 2)
    await until(lambda: service.written_pages("g", "scratch") == 2)
    service.close()
    bench.store(5)
    bench.kernel.read_faults(bench.kept, 1)  # the old host read the fault of page 5 and died before resolving it
    assert bench.kernel.told == [5]
    bench.kernel.calls.clear()
    successor = bench.attached(served=served)
    assert ("protect" in bench.kernel.calls) == (not served), "where it was protected it is so still"
    assert successor.written_pages("g", "scratch") == 2
    assert bench.kernel.blocked == [5]
    os.eventfd_write(bench.kept, 1)
    await until(lambda: successor.written_pages("g", "scratch") == 3)
    assert bench.kernel.protected == set(range(PAGES)) - {1, 2, 5}


async def test_reset_counts_from_zero(bench: Bench) -> None:
    service = bench.attached()
    bench.store(1, 2)
    await until(lambda: service.written_pages("g", "scratch") == 2)
    service.reset("g", "scratch")
    assert service.written_pages("g", "scratch") == 0
    assert bench.kernel.protected == set(range(PAGES))
    service.detach("g")
    service.reset("g", "scratch")
    with pytest.raises(NotFound):
        service.reset("g", "nothing")


async def test_written_pages_stay_known_after_the_guest(bench: Bench) -> None:
    service = bench.attached()
    bench.store(8)
    await until(lambda: service.written_pages("g", "scratch") == 1)
    service.detach("g")
    service.detach("g")
    assert service.written_pages("g", "scratch") == 1
    assert not service.is_served("g", "scratch")


async def test_a_keeper_may_let_a_thread_wait(bench: Bench) -> None:
    cap = Recorded("cap", [], willing=False)
    service = bench.attached(CLEAN_UNDER_CAP=cap, UNWRITTEN=NoteOnly())
    bench.store(6)
    await until(lambda: bool(cap.calls))
    assert 6 in bench.kernel.protected
    cap.willing = True
    service.retry("g", "scratch")
    assert 6 not in bench.kernel.protected
    assert service.written_pages("g", "scratch") == 1


async def test_many_runs_are_protected_by_one_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_service, "MAX_PROTECTED_RUNS", 4)
    states = PageTable.open(bench.memory.open(table_name("g", "scratch")).map())
    for page in range(0, PAGES, 2):
        states.set(page, State.WRITTEN)
    service = bench.attached()
    assert bench.kernel.calls.count("protect") == 1
    bench.store(2, 3)
    await until(lambda: not bench.kernel.told and not bench.kernel.blocked)
    assert service.written_pages("g", "scratch") == PAGES // 2 + 1


async def test_a_guest_that_has_gone_ends_its_service_only(bench: Bench) -> None:
    service = bench.attached()
    bench.kernel.gone = True
    bench.store(3)
    await until(lambda: not service.is_served("g", "scratch"))
    with pytest.raises(FailedPrecondition, match="not tracked"):
        service.attach(bench.event((BASE, PAGE_BYTES)))


async def test_a_region_of_which_a_part_is_named_is_not_served(bench: Bench) -> None:
    """Stores to the rest nobody sees."""
    service = bench.service()
    service.attach(bench.event((BASE, (PAGES - 1) * PAGE_BYTES)))
    assert not service.is_served("g", "scratch")
    service.attach(bench.event((BASE, PAGES * PAGE_BYTES)))
    assert service.is_served("g", "scratch")


@pytest.mark.parametrize("ranges", [[], ["a"], ["a", "short b"], ["a", "b"], ["a", "bad b"]])
async def test_regions_that_a_guest_does_not_let_be_served_count_as_a_whole(ranges: list[str]) -> None:
    """Stores to them nobody sees, whether the guest is admitted or refused."""
    memory, kept = LooseMemory(), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    for name in "ab":
        memory.make(f"region.g.{name}", PAGES * PAGE_BYTES)
    service = PageService(cast("Memory", memory), kernel=FakeKernel())
    cap = service.guard.cap = DirtyCap(cast("Memory", memory), lambda: 1.0)
    guest = pb.Guest(guest_id="g", regions=[pb.Region(name=name, arena=f"region.g.{name}") for name in "ab"])
    admitted = []

    async def admit(guest_id: str, pid: int, *, served: bool) -> None:
        admitted.append(guest_id)

    async def attach(labels: list[str]) -> None:
        lengths = {"short b": PAGES - 1, "bad b": PAGES + 1}
        tracked = tuple(
            TrackedRange(label[-1], f"region.g.{label[-1]}", BASE << n, lengths.get(label, PAGES) * PAGE_BYTES)
            for n, label in enumerate(labels)
        )
        descriptor = os.dup(kept) if labels else -1
        await actor._serve_faults(MachineEvent("attached", "g", 1, userfaultfd=descriptor, ranges=tracked))

    actor = cast("Any", Hypervisor("h1", service))
    actor.context = SimpleNamespace(log=logging.getLogger("everram.actor"))
    actor._house = SimpleNamespace(residents={"g": SimpleNamespace(guest=guest)}, machine=SimpleNamespace(admit=admit))
    try:
        await attach(["a", "b"])  # a program, and then another in the same process
        await attach(ranges)
        unseen = {"a", "b"} if "bad b" in ranges else {"a", "b"} - set(ranges)
        assert cap.exposed == {f"region.g.{name}" for name in unseen}
        assert len(admitted) == (1 if "bad b" in ranges else 2)
    finally:
        service.close()
        os.close(kept)
        memory.close()


@pytest.mark.parametrize(
    "ranges",
    [
        [(BASE + 1, PAGE_BYTES)],
        [(BASE, PAGE_BYTES - 1)],
        [(BASE, 0)],
        [(BASE, (PAGES + 1) * PAGE_BYTES)],
        [(BASE, 2 * PAGE_BYTES), (BASE + PAGE_BYTES, PAGE_BYTES)],
    ],
)
async def test_ranges_that_cannot_be_are_refused(bench: Bench, ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidArgument):
        bench.service().attach(bench.event(*ranges))
    assert bench.kernel.calls == []


async def test_a_region_without_a_table_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.service().attach(bench.event((BASE, PAGE_BYTES), label="ledger"))
