"""One copy of a guest, kept for another host: verify what was written into its log region, acknowledge, apply.

    written by the primary -> valid? -> flushed, `tail` -> acknowledged -> stored in the regions, `applied`
                                                                         or carried out, if it is an operation

The log region is written one-sidedly by whoever opened it, so nothing in it is believed but records whose position,
epoch and checksum hold and which can be applied, and each is copied out before it is looked at. Once the copy has
promised itself to a higher epoch nothing is acknowledged any more, and the region is never looked at again: `settle`
has applied what was valid by then, and whatever a fenced primary still writes lands nowhere that matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from everram.runtime.channel.contract import MemoryRegion, QueuePair
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.environment import Memory
from everram.runtime.log.record import OPERATIONS, Record, Store
from everram.runtime.log.replay import Target, store_all, targets
from everram.runtime.log.ring import WORD_MASK, Ring, RingCorrupt
from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.guard import GuardedMapping, PageGuard

RUN_BYTES = 256 * 1024
"""Verified in one go, about a millisecond of checksums: the loop stays live for everything else."""
RUN_PART = 4
"""And at most this part of a ring: the primary writes up to half a ring ahead of what is acknowledged, so what is
acknowledged and not yet applied is never overwritten."""
PIECE_BYTES = 64 * 1024
"""Of one store, applied at once: far less than the least dirty cap."""


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
    guard: PageGuard
    exposed: list[str] = field(default_factory=list)
    """Arenas of those that are being filled: the peer stores to them unseen."""
    task: asyncio.Task[None] | None = None
    """Serves the bell; ended with the session."""

    def close_regions(self) -> None:
        """They are filled; only the log region is still written into."""
        for region in self.regions[1:]:
            region.deregister()
        del self.regions[1:]
        self._cover()

    def _cover(self) -> None:
        exposed, self.exposed = self.exposed, []
        for arena in exposed:
            self.guard.cover(arena)

    def end(self) -> None:
        self.unreceive(self.immediate)
        for region in self.regions:
            region.deregister()
        self._cover()
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class Operation:
    """On the guest's regions, as the primary carried it out at (epoch, lsn)."""

    type: int
    epoch: int
    lsn: int
    what: LogOperation


@dataclass(frozen=True, slots=True)
class Run:
    """Verified records up to `end`, and what they store; or one operation, which is a run of its own."""

    end: int
    targets: list[Target]
    operation: Operation | None = None


@dataclass(slots=True)
class KeptCopy:
    """`record` is what VMemFS keeps; its owner stores it after every change."""

    record: Copy
    memory: Memory
    guard: PageGuard = field(default_factory=PageGuard)
    """Asked before anything is stored into the copy's regions: they may have snapshots."""
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
                self._regions.append(self._map(region.arena) if logged else None)
            if self.record.log:
                self.open_log()
            undo.pop_all()

    def _map(self, arena: str) -> Mapping:
        return GuardedMapping(self.memory.open(arena).map(), self.guard, arena)

    def open_log(self) -> None:
        """Go on with the log region that `record` names; what was acknowledged may have to be applied still.

        Raises NotFound, RingCorrupt; then the copy is less than what it acknowledged, and good for nothing.
        """
        mapping = self.memory.open(self.record.log).map()
        try:
            self.ring = Ring.open(mapping)
            self.unapplied()
        except RingCorrupt:
            self.ring = None
            mapping.close()
            raise

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
        run = self._run(ring.tail, WORD_MASK)
        if run is None:
            return None
        self._flush(ring.tail, run.end)
        ring.mapping.drain()
        ring.set_tail(run.end)
        return run

    def _flush(self, begin: int, end: int) -> None:
        """Positions of the log region, which is a circle."""
        assert self.ring is not None
        while begin < end:
            length = min(end - begin, self.ring.room_before_end(begin))
            self.ring.mapping.flush(self.ring.offset(begin), length)
            begin += length

    def unapplied(self) -> Run | None:
        """The next run that is held and not yet applied; None if there are none. Raises RingCorrupt."""
        ring = self.ring
        assert ring is not None
        start, tail = ring.surely_applied, ring.tail
        if start < tail:
            run = self._run(start, tail)
            if run is None:
                raise RingCorrupt(f"records between {start} and {tail} are damaged: the copy was held up to {tail}")
            return run
        if ring.applied != tail:
            ring.set_applied(tail)  # one of the two words had not been stored
        return None

    def _run(self, start: int, stop: int) -> Run | None:
        """Of the records from `start` on that begin before `stop`. Raises RingCorrupt."""
        ring = self.ring
        assert ring is not None
        end = start
        limit = min(RUN_BYTES, ring.capacity_bytes // RUN_PART)
        found: list[Target] = []
        for record in ring.chain(start):
            if record.lsn >= stop or (end > start and record.end - start > limit):
                break
            try:
                if record.type in OPERATIONS:
                    operation = _operation(record)
                    return Run(record.end, [], operation) if end == start else Run(end, found)
                found.extend(piece for target in targets(record, self._regions) for piece in _pieces(target))
            except RingCorrupt:
                if end > start:
                    break  # those before it are good; it is found again
                raise
            end = record.end
        return Run(end, found) if end > start else None

    def apply(self, run: Run) -> None:
        """Store it in the regions; an operation was carried out already. Raises ResourceExhausted where a snapshot
        needs what is there and there is no room for it, or no more may be dirty; then it is still to be applied, and
        what was stored of it is not stored again: a run, or one store of it, may be more than may be dirty at once."""
        assert self.ring is not None
        done = 0
        try:
            for target in run.targets:
                store_all([target], ())
                done += 1
        finally:
            del run.targets[:done]
        for region in self._regions:
            if region is not None:
                region.drain()
        self.ring.set_applied(run.end)

    def waits_for_snapshots(self, run: Run) -> bool:
        """Whether what is to be stored next has no room because of what snapshots need of its pages."""
        if not run.targets:
            return False
        _, store = run.targets[0]
        return not self.guard.is_settled(self.record.guest.regions[store.region].arena, store.offset, len(store.data))

    def persist_regions(self) -> None:
        """What the primary wrote into the regions one-sidedly is persistent when this returns."""
        for mapping in self._regions:
            if mapping is not None:
                mapping.flush(0, mapping.size_bytes)
                mapping.drain()

    async def settle(self, apply: Callable[[Run], Awaitable[None]]) -> str:
        """Take everything valid that lies in the log region, each run by `apply`; `record` then says what the copy
        holds. Returns what was found there that could not be taken, in a sentence."""
        complaint = ""
        try:
            while self.ring is not None and (run := self.unapplied() or self.verify()):
                await apply(run)
        except RingCorrupt as error:
            complaint = str(error)
            if self.ring is not None and self.ring.surely_applied < self.ring.tail:
                self.record.complete = False  # it is less than it has acknowledged
        self.record.lsn = self.held
        return complaint


def _pieces(target: Target) -> Iterator[Target]:
    """Each of which may be dirty under any cap."""
    region, store = target
    if len(store.data) <= PIECE_BYTES:
        yield target
        return
    for at in range(0, len(store.data), PIECE_BYTES):
        yield region, Store(store.region, store.offset + at, store.data[at : at + PIECE_BYTES])


def _operation(record: Record) -> Operation:
    """Raises RingCorrupt."""
    try:
        return Operation(record.type, record.epoch, record.lsn, LogOperation.FromString(record.payload))
    except DecodeError as error:
        raise RingCorrupt(f"the record at {record.lsn} is an operation that cannot be read: {error}") from error
