"""Flushing in the background: dirty pages go to segments while guests run, so that a save has little left to do.

    flusher = Flusher(context, cap, writers)
    await flusher.begin(restored)                     # the machine's memory is charged from now on
    flusher.run()                                     # as a task
    async with flusher.stopped() as flushed:          # nothing is under way; guests stand still
        await save(environment, cause, memory_id, flushed)
    await flusher.go_on()                             # if guests run again after that

The order of one flush is what makes it exact: protect the pages, so that the next store to each is seen; say in the
book that they are on their way; read them; write and sync them; and those that nobody has stored to since are clean.
A flush that fails leaves them dirty. Segments that no marker names are removed once later ones have all that they
have, and a segment with little left of it is emptied by writing that again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from everram.actors.power_monitor.segments import Segments
from everram.runtime.actor import ActorContext
from everram.runtime.environment import MemoryObject, Stretch
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, NotFound
from everram.runtime.formats.catalog import SavedObject
from everram.runtime.formats.dirty_book import MEMORY_NAME, DirtyBook, book_bytes
from everram.runtime.formats.image import Survey, examine
from everram.runtime.formats.image_writer import tidy, unneeded
from everram.runtime.formats.segment import SegmentIndex, SegmentRef, SegmentWriter
from everram.runtime.memory.absent import is_lacking, read_what_is_left
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap, PageKey
from everram.runtime.runs import runs as runs_of

BATCH_PAGES = 512
"""Of one flush: a few milliseconds, after which its pages are clean."""
TICK_S = 0.05
"""Between looks for regions that are new, and for pages that have been dirty for long."""
TIMER_S = 0.001
"""What the host's loop can tell apart."""
RETRY_S = 1.0
"""After storage did not take a flush."""


class Writers(Protocol):
    """Guests' stores. The real one is `everram.runtime.memory.page_service`."""

    def protect_arena(self, arena: str) -> bool: ...

    def protect_pages(self, memory: str, pages: Sequence[int]) -> bool: ...

    def retry_all(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a save goes on from."""

    base: tuple[SegmentRef, ...] = ()
    segment: SegmentWriter | None = None
    dirty: Mapping[str, tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)
    """By region: its number, and (first page, count) of what is not in the segments."""
    first_number: int = 1
    """For what is saved as a whole."""
    exposed: frozenset[str] = frozenset()
    """Regions that somebody may be storing to, though guests stand still."""


@dataclass(slots=True)
class Restored:
    """The image that the memory is, page for page, when a host starts on it."""

    generation: int
    objects: Sequence[SavedObject]
    past: bool = False
    """Whether somebody may have stored to it since."""


class Flusher:
    """One a host; at work while the cap is active."""

    def __init__(self, context: ActorContext, cap: DirtyCap, writers: Writers | None) -> None:
        self._context, self._environment = context, context.environment
        self._disk = context.environment.disk
        self._cap = cap
        self._writers = writers
        self._one = asyncio.Lock()
        self._pressed = asyncio.Event()
        self._segments = Segments(self._disk)
        self._windows: dict[str, tuple[int, memoryview]] = {}
        """Of regions that were flushed, by name, with the identity of their memory."""
        self._resting = False
        """Whether everything was saved, and nobody has gone on since."""
        self.trouble = ""
        """Why flushing does not go on; empty: it does."""
        self.flushed_pages = 0
        self._retrying: asyncio.TimerHandle | None = None
        self._retry_at_s = 0.0
        cap.on_pressure = self._pressed.set
        cap.on_delay = self._delay
        if writers is not None:
            cap.watch = writers.protect_arena

    # -- beginning and ending

    async def begin(self, memory_id: str, restored: Restored | None = None) -> None:
        """Charge from now on; go on with the book that an earlier host has left. Raises ResourceExhausted, DataLoss;
        then no book is left that could be believed later."""
        async with self._one:
            try:
                await self._begin(memory_id, restored)
            except BaseException:
                self._distrust()
                self._cap.close()  # of an actor before this one: nobody knows the segments that its clean pages are in
                if self._writers is not None:
                    self._writers.retry_all()
                raise

    async def _begin(self, memory_id: str, restored: Restored | None) -> None:
        survey = await examine(self._disk)
        self._segments.survey(memory_id, survey)
        book = self._kept_book(survey)
        named: dict[int, SegmentRef] = {}
        own: list[int] = []
        indexes: list[SegmentIndex] = []
        if book is not None:
            try:
                named, own = _chain(book, survey)
                indexes = await self._segments.indexes(named, own)
            except DataLoss as error:
                self._context.log.warning("%s: everything counts as dirty", error.message)
                book, restored = None, None
        if book is None:
            book = await self._new_book(survey, restored)
            named, own = _chain(book, survey)
            indexes = await self._segments.indexes(named, own)
        self._pass_over_numbers(indexes)
        numbers = {saved.name: saved.number for saved in restored.objects} if restored else {}
        self._cap.open(book, numbers)
        self._segments.take_up(indexes, named, self._numbers())
        await self._doubt()

    def _numbers(self) -> set[int]:
        return {region.table.number for region in self._cap.regions.values()}

    def _pass_over_numbers(self, indexes: Iterable[SegmentIndex]) -> None:
        """No region made later gets one that stands for something in a segment."""
        for index in indexes:
            for batch in index.batches:
                self._cap.next_number = max(self._cap.next_number, 1 + max(batch.runs[::3], default=0))

    async def _doubt(self) -> None:
        """What lay in a segment that is gone without a trace is dirty: it is called clean, no segment has it, and it is
        not zeros."""
        found = 0
        for name, region in list(self._cap.regions.items()):
            await asyncio.sleep(0)
            self._cap.sync()
            if self._cap.regions.get(name) is not region:
                continue
            states = region.table.states()
            for first, end in _pieces(region.memory.extents()):
                lacking = self._segments.holdings.lacks(region.table.number, first, states[first:end])
                if not lacking:
                    continue
                await asyncio.sleep(0)
                self._cap.sync()
                if self._cap.regions.get(name) is not region:
                    break
                found += self._cap.doubt(name, [page for page in lacking if _has_something(region.memory, page)])
        if found:
            self._context.log.warning("%d pages are in no segment though they were flushed: they count as dirty", found)

    def _kept_book(self, survey: Survey) -> DirtyBook | None:
        """None if there is none, or it is of no use: then everything is dirty."""
        try:
            book = DirtyBook.open(self._environment.memory.open(MEMORY_NAME).map())
        except NotFound:
            return None
        except DataLoss as error:
            self._context.log.warning("%s: everything counts as dirty", error.message)
            return None
        generation, based, _ = book.base
        there = survey.marker.generation if survey.marker else 0
        if there < generation or (based and not there):
            self._context.log.warning("the image that this memory was flushed to is gone: everything counts as dirty")
            return None
        return book

    async def _new_book(self, survey: Survey, restored: Restored | None) -> DirtyBook:
        memory = self._environment.memory
        await memory.remove(MEMORY_NAME)
        kept = await memory.create(MEMORY_NAME, book_bytes(memory.capacity_bytes // PAGE_BYTES))
        book = DirtyBook.format(kept.map())
        generation = survey.marker.generation if survey.marker else 0
        book.begin(generation, restored is not None and restored.generation == generation, self._segments.next_number)
        return book

    def _distrust(self) -> None:
        """Stores were not charged, or will not be: nothing that the book calls clean need be so."""
        with contextlib.suppress(NotFound):
            mapping = self._environment.memory.open(MEMORY_NAME).map()
            DirtyBook.spoil(mapping)
            mapping.close()

    async def end(self) -> None:
        """Nothing is charged any more."""
        async with self._one:
            await self._segments.close()
            self._segments.own.clear()
            self._windows.clear()
            self._distrust()
            self._cap.close()
            if self._writers is not None:
                self._writers.retry_all()
            await self._environment.memory.remove(MEMORY_NAME)
            await tidy(self._disk)

    async def settle(self) -> None:
        """The host ends: its successor goes on with the book and with what is in the segments."""
        async with self._one:
            await self._segments.close()

    # -- flushing

    async def run(self) -> None:
        """While the cap is active."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._pressed.wait()
            self._pressed.clear()
            if not self._cap.active:
                return
            self._let_go()
            if self._resting:
                continue
            try:
                self._cap.sync()  # also where nothing is to be flushed: what is new is charged
                while self._cap.wants_flush() and await self._flush_some():
                    # As much garbage is taken away as each flush makes: writers may never let this end.
                    if self._segments.has_garbage():
                        await self._collect()
                await self._collect()
                self.trouble = ""
            except EverramError as error:
                if self.trouble != error.message:
                    self._context.log.warning("dirty memory is not flushed: %s", error.message)
                self.trouble = error.message
                await asyncio.sleep(RETRY_S)
                with contextlib.suppress(EverramError):
                    await self._collect()  # what it removes may be the room that was missing

    async def _flush_some(self) -> bool:
        async with self._one:
            if not self._cap.active or self._resting:
                return False
            self._cap.sync()
            self._let_go()
            chosen = self._cap.choose(BATCH_PAGES)
            if not chosen:
                return False
            goes_on = True
            with self._reading(name for name, _ in chosen):
                goes_on = await self._flush(chosen)
            return goes_on  # noqa: RET504 (a region that was removed ends the block above early)

    @contextlib.contextmanager
    def _reading(self, names: Iterable[str]) -> Iterator[None]:
        """Regions may be removed while they are read: then what was read with them is still to be flushed."""
        regions = {name: self._cap.regions[name] for name in names}
        try:
            yield
        except OSError:
            self._cap.sync()
            if all(self._cap.regions.get(name) is region for name, region in regions.items()):
                raise

    async def _flush(self, chosen: Sequence[PageKey]) -> bool:
        """False if the next store to none of them would be seen now."""
        cap = self._cap
        regions = {name: cap.regions.get(name) for name, _ in chosen}
        try:
            protected = self._protect(chosen)
        except BaseException:
            cap.failed(chosen)
            raise
        if not protected:
            cap.failed(chosen)
            return False
        try:
            segment = await self._segments.current()
            for name, pages in _by_region(protected):
                await self._add(segment, name, pages)
            await self._segments.settle()
        except BaseException:
            cap.failed(chosen)
            await self._segments.give_up()
            raise
        for name, pages in _by_region(protected):
            if name in cap.regions and cap.regions[name] is regions[name]:
                self._segments.holdings.put_each(segment.number, cap.regions[name].table.number, pages)
        self.flushed_pages += len(cap.flushed(protected))
        cap.failed(chosen)
        if self._writers is not None:
            self._writers.retry_all()
        return True

    def _protect(self, chosen: Sequence[PageKey]) -> list[PageKey]:
        """Those of them whose next store will be seen; they are said to be on their way."""
        protected: list[PageKey] = []
        for name, pages in _by_region(chosen):
            if name in self._cap.regions and (self._writers is None or self._writers.protect_pages(name, pages)):
                protected += ((name, page) for page in pages)
        self._cap.flushing(protected)
        return protected

    async def _add(self, segment: SegmentWriter, name: str, pages: Sequence[int]) -> None:
        region = self._cap.regions.get(name)
        if region is None:
            return
        number, memory = region.table.number, region.memory
        if is_lacking(memory):
            for first, count in runs_of(pages):
                await self._add_run(segment, number, memory, first, count)
            return
        # A hole would become memory if the window were looked at there.
        present = [page for page in pages if memory.is_present(page * PAGE_BYTES)]
        for first, count in runs_of(sorted(set(pages).difference(present))):
            await segment.add_zeros(number, first, count)
        await segment.add_scattered(number, runs_of(present), self._window(name, memory))

    def _window(self, name: str, memory: MemoryObject) -> memoryview:
        """Kept from one flush to the next: a page that is dirty again is mapped already. Whoever stores to it meanwhile
        makes it dirty again, so that what was read of it does not count."""
        known = self._windows.get(name)
        if known is None or known[0] != memory.identity:
            known = self._windows[name] = memory.identity, memory.window()
        return known[1]

    def _let_go(self) -> None:
        """Of the windows of regions that are no more: they would keep their memory."""
        memory = self._environment.memory
        names = set(memory.names()) if self._windows else set()
        for name, (identity, _) in list(self._windows.items()):
            if name not in names or memory.open(name).identity != identity:
                del self._windows[name]

    async def _add_run(self, segment: SegmentWriter, number: int, memory: MemoryObject, first: int, count: int) -> None:
        """Holes are read as zeros: to ask where they are takes the kernel as long as the rest of the region is."""
        offset, length = first * PAGE_BYTES, count * PAGE_BYTES
        # What is still in an image is brought here: that is no business of the disk's threads.
        piece = read_what_is_left(memory, offset, length) if is_lacking(memory) else Stretch(memory, offset, length)
        await segment.add(number, first, piece)

    def _delay(self, seconds: float) -> None:
        """One timer for all writers that are slowed, at the first instant at which one may go on; whoever has to wait
        for longer says so again then. In whole ticks: what came too early would only be asked again."""
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max(1, math.ceil(seconds / TIMER_S)) * TIMER_S
        if self._writers is None or (self._retrying is not None and self._retry_at_s <= at_s):
            return
        if self._retrying is not None:
            self._retrying.cancel()
        self._retrying, self._retry_at_s = loop.call_at(at_s, self._retry), at_s

    def _retry(self) -> None:
        self._retrying = None
        if self._writers is not None:
            self._writers.retry_all()

    # -- segments

    async def _collect(self) -> None:
        """Remove segments of which nothing is left, and empty one if much of them all is garbage."""
        async with self._one:
            if self._resting:
                return
            self._cap.sync()
            self._segments.holdings.keep(self._numbers())
            await self._segments.remove_empty()
            if (ref := self._segments.to_empty()) is not None:
                with self._reading(self._cap.regions):
                    await self._empty(ref)

    async def _empty(self, ref: SegmentRef) -> None:
        """A part of it: what is clean is copied, and whoever stores to a page meanwhile makes it dirty anyway."""
        names = {region.table.number: region for region in self._cap.regions.values()}
        moved: list[tuple[int, int, int]] = []
        segment = await self._segments.current()
        try:
            for number, first, count in self._segments.holdings.of(ref.number):
                if sum(pages for _, _, pages in moved) >= BATCH_PAGES:
                    break
                moved.append((number, first, min(count, BATCH_PAGES)))
                await self._add_run(segment, number, names[number].memory, *moved[-1][1:])
            await self._segments.settle()
        except BaseException:
            await self._segments.give_up()
            raise
        for number, first, count in moved:
            self._segments.holdings.put(segment.number, number, first, count)

    # -- saving

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[Flushed]:
        """What a save has to know; nothing is flushed meanwhile. Without a cap everything is to be saved."""
        async with self._one:
            if not self._cap.active:
                yield Flushed(exposed=self._cap.exposed)
                return
            self._cap.sync()
            regions = self._cap.regions.items()
            dirty = {name: (region.table.number, list(region.table.runs())) for name, region in regions}
            self._segments.holdings.keep({number for number, _ in dirty.values()})
            self._resting = True
            # A save that comes to nothing leaves what it wrote in this segment, under numbers that no region may get.
            first_number = self._cap.next_number
            self._cap.next_number += len(self._environment.memory.names())
            yield Flushed(self._segments.live, self._segments.writer, dirty, first_number, self._cap.exposed)

    async def go_on(self) -> None:
        """After a save, whatever became of it, when guests run again: the marker's segments lie under what is flushed
        from now on. What was saved stays dirty, because nobody would see the next store to it."""
        async with self._one:
            await self._rebase()
            self._resting = False

    async def _rebase(self) -> None:
        segments = self._segments
        await segments.close()
        try:
            survey = await examine(self._disk)
        except FailedPrecondition:
            return  # nothing can have been saved there, and the next flush says why
        segments.next_number = max(segments.next_number, survey.next_segment)
        book, marker = self._cap.book, survey.marker
        if book is None or marker is None or marker.generation <= book.base[0]:
            return
        indexes = await segments.rebase(survey, self._numbers())
        book.begin(marker.generation, True, segments.next_number)
        self._pass_over_numbers(indexes)

    async def tidy(self) -> None:
        """Remove what no image needs any more. What that is, is found while nobody saves or flushes; nobody will need
        it later, so that they need not wait while it is removed."""
        async with self._one:
            names = await unneeded(self._disk, self._segments.needed)
        for name in names:
            await self._disk.remove(name)


def _chain(book: DirtyBook, survey: Survey) -> tuple[dict[int, SegmentRef], list[int]]:
    """The segments under what is flushed, as the marker names them, and those that were flushed since.

    A marker later than the book knows of is of a save of this very memory, whose host died before it noted that: its
    segments have all that was clean.
    """
    generation, based, first = book.base
    marker = survey.marker
    if marker is None or (marker.generation == generation and not based):
        return {}, [number for number in survey.segments if number >= first]
    named = {ref.number: ref for ref in marker.segments}
    if marker.generation > generation:
        first = max((*named, first - 1)) + 1
    return named, [number for number in survey.segments if number >= first]


def _pieces(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first page, end), so few at a time that the loop lives on."""
    for offset, length in extents:
        end = -(-(offset + length) // PAGE_BYTES)
        for first in range(offset // PAGE_BYTES, end, BATCH_PAGES):
            yield first, min(end, first + BATCH_PAGES)


def _has_something(memory: MemoryObject, page: int) -> bool:
    """But zeros; what has yet to be brought from an image counts as something."""
    offset = page * PAGE_BYTES
    return is_lacking(memory) or bool(memory.read(offset, min(PAGE_BYTES, memory.size_bytes - offset)).strip(b"\0"))


def _by_region(chosen: Iterable[PageKey]) -> list[tuple[str, list[int]]]:
    return [(name, [page for _, page in keys]) for name, keys in groupby(chosen, key=lambda key: key[0])]
