"""How often memory comes back to use that was not used for a while: clean cache beside anonymous memory.

    warmth.look(classes)                       # each tick, while memory is short
    warmth.cache.rate                          # parts of idle pages used again, each tick
    is_warm(warmth.cache, anonymous=all_guests_anonymous)

A balloon gives clean cache first, since that costs nothing to give. It costs something to get again, so where cache
that seems idle is wanted back much more often than anonymous memory that seems idle, the latter is taken first: the
cost of what comes back decides between them, as in TMO (ASPLOS'22) and in Linux's balance of file and anonymous memory
since 5.8. It is seen while the pages are still there, so nothing has to be lost first. What guests say of their pages
are hints here, too: who lies of its cache makes others' idle pages go first, and those alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from everram.runtime.formats.page_classes import Kind, PageClasses, age

ACTIVE_TICKS = 4
"""A page that was used within so many ticks is active; one that was not is idle."""
DECAY = 0.85
"""Of what was seen, each tick: half of it is forgotten in four."""
DEARER = 2.0
"""An anonymous page is written before it goes, and read when it comes back."""
LEAST_PAGES = 16
"""That were used again, before anything is concluded."""

CACHE = bytes(kind == Kind.BUFFER for kind in range(256))
ANONYMOUS = bytes(kind in (Kind.ANONYMOUS, Kind.DIRTY) for kind in range(256))
"""Tables that mark the kinds which can be got again, and those which are nowhere else."""


@dataclass(slots=True)
class Reuse:
    """Of pages that were idle, in page ticks, and how many of them were used again. Old sights count for less."""

    idle: float = 0.0
    again: float = 0.0

    @property
    def rate(self) -> float:
        return self.again / self.idle if self.idle else 0.0

    def add(self, idle: int, again: int) -> None:
        self.idle = DECAY * self.idle + idle
        self.again = DECAY * self.again + again


def together(each: Iterable[Reuse]) -> Reuse:
    found = Reuse()
    for one in each:
        found.idle += one.idle
        found.again += one.again
    return found


def is_warm(cache: Reuse, anonymous: Reuse) -> bool:
    """Whether idle anonymous memory, of which there is some, is cheaper to take than this cache that seems idle."""
    return cache.again >= LEAST_PAGES and anonymous.idle > 0 and cache.rate > DEARER * anonymous.rate


@dataclass(slots=True)
class Warmth:
    """Of one guest."""

    cache: Reuse = field(default_factory=Reuse)
    anonymous: Reuse = field(default_factory=Reuse)
    _idle_cache: int = field(default=0, repr=False)
    """Pages that were idle at the last look, one byte each in one number: by far the fastest way to join tables."""
    _idle_anonymous: int = field(default=0, repr=False)

    def look(self, classes: PageClasses) -> None:
        """Before the tick moves on: what was idle when it began, and was used in it."""
        kinds, touches, tick = classes.kinds(), classes.touches(), classes.tick
        ages = [age(touched, tick) for touched in range(256)]
        used = number(touches.translate(bytes(each == 0 for each in ages)))
        old = number(touches.translate(bytes(each >= ACTIVE_TICKS for each in ages)))
        cache, anonymous = number(kinds.translate(CACHE)), number(kinds.translate(ANONYMOUS))
        self.cache.add(self._idle_cache.bit_count(), (self._idle_cache & used & cache).bit_count())
        self.anonymous.add(self._idle_anonymous.bit_count(), (self._idle_anonymous & used & anonymous).bit_count())
        self._idle_cache, self._idle_anonymous = cache & old, anonymous & old

    def pause(self) -> None:
        """Nothing is looked at for a while: what was idle then tells nothing of the next look."""
        self._idle_cache = self._idle_anonymous = 0


def number(marks: bytes) -> int:
    """Marks of pages, one byte each, as one number."""
    return int.from_bytes(marks, "little")
