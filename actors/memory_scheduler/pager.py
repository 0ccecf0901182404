"""Pages out and in. The order of each step is what loses no byte, also when the host dies between any two.

    out     protect -> read -> save -> (not touched since?) -> the page's place is published -> its memory is given back
    in      read -> verify -> the page is filled, whole -> its place is cleared -> the slot is free

A page that is present is as it is there, whatever its place says (`formats.swap_table`); so dying after a place was
published, or before it was cleared, leaves the page right. Between the look whether a page was touched and the giving
back of its memory there is no await: a store to a protected page blocks its thread, and comes here as a fault first.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from everram.actors.memory_scheduler.guest_memory import GuestMemory, runs
from everram.actors.memory_scheduler.swap_file import SwapFile, check, no_room
from everram.runtime.errors import EverramError, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.paging import PagedMemory

log = logging.getLogger(__name__)

BATCH_PAGES = 256
"""Saved together; a thread that stores to one of them meanwhile only undoes that page."""
WINDOW_LEAST_PAGES, WINDOW_PAGES = 4, 16
"""Read together at least and at most: 64 KiB costs little more than one page, but what is not used takes memory."""
FAULTS_REMEMBERED = 1024
RETRY_S = 0.5
"""Between attempts to read a page that the storage did not give."""
ZEROS = bytes(PAGE_BYTES)


class Spawn(Protocol):
    def __call__(self, work: Coroutine[Any, Any, None], *, name: str) -> object: ...


class GuestPager:
    """`runtime.memory.paging.Pager` of one host. `on_broken` is called when a guest's page cannot be read."""

    def __init__(
        self, guests: dict[str, GuestMemory], spawn: Spawn, now_ns: Callable[[], int], on_broken: Callable[[str], None]
    ) -> None:
        self.file: SwapFile | None = None
        self.latencies_ns: deque[int] = deque(maxlen=FAULTS_REMEMBERED)
        """From a fault to the page's content, of the last ones that the swap file had."""
        self._guests = guests
        self._spawn = spawn
        self._now_ns = now_ns
        self._on_broken = on_broken

    # -- what the page service tells

    def attached(self, guest_id: str, paged: PagedMemory) -> None:
        guest = self._guests.get(guest_id)
        if guest is None or paged.pages != guest.pages:
            return
        guest.paged = paged
        guest.pending.clear()
        guest.asked.clear()  # whoever waits is woken below, and tells it again
        try:
            for page, _ in guest.swap.swapped():
                paged.watch(page)
        except OSError:
            paged.gone = True
            return
        self._settle(guest)
        paged.wake_all()

    def detached(self, guest_id: str) -> None:
        guest = self._guests.get(guest_id)
        if guest is not None:
            guest.paged = None
            guest.pending.clear()

    def fault(self, guest_id: str, page: int, *, protected: bool) -> None:
        guest = self._guests.get(guest_id)
        if guest is None or guest.paged is None:
            return
        guest.pending.discard(page)
        if protected:
            if guest.swap.is_swapped(page) and guest.is_present(page):
                self._clear(guest, page)  # what is there is newer from now on
            guest.paged.unprotect(page)
        elif not guest.swap.is_swapped(page) and guest.paged.fill_zeros(page):
            pass
        elif page in guest.loading:
            guest.asked.add(page)
        elif guest.swap.is_swapped(page):
            self._begin(guest, page, self._window(guest, page))
        else:
            self._begin(guest, page, [page])

    def _settle(self, guest: GuestMemory) -> None:
        """What a host's death left half done: pages that are there need no place."""
        for page, _ in list(guest.swap.swapped()):
            if guest.is_present(page):
                self._clear(guest, page)

    # -- in

    def _window(self, guest: GuestMemory, page: int) -> list[int]:
        """Pages to read with this one: more while a guest goes through its memory in order, fewer while it jumps."""
        follows = guest.window_end <= page < guest.window_end + WINDOW_PAGES
        guest.window = min(WINDOW_PAGES, guest.window * 2) if follows else max(WINDOW_LEAST_PAGES, guest.window // 2)
        first = page if follows else page - page % guest.window
        window = [
            each
            for each in range(first, min(guest.pages, first + guest.window))
            if each == page or (guest.swap.is_swapped(each) and each not in guest.loading)
        ]
        guest.window_end = page + 1 if not window else window[-1] + 1
        return window

    def _begin(self, guest: GuestMemory, wanted: int, window: Sequence[int]) -> None:
        guest.loading.update(window)
        began_ns = self._now_ns() if guest.swap.is_swapped(wanted) else None
        self._spawn(self._load(guest, wanted, window, began_ns), name=f"page in {guest.name}")

    async def _load(self, guest: GuestMemory, wanted: int, window: Sequence[int], began_ns: int | None) -> None:
        """Bring pages back: `wanted` until it is there, or nobody waits for it any more, its neighbours once.

        `began_ns`: None if `wanted` is a hole, which tells nothing of the swap file's latency.
        """
        neighbours = [page for page in window if page != wanted]
        try:
            try:
                again = await self._load_once(guest, wanted, window)
            finally:
                guest.loading.difference_update(neighbours)
            self._begin_asked(guest, neighbours)
            while again:
                await asyncio.sleep(RETRY_S)  # storage that fails tells nobody when it works again
                again = await self._load_once(guest, wanted, [wanted])
            if began_ns is not None:
                self.latencies_ns.append(self._now_ns() - began_ns)
        finally:
            guest.loading.discard(wanted)
            guest.asked.discard(wanted)
            guest.broken.pop(wanted, None)
            guest.unfilled.discard(wanted)

    def _begin_asked(self, guest: GuestMemory, neighbours: Sequence[int]) -> None:
        """Whoever began to wait for one that was not brought has not been woken, so no fault will tell of it: from now
        on it is wanted for itself, and tried until it is there."""
        asked = [page for page in neighbours if page in guest.asked]
        guest.asked.difference_update(asked)
        for page in asked:
            if guest.closed or guest.paged is None:
                return
            if guest.is_present(page):
                guest.paged.wake(page)
            else:
                self._begin(guest, page, [page])

    async def _load_once(self, guest: GuestMemory, wanted: int, window: Sequence[int]) -> bool:
        """Whether `wanted` has to be tried again."""
        if not guest.is_pageable():
            return False
        places = {page: place for page in window if (place := guest.swap.get(page)) is not None}
        try:
            contents = await self._read([slot for slot, _ in places.values()])
        except EverramError as error:
            self._break(guest, wanted, error.message)
            return True
        if guest.closed or guest.paged is None:
            return False
        again = False
        for (page, place), content in zip(places.items(), contents, strict=True):
            if guest.swap.get(page) != place:
                again = again or page == wanted  # it was freed meanwhile, or is elsewhere by now
                continue
            try:
                check(content, place[1], page)
            except EverramError as error:
                if page == wanted:
                    self._break(guest, wanted, error.message)
                    again = True
                continue
            if guest.paged.fill(page, content):
                guest.counters.swapped_in += 1
                self._clear(guest, page)
            elif page == wanted:
                again = self._lack_memory(guest, page)
        if wanted not in places and not guest.paged.fill_zeros(wanted):
            again = self._lack_memory(guest, wanted)  # somebody waits for it, although there is nothing to read
        return again

    def _lack_memory(self, guest: GuestMemory, page: int) -> bool:
        """It cannot be filled now, and has to be tried again. If for lack of memory, that is said once, and shown while
        it is so."""
        if guest.paged is None or not guest.paged.lacks_memory:
            return True
        if not guest.unfilled:
            log.warning("%s waits for page %d: this computer has no memory left for it", guest.name, page)
        guest.unfilled.add(page)
        return True

    async def _read(self, slots: Sequence[int]) -> list[bytes]:
        """Raises DataLoss, FailedPrecondition."""
        if not slots:
            return []
        if self.file is None:
            raise FailedPrecondition("the swap file cannot be used: its host goes on trying to open it")
        return await self.file.read(slots)

    def _break(self, guest: GuestMemory, page: int, why: str) -> None:
        if page not in guest.broken and guest.is_pageable():  # a guest that ended meanwhile waits for nothing
            guest.broken[page] = why
            self._on_broken(guest.guest_id)

    # -- out

    async def swap_out(self, guest: GuestMemory, pages: Sequence[int]) -> int:
        """At most a batch of present pages, ascending; how many of them are out now.

        Raises ResourceExhausted (no slot, or the disk is full), DataLoss (it failed); nothing is lost.
        """
        file, paged = self.file, guest.paged
        pages = pages[:BATCH_PAGES]
        if file is None or paged is None or not pages:
            return 0
        slots = file.slots.take(len(pages))
        if not slots:
            raise no_room()
        pages = pages[: len(slots)]
        guest.pending.update(pages)
        try:
            kept = await self._save(file, guest, paged, pages, slots)
        except BaseException:
            file.slots.release(slots)
            self._let_go(guest, paged, pages)
            raise
        unused = [slot for slot in slots if slot not in kept]
        file.slots.release(unused)
        return len(slots) - len(unused)

    async def _save(
        self, file: SwapFile, guest: GuestMemory, paged: PagedMemory, pages: Sequence[int], slots: Sequence[int]
    ) -> set[int]:
        """The slots that are in use now."""
        if not self._protect(guest, paged, pages):
            self._let_go(guest, paged, pages)
            return set()
        contents = [
            whole[at : at + PAGE_BYTES]
            for first, count in runs(pages)
            for whole in (guest.memory.read(first * PAGE_BYTES, count * PAGE_BYTES),)
            for at in range(0, len(whole), PAGE_BYTES)
        ]
        await file.write(slots, contents)
        # No await from here on: what is not touched now stays untouched until its memory is given back.
        if guest.closed or guest.paged is not paged or paged.gone:
            return set()
        kept: set[int] = set()
        gone: list[int] = []
        for page, slot, content in zip(pages, slots, contents, strict=True):
            if page not in guest.pending:
                continue
            guest.counters.misplaced += guest.is_active(page)
            if content != ZEROS:  # those come back by themselves
                guest.swap.set(page, slot, zlib.crc32(content))
                guest.swapped += 1
                kept.add(slot)
            gone.append(page)
        for first, count in runs(gone):
            guest.memory.punch(first * PAGE_BYTES, count * PAGE_BYTES)
        guest.pending.difference_update(pages)
        guest.counters.swapped_out += len(gone)
        guest.reclaimed += len(gone)
        return kept

    def discard(self, guest: GuestMemory, pages: Sequence[int]) -> int:
        """Give back the memory of pages that are free inside the guest; how many still were.

        They are protected first: a guest that takes one into use says so before it stores to it, and that store waits.
        """
        paged = guest.paged
        if paged is None or not self._protect(guest, paged, pages):
            return 0
        free = [page for page in pages if guest.is_unused(page)]
        for first, count in runs(free):
            guest.memory.punch(first * PAGE_BYTES, count * PAGE_BYTES)
        for first, count in runs(pages):
            paged.unprotect(first, count)
        guest.counters.discarded += len(free)
        guest.reclaimed += len(free)
        return len(free)

    def drop_dead(self, guest: GuestMemory) -> None:
        """Forget where swapped pages are that the guest has freed."""
        for page in guest.dead():
            self._clear(guest, page)

    def forget(self, guest: GuestMemory) -> None:
        """All of its places: it has ended."""
        for page, slot in list(guest.swap.swapped()):
            guest.swap.clear(page)
            if self.file is not None:
                self.file.slots.release([slot])
        guest.swapped = 0

    def _protect(self, guest: GuestMemory, paged: PagedMemory, pages: Sequence[int]) -> bool:
        try:
            for page in pages:
                paged.watch(page)
            for first, count in runs(pages):
                paged.protect(first, count)
        except OSError:
            return False  # it is ending
        return True

    def _let_go(self, guest: GuestMemory, paged: PagedMemory, pages: Sequence[int]) -> None:
        guest.pending.difference_update(pages)
        if guest.paged is paged and not paged.gone:
            for first, count in runs(pages):
                paged.unprotect(first, count)

    def _clear(self, guest: GuestMemory, page: int) -> None:
        place = guest.swap.get(page)
        if place is not None:
            guest.swap.clear(page)
            guest.swapped -= 1
            if self.file is not None:
                self.file.slots.release([place[0]])
