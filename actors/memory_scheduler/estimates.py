"""What a sample of a guest's pages says about all of them: totals of each class with confidence intervals, smoothed.

    counts = Counter(classify(...) for page in draw(...))
    totals = estimate(counts, pages=65536)
    usage.update(totals)                      # rises fast, falls slowly
    usage.working_set

The interval of a class is Wilson's, with the correction for a finite population: it holds for classes of which the
sample had none as well, where the plain formula N * sqrt(p * (1 - p) / n) says "none, for certain". A guest that is
sampled whole is known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt

from everram.runtime.formats.page_classes import WORKING, PageClass

Z = 1.96
"""Of the normal distribution: 95 %."""
RISE = 0.75
"""Weight of a new estimate above the smoothed one: a guest that begins to work is seen at once."""
FALL = 0.2
"""Weight of one below: a pause of one interval does not make a guest's memory free for the taking."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Pages of one class: the most likely total, and bounds that hold it 95 times in a hundred."""

    pages: float
    low: float
    high: float


def estimate(counts: Mapping[PageClass, int], pages: int) -> dict[PageClass, Estimate]:
    """For every class; `counts` are of a sample without replacement from `pages` pages."""
    sampled = sum(counts.values())
    return {known: _interval(counts.get(known, 0), sampled, pages) for known in PageClass}


def _interval(seen: int, sampled: int, pages: int) -> Estimate:
    if not sampled:
        return Estimate(0.0, 0.0, float(pages))
    share = seen / sampled
    if sampled >= pages:
        return Estimate(float(seen), float(seen), float(seen))
    # A sample without replacement tells more than one with: as much as one of so many.
    effective = sampled * (pages - 1) / (pages - sampled)
    middle = (share + Z * Z / (2 * effective)) / (1 + Z * Z / effective)
    half = Z * sqrt(share * (1 - share) / effective + (Z / (2 * effective)) ** 2) / (1 + Z * Z / effective)
    # What was seen is there, and what was seen to be something else is not.
    low = max(float(seen), pages * (middle - half))
    high = min(float(pages - (sampled - seen)), pages * (middle + half))
    return Estimate(share * pages, min(low, share * pages), max(high, share * pages))


@dataclass(slots=True)
class Usage:
    """A guest's smoothed totals over time. `totals` is empty before the first sample."""

    totals: dict[PageClass, Estimate] = field(default_factory=dict)
    samples: int = 0

    def update(self, fresh: Mapping[PageClass, Estimate]) -> None:
        """Classes of the working set rise fast and fall slowly; the others the other way round: each errs on the side
        on which too little is taken. What is free, or not resident, is so whatever was before."""
        self.samples += 1
        if not self.totals:
            self.totals = dict(fresh)
            return
        for known, new in fresh.items():
            old = self.totals[known]
            rises = new.pages > old.pages
            if known >= PageClass.FREE:
                weight = 1.0
            elif known in WORKING:
                weight = RISE if rises else FALL
            else:
                weight = FALL if rises else RISE
            self.totals[known] = Estimate(
                *(before + weight * (now - before) for before, now in zip(_bounds(old), _bounds(new), strict=True))
            )

    def pages(self, known: PageClass) -> float:
        return self.totals[known].pages if self.totals else 0.0

    def low(self, known: PageClass) -> float:
        return self.totals[known].low if self.totals else 0.0

    @property
    def working_set(self) -> float:
        """Unreclaimable and active pages."""
        return sum(self.pages(known) for known in WORKING)

    @property
    def working_set_high(self) -> float:
        """What it may be at most: the bounds of independent errors, added as those are."""
        return self.working_set + sqrt(
            sum((self.totals[known].high - self.totals[known].pages) ** 2 for known in WORKING) if self.totals else 0.0
        )


def _bounds(of: Estimate) -> tuple[float, float, float]:
    return of.pages, of.low, of.high
