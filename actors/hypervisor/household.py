"""The guests of one host, and what is done to one of them at a time: begun, ended, stored, erased.

The parts of a guest's life that the contract, the machine's events and the hand-over between hosts have in common.
Whoever changes a guest holds its `changing` lock. A guest is recorded in VMemFS before anything of it starts and after
each change, so that a successor of this host finds every guest in a state it can go on from. A new incarnation is a new
epoch, begun in this order: ring, record, directory, process. None may run before the directory has its epoch, because
only that fences the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

from everram.actors.hypervisor.faults import FaultService, Restoring
from everram.actors.hypervisor.life import ENDED, word
from everram.actors.hypervisor.resident import Resident, begin_epoch
from everram.runtime.actor import ActorContext, ActorLog
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.availability_pb2 import GuestKey, GuestLimits, Registration
from everram.runtime.contracts.memory_scheduler_contract import MEMORY_SCHEDULER_RELEASE, MemorySchedulerRef
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemory, GuestMemoryKey, MemoryGrant
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import AdoptRequest, RegionFilter
from everram.runtime.contracts.replicator_contract import REPLICATOR_FOLLOW, REPLICATOR_UNFOLLOW, ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import FollowRequest, GuestCopy
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import GuestId
from everram.runtime.environment import GuestProcess
from everram.runtime.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from everram.runtime.log.ring import Ring, RingCorrupt

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL of a guest that is asked to stop, if its user names nothing else."""
REGISTER_TIMEOUT_S = 10.0
"""How long a new incarnation waits for a lease: coordination restarts in well under a second."""
REMOVE_TIMEOUT_S = 600.0
"""Of regions: their snapshots are deleted a piece at a time."""
SUSPEND = "suspend"
RETRY_S = 0.2
"""Between attempts to begin an incarnation that nobody waits for."""
LOOK_S = 0.005
"""Between looks at a guest that is being started."""


class Household:
    """`faults` serves the page faults of tracked regions; None where this computer cannot. `restoring`: what comes from
    an image while guests run."""

    def __init__(
        self, context: ActorContext, host: str, faults: FaultService | None, restoring: Restoring | None = None
    ) -> None:
        self.context = context
        self.host = host
        self.faults = faults
        self.restoring = restoring
        self.machine = context.environment.machine
        self.nvm = context.ref(NvmDeviceRef)
        self.vmemfs = context.ref(VMemFSRef)
        self.availability = context.ref(AvailabilityRef)
        self.replicator = context.ref(ReplicatorRef)
        self.memory = context.ref(MemorySchedulerRef)
        self.residents: dict[str, Resident] = {}
        """By guest_id."""

    def find(self, name: str) -> Resident:
        """By name or guest_id. Raises NotFound."""
        if name in self.residents:
            return self.residents[name]
        for resident in self.residents.values():
            if resident.guest.name == name:
                return resident
        raise NotFound(f"no guest {name} on host {self.host}: `everram guests` lists them all")

    async def store(self, resident: Resident) -> None:
        await self.vmemfs.put_guest(resident.stored())

    def follow(self, resident: Resident) -> None:
        request = FollowRequest(guest_id=resident.guest.guest_id, log=resident.log_name)
        self.replicator.tell(REPLICATOR_FOLLOW, request)

    async def processes(self, guest_id: str = "") -> list[GuestProcess]:
        """Of all guests or one, when none of them is being started any more: whoever has ordered that may be gone, and
        one without a pid would be taken for one that has ended."""
        while True:
            found = [each for each in await self.machine.guests() if guest_id in ("", each.guest_id)]
            if all(each.pid or each.exit_status >= 0 for each in found):
                return found
            await asyncio.sleep(LOOK_S)

    # -- one incarnation

    async def begin(self, resident: Resident, *, waits: bool = True) -> None:
        """Start the next incarnation; `changing` is held. `waits`: it is tried again until there is memory for it."""
        guest, environment = resident.guest, self.context.environment
        if guest.damaged:
            raise DataLoss(
                f"it has lost memory and cannot start: {guest.damaged}; `everram rm {guest.name}` gives it up"
            )
        own = (await self.nvm.list_regions(RegionFilter(guest_id=guest.guest_id))).regions
        if reverting := next((region.name for region in own if region.reverting), ""):
            raise Unavailable(f"region {reverting} is being reverted: the guest can start when that has ended")
        # The directory may be ahead: of memory restored from an older image, or of a start that was cut off.
        reached = await self.availability.reached(GuestKey(guest_id=guest.guest_id), timeout_s=REGISTER_TIMEOUT_S)
        limits = reached.limits if reached.HasField("limits") else None
        try:
            volatile = await self._volatile(guest, limits, waits=waits)
        except Unavailable as error:
            resident.become(pb.RESTARTING, error.message)  # so that who looks at it sees what it waits for
            raise
        guest.restarts += int(guest.epoch > 0)
        guest.epoch = max(guest.epoch, reached.epoch) + 1
        guest.port = await self.machine.free_port()
        guest.pid, guest.suspended = 0, False
        resident.become(pb.STARTING)
        log = environment.memory.open(resident.log_name).map()
        try:
            guest.previous_epoch, guest.epoch = begin_epoch(log, guest.epoch, guest.spec.copies)
        except EverramError:
            self.let_go(guest)
            raise
        finally:
            log.close()
        try:
            await self.store(resident)
            self.follow(resident)  # before the directory has it: then its log can be shipped at once
            await self.availability.register(Registration(guest=resident.stored()), timeout_s=REGISTER_TIMEOUT_S)
        except EverramError:
            self.say_ended(resident)
            self.let_go(guest)
            raise
        tracking = self.faults is not None
        launch = resident.launch(environment.memory, volatile, tracking=tracking, lacking=self._lacks)
        process = await self.machine.spawn(launch)
        resident.lives(process.pid)
        await self.store(resident)

    async def _volatile(self, guest: pb.Guest, limits: GuestLimits | None, *, waits: bool) -> MemoryGrant | None:
        """Empty memory of its own for the next incarnation, if it has any. Raises ResourceExhausted if the host has no
        room for it; Unavailable instead for one that ran before, if it `waits` for room."""
        spec, again = guest.spec, guest.epoch > 0
        if not spec.memory_bytes:
            return None
        request = GuestMemory(guest_id=guest.guest_id, name=guest.name, memory_bytes=spec.memory_bytes)
        request.min_bytes, request.max_bytes = spec.memory_min_bytes, spec.memory_max_bytes
        request.again, request.limits_set = again, limits is not None
        if limits is not None:
            request.min_bytes, request.max_bytes = limits.min_bytes, limits.max_bytes
        try:
            return await self.memory.prepare(request)
        except ResourceExhausted as error:
            if again and waits:
                raise Unavailable(f"it waits for memory: {error.message}") from error
            raise

    def let_go(self, guest: pb.Guest) -> None:
        """Its process has ended: nobody serves its faults any more, and its volatile memory is given back."""
        if self.faults:
            self.faults.detach(guest.guest_id)
        if guest.spec.memory_bytes:
            self.memory.tell(MEMORY_SCHEDULER_RELEASE, GuestMemoryKey(guest=guest.guest_id))

    def _lacks(self, arena: str) -> bool:
        return self.restoring is not None and self.restoring.may_lack(arena)

    async def give_up(self, resident: Resident, damage: str) -> None:
        """Part of its memory cannot be had: this memory never serves it again. A copy may, if there is one."""
        async with resident.changing:
            if not resident.guest.damaged or resident.guest.state not in ENDED:
                resident.guest.damaged = damage
                await self.store(resident)  # before it could start again, whatever follows
                await self.end_process(resident, give_back=False)
                resident.become(pb.FAILED, f"it has lost memory: {damage}")
                await self.store(resident)
        await self.disown(resident)

    async def disown(self, resident: Resident) -> None:
        """Say in the directory that this memory does not serve it; again after a restart, if that was cut off."""
        key = GuestKey(guest_id=resident.guest.guest_id, epoch=resident.guest.epoch)
        while True:
            try:
                await self.availability.disown(key)
                return
            except (Aborted, Unavailable, DeadlineExceeded) as error:
                self.log_of(resident.guest).warning("%s is not given up yet: %s", resident.guest.name, error.message)
            await asyncio.sleep(RETRY_S)

    def log_of(self, guest: pb.Guest) -> ActorLog:
        """For lines about it."""
        return self.context.log.about(guest=guest.guest_id, epoch=guest.epoch)

    def say_ended(self, resident: Resident) -> None:
        """In the log of a guest without a process: whoever wants to write to it is sure then that none comes before the
        next epoch begins."""
        memory = self.context.environment.memory
        if resident.log_name not in memory.names():
            return
        log = memory.open(resident.log_name).map()
        try:
            Ring.open(log).say_ended()
        except RingCorrupt as error:
            self.log_of(resident.guest).error("the log of %s is damaged: %s", resident.guest.name, error)
        finally:
            log.close()

    async def begin_or_fail(self, resident: Resident) -> None:
        """As `begin`, by a person's wish: earlier ends do not count, and a guest that cannot start says why."""
        resident.ends.recent_s.clear()
        try:
            with contextlib.suppress(Aborted):  # a leader has raised it to just that epoch: begin the next
                await self.begin(resident, waits=False)
                return
            await self.begin(resident, waits=False)
        except EverramError as error:
            resident.become(pb.FAILED, error.message)
            await self.store(resident)
            raise

    async def begin_again(self, resident: Resident, epoch: int) -> None:
        """A new incarnation in place of `epoch`, which ends here if it still lives; tried until it runs or is ended."""
        while True:
            async with resident.changing:
                if resident.guest.epoch > epoch and resident.guest.state == pb.RUNNING:
                    return
                if resident.guest.state in ENDED:
                    return
                try:
                    await self.end_process(resident, again=True)
                    if copy_id := next((r.copy_id for r in resident.guest.regions if r.copy_id), ""):
                        await self.adopt_copy(resident, copy_id)  # a take-over was cut off
                    await self.begin(resident)
                    return
                except (Aborted, Unavailable, DeadlineExceeded) as error:
                    resident.become(pb.RESTARTING, error.message)
                except EverramError as error:
                    resident.become(pb.FAILED, error.message)
                    await self.store(resident)
                    return
            await asyncio.sleep(RETRY_S)

    async def adopt_copy(self, resident: Resident, copy_id: str = "") -> None:
        """Its memory is its own from now on; nothing to do if it is. Then `copy_id` is let go, or every copy."""
        guest = resident.guest
        if resident.log_name not in self.context.environment.memory.names():
            handed = await self.replicator.hand_over(GuestCopy(guest_id=guest.guest_id))
            request = AdoptRequest(
                guest_id=guest.guest_id,
                copy_id=handed.copy_id,
                log_bytes=guest.spec.log_bytes,
                log_start=handed.lsn,
                log_epoch=handed.epoch,
            )
            await self.nvm.adopt_copy(request)
            self.say_ended(resident)
        for region in guest.regions:
            region.ClearField("copy_id")
        await self.store(resident)
        await self.replicator.release(GuestCopy(guest_id=guest.guest_id, copy_id=copy_id))

    async def ask_to_end(self, resident: Resident, grace_s: float) -> None:
        if resident.process_gone.is_set():
            return
        await self.machine.signal(resident.guest.guest_id, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await resident.process_gone.wait()
        except TimeoutError:
            self.log_of(resident.guest).info("%s did not end in %g s: it is killed", resident.guest.name, grace_s)

    async def stop(self, resident: Resident, grace_s: float) -> pb.Guest:
        async with resident.changing:
            if resident.guest.state not in ENDED:
                await self._unsuspend(resident)  # so that it can end by itself
                await self.ask_to_end(resident, grace_s)
                await self.end_process(resident)
                resident.become(pb.STOPPED, "stopped by its user")
                await self.store(resident)
            return resident.stored()

    async def fail(self, resident: Resident, reason: str) -> pb.Guest:
        """It may not go on, nor be begun anew but by a person."""
        async with resident.changing:
            if resident.guest.state not in ENDED:
                await self.end_process(resident)
                resident.become(pb.FAILED, reason)
                await self.store(resident)
                self.log_of(resident.guest).error("%s is ended: %s", resident.guest.name, reason)
            return resident.stored()

    async def suspend(self, resident: Resident) -> None:
        """Stop it as it is. It stays so over any number of hosts, until it is resumed or its process ends. Recorded
        first: whoever finds the record stops it, if that has not been done. Raises FailedPrecondition."""
        async with resident.changing:
            guest = resident.guest
            if guest.state != pb.RUNNING or resident.process_gone.is_set():
                raise FailedPrecondition(f"{guest.name} is {word(guest.state)}: only a running guest can be suspended")
            guest.suspended = True
            await self.store(resident)
            await self.machine.freeze(guest.guest_id, SUSPEND)

    async def resume(self, resident: Resident) -> None:
        """Nothing to do for one that is not suspended."""
        async with resident.changing:
            await self._unsuspend(resident)

    async def _unsuspend(self, resident: Resident) -> None:
        if resident.guest.suspended:
            if not resident.process_gone.is_set():
                await self.machine.thaw(resident.guest.guest_id, SUSPEND)
            resident.guest.suspended = False
            await self.store(resident)

    async def end_process(self, resident: Resident, *, give_back: bool = True, again: bool = False) -> None:
        """Make sure that no process of the guest lives, and (`give_back`) that nobody counts on it.

        `again`: its next incarnation follows at once, so to the others it is not stopped.
        """
        processes = await self.processes(resident.guest.guest_id)
        if processes and processes[0].pid:
            ended = await self.machine.kill(resident.guest.guest_id)
            resident.died(ended.exit_status)
        self.say_ended(resident)
        self.let_go(resident.guest)
        if give_back:
            await self.give_back(resident.guest, again=again)

    async def give_back(self, guest: pb.Guest, *, again: bool = False) -> None:
        """The guest is dead, so its place may be given back before its lease ends."""
        try:
            key = GuestKey(guest_id=guest.guest_id, epoch=guest.epoch, again=again)
            await self.availability.give_back(key)
        except (Unavailable, DeadlineExceeded) as error:
            # Its lease will end by itself: late for whoever waits for the place, never wrong.
            self.log_of(guest).warning("%s keeps its place until its lease ends: %s", guest.name, error.message)

    async def erase(self, resident: Resident, *, everywhere: bool = True) -> None:
        """Everything of a guest without a process, its record last: whoever dies in between goes on with this.

        `everywhere`: it leaves the directory too.
        """
        guest_id = resident.guest.guest_id
        self.replicator.tell(REPLICATOR_UNFOLLOW, FollowRequest(guest_id=guest_id, log=resident.log_name))
        with contextlib.suppress(NotFound):  # it may never have had a process
            await self.machine.forget(guest_id)
        if everywhere:
            await self.availability.forget(GuestKey(guest_id=guest_id, epoch=resident.guest.epoch))
        await self.nvm.remove_regions(RegionFilter(guest_id=guest_id), timeout_s=REMOVE_TIMEOUT_S)
        await self.context.environment.logs.remove(resident.output_path)
        with contextlib.suppress(NotFound):  # it may never have been recorded
            await self.vmemfs.remove_guest(GuestId(guest_id=guest_id))
        del self.residents[guest_id]
        resident.become(pb.STOPPED, "removed")
