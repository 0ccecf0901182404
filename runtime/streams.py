"""Streaming replies: the two ends of an ask that is answered many times.

The producer (`Producer`, in the actor's task) may be at most `WINDOW` items ahead of the reader (`ReplyReader`, in the
asker's hands); the reader grants it more as it reads. What connects them is callables, so it is the same inside a
host (direct calls) and between hosts (frames on the link).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from everram.runtime.errors import Cancelled, DeadlineExceeded, EverramError

T = TypeVar("T")

WINDOW = 32
"""Items that may be under way to a reader: hides a round trip of the link at its usual pace, and bounds memory."""


class Producer(Generic[T]):
    """The actor's end. `put` waits while the reader is `WINDOW` items behind."""

    __slots__ = ("_emit", "_room", "_waiter")

    def __init__(self, emit: Callable[[T], None], room: int = WINDOW) -> None:
        self._emit = emit
        self._room = room  # items that may still be emitted
        self._waiter: asyncio.Future[None] | None = None

    async def put(self, item: T) -> None:
        while self._room <= 0:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._room -= 1
        self._emit(item)

    def grant(self, items: int) -> None:
        """The reader has room for `items` more."""
        self._room += items
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ReplyBuffer(Generic[T]):
    """The reader's end as its carrier sees it: items arrive, then the end or an error."""

    __slots__ = ("_cancel", "_deadline", "_error", "_grant", "_items", "_read", "_waiter", "ended")

    def __init__(self, grant: Callable[[int], None], cancel: Callable[[], None]) -> None:
        self._grant = grant
        self._cancel = cancel
        self._items: deque[T] = deque()
        self._read = 0  # items read since the last grant
        self._error: EverramError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.ended = False  # nothing more arrives

    def push(self, item: T) -> None:
        if not self.ended:
            self._items.append(item)
            self._wake()

    def end(self) -> None:
        self._finish(None)

    def fail(self, error: EverramError) -> None:
        """The reader gets the items that arrived before, then this."""
        self._finish(error)

    def expire_after(self, timeout_s: float, error: Callable[[], DeadlineExceeded]) -> None:
        self._deadline = asyncio.get_running_loop().call_later(timeout_s, self._expire, error)

    def _expire(self, error: Callable[[], DeadlineExceeded]) -> None:
        if not self.ended:
            self._finish(error())
            self._cancel()

    def close(self) -> None:
        """The reader wants no more."""
        self._items.clear()
        if not self.ended:
            self._finish(Cancelled("the stream was closed by its reader"))
            self._error = None
            self._cancel()

    def _finish(self, error: EverramError | None) -> None:
        if self.ended:
            return
        self.ended, self._error = True, error
        if self._deadline is not None:
            self._deadline.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> T:
        """Raises StopAsyncIteration at the end, or the error the stream ended with (once)."""
        while not self._items:
            if self.ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("a stream has one reader")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._read += 1
        if self._read * 2 >= WINDOW and not self.ended:
            granted, self._read = self._read, 0
            self._grant(granted)
        return self._items.popleft()


class ReplyReader(Generic[T]):
    """What an asker iterates over (a `refs.Replies`); letting go of it closes it."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: ReplyBuffer[T]) -> None:
        self._buffer = buffer

    def __aiter__(self) -> ReplyReader[T]:
        return self

    async def __anext__(self) -> T:
        return await self._buffer.next()

    async def aclose(self) -> None:
        self._buffer.close()

    def __del__(self) -> None:
        # An abandoned loop must not leave its producer waiting for room for ever.
        if not self._buffer.ended:
            self._buffer.close()
