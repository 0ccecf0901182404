"""What a guest of the simulation does: one workload object over all incarnations of its guest.

The object lies outside the world and remembers what it was told; `recover` compares that with what an incarnation
finds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import ClassVar

from everram.actors.chaos.journal import Found
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.guest.errors import LogFull
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.world import World

SHORT_PAUSES, SHORT_PAUSE_S = 0.4, 0.0005
"""As long as the reader takes to wake up, read and go to sleep again: that many pauses are no longer, so that commits
come while it is at any of that."""

Committed = Callable[[AsyncGuest, int], None]
"""Told of each commit that has returned, or of each wait for one: who committed, and the LSN behind it."""


def nobody(me: AsyncGuest, lsn: int) -> None:
    """For workloads that nobody observes."""


class Workload:
    """`pause_s` is the longest wait between two bursts of work."""

    region: ClassVar[str] = "data"
    region_bytes: ClassVar[int] = 64 * 1024
    kind: ClassVar[str] = "logged"

    def __init__(
        self, world: World, name: str, *, pause_s: float, committed: Committed, replicated: Committed = nobody
    ) -> None:
        self.world = world
        self.name = name
        self.pause_s = pause_s
        self.committed = committed
        self.replicated = replicated
        self.waits = 0.5
        """The part of its transactions that wait until they are replicated, where that was asked for."""
        self.stream: Stream = world.stream(f"workload/{name}")

    def recover(self, me: AsyncGuest, *, moved: bool) -> None:
        """Check what this incarnation found. Violations go to the world. `moved`: it runs on a copy of the memory that
        its predecessor had, so what was not known to be replicated may be gone."""
        raise NotImplementedError

    def state(self) -> Found | None:
        """What its region holds after the last commit that has returned; None if it does not keep count of that."""
        return None

    async def operate(self, me: AsyncGuest) -> int:
        """One piece of work; returns its number. Raises Fenced, and then nothing has happened."""
        raise NotImplementedError

    async def work(self, me: AsyncGuest) -> None:
        """Bursts with pauses between them, until the process ends."""
        while True:
            for _ in range(self.stream.randrange(1, 8)):
                with contextlib.suppress(LogFull):  # nothing was written: again after the pause
                    await self.operate(me)
                await asyncio.sleep(0)
            short = self.stream.random() < SHORT_PAUSES
            await asyncio.sleep(self.stream.uniform(0, SHORT_PAUSE_S if short else self.pause_s))
