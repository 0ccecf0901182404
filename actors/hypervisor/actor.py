"""The hypervisor actor: takes the messages of its contract and the machine's events, and moves guests through `life`.

A guest is recorded in VMemFS before anything of it starts and after each change, so that a successor of this host finds
every guest in a state it can go on from: it adopts what lives and begins a new incarnation of what should live. A new
incarnation is a new epoch, begun in this order: ring, record, directory, process. None may run before the directory has
its epoch, because only that fences the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable

from everram.actors.hypervisor import admission, output
from everram.actors.hypervisor.faults import FaultService
from everram.actors.hypervisor.life import ENDED, Restart
from everram.actors.hypervisor.resident import Resident, begin_epoch
from everram.actors.hypervisor.set_aside import set_aside
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import hypervisor_pb2 as hv
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.availability_pb2 import AimRequest, GuestKey, HandToRequest, Registration
from everram.runtime.contracts.hypervisor_contract import HypervisorActor
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import AdoptRequest, CreateRegionsRequest, RegionFilter
from everram.runtime.contracts.replicator_contract import REPLICATOR_FOLLOW, REPLICATOR_UNFOLLOW, ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import DrainRequest, FollowRequest, GuestCopy
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import GuestId
from everram.runtime.environment import GuestProcess, MachineEvent
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from everram.runtime.log.ring import Ring, RingCorrupt

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL of a guest that is asked to stop, if its user names nothing else."""
REGISTER_TIMEOUT_S = 10.0
"""How long a new incarnation waits for a lease: coordination restarts in well under a second."""
RETRY_S = 0.2
"""Between attempts to begin an incarnation that nobody waits for."""
MOVE_TIMEOUT_S = 300.0
"""For a copy to be built where a guest is moved to: some hundred GiB in memory."""
DRAIN_TIMEOUT_S = 10.0
"""For the last records of a guest that has stopped."""
LOOK_S = 0.02
"""Between looks at a copy that is being built."""


class Hypervisor(HypervisorActor):
    """Guests of one host. `faults` serves the page faults of tracked regions; None where this computer cannot."""

    def __init__(self, host: str, faults: FaultService | None = None) -> None:
        self._host = host
        self._faults = faults
        self._residents: dict[str, Resident] = {}

    # -- start and adoption

    async def on_start(self) -> None:
        context = self.context
        self._machine = context.environment.machine
        self._nvm = context.ref(NvmDeviceRef)
        self._vmemfs = context.ref(VMemFSRef)
        self._availability = context.ref(AvailabilityRef)
        self._replicator = context.ref(ReplicatorRef)
        if self._faults:
            for event in await self._machine.tracked():
                await self._serve_faults(event)
        stored = await self._vmemfs.guests(pb.Empty())
        processes = {process.guest_id: process for process in await self._machine.guests()}
        for guest in stored.guests:
            await self._adopt(guest, processes.pop(guest.guest_id, None))
        for stranger in processes:
            # Recorded before it was started, so a process without a record is the rest of a removal.
            await self._machine.kill(stranger)
            await self._machine.forget(stranger)
        await self._remove_orphaned_regions()
        context.spawn(self._watch_machine(), name="machine events")

    async def _adopt(self, guest: pb.Guest, process: GuestProcess | None) -> None:
        """Take over a guest that this host's predecessor, or this memory's last machine, left."""
        record = pb.Guest()
        record.CopyFrom(guest)
        resident = self._residents[guest.guest_id] = Resident(record)
        if record.state in ENDED:
            return
        current = process is not None and process.epoch == record.epoch
        if process is not None and current and process.pid and "lease" not in process.freeze_reasons:
            resident.lives(process.pid)
            self._follow(resident)
            self.context.spawn(self._go_on(resident, record.epoch), name=f"{record.name} goes on")
        elif process is not None and current and not process.pid:
            resident.died(process.exit_status)
            self.context.spawn(self._after_end(resident, record.epoch), name=f"end of {record.name}")
        else:
            self.context.spawn(self._begin_again(resident, record.epoch), name=f"begin {record.name} again")

    async def _go_on(self, resident: Resident, epoch: int) -> None:
        """Register an incarnation that outlived this host's predecessor; it serves meanwhile, until its lease ends."""
        while resident.guest.epoch == epoch and not resident.process_gone.is_set():
            try:
                await self._availability.register(Registration(guest=resident.stored()), timeout_s=REGISTER_TIMEOUT_S)
                await self._store(resident)
                return
            except (Unavailable, DeadlineExceeded) as error:
                self.context.log.warning("%s is not registered yet: %s", resident.guest.name, error.message)
            except EverramError as error:
                # A later incarnation is known: this one may not go on.
                self.context.log.error("%s is replaced: %s", resident.guest.name, error.message)
                await self._begin_again(resident, epoch)
                return

    async def _remove_orphaned_regions(self) -> None:
        """What belongs to a guest without a record: the host died between making its regions and recording it."""
        known = (await self._nvm.list_regions(RegionFilter())).guest_ids
        for guest_id in sorted(set(known) - self._residents.keys()):
            await self._nvm.remove_regions(RegionFilter(guest_id=guest_id))

    # -- the machine's events

    async def _watch_machine(self) -> None:
        async for event in self._machine.events():
            if event.kind == "attached":
                await self._serve_faults(event)
            resident = self._residents.get(event.guest_id)
            if event.kind == "frozen" and event.reason == "lease":
                for each in list(self._residents.values()):
                    if each.guest.state not in ENDED and event.guest_id in ("", each.guest.guest_id):
                        self.context.spawn(self._begin_again(each, each.guest.epoch), name="lease ran out")
            elif event.kind == "exited" and resident is not None and event.epoch == resident.guest.epoch:
                resident.died(event.exit_status)
                self.context.spawn(self._after_end(resident, event.epoch), name=f"end of {resident.guest.name}")

    async def _serve_faults(self, event: MachineEvent) -> None:
        resident = self._residents.get(event.guest_id)
        if self._faults and event.userfaultfd >= 0:
            self._faults.attach(event)
        if resident is not None or event.userfaultfd >= 0:
            await self._machine.admit(event.guest_id)

    async def _after_end(self, resident: Resident, epoch: int) -> None:
        """An incarnation ended by itself: decide what follows, unless somebody else already has."""
        async with resident.changing:
            guest = resident.guest
            if guest.epoch != epoch or guest.state in ENDED or not resident.process_gone.is_set():
                return
            if self._faults:
                self._faults.detach(guest.guest_id)
            now_s = self.context.environment.clock.now_ns() / 1e9
            decision = resident.ends.decide(guest.spec.restart, guest.exit_status, now_s)
            if not isinstance(decision, Restart):
                await self._give_back(guest)
                resident.become(decision.state, decision.reason)
                await self._store(resident)
                return
            resident.become(pb.RESTARTING, f"restarted in {decision.delay_s:g} s")
            await self._store(resident)
        await asyncio.sleep(decision.delay_s)
        await self._begin_again(resident, epoch)

    async def _begin_again(self, resident: Resident, epoch: int) -> None:
        """A new incarnation in place of `epoch`, which ends here if it still lives; tried until it runs or is ended."""
        while True:
            async with resident.changing:
                if resident.guest.epoch > epoch and resident.guest.state == pb.RUNNING:
                    return
                if resident.guest.state in ENDED:
                    return
                try:
                    await self._end_process(resident, again=True)
                    if copy_id := next((r.copy_id for r in resident.guest.regions if r.copy_id), ""):
                        await self._adopt_copy(resident, copy_id)  # a take-over was cut off
                    await self._begin(resident)
                    return
                except (Unavailable, DeadlineExceeded) as error:
                    resident.become(pb.RESTARTING, error.message)
                except EverramError as error:
                    resident.become(pb.FAILED, error.message)
                    await self._store(resident)
                    return
            await asyncio.sleep(RETRY_S)

    # -- one incarnation

    async def _begin(self, resident: Resident) -> None:
        """Start the next incarnation; `changing` is held."""
        guest, environment = resident.guest, self.context.environment
        # The directory may be ahead: of memory restored from an older image, or of a start that was cut off.
        reached = await self._availability.reached(GuestKey(guest_id=guest.guest_id), timeout_s=REGISTER_TIMEOUT_S)
        guest.restarts += int(guest.epoch > 0)
        guest.epoch = max(guest.epoch, reached.epoch) + 1
        guest.port = await self._machine.free_port()
        guest.pid = 0
        resident.become(pb.STARTING)
        memory = environment.memory.open(resident.log_name)
        log = memory.map()
        try:
            guest.previous_epoch, guest.epoch = begin_epoch(log, guest.epoch, guest.spec.copies)
        finally:
            log.close()
        await self._store(resident)
        self._follow(resident)  # before the directory has it: then its log can be shipped at once
        await self._availability.register(Registration(guest=resident.stored()), timeout_s=REGISTER_TIMEOUT_S)
        process = await self._machine.spawn(resident.launch(memory.size_bytes, tracking=self._faults is not None))
        resident.lives(process.pid)
        await self._store(resident)

    async def _end_process(self, resident: Resident, *, give_back: bool = True, again: bool = False) -> None:
        """Make sure that no process of the guest lives, and (`give_back`) that nobody counts on it.

        `again`: its next incarnation follows at once, so to the others it is not stopped.
        """
        processes = [p for p in await self._machine.guests() if p.guest_id == resident.guest.guest_id]
        if processes and processes[0].pid:
            ended = await self._machine.kill(resident.guest.guest_id)
            resident.died(ended.exit_status)
        if self._faults:
            self._faults.detach(resident.guest.guest_id)
        if give_back:
            await self._give_back(resident.guest, again=again)

    async def _give_back(self, guest: pb.Guest, *, again: bool = False) -> None:
        """The guest is dead, so its place may be given back before its lease ends."""
        try:
            key = GuestKey(guest_id=guest.guest_id, epoch=guest.epoch, again=again)
            await self._availability.give_back(key)
        except (Unavailable, DeadlineExceeded) as error:
            # Its lease will end by itself: late for whoever waits for the place, never wrong.
            self.context.log.warning("%s keeps its place until its lease ends: %s", guest.name, error.message)

    def _follow(self, resident: Resident) -> None:
        request = FollowRequest(guest_id=resident.guest.guest_id, log=resident.log_name)
        self._replicator.tell(REPLICATOR_FOLLOW, request)

    async def _store(self, resident: Resident) -> None:
        await self._vmemfs.put_guest(resident.stored())

    # -- the contract

    def run(self, request: pb.GuestSpec) -> Awaitable[pb.Guest]:
        return self.context.later(self._run(request))

    async def _run(self, spec: pb.GuestSpec) -> pb.Guest:
        admission.check(spec)
        if any(r.guest.name == spec.name for r in self._residents.values()):
            raise AlreadyExists(f"a guest named {spec.name} exists: choose another --name, or `everram rm {spec.name}`")
        guest = pb.Guest(guest_id=self.context.environment.entropy.token(), name=spec.name, spec=spec)
        guest.host, guest.state, guest.exit_status = self._host, pb.STARTING, -1
        resident = self._residents[guest.guest_id] = Resident(guest)
        async with resident.changing:
            try:
                request = CreateRegionsRequest(guest_id=guest.guest_id, regions=spec.regions, log_bytes=spec.log_bytes)
                guest.regions.extend((await self._nvm.create_regions(request)).regions)
                await self._begin(resident)
            except EverramError:
                await self._erase(resident)
                raise
            return resident.stored()

    def list(self, request: pb.Empty) -> Awaitable[hv.GuestList]:
        return self.context.later(self._list())

    async def _list(self) -> hv.GuestList:
        processes = {p.guest_id: p for p in await self._machine.guests()}
        answer = hv.GuestList()
        for resident in sorted(self._residents.values(), key=lambda r: (r.guest.name, r.guest.guest_id)):
            seen = answer.guests.add()
            seen.CopyFrom(self._seen(resident, processes.get(resident.guest.guest_id)))
            await self._add_positions(seen, resident)
        return answer

    def inspect(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._inspect(self._find(request.guest)))

    async def _inspect(self, resident: Resident) -> pb.Guest:
        processes = {p.guest_id: p for p in await self._machine.guests()}
        seen = self._seen(resident, processes.get(resident.guest.guest_id))
        await self._add_positions(seen, resident)
        return seen

    async def _add_positions(self, seen: pb.Guest, resident: Resident) -> None:
        """How far its log is, and its copies; nothing where its log is not followed."""
        try:
            positions = await self._replicator.positions(FollowRequest(guest_id=seen.guest_id, log=resident.log_name))
        except NotFound:
            return
        except DataLoss as error:
            seen.reason = seen.reason or error.message
            return
        seen.copies.extend(positions.copies)
        seen.degraded = positions.degraded
        if seen.pid:
            seen.log.CopyFrom(positions)
            seen.log.ClearField("copies")

    def _seen(self, resident: Resident, process: GuestProcess | None) -> pb.Guest:
        """What a user is told: the record, and what the machine and the page service know besides."""
        seen = resident.stored()
        if process is not None and process.pid and process.freeze_reasons:
            seen.state = pb.FROZEN
            seen.freeze_reasons.extend(process.freeze_reasons)
        for region in seen.regions:
            written = self._faults.written_pages(seen.guest_id, region.name) if self._faults else None
            region.tracking = written is not None
            region.written_pages = written or 0
        return seen

    def stop(self, request: hv.StopRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._stop(self._find(request.guest), request.grace_s or GRACE_S))

    async def _stop(self, resident: Resident, grace_s: float) -> pb.Guest:
        async with resident.changing:
            if resident.guest.state not in ENDED:
                await self._ask_to_end(resident, grace_s)
                await self._end_process(resident)
                resident.become(pb.STOPPED, "stopped by its user")
                await self._store(resident)
            return resident.stored()

    async def _ask_to_end(self, resident: Resident, grace_s: float) -> None:
        if resident.process_gone.is_set():
            return
        await self._machine.signal(resident.guest.guest_id, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await resident.process_gone.wait()
        except TimeoutError:
            self.context.log.info("%s did not end in %g s: it is killed", resident.guest.name, grace_s)

    def start(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._start(self._find(request.guest)))

    async def _start(self, resident: Resident) -> pb.Guest:
        async with resident.changing:
            if resident.guest.state not in ENDED:
                raise FailedPrecondition(f"{resident.guest.name} runs already")
            await self._end_process(resident)
            resident.ends.recent_s.clear()
            try:
                await self._begin(resident)
            except EverramError as error:
                resident.become(pb.FAILED, error.message)
                await self._store(resident)
                raise
            return resident.stored()

    def restart(self, request: hv.StopRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._restart(self._find(request.guest), request.grace_s or GRACE_S))

    async def _restart(self, resident: Resident, grace_s: float) -> pb.Guest:
        await self._stop(resident, grace_s)
        return await self._start(resident)

    def remove(self, request: hv.RemoveRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._remove(self._find(request.guest), request))

    async def _remove(self, resident: Resident, request: hv.RemoveRequest) -> pb.Empty:
        guest = resident.guest
        if guest.regions and not request.regions:
            names = ", ".join(region.name for region in guest.regions)
            raise FailedPrecondition(f"{guest.name} has regions ({names}): add --regions to erase them with it")
        if guest.state not in ENDED and not request.force:
            raise FailedPrecondition(f"{guest.name} is running: `everram stop {guest.name}` first, or add --force")
        await self._stop(resident, GRACE_S)
        async with resident.changing:
            if self._residents.get(guest.guest_id) is resident:
                await self._erase(resident)
        return pb.Empty()

    async def _erase(self, resident: Resident, *, everywhere: bool = True) -> None:
        """Everything of a guest without a process, its record last: whoever dies in between goes on with this.

        `everywhere`: it leaves the directory too.
        """
        guest_id = resident.guest.guest_id
        self._replicator.tell(REPLICATOR_UNFOLLOW, FollowRequest(guest_id=guest_id, log=resident.log_name))
        with contextlib.suppress(NotFound):  # it may never have had a process
            await self._machine.forget(guest_id)
        if everywhere:
            await self._availability.forget(GuestKey(guest_id=guest_id, epoch=resident.guest.epoch))
        await self._nvm.remove_regions(RegionFilter(guest_id=guest_id))
        await self.context.environment.logs.remove(resident.output_path)
        with contextlib.suppress(NotFound):  # it may never have been recorded
            await self._vmemfs.remove_guest(GuestId(guest_id=guest_id))
        del self._residents[guest_id]
        resident.become(pb.STOPPED, "removed")

    # -- another host's guest becomes ours, or ours another's

    def take_over(self, request: hv.TakeOverRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._take_over(request))

    async def _take_over(self, request: hv.TakeOverRequest) -> pb.Guest:
        """Make this host's copy of a guest the guest itself, and begin its next incarnation.

        Its record comes first, then its memory, then the copy is let go: after a death anywhere in between it is asked
        again, and goes on. Raises NotFound without a copy, FailedPrecondition for one that was not promised.
        """
        guest_id = request.guest_id
        resident = self._residents.get(guest_id)
        if resident is None:
            handed = await self._replicator.hand_over(GuestCopy(guest_id=guest_id))
            guest = pb.Guest()
            guest.CopyFrom(handed.guest)
            guest.host, guest.epoch, guest.exit_status = self._host, handed.epoch, -1
            guest.state, guest.reason, guest.pid = pb.RESTARTING, "taken over", 0
            await self._vmemfs.put_guest(guest)
            resident = self._residents.setdefault(guest_id, Resident(guest))
        async with resident.changing:
            if resident.guest.state == pb.RUNNING and resident.guest.epoch >= request.epoch:
                return resident.stored()
            await self._end_process(resident, again=True)
            stale = await self._is_stale(resident)
            if stale:
                await self._set_aside(resident, hv.DemoteRequest(epoch=request.epoch, host=self._host))
                await self._erase(resident, everywhere=False)
            else:
                await self._adopt_copy(resident)
                await self._begin(resident)
        return await self._take_over(request) if stale else resident.stored()

    async def _is_stale(self, resident: Resident) -> bool:
        """Whether what this host has of its own is an earlier primary's, and its copy is of a later epoch: it became a
        destination, and is chosen as one, before it was told to demote."""
        memory = self.context.environment.memory
        if resident.log_name not in memory.names():
            return False
        try:
            handed = await self._replicator.hand_over(GuestCopy(guest_id=resident.guest.guest_id))
        except NotFound:
            return False
        log = memory.open(resident.log_name).map()
        try:
            return handed.epoch > Ring.open(log).epoch
        except RingCorrupt:
            return True
        finally:
            log.close()

    async def _adopt_copy(self, resident: Resident, copy_id: str = "") -> None:
        """Its memory is its own from now on; nothing to do if it is. Then `copy_id` is let go, or every copy."""
        guest = resident.guest
        if resident.log_name not in self.context.environment.memory.names():
            handed = await self._replicator.hand_over(GuestCopy(guest_id=guest.guest_id))
            request = AdoptRequest(
                guest_id=guest.guest_id,
                copy_id=handed.copy_id,
                log_bytes=guest.spec.log_bytes,
                log_start=handed.lsn,
                log_epoch=handed.epoch,
            )
            await self._nvm.adopt_copy(request)
        for region in guest.regions:
            region.ClearField("copy_id")
        await self._store(resident)
        await self._replicator.release(GuestCopy(guest_id=guest.guest_id, copy_id=copy_id))

    def demote(self, request: hv.DemoteRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._demote(request))

    async def _demote(self, request: hv.DemoteRequest) -> pb.Empty:
        """Another host has the guest: what lies here is fenced. Nothing to do for a guest that is not here."""
        resident = self._residents.get(request.guest_id)
        if resident is None:
            return pb.Empty()
        async with resident.changing:
            guest = resident.guest
            if self._residents.get(guest.guest_id) is not resident:
                return pb.Empty()
            if guest.state == pb.RUNNING and guest.epoch >= request.epoch:
                return pb.Empty()  # it has come back here since that was decided
            await self._end_process(resident)
            if resident.log_name in self.context.environment.memory.names():
                await self._set_aside(resident, request)
            await self._erase(resident, everywhere=False)
        return pb.Empty()

    async def _set_aside(self, resident: Resident, request: hv.DemoteRequest) -> None:
        log = self.context.environment.memory.open(resident.log_name).map()
        name, disk = resident.guest.name, self.context.environment.disk
        try:
            report = await set_aside(disk, Ring.open(log), name, request.start, request.epoch, request.host)
        except RingCorrupt as error:
            self.context.log.error("nothing of %s can be set aside: %s", name, error)
            return
        finally:
            log.close()
        if report is not None:
            self.context.log.warning("%s", report)

    def move(self, request: hv.MoveRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._move(self._find(request.guest), request.host))

    async def _move(self, resident: Resident, host: str) -> pb.Empty:
        """Build a copy there while the guest runs, then end it, ship the rest, and let that host go on."""
        guest = resident.guest
        if host == self._host:
            raise InvalidArgument(f"{guest.name} runs on {host} already")
        if guest.state != pb.RUNNING:
            raise FailedPrecondition(f"{guest.name} is {_word(guest.state)}: only a running guest can be moved")
        await self._availability.aim(AimRequest(guest_id=guest.guest_id, host=host))
        memory_id = await self._copied_to(resident, host)
        async with resident.changing:
            await self._ask_to_end(resident, GRACE_S)
            await self._end_process(resident, give_back=False)
            try:
                drain = DrainRequest(guest_id=guest.guest_id, memory_id=memory_id)
                await self._replicator.drain(drain, timeout_s=DRAIN_TIMEOUT_S)
                await self._availability.hand_to(
                    HandToRequest(guest_id=guest.guest_id, epoch=guest.epoch, host=host), timeout_s=REGISTER_TIMEOUT_S
                )
            except EverramError:
                resident.become(pb.RESTARTING, f"was not moved to {host}")
                self.context.spawn(self._stay(resident, guest.epoch), name=f"{guest.name} stays")
                raise
            resident.become(pb.STOPPED, f"moved to {host}")
            await self._store(resident)
        return pb.Empty()

    async def _stay(self, resident: Resident, epoch: int) -> None:
        """A move has failed: the guest goes on here, unless the other host has it after all."""
        with contextlib.suppress(EverramError):  # then its copy there stays until the leader places it elsewhere
            await self._availability.aim(AimRequest(guest_id=resident.guest.guest_id))
        await self._begin_again(resident, epoch)

    async def _copied_to(self, resident: Resident, host: str) -> str:
        """Wait until a copy on `host` is in sync and a member of the required set; its memory_id."""
        try:
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                while True:
                    seen = await self._inspect(resident)
                    for copy in seen.copies:
                        if copy.host == host and copy.state == "in-sync" and copy.required:
                            return copy.memory_id
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{resident.guest.name} stays where it is: no copy on {host} was complete after {MOVE_TIMEOUT_S:g} s"
            ) from None

    def kill(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._kill(self._find(request.guest)))

    async def _kill(self, resident: Resident) -> pb.Guest:
        if resident.process_gone.is_set():
            raise FailedPrecondition(f"{resident.guest.name} has no process now: it is {_word(resident.guest.state)}")
        await self._machine.kill(resident.guest.guest_id)
        return resident.stored()

    def logs(self, request: hv.LogsRequest) -> AsyncIterator[hv.LogChunk]:
        resident = self._find(request.guest)
        return output.read(self.context.environment.logs, resident.output_path, request, resident.settled.is_set)

    def wait(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._wait(self._find(request.guest)), cancellable=True)

    async def _wait(self, resident: Resident) -> pb.Guest:
        await resident.settled.wait()
        return resident.stored()

    def regions(self, request: pb.Empty) -> Awaitable[hv.RegionList]:
        return self.context.later(self._regions())

    async def _regions(self) -> hv.RegionList:
        guests = (await self._list()).guests
        return hv.RegionList(regions=[region for guest in guests for region in guest.regions])

    def _find(self, name: str) -> Resident:
        """By name or guest_id. Raises NotFound."""
        if name in self._residents:
            return self._residents[name]
        for resident in self._residents.values():
            if resident.guest.name == name:
                return resident
        raise NotFound(f"no guest {name} on host {self._host}: `everram guests` lists them all")


def _word(state: pb.GuestState) -> str:
    return pb.GuestState.Name(state).lower()
