"""The leader: campaigns for every host, and while this one leads, carries out what `failover` and `placement` decide.

It looks when something changed (the mirror, the lease, the end of a job) or a wait is over, never in between. Each
guest that needs something has one job, an owned task that goes from step to step without waiting for the mirror to show
what it wrote itself: raise, ask all living members at once, choose, appoint. A job that loses a race, or whose write
may or may not have happened, ends; the next look begins with what the directory really says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from everram.actors.availability import failover, placement
from everram.actors.availability.election import Campaigning, Following, Standing, Term, plan_campaign, standing
from everram.actors.availability.failover import Appoint, Ask, Lose, Nothing, Raise, Reply, Sight, Wait
from everram.actors.availability.lease_keeper import LeaseKeeper
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import PromiseRequest
from everram.runtime.coordination.mirror import Mirror
from everram.runtime.coordination.records import DEAD, RUNNING, GuestNeed, GuestRecord, Place
from everram.runtime.errors import EverramError

ASK_TIMEOUT_S = 1.0
"""A living member answers in milliseconds, a link included; one that was cut off meanwhile is not waited for longer."""
ASK_AGAIN_S = 0.25
"""Between rounds while no member with a complete copy answers: a host restarts in about that time."""
RETRY_S = 0.1
"""Before another look after coordination did not answer."""
RACE_S = 0.02
"""Before another look after a lost race: what won it is on its way to the mirror."""
GRACE_S = 3.0
"""Besides one lease TTL, how long a new leader waits for memories that it has never seen: a host starts in less."""


@dataclass(frozen=True, slots=True)
class Known:
    """A guest's record as the job that changes it knows it."""

    record: GuestRecord
    mod_revision: int


class Leader:
    """See the module. `keeper` is the host's lease, `look` tells that something may have changed."""

    def __init__(self, context: ActorContext, mirror: Mirror, keeper: LeaseKeeper) -> None:
        self._context = context
        self._coordination, self._clock = context.environment.coordination, context.environment.clock
        self._mirror, self._keeper = mirror, keeper
        self._changed = asyncio.Event()
        self._seen: set[str] = set()  # memory_ids that the mirror ever showed in hosts/
        self._entered: dict[str, int] = {}  # by host: the last revision at which it wrote its entry in hosts/
        self._standing: Standing = Following()
        self._grace_until_ns = 0
        self._jobs: dict[str, asyncio.Task[None]] = {}  # by guest_id; each removes itself
        self._written: dict[str, int] = {}  # by guest_id: the mirror has to show this revision before the next job
        self._needs: dict[str, GuestNeed] = {}  # by guest_id: as a host that is gone told it, too
        self._resting: dict[str, int] = {}  # by guest_id: no job before this time (ns)
        mirror.listeners.append(self._mirror_changed)

    def look(self) -> None:
        self._changed.set()

    def _mirror_changed(self) -> None:
        hosts = self._mirror.hosts
        self._seen.update(entry.record.memory_id for entry in hosts.values() if entry.record)
        self._needs.update(known for entry in hosts.values() if entry.record for known in entry.record.needs)
        self._entered.update((host, entry.mod_revision) for host, entry in hosts.items())
        self._changed.set()

    async def run(self) -> None:
        """Campaign and lead until cancelled."""
        await self._mirror.filled()
        while True:
            self._changed.clear()
            self._stand()
            wake_ns = None
            if isinstance(self._standing, Campaigning):
                wake_ns = await self._campaign()
            elif isinstance(self._standing, Term):
                wake_ns = self._look_over(self._standing)
            await self._wait(wake_ns)

    async def _wait(self, until_ns: int | None) -> None:
        """Until something changed, or that time."""
        delay_s = None if until_ns is None else max(0.0, (until_ns - self._clock.now_ns()) / 1e9)
        try:
            async with asyncio.timeout(delay_s):
                await self._changed.wait()
        except TimeoutError:
            return

    # -- the term

    def _now_standing(self) -> Standing:
        leader, keeper = self._mirror.leader, self._keeper
        held = keeper.remaining_s(self._clock.now_ns()) > 0
        return standing(leader.pair if leader is not None else None, keeper.lease, held)

    def _stand(self) -> None:
        now = self._now_standing()
        if isinstance(now, Term) and now != self._standing:
            self._grace_until_ns = self._clock.now_ns() + int((self._keeper.ttl_s + GRACE_S) * 1e9)
            self._context.log.info("leads the cluster since revision %d", now.revision)
        elif isinstance(self._standing, Term) and not isinstance(now, Term):
            self._context.log.info("leads the cluster no more")
        self._standing = now

    async def _campaign(self) -> int | None:
        """When to try again; None: the mirror will show who won."""
        planned = plan_campaign(self._context.host, self._keeper.lease)
        try:
            result = await self._coordination.txn(planned.compare, planned.success)
        except EverramError as error:
            self._context.log.info("did not become the leader: %s", error.message)
            return self._clock.now_ns() + int(RETRY_S * 1e9)
        return None if self._mirror.revision >= result.revision else self._clock.now_ns() + int(RETRY_S * 1e9)

    # -- guests

    def _sight(self) -> Sight:
        mirror, entered = self._mirror, self._entered
        # A machine that was dead and has come up since may yet be cut off: its earlier death proves nothing.
        dead = {
            host
            for host, entry in mirror.machines.items()
            if entry.record and entry.record.state == DEAD and entry.mod_revision > entered.get(host, 0)
        }
        hosts = {host: entry.record for host, entry in mirror.hosts.items()}
        return Sight(hosts, frozenset(dead), frozenset(self._seen))

    def _look_over(self, term: Term) -> int | None:
        """Begin a job for each guest that needs one; gives back when to look again even if nothing changes."""
        now_ns, sight, wakes_ns = self._clock.now_ns(), self._sight(), []
        for known in (self._written, self._resting, self._needs):
            for guest_id in [each for each in known if each not in self._mirror.guests]:
                del known[guest_id]
        for guest_id, entry in sorted(self._mirror.guests.items()):
            if entry.record is None or guest_id in self._jobs or entry.mod_revision < self._written.get(guest_id, 0):
                continue
            resting_until_ns = self._resting.get(guest_id, 0)
            if now_ns < resting_until_ns:
                wakes_ns.append(resting_until_ns)
                continue
            decision = self._decide(guest_id, entry.record, sight)
            if isinstance(decision, Wait):
                wakes_ns.append(decision.until_ns)
            elif not isinstance(decision, Nothing):
                work = self._settle(guest_id, Known(entry.record, entry.mod_revision), term)
                self._jobs[guest_id] = self._context.spawn(work, name=f"settle {guest_id}")
        return min(wakes_ns, default=None)

    def _decide(self, guest_id: str, record: GuestRecord, sight: Sight) -> failover.Decision | tuple[Place, ...]:
        """What to do now; a tuple: the destinations that the guest should have."""
        now_ns = self._clock.now_ns()
        decision = failover.decide(record, guest_id in self._mirror.serving, sight, now_ns, self._grace_until_ns)
        if not isinstance(decision, Nothing) or record.state != RUNNING:
            return decision
        if now_ns < self._grace_until_ns and placement.expects(record, sight):
            return Wait(self._grace_until_ns)
        destinations = placement.place(record, sight.hosts, self._needs.get(guest_id, placement.NO_NEED))
        return decision if destinations == record.destinations else destinations

    async def _settle(self, guest_id: str, known: Known, term: Term) -> None:
        """One guest's job: step after step while one follows from the last."""
        following: Known | None = known
        try:
            while following is not None:
                following = await self._step(guest_id, following, term)
        except EverramError as error:
            about = self._context.log.about(guest=guest_id, epoch=known.record.epoch)
            about.warning("guest %s is looked at again: %s", guest_id, error.message)
            self._rest(guest_id, RETRY_S)
        finally:
            del self._jobs[guest_id]
            self._changed.set()

    async def _step(self, guest_id: str, known: Known, term: Term) -> Known | None:
        """The record after the step; None if none was made, or the rest is for others to do."""
        record, sight = known.record, self._sight()
        decision = self._decide(guest_id, record, sight)
        if isinstance(decision, tuple):
            await self._write(guest_id, known, record.changed(destinations=decision), term, unserved=False)
        elif isinstance(decision, Raise):
            return await self._write(guest_id, known, failover.raised(record), term)
        elif isinstance(decision, Ask):
            return await self._ask(guest_id, known, decision, term)
        elif isinstance(decision, Appoint):
            return await self._write(guest_id, known, failover.appointed(record, decision.place, record.start), term)
        elif isinstance(decision, Lose):
            return await self._write(guest_id, known, failover.lost(record), term)
        return None

    async def _ask(self, guest_id: str, known: Known, ask: Ask, term: Term) -> Known | None:
        record = known.record
        asked = [
            self._context.spawn(self._promise(member, guest_id, record.epoch), name=f"ask {member.host}")
            for member in ask.members
        ]
        replies = [reply for task in asked if (reply := await task) is not None]
        need = self._needs.get(guest_id, placement.NO_NEED)
        entries = self._sight().hosts.items()
        cramped = [host for host, entry in entries if entry is not None and not entry.has_room(need)]
        chosen = failover.choose(replies, record.prefer, cramped)
        if chosen is not None:
            changed = failover.appointed(record, chosen.place, chosen.lsn)
            return await self._write(guest_id, known, changed, term)
        back = failover.returned(record, self._sight())
        if back is not None:
            return await self._write(guest_id, known, failover.appointed(record, back, record.start), term)
        about = self._context.log.about(guest=guest_id, epoch=record.epoch)
        about.warning("guest %s waits: no member of its required set has answered for it", guest_id)
        self._rest(guest_id, ASK_AGAIN_S)
        return None

    async def _promise(self, member: Place, guest_id: str, epoch: int) -> Reply | None:
        try:
            replicator = self._context.ref(ReplicatorRef, member.host)
            request = PromiseRequest(guest_id=guest_id, epoch=epoch)
            reply = await replicator.promise(request, timeout_s=ASK_TIMEOUT_S)
        except EverramError as error:
            about = self._context.log.about(guest=guest_id, epoch=epoch)
            about.warning("%s did not promise epoch %d of %s: %s", member.host, epoch, guest_id, error.message)
            return None
        if reply.memory_id != member.memory_id:
            return None  # its machine has come back with another memory
        return Reply(member, reply.complete, reply.epoch, reply.lsn)

    async def _write(
        self, guest_id: str, known: Known, changed: GuestRecord, term: Term, *, unserved: bool = True
    ) -> Known | None:
        """Change the record; None if this host may not (any more), or somebody else has changed it.

        Raises Unavailable or DeadlineExceeded when it may or may not have happened.
        """
        if self._now_standing() != term:
            return None
        planned = failover.plan(guest_id, known.mod_revision, changed, term, unserved=unserved)
        result = await self._coordination.txn(planned.compare, planned.success)
        if not result.succeeded:
            self._rest(guest_id, RACE_S)
            return None
        self._written[guest_id] = result.revision
        if unserved:
            name, owner = changed.raw.get("name", guest_id), changed.owner.host
            about = self._context.log.about(guest=guest_id, epoch=changed.epoch)
            about.warning("%s is %s: epoch %d, host %s", name, changed.state, changed.epoch, owner)
        return Known(changed, result.revision)

    def _rest(self, guest_id: str, pause_s: float) -> None:
        self._resting[guest_id] = self._clock.now_ns() + int(pause_s * 1e9)
