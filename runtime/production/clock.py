"""`environment.Clock` of a real computer."""

from __future__ import annotations

import time


class SystemClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()
