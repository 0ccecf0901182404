"""The asking side of a link: the carrier behind refs to another host.

What is told or asked waits here, as a message, until the link takes it into a batch; from then on it counts as sent,
and if the stream ends before the answer its outcome is *unknown*. What was not sent survives the end of a stream and
goes out on the next one, or fails when the peer cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from everram.runtime.contracts import link_pb2
from everram.runtime.errors import EverramError, Internal, InvalidArgument, ResourceExhausted
from everram.runtime.mailbox import deadline_exceeded
from everram.runtime.method import Method
from everram.runtime.streams import WINDOW, ReplyBuffer, ReplyReader
from everram.runtime.transport.error_wire import from_proto
from everram.runtime.transport.link import BATCH_BYTES, BATCH_FRAMES, MAX_MESSAGE_BYTES, as_broken

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

MAX_QUEUED = 4096
"""Messages that may wait for a link before a tell is refused: four mailboxes full."""
MAX_IN_FLIGHT = 1024
"""Sent asks without an answer per peer, so that a peer never serves more than this for us; others wait in line."""

log = logging.getLogger("everram.link")


class Writing(Protocol):
    """Something that a batch can take."""

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        """Add it as a frame; bytes of its payload. 0 frames if nobody wants it any more."""


class Control:
    """Frames that answer or steer; they belong to one stream and go before requests, so that nothing waits for
    itself.
    """

    __slots__ = ("_frames", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._frames: deque[Writing] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Writing) -> None:
        self._frames.append(frame)
        self._wake()

    def fill(self, batch: link_pb2.Batch, now_s: float) -> int:
        """Move frames into the batch; bytes of payload."""
        size_bytes, frames = 0, self._frames
        while frames and len(batch.frames) < BATCH_FRAMES and size_bytes < BATCH_BYTES:
            size_bytes += frames.popleft().write(batch, now_s)
        return size_bytes

    def clear(self) -> None:
        self._frames.clear()


class Steer:
    """CANCEL, MORE, LEAVING or LEFT."""

    __slots__ = ("_id", "_kind", "_room")

    def __init__(self, kind: link_pb2.Frame.Kind, id: int = 0, room: int = 0) -> None:
        self._kind, self._id, self._room = kind, id, room

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        batch.frames.add(kind=self._kind, id=self._id, room=self._room)
        return 0


class Tell:
    """A message without an answer."""

    __slots__ = ("_method", "_request")

    def __init__(self, method: Method[Any, Any], request: Message) -> None:
        self._method, self._request = method, request

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        payload = self._request.SerializeToString()
        if len(payload) > MAX_MESSAGE_BYTES:
            log.error("%s", too_large(self._method.path, len(payload)))
            return 0
        batch.frames.add(kind=link_pb2.Frame.TELL, method=self._method.path, payload=payload)
        return len(payload)

    def fail(self, error: EverramError) -> None:
        log.warning("%s was told and did not leave: %s", self._method.path, error)


class Ask:
    """An ask, from its queueing to its answer."""

    __slots__ = ("_deadline_s", "_future", "_request", "_timeout_s", "id", "method", "sent")

    def __init__(
        self,
        method: Method[Any, Any],
        request: Message,
        id: int,
        future: asyncio.Future[Any],
        now_s: float,
        timeout_s: float,
    ) -> None:
        self.method = method
        self.id = id
        self.sent = False
        self._request = request
        self._future = future
        self._timeout_s = timeout_s
        self._deadline_s = now_s + timeout_s

    @property
    def ended(self) -> bool:
        return self._future.done()

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        payload = self._request.SerializeToString()
        if len(payload) > MAX_MESSAGE_BYTES:
            self.fail(InvalidArgument(too_large(self.method.path, len(payload))))
            return 0
        left_ms = max(1, math.ceil((self._deadline_s - now_s) * 1000))
        path = self.method.path
        batch.frames.add(kind=link_pb2.Frame.ASK, id=self.id, method=path, payload=payload, timeout_ms=left_ms)
        self.sent = True
        return len(payload)

    def answer(self, payload: bytes) -> None:
        if not self._future.done():
            try:
                self._future.set_result(self.method.reply.FromString(payload))
            except DecodeError:
                self.fail(Internal(f"the reply of {self.method.path} is malformed", unknown=True))

    def fail(self, error: EverramError) -> None:
        if not self._future.done():
            self._future.set_exception(error)

    def expire(self) -> None:
        self.fail(deadline_exceeded(self.method.path, self._timeout_s, self.sent))


class Stream:
    """A stream, from its queueing to its end."""

    __slots__ = ("_request", "buffer", "id", "method", "sent")

    def __init__(self, method: Method[Any, Any], request: Message, id: int, buffer: ReplyBuffer[Any]) -> None:
        self.method = method
        self.id = id
        self.sent = False
        self.buffer = buffer
        self._request = request

    @property
    def ended(self) -> bool:
        return self.buffer.ended

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        payload = self._request.SerializeToString()
        if len(payload) > MAX_MESSAGE_BYTES:
            self.fail(InvalidArgument(too_large(self.method.path, len(payload))))
            return 0
        batch.frames.add(kind=link_pb2.Frame.STREAM, id=self.id, method=self.method.path, payload=payload, room=WINDOW)
        self.sent = True
        return len(payload)

    def item(self, payload: bytes) -> None:
        try:
            self.buffer.push(self.method.reply.FromString(payload))
        except DecodeError:
            self.fail(Internal(f"an item of {self.method.path} is malformed", unknown=True))

    def fail(self, error: EverramError) -> None:
        self.buffer.fail(error)


class Outbound:
    """Everything this host asks of one peer; a `refs.Carrier`."""

    def __init__(self, host: str, control: Control, wake: Callable[[], None]) -> None:
        self._host = host
        self._control = control
        self._wake = wake
        self._queue: deque[Tell | Ask | Stream] = deque()  # not sent yet
        self._in_flight: dict[int, Ask | Stream] = {}  # sent, not answered, by id
        self.held = False  # what waits goes out on the next stream only: the peer leaves this one to its successor
        self._last_id = 0  # never reused, so a late answer of an old stream meets nobody

    def __len__(self) -> int:
        """Messages that wait to be sent."""
        return len(self._queue)

    # The carrier's side.

    def tell(self, method: Method[RequestT, ReplyT], request: RequestT) -> None:
        """Raises ResourceExhausted. What is told may be lost with the stream: who must know asks."""
        if len(self._queue) >= MAX_QUEUED:
            raise ResourceExhausted(f"{len(self._queue)} messages wait for the link to {self._host}; slow down or ask")
        self._queue.append(Tell(method, request))
        self._wake()

    async def ask(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float) -> ReplyT:
        """Raises what the handler raised, DeadlineExceeded, Unavailable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ReplyT] = loop.create_future()
        ask = Ask(method, request, self._next_id(), future, loop.time(), timeout_s)
        self._queue.append(ask)
        self._wake()
        timer = loop.call_later(timeout_s if timeout_s > 0 else 0, self._expire, ask)
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(ask)
            raise
        finally:
            timer.cancel()

    def stream(
        self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float | None
    ) -> ReplyReader[ReplyT]:
        """Its errors come out of the iteration."""
        id = self._next_id()
        buffer: ReplyBuffer[ReplyT] = ReplyBuffer(lambda room: self._grant(id, room), lambda: self._cancel_stream(id))
        stream = Stream(method, request, id, buffer)
        if timeout_s is not None:
            buffer.expire_after(timeout_s, lambda: deadline_exceeded(method.path, timeout_s, stream.sent))
        self._queue.append(stream)
        self._wake()
        return ReplyReader(buffer)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _expire(self, ask: Ask) -> None:
        ask.expire()
        self._cancel(ask)

    def _cancel(self, ask: Ask) -> None:
        if self._in_flight.pop(ask.id, None) is not None:
            self._control.put(Steer(link_pb2.Frame.CANCEL, ask.id))

    def _cancel_stream(self, id: int) -> None:
        if self._in_flight.pop(id, None) is not None:
            self._control.put(Steer(link_pb2.Frame.CANCEL, id))

    def _grant(self, id: int, room: int) -> None:
        if id in self._in_flight:
            self._control.put(Steer(link_pb2.Frame.MORE, id, room))

    # The link's side.

    def fill(self, batch: link_pb2.Batch, now_s: float, size_bytes: int) -> None:
        """Move what waits into the batch, which already holds `size_bytes` of payload."""
        queue, in_flight = self._queue, self._in_flight
        while queue and not self.held and len(batch.frames) < BATCH_FRAMES and size_bytes < BATCH_BYTES:
            entry = queue[0]
            if isinstance(entry, Tell):
                size_bytes += entry.write(batch, now_s)
            elif not entry.ended:
                if len(in_flight) >= MAX_IN_FLIGHT:
                    return
                size_bytes += entry.write(batch, now_s)
                if entry.sent:
                    in_flight[entry.id] = entry
            queue.popleft()

    @property
    def sendable(self) -> bool:
        return bool(self._queue) and len(self._in_flight) < MAX_IN_FLIGHT

    def on_reply(self, frame: link_pb2.Frame) -> None:
        ask = self._end(frame.id)
        if isinstance(ask, Ask):
            ask.answer(frame.payload)

    def on_item(self, frame: link_pb2.Frame) -> None:
        stream = self._in_flight.get(frame.id)
        if isinstance(stream, Stream):
            stream.item(frame.payload)

    def on_end(self, frame: link_pb2.Frame) -> None:
        stream = self._end(frame.id)
        if isinstance(stream, Stream):
            stream.buffer.end()

    def on_error(self, frame: link_pb2.Frame) -> None:
        entry = self._end(frame.id)
        if entry is not None:
            entry.fail(from_proto(frame.error))

    def _end(self, id: int) -> Ask | Stream | None:
        entry = self._in_flight.pop(id, None)
        if self._queue:
            self._wake()  # there may be room in flight again
        return entry

    def broken(self, error: EverramError) -> None:
        """The stream has ended: what was sent and not answered is unknown."""
        in_flight, self._in_flight = self._in_flight, {}
        for entry in in_flight.values():
            entry.fail(as_broken(error, self._host, unknown=True))

    def unreachable(self, error: EverramError) -> None:
        """No stream can be opened: what waits has failed."""
        queue, self._queue = self._queue, deque()
        for entry in queue:
            entry.fail(as_broken(error, self._host, unknown=False))


def too_large(path: str, size_bytes: int) -> str:
    return f"a message of {path} has {size_bytes} bytes; the link takes up to {MAX_MESSAGE_BYTES}"
