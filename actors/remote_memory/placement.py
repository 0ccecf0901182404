"""Where a new file goes: the host that was named, otherwise the one with most free memory. Plain; awaits nothing."""

from __future__ import annotations

from collections.abc import Iterable

from everram.actors.remote_memory.namespace import Placed
from everram.actors.remote_memory.refusals import no_room
from everram.runtime.coordination.api import KeyValue
from everram.runtime.coordination.directory import HOSTS, decode
from everram.runtime.coordination.records import HostRecord
from everram.runtime.errors import NotFound


def place(pairs: Iterable[KeyValue], wanted: str) -> Placed:
    """`pairs`: the directory's hosts. Raises NotFound for a named host that is not among them, ResourceExhausted."""
    hosts: dict[str, HostRecord] = {}
    for pair in pairs:
        try:
            hosts[pair.key.removeprefix(HOSTS).decode()] = HostRecord.read(decode(pair.value))
        except ValueError:
            continue  # of another version: nothing can be put there
    if wanted and wanted not in hosts:
        raise NotFound(f"no host named {wanted} is in the directory: it is down, or has lost its lease (ENODEV)")
    chosen = wanted or max(sorted(hosts), key=lambda name: hosts[name].memory_free_bytes, default="")
    if not chosen or hosts[chosen].memory_free_bytes <= 0:
        raise no_room(f"no memory is free on {chosen or 'any host'}")
    return Placed(chosen, hosts[chosen].memory_id)
