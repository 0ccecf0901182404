"""What a page holds may be needed after it is stored to: whoever stores asks here first.

    guard.keeper = snapshots                             # at the start of the NVM device
    guard.cap = dirty_cap                                # at the start of the host, where its battery wants one
    guard.before_store("region.0f3c.ledger", 4096, 8)    # a host's own store; a guest's arrives as a fault

A host's own stores are not trapped by the kernel's write protection, so hosts call this themselves; the page service
calls it for guests (`reasons`). What is there is saved for snapshots first, then the page is charged to the dirty cap:
only the second may refuse for a while, and asking again after that saves nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from everram.runtime.errors import EverramError
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.dirty_cap import DirtyCap


class PageKeeper(Protocol):
    """Keeps the old content of pages, for the snapshots that refer to it."""

    def is_kept_of(self, arena: str) -> bool:
        """Whether any page of this region may be needed."""

    def is_settled(self, arena: str, page: int) -> bool:
        """Whether the page may be stored to without more ado."""

    def before_write(self, arena: str, page: int) -> bool:
        """Keep what the page holds, if anybody needs it. Raises ResourceExhausted where there is no room for it."""


class PageGuard:
    """One a host. Without a keeper nothing has to be kept, without a cap nothing is charged."""

    def __init__(self) -> None:
        self.keeper: PageKeeper | None = None
        self.cap: DirtyCap | None = None

    def is_kept_of(self, arena: str) -> bool:
        return self.keeper is not None and self.keeper.is_kept_of(arena)

    def is_asked_of(self, arena: str) -> bool:
        """Whether any store to this region is anybody's business."""
        return self.is_charged() or self.is_kept_of(arena)

    def is_charged(self) -> bool:
        return self.cap is not None and self.cap.active

    def before_store(self, arena: str, offset: int, length: int) -> None:
        """Of this host, to a region that no guest maps. Raises ResourceExhausted; then it must not be stored."""
        if not length:
            return
        pages = _pages(offset, length)
        if self.keeper is not None and self.keeper.is_kept_of(arena):
            for page in pages:
                self.keeper.before_write(arena, page)
        if self.cap is not None:
            self.cap.check_host_store(arena, pages[0], pages[-1])

    def is_settled(self, arena: str, offset: int, length: int) -> bool:
        """Whether no snapshot needs what is there: whoever is refused has to wait for the cap alone."""
        return self.keeper is None or all(self.keeper.is_settled(arena, page) for page in _pages(offset, length))

    def expose(self, arena: str) -> None:
        """From now on somebody stores to this region without asking: a guest whose stores are not seen, a peer, or this
        host where it makes a region. It counts as dirty as a whole."""
        if self.cap is not None:
            self.cap.expose(arena)

    @contextlib.contextmanager
    def exposed(self, arena: str) -> Iterator[None]:
        self.expose(arena)
        try:
            yield
        finally:
            self.cover(arena)

    def cover(self, arena: str) -> None:
        """That one stores to it no more."""
        if self.cap is not None:
            self.cap.cover(arena)


def _pages(offset: int, length: int) -> range:
    return range(offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES + 1)


class ArenaKeeper:
    """`reasons.Keeper` for one region: of `Reason.SHARED_WITH_SNAPSHOT`, and of being clean under the cap after it."""

    def __init__(self, guard: PageGuard, arena: str) -> None:
        self._guard = guard
        self._arena = arena

    def holds_anywhere(self) -> bool:
        return self._guard.is_asked_of(self._arena)

    def holds(self, page: int) -> bool:
        keeper, cap = self._guard.keeper, self._guard.cap
        if keeper is not None and not keeper.is_settled(self._arena, page):
            return True
        return cap is not None and not cap.is_settled(self._arena, page)

    def lift(self, page: int) -> bool:
        keeper, cap = self._guard.keeper, self._guard.cap
        try:
            if keeper is not None and not keeper.is_settled(self._arena, page):
                keeper.before_write(self._arena, page)
            return cap is None or cap.admit(self._arena, page)
        except EverramError:
            return False  # the writer waits until there is room again, or whatever else it is has ended


class GuardedMapping(Mapping):
    """A region as its host stores to it: the guard is asked before. Raises ResourceExhausted in `store`."""

    def __init__(self, mapping: Mapping, guard: PageGuard, arena: str) -> None:
        self.size_bytes = mapping.size_bytes
        self._mapping = mapping
        self._guard = guard
        self._arena = arena

    def load(self, offset: int, length: int) -> bytes:
        return self._mapping.load(offset, length)

    def load_u64(self, offset: int) -> int:
        return self._mapping.load_u64(offset)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._guard.before_store(self._arena, offset, len(data))
        self._mapping.store(offset, data)

    def store_u64(self, offset: int, value: int) -> None:
        self._guard.before_store(self._arena, offset, 8)
        self._mapping.store_u64(offset, value)

    def flush(self, offset: int, length: int) -> None:
        self._mapping.flush(offset, length)

    def drain(self) -> None:
        self._mapping.drain()

    def close(self) -> None:
        self._mapping.close()
