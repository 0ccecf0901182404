"""The mailbox of an actor: the carrier that brings messages to it inside its own host.

A deque, and one future that wakes the consumer when it sleeps; the consumer (`everram.runtime.dispatch`) drains it
inline. Messages wait here through a restart of the actor: each entry names its method, not the handler of one
incarnation.

Bounds: a tell to a full mailbox raises ResourceExhausted. An ask to a full one waits for room in its asker's own
frame: its entry stands in the same line, there are never more of them than suspended askers, and its deadline takes
it out again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from everram.runtime.errors import DeadlineExceeded, EverramError, ResourceExhausted, Unavailable
from everram.runtime.method import Method
from everram.runtime.streams import Producer, ReplyBuffer, ReplyReader

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

CAPACITY = 1024
"""Messages that may wait. At a few microseconds each this is some milliseconds of work: more would only add delay."""


class Asker(Protocol):
    """Who waits for the answer to one message, wherever that is."""

    on_abandoned: Callable[[], object] | None
    """Set while cancellable work runs for it; the asker's side calls it when nobody waits any more."""

    def take(self) -> bool:
        """The message is about to be handled. False if nobody wants that any more, so it must not be."""

    def answer(self, reply: Any) -> None: ...

    def fail(self, error: EverramError) -> None: ...


class StreamAsker(Asker, Protocol):
    """Who reads the answers to one message."""

    async def put(self, item: Any) -> None:
        """Waits while the reader is behind."""

    def end(self) -> None: ...


class LocalAsk:
    """An asker in the same host: a future."""

    __slots__ = ("future", "on_abandoned", "path", "taken", "timeout_s")

    def __init__(self, future: asyncio.Future[Any], path: str, timeout_s: float) -> None:
        self.future = future
        self.path = path
        self.timeout_s = timeout_s
        self.taken = False  # a handler has begun: from now on a lost answer is *unknown*
        self.on_abandoned: Callable[[], object] | None = None

    def take(self) -> bool:
        if self.future.done():
            return False
        self.taken = True
        return True

    def answer(self, reply: Any) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def fail(self, error: EverramError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(deadline_exceeded(self.path, self.timeout_s, self.taken))
        self.abandon()

    def abandon(self) -> None:
        if self.on_abandoned is not None:
            self.on_abandoned()


class LocalStream:
    """A reader in the same host."""

    __slots__ = ("_producer", "buffer", "on_abandoned", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.on_abandoned: Callable[[], object] | None = None
        self.buffer: ReplyBuffer[Any] = ReplyBuffer(self._grant, self._abandon)
        self._producer: Producer[Any] = Producer(self.buffer.push)

    def take(self) -> bool:
        self.taken = not self.buffer.ended
        return self.taken

    def answer(self, reply: Any) -> None:
        raise AssertionError("a stream is answered by put and end")

    async def put(self, item: Any) -> None:
        await self._producer.put(item)

    def end(self) -> None:
        self.buffer.end()

    def fail(self, error: EverramError) -> None:
        self.buffer.fail(error)

    def _grant(self, items: int) -> None:
        self._producer.grant(items)

    def _abandon(self) -> None:
        if self.on_abandoned is not None:
            self.on_abandoned()


Entry = tuple[Method[Any, Any], Any, Asker | None]
"""Method, request, and who waits for the answer; None for a tell."""


class Mailbox:
    """Where messages of one service wait, through every incarnation of its actor."""

    __slots__ = ("_capacity", "_refusal", "_sleeper", "entries", "handled", "name")

    def __init__(self, name: str, capacity: int = CAPACITY) -> None:
        self.name = name
        self._capacity = capacity  # 0 once it refuses, so that a tell pays for one comparison only
        self._refusal: str | None = None
        self._sleeper: asyncio.Future[None] | None = None  # the consumer, while it sleeps on an empty mailbox
        self.entries: deque[Entry] = deque()
        self.handled = 0  # messages taken up by handlers so far

    # The carrier's side.

    def tell(self, method: Method[RequestT, ReplyT], request: RequestT) -> None:
        """Raises ResourceExhausted if it is full, Unavailable if the actor has stopped."""
        entries = self.entries
        if len(entries) >= self._capacity:
            raise self._refuse(method)
        entries.append((method, request, None))
        if self._sleeper is not None:
            self._wake()

    async def ask(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float) -> ReplyT:
        """Raises what the handler raised; DeadlineExceeded; Unavailable if the actor has stopped or failed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ReplyT] = loop.create_future()
        asker = LocalAsk(future, method.path, timeout_s)
        self.deliver(method, request, asker)
        timer = loop.call_later(timeout_s if timeout_s > 0 else 0, asker.expire)
        try:
            return await future
        except asyncio.CancelledError:
            asker.abandon()
            raise
        finally:
            timer.cancel()

    def stream(
        self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float | None
    ) -> ReplyReader[ReplyT]:
        """Its errors come out of the iteration."""
        asker = LocalStream()
        if timeout_s is not None:
            asker.buffer.expire_after(timeout_s, lambda: deadline_exceeded(method.path, timeout_s, asker.taken))
        try:
            self.deliver(method, request, asker)
        except EverramError as error:
            asker.fail(error)
        return ReplyReader(asker.buffer)

    def deliver(self, method: Method[Any, Any], request: Any, asker: Asker) -> None:
        """Put a message in line whose answer goes to `asker`. Raises Unavailable if the actor has stopped."""
        if self._refusal is not None:
            raise self._refuse(method)
        self.entries.append((method, request, asker))
        if self._sleeper is not None:
            self._wake()

    def _refuse(self, method: Method[Any, Any]) -> EverramError:
        if self._refusal is not None:
            return Unavailable(self._refusal)
        return ResourceExhausted(
            f"{self.name} has {len(self.entries)} messages waiting; {method.name} was not queued, so slow down or ask"
        )

    # The consumer's side.

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    async def wait_message(self) -> None:
        """Return when at least one entry waits. One consumer at a time."""
        while not self.entries:
            self._sleeper = asyncio.get_running_loop().create_future()
            try:
                await self._sleeper
            finally:
                self._sleeper = None

    def refuse(self, reason: str) -> None:
        """Take no more messages; those that wait are still handled."""
        self._refusal, self._capacity = reason, 0

    def close(self, reason: str) -> None:
        """Take no more messages, and fail those that wait: nobody will handle them."""
        self.refuse(reason)
        while self.entries:
            _, _, asker = self.entries.popleft()
            if asker is not None and asker.take():
                asker.fail(Unavailable(reason))


def deadline_exceeded(path: str, timeout_s: float, taken: bool) -> DeadlineExceeded:
    """The error of an ask that was not answered in time; unknown if a handler may have begun."""
    if taken:
        what = "was not answered in time and may still take effect"
    else:
        what = "was never taken up; its actor is busy or not running"
    return DeadlineExceeded(f"{path} {what} ({timeout_s:g} s)", unknown=taken)
