"""Neighbours among numbers: what lies side by side is moved, marked and freed in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Run = tuple[int, int]
"""First, count."""


def runs(numbers: Sequence[int]) -> list[Run]:
    """Ascending numbers, each there once, as runs of neighbours.

    They ascend, so two of them that are as far apart in value as in place have only neighbours between them: a long
    run is found in a few steps, and not one by one.
    """
    if len(numbers) == 1:
        return [(numbers[0], 1)]
    found: list[Run] = []
    at, end = 0, len(numbers)
    while at < end:
        first, last, step = numbers[at], at, 1
        while last + step < end and numbers[last + step] - first == last + step - at:
            last += step
            step *= 2
        while step := step // 2:
            if last + step < end and numbers[last + step] - first == last + step - at:
                last += step
        found.append((first, last - at + 1))
        at = last + 1
    return found


def marked_runs(marks: bytes) -> Iterator[Run]:
    """Where `marks`, bytes of 0 or 1, are 1."""
    start = marks.find(1)
    while start >= 0:
        end = marks.find(0, start)
        end = len(marks) if end < 0 else end
        yield start, end - start
        start = marks.find(1, end)
