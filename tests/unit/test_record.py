"""Records of the log ring: what is packed is read back, and nothing else passes for it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everram.runtime.log import record as records
from everram.runtime.log.record import (
    HEADER_BYTES,
    STORE_HEADER_BYTES,
    Record,
    RecordFlags,
    RecordType,
    Store,
    pack,
    pack_stores,
    padded,
)

GUEST = b"0123456789abcdef"
STORES = st.lists(
    st.builds(Store, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=8
)


def record_of(payload: bytes) -> Record:
    return Record(0, 1, RecordType.STORES, RecordFlags.REQUIRED, GUEST.decode(), payload)


def test_the_layout_is_the_documented_one() -> None:
    """Field by field as docs/formats.md has it, so that another language can write it."""
    whole = pack(4096, 7, RecordType.STORES, RecordFlags.REQUIRED, GUEST, b"payload")
    assert len(whole) == HEADER_BYTES + 7 == 48 + 7
    length, lsn, epoch, kind, flags, reserved = struct.unpack_from("<IQQHHI", whole, 4)
    assert (length, lsn, epoch, kind, flags, reserved) == (55, 4096, 7, 2, 1, 0)
    assert whole[32:48] == GUEST
    assert whole[48:] == b"payload"
    assert records.unpack_header(whole[:HEADER_BYTES])[1:] == (55, 4096, 7, 2, 1, GUEST)
    assert pack_stores([Store(3, 16, b"ab")]) == struct.pack("<IIQ", 3, 2, 16) + b"ab"


@given(STORES)
def test_stores_are_read_back(stores: list[Store]) -> None:
    assert list(record_of(pack_stores(stores)).stores()) == stores


@given(STORES.filter(bool), st.data())
def test_a_cut_payload_is_an_error(stores: list[Store], data: st.DataObject) -> None:
    payload = pack_stores(stores)
    ends = {0}
    for store in stores:
        ends.add(max(ends) + STORE_HEADER_BYTES + len(store.data))
    cut = data.draw(st.integers(0, len(payload)).filter(lambda at: at not in ends))
    with pytest.raises(ValueError, match="cut off"):
        list(record_of(payload[:cut]).stores())


@given(st.binary(max_size=200))
def test_any_payload_is_stores_or_an_error(payload: bytes) -> None:
    try:
        stores = list(record_of(payload).stores())
    except ValueError:
        return
    assert pack_stores(stores) == payload


def test_every_flipped_bit_is_noticed() -> None:
    whole = pack(64, 1, RecordType.STORES, RecordFlags.REQUIRED, GUEST, bytes(range(100)))
    assert records.checksum_holds(whole)
    for at in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        assert not records.checksum_holds(bytes(flipped))


def test_records_are_aligned() -> None:
    assert [padded(n) for n in (0, 1, 7, 8, 9, 48)] == [0, 8, 8, 8, 16, 48]
    assert record_of(b"x").end == 56
