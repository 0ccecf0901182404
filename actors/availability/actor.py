"""The availability actor: keeps its host's place in the directory and the lease that the host's guests serve under, and
has its host take part in what the directory decides: `leader` for the whole cluster, `performer` for this host.

Every renewal gives a new deadline to the machine, which freezes guests a margin before it, and to a word in each
serving guest's log ring, which the guest checks at every commit. A dead, hung or cut-off host thus cannot leave a guest
serving. A restarted host goes on under its unexpired lease, whose number VMemFS kept. When the lease is lost the guests
are not touched from here: their deadline passes, the machine freezes them with reason "lease", and the hypervisor
begins new incarnations, for which `Register` waits until there is a lease again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

from everram.actors.availability.leader import Leader
from everram.actors.availability.lease_keeper import Grant, LeaseKeeper, Renew, Wait
from everram.actors.availability.performer import Performer
from everram.actors.availability.registration import (
    Holder,
    Plan,
    Seen,
    name_in,
    plan_aim,
    plan_disown,
    plan_end_hold,
    plan_forget,
    plan_give_back,
    plan_hand_to,
    plan_hold,
    plan_limit,
    plan_register,
    plan_set_members,
    reads,
    record_of,
    seen,
    served_elsewhere,
)
from everram.runtime.contracts.availability_contract import AvailabilityActor
from everram.runtime.contracts.availability_pb2 import (
    AimRequest,
    GuestKey,
    GuestLimits,
    HandToRequest,
    HoldRequest,
    LeaseStatus,
    Members,
    MemoryFigures,
    ReachedGuest,
    Registration,
    WaitingGuest,
)
from everram.runtime.contracts.common_pb2 import Empty, Guest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.coordination.api import Compare, Put, Range, Relation, Target, WatchBatch
from everram.runtime.coordination.directory import decode, encode, guest_key, host_key, serving_key
from everram.runtime.coordination.mirror import Mirror
from everram.runtime.coordination.records import HostRecord, Place
from everram.runtime.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.ring import Ring, RingCorrupt, log_name
from everram.runtime.memory.contract import Mapping

RETRY_S = 0.1
"""Between attempts to change the directory while coordination cannot be reached."""
FREE_EVERY_S = 2.0
"""How often at most the directory is told how much memory is free."""
FREE_STEPS = 64
"""And only if it changed by this part of the whole."""
RACES_MAX = 10
"""Transactions that lose to another change, one after the other, before the asker is told."""


class Raced(Aborted):
    """Others changed what was read, each time: nothing is known against what was to be done."""


class ServingGuest:
    """One guest whose lease word is kept: its epoch, and its ring while mapped."""

    def __init__(self, epoch: int, mapping: Mapping) -> None:
        self.epoch = epoch
        self._mapping = mapping
        self._ring = Ring.open(mapping)

    @property
    def deadline_ns(self) -> int:
        return self._ring.lease_deadline_ns

    def serve_until(self, deadline_ns: int) -> None:
        self._ring.set_lease_deadline_ns(deadline_ns)

    def close(self) -> None:
        self._mapping.close()


class Availability(AvailabilityActor):
    """Lease and directory entry of one host."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._serving: dict[str, ServingGuest] = {}  # by guest_id: exactly those whose lease word is renewed
        self._published = asyncio.Event()
        self._figures: MemoryFigures | None = None
        self._figures_told: MemoryFigures | None = None
        """What the scheduler said last, and what hosts/HOST says."""

    # -- the lease

    async def on_start(self) -> None:
        environment = self.context.environment
        self._coordination, self._machine, self._clock = (
            environment.coordination,
            environment.machine,
            environment.clock,
        )
        self._vmemfs = self.context.ref(VMemFSRef)
        self.context.resources.callback(self._drop_all)
        record = await self._vmemfs.get_host(Empty())
        self._memory_id = record.memory_id
        for process in await self._machine.guests():
            if process.pid and "lease" not in process.freeze_reasons:
                self._adopt(process.guest_id, process.epoch)
        published_ns = max((guest.deadline_ns for guest in self._serving.values()), default=0)
        self._keeper = LeaseKeeper(self._config.lease_ttl_s, lease=record.lease_id, published_ns=published_ns)
        self._left = False
        self._ending_holds: asyncio.Task[None] | None = None
        self._entered = False  # whether hosts/HOST is known to be there under the current lease
        self._free_bytes = self._free_told_ns = 0  # what hosts/HOST says, and since when
        self._mirror = Mirror(self._coordination)
        self._leader = Leader(self.context, self._mirror, self._keeper)
        self._performer = Performer(
            self.context, self._mirror, self._current().place, lambda: self._keeper.lease,
            named_choice=bool(self._config.open_image),
        )  # fmt: skip
        self.context.spawn(self._keep_lease(), name="lease")
        self.context.spawn(self._mirror.run(), name="mirror")
        self.context.spawn(self._leader.run(), name="leader")
        self.context.spawn(self._performer.run(), name="performer")

    async def leave(self, request: Empty) -> Empty:
        """The host's lease ends now, by its own will (D5): nobody here serves any more, which the machine sees to."""
        self._left = True
        self._drop_all()
        lease = self._keeper.lease
        self._keeper.gone()
        if lease:
            with contextlib.suppress(NotFound):
                await self._coordination.lease_revoke(lease)
        self.context.log.info("gave lease %x back", lease)
        return Empty()

    async def _keep_lease(self) -> None:
        while not self._left:
            step = self._keeper.next_step(self._clock.now_ns())
            if isinstance(step, Wait):
                await asyncio.sleep(max(0.0, (step.until_ns - self._clock.now_ns()) / 1e9))
                continue
            try:
                held = self._keeper.remaining_s(self._clock.now_ns()) > 0
                await (self._renew(step) if isinstance(step, Renew) else self._grant(step))
                await self._machine.lease(self._keeper.deadline_ns)
                _wake(self._published)
                if not held:
                    self._leader.look()
                    self._performer.look()
                if not self._entered or self._free_changed():
                    await self._enter()
            except NotFound:
                self._lose()
            except (Unavailable, DeadlineExceeded, FailedPrecondition) as error:
                self._fail(error)

    async def _renew(self, step: Renew) -> None:
        sent_ns = self._clock.now_ns()
        ttl_s = await self._coordination.lease_keepalive(step.lease)
        if self._keeper.renewals and not self._keeper.serves(sent_ns):
            self.context.log.warning("lease %x was renewed late; guests were frozen meanwhile", step.lease)
        self._keeper.renewed(sent_ns, ttl_s)
        for guest in self._serving.values():
            guest.serve_until(self._keeper.deadline_ns)

    async def _grant(self, _: Grant) -> None:
        self._drop_all()  # whoever served under an earlier lease, or under none, begins anew
        sent_ns = self._clock.now_ns()
        lease, ttl_s = await self._coordination.lease_grant(self._config.lease_ttl_s)
        record = await self._vmemfs.get_host(Empty())
        record.lease_id = lease
        await self._vmemfs.put_host(record)
        self._keeper.granted(lease, sent_ns, ttl_s)
        self.context.log.info("holds lease %x of %g s", lease, self._keeper.ttl_s)

    def _lose(self) -> None:
        if self._keeper.renewals:
            self.context.log.warning("lease %x is gone; its guests end at their deadline", self._keeper.lease)
        self._keeper.gone()
        self._entered = False
        self._drop_all()

    def _fail(self, error: EverramError) -> None:
        if self._keeper.failures % 50 == 0:
            self.context.log.warning("the lease was not renewed: %s", error.message)
        self._keeper.failed(self._clock.now_ns())

    async def _enter(self) -> None:
        """Write hosts/HOST under the lease. Raises FailedPrecondition while another host has the name."""
        config, key = self._config, host_key(self._config.host)
        _, found = await self._coordination.range(Range(key))
        there = decode(found[0].value) if found else {}
        if there.get("host_id", config.host_id) != config.host_id:
            raise FailedPrecondition(
                f"another host named {config.host} is in the directory ({there.get('host_id')}): stop it, or give this "
                "one another name"
            )
        self._free_bytes, self._free_told_ns = self._measure_free(), self._clock.now_ns()
        entry: dict[str, Any] = {
            "host_id": config.host_id,
            "memory_id": self._memory_id,
            "address": f"unix:{config.socket}",
            "channel": self.context.environment.channel.address,
            "memory_free_bytes": self._free_bytes,
        }
        figures = self._figures_told = self._figures
        if figures is not None:
            entry["guest_memory"] = {
                "available_bytes": figures.available_bytes,
                "unpromised_bytes": figures.unpromised_bytes,
                "guests": {
                    guest.guest_id: {"working_bytes": guest.working_set_bytes, "memory_bytes": guest.memory_bytes}
                    for guest in figures.guests
                },
            }
        unchanged = Compare(key, Target.MOD, Relation.EQUAL, found[0].mod_revision if found else 0)
        result = await self._coordination.txn((unchanged,), (Put(key, encode(there | entry), self._keeper.lease),))
        self._entered = result.succeeded

    def _measure_free(self) -> int:
        """What may still be promised to somebody, as the machine counts it."""
        memory = self.context.environment.memory
        return max(0, memory.capacity_bytes - sum(memory.open(name).size_bytes for name in memory.names()))

    def _free_changed(self) -> bool:
        if self._clock.now_ns() - self._free_told_ns < FREE_EVERY_S * 1e9:
            return False
        if self._figures is not self._figures_told:
            return True
        least = self.context.environment.memory.capacity_bytes // FREE_STEPS
        return abs(self._measure_free() - self._free_bytes) >= max(1, least)

    # -- guests

    def reached(self, request: GuestKey) -> Awaitable[ReachedGuest]:
        return self.context.later(self._reached(request.guest_id), cancellable=True)

    async def _reached(self, guest_id: str) -> ReachedGuest:
        """The next incarnation's epoch has to be higher, also where this memory is older than the directory."""
        _, found = await self._coordination.range(Range(guest_key(guest_id)))
        if not found:
            return ReachedGuest(guest_id=guest_id)
        record = record_of(found[0])
        limits = None
        if record.limits is not None:
            limits = GuestLimits(guest_id=guest_id, min_bytes=record.limits[0], max_bytes=record.limits[1])
        return ReachedGuest(guest_id=guest_id, epoch=record.epoch, limits=limits)

    def limit(self, request: GuestLimits) -> Awaitable[Empty]:
        return self.context.later(self._limit(request))

    async def _limit(self, request: GuestLimits) -> Empty:
        holder, guest_id, low, high = self._current(), request.guest_id, request.min_bytes, request.max_bytes
        await self._change(guest_id, "", lambda f: plan_limit(f, guest_id, low, high, holder))
        return Empty()

    def note_memory(self, request: MemoryFigures) -> Empty:
        self._figures = request
        return Empty()

    def register(self, request: Registration) -> Awaitable[Empty]:
        return self.context.later(self._register(request.guest), cancellable=True)

    async def _register(self, guest: Guest) -> Empty:
        while True:
            holder = await self._holder()
            try:
                served = await self._register_under(holder, guest)
            except (Raced, NotFound, Unavailable, DeadlineExceeded) as error:
                # The lease went away meanwhile, or coordination did. What was written is found by the next attempt.
                about = self.context.log.about(guest=guest.guest_id, epoch=guest.epoch)
                about.info("%s is not registered yet: %s", guest.name, error.message)
                await asyncio.sleep(RETRY_S)
                continue
            if served is not None:
                await self._over(guest, served)
            elif self._keeper.lease == holder.lease and self._keeper.serves(self._clock.now_ns()):
                # The guest runs only after the answer, so its lease word is right before its first commit.
                self._serve(guest.guest_id, guest.epoch).serve_until(self._keeper.deadline_ns)
                return Empty()

    async def _register_under(self, holder: Holder, guest: Guest) -> Seen | None:
        """None once it is registered; otherwise who serves it still, under another lease."""
        return await self._change(guest.guest_id, guest.name, lambda found: plan_register(found, guest, holder), holder)

    async def _holder(self) -> Holder:
        """Wait until the lease has enough time left for a new incarnation."""
        while not self._keeper.serves(self._clock.now_ns()):
            await self._published.wait()
        return self._current()

    async def _over(self, guest: Guest, found: Seen) -> None:
        """Wait until nobody serves the guest under another lease: by its end, or because it was given back."""
        watch = self._coordination.watch(Range(serving_key(guest.guest_id)), found.revision + 1)
        try:
            async with aclosing(cast(AsyncGenerator[WatchBatch, None], watch)) as batches:
                await anext(batches)
        except (Unavailable, DeadlineExceeded, FailedPrecondition):
            await asyncio.sleep(RETRY_S)

    def give_back(self, request: GuestKey) -> Awaitable[Empty]:
        serving = self._serving.get(request.guest_id)
        if serving is not None and serving.epoch <= request.epoch:
            self._drop(request.guest_id)
        return self.context.later(self._give_back(request))

    async def _give_back(self, request: GuestKey) -> Empty:
        holder, guest_id, epoch = self._current(), request.guest_id, request.epoch
        await self._change(guest_id, "", lambda f: plan_give_back(f, guest_id, epoch, holder, again=request.again))
        return Empty()

    def disown(self, request: GuestKey) -> Awaitable[Empty]:
        self._drop(request.guest_id)
        return self.context.later(self._disown(request.guest_id))

    async def _disown(self, guest_id: str) -> Empty:
        holder = self._current()
        await self._change(guest_id, "", lambda f: plan_disown(f, guest_id, holder))
        return Empty()

    def set_members(self, request: Members) -> Awaitable[Empty]:
        return self.context.later(self._set_members(request))

    async def _set_members(self, request: Members) -> Empty:
        holder, guest_id, epoch, required = self._current(), request.guest_id, request.epoch, list(request.required)
        await self._change(guest_id, "", lambda f: plan_set_members(f, guest_id, epoch, required, holder))
        return Empty()

    def aim(self, request: AimRequest) -> Awaitable[Empty]:
        return self.context.later(self._aim(request))

    async def _aim(self, request: AimRequest) -> Empty:
        """Raises NotFound for a host that is not in the directory."""
        target = await self._locate(request.host) if request.host else None
        holder = self._current()
        await self._change(request.guest_id, "", lambda f: plan_aim(f, request.guest_id, target, holder))
        return Empty()

    def hand_to(self, request: HandToRequest) -> Awaitable[Empty]:
        serving = self._serving.get(request.guest_id)
        if serving is not None and serving.epoch <= request.epoch:
            self._drop(request.guest_id)
        return self.context.later(self._hand_to(request))

    async def _hand_to(self, request: HandToRequest) -> Empty:
        """Raises NotFound for a host that is not in the directory: the guest may then be begun again here."""
        target, holder = await self._locate(request.host), self._current()
        guest_id, epoch = request.guest_id, request.epoch
        await self._change(guest_id, "", lambda f: plan_hand_to(f, guest_id, epoch, target, holder))
        return Empty()

    async def _locate(self, host: str) -> Place:
        """The memory that a host serves now. Raises NotFound, DataLoss."""
        _, found = await self._coordination.range(Range(host_key(host)))
        if not found:
            raise NotFound(f"no host named {host} is in the directory: it is down, or has lost its lease")
        try:
            return Place(host, HostRecord.read(decode(found[0].value)).memory_id)
        except ValueError as error:
            raise DataLoss(
                f"the directory's entry of host {host} cannot be read ({error}): restart that host"
            ) from error

    def hold(self, request: HoldRequest) -> Awaitable[Empty]:
        return self.context.later(self._hold(request), cancellable=True)

    async def _hold(self, request: HoldRequest) -> Empty:
        """Raises Unavailable, DeadlineExceeded if the directory cannot be reached: then ask again, or it fails over."""
        if self._ending_holds is not None:
            self._ending_holds.cancel()  # of an earlier loss
        holder, guest_id, drained = self._current(), request.guest_id, list(request.drained)
        await self._change(guest_id, "", lambda f: plan_hold(f, guest_id, drained, holder))
        return Empty()

    def end_holds(self, request: Empty) -> Empty:
        """Answered at once, and done as soon as the directory can be reached."""
        self._ending_holds = self.context.spawn(self._end_holds(), name="end holds")
        return Empty()

    async def _end_holds(self) -> None:
        """Of every guest that this memory has: the mirror may not show yet which of them were held."""
        for guest in (await self._vmemfs.guests(Empty())).guests:
            await self._end_hold(guest.guest_id)

    async def _end_hold(self, guest_id: str) -> None:
        holder = self._current()
        while True:
            try:
                await self._change(guest_id, "", lambda f: plan_end_hold(f, guest_id, holder))
                return
            except (Aborted, Unavailable, DeadlineExceeded):
                await asyncio.sleep(RETRY_S)

    def go_on(self, request: GuestKey) -> Awaitable[Empty]:
        return self.context.later(self._go_on(request.guest_id))

    async def _go_on(self, guest_id: str) -> Empty:
        """Raises NotFound for a guest that nobody knows."""
        if (await self._read(guest_id, "")).guest is None:
            raise NotFound(f"no guest {guest_id} is in the directory")
        await self._change(guest_id, "", lambda f: plan_end_hold(f, guest_id, None))
        return Empty()

    def forget(self, request: GuestKey) -> Awaitable[Empty]:
        self._drop(request.guest_id)
        return self.context.later(self._forget(request))

    async def _forget(self, request: GuestKey) -> Empty:
        holder = self._current()
        name = name_in(await self._read(request.guest_id, ""))
        await self._change(request.guest_id, name, lambda f: plan_forget(f, request.guest_id, holder))
        return Empty()

    def status(self, request: Empty) -> LeaseStatus:
        now_ns, keeper = self._clock.now_ns(), self._keeper
        remaining_s, leader = keeper.remaining_s(now_ns), self._mirror.leader
        return LeaseStatus(
            lease_id=keeper.lease,
            ttl_s=keeper.ttl_s,
            remaining_s=remaining_s,
            renewals=keeper.renewals,
            failures=keeper.failures,
            held=remaining_s > 0,
            leader=leader.record.host if leader is not None and leader.record is not None else "",
            waiting=self._waiting(),
        )

    def _waiting(self) -> list[WaitingGuest]:
        """Guests that wait for saved memory."""
        found = sorted((guest_id, e.record) for guest_id, e in self._mirror.guests.items() if e.record is not None)
        return [
            WaitingGuest(
                guest_id=guest_id,
                name=str(record.raw.get("name", guest_id)),
                host=(record.previous or record.owner).host,
            )
            for guest_id, record in found
            if record.saved is not None and guest_id not in self._mirror.serving
        ]

    # -- the directory

    def _current(self) -> Holder:
        """In whose name the directory is changed now."""
        return Holder(self._config.host, self._memory_id, self._keeper.lease, bool(self._config.open_image))

    async def _read(self, guest_id: str, name: str) -> Seen:
        result = await self._coordination.txn((), reads(guest_id, name))
        return seen(result.revision, result.ranges)

    async def _change(
        self, guest_id: str, name: str, plan: Callable[[Seen], Plan | None], holder: Holder | None = None
    ) -> Seen | None:
        """Read, plan and do it, again if another change came between. With `holder`: gives back what was read,
        without a change, while the guest is served under another lease; otherwise None.

        A change whose answer was lost is planned again from what is there then. Raises what `plan` raises, NotFound if
        the lease is gone, Raced after RACES_MAX lost races, Unavailable or DeadlineExceeded.
        """
        for _ in range(RACES_MAX):
            found = await self._read(guest_id, name)
            planned = plan(found)
            if holder is not None and served_elsewhere(found, holder):
                return found
            if planned is None or (await self._coordination.txn(planned.compare, planned.success)).succeeded:
                return None
        raise Raced(f"the directory entry of guest {guest_id} changes too often: try again")

    # -- lease words

    def _adopt(self, guest_id: str, epoch: int) -> None:
        """Go on with the lease word of a guest that outlived this host's predecessor."""
        try:
            self._serve(guest_id, epoch)
        except (FailedPrecondition, NotFound) as error:
            # It stops serving at its deadline, and the hypervisor finds out why it cannot go on.
            self.context.log.about(guest=guest_id, epoch=epoch).error(
                "guest %s keeps no lease: %s", guest_id, error.message
            )

    def _serve(self, guest_id: str, epoch: int) -> ServingGuest:
        """Keep the lease word of a guest from now on. Raises FailedPrecondition if its ring is damaged."""
        self._drop(guest_id)
        mapping = self.context.environment.memory.open(log_name(guest_id)).map()
        try:
            serving = self._serving[guest_id] = ServingGuest(epoch, mapping)
        except RingCorrupt as error:
            mapping.close()
            raise FailedPrecondition(f"guest {guest_id} cannot serve: {error}") from error
        return serving

    def _drop(self, guest_id: str) -> None:
        serving = self._serving.pop(guest_id, None)
        if serving is not None:
            serving.close()

    def _drop_all(self) -> None:
        for guest_id in list(self._serving):
            self._drop(guest_id)


def _wake(event: asyncio.Event) -> None:
    """Let everyone who waits now go on; whoever waits later waits for the next."""
    event.set()
    event.clear()
