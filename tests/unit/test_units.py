"""Sizes and durations as people type them."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.cli import units
from everram.runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1B", 1), ("64MiB", 64 << 20), ("64mib", 64 << 20), (" 1 GiB ", 1 << 30), ("0.5KiB", 512), ("1.5GiB", 3 << 29)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "64", "MiB", "64MB", "-1MiB", "0MiB", "0.3B", "1e3MiB", "64 MiB!", "99999999TiB", "١MiB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="size"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 0.005), ("30s", 30.0), ("2m", 120.0), ("1h", 3600.0), ("250us", 0.00025), ("1.5s", 1.5), ("0s", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 parsecs", "-5ms", "5msms"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="duration"):
        units.parse_duration(text)


@given(st.integers(1, units.SIZE_MAX_BYTES))
def test_a_size_in_bytes_is_itself(size_bytes: int) -> None:
    assert units.parse_size(f"{size_bytes}B") == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0B"), (1023, "1023B"), (1 << 10, "1KiB"), (3 << 29, "1.5GiB"), (16 << 20, "16MiB")]
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert units.format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00085, "850us"), (0.012, "12ms"), (2.5, "2.5s"), (3.0, "3s"), (200, "3m20s"), (18120, "5h02m")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_argparse_shows_the_sentence() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 64MiB"):
        units.size("lots")
    with pytest.raises(argparse.ArgumentTypeError, match="such as 5ms"):
        units.duration("soon")
