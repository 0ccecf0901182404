"""Generated from proto/host.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, host_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref, Replies


HOST_STATUS = Method("everram.v1.Host", "Status", common_pb2.Empty, host_pb2.HostStatus)
HOST_ECHO = Method("everram.v1.Host", "Echo", host_pb2.EchoMessage, host_pb2.EchoMessage)
HOST_COUNT = Method("everram.v1.Host", "Count", host_pb2.EchoMessage, host_pb2.EchoMessage, streams=True)
HOST = Contract("everram.v1.Host", (HOST_STATUS, HOST_ECHO, HOST_COUNT,))


class HostRef(Ref):
    """Asks a Host actor, wherever it is."""

    contract = HOST

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, host_pb2.HostStatus]:
        return self.ask(HOST_STATUS, request, timeout_s)

    def echo(
        self, request: host_pb2.EchoMessage, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, host_pb2.EchoMessage]:
        return self.ask(HOST_ECHO, request, timeout_s)

    def count(
        self, request: host_pb2.EchoMessage, *, timeout_s: float | None = None
    ) -> Replies[host_pb2.EchoMessage]:
        return self.stream(HOST_COUNT, request, timeout_s)


class HostActor(Actor):
    """Answers the Host contract: override every method."""

    contract = HOST

    def status(self, request: common_pb2.Empty) -> host_pb2.HostStatus | Awaitable[host_pb2.HostStatus]:
        raise NotImplementedError

    def echo(self, request: host_pb2.EchoMessage) -> host_pb2.EchoMessage | Awaitable[host_pb2.EchoMessage]:
        raise NotImplementedError

    def count(self, request: host_pb2.EchoMessage) -> AsyncIterator[host_pb2.EchoMessage]:
        raise NotImplementedError
