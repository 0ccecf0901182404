"""Looks, decides and takes back: what a host does about its guests' memory, a look at a time.

    reclaimer = Reclaimer(guests, pager, limit_bytes, environment, policy)
    await reclaimer.look()                       # again and again, every `pause_s`

Each look costs a few words of memory a guest. Once a second a guest's pages are sampled; while memory is short it is
decided every quarter of a second or faster, from whom what is taken and how, and that is then done. What is decided is
in the guest's history, "nothing to do" included.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from everram.actors.memory_scheduler.estimates import estimate
from everram.actors.memory_scheduler.guest_memory import GuestMemory
from everram.actors.memory_scheduler.history import Decision
from everram.actors.memory_scheduler.pager import BATCH_PAGES, GuestPager
from everram.actors.memory_scheduler.pressure import (
    ENOUGH,
    Pressure,
    distress,
    min_free,
    next_pressure,
    shortage,
    shortage_in_use,
)
from everram.actors.memory_scheduler.sampling import SAMPLE_PAGES, Draw, draw
from everram.actors.memory_scheduler.targets import Demand, Technique, choose, divide, squeeze
from everram.actors.memory_scheduler.warmth import is_warm, together
from everram.runtime.environment import Clock
from everram.runtime.errors import EverramError
from everram.runtime.memory.contract import PAGE_BYTES

LOOK_S, HURRY_S = 0.1, 0.03
"""Between looks at rest, and while memory is short."""
BREATH_LOOKS = 8
"""A paused guest gives nothing by itself. Where nothing can be swapped out, and it has idle cache, it runs between so
many looks and the next, to drop what it was asked for; each time after twice as many if it took more than it gave."""
TICK_NS = 1_000_000_000
"""Accesses are dated by it."""
SAMPLE_TICKS = 2
"""At rest a guest is sampled every so many ticks; while memory is short at every one."""
DECIDE_NS, URGENT_DECIDE_NS = 250_000_000, 60_000_000
REST_DECIDE_NS = 2_000_000_000
SPARE_NS = 2_000_000_000
"""A guest that asked for memory back keeps it for so long at least, if others can give."""
SPARE_REST_NS = 8_000_000_000
"""Then not again for so long: one that always asks is not always spared."""
PAGES_PER_LOOK = 4096
"""Swapped out at most before the next look: other guests' balloons may have given by then."""
SUSPECTS = 4
"""Times as many pages are watched for use as are to be swapped out."""
SUSPECTS_MAX = 1024
"""Unmapping one takes some 10 us of this host's only thread."""
DEFLATE_PART = 4
"""A balloon is let out by so many parts of what is available beyond what is needed."""

log = logging.getLogger("everram.memory_scheduler")


class Policy(Protocol):
    """How the technique for a guest is chosen: `targets.choose`, or a baseline's in a benchmark."""

    def __call__(
        self, pressure: Pressure, *, answers: bool, balloon_stalls: bool, swap_works: bool, cache_is_warm: bool
    ) -> tuple[Technique, str]: ...


class Reclaimer:
    def __init__(
        self,
        guests: dict[str, GuestMemory],
        pager: GuestPager,
        limit_bytes: int,
        clock: Clock,
        entropy: Draw,
        policy: Policy = choose,
    ) -> None:
        self.pressure = Pressure.HIGH
        self.limit_bytes = limit_bytes
        self.trouble = ""
        """Why the last attempt to swap out failed; empty: it did not."""
        self._guests = guests
        self._pager = pager
        self._clock = clock
        self._entropy = entropy
        self._policy = policy
        self._tick = 0
        self._decided_ns = 0
        self._looks = 0

    @property
    def pause_s(self) -> float:
        return LOOK_S if self.pressure is Pressure.HIGH else HURRY_S

    @property
    def available_bytes(self) -> int:
        return self.limit_bytes - sum(guest.memory.present_bytes for guest in self._guests.values())

    async def look(self) -> None:
        now_ns = self._clock.now_ns()
        for guest in self._guests.values():
            self._look_at(guest, now_ns)
        available = self.available_bytes
        before, self.pressure = self.pressure, next_pressure(self.pressure, available, self.limit_bytes)
        tick = now_ns // TICK_NS
        if tick != self._tick:
            self._tick = tick
            self._sample(tick, now_ns)
        due_ns = REST_DECIDE_NS if self.pressure is Pressure.HIGH else DECIDE_NS
        due_ns = URGENT_DECIDE_NS if self.pressure >= Pressure.HARD else due_ns
        if self.pressure > before or now_ns - self._decided_ns >= due_ns:
            self._decided_ns = now_ns
            takes = self._decide(available, now_ns)
            await self._take(takes)

    def _look_at(self, guest: GuestMemory, now_ns: int) -> None:
        guest.heard()
        given = guest.balloon.look(min(guest.classes.ballooned, guest.pages), now_ns)
        guest.counters.ballooned += given
        guest.reclaimed += given
        if guest.classes.wanted:
            if now_ns > guest.spared_until_ns + SPARE_REST_NS:
                guest.spared_until_ns = now_ns + SPARE_NS
            guest.set_target(guest.balloon.held, now_ns)

    def begin(self, guest: GuestMemory) -> None:
        """It has just come, or this host has: what it uses from now on is of this tick."""
        guest.classes.set_tick(self._clock.now_ns() // TICK_NS)

    def to_pause(self) -> set[str]:
        """Guests that grow while nothing is left; those that are paused for that stay so until there is room, but for
        a breath now and then where only they can make it."""
        low = self.pressure is Pressure.LOW and self.available_bytes <= 0
        self._looks += 1
        paused: set[str] = set()
        for guest in self._guests.values():
            resident = guest.resident
            grows, guest.resident_before = resident > guest.resident_before, resident
            before = guest.starved
            guest.starved = (low and grows) or (before and self.pressure >= Pressure.HARD)
            if guest.starved and not before:
                guest.breath.hold(self._looks, BREATH_LOOKS, resident)
            if guest.starved and not self._breathes(guest):
                paused.add(guest.guest_id)
        return paused

    def _breathes(self, guest: GuestMemory) -> bool:
        """Whether only it can make room, and has something to make it of."""
        if self._looks < guest.breath.due or (self._can_swap(guest) and not self.trouble):
            return False
        if not guest.count_unused() + guest.count_idle_cache():
            return False
        guest.breath.take(self._looks, BREATH_LOOKS, guest.resident)
        return True

    @property
    def _squeezes(self) -> bool:
        """Whether pages that guests work with are taken, too: nothing is left, or somebody is still paused for that. A
        paused guest cannot be left waiting until its pages have grown old."""
        starved = any(guest.starved for guest in self._guests.values())
        return self.pressure is Pressure.LOW or (self.pressure is Pressure.HARD and starved)

    # -- what guests do with their memory

    def _sample(self, tick: int, now_ns: int) -> None:
        # A look at all pages is worth it only while something is taken, or was and is not given back yet.
        short = self.pressure > Pressure.HIGH or any(g.balloon.asked or g.swapped for g in self._guests.values())
        for guest in self._guests.values():
            guest.look_at_warmth(pause=not short)
            guest.classes.set_tick(tick)
            if guest.swapped:
                self._pager.drop_dead(guest)
            if self.pressure is Pressure.HIGH and tick % SAMPLE_TICKS and guest.usage.samples:
                continue
            guest.ask(now_ns)
            if guest.drawn:
                guest.usage.update(estimate(guest.sampled(now_ns), guest.pages))
            guest.redraw(draw(guest.pages, SAMPLE_PAGES, self._entropy), now_ns)

    # -- what is taken from whom

    def _decide(self, available: int, now_ns: int) -> dict[str, int]:
        """Pages to take from each guest."""
        anonymous = together(guest.warmth.anonymous for guest in self._guests.values())
        for guest in self._guests.values():
            guest.cache_is_warm = is_warm(guest.warmth.cache, anonymous)
        any_warm = any(guest.cache_is_warm for guest in self._guests.values())
        demands = [guest.demand(now_ns, counted=self.pressure > Pressure.HIGH) for guest in self._guests.values()]
        for demand in demands:
            guest = self._guests[demand.guest_id]
            guest.technique, guest.reason = self._choose(guest, demand, now_ns, any_warm)
        techniques = {guest_id: guest.technique for guest_id, guest in self._guests.items()}
        short = shortage(self.pressure, available, self.limit_bytes) / PAGE_BYTES
        in_use = shortage_in_use(self.pressure, available, self.limit_bytes) / PAGE_BYTES
        takes = divide(demands, techniques, short, self.pressure, in_use)
        needed = distress(available, self.limit_bytes) / PAGE_BYTES
        if self._squeezes and needed > sum(takes.values()) and self._pager.file is not None:
            self._squeeze(demands, takes, needed)
        elif self.pressure is Pressure.HIGH:
            self._let_out(available, now_ns)
        for demand in demands:
            self._note(self._guests[demand.guest_id], takes[demand.guest_id], available, now_ns)
        return takes

    def _choose(self, guest: GuestMemory, demand: Demand, now_ns: int, any_warm: bool) -> tuple[Technique, str]:
        beyond = self.pressure is Pressure.HIGH and demand.resident > demand.max_pages
        technique, reason = self._policy(
            Pressure.SOFT if beyond else self.pressure,
            answers=demand.answers,
            balloon_stalls=guest.balloon.stalls(now_ns),
            swap_works=self._can_swap(guest),
            cache_is_warm=any_warm,
        )
        if beyond:
            return technique, f"it has more than its max; {reason}"
        if technique is Technique.BALLOON and now_ns < guest.spared_until_ns and self.pressure < Pressure.LOW:
            return Technique.NONE, "it has just asked for memory back"
        return technique, reason

    def _can_swap(self, guest: GuestMemory) -> bool:
        return self._pager.file is not None and guest.paged is not None and not guest.broken

    def _squeeze(self, demands: list[Demand], takes: dict[str, int], short: float) -> None:
        for guest_id, pages in squeeze(demands, short).items():
            guest = self._guests[guest_id]
            if pages > takes[guest_id] and guest.paged is not None and not guest.broken:
                guest.technique = Technique.SWAP
                guest.reason = (
                    "nothing is left: what guests do not work with is taken, and if need be more in proportion"
                )
                takes[guest_id] = pages

    def _let_out(self, available: int, now_ns: int) -> None:
        """There is more than enough: guests may have back what they gave."""
        spare = (available - int(ENOUGH * min_free(self.limit_bytes))) // PAGE_BYTES // DEFLATE_PART
        holders = [guest for guest in self._guests.values() if guest.balloon.asked]
        for guest in holders:
            more = spare // len(holders)
            if more > 0:
                guest.set_target(max(0, min(guest.balloon.asked, guest.balloon.held) - more), now_ns)

    def _note(self, guest: GuestMemory, target: int, available: int, now_ns: int) -> None:
        reason = guest.reason
        if not target and guest.technique is not Technique.NONE:
            reason += "; it has nothing to spare, or others have enough"
        guest.history.add(
            Decision(now_ns, self.pressure, guest.technique, target, reason, available, reclaimed=guest.reclaimed)
        )
        guest.reclaimed = 0

    # -- taking

    async def _take(self, takes: Mapping[str, int]) -> None:
        self.trouble = "" if self.pressure is Pressure.HIGH else self.trouble
        for guest_id, pages in takes.items():
            guest = self._guests.get(guest_id)
            if guest is None or guest.closed or not pages:
                continue
            if guest.technique is Technique.BALLOON:
                guest.ask_for(pages, self._clock.now_ns())
            elif guest.technique is Technique.SWAP:
                try:
                    await self._swap(guest, pages)
                    self.trouble = ""
                except EverramError as error:
                    if not self.trouble:
                        about = {"guest": guest.guest_id}
                        log.warning("%s cannot be swapped out: %s", guest.name, error.message, extra=about)
                    self.trouble = error.message
                    if guest.answers(self._clock.now_ns()):
                        guest.ask_for(pages, self._clock.now_ns())

    async def _swap(self, guest: GuestMemory, pages: int) -> None:
        """What is free inside the guest, then what it says is coldest, then what is seen to be.

        Clean cache of a guest that answers is never written to the swap file: it is asked to drop it.
        """
        now_ns = self._clock.now_ns()
        answers = guest.answers(now_ns)
        drops = answers and not guest.balloon.stalls(now_ns) and not guest.starved
        left = min(pages, PAGES_PER_LOOK)
        # What it gives by itself costs it nothing when it takes that back; what is thrown away here is there at once.
        asked = min(left, guest.count_unused()) if drops and self.pressure < Pressure.HARD else 0
        left -= asked or self._discard_free(guest, left)
        if drops and not guest.cache_is_warm:
            left -= (idle := min(left, guest.count_idle_cache()))
            asked += idle
        if asked:
            guest.ask_for(asked, now_ns)
        if left > 0 and answers:
            left -= await self._swap_all(guest, guest.coldest(left, but_cache=drops))
        if left > 0 and not guest.closed:
            left -= await self._swap_suspects(guest, left, answers)
        if left > 0 and not guest.closed and drops and guest.cache_is_warm:
            left -= (idle := min(left, guest.count_idle_cache()))
            guest.ask_for(asked + idle, now_ns)
        if left > 0 and not guest.closed and answers and self._squeezes:
            await self._swap_all(guest, guest.coldest(left, however_warm=True))

    def _discard_free(self, guest: GuestMemory, pages: int) -> int:
        free = guest.unused()[:pages]
        return self._pager.discard(guest, free) if free else 0

    async def _swap_suspects(self, guest: GuestMemory, left: int, answers: bool) -> int:
        """Of pages whose use only the host sees: those that were not used since it began to watch them."""
        if guest.paged is None:
            return 0
        used = guest.paged.touched(guest.suspects) if guest.suspects else set()
        cold = [page for page in guest.suspects if page not in used and guest.is_present(page)][:left]
        candidates = guest.unseen() if answers else guest.any_used()
        drawn = draw(len(candidates), min(left * SUSPECTS, SUSPECTS_MAX), self._entropy)
        taken = set(cold)
        guest.suspects = [candidates[number] for number in drawn if candidates[number] not in taken]
        guest.paged.forget_touches(guest.suspects)
        return await self._swap_all(guest, cold)

    async def _swap_all(self, guest: GuestMemory, pages: list[int]) -> int:
        out = 0
        for start in range(0, len(pages), BATCH_PAGES):
            if guest.closed or guest.paged is None:
                break
            out += await self._pager.swap_out(guest, pages[start : start + BATCH_PAGES])
        return out
