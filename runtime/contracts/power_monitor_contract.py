"""Generated from proto/power_monitor.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, power_monitor_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


POWER_MONITOR_SAVE = Method("everram.v1.PowerMonitor", "Save", power_monitor_pb2.SaveRequest, power_monitor_pb2.SaveReport)
POWER_MONITOR_RESUME = Method("everram.v1.PowerMonitor", "Resume", common_pb2.Empty, common_pb2.Empty)
POWER_MONITOR_STATUS = Method("everram.v1.PowerMonitor", "Status", common_pb2.Empty, power_monitor_pb2.PowerStatus)
POWER_MONITOR_DRAINED = Method("everram.v1.PowerMonitor", "Drained", common_pb2.Empty, common_pb2.Empty)
POWER_MONITOR_REHEARSE = Method("everram.v1.PowerMonitor", "Rehearse", common_pb2.Empty, power_monitor_pb2.Rehearsal)
POWER_MONITOR = Contract("everram.v1.PowerMonitor", (POWER_MONITOR_SAVE, POWER_MONITOR_RESUME, POWER_MONITOR_STATUS, POWER_MONITOR_DRAINED, POWER_MONITOR_REHEARSE,))


class PowerMonitorRef(Ref):
    """Asks a PowerMonitor actor, wherever it is."""

    contract = POWER_MONITOR

    def save(
        self, request: power_monitor_pb2.SaveRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, power_monitor_pb2.SaveReport]:
        return self.ask(POWER_MONITOR_SAVE, request, timeout_s)

    def resume(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(POWER_MONITOR_RESUME, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, power_monitor_pb2.PowerStatus]:
        return self.ask(POWER_MONITOR_STATUS, request, timeout_s)

    def drained(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(POWER_MONITOR_DRAINED, request, timeout_s)

    def rehearse(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, power_monitor_pb2.Rehearsal]:
        return self.ask(POWER_MONITOR_REHEARSE, request, timeout_s)


class PowerMonitorActor(Actor):
    """Answers the PowerMonitor contract: override every method."""

    contract = POWER_MONITOR

    def save(self, request: power_monitor_pb2.SaveRequest) -> power_monitor_pb2.SaveReport | Awaitable[power_monitor_pb2.SaveReport]:
        raise NotImplementedError

    def resume(self, request: common_pb2.Empty) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> power_monitor_pb2.PowerStatus | Awaitable[power_monitor_pb2.PowerStatus]:
        raise NotImplementedError

    def drained(self, request: common_pb2.Empty) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def rehearse(self, request: common_pb2.Empty) -> power_monitor_pb2.Rehearsal | Awaitable[power_monitor_pb2.Rehearsal]:
        raise NotImplementedError
