"""Atomic operations on aligned 8-byte words in shared memory, by libatomic, against every process that maps them.

    atomics = probe()                                    # None where this computer has no libatomic
    old = atomics.compare_and_swap(mapping.address + offset, expected, desired)

On x86-64 libatomic's 8-byte operations are the processor's own (`lock cmpxchg`, `lock xadd`), so they are atomic
against plain stores, too. For one thread of a process. Standard library only.
"""

from __future__ import annotations

import ctypes
import functools

METHOD = 1
"""What a region's record calls this way; everybody who touches a region atomically must use the same."""
MISSING = "this computer has no libatomic: install the package libatomic1"
SEQ_CST = 5


class Atomics:
    """The two operations. Addresses are multiples of 8 in writable memory that stays mapped: who calls has to know."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        """Raises AttributeError."""
        self._exchange = library["__atomic_compare_exchange_8"]
        self._exchange.restype = ctypes.c_bool
        self._add = library["__atomic_fetch_add_8"]
        self._add.restype = ctypes.c_uint64
        # Arguments are made once and filled in for each call: converting them took most of its time.
        cells = bytearray(3 * 8)
        self._cells = memoryview(cells).cast("Q")
        self._address, self._operand, found = (ctypes.c_uint64.from_buffer(cells, 8 * cell) for cell in range(3))
        self._found_at = ctypes.c_uint64(ctypes.addressof(found))

    def compare_and_swap(self, address: int, expected: int, desired: int) -> int:
        """The word that was there."""
        cells = self._cells
        cells[0], cells[1], cells[2] = address, desired, expected
        self._exchange(self._address, self._found_at, self._operand, SEQ_CST, SEQ_CST)
        return cells[2]

    def fetch_and_add(self, address: int, addend: int) -> int:
        """The word that was there."""
        cells = self._cells
        cells[0], cells[1] = address, addend
        return int(self._add(self._address, self._operand, SEQ_CST))


@functools.cache
def probe() -> Atomics | None:
    """Tried on a word before anybody relies on it."""
    try:
        atomics = Atomics(ctypes.PyDLL("libatomic.so.1"))
    except (OSError, AttributeError):
        return None
    word = ctypes.c_uint64(7)
    address = ctypes.addressof(word)
    found = [atomics.compare_and_swap(address, 7, 8), atomics.compare_and_swap(address, 7, 9)]
    found += [atomics.fetch_and_add(address, (1 << 64) - 1), word.value]
    return atomics if found == [7, 8, 8, 7] else None
