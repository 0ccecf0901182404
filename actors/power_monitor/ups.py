"""What follows from what a UPS says: plain decisions, with the time passed in.

    watch = UpsWatch(on_battery="wait")
    watch.saw(UpsReading.ON_BATTERY, now_s)        # Verdict.WAIT

    reading              while it was last known to be on line     while it was last known to be on battery
    on line              KEEP                                      BACK
    on battery           ACT, or WAIT where so configured          the same
    low battery          ACT                                       ACT
    forced shutdown      ACT                                       ACT
    not known yet        KEEP, and warn                            WAIT; ACT after BLIND_S
    stale                KEEP, and warn                            WAIT; ACT after BLIND_S
    cannot be asked      KEEP, and warn                            WAIT; ACT after BLIND_S

A UPS that falls silent while there are mains is a broken cable more often than a loss of power, and saving for it would
stop every guest: it is said, and that is all. One that falls silent on battery may be at its end, and nobody would see
the low battery come: then the memory is saved in time.
"""

from __future__ import annotations

import enum

from everram.runtime.environment import UpsReading

ACT_AT_ONCE, WAIT_FOR_LOW = "act", "wait"
"""What "on battery" means: a battery of minutes rides through short losses, one of seconds does not."""
BLIND_S = 5.0

_SILENT = frozenset({UpsReading.UNKNOWN, UpsReading.STALE, UpsReading.LOST})
_LAST = frozenset({UpsReading.LOW_BATTERY, UpsReading.FORCED_SHUTDOWN})


class Verdict(enum.Enum):
    KEEP = "there are mains"
    WAIT = "on battery, which lasts"
    ACT = "save the memory now"
    BACK = "the mains are back"


class UpsWatch:
    """See the module. `on_battery`: ACT_AT_ONCE or WAIT_FOR_LOW."""

    def __init__(self, on_battery: str = WAIT_FOR_LOW) -> None:
        self._on_battery = on_battery
        self._battery = False
        """Whether it was last known to be on battery."""
        self._blind_since_s: float | None = None
        self.warning = ""
        """What a person should know; empty: nothing."""

    def saw(self, reading: UpsReading, now_s: float) -> Verdict:
        if reading in _SILENT:
            return self._blind(reading, now_s)
        self._blind_since_s, self.warning = None, ""
        if reading is UpsReading.ON_LINE:
            was, self._battery = self._battery, False
            return Verdict.BACK if was else Verdict.KEEP
        self._battery = True
        at_once = reading in _LAST or self._on_battery == ACT_AT_ONCE
        return Verdict.ACT if at_once else Verdict.WAIT

    def _blind(self, reading: UpsReading, now_s: float) -> Verdict:
        if self._blind_since_s is None:
            self._blind_since_s = now_s
        self.warning = f"the UPS is {reading.value}: a loss of the mains would not be seen"
        if not self._battery:
            return Verdict.KEEP
        return Verdict.ACT if now_s - self._blind_since_s >= BLIND_S else Verdict.WAIT
