"""A peer's memory that is reached by its descriptor: a file of remote memory, which others may shorten at any time.

    unmapped = Unmapped(descriptor)
    unmapped.view[0:4096] = data           # pwrite
    unmapped.view[0:4096]                  # pread

A mapping of it would end this process at the first touch beyond the new end; a read that meets the end finds zeros
instead, and whoever shortened it had revoked the region before, which the queue pair sees in the generation table after
each access. It looks like `everram.runtime.memory.mapped.Mapped` to a queue pair: `view`, `words`, `load`,
`load_into`, `close`.
"""

from __future__ import annotations

import os

WORD_BYTES = 8


class _Bytes:
    """The memory by bytes; slices only."""

    __slots__ = ("_fd",)

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    def __getitem__(self, at: slice) -> bytes:
        length = at.stop - at.start
        found = os.pread(self._fd, length, at.start)
        while len(found) < length:
            more = os.pread(self._fd, length - len(found), at.start + len(found))
            if not more:
                return found + bytes(length - len(found))
            found += more
        return found

    def __setitem__(self, at: slice, data: bytes | memoryview) -> None:
        offset, left = at.start, memoryview(data)
        while left:
            written = os.pwrite(self._fd, left, offset)
            offset, left = offset + written, left[written:]


class _Words:
    """The memory by aligned words. The kernel copies a word as a whole."""

    __slots__ = ("_bytes",)

    def __init__(self, content: _Bytes) -> None:
        self._bytes = content

    def __getitem__(self, index: int) -> int:
        at = index * WORD_BYTES
        return int.from_bytes(self._bytes[at : at + WORD_BYTES], "little")

    def __setitem__(self, index: int, value: int) -> None:
        at = index * WORD_BYTES
        self._bytes[at : at + WORD_BYTES] = value.to_bytes(WORD_BYTES, "little")


class Unmapped:
    """See the module. `descriptor` stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._fd = os.dup(descriptor)
        self.view = _Bytes(self._fd)
        self.words = _Words(self.view)

    @property
    def size_bytes(self) -> int:
        """As it is now."""
        return os.fstat(self._fd).st_size

    def duplicate(self) -> int:
        """Its descriptor once more, the caller's own."""
        return os.dup(self._fd)

    def load(self, offset: int, length: int) -> bytes:
        return self.view[offset : offset + length]

    def load_into(self, offset: int, target: memoryview) -> None:
        while target:
            count = os.preadv(self._fd, [target], offset)
            if not count:
                target[:] = bytes(len(target))
                return
            offset, target = offset + count, target[count:]

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
