"""Generated from proto/memory_scheduler.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, memory_scheduler_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


MEMORY_SCHEDULER_PREPARE = Method("everram.v1.MemoryScheduler", "Prepare", memory_scheduler_pb2.GuestMemory, memory_scheduler_pb2.MemoryGrant)
MEMORY_SCHEDULER_RELEASE = Method("everram.v1.MemoryScheduler", "Release", memory_scheduler_pb2.GuestMemoryKey, common_pb2.Empty)
MEMORY_SCHEDULER_RETAIN = Method("everram.v1.MemoryScheduler", "Retain", memory_scheduler_pb2.GuestMemoryKeys, common_pb2.Empty)
MEMORY_SCHEDULER_SET_LIMITS = Method("everram.v1.MemoryScheduler", "SetLimits", memory_scheduler_pb2.MemoryLimits, memory_scheduler_pb2.GuestMemoryStatus)
MEMORY_SCHEDULER_STATUS = Method("everram.v1.MemoryScheduler", "Status", common_pb2.Empty, memory_scheduler_pb2.MemoryStatus)
MEMORY_SCHEDULER_EXPLAIN = Method("everram.v1.MemoryScheduler", "Explain", memory_scheduler_pb2.GuestMemoryKey, memory_scheduler_pb2.MemoryExplanation)
MEMORY_SCHEDULER = Contract("everram.v1.MemoryScheduler", (MEMORY_SCHEDULER_PREPARE, MEMORY_SCHEDULER_RELEASE, MEMORY_SCHEDULER_RETAIN, MEMORY_SCHEDULER_SET_LIMITS, MEMORY_SCHEDULER_STATUS, MEMORY_SCHEDULER_EXPLAIN,))


class MemorySchedulerRef(Ref):
    """Asks a MemoryScheduler actor, wherever it is."""

    contract = MEMORY_SCHEDULER

    def prepare(
        self, request: memory_scheduler_pb2.GuestMemory, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, memory_scheduler_pb2.MemoryGrant]:
        return self.ask(MEMORY_SCHEDULER_PREPARE, request, timeout_s)

    def release(
        self, request: memory_scheduler_pb2.GuestMemoryKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_SCHEDULER_RELEASE, request, timeout_s)

    def retain(
        self, request: memory_scheduler_pb2.GuestMemoryKeys, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(MEMORY_SCHEDULER_RETAIN, request, timeout_s)

    def set_limits(
        self, request: memory_scheduler_pb2.MemoryLimits, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, memory_scheduler_pb2.GuestMemoryStatus]:
        return self.ask(MEMORY_SCHEDULER_SET_LIMITS, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, memory_scheduler_pb2.MemoryStatus]:
        return self.ask(MEMORY_SCHEDULER_STATUS, request, timeout_s)

    def explain(
        self, request: memory_scheduler_pb2.GuestMemoryKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, memory_scheduler_pb2.MemoryExplanation]:
        return self.ask(MEMORY_SCHEDULER_EXPLAIN, request, timeout_s)


class MemorySchedulerActor(Actor):
    """Answers the MemoryScheduler contract: override every method."""

    contract = MEMORY_SCHEDULER

    def prepare(self, request: memory_scheduler_pb2.GuestMemory) -> memory_scheduler_pb2.MemoryGrant | Awaitable[memory_scheduler_pb2.MemoryGrant]:
        raise NotImplementedError

    def release(self, request: memory_scheduler_pb2.GuestMemoryKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def retain(self, request: memory_scheduler_pb2.GuestMemoryKeys) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def set_limits(self, request: memory_scheduler_pb2.MemoryLimits) -> memory_scheduler_pb2.GuestMemoryStatus | Awaitable[memory_scheduler_pb2.GuestMemoryStatus]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> memory_scheduler_pb2.MemoryStatus | Awaitable[memory_scheduler_pb2.MemoryStatus]:
        raise NotImplementedError

    def explain(self, request: memory_scheduler_pb2.GuestMemoryKey) -> memory_scheduler_pb2.MemoryExplanation | Awaitable[memory_scheduler_pb2.MemoryExplanation]:
        raise NotImplementedError
