"""The gRPC services of the embedded coordination server: those of etcd.proto, over an Embedded.

`handlers(embedded, ...)` gives what `grpc.aio.Server.add_generic_rpc_handlers` takes. Nothing is decided here: messages
become plain values (`everram.runtime.coordination.wire`), the Embedded answers, and refusals leave in etcd's own words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from everram.runtime.contracts import etcd_pb2 as etcd
from everram.runtime.coordination import wire
from everram.runtime.coordination.api import Range
from everram.runtime.coordination.embedded import Embedded
from everram.runtime.coordination.refusals import Compacted, LeaseGone, Refusal, to_etcd
from everram.runtime.errors import EverramError, InvalidArgument, Unimplemented

SERVICES = tuple(service.full_name for service in etcd.DESCRIPTOR.services_by_name.values())
API_VERSION = "3.4.0"
"""The etcd whose API this is a subset of; etcd's tools ask for it."""
WATCHES_MAX = 1000
"""On one stream; a host has a handful."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
Trace = Callable[[str, Message], None]


class Services:
    """Answers every call of etcd.proto. `addresses` is what MemberList says; `trace` is told each request."""

    def __init__(self, embedded: Embedded, addresses: Sequence[str], trace: Trace | None) -> None:
        self._embedded = embedded
        self._addresses = tuple(addresses)
        self._trace = trace
        self._id = embedded.store.cluster_id

    def _header(self, revision: int = 0) -> etcd.ResponseHeader:
        revision = revision or self._embedded.store.committed_revision
        return etcd.ResponseHeader(cluster_id=self._id, member_id=self._id, revision=revision, raft_term=1)

    # -- KV

    async def range(self, request: etcd.RangeRequest) -> etcd.RangeResponse:
        result = await self._embedded.range(wire.range_from_wire(request))
        response = wire.range_result_to_wire(result, request)
        response.header.CopyFrom(self._header(result.revision))
        return response

    async def put(self, request: etcd.PutRequest) -> etcd.PutResponse:
        asked = etcd.TxnRequest(success=[etcd.RequestOp(request_put=request)])
        return (await self.txn(asked)).responses[0].response_put

    async def delete_range(self, request: etcd.DeleteRangeRequest) -> etcd.DeleteRangeResponse:
        asked = etcd.TxnRequest(success=[etcd.RequestOp(request_delete_range=request)])
        return (await self.txn(asked)).responses[0].response_delete_range

    async def txn(self, request: etcd.TxnRequest) -> etcd.TxnResponse:
        compare, success, failure = wire.txn_from_wire(request)
        outcome = await self._embedded.txn(compare, success, failure)
        return wire.txn_outcome_to_wire(outcome, request, self._header(outcome.revision))

    async def compact(self, request: etcd.CompactionRequest) -> etcd.CompactionResponse:
        await self._embedded.compact(request.revision)
        return etcd.CompactionResponse(header=self._header())

    # -- Lease

    async def lease_grant(self, request: etcd.LeaseGrantRequest) -> etcd.LeaseGrantResponse:
        granted = await self._embedded.grant(request.ttl_ms or request.TTL * 1000, request.ID)
        return etcd.LeaseGrantResponse(
            header=self._header(), ID=granted.lease, TTL=_seconds(granted.ttl_ms), ttl_ms=granted.ttl_ms
        )

    async def lease_revoke(self, request: etcd.LeaseRevokeRequest) -> etcd.LeaseRevokeResponse:
        await self._embedded.revoke(request.ID)
        return etcd.LeaseRevokeResponse(header=self._header())

    async def lease_time_to_live(self, request: etcd.LeaseTimeToLiveRequest) -> etcd.LeaseTimeToLiveResponse:
        try:
            held, remaining_ms = self._embedded.remaining(request.ID)
        except LeaseGone:
            return etcd.LeaseTimeToLiveResponse(header=self._header(), ID=request.ID, TTL=-1)
        return etcd.LeaseTimeToLiveResponse(
            header=self._header(),
            ID=held.lease,
            TTL=_seconds(remaining_ms),
            grantedTTL=_seconds(held.ttl_ms),
            keys=sorted(held.keys) if request.keys else (),
        )

    async def lease_leases(self, request: etcd.LeaseLeasesRequest) -> etcd.LeaseLeasesResponse:
        leases = [etcd.LeaseStatus(ID=lease) for lease in sorted(self._embedded.store.leases)]
        return etcd.LeaseLeasesResponse(header=self._header(), leases=leases)

    async def lease_keep_alive(self, _: object, context: Context) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            response = etcd.LeaseKeepAliveResponse(header=self._header(), ID=request.ID)
            try:
                renewed = self._embedded.keepalive(request.ID)
                response.TTL, response.ttl_ms = _seconds(renewed.ttl_ms), renewed.ttl_ms
            except LeaseGone:
                pass  # a TTL of 0 says so
            if self._trace:
                self._trace("LeaseKeepAlive", response)
            await context.write(response)

    # -- Watch

    async def watch(self, _: object, context: Context) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                stream = WatchStream(self._embedded, self._header, context, tasks)
                while (request := await context.read()) is not grpc.aio.EOF:
                    if self._trace:
                        self._trace("Watch", request)
                    await stream.handle(request)
                stream.end()
        except* EverramError as refused:
            await _abort(context, refused.exceptions[0])

    # -- Cluster and Maintenance

    async def member_list(self, request: etcd.MemberListRequest) -> etcd.MemberListResponse:
        member = etcd.Member(ID=self._id, name="everram", clientURLs=self._addresses)
        return etcd.MemberListResponse(header=self._header(), members=[member])

    async def status(self, request: etcd.StatusRequest) -> etcd.StatusResponse:
        revision = self._embedded.store.committed_revision
        size_bytes = self._embedded.store.size_bytes
        return etcd.StatusResponse(
            header=self._header(),
            version=API_VERSION,
            dbSize=size_bytes,
            dbSizeInUse=size_bytes,
            leader=self._id,
            raftIndex=revision,
            raftAppliedIndex=revision,
            raftTerm=1,
        )

    # -- how gRPC finds them

    def answering(
        self, name: str, answer: Callable[[RequestT], Awaitable[ReplyT]]
    ) -> Callable[[RequestT, Context], Awaitable[ReplyT]]:
        """A unary handler that sends refusals as gRPC status codes."""

        async def handle(request: RequestT, context: Context) -> ReplyT:
            if self._trace:
                self._trace(name, request)
            try:
                return await answer(request)
            except EverramError as error:
                await _abort(context, error)
                raise

        return handle


class WatchStream:
    """The watches of one gRPC stream; `tasks` owns one task for each."""

    def __init__(
        self,
        embedded: Embedded,
        header: Callable[[int], etcd.ResponseHeader],
        context: Context,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._embedded = embedded
        self._header = header
        self._context = context
        self._tasks = tasks
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._next_id = 0
        self._writing = asyncio.Lock()

    async def handle(self, request: etcd.WatchRequest) -> None:
        """Raises InvalidArgument, Unimplemented: then the stream ends."""
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            await self._create(request.create_request)
        elif kind == "cancel_request":
            await self._cancel(request.cancel_request.watch_id)
        else:
            raise Unimplemented("the embedded coordination server answers no progress requests")

    async def _create(self, create: etcd.WatchCreateRequest) -> None:
        watch_id = create.watch_id or self._next_id
        if watch_id in self._watches:
            raise InvalidArgument(f"this stream has a watch {watch_id} already: choose another number, or 0")
        if len(self._watches) >= WATCHES_MAX:
            raise InvalidArgument(f"a stream has at most {WATCHES_MAX} watches: open another")
        self._next_id = max(self._next_id, watch_id) + 1
        reached = self._embedded.store.committed_revision
        task = self._tasks.create_task(self._follow(watch_id, create, reached))
        self._watches[watch_id] = task

    async def _follow(self, watch_id: int, create: etcd.WatchCreateRequest, reached: int) -> None:
        await self._send(etcd.WatchResponse(header=self._header(reached), watch_id=watch_id, created=True))
        try:
            start = create.start_revision if create.start_revision > 0 else reached + 1
            async for revision, changes in self._embedded.changes(Range(create.key, create.range_end), start):
                events = [
                    wire.delta_to_wire(delta, change.revision, with_before=create.prev_kv)
                    for change in changes
                    for delta in change.deltas
                    if (_NODELETE if delta.after is None else _NOPUT) not in create.filters
                ]
                if events:
                    await self._send(
                        etcd.WatchResponse(header=self._header(revision), watch_id=watch_id, events=events)
                    )
        except Refusal as refused:
            gone = self._embedded.store.compacted if isinstance(refused, Compacted) else 0
            await self._send(self._canceled(watch_id, to_etcd(refused)[1], gone))
            del self._watches[watch_id]

    async def _cancel(self, watch_id: int) -> None:
        task = self._watches.pop(watch_id, None)
        if task is not None:
            # Only between two messages: a write that is cut off would break the whole stream.
            async with self._writing:
                task.cancel()
            await self._send(self._canceled(watch_id, "", 0))

    def end(self) -> None:
        for task in self._watches.values():
            task.cancel()

    def _canceled(self, watch_id: int, reason: str, compact_revision: int) -> etcd.WatchResponse:
        return etcd.WatchResponse(
            header=self._header(0),
            watch_id=watch_id,
            canceled=True,
            cancel_reason=reason,
            compact_revision=compact_revision,
        )

    async def _send(self, response: etcd.WatchResponse) -> None:
        async with self._writing:
            await self._context.write(response)


_NOPUT = etcd.WatchCreateRequest.NOPUT
_NODELETE = etcd.WatchCreateRequest.NODELETE


def handlers(services: Services) -> list[grpc.GenericRpcHandler]:
    """Every call of etcd.proto, by its gRPC path."""
    unary = {
        "KV": ("Range", "Put", "DeleteRange", "Txn", "Compact"),
        "Lease": ("LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"),
        "Cluster": ("MemberList",),
        "Maintenance": ("Status",),
    }
    streams = {"Lease": {"LeaseKeepAlive": services.lease_keep_alive}, "Watch": {"Watch": services.watch}}
    found: list[grpc.GenericRpcHandler] = []
    for service, descriptor in etcd.DESCRIPTOR.services_by_name.items():
        methods = {}
        for name in unary.get(service, ()):
            answer = services.answering(name, getattr(services, _snake(name)))
            request, reply = _types(descriptor.methods_by_name[name])
            methods[name] = grpc.unary_unary_rpc_method_handler(answer, request.FromString, reply.SerializeToString)
        for name, stream in streams.get(service, {}).items():
            request, reply = _types(descriptor.methods_by_name[name])
            methods[name] = grpc.stream_stream_rpc_method_handler(stream, request.FromString, reply.SerializeToString)
        found.append(grpc.method_handlers_generic_handler(descriptor.full_name, methods))
    return found


def _types(method: Any) -> tuple[Any, Any]:
    return getattr(etcd, method.input_type.name), getattr(etcd, method.output_type.name)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _seconds(milliseconds: int) -> int:
    """Rounded up: etcd's clients must not think a lease over that is not."""
    return -(-milliseconds // 1000)


async def _abort(context: Context, error: BaseException) -> None:
    code, message = to_etcd(error) if isinstance(error, EverramError) else (13, str(error))
    await context.abort(_CODES[code], message)
