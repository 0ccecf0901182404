"""Sums of blocks: the same as zlib's, whoever takes them."""

from __future__ import annotations

import mmap
import random
import zlib

import pytest

from everram.runtime import checksums


@pytest.mark.parametrize("fast", [True, False])
def test_they_are_zlibs_of_whatever_memory_it_is(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    if not fast:
        monkeypatch.setattr(checksums, "_fast", None)
    data = random.Random(1).randbytes(70_001)
    mapped = mmap.mmap(-1, len(data))
    mapped[:] = data
    with memoryview(mapped) as view:
        for each in (data, bytearray(data), view, view[4096:], view.toreadonly(), data[:1], b""):
            expected = [zlib.crc32(each[at : at + 4096]) for at in range(0, len(each), 4096)]
            assert checksums.checksums(each, 4096) == expected
            assert checksums.crc32(each) == zlib.crc32(each)
    mapped.close()  # nobody holds it any more


def test_a_library_with_other_sums_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "LIBRARY", "libm.so.6")
    assert checksums._load() is None
    monkeypatch.setattr(checksums, "LIBRARY", "libnothing.so.0")
    assert checksums._load() is None
