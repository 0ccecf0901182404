"""A region as a guest sees it: bytes to read by slices, changed only through transactions (or plainly, if `mapped`)."""

from __future__ import annotations

import threading

from everram.runtime.guest.errors import RegionError
from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.old_pages import OldPages


class Region:
    """`len(region)` bytes; `region[a:b]` is a copy of some of them. `number` is its place among the guest's regions."""

    __slots__ = ("changing", "kind", "mapping", "name", "number", "old", "size_bytes")

    def __init__(
        self, name: str, number: int, kind: str, mapping: Mapping, size_bytes: int, old: OldPages | None = None
    ) -> None:
        self.name = name
        self.number = number
        self.kind = kind
        """"logged" or "mapped"."""
        self.mapping = mapping
        self.size_bytes = size_bytes
        self.old = old
        """Where what snapshots need is saved before it is stored to, if nobody else sees the stores."""
        self.changing = threading.RLock()
        """Held by collections while they read and change: a transaction alone does not lock what it reads."""

    def __len__(self) -> int:
        return self.size_bytes

    def __getitem__(self, where: slice | int) -> bytes | int:
        if isinstance(where, int):
            at = where + self.size_bytes if where < 0 else where
            return self.load(at, 1)[0]
        start, stop, step = where.indices(self.size_bytes)
        data = self.load(start, max(0, stop - start))
        return data if step == 1 else data[::step]

    def load(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes. Raises RegionError outside the region."""
        self.check(offset, length)
        return self.mapping.load(offset, length)

    def load_u64(self, offset: int) -> int:
        """One aligned little-endian word, never seen half-done."""
        self.check(offset, 8)
        return self.mapping.load_u64(offset)

    @property
    def view(self) -> memoryview:
        """The memory itself, without a copy: read-only if logged, writable if mapped.

        Release it before the process ends or its region is unmapped. Raises RegionError where there is no real memory.
        """
        view = getattr(self.mapping, "view", None)
        if not isinstance(view, memoryview):
            raise RegionError(f"region {self.name} is simulated: use load and store instead of its view")
        return view[: self.size_bytes] if self.kind == "mapped" else view[: self.size_bytes].toreadonly()

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """A plain store, for mapped regions only. Raises RegionError."""
        if self.kind != "mapped":
            raise RegionError(f"region {self.name} is logged: store through `with me.transaction() as tx`")
        self.check(offset, len(data))
        self.mapping.store(offset, data)

    def check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise RegionError(f"{length} bytes at {offset} lie outside region {self.name} ({self.size_bytes} bytes)")
