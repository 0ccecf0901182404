"""A set of pages kept as runs: what an allocator has to give, what a balloon holds. Plain data, no memory behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

Run = tuple[int, int]
"""First page, number of pages."""


class PageRuns:
    """Disjoint runs, ascending, never touching each other. `pages` is how many there are in all."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs: list[Run] = []
        self.pages = 0
        for first, count in runs:
            self.add(first, count)

    def runs(self) -> list[Run]:
        return list(self._runs)

    def add(self, first: int, count: int) -> None:
        """Pages that are not in the set."""
        if count <= 0:
            return
        at = bisect_left(self._runs, (first, 0))
        start, end = first, first + count
        before = self._runs[at - 1] if at else (0, 0)
        after = self._runs[at] if at < len(self._runs) else (end, 0)
        assert sum(before) <= start, f"page {start} is in the set already"
        assert after[0] >= end, f"page {after[0]} is in the set already"
        low = high = at
        if at and sum(before) == start:
            low, start = at - 1, before[0]
        if at < len(self._runs) and after[0] == end:
            high, end = at + 1, sum(after)
        self._runs[low:high] = [(start, end - start)]
        self.pages += count

    def take(self, count: int) -> list[Run]:
        """Exactly so many pages, in one run if there is one that long, the lowest first. The set must have them."""
        assert count <= self.pages, f"{count} pages of {self.pages}"
        for at, (first, length) in enumerate(self._runs):
            if length >= count:
                self._cut(at, first, count)
                return [(first, count)]
        taken: list[Run] = []
        while count:
            first, length = self._runs[0]
            taken.append((first, min(length, count)))
            self._cut(0, *taken[-1])
            count -= taken[-1][1]
        return taken

    def take_run(self, first: int, count: int) -> None:
        """Pages that lie in one run of the set."""
        at = bisect_left(self._runs, (first + 1, 0)) - 1
        assert at >= 0, f"page {first} is not in the set"
        assert sum(self._runs[at]) >= first + count, f"page {first + count - 1} is not in the set"
        self._cut(at, first, count)

    def _cut(self, at: int, first: int, count: int) -> None:
        start, length = self._runs[at]
        end = start + length
        left = [(start, first - start), (first + count, end - first - count)]
        self._runs[at : at + 1] = [run for run in left if run[1]]
        self.pages -= count
