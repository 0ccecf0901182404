"""The serving side of a link: brings what a peer tells and asks to this host's mailboxes, and the answers back.

An ask that is malformed, names no actor of this host, or exceeds what a peer may have under way is refused with an
error; nothing is dropped silently. When the stream ends, answers are dropped (their askers were told *unknown*),
streams and cancellable work end, and everything else runs to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from everram.runtime.actor import AnyMethod
from everram.runtime.contracts import link_pb2
from everram.runtime.errors import EverramError, InvalidArgument, ResourceExhausted, Unimplemented
from everram.runtime.mailbox import Mailbox, deadline_exceeded
from everram.runtime.streams import Producer
from everram.runtime.transport.error_wire import to_proto
from everram.runtime.transport.link import MAX_MESSAGE_BYTES
from everram.runtime.transport.outbound import MAX_IN_FLIGHT, Control

MAX_SERVED = 2 * MAX_IN_FLIGHT
"""Asks of one peer under way here: it keeps to MAX_IN_FLIGHT by itself; the rest is room for what it gave up."""

Route = Callable[[str], tuple[Mailbox, AnyMethod] | None]

log = logging.getLogger("everram.link")


class Answer:
    """A REPLY or an ITEM; serialised when a batch takes it, messages being immutable."""

    __slots__ = ("_id", "_kind", "_message")

    def __init__(self, kind: link_pb2.Frame.Kind, id: int, message: Message) -> None:
        self._kind, self._id, self._message = kind, id, message

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        payload = self._message.SerializeToString()
        if len(payload) > MAX_MESSAGE_BYTES:
            what = f"the answer has {len(payload)} bytes; the link takes up to {MAX_MESSAGE_BYTES}"
            return Failure(self._id, ResourceExhausted(what, unknown=True)).write(batch, now_s)
        batch.frames.add(kind=self._kind, id=self._id, payload=payload)
        return len(payload)


class End:
    """The end of a stream."""

    __slots__ = ("_id",)

    def __init__(self, id: int) -> None:
        self._id = id

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        batch.frames.add(kind=link_pb2.Frame.END, id=self._id)
        return 0


class Failure:
    """The error an ask or a stream ends with."""

    __slots__ = ("_error", "_id")

    def __init__(self, id: int, error: EverramError) -> None:
        self._id, self._error = id, error

    def write(self, batch: link_pb2.Batch, now_s: float) -> int:
        batch.frames.add(kind=link_pb2.Frame.ERROR, id=self._id, error=to_proto(self._error))
        return len(self._error.message)


class Served:
    """An ask or a stream of the peer: the asker as this host's mailboxes see it."""

    __slots__ = ("_deadline_s", "_inbound", "_path", "_timeout_s", "id", "on_abandoned", "producer", "wanted")

    def __init__(self, inbound: Inbound, id: int, path: str, timeout_s: float) -> None:
        self.id = id
        self.wanted = True
        self.on_abandoned: Callable[[], object] | None = None
        self.producer: Producer[Any] | None = None  # of a stream
        self._inbound = inbound
        self._path = path
        self._timeout_s = timeout_s  # 0: none
        self._deadline_s = inbound.now_s() + timeout_s

    def take(self) -> bool:
        if self.wanted and self._timeout_s > 0 and self._inbound.now_s() >= self._deadline_s:
            self.fail(deadline_exceeded(self._path, self._timeout_s, taken=False))
        return self.wanted

    def answer(self, reply: Any) -> None:
        if self.wanted:
            self._inbound.end(self, Answer(link_pb2.Frame.REPLY, self.id, reply))

    async def put(self, item: Any) -> None:
        assert self.producer is not None, "only a stream is answered item by item"
        await self.producer.put(item)

    def emit(self, item: Any) -> None:
        if self.wanted:
            self._inbound.control.put(Answer(link_pb2.Frame.ITEM, self.id, item))

    def end(self) -> None:
        if self.wanted:
            self._inbound.end(self, End(self.id))

    def fail(self, error: EverramError) -> None:
        if self.wanted:
            self._inbound.end(self, Failure(self.id, error))

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self.wanted = False
        if self.on_abandoned is not None:
            self.on_abandoned()


class Inbound:
    """Everything one peer asks of this host."""

    def __init__(self, peer: str, route: Route, control: Control, now_s: Callable[[], float]) -> None:
        self.now_s = now_s
        self.control = control
        self._peer = peer
        self._route = route
        self._served: dict[int, Served] = {}  # by the peer's id, in the order of arrival

    def on_tell(self, frame: link_pb2.Frame) -> None:
        try:
            mailbox, method, request = self._parse(frame)
            mailbox.tell(method, request)
        except EverramError as error:
            log.warning("%s told %s, which was refused: %s", self._peer, frame.method, error)

    def on_ask(self, frame: link_pb2.Frame) -> None:
        self._serve(frame, Served(self, frame.id, frame.method, frame.timeout_ms / 1000))

    def on_stream(self, frame: link_pb2.Frame) -> None:
        served = Served(self, frame.id, frame.method, frame.timeout_ms / 1000)
        served.producer = Producer(served.emit, frame.room)
        self._serve(frame, served)

    def _serve(self, frame: link_pb2.Frame, served: Served) -> None:
        if len(self._served) >= MAX_SERVED:
            busy = f"{len(self._served)} asks of {self._peer} are under way; wait for some to end"
            self.control.put(Failure(frame.id, ResourceExhausted(busy)))
            return
        self._served[frame.id] = served
        try:
            mailbox, method, request = self._parse(frame)
            if method.streams != (served.producer is not None):
                raise InvalidArgument(f"{frame.method} was asked for {'one reply' if method.streams else 'a stream'}")
            mailbox.deliver(method, request, served)
        except EverramError as error:
            served.fail(error)

    def _parse(self, frame: link_pb2.Frame) -> tuple[Mailbox, AnyMethod, Message]:
        target = self._route(frame.method)
        if target is None:
            raise Unimplemented(f"no actor of this host answers {frame.method}")
        mailbox, method = target
        try:
            return mailbox, method, method.request.FromString(frame.payload)
        except DecodeError:
            raise InvalidArgument(
                f"the request of {frame.method} is malformed: it is no {method.request.__name__}"
            ) from None

    def on_cancel(self, frame: link_pb2.Frame) -> None:
        served = self._served.pop(frame.id, None)
        if served is not None:
            served.abandon()

    def on_more(self, frame: link_pb2.Frame) -> None:
        served = self._served.get(frame.id)
        if served is not None and served.producer is not None:
            served.producer.grant(frame.room)

    def end(self, served: Served, last: Answer | End | Failure) -> None:
        """`served` has its answer."""
        served.wanted = False
        self._served.pop(served.id, None)
        self.control.put(last)

    def broken(self) -> None:
        """The stream has ended."""
        served, self._served = self._served, {}
        for each in served.values():
            each.abandon()
