"""The one turn of a queue pair, given to requests that have to wait in the order in which they were posted.

turn = turns.take()                                  # its place in the line, at once
async with turn: ...                                 # when it is its turn
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType


class Turns:
    """While `line` is not empty nobody may overtake."""

    __slots__ = ("line",)

    def __init__(self) -> None:
        self.line: deque[Turn] = deque()

    def take(self) -> Turn:
        """Who takes one must enter it."""
        turn = Turn(self.line)
        self.line.append(turn)
        if len(self.line) == 1:
            turn.come()
        return turn


class Turn:
    __slots__ = ("_came", "_line")

    def __init__(self, line: deque[Turn]) -> None:
        self._line = line
        self._came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def come(self) -> None:
        if not self._came.done():
            self._came.set_result(None)

    async def __aenter__(self) -> None:
        try:
            await self._came
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._line.remove(self)
        if self._line:
            self._line[0].come()
