"""The performer: does what this host owes because of the directory, as `duties` says.

It looks after every change of the mirror, and every SWEEP_S for what no change tells of (an actor of this host that
was started again). Each duty is an owned task of its own, one at a time for each guest and kind, repeated until the
directory or this host's own records no longer ask for it: what is asked of the hypervisor and the replicator may be
asked again.

Taking a memory's content away is decided on a fresh reading, never on the mirror, which may be behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from everram.actors.availability import duties
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.common_pb2 import Empty, Guest
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.hypervisor_pb2 import TakeOverRequest
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import Copy, GuestCopy, ShipRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.coordination.api import Range
from everram.runtime.coordination.directory import decode, guest_key
from everram.runtime.coordination.mirror import Mirror
from everram.runtime.coordination.records import GuestRecord, Place
from everram.runtime.errors import DataLoss, EverramError

SWEEP_S = 3.0
"""After which everything is looked at again, and each log's destinations are told again."""
AGAIN_S = 0.2
"""Between two attempts at one duty."""
TAKE_OVER_TIMEOUT_S = 30.0
"""Replaying what was not applied, making empty mapped regions, starting the process; also what a demotion may take."""
LOOK_TIMEOUT_S = 1.0
"""What this host's own actors may take to say what they have, before the other half of a look goes on without."""


class Performer:
    """See the module. `lease`: what the host serves under now, 0 for none."""

    def __init__(
        self, context: ActorContext, mirror: Mirror, me: Place, lease: Callable[[], int], *, named_choice: bool = False
    ) -> None:
        self._context = context
        self._coordination, self._clock = context.environment.coordination, context.environment.clock
        self._mirror, self._me, self._lease, self._named_choice = mirror, me, lease, named_choice
        self._changed = asyncio.Event()
        self._jobs: dict[tuple[str, str], asyncio.Task[None]] = {}  # by (kind, guest_id); each removes itself
        self._resting: dict[tuple[str, str], int] = {}  # not before this time (ns)
        self._shipped: dict[str, tuple[bytes, int]] = {}  # by guest_id: what the replicator was told last, and when
        self._complaints: dict[
            tuple[str, str], str
        ] = {}  # the last one in the log, so that one that lasts is told once
        mirror.listeners.append(self._mirror_changed)

    def _mirror_changed(self) -> None:
        self._take_over_chosen()  # somebody waits for it, so at once
        self._changed.set()

    def look(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        await self._mirror.filled()
        while True:
            self._changed.clear()
            self._take_over_chosen()
            for what, look_over in (("guests", self._look_over_guests), ("copies", self._look_over_copies)):
                try:
                    await look_over()
                except EverramError as error:
                    self._complain(("look over", what), error)
            await self._wait()

    async def _wait(self) -> None:
        """Until something changed, a duty is due again, or the next sweep."""
        now_ns = self._clock.now_ns()
        self._resting = {key: until_ns for key, until_ns in self._resting.items() if until_ns > now_ns}
        until_ns = min((now_ns + int(SWEEP_S * 1e9), *self._resting.values()))
        try:
            async with asyncio.timeout((until_ns - now_ns) / 1e9):
                await self._changed.wait()
        except TimeoutError:
            return

    def _take_over_chosen(self) -> None:
        for guest_id, entry in sorted(self._mirror.guests.items()):
            if entry.record is not None and duties.takes_over(entry.record, self._me):
                self._begin("take over", guest_id, self._take_over, guest_id, entry.record.epoch)

    async def _look_over_guests(self) -> None:
        stored = (await self._context.ref(VMemFSRef).guests(Empty(), timeout_s=LOOK_TIMEOUT_S)).guests
        for guest_id in self._shipped.keys() - {guest.guest_id for guest in stored}:
            del self._shipped[guest_id]
        for guest in stored:
            self._of_guest(guest)

    async def _look_over_copies(self) -> None:
        for copy in (await self._context.ref(ReplicatorRef).copies(Empty(), timeout_s=LOOK_TIMEOUT_S)).copies:
            self._of_copy(copy)

    def _of_guest(self, guest: Guest) -> None:
        """A guest that this host has in its own memory."""
        guest_id, entry = guest.guest_id, self._mirror.guests.get(guest.guest_id)
        if entry is None or entry.record is None:
            return
        if duties.demotion(guest_id, entry.record, self._me, named_choice=self._named_choice) is not None:
            self._shipped.pop(guest_id, None)
            self._begin("demote", guest_id, self._demote, guest_id)
        serving = self._mirror.serving.get(guest_id)
        served_under = serving.pair.lease if serving is not None else 0
        request = duties.shipping(guest, entry.record, self._me, served_under, self._lease())
        if request is not None and self._to_be_told(request):
            self._begin("ship", guest_id, self._ship, request)

    def _of_copy(self, copy: Copy) -> None:
        """A copy that this host keeps for another."""
        guest_id = copy.guest.guest_id
        entry = self._mirror.guests.get(guest_id)
        if (entry is None or entry.record is not None) and duties.releases(entry.record if entry else None, self._me):
            self._begin("release", f"{guest_id} {copy.copy_id}", self._release, copy)

    # -- the duties

    async def _take_over(self, guest_id: str, epoch: int) -> None:
        self._context.log.about(guest=guest_id, epoch=epoch).info("takes guest %s over, epoch %d", guest_id, epoch)
        hypervisor = self._context.ref(HypervisorRef)
        await hypervisor.take_over(TakeOverRequest(guest_id=guest_id, epoch=epoch), timeout_s=TAKE_OVER_TIMEOUT_S)

    async def _demote(self, guest_id: str) -> None:
        record = await self._read(guest_id)
        request = duties.demotion(guest_id, record, self._me, named_choice=self._named_choice) if record else None
        if request is not None:
            about = self._context.log.about(guest=guest_id, epoch=request.epoch, lsn=request.start)
            about.warning("guest %s is %s's since epoch %d", guest_id, request.host, request.epoch)
            await self._context.ref(HypervisorRef).demote(request, timeout_s=TAKE_OVER_TIMEOUT_S)

    async def _ship(self, request: ShipRequest) -> None:
        await self._context.ref(ReplicatorRef).ship(request)
        self._shipped[request.guest.guest_id] = (_told(request), self._clock.now_ns())

    def _to_be_told(self, request: ShipRequest) -> bool:
        """Whether the replicator has not been told, or long enough ago that it may have been started again since."""
        told, when_ns = self._shipped.get(request.guest.guest_id, (b"", 0))
        if not told and not (request.destinations or request.required or request.guest.spec.copies):
            return False
        return told != _told(request) or self._clock.now_ns() - when_ns >= SWEEP_S * 1e9

    async def _release(self, copy: Copy) -> None:
        """Erase a copy: only if a fresh record says so, and nobody has taken the copy up while that was read."""
        record = await self._read(copy.guest.guest_id)
        if not duties.releases(record, self._me):
            return
        replicator = self._context.ref(ReplicatorRef)
        now = [each for each in (await replicator.copies(Empty())).copies if _identity(each) == _identity(copy)]
        if now:
            about = self._context.log.about(guest=copy.guest.guest_id)
            about.info("copy %s of guest %s is needed no more", copy.copy_id, copy.guest.guest_id)
            await replicator.release(GuestCopy(guest_id=copy.guest.guest_id, copy_id=copy.copy_id))

    async def _read(self, guest_id: str) -> GuestRecord | None:
        """The record as it is now. Raises DataLoss if it cannot be read, Unavailable, DeadlineExceeded."""
        _, found = await self._coordination.range(Range(guest_key(guest_id)))
        try:
            return GuestRecord.read(decode(found[0].value)) if found else None
        except ValueError as error:
            raise DataLoss(f"the directory's record of guest {guest_id} cannot be read: {error}") from error

    # -- the jobs

    def _complain(self, key: tuple[str, str], error: EverramError) -> None:
        if error.message != self._complaints.get(key):
            self._complaints[key] = error.message
            self._context.log.warning("%s %s is tried again: %s", *key, error.message)

    def _begin(self, kind: str, name: str, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Unless this duty is being done, or was a moment ago."""
        key = (kind, name)
        if key in self._jobs or self._clock.now_ns() < self._resting.get(key, 0):
            return
        self._jobs[key] = self._context.spawn(self._do(key, work, *arguments), name=f"{kind} {name}")

    async def _do(self, key: tuple[str, str], work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        failed = False
        try:
            await work(*arguments)
            self._complaints.pop(key, None)
        except EverramError as error:
            failed = True
            self._complain(key, error)
        finally:
            if failed or key[0] != "ship":
                self._resting[key] = self._clock.now_ns() + int(AGAIN_S * 1e9)
            del self._jobs[key]
            self._changed.set()


def _told(request: ShipRequest) -> bytes:
    """What a replicator goes by: the guest's other members change with its life."""
    named = ShipRequest(destinations=request.destinations, required=request.required)
    named.guest.guest_id, named.guest.epoch = request.guest.guest_id, request.guest.epoch
    return named.SerializeToString(deterministic=True)


def _identity(copy: Copy) -> tuple[str, str, str, int, bool]:
    """Changes when a primary opens the copy again."""
    return copy.guest.guest_id, copy.copy_id, copy.log, copy.log_epoch, copy.complete
