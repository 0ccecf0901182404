"""Long walks through the metadata, in turns: a host has leases to renew, whatever it is asked to count.

    def usage_in_turns(snapshots, record) -> Walk[Usage]: ...    # `yield` now and then, `return` the result
    found = await in_turns(usage_in_turns(standing(snapshots), record))
    found = at_once(usage_in_turns(snapshots, record))

What is walked through must not change meanwhile: `standing` is a copy of the metadata, a few milliseconds for a GiB of
old blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from everram.actors.nvm_device.media import Media
from everram.actors.nvm_device.snapshots import Snapshots
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.heap import HeapMapping

T = TypeVar("T")
Walk = Generator[None, None, T]
TURN_NUMBERS = 8192
"""Whatever is done with each, that many take a few milliseconds."""


async def in_turns(walk: Walk[T]) -> T:
    while True:
        try:
            next(walk)
        except StopIteration as end:
            found: T = end.value
            return found
        await asyncio.sleep(0)


def at_once(walk: Walk[T]) -> T:
    while True:
        try:
            next(walk)
        except StopIteration as end:
            found: T = end.value
            return found


def slices(numbers: Iterable[T]) -> Iterator[list[T]]:
    """As many at once as one turn takes."""
    rest = iter(numbers)
    while some := list(islice(rest, TURN_NUMBERS)):
        yield some


def standing(snapshots: Snapshots) -> Snapshots:
    """As they are now, to be looked at only. What lies in arenas and in the store is not copied. Raises DataLoss."""
    mapping = snapshots.media.mapping
    copy = HeapMapping.of(mapping.load(0, mapping.size_bytes))
    return Snapshots.open(Media.open(_Copied(copy)), snapshots.arena_of, snapshots.blocks)


class _Copied:
    """`media.Space` of such a copy."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    def map(self) -> Mapping:
        return self._mapping

    def grow(self, size_bytes: int) -> Mapping:
        raise ResourceExhausted("this copy of the metadata is only looked at")
