"""What a host does when the mains are lost: everything that has to be done, in the one order that is safe.

    freeze the guests -> drain their logs -> let others drain theirs to here -> save the memory, marker last
    -> say which guests must wait for what was saved -> give the lease back -> power off

The mains may come back at any time. Until the lease is given back everything can be taken back: the guests go on, and
what was saved is out of date. From then on others may run the guests, so the machine goes off, and comes up again from
what it saved. The battery may be empty at any time: whatever was not done then is not done. What was drained is at the
destinations, an image without its marker never counts, and guests that were not given back end with their lease.

All machines may lose their mains at once. So whoever has drained its own logs goes on receiving until those have who
ship to it, then saves. And a guest whose log could not be drained to every member of its required set is held: it waits
for what was saved here, and a copy that has less does not go on with it (`availability.failover`, *saved*).

The report is written in steps, durably, so that it can be read afterwards how far it came.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from everram.actors.power_monitor.report import AC_LOSS, SAVED, UNDER_WAY, write_report
from everram.runtime.actor import ActorContext
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.availability_pb2 import HoldRequest
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import QuiesceMoves
from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
from everram.runtime.contracts.power_monitor_pb2 import DrainedGuest, DrainedTo, PowerReport, SaveReport
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef
from everram.runtime.contracts.remote_memory_pb2 import QuiesceFiles
from everram.runtime.contracts.replicator_contract import ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import DrainRequest, FollowRequest, QuiesceRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.errors import Aborted, DataLoss, DeadlineExceeded, EverramError, NotFound, Unavailable
from everram.runtime.log.ring import log_name

FREEZE_REASON = "power"
DRAIN_PART = 0.5
"""Of what is left of the battery: the rest is the save's. Shipping what is outstanding takes far less."""
IN_SYNC = "in-sync"
HOLD_TIMEOUT_S = 1.0
HOLD_AGAIN_S = 0.1
"""Between attempts while the directory cannot be reached."""


class AcLoss:
    """One loss of the mains. `step` is told what is being done; `save` does that, for a cause and a memory_id; `note`
    says that there was a loss, whether or not the storage takes a report."""

    def __init__(
        self,
        context: ActorContext,
        deadline_ns: int,
        step: Callable[[str], None],
        save: Callable[[str, str], Awaitable[SaveReport]],
        note: Callable[[], Awaitable[None]],
    ) -> None:
        self._context, self._environment = context, context.environment
        self._clock = context.environment.clock
        self._deadline_ns = deadline_ns
        self._save_memory, self._note = save, note
        self._step = step
        self._replicator = context.ref(ReplicatorRef)
        self._nvm = context.ref(NvmDeviceRef)
        self._files = context.ref(MemoryAgentRef)
        self.handing_over = False
        """From here on it cannot be taken back."""
        self.drained = asyncio.Event()
        """Nothing is shipped any more."""
        self._positions_unknown: set[str] = set()
        """guest_ids whose logs are damaged: what is saved of them is no better than what the copies have."""
        self.report = PowerReport(
            host=context.host,
            began_ns=self._clock.wall_ns(),
            outcome=UNDER_WAY,
            battery_s=self._left_s(),
        )

    def _left_s(self) -> float:
        return max(0.0, (self._deadline_ns - self._clock.now_ns()) / 1e9)

    async def run(self) -> None:
        """Returns only if the machine does not go off after all. Raises ResourceExhausted or DataLoss if storage does
        not take the memory; cancelled when the mains are back in time."""
        report = self.report
        self._step("draining")
        freezing = self._timed(lambda: self._environment.machine.freeze("", FREEZE_REASON))
        # That there was a loss is on storage whatever comes; it takes as long as stopping the guests does.
        report.freeze_s, _, _ = await asyncio.gather(freezing, self._write_report(), self._note())
        shipped_by_s = DRAIN_PART * self._left_s()
        try:
            report.drain_s = await self._timed(lambda: self._drain(shipped_by_s))
        except EverramError as error:  # the save matters more, and takes the logs with it
            self._context.log.error("the logs are not drained to their end: %s", error.message)
        self.drained.set()
        await asyncio.gather(self._write_report(), self._let_others_drain(shipped_by_s - report.drain_s))
        self._step("saving")
        report.save_s = await self._timed(self._save)
        self._step("handing over")
        self.handing_over = True
        await self._hold_guests()
        report.outcome, report.left_s = SAVED, self._left_s()
        await self._write_report()
        self._context.log.info("saved on battery, %.3f s of it left", report.left_s)
        await self._hand_over()

    async def _timed(self, work: Callable[[], Awaitable[object]]) -> float:
        began_ns = self._clock.now_ns()
        await work()
        return (self._clock.now_ns() - began_ns) / 1e9

    # -- the log

    async def _drain(self, within_s: float) -> None:
        """The system ships what the guests have committed, as far as the battery goes."""
        guests = [guest for guest in await self._guests() if self._has_log(guest)]
        for guest in guests:
            self.report.guests.append(DrainedGuest(guest_id=guest.guest_id, name=guest.name, epoch=guest.epoch))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(self._drain_guest(guest.guest_id) for guest in guests))
        for drained in self.report.guests:
            await self._note_positions(drained)

    async def _guests(self) -> list[pb.Guest]:
        return list((await self._context.ref(VMemFSRef).guests(pb.Empty())).guests)

    def _has_log(self, guest: pb.Guest) -> bool:
        return log_name(guest.guest_id) in self._environment.memory.names()

    async def _drain_guest(self, guest_id: str) -> None:
        positions = await self._positions(guest_id)
        waits = [
            self._replicator.drain(DrainRequest(guest_id=guest_id, memory_id=copy.memory_id))
            for copy in positions.copies
            if copy.state == IN_SYNC
        ]
        await asyncio.gather(*waits, return_exceptions=True)

    async def _note_positions(self, drained: DrainedGuest) -> None:
        positions = await self._positions(drained.guest_id)
        drained.tail = positions.tail
        for copy in positions.copies:
            drained.copies.append(
                DrainedTo(
                    host=copy.host,
                    memory_id=copy.memory_id,
                    durable=copy.durable,
                    drained=copy.state == IN_SYNC and copy.durable >= positions.tail,
                )
            )

    async def _let_others_drain(self, within_s: float) -> None:
        """Who keeps copies here may have lost its mains too: it is received and acknowledged until it is done."""
        try:
            copies = (await self._replicator.copies(pb.Empty())).copies
        except EverramError as error:
            self._context.log.error("nobody is waited for: %s", error.message)
            return
        sources = sorted({copy.source_host for copy in copies if copy.source_host})
        peers = [self._context.ref(PowerMonitorRef, host) for host in sources]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, within_s)):
                await asyncio.gather(*(peer.drained(pb.Empty()) for peer in peers), return_exceptions=True)

    async def _positions(self, guest_id: str) -> pb.LogPositions:
        try:
            return await self._replicator.positions(FollowRequest(guest_id=guest_id, log=log_name(guest_id)))
        except NotFound:
            return pb.LogPositions()
        except DataLoss as error:  # of this guest's log alone: the others' are drained
            self._context.log.about(guest=guest_id).error(
                "the log of guest %s is not drained: %s", guest_id, error.message
            )
            self._positions_unknown.add(guest_id)
            return pb.LogPositions()

    # -- the memory

    async def _save(self) -> None:
        # Each waits for what is under way: as long as there is anything to save with.
        await self._replicator.quiesce(QuiesceRequest(on=True), timeout_s=self._left_s())
        await self._nvm.quiesce(QuiesceMoves(on=True), timeout_s=self._left_s())
        await self._files.quiesce(QuiesceFiles(on=True), timeout_s=self._left_s())
        host = await self._context.ref(VMemFSRef).get_host(pb.Empty())
        self.report.saved.CopyFrom(await self._save_memory(AC_LOSS, host.memory_id))

    async def _write_report(self) -> None:
        await write_report(self._environment.disk, self.report)

    # -- the guests' places

    async def _hold_guests(self) -> None:
        """Before anybody may go on with them: the lease is ours until then, as long as the directory can be reached."""
        drained = {
            guest.guest_id: [copy.memory_id for copy in guest.copies if copy.drained] for guest in self.report.guests
        }
        for guest in await self._guests():
            if self._has_log(guest) and guest.guest_id not in self._positions_unknown:
                request = HoldRequest(guest_id=guest.guest_id, drained=drained.get(guest.guest_id, ()))
                if not await self._hold(request):
                    self.report.not_held.append(guest.name)

    async def _hold(self, request: HoldRequest) -> bool:
        """Whether nobody with less goes on with the guest."""
        about = self._context.log.about(guest=request.guest_id)
        while True:
            try:
                await self._context.ref(AvailabilityRef).hold(request, timeout_s=HOLD_TIMEOUT_S)
                return True
            except (Aborted, Unavailable, DeadlineExceeded) as error:
                about.warning("guest %s is not held yet: %s", request.guest_id, error.message)
            except EverramError as error:
                about.error("guest %s is not held: %s", request.guest_id, error.message)
                return False
            if self._left_s() <= HOLD_AGAIN_S:
                return False
            await asyncio.sleep(HOLD_AGAIN_S)

    async def _hand_over(self) -> None:
        machine = self._environment.machine
        for process in await machine.guests():
            if process.pid:
                with contextlib.suppress(NotFound):
                    await machine.freeze(process.guest_id, "lease")
        if self.report.not_held:  # nobody may go on with less before he has to
            await machine.power_off()
            return
        try:
            await self._context.ref(AvailabilityRef).leave(pb.Empty())
        except EverramError as error:
            self._context.log.warning("the lease ends by itself: %s", error.message)
        await machine.power_off()
