"""Ships one guest's log to one destination: opens a copy there, fills it if it has to be built, then follows the guest.

    unreachable -> opening -> catching-up -> in-sync      its copy goes on where it was
                   opening -> copying -> catching-up -> in-sync
    any -> unreachable                                    something broke; begun again after RETRY_S

A session lasts as long as the connection and the guest's epoch. It has a slot of its own in the guest's ring, into
which the destination writes its durable LSN one-sidedly. While the regions are copied only records that the guest has
applied are shipped: what is read of a region afterwards is then never older than a record that was shipped before, so
the destination may apply records at once, and the copy is exact when it has applied everything up to the copying's end.

In sync is who has acknowledged everything that was committed when it began to catch up. Who lags may be no member of
the required set yet, even with a complete copy: what others were waited for could then be missing where it counts.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from everram.runtime.channel.contract import Access, QueuePair
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import CompleteRequest, OpenReply, OpenRequest
from everram.runtime.contracts.replicator_pb2 import Destination as Target
from everram.runtime.environment import HostAddress
from everram.runtime.errors import Aborted, EverramError, FailedPrecondition, Unavailable
from everram.runtime.log.ring import DATA_OFFSET

if TYPE_CHECKING:
    from everram.actors.replicator.guest_log import GuestLog

RUN_BYTES = 256 * 1024
"""Shipped in one write: about 0.1 ms of copying, so that others on this loop come first soon."""
CHUNK_BYTES = 256 * 1024
"""Of a region, between two looks at the log."""
RETRY_S = 0.1
"""After something broke; a host restarts in about 0.3 s."""
LOOK_S = 0.002
"""Between looks at the durable LSN, a word in shared memory that a peer writes and nobody announces."""
STALL_S = 1.0
"""Without progress for so long a destination no longer holds back the guest's log."""
OPEN_TIMEOUT_S = 5.0
"""For what the destination has to make and to record; nothing is held back meanwhile, as a rule."""


class Shipper:
    """One destination of `log`. Run `run` as a task; `wake` tells of new records."""

    def __init__(self, log: GuestLog, target: Target) -> None:
        self.target = target
        self.state = "unreachable"
        self.reason = ""
        self.copied_percent = 0
        self.woken = asyncio.Event()
        self._log = log
        self._position = 0
        """Everything before it was written into the destination's log region."""
        self._acknowledged, self._progress_ns = 0, 0
        """The durable LSN as last seen, and when it last moved or had no need to."""
        self._broken = False
        self._lapped = False
        """Whether the guest freed what the last session wanted to begin with, before that held it back: then the next
        one holds it back while it asks."""

    @property
    def in_sync(self) -> bool:
        return self.state == "in-sync"

    @property
    def durable(self) -> int:
        return max(
            (d.durable_lsn for _, d in self._log.slots.of(self.target.memory_id) if d.required or self.in_sync),
            default=0,
        )

    def status(self, committed: tuple[str, ...]) -> pb.CopyStatus:
        return pb.CopyStatus(
            host=self.target.host,
            memory_id=self.target.memory_id,
            state=self.state,
            required=self.target.memory_id in committed,
            durable=self.durable,
            copied_percent=self.copied_percent,
        )

    async def run(self) -> None:
        """Until cancelled. Every way a session can end is the beginning of the next one."""
        while True:
            try:
                await self._session()
            except EpochEnded:
                self._become("opening", "a new incarnation has begun")
                continue
            except EverramError as error:
                if self.reason != error.message:
                    about = self._log.context.log.about(guest=self._log.guest_id, lsn=self._log.verified)
                    about.info("%s is not shipped to %s: %s", self._log.name, self.target.host, error)
                self._become("unreachable", error.message)
            await asyncio.sleep(RETRY_S)

    def _become(self, state: str, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._log.reconsider()

    # -- one session

    async def _session(self) -> None:
        log = self._log
        epoch = await log.registered()
        address = await log.resolve(self.target.host)
        pair = await log.environment.channel.connect(self.target.host, address.channel)
        with ExitStack() as session:
            self._broken = False
            session.callback(log.context.spawn(self._watch(pair), name=f"channel to {self.target.host}").cancel)
            slot = log.slots.take(self.target.memory_id)
            session.callback(log.slots.give_up, slot)
            timeout_s = OPEN_TIMEOUT_S
            if self._lapped:
                self._lapped, timeout_s = False, STALL_S
                log.slots.hold(slot, log.ring.applied)
            reply = await self._open(session, slot, epoch, address, timeout_s)
            log.slots.begin(slot, reply.lsn, member=not reply.rebuild and self.target.memory_id in log.committed)
            self._position = reply.lsn
            self._acknowledged, self._progress_ns = reply.lsn, log.environment.clock.now_ns()
            self._lapped = self._position < log.ring.freed
            self._check_not_lapped()
            if reply.rebuild:
                await self._build(pair, slot, reply, epoch)
            else:
                await self._catch_up(pair, slot, reply, epoch)
            self._become("in-sync")
            await self._follow(pair, slot, reply, epoch)

    async def _open(
        self, session: ExitStack, slot: int, epoch: int, address: HostAddress, timeout_s: float
    ) -> OpenReply:
        log, ring = self._log, self._log.ring
        if not self.in_sync:
            self._become("opening", self.reason)
        acknowledged = log.environment.channel.register(log.memory, ring.durable_offset(slot), 8, Access.REMOTE_WRITE)
        session.callback(acknowledged.deregister)
        request = OpenRequest(
            guest=await log.record(epoch),
            cluster_id=log.config.cluster_id,
            source_host=log.config.host,
            source_memory_id=log.memory_id,
            memory_id=self.target.memory_id,
            capacity_bytes=ring.capacity_bytes,
            epoch_start=ring.epoch_start,
            freed=ring.freed,
            tail=ring.tail,
            applied=ring.applied,
            ack_rkey=acknowledged.rkey,
        )
        return await log.context.ref(ReplicatorRef, self.target.host).open(request, timeout_s=timeout_s)

    async def _follow(self, pair: QueuePair, slot: int, reply: OpenReply, epoch: int) -> None:
        """Ship what is committed as it is verified, for as long as it works."""
        while True:
            self.woken.clear()
            if await self._ship(pair, slot, reply, epoch, self._log.verified):
                await asyncio.sleep(0)
            else:
                await self._rest(slot)

    async def _rest(self, slot: int) -> None:
        """Nothing can be shipped now: wait for more records, or for an acknowledgement if one is due."""
        self._check_alive(slot)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S if self._log.ring.durable(slot) < self._position else None):
                await self.woken.wait()

    def _check_alive(self, slot: int) -> None:
        """Raises Unavailable if the channel has ended, or nothing was acknowledged for STALL_S."""
        if self._broken:
            raise Unavailable(f"the channel to {self.target.host} has ended")
        durable, now_ns = self._log.ring.durable(slot), self._log.environment.clock.now_ns()
        if durable != self._acknowledged or durable >= self._position:
            self._acknowledged, self._progress_ns = durable, now_ns
        elif now_ns - self._progress_ns > STALL_S * 1e9:
            raise Unavailable(f"{self.target.host} has not acknowledged anything for {STALL_S:g} s")

    async def _watch(self, pair: QueuePair) -> None:
        await pair.wait_broken()
        self._broken = True
        self.woken.set()

    async def _ship(self, pair: QueuePair, slot: int, reply: OpenReply, epoch: int, limit: int) -> bool:
        """Write the next run before `limit` into the destination's log region; whether there was any.

        Never more than half a ring ahead of what is acknowledged: the destination applies a run before it looks at the
        next, so nothing is overwritten that it still needs.
        """
        ring = self._log.ring
        if ring.epoch != epoch:
            raise EpochEnded("the guest's epoch has ended")
        limit = min(limit, ring.durable(slot) + ring.capacity_bytes // 2)
        at, capacity = self._position, ring.capacity_bytes
        length = min(limit - at, RUN_BYTES, capacity - at % capacity)
        if length <= 0:
            return False
        if self._log.config.link_delay_s:
            await asyncio.sleep(self._log.config.link_delay_s)
        run = ring.mapping.load(DATA_OFFSET + at % capacity, length)
        self._check_not_lapped()
        await pair.write_with_immediate(reply.log_rkey, at % capacity, run, reply.immediate)
        self._position = at + length
        return True

    def _check_not_lapped(self) -> None:
        """What the guest freed it may have overwritten: this copy has to be built anew. Raises Aborted."""
        if self._position < self._log.ring.freed:
            raise Aborted(f"{self.target.host} fell behind by more than the log holds")

    # -- building a copy

    async def _build(self, pair: QueuePair, slot: int, reply: OpenReply, epoch: int) -> None:
        """Copy the regions while the guest runs, until the copy is exact."""
        log = self._log
        self._become("copying")
        await self._copy_regions(pair, slot, reply, epoch)
        exact = await self._catch_up(pair, slot, reply, epoch)
        request = CompleteRequest(guest_id=log.guest_id, copy_id=reply.copy_id, epoch=epoch, lsn=exact)
        await log.context.ref(ReplicatorRef, self.target.host).complete(request, timeout_s=OPEN_TIMEOUT_S)
        if self.target.memory_id in log.committed:
            log.slots.promote(slot)

    async def _catch_up(self, pair: QueuePair, slot: int, reply: OpenReply, epoch: int) -> int:
        """Returns once everything is acknowledged that is committed now; that position."""
        ring, exact = self._log.ring, self._log.ring.tail
        if ring.durable(slot) < exact:
            self._become("catching-up")
        while ring.durable(slot) < exact:
            self.woken.clear()
            if not await self._ship(pair, slot, reply, epoch, self._log.verified):
                await self._rest(slot)
        return exact

    async def _copy_regions(self, pair: QueuePair, slot: int, reply: OpenReply, epoch: int) -> None:
        pieces = [
            (rkey, memory, offset, length)
            for rkey, region in zip(reply.region_rkeys, (await self._log.record(epoch)).regions, strict=True)
            if rkey
            for memory in (self._log.environment.memory.open(region.arena),)
            for offset, length in memory.extents()
        ]
        total = sum(length for _, _, _, length in pieces) or 1
        done = 0
        for rkey, memory, offset, length in pieces:
            for at in range(offset, offset + length, CHUNK_BYTES):
                # `applied` is read before: whatever is shipped now, the guest has stored already.
                while await self._ship(pair, slot, reply, epoch, min(self._log.verified, self._log.ring.applied)):
                    pass
                self._check_alive(slot)
                chunk = memory.read(at, min(CHUNK_BYTES, offset + length - at))
                await pair.write(rkey, at, chunk)
                done += len(chunk)
                self.copied_percent = 100 * done // total
                await asyncio.sleep(0)


class EpochEnded(FailedPrecondition):
    """The guest's next incarnation has begun: the next session is of its epoch."""
