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
table comes to the same decisions. What a snapshot shares is the one fact that is kept elsewhere: its keeper knows it
from the page tables of the NVM device, in which one snapshot changes it for every page at once. A fact is published
before the protection is lifted, never after: a host may die between the two, and then a page is counted and still
protected, which costs one more fault and loses nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
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


_HOLDS_WITH = {Reason.SWAPPED_OUT: State.SWAPPED}
"""These hold while the page has the fact."""
_HOLDS_WITHOUT = {Reason.CLEAN_UNDER_CAP: State.DIRTY, Reason.UNWRITTEN: State.WRITTEN}
"""These hold until the page has the fact."""


TABLED = frozenset(_HOLDS_WITH | _HOLDS_WITHOUT)
"""Reasons whose facts are in the page table."""
_KNOWN = Reason.SHARED_WITH_SNAPSHOT
"""The one whose facts are not."""


def holds(reason: Reason, state: State) -> bool:
    """Of a reason that is TABLED."""
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


class KnowingKeeper(Keeper, Protocol):
    """Of a reason whose facts are not in the page table: it knows them itself."""

    def holds_anywhere(self) -> bool: ...

    def holds(self, page: int) -> bool: ...


class NoteOnly:
    """The keeper of `Reason.UNWRITTEN`: that the fact gets published is all it wants."""

    def lift(self, page: int) -> bool:
        return True


class ReasonedPages:
    """The pages of one region and the reasons asked for it. Without a table no reason may be one that is TABLED."""

    def __init__(
        self,
        pages: int,
        table: PageTable | None,
        keepers: Mapping[Reason, Keeper],
        knowing: KnowingKeeper | None = None,
    ) -> None:
        """`knowing`: of Reason.SHARED_WITH_SNAPSHOT."""
        self.pages = pages
        self.table = table
        self._before = [(reason, keeper) for reason, keeper in sorted(keepers.items()) if reason < _KNOWN]
        self._after = [(reason, keeper) for reason, keeper in sorted(keepers.items()) if reason > _KNOWN]
        self._knowing = knowing
        # Pages with a thread blocked because a keeper said "not yet".
        self.waiting: set[int] = set()
        self._protected = bytes(any(holds(reason, State(state)) for reason in keepers) for state in range(256))

    def on_store(self, page: int) -> bool:
        """A thread wants to store to `page`; True once no reason is left and the protection may be lifted."""
        knowing = self._knowing
        lifted_all = (
            self._lift(page, self._before)
            and (knowing is None or not knowing.holds(page) or knowing.lift(page))
            and self._lift(page, self._after)
        )
        if lifted_all:
            self.waiting.discard(page)
        else:
            self.waiting.add(page)
        return lifted_all

    def _lift(self, page: int, keepers: Sequence[tuple[Reason, Keeper]]) -> bool:
        if self.table is None or not keepers:
            return True
        state = self.table.get(page)
        for reason, keeper in keepers:
            if not holds(reason, state):
                continue
            if not keeper.lift(page):
                return False
            state = lifted(reason, state)
            self.table.set(page, state)
        return True

    def retry(self) -> list[int]:
        """Ask again for the waiting pages; those whose protection may be lifted now, ascending."""
        return [page for page in sorted(self.waiting) if self.on_store(page)]

    def protected_runs(self) -> Iterable[tuple[int, int]]:
        """(first page, number of pages) of every run that has to be protected; perhaps more than that."""
        if self._knowing is not None and self._knowing.holds_anywhere():
            return [(0, self.pages)]
        return self.table.runs(self._protected) if self.table is not None else []
