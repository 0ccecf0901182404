"""The gRPC front of a host: every contract of its node as an ordinary gRPC service, with health checking and
reflection.

    front = Front(node, "/run/user/1000/everram/ab12/h1.sock", handlers=(network.handler,))
    await front.start()
    ...
    await front.stop()                 after `node.stop()`, so that the answers of its drain still leave

A Unix socket in a private folder needs no password. A TCP port, on request and on loopback only, asks for the
cluster's token in the metadata (`authorization: Bearer TOKEN`).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from everram.runtime.actor import AnyMethod
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument
from everram.runtime.mailbox import Mailbox
from everram.runtime.node import Node
from everram.runtime.transport.error_wire import to_proto
from everram.runtime.transport.grpc_common import ERROR_METADATA, MESSAGE_OPTIONS

STOP_GRACE_S = 0.25
"""For calls that are being answered; more would delay the successor."""

NO_DEADLINE_S = 86_400.0
"""A call that names no deadline gets one that nobody notices."""

PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, without the terminating zero."""

STATUS = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[Any, Any]


class Front:
    """The listeners of one host. The services are those the node has when `start` is called."""

    def __init__(
        self,
        node: Node,
        path: str,
        *,
        tcp_port: int = 0,
        token: str = "",
        handlers: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        """`handlers`: other services on the same socket, such as the link's. Raises InvalidArgument."""
        if tcp_port and not token:
            raise InvalidArgument(
                "a TCP port needs the cluster's token: anyone on this computer could connect otherwise"
            )
        # Bound first and then renamed over `path`, so that there is always somebody to connect to.
        self._own = f"{path}.{os.getpid():x}"
        if len(os.fsencode(self._own)) > PATH_BYTES:
            limit = PATH_BYTES - (len(self._own) - len(path))
            raise InvalidArgument(f"the socket's path {path} is longer than {limit} bytes; use a shorter folder")
        self._node = node
        self._path = Path(path)
        self._tcp_port = tcp_port
        self._token = token
        self._handlers = handlers
        self._servers: list[grpc.aio.Server] = []
        self._health = health.aio.HealthServicer()
        self._inode = 0  # of the socket while it is ours

    async def start(self) -> None:
        """Raises FailedPrecondition if a listener cannot be bound."""
        names = [contract.service for contract in self._node.contracts]
        for name in names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        await self._listen(f"unix:{self._own}", names, ())
        Path(self._own).rename(self._path)
        self._inode = self._path.stat().st_ino
        if self._tcp_port:
            await self._listen(f"127.0.0.1:{self._tcp_port}", names, (_TokenCheck(self._token),))

    async def _listen(
        self, address: str, names: Sequence[str], interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        server = grpc.aio.server(interceptors=interceptors, options=[*MESSAGE_OPTIONS, ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_NodeHandler(self._node), *self._handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(names, server)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {address}: {error}; is it in use?") from error
        self._servers.append(server)
        await server.start()

    async def stop(self) -> None:
        """Refuse new calls, let running ones end within STOP_GRACE_S, take the socket away if it is still ours."""
        await self._health.enter_graceful_shutdown()
        if self._inode and self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()
        self._inode = 0
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(STOP_GRACE_S)


class _NodeHandler(grpc.GenericRpcHandler):
    """Routes every method of the node's contracts to its mailbox; bytes in, bytes out."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = handler_call_details.method
        known = self._methods.get(path)
        if known is None:
            target = self._node.route(path)
            if target is None:
                return None  # gRPC answers UNIMPLEMENTED
            mailbox, method = target
            known = self._methods[path] = _streaming(mailbox, method) if method.streams else _unary(mailbox, method)
        return known


def _unary(mailbox: Mailbox, method: AnyMethod) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(data: bytes, context: Context) -> bytes:
        try:
            reply = await mailbox.ask(method, _parse(method, data), _remaining_s(context) or NO_DEADLINE_S)
        except EverramError as error:
            await _abort(context, error)
        return cast(bytes, reply.SerializeToString())

    return grpc.unary_unary_rpc_method_handler(call)


def _streaming(mailbox: Mailbox, method: AnyMethod) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(data: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async with aclosing(mailbox.stream(method, _parse(method, data), _remaining_s(context))) as replies:
                async for reply in replies:
                    yield reply.SerializeToString()  # gRPC's flow control holds this until there is room
        except EverramError as error:
            await _abort(context, error)

    return grpc.unary_stream_rpc_method_handler(call)


def _parse(method: AnyMethod, data: bytes) -> Message:
    try:
        return cast(Message, method.request.FromString(data))
    except DecodeError:
        raise InvalidArgument(
            f"the request of {method.path} is malformed: it is no {method.request.__name__}"
        ) from None


def _remaining_s(context: Context) -> float | None:
    return cast("float | None", context.time_remaining())


async def _abort(context: Context, error: EverramError) -> NoReturn:
    trailing = ((ERROR_METADATA, to_proto(error).SerializeToString()),)
    await context.abort(STATUS[error.code], error.message, trailing)
    raise AssertionError("abort raises")


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses every call without the cluster's token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        for key, value in handler_call_details.invocation_metadata or ():
            given = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(given, self._expected):
                return await continuation(handler_call_details)
        return _REFUSED


async def _refuse(_: bytes, context: Context) -> bytes:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "the cluster's token is missing or wrong: send it as metadata `authorization: Bearer TOKEN`",
    )
    raise AssertionError("abort raises")


_REFUSED: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_refuse)
