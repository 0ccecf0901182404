"""A persistent dictionary in a region, for those who want no offsets.

    accounts = me.dict("accounts")
    accounts["alice"] = 100                          # a transaction of its own
    with me.transaction() as tx:                     # or several changes in one
        accounts.set("alice", 90, tx)
        accounts.set("bob", 10, tx)

Keys are str or bytes; values bytes, or whatever JSON can say. Layout (docs/formats.md, "Dictionary"): a header, a table
of chains, and blocks of powers of two, which are kept in free lists once given up. Every change is one transaction, so
no crash can leave a chain or a list half-linked.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from everram.runtime.guest.errors import RegionError
from everram.runtime.guest.region import Region
from everram.runtime.guest.transaction import Transaction

Key = str | bytes

MAGIC = int.from_bytes(b"EVRMDICT", "little")
VERSION = 1
_MAGIC, _VERSION, _BUCKETS, _COUNT, _HEAP_END, _FREE = 0, 8, 16, 24, 32, 64
"""Offsets of the header's words; `_FREE` is a list head for every power of two."""
_TABLE = 512
_ENTRY = struct.Struct("<QIIQ")
"""next entry's offset (0: none), key's length, value's length, block's power of two."""
_SMALLEST_POWER = 5
_REGION_BYTES_PER_BUCKET = 256
"""Entries of about that size make chains of about one, at 3 % of the region."""
MIN_REGION_BYTES = 4096


class Dictionary:
    """Fills the whole of `region`. `transaction` begins one, as its guest's does: what this changes by itself waits as
    others wait. Raises RegionError if something else lies there."""

    def __init__(self, transaction: Callable[[], Transaction], region: Region) -> None:
        self._transaction = transaction
        self._region = region
        magic = region.load_u64(_MAGIC)
        if not magic:
            self._format()
        elif magic != MAGIC or region.load_u64(_VERSION) != VERSION:
            raise RegionError(f"region {region.name} holds something else than a dictionary of version {VERSION}")
        self._buckets = region.load_u64(_BUCKETS)

    def _format(self) -> None:
        region = self._region
        if region.size_bytes < MIN_REGION_BYTES:
            raise RegionError(
                f"region {region.name} is too small for a dictionary: give it at least {MIN_REGION_BYTES}"
            )
        buckets = 1 << (region.size_bytes // _REGION_BYTES_PER_BUCKET).bit_length() - 1
        with self._transaction() as tx:
            tx.store_u64(region, _MAGIC, MAGIC)
            tx.store_u64(region, _VERSION, VERSION)
            tx.store_u64(region, _BUCKETS, buckets)
            tx.store_u64(region, _HEAP_END, _TABLE + 8 * buckets)

    # -- reading

    def get(self, key: Key, default: Any = None, tx: Transaction | None = None) -> Any:
        """The value, or `default`; with `tx` as that transaction would leave it."""
        reader = tx or self._transaction()
        found = self._find(reader, _encode_key(key))
        if found is None:
            return default
        _, at, key_length, value_length, _ = found
        return _decode_value(reader.load(self._region, at + _ENTRY.size + key_length, value_length))

    def __getitem__(self, key: Key) -> Any:
        missing = object()
        value = self.get(key, missing)
        if value is missing:
            raise KeyError(key)
        return value

    def __contains__(self, key: Key) -> bool:
        return self._find(self._transaction(), _encode_key(key)) is not None

    def __len__(self) -> int:
        return self._region.load_u64(_COUNT)

    def __iter__(self) -> Iterator[Key]:
        return (key for key, _ in self.items())

    def items(self) -> Iterator[tuple[Key, Any]]:
        """In no particular order. Changing the dictionary meanwhile may repeat or miss what is changed."""
        region = self._region
        for bucket in range(self._buckets):
            at = region.load_u64(_TABLE + 8 * bucket)
            while at:
                following, key_length, value_length, _ = _ENTRY.unpack(region.load(at, _ENTRY.size))
                body = region.load(at + _ENTRY.size, key_length + value_length)
                yield _decode_key(body[:key_length]), _decode_value(body[key_length:])
                at = following

    # -- changing

    def set(self, key: Key, value: Any, tx: Transaction | None = None) -> None:
        """Raises RegionError when the region is full; nothing is changed then."""
        if tx is not None:
            self._set(tx, _encode_key(key), _encode_value(value))
            return
        with self._region.changing, self._transaction() as own:
            self._set(own, _encode_key(key), _encode_value(value))

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def delete(self, key: Key, tx: Transaction | None = None) -> bool:
        """Whether there was such a key."""
        if tx is not None:
            return self._delete(tx, _encode_key(key))
        with self._region.changing, self._transaction() as own:
            return self._delete(own, _encode_key(key))

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    # -- entries

    def _find(self, tx: Transaction, key: bytes) -> tuple[int, int, int, int, int] | None:
        """(offset of the word that points to it, its offset, key's and value's length, power), or None."""
        region = self._region
        link = _TABLE + 8 * (zlib.crc32(key) & (self._buckets - 1))
        while at := tx.load_u64(region, link):
            _, key_length, value_length, power = _ENTRY.unpack(tx.load(region, at, _ENTRY.size))
            if key_length == len(key) and tx.load(region, at + _ENTRY.size, key_length) == key:
                return link, at, key_length, value_length, power
            link = at
        return None

    def _set(self, tx: Transaction, key: bytes, value: bytes) -> None:
        region, needed = self._region, _ENTRY.size + len(key) + len(value)
        power = max(_SMALLEST_POWER, (needed - 1).bit_length())
        found = self._find(tx, key)
        if found is not None:
            _, at, _, _, old_power = found
            if old_power == power:
                following = tx.load_u64(region, at)
                tx.store(region, at, _ENTRY.pack(following, len(key), len(value), power) + key + value)
                return
            self._delete(tx, key)
        at = self._take(tx, power)
        link = _TABLE + 8 * (zlib.crc32(key) & (self._buckets - 1))
        tx.store(region, at, _ENTRY.pack(tx.load_u64(region, link), len(key), len(value), power) + key + value)
        tx.store_u64(region, link, at)
        tx.store_u64(region, _COUNT, tx.load_u64(region, _COUNT) + 1)

    def _delete(self, tx: Transaction, key: bytes) -> bool:
        found = self._find(tx, key)
        if found is None:
            return False
        link, at, _, _, power = found
        region, head = self._region, _FREE + 8 * power
        tx.store_u64(region, link, tx.load_u64(region, at))
        tx.store_u64(region, at, tx.load_u64(region, head))
        tx.store_u64(region, head, at)
        tx.store_u64(region, _COUNT, tx.load_u64(region, _COUNT) - 1)
        return True

    def _take(self, tx: Transaction, power: int) -> int:
        """A block of 2 ** power bytes: one that was given up, or a new one."""
        region, head = self._region, _FREE + 8 * power
        if freed := tx.load_u64(region, head):
            tx.store_u64(region, head, tx.load_u64(region, freed))
            return freed
        at = tx.load_u64(region, _HEAP_END)
        if at + (1 << power) > region.size_bytes:
            raise RegionError(f"dictionary {region.name} is full: delete something, or run it with a larger region")
        tx.store_u64(region, _HEAP_END, at + (1 << power))
        return at


def _encode_key(key: Key) -> bytes:
    return b"s" + key.encode() if isinstance(key, str) else b"b" + bytes(key)


def _decode_key(data: bytes) -> Key:
    return data[1:].decode() if data[:1] == b"s" else data[1:]


def _encode_value(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"b" + bytes(value)
    try:
        return b"j" + json.dumps(value, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RegionError(f"a value is bytes or what JSON can say, not {type(value).__name__}: {error}") from error


def _decode_value(data: bytes) -> Any:
    return data[1:] if data[:1] == b"b" else json.loads(data[1:])
