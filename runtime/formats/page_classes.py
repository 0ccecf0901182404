"""The page-class answers of a guest: what it says of each page of its volatile memory, and the host's word to it.

    answers = PageClasses.format(memory_object.map(), pages=65536)
    answers.set_kind(first_page=7, count=2, kind=Kind.BUFFER)      # the guest's allocator
    answers.touch(first_page=7, count=2)                           # its library, on every access
    answers.set_target(1000)                                       # the host: give so many pages back

One memory object per guest, mapped by both. What the guest answers are hints: a host that is lied to must lose nothing
but the liar's own memory. So each side owns the words it writes, nothing that a guest writes is ever an offset or a
length for the host, and the number of pages is what the host knows, not what the header says. A byte or an aligned word
is one store, so each is seen old or new. docs/formats.md, "Page classes", has the layout. Standard library only.
"""

from __future__ import annotations

import enum

from everram.runtime.errors import FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MAGIC = int.from_bytes(b"EVRCLASS", "little")
VERSION = 1
MEMORY_LABEL, CLASSES_LABEL = "@memory", "@classes"
"""What a guest's volatile memory and this table are called among its grants: no region can have such a name."""
PREFIX = "classes."
"""Of the memory objects' names; a guest_id follows. Never saved: they end with the guest's process."""

_MAGIC, _VERSION, _PAGES = 0, 8, 16
QUESTION_OFFSET = 80
"""Of the word on which the guest's agent sleeps (futex)."""
_TICK, _TARGET, _QUESTION = 64, 72, QUESTION_OFFSET
"""The host's words, a cache line of their own."""
_ANSWER, _BALLOONED, _WANTED, _REFAULTS, _KEPT = 128, 136, 144, 152, 160
"""The guest's words."""
KINDS_OFFSET = PAGE_BYTES
"""The header has a page to itself, so that it can grow."""


class Kind(enum.IntEnum):
    """What a guest uses a page for, as it says."""

    FREE = 0
    """Nothing: what it holds may be thrown away. Zero, so that a new table needs no stores."""
    PINNED = 1
    """It must stay where it is."""
    ANONYMOUS = 2
    """Data that is nowhere else."""
    BUFFER = 3
    """Clean cache: the guest can get it again from where it came from."""
    DIRTY = 4
    """Cache that is not written back yet."""
    BALLOONED = 5
    """Given back to the host: it is not there, and the guest does not use it."""


OPEN = 0x80
"""Flag of a kind: the guest's library does not see every access to the page, so its touches say nothing."""
_KIND_MASK = 0x7F


class PageClass(enum.IntEnum):
    """Classes of use over an interval. The first six are a guest's pages; the others have no memory of the host."""

    UNRECLAIMABLE = 0
    ACTIVE_ANONYMOUS = 1
    ACTIVE_BUFFER = 2
    INACTIVE_ANONYMOUS = 3
    INACTIVE_BUFFER = 4
    FREE = 5
    BALLOONED = 6
    SWAPPED = 7
    UNTOUCHED = 8
    """The guest has never used it since it began, or gave it up: nothing to take."""


RESIDENT = tuple(PageClass)[: PageClass.FREE + 1]
WORKING = (PageClass.UNRECLAIMABLE, PageClass.ACTIVE_ANONYMOUS, PageClass.ACTIVE_BUFFER)
"""The working set."""


def classify(kind: int, active: bool, *, present: bool, swapped: bool) -> PageClass:
    """The class of one page. `kind`: the byte that the guest says, true or not; `present` and `swapped`: as the host
    knows."""
    if present:
        return _PRESENT[active][kind]
    if swapped:
        return PageClass.SWAPPED
    return PageClass.BALLOONED if kind & _KIND_MASK == Kind.BALLOONED else PageClass.UNTOUCHED


def _of_present(known: int, active: bool) -> PageClass:
    if known in (Kind.FREE, Kind.BALLOONED):
        return PageClass.FREE
    if known == Kind.PINNED:
        return PageClass.UNRECLAIMABLE
    if known in (Kind.BUFFER, Kind.DIRTY):
        return PageClass.ACTIVE_BUFFER if active else PageClass.INACTIVE_BUFFER
    return PageClass.ACTIVE_ANONYMOUS if active else PageClass.INACTIVE_ANONYMOUS


_PRESENT = tuple(tuple(_of_present(kind & _KIND_MASK, active) for kind in range(256)) for active in (False, True))
"""By whether it is active, and what the guest says: a host asks for hundreds of pages each second."""


def object_name(guest_id: str) -> str:
    return PREFIX + guest_id


def check_version(mapping: Mapping) -> None:
    """Raises FailedPrecondition for a table of another version, which a host of this one cannot use."""
    magic, version = mapping.load_u64(_MAGIC), mapping.load_u64(_VERSION)
    if magic == MAGIC and version != VERSION:
        raise FailedPrecondition(f"page classes: written in version {version}, this everram reads {VERSION}")


class PageClasses:
    """The table of one guest, for either side. Pages outside raise IndexError: a bug in the caller."""

    def __init__(self, mapping: Mapping, pages: int) -> None:
        """`pages`: as the caller knows."""
        if mapping.size_bytes < self.total_bytes(pages):
            raise ValueError(f"a table of {pages} pages does not fit into {mapping.size_bytes} bytes")
        self._mapping = mapping
        self.pages = pages
        self._touched_offset = KINDS_OFFSET + _whole_pages(pages)

    @staticmethod
    def total_bytes(pages: int) -> int:
        return KINDS_OFFSET + 2 * _whole_pages(pages)

    @staticmethod
    def format(mapping: Mapping, pages: int) -> PageClasses:
        """A new table in zeroed memory: everything is free, nobody answers yet."""
        table = PageClasses(mapping, pages)
        mapping.store_u64(_VERSION, VERSION)
        mapping.store_u64(_PAGES, pages)
        mapping.publish_u64(_MAGIC, MAGIC)
        return table

    @staticmethod
    def open(mapping: Mapping) -> PageClasses:
        """The guest's side, which takes the host's word. Raises ValueError for another version."""
        magic, version, pages = (mapping.load_u64(at) for at in (_MAGIC, _VERSION, _PAGES))
        if magic != MAGIC or version != VERSION:
            raise ValueError(f"page classes: version {version} of the table, this library speaks version {VERSION}")
        return PageClasses(mapping, pages)

    # -- the host's words

    @property
    def tick(self) -> int:
        """The interval: an access is dated by it."""
        return self._mapping.load_u64(_TICK)

    def set_tick(self, tick: int) -> None:
        self._mapping.store_u64(_TICK, tick)

    @property
    def target(self) -> int:
        """How many pages the balloon shall hold."""
        return self._mapping.load_u64(_TARGET)

    def set_target(self, pages: int) -> None:
        self._mapping.store_u64(_TARGET, pages)

    @property
    def question(self) -> int:
        """Raised by the host whenever it wants to know whether somebody is there to answer."""
        return self._mapping.load_u64(_QUESTION)

    def set_question(self, number: int) -> None:
        self._mapping.store_u64(_QUESTION, number)

    # -- the guest's words

    @property
    def answer(self) -> int:
        """The last question that the guest's agent has seen."""
        return self._mapping.load_u64(_ANSWER)

    def set_answer(self, number: int) -> None:
        self._mapping.store_u64(_ANSWER, number)

    @property
    def ballooned(self) -> int:
        """How many pages the guest's balloon holds."""
        return self._mapping.load_u64(_BALLOONED)

    def set_ballooned(self, pages: int) -> None:
        self._mapping.store_u64(_BALLOONED, pages)

    @property
    def wanted(self) -> int:
        """How many pages the guest would like to have back."""
        return self._mapping.load_u64(_WANTED)

    def set_wanted(self, pages: int) -> None:
        self._mapping.store_u64(_WANTED, pages)

    @property
    def refaults(self) -> int:
        """Entries of its cache that the guest gave up for the balloon and then had to get again."""
        return self._mapping.load_u64(_REFAULTS)

    def set_refaults(self, count: int) -> None:
        self._mapping.store_u64(_REFAULTS, count)

    @property
    def is_kept(self) -> bool:
        """Whether the guest keeps this table at all: what one says that does not means nothing, "free" included."""
        return self._mapping.load_u64(_KEPT) == MAGIC

    def set_kept(self) -> None:
        self._mapping.store_u64(_KEPT, MAGIC)

    # -- pages

    def kinds(self) -> bytes:
        """Of all pages, one byte each: a Kind, or that and OPEN."""
        return self._mapping.load(KINDS_OFFSET, self.pages)

    def touches(self) -> bytes:
        """Of all pages, the low 8 bits of the tick at their last access."""
        return self._mapping.load(self._touched_offset, self.pages)

    def kind(self, page: int) -> int:
        self._check(page, 1)
        return self._mapping.load(KINDS_OFFSET + page, 1)[0]

    def touched(self, page: int) -> int:
        """As one of `touches`."""
        self._check(page, 1)
        return self._mapping.load(self._touched_offset + page, 1)[0]

    def set_kind(self, first_page: int, count: int, kind: int) -> None:
        """A guest says so before it uses the pages in that way, and after it has ceased to."""
        self._check(first_page, count)
        self._mapping.store(KINDS_OFFSET + first_page, bytes((kind,)) * count)

    def touch(self, first_page: int, count: int) -> None:
        self._check(first_page, count)
        tick = self._mapping.load_u64(_TICK) & 0xFF
        self._mapping.store(self._touched_offset + first_page, bytes((tick,)) * count)

    def forget_old(self) -> None:
        """Keep what was last touched long ago from looking new when the low bits of the tick come round again.

        An access meanwhile may be dated back: a hint that is wrong for one interval.
        """
        tick = self.tick
        oldest = (tick - OLDEST) & 0xFF
        table = bytes(touched if (tick - touched) & 0xFF <= OLDEST else oldest for touched in range(256))
        self._mapping.store(self._touched_offset, self.touches().translate(table))

    def close(self) -> None:
        self._mapping.close()

    def _check(self, first_page: int, count: int) -> None:
        if first_page < 0 or count < 0 or first_page + count > self.pages:
            raise IndexError(f"{count} pages at {first_page} of a table of {self.pages}")


OLDEST = 128
"""Ticks beyond which ages are not told apart; `forget_old` is due every so many at least."""


def age(touched: int, tick: int) -> int:
    """Ticks since a page was last touched, by the low bits that are kept of it."""
    return (tick - touched) & 0xFF


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
