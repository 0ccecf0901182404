"""The gRPC front of a host: every contract of its node as an ordinary gRPC service, with health checking and
reflection.

    front = Front(node, "/run/user/1000/everram/ab12/h1.sock", handlers=(network.handler,))
    await front.start()
    ...
    await front.stop()                 after `node.stop()`, so that the answers of its drain still leave

A Unix socket in a private folder needs no password. A TCP port, on request and on loopback only, asks for the
cluster's token in the metadata (`authorization: Bearer TOKEN`).

When the host software is upgraded, the successor's front listens before it has a node, at a path of its own; calls wait
there. The host that leaves renames that socket over its own and passes on what still comes on its old connections, so
nobody is refused; the trailing metadata of what was passed on tells everram's own clients to connect anew.

    front = Front(None, path, contracts=CONTRACTS); await front.open(); ...; await front.start(node)    the successor
    await front.hand_to(path_of_successor); await node.stop(); await front.stop()                    the host before
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket  # noqa: TID251 - only to see whether a port is free; gRPC has the listeners
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from everram.runtime.actor import AnyMethod
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, Unimplemented
from everram.runtime.mailbox import Mailbox
from everram.runtime.method import Contract
from everram.runtime.node import Node
from everram.runtime.transport.error_wire import to_proto
from everram.runtime.transport.grpc_common import CHANNEL_OPTIONS, ERROR_METADATA, MESSAGE_OPTIONS, MOVED_METADATA

STOP_GRACE_S = 0.25
"""For calls that are being answered; more would delay the successor."""

LINGER_S, LINGER_LIMIT_S = 0.3, 4.0
"""A front that was handed to a successor stops when nothing was passed on for so long, and what was passed on is
answered; or after so long at most, which is less than the machine gives a host that leaves."""

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
        node: Node | None,
        path: str,
        *,
        tcp_port: int = 0,
        token: str = "",
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        contracts: Sequence[Contract] = (),
    ) -> None:
        """`handlers`: other services on the same socket, such as the link's; `contracts`: of a node that is not there
        yet. Raises InvalidArgument."""
        if tcp_port and not token:
            raise InvalidArgument(
                "a TCP port needs the cluster's token: anyone on this computer could connect otherwise"
            )
        # Bound first and then renamed over `path`, so that there is always somebody to connect to.
        self.own_path = f"{path}.{os.getpid():x}"
        if len(os.fsencode(self.own_path)) > PATH_BYTES:
            limit = PATH_BYTES - (len(self.own_path) - len(path))
            raise InvalidArgument(f"the socket's path {path} is longer than {limit} bytes; use a shorter folder")
        self._contracts = contracts if node is None else node.contracts
        self._succeeds = node is None
        self._desk = _Desk(node)
        self._path = Path(path)
        self._tcp_port = tcp_port
        self._token = token
        self._handlers = handlers
        self._servers: list[grpc.aio.Server] = []
        self._health = health.aio.HealthServicer()
        self._inode = 0  # of the socket while it is ours

    async def open(self) -> None:
        """Listen at `own_path`; calls wait for `start`. Raises FailedPrecondition if that cannot be bound."""
        _remove_left(self._path)
        await self._listen(f"unix:{self.own_path}", ())
        self._inode = Path(self.own_path).stat().st_ino

    async def start(self, node: Node | None = None) -> None:
        """Serve, now or with this `node`. Raises FailedPrecondition if a listener cannot be bound."""
        if not self._servers:
            await self.open()
        self.appear()
        if self._tcp_port:
            if not self._succeeds:
                _check_free(self._tcp_port)
            await self._listen(f"127.0.0.1:{self._tcp_port}", (_TokenCheck(self._token),))
        if node is not None and self._succeeds:
            self._desk.begin(node)
        for contract in self._contracts:
            await self._health.set(contract.service, health_pb2.HealthCheckResponse.SERVING)

    def appear(self) -> None:
        """Take the place of whoever listens at the path, if that has not been given to us."""
        with contextlib.suppress(FileNotFoundError):
            Path(self.own_path).rename(self._path)

    async def hand_to(self, successor_path: str) -> None:
        """The successor's socket takes the place of this one; whatever call still comes here is passed on to it.

        Without a path, or if nobody is there, calls are answered by this host's node until it stops.
        """
        try:
            Path(successor_path).rename(self._path)
        except OSError:
            return
        self._desk.pass_on(f"unix:{self._path}")

    async def _listen(self, address: str, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        # A successor listens on the same TCP port while the host before it still answers.
        server = grpc.aio.server(interceptors=interceptors, options=[*MESSAGE_OPTIONS, ("grpc.so_reuseport", 1)])
        server.add_generic_rpc_handlers((_NodeHandler(self._desk, self._contracts), *self._handlers))
        names = [contract.service for contract in self._contracts]
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(names, server)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {address}: {error}; is it in use?") from error
        self._servers.append(server)
        await server.start()

    async def stop(self) -> None:
        """Refuse new calls, let running ones end within STOP_GRACE_S, take the socket away if it is still ours.

        One that was handed to a successor first passes on what comes for a while.
        """
        await self._desk.passed_on()
        await self._health.enter_graceful_shutdown()
        if self._inode and self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()
        self._inode = 0
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(STOP_GRACE_S)
        await self._desk.close()


def _remove_left(path: Path) -> None:
    """Sockets of processes that were killed before theirs had taken the place of the one at `path`."""
    for left in path.parent.glob(f"{path.name}.*"):
        with contextlib.suppress(ValueError, OSError):
            if not Path(f"/proc/{int(left.suffix[1:], 16)}").exists():
                left.unlink()


def _check_free(port: int) -> None:
    """Whoever listens there, too, would get half of the connections. Raises FailedPrecondition."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FailedPrecondition(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; is it in use?") from error


class _Desk:
    """Where every call of this front goes: to the node, once there is one, or on to the successor."""

    def __init__(self, node: Node | None) -> None:
        self._node = node
        self._waiting: asyncio.Future[None] | None = None  # while calls wait for a node
        self._onward: grpc.aio.Channel | None = None  # to the successor
        self._last_s = 0.0  # when a call was passed on last, or its answer came
        self._passing = 0  # calls that are passed on and not answered

    def begin(self, node: Node) -> None:
        self._node = node
        if self._waiting is not None:
            self._waiting.set_result(None)

    async def mailbox(self, path: str) -> Mailbox:
        while self._node is None:
            if self._waiting is None or self._waiting.done():
                self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiting)
        target = self._node.route(path)
        if target is None:
            raise Unimplemented(f"no actor of this host answers {path}")
        return target[0]

    def pass_on(self, address: str) -> None:
        self._last_s = asyncio.get_running_loop().time()
        self._onward = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)

    def successor(self, context: Context) -> grpc.aio.Channel | None:
        """Whom this call is passed on to; the caller is told that it should go there itself from now on."""
        if self._onward is not None:
            context.set_trailing_metadata((MOVED_METADATA,))
        return self._onward

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """While a call is passed on."""
        self._passing += 1
        try:
            yield
        finally:
            self._passing -= 1
            self._last_s = asyncio.get_running_loop().time()

    async def passed_on(self) -> None:
        """Return when there was nothing to pass on for a while: whoever is busy has been told by then."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LINGER_LIMIT_S
        while self._onward is not None and loop.time() < until_s:
            quiet_s = self._last_s + LINGER_S - loop.time()
            if quiet_s <= 0 and not self._passing:
                return
            await asyncio.sleep(max(quiet_s, LINGER_S / 10))

    async def close(self) -> None:
        if self._onward is not None:
            await self._onward.close()


class _NodeHandler(grpc.GenericRpcHandler):
    """Routes every method of the contracts to its mailbox; bytes in, bytes out."""

    def __init__(self, desk: _Desk, contracts: Sequence[Contract]) -> None:
        self._desk = desk
        self._known = {method.path: method for contract in contracts for method in contract.methods}
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        path = handler_call_details.method
        handler = self._methods.get(path)
        if handler is None:
            method = self._known.get(path)
            if method is None:
                return None  # gRPC answers UNIMPLEMENTED
            handler = _streaming(self._desk, method) if method.streams else _unary(self._desk, method)
            self._methods[path] = handler
        return handler


def _unary(desk: _Desk, method: AnyMethod) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(data: bytes, context: Context) -> bytes:
        successor = desk.successor(context)
        if successor is not None:
            with desk.passing():
                return await _passed_on(successor.unary_unary(method.path), data, context)
        try:
            mailbox = await desk.mailbox(method.path)
            reply = await mailbox.ask(method, _parse(method, data), _remaining_s(context) or NO_DEADLINE_S)
        except EverramError as error:
            await _abort(context, error)
        return cast(bytes, reply.SerializeToString())

    return grpc.unary_unary_rpc_method_handler(call)


def _streaming(desk: _Desk, method: AnyMethod) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(data: bytes, context: Context) -> AsyncIterator[bytes]:
        successor = desk.successor(context)
        if successor is not None:
            onward: Any = successor.unary_stream(method.path)
            replies = onward(data, timeout=_remaining_s(context), wait_for_ready=True)
            try:
                while (item := await replies.read()) is not grpc.aio.EOF:
                    yield item
            except grpc.aio.AioRpcError as error:
                await _abort_likewise(context, error)
            finally:
                replies.cancel()
            return
        try:
            mailbox = await desk.mailbox(method.path)
            async with aclosing(mailbox.stream(method, _parse(method, data), _remaining_s(context))) as items:
                async for reply in items:
                    yield reply.SerializeToString()  # gRPC's flow control holds this until there is room
        except EverramError as error:
            await _abort(context, error)

    return grpc.unary_stream_rpc_method_handler(call)


async def _passed_on(call: Any, data: bytes, context: Context) -> bytes:
    try:
        return cast(bytes, await call(data, timeout=_remaining_s(context), wait_for_ready=True))
    except grpc.aio.AioRpcError as error:
        await _abort_likewise(context, error)


async def _abort_likewise(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """With what the successor said."""
    kept = [(key, value) for key, value in error.trailing_metadata() or () if key == ERROR_METADATA]
    await context.abort(error.code(), error.details() or "", (*kept, MOVED_METADATA))
    raise AssertionError("abort raises")


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
