"""Why a page is write-protected: the decisions of the page service, without a kernel.

There is one write-protect bit per page, but several parts of a host have cause to see the first store to one: a
snapshot must save the old content, the dirty cap must be charged, swapping must bring the content back, tracking must
note it. Each such cause is a `Reason` with a `Keeper`. A page is protected while at least one reason holds; on a
fault the keepers of those that hold are called in the order of `Reason`, and only when none is left may the store go
on.

    pages = ReasonedPages(table, {Reason.UNWRITTEN: NoteOnly()})
    if pages.on_store(7):
        ...  # lift the protection

The facts behind the reasons are in the region's `PageTable`, which outlives the host: a successor that opens the same
table comes to the same decisions. A fact is published before the protection is lifted, never after: a host may die
between the two, and then a page is counted and still protected, which costs one more fault and loses nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Protocol

from everram.runtime.formats.pages import PageTable, State


class Reason(enum.IntEnum):
    """In the order in which their keepers are called.

    The content must be there before it can be saved, saved before the page may become dirty, and the cap may still
    refuse (for a while) before the store is noted as having happened.
    """

    SWAPPED_OUT = 0
    SHARED_WITH_SNAPSHOT = 1
    CLEAN_UNDER_CAP = 2
    UNWRITTEN = 3


_HOLDS_WITH = {Reason.SWAPPED_OUT: State.SWAPPED, Reason.SHARED_WITH_SNAPSHOT: State.SHARED}
"""These hold while the page has the fact."""
_HOLDS_WITHOUT = {Reason.CLEAN_UNDER_CAP: State.DIRTY, Reason.UNWRITTEN: State.WRITTEN}
"""These hold until the page has the fact."""


def holds(reason: Reason, state: State) -> bool:
    if reason in _HOLDS_WITH:
        return bool(state & _HOLDS_WITH[reason])
    return not state & _HOLDS_WITHOUT[reason]


def lifted(reason: Reason, state: State) -> State:
    """The state of a page for which `reason` no longer holds."""
    if reason in _HOLDS_WITH:
        return State(state & ~_HOLDS_WITH[reason])
    return state | _HOLDS_WITHOUT[reason]


class Keeper(Protocol):
    """Whoever asked for a reason."""

    def lift(self, page: int) -> bool:
        """Do what has to be done before the first store to `page`.

        False if it cannot be done yet: the storing thread stays blocked until `ReasonedPages.retry`. Must not await:
        the thread is stopped in the middle of an instruction, and what is read here has to be what is in memory.
        """


class NoteOnly:
    """The keeper of `Reason.UNWRITTEN`: that the fact gets published is all it wants."""

    def lift(self, page: int) -> bool:
        return True


class ReasonedPages:
    """The pages of one region and the reasons asked for it."""

    def __init__(self, table: PageTable, keepers: Mapping[Reason, Keeper]) -> None:
        self.table = table
        self._keepers = sorted(keepers.items())
        # Pages with a thread blocked because a keeper said "not yet".
        self.waiting: set[int] = set()
        self._protected = bytes(any(holds(reason, State(state)) for reason in keepers) for state in range(256))

    def on_store(self, page: int) -> bool:
        """A thread wants to store to `page`; True once no reason is left and the protection may be lifted."""
        state = self.table.get(page)
        for reason, keeper in self._keepers:
            if not holds(reason, state):
                continue
            if not keeper.lift(page):
                self.waiting.add(page)
                return False
            state = lifted(reason, state)
            self.table.set(page, state)
        self.waiting.discard(page)
        return True

    def retry(self) -> list[int]:
        """Ask again for the waiting pages; those whose protection may be lifted now, ascending."""
        return [page for page in sorted(self.waiting) if self.on_store(page)]

    def protected_runs(self) -> Iterator[tuple[int, int]]:
        """(first page, number of pages) of every run that has to be protected."""
        return self.table.runs(self._protected)
