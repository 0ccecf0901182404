"""Between etcd's messages and coordination's plain values, both ways: for the client, the server and SQLite.

Functions come in pairs, `x_to_wire` and `x_from_wire`; what our subset leaves out is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from everram.runtime.contracts import etcd_pb2 as etcd
from everram.runtime.contracts import mvcc_pb2 as mvcc
from everram.runtime.coordination.api import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Put,
    Range,
    Relation,
    Target,
    TxnResult,
)
from everram.runtime.coordination.refusals import TooLarge
from everram.runtime.coordination.store import (
    OPERATIONS_MAX,
    DeleteResult,
    Delta,
    Operation,
    PutResult,
    RangeResult,
    TxnOutcome,
)
from everram.runtime.errors import InvalidArgument, Unimplemented

_OPERANDS = {
    Target.VERSION: "version",
    Target.CREATE: "create_revision",
    Target.MOD: "mod_revision",
    Target.VALUE: "value",
    Target.LEASE: "lease",
}
_SORT_KEYS = {
    etcd.RangeRequest.KEY: lambda kv: kv.key,
    etcd.RangeRequest.VERSION: lambda kv: kv.version,
    etcd.RangeRequest.CREATE: lambda kv: kv.create_revision,
    etcd.RangeRequest.MOD: lambda kv: kv.mod_revision,
    etcd.RangeRequest.VALUE: lambda kv: kv.value,
}


# -- pairs and events


def pair_to_wire(kv: KeyValue, *, with_value: bool = True) -> mvcc.KeyValue:
    return mvcc.KeyValue(
        key=kv.key,
        value=kv.value if with_value else b"",
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def pair_from_wire(kv: mvcc.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def delta_to_wire(delta: Delta, revision: int, *, with_before: bool) -> mvcc.Event:
    """A deletion's `kv` has only the key and the revision."""
    event = mvcc.Event()
    if delta.after is None:
        event.type = mvcc.Event.DELETE
        event.kv.key, event.kv.mod_revision = delta.key, revision
    else:
        event.kv.CopyFrom(pair_to_wire(delta.after))
    if with_before and delta.before is not None:
        event.prev_kv.CopyFrom(pair_to_wire(delta.before))
    return event


def delta_from_wire(event: mvcc.Event) -> Delta:
    before = pair_from_wire(event.prev_kv) if event.HasField("prev_kv") else None
    return Delta(event.kv.key, before, None if event.type == mvcc.Event.DELETE else pair_from_wire(event.kv))


def event_from_wire(event: mvcc.Event) -> Event:
    return Event(event.type == mvcc.Event.DELETE, pair_from_wire(event.kv))


# -- requests


def range_to_wire(op: Range) -> etcd.RangeRequest:
    return etcd.RangeRequest(key=op.key, range_end=op.range_end, limit=op.limit, revision=op.revision)


def range_from_wire(request: etcd.RangeRequest) -> Range:
    """Without the limit if the answer has to be sorted or filtered first (`range_result_to_wire`)."""
    limit = 0 if _is_shaped(request) else max(0, request.limit)
    return Range(request.key, request.range_end, limit, max(0, request.revision))


def put_to_wire(op: Put) -> etcd.PutRequest:
    return etcd.PutRequest(key=op.key, value=op.value, lease=op.lease)


def put_from_wire(request: etcd.PutRequest) -> Put:
    if request.ignore_value or request.ignore_lease:
        raise Unimplemented("the embedded coordination server does not keep a value or lease on put: send both")
    return Put(request.key, request.value, request.lease)


def delete_to_wire(op: Delete) -> etcd.DeleteRangeRequest:
    return etcd.DeleteRangeRequest(key=op.key, range_end=op.range_end)


def delete_from_wire(request: etcd.DeleteRangeRequest) -> Delete:
    return Delete(request.key, request.range_end)


def compare_to_wire(compare: Compare) -> etcd.Compare:
    message = etcd.Compare(
        result=compare.relation.name,
        target=compare.target.name,
        key=compare.key,
        range_end=compare.range_end,
    )
    setattr(message, _OPERANDS[compare.target], compare.operand)
    return message


def compare_from_wire(message: etcd.Compare) -> Compare:
    """Raises InvalidArgument for a target or relation that we do not know."""
    try:
        target, relation = Target(message.target), Relation(message.result)
    except ValueError as error:
        raise InvalidArgument(f"a comparison that coordination does not know: {error}") from error
    operand = getattr(message, _OPERANDS[target])
    return Compare(message.key, target, relation, operand, message.range_end)


def operation_to_wire(op: Operation) -> etcd.RequestOp:
    if isinstance(op, Put):
        return etcd.RequestOp(request_put=put_to_wire(op))
    if isinstance(op, Delete):
        return etcd.RequestOp(request_delete_range=delete_to_wire(op))
    return etcd.RequestOp(request_range=range_to_wire(op))


def operation_from_wire(message: etcd.RequestOp) -> Operation:
    kind = message.WhichOneof("request")
    if kind == "request_put":
        return put_from_wire(message.request_put)
    if kind == "request_delete_range":
        return delete_from_wire(message.request_delete_range)
    if kind == "request_range":
        return range_from_wire(message.request_range)
    if kind == "request_txn":
        raise Unimplemented("the embedded coordination server has no transactions within transactions")
    raise InvalidArgument("an operation of the transaction is empty")


def txn_to_wire(
    compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]
) -> etcd.TxnRequest:
    return etcd.TxnRequest(
        compare=[compare_to_wire(c) for c in compare],
        success=[operation_to_wire(op) for op in success],
        failure=[operation_to_wire(op) for op in failure],
    )


def txn_from_wire(request: etcd.TxnRequest) -> tuple[list[Compare], list[Operation], list[Operation]]:
    if max(len(request.compare), len(request.success), len(request.failure)) > OPERATIONS_MAX:
        raise TooLarge(f"a transaction has at most {OPERATIONS_MAX} operations: split it")
    return (
        [compare_from_wire(c) for c in request.compare],
        [operation_from_wire(op) for op in request.success],
        [operation_from_wire(op) for op in request.failure],
    )


# -- answers


def _is_shaped(request: etcd.RangeRequest) -> bool:
    by_mod = request.min_mod_revision, request.max_mod_revision
    by_creation = request.min_create_revision, request.max_create_revision
    by_key = request.sort_target == etcd.RangeRequest.KEY and request.sort_order != etcd.RangeRequest.DESCEND
    return any((*by_mod, *by_creation)) or not by_key


def range_result_to_wire(result: RangeResult, request: etcd.RangeRequest) -> etcd.RangeResponse:
    """Sorted, filtered, limited and cut to keys as `request` says."""
    pairs = list(result.pairs)
    if _is_shaped(request):
        pairs = [kv for kv in pairs if _passes(kv, request)]
        # etcd sorts ascending when a target other than the key is named without an order.
        descending = request.sort_order == etcd.RangeRequest.DESCEND
        pairs.sort(key=_SORT_KEYS.get(request.sort_target, _SORT_KEYS[etcd.RangeRequest.KEY]), reverse=descending)
    limit = request.limit if request.limit > 0 else len(pairs)
    more = len(pairs) > limit or (not _is_shaped(request) and result.count > len(pairs))
    if request.count_only:
        return etcd.RangeResponse(count=result.count)
    kvs = [pair_to_wire(kv, with_value=not request.keys_only) for kv in pairs[:limit]]
    return etcd.RangeResponse(kvs=kvs, more=more, count=result.count)


def _passes(kv: KeyValue, request: etcd.RangeRequest) -> bool:
    return (
        kv.mod_revision >= request.min_mod_revision
        and (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and kv.create_revision >= request.min_create_revision
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
    )


def put_result_to_wire(result: PutResult, request: etcd.PutRequest) -> etcd.PutResponse:
    if request.prev_kv and result.before is not None:
        return etcd.PutResponse(prev_kv=pair_to_wire(result.before))
    return etcd.PutResponse()


def delete_result_to_wire(result: DeleteResult, request: etcd.DeleteRangeRequest) -> etcd.DeleteRangeResponse:
    shown = result.deleted if request.prev_kv else ()
    return etcd.DeleteRangeResponse(deleted=len(result.deleted), prev_kvs=[pair_to_wire(kv) for kv in shown])


def txn_outcome_to_wire(outcome: TxnOutcome, request: etcd.TxnRequest, header: etcd.ResponseHeader) -> etcd.TxnResponse:
    """Every response in it carries the transaction's header, as etcd's do."""
    asked = request.success if outcome.succeeded else request.failure
    responses = []
    for op, result in zip(asked, outcome.results, strict=True):
        response = etcd.ResponseOp()
        if isinstance(result, RangeResult):
            response.response_range.CopyFrom(range_result_to_wire(result, op.request_range))
            response.response_range.header.CopyFrom(header)
        elif isinstance(result, PutResult):
            response.response_put.CopyFrom(put_result_to_wire(result, op.request_put))
            response.response_put.header.CopyFrom(header)
        else:
            response.response_delete_range.CopyFrom(delete_result_to_wire(result, op.request_delete_range))
            response.response_delete_range.header.CopyFrom(header)
        responses.append(response)
    return etcd.TxnResponse(header=header, succeeded=outcome.succeeded, responses=responses)


def txn_result_from_wire(response: etcd.TxnResponse) -> TxnResult:
    ranges = tuple(tuple(pair_from_wire(kv) for kv in r.response_range.kvs) for r in response.responses)
    return TxnResult(response.succeeded, response.header.revision, ranges)
