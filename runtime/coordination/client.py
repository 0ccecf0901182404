"""Coordination of any etcd v3 server, embedded or real: `api.Coordination` over one gRPC channel.

    coordination = CoordinationClient("unix:/run/.../coordination.sock")     # or "HOST:PORT"
    revision = await coordination.put(Put(b"key", b"value"))

It reconnects by itself. A call waits for the connection within its deadline; once it has been sent, a lost answer to a
write is *unknown* and never sent again, while reads are. Renewals of leases share one stream that stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from everram.runtime.contracts import etcd_pb2 as etcd
from everram.runtime.coordination import wire
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, TxnResult, WatchBatch
from everram.runtime.coordination.refusals import Compacted, LeaseGone, from_etcd
from everram.runtime.errors import DeadlineExceeded, EverramError, FailedPrecondition, Unavailable
from everram.runtime.transport.grpc_common import wait_begun

CALL_TIMEOUT_S = 2.0
"""A restart of the embedded server takes 0.3 s, an election of etcd about one."""
KEEPALIVE_TIMEOUT_S = 0.5
"""Several renewals must fit into a lease's TTL even if one is lost."""
RETRY_S = 0.05
"""Between attempts of a read or a watch on a connection that stands but does not answer."""
RECONNECT_MS = (50, 200)
"""First and greatest pause between attempts to connect; gRPC's own would take seconds after a restart."""
ATTEMPT_MS = 500
"""That one attempt may take: a server on a busy computer needs more than gRPC's least 100 ms to greet."""
PING_MS, PING_TIMEOUT_MS = 10_000, 3_000
"""On TCP: notices a peer that vanished without a word while a watch waits. etcd refuses pings below 5 s."""

ReplyT = TypeVar("ReplyT", bound=Message)
_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
"""Codes that gRPC itself may give: they say nothing about what the server did."""


class CoordinationClient:
    """One client of one server address; make it inside a running event loop, and `close` it.

    `timeout_s` is the deadline of each call, reconnecting included; `token` is sent to servers that ask for one.
    """

    def __init__(self, address: str, *, timeout_s: float = CALL_TIMEOUT_S, token: str = "") -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.aio.insecure_channel(address, options=_options(address))
        self._keepalive_stream: Any = None
        self._keepalive_turn = asyncio.Lock()
        self._closed = False

    # -- keys

    async def range(self, op: Range) -> tuple[int, list[KeyValue]]:
        response = await self._call("KV/Range", wire.range_to_wire(op), etcd.RangeResponse)
        return response.header.revision, [wire.pair_from_wire(kv) for kv in response.kvs]

    async def put(self, op: Put) -> int:
        response = await self._call("KV/Put", wire.put_to_wire(op), etcd.PutResponse, writes=True)
        return response.header.revision

    async def delete(self, op: Delete) -> int:
        response = await self._call("KV/DeleteRange", wire.delete_to_wire(op), etcd.DeleteRangeResponse, writes=True)
        return response.deleted

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Range],
        failure: Sequence[Put | Delete | Range] = (),
    ) -> TxnResult:
        writes = not all(isinstance(op, Range) for op in (*success, *failure))
        request = wire.txn_to_wire(compare, success, failure)
        return wire.txn_result_from_wire(await self._call("KV/Txn", request, etcd.TxnResponse, writes=writes))

    async def compact(self, revision: int) -> None:
        """Let the server forget what keys held before `revision`; watches from before it are refused."""
        request = etcd.CompactionRequest(revision=revision)
        await self._call("KV/Compact", request, etcd.CompactionResponse, writes=True)

    # -- leases

    async def lease_grant(self, ttl_s: float) -> tuple[int, float]:
        """etcd grants whole seconds and has a least TTL of its own, so the granted TTL may be longer."""
        ttl_ms = round(ttl_s * 1000)
        request = etcd.LeaseGrantRequest(TTL=-(-ttl_ms // 1000), ttl_ms=ttl_ms)
        response = await self._call("Lease/LeaseGrant", request, etcd.LeaseGrantResponse, writes=True)
        return response.ID, _ttl_s(response)

    async def lease_revoke(self, lease: int) -> None:
        request = etcd.LeaseRevokeRequest(ID=lease)
        await self._call("Lease/LeaseRevoke", request, etcd.LeaseRevokeResponse, writes=True)

    async def lease_keepalive(self, lease: int) -> float:
        """Raises LeaseGone (a NotFound), or Unavailable after KEEPALIVE_TIMEOUT_S: the lease may have been renewed."""
        try:
            async with asyncio.timeout(KEEPALIVE_TIMEOUT_S), self._keepalive_turn:
                response = await self._renew(lease)
        except TimeoutError:
            raise Unavailable(f"coordination at {self.address} did not renew in time", unknown=True) from None
        if response.TTL <= 0 and response.ttl_ms <= 0:
            raise LeaseGone
        return _ttl_s(response)

    async def _renew(self, lease: int) -> etcd.LeaseKeepAliveResponse:
        """Over the kept stream, or a new one if it has broken since. Only one renewal is on it at a time."""
        while True:
            await self._connected()
            stream, is_new = self._keepalive_stream, self._keepalive_stream is None
            if is_new:
                stream = self._stream("Lease/LeaseKeepAlive", etcd.LeaseKeepAliveResponse)
            self._keepalive_stream = None  # put back only after a whole exchange
            try:
                if is_new:
                    await wait_begun(stream, self.address)
                await stream.write(etcd.LeaseKeepAliveRequest(ID=lease))
                response = await stream.read()
                if response is not grpc.aio.EOF and lease == response.ID:
                    self._keepalive_stream = stream
                    return _as(etcd.LeaseKeepAliveResponse, response)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(RETRY_S)  # renewing twice does no harm
            except asyncio.CancelledError:
                self._check_open()
                raise
            finally:
                if self._keepalive_stream is None:
                    stream.cancel()

    # -- watches

    async def watch(self, op: Range, start_revision: int = 0) -> AsyncIterator[WatchBatch]:
        following = start_revision
        while True:
            await self._connected()
            stream = self._stream("Watch/Watch", etcd.WatchResponse)
            try:
                await wait_begun(stream, self.address)
                create = etcd.WatchCreateRequest(key=op.key, range_end=op.range_end, start_revision=following)
                await stream.write(etcd.WatchRequest(create_request=create))
                while (response := await stream.read()) is not grpc.aio.EOF:
                    _check(response)
                    if response.created and not following:
                        following = response.header.revision + 1
                    events = [e for e in map(wire.event_from_wire, response.events) if e.kv.mod_revision >= following]
                    if events:
                        following = events[-1].kv.mod_revision + 1
                        yield WatchBatch(events[-1].kv.mod_revision, tuple(events))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _LOST:
                    raise _explained(error, unknown=False) from error
            except asyncio.CancelledError:
                self._check_open()
                raise
            finally:
                stream.cancel()
            await asyncio.sleep(RETRY_S)

    # -- the channel

    async def close(self) -> None:
        """Calls and watches in flight end with Unavailable."""
        self._closed = True
        await self._channel.close()

    async def _connected(self) -> None:
        """Wait until the channel stands, so that what is not sent is known not to be. Raises Unavailable if closed."""
        while not self._closed:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            await self._channel.wait_for_state_change(state)
        self._check_open()

    def _check_open(self, *, unknown: bool = False) -> None:
        """Raises Unavailable if the client was closed: gRPC then cancels its calls, and nobody cancelled us."""
        task = asyncio.current_task()
        if self._closed and not (task and task.cancelling()):
            raise Unavailable("this client of coordination is closed: make a new one", unknown=unknown)

    async def _call(self, method: str, request: Message, reply: type[ReplyT], *, writes: bool = False) -> ReplyT:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        call = self._channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=_serialize,
            response_deserializer=reply.FromString,
        )
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._connected()
            except TimeoutError:
                raise Unavailable(f"no coordination server answers at {self.address}: is it running?") from None
            left_s = deadline - loop.time()
            try:
                return _as(reply, await call(request, timeout=left_s, metadata=self._metadata))
            except grpc.aio.AioRpcError as error:
                again = not writes and error.code() is grpc.StatusCode.UNAVAILABLE
                if not again or loop.time() + RETRY_S >= deadline:
                    raise _explained(error, unknown=writes) from error
            except asyncio.CancelledError:
                self._check_open(unknown=writes)
                raise
            await asyncio.sleep(RETRY_S)

    def _stream(self, method: str, reply: type[Message]) -> Any:
        call = self._channel.stream_stream(
            f"/etcdserverpb.{method}",
            request_serializer=_serialize,
            response_deserializer=reply.FromString,
        )
        return call(metadata=self._metadata)


def _options(address: str) -> list[tuple[str, int]]:
    initial, greatest = RECONNECT_MS
    options = [
        ("grpc.initial_reconnect_backoff_ms", initial),
        ("grpc.min_reconnect_backoff_ms", ATTEMPT_MS),
        ("grpc.max_reconnect_backoff_ms", greatest),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
    ]
    if not address.startswith("unix:"):
        options += [("grpc.keepalive_time_ms", PING_MS), ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS)]
    return options


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _as(kind: type[ReplyT], message: Any) -> ReplyT:
    assert isinstance(message, kind)
    return message


def _ttl_s(response: etcd.LeaseGrantResponse | etcd.LeaseKeepAliveResponse) -> float:
    return response.ttl_ms / 1000 if response.ttl_ms else float(response.TTL)


def _check(response: etcd.WatchResponse) -> None:
    """Raises what a server says when it ends a watch."""
    if response.compact_revision:
        raise Compacted
    if response.canceled:
        raise from_etcd(FailedPrecondition.code, response.cancel_reason or "coordination ended the watch")


def _explained(error: grpc.aio.AioRpcError, *, unknown: bool) -> EverramError:
    """`unknown` counts only for codes with which the server did not itself answer."""
    code, details = error.code(), error.details() or ""
    lost = code in _LOST
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("coordination did not answer in time: it may be stopped or overloaded", unknown=unknown)
    if lost and not details.startswith("etcdserver:"):
        return Unavailable(f"the connection to coordination broke ({details})", unknown=unknown)
    return from_etcd(code.value[0], details, unknown=unknown and lost)
