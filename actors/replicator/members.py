"""Who belongs to a guest's required set: a plain decision on what is known of its destinations.

Everybody in the set must acknowledge before anything counts as replicated, and only its members may be chosen at a
failover (D9). So the set changes in this order, which keeps both true whoever dies in between:

    the first is in sync       the set is committed first, then its slot is required: nobody else holds anything back
    another is in sync         its slot is required first, then the larger set is committed
    a member was replaced      the smaller set is committed first, then its slot is cleared

It never becomes empty by shrinking: a member that nobody replaces stays, reachable or not, because what was promised
may be nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def next_members(required: Sequence[str], destinations: Sequence[str], in_sync: Collection[str]) -> tuple[str, ...]:
    """The memory_ids that should be committed as the required set, ascending.

    `destinations` are those the leader wants, `in_sync` those that hold everything up to now. A member that is no
    destination any more is dropped once somebody in sync remains.
    """
    wanted = [m for m in destinations if m in in_sync or m in required]
    if any(m in in_sync for m in wanted):
        return tuple(sorted(wanted))
    return tuple(sorted({*required, *wanted}))


def is_degraded(copies: int, required: Sequence[str], in_sync: Collection[str]) -> bool:
    """Whether fewer than `copies` members hold everything up to now."""
    return sum(m in in_sync for m in required) < copies
