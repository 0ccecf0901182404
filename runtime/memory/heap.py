"""The memory contract on ordinary memory of this process: for scratch copies and tests. Nothing outlives it.

scratch = HeapMapping(8 * 1024 * 1024)
"""

from __future__ import annotations

import struct

from everram.runtime.memory.contract import Mapping

_WORD = struct.Struct("<Q")


class HeapMapping(Mapping):
    """A `Mapping` over a bytearray. Only this process sees it, so publishing needs no care."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._data: bytearray | None = bytearray(size_bytes)

    def load(self, offset: int, length: int) -> bytes:
        return bytes(self._range(offset, length))

    def load_u64(self, offset: int) -> int:
        word: int = _WORD.unpack(self._word(offset))[0]
        return word

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._range(offset, len(data))[:] = data

    def store_u64(self, offset: int, value: int) -> None:
        self._word(offset)[:] = _WORD.pack(value)

    def flush(self, offset: int, length: int) -> None:
        self._range(offset, length)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        self._data = None

    def _word(self, offset: int) -> memoryview:
        if offset % _WORD.size:
            raise IndexError(f"offset {offset} is not a multiple of {_WORD.size}")
        return self._range(offset, _WORD.size)

    def _range(self, offset: int, length: int) -> memoryview:
        if self._data is None:
            raise ValueError("the mapping is closed")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} of a mapping of {self.size_bytes}")
        return memoryview(self._data)[offset : offset + length]
