"""Twenty guests on five hosts as numbers: total work of a way to divide memory, by seed; with the real decisions.

A guest is how many pages it has of each class, which changes with its phases; a host has two thirds of what its four
guests were promised. In each interval a way takes pages; what then is not there, and is used, costs: a page of the
working set once each interval, one that is hardly used now and then. Work is the time that is left.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from everram.actors.memory_scheduler.estimates import Usage, estimate
from everram.actors.memory_scheduler.pressure import Pressure, distress, next_pressure, shortage, shortage_in_use
from everram.actors.memory_scheduler.sampling import SAMPLE_PAGES
from everram.actors.memory_scheduler.targets import Demand, Technique, choose, divide, squeeze
from everram.runtime.formats.page_classes import RESIDENT, PageClass
from everram.runtime.memory.contract import PAGE_BYTES

HOSTS, GUESTS_EACH, INTERVALS = 5, 4, 16
PAGES = 16_384
LIMIT_BYTES = GUESTS_EACH * PAGES * PAGE_BYTES * 2 // 3
FAULT_S, FETCH_S, WRITE_S = 0.0002, 0.0005, 0.00001
"""Paging in, getting cache again, paging out; an interval is one second."""
SELDOM = 0.01
"""Of inactive pages, in one interval."""
WAYS = ("everram", "swap_only_random", "swap_only_lru", "balloon_only", "access_only")
IDLE = (PageClass.INACTIVE_ANONYMOUS, PageClass.INACTIVE_BUFFER, PageClass.FREE)


@dataclass
class Modelled:
    wants: Counter[PageClass]
    """Pages of each class, wherever they are."""
    gone: Counter[PageClass] = field(default_factory=Counter)
    """Of those, the ones that are not in memory."""
    usage: Usage = field(default_factory=Usage)
    work: float = 0.0

    def there(self, known: PageClass) -> int:
        return max(0, self.wants[known] - self.gone[known])

    @property
    def resident(self) -> int:
        return sum(self.there(known) for known in RESIDENT)

    def take(self, known: PageClass, pages: int) -> int:
        taken = min(pages, self.there(known))
        self.gone[known] += taken
        return taken

    def live(self) -> None:
        """An interval: what is missing and used comes back, and costs."""
        lost_s = 0.0
        for known in (PageClass.UNRECLAIMABLE, PageClass.ACTIVE_ANONYMOUS, PageClass.ACTIVE_BUFFER):
            lost_s += self.gone.pop(known, 0) * FAULT_S
        for known, cost_s in ((PageClass.INACTIVE_ANONYMOUS, FAULT_S), (PageClass.INACTIVE_BUFFER, FETCH_S)):
            back = int(self.gone[known] * SELDOM)
            self.gone[known] -= back
            lost_s += back * cost_s
        self.work += max(0.0, 1.0 - lost_s)


def phase(dice: random.Random) -> Counter[PageClass]:
    weights = [dice.expovariate(1) * bias for bias in (0.2, 1.2, 1.2, 1.0, 0.6, 0.8)]
    whole = sum(weights)
    return Counter({known: int(PAGES * weight / whole) for known, weight in zip(RESIDENT, weights, strict=True)})


def sample(guest: Modelled, dice: random.Random, *, blind: bool) -> None:
    weights = [guest.there(known) for known in RESIDENT]
    seen: Counter[PageClass] = (
        Counter(dice.choices(RESIDENT, weights=weights, k=SAMPLE_PAGES)) if any(weights) else Counter()
    )
    if blind:
        active = seen[PageClass.UNRECLAIMABLE] + seen[PageClass.ACTIVE_ANONYMOUS] + seen[PageClass.ACTIVE_BUFFER]
        seen = Counter({PageClass.ACTIVE_ANONYMOUS: active, PageClass.INACTIVE_ANONYMOUS: seen.total() - active})
    guest.usage.update(estimate(seen, max(guest.resident, SAMPLE_PAGES + 1)))


def run_host(way: str, seed: int) -> float:
    dice, chance = random.Random(seed), random.Random(seed + 1)
    guests = [Modelled(phase(dice)) for _ in range(GUESTS_EACH)]
    pressure = Pressure.HIGH
    for interval in range(INTERVALS):
        for guest in guests:
            if dice.random() < 0.1:
                guest.wants = phase(dice)
                guest.gone = Counter({known: min(count, guest.wants[known]) for known, count in guest.gone.items()})
            if way not in ("swap_only_random", "swap_only_lru"):
                sample(guest, chance, blind=way == "access_only")
        available = LIMIT_BYTES - sum(guest.resident for guest in guests) * PAGE_BYTES
        pressure = next_pressure(pressure, available, LIMIT_BYTES)
        short = shortage(pressure, available, LIMIT_BYTES) // PAGE_BYTES
        in_use = shortage_in_use(pressure, available, LIMIT_BYTES) // PAGE_BYTES
        if interval and short:
            reclaim(way, guests, pressure, short, in_use, chance)
        over = sum(guest.resident for guest in guests) - LIMIT_BYTES // PAGE_BYTES
        for guest in guests:
            if over > 0 and guest is max(guests, key=lambda each: each.resident):
                continue  # it is paused: nothing is left for it
            guest.live()
    return sum(guest.work for guest in guests)


def reclaim(way: str, guests: list[Modelled], pressure: Pressure, short: int, in_use: int, dice: random.Random) -> None:
    counted = way in ("everram", "balloon_only")
    demands = [
        Demand(str(number), guest.resident, guest.usage, free=guest.there(PageClass.FREE) if counted else None)
        for number, guest in enumerate(guests)
    ]
    if way in ("swap_only_random", "swap_only_lru"):
        takes = squeeze([Demand(d.guest_id, d.resident, Usage()) for d in demands], in_use)
        techniques = dict.fromkeys(takes, Technique.SWAP)
    else:
        technique = Technique.BALLOON if way == "balloon_only" else choose(
            pressure, answers=True, balloon_stalls=False, swap_works=True, cache_is_warm=False
        )[0]  # fmt: skip
        techniques = dict.fromkeys((d.guest_id for d in demands), technique)
        takes = divide(demands, techniques, short, pressure, in_use)
        available = LIMIT_BYTES - sum(guest.resident for guest in guests) * PAGE_BYTES
        needed = distress(available, LIMIT_BYTES) // PAGE_BYTES
        if pressure is Pressure.LOW and way != "balloon_only" and sum(takes.values()) < needed:
            more = squeeze(demands, needed)
            techniques = {key: Technique.SWAP if more[key] > takes[key] else known for key, known in techniques.items()}
            takes = {guest_id: max(pages, more[guest_id]) for guest_id, pages in takes.items()}
    for guest_id, pages in takes.items():
        take(way, techniques[guest_id], guests[int(guest_id)], pages, dice)


def take(way: str, technique: Technique, guest: Modelled, pages: int, dice: random.Random) -> None:
    if way == "swap_only_random":
        part = min(1.0, pages / max(1, guest.resident))
        for known in RESIDENT:
            guest.work -= guest.take(known, int(guest.there(known) * part)) * WRITE_S
        return
    if way in ("everram", "balloon_only"):
        pages = max(0, pages - guest.take(PageClass.FREE, pages))
        if technique is Technique.BALLOON:
            pages = max(0, pages - guest.take(PageClass.INACTIVE_BUFFER, pages))
            guest.work -= guest.take(PageClass.INACTIVE_ANONYMOUS, max(0, pages)) * WRITE_S  # it writes them itself
            return
    idle = sum(guest.there(known) for known in IDLE)
    part = min(1.0, pages / idle) if idle else 0.0
    for known in IDLE:  # by age alone they look the same
        taken = guest.take(known, int(guest.there(known) * part))
        guest.work -= taken * WRITE_S
        pages -= taken
    for known in (PageClass.ACTIVE_BUFFER, PageClass.ACTIVE_ANONYMOUS):
        taken = guest.take(known, max(0, pages))
        guest.work -= taken * WRITE_S
        pages -= taken


def run_cluster(way: str, seed: int) -> float:
    return sum(run_host(way, seed * HOSTS + host) for host in range(HOSTS))


def compare(seeds: int) -> dict[str, float]:
    """Work of everram over that of each other way, all seeds together; and in how many seeds it is not less."""
    work = {
        way: [sum(run_host(way, seed * HOSTS + host) for host in range(HOSTS)) for seed in range(seeds)] for way in WAYS
    }
    found: dict[str, float] = {"hosts": HOSTS, "guests": HOSTS * GUESTS_EACH, "seeds": seeds}
    for way in WAYS[1:]:
        found[f"work_vs_{way}"] = sum(work["everram"]) / sum(work[way])
        found[f"seeds_not_less_than_{way}"] = sum(a >= b for a, b in zip(work["everram"], work[way], strict=True))
    return found
