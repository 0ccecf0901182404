"""The memory scheduler's decisions: samples, estimates, host states, targets, admission, history."""

from __future__ import annotations

import random
from collections import Counter
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._scheduler_model import compare
from everram.actors.memory_scheduler.admission import Room, Wish, admit, check_limits
from everram.actors.memory_scheduler.estimates import Estimate, Usage, Z, estimate
from everram.actors.memory_scheduler.guest_memory import STALL_NS, STALL_REST_NS, Balloon
from everram.actors.memory_scheduler.history import KEPT, Decision, History
from everram.actors.memory_scheduler.pressure import (
    BOUNDS,
    Pressure,
    min_free,
    next_pressure,
    shortage,
    shortage_in_use,
)
from everram.actors.memory_scheduler.sampling import draw
from everram.actors.memory_scheduler.targets import Demand, Technique, choose, divide, reclaimable, squeeze
from everram.actors.memory_scheduler.warmth import ACTIVE_TICKS, Reuse, Warmth, is_warm, together
from everram.runtime.errors import InvalidArgument, ResourceExhausted
from everram.runtime.formats.page_classes import OPEN, Kind, PageClass, PageClasses, age, classify
from everram.runtime.memory.heap import HeapMapping

MIB = 1 << 20
GIB = 1 << 30


# -- page classes


def test_a_page_is_what_the_host_knows_before_it_is_what_the_guest_says() -> None:
    for kind in range(256):
        assert classify(kind, True, present=False, swapped=True) is PageClass.SWAPPED
    assert classify(Kind.BALLOONED, False, present=False, swapped=False) is PageClass.BALLOONED
    assert classify(Kind.FREE, False, present=False, swapped=False) is PageClass.UNTOUCHED
    assert classify(Kind.BALLOONED, False, present=True, swapped=False) is PageClass.FREE
    assert classify(Kind.PINNED, False, present=True, swapped=False) is PageClass.UNRECLAIMABLE
    assert classify(Kind.DIRTY, True, present=True, swapped=False) is PageClass.ACTIVE_BUFFER
    assert classify(Kind.ANONYMOUS | OPEN, False, present=True, swapped=False) is PageClass.INACTIVE_ANONYMOUS
    # What it may not say counts as the dearest kind that is still reclaimable.
    assert classify(99, True, present=True, swapped=False) is PageClass.ACTIVE_ANONYMOUS


def test_a_table_of_classes() -> None:
    mapping = HeapMapping(PageClasses.total_bytes(5000))
    host = PageClasses.format(mapping, 5000)
    guest = PageClasses.open(mapping)
    host.set_tick(300)
    host.set_target(17)
    guest.set_kind(4990, 10, Kind.BUFFER)
    guest.touch(4990, 5)
    guest.set_answer(host.question)
    assert guest.target == 17
    assert host.kinds().count(Kind.BUFFER) == 10
    assert [age(touched, host.tick) for touched in host.touches()[4988:4996]] == [44, 44, 0, 0, 0, 0, 0, 44]
    host.set_tick(300 + 200)
    guest.forget_old()
    host.set_tick(300 + 256)
    assert age(host.touches()[4990], host.tick) > 100
    with pytest.raises(IndexError):
        guest.set_kind(4999, 2, Kind.FREE)
    with pytest.raises(ValueError, match="version"):
        PageClasses.open(HeapMapping(PageClasses.total_bytes(10)))
    with pytest.raises(ValueError, match="fit"):
        PageClasses(HeapMapping(4096), 10)


# -- samples and estimates


@given(population=st.integers(0, 5000), count=st.integers(0, 300), seed=st.integers())
def test_a_sample_is_without_replacement(population: int, count: int, seed: int) -> None:
    drawn = draw(population, count, random.Random(seed))
    assert len(drawn) == len(set(drawn)) == min(count, population)
    assert drawn == sorted(drawn)
    assert all(0 <= page < population for page in drawn)


def test_every_page_is_as_likely_to_be_drawn() -> None:
    dice = random.Random(3)
    seen = Counter(page for _ in range(4000) for page in draw(20, 5, dice))
    assert all(abs(times - 1000) < 150 for times in seen.values())
    assert len(seen) == 20


def test_intervals_cover_the_truth_and_are_not_much_wider_than_the_formula() -> None:
    dice = random.Random(8)
    covered = trials = 0
    width = formula = 0.0
    for _ in range(150):
        pages, n = dice.randrange(1000, 8000), 100
        shares = [dice.expovariate(1) for _ in PageClass]
        population = dice.choices(list(PageClass), weights=shares, k=pages)
        truth = Counter(population)
        totals = estimate(Counter(population[page] for page in draw(pages, n, dice)), pages)
        for known, total in totals.items():
            covered += total.low <= truth[known] <= total.high
            trials += 1
            width += total.high - total.low
            p = truth[known] / pages
            formula += 2 * Z * pages * sqrt(p * (1 - p) / n)
    assert covered / trials >= 0.93
    assert width / formula <= 1.2


@given(st.dictionaries(st.sampled_from(PageClass), st.integers(0, 100)), st.integers(0, 100_000))
def test_estimates_never_contradict_what_was_seen(counts: dict[PageClass, int], more: int) -> None:
    pages = sum(counts.values()) + more
    for known, total in estimate(counts, pages).items():
        assert total.low <= total.pages <= total.high or not sum(counts.values())
        assert total.low >= 0
        assert total.high <= pages
        if not more:
            assert total.low == total.high == counts.get(known, 0)


def whole(**pages: float) -> dict[PageClass, Estimate]:
    """Known exactly."""
    return {known: Estimate(*([float(pages.get(known.name.lower(), 0))] * 3)) for known in PageClass}


def usage(**pages: float) -> Usage:
    made = Usage()
    made.update(whole(**pages))
    return made


def test_a_working_set_rises_fast_and_falls_slowly() -> None:
    of = usage(active_anonymous=100, inactive_anonymous=900)
    of.update(whole(active_anonymous=1000))
    assert of.working_set >= 700
    risen = of.working_set
    of.update(whole(active_anonymous=0, inactive_anonymous=1000))
    assert of.working_set >= 0.75 * risen
    assert of.pages(PageClass.INACTIVE_ANONYMOUS) < 500  # nor is it at once there for the taking
    of.update(whole(ballooned=40))
    assert of.pages(PageClass.BALLOONED) == 40
    assert of.working_set_high >= of.working_set


# -- host states


@given(st.integers(MIB, 1 << 40), st.lists(st.floats(-0.2, 1.0), max_size=30))
def test_states_follow_what_is_available_with_hysteresis(limit: int, shares: list[float]) -> None:
    minimum, state = min_free(limit), Pressure.HIGH
    assert 0 < minimum <= limit // 4
    for share in shares:
        available = int(share * limit * 0.2)
        before, state = state, next_pressure(state, available, limit)
        assert next_pressure(state, available, limit) is state  # it settles at once
        if state > before:
            assert available < BOUNDS[state] * minimum
        if state < before:
            assert available > BOUNDS[Pressure(state + 1)] * minimum * 1.25 - 1
        assert (shortage(state, available, limit) == 0) == (state is Pressure.HIGH or available >= int(1.5 * minimum))


def test_a_state_at_its_bound_does_not_flicker() -> None:
    minimum = min_free(GIB)
    state = next_pressure(Pressure.HIGH, minimum - 1, GIB)
    assert state is Pressure.CLEAR
    assert next_pressure(state, minimum + 1, GIB) is Pressure.CLEAR
    assert next_pressure(state, int(1.3 * minimum), GIB) is Pressure.HIGH
    assert next_pressure(Pressure.HIGH, -1, GIB) is Pressure.LOW


# -- targets


def demand(name: str, resident: int, of: Usage, **more: object) -> Demand:
    return Demand(name, resident, of, **more)  # type: ignore[arg-type]


def test_free_memory_of_one_guest_is_taken_before_anything_of_another() -> None:
    idle = demand("idle", 10_000, usage(free=6000, inactive_anonymous=4000))
    busy = demand("busy", 10_000, usage(active_anonymous=5000, inactive_anonymous=3000, inactive_buffer=2000))
    by_balloon = {"idle": Technique.BALLOON, "busy": Technique.BALLOON}
    assert divide([idle, busy], by_balloon, 5000, Pressure.SOFT) == {"idle": 5000, "busy": 0}
    taken = divide([idle, busy], by_balloon, 8500, Pressure.SOFT)
    assert taken["idle"] >= 6000
    assert taken["busy"] >= 2000  # its cache, before anonymous memory of anybody
    assert sum(taken.values()) <= 8500


def test_targets_differ_by_technique_and_shrink_with_doubt() -> None:
    certain = demand("g", 1000, usage(free=100, inactive_buffer=200, inactive_anonymous=400, active_anonymous=300))
    assert reclaimable(certain, Technique.BALLOON, Pressure.SOFT) == (100, 200, 200, 0)
    assert reclaimable(certain, Technique.SWAP, Pressure.HARD) == (100, 200, 400, 0)
    assert reclaimable(certain, Technique.BALLOON, Pressure.CLEAR) == (100, 0, 0, 0)
    assert reclaimable(certain, Technique.NONE, Pressure.LOW) == (0, 0, 0, 0)
    doubtful = Usage()
    doubtful.update(estimate({PageClass.INACTIVE_ANONYMOUS: 40, PageClass.ACTIVE_ANONYMOUS: 60}, 1000))
    anonymous = reclaimable(demand("g", 1000, doubtful), Technique.SWAP, Pressure.HARD)[2]
    assert anonymous < 400 * 0.85
    blind = demand("g", 1000, doubtful, answers=False)
    assert sum(reclaimable(blind, Technique.SWAP, Pressure.HARD)) <= anonymous / 2 + 1
    warm = demand("g", 1000, certain.usage, cache_is_warm=True)
    assert reclaimable(warm, Technique.BALLOON, Pressure.SOFT) == (100, 0, 200, 200)
    sharing = demand("g", 1000, certain.usage, sharable=450.0)
    assert reclaimable(sharing, Technique.SWAP, Pressure.HARD) == (100, 150, 0, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 9000)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 30_000),
    st.sampled_from(Technique),
)
def test_no_target_goes_below_a_floor_nor_all_together_beyond_what_is_short(
    guests: list[tuple[int, int, int, int]], short: float, technique: Technique
) -> None:
    demands = [
        demand(f"g{n}", sum(has), usage(free=has[0], inactive_buffer=has[1], inactive_anonymous=has[2]), min_pages=low)
        for n, (*has, low) in enumerate(guests)
    ]
    taken = divide(demands, dict.fromkeys((d.guest_id for d in demands), technique), short, Pressure.LOW)
    assert sum(taken.values()) <= short
    for each in demands:
        assert each.resident - taken[each.guest_id] >= min(each.resident, each.min_pages)
        assert taken[each.guest_id] >= 0


def test_only_what_is_free_is_taken_beyond_what_is_needed() -> None:
    guest = demand("g", 9000, usage(free=1000, inactive_buffer=3000, inactive_anonymous=3000, active_anonymous=2000))
    balloon = {"g": Technique.BALLOON}
    assert divide([guest], balloon, 5000, Pressure.SOFT, 400) == {"g": 1000}
    assert divide([guest], balloon, 5000, Pressure.SOFT, 1400) == {"g": 1400}
    assert divide([guest], balloon, 5000, Pressure.SOFT) == {"g": 5000}
    assert divide([guest], balloon, 300, Pressure.SOFT, 400) == {"g": 300}


@given(st.integers(GIB // 64, GIB), st.floats(-0.2, 1))
def test_what_is_taken_of_what_is_in_use_brings_a_host_out_of_soft_and_no_further(limit: int, share: float) -> None:
    available = int(share * min_free(limit) * 2)
    state = next_pressure(Pressure.HIGH, available, limit)
    taken = shortage_in_use(state, available, limit)
    assert taken <= shortage(state, available, limit)
    if state >= Pressure.SOFT:
        assert next_pressure(state, available + taken, limit) is Pressure.CLEAR
    else:
        assert not taken


# -- cache beside anonymous memory


class Table:
    """What a guest says, of a thousand pages of cache and as many others."""

    def __init__(self) -> None:
        self.warmth, self.tick = Warmth(), 250
        self.classes = PageClasses.format(HeapMapping(PageClasses.total_bytes(2000)), 2000)
        self.classes.set_tick(self.tick)
        self.classes.set_kind(0, 1000, Kind.BUFFER)
        self.classes.set_kind(1000, 1000, Kind.ANONYMOUS)
        self.classes.touch(0, 2000)

    def go_on(self, ticks: int, cache: int = 0, anonymous: int = 0) -> None:
        """Each tick some pages are used, the next ones each time."""
        for _ in range(ticks):
            self.classes.touch(self.tick % 20 * 50, cache)
            self.classes.touch(1000 + self.tick % 20 * 50, anonymous)
            self.warmth.look(self.classes)
            self.tick += 1
            self.classes.set_tick(self.tick)

    @property
    def is_warm(self) -> bool:
        return is_warm(self.warmth.cache, self.warmth.anonymous)


def test_cache_is_warm_that_comes_back_more_often_than_anonymous_memory() -> None:
    table = Table()
    table.go_on(ACTIVE_TICKS + 2)
    assert table.warmth.cache.idle == table.warmth.anonymous.idle == 1000, "what was just used is not idle"
    table.go_on(10, cache=12, anonymous=2)
    assert table.warmth.cache.rate == pytest.approx(0.012, rel=0.2)
    assert table.warmth.anonymous.rate == pytest.approx(0.002, rel=0.2)
    assert table.is_warm
    table.go_on(20, cache=3, anonymous=2)
    assert not table.is_warm, "an anonymous page costs twice: it is written as well"
    table.go_on(20, cache=40)
    assert table.is_warm
    table.go_on(60)
    assert not table.is_warm, "of what nobody uses any more"


def test_a_few_pages_say_nothing_and_where_nothing_else_is_idle_nothing_is_warm() -> None:
    table = Table()
    table.go_on(20, cache=1)
    assert table.warmth.cache.rate > 0
    assert not table.is_warm
    table.go_on(20, cache=40)
    assert table.is_warm
    assert not is_warm(table.warmth.cache, Reuse())
    assert is_warm(table.warmth.cache, together([Reuse(), table.warmth.anonymous]))


def test_what_was_idle_before_a_pause_says_nothing_of_what_comes_after() -> None:
    table = Table()
    table.go_on(ACTIVE_TICKS + 2)
    table.warmth.pause()
    table.classes.touch(0, 2000)
    table.warmth.look(table.classes)
    assert table.warmth.cache.again == 0


def test_squeezing_takes_what_guests_do_not_work_with_first() -> None:
    busy = demand("busy", 1000, usage(active_anonymous=1000))
    still = demand("still", 600, usage(active_anonymous=200, inactive_anonymous=400), min_pages=100)
    new = demand("new", 500, Usage())
    assert squeeze([busy, still, new], 300) == {"busy": 0, "still": 300, "new": 0}
    taken = squeeze([busy, still, new], 1000)
    assert taken["still"] >= 400
    assert 1000 <= sum(taken.values()) <= 1002
    assert squeeze([busy, still, new], 9999) == {"busy": 1000, "still": 500, "new": 500}


def test_what_a_guest_has_beyond_its_maximum_is_taken_in_every_state() -> None:
    fat = demand("fat", 1000, usage(inactive_anonymous=1000), max_pages=600)
    assert divide([fat], {"fat": Technique.BALLOON}, 0, Pressure.HIGH) == {"fat": 400}


def test_the_technique_and_its_reason() -> None:
    def chosen(
        pressure: Pressure, answers: bool = True, stalls: bool = False, swap: bool = True, warm: bool = False
    ) -> Technique:
        technique, why = choose(pressure, answers=answers, balloon_stalls=stalls, swap_works=swap, cache_is_warm=warm)
        assert why
        return technique

    assert chosen(Pressure.HIGH) is Technique.NONE
    assert chosen(Pressure.SOFT) is Technique.BALLOON
    assert chosen(Pressure.HARD) is Technique.SWAP
    assert chosen(Pressure.SOFT, answers=False) is Technique.SWAP
    assert chosen(Pressure.SOFT, stalls=True) is Technique.SWAP
    assert chosen(Pressure.SOFT, answers=False, swap=False) is Technique.NONE
    assert chosen(Pressure.LOW, swap=False) is Technique.BALLOON
    assert chosen(Pressure.CLEAR, warm=True) is Technique.BALLOON
    assert chosen(Pressure.SOFT, warm=True) is Technique.SWAP
    assert chosen(Pressure.SOFT, warm=True, swap=False) is Technique.BALLOON


def test_a_balloon_that_is_asked_again_and_again_and_gives_nothing_stalls() -> None:
    balloon, now_ns = Balloon(), 5_000_000_000
    for _ in range(16):
        assert not balloon.stalls(now_ns)
        balloon.ask(balloon.held + 100, now_ns)
        now_ns += STALL_NS // 15
        balloon.look(balloon.held, now_ns)
    assert balloon.stalls(now_ns)
    assert not balloon.stalls(now_ns + STALL_REST_NS)
    balloon = Balloon()
    for held in range(0, 4000, 100):
        balloon.ask(held + 1000, now_ns)
        now_ns += STALL_NS // 2
        balloon.look(held, now_ns)
        assert not balloon.stalls(now_ns), "it gives, if slowly"
    balloon.look(balloon.asked, now_ns)
    now_ns += 100 * STALL_NS
    balloon.ask(balloon.held + 1, now_ns)
    balloon.look(balloon.held, now_ns + STALL_NS // 2)
    assert not balloon.stalls(now_ns), "it has only just been asked"


# -- admission


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Wish("g", 4097), "whole pages"),
        (Wish("g", 4096), "at least"),
        (Wish("g", 8 * MIB, min_bytes=9 * MIB), "the min of g"),
        (Wish("g", 8 * MIB, max_bytes=9 * MIB), "the max of g"),
        (Wish("g", 8 * MIB, min_bytes=6 * MIB, max_bytes=5 * MIB), "above its max"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(wish: Wish, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        check_limits(wish)


def test_admission_by_reservations_swap_space_and_working_sets() -> None:
    room = Room(100 * MIB, 10 * MIB, 40 * MIB, 50 * MIB, 80 * MIB, 60 * MIB)
    admit(Wish("g", 60 * MIB), room)
    with pytest.raises(ResourceExhausted, match="reserved"):
        admit(Wish("g", 60 * MIB, min_bytes=51 * MIB), room)
    with pytest.raises(ResourceExhausted, match="swap space"):
        admit(Wish("g", 71 * MIB), room)
    with pytest.raises(ResourceExhausted, match="only page"):
        admit(Wish("g", 60 * MIB, min_bytes=45 * MIB), room)


# -- history


def test_history_counts_quiet_intervals_and_keeps_the_rest() -> None:
    history = History()
    quiet = Decision(1, Pressure.HIGH, Technique.NONE, 0, "enough memory is available", 100)
    for at in range(50):
        history.add(Decision(at, *(getattr(quiet, f) for f in ("pressure", "technique", "target", "reason")), at))  # type: ignore[arg-type]
    assert len(history.decisions) == 1
    assert (history.decisions[0].times, history.decisions[0].at_ns, history.decisions[0].until_ns) == (50, 0, 49)
    for at in range(100):
        history.add(Decision(at, Pressure.SOFT, Technique.BALLOON, 7, "short", 100))
    assert len(history.decisions) == KEPT


def test_the_decisions_do_more_work_than_paging_alone_in_a_model_of_five_hosts() -> None:
    found = compare(2)
    assert found["work_vs_swap_only_random"] > 1.1
    assert found["work_vs_swap_only_lru"] > 1.0
    assert found["work_vs_access_only"] > 0.99
