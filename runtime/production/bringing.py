"""A mapping of memory of which pages are absent: what is touched is brought before, and no more than that.

Who takes the memory itself (`view`, `words`, `address`) accesses it unseen from then on, so all of it is brought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from everram.runtime.memory.mapped import Mapped

Bring = Callable[[int, int], None]


class BringingMapped(Mapped):
    """`bring` (offset, length) raises DataLoss for what cannot be had, ResourceExhausted."""

    def __init__(self, descriptor: int, size_bytes: int, bring: Bring) -> None:
        super().__init__(descriptor, size_bytes)
        self._bring = bring

    @property
    def view(self) -> memoryview:
        self._bring(0, self.size_bytes)
        return super().view

    @property
    def words(self) -> memoryview:
        self._bring(0, self.size_bytes)
        return super().words

    @property
    def address(self) -> int:
        self._bring(0, self.size_bytes)
        return super().address

    def load(self, offset: int, length: int) -> bytes:
        self._bring(offset, length)
        return super().load(offset, length)

    def load_into(self, offset: int, target: memoryview) -> None:
        self._bring(offset, len(target))
        super().load_into(offset, target)

    def load_u64(self, offset: int) -> int:
        self._bring(offset, 8)
        return super().load_u64(offset)

    def load_words(self, numbers: Iterable[int]) -> list[int]:
        return [self.load_u64(8 * number) for number in numbers]

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._bring(offset, len(data))
        super().store(offset, data)

    persist = store

    def store_u64(self, offset: int, value: int) -> None:
        self._bring(offset, 8)
        super().store_u64(offset, value)

    publish_u64 = store_u64

    def publish_words(self, words: Iterable[tuple[int, int]]) -> None:
        for number, value in words:
            self.store_u64(8 * number, value)
