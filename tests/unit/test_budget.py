"""What a battery is good for, in figures."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.power_monitor.budget import DRAIN_PART, OVERHEAD_S, SAFETY, Budget, Energy, Memory
from everram.actors.power_monitor.budget_keeper import BOOK_NAME, SPEED, BudgetKeeper
from everram.runtime.environment import Environment
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.objects import Objects, SimulatedMemory

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


def test_what_has_to_be_read_before_it_is_saved_takes_time() -> None:
    reading = Energy(2.0, 400 * MIB, 100 * MIB, read_bytes_per_s=50 * MIB)
    few = reading.budget(Memory(10 * MIB, 1000 * MIB, absent_bytes=25 * MIB))
    assert few.save_bytes == pytest.approx((SAFETY * 2.0 - OVERHEAD_S - 0.5) * 400 * MIB)
    much = reading.budget(Memory(10 * MIB, 1000 * MIB, absent_bytes=500 * MIB))
    assert (much.save_bytes, much.cap_bytes, much.covered) == (0, None, False)


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


async def test_a_cap_that_cannot_be_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for the book: whatever the figures say, the battery may not save what is dirty then."""
    objects = Objects(16 * MIB)
    memory = SimulatedMemory(objects)
    await memory.create("region.g.data", 8 * MIB)
    battery_s = 0.2
    nothing = cast("Any", None)
    environment = Environment(nothing, nothing, SimulatedDisk(media()), memory, *[nothing] * 6)
    context = cast("Any", SimpleNamespace(environment=environment, log=logging.getLogger("test"), spawn=spawned))
    cap = DirtyCap(memory, lambda: 1.0)
    writers = cast("Any", SimpleNamespace(protect_arena=bool, retry_all=list))
    keeper = BudgetKeeper(context, cap, writers, lambda: battery_s, 0)
    monkeypatch.setattr(memory, "create", full)
    with pytest.raises(ResourceExhausted):
        await keeper.begin("m1", None)
    assert keeper.budget.covered and not keeper.status().covered
    assert "may be dirty, and that is not kept (no room)" in keeper.warning()
    assert "lost with its mains" in keeper.warning()
    battery_s = 30.0
    keeper.believe(50e6)
    assert keeper.status().covered and keeper.warning() == "", "everything may be dirty"
    battery_s = 0.2
    keeper.believe(50e6)
    monkeypatch.undo()
    await keeper.begin("m1", None)
    assert keeper.status().covered and keeper.status().tracking and keeper.warning() == ""


@pytest.mark.parametrize("memory_id", ["m1", "m2", "?"])
async def test_what_the_storage_takes_is_measured_once_a_memory(memory_id: str) -> None:
    """Of the slow disk that an unmeasured one is taken for the battery could not save everything."""
    memory, disk = SimulatedMemory(Objects(64 * MIB)), SimulatedDisk(media())
    await memory.create("region.g.data", 48 * MIB)
    now_ns = iter(range(0, 10**12, 10**8))
    clock, nothing = SimpleNamespace(now_ns=lambda: next(now_ns)), cast("Any", None)
    environment = Environment(cast("Any", clock), nothing, disk, memory, *[nothing] * 6)
    context = cast("Any", SimpleNamespace(environment=environment, log=logging.getLogger("test"), spawn=spawned))
    writers = cast("Any", SimpleNamespace(protect_arena=lambda arena: True, retry_all=list))
    keepers = [BudgetKeeper(context, DirtyCap(memory, lambda: 1.0), writers, lambda: 0.9, 0) for _ in range(2)]
    await keepers[0].begin("m1", None)
    assert keepers[0].status().tracking
    await keepers[0]._measure()
    await memory.remove(BOOK_NAME)
    if memory_id == "?":
        await disk.replace(SPEED, b"{")
    await keepers[1].begin("m1" if memory_id == "?" else memory_id, None)
    assert keepers[1].status().tracking == (memory_id != "m1")
    assert keepers[1].measured == (memory_id == "m1")
    assert (keepers[1].save_bytes_per_s == keepers[0].save_bytes_per_s) == (memory_id == "m1")


async def full(*_: object) -> None:
    raise ResourceExhausted("no room")


def spawned(work: Coroutine[Any, Any, None], name: str) -> None:
    work.close()


def media() -> Media:
    return Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))
