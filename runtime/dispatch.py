"""Dispatch: the consumer of a mailbox, for one incarnation of an actor.

It takes messages in order, calls the handler, and gives the reply or the error to whoever asked. The first few lines of
`run` are the hot path of everram: a plain handler costs one dict lookup and one call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from everram.runtime.actor import ActorLog, AnyMethod, Handler, Later
from everram.runtime.errors import EverramError, Internal, Unavailable, Unimplemented
from everram.runtime.mailbox import Asker, Mailbox, StreamAsker
from everram.runtime.tasks import TaskScope

TURN = 100
"""Messages handled before other tasks of the loop get their turn: some hundred microseconds."""

_PENDING = object()
"""In place of a reply that a task will give."""


class Dispatcher:
    """Feeds one incarnation of an actor from its mailbox."""

    def __init__(
        self, mailbox: Mailbox, handlers: Mapping[AnyMethod, Handler], scope: TaskScope, work: TaskScope, log: ActorLog
    ) -> None:
        """`scope` owns streams, `work` what handlers hand over by `Later`, which a drain waits for."""
        self._mailbox = mailbox
        self._handlers = handlers
        self._scope = scope
        self._work = work
        self._log = log
        self.busy = False  # a message is being handled
        self._given_up = False
        self._idle: asyncio.Future[None] | None = None  # set while a drain waits

    async def run(self) -> None:
        """Handle messages until cancelled."""
        mailbox, handlers = self._mailbox, self._handlers
        entries = mailbox.entries
        while True:
            if not entries:
                await mailbox.wait_message()
            self.busy = True
            for _ in range(TURN):
                if not entries:
                    break
                method, request, asker = entries.popleft()
                if asker is not None and not asker.take():
                    continue
                mailbox.handled += 1
                try:
                    reply: Any = handlers[method](request)
                    if reply.__class__ is not method.reply:
                        reply = await self._finish(method, reply, asker)
                    if asker is not None and reply is not _PENDING:
                        asker.answer(reply)
                except Exception as error:
                    self._failed(method, error, asker)
                except asyncio.CancelledError:
                    self._interrupted(method, asker)
            self.busy = False
            if entries:
                await asyncio.sleep(0)
            elif self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    def give_up(self) -> None:
        """The incarnation has failed: whoever waits for the drain waits in vain."""
        self._given_up = True
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def drained(self) -> None:
        """Return when no message waits or is being handled, and no handed-over work runs; or after `give_up`."""
        while not self._given_up and (self.busy or self._mailbox.entries):
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        await self._work.wait_empty()

    async def _finish(self, method: AnyMethod, result: Any, asker: Asker | None) -> Any:
        """What a handler returned that is not simply the reply."""
        if method.streams:
            if asker is None:
                raise Internal(f"{method.path} answers with a stream, so it cannot be told")
            self._start_stream(method, result, cast(StreamAsker, asker))
            return _PENDING
        if result.__class__ is Later:
            self._start_work(method, result, asker)
            return _PENDING
        if inspect.isawaitable(result):
            result = await result
        return _expect(method, result)

    def _start_work(self, method: AnyMethod, later: Later[Any], asker: Asker | None) -> None:
        task = self._work.start(self._run_work(method, later, asker), name=method.name)
        if asker is not None and later.cancellable:
            asker.on_abandoned = task.cancel

    async def _run_work(self, method: AnyMethod, later: Later[Any], asker: Asker | None) -> None:
        try:
            reply = _expect(method, await later.work)
        except Exception as error:
            self._failed(method, error, asker)
        except asyncio.CancelledError:
            if asker is not None:
                asker.fail(_interrupted(method))
            raise
        else:
            if asker is not None:
                asker.answer(reply)

    def _start_stream(self, method: AnyMethod, items: Any, asker: StreamAsker) -> None:
        if not inspect.isasyncgen(items):
            raise TypeError(f"the handler of {method.path} returned {items!r}; a stream is an async generator")
        task = self._scope.start(
            self._run_stream(method, cast(AsyncGenerator[Any, None], items), asker), name=method.name
        )
        asker.on_abandoned = task.cancel

    async def _run_stream(self, method: AnyMethod, items: AsyncGenerator[Any, None], asker: StreamAsker) -> None:
        try:
            try:
                async for item in items:
                    await asker.put(_expect(method, item))
            finally:
                await items.aclose()
        except Exception as error:
            self._failed(method, error, asker)
        except asyncio.CancelledError:
            asker.fail(_interrupted(method))
            raise
        else:
            asker.end()

    def _failed(self, method: AnyMethod, error: Exception, asker: Asker | None) -> None:
        """One error model: an EverramError travels as it is, anything else is a bug of this actor."""
        if isinstance(error, NotImplementedError):
            error = Unimplemented(f"{method.path} is not built yet")
        if not isinstance(error, EverramError):
            self._log.error("%s failed unexpectedly", method.name, exc_info=error)
            error = Internal(f"{method.path} failed unexpectedly ({type(error).__name__}: {error}); see its host's log")
        elif asker is None:
            self._log.warning("%s was told and failed: %s", method.name, error)
        if asker is not None:
            asker.fail(error)

    def _interrupted(self, method: AnyMethod, asker: Asker | None) -> None:
        """A handler ended by CancelledError: ours if this task is being cancelled, otherwise its own affair."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if asker is not None:
                asker.fail(_interrupted(method))
            raise asyncio.CancelledError
        self._failed(method, Internal(f"{method.path} awaited something that was cancelled", unknown=True), asker)


def _expect(method: AnyMethod, reply: Any) -> Any:
    if reply.__class__ is not method.reply:
        raise TypeError(f"the handler of {method.path} gave {reply!r}, not a {method.reply.__name__}")
    return reply


def _interrupted(method: AnyMethod) -> Unavailable:
    return Unavailable(f"{method.path} was interrupted: its actor stopped or failed, or nobody waited", unknown=True)
