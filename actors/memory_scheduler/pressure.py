"""How short of memory a host is: five states, each with what is done in it, and hysteresis between them.

    HIGH    enough is available               nothing is taken
    CLEAR   less than the minimum             only what is free inside guests
    SOFT    less than 64 % of it              by balloon: guests choose what they can spare; by swapping, where
                                              their cache comes back more often than idle anonymous memory
    HARD    less than 32 %                    by balloon, and by swapping what a balloon does not give in time
    LOW     less than 16 %                    as HARD, and guests that grow are paused until SOFT is reached

A state is left for a better one only when a quarter more than its bound is available: a host at a bound would
otherwise change its mind with every page.
"""

from __future__ import annotations

import enum

MIN_FREE_SHARE = 0.06
MIN_FREE_BYTES = 16 << 20
"""At least: guests take memory while the next look is awaited. Never more than a quarter of the limit."""
MARGIN = 1.25
ENOUGH = 1.5
"""Times the minimum: so much is made available of what is free inside guests once something is taken at all, so that
the next page does not start it over."""
RELIEF = 0.9
"""Times the minimum: so much of what holds something; it ends SOFT, with some to spare."""


class Pressure(enum.IntEnum):
    HIGH = 0
    CLEAR = 1
    SOFT = 2
    HARD = 3
    LOW = 4


BOUNDS = {Pressure.CLEAR: 1.0, Pressure.SOFT: 0.64, Pressure.HARD: 0.32, Pressure.LOW: 0.16}
"""Times the minimum: below it, the state is at least this one."""


def min_free(limit_bytes: int) -> int:
    """What should be available at least on a host whose guests may have `limit_bytes`."""
    return min(max(int(limit_bytes * MIN_FREE_SHARE), MIN_FREE_BYTES), limit_bytes // 4)


def next_pressure(now: Pressure, available_bytes: int, limit_bytes: int) -> Pressure:
    """`available_bytes` is negative while guests have more than they may."""
    minimum = min_free(limit_bytes)
    worse = Pressure(sum(available_bytes < bound * minimum for bound in BOUNDS.values()))
    if worse >= now:
        return worse
    better = Pressure(sum(available_bytes < bound * MARGIN * minimum for bound in BOUNDS.values()))
    return min(now, better)


def distress(available_bytes: int, limit_bytes: int) -> int:
    """How many bytes bring a host out of LOW, and of HARD, where paused guests go on: no more is ever taken of what
    guests work with."""
    return max(0, int(BOUNDS[Pressure.HARD] * MARGIN * min_free(limit_bytes)) - available_bytes)


def shortage(now: Pressure, available_bytes: int, limit_bytes: int) -> int:
    """How many bytes of what is free inside guests should be taken back in this state."""
    if now is Pressure.HIGH:
        return 0
    return max(0, int(min_free(limit_bytes) * ENOUGH) - available_bytes)


def shortage_in_use(now: Pressure, available_bytes: int, limit_bytes: int) -> int:
    """How many of them at most, of what holds something: as many as bring a host out of SOFT.

    What a guest may come back to does more in the guest than as more of a reserve, and what is taken in small steps is
    the coldest there is at each.
    """
    if now < Pressure.SOFT:
        return 0
    return max(0, int(min_free(limit_bytes) * RELIEF) - available_bytes)
