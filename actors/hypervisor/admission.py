"""What a user may ask to run: every rule about a `GuestSpec` that needs no state, in one place."""

from __future__ import annotations

import re

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.errors import InvalidArgument
from everram.runtime.log.ring import COPIES_MAX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""Names appear in paths, keys and descriptor names: letters that are safe in all of them, as DNS labels are."""
MAX_REGIONS = 64
"""Each is a descriptor in the guest and in the machine; 64 leaves room within the usual limit of 1024."""
MAX_COMMAND_BYTES = 128 * 1024
"""Arguments and environment together, the kernel's own limit for one string and enough for any shell's environment."""


def check(spec: pb.GuestSpec) -> None:
    """Raises InvalidArgument with the first rule that `spec` breaks."""
    if not NAME.fullmatch(spec.name):
        raise InvalidArgument(f"{spec.name!r} cannot be a guest's name: use up to 63 letters, digits, '_', '.' and '-'")
    if not spec.argv or not spec.argv[0].startswith(b"/"):
        raise InvalidArgument("a guest needs a program: give its absolute path and its arguments")
    size_bytes = sum(map(len, spec.argv)) + sum(len(v.name) + len(v.value) for v in spec.environment)
    if size_bytes > MAX_COMMAND_BYTES:
        raise InvalidArgument(f"arguments and environment take {size_bytes} bytes; at most {MAX_COMMAND_BYTES} fit")
    if spec.copies > COPIES_MAX:
        raise InvalidArgument(f"{spec.copies} copies asked for; a guest may have {COPIES_MAX}")
    if not spec.memory_bytes and (spec.memory_min_bytes or spec.memory_max_bytes):
        raise InvalidArgument("a min or max of memory needs memory: run it with --memory SIZE")
    if spec.publish_port > 65535:
        raise InvalidArgument(f"{spec.publish_port} is not a TCP port: choose one from 1 to 65535")
    _check_regions(spec)
    if spec.copies and all(region.kind == pb.MAPPED for region in spec.regions):
        raise InvalidArgument("copies are made of logged regions, and this guest has none: run it without --copies")


def _check_regions(spec: pb.GuestSpec) -> None:
    if len(spec.regions) > MAX_REGIONS:
        raise InvalidArgument(f"{len(spec.regions)} regions asked for; a guest may have {MAX_REGIONS}")
    seen: set[str] = set()
    for region in spec.regions:
        if not NAME.fullmatch(region.name) or region.name == "log":
            raise InvalidArgument(f"{region.name!r} cannot be a region's name: use letters, digits, '_', '.' and '-'")
        if region.name in seen:
            raise InvalidArgument(f"region {region.name} is named twice")
        seen.add(region.name)
