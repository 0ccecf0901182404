"""A copy that is in sync is, byte for byte, what it is a copy of."""

from __future__ import annotations

from collections.abc import Sequence

PROPERTY = "copies are exact"


def check(name: str, original: bytes | bytearray, copies: Sequence[bytes | bytearray]) -> str | None:
    """`copies`: what one destination keeps of a region; at most one of them is being built."""
    if any(copy == original for copy in copies):
        return None
    if not copies:
        return f"there is no copy of region {name}"
    at = min(
        next((i for i, (a, b) in enumerate(zip(original, copy, strict=False)) if a != b), len(copy)) for copy in copies
    )
    return f"region {name} differs from its copy from byte {at} on"
