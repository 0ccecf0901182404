"""The carrier of clients outside: refs over an ordinary gRPC channel.

    carrier = ChannelCarrier("unix:/run/user/1000/everram/ab12/h1.sock", whom="host h1")
    status = await HostRef(carrier).status(Empty())
    await carrier.close()

An error is the same `EverramError` that the handler raised. A request is sent on a connected channel only, so one
that could not be sent has *failed*, and one whose connection broke afterwards is *unknown*.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from everram.runtime.errors import DeadlineExceeded, Internal, ResourceExhausted
from everram.runtime.method import DEFAULT_TIMEOUT_S, Method
from everram.runtime.tasks import TaskScope
from everram.runtime.transport.grpc_common import CHANNEL_OPTIONS, MOVED_METADATA, from_rpc_error, wait_ready

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

MAX_TELLS = 256
"""Tells under way: over gRPC each is a call of its own, some hundred microseconds."""

LEFT_GRACE_S = 5.0
"""For what is under way on the channel to a host that was upgraded: longer than that host lingers."""

log = logging.getLogger("everram.client")


class ChannelCarrier:
    """One gRPC channel to one host (or to the supervisor)."""

    def __init__(self, address: str, *, whom: str, token: str = "") -> None:
        """`address`: `unix:PATH` or `HOST:PORT`; `whom`: what errors call the other side; `token`: the cluster's."""
        self.whom = whom
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._left = TaskScope(f"former channels to {whom}")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._tells = TaskScope(f"tells to {whom}", self._tell_failed)

    async def close(self) -> None:
        """Asks under way end as *unknown*."""
        await self._tells.close()
        await self._left.close()
        await self._channel.close()

    def tell(self, method: Method[RequestT, ReplyT], request: RequestT) -> None:
        """Raises ResourceExhausted. A failure later is only logged: who must know asks."""
        if len(self._tells) >= MAX_TELLS:
            raise ResourceExhausted(f"{MAX_TELLS} tells to {self.whom} are under way; slow down or ask")
        self._tells.start(self.ask(method, request, DEFAULT_TIMEOUT_S), name=method.name)

    async def ask(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float) -> ReplyT:
        """Raises what the handler raised, DeadlineExceeded, Unavailable, Unauthenticated."""
        left_s = await self._ready(method, timeout_s)
        channel = self._channel
        multicallable: Any = channel.unary_unary(method.path)
        call = multicallable(request.SerializeToString(), timeout=left_s, metadata=self._metadata)
        try:
            data = await call
        except grpc.aio.AioRpcError as error:
            self._look_moved(channel, error.trailing_metadata())
            raise from_rpc_error(error, method.path) from None
        self._look_moved(channel, await call.trailing_metadata())
        return _parse(method, data)

    async def stream(
        self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float | None
    ) -> AsyncGenerator[ReplyT, None]:
        """Opened by the first item that is read."""
        left_s = await self._ready(method, timeout_s)
        channel = self._channel
        call: Any = channel.unary_stream(method.path)
        replies = call(request.SerializeToString(), timeout=left_s, metadata=self._metadata)
        try:
            while (data := await replies.read()) is not grpc.aio.EOF:
                yield _parse(method, data)
            self._look_moved(channel, await replies.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            self._look_moved(channel, error.trailing_metadata())
            raise from_rpc_error(error, method.path) from None
        finally:
            replies.cancel()

    async def _ready(self, method: Method[Any, Any], timeout_s: float | None) -> float | None:
        """What is left of `timeout_s` once the channel is connected."""
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return timeout_s
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                await wait_ready(self._channel, self.whom)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.whom} could not be reached in time for {method.path}") from None
        return None if timeout_s is None else max(0.001, timeout_s - (loop.time() - began_s))

    def _look_moved(self, channel: grpc.aio.Channel, trailing: Any) -> None:
        """Connect anew if the host that was asked is leaving and has passed the request on."""
        if trailing and channel is self._channel and MOVED_METADATA[0] in {key for key, _ in trailing}:
            self._left.start(channel.close(LEFT_GRACE_S), name="close")  # after what is under way on it
            self._channel = grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS)

    def _tell_failed(self, name: str, error: BaseException) -> None:
        log.warning("%s failed: %s", name, error)


def _parse(method: Method[Any, ReplyT], data: bytes) -> ReplyT:
    try:
        return method.reply.FromString(data)
    except DecodeError:
        raise Internal(f"the reply of {method.path} is malformed", unknown=True) from None
