"""Which pages of a guest are looked at in one interval: drawn at random, none twice.

pages = draw(65536, SAMPLE, environment.entropy)
"""

from __future__ import annotations

from typing import Protocol

SAMPLE_PAGES = 100
"""Of each guest and interval: any class is then known to about 10 % of the guest's memory, whatever that is."""


class Draw(Protocol):
    """What sampling needs of `environment.Entropy`."""

    def uniform(self, low: float, high: float) -> float: ...


def draw(population: int, count: int, entropy: Draw) -> list[int]:
    """`count` different numbers below `population`, ascending, every set of them equally likely (Floyd's algorithm).

    All of them if there are no more.
    """
    if count >= population:
        return list(range(population))
    chosen: set[int] = set()
    for last in range(population - count, population):
        number = min(last, int(entropy.uniform(0, last + 1)))
        chosen.add(last if number in chosen else number)
    return sorted(chosen)
