"""Which hosts' memories a guest's log shall go to: a plain decision that moves nothing without need.

In this order, until there are K: living members of the required set (all of them, even beyond K), destinations that it
has already, and of the other hosts those whose guests leave room for what it works with of its volatile memory, if it
has any, before those on which it would only page; then those with the most free memory. The aim of a move comes on top.
The primary's own memory is none, and neither is one whose host is not in the directory with exactly this memory_id: a
machine that came back empty under its old name is another memory, and may be placed anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from everram.actors.availability.failover import Sight
from everram.runtime.coordination.records import GuestNeed, GuestRecord, HostRecord, Place

NO_NEED = GuestNeed()


def place(record: GuestRecord, hosts: Mapping[str, HostRecord | None], need: GuestNeed = NO_NEED) -> tuple[Place, ...]:
    """The destinations that the record should have, those that stay in their present order. `need`: the guest's,
    as its host has told it."""
    entries = {entry.memory_id: (host, entry) for host, entry in sorted(hosts.items()) if entry and entry.memory_id}
    entries.pop(record.owner.memory_id, None)
    live = {memory_id: Place(host, memory_id) for memory_id, (host, _) in entries.items()}
    present = [each.memory_id for each in record.destinations if live.get(each.memory_id) == each]
    wanted = [memory_id for memory_id in record.required if memory_id in live]
    others = [memory_id for memory_id in present if memory_id not in wanted]
    wanted += others[: max(0, record.copies - len(wanted))]
    wanted += [each.memory_id for each in live.values() if each.host == record.aim and each.memory_id not in wanted]
    free = sorted(
        live.keys() - set(wanted),
        key=lambda m: (not entries[m][1].has_room(need), -entries[m][1].memory_free_bytes, live[m].host),
    )
    wanted += free[: max(0, record.copies - len(wanted))]
    stay = [memory_id for memory_id in present if memory_id in wanted]
    return tuple(live[memory_id] for memory_id in (*stay, *(m for m in wanted if m not in stay)))


def expects(record: GuestRecord, sight: Sight) -> bool:
    """Whether a destination or member may still come up: one that nobody has seen yet since the cluster began."""
    there = {entry.memory_id for entry in sight.hosts.values() if entry is not None}
    waiting = [each for each in record.destinations if not sight.present(each) and not sight.left(each)]
    named = {each.memory_id for each in record.destinations}
    return bool(waiting) or any(m not in there | sight.seen | named for m in record.required)
