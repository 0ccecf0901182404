"""One guest's volatile memory as its host sees it: the memory, what the guest says of it, and where its pages are.

Sizes are pages unless a name says otherwise. What the guest writes is read here and believed nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from everram.actors.memory_scheduler.estimates import Usage
from everram.actors.memory_scheduler.history import History
from everram.actors.memory_scheduler.targets import Demand, Technique
from everram.actors.memory_scheduler.warmth import ACTIVE_TICKS, ANONYMOUS, CACHE, Warmth, number
from everram.runtime.environment import MemoryObject
from everram.runtime.formats.page_classes import OPEN, QUESTION_OFFSET, Kind, PageClass, PageClasses, age, classify
from everram.runtime.formats.swap_table import SwapTable
from everram.runtime.memory import futex
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.paging import PagedMemory

PATIENCE_NS = 1_500_000_000
"""A guest that has not answered for so long does not answer: longer than its library sleeps, and than a busy
interpreter makes it wait."""
STALL_NS = 1_000_000_000
"""A balloon that gives nothing for so long of what it was asked for stalls."""
STALL_REST_NS = 5_000_000_000
"""Then it is not counted on for so long."""

_WORD = (1 << 64) - 1
_SWAPPABLE = bytes(kind in (Kind.ANONYMOUS, Kind.BUFFER, Kind.DIRTY) for kind in range(256))
_UNSEEN = bytes(kind & OPEN != 0 and kind & ~OPEN not in (Kind.FREE, Kind.BALLOONED) for kind in range(256))
_UNUSED = bytes(kind in (Kind.FREE, Kind.BALLOONED) for kind in range(256))


@dataclass(slots=True)
class Counters:
    """Pages, since this host's process began."""

    swapped_in: int = 0
    swapped_out: int = 0
    ballooned: int = 0
    discarded: int = 0
    misplaced: int = 0


@dataclass(slots=True)
class Balloon:
    """How a guest's balloon does what it is asked for."""

    asked: int = 0
    """The target it was last given."""
    held: int = 0
    moved_ns: int = 0
    """When it last came nearer to it, or had no need to."""
    stalled_until_ns: int = 0

    def ask(self, target: int, now_ns: int) -> None:
        """Who is asked again has no more time for it: only who had done what it was asked for begins anew."""
        if self.held >= self.asked:
            self.moved_ns = now_ns
        self.asked = target

    def look(self, held: int, now_ns: int) -> int:
        """Take note of what it holds; how many pages it gave since."""
        given = max(0, held - self.held)
        self.moved_ns = self.moved_ns or now_ns
        if held != self.held or held >= self.asked:
            self.moved_ns = now_ns
        elif now_ns - self.moved_ns > STALL_NS:
            self.stalled_until_ns, self.moved_ns = now_ns + STALL_REST_NS, now_ns
            self.asked = held
        self.held = held
        return given

    def stalls(self, now_ns: int) -> bool:
        return now_ns < self.stalled_until_ns


@dataclass(slots=True)
class Breath:
    """When a paused guest is next let run for a moment, counted in looks: later and later while it comes out of that
    with more than before."""

    due: int = 0
    gap: int = 0
    resident: int = 0

    def hold(self, now: int, gap: int, resident: int) -> None:
        """It has just been paused."""
        self.due, self.gap, self.resident = now + gap, gap, resident

    def take(self, now: int, gap: int, resident: int) -> None:
        self.gap = 2 * self.gap if resident > self.resident else gap
        self.due, self.resident = now + self.gap, resident


@dataclass(slots=True)
class GuestMemory:
    guest_id: str
    name: str
    memory: MemoryObject
    classes: PageClasses
    table_mapping: Mapping
    swap: SwapTable
    pages: int
    min_pages: int = 0
    max_pages: int = 0
    """0: all of it."""
    paged: PagedMemory | None = None
    """None: nothing can be swapped, because its process has not attached, or this computer cannot."""
    pending: set[int] = field(default_factory=set)
    """Being saved, and not touched since they were protected."""
    loading: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    """Those of them that a thread began to wait for since: it has said so, and does not say so again."""
    broken: dict[int, str] = field(default_factory=dict)
    """Pages that a thread waits for and the storage does not give, and why."""
    unfilled: set[int] = field(default_factory=set)
    """Pages that a thread waits for, and that the computer has no memory for now."""
    window: int = 16
    """Pages that are read together when one is missing."""
    window_end: int = -1
    swapped: int = 0
    usage: Usage = field(default_factory=Usage)
    warmth: Warmth = field(default_factory=Warmth)
    cache_is_warm: bool = False
    history: History = field(default_factory=History)
    counters: Counters = field(default_factory=Counters)
    balloon: Balloon = field(default_factory=Balloon)
    drawn: list[int] = field(default_factory=list)
    """The pages of the next sample; those whose use their guest does not see are watched since they were drawn."""
    suspects: list[int] = field(default_factory=list)
    """Pages that are swapped out if they are not used until the next look."""
    asked_ns: int = 0
    """When the oldest unanswered question was asked; 0: there is none."""
    paused: str = ""
    """Why; empty: it is not."""
    stands: bool = False
    """Whether its process is stopped for that just now."""
    resident_before: int = 0
    breath: Breath = field(default_factory=Breath)
    starved: bool = False
    """It grew while its host had nothing left, and is paused for that."""
    technique: Technique = Technique.NONE
    reason: str = "nothing was decided yet"
    reclaimed: int = 0
    """Since the last decision."""
    spared_until_ns: int = -(1 << 62)
    """It has asked for memory back, so none is taken from it by balloon before."""
    closed: bool = False

    @property
    def resident(self) -> int:
        return self.memory.present_bytes // PAGE_BYTES

    @property
    def works_with(self) -> int:
        """What it needs of the host's memory: its working set, at most, as estimated; or what is reserved for it."""
        used = int(self.usage.working_set_high) if self.usage.totals else self.resident
        return min(self.pages, max(self.min_pages, used))

    def is_pageable(self) -> bool:
        return not self.closed and self.paged is not None

    def answers(self, now_ns: int) -> bool:
        return self.classes.is_kept and (not self.asked_ns or now_ns - self.asked_ns < PATIENCE_NS)

    def ask(self, now_ns: int) -> None:
        """Ring for the guest's agent, and take note of whether it has answered since the last time."""
        question = self.classes.question
        if self.classes.answer == question:
            self.asked_ns = 0
        if not self.asked_ns:
            self.asked_ns = now_ns
        self.classes.set_question((question + 1) & _WORD)  # the guest may have stored anything there
        futex.ring(self.table_mapping, QUESTION_OFFSET)

    def heard(self) -> None:
        """Look whether it has answered, without asking again."""
        if self.classes.answer == self.classes.question:
            self.asked_ns = 0

    def set_target(self, pages: int, now_ns: int) -> None:
        self.balloon.ask(pages, now_ns)
        self.classes.set_target(pages)
        self.ask(now_ns)

    def ask_for(self, pages: int, now_ns: int) -> None:
        """So many more than its balloon holds."""
        self.set_target(min(self.pages, self.balloon.held + pages), now_ns)

    def demand(self, now_ns: int, *, counted: bool) -> Demand:
        """`counted`: with the pages that are free inside it, which takes a look at all of them."""
        most, free = self.max_pages or self.pages, self.count_unused() if counted else None
        return Demand(
            self.guest_id,
            self.resident,
            self.usage,
            self.min_pages,
            most,
            answers=self.answers(now_ns),
            free=free,
            cache_is_warm=self.cache_is_warm,
        )

    # -- pages

    def is_present(self, page: int) -> bool:
        return self.memory.is_present(page * PAGE_BYTES)

    def sampled(self, now_ns: int) -> dict[PageClass, int]:
        """Classes of the drawn pages."""
        kinds, touches, tick = self.classes.kinds(), self.classes.touches(), self.classes.tick
        says = self.classes.is_kept and self.answers(now_ns)
        unseen = [page for page in self.drawn if not says or kinds[page] & OPEN]
        seen_used = self.paged.touched(unseen) if self.paged is not None and unseen else set(unseen)
        counts = dict.fromkeys(PageClass, 0)
        for page in self.drawn:
            by_itself = says and not kinds[page] & OPEN
            active = age(touches[page], tick) <= ACTIVE_TICKS if by_itself else page in seen_used
            kind = kinds[page] if self.classes.is_kept else Kind.ANONYMOUS
            swapped = self.swap.is_swapped(page)
            counts[classify(kind, active, present=self.is_present(page), swapped=swapped)] += 1
        return counts

    def redraw(self, pages: list[int], now_ns: int) -> None:
        self.drawn = pages
        if self.paged is not None:
            kinds, says = self.classes.kinds(), self.answers(now_ns)
            unseen = [page for page in pages if not says or kinds[page] & OPEN]
            if unseen:
                self.paged.forget_touches(unseen)

    def look_at_warmth(self, *, pause: bool) -> None:
        """Before the tick moves on."""
        if pause:
            self.warmth.pause()
        elif self.classes.is_kept:
            self.warmth.look(self.classes)

    def unused(self) -> list[int]:
        """Present pages that the guest itself says are free. Only of a guest that keeps its table."""
        return self._present_among(self.classes.kinds().translate(_UNUSED)) if self.classes.is_kept else []

    def count_unused(self) -> int:
        return self._present_marks(self.classes.kinds().translate(_UNUSED)).bit_count() if self.classes.is_kept else 0

    def is_unused(self, page: int) -> bool:
        return self.classes.is_kept and bool(_UNUSED[self.classes.kind(page)])

    def dead(self) -> list[int]:
        """Swapped pages that the guest has freed since."""
        if not self.classes.is_kept or not self.swapped:
            return []
        kinds = self.classes.kinds()
        return [page for page, _ in self.swap.swapped() if _UNUSED[kinds[page]] and page not in self.loading]

    def coldest(self, count: int, *, however_warm: bool = False, but_cache: bool = False) -> list[int]:
        """Present pages that the guest has not used for longest, as it says, ascending by page."""
        tick, touches = self.classes.tick, self.classes.touches()
        found = self._present_among(self._idle(ANONYMOUS if but_cache else _SWAPPABLE, however_warm=however_warm))
        if len(found) > count:
            ages = bytes(age(touched, tick) for touched in range(256))
            found.sort(key=lambda page: -ages[touches[page]])
            del found[count:]
            found.sort()
        return found

    def count_idle_cache(self) -> int:
        return self._present_marks(self._idle(CACHE)).bit_count()

    def _idle(self, kinds: bytes, *, however_warm: bool = False) -> bytes:
        """Marks of pages of some kinds (a table that tells them) that were not used lately."""
        tick = self.classes.tick
        old = self.classes.touches().translate(
            bytes(however_warm or age(touched, tick) > ACTIVE_TICKS for touched in range(256))
        )
        both = number(old) & number(self.classes.kinds().translate(kinds))
        return both.to_bytes(self.pages, "little")

    def unseen(self) -> list[int]:
        """Present pages whose use the guest does not see, or says nothing of."""
        if not self.classes.is_kept:
            return self._present_among(b"\1" * self.pages)
        return self._present_among(self.classes.kinds().translate(_UNSEEN))

    def any_used(self) -> list[int]:
        """Present pages that are not free, nor pinned, by a guest that does not answer now."""
        if not self.classes.is_kept:
            return self._present_among(b"\1" * self.pages)
        wanted = bytes(_SWAPPABLE[kind & ~OPEN] for kind in range(256))
        return self._present_among(self.classes.kinds().translate(wanted))

    def _present_among(self, marks: bytes) -> list[int]:
        both = self._present_marks(marks).to_bytes(self.pages, "little")
        found: list[int] = []
        at = both.find(1)
        while at >= 0:
            stop = both.find(0, at)
            stop = self.pages if stop < 0 else stop
            found.extend(range(at, stop))
            at = both.find(1, stop)
        return [page for page in found if page not in self.pending] if self.pending else found

    def _present_marks(self, marks: bytes) -> int:
        """As one number, since that is by far the fastest way to join two tables of bytes."""
        if 1 not in marks:
            return 0
        return number(marks) & number(self.memory.present_pages())

    def is_active(self, page: int) -> bool:
        """As the guest says."""
        kind = self.classes.kind(page)
        used = age(self.classes.touched(page), self.classes.tick) <= ACTIVE_TICKS
        return self.classes.is_kept and (kind == Kind.PINNED or (used and kind not in (Kind.FREE, Kind.BALLOONED)))

    def close(self) -> None:
        self.closed = True
        self.pending.clear()
        self.classes.close()
        self.swap.close()


def runs(pages: Iterable[int] | Sequence[int]) -> list[tuple[int, int]]:
    """Ascending pages as (first, count) of neighbours."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and page == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found
