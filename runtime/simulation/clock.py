"""`environment.Clock` of a simulation: the loop's virtual time, the same for all processes of the world."""

from __future__ import annotations

from everram.runtime.simulation.loop import SimulationLoop

WALL_OFFSET_NS = 1_767_225_600_000_000_000
"""2026-01-01 in UTC: when every simulated day begins."""


class SimulatedClock:
    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop

    def now_ns(self) -> int:
        return self._loop.now_ns

    def wall_ns(self) -> int:
        return WALL_OFFSET_NS + self._loop.now_ns
