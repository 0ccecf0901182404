"""Why a guest's memory is as it is: one record for each decision, "nothing to do" included; the last ones are kept.

A decision that is the same as the one before is counted, not added, so that what happened an hour ago is not pushed out
by an hour of quiet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from everram.actors.memory_scheduler.pressure import Pressure
from everram.actors.memory_scheduler.targets import Technique

KEPT = 64


@dataclass(frozen=True, slots=True)
class Decision:
    """About one guest in one interval; pages, and times by the host's clock."""

    at_ns: int
    pressure: Pressure
    technique: Technique
    target: int
    """Pages to be taken in this interval."""
    reason: str
    available_bytes: int
    reclaimed: int = 0
    """Pages that were taken since the decision before."""
    times: int = 1
    until_ns: int = 0
    """Of the last of `times` equal ones."""

    def is_quiet(self) -> bool:
        return not self.target and not self.reclaimed


@dataclass(slots=True)
class History:
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, decision: Decision) -> None:
        last = self.decisions[-1] if self.decisions else None
        same = (
            last is not None
            and last.is_quiet()
            and decision.is_quiet()
            and (last.pressure, last.technique, last.reason) == (decision.pressure, decision.technique, decision.reason)
        )
        if same and last is not None:
            self.decisions[-1] = replace(
                last, times=last.times + 1, until_ns=decision.at_ns, available_bytes=decision.available_bytes
            )
        else:
            self.decisions.append(replace(decision, until_ns=decision.at_ns))
