"""The dirty cap's decisions and its book: charges, thresholds, what is flushed, and what a successor finds."""

from __future__ import annotations

import pytest

from everram.runtime.errors import DataLoss, ResourceExhausted
from everram.runtime.formats.dirty_book import CLEAN, DIRTY, FLUSHING, DirtyBook, book_bytes
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DELAY_MAX_S, PATIENT_S, DirtyCap
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.simulation.objects import Bytes, Objects, SimulatedMemory

A, B = "region.g.a", "region.g.b"
PAGES = 1000


class Bench:
    """A cap over two empty regions."""

    def __init__(self, target: int = 100) -> None:
        self.objects = Objects(1 << 26)
        for name in (A, B):
            self.make(name)
        self.now_s = 0.0
        self.mapping = HeapMapping(book_bytes(4 * PAGES))
        self.cap = self.new_cap(DirtyBook.format(self.mapping), target)
        self.pressed = 0
        self.delays: list[float] = []
        self.cap.on_pressure = self._press
        self.cap.on_delay = self.delays.append

    def make(self, name: str) -> None:
        self.objects.made += 1
        self.objects.by_name[name] = Bytes(PAGES * PAGE_BYTES, identity=self.objects.made)

    def new_cap(self, book: DirtyBook, target: int = 100) -> DirtyCap:
        cap = DirtyCap(SimulatedMemory(self.objects), lambda: self.now_s)
        cap.target_pages = target
        cap.open(book)
        return cap

    def _press(self) -> None:
        self.pressed += 1

    def dirty(self, *pages: int) -> None:
        for page in pages:
            self.now_s += 0.001
            while not self.cap.admit(A, page):
                self.now_s += DELAY_MAX_S
                assert self.cap.dirty_pages < self.cap.target_pages

    def flush(self, pages_max: int = 1000) -> list[int]:
        chosen = self.cap.choose(pages_max)
        self.cap.flushing(chosen)
        return [page for _, page in self.cap.flushed(chosen)]


def test_nothing_is_charged_without_a_book() -> None:
    bench = Bench()
    bench.cap.close()
    assert not bench.cap.active
    assert bench.cap.is_settled(A, 5)
    assert bench.cap.admit(A, 5)
    assert bench.cap.dirty_pages == 0


def test_a_page_is_charged_once_and_before_it_is_stored_to() -> None:
    bench = Bench()
    assert not bench.cap.is_settled(A, 5)
    assert bench.cap.admit(A, 5)
    assert bench.cap.admit(A, 5)
    assert bench.cap.is_settled(A, 5)
    assert bench.cap.dirty_pages == 1
    assert DirtyBook.open(bench.mapping).tables[A].get(5) == DIRTY


def test_at_the_cap_writers_wait_for_a_flush() -> None:
    bench = Bench()
    bench.dirty(*range(100))
    assert not bench.cap.admit(A, 500)
    assert not bench.cap.admit(A, 500)
    with pytest.raises(ResourceExhausted, match="flushed"):
        bench.cap.check_host_store(B, 1, 1)
    assert bench.cap.admit(A, 7), "that one is dirty already"
    assert bench.pressed
    assert bench.flush(30) == list(range(25)), "down to three quarters, the oldest first"
    bench.cap.check_host_store(B, 1, 1)
    assert bench.cap.admit(A, 500)
    assert bench.cap.most_dirty_pages == 100


def test_between_the_thresholds_writers_are_slowed_the_more_the_nearer_the_cap() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    assert bench.delays == []
    assert not bench.cap.admit(A, 90)
    bench.now_s += DELAY_MAX_S
    assert bench.cap.admit(A, 90)
    bench.dirty(*range(91, 99))
    assert bench.delays == sorted(bench.delays)
    assert 0 <= bench.delays[0] < bench.delays[-1] < DELAY_MAX_S
    bench.cap.check_host_store(B, 1, 1)
    assert bench.cap.dirty_pages == 100, "a host's own stores are not slowed"


def test_a_store_during_its_flush_leaves_a_page_dirty() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    chosen = bench.cap.choose(1000)
    bench.cap.flushing(chosen)
    page = chosen[3][1]
    assert not bench.cap.is_settled(A, page)
    before = bench.cap.dirty_pages
    assert bench.cap.admit(A, page)
    assert bench.cap.dirty_pages == before, "it was charged all the time"
    assert (A, page) not in bench.cap.flushed(chosen)
    table = bench.cap.regions[A].table
    assert (table.get(page), table.get(chosen[0][1])) == (DIRTY, CLEAN)
    assert bench.cap.dirty_pages == before - len(chosen) + 1 == table.charged()


def test_what_could_not_be_flushed_is_dirty_as_before() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    chosen = bench.cap.choose(10)
    bench.cap.flushing(chosen)
    bench.cap.failed(chosen)
    assert bench.cap.dirty_pages == 90
    assert all(bench.cap.is_settled(*key) for key in chosen)
    assert sorted(bench.flush()) == list(range(10, 25)), "the others first now"


def test_pages_that_come_back_are_flushed_last() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    came_back = bench.flush()
    bench.dirty(*came_back)
    bench.dirty(*range(200, 200 + 85 - bench.cap.dirty_pages))
    assert not set(bench.flush()) & set(came_back)


def test_old_pages_are_flushed_though_there_is_room() -> None:
    bench = Bench()
    bench.dirty(1, 2, 3)
    assert not bench.cap.wants_flush()
    bench.now_s += PATIENT_S + 1
    bench.dirty(4)
    assert bench.cap.wants_flush()
    assert bench.flush() == [1, 2, 3]
    assert not bench.cap.wants_flush()


def test_a_lowered_cap_drains_first() -> None:
    bench = Bench()
    bench.dirty(*range(50))
    bench.cap.target_pages = 20
    assert bench.cap.wants_flush()
    assert not bench.cap.admit(A, 900)
    bench.flush()
    assert bench.cap.dirty_pages == 15
    assert bench.cap.admit(A, 900)


def test_a_successor_goes_on_with_the_book_and_counts_what_was_under_way() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    bench.flush(5)
    chosen = bench.cap.choose(10)
    bench.cap.flushing(chosen)
    assert bench.cap.regions[A].table.get(chosen[0][1]) == FLUSHING
    later = bench.new_cap(DirtyBook.open(bench.mapping))
    assert later.dirty_pages == 85
    assert later.is_settled(*chosen[0])
    assert not later.is_settled(A, 0)


def test_what_a_successor_finds_dirty_is_flushed_first_and_in_its_order() -> None:
    bench = Bench(target=2 * PAGES)
    bench.dirty(*range(PAGES))
    bench.cap = bench.new_cap(DirtyBook.open(bench.mapping), target=PAGES // 2)
    assert bench.cap.dirty_pages == PAGES
    assert not bench.cap.admit(B, 3)
    bench.cap.target_pages = PAGES + 1
    assert bench.cap.admit(B, 3, patient=False)
    bench.cap.target_pages = PAGES // 2
    assert [bench.flush(64) for _ in range(2)] == [list(range(64)), list(range(64, 128))]
    bench.cap.target_pages = 2 * PAGES
    assert not bench.cap.wants_flush()
    bench.now_s += PATIENT_S + 1
    assert bench.cap.wants_flush(), "what was found is old by now"
    assert len(bench.flush(500)) == 500
    bench.make(A)
    bench.cap.sync()
    assert bench.cap.dirty_pages == 1
    assert bench.cap.choose(500) == [(B, 3)], "nothing is left of a region that is no more"


def test_a_region_of_the_same_name_is_another_one() -> None:
    bench = Bench()
    bench.dirty(1, 2, 3)
    bench.make(A)
    bench.objects.by_name[A].write(9 * PAGE_BYTES, b"x")
    number = bench.cap.regions[A].table.number
    bench.cap.sync()
    assert bench.cap.dirty_pages == 1, "what is there, and nobody has seen it come"
    assert bench.cap.is_settled(A, 9)
    assert bench.cap.regions[A].table.number > number
    del bench.objects.by_name[A]
    bench.cap.sync()
    assert bench.cap.dirty_pages == 0
    assert set(DirtyBook.open(bench.mapping).tables) == {B}


def test_what_was_restored_is_clean() -> None:
    bench = Bench()
    bench.objects.by_name[A].write(9 * PAGE_BYTES, b"x")
    bench.objects.by_name[B].write(9 * PAGE_BYTES, b"x")
    cap = DirtyCap(SimulatedMemory(bench.objects), lambda: 0.0)
    cap.open(DirtyBook.format(HeapMapping(book_bytes(4 * PAGES))), {A: 17})
    assert cap.regions[A].table.number == 17
    assert not cap.is_settled(A, 9)
    assert cap.is_settled(B, 9)
    assert cap.regions[B].table.number == 18


def test_an_exposed_region_is_not_charged_and_dirty_when_it_is_covered_again() -> None:
    bench = Bench()
    looks: list[int] = []
    bench.cap.on_exposure = lambda: looks.append(bench.cap.dirty_pages)
    guard = PageGuard()
    guard.cap = bench.cap
    bench.dirty(1, 2, 3)
    with guard.exposed(A):
        assert looks == [3], "it counts as a whole before it is taken out"
        assert bench.cap.dirty_pages == 0
        assert bench.cap.is_exposed(A)
        assert bench.cap.is_settled(A, 700)
        bench.objects.by_name[A].write(700 * PAGE_BYTES, b"x")
    assert bench.cap.dirty_pages == 1
    assert bench.cap.is_settled(A, 700)
    assert not bench.cap.is_settled(A, 1)


def test_a_book_that_is_none_is_said() -> None:
    mapping = HeapMapping(book_bytes(PAGES))
    book = DirtyBook.format(mapping)
    book.add(A, 1, 1, 100)
    mapping.store(2 * PAGE_BYTES // 2 + 9, b"\7")
    with pytest.raises(DataLoss, match="entry 0"):
        DirtyBook.open(mapping)
    with pytest.raises(DataLoss, match="header"):
        DirtyBook.open(HeapMapping(book_bytes(PAGES)))


def test_a_book_uses_its_room_again() -> None:
    book = DirtyBook.format(HeapMapping(book_bytes(PAGES)))
    first = book.add(A, 1, 1, PAGES)
    second = book.add(B, 2, 2, PAGES)
    with pytest.raises(ResourceExhausted):
        book.add("region.g.c", 3, 3, PAGE_BYTES)
    second.set(5, DIRTY)
    book.remove(first)
    again = book.add("region.g.c", 3, 3, PAGES)
    assert again.at == first.at
    assert (again.charged(), second.charged()) == (0, 1)
    book.begin(7, True, 9)
    assert book.base == (7, True, 9)


def test_a_region_that_cannot_be_watched_counts_as_a_whole_until_it_can() -> None:
    bench = Bench()
    seeing = False
    bench.cap.watch = lambda name: seeing
    bench.make("region.g.c")
    bench.cap.sync()
    assert bench.cap.is_exposed("region.g.c")
    assert bench.cap.dirty_pages == 0
    bench.objects.by_name["region.g.c"].write(7 * PAGE_BYTES, b"unseen")
    seeing = True
    bench.cap.sync()
    assert not bench.cap.is_exposed("region.g.c")
    assert bench.cap.dirty_pages == 1
    assert bench.cap.is_settled("region.g.c", 7)


def test_a_region_is_watched_before_anything_of_it_is_clean() -> None:
    bench = Bench(target=5000)
    seen: list[tuple[str, bool]] = []

    def watch(name: str) -> bool:
        seen.append((name, name in bench.cap.regions))
        return True

    bench.cap.watch = watch
    bench.cap.expose(A)
    bench.cap.cover(A)
    assert seen == [(A, False)]


def test_a_region_for_which_the_book_has_no_room_counts_as_a_whole() -> None:
    bench = Bench()
    bench.objects.made += 1
    bench.objects.by_name["region.g.c"] = Bytes(8 * PAGES * PAGE_BYTES, identity=bench.objects.made)
    bench.cap.sync()
    assert bench.cap.is_exposed("region.g.c")
    assert bench.cap.is_settled("region.g.c", 5)


def test_a_cap_that_is_opened_again_goes_on_with_what_it_knew() -> None:
    bench = Bench()
    bench.dirty(1, 2, 3)
    bench.cap.expose(B)
    again = HeapMapping(bench.mapping.size_bytes)
    again.store(0, bench.mapping.load(0, bench.mapping.size_bytes))
    bench.cap.open(DirtyBook.open(again))
    assert bench.cap.dirty_pages == 3
    assert bench.cap.is_exposed(B)


def test_a_spoiled_book_is_not_believed() -> None:
    bench = Bench()
    DirtyBook.spoil(bench.mapping)
    with pytest.raises(DataLoss):
        DirtyBook.open(bench.mapping)


def test_pages_that_come_back_soonest_are_flushed_last() -> None:
    bench = Bench()
    soon, late, never = range(20), range(100, 120), range(500, 545)
    bench.dirty(*soon, *late)
    bench.now_s += PATIENT_S + 1
    assert len(bench.flush()) == 40
    bench.dirty(*soon)
    bench.now_s += 1.0
    bench.dirty(*late, *never)
    assert set(bench.flush()) < set(never)
    bench.cap.target_pages = 26
    flushed = bench.flush()
    assert set(late) < set(flushed)
    assert len(set(soon) & set(flushed)) <= 2


def test_the_room_below_the_cap_follows_what_becomes_dirty_during_a_flush() -> None:
    bench = Bench(target=200)

    def filled() -> int:
        while not bench.cap.wants_flush():
            bench.dirty(next(page for page in range(PAGES) if not bench.cap.is_settled(A, page)))
        return bench.cap.dirty_pages

    levels = []
    for _ in range(60):
        levels.append(filled())
        bench.flush()
    assert (levels[0], levels[-1]) == (161, 191)
    filled()
    chosen = bench.cap.choose(1000)
    bench.cap.flushing(chosen)
    for page in range(700, 712):
        assert bench.cap.admit(A, page, patient=False) or bench.cap.dirty_pages == 200
    bench.cap.flushed(chosen)
    bench.flush()
    assert filled() < 186, "as much again must have room next time, and more"


def test_a_region_that_was_taken_up_anew_during_a_flush_is_queued_once() -> None:
    bench = Bench()
    bench.dirty(*range(90))
    chosen = bench.cap.choose(1000)
    bench.cap.flushing(chosen)
    bench.cap.expose(A)
    bench.objects.by_name[A].write(0, bytes(90 * PAGE_BYTES))
    bench.cap.cover(A)
    assert bench.cap.dirty_pages == 90
    bench.cap.failed(chosen)
    bench.cap.target_pages = 1
    flushed = bench.flush()
    assert len(flushed) == len(set(flushed)) == 90
    assert not bench.cap.choose(1000)
