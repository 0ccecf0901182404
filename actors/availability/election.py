"""Who decides for the whole cluster: plain decisions on the key `everram/leader`.

Every host that holds its lease campaigns by creating the key, if there is none, under that lease. Whoever's lease the
key is under leads, and its *term* is the key's create_revision. The key vanishes with the lease, and then all campaign
again.

    following    the key is gone, and this host holds its lease      campaigning
    campaigning  the key is under this host's lease                  leading
    campaigning  the key is under another lease                      following
    leading      the lease is not held, or the key is another's      following

A leader cannot know that it still leads, so it need not: each of its changes is a transaction that compares the key's
create_revision. One that was stopped and continued after its lease had ended changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from everram.actors.availability.registration import Plan
from everram.runtime.coordination.api import Compare, KeyValue, Put, Relation, Target
from everram.runtime.coordination.directory import LEADER, encode


@dataclass(frozen=True, slots=True)
class Following:
    """Somebody else leads, or this host may not."""


@dataclass(frozen=True, slots=True)
class Campaigning:
    """Nobody leads: try to."""


@dataclass(frozen=True, slots=True)
class Term:
    """This host leads."""

    revision: int

    def compare(self) -> Compare:
        """Holds while this term lasts."""
        return Compare(LEADER, Target.CREATE, Relation.EQUAL, self.revision)


Standing = Following | Campaigning | Term


def standing(leader: KeyValue | None, lease: int, held: bool) -> Standing:
    """`leader`: the key as last seen; `held`: whether the host's own deadline under `lease` has not passed."""
    if not held or not lease:
        return Following()
    if leader is None:
        return Campaigning()
    return Term(leader.create_revision) if leader.lease == lease else Following()


def plan_campaign(host: str, lease: int) -> Plan:
    missing = Compare(LEADER, Target.CREATE, Relation.EQUAL, 0)
    return Plan((missing,), (Put(LEADER, encode({"host": host}), lease),))
