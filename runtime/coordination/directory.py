"""The cluster's directory: which keys coordination holds and what their JSON values say.

    everram/cluster           {"cluster_id", "name"}
    everram/machines/HOST     {"state"}                                   by whoever can prove a machine's death:
                                                                          "up", or "dead" with all its memory
    everram/hosts/HOST        {"host_id", "memory_id", "address",
                               "channel", "memory_free_bytes",
                               "guest_memory"}                            under the host's lease
    everram/leader            {"host"}                                    under the leader's lease
    everram/guests/GUEST_ID   see below                                   until the guest is removed
    everram/names/NAME        {"guest_id"}                                until the guest is removed
    everram/serving/GUEST_ID  {"host", "epoch", "port"}                   under the host's lease: who serves now

A guest's record:

    name, publish_port        as its user asked
    host, memory_id, epoch    whose it is: the incarnation that serves, or that was chosen to
    state                     "running", "stopped"; "failing-over" while the leader asks the copies, "chosen" until the
                              host that it chose has registered, "moving" when its host has handed it over;
                              "lost" when nobody has it
    start                     LSN at which the epoch begins: what a fenced memory has beyond is not part of the guest
    copies                    K, how many other hosts were asked for
    required                  memory_ids of the required set: who must acknowledge, and who may be chosen
    destinations              [{"host", "memory_id"}]: where the primary shall ship to, as the leader placed them
    prefer                    host to choose at the next failover if it is as good as any; by a move
    limits                    {"min_bytes", "max_bytes"}: what a person has set of its volatile memory, if ever
    aim                       host that shall be a destination besides: where a move is going
    previous                  {"host", "memory_id"}: whose it was before the one that was chosen, until that has
                              registered; its memory may have it back
    saved                     {"drained": [memory_id, ...]}: its host lost its mains and saved its memory, and only
                              these copies have everything that is in there; gone when it goes on, wherever

A host's `guest_memory` is {"available_bytes", "unpromised_bytes", "guests": {GUEST_ID: {"working_bytes",
"memory_bytes"}}}: what is left of its memory for guests' volatile memory beside what they work with, and beside what
they were promised, and both of each guest, as its scheduler estimates it; told now and then, and absent until it was.

An epoch is raised by a transaction on `everram/guests/GUEST_ID` that compares its mod_revision; `serving` is written
only by the holder of that epoch. Unknown members of a value are kept by whoever rewrites it.
"""

from __future__ import annotations

import json
from typing import Any

ROOT = b"everram/"
CLUSTER = ROOT + b"cluster"
LEADER = ROOT + b"leader"
MACHINES = ROOT + b"machines/"
HOSTS = ROOT + b"hosts/"
GUESTS = ROOT + b"guests/"
NAMES = ROOT + b"names/"
SERVING = ROOT + b"serving/"


def machine_key(host: str) -> bytes:
    return MACHINES + host.encode()


def host_key(host: str) -> bytes:
    return HOSTS + host.encode()


def guest_key(guest_id: str) -> bytes:
    return GUESTS + guest_id.encode()


def name_key(name: str) -> bytes:
    return NAMES + name.encode()


def serving_key(guest_id: str) -> bytes:
    return SERVING + guest_id.encode()


def encode(value: dict[str, Any]) -> bytes:
    """Sorted, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def decode(value: bytes) -> dict[str, Any]:
    """Raises ValueError on anything but a JSON object."""
    decoded = json.loads(value)
    if not isinstance(decoded, dict):
        raise ValueError("a directory value is a JSON object")
    return decoded
