"""Who belongs to the required set: whatever is known, and in whatever order it is found out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everram.actors.replicator.members import is_degraded, next_members

MEMORIES = ["a", "b", "c", "d", "e"]
SETS = st.lists(st.sampled_from(MEMORIES), unique=True, max_size=4)


@st.composite
def known(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[str, ...], set[str]]:
    """Required, destinations, in sync: nobody is in sync who is no destination."""
    destinations = draw(SETS)
    in_sync = draw(st.sets(st.sampled_from(destinations))) if destinations else set()
    return tuple(sorted(draw(SETS))), tuple(destinations), in_sync


@given(known())
def test_it_never_becomes_empty_by_shrinking(given: tuple[tuple[str, ...], tuple[str, ...], set[str]]) -> None:
    required, destinations, in_sync = given
    if required:
        assert next_members(required, destinations, in_sync)


@given(known())
def test_whoever_is_in_sync_is_in_it_and_nobody_else_is_added(
    given: tuple[tuple[str, ...], tuple[str, ...], set[str]],
) -> None:
    required, destinations, in_sync = given
    members = next_members(required, destinations, in_sync)
    assert in_sync <= set(members) <= in_sync | set(required)


@given(known())
def test_a_member_is_dropped_only_where_somebody_in_sync_remains(
    given: tuple[tuple[str, ...], tuple[str, ...], set[str]],
) -> None:
    required, destinations, in_sync = given
    members = next_members(required, destinations, in_sync)
    dropped = set(required) - set(members)
    assert not dropped or in_sync
    assert not dropped & set(destinations)


@given(known())
def test_asking_again_changes_nothing(given: tuple[tuple[str, ...], tuple[str, ...], set[str]]) -> None:
    required, destinations, in_sync = given
    members = next_members(required, destinations, in_sync)
    assert next_members(members, destinations, in_sync) == members
    assert list(members) == sorted(set(members))


def test_degraded_counts_members_in_sync_alone() -> None:
    assert not is_degraded(0, (), set())
    assert is_degraded(1, (), {"a"}), "in sync, and not committed yet"
    assert is_degraded(1, ("a",), set())
    assert not is_degraded(1, ("a", "b"), {"a"})
    assert is_degraded(2, ("a", "b"), {"a"})
