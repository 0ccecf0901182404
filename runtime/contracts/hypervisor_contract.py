"""Generated from proto/hypervisor.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, hypervisor_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref, Replies


HYPERVISOR_RUN = Method("everram.v1.Hypervisor", "Run", common_pb2.GuestSpec, common_pb2.Guest)
HYPERVISOR_LIST = Method("everram.v1.Hypervisor", "List", common_pb2.Empty, hypervisor_pb2.GuestList)
HYPERVISOR_INSPECT = Method("everram.v1.Hypervisor", "Inspect", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_STOP = Method("everram.v1.Hypervisor", "Stop", hypervisor_pb2.StopRequest, common_pb2.Guest)
HYPERVISOR_START = Method("everram.v1.Hypervisor", "Start", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_RESTART = Method("everram.v1.Hypervisor", "Restart", hypervisor_pb2.StopRequest, common_pb2.Guest)
HYPERVISOR_SUSPEND = Method("everram.v1.Hypervisor", "Suspend", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_RESUME = Method("everram.v1.Hypervisor", "Resume", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_REMOVE = Method("everram.v1.Hypervisor", "Remove", hypervisor_pb2.RemoveRequest, common_pb2.Empty)
HYPERVISOR_KILL = Method("everram.v1.Hypervisor", "Kill", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_FAIL = Method("everram.v1.Hypervisor", "Fail", hypervisor_pb2.FailRequest, common_pb2.Guest)
HYPERVISOR_LOGS = Method("everram.v1.Hypervisor", "Logs", hypervisor_pb2.LogsRequest, hypervisor_pb2.LogChunk, streams=True)
HYPERVISOR_WAIT = Method("everram.v1.Hypervisor", "Wait", hypervisor_pb2.GuestName, common_pb2.Guest)
HYPERVISOR_REGIONS = Method("everram.v1.Hypervisor", "Regions", common_pb2.Empty, hypervisor_pb2.RegionList)
HYPERVISOR_TAKE_OVER = Method("everram.v1.Hypervisor", "TakeOver", hypervisor_pb2.TakeOverRequest, common_pb2.Guest)
HYPERVISOR_DEMOTE = Method("everram.v1.Hypervisor", "Demote", hypervisor_pb2.DemoteRequest, common_pb2.Empty)
HYPERVISOR_MOVE = Method("everram.v1.Hypervisor", "Move", hypervisor_pb2.MoveRequest, common_pb2.Empty)
HYPERVISOR_REVERT_REGION = Method("everram.v1.Hypervisor", "RevertRegion", hypervisor_pb2.RegionAct, common_pb2.Guest)
HYPERVISOR_CLONE_REGION = Method("everram.v1.Hypervisor", "CloneRegion", hypervisor_pb2.RegionAct, common_pb2.Guest)
HYPERVISOR_ADD_REGION = Method("everram.v1.Hypervisor", "AddRegion", hypervisor_pb2.RegionAct, common_pb2.Guest)
HYPERVISOR_GROW_REGION = Method("everram.v1.Hypervisor", "GrowRegion", hypervisor_pb2.RegionAct, common_pb2.Guest)
HYPERVISOR_DROP_REGION = Method("everram.v1.Hypervisor", "DropRegion", hypervisor_pb2.RegionAct, common_pb2.Guest)
HYPERVISOR = Contract("everram.v1.Hypervisor", (HYPERVISOR_RUN, HYPERVISOR_LIST, HYPERVISOR_INSPECT, HYPERVISOR_STOP, HYPERVISOR_START, HYPERVISOR_RESTART, HYPERVISOR_SUSPEND, HYPERVISOR_RESUME, HYPERVISOR_REMOVE, HYPERVISOR_KILL, HYPERVISOR_FAIL, HYPERVISOR_LOGS, HYPERVISOR_WAIT, HYPERVISOR_REGIONS, HYPERVISOR_TAKE_OVER, HYPERVISOR_DEMOTE, HYPERVISOR_MOVE, HYPERVISOR_REVERT_REGION, HYPERVISOR_CLONE_REGION, HYPERVISOR_ADD_REGION, HYPERVISOR_GROW_REGION, HYPERVISOR_DROP_REGION,))


class HypervisorRef(Ref):
    """Asks a Hypervisor actor, wherever it is."""

    contract = HYPERVISOR

    def run(
        self, request: common_pb2.GuestSpec, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_RUN, request, timeout_s)

    def list(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, hypervisor_pb2.GuestList]:
        return self.ask(HYPERVISOR_LIST, request, timeout_s)

    def inspect(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_INSPECT, request, timeout_s)

    def stop(
        self, request: hypervisor_pb2.StopRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_STOP, request, timeout_s)

    def start(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_START, request, timeout_s)

    def restart(
        self, request: hypervisor_pb2.StopRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_RESTART, request, timeout_s)

    def suspend(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_SUSPEND, request, timeout_s)

    def resume(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_RESUME, request, timeout_s)

    def remove(
        self, request: hypervisor_pb2.RemoveRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(HYPERVISOR_REMOVE, request, timeout_s)

    def kill(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_KILL, request, timeout_s)

    def fail(
        self, request: hypervisor_pb2.FailRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_FAIL, request, timeout_s)

    def logs(
        self, request: hypervisor_pb2.LogsRequest, *, timeout_s: float | None = None
    ) -> Replies[hypervisor_pb2.LogChunk]:
        return self.stream(HYPERVISOR_LOGS, request, timeout_s)

    def wait(
        self, request: hypervisor_pb2.GuestName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_WAIT, request, timeout_s)

    def regions(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, hypervisor_pb2.RegionList]:
        return self.ask(HYPERVISOR_REGIONS, request, timeout_s)

    def take_over(
        self, request: hypervisor_pb2.TakeOverRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_TAKE_OVER, request, timeout_s)

    def demote(
        self, request: hypervisor_pb2.DemoteRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(HYPERVISOR_DEMOTE, request, timeout_s)

    def move(
        self, request: hypervisor_pb2.MoveRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(HYPERVISOR_MOVE, request, timeout_s)

    def revert_region(
        self, request: hypervisor_pb2.RegionAct, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_REVERT_REGION, request, timeout_s)

    def clone_region(
        self, request: hypervisor_pb2.RegionAct, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_CLONE_REGION, request, timeout_s)

    def add_region(
        self, request: hypervisor_pb2.RegionAct, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_ADD_REGION, request, timeout_s)

    def grow_region(
        self, request: hypervisor_pb2.RegionAct, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_GROW_REGION, request, timeout_s)

    def drop_region(
        self, request: hypervisor_pb2.RegionAct, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Guest]:
        return self.ask(HYPERVISOR_DROP_REGION, request, timeout_s)


class HypervisorActor(Actor):
    """Answers the Hypervisor contract: override every method."""

    contract = HYPERVISOR

    def run(self, request: common_pb2.GuestSpec) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def list(self, request: common_pb2.Empty) -> hypervisor_pb2.GuestList | Awaitable[hypervisor_pb2.GuestList]:
        raise NotImplementedError

    def inspect(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def stop(self, request: hypervisor_pb2.StopRequest) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def start(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def restart(self, request: hypervisor_pb2.StopRequest) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def suspend(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def resume(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def remove(self, request: hypervisor_pb2.RemoveRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def kill(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def fail(self, request: hypervisor_pb2.FailRequest) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def logs(self, request: hypervisor_pb2.LogsRequest) -> AsyncIterator[hypervisor_pb2.LogChunk]:
        raise NotImplementedError

    def wait(self, request: hypervisor_pb2.GuestName) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def regions(self, request: common_pb2.Empty) -> hypervisor_pb2.RegionList | Awaitable[hypervisor_pb2.RegionList]:
        raise NotImplementedError

    def take_over(self, request: hypervisor_pb2.TakeOverRequest) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def demote(self, request: hypervisor_pb2.DemoteRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def move(self, request: hypervisor_pb2.MoveRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def revert_region(self, request: hypervisor_pb2.RegionAct) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def clone_region(self, request: hypervisor_pb2.RegionAct) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def add_region(self, request: hypervisor_pb2.RegionAct) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def grow_region(self, request: hypervisor_pb2.RegionAct) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError

    def drop_region(self, request: hypervisor_pb2.RegionAct) -> common_pb2.Guest | Awaitable[common_pb2.Guest]:
        raise NotImplementedError
