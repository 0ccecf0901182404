"""Which of many equal things are taken: one bit each, in metadata pages that are made as they are needed.

    number = bitmap.take()                  # reserved in this process alone
    bitmap.mark(change, [number])           # and persistently, with the change that first refers to it
    bitmap.release(change, [number])        # free again once the change is committed
    bitmap.unreserve([number])              # it is not needed after all: nothing ever referred to it

A thing is reserved before anything is written into it and marked in the very change that makes it reachable, so a
crash in between leaves it free. What is released can be taken again only after `committed`.

Neighbours are taken, marked and released as runs, a whole number at a time and not bit by bit: most of what a purge
moves lies side by side, and it moves a million.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from everram.actors.nvm_device.redo import WORD_BYTES, Change
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.runs import Run, runs

BITS_PER_PAGE = PAGE_BYTES * 8
_WORD_BITS = WORD_BYTES * 8
_SCAN_BITS = 512
"""Looked at in one go: a piece that is searched for gaps in a microsecond, and passed over in less if it has none."""
_ALL_TAKEN = b"\xff" * (_SCAN_BITS // 8)


class Bitmap:
    """`limit`: how many things there may be now. `page_at` gives the offset of the n-th page of bits."""

    def __init__(self, what: str, limit: int, page_at: Callable[[int], int]) -> None:
        self.what = what
        self.limit = limit
        self._page_at = page_at
        self._bits = bytearray()
        self._free: deque[Run] = deque()
        self._scanned = 0
        """Everything free before it is in `_free`, or was taken or released since."""
        self._reserved = 0
        self._released: list[Run] = []
        self.taken = 0

    @property
    def pages(self) -> int:
        return len(self._bits) // PAGE_BYTES

    @property
    def nameable(self) -> int:
        """How many things the pages of bits can name."""
        return len(self._bits) * 8

    def loaded(self, bits: bytes) -> None:
        """One more page of bits, as it is in the metadata."""
        self._bits += bits
        self.taken += int.from_bytes(bits, "little").bit_count()

    def is_taken(self, number: int) -> bool:
        return number // 8 < len(self._bits) and bool(self._bits[number // 8] >> number % 8 & 1)

    @property
    def last_taken(self) -> int:
        """The highest number that is taken; -1: none is."""
        bits = self._bits.rstrip(b"\0")
        return len(bits) * 8 - 9 + bits[-1].bit_length() if bits else -1

    def taken_of_page(self, page: int) -> int:
        """The bits of a page, as one number."""
        return int.from_bytes(self._bits[page * PAGE_BYTES : (page + 1) * PAGE_BYTES], "little")

    @property
    def free(self) -> int:
        return self.limit - self.taken - self._reserved

    @property
    def free_now(self) -> int:
        """Without those that have no bits yet."""
        return min(self.limit, self.nameable) - self.taken - self._reserved

    def take(self) -> int:
        """Reserve one. Raises ResourceExhausted."""
        if self.free <= 0 or not (self._free or self._scan()):
            raise self._exhausted()
        first, count = self._free[0]
        if count == 1:
            self._free.popleft()
        else:
            self._free[0] = first + 1, count - 1
        self._reserved += 1
        return first

    def take_many(self, count: int) -> list[int]:
        """All of them, ascending where they come from one run, or none. Raises ResourceExhausted."""
        taken: list[int] = []
        while len(taken) < count:
            if len(taken) >= self.free or not (self._free or self._scan()):
                self._free.extendleft(reversed(runs(sorted(taken))))
                raise self._exhausted()
            first, there = self._free.popleft()
            wanted = min(there, count - len(taken))
            taken += range(first, first + wanted)
            if there > wanted:
                self._free.appendleft((first + wanted, there - wanted))
        self._reserved += count
        return taken

    def _exhausted(self) -> ResourceExhausted:
        return ResourceExhausted(f"no {self.what} is free: all {self.limit} are taken")

    def unreserve(self, numbers: Sequence[int]) -> None:
        self._reserved -= len(numbers)
        self._free.extendleft(reversed(runs(sorted(numbers))))

    def mark(self, change: Change, numbers: Sequence[int]) -> None:
        self._reserved -= len(numbers)
        self.taken += len(numbers)
        for first, count in runs(sorted(numbers)):
            start, end = first >> 3, (first + count + 7) >> 3
            bits = int.from_bytes(self._bits[start:end], "little") | _mask(first & 7, count)
            self._bits[start:end] = bits.to_bytes(end - start, "little")
            self._put(change, first, count)

    def release(self, change: Change, numbers: Sequence[int]) -> None:
        self.taken -= len(numbers)
        for first, count in runs(sorted(numbers)):
            start, end = first >> 3, (first + count + 7) >> 3
            bits = int.from_bytes(self._bits[start:end], "little") & ~_mask(first & 7, count)
            self._bits[start:end] = bits.to_bytes(end - start, "little")
            self._put(change, first, count)
            self._released.append((first, count))

    def committed(self) -> None:
        """The changes so far are persistent: what they released may be taken again."""
        for first, count in self._released:
            if first < self._scanned:  # a scan will find the others
                self._free.append((first, min(count, self._scanned - first)))
        self._released.clear()

    def _put(self, change: Change, first: int, count: int) -> None:
        """The words of these bits, as they are now."""
        at, end = first // _WORD_BITS * WORD_BYTES, ((first + count - 1) // _WORD_BITS + 1) * WORD_BYTES
        while at < end:
            page = at // PAGE_BYTES
            until = min(end, (page + 1) * PAGE_BYTES)
            change.put(self._page_at(page) + at % PAGE_BYTES, bytes(self._bits[at:until]))
            at = until

    def _scan(self) -> bool:
        """Find more that are free; False if there are none."""
        bits, end = self._bits, min(len(self._bits) * 8, self.limit)
        while self._scanned < end and not self._free:
            first = self._scanned
            self._scanned = min(end, (first // _SCAN_BITS + 1) * _SCAN_BITS)
            start = first // 8
            if bits[start : self._scanned // 8] == _ALL_TAKEN:
                continue
            taken = int.from_bytes(bits[start : (self._scanned + 7) // 8], "little") >> (first & 7)
            free = _mask(0, self._scanned - first) & ~taken
            self._free.extend((first + at, count) for at, count in ones(free))
        return bool(self._free)


def _mask(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


def ones(bits: int) -> Iterator[Run]:
    """The runs of ones in a number, the lowest first."""
    while bits:
        first = (bits & -bits).bit_length() - 1
        above = (bits >> first) + 1  # which carries through the run
        count = (above & -above).bit_length() - 1
        yield first, count
        bits ^= _mask(first, count)
