"""The destination slots of a ring: what a waiting guest may count on, whoever comes, goes, dies or is replaced."""

from __future__ import annotations

import pytest

from everram.actors.replicator.slots import Slots
from everram.runtime.errors import ResourceExhausted
from everram.runtime.log.ring import DESTINATIONS, MIN_CAPACITY_BYTES, Destination, Ring
from everram.runtime.memory.heap import HeapMapping


class Log:
    """A ring, and what a guest sees in it."""

    def __init__(self) -> None:
        mapping = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.ring = Ring.format(mapping, guest_id="g", epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)
        self.slots = Slots(self.ring)

    def required(self) -> dict[str, int]:
        """What each member has acknowledged, as a wait looks at it: a memory's least."""
        found: dict[str, int] = {}
        for slot in self.ring.required():
            destination = self.ring.destination(slot)
            assert destination is not None
            least = found.get(destination.memory_id, destination.durable_lsn)
            found[destination.memory_id] = min(least, destination.durable_lsn)
        return found

    def holding(self) -> set[str]:
        """For whom the log is held back."""
        found = [self.ring.destination(slot) for slot in self.ring.holding()]
        return {destination.memory_id for destination in found if destination is not None}


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_session_holds_the_log_and_is_waited_for_once_it_is_a_member(log: Log) -> None:
    slot = log.slots.take("a")
    assert (log.required(), log.holding()) == ({}, set())
    log.slots.begin(slot, 80, member=False)
    assert (log.required(), log.holding()) == ({}, {"a"})
    log.slots.require(["a"])
    assert (log.required(), log.holding()) == ({"a": 80}, {"a"})
    log.slots.give_up(slot)
    assert (log.required(), log.holding()) == ({"a": 80}, set()), "a member stays, and holds the log no more"


def test_a_member_that_is_built_anew_keeps_what_it_acknowledged_until_it_is_complete(log: Log) -> None:
    old = log.slots.take("a")
    log.slots.begin(old, 80, member=True)
    log.slots.give_up(old)
    new = log.slots.take("a")
    assert new != old
    log.slots.begin(new, 800, member=False)
    assert (log.required(), log.holding()) == ({"a": 80}, {"a"})
    log.slots.promote(new)
    assert (log.required(), log.holding()) == ({"a": 800}, {"a"})
    assert [slot for slot, _ in log.slots.all()] == [new]


def test_a_build_that_breaks_off_leaves_the_member_as_it_was(log: Log) -> None:
    log.slots.require(["a"])
    slot = log.slots.take("a")
    log.slots.begin(slot, 800, member=False)
    log.slots.give_up(slot)
    assert (log.required(), log.holding()) == ({"a": 0}, set())


def test_a_member_that_nobody_ships_to_has_acknowledged_nothing(log: Log) -> None:
    log.slots.require(["a", "b"])
    assert (log.required(), log.holding()) == ({"a": 0, "b": 0}, set())
    log.slots.require(["a", "b"])
    assert len(log.slots.all()) == 2


def test_the_smaller_set_is_waited_for_once_it_is_committed(log: Log) -> None:
    for memory_id, durable in (("a", 80), ("b", 160)):
        log.slots.begin(log.slots.take(memory_id), durable, member=True)
    log.slots.require(["c"])
    log.slots.dismiss(["b"])
    assert (log.required(), log.holding()) == ({"b": 160}, {"a", "b"}), "who is still shipped to keeps its place"


def test_a_dead_hosts_members_hold_the_log_until_their_first_session_ends(log: Log) -> None:
    log.slots.begin(log.slots.take("a"), 80, member=True)
    successor = Slots(log.ring)
    assert (log.required(), log.holding()) == ({"a": 80}, {"a"})
    slot = successor.take("a")
    successor.give_up(slot)  # it could not be opened
    assert (log.required(), log.holding()) == ({"a": 80}, set())


def test_what_a_dead_host_was_building_is_forgotten(log: Log) -> None:
    """Its slot would hold back the log for ever, or be taken for the member's and never be acknowledged into."""
    log.slots.begin(log.slots.take("a"), 80, member=False)
    successor = Slots(log.ring)
    assert log.holding() == set()
    slot = successor.take("a")
    successor.begin(slot, 800, member=False)
    successor.require(["a"])
    assert log.required() == {"a": 800}


def test_only_a_live_sessions_slot_becomes_a_members(log: Log) -> None:
    log.ring.set_destination(0, Destination(False, "a", 80, active=True))
    slot = log.slots.take("a")
    log.slots.begin(slot, 800, member=False)
    log.slots.require(["a"])
    assert log.required() == {"a": 800}


def test_a_member_that_is_no_destination_any_more_does_not_hold_the_log(log: Log) -> None:
    for memory_id in ("a", "b"):
        log.slots.begin(log.slots.take(memory_id), 80, member=True)
    successor = Slots(log.ring)
    successor.keep_log_for(["b"])
    assert (log.required(), log.holding()) == ({"a": 80, "b": 80}, {"b"})


def test_a_slot_is_used_again_as_late_as_possible(log: Log) -> None:
    """Whoever was stopped in the middle of an acknowledgement may store it long after its session has ended."""
    used = []
    for _ in range(2 * DESTINATIONS):
        used.append(log.slots.take("a"))
        log.slots.give_up(used[-1])
    assert used == [*range(DESTINATIONS)] * 2


def test_a_log_can_be_held_before_its_session_begins(log: Log) -> None:
    slot = log.slots.take("a")
    log.slots.hold(slot, 80)
    assert (log.required(), log.holding(), log.ring.durable(slot)) == ({}, {"a"}, 80)
    log.slots.give_up(slot)
    assert log.slots.all() == []


def test_there_is_an_end_to_slots(log: Log) -> None:
    for number in range(DESTINATIONS):
        log.slots.take(f"m{number}")
    with pytest.raises(ResourceExhausted, match=f"all {DESTINATIONS} destination slots"):
        log.slots.take("one more")
