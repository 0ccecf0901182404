"""How much is taken from whom, by which technique. The targets differ by technique.

A balloon lets the guest choose, so it may be asked for all that is free, all clean cache that nobody uses, and a share
of the anonymous memory that nobody uses. Swapping lets the host choose: it knows less, so it is given less, the lower
bounds of the estimates. Sharable pages are taken off both (there are none: `Demand.sharable` says why), and nobody goes
below a floor: the minimum of a guest, and its working set while there is any other way.

    wanted = divide(demands, shortage_pages, Technique.BALLOON)

Guests give in rounds, cheapest first: what is free in any guest before cache of any other, and that before anonymous
memory; last of all idle cache that was seen to come back to use much more often than that (`warmth.py`). Within a round
each gives in proportion to what it has.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from everram.actors.memory_scheduler.estimates import Usage
from everram.actors.memory_scheduler.pressure import Pressure
from everram.runtime.formats.page_classes import PageClass

ANONYMOUS_SHARE = 0.5
"""Of inactive anonymous pages, by balloon: to give those up a guest needs a place for them."""
BLIND_SHARE = 0.5
"""Of what may be swapped, of a guest that does not say what its pages are."""


class Technique(enum.Enum):
    NONE = "none"
    BALLOON = "balloon"
    SWAP = "swap"


@dataclass(frozen=True, slots=True)
class Demand:
    """One guest as far as its memory is concerned, in pages."""

    guest_id: str
    resident: int
    """Pages of the host's memory that it has: known, not estimated."""
    usage: Usage
    min_pages: int = 0
    """A reservation: never taken."""
    max_pages: int = 1 << 62
    """What it has beyond is taken in every state."""
    sharable: float = 0.0
    """Pages that cost nothing while they stay, because others hold the same content. Always 0: a guest's memory is an
    object of its own, which peers and successors address by name, and no kernel merges shared mappings; so the second
    copy of a page is as much memory as the first, and taking it back gives as much. Pages of zeros, by far the most of
    all equal ones, are never written to the swap file, and come back without it."""
    answers: bool = True
    """Whether it says what its pages are, and lately enough."""
    free: int | None = None
    """Pages that are free inside it, if they were counted: nothing of any guest is taken on a guess before them."""
    cache_is_warm: bool = False
    """Its idle cache is wanted back more often than idle anonymous memory of the host's guests is."""


def choose(
    pressure: Pressure, *, answers: bool, balloon_stalls: bool, swap_works: bool, cache_is_warm: bool
) -> tuple[Technique, str]:
    """The technique for one guest, and why, in words that end a sentence."""
    if pressure is Pressure.HIGH:
        return Technique.NONE, "enough memory is available"
    swap = Technique.SWAP if swap_works else Technique.NONE
    lost = "" if swap_works else "; swapping is off"
    if not answers:
        if pressure is Pressure.CLEAR:
            return Technique.NONE, "the guest does not answer, and there is no need yet to swap"
        return swap, f"the guest does not answer in time{lost}"
    if pressure is Pressure.CLEAR:
        return Technique.BALLOON, "less than the minimum is available: what is free inside guests is taken"
    if balloon_stalls:
        return swap, f"its balloon does not give what it was asked for{lost}"
    if pressure >= Pressure.HARD and swap_works:
        return Technique.SWAP, "available memory is below the threshold for ballooning alone"
    if cache_is_warm and swap_works:
        return Technique.SWAP, "what is left to balloons is cache that is used more often than idle anonymous memory"
    return Technique.BALLOON, "available memory is above the threshold for swapping"


Rounds = tuple[float, float, float, float]
"""Pages that may be taken in each: free, clean cache, anonymous, warm cache."""


def reclaimable(demand: Demand, technique: Technique, pressure: Pressure) -> Rounds:
    """Of one guest. Their sum is its greatest target."""
    usage = demand.usage
    if technique is Technique.NONE:
        return 0.0, 0.0, 0.0, 0.0
    if technique is Technique.BALLOON:
        free = usage.pages(PageClass.FREE) if demand.free is None else demand.free
        buffer = usage.pages(PageClass.INACTIVE_BUFFER)
        anonymous = ANONYMOUS_SHARE * usage.pages(PageClass.INACTIVE_ANONYMOUS)
        if pressure is Pressure.CLEAR:
            buffer = anonymous = 0.0
    else:
        share = 1.0 if demand.answers else BLIND_SHARE
        # Thrown away and not saved.
        free = usage.low(PageClass.FREE) if demand.free is None else demand.free
        buffer = share * usage.low(PageClass.INACTIVE_BUFFER)
        anonymous = share * usage.low(PageClass.INACTIVE_ANONYMOUS)
    return _bounded(demand, (free, 0.0, anonymous, buffer) if demand.cache_is_warm else (free, buffer, anonymous, 0.0))


def _bounded(demand: Demand, rounds: Rounds) -> Rounds:
    """Minus sharable pages, from the dearest on; not below the floor."""
    sharable, left = demand.sharable, max(0.0, demand.resident - demand.min_pages)
    bounded = list(rounds)
    for number in (3, 2, 1):
        spared = min(sharable, bounded[number])
        bounded[number] -= spared
        sharable -= spared
    for number, pages in enumerate(bounded):
        bounded[number] = min(pages, left)
        left -= bounded[number]
    free, buffer, anonymous, warm = bounded
    return free, buffer, anonymous, warm


def divide(
    demands: Sequence[Demand],
    techniques: Mapping[str, Technique],
    shortage: float,
    pressure: Pressure,
    in_use: float | None = None,
) -> dict[str, int]:
    """Pages to take from each guest, together at most `shortage` but for what a guest has beyond its maximum; beyond
    `in_use` only what is free inside guests."""
    offers = {d.guest_id: reclaimable(d, techniques[d.guest_id], pressure) for d in demands}
    taken = {d.guest_id: float(max(0, d.resident - d.max_pages)) for d in demands}
    for number in range(4):
        wanted = shortage if number == 0 or in_use is None else min(shortage, in_use)
        left = wanted - sum(taken.values())
        # What was taken for the maximum came out of the first rounds.
        open_offers = {
            guest_id: max(0.0, min(rounds[number], sum(rounds[: number + 1]) - taken[guest_id]))
            for guest_id, rounds in offers.items()
        }
        offered = sum(open_offers.values())
        if offered <= 0 or left <= 0:
            continue
        part = min(1.0, left / offered)
        for guest_id, pages in open_offers.items():
            taken[guest_id] += pages * part
    return {guest_id: int(pages) for guest_id, pages in taken.items()}


def squeeze(demands: Sequence[Demand], shortage: float) -> dict[str, int]:
    """Where a host has nothing left: from everybody, first what is beyond working sets, then what is beyond minimums.
    In proportion within each, and rounded up: a page too few would leave a paused guest paused."""
    beyond = {d.guest_id: float(max(0, d.resident - d.min_pages)) for d in demands}
    idle = {
        d.guest_id: min(beyond[d.guest_id], max(0.0, d.resident - d.usage.working_set)) if d.usage.totals else 0.0
        for d in demands
    }
    taken = dict.fromkeys(beyond, 0.0)
    for offers in (idle, beyond):
        left = shortage - sum(taken.values())
        offered = sum(offers[guest_id] - taken[guest_id] for guest_id in offers)
        part = min(1.0, left / offered) if offered > 0 else 0.0
        for guest_id, pages in offers.items():
            taken[guest_id] += (pages - taken[guest_id]) * part
    return {guest_id: min(math.ceil(pages), int(beyond[guest_id])) for guest_id, pages in taken.items()}
