"""The memory contract on a real mapping: shared memory that the machine keeps, mapped into this process.

    mapping = Mapped(descriptor, size_bytes)

Stores reach other processes in program order and an aligned 8-byte store is never seen half-done: both are promises of
x86-64, so elsewhere this module refuses. Flush and drain do nothing, because the memory is DRAM that the machine keeps.
Standard library only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable

from everram.runtime.memory.contract import Mapping

if os.uname().machine != "x86_64" or sys.byteorder != "little":
    raise ImportError("everram publishes words in shared memory by plain 8-byte stores, which needs an x86-64 computer")


_libc = ctypes.CDLL(None, use_errno=True)
_LOWEST_BIT = bytes(value & 1 for value in range(256))


class Mapped(Mapping):
    """All of a descriptor's first `size_bytes` bytes; the descriptor stays the caller's. Raises OSError."""

    def __init__(self, descriptor: int, size_bytes: int, *, populate: bool = False, writable: bool = True) -> None:
        """`populate`: touch every page now, not at its first store (about 0.75 us a page either way). Stores into a
        mapping that is not `writable` raise TypeError."""
        self.size_bytes = size_bytes
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._mmap = mmap.mmap(descriptor, size_bytes, flags, protection)
        self._bytes = memoryview(self._mmap)
        # Never struct.pack_into for a word that others read: it clears before it writes.
        self._words = self._bytes[: size_bytes & ~7].cast("Q")

    @property
    def view(self) -> memoryview:
        """The memory itself. Release what is derived from it before `close`."""
        return self._bytes

    @property
    def words(self) -> memoryview:
        """The same memory by aligned words, each loaded and stored whole; ends with `close`."""
        return self._words

    @property
    def address(self) -> int:
        """Where it lies in this process, for atomic operations; only of a writable mapping, and until `close`."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))

    def load(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"load of {length} bytes at {offset} in a mapping of {self.size_bytes}")
        return self._mmap[offset : offset + length]  # less than half the time of bytes(view[...])

    def load_into(self, offset: int, target: memoryview) -> None:
        """As `load`, into writable bytes."""
        end = offset + len(target)
        if offset < 0 or end > self.size_bytes:
            raise IndexError(f"load of {len(target)} bytes at {offset} in a mapping of {self.size_bytes}")
        target[:] = self._bytes[offset:end]

    def load_u64(self, offset: int) -> int:
        if offset & 7 or offset < 0:
            raise IndexError(f"load of a word at {offset}")
        return self._words[offset >> 3]

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        end = offset + len(data)
        if offset < 0 or end > self.size_bytes:
            raise IndexError(f"store of {len(data)} bytes at {offset} in a mapping of {self.size_bytes}")
        self._bytes[offset:end] = data

    def store_u64(self, offset: int, value: int) -> None:
        if offset & 7 or offset < 0:
            raise IndexError(f"store of a word at {offset}")
        self._words[offset >> 3] = value

    def flush(self, offset: int, length: int) -> None:
        pass

    def drain(self) -> None:
        pass

    def persist(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        end = offset + len(data)
        if offset < 0 or end > self.size_bytes:
            raise IndexError(f"store of {len(data)} bytes at {offset} in a mapping of {self.size_bytes}")
        self._bytes[offset:end] = data

    publish_u64 = store_u64

    def load_words(self, numbers: Iterable[int]) -> list[int]:
        words = self._words
        return [words[number] for number in numbers]

    def publish_words(self, words: Iterable[tuple[int, int]]) -> None:
        stored = self._words
        for number, value in words:
            stored[number] = value

    def keep_from_children(self) -> None:
        """Children that this process forks do not have the mapping."""
        self._mmap.madvise(mmap.MADV_DONTFORK)

    def punch(self, offset: int, length: int) -> None:
        """Give whole pages back; they read as zeros afterwards, in every mapping."""
        if length:
            self._mmap.madvise(mmap.MADV_REMOVE, offset, length)

    def present(self, offset: int, length: int) -> bytes:
        """One byte for each page of the range: 1 if there is memory behind it, whoever put it there. Raises OSError."""
        pages = -(-length // mmap.PAGESIZE)
        vector = ctypes.create_string_buffer(pages)
        if _libc.mincore(ctypes.c_void_p(self.address + offset), ctypes.c_size_t(length), vector):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return vector.raw.translate(_LOWEST_BIT)

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._mmap.close()
