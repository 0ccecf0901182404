"""The supervisor's contract on its socket: one actor on a node of its own, behind the same front as hosts' actors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, cast

from everram.runtime.cluster.upgrading import upgrade_report
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import supervisor_pb2 as sv
from everram.runtime.contracts.supervisor_contract import SupervisorActor
from everram.runtime.node import Node
from everram.runtime.transport.front import Front

if TYPE_CHECKING:
    from everram.runtime.cluster.supervisor import Step, Supervisor
    from everram.runtime.environment import Environment


class Service:
    def __init__(self, supervisor: Supervisor) -> None:
        # Its one actor asks the supervisor, and nobody asks its environment.
        self._node = Node(cast("Environment", None), "supervisor")
        self._node.add(lambda: _Answers(supervisor))
        self._front = Front(self._node, str(supervisor.folders.supervisor_socket))

    async def start(self) -> None:
        await self._node.start()
        await self._front.start()

    async def stop(self) -> None:
        await self._front.stop()
        await self._node.stop()


class _Answers(SupervisorActor):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def status(self, request: pb.Empty) -> Awaitable[sv.ClusterStatus]:
        return self.context.later(self._status())

    async def _status(self) -> sv.ClusterStatus:
        supervisor = self._supervisor
        await supervisor.look()
        coordination = supervisor.coordination
        return sv.ClusterStatus(
            cluster=supervisor.config.name,
            cluster_id=supervisor.config.cluster_id,
            pid=supervisor.pid,
            machines=[
                sv.MachineStatus(
                    name=m.name,
                    state=m.state,
                    pid=m.pid,
                    host_pid=m.host_pid,
                    host_state=m.host_state,
                    host_restarts=m.host_restarts,
                    host_socket=str(m.host_socket),
                    reason=m.reason,
                    cut=m.cut,
                    mains=m.mains,
                    battery_s=m.battery_s,
                    faults=m.faults,
                )
                for m in supervisor.machines.values()
            ],
            coordination=sv.CoordinationStatus(
                address=coordination.address,
                state=coordination.state,
                pid=coordination.pid,
                restarts=coordination.restarts,
            ),
            ports=[
                sv.PublishedPort(
                    port=p.port, guest=p.guest, epoch=p.epoch, backend_port=p.backend_port, connections=p.connections
                )
                for p in supervisor.ports.statuses()
            ],
        )

    async def down(self, request: sv.DownRequest) -> AsyncIterator[sv.Progress]:
        async for step in self._supervisor.down(request.discard):
            yield _progress(step)

    def fault(self, request: sv.FaultRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._fault(request))

    async def _fault(self, request: sv.FaultRequest) -> pb.Empty:
        if request.name == "heal":
            await self._supervisor.heal(request.target)
        else:
            await self._supervisor.fault(request.target, request.name)
        return pb.Empty()

    def power(self, request: sv.PowerRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._power(request))

    async def _power(self, request: sv.PowerRequest) -> pb.Empty:
        await self._supervisor.power(list(request.machines), request.on, request.open_image)
        return pb.Empty()

    def upgrade(self, request: sv.UpgradeRequest) -> Awaitable[sv.UpgradeReport]:
        return self.context.later(self._upgrade(request))

    async def _upgrade(self, request: sv.UpgradeRequest) -> sv.UpgradeReport:
        supervisor = self._supervisor
        supervisor.check_up()
        answer = await supervisor.machine(request.machine).upgrade(
            request.python, preflight=request.preflight, pause=request.pause
        )
        return upgrade_report(answer)

    def give_upgrade_up(self, request: sv.GiveUpgradeUpRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._give_upgrade_up(request))

    async def _give_upgrade_up(self, request: sv.GiveUpgradeUpRequest) -> pb.Empty:
        await self._supervisor.machine(request.machine).give_upgrade_up()
        return pb.Empty()

    def reserve_port(self, request: sv.PortRequest) -> pb.Empty:
        self._supervisor.check_up()
        self._supervisor.ports.reserve(request.port, request.guest)
        return pb.Empty()

    def release_port(self, request: sv.PortRequest) -> pb.Empty:
        self._supervisor.ports.release(request.port, request.guest)
        return pb.Empty()


def _progress(step: Step) -> sv.Progress:
    progress = sv.Progress(text=step.text, done=step.kind == "end")
    if step.error is not None:
        progress.error.CopyFrom(
            pb.Error(
                code=step.error.code,
                fault=step.error.fault.value,  # type: ignore[arg-type]
                message=step.error.message,
                unknown=step.error.unknown,
            )
        )
    return progress
