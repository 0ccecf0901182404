"""The cluster's directory: which keys coordination holds and what their JSON values say.

    everram/cluster           {"cluster_id", "name"}
    everram/hosts/HOST        {"host_id", "memory_id", "address"}         under the host's lease
    everram/guests/GUEST_ID   {"name", "host", "memory_id", "epoch",
                               "state", "publish_port"}                   until the guest is removed
    everram/names/NAME        {"guest_id"}                                until the guest is removed
    everram/serving/GUEST_ID  {"host", "epoch", "port"}                   under the host's lease: who serves now

An epoch is raised by a transaction on `everram/guests/GUEST_ID` that compares its mod_revision; `serving` is written
only by the holder of that epoch. Unknown members of a value are kept by whoever rewrites it.
"""

from __future__ import annotations

import json
from typing import Any

ROOT = b"everram/"
CLUSTER = ROOT + b"cluster"
HOSTS = ROOT + b"hosts/"
GUESTS = ROOT + b"guests/"
NAMES = ROOT + b"names/"
SERVING = ROOT + b"serving/"


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
