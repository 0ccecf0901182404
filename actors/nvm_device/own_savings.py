"""Old content that guests save themselves (`runtime.memory.old_pages`), as the host that takes it over sees it.

    savings = OwnSavings(memory)
    savings.add(region)                              # at the start, and before a snapshot of it is taken
    savings.take_out(origin, keep)                   # each entry is kept for whoever needs it. Nothing is awaited
    savings.find(origin, page)                       # what a page held that its guest has stored to since

Where nobody traps a guest's stores (D13) this is how snapshots of logged regions stay exact. Whoever reads a page of
the region in a snapshot's name reads it first and asks `find` then: the guest publishes an entry before it stores.
"""

from __future__ import annotations

from collections.abc import Callable

from everram.actors.nvm_device.device import origin_of
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.environment import Memory
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.old_pages import OldPages, old_pages_name

Keep = Callable[[int, bytes, frozenset[int]], object]
"""Told the page, its content, and which pages of all that are there were zeros."""
ZEROS = bytes(PAGE_BYTES)


class OwnSavings:
    """Of all regions of a host, by origin."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known: dict[str, OldPages] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, region: pb.Region) -> OldPages | None:
        """None for a region whose guest is not asked to save. Raises DataLoss, FailedPrecondition."""
        origin = origin_of(region)
        known = self._known.get(origin)
        if known is None and region.keeps_old and not region.copy_id:
            name = old_pages_name(region.guest_id, region.name)
            if name in self._memory.names():
                known = self._known[origin] = OldPages.open(self._memory.open(name).map())
        return known

    def forget(self, origin: str) -> None:
        known = self._known.pop(origin, None)
        if known is not None:
            known.close()

    def close(self) -> None:
        for origin in list(self._known):
            self.forget(origin)

    def is_saving(self, region: pb.Region, epoch: int) -> bool:
        """Whether the incarnation of that epoch saves before it stores."""
        known = self.add(region)
        return known is not None and known.saver == epoch

    def arm(self, origin: str) -> None:
        if (known := self._known.get(origin)) is not None:
            known.arm()

    def disarm(self, origin: str) -> None:
        if (known := self._known.get(origin)) is not None:
            known.disarm()

    def armed(self) -> list[str]:
        """The origins of those of which anything may be needed."""
        return [origin for origin, known in self._known.items() if known.armed or known.is_pending]

    def pending(self, origin: str) -> int:
        known = self._known.get(origin)
        return known.pending if known is not None else 0

    def find(self, origin: str, page: int) -> bytes | None:
        known = self._known.get(origin)
        return known.find(page) if known is not None else None

    def take_out(self, origin: str, keep: Keep) -> int:
        """All that are there; how many. Raises what `keep` raises: then that one and those after it are there still."""
        known = self._known.get(origin)
        if known is None:
            return 0
        entries = list(known.entries())
        holes = frozenset(page for page, content in entries if content == ZEROS)
        for page, content in entries:
            keep(page, content, holes)
            known.taken()
        return len(entries)
