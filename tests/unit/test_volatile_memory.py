"""A guest's volatile memory: blocks, cache, balloon, and what it says of its pages meanwhile."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.formats.page_classes import OPEN, Kind, PageClasses
from everram.runtime.guest.errors import Detached, OutOfMemory, RegionError
from everram.runtime.guest.page_runs import PageRuns
from everram.runtime.guest.volatile import Block, Volatile
from everram.runtime.memory import futex, memfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.mapped import Mapped

PAGES = 64


@pytest.fixture
def memory() -> Iterator[Volatile]:
    descriptor = os.memfd_create("volatile", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGES * PAGE_BYTES)
    classes = PageClasses.format(HeapMapping(PageClasses.total_bytes(PAGES)), PAGES)
    made = Volatile(Mapped(descriptor, PAGES * PAGE_BYTES), classes)
    made.descriptor = descriptor  # type: ignore[attr-defined]
    yield made
    os.close(descriptor)


def filled(memory: Volatile, pages: int) -> Block:
    """A block that was stored to, so that there is memory behind it."""
    block = memory.allocate(pages * PAGE_BYTES)
    block.store(0, b"z" * block.size_bytes)
    return block


def ask(memory: Volatile, pages: int) -> None:
    """The host wants the balloon to hold so many."""
    memory.classes.set_target(pages)
    while memory.obey():
        pass


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60), st.integers())
def test_runs_of_pages_are_a_set(acts: list[tuple[bool, int]], seed: int) -> None:
    dice, free, held = random.Random(seed), PageRuns([(0, 40)]), set[int]()
    for take, count in acts:
        if take and free.pages >= count:
            taken = [page for first, length in free.take(count) for page in range(first, first + length)]
            assert len(taken) == count
            assert not held & set(taken)
            held.update(taken)
        elif held:
            page = dice.choice(sorted(held))
            free.add(page, 1)
            held.remove(page)
        left = {page for first, length in free.runs() for page in range(first, first + length)}
        assert left == set(range(40)) - held
        assert free.pages == len(left)
        assert all(sum(a) < b[0] for a, b in zip(free.runs(), free.runs()[1:], strict=False))


def test_blocks_hold_what_is_stored_also_in_several_pieces(memory: Volatile) -> None:
    first, second, third = (memory.allocate(20 * PAGE_BYTES) for _ in range(3))
    memory.free(first)
    memory.free(third)
    assert second.runs == [(20, 20)]
    block = memory.allocate(40 * PAGE_BYTES - 5)
    assert len(block.runs) == 2
    data = random.Random(1).randbytes(30_000)
    block.store(19 * PAGE_BYTES - 7, data)
    assert block.load(19 * PAGE_BYTES - 7, len(data)) == data
    with pytest.raises(RegionError, match="outside"):
        block.store(40 * PAGE_BYTES - 5, b"x")
    with pytest.raises(RegionError, match="pieces"):
        _ = block.view
    with pytest.raises(OutOfMemory, match="more --memory"):
        memory.allocate(5 * PAGE_BYTES)
    memory.free(block)
    with pytest.raises(RegionError):
        block.load(0, 1)


def test_the_table_says_what_pages_are(memory: Volatile) -> None:
    pinned, plain = memory.allocate(PAGE_BYTES, pinned=True), memory.allocate(2 * PAGE_BYTES)
    cache = memory.cache()
    cache.put("clean", b"c" * 100)
    cache.put("dirty", b"d" * 5000, dirty=True)
    kinds = memory.classes.kinds()
    assert [kinds[block.runs[0][0]] for block in (pinned, plain)] == [Kind.PINNED, Kind.ANONYMOUS]
    assert (kinds.count(Kind.BUFFER), kinds.count(Kind.DIRTY)) == (1, 2)
    cache.clean("dirty")
    assert memory.classes.kinds().count(Kind.BUFFER) == 3
    plain.view[:3] = b"abc"
    assert memory.classes.kind(plain.runs[0][0]) == Kind.ANONYMOUS | OPEN
    assert plain.load(0, 3) == b"abc"
    memory.classes.set_tick(77)
    plain.store(PAGE_BYTES, b"x")
    assert memory.classes.touched(plain.runs[0][0] + 1) == 77
    assert memory.classes.touched(plain.runs[0][0]) == 0
    memory.free(plain)
    assert memory.classes.kind(plain.runs[0][0] if plain.runs else 1) == Kind.FREE


def test_a_balloon_takes_free_pages_then_clean_cache_then_what_the_program_sheds(memory: Volatile) -> None:
    used, freed = filled(memory, 20), filled(memory, 10)
    cache = memory.cache()
    for number in range(10):
        cache.put(number, bytes((number + 1,)) * PAGE_BYTES)
    cache.put("dirty", b"d" * PAGE_BYTES, dirty=True)
    cache.get(0)
    memory.free(freed)
    ask(memory, 3)
    assert memory.classes.ballooned == 3
    assert memory.classes.kinds().count(Kind.BALLOONED) == 3
    assert len(cache) == 11
    ask(memory, 14)
    assert memory.classes.ballooned == 14
    assert [number for number in range(10) if cache.get(number) is None] == [1, 2, 3, 4]
    ask(memory, 40)
    assert memory.classes.ballooned == 20  # all that was free and had memory behind it, and all clean cache
    assert len(cache) == 1
    assert cache.get("dirty") == b"d" * PAGE_BYTES
    cache.put(5, b"again")
    assert memory.classes.refaults == 1

    def shed(pages: int) -> int:
        memory.free(used)
        return pages

    memory.on_pressure = shed
    ask(memory, 41)
    assert memory.classes.ballooned >= 39


def test_an_allocation_takes_the_balloon_back_at_once_and_tells_the_host(memory: Volatile) -> None:
    memory.free(filled(memory, 60))
    ask(memory, 50)
    assert memory.classes.ballooned == 50
    assert memory.free_bytes == PAGES * PAGE_BYTES
    again = memory.allocate(30 * PAGE_BYTES)
    assert memory.classes.ballooned == 34
    assert memory.classes.wanted == 16
    assert again.load(0, 10) == bytes(10)
    ask(memory, 34)  # the host agrees
    assert memory.classes.wanted == 0
    ask(memory, 0)
    assert memory.classes.ballooned == 0
    assert memory.classes.kinds().count(Kind.BALLOONED) == 0


def test_pages_that_were_never_used_are_no_gift(memory: Volatile) -> None:
    ask(memory, 10)
    assert memory.classes.ballooned == 0


def test_an_absurd_target_takes_what_there_is(memory: Volatile) -> None:
    memory.free(filled(memory, PAGES))
    ask(memory, 1 << 60)
    assert memory.classes.ballooned == PAGES
    assert memory.allocate(PAGES * PAGE_BYTES).size_bytes == PAGES * PAGE_BYTES


def test_a_cache_gives_way_to_blocks(memory: Volatile) -> None:
    cache = memory.cache()
    for number in range(PAGES):
        assert cache.put(number, b"x" * PAGE_BYTES)
    cache.put("one more", b"y")
    assert cache.get(0) is None
    assert cache.get("one more") == b"y"
    memory.allocate((PAGES - 1) * PAGE_BYTES)
    assert len(cache) == 1
    with pytest.raises(OutOfMemory):
        cache.put("dirty", bytes(2 * PAGE_BYTES), dirty=True)
    assert not cache.put("clean", bytes(2 * PAGE_BYTES))


def test_a_forked_child_is_refused(memory: Volatile) -> None:
    block = memory.allocate(10)
    memory.detach()
    with pytest.raises(Detached):
        memory.allocate(10)
    with pytest.raises(Detached):
        block.load()
    assert not memory.obey()


def test_memory_really_goes_back_to_the_computer(memory: Volatile) -> None:
    block = filled(memory, 40)
    descriptor: int = memory.descriptor  # type: ignore[attr-defined]
    assert os.fstat(descriptor).st_blocks * 512 == 40 * PAGE_BYTES
    memory.free(block)
    memfd.punch(descriptor, 0, 5 * PAGE_BYTES)  # the host has taken some by itself
    ask(memory, 30)
    assert os.fstat(descriptor).st_blocks * 512 == 5 * PAGE_BYTES
    assert memory.classes.ballooned == 30


def test_a_word_in_shared_memory_wakes_who_waits_for_it() -> None:
    descriptor = os.memfd_create("bell", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    bell = Mapped(descriptor, mmap.PAGESIZE)
    assert not futex.wait(bell.address + 8, 0, 0.001)
    assert futex.wait(bell.address + 8, 1, 10)  # it has changed already
    woken = threading.Event()

    def listen() -> None:
        while bell.load_u64(8) == 0:
            futex.wait(bell.address + 8, 0, 10)
        woken.set()

    listener = threading.Thread(target=listen)
    listener.start()
    bell.store_u64(8, 1)
    while not woken.wait(0.001):
        futex.ring(bell, 8)
    listener.join()
    os.close(descriptor)
