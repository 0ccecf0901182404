"""The dirty cap: how many pages may differ from what is flushed, and who has to wait for it. Awaits nothing.

    cap = DirtyCap(memory, now_s)
    cap.open(book)                                    # from now on stores are charged
    cap.target_pages = 28_000
    if cap.admit("region.0f3c.ledger", 7): ...        # the page may be stored to
    chosen = cap.choose(256)                          # to be flushed: protect them, then
    cap.flushing(chosen)                              # read, write and sync them, and then
    cap.flushed(chosen)

A page is charged before it may be stored to, and until what it holds is durable, so at no instant there is more to be
saved than was charged. Two thresholds: near the cap each new page costs its writer a delay that grows towards it, and
at the cap it waits until something was flushed. Flushing begins below both, so that whoever writes no more than the
disk takes never meets either: by as much as has lately become dirty during a flush, twice over, because what is kept
free costs whoever stores here and there a fault for each page that is not dirty for it. When the cap is lowered below
what is charged, nothing is admitted until that is drained.

Which page is flushed: the one that will be stored to again last, as far as one can tell. How often a dirty page is
stored to nobody sees, but when a page comes back after it was flushed is a fault: the time that it was away, averaged
over its returns, sorts it into a queue, by powers of two. The queue of the longest times is flushed first, before all
others pages that never came back, and of a queue the page that was charged first. A page that was hot and is no more
is flushed when it is old (PATIENT_S), and sorted anew.

A region of which nobody sees the stores (a guest without userfaultfd, a copy that its primary is still writing into) is
*exposed*: it is not tracked, and whoever sets the cap counts all of it.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import NotFound, ResourceExhausted, Unavailable
from everram.runtime.formats.dirty_book import CLEAN, DIRTY, FLUSHING, DirtyBook, Table
from everram.runtime.memory.contract import PAGE_BYTES

TRACKED_PREFIX = "region."
ROOM_LEAST, ROOM_MOST = 0.05, 0.2
"""Of the cap: how far below it flushing begins. Writers are slowed from the middle of that on."""
ROOM_DECAY = 0.97
"""With each flush, while less than that is needed."""
FLUSH_PART = 0.05
"""Of the cap: as much is flushed then."""
DELAY_MAX_S = 0.005
"""Of one page, just below the cap."""
PATIENT_S = 10.0
"""Even far below the cap a page is flushed when it has been dirty for so long: a save is then shorter."""
LATEST = 0.3
"""Weight of a page's last time away in its average."""
NEVER = 64
"""Number of the queue of pages that have not come back yet."""
REMEMBERED, REMEMBERED_MOST = 4, 1 << 17
"""For as many pages as four times the cap it is known when they were flushed; of a large cap not for so many, as each
takes some 300 bytes, but for as many as the cap."""

PageKey = tuple[str, int]
_NAME_OF = operator.itemgetter(0)


@dataclass(slots=True)
class Region:
    """One tracked region."""

    table: Table
    memory: MemoryObject


class DirtyCap:
    """Until it has a book, everything may be dirty and nothing is charged."""

    def __init__(self, memory: Memory, now_s: Callable[[], float]) -> None:
        self._memory = memory
        self._now_s = now_s
        self.book: DirtyBook | None = None
        self.target_pages = 0
        self.dirty_pages = 0
        """Charged now."""
        self.regions: dict[str, Region] = {}
        self._opened: dict[str, int] = {}
        self._unwatched: set[str] = set()
        """Those of them that are exposed only because nobody could see the next store to them."""
        self._taken: deque[tuple[str, int, int, float]] = deque()
        """(region, first page, count, since when) of pages that were dirty when their region was taken up, and belong
        before all others: they are queued when their turn comes, since of a large region that would take a host so long
        that its machine took it for hung."""
        self._queues: dict[int, OrderedDict[PageKey, float]] = {}
        """Dirty pages that are not being flushed, and since when: by number of the queue, see `_queue`."""
        self._usual_s: dict[PageKey, float] = {}
        """How long dirty pages that have come back were away."""
        self._flushed: OrderedDict[PageKey, tuple[float, float | None]] = OrderedDict()
        """When pages that are clean were flushed, and how long they were away before that, if they had come back."""
        self._chosen_of: dict[str, Region] = {}
        """The regions of what was chosen last, as they were then."""
        self._room, self._arrived, self._arrived_before = ROOM_MOST, 0, 0
        self._due_s: dict[PageKey, float] = {}
        """Pages whose writers are being slowed."""
        self.next_number = 1
        self.on_pressure: Callable[[], None] = lambda: None
        """Told when something should be flushed now."""
        self.on_delay: Callable[[float], None] = lambda seconds: None
        """Told when a writer waits for so long."""
        self.watch: Callable[[str], bool] = lambda name: True
        """Has every next store to a region be seen; False: that cannot be said now."""
        self.on_exposure: Callable[[], None] = lambda: None
        """Told when a region begins or ceases to count as a whole."""
        self.most_dirty_pages = 0
        self.delayed, self.waited = 0, 0
        """Pages whose writers were slowed, and stopped at the cap."""
        self._restored: dict[str, int] = {}

    # -- which regions

    @property
    def active(self) -> bool:
        return self.book is not None

    def open(self, book: DirtyBook, restored: Mapping[str, int] | None = None) -> None:
        """Charge from now on. What is in the book is believed; flushes that were under way count as not done.

        `restored`: numbers of regions whose pages are what the image has, by name: nobody has stored to them since.
        """
        self._reset()
        self.book = book
        self._restored = dict(restored or {})
        self.next_number = max((self.next_number, *(number + 1 for number in self._restored.values())))
        self.dirty_pages = 0
        for name, table in list(book.tables.items()):
            memory = self._find(name)
            if memory is None or memory.identity != table.identity:
                book.remove(table)
            else:
                self._take(Region(table, memory))
        self.sync()
        self._restored.clear()

    def close(self) -> None:
        """Nothing is charged any more, and nothing is known to be clean."""
        self._reset()

    def _reset(self) -> None:
        book, self.book = self.book, None
        if book is not None:
            book.close()
        self.regions.clear()
        for known in (self._queues, self._usual_s, self._flushed, self._due_s):
            known.clear()
        self._taken.clear()
        self.dirty_pages = 0

    def sync(self) -> None:
        """Take up regions that are new, and drop those that are no more."""
        if self.book is None:
            return
        for name, region in list(self.regions.items()):
            memory = self._find(name)
            if memory is None or memory.identity != region.table.identity:
                self._drop(region)
        for name in sorted(self._unwatched):
            if name in self._unwatched and self.watch(name):  # `cover` comes here again
                self._unwatched.discard(name)
                self.cover(name)
        for name in self._memory.names():
            if name.startswith(TRACKED_PREFIX):
                self._tracked(name)

    def region(self, name: str) -> Region:
        """Taken up if it is new: then what is present of it is dirty, unless it came from the image. Raises NotFound,
        ResourceExhausted, and Unavailable while the next store to it may go unseen."""
        if (region := self.regions.get(name)) is not None:
            return region
        assert self.book is not None
        memory = self._memory.open(name)
        number = self._restored.get(name, 0)
        if not self.watch(name):  # before anything of it is found to be clean, the next store to it must be seen
            raise Unavailable(f"stores to {name} cannot be seen now")
        extents = [] if number else memory.extents()
        dirty = [(offset // PAGE_BYTES, -(-length // PAGE_BYTES)) for offset, length in extents]
        pages = -(-memory.size_bytes // PAGE_BYTES)
        table = self.book.add(name, memory.identity, number or self.take_number(), pages, dirty)
        region = Region(table, memory)
        self._take(region)
        return region

    def take_number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def _find(self, name: str) -> MemoryObject | None:
        try:
            return self._memory.open(name)
        except NotFound:
            return None

    def _take(self, region: Region) -> None:
        table = region.table
        self.regions[table.name] = region
        self.next_number = max(self.next_number, table.number + 1)
        for first, count in table.runs():
            table.fill(first, count, DIRTY)
            self._taken.append((table.name, first, count, self._now_s()))
            self._count(count)

    def _queue_taken(self, pages_max: int) -> None:
        """The next of them, in front of the others."""
        next_ones: list[tuple[PageKey, float]] = []
        while self._taken and len(next_ones) < pages_max:
            name, first, count, since_s = self._taken.popleft()
            now = min(count, pages_max - len(next_ones))
            next_ones += (((name, page), since_s) for page in range(first, first + now))
            if now < count:
                self._taken.appendleft((name, first + now, count - now, since_s))
        queue = self._queue(None)
        for key, since_s in reversed(next_ones):
            queue[key] = since_s
            queue.move_to_end(key, last=False)

    def _drop(self, region: Region) -> None:
        assert self.book is not None
        name = region.table.name
        self.dirty_pages -= region.table.charged()
        known: list[dict[PageKey, Any]] = [*self._queues.values(), self._usual_s, self._flushed, self._due_s]
        for each in known:
            for key in [key for key in each if key[0] == name]:
                del each[key]
        if any(run[0] == name for run in self._taken):
            self._taken = deque(run for run in self._taken if run[0] != name)
        del self.regions[name]
        self.book.remove(region.table)

    def expose(self, name: str) -> None:
        """From now on somebody stores to this region unseen: it counts as a whole, and no page of it is clean."""
        self._opened[name] = self._opened.get(name, 0) + 1
        if self._opened[name] == 1:
            self.on_exposure()  # counted as a whole before it is dropped
        if name in self.regions:
            self._drop(self.regions[name])

    def cover(self, name: str) -> None:
        """That one has ended. Once none is left, what is present of it is dirty, and the rest is watched."""
        left = self._opened.pop(name, 1) - 1
        if left > 0:
            self._opened[name] = left
        else:
            self.sync()
            self.on_exposure()

    @property
    def exposed(self) -> frozenset[str]:
        return frozenset(self._opened)

    def is_exposed(self, name: str) -> bool:
        """Whether somebody stores to this region unseen."""
        return name in self._opened

    # -- stores

    def is_settled(self, name: str, page: int) -> bool:
        """Whether the page may be stored to without more ado."""
        region = self._tracked(name)
        return region is None or region.table.get(page) == DIRTY

    def _tracked(self, name: str) -> Region | None:
        """None if stores to it are not charged."""
        if self.book is None or name in self._opened:
            return None
        try:
            return self.region(name)
        except NotFound:
            return None  # it is no more
        except ResourceExhausted:
            self.expose(name)  # the book has no room for it: it counts as a whole
            return None
        except Unavailable:
            self._unwatched.add(name)  # it counts as a whole, until `sync` finds that it can be watched
            self.expose(name)
            return None

    def admit(self, name: str, page: int, *, patient: bool = True) -> bool:
        """Charge a page that is about to be stored to. False: not yet; ask again when told. A host's own store is not
        `patient`: it is not delayed, but it stops at the cap as well."""
        region = self._tracked(name)
        if region is None:
            return True
        state = region.table.get(page)
        if state == CLEAN and not self._has_room((name, page), patient):
            return False
        self._charge(region, page)
        return True

    def _has_room(self, key: PageKey, patient: bool) -> bool:
        if self.dirty_pages >= (1 - self._room) * self.target_pages:
            self.on_pressure()
        if self.dirty_pages >= self.target_pages:
            self.waited += 1
            return False
        threshold = (1 - self._room / 2) * self.target_pages
        if not patient or self.dirty_pages < threshold:
            return True
        now_s, due_s = self._now_s(), self._due_s.pop(key, None)
        if due_s is not None and now_s >= due_s:
            return True
        if due_s is None:
            self.delayed += 1
            due_s = now_s + DELAY_MAX_S * (self.dirty_pages - threshold) / max(1.0, self.target_pages - threshold)
        self._due_s[key] = due_s
        self.on_delay(max(0.0, due_s - now_s))
        return False

    def _charge(self, region: Region, page: int) -> None:
        """The book says so before anybody may store."""
        table, key = region.table, (region.table.name, page)
        state = table.get(page)
        if state == DIRTY:
            return
        table.set(page, DIRTY)
        self._due_s.pop(key, None)
        now_s = self._now_s()
        if state == CLEAN:
            self._count(1)
            self._arrived += 1
            away = self._flushed.pop(key, None)
            if away is not None:
                flushed_s, usual_s = away
                away_s = now_s - flushed_s
                self._usual_s[key] = away_s if usual_s is None else usual_s + LATEST * (away_s - usual_s)
        else:
            self._usual_s[key] = 0.0  # it did not even stay away for its flush
        self._queue(self._usual_s.get(key))[key] = now_s

    def _queue(self, usual_s: float | None) -> OrderedDict[PageKey, float]:
        """Of pages that are usually away for so long; None: that never came back."""
        number = NEVER if usual_s is None else int(1000 * usual_s).bit_length()
        queue = self._queues.get(number)
        if queue is None:
            queue = self._queues[number] = OrderedDict()
        return queue

    def _first_flushed(self) -> list[OrderedDict[PageKey, float]]:
        """The queues in their order."""
        return [self._queues[number] for number in sorted(self._queues, reverse=True)]

    def _count(self, pages: int) -> None:
        self.dirty_pages += pages
        self.most_dirty_pages = max(self.most_dirty_pages, self.dirty_pages)

    # -- flushing

    def wants_flush(self) -> bool:
        """Whether flushing should begin, or go on."""
        return self.dirty_pages > (1 - self._room) * self.target_pages or self._has_old()

    def _has_old(self) -> bool:
        before_s = self._now_s() - PATIENT_S
        if self._taken and self._taken[0][-1] < before_s:
            return True
        return any(next(iter(queue.values()), before_s) < before_s for queue in self._queues.values())

    def choose(self, pages_max: int) -> list[PageKey]:
        """Pages to flush now, sorted; none when enough is clean."""
        kept = int((1 - self._room - FLUSH_PART) * self.target_pages)
        wanted = min(pages_max, max(0, self.dirty_pages - kept))
        chosen: list[PageKey] = []
        if wanted or self._has_old():
            self._queue_taken(pages_max)
        queues = self._first_flushed()
        for queue in queues:
            while queue and len(chosen) < wanted:
                chosen.append(queue.popitem(last=False)[0])
        before_s = self._now_s() - PATIENT_S
        for queue in queues:
            while len(chosen) < pages_max and next(iter(queue.values()), before_s) < before_s:
                chosen.append(queue.popitem(last=False)[0])
        self._arrived_before = self._arrived
        self._chosen_of = {name: self.regions[name] for name in {name for name, _ in chosen}}
        return sorted(chosen)

    def flushing(self, chosen: Iterable[PageKey]) -> None:
        """They are protected, and are read from now on: whoever stores to one makes it dirty again."""
        for name, keys in groupby(chosen, key=_NAME_OF):
            put = self.regions[name].table.set
            for _, page in keys:
                put(page, FLUSHING)

    def flushed(self, chosen: Iterable[PageKey]) -> list[PageKey]:
        """What was read of them is durable; those that are clean now."""
        clean: list[PageKey] = []
        now_s = self._now_s()
        for name, keys in groupby(chosen, key=_NAME_OF):
            region = self.regions.get(name)
            if region is None:
                continue
            state, put = region.table.get, region.table.set
            for key in keys:
                if state(key[1]) == FLUSHING:  # or it was stored to meanwhile
                    put(key[1], CLEAN)
                    self._flushed[key] = now_s, self._usual_s.pop(key, None)
                    clean.append(key)
        self.dirty_pages -= len(clean)
        remembered = max(self.target_pages, min(REMEMBERED * self.target_pages, REMEMBERED_MOST))
        while len(self._flushed) > max(1024, remembered):
            self._flushed.popitem(last=False)
        needed = 2 * (self._arrived - self._arrived_before) / max(1, self.target_pages)
        self._room = min(ROOM_MOST, max(ROOM_LEAST, needed, ROOM_DECAY * self._room))
        return clean

    def failed(self, chosen: Iterable[PageKey]) -> None:
        """Those of them that are not clean by now were not written: dirty as before."""
        for key in chosen:
            region = self.regions.get(key[0])
            if region is None or region.table.get(key[1]) == CLEAN:
                continue
            region.table.set(key[1], DIRTY)
            if region is not self._chosen_of.get(key[0], region):
                continue  # it was taken up anew, and what is dirty of it is in `_taken`
            self._queue(self._usual_s.get(key)).setdefault(key, self._now_s())

    def doubt(self, name: str, pages: Iterable[int]) -> int:
        """Nothing durable has what these hold, whatever the book says. How many were called clean."""
        region, before = self.regions[name], self.dirty_pages
        for page in pages:
            self._charge(region, page)
        return self.dirty_pages - before

    def check_host_store(self, name: str, first: int, last: int) -> None:
        """Of this host's own, to pages `first` to `last`. Raises ResourceExhausted at the cap."""
        if self.book is not None:
            for page in range(first, last + 1):
                if not self.admit(name, page, patient=False):
                    raise ResourceExhausted("as much as the battery could save is dirty: wait until it is flushed")
