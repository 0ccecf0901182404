"""The power monitor's actor: saves the machine's memory when it is asked to, and when the mains are lost.

What is done on battery is in `ac_loss`, how memory is saved and restored in `save`, what is known beforehand about how
long that takes in `rehearsal`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

from everram.actors.power_monitor.ac_loss import FREEZE_REASON as POWER_REASON
from everram.actors.power_monitor.ac_loss import AcLoss
from everram.actors.power_monitor.backfill import Backfill
from everram.actors.power_monitor.budget_keeper import BudgetKeeper
from everram.actors.power_monitor.ends import MAINS_LOST, EndRecord
from everram.actors.power_monitor.flusher import Restored, Writers
from everram.actors.power_monitor.rehearsal import FREEZE_REASON as REHEARSAL_REASON
from everram.actors.power_monitor.rehearsal import rehearse
from everram.actors.power_monitor.report import TAKEN_BACK, read_report, settle, write_report
from everram.actors.power_monitor.save import RestoreTimes, save
from everram.actors.power_monitor.ups import WAIT_FOR_LOW, UpsWatch, Verdict
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import power_monitor_pb2 as power
from everram.runtime.contracts.availability_contract import AVAILABILITY_END_HOLDS, AvailabilityRef
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import QuiesceMoves
from everram.runtime.contracts.power_monitor_contract import PowerMonitorActor
from everram.runtime.contracts.remote_memory_contract import MEMORY_AGENT_QUIESCE, MemoryAgentRef
from everram.runtime.contracts.remote_memory_pb2 import QuiesceFiles
from everram.runtime.contracts.replicator_contract import REPLICATOR_QUIESCE, ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import QuiesceRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.environment import MachineEvent, Ups
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument
from everram.runtime.formats.image import examine, mark_opened
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.memory.guard import PageGuard

FREEZE_REASON = "down"
QUIESCE_TIMEOUT_S = 60.0
"""Of the NVM device: a batch of a purge comes to its end first, at the speed of the disk."""
ON_MAINS = "on mains"
RESUME_AGAIN_S = 0.5
"""Between attempts to let guests go on where the storage has failed."""


UPS_POLL_S = 0.5


class PowerMonitor(PowerMonitorActor):
    """One save at a time. The whole machine is frozen for it and stays so, over restarts of this host too: whoever
    asked for the save either ends the machine or asks to resume. A save that fails resumes by itself."""

    def __init__(
        self,
        on_battery: str = WAIT_FOR_LOW,
        backfill: Backfill | None = None,
        *,
        guard: PageGuard | None = None,
        writers: Writers | None = None,
        cap_bytes_max: int = 0,
        restored: Restored | None = None,
        host_id: str = "",
        times: RestoreTimes | None = None,
    ) -> None:
        """`on_battery`: what that means of a UPS, ACT_AT_ONCE or WAIT_FOR_LOW. `backfill`: a restore that goes on.
        `guard`: who is asked before stores; `writers`: who traps those of guests, None where nobody can.
        `cap_bytes_max`: a lower dirty cap than the battery allows; 0: none. `restored`: what the memory is, page for
        page, when this host starts."""
        self._backfill, self._host_id = backfill, host_id
        self._times = times if times is not None else RestoreTimes()
        self._on_battery = on_battery
        self._guard = guard if guard is not None else PageGuard()
        self._writers, self._cap_bytes_max, self._image_of = writers, cap_bytes_max, restored
        self._ups = self._ups_warning = ""
        self._ups_lasts_s: float | None = None
        """What its UPS says that there would be for a loss of the mains; None: nothing."""

    async def on_start(self) -> None:
        self._saving = False
        self._one = asyncio.Lock()
        """One save at a time, and no pause of a rehearsal meanwhile: its end would let the guests go on."""
        self._state = ON_MAINS
        self._event = MachineEvent("mains")
        self._loss: AcLoss | None = None
        self._acting: asyncio.Task[None] | None = None
        self._taking_back: asyncio.Task[None] | None = None
        self._trouble = ""
        """Why guests stay frozen though the mains are back."""
        self._ends = await EndRecord.read(self.context.environment.disk)
        self._told_by = self._ends.counts.told_by if self._ends.counts.life == MAINS_LOST else ""
        """The UPS that says that the mains are lost, also to the host before this one."""
        self._replicator = self.context.ref(ReplicatorRef)
        self._nvm = self.context.ref(NvmDeviceRef)
        self._files = self.context.ref(MemoryAgentRef)
        # A host may have ended in the midst of one; a machine of an earlier version has no such reason.
        with contextlib.suppress(InvalidArgument):
            await self.context.environment.machine.thaw("", REHEARSAL_REASON)
        survey = await examine(self.context.environment.disk)
        await self._begin_budget()
        marker = survey.marker
        if marker is not None and marker.state == "complete":
            # A host that died after it had saved: what its successor acknowledged would not be in the image.
            self._replicator.tell(REPLICATOR_QUIESCE, QuiesceRequest(on=True))
            self._files.tell(MEMORY_AGENT_QUIESCE, QuiesceFiles(on=True))
        self.context.spawn(self._watch_power(), name="power")
        self.context.spawn(self._budget.run(), name="budget")
        self.context.spawn(self._tidy(), name="tidy")
        if self.context.environment.ups is not None:
            self.context.spawn(self._watch_ups(self.context.environment.ups), name="ups")

    async def on_stop(self) -> None:
        await self._budget.close()

    async def _begin_budget(self) -> None:
        """Before anybody stores to a region."""
        environment = self.context.environment
        if self._guard.cap is None:  # one that is there knows who stores unseen, and goes on charging until it is read
            self._guard.cap = DirtyCap(environment.memory, lambda: environment.clock.now_ns() / 1e9)
        cap = self._guard.cap
        image = self._image_of if self._image_of is not None and not self._image_of.past else None
        if self._image_of is not None:
            self._image_of.past = True
        self._spare_battery_s, self._spare_since_ns = environment.machine.battery_s, 0
        writers = self._writers if environment.nvm_files is None else None  # there is no image to flush anything into
        self._budget = BudgetKeeper(
            self.context, cap, writers, self._full_battery_s, self._cap_bytes_max, self._absent_pages
        )
        host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
        try:
            await self._budget.begin(host.memory_id, image)
        except EverramError as error:
            self.context.log.warning("the energy budget is not kept: %s", error.message)

    def _absent_pages(self) -> dict[str, bytearray]:
        return self._backfill.absent_pages() if self._backfill is not None else {}

    def _full_battery_s(self) -> float:
        """How long the battery would last from now on. It fills as fast as it is used."""
        machine, clock = self.context.environment.machine, self.context.environment.clock
        if not self._event.mains:
            return self._battery_s()
        if self._ups_lasts_s is not None:  # a UPS that says less than it was configured for knows better
            return min(machine.battery_s, self._ups_lasts_s)
        return min(machine.battery_s, self._spare_battery_s + (clock.now_ns() - self._spare_since_ns) / 1e9)

    # -- the mains

    async def _watch_power(self) -> None:
        async for event in self.context.environment.machine.power_events():
            if event.mains and not self._event.mains:
                self._spare_battery_s = self._battery_s()
                self._spare_since_ns = self.context.environment.clock.now_ns()
            self._event = event
            if event.mains:
                if self._taking_back is None or self._taking_back.done():
                    self._taking_back = self.context.spawn(self._mains_are_back(), name="mains are back")
                continue
            if self._taking_back is not None and not self._taking_back.done():
                self._taking_back.cancel()
                await asyncio.wait([self._taking_back])
                self._acting = None
            if self._acting is None:
                self.context.log.warning("the mains are lost; the battery lasts %.3f s", self._battery_s())
                self._loss = AcLoss(self.context, event.deadline_ns, self._step, self._save_memory, self._note_loss)
                self._acting = self.context.spawn(self._act(self._loss), name="on battery")

    async def _note_loss(self) -> None:
        await self._ends.mains(lost=True, told_by=self._told_by)

    async def _watch_ups(self, ups: Ups) -> None:
        """Its word is the machine's: what it says of the mains is what the machine then knows of them."""
        watch, said = UpsWatch(self._on_battery), ""
        while True:
            reading = await ups.reading()
            verdict = watch.saw(reading, self.context.environment.clock.now_ns() / 1e9)
            if watch.warning != said:
                self.context.log.warning("%s", watch.warning or f"UPS {ups.name} is {reading.value} again")
            said = self._ups_warning = watch.warning
            self._ups = reading.value
            lasts_s = await ups.lasts_s(from_low=self._on_battery == WAIT_FOR_LOW)
            self._ups_lasts_s = self._ups_lasts_s if lasts_s is None else lasts_s
            if not self._told_by and verdict is Verdict.ACT:
                self.context.log.warning("UPS %s is %s", ups.name, reading.value)
                self._told_by = ups.name
                await self.context.environment.machine.report_mains(False)
            elif self._told_by and verdict in (Verdict.KEEP, Verdict.BACK):
                await self.context.environment.machine.report_mains(True)
                self._told_by = ""
            await asyncio.sleep(UPS_POLL_S)

    def _battery_s(self) -> float:
        return max(0.0, (self._event.deadline_ns - self.context.environment.clock.now_ns()) / 1e9)

    async def _act(self, loss: AcLoss) -> None:
        async with self._one:
            await self._lose_mains(loss)

    async def _lose_mains(self, loss: AcLoss) -> None:
        try:
            await loss.run()
        except EverramError as error:
            # Nothing more can be done: guests stay frozen, and end with the battery if the mains stay away.
            self.context.log.error("the memory is not saved: %s", error.message)
            loss.report.outcome = error.message
            await write_report(self.context.environment.disk, loss.report)
        finally:
            loss.drained.set()

    async def _save_memory(self, cause: str, memory_id: str) -> power.SaveReport:
        """What is saved has to be in memory. What is clean is in the image that it has not been read from yet."""
        if self._backfill is not None and not self._guard.is_charged():
            await self._backfill.finished()
        async with self._budget.flusher.stopped() as flushed:
            return await save(self.context.environment, cause, memory_id, flushed, host_id=self._host_id)

    def _step(self, step: str) -> None:
        self._state = step

    async def _mains_are_back(self) -> None:
        """In time: everything is taken back. Too late for that, the machine goes off and comes up again."""
        acting, loss = self._acting, self._loss
        if loss is not None and loss.handing_over:
            self.context.log.warning("the mains are back, after the guests were handed over: the machine starts anew")
            return
        if acting is not None:
            acting.cancel()
            await asyncio.wait([acting])
        if loss is not None:
            loss.drained.set()
            loss.report.outcome = TAKEN_BACK
            await write_report(self.context.environment.disk, loss.report)
        else:
            await settle(self.context.environment.disk, TAKEN_BACK)  # what a host before this one had begun
        await self._ends.mains(lost=False)
        await self._resume_surely()
        await self.context.environment.machine.power_kept()
        self._acting, self._state = None, ON_MAINS
        self.context.ref(AvailabilityRef).tell(AVAILABILITY_END_HOLDS, pb.Empty())  # a host before this may have held
        self.context.log.warning("the mains are back: the guests go on")

    async def _resume_surely(self) -> None:
        """What was saved must not be opened silently once a guest runs; until storage has taken that, none does."""
        while True:
            try:
                async with self._one:
                    await self._resume(POWER_REASON)
                self._trouble = ""
                return
            except EverramError as error:
                trouble = f"the mains are back, but guests stay frozen until this can be done: {error.message}"
                if trouble != self._trouble:
                    self.context.log.error("%s", trouble)
                self._trouble = trouble
            await asyncio.sleep(RESUME_AGAIN_S)

    def drained(self, request: pb.Empty) -> Awaitable[pb.Empty]:
        return self.context.later(self._drained(), cancellable=True)

    async def _drained(self) -> pb.Empty:
        if self._acting is not None and self._loss is not None:
            await self._loss.drained.wait()
        return pb.Empty()

    # -- saving on demand

    def save(self, request: power.SaveRequest) -> Awaitable[power.SaveReport]:
        self._check_not_saving()
        self._saving = True
        return self.context.later(self._save(request.cause or "a save that was asked for"))

    async def _save(self, cause: str) -> power.SaveReport:
        async with self._one:
            return await self._save_all(cause)

    async def _save_all(self, cause: str) -> power.SaveReport:
        environment = self.context.environment
        try:
            await environment.machine.freeze("", FREEZE_REASON)
            await self._replicator.quiesce(QuiesceRequest(on=True), timeout_s=QUIESCE_TIMEOUT_S)
            await self._nvm.quiesce(QuiesceMoves(on=True), timeout_s=QUIESCE_TIMEOUT_S)
            await self._files.quiesce(QuiesceFiles(on=True), timeout_s=QUIESCE_TIMEOUT_S)
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            report = await self._save_memory(cause, host.memory_id)
        except BaseException:
            await self._resume(FREEZE_REASON)
            raise
        finally:
            self._saving = False
        self.context.log.info("saved %d bytes as generation %d", report.saved_bytes, report.generation)
        await self._ends.saved()
        await self._tidy()
        return report

    async def _tidy(self) -> None:
        """When there is time for it: removing what no image needs any more takes the disk a while."""
        try:
            await self._budget.flusher.tidy()
        except EverramError as error:
            self.context.log.warning("files of an older image stay: %s", error.message)

    def resume(self, request: pb.Empty) -> Awaitable[pb.Empty]:
        self._check_not_saving()
        return self.context.later(self._resume(FREEZE_REASON))

    async def _resume(self, reason: str) -> pb.Empty:
        """What was saved is out of date as soon as a guest runs, so it must not be opened silently from then on."""
        environment = self.context.environment
        try:
            marker = (survey := await examine(environment.disk)).marker
        except FailedPrecondition:
            marker = None  # no host opens what is refused for that, silently or not
        if marker is not None and marker.state == "complete":
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            await mark_opened(environment.disk, survey, marker.generation, host.memory_id)
        await self._ends.goes_on()
        if environment.nvm_files is not None:
            environment.nvm_files.stored_to()
        await self._nvm.quiesce(QuiesceMoves(on=False), timeout_s=QUIESCE_TIMEOUT_S)
        await self._replicator.quiesce(QuiesceRequest(on=False))  # its copies may need what the device moves
        await self._files.quiesce(QuiesceFiles(on=False))
        await self._budget.flusher.go_on()
        await environment.machine.thaw("", reason)
        return pb.Empty()

    def _check_not_saving(self) -> None:
        if self._saving:
            raise FailedPrecondition("a save is under way already: wait for it")
        if self._acting is not None:
            raise FailedPrecondition("the mains are lost: the memory is being saved, and the machine goes off")

    def rehearse(self, request: pb.Empty) -> Awaitable[power.Rehearsal]:
        self._check_not_saving()
        return self.context.later(self._rehearse())

    async def _rehearse(self) -> power.Rehearsal:
        self._saving = True
        try:
            found = await rehearse(self.context, self._one, self._budget.bytes_to_save())
            self._budget.believe(found.bytes_per_s)
            return found
        finally:
            self._saving = False

    def status(self, request: pb.Empty) -> Awaitable[power.PowerStatus]:
        return self.context.later(self._status())

    async def _status(self) -> power.PowerStatus:
        disk = self.context.environment.disk
        survey = await examine(disk)
        host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
        counts = self._ends.counts
        status = power.PowerStatus(
            image=survey.state,
            image_generation=survey.generation,
            restored_from=host.image,
            mains=self._event.mains,
            battery_s=0.0 if self._event.mains else self._battery_s(),
            state=self._state,
            ups=self._ups,
            restoring_bytes=self._backfill.left_pages * PAGE_BYTES if self._backfill is not None else 0,
            warning=self._trouble or self._ups_warning or self._budget.warning(),
            clean=counts.clean,
            power_saved=counts.power_saved,
            power_incomplete=counts.power_incomplete,
            crashes=counts.crashes,
            last_end=counts.last,
            restore_s=self._times.usable_s,
            restore_all_s=self._times.all_s,
            budget=self._budget.status(),
        )
        last = self._loss.report if self._loss is not None else await read_report(disk)
        if last is not None:
            status.last.CopyFrom(last)
        return status
