"""Streams between hosts over grpc.aio: `environment.Network` in production.

One bidirectional stream `everram.v1.Link/Connect` per link, raw batches on it (the link serialises by itself), read
and written by `read()` and `write()`, which cost less than async iteration. The accepting side is a generic handler
that the host's gRPC front serves on its own socket.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import Unavailable
from everram.runtime.production.partition import Cut
from everram.runtime.production.weather import Weather
from everram.runtime.transport.grpc_common import CHANNEL_OPTIONS, wait_begun, wait_ready

CONNECT = "/everram.v1.Link/Connect"

Accept = Callable[[LinkStream], Awaitable[None]]

_ENDED = (grpc.aio.AioRpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What grpc.aio raises from a stream that has ended, depending on who ended it and when."""


class GrpcNetwork:
    """One per host; `handler` belongs into its `Front`. Streams end, and none begins, while `cut` cuts it off; what
    arrives on them has come through `weather`, if there is one."""

    def __init__(self, cut: Cut | None = None, weather: Weather | None = None) -> None:
        self.cut = cut or Cut()
        self.weather = weather
        self.cut.watch(self._end_streams)
        self._streams: weakref.WeakSet[OpenedStream | AcceptedStream] = weakref.WeakSet()
        self._channels: dict[str, grpc.aio.Channel] = {}  # by address
        self._accept: Accept | None = None
        self._accepting = asyncio.Event()
        self.handler: grpc.GenericRpcHandler = _LinkHandler(self._serve)

    async def connect(self, peer: HostAddress) -> LinkStream:
        """Raises Unavailable."""
        self.cut.check(f"host {peer.host}")
        # A connection of its own for each stream: one that stands may lead to a host that a successor has replaced.
        before = self._channels.pop(peer.address, None)
        channel = self._channels[peer.address] = grpc.aio.insecure_channel(peer.address, options=CHANNEL_OPTIONS)
        if before is not None:
            await before.close()
        await wait_ready(channel, f"host {peer.host}")
        self.cut.check(f"host {peer.host}")
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(CONNECT)()
        stream = OpenedStream(call, self.weather)
        self._streams.add(stream)
        try:
            await wait_begun(call, f"host {peer.host}")
        except _ENDED as error:
            raise _ended(error) from None
        except asyncio.CancelledError:
            stream.close()
            raise
        return stream

    def _end_streams(self) -> None:
        for stream in list(self._streams):
            stream.close()
        self._streams.clear()

    def serve(self, accept: Accept) -> None:
        self._accept = accept
        self._accepting.set()

    async def close(self) -> None:
        """Close the channels; streams on them end."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def _serve(self, _: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        # A successor listens before it can accept; its peer waits for a hello, and not for ever.
        await self._accepting.wait()
        if self._accept is None or not self.cut.connected:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this host does not accept links now")
        stream = AcceptedStream(context, self.weather)
        self._streams.add(stream)
        try:
            await self._accept(stream)
        finally:
            stream.close()


class _LinkHandler(grpc.GenericRpcHandler):
    """Routes the one path of the link."""

    def __init__(self, serve: Callable[..., Awaitable[None]]) -> None:
        self._method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._method if handler_call_details.method == CONNECT else None


class _Stream:
    """What both ends of a stream have."""

    def __init__(self, weather: Weather | None) -> None:
        self._closed = False
        self._weather = weather

    async def _arrived(self, data: object) -> bytes:
        """What was read, when it has come through the weather. Raises Unavailable."""
        if data is grpc.aio.EOF:
            raise Unavailable("the peer ended the stream")
        assert isinstance(data, bytes)
        if self._weather is None or self._weather.fair:
            return data
        data = await self._weather.passes(data, lambda: self._closed)
        if self._closed:
            raise Unavailable("this side closed the stream")
        return data

    def _end(self) -> None:
        self._closed = True
        if self._weather is not None:
            self._weather.look()


class OpenedStream(_Stream):
    """The opener's end."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes], weather: Weather | None) -> None:
        super().__init__(weather)
        self._call = call

    async def send(self, batch: bytes) -> None:
        try:
            await self._call.write(batch)
        except _ENDED as error:
            raise _ended(error) from None
        except asyncio.CancelledError:
            raise _cancelled(self._closed) from None

    async def receive(self) -> bytes:
        try:
            data = await self._call.read()
        except _ENDED as error:
            raise _ended(error) from None
        except asyncio.CancelledError:
            raise _cancelled(self._closed) from None
        return await self._arrived(data)

    def close(self) -> None:
        self._end()
        self._call.cancel()


class AcceptedStream(_Stream):
    """The acceptor's end. gRPC ends the stream when the handler returns; a pending `receive` is woken by cancelling
    it.
    """

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes], weather: Weather | None) -> None:
        super().__init__(weather)
        self._context = context
        self._waiting: dict[asyncio.Task[Any], None] = {}  # tasks inside send or receive, cancelled by close

    async def send(self, batch: bytes) -> None:
        await self._until_closed(self._context.write(batch))

    async def receive(self) -> bytes:
        return await self._arrived(await self._until_closed(self._context.read()))

    async def _until_closed(self, operation: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        if self._closed:
            operation.close()  # type: ignore[attr-defined]
            raise Unavailable("this side closed the stream")
        self._waiting[task] = None
        try:
            return await operation
        except _ENDED as error:
            raise _ended(error) from None
        except asyncio.CancelledError:
            if task not in self._waiting and task.uncancel() == 0:  # by `close`, and by nobody else
                raise Unavailable("this side closed the stream") from None
            raise
        finally:
            self._waiting.pop(task, None)

    def close(self) -> None:
        self._end()
        waiting, self._waiting = self._waiting, {}
        for task in waiting:
            task.cancel()


def _ended(error: BaseException) -> Unavailable:
    if isinstance(error, grpc.aio.AioRpcError):
        return Unavailable(f"the stream ended: {error.details() or error.code().name}")
    return Unavailable(f"the stream ended: {error}")


def _cancelled(closed: bool) -> BaseException:
    """grpc.aio raises CancelledError from a call that we closed ourselves, too."""
    task = asyncio.current_task()
    if closed and (task is None or not task.cancelling()):
        return Unavailable("this side closed the stream")
    return asyncio.CancelledError()
