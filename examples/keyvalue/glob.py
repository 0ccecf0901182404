"""Patterns for keys, as KEYS and SCAN take them: `*`, `?`, `[a-c]`, `[^a]`, and a backslash that quotes."""

from __future__ import annotations

import re
from collections.abc import Callable


def compile_pattern(pattern: bytes) -> Callable[[bytes], object] | None:
    """What says whether a key matches; None: all do."""
    if not pattern.strip(b"*") and pattern:
        return None
    first, *middle = _pieces(pattern)
    last = b".*" + middle.pop() if middle else b""
    # What is between two stars may be taken where it is found first, for good: so no pattern takes exponential time.
    body = first + b"".join(b"(?>.*?%b)" % piece for piece in middle) + last
    return re.compile(body, re.DOTALL).fullmatch


def _pieces(pattern: bytes) -> list[bytes]:
    """Regular expressions for what stands between the stars."""
    pieces, at = [b""], 0
    while at < len(pattern):
        letter = pattern[at : at + 1]
        at += 1
        if letter == b"*":
            pieces.append(b"")
        elif letter == b"?":
            pieces[-1] += b"."
        elif letter == b"[":
            choice, at = _choice(pattern, at)
            pieces[-1] += choice
        else:
            if letter == b"\\" and at < len(pattern):
                letter = pattern[at : at + 1]
                at += 1
            pieces[-1] += re.escape(letter)
    return pieces


def _choice(pattern: bytes, at: int) -> tuple[bytes, int]:
    """`[...]` from behind the bracket on. One that is not closed ends with the pattern, as in Redis."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            members.add(pattern[at + 1])
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(pattern[at])
            at += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!)", at + 1
    return b"[%b]" % b"".join(b"\\x%02x" % member for member in sorted(members)), at + 1
