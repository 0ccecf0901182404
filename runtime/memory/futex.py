"""A doorbell in shared memory: wait until an aligned word changes, wake who waits for it (futex(2), between processes).

    futex.wait(mapping.address + 80, expected=7, timeout_s=0.25)      # True if it was woken or has changed already
    futex.wake(mapping.address + 80)

Only the word's low four bytes are compared. The wait lets other threads of the process run. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os

from everram.runtime.memory.contract import Mapping
from everram.runtime.memory.mapped import Mapped

SYS_FUTEX = 202
"""On x86-64."""
_WAIT, _WAKE = 0, 1
_EVERYBODY = 0x7FFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def wait(address: int, expected: int, timeout_s: float) -> bool:
    """False after `timeout_s` without a change. Raises OSError."""
    limit = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
    value = ctypes.c_uint32(expected & 0xFFFFFFFF)
    if not _libc.syscall(SYS_FUTEX, ctypes.c_void_p(address), _WAIT, value, ctypes.byref(limit), None, 0):
        return True
    number = ctypes.get_errno()
    if number == errno.ETIMEDOUT:
        return False
    if number in (errno.EAGAIN, errno.EINTR):
        return True
    raise OSError(number, os.strerror(number))


def ring(mapping: Mapping, offset: int) -> None:
    """Wake whoever waits for a word of memory that other processes share; nobody can wait for any other."""
    if isinstance(mapping, Mapped):
        wake(mapping.address + offset)


def wake(address: int) -> None:
    _libc.syscall(SYS_FUTEX, ctypes.c_void_p(address), _WAKE, _EVERYBODY, None, None, 0)
