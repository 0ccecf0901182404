"""Guests whose memory is gone: still in the directory, and on no host. Found when a cluster has come up, and forgotten.

After a crash of the whole cluster a machine starts with an older image, or with none. A guest that is in neither cannot
come back, but its record would keep its name and its published port for ever. A guest with copies on other hosts is not
lost: one of those is chosen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Compare, Coordination, Delete, Relation, Target, prefix


async def forget_lost(
    coordination: Coordination, resident: Callable[[str], Awaitable[set[str] | None]]
) -> list[tuple[str, str]]:
    """(name, host) of each guest that was lost.

    `resident` asks a host, which has started, for the guest_ids it has; None if it is no host of this cluster. It is
    asked after the directory was read: a guest is on its host before it is in the directory. Raises an EverramError if
    coordination or a host does not answer.
    """
    _, pairs = await coordination.range(prefix(directory.GUESTS))
    hosts = sorted({str(directory.decode(pair.value).get("host", "")) for pair in pairs})
    there = {host: await resident(host) for host in hosts}
    lost = []
    for pair in pairs:
        guest_id = pair.key.removeprefix(directory.GUESTS).decode()
        record = directory.decode(pair.value)
        host, name = str(record.get("host", "")), str(record.get("name", ""))
        ids = there[host]
        if ids is None or guest_id in ids or record.get("required"):
            continue
        unchanged = Compare(pair.key, Target.MOD, Relation.EQUAL, pair.mod_revision)
        own_name = Compare(
            directory.name_key(name), Target.VALUE, Relation.EQUAL, directory.encode({"guest_id": guest_id})
        )
        records = [Delete(pair.key), Delete(directory.serving_key(guest_id))]
        done = await coordination.txn([unchanged, own_name], [*records, Delete(directory.name_key(name))])
        if not done.succeeded:
            done = await coordination.txn([unchanged], records)  # its name is another guest's
        if done.succeeded:
            lost.append((name, host))
    return lost
