"""A persistent array of fixed-size records in a region.

    accounts = me.records("accounts", "<q16s")        # `struct`'s words: a balance and a name
    accounts[7] = (100, b"alice")                     # a transaction of its own
    with me.transaction() as tx:
        accounts.set(7, (90, b"alice"), tx)
        accounts.set(8, (10, b"bob"), tx)

A record that was never set reads as zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from everram.runtime.guest.errors import RegionError
from everram.runtime.guest.region import Region
from everram.runtime.guest.transaction import Transaction


class Records:
    """As many records as fit into `region`. `transaction` begins one, as its guest's does. Raises RegionError for a
    layout that `struct` does not know."""

    def __init__(self, transaction: Callable[[], Transaction], region: Region, layout: str) -> None:
        try:
            self._layout = struct.Struct(layout)
        except struct.error as error:
            raise RegionError(f"{layout!r} is not a record's layout: {error}") from error
        if not 0 < self._layout.size <= region.size_bytes:
            raise RegionError(f"records of {self._layout.size} bytes do not fit into region {region.name}")
        self._transaction = transaction
        self._region = region

    def __len__(self) -> int:
        return self._region.size_bytes // self._layout.size

    def get(self, index: int, tx: Transaction | None = None) -> tuple[Any, ...]:
        """The record; with `tx` as that transaction would leave it. Raises IndexError."""
        offset, reader = self._offset(index), tx or self._region
        if isinstance(reader, Region):
            return self._layout.unpack(reader.load(offset, self._layout.size))
        return self._layout.unpack(reader.load(self._region, offset, self._layout.size))

    def set(self, index: int, values: tuple[Any, ...], tx: Transaction | None = None) -> None:
        """Raises IndexError, and RegionError for values that the layout does not take."""
        try:
            data = self._layout.pack(*values)
        except struct.error as error:
            raise RegionError(f"{values!r} does not fit the layout {self._layout.format}: {error}") from error
        if tx is not None:
            tx.store(self._region, self._offset(index), data)
            return
        with self._transaction() as own:
            own.store(self._region, self._offset(index), data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.get(index)

    def __setitem__(self, index: int, values: tuple[Any, ...]) -> None:
        self.set(index, values)

    def _offset(self, index: int) -> int:
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return at * self._layout.size
