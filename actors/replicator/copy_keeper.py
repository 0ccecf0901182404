"""The copies that this host keeps for others: opened by primaries, promised to leaders, given back to hypervisors.

One change at a time for each guest, and each is recorded in VMemFS before anybody is told of it. What a host that died
in the middle of one left behind, objects without a record, is removed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from weakref import WeakValueDictionary

from everram.actors.replicator.kept_copy import KeptCopy, Operation, Run, Session
from everram.actors.replicator.room import Patience
from everram.runtime.actor import ActorContext, ActorLog
from everram.runtime.channel.contract import Access, ChannelError
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import replicator_pb2 as rp
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import CopyOperation, CreateRegionsRequest, RegionFilter
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.coordination.api import Range
from everram.runtime.coordination.directory import decode, guest_key
from everram.runtime.coordination.records import GuestRecord
from everram.runtime.coordination.resolver import HostResolver
from everram.runtime.errors import (
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.record import RecordType
from everram.runtime.log.ring import DATA_OFFSET, EPOCH_START, Ring, RingCorrupt, log_name
from everram.runtime.memory.guard import PageGuard

ROOM_RETRY_S = 0.2
"""Between attempts to apply what there is no room for: the primary waits meanwhile, as for a slow copy."""
GIVE_UP_TIMEOUT_S = 1.0
"""What is moved meanwhile may make room."""


class CopyKeeper:
    """See the module. `start` comes first."""

    def __init__(self, context: ActorContext, config: HostConfig, resolver: HostResolver, guard: PageGuard) -> None:
        self._context, self._environment = context, context.environment
        self._config = config
        self._resolver = resolver
        self._guard = guard
        self._vmemfs = context.ref(VMemFSRef)
        self._nvm = context.ref(NvmDeviceRef)
        self._copies: dict[str, list[KeptCopy]] = {}  # by guest_id: at most one complete and one being built
        self._damaged: dict[str, list[rp.Copy]] = {}
        """By guest_id: copies of which only their place is known, and not what they had promised. Their memory is kept
        until another copy is exact: it may be all that is left of the guest."""
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By guest_id, while anybody waits for it or holds it: during every change and every run of records."""
        self.memory_id = ""
        self._quiet = False
        """While this machine's memory is saved, and until it is used again: what is said now could be forgotten."""

    async def start(self) -> None:
        """Go on with the copies that this host's predecessor kept."""
        self.memory_id = (await self._vmemfs.get_host(pb.Empty())).memory_id
        known: dict[tuple[str, str], str] = {}  # the current log region, by guest_id and copy_id
        for record in (await self._vmemfs.copies(pb.Empty())).copies:
            about = self._context.log.about(guest=record.guest.guest_id)
            if record.damaged:
                about.error("a copy of guest %s is lost: %s", record.guest.guest_id, record.damaged)
                self._damaged.setdefault(record.guest.guest_id, []).append(_own(record))
                continue
            try:
                copy = KeptCopy(_own(record), self._environment.memory, self._guard)
                await self._catch_up_if_possible(copy)
            except (NotFound, RingCorrupt) as error:
                about.error("a copy of %s is lost: %s", record.guest.name, error)
                await self._vmemfs.remove_copy(rp.GuestCopy(guest_id=record.guest.guest_id, copy_id=record.copy_id))
                continue
            self._copies.setdefault(record.guest.guest_id, []).append(copy)
            known[record.guest.guest_id, record.copy_id] = record.log
        await self._remove_orphans(known)

    async def _catch_up_if_possible(self, kept: KeptCopy) -> None:
        """Else whoever opens it, or has it promise itself, waits for room, or is told. Raises RingCorrupt."""
        if kept.ring is None:
            return
        try:
            await self._catch_up(kept, waits=False)
        except EverramError as error:
            self._log_of(kept).warning("the copy of %s is caught up with later: %s", kept.record.guest.name, error)

    async def _remove_orphans(self, known: dict[tuple[str, str], str]) -> None:
        """What a host that died in the middle of a change left: copies without a record, and log regions that no record
        names (any more)."""
        damaged = {(guest_id, copy.copy_id) for guest_id, copies in self._damaged.items() for copy in copies}
        found = await self._nvm.list_regions(RegionFilter(copy_id="*"))
        copies = {(region.guest_id, region.copy_id) for region in found.regions if region.copy_id}
        copies |= {(log.guest_id, log.copy_id) for log in found.logs if log.copy_id}
        for guest_id, copy_id in sorted(copies - known.keys() - damaged):
            # Their snapshots may take long, and nobody has to wait for that.
            with contextlib.suppress(DeadlineExceeded):
                await self._nvm.remove_regions(RegionFilter(guest_id=guest_id, copy_id=copy_id))
        for log in found.logs:
            key = (log.guest_id, log.copy_id)
            if key in known and log.memory != known[key]:
                await self._nvm.remove_regions(
                    RegionFilter(guest_id=log.guest_id, copy_id=log.copy_id, log_id=log.log_id)
                )

    def close(self) -> None:
        for copies in self._copies.values():
            for copy in copies:
                copy.close()

    async def quiesce(self, on: bool) -> pb.Empty:
        """Neither acknowledge nor promise from now on (`on`), or do again."""
        self._quiet = on
        for guest_id, copies in list(self._copies.items()):
            async with self._lock(guest_id):
                for kept in copies:
                    if on:
                        kept.end_session()
        return pb.Empty()

    def _check_not_quiet(self) -> None:
        if self._quiet:
            raise Unavailable(f"the memory of {self._config.host} is being saved: ask again when that is over")

    # -- the primary asks

    async def open(self, request: rp.OpenRequest) -> rp.OpenReply:
        """A fresh log region for the guest's epoch, in a copy that goes on or in a new one.

        Raises FailedPrecondition (another cluster or memory, fenced), ResourceExhausted, ChannelError.
        """
        self._check(request)
        guest = request.guest
        async with self._lock(guest.guest_id):
            self._check_not_quiet()
            copies = list(self._copies.get(guest.guest_id, []))
            for copy in copies:
                _check_epoch(copy.record, guest)
            self._check_own(guest)
            for copy in copies:
                try:
                    await self._settle(copy)
                except DataLoss as error:  # the guest, which asks, has everything
                    self._log_of(copy).error("copy of %s is built anew: %s", guest.name, error.message)
                    copy.record.complete = False
                if not copy.record.complete:
                    await self._remove(copy)
            await self._check_forgotten(guest)
            kept = next((copy for copy in copies if continues(copy.record, request)), None)
            rebuild = kept is None
            if kept is None:
                kept = await self._build_somehow(request)
            await self._new_log(kept, request)
            session = await self._begin_session(kept, request, rebuild=rebuild)
            return rp.OpenReply(
                copy_id=kept.record.copy_id,
                rebuild=rebuild,
                lsn=kept.record.lsn,
                log_rkey=session.regions[0].rkey,
                region_rkeys=_in_order(kept.record.guest, session) if rebuild else [0] * len(guest.regions),
                immediate=session.immediate,
            )

    def _check(self, request: rp.OpenRequest) -> None:
        if request.cluster_id != self._config.cluster_id:
            raise FailedPrecondition(f"this host belongs to cluster {self._config.cluster_id}, not to yours")
        if request.memory_id != self.memory_id:
            raise FailedPrecondition(
                f"{self._config.host} has memory {self.memory_id} now, not {request.memory_id}: what that held is gone"
            )
        if request.source_memory_id == self.memory_id:
            raise FailedPrecondition("a copy in the guest's own memory would be none")

    def _check_own(self, guest: pb.Guest) -> None:
        """A copy that has become the guest's own memory here had promised not to follow who comes late. Raises
        FailedPrecondition."""
        memory, name = self._environment.memory, log_name(guest.guest_id)
        if name not in memory.names():
            return
        with contextlib.suppress(RingCorrupt), contextlib.closing(memory.open(name).map()) as log:
            if guest.epoch <= (epoch := Ring.open(log).epoch):
                raise FailedPrecondition(
                    f"epoch {guest.epoch} of guest {guest.name} is fenced: this host has the guest itself, since epoch "
                    f"{epoch}"
                )

    async def _check_forgotten(self, guest: pb.Guest) -> None:
        """What a damaged copy had promised is not known, but no promise is of a later epoch than the directory's.

        Raises FailedPrecondition (fenced), Unavailable, DeadlineExceeded.
        """
        if guest.guest_id not in self._damaged:
            return
        _, found = await self._environment.coordination.range(Range(guest_key(guest.guest_id)))
        if not found:
            raise FailedPrecondition(f"the directory knows no guest {guest.name}")
        try:
            known = GuestRecord.read(decode(found[0].value)).epoch
        except ValueError as error:
            raise DataLoss(f"the directory's record of guest {guest.name} cannot be read: {error}") from error
        if guest.epoch < known:
            raise FailedPrecondition(f"epoch {guest.epoch} of guest {guest.name} is fenced: it is in epoch {known}")

    async def _forget(self, guest_id: str, copy_id: str = "") -> None:
        """Damaged copies: another one is exact, or none is wanted any more."""
        for damaged in list(self._damaged.get(guest_id, ())):
            if copy_id in ("", damaged.copy_id):
                await self._nvm.remove_regions(RegionFilter(guest_id=guest_id, copy_id=damaged.copy_id))
                await self._vmemfs.remove_copy(rp.GuestCopy(guest_id=guest_id, copy_id=damaged.copy_id))
                self._damaged[guest_id].remove(damaged)
        if not self._damaged.get(guest_id, True):
            del self._damaged[guest_id]

    async def _build_somehow(self, request: rp.OpenRequest) -> KeptCopy:
        """Where there is no room beside a damaged copy, in its place: the primary that asks has all that it held."""
        try:
            return await self._build(request)
        except ResourceExhausted:
            if request.guest.guest_id not in self._damaged:
                for kept in self._copies.get(request.guest.guest_id, []):
                    await self._give_up_snapshots(kept)  # for the next attempt: what is built replaces it
                raise
        await self._forget(request.guest.guest_id)
        return await self._build(request)

    async def _build(self, request: rp.OpenRequest) -> KeptCopy:
        """A new copy with empty regions."""
        guest, copy_id = request.guest, self._environment.entropy.token()
        specs = [pb.RegionSpec(name=r.name, size_bytes=r.size_bytes, kind=r.kind) for r in guest.regions]
        created = await self._nvm.create_regions(
            CreateRegionsRequest(guest_id=guest.guest_id, copy_id=copy_id, regions=specs)
        )
        arenas = {region.name: region for region in created.regions}
        record = rp.Copy(guest=guest, copy_id=copy_id, source_host=request.source_host, lsn=request.applied)
        record.epoch = guest.epoch
        del record.guest.regions[:]
        record.guest.regions.extend(arenas[region.name] for region in guest.regions)
        kept = KeptCopy(record, self._environment.memory, self._guard)
        self._copies.setdefault(guest.guest_id, []).append(kept)
        await self._store(kept)
        return kept

    async def _new_log(self, kept: KeptCopy, request: rp.OpenRequest) -> None:
        """The log region of this opening; nobody has the rkey of an earlier one any more."""
        record, guest = kept.record, request.guest
        wanted = CreateRegionsRequest(
            guest_id=guest.guest_id,
            copy_id=record.copy_id,
            log_id=self._environment.entropy.token(),
            log_bytes=request.capacity_bytes,
            log_start=record.lsn,
            log_epoch=guest.epoch,
        )
        try:
            created = await self._nvm.create_regions(wanted)
        except ResourceExhausted:
            await self._give_up_snapshots(kept)  # for the next attempt: their removal may have to come by this log
            raise
        record.log, record.log_epoch, record.epoch = created.log, guest.epoch, guest.epoch
        record.source_host = request.source_host
        record.guest.epoch, record.guest.previous_epoch = guest.epoch, guest.previous_epoch
        kept.open_log()
        assert kept.ring is not None
        if request.epoch_start > record.lsn:
            # Records before it are of the epochs that this one continues.
            kept.ring.publish(EPOCH_START, request.epoch_start)
        await self._store(kept)

    async def _begin_session(self, kept: KeptCopy, request: rp.OpenRequest, *, rebuild: bool) -> Session:
        channel, record = self._environment.channel, kept.record
        address = await self._resolver.resolve(request.source_host)
        pair = await channel.connect(request.source_host, address.channel)
        rang = asyncio.Event()
        kept.session = session = Session(
            pair, request.ack_rkey, [], channel.receive(rang.set), channel.unreceive, rang, kept.guard
        )  # before anything is registered: whoever ends the session ends that too
        try:
            session.regions.append(
                channel.register(record.log, DATA_OFFSET, request.capacity_bytes, Access.REMOTE_WRITE)
            )
            for region in record.guest.regions:
                if rebuild and region.kind == pb.LOGGED:
                    kept.guard.expose(region.arena)
                    session.exposed.append(region.arena)
                    session.regions.append(channel.register(region.arena, 0, region.size_bytes, Access.REMOTE_WRITE))
        except EverramError:
            kept.end_session()
            raise
        session.task = self._context.spawn(self._serve(kept, session), name=f"copy of {record.guest.name}")
        return session

    async def _serve(self, kept: KeptCopy, session: Session) -> None:
        """Take what the primary writes, until the session ends or breaks."""
        guest_id = kept.record.guest.guest_id
        try:
            while True:
                await session.rang.wait()
                session.rang.clear()
                more = True
                while more:  # one run a turn: others on this loop, and who waits for the lock, come first
                    async with self._lock(guest_id):
                        more = kept.session is session and not self._quiet and await self._take(kept, session)
                    await asyncio.sleep(0)
        except ChannelError as error:
            self._log_of(kept).info("copy of %s: acknowledgements do not arrive: %s", kept.record.guest.name, error)
        except RingCorrupt as error:
            # Nothing of it was acknowledged, so the copy is good up to there; whoever opens it again begins there.
            self._log_of(kept).error("copy of %s: %s sends %s", kept.record.guest.name, kept.record.source_host, error)
        except EverramError as error:  # whoever opens it again begins where it was, or is told why that cannot be
            self._log_of(kept).warning("copy of %s is not followed: %s", kept.record.guest.name, error.message)

    async def _take(self, kept: KeptCopy, session: Session) -> bool:
        """One run: verified, acknowledged, applied. Whether there was one."""
        await self._catch_up(kept)
        run = kept.verify()
        if run is None:
            return False
        if not kept.fenced:
            await session.pair.write(session.ack_rkey, 0, kept.held.to_bytes(8, "little"))
        await self._apply(kept, run)
        return True

    async def _catch_up(self, kept: KeptCopy, *, waits: bool = True) -> None:
        """Apply what is held."""
        while run := kept.unapplied():
            await self._apply(kept, run, waits=waits)

    async def _apply(self, kept: KeptCopy, run: Run, *, waits: bool = True) -> None:
        """Where there is no room it `waits` for it, but not while this machine's memory is saved. Raises Unavailable,
        ResourceExhausted, DataLoss; then it is still to be applied."""
        if run.operation is not None:
            await self._carry_out(kept, run.operation)
        patience, damaged = Patience(len(run.targets)), False
        while True:
            try:
                kept.apply(run)
                return
            except ResourceExhausted as error:
                if not waits:
                    raise
                if not patience.tries:
                    self._log_of(kept).warning("copy of %s waits: %s", kept.record.guest.name, error.message)
            except DataLoss as error:  # in what snapshots of it have
                if damaged:
                    raise
                damaged = True
                self._log_of(kept).error("copy of %s: %s", kept.record.guest.name, error.message)
                await self._give_up_snapshots(kept)
                continue
            self._check_not_quiet()
            if patience.is_out(len(run.targets)) and kept.waits_for_snapshots(run):
                await self._give_up_snapshots(kept)
            await asyncio.sleep(ROOM_RETRY_S)  # until this host has purged or flushed something

    async def _give_up_snapshots(self, kept: KeptCopy) -> None:
        """What the guest's host has of them is not touched; only who goes on with this copy goes on without them."""
        record = kept.record
        try:
            await self._nvm.give_up_copy_snapshots(
                RegionFilter(guest_id=record.guest.guest_id, copy_id=record.copy_id), timeout_s=GIVE_UP_TIMEOUT_S
            )
        except EverramError as error:
            self._log_of(kept).warning("the copy of %s keeps its snapshots: %s", record.guest.name, error.message)

    async def _carry_out(self, kept: KeptCopy, operation: Operation) -> None:
        """At its place among the records: what the primary did to its regions is done to the copy's. A copy that is
        being built is not exact yet, and holds no snapshots."""
        if not kept.record.complete:
            return
        request = CopyOperation(
            guest_id=kept.record.guest.guest_id,
            copy_id=kept.record.copy_id,
            type=operation.type,
            what=operation.what,
            epoch=operation.epoch,
            lsn=operation.lsn,
        )
        try:
            await self._nvm.follow_operation(request)
        except EverramError as error:
            self._log_of(kept).warning(
                "the copy of %s %s snapshot %s: %s",
                kept.record.guest.name,
                "may still hold" if operation.type == RecordType.DELETE else "does not hold",
                operation.what.name,
                error.message,
            )

    async def complete(self, request: rp.CompleteRequest) -> pb.Empty:
        """The copy is exact, and replaces the guest's other one. Raises NotFound, FailedPrecondition."""
        async with self._lock(request.guest_id):
            self._check_not_quiet()
            copies = self._copies.get(request.guest_id, [])
            kept = next((copy for copy in copies if copy.record.copy_id == request.copy_id), None)
            if kept is None:
                raise NotFound(f"no copy {request.copy_id} of guest {request.guest_id} is being built here")
            if kept.fenced or kept.record.log_epoch != request.epoch or kept.held < request.lsn:
                raise FailedPrecondition(f"the copy of guest {request.guest_id} is not exact: build it again")
            if kept.session is not None:
                kept.session.close_regions()  # from now on only its records change them
            kept.persist_regions()
            kept.record.complete = True
            await self._store(kept)
            for other in [copy for copy in copies if copy is not kept]:
                await self._remove(other)
            await self._forget(request.guest_id)
        return pb.Empty()

    # -- the leader asks

    async def promise(self, request: rp.PromiseRequest) -> rp.PromiseReply:
        """Acknowledge nothing of a lower epoch any more. Raises FailedPrecondition if a higher one has the promise."""
        async with self._lock(request.guest_id):
            self._check_not_quiet()
            copies = self._copies.get(request.guest_id, [])
            for kept in copies:
                if kept.record.promised_epoch > request.epoch or kept.record.log_epoch > request.epoch:
                    raise FailedPrecondition(
                        f"the copy of {kept.record.guest.name} knows a later epoch than {request.epoch} already"
                    )
            for kept in copies:
                kept.record.promised_epoch = request.epoch
                await self._settle(kept)
            best = _best(copies)
            if best is None:
                return rp.PromiseReply(memory_id=self.memory_id)
            return rp.PromiseReply(
                memory_id=self.memory_id, complete=True, epoch=best.record.epoch, lsn=best.record.lsn
            )

    async def release(self, request: rp.GuestCopy) -> pb.Empty:
        """Erase the guest's copies; nothing to do where there are none."""
        async with self._lock(request.guest_id):
            self._check_not_quiet()
            for kept in list(self._copies.get(request.guest_id, [])):
                if request.copy_id in ("", kept.record.copy_id):
                    await self._remove(kept)
            await self._forget(request.guest_id, request.copy_id)
        return pb.Empty()

    def listed(self) -> rp.CopyList:
        answer = rp.CopyList()
        for copies in self._copies.values():
            for kept in copies:
                record = answer.copies.add()
                record.CopyFrom(kept.record)
                record.held = kept.held
        for damaged in self._damaged.values():
            answer.copies.extend(damaged)
        return answer

    # -- the hypervisor asks

    async def hand_over(self, guest_id: str) -> rp.HandedOver:
        """What the guest needs to begin here, from its best copy. Nothing is given away yet: `release` does that.

        Raises NotFound, FailedPrecondition (it has not been promised to a leader).
        """
        async with self._lock(guest_id):
            best = _best(self._copies.get(guest_id, []))
            if best is None:
                raise NotFound(f"this host has no complete copy of guest {guest_id}")
            record = best.record
            if not best.fenced or best.ring is not None:
                raise FailedPrecondition(f"the copy of {record.guest.name} still follows its primary")
            return rp.HandedOver(guest=record.guest, epoch=record.epoch, lsn=record.lsn, copy_id=record.copy_id)

    # -- parts

    def _lock(self, guest_id: str) -> asyncio.Lock:
        return self._changing.setdefault(guest_id, asyncio.Lock())

    def _log_of(self, kept: KeptCopy) -> ActorLog:
        """For lines about it: how far it goes is what one wants to know first."""
        return self._context.log.about(guest=kept.record.guest.guest_id, epoch=kept.record.log_epoch, lsn=kept.held)

    async def _settle(self, kept: KeptCopy) -> None:
        """End its session and its log region; `record` says what it holds. Asking again changes nothing."""
        kept.end_session()
        log = kept.record.log
        if complaint := await kept.settle(lambda run: self._apply(kept, run)):
            self._log_of(kept).error("copy of %s: what follows is not taken: %s", kept.record.guest.name, complaint)
        kept.record.log = ""
        await self._store(kept)
        kept.close_log()
        if log:
            await self._nvm.remove_regions(
                RegionFilter(
                    guest_id=kept.record.guest.guest_id, copy_id=kept.record.copy_id, log_id=log.rpartition("@")[2]
                )
            )

    async def _remove(self, kept: KeptCopy) -> None:
        """Its record goes first: objects without one are removed by whoever finds them."""
        guest_id, copy_id = kept.record.guest.guest_id, kept.record.copy_id
        kept.close()
        copies = self._copies[guest_id]
        copies.remove(kept)
        if not copies:
            del self._copies[guest_id]
        try:
            await self._vmemfs.remove_copy(rp.GuestCopy(guest_id=guest_id, copy_id=copy_id))
            await self._nvm.remove_regions(RegionFilter(guest_id=guest_id, copy_id=copy_id))
        except NotFound as error:
            self._context.log.about(guest=guest_id).info("a copy was removed already: %s", error.message)

    async def _store(self, kept: KeptCopy) -> None:
        await self._vmemfs.put_copy(_own(kept.record))


def continues(record: rp.Copy, request: rp.OpenRequest) -> bool:
    """Whether a complete copy without a log region lies on the primary's log, so that shipping can go on from it.

    One writer writes each epoch's records, so two logs that agree in epoch and position agree in all before.
    """
    if not record.complete or not request.freed <= record.lsn <= request.tail:
        return False
    guest = request.guest
    if record.guest.regions_generation != guest.regions_generation:
        return False  # its regions are not what the log began from
    if record.epoch == guest.epoch:
        return True
    return record.epoch == guest.previous_epoch and record.lsn <= request.epoch_start


def _check_epoch(record: rp.Copy, guest: pb.Guest) -> None:
    known = max(record.promised_epoch + 1, record.log_epoch)
    if guest.epoch < known:
        raise FailedPrecondition(
            f"epoch {guest.epoch} of guest {guest.name} is fenced: its copy has been promised to epoch {known} or later"
        )


def _best(copies: list[KeptCopy]) -> KeptCopy | None:
    complete = [copy for copy in copies if copy.record.complete]
    return max(complete, key=lambda copy: (copy.record.epoch, copy.record.lsn), default=None)


def _in_order(guest: pb.Guest, session: Session) -> list[int]:
    """The rkeys of the regions, 0 for those that are not replicated; the first of a session's regions is the log."""
    rkeys = iter(session.regions[1:])
    return [next(rkeys).rkey if region.kind == pb.LOGGED else 0 for region in guest.regions]


def _own(record: rp.Copy) -> rp.Copy:
    """A copy: what was sent may not change afterwards."""
    own = rp.Copy()
    own.CopyFrom(record)
    return own
