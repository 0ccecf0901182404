"""What a battery is good for: plain arithmetic, with everything that was measured passed in.

    budget = Energy(battery_s=5.0, save_bytes_per_s=4e8, link_bytes_per_s=1e9).budget(memory)
    budget.cap_bytes             # how much of the tracked regions may be dirty; None: all of it
    budget.log_bytes             # how much log may be outstanding, of all guests together

The battery's seconds are spent in this order: guests are stopped and the marker is written (OVERHEAD_S), the log's rest
is shipped, what a lazy restore has left in its image is read if it has to be saved again, the memory is saved. Of all
that only SAFETY is counted on: a battery ages, and a disk may be slower than it was when it was measured.

Memory of three kinds. *Full*: whatever is not tracked is counted as it is, because nobody knows what of it changes:
metadata, logs, files, regions that somebody stores to unseen. *Tracked*: regions, of which as much may be dirty as is
left. If everything may be dirty there is no cap, and nobody is slowed. A battery that does not even hold the full part,
and LEAST_CAP_BYTES for guests to go on with, protects nothing: a cap could only stop them for good, so there is none,
and the budget says that it is not *covered*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SAFETY = 0.7
OVERHEAD_S = 0.05
"""To stop the guests (milliseconds, if they are busy) and to make catalog and marker durable."""
DRAIN_PART = 0.25
"""Of the battery, at most: what may be outstanding of the logs is limited to what takes no longer to ship."""
LEAST_CAP_BYTES = 1 << 20
RESUME_FACTOR = 1.25
"""Tracking ends only when there is so much more than is needed: it would begin again otherwise."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is to be saved."""

    full_bytes: int
    tracked_bytes: int
    logs_bytes: int = 0
    """Rings of guests that have copies elsewhere; part of `full_bytes`, too."""
    absent_bytes: int = 0
    """Still in an image, and to be read before anything is saved."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What follows."""

    save_bytes: int
    """That the battery can save."""
    cap_bytes: int | None
    """Of tracked regions; None: all of them."""
    log_bytes: int | None
    """Of all logs together; None: as much as their rings hold."""
    covered: bool
    """Whether a loss of the mains is survived by all that there is."""

    @property
    def tracks(self) -> bool:
        return self.cap_bytes is not None


@dataclass(frozen=True, slots=True)
class Energy:
    """What there is to do it with."""

    battery_s: float
    save_bytes_per_s: float
    link_bytes_per_s: float
    read_bytes_per_s: float = math.inf

    def budget(self, memory: Memory, *, cap_bytes_max: int | None = None, tracking: bool = False) -> Budget:
        """`cap_bytes_max`: what a person has set. `tracking`: whether there is a cap already."""
        counted_s = max(0.0, SAFETY * self.battery_s - OVERHEAD_S)
        log_bytes = int(DRAIN_PART * counted_s * self.link_bytes_per_s)
        limited = memory.logs_bytes > log_bytes
        drain_s = min(memory.logs_bytes, log_bytes) / self.link_bytes_per_s
        read_s = memory.absent_bytes / self.read_bytes_per_s
        save_bytes = int(max(0.0, counted_s - drain_s - read_s) * self.save_bytes_per_s)
        left = save_bytes - memory.full_bytes
        covered = left >= min(LEAST_CAP_BYTES, memory.tracked_bytes)
        enough = left >= memory.tracked_bytes * (RESUME_FACTOR if tracking else 1.0)
        cap = None if enough or not covered else left
        if covered and cap_bytes_max is not None and cap_bytes_max < memory.tracked_bytes:
            cap = min(left, cap_bytes_max)
        return Budget(save_bytes, cap, log_bytes if limited and covered else None, covered)
