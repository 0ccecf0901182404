"""Sizes and durations as people type them: `64MiB`, `5ms`, `30s`.

`parse_*` raise `InvalidArgument` with an example in the message; `size` and `duration` are the same as argparse types.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from fractions import Fraction

from everram.runtime.errors import InvalidArgument

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)")

SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE_BY_LOWER = {name.lower(): factor for name, factor in SIZE_UNITS.items()}

DURATION_UNITS = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}

SIZE_MAX_BYTES = 1 << 50
"""Nothing this program keeps is larger; a typing error usually is."""


def parse_size(text: str) -> int:
    """Bytes. The unit is required, so that `64` is never taken for megabytes."""
    match = _NUMBER.fullmatch(text.strip())
    factor = _SIZE_BY_LOWER.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise InvalidArgument(f'"{text}" is not a size: write a number and B, KiB, MiB, GiB or TiB, such as 64MiB')
    size = Fraction(match[1]) * factor
    if size.denominator != 1 or not 0 < size <= SIZE_MAX_BYTES:
        raise InvalidArgument(f'"{text}" is not a usable size: it must be a whole number of bytes above zero')
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds."""
    match = _NUMBER.fullmatch(text.strip())
    unit = DURATION_UNITS.get(match[2].lower().replace("µ", "u")) if match else None
    if match is None or unit is None:
        raise InvalidArgument(f'"{text}" is not a duration: write a number and us, ms, s, m or h, such as 5ms or 30s')
    return float(Fraction(match[1]) * unit)


def format_size(size_bytes: int) -> str:
    """The largest unit in which the number is at least one, with at most one decimal: `16MiB`, `1.5GiB`."""
    for name, factor in reversed(SIZE_UNITS.items()):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + name
    return f"{size_bytes}B"


def format_duration(seconds: float) -> str:
    """`850us`, `12ms`, `2.5s`, `3m20s`, `5h02m`."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = int(seconds)
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _argument(parse: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            return parse(text)
        except InvalidArgument as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return convert


def size(text: str) -> int:
    """argparse type of a size in bytes."""
    return int(_argument(parse_size)(text))


def duration(text: str) -> float:
    """argparse type of a duration in seconds."""
    return _argument(parse_duration)(text)
