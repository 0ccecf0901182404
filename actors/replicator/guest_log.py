"""The log of one guest that runs here: followed, verified, and shipped to its destinations.

One task reads the ring as the guest commits and wakes the shippers; one keeps the required set in step with who is in
sync. The destinations come from the leader's placement (`ship`), for one registered epoch at a time: a log whose epoch
the directory does not know yet is shipped nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from everram.actors.replicator.follower import Follower
from everram.actors.replicator.members import is_degraded, next_members
from everram.actors.replicator.shipper import RETRY_S, Shipper
from everram.actors.replicator.slots import Slots
from everram.runtime.actor import ActorContext
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.availability_pb2 import Members
from everram.runtime.contracts.replicator_pb2 import ShipRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.environment import HostAddress
from everram.runtime.errors import EverramError, FailedPrecondition, NotFound
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.ring import Ring, RingCorrupt
from everram.runtime.memory.contract import Mapping

Resolve = Callable[[str], Awaitable[HostAddress]]


class GuestLog:
    """Follows `memory`, the ring of `guest_id`. Run `run` as a task; `close` when it has ended."""

    def __init__(
        self,
        context: ActorContext,
        config: HostConfig,
        memory_id: str,
        guest_id: str,
        memory: str,
        resolve: Resolve,
        *,
        quiet: bool = False,
    ) -> None:
        """Raises NotFound, RingCorrupt. `quiet`: see `quiesce`."""
        self.context, self.environment = context, context.environment
        self.config = config
        self.memory_id = memory_id
        self.guest_id = self.name = guest_id
        self.memory = memory
        self.resolve = resolve
        self.corrupt = ""
        self.committed: tuple[str, ...] = ()
        """The required set, as it is in the directory: this host alone changes it while its epoch lasts."""
        self._certain = False
        """Whether that is known: not while it comes from a mirror, or after a change whose answer was lost. Then no
        slot is cleared, because whoever is in the set in truth has to be waited for."""
        self._mapping: Mapping = self.environment.memory.open(memory).map()
        try:
            self.ring = Ring.open(self._mapping)
            self.follower = Follower(self.ring, self.environment.doorbell(guest_id))
        except BaseException:
            self._mapping.close()
            raise
        self.slots = Slots(self.ring)
        self._copies = 0
        self._epoch = 0
        """The epoch that the directory has, and that may be shipped."""
        self._epoch_known = asyncio.Event()
        self._shippers: dict[str, tuple[Shipper, asyncio.Task[None]]] = {}
        """By memory_id, in the order of the leader's placement."""
        self._members_due = asyncio.Event()
        self._committing = asyncio.Lock()
        self._quiet = quiet
        self._tasks = [
            context.spawn(self._read(), name=f"log {guest_id}"),
            context.spawn(self._keep_members(), name=f"members {guest_id}"),
        ]

    async def close(self) -> None:
        """End every task, then let go of the memory."""
        tasks = [*self._tasks, *(task for _, task in self._shippers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self.let_go()

    def let_go(self) -> None:
        """Of the memory, when no task is left; idempotent."""
        self.follower.doorbell.close()
        self._mapping.close()

    # -- reading

    @property
    def verified(self) -> int:
        return self.follower.verified

    async def _read(self) -> None:
        try:
            while True:
                if self.follower.step():
                    for shipper, _ in self._shippers.values():
                        shipper.woken.set()
                    await asyncio.sleep(0)  # one run a turn: others on this loop come first
                else:
                    await self.follower.rest()
        except RingCorrupt as error:
            # The guest's own checks decide about the guest; here the log is no longer taken for good, and says so.
            self.corrupt = f"the log of guest {self.guest_id} is damaged: {error}"
            self.context.log.about(guest=self.guest_id, lsn=self.verified).error("%s", self.corrupt)

    # -- shipping

    def ship(self, request: ShipRequest) -> None:
        """Where the log goes from now on. Raises nothing: what cannot be reached is tried again."""
        guest = request.guest
        self.name = guest.name or self.guest_id
        self._copies = guest.spec.copies
        if guest.epoch != self._epoch:
            # Of one epoch the directory's set is taken once; from then on only this host changes it.
            self._epoch, self.committed, self._certain = guest.epoch, tuple(sorted(request.required)), False
            self.slots.require(self.committed)
            for shipper, _ in self._shippers.values():
                shipper.woken.set()  # its regions may be others than its log tells, and it may not write for long
        if guest.epoch == self.ring.epoch:
            self._epoch_known.set()
        wanted = {target.memory_id: target for target in request.destinations if target.memory_id != self.memory_id}
        for memory_id in [memory_id for memory_id in self._shippers if memory_id not in wanted]:
            _, task = self._shippers.pop(memory_id)
            task.cancel()
        self.slots.keep_log_for(wanted)
        for memory_id, target in wanted.items():
            if memory_id not in self._shippers:
                shipper = Shipper(self, target)
                task = self.context.spawn(shipper.run(), name=f"{self.guest_id} to {target.host}")
                self._shippers[memory_id] = shipper, task
        self.reconsider()

    async def registered(self) -> int:
        """The guest's epoch, once the directory has it."""
        while self.ring.epoch != self._epoch:
            self._epoch_known.clear()
            await self._epoch_known.wait()
        return self._epoch

    async def record(self, epoch: int) -> pb.Guest:
        """What is kept of the guest, of this epoch. Raises NotFound, FailedPrecondition while it changes."""
        stored = await self.context.ref(VMemFSRef).guests(pb.Empty())
        guest = next((guest for guest in stored.guests if guest.guest_id == self.guest_id), None)
        if guest is None:
            raise NotFound(f"guest {self.guest_id} has no record any more")
        if guest.epoch != epoch:
            raise FailedPrecondition(f"guest {guest.name} is between two epochs ({guest.epoch}, {epoch}): try again")
        return guest

    # -- the required set

    def reconsider(self) -> None:
        """A destination has come, gone or changed its state."""
        self._members_due.set()

    async def _keep_members(self) -> None:
        while True:
            await self._members_due.wait()
            self._members_due.clear()
            try:
                await self._commit_members()
            except FailedPrecondition as error:
                self.context.log.about(guest=self.guest_id).warning(
                    "%s: the required set is not ours to change: %s", self.name, error.message
                )
            except EverramError as error:
                self.context.log.about(guest=self.guest_id).info(
                    "%s: the required set stays as it is for now: %s", self.name, error.message
                )
                await asyncio.sleep(RETRY_S)
                self._members_due.set()

    async def quiesce(self, on: bool) -> None:
        """Change the required set no more from the return on (`on`), or do again: while the ring is saved, its slots
        must not fall behind the directory."""
        self._quiet = on
        async with self._committing:
            self.reconsider()

    async def _commit_members(self) -> None:
        """Bring the committed set to what it should be; the order is explained in `members`."""
        async with self._committing:
            if not self._quiet and self._epoch and self._epoch == self.ring.epoch:
                await self._commit_members_of(self._epoch)

    async def _commit_members_of(self, epoch: int) -> None:
        in_sync = {memory_id for memory_id, (shipper, _) in self._shippers.items() if shipper.in_sync}
        wanted = next_members(self.committed, tuple(self._shippers), in_sync)
        if wanted != self.committed or not self._certain:
            if self.committed:
                self.slots.require(wanted)
            self._certain = False
            request = Members(guest_id=self.guest_id, epoch=epoch, required=wanted)
            await self.context.ref(AvailabilityRef).set_members(request)
            if epoch != self._epoch:
                return  # meanwhile another epoch's set was taken
            if wanted != self.committed:
                about = self.context.log.about(guest=self.guest_id, epoch=epoch, lsn=self.verified)
                about.info("%s is required to be held by %s", self.name, ", ".join(wanted) or "nobody")
            self.committed, self._certain = wanted, True
            self.slots.require(wanted)
            self._members_due.set()  # for what changed meanwhile
        self.slots.dismiss(self.committed)

    # -- what is told

    def positions(self) -> pb.LogPositions:
        ring = self.ring
        return pb.LogPositions(
            epoch=ring.epoch,
            tail=ring.tail,
            applied=ring.applied,
            freed=ring.freed,
            verified=self.verified,
            capacity_bytes=ring.capacity_bytes,
            copies=[shipper.status(self.committed) for shipper, _ in self._shippers.values()],
            degraded=self._degraded(),
        )

    def _degraded(self) -> bool:
        in_sync = {memory_id for memory_id, (shipper, _) in self._shippers.items() if shipper.in_sync}
        return is_degraded(self._copies, self.committed, in_sync)

    async def drained(self, memory_id: str) -> None:
        """Returns once a destination in sync holds everything committed. The guest should not run meanwhile."""
        while True:
            shipper, _ = self._shippers.get(memory_id, (None, None))
            if shipper is None:
                raise NotFound(f"{memory_id} is no destination of guest {self.guest_id}")
            if shipper.in_sync and self.verified == self.ring.tail and shipper.durable >= self.ring.tail:
                return
            await asyncio.sleep(RETRY_S / 10)
