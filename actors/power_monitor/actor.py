"""The power monitor's actor: freezes the guests and saves the machine's memory when it is asked to."""

from __future__ import annotations

from collections.abc import Awaitable

from everram.actors.power_monitor.save import save
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import power_monitor_pb2 as power
from everram.runtime.contracts.power_monitor_contract import PowerMonitorActor
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.environment import Environment
from everram.runtime.errors import EverramError, FailedPrecondition
from everram.runtime.formats.image import examine

FREEZE_REASON = "down"


class PowerMonitor(PowerMonitorActor):
    """One save at a time; guests stay frozen after it, and go on only if it failed."""

    async def on_start(self) -> None:
        self._saving = False

    def save(self, request: power.SaveRequest) -> Awaitable[power.SaveReport]:
        if self._saving:
            raise FailedPrecondition("a save is under way already: wait for it")
        self._saving = True
        return self.context.later(self._save(request.cause or "a save that was asked for"))

    async def _save(self, cause: str) -> power.SaveReport:
        environment = self.context.environment
        frozen: list[str] = []
        try:
            await freeze_guests(environment, frozen)
            host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
            report = await save(environment, cause, host.memory_id)
        except BaseException:
            for guest_id in frozen:
                await environment.machine.thaw(guest_id, FREEZE_REASON)
            raise
        finally:
            self._saving = False
        self.context.log.info("saved %d bytes as generation %d", report.saved_bytes, report.generation)
        return report

    def status(self, request: pb.Empty) -> Awaitable[power.PowerStatus]:
        return self.context.later(self._status())

    async def _status(self) -> power.PowerStatus:
        survey = await examine(self.context.environment.disk)
        host = await self.context.ref(VMemFSRef).get_host(pb.Empty())
        return power.PowerStatus(image=survey.state, image_generation=survey.generation, restored_from=host.image)


async def freeze_guests(environment: Environment, frozen: list[str]) -> None:
    """Freeze every living guest; those that are frozen are added to `frozen` as they stop.

    Raises what the machine says if one cannot be frozen, unless it has ended meanwhile.
    """
    for process in await environment.machine.guests():
        if not process.pid:
            continue
        try:
            await environment.machine.freeze(process.guest_id, FREEZE_REASON)
        except EverramError:
            if any(other.guest_id == process.guest_id and other.pid for other in await environment.machine.guests()):
                raise
        else:
            frozen.append(process.guest_id)
