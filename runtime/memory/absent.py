"""Pages whose content is elsewhere: not restored from an image yet, or swapped out.

Their memory has a hole where they belong. The first touch of one, a load as well as a store, reaches the page service
as a missing-page fault, and it asks the keepers here for what belongs there:

    service.absent.append(keeper)                     # before guests are attached
    keeper.fill("region.0f3c.ledger", 7)              # -> Fill(first=0, data=...): 16 pages around it; None: later
    service.supply("region.0f3c.ledger", fill)        # later, or before anybody asks

That is the first thing done on any fault: what is not there can neither be saved for a snapshot nor become dirty. A
page that no keeper has is a hole like any other, and gets zeros. A keeper publishes that a page is absent before its
memory is given back, and forgets it only when it is told that the page is `filled`: a guest may end in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from everram.runtime.environment import MemoryObject, Stretch
from everram.runtime.memory.contract import PAGE_BYTES

CLUSTER_PAGES = 16
"""A fault costs 14-19 us with one page, 40-70 us with these 64 KiB: so many at once are the sweet spot."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Neighbouring pages with what belongs there. Those that are there already stay as they are."""

    first: int
    data: bytes

    @property
    def pages(self) -> range:
        return range(self.first, self.first + len(self.data) // PAGE_BYTES)


class AbsentPages(Protocol):
    """A keeper of absent pages: a restore, or swapping."""

    def may_lack(self, arena: str) -> bool:
        """Whether any page of this memory may be absent, now or later while the guest is attached. Missing pages of
        other memory are the kernel's business, which is faster."""

    def is_absent(self, arena: str, page: int) -> bool: ...

    def fill(self, arena: str, page: int) -> Fill | None:
        """A thread waits for this page, which is absent: its content, with neighbours that are absent too; None:
        `PageService.supply` brings it, or `PageService.poison` says that nobody has it. Must not await."""

    def filled(self, arena: str, pages: range) -> None:
        """These are in memory now, and absent no more; not all of them need have been."""


class Lack(Protocol):
    """What the host itself asks about one object, before it touches it: its own accesses are not trapped."""

    def bring(self, offset: int, length: int, *, leniently: bool = False) -> None:
        """All of this range is in memory when this returns, or all that can be had (`leniently`). On the loop only.
        Raises DataLoss if it cannot be had, ResourceExhausted."""

    def extents(self, start: int, end: int) -> list[tuple[int, int]]:
        """(offset, length) of what is absent, ascending."""


class LackingObject(Protocol):
    """A memory object that may have absent pages."""

    lack: Lack | None

    @property
    def inode(self) -> int:
        """Tells it from every other object that has or had its name."""

    def fill(self, offset: int, data: bytes) -> None:
        """Put there what was absent; nobody has it mapped. Raises ResourceExhausted."""


def keeper_of(keepers: Iterable[AbsentPages], arena: str, page: int) -> AbsentPages | None:
    """Who has what belongs there; None: it is no absent page."""
    return next((keeper for keeper in keepers if keeper.is_absent(arena, page)), None)


def is_lacking(memory: object) -> bool:
    """Whether a memory object has absent pages, so that mapping it takes as long as bringing them all."""
    return getattr(memory, "lack", None) is not None


def bring_what_is_left(memory: MemoryObject, offset: int, length: int) -> bool:
    """For a save, on the loop: what is absent is brought, as far as it can be had; whether all of it is there now.
    Raises ResourceExhausted."""
    Stretch(memory, offset, length).bring()
    lack: Lack | None = getattr(memory, "lack", None)
    return lack is None or not lack.extents(offset, offset + length)


def read_what_is_left(memory: MemoryObject, offset: int, length: int) -> bytes:
    """For a save, on the loop: what is absent is brought before, and zeros stand for what is lost; the guest that has
    lost it never starts from them. Raises ResourceExhausted."""
    stretch, content = Stretch(memory, offset, length), bytearray(length)
    stretch.bring()
    stretch.copy_to(memoryview(content))
    return bytes(content)
