"""What a chaos run found: for each property how often it was looked at, and every time that it did not hold."""

from __future__ import annotations

from collections.abc import Callable
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
        return not self.violations


class Findings:
    """`now_s` is the run's clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.verdicts: dict[str, Verdict] = {}
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
                "holds": verdict.holds,
                "looked": verdict.looked,
                "evidence": verdict.evidence,
                "violations": [{"at_s": round(at_s, 3), "what": what} for at_s, what in verdict.violations],
            }
            for verdict in self.verdicts.values()
        ]
