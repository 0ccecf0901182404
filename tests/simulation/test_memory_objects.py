"""Memory objects of a simulated machine, and persistent memory behind caches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everram.runtime.log.record import RecordFlags, RecordType, Store, pack, pack_stores
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.contract import CACHE_LINE_BYTES, PAGE_BYTES
from everram.runtime.simulation.cache import CachedBytes
from everram.runtime.simulation.domain import Killed
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop, SimulationStuck
from everram.runtime.simulation.objects import GATES_PER_CALLBACK_MAX, Bytes, Gate, GatedMapping, SimulatedObject

SEEDS = range(60)


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    yield loop
    loop.abandon()


def test_extents_are_the_pages_that_were_written() -> None:
    memory = SimulatedObject("region.g.a", Bytes(8 * PAGE_BYTES), None)
    mapping = memory.map()
    mapping.store_u64(0, 1)
    mapping.store(3 * PAGE_BYTES - 1, b"ab")
    assert memory.extents() == [(0, PAGE_BYTES), (2 * PAGE_BYTES, 2 * PAGE_BYTES)]
    memory.punch(2 * PAGE_BYTES, PAGE_BYTES)
    assert memory.extents() == [(0, PAGE_BYTES), (3 * PAGE_BYTES, PAGE_BYTES)]
    assert memory.read(3 * PAGE_BYTES - 1, 2) == b"\0b"


def test_a_process_killed_at_a_gate_stores_nothing_more(loop: SimulationLoop) -> None:
    kept = Bytes(PAGE_BYTES)
    mapping = GatedMapping(kept, Gate(loop, Seeds(1).stream("gate"), kill_at=3))

    def work() -> None:
        mapping.store_u64(0, 1)
        with pytest.raises(Killed):
            mapping.store_u64(8, 2)
        with pytest.raises(Killed):
            mapping.store_u64(16, 3)

    domain = loop.domain("guest")
    domain.context.run(work)
    assert not domain.alive
    assert [GatedMapping(kept).load_u64(at) for at in (0, 8, 16)] == [1, 0, 0]


def test_a_callback_that_never_waits_is_found(loop: SimulationLoop) -> None:
    mapping = GatedMapping(Bytes(PAGE_BYTES), Gate(loop, Seeds(1).stream("gate")))
    with pytest.raises(SimulationStuck, match="never waits"):
        for number in range(GATES_PER_CALLBACK_MAX):
            mapping.store_u64(0, number)


def line_after_power_loss(seed: int, *, flushed: bool) -> tuple[int, ...]:
    memory = CachedBytes(PAGE_BYTES)
    mapping = GatedMapping(memory)
    for word in range(3):
        mapping.store_u64(word * 8, word + 1)
    if flushed:
        mapping.flush(0, CACHE_LINE_BYTES)
        mapping.drain()
    memory.lose_power(Seeds(seed).stream("power"))
    return tuple(mapping.load_u64(word * 8) for word in range(3))


def test_an_unflushed_line_keeps_a_prefix_of_its_stores() -> None:
    states = {line_after_power_loss(seed, flushed=False) for seed in SEEDS}
    assert states == {(0, 0, 0), (1, 0, 0), (1, 2, 0), (1, 2, 3)}


def test_what_was_flushed_and_drained_is_certain() -> None:
    assert {line_after_power_loss(seed, flushed=True) for seed in SEEDS} == {(1, 2, 3)}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_record_that_the_next_epoch_took_survives_a_power_loss(seed: int) -> None:
    """Found by the ring scenario: a guest died before it flushed a whole record, which the next epoch committed."""
    memory = CachedBytes(Ring.total_bytes(MIN_CAPACITY_BYTES))
    mapping = GatedMapping(memory)
    ring = Ring.format(mapping, guest_id="g", epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
    payload = pack_stores([Store(0, 0, bytes(200))])
    mapping.store(ring.offset(0), pack(0, 1, RecordType.STORES, RecordFlags.REQUIRED, ring.guest, payload))
    end = ring.begin_epoch(2)
    assert end > 0
    memory.lose_power(Seeds(seed).stream("power"))
    assert Ring.open(mapping).begin_epoch(3) == end
