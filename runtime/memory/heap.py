"""The memory contract on ordinary memory of this process: for scratch copies and tests. Nothing outlives it.

scratch = HeapMapping(8 * 1024 * 1024)
"""

from __future__ import annotations

from collections.abc import Iterable

from everram.runtime.memory.contract import Mapping


class HeapMapping(Mapping):
    """A `Mapping` over bytes of this process. Only it sees them, so publishing needs no care."""

    def __init__(self, size_bytes: int) -> None:
        self._use(bytearray(size_bytes))

    @classmethod
    def of(cls, content: bytes | bytearray) -> HeapMapping:
        """Over these bytes themselves; stores raise TypeError where they cannot be changed."""
        made = cls.__new__(cls)
        made._use(content)
        return made

    def _use(self, content: bytes | bytearray) -> None:
        self.size_bytes = len(content)
        self._bytes = memoryview(content)
        self._words = self._bytes[: len(content) & ~7].cast("Q")

    def load(self, offset: int, length: int) -> bytes:
        return bytes(self._range(offset, length))

    def load_u64(self, offset: int) -> int:
        if offset & 7 or offset < 0:
            raise IndexError(f"offset {offset} is not that of a word")
        return self._words[offset >> 3]

    def load_words(self, numbers: Iterable[int]) -> list[int]:
        words = self._words
        return [words[number] for number in numbers]

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._range(offset, len(data))[:] = data

    def store_u64(self, offset: int, value: int) -> None:
        if offset & 7 or offset < 0:
            raise IndexError(f"offset {offset} is not that of a word")
        self._words[offset >> 3] = value

    def flush(self, offset: int, length: int) -> None:
        self._range(offset, length)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        self._words.release()
        self._bytes.release()

    def _range(self, offset: int, length: int) -> memoryview:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} of a mapping of {self.size_bytes}")
        return self._bytes[offset : offset + length]
