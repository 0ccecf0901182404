"""Owned tasks: the only module of everram that creates asyncio tasks.

A `TaskScope` owns what it starts: no task outlives `close()`, and no exception is lost (it goes to the scope's
`on_failure`, or out of `close()`). Tasks are kept in the order of their start and cancelled in the reverse order,
never in the order of a set, so that the simulation replays exactly. Where `asyncio.TaskGroup` would end all siblings
when one fails, a scope leaves that decision to its owner: an actor fails as a whole, a host's accept loop does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from everram.runtime.errors import FailedPrecondition

T = TypeVar("T")

STUCK_S = 5.0
"""A cancelled task that has not ended after this long is named in the log: it swallows its cancellation."""

log = logging.getLogger("everram.tasks")

OnFailure = Callable[[str, BaseException], None]
"""Called with the task's name and its error."""


class TaskScope:
    """Owns tasks until `close()`."""

    __slots__ = ("_closed", "_emptied", "_failure", "_on_failure", "_tasks", "name")

    def __init__(self, name: str, on_failure: OnFailure | None = None) -> None:
        self.name = name
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order of their start; a task leaves when it has ended
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None  # set while `close` waits
        self._failure: BaseException | None = None  # the first one nobody was told of; raised by `close`

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` as a task of this scope. Raises FailedPrecondition if the scope is closed."""
        if self._closed:
            work.close()
            raise FailedPrecondition(f"{self.name} has ended; it starts no more work ({name})")
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}/{name}")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if self._on_failure is not None:
                self._on_failure(task.get_name(), error)
            elif self._failure is None:
                self._failure = error
            else:
                log.error("%s failed too", task.get_name(), exc_info=error)
        if not self._tasks and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def close(self) -> None:
        """Cancel every task, newest first, and return when all have ended.

        Raises the first failure that no `on_failure` was told of. If the caller is cancelled meanwhile it still waits
        for its tasks, and is cancelled then: a task cannot outlive its owner.
        """
        self._closed = True
        current = asyncio.current_task()
        assert current not in self._tasks, f"{self.name} cannot be closed by one of its own tasks"
        for task in reversed(list(self._tasks)):
            task.cancel()
        interrupted = await self._outwait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if interrupted:
            raise asyncio.CancelledError

    async def wait_empty(self) -> None:
        """Return when none of its tasks is left."""
        while self._tasks:
            if self._emptied is None or self._emptied.done():
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    async def _outwait(self) -> bool:
        """Wait until empty, whatever happens. True if the waiting task was cancelled meanwhile."""
        interrupted = False
        stuck = asyncio.get_running_loop().call_later(STUCK_S, self._report_stuck) if self._tasks else None
        while self._tasks:
            try:
                await self.wait_empty()
            except asyncio.CancelledError:
                interrupted = True
        if stuck is not None:
            stuck.cancel()
        return interrupted

    def _report_stuck(self) -> None:
        names = ", ".join(task.get_name() for task in self._tasks)
        log.error("%s waits for tasks that ignore their cancellation: %s", self.name, names)
