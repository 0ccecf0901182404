"""What a battery is good for, in figures."""

from __future__ import annotations

import pytest

from everram.actors.power_monitor.budget import DRAIN_PART, OVERHEAD_S, SAFETY, Budget, Energy, Memory

MIB = 1 << 20
MEMORY = Memory(full_bytes=10 * MIB, tracked_bytes=1000 * MIB)


def energy(battery_s: float = 2.0, save: float = 400 * MIB, link: float = 100 * MIB) -> Energy:
    return Energy(battery_s, save, link)


def test_a_large_battery_lets_everything_be_dirty() -> None:
    budget = energy(30.0).budget(MEMORY)
    assert (budget.cap_bytes, budget.log_bytes, budget.covered) == (None, None, True)


def test_the_cap_is_what_the_battery_saves_beside_what_it_saves_anyway() -> None:
    budget = energy().budget(MEMORY)
    saved = int((SAFETY * 2.0 - OVERHEAD_S) * 400 * MIB)
    assert budget == Budget(saved, saved - 10 * MIB, None, covered=True)


@pytest.mark.parametrize("worse", [energy(battery_s=1.0), energy(save=300 * MIB)])
def test_less_energy_is_a_lower_cap(worse: Energy) -> None:
    lower, before = worse.budget(MEMORY).cap_bytes, energy().budget(MEMORY).cap_bytes
    assert lower is not None and before is not None and lower < before


def test_logs_may_not_be_more_than_can_be_shipped_and_their_time_is_not_the_saves() -> None:
    logs = Memory(full_bytes=500 * MIB, tracked_bytes=1000 * MIB, logs_bytes=490 * MIB)
    budget = energy(4.0).budget(logs)
    counted_s = SAFETY * 4.0 - OVERHEAD_S
    assert budget.log_bytes == int(DRAIN_PART * counted_s * 100 * MIB)
    assert budget.save_bytes == pytest.approx((1 - DRAIN_PART) * counted_s * 400 * MIB)
    few = energy(4.0).budget(Memory(10 * MIB, 1000 * MIB, logs_bytes=4 * MIB))
    assert few.log_bytes is None, "whatever their rings hold can be shipped"


@pytest.mark.parametrize("battery_s", [0.0, 0.005, 0.08])
def test_a_battery_for_nothing_stops_nobody_and_covers_nothing(battery_s: float) -> None:
    budget = energy(battery_s).budget(MEMORY)
    assert (budget.cap_bytes, budget.log_bytes, budget.covered) == (None, None, False)


def test_a_person_may_set_a_lower_cap_and_never_a_higher_one() -> None:
    assert energy(30.0).budget(MEMORY, cap_bytes_max=8 * MIB).cap_bytes == 8 * MIB
    before = energy().budget(MEMORY).cap_bytes
    assert energy().budget(MEMORY, cap_bytes_max=999 * MIB).cap_bytes == before
    assert energy(0.005).budget(MEMORY, cap_bytes_max=8 * MIB).cap_bytes is None, "it would protect nothing"


def test_tracking_ends_only_when_there_is_more_than_enough() -> None:
    just = energy(3.72)
    assert just.budget(MEMORY).cap_bytes is None
    assert just.budget(MEMORY, tracking=True).cap_bytes is not None
    assert energy(6.0).budget(MEMORY, tracking=True).cap_bytes is None
