"""A transaction: stores kept aside until it commits as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from everram.runtime.guest.errors import RegionError
from everram.runtime.guest.region import Region
from everram.runtime.log.record import RawStore


class Transaction:
    """Use it in `with` (or `async with`): commits at the end of the block, discards everything if the block raises.

    Threads and tasks may each have one open. They do not lock what they read: two that change the same bytes commit one
    after the other, and the later one wins.
    """

    __slots__ = ("_commit", "_stores", "lsn")

    def __init__(self, commit: Callable[[Sequence[RawStore]], int]) -> None:
        self._commit = commit
        self._stores: list[RawStore] = []
        self.lsn = 0
        """The LSN behind its record once it has committed; 0 before, and for a transaction without stores."""

    def store(self, region: Region, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Change bytes of a logged region. Raises RegionError."""
        length = len(data)
        if offset < 0 or offset + length > region.size_bytes:
            region.check(offset, length)
        if region.kind != "logged":
            raise RegionError(f"region {region.name} is mapped: store into it directly, transactions do not cover it")
        # A copy, unless it cannot change: what the caller does to its buffer afterwards is not part of this.
        self._stores.append((region.number, offset, data if type(data) is bytes else bytes(data)))

    def load(self, region: Region, offset: int, length: int) -> bytes:
        """What the region will hold if this transaction commits."""
        data = region.load(offset, length)
        overlaid: bytearray | None = None
        for number, at, stored in self._stores:
            start, stop = max(at, offset), min(at + len(stored), offset + length)
            if number == region.number and start < stop:
                overlaid = bytearray(data) if overlaid is None else overlaid
                overlaid[start - offset : stop - offset] = stored[start - at : stop - at]
        return data if overlaid is None else bytes(overlaid)

    def load_u64(self, region: Region, offset: int) -> int:
        return int.from_bytes(self.load(region, offset, 8), "little")

    def store_u64(self, region: Region, offset: int, value: int) -> None:
        self.store(region, offset, value.to_bytes(8, "little"))

    def commit(self) -> int:
        """Commit now; the `with` block calls it. A transaction without stores costs nothing."""
        if self._stores:
            self.lsn = self._commit(self._stores)
            self._stores = []
        return self.lsn

    def discard(self) -> None:
        self._stores = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._stores:
            self.lsn = self._commit(self._stores)
        self._stores = []

    async def __aenter__(self) -> Transaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
