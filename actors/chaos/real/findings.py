"""What a chaos run found: for each property how often it was looked at, and every time that it did not hold.

One that nobody looked at is among them, and is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

VIOLATIONS_MAX = 20
"""Of one property that are kept: the first explain the rest."""


@dataclass(slots=True)
class Verdict:
    claim: str
    """The property, in words."""
    looked: int = 0
    """How often it was looked at: what holds because nobody looked holds nothing."""
    evidence: str = ""
    violations: list[tuple[float, str]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return self.looked > 0 and not self.violations

    @property
    def word(self) -> str:
        return "VIOLATED" if self.violations else "holds" if self.looked else "NOT LOOKED AT"


class Findings:
    """`now_s` is the run's clock, `claims` what is to be looked at."""

    def __init__(self, now_s: Callable[[], float], claims: Sequence[str] = ()) -> None:
        self._now_s = now_s
        self.verdicts = {claim: Verdict(claim) for claim in claims}
        self.longest_s = 0.0
        """That anybody waited."""

    def look(self, claim: str) -> Verdict:
        """One look at a property."""
        verdict = self.verdicts.setdefault(claim, Verdict(claim))
        verdict.looked += 1
        return verdict

    def violate(self, claim: str, what: str) -> None:
        verdict = self.verdicts.setdefault(claim, Verdict(claim))
        if len(verdict.violations) < VIOLATIONS_MAX:
            verdict.violations.append((self._now_s(), what))

    @property
    def violations(self) -> int:
        return sum(len(verdict.violations) for verdict in self.verdicts.values())

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "property": verdict.claim,
                "word": verdict.word,
                "holds": verdict.holds,
                "looked": verdict.looked,
                "evidence": verdict.evidence,
                "violations": [{"at_s": round(at_s, 3), "what": what} for at_s, what in verdict.violations],
            }
            for verdict in self.verdicts.values()
        ]
