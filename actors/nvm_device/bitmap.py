"""Which of many equal things are taken: one bit each, in metadata pages that are made as they are needed.

    number = bitmap.take()                  # reserved in this process alone
    bitmap.mark(change, [number])           # and persistently, with the change that first refers to it
    bitmap.release(change, [number])        # free again once the change is committed
    bitmap.unreserve(number)                # it is not needed after all: nothing ever referred to it

A thing is reserved before anything is written into it and marked in the very change that makes it reachable, so a
crash in between leaves it free. What is released can be taken again only after `committed`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from everram.actors.nvm_device.redo import WORD_BYTES, Change
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES

BITS_PER_PAGE = PAGE_BYTES * 8
_WORD_BITS = WORD_BYTES * 8
_ALL_TAKEN = b"\xff" * WORD_BYTES


class Bitmap:
    """`limit`: how many things there may be now. `page_at` gives the offset of the n-th page of bits."""

    def __init__(self, what: str, limit: int, page_at: Callable[[int], int]) -> None:
        self.what = what
        self.limit = limit
        self._page_at = page_at
        self._bits = bytearray()
        self._free: deque[int] = deque()
        self._scanned = 0
        """Everything free before it is in `_free`, or was taken or released since."""
        self._reserved: set[int] = set()
        self._released: list[int] = []
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

    def taken_numbers(self) -> Iterable[int]:
        bits = self._bits.rstrip(b"\0")
        return (at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1)

    @property
    def free(self) -> int:
        return self.limit - self.taken - len(self._reserved)

    @property
    def free_now(self) -> int:
        """Without those that have no bits yet."""
        return min(self.limit, self.nameable) - self.taken - len(self._reserved)

    def take(self) -> int:
        """Reserve one. Raises ResourceExhausted."""
        if self.free <= 0 or not (self._free or self._scan()):
            raise ResourceExhausted(f"no {self.what} is free: all {self.limit} are taken")
        number = self._free.popleft()
        self._reserved.add(number)
        return number

    def take_many(self, count: int) -> list[int]:
        """All of them, or none. Raises ResourceExhausted."""
        taken: list[int] = []
        try:
            while len(taken) < count:
                taken.append(self.take())
                more = min(count - len(taken), len(self._free), max(0, self.free))
                taken += [self._free.popleft() for _ in range(more)]
                self._reserved.update(taken[len(taken) - more :])
        except ResourceExhausted:
            for number in reversed(taken):
                self.unreserve(number)
            raise
        return taken

    def unreserve(self, number: int) -> None:
        self._reserved.discard(number)
        self._free.appendleft(number)

    def mark(self, change: Change, numbers: Sequence[int]) -> None:
        self._reserved.difference_update(numbers)
        bits = self._bits
        for number in numbers:
            bits[number >> 3] |= 1 << (number & 7)
        self.taken += len(numbers)
        self._put(change, numbers)

    def release(self, change: Change, numbers: Sequence[int]) -> None:
        bits = self._bits
        for number in numbers:
            bits[number >> 3] &= ~(1 << (number & 7))
        self.taken -= len(numbers)
        self._released += numbers
        self._put(change, numbers)

    def committed(self) -> None:
        """The changes so far are persistent: what they released may be taken again."""
        if self._released:
            # A scan will find the others.
            self._free.extend(number for number in self._released if number < self._scanned)
            self._released.clear()

    def _put(self, change: Change, numbers: Sequence[int]) -> None:
        """The words of these bits, each once."""
        for word in {number // _WORD_BITS for number in numbers}:
            at = word * WORD_BYTES
            page, within = divmod(at, PAGE_BYTES)
            change.put(self._page_at(page) + within, bytes(self._bits[at : at + WORD_BYTES]))

    def _scan(self) -> bool:
        """Find more that are free; False if there are none."""
        bits, end = self._bits, min(len(self._bits) * 8, self.limit)
        while self._scanned < end and not self._free:
            first = self._scanned
            self._scanned = min(end, (first // _WORD_BITS + 1) * _WORD_BITS)
            if bits[first // 8 : self._scanned // 8] == _ALL_TAKEN:
                continue
            for number in range(first, self._scanned):
                if not bits[number // 8] >> number % 8 & 1 and number not in self._reserved:
                    self._free.append(number)
        return bool(self._free)
