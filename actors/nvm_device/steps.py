"""Long work in steps: who walks through a million blocks may not keep the loop from its other work meanwhile.

def count(...) -> Steps[int]:       # a generator that yields nothing, now and then, and returns its result
total = finish(count(...))          # in one go: tests, benchmarks, what is known to be short
total = await gradually(count(...)) # a host's other work comes between the steps
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
STEP_NUMBERS = 8192
"""Whatever is done with each, that many take a few milliseconds."""


def finish(steps: Steps[T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def gradually(steps: Steps[T]) -> T:
    """What the steps look at must not change meanwhile, or they have to allow for it (`Snapshots.frozen`)."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


def slices(numbers: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as one step takes."""
    rest = iter(numbers)
    while some := list(islice(rest, STEP_NUMBERS)):
        yield some
