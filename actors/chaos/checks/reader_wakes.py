"""A commit is verified by the host's reader within a bound, although the reader sleeps when there is nothing to read.

The reader wakes up by itself after 50 ms at the latest, which would hide a wake-up that was lost: the bound is below.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from everram.runtime.simulation.world import World

PROPERTY = "the reader wakes"
BOUND_S = 0.04
"""Hundreds of times what a wake-up takes; the rest is for what else runs on the reader's processor."""


class ReaderWakes:
    """`reader()` is whoever reads now, None while nobody does; `verified()` up to which LSN it has read."""

    def __init__(
        self, world: World, reader: Callable[[], object | None], verified: Callable[[], Awaitable[int | None]]
    ) -> None:
        self._world = world
        self._reader = reader
        self._verified = verified
        self._commits: deque[tuple[int, float, object]] = deque()
        """(LSN, when it is due, who read then) of commits that are not known to be verified, oldest first."""
        self._watching = False

    def committed(self, lsn: int) -> None:
        """Everything up to `lsn` is committed now."""
        reader = self._reader()
        if reader is None:
            return
        self._commits.append((lsn, self._world.now_s + BOUND_S, reader))
        if not self._watching:
            self._watching = True
            self._world.loop.spawn(self._world.loop.system, self._watch())

    async def _watch(self) -> None:
        while self._commits:
            lsn, due_s, reader = self._commits.popleft()
            await asyncio.sleep(max(0.0, due_s - self._world.now_s))
            verified = await self._verified() if self._reader() is reader else None
            if verified is None or self._reader() is not reader:
                continue
            if verified < lsn:
                what = f"{BOUND_S * 1e3:g} ms after the commit up to {lsn} only {verified} is verified"
                self._world.violate(PROPERTY, what)
            while self._commits and self._commits[0][0] <= verified:
                self._commits.popleft()
        self._watching = False
