"""One copy of a guest, kept for another host: verify what was written into its log region, acknowledge, apply.

    written by the primary -> valid? -> flushed, `tail` -> acknowledged -> stored in the regions, `applied`

The log region is written one-sidedly by whoever opened it, so nothing in it is believed but records whose position,
epoch and checksum hold and which can be applied, and each is copied out before it is looked at. Once the copy has
promised itself to a higher epoch nothing is acknowledged any more, and the region is never looked at again: `settle`
has applied what was valid by then, and whatever a fenced primary still writes lands nowhere that matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from everram.runtime.channel.contract import MemoryRegion, QueuePair
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.environment import Memory
from everram.runtime.log.replay import Target, replay, store_all, targets
from everram.runtime.log.ring import Ring, RingCorrupt
from everram.runtime.memory.contract import Mapping

RUN_BYTES = 256 * 1024
"""Verified in one go, about a millisecond of checksums: the loop stays live for everything else."""
RUN_PART = 4
"""And at most this part of a ring: the primary writes up to half a ring ahead of what is acknowledged, so what is
acknowledged and not yet applied is never overwritten."""


@dataclass(slots=True)
class Session:
    """What a primary may write into, and where its acknowledgements go."""

    pair: QueuePair
    ack_rkey: int
    regions: list[MemoryRegion]
    """The log region first, then those that are being filled."""
    immediate: int
    unreceive: Callable[[int], None]
    rang: asyncio.Event
    task: asyncio.Task[None] | None = None
    """Serves the bell; ended with the session."""

    def close_regions(self) -> None:
        """They are filled; only the log region is still written into."""
        for region in self.regions[1:]:
            region.deregister()
        del self.regions[1:]

    def end(self) -> None:
        self.unreceive(self.immediate)
        for region in self.regions:
            region.deregister()
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class Run:
    """Verified records up to `end`, and what they store."""

    end: int
    targets: list[Target]


@dataclass(slots=True)
class KeptCopy:
    """`record` is what VMemFS keeps; its owner stores it after every change."""

    record: Copy
    memory: Memory
    session: Session | None = None
    ring: Ring | None = None
    """The current log region; None when there is none."""
    _regions: list[Mapping | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises NotFound, RingCorrupt."""
        with ExitStack() as undo:
            undo.callback(self.close)
            for region in self.record.guest.regions:
                logged = region.kind == pb.LOGGED
                self._regions.append(self.memory.open(region.arena).map() if logged else None)
            if self.record.log:
                self.open_log()
            undo.pop_all()

    def open_log(self) -> None:
        """Go on with the log region that `record` names: apply what was acknowledged and not yet applied.

        Raises NotFound, RingCorrupt; then the copy is less than what it acknowledged, and good for nothing.
        """
        mapping = self.memory.open(self.record.log).map()
        try:
            ring = self.ring = Ring.open(mapping)
        except RingCorrupt:
            mapping.close()
            raise
        replay(ring, self._regions)

    def close_log(self) -> None:
        if self.ring is not None:
            self.ring.mapping.close()
            self.ring = None

    def close(self) -> None:
        self.end_session()
        self.close_log()
        for mapping in self._regions:
            if mapping is not None:
                mapping.close()

    def end_session(self) -> None:
        if self.session is not None:
            self.session.end()
            self.session = None

    @property
    def held(self) -> int:
        """Everything before it is held, whatever dies but this machine."""
        return self.ring.tail if self.ring is not None else self.record.lsn

    @property
    def fenced(self) -> bool:
        """Whether it has promised itself to a later epoch than writes its log."""
        return self.record.log_epoch <= self.record.promised_epoch

    def verify(self) -> Run | None:
        """The next run of valid records, held from now on; None if there are none.

        Raises RingCorrupt, with nothing held, for a valid record that makes no sense here: what cannot be applied must
        not be acknowledged.
        """
        ring = self.ring
        assert ring is not None
        start = end = ring.tail
        limit = min(RUN_BYTES, ring.capacity_bytes // RUN_PART)
        found: list[Target] = []
        for record in ring.chain(start):
            after = record.end
            if end > start and after - start > limit:
                break
            try:
                found.extend(targets(record, self._regions))
            except RingCorrupt:
                if end > start:
                    break  # those before it are good; it is found again
                raise
            ring.mapping.flush(ring.offset(record.lsn), after - record.lsn)
            end = after
        if end == start:
            return None
        ring.mapping.drain()
        ring.set_tail(end)
        return Run(end, found)

    def apply(self, run: Run) -> None:
        """Store it in the regions."""
        assert self.ring is not None
        store_all(run.targets, self._regions)
        self.ring.set_applied(run.end)

    def persist_regions(self) -> None:
        """What the primary wrote into the regions one-sidedly is persistent when this returns."""
        for mapping in self._regions:
            if mapping is not None:
                mapping.flush(0, mapping.size_bytes)
                mapping.drain()

    def settle(self) -> str:
        """Take everything valid that lies in the log region; `record` then says what the copy holds. Returns what was
        found there that could not be taken, in a sentence."""
        complaint = ""
        try:
            while self.ring is not None and (run := self.verify()):
                self.apply(run)
        except RingCorrupt as error:
            complaint = str(error)
        self.record.lsn = self.held
        return complaint
