"""Paging out and in on a model of the kernel: no byte is lost, whatever dies, fails or touches a page in between."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.memory_scheduler import views
from everram.actors.memory_scheduler.estimates import estimate
from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.pager import GuestPager
from everram.actors.memory_scheduler.pressure import Pressure
from everram.actors.memory_scheduler.reclaimer import Reclaimer
from everram.actors.memory_scheduler.swap_file import Slots, SwapFile
from everram.actors.memory_scheduler.targets import Technique
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.formats.page_classes import Kind, PageClasses
from everram.runtime.formats.swap_table import SwapTable
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.paging import PagedMemory

PAGES = 24
SLOTS = 32


class Died(BaseException):
    """The host, in the middle of what it did."""


def content(stamp: int) -> bytes:
    return stamp.to_bytes(8, "little") * (PAGE_BYTES // 8)


@dataclass
class Computer:
    """A guest's memory, its storage, and what outlives a host. `steps` counts down to the host's death."""

    present: dict[int, bytes] = field(default_factory=dict)
    protected: set[int] = field(default_factory=set)
    watched: set[int] = field(default_factory=set)
    file: bytearray = field(default_factory=bytearray)
    table: HeapMapping = field(default_factory=lambda: HeapMapping(SwapTable.total_bytes(PAGES)))
    classes: HeapMapping = field(default_factory=lambda: HeapMapping(PageClasses.total_bytes(PAGES)))
    steps: int = 1 << 60
    failing: str = ""
    no_memory: set[int] = field(default_factory=set)
    """Pages that cannot be filled now."""
    during_write: Callable[[], None] = lambda: None

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Died

    # -- environment.MemoryObject

    @property
    def present_bytes(self) -> int:
        return len(self.present) * PAGE_BYTES

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        last = PAGES if end is None else end // PAGE_BYTES
        return [(page * PAGE_BYTES, PAGE_BYTES) for page in sorted(self.present) if start // PAGE_BYTES <= page < last]

    def present_pages(self) -> bytes:
        return bytes(page in self.present for page in range(PAGES))

    def is_present(self, offset: int) -> bool:
        return offset // PAGE_BYTES in self.present

    def read(self, offset: int, length: int) -> bytes:
        pages = range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES)
        return b"".join(self.present.get(page, bytes(PAGE_BYTES)) for page in pages)

    def punch(self, offset: int, length: int) -> None:
        for page in range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES):
            self.step()
            self.present.pop(page, None)

    # -- DiskFile and Disk

    async def open(self, name: str, *, create: bool = False) -> Computer:
        return self

    async def remove(self, name: str) -> None:
        self.file.clear()

    async def close(self) -> None:
        pass

    def close_now(self) -> None:
        pass

    async def pread(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self.file[offset : offset + length])

    async def pread_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self.failing == "read":
            await asyncio.sleep(0)
            raise DataLoss("the disk failed")
        return [await self.pread(offset, length) for offset, length in ranges]

    async def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        self.step()
        await asyncio.sleep(0)
        if self.failing == "full" and offset:
            raise ResourceExhausted("the disk is full")
        if offset:
            self.during_write()
        self.file.extend(bytes(max(0, offset + len(data) - len(self.file))))
        self.file[offset : offset + len(data)] = data


class Paged:
    """`PagedMemory` of one host on the model."""

    pages = PAGES
    gone = False
    lacks_memory = True

    def __init__(self, computer: Computer) -> None:
        self.computer = computer

    def watch(self, page: int) -> None:
        self.computer.watched.add(page)

    def protect(self, first_page: int, count: int) -> None:
        self.computer.step()
        self.computer.protected.update(range(first_page, first_page + count))

    def unprotect(self, first_page: int, count: int = 1) -> None:
        if self.computer.steps < 0:
            raise Died  # whoever is dead tidies nothing up
        self.computer.protected.difference_update(range(first_page, first_page + count))

    def fill(self, page: int, data: bytes) -> bool:
        self.computer.step()
        if page in self.computer.no_memory:
            return False
        self.computer.present.setdefault(page, data)
        self.computer.step()
        return True

    def fill_zeros(self, page: int, count: int = 1) -> bool:
        return self.fill(page, bytes(PAGE_BYTES))

    def wake(self, page: int) -> None:
        pass

    def wake_all(self) -> None:
        pass

    def touched(self, pages: list[int]) -> set[int]:
        return set(pages)

    def forget_touches(self, pages: list[int]) -> None:
        pass


class Guest:
    """The guest's threads, and what they know to have stored."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer
        self.expected: dict[int, int] = {}
        self.stamps = 0

    def try_store(self, page: int, pager: GuestPager) -> bool:
        """One attempt; a fault is told, and the store has to be tried again."""
        if not self._try_touch(page, pager, store=True):
            return False
        self.stamps += 1
        self.computer.present[page] = content(self.stamps)
        self.expected[page] = self.stamps
        return True

    def _try_touch(self, page: int, pager: GuestPager, *, store: bool) -> bool:
        computer = self.computer
        if page not in computer.present:
            if page in computer.watched:
                pager.fault("g", page, protected=False)
                return False
            computer.present[page] = bytes(PAGE_BYTES)
        if store and page in computer.protected:
            pager.fault("g", page, protected=True)
            return False
        return True

    async def store(self, page: int, pager: GuestPager) -> None:
        await self._until(lambda: self.try_store(page, pager))

    async def verify(self, pager: GuestPager) -> None:
        for page in range(PAGES):
            await self._until(lambda page=page: self._try_touch(page, pager, store=False))  # type: ignore[misc]
            expected = content(self.expected[page]) if page in self.expected else bytes(PAGE_BYTES)
            assert self.computer.present[page] == expected, f"page {page}"

    async def _until(self, attempt: Callable[[], bool]) -> None:
        for _ in range(1000):
            if self.computer.steps < 0:
                raise Died
            if attempt():
                return
            await asyncio.sleep(0)
        raise AssertionError("a thread of the guest hangs")


class Host:
    """One life of a host on the computer."""

    def __init__(self, computer: Computer, *, fresh: bool) -> None:
        self.computer = computer
        self.tasks: list[asyncio.Task[None]] = []
        self.broken: list[str] = []
        table = SwapTable.format(computer.table, PAGES) if fresh else SwapTable.open(computer.table)
        classes = PageClasses.format(computer.classes, PAGES) if fresh else PageClasses(computer.classes, PAGES)
        self.guest = GuestMemory("g", "guest", cast(Any, computer), classes, computer.classes, table, PAGES)
        self.pager = GuestPager({"g": self.guest}, self.spawn, lambda: 0, self.broken.append)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> object:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    async def start(self) -> None:
        self.pager.file = await SwapFile.open(cast(Any, self.computer), "memory", SLOTS)
        for _, slot in self.guest.swap.swapped():
            assert self.pager.file.slots.hold(slot), f"slot {slot} is named twice"
        self.guest.swapped = sum(1 for _ in self.guest.swap.swapped())
        self.pager.attached("g", cast(Any, Paged(self.computer)))

    def check(self) -> None:
        """At rest: every slot that is taken is named once, by a page that is not there."""
        assert self.pager.file is not None
        named = [slot for _, slot in self.guest.swap.swapped()]
        assert len(named) == len(set(named)) == self.pager.file.slots.used == self.guest.swapped
        assert not [page for page, _ in self.guest.swap.swapped() if page in self.computer.present]
        assert not self.guest.pending
        assert not self.guest.loading

    async def settle(self) -> None:
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


async def life(computer: Computer, guest: Guest, dice: random.Random, acts: int, *, fresh: bool) -> None:
    """A host pages out and in while the guest goes on; raises Died when it dies."""
    host = Host(computer, fresh=fresh)

    def meddle() -> None:
        for _ in range(dice.randrange(3)):
            guest.try_store(dice.randrange(PAGES), host.pager)

    computer.during_write = meddle
    try:
        await host.start()
        await guest.verify(host.pager)
        for _ in range(acts):
            if dice.random() < 0.5:
                await guest.store(dice.randrange(PAGES), host.pager)
            else:
                pages = sorted(dice.sample(sorted(computer.present), min(len(computer.present), dice.randrange(12))))
                try:
                    await host.pager.swap_out(host.guest, pages)
                except (ResourceExhausted, DataLoss):
                    pass
            for task in host.tasks:
                if task.done() and task.exception():
                    await task
        computer.during_write = lambda: None
        await guest.verify(host.pager)
        await host.settle()
        host.check()
    finally:
        computer.during_write = lambda: None
        await host.die()


@pytest.mark.parametrize("seed", range(60))
async def test_no_byte_is_lost_when_the_host_dies_at_any_step(seed: int) -> None:
    dice = random.Random(seed)
    computer, fresh = Computer(), True
    guest = Guest(computer)
    for _ in range(4):
        computer.steps = dice.randrange(1, 150)
        computer.failing = dice.choice(["", "", "", "full"])
        try:
            await life(computer, guest, dice, 30, fresh=fresh)
        except Died:
            pass
        # What the kernel did is done; a host that died before it had a table has paged nothing.
        fresh = computer.table.load_u64(0) == 0
    computer.steps, computer.failing = 1 << 60, ""
    await life(computer, guest, dice, 10, fresh=fresh)


async def test_a_page_that_is_stored_to_while_it_is_saved_stays() -> None:
    computer = Computer()
    guest, host = Guest(computer), Host(computer, fresh=True)
    await host.start()
    for page in range(6):
        await guest.store(page, host.pager)
    computer.during_write = lambda: [guest.try_store(2, host.pager) for _ in range(2)] and None
    assert await host.pager.swap_out(host.guest, range(6)) == 5
    assert sorted(computer.present) == [2]
    await guest.verify(host.pager)
    await host.settle()
    assert host.guest.counters.swapped_in == 5
    host.check()


async def test_a_hole_that_the_guest_makes_meanwhile_does_not_bring_old_content_back_over_new() -> None:
    computer = Computer()
    guest, host = Guest(computer), Host(computer, fresh=True)
    await host.start()
    await guest.store(0, host.pager)
    await guest.store(1, host.pager)

    def give_back_and_use_again() -> None:
        del computer.present[1]
        computer.protected.discard(1)
        while not guest.try_store(1, host.pager):
            pass

    computer.during_write = give_back_and_use_again
    await host.pager.swap_out(host.guest, [0, 1])
    await guest.verify(host.pager)


async def test_pages_of_zeros_take_no_slot() -> None:
    computer = Computer()
    host = Host(computer, fresh=True)
    await host.start()
    computer.present = dict.fromkeys(range(4), bytes(PAGE_BYTES))
    await host.pager.swap_out(host.guest, range(4))
    assert not computer.present
    host.check()
    assert host.pager.file is not None
    assert host.pager.file.slots.used == 0
    await Guest(computer).verify(host.pager)


async def test_what_is_free_in_the_guest_is_thrown_away_and_never_what_it_takes_into_use() -> None:
    computer = Computer()
    guest, host = Guest(computer), Host(computer, fresh=True)
    await host.start()
    for page in range(4):
        await guest.store(page, host.pager)
    assert host.guest.unused() == []  # it keeps no table: "free" is only what the table began with
    host.guest.classes.set_kept()
    host.guest.classes.set_kind(0, 2, Kind.ANONYMOUS)
    assert host.guest.unused() == [2, 3]
    assert host.pager.discard(host.guest, [1, 2, 3]) == 2  # one was taken into use since
    assert sorted(computer.present) == [0, 1]
    assert not computer.protected
    # A page that was swapped out and then freed needs no slot any more.
    await host.pager.swap_out(host.guest, [0, 1])
    host.guest.classes.set_kind(0, 1, Kind.FREE)
    host.pager.drop_dead(host.guest)
    host.check()
    guest.expected = {1: guest.expected[1]}
    await guest.verify(host.pager)


async def test_storage_that_fails_holds_the_thread_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everram.actors.memory_scheduler.pager.RETRY_S", 0)
    computer = Computer()
    guest, host = Guest(computer), Host(computer, fresh=True)
    await host.start()
    for page in range(6):
        await guest.store(page, host.pager)
    await host.pager.swap_out(host.guest, range(6))
    computer.failing = "read"
    host.pager.fault("g", 3, protected=False)
    await until(lambda: host.broken)
    assert host.guest.broken == {3: "the disk failed"}
    computer.failing = ""
    damaged = next(slot for page, slot in host.guest.swap.swapped() if page == 4)
    before = bytes(computer.file)
    computer.file[(damaged + 1) * PAGE_BYTES] ^= 1
    await until(lambda: not host.guest.broken)
    await host.settle()
    assert computer.present[3] == content(guest.expected[3])
    host.pager.fault("g", 4, protected=False)
    await until(lambda: 4 in host.guest.broken)
    assert "damaged in the swap file" in host.guest.broken[4]
    computer.file[:] = before
    await host.settle()
    await guest.verify(host.pager)


class Blocking(Paged):
    """Its threads block as real ones do: a fault is told once, and again only after its page was woken."""

    def __init__(self, computer: Computer, pager: GuestPager) -> None:
        super().__init__(computer)
        self.pager = pager
        self.blocked: set[int] = set()

    def touch(self, page: int) -> None:
        if page not in self.computer.present:
            self.blocked.add(page)
            self.pager.fault("g", page, protected=False)

    def wake(self, page: int) -> None:
        if page in self.blocked:
            self.blocked.discard(page)
            self.touch(page)

    def wake_all(self) -> None:
        for page in sorted(self.blocked):
            self.wake(page)

    def unprotect(self, first_page: int, count: int = 1) -> None:
        super().unprotect(first_page, count)
        for page in range(first_page, first_page + count):
            self.wake(page)

    def fill(self, page: int, data: bytes) -> bool:
        if not super().fill(page, data):
            return False
        self.blocked.discard(page)
        return True


async def swapped_out(monkeypatch: pytest.MonkeyPatch) -> tuple[Computer, Host, Blocking]:
    """A host that has swapped out pages 0 to 7 of its guest."""
    monkeypatch.setattr("everram.actors.memory_scheduler.pager.RETRY_S", 0)
    computer = Computer()
    host = Host(computer, fresh=True)
    await host.start()
    threads = Blocking(computer, host.pager)
    host.pager.attached("g", cast(Any, threads))
    for page in range(8):
        computer.present[page] = content(page + 1)
    assert await host.pager.swap_out(host.guest, range(8)) == 8
    return computer, host, threads


def damage(computer: Computer, host: Host, page: int) -> int:
    """Where a bit was turned."""
    slot, _ = host.guest.swap.get(page) or (-1, 0)
    computer.file[(slot + 1) * PAGE_BYTES] ^= 1
    return (slot + 1) * PAGE_BYTES


async def test_a_thread_that_waits_for_a_neighbour_that_cannot_be_filled_now_goes_on_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    computer.no_memory = {1}
    threads.touch(0)
    assert 1 in host.guest.loading, "the window takes it along"
    threads.touch(1)
    await until(lambda: 0 in computer.present)
    await asyncio.sleep(0)
    assert threads.blocked == {1}
    computer.no_memory = set()
    await until(lambda: not threads.blocked)
    assert computer.present[1] == content(2)
    await host.settle()
    host.check()


async def test_a_thread_that_waits_for_a_damaged_neighbour_is_known_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    at = damage(computer, host, 1)
    threads.touch(0)
    threads.touch(1)
    await until(lambda: 1 in host.guest.broken)
    assert host.broken == ["g"]
    assert threads.blocked == {1}
    computer.file[at] ^= 1
    await until(lambda: not threads.blocked)
    await host.settle()
    assert not host.guest.broken
    host.check()


async def test_a_damaged_page_holds_up_nobody_who_waits_for_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    at = damage(computer, host, 0)
    computer.no_memory = {1}
    threads.touch(0)
    threads.touch(1)
    await until(lambda: 0 in host.guest.broken)
    computer.no_memory = set()
    await until(lambda: threads.blocked == {0})
    threads.touch(2)
    await until(lambda: threads.blocked == {0})
    computer.file[at] ^= 1
    await until(lambda: not threads.blocked)
    await host.settle()
    host.check()


async def test_a_hole_that_finds_no_memory_is_filled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    computer.no_memory = {12}
    threads.touch(12)
    threads.touch(12)  # another thread
    await asyncio.sleep(0)
    assert threads.blocked == {12}
    status = views.guest_status(host.guest, 1)
    assert (status.waiting_pages, status.paused) == (1, "")
    assert status.waiting == "page 12 cannot be brought back: this computer has no memory left for it"
    computer.no_memory = set()
    await until(lambda: not threads.blocked)
    assert not views.guest_status(host.guest, 1).waiting
    assert computer.present[12] == bytes(PAGE_BYTES)
    await host.settle()
    assert not host.pager.latencies_ns
    host.check()


async def test_a_page_that_its_guest_frees_while_it_is_read_is_filled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    computer.failing = "read"
    threads.touch(3)
    await until(lambda: 3 in host.guest.broken)
    computer.failing = ""
    assert host.pager.file is not None
    slot, _ = host.guest.swap.get(3) or (-1, 0)
    host.guest.swap.clear(3)
    host.guest.swapped -= 1
    host.pager.file.slots.release([slot])
    await until(lambda: not threads.blocked)
    await host.settle()
    assert not host.guest.broken, "its guest would stay paused"
    host.check()


async def test_a_swap_file_that_opens_late_serves_who_waits_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    file, host.pager.file = host.pager.file, None
    threads.touch(3)
    await until(lambda: host.broken)
    assert "cannot be used" in host.guest.broken[3]
    host.pager.file = file
    await until(lambda: not threads.blocked)
    assert computer.present[3] == content(4)
    await host.settle()
    assert not host.guest.broken
    host.check()


async def test_a_guest_that_ends_while_its_storage_fails_is_not_said_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    computer, host, threads = await swapped_out(monkeypatch)
    computer.failing = "read"
    threads.touch(3)
    await asyncio.sleep(0)
    host.guest.close()  # while the read is under way
    await host.settle()
    assert not host.broken


async def test_a_full_swap_file_and_a_full_disk_leave_everything_where_it_is() -> None:
    computer = Computer()
    guest, host = Guest(computer), Host(computer, fresh=True)
    await host.start()
    assert host.pager.file is not None
    host.pager.file.slots = Slots(3)
    for page in range(6):
        await guest.store(page, host.pager)
    assert await host.pager.swap_out(host.guest, range(6)) == 3
    with pytest.raises(ResourceExhausted, match="full"):
        await host.pager.swap_out(host.guest, [4, 5])
    host.pager.file.slots = Slots(9)
    computer.failing = "full"
    with pytest.raises(ResourceExhausted, match="full"):
        await host.pager.swap_out(host.guest, [4, 5])
    assert host.pager.file.slots.used == 0
    assert not computer.protected & {4, 5}


async def test_the_swap_file_of_another_memory_is_begun_anew() -> None:
    computer = Computer()
    file = await SwapFile.open(cast(Any, computer), "first", SLOTS)
    await file.write(file.slots.take(2), [content(1), content(2)])
    await SwapFile.open(cast(Any, computer), "first", SLOTS)
    await SwapFile.open(cast(Any, computer), "second", SLOTS, needed=2)
    assert len(computer.file) == 3 * PAGE_BYTES, "pages are in it, whatever its first slot says"
    await SwapFile.open(cast(Any, computer), "second", SLOTS)
    assert len(computer.file) == PAGE_BYTES


async def test_a_guest_that_scribbles_over_the_hosts_words_harms_nobody() -> None:
    host = Host(Computer(), fresh=True)
    await host.start()
    for offset in range(0, PAGE_BYTES, 8):
        host.computer.classes.store_u64(offset, (1 << 64) - 1)
    host.computer.classes.store(PAGE_BYTES, b"\xff" * (host.computer.classes.size_bytes - PAGE_BYTES))
    host.guest.redraw(list(range(PAGES)), 0)
    for now_ns in range(0, 5_000_000_000, 1_000_000_000):
        host.guest.ask(now_ns)
        host.guest.heard()
        host.guest.balloon.look(min(host.guest.classes.ballooned, PAGES), now_ns)
        host.guest.set_target(PAGES, now_ns)
        assert sum(host.guest.sampled(now_ns).values()) == PAGES
        assert host.guest.demand(now_ns, counted=True).resident == 0
        host.guest.coldest(5)
        views.guest_status(host.guest, now_ns)


def test_slots_are_taken_once_and_in_runs() -> None:
    slots = Slots(10)
    assert slots.take(4) == [0, 1, 2, 3]
    assert not slots.hold(2)
    assert slots.hold(5)
    assert not slots.hold(10)
    assert slots.take(8) == [4, 6, 7, 8, 9]
    slots.release([1, 2, 99])
    assert slots.take(8) == [1, 2]
    assert slots.used == 10


def test_a_swap_table_of_another_kind_is_refused() -> None:
    with pytest.raises(DataLoss, match="magic"):
        SwapTable.open(HeapMapping(SwapTable.total_bytes(4)))
    mapping = HeapMapping(SwapTable.total_bytes(4))
    SwapTable.format(mapping, 4).set(3, 7, 0xDEADBEEF)
    assert SwapTable.open(mapping).get(3) == (7, 0xDEADBEEF)
    mapping.store_u64(16, 1 << 40)
    with pytest.raises(DataLoss, match="fit"):
        SwapTable.open(mapping)
    mapping.store_u64(8, 2)
    with pytest.raises(FailedPrecondition, match="later"):
        SwapTable.open(mapping)


@pytest.mark.parametrize(("number", "lacks_memory"), [(errno.ENOMEM, True), (errno.EAGAIN, False)])
def test_only_a_lack_of_memory_is_called_one(number: int, lacks_memory: bool) -> None:
    class Refusing:
        def copy(self, *arguments: int) -> None:
            raise OSError(number, "refused")

        def wake(self, *arguments: int) -> None: ...

    paged = PagedMemory(0, 0, 0, PAGES, cast(Any, Refusing()))
    assert not paged.fill(1, content(1))
    assert paged.lacks_memory is lacks_memory


async def test_a_page_that_is_tried_again_for_another_reason_is_not_said_to_lack_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Paged, "lacks_memory", False)
    computer, host, threads = await swapped_out(monkeypatch)
    computer.no_memory = {12}
    threads.touch(12)
    await asyncio.sleep(0)
    assert not views.guest_status(host.guest, 1).waiting
    computer.no_memory = set()
    await until(lambda: not threads.blocked)
    await host.settle()


async def test_a_guest_that_was_paused_for_memory_goes_on_before_its_pages_are_old() -> None:
    computer = Computer()
    guest, host, clock = Guest(computer), Host(computer, fresh=True), Moments()
    await host.start()
    # A quarter of it is kept free, so every bound lies between two pages.
    reclaimer = Reclaimer({"g": host.guest}, host.pager, 21 * PAGE_BYTES, cast(Any, clock), random.Random(1))
    await reclaimer.look()
    host.guest.classes.set_kept()
    host.guest.classes.set_kind(0, PAGES, Kind.ANONYMOUS)
    host.guest.classes.touch(0, PAGES)
    for page in range(22):
        await guest.store(page, host.pager)
    computer.during_write = lambda: [guest.try_store(page, host.pager) for page in range(PAGES)] and None
    await reclaimer.look()
    assert reclaimer.to_pause() == {"g"}
    computer.during_write = lambda: None  # it is paused
    looks = 0
    while reclaimer.to_pause():
        clock.ns += int(reclaimer.pause_s * 1e9)
        await reclaimer.look()
        looks += 1
        assert looks < 10, "it would wait until its pages have grown old"
    assert len(computer.present) == 21 - 3, "no more is taken than lets it go on"
    await guest.verify(host.pager)


@pytest.mark.parametrize(
    ("kind", "more", "breaths"),
    [
        (Kind.BUFFER, 0, [8, 16, 24, 32, 40, 48, 56]),
        (Kind.BUFFER, 1, [8, 16, 32, 64 - 1]),  # each time it comes out of one with more than before
        (Kind.ANONYMOUS, 0, []),  # it has nothing that it could drop
    ],
)
async def test_where_nothing_is_swapped_a_paused_guest_runs_now_and_then_to_drop_what_it_was_asked_for(
    kind: Kind, more: int, breaths: list[int]
) -> None:
    computer = Computer()
    guest, host, clock = Guest(computer), Host(computer, fresh=True), Moments()
    await host.start()
    reclaimer = Reclaimer({"g": host.guest}, host.pager, 21 * PAGE_BYTES, cast(Any, clock), random.Random(1))
    reclaimer.begin(host.guest)
    host.guest.classes.set_kept()
    host.guest.classes.set_kind(0, PAGES, kind)
    host.guest.classes.touch(0, PAGES)
    await reclaimer.look()
    for page in range(22):
        await guest.store(page, host.pager)
    clock.ns += 20_000_000_000
    host.pager.file = None
    found, used = [], 22
    for look in range(63):
        await reclaimer.look()
        if not reclaimer.to_pause():
            found.append(look)
            for page in range(used, used + more):
                await guest.store(page, host.pager)
            used += more
        clock.ns += int(reclaimer.pause_s * 1e9)
    assert found == [look for look in breaths if look < 63]


async def short_of_memory(computer: Computer, *, limit_pages: int) -> tuple[Guest, Host, Reclaimer]:
    """A guest that answers has half of its pages full of clean cache, the others of anonymous data, all long unused."""
    guest, host, clock = Guest(computer), Host(computer, fresh=True), Moments()
    await host.start()
    reclaimer = Reclaimer({"g": host.guest}, host.pager, limit_pages * PAGE_BYTES, cast(Any, clock), random.Random(1))
    reclaimer.begin(host.guest)
    host.guest.classes.set_kept()
    host.guest.classes.set_kind(0, PAGES // 2, Kind.BUFFER)
    host.guest.classes.set_kind(PAGES // 2, PAGES // 2, Kind.ANONYMOUS)
    host.guest.classes.touch(0, PAGES)
    for page in range(PAGES):
        await guest.store(page, host.pager)
    clock.ns += 20_000_000_000
    reclaimer.begin(host.guest)
    host.guest.redraw(list(range(PAGES)), clock.ns)
    host.guest.usage.update(estimate(host.guest.sampled(clock.ns), PAGES))
    host.guest.classes.set_answer(host.guest.classes.question)
    return guest, host, reclaimer


async def test_clean_cache_of_a_guest_that_answers_is_dropped_and_not_written() -> None:
    guest, host, reclaimer = await short_of_memory(Computer(), limit_pages=24)
    await reclaimer.look()
    assert reclaimer.pressure is Pressure.LOW
    assert host.guest.technique is Technique.SWAP
    out = {page for page, _ in host.guest.swap.swapped()}
    assert host.guest.classes.target == host.guest.balloon.asked > 0
    assert not [page for page in out if page < PAGES // 2]
    await guest.verify(host.pager)


async def test_clean_cache_is_written_if_the_balloon_stalls() -> None:
    guest, host, reclaimer = await short_of_memory(Computer(), limit_pages=24)
    host.guest.balloon.stalled_until_ns = 1 << 62
    await reclaimer.look()
    assert not host.guest.balloon.asked
    assert [page for page, _ in host.guest.swap.swapped() if page < PAGES // 2]
    await guest.verify(host.pager)


async def test_anonymous_memory_goes_first_while_cache_is_warm() -> None:
    guest, host, reclaimer = await short_of_memory(Computer(), limit_pages=27)
    host.guest.warmth.cache.add(1000, 100)
    host.guest.warmth.anonymous.add(1000, 1)
    await reclaimer.look()
    assert reclaimer.pressure is Pressure.SOFT
    assert "cache that is used more often" in host.guest.reason
    assert not host.guest.balloon.asked
    assert [page for page, _ in host.guest.swap.swapped() if page >= PAGES // 2]
    await guest.verify(host.pager)


async def test_what_a_guest_fills_before_the_first_tick_is_not_taken_for_old() -> None:
    host, clock = Host(Computer(), fresh=True), Moments()
    clock.ns = 77_000_000_000
    await host.start()
    reclaimer = Reclaimer({"g": host.guest}, host.pager, PAGE_BYTES, cast(Any, clock), random.Random(1))
    reclaimer.begin(host.guest)
    host.guest.classes.set_kept()
    host.guest.classes.set_kind(0, PAGES, Kind.ANONYMOUS)
    host.guest.classes.touch(0, PAGES)
    host.computer.present.update(dict.fromkeys(range(PAGES), content(1)))
    clock.ns += 1_000_000_000
    reclaimer.begin(host.guest)
    assert host.guest.coldest(PAGES) == []


class Moments:
    ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns
