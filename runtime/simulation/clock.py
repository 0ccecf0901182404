"""Clocks of a simulation: each computer's own, which starts somewhere and runs a little too fast or too slow.

    clock = SimulatedClock(loop, drift_ppm=400, offset_ns=17 * 10**9)
    domain = loop.domain("h1.1", clock)          # what asyncio tells this process of time is what the clock shows

All processes of a machine share its clock; coordination, observers and whoever has none see the world's own time.
"""

from __future__ import annotations

from typing import Protocol

WALL_OFFSET_NS = 1_767_225_600_000_000_000
"""2026-01-01 in UTC: when every simulated day begins."""

PPM = 1_000_000


class HasTime(Protocol):
    now_ns: int


class SimulatedClock:
    """`environment.Clock` of one computer. `drift_ppm`: how much faster than the world's it runs."""

    __slots__ = ("_loop", "_offset_ns", "_rate_ppm", "_wall_ns")

    def __init__(self, loop: HasTime, *, drift_ppm: int = 0, offset_ns: int = 0, wall_error_ns: int = 0) -> None:
        self._loop = loop
        self._rate_ppm = PPM + drift_ppm
        self._offset_ns = offset_ns
        self._wall_ns = WALL_OFFSET_NS + wall_error_ns - offset_ns

    def now_ns(self) -> int:
        return self._offset_ns + self._loop.now_ns * self._rate_ppm // PPM

    def wall_ns(self) -> int:
        return self._wall_ns + self.now_ns()

    def shows(self, world_ns: int) -> int:
        return self._offset_ns + world_ns * self._rate_ppm // PPM

    def when(self, local_ns: int) -> int:
        """The first moment of the world at which it shows at least that."""
        return -((self._offset_ns - local_ns) * PPM // self._rate_ppm)

    def lasts(self, local_ns: int) -> int:
        """How long so much time of it takes in the world."""
        return local_ns * PPM // self._rate_ppm
