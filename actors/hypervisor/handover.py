"""The hand-over of guests between hosts: taking one over from its copy, giving one up, moving one in order.

    another host's guest becomes ours    take_over: record, memory, copy let go, next incarnation
    ours has become another host's       demote: ended here, what only this memory has is set aside, removed
    ours shall run elsewhere             move: copied there while it runs, ended, drained, handed over

Each may be asked again after a death anywhere in between, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib

from everram.actors.hypervisor.household import GRACE_S, REGISTER_TIMEOUT_S, Household
from everram.actors.hypervisor.life import word
from everram.actors.hypervisor.resident import Resident
from everram.actors.hypervisor.set_aside import set_aside
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import hypervisor_pb2 as hv
from everram.runtime.contracts.availability_pb2 import AimRequest, HandToRequest
from everram.runtime.contracts.replicator_pb2 import DrainRequest, FollowRequest, GuestCopy
from everram.runtime.errors import (
    Aborted,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from everram.runtime.log.ring import Ring, RingCorrupt

MOVE_TIMEOUT_S = 300.0
"""For a copy to be built where a guest is moved to: some hundred GiB in memory."""
DRAIN_TIMEOUT_S = 10.0
"""For the last records of a guest that has stopped."""
LOOK_S = 0.02
"""Between looks at a copy that is being built."""


class Handover:
    def __init__(self, house: Household) -> None:
        self._house = house
        self._going_on: set[str] = set()
        """guest_ids of those taken over whose begin is tried again."""

    async def take_over(self, request: hv.TakeOverRequest) -> pb.Guest:
        """Make this host's copy of a guest the guest itself, and begin its next incarnation.

        Its record comes first, then its memory, then the copy is let go: after a death anywhere in between it is asked
        again, and goes on. Raises NotFound without a copy, FailedPrecondition for one that was not promised.
        """
        guest_id = request.guest_id
        resident = self._house.residents.get(guest_id)
        if resident is None:
            handed = await self._house.replicator.hand_over(GuestCopy(guest_id=guest_id))
            guest = pb.Guest()
            guest.CopyFrom(handed.guest)
            guest.host, guest.epoch, guest.exit_status = self._house.host, handed.epoch, -1
            guest.state, guest.reason, guest.pid = pb.RESTARTING, "taken over", 0
            await self._house.vmemfs.put_guest(guest)
            resident = self._house.residents.setdefault(guest_id, Resident(guest))
        async with resident.changing:
            if resident.guest.state == pb.RUNNING and resident.guest.epoch >= request.epoch:
                return resident.stored()
            await self._house.end_process(resident, again=True)
            stale = await self._is_stale(resident)
            if stale:
                await self._set_aside(resident, hv.DemoteRequest(epoch=request.epoch, host=self._house.host))
                await self._house.erase(resident, everywhere=False)
            else:
                await self._house.adopt_copy(resident)
                await self._begin(resident)
        return await self.take_over(request) if stale else resident.stored()

    async def _begin(self, resident: Resident) -> None:
        """Once an epoch was begun the directory may have it: then it is ours, and nobody asks again that we take it
        over. So if that goes wrong it is tried from here until it runs or has become another's."""
        before = resident.guest.epoch
        try:
            await self._house.begin(resident)
        except (Aborted, Unavailable, DeadlineExceeded) as error:
            if resident.guest.epoch > before:
                resident.become(pb.RESTARTING, error.message)
                guest = resident.guest
                self._house.context.spawn(self._go_on(resident, guest.epoch), name=f"begin {guest.name} again")
            raise

    async def _go_on(self, resident: Resident, epoch: int) -> None:
        guest_id = resident.guest.guest_id
        if guest_id not in self._going_on:
            self._going_on.add(guest_id)
            try:
                await self._house.begin_again(resident, epoch)
            finally:
                self._going_on.discard(guest_id)

    async def _is_stale(self, resident: Resident) -> bool:
        """Whether what this host has of its own is an earlier primary's, and its copy is of a later epoch: it became a
        destination, and is chosen as one, before it was told to demote."""
        memory = self._house.context.environment.memory
        if resident.log_name not in memory.names():
            return False
        try:
            handed = await self._house.replicator.hand_over(GuestCopy(guest_id=resident.guest.guest_id))
        except NotFound:
            return False
        log = memory.open(resident.log_name).map()
        try:
            return handed.epoch > Ring.open(log).epoch
        except RingCorrupt:
            return True
        finally:
            log.close()

    async def demote(self, request: hv.DemoteRequest) -> pb.Empty:
        """Another host has the guest: what lies here is fenced. Nothing to do for a guest that is not here."""
        resident = self._house.residents.get(request.guest_id)
        if resident is None:
            return pb.Empty()
        async with resident.changing:
            guest = resident.guest
            if self._house.residents.get(guest.guest_id) is not resident:
                return pb.Empty()
            if guest.state == pb.RUNNING and guest.epoch >= request.epoch:
                return pb.Empty()  # it has come back here since that was decided
            await self._house.end_process(resident)
            if resident.log_name in self._house.context.environment.memory.names():
                await self._set_aside(resident, request)
            await self._house.erase(resident, everywhere=False)
        return pb.Empty()

    async def _set_aside(self, resident: Resident, request: hv.DemoteRequest) -> None:
        log = self._house.context.environment.memory.open(resident.log_name).map()
        name, disk = resident.guest.name, self._house.context.environment.disk
        try:
            report = await set_aside(disk, Ring.open(log), name, request.start, request.epoch, request.host)
        except RingCorrupt as error:
            self._house.context.log.error("nothing of %s can be set aside: %s", name, error)
            return
        finally:
            log.close()
        if report is not None:
            about = self._house.context.log.about(guest=resident.guest.guest_id, epoch=request.epoch, lsn=request.start)
            about.warning("%s", report)

    async def move(self, resident: Resident, host: str) -> pb.Empty:
        """Build a copy there while the guest runs, then end it, ship the rest, and let that host go on."""
        guest = resident.guest
        if host == self._house.host:
            raise InvalidArgument(f"{guest.name} runs on {host} already")
        if guest.state != pb.RUNNING:
            raise FailedPrecondition(f"{guest.name} is {word(guest.state)}: only a running guest can be moved")
        await self._house.availability.aim(AimRequest(guest_id=guest.guest_id, host=host))
        memory_id = await self._copied_to(resident, host)
        async with resident.changing:
            await self._house.ask_to_end(resident, GRACE_S)
            await self._house.end_process(resident, give_back=False)
            try:
                drain = DrainRequest(guest_id=guest.guest_id, memory_id=memory_id)
                await self._house.replicator.drain(drain, timeout_s=DRAIN_TIMEOUT_S)
                await self._house.availability.hand_to(
                    HandToRequest(guest_id=guest.guest_id, epoch=guest.epoch, host=host), timeout_s=REGISTER_TIMEOUT_S
                )
            except EverramError:
                resident.become(pb.RESTARTING, f"was not moved to {host}")
                self._house.context.spawn(self._stay(resident, guest.epoch), name=f"{guest.name} stays")
                raise
            resident.become(pb.STOPPED, f"moved to {host}")
            await self._house.store(resident)
        return pb.Empty()

    async def _copied_to(self, resident: Resident, host: str) -> str:
        """Wait until a copy on `host` is in sync and a member of the required set; its memory_id."""
        request = FollowRequest(guest_id=resident.guest.guest_id, log=resident.log_name)
        try:
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                while True:
                    positions = await self._house.replicator.positions(request)
                    for copy in positions.copies:
                        if copy.host == host and copy.state == "in-sync" and copy.required:
                            return copy.memory_id
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{resident.guest.name} stays where it is: no copy on {host} was complete after {MOVE_TIMEOUT_S:g} s"
            ) from None

    async def _stay(self, resident: Resident, epoch: int) -> None:
        """A move has failed: the guest goes on here, unless the other host has it after all."""
        with contextlib.suppress(EverramError):  # then its copy there stays until the leader places it elsewhere
            await self._house.availability.aim(AimRequest(guest_id=resident.guest.guest_id))
        await self._house.begin_again(resident, epoch)
