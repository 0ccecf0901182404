"""The asynchronous form of a guest: the same core, for programs on an event loop, and for simulated guests.

A commit waits only while the log is full: `async with me.transaction()` then waits on the loop; plain `with`, which
cannot, raises LogFull at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType

from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import LogFull, Timeout
from everram.runtime.guest.shell import POLL_S, ROOM_WAIT_S, Guest, pauses_s
from everram.runtime.guest.transaction import Transaction

TURNS_AT_ONCE = 32
"""Of the loop, before a wait sleeps: about half a millisecond of them, as loops sleep for whole milliseconds."""


class AsyncTransaction(Transaction):
    """A transaction whose end may wait for room in the log."""

    __slots__ = ()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.__exit__(kind, error, trace)
            return
        except LogFull as full:
            reason = full
        import asyncio

        for _ in range(int(ROOM_WAIT_S / POLL_S)):
            await asyncio.sleep(POLL_S)
            try:
                self.commit()
                return
            except LogFull as full:
                reason = full
        raise reason


class AsyncGuest(Guest):
    """What `attach_async` gives."""

    def __init__(self, core: GuestCore, pauses: Callable[[], Iterator[float]] | None = None) -> None:
        """`pauses()`: between the looks of one wait."""
        super().__init__(core)
        self._pauses = pauses or partial(pauses_s, TURNS_AT_ONCE)
        self.transaction = partial(AsyncTransaction, core.commit)

    async def wait_replicated(self, lsn: int, timeout_s: float) -> None:  # type: ignore[override]
        """Return once everything before `lsn` is held by as many other hosts as were asked for (`--copies`).

        Raises Timeout (unknown, not failed), Fenced (stop).
        """
        import asyncio  # only here: loading it takes longer than all of this library, which most guests need alone

        try:
            async with asyncio.timeout(timeout_s):
                for pause_s in self._pauses():  # a word in shared memory has no event
                    if self.core.replicated(lsn):
                        return
                    await asyncio.sleep(pause_s)
        except TimeoutError as error:
            raise Timeout(f"position {lsn} is not known to be replicated after {timeout_s:g} s: it may be") from error
