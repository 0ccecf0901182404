"""The hypervisor actor: takes the messages of its contract and the machine's events, and moves guests through `life`.

At its start it adopts what lives and begins a new incarnation of what should live. What is done to one guest at a time
is in `household`, the hand-over between hosts in `handover`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

from everram.actors.hypervisor import admission, output
from everram.actors.hypervisor.faults import FaultService, Restoring
from everram.actors.hypervisor.handover import Handover
from everram.actors.hypervisor.household import GRACE_S, REGISTER_TIMEOUT_S, REMOVE_TIMEOUT_S, Household
from everram.actors.hypervisor.life import ENDED, Restart, word
from everram.actors.hypervisor.regions import RegionChanges
from everram.actors.hypervisor.resident import Resident
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import hypervisor_pb2 as hv
from everram.runtime.contracts.availability_pb2 import Registration
from everram.runtime.contracts.hypervisor_contract import HypervisorActor
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemoryKeys
from everram.runtime.contracts.nvm_device_pb2 import CreateRegionsRequest, RegionFilter
from everram.runtime.contracts.replicator_pb2 import FollowRequest
from everram.runtime.contracts.vmemfs_pb2 import DamagedGuest
from everram.runtime.environment import GuestProcess, MachineEvent
from everram.runtime.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    Unavailable,
)


class Hypervisor(HypervisorActor):
    """Guests of one host. `faults` serves the page faults of tracked regions; None where this computer cannot.
    `restoring`: what comes from an image while guests run."""

    def __init__(self, host: str, faults: FaultService | None = None, restoring: Restoring | None = None) -> None:
        self._host = host
        self._faults = faults
        self._restoring = restoring

    # -- start and adoption

    async def on_start(self) -> None:
        house = self._house = Household(self.context, self._host, self._faults, self._restoring)
        self._handover = Handover(house)
        self._regions_of = RegionChanges(house)
        if self._faults:  # each is served before anybody waits for the machine's answer
            await asyncio.gather(*(self._serve_faults(event) for event in await house.machine.tracked()))
        self._damages: dict[str, str] = {}
        if self._restoring is not None:
            self._restoring.start(self.context.spawn, self._give_up)
        stored = await house.vmemfs.guests(pb.Empty())
        for guest in stored.guests:
            await self._regions_of.settle(guest)
        processes = {process.guest_id: process for process in await house.processes()}
        for guest in stored.guests:
            await self._adopt(guest, processes.pop(guest.guest_id, None))
        for damaged in stored.damaged:
            await self._isolate(damaged, processes.pop(damaged.guest.guest_id, None))
        if self._faults:
            self._faults.all_came()
        for stranger in processes:
            # Recorded before it was started, so a process without a record is the rest of a removal.
            await house.machine.kill(stranger)
            await house.machine.forget(stranger)
        await self._remove_orphaned_regions()
        await house.memory.retain(GuestMemoryKeys(guest_ids=sorted(house.residents)))
        self.context.spawn(self._watch_machine(), name="machine events")

    def _give_up(self, guest_id: str, damage: str) -> None:
        self.context.spawn(self._give_up_guest(guest_id, damage), name=f"give up {guest_id}")

    async def _give_up_guest(self, guest_id: str, damage: str) -> None:
        resident = self._house.residents.get(guest_id)
        if resident is None:
            self._damages[guest_id] = damage  # it is not adopted yet
        else:
            await self._house.give_up(resident, damage)

    async def _adopt(self, guest: pb.Guest, process: GuestProcess | None) -> None:
        """Take over a guest that this host's predecessor, or this memory's last machine, left."""
        record = pb.Guest()
        record.CopyFrom(guest)
        resident = self._house.residents[guest.guest_id] = Resident(record)
        if damage := self._damages.pop(guest.guest_id, "") or record.damaged:
            self.context.spawn(self._house.give_up(resident, damage), name=f"give up {record.name}")
            return
        if record.state in ENDED:
            return
        current = process is not None and process.epoch == record.epoch
        if process is not None and current and process.pid and "lease" not in process.freeze_reasons:
            resident.lives(process.pid)
            if process.attached_pid:
                self._tell_unseen(record)
            self._house.follow(resident)
            if record.suspended and "suspend" not in process.freeze_reasons:
                await self._house.machine.freeze(guest.guest_id, "suspend")  # a host died before it had come to that
            self.context.spawn(self._go_on(resident, record.epoch), name=f"{record.name} goes on")
        elif process is not None and current and not process.pid:
            resident.died(process.exit_status)
            self.context.spawn(self._after_end(resident, record.epoch), name=f"end of {record.name}")
        else:
            self.context.spawn(self._house.begin_again(resident, record.epoch), name=f"begin {record.name} again")

    async def _isolate(self, damaged: DamagedGuest, process: GuestProcess | None) -> None:
        """Give up a guest of which not everything is known any more: it ends here, a copy elsewhere may go on, and what
        there is of its memory stays, with a record that says why it does not run."""
        guest = pb.Guest()
        guest.CopyFrom(damaged.guest)
        guest.host = self._host
        if not guest.regions:
            own = await self._house.nvm.list_regions(RegionFilter(guest_id=guest.guest_id))
            guest.regions.extend(own.regions)
        resident = self._house.residents[guest.guest_id] = Resident(guest)
        if process is not None:
            guest.epoch = max(guest.epoch, process.epoch)
            resident.lives(process.pid)
        self.context.spawn(self._house.give_up(resident, damaged.reason), name=f"give up {guest.name}")

    async def _go_on(self, resident: Resident, epoch: int) -> None:
        """Register an incarnation that outlived this host's predecessor; it serves meanwhile, until its lease ends."""
        while resident.guest.epoch == epoch and not resident.process_gone.is_set():
            try:
                await self._house.availability.register(
                    Registration(guest=resident.stored()), timeout_s=REGISTER_TIMEOUT_S
                )
                await self._house.store(resident)
                return
            except (Unavailable, DeadlineExceeded) as error:
                self._house.log_of(resident.guest).warning(
                    "%s is not registered yet: %s", resident.guest.name, error.message
                )
            except EverramError as error:
                # A later incarnation is known: this one may not go on.
                self._house.log_of(resident.guest).error("%s is replaced: %s", resident.guest.name, error.message)
                await self._house.begin_again(resident, epoch)
                return

    async def _remove_orphaned_regions(self) -> None:
        """What belongs to a guest without a record: the host died between making its regions and recording it."""
        known = (await self._house.nvm.list_regions(RegionFilter())).guest_ids
        for guest_id in sorted(set(known) - self._house.residents.keys()):
            self.context.spawn(self._remove_regions(guest_id), name=f"remove regions of {guest_id}")

    async def _remove_regions(self, guest_id: str) -> None:
        try:
            await self._house.nvm.remove_regions(RegionFilter(guest_id=guest_id), timeout_s=REMOVE_TIMEOUT_S)
        except EverramError as error:
            about = self.context.log.about(guest=guest_id)
            about.error("regions of %s, whom nobody knows, are not removed: %s", guest_id, error.message)

    # -- the machine's events

    async def _watch_machine(self) -> None:
        async for event in self._house.machine.events():
            if event.kind == "attached":
                await self._serve_faults(event)
            resident = self._house.residents.get(event.guest_id)
            if event.kind == "frozen" and event.reason == "lease":
                for each in list(self._house.residents.values()):
                    if each.guest.state not in ENDED and event.guest_id in ("", each.guest.guest_id):
                        self.context.spawn(self._house.begin_again(each, each.guest.epoch), name="lease ran out")
            elif event.kind == "exited" and resident is not None and event.epoch == resident.guest.epoch:
                resident.died(event.exit_status)
                self.context.spawn(self._after_end(resident, event.epoch), name=f"end of {resident.guest.name}")

    async def _serve_faults(self, event: MachineEvent) -> None:
        """Raises nothing: what a guest attaches with, and whether it is still there, is its own affair."""
        resident = self._house.residents.get(event.guest_id)
        try:
            self._take_faults(event, resident)
            if resident is not None or event.userfaultfd >= 0:
                served = self._faults is not None and event.userfaultfd >= 0
                await self._house.machine.admit(event.guest_id, event.pid, served=served)
        except (EverramError, OSError) as error:
            name = resident.guest.name if resident is not None else event.guest_id
            self.context.log.error(
                "process %d of %s is not admitted to its memory: %s; if it waits, `everram kill` ends it",
                event.pid,
                name,
                error,
            )

    def _take_faults(self, event: MachineEvent, resident: Resident | None) -> None:
        """Raises what `attach` does: a process that is refused has the memory all the same."""
        if self._faults is None:
            return
        try:
            if event.userfaultfd >= 0:
                self._faults.attach(event)
            else:
                self._faults.detach(event.guest_id)
        finally:
            if resident is not None:
                self._tell_unseen(resident.guest)

    def _tell_unseen(self, guest: pb.Guest) -> None:
        """A guest that is attached stores unseen to every region of which it does not let all faults be served."""
        if self._faults is None:
            return
        unseen = [region.arena for region in guest.regions if not self._faults.is_served(guest.guest_id, region.name)]
        if unseen:
            self._faults.unserved(guest.guest_id, unseen)

    async def _after_end(self, resident: Resident, epoch: int) -> None:
        """An incarnation ended by itself: decide what follows, unless somebody else already has."""
        async with resident.changing:
            guest = resident.guest
            if guest.epoch != epoch or guest.state in ENDED or not resident.process_gone.is_set():
                return
            self._house.say_ended(resident)
            self._house.let_go(guest)
            now_s = self.context.environment.clock.now_ns() / 1e9
            decision = resident.ends.decide(guest.spec.restart, guest.exit_status, now_s)
            if not isinstance(decision, Restart):
                await self._house.give_back(guest)
                resident.become(decision.state, decision.reason)
                await self._house.store(resident)
                return
            resident.become(pb.RESTARTING, f"restarted in {decision.delay_s:g} s")
            await self._house.store(resident)
        await asyncio.sleep(decision.delay_s)
        await self._house.begin_again(resident, epoch)

    # -- one incarnation

    # -- the contract

    def run(self, request: pb.GuestSpec) -> Awaitable[pb.Guest]:
        return self.context.later(self._run(request))

    async def _run(self, spec: pb.GuestSpec) -> pb.Guest:
        admission.check(spec)
        if any(r.guest.name == spec.name for r in self._house.residents.values()):
            raise AlreadyExists(f"a guest named {spec.name} exists: choose another --name, or `everram rm {spec.name}`")
        guest = pb.Guest(guest_id=self.context.environment.entropy.token(), name=spec.name, spec=spec)
        guest.host, guest.state, guest.exit_status = self._host, pb.STARTING, -1
        resident = self._house.residents[guest.guest_id] = Resident(guest)
        async with resident.changing:
            try:
                request = CreateRegionsRequest(guest_id=guest.guest_id, regions=spec.regions, log_bytes=spec.log_bytes)
                guest.regions.extend((await self._house.nvm.create_regions(request)).regions)
                await self._house.begin(resident)
            except EverramError:
                await self._house.erase(resident)
                raise
            return resident.stored()

    def list(self, request: pb.Empty) -> Awaitable[hv.GuestList]:
        return self.context.later(self._list())

    async def _list(self) -> hv.GuestList:
        processes = {p.guest_id: p for p in await self._house.machine.guests()}
        answer = hv.GuestList()
        for resident in sorted(self._house.residents.values(), key=lambda r: (r.guest.name, r.guest.guest_id)):
            seen = answer.guests.add()
            seen.CopyFrom(self._seen(resident, processes.get(resident.guest.guest_id)))
            await self._add_positions(seen, resident)
        return answer

    def inspect(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._inspect(self._house.find(request.guest)))

    async def _inspect(self, resident: Resident) -> pb.Guest:
        processes = {p.guest_id: p for p in await self._house.machine.guests()}
        seen = self._seen(resident, processes.get(resident.guest.guest_id))
        await self._add_positions(seen, resident)
        return seen

    async def _add_positions(self, seen: pb.Guest, resident: Resident) -> None:
        """How far its log is, and its copies; nothing where its log is not followed."""
        try:
            positions = await self._house.replicator.positions(
                FollowRequest(guest_id=seen.guest_id, log=resident.log_name)
            )
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
        return self.context.later(self._house.stop(self._house.find(request.guest), request.grace_s or GRACE_S))

    def start(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._start(self._house.find(request.guest)))

    async def _start(self, resident: Resident) -> pb.Guest:
        async with resident.changing:
            if resident.guest.state not in ENDED:
                raise FailedPrecondition(f"{resident.guest.name} runs already")
            await self._house.end_process(resident)
            await self._house.begin_or_fail(resident)
            return resident.stored()

    def restart(self, request: hv.StopRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._restart(self._house.find(request.guest), request.grace_s or GRACE_S))

    async def _restart(self, resident: Resident, grace_s: float) -> pb.Guest:
        await self._house.stop(resident, grace_s)
        return await self._start(resident)

    def remove(self, request: hv.RemoveRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._remove(self._house.find(request.guest), request))

    async def _remove(self, resident: Resident, request: hv.RemoveRequest) -> pb.Empty:
        guest = resident.guest
        if guest.regions and not request.regions:
            names = ", ".join(region.name for region in guest.regions)
            raise FailedPrecondition(f"{guest.name} has regions ({names}): add --regions to erase them with it")
        if guest.state not in ENDED and not request.force:
            raise FailedPrecondition(f"{guest.name} is running: `everram stop {guest.name}` first, or add --force")
        await self._house.stop(resident, GRACE_S)
        async with resident.changing:
            if self._house.residents.get(guest.guest_id) is resident:
                await self._house.erase(resident)
        return pb.Empty()

    # -- another host's guest becomes ours, or ours another's

    def take_over(self, request: hv.TakeOverRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._handover.take_over(request))

    def demote(self, request: hv.DemoteRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._handover.demote(request))

    def move(self, request: hv.MoveRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._handover.move(self._house.find(request.guest), request.host))

    # -- its regions

    def revert_region(self, request: hv.RegionAct) -> Awaitable[pb.Guest]:
        return self.context.later(self._regions_of.revert(self._house.find(request.guest), request))

    def clone_region(self, request: hv.RegionAct) -> Awaitable[pb.Guest]:
        return self.context.later(self._regions_of.clone(self._house.find(request.guest), request))

    def add_region(self, request: hv.RegionAct) -> Awaitable[pb.Guest]:
        return self.context.later(self._regions_of.add(self._house.find(request.guest), request))

    def grow_region(self, request: hv.RegionAct) -> Awaitable[pb.Guest]:
        return self.context.later(self._regions_of.grow(self._house.find(request.guest), request))

    def drop_region(self, request: hv.RegionAct) -> Awaitable[pb.Guest]:
        return self.context.later(self._regions_of.drop(self._house.find(request.guest), request))

    # -- suspended guests

    def suspend(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._suspend(self._house.find(request.guest)))

    async def _suspend(self, resident: Resident) -> pb.Guest:
        await self._house.suspend(resident)
        return await self._inspect(resident)

    def resume(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._resume(self._house.find(request.guest)))

    async def _resume(self, resident: Resident) -> pb.Guest:
        await self._house.resume(resident)
        return await self._inspect(resident)

    def kill(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._kill(self._house.find(request.guest)))

    async def _kill(self, resident: Resident) -> pb.Guest:
        if resident.process_gone.is_set():
            raise FailedPrecondition(f"{resident.guest.name} has no process now: it is {word(resident.guest.state)}")
        await self._house.machine.kill(resident.guest.guest_id)
        return resident.stored()

    def fail(self, request: hv.FailRequest) -> Awaitable[pb.Guest]:
        return self.context.later(self._house.fail(self._house.find(request.guest), request.reason))

    def logs(self, request: hv.LogsRequest) -> AsyncIterator[hv.LogChunk]:
        resident = self._house.find(request.guest)
        return output.read(self.context.environment.logs, resident.output_path, request, resident.settled.is_set)

    def wait(self, request: hv.GuestName) -> Awaitable[pb.Guest]:
        return self.context.later(self._wait(self._house.find(request.guest)), cancellable=True)

    async def _wait(self, resident: Resident) -> pb.Guest:
        await resident.settled.wait()
        return resident.stored()

    def regions(self, request: pb.Empty) -> Awaitable[hv.RegionList]:
        return self.context.later(self._regions())

    async def _regions(self) -> hv.RegionList:
        guests = (await self._list()).guests
        return hv.RegionList(regions=[region for guest in guests for region in guest.regions])
