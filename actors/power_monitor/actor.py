"""The power monitor's actor: freezes the guests and saves the machine's memory when it is asked to."""

from __future__ import annotations

from collections.abc import Awaitable

from everram.actors.power_monitor.save import save
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import power_monitor_pb2 as power
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.nvm_device_pb2 import QuiesceMoves
from everram.runtime.contracts.power_monitor_contract import PowerMonitorActor
from everram.runtime.contracts.replicator_contract import REPLICATOR_QUIESCE, ReplicatorRef
from everram.runtime.contracts.replicator_pb2 import QuiesceRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.errors import FailedPrecondition
from everram.runtime.formats.image import examine, mark_opened

FREEZE_REASON = "down"
QUIESCE_TIMEOUT_S = 60.0
"""Of the NVM device: a batch of a purge comes to its end first, at the speed of the disk."""


class PowerMonitor(PowerMonitorActor):
    """One save at a time. The whole machine is frozen for it and stays so, over restarts of this host too: whoever
    asked for the save either ends the machine or asks to resume. A save that fails resumes by itself."""

    async def on_start(self) -> None:
        self._saving = False
        self._replicator = self.context.ref(ReplicatorRef)
        self._nvm = self.context.ref(NvmDeviceRef)
        marker = (await examine(self.context.environment.disk)).marker
        if marker is not None and marker.state == "complete":
            # A host that died after it had saved: what its successor acknowledged would not be in the image.
            self._replicator.tell(REPLICATOR_QUIESCE, QuiesceRequest(on=True))

    def save(self, request: power.SaveRequest) -> Awaitable[power.SaveReport]:
        self._check_not_saving()
        self._saving = True
        return self.context.later(self._save(request.cause or "a save that was asked for"))

    async def _save(self, cause: str) -> power.SaveReport:
        environment = self.context.environment
        try:
            await environment.machine.freeze("", FREEZE_REASON)
            await self._replicator.quiesce(QuiesceRequest(on=True))
            await self._nvm.quiesce(QuiesceMoves(on=True), timeout_s=QUIESCE_TIMEOUT_S)
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            report = await save(environment, cause, host.memory_id)
        except BaseException:
            await self._resume()
            raise
        finally:
            self._saving = False
        self.context.log.info("saved %d bytes as generation %d", report.saved_bytes, report.generation)
        return report

    def resume(self, request: pb.Empty) -> Awaitable[pb.Empty]:
        self._check_not_saving()
        return self.context.later(self._resume())

    async def _resume(self) -> pb.Empty:
        """What was saved is out of date as soon as a guest runs, so it must not be opened silently from then on."""
        environment = self.context.environment
        survey = await examine(environment.disk)
        if survey.marker is not None and survey.marker.state == "complete":
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            await mark_opened(environment.disk, survey, survey.marker.generation, host.memory_id)
        await self._replicator.quiesce(QuiesceRequest(on=False))
        await self._nvm.quiesce(QuiesceMoves(on=False), timeout_s=QUIESCE_TIMEOUT_S)
        await environment.machine.thaw("", FREEZE_REASON)
        return pb.Empty()

    def _check_not_saving(self) -> None:
        if self._saving:
            raise FailedPrecondition("a save is under way already: wait for it")

    def status(self, request: pb.Empty) -> Awaitable[power.PowerStatus]:
        return self.context.later(self._status())

    async def _status(self) -> power.PowerStatus:
        survey = await examine(self.context.environment.disk)
        host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
        return power.PowerStatus(image=survey.state, image_generation=survey.generation, restored_from=host.image)
