"""CRC-32 of large blocks, as fast as this computer has it: the same sums as `zlib.crc32`, whoever takes them.

    checksums(view, 65536)                           # of each block of 64 KiB, the last perhaps a shorter one
    crc32(view)                                      # of all of it

Debian's zlib does 1.4 to 2 GB/s, which is no more than a disk takes: summing what is saved would then cost a processor.
libdeflate (a library that is part of most systems) uses the processor's carry-less multiplication and does four times
as much. Where there is none, or it gives other sums, zlib is used. Neither holds the GIL meanwhile.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIBRARY = "libdeflate.so.0"
_KNOWN = bytes(range(256)) * 17
_READ_ONLY = 0
"""PyBUF_SIMPLE: any contiguous bytes."""

_Sum = Callable[[int, int, int], int]
"""(sum so far, address, length)."""


class _Buffer(ctypes.Structure):
    """Py_buffer of the stable ABI, from 3.11 on."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.py_object),
        ("length", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = (ctypes.POINTER(_Buffer),)
_release.restype = None


@contextmanager
def address_of(data: bytes | bytearray | memoryview) -> Iterator[int]:
    """Where contiguous bytes lie, writable or not; they stay there inside."""
    buffer = _Buffer()
    _get(data, ctypes.byref(buffer), _READ_ONLY)
    try:
        yield buffer.address or 0
    finally:
        _release(ctypes.byref(buffer))


def _load() -> _Sum | None:
    try:
        found = ctypes.CDLL(LIBRARY).libdeflate_crc32
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    found.restype = ctypes.c_uint32
    with address_of(_KNOWN) as address:
        right = found(0, address, len(_KNOWN)) == zlib.crc32(_KNOWN)
    return found if right else None


_fast = _load()


def checksums(data: bytes | bytearray | memoryview, block_bytes: int) -> list[int]:
    """CRC-32 of each block."""
    length = len(data)
    if _fast is None:
        view = memoryview(data)
        return [zlib.crc32(view[at : at + block_bytes]) for at in range(0, length, block_bytes)]
    with address_of(data) as address:
        return [_fast(0, address + at, min(block_bytes, length - at)) for at in range(0, length, block_bytes)]


def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """`value`: the sum of what comes before."""
    if _fast is None:
        return zlib.crc32(data, value)
    with address_of(data) as address:
        return _fast(value, address, len(data))
