"""Generated from proto/supervisor.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, supervisor_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref, Replies


SUPERVISOR_STATUS = Method("everram.v1.Supervisor", "Status", common_pb2.Empty, supervisor_pb2.ClusterStatus)
SUPERVISOR_DOWN = Method("everram.v1.Supervisor", "Down", supervisor_pb2.DownRequest, supervisor_pb2.Progress, streams=True)
SUPERVISOR_FAULT = Method("everram.v1.Supervisor", "Fault", supervisor_pb2.FaultRequest, common_pb2.Empty)
SUPERVISOR_POWER = Method("everram.v1.Supervisor", "Power", supervisor_pb2.PowerRequest, common_pb2.Empty)
SUPERVISOR_UPGRADE = Method("everram.v1.Supervisor", "Upgrade", supervisor_pb2.UpgradeRequest, supervisor_pb2.UpgradeReport)
SUPERVISOR_GIVE_UPGRADE_UP = Method("everram.v1.Supervisor", "GiveUpgradeUp", supervisor_pb2.GiveUpgradeUpRequest, common_pb2.Empty)
SUPERVISOR_RESERVE_PORT = Method("everram.v1.Supervisor", "ReservePort", supervisor_pb2.PortRequest, common_pb2.Empty)
SUPERVISOR_RELEASE_PORT = Method("everram.v1.Supervisor", "ReleasePort", supervisor_pb2.PortRequest, common_pb2.Empty)
SUPERVISOR = Contract("everram.v1.Supervisor", (SUPERVISOR_STATUS, SUPERVISOR_DOWN, SUPERVISOR_FAULT, SUPERVISOR_POWER, SUPERVISOR_UPGRADE, SUPERVISOR_GIVE_UPGRADE_UP, SUPERVISOR_RESERVE_PORT, SUPERVISOR_RELEASE_PORT,))


class SupervisorRef(Ref):
    """Asks a Supervisor actor, wherever it is."""

    contract = SUPERVISOR

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, supervisor_pb2.ClusterStatus]:
        return self.ask(SUPERVISOR_STATUS, request, timeout_s)

    def down(
        self, request: supervisor_pb2.DownRequest, *, timeout_s: float | None = None
    ) -> Replies[supervisor_pb2.Progress]:
        return self.stream(SUPERVISOR_DOWN, request, timeout_s)

    def fault(
        self, request: supervisor_pb2.FaultRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(SUPERVISOR_FAULT, request, timeout_s)

    def power(
        self, request: supervisor_pb2.PowerRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(SUPERVISOR_POWER, request, timeout_s)

    def upgrade(
        self, request: supervisor_pb2.UpgradeRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, supervisor_pb2.UpgradeReport]:
        return self.ask(SUPERVISOR_UPGRADE, request, timeout_s)

    def give_upgrade_up(
        self, request: supervisor_pb2.GiveUpgradeUpRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(SUPERVISOR_GIVE_UPGRADE_UP, request, timeout_s)

    def reserve_port(
        self, request: supervisor_pb2.PortRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(SUPERVISOR_RESERVE_PORT, request, timeout_s)

    def release_port(
        self, request: supervisor_pb2.PortRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(SUPERVISOR_RELEASE_PORT, request, timeout_s)


class SupervisorActor(Actor):
    """Answers the Supervisor contract: override every method."""

    contract = SUPERVISOR

    def status(self, request: common_pb2.Empty) -> supervisor_pb2.ClusterStatus | Awaitable[supervisor_pb2.ClusterStatus]:
        raise NotImplementedError

    def down(self, request: supervisor_pb2.DownRequest) -> AsyncIterator[supervisor_pb2.Progress]:
        raise NotImplementedError

    def fault(self, request: supervisor_pb2.FaultRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def power(self, request: supervisor_pb2.PowerRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def upgrade(self, request: supervisor_pb2.UpgradeRequest) -> supervisor_pb2.UpgradeReport | Awaitable[supervisor_pb2.UpgradeReport]:
        raise NotImplementedError

    def give_upgrade_up(self, request: supervisor_pb2.GiveUpgradeUpRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def reserve_port(self, request: supervisor_pb2.PortRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def release_port(self, request: supervisor_pb2.PortRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError
