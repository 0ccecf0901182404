"""One copy of a guest, kept for another host: verify what was written into its log region, acknowledge, apply.

    written by the primary -> valid? -> flushed, `tail` -> acknowledged -> stored in the regions, `applied`

The log region is written one-sidedly by whoever opened it, so nothing in it is believed but records whose position,
epoch and checksum hold, and each is copied out before it is looked at. Once the copy has promised itself to a higher
epoch nothing is acknowledged any more, and the region is never looked at again: `settle` has applied what was valid by
then, and whatever a fenced primary still writes lands nowhere that matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from everram.runtime.channel.contract import MemoryRegion, QueuePair
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.environment import Memory
from everram.runtime.log.record import Record
from everram.runtime.log.replay import apply
from everram.runtime.log.ring import Ring
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
    immediate: int
    unreceive: Callable[[int], None]
    rang: asyncio.Event
    task: asyncio.Task[None] | None = None
    """Serves the bell; ended with the session."""

    def end(self) -> None:
        self.unreceive(self.immediate)
        for region in self.regions:
            region.deregister()
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class KeptCopy:
    """`record` is what VMemFS keeps; its owner stores it after every change."""

    record: Copy
    memory: Memory
    session: Session | None = None
    ring: Ring | None = None
    """The current log region; None when there is none."""
    damaged: str = ""
    _regions: list[Mapping | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises NotFound, RingCorrupt."""
        for region in self.record.guest.regions:
            logged = region.kind == pb.LOGGED
            self._regions.append(self.memory.open(region.arena).map() if logged else None)
        if self.record.log:
            self.open_log()

    def open_log(self) -> None:
        """Go on with the log region that `record` names: apply what was acknowledged and not yet applied."""
        self.ring = Ring.open(self.memory.open(self.record.log).map())
        ring = self.ring
        records = [r for r in ring.chain(ring.surely_applied) if r.end <= ring.tail]
        self.apply(records)

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

    def verify(self) -> list[Record]:
        """The next run of valid records, held from now on. Empty if there are none."""
        ring = self.ring
        assert ring is not None
        start = at = ring.tail
        limit = min(RUN_BYTES, ring.capacity_bytes // RUN_PART)
        found: list[Record] = []
        for record in ring.chain(start):
            if found and record.end - start > limit:
                break
            found.append(record)
            ring.mapping.flush(ring.offset(record.lsn), record.end - record.lsn)
            at = record.end
        if found:
            ring.mapping.drain()
            ring.set_tail(at)
        return found

    def apply(self, records: list[Record]) -> None:
        """Store them in the regions. Raises RingCorrupt for a record that this version cannot follow."""
        if records:
            assert self.ring is not None
            apply(records, self._regions)
            self.ring.set_applied(records[-1].end)

    def persist_regions(self) -> None:
        """What the primary wrote into the regions one-sidedly is persistent when this returns."""
        for mapping in self._regions:
            if mapping is not None:
                mapping.flush(0, mapping.size_bytes)
                mapping.drain()

    def settle(self) -> None:
        """Take everything valid that lies in the log region; `record` then says what the copy holds."""
        while self.ring is not None and (records := self.verify()):
            self.apply(records)
        self.record.lsn = self.held
