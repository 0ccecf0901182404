"""What every use of grpc.aio here shares: options, readiness, and gRPC's statuses as our errors.

Foreign exceptions are translated at this edge only. gRPC does not say whether a request left before its connection
broke, so requests are sent on channels that are ready: a channel that is not ready has sent nothing (*failed*), and
what breaks afterwards is *unknown*.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from everram.runtime.contracts import common_pb2
from everram.runtime.errors import DeadlineExceeded, EverramError, Unavailable, of_code
from everram.runtime.transport.error_wire import from_proto
from everram.runtime.transport.link import MAX_BATCH_BYTES

ERROR_METADATA = "everram-error-bin"
"""Trailing metadata that holds the serialised `everram.v1.Error`."""

MOVED_METADATA = ("everram-moved", "1")
"""Trailing metadata of an answer that a leaving host got from its successor: who asked should connect anew."""

MESSAGE_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_BATCH_BYTES),
    ("grpc.max_send_message_length", MAX_BATCH_BYTES),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *MESSAGE_OPTIONS,
    # gRPC's own back-off takes seconds after a restart; this finds a new host within 0.2 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # What one attempt may take, whatever its name says: a host on a busy computer needs more than gRPC's least 100 ms
    # to greet, and would be taken for one that hangs.
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
    # A channel that is made to connect anew must not find the old connection again.
    ("grpc.use_local_subchannel_pool", 1),
]

_NEVER_RAN = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
"""Statuses without our metadata that mean that no handler ran; after any other one may have."""


async def wait_ready(channel: grpc.aio.Channel, whom: str) -> None:
    """Return when the channel is connected. Raises Unavailable (failed) when an attempt to connect has failed."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise Unavailable(f"{whom} cannot be reached: it is not running, or it hangs")
        if state is grpc.ChannelConnectivity.SHUTDOWN:
            raise Unavailable(f"the channel to {whom} was closed")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def wait_begun(call: grpc.aio.StreamStreamCall[Any, Any], whom: str) -> None:
    """Return when the call is on its way. Raises AioRpcError, or Unavailable (failed) if it was cancelled before.

    gRPC itself never ends a `write` to a call that is cancelled before its metadata were sent, and closing a channel
    cancels its calls.
    """
    begun = asyncio.ensure_future(call.wait_for_connection())

    def ended(_: Any) -> None:
        if call.cancelled():
            begun.cancel()

    call.add_done_callback(ended)
    try:
        await begun
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable(f"the channel to {whom} was closed") from None


def from_rpc_error(error: grpc.aio.AioRpcError, path: str) -> EverramError:
    """The error that the other side raised, or what gRPC's own status means."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA and isinstance(value, bytes):
            return from_proto(common_pb2.Error.FromString(value))
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{path} was not answered in time and may still take effect", unknown=True)
    if code is grpc.StatusCode.CANCELLED:  # not by us: its server ended, and with it the call
        return Unavailable(f"{path}: its server ended before it answered", unknown=True)
    unknown = code not in _NEVER_RAN
    number: int = code.value[0]
    return of_code(number, f"{path}: {error.details() or code.name}", unknown=unknown)
