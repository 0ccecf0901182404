"""Every ask is answered or errs by its deadline, unless the asker itself was stopped or killed meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from everram.runtime.errors import EverramError
from everram.runtime.simulation.loop import CALLBACK_NS
from everram.runtime.simulation.world import World

T = TypeVar("T")

PROPERTY = "every ask ends by its deadline"
SLACK_NS = 20_000 * CALLBACK_NS
"""What else may run on all processors of this world in between."""


class Answered:
    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: dict[str, int] = {}
        """How many asks ended as ok, failed or unknown."""

    async def watch(self, what: str, ask: Awaitable[T], timeout_s: float) -> T | None:
        """The answer, or None after an error of ours. Anything else passes, and counts as a violation above."""
        begun_ns = self._world.loop.now_ns
        try:
            answer = await ask
            self._count("ok")
            return answer
        except EverramError as error:
            self._count(error.outcome.value)
            return None
        finally:
            took_ns = self._world.loop.now_ns - begun_ns
            if took_ns > timeout_s * 1e9 + SLACK_NS:
                self._world.violate(PROPERTY, f"{what} took {took_ns / 1e9:.3f} s of {timeout_s:g} s")

    def _count(self, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
