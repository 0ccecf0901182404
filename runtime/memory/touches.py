"""Which pages a process has used lately, as seen from outside: unmap them, and look later which are mapped again.

A heuristic of the host for guests that do not say: process_madvise(MADV_PAGEOUT) on shared memory only unmaps, where
the computer has no swap of its own, and /proc/PID/pagemap shows what was touched since. Where the kernel does not allow
it, every page counts as used.
"""

from __future__ import annotations

import ctypes
import os

from everram.runtime.memory.contract import PAGE_BYTES

SYS_PROCESS_MADVISE = 440
"""On x86-64, as PIDFD_OPEN is."""
MADV_PAGEOUT = 21
_PRESENT = 1 << 63
_VECTOR_MAX = 512
FEW_PAGES = 32
"""Beyond, one read of all between the first and the last is cheaper than one for each."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def unmap(pid: int, address: int, pages: list[int]) -> None:
    """Have the next use of each page leave a trace. What cannot be done is not."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for start in range(0, len(pages), _VECTOR_MAX):
            part = pages[start : start + _VECTOR_MAX]
            vector = (_Vector * len(part))(*(_Vector(address + page * PAGE_BYTES, PAGE_BYTES) for page in part))
            _libc.syscall(SYS_PROCESS_MADVISE, pidfd, vector, ctypes.c_size_t(len(part)), MADV_PAGEOUT, 0)
    finally:
        os.close(pidfd)


def present(pid: int, address: int, pages: list[int]) -> set[int]:
    """Those of the process's pages that are mapped. All of them where that cannot be seen."""
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return set(pages)
    try:
        first = address // PAGE_BYTES
        if len(pages) > FEW_PAGES:
            low, count = min(pages), max(pages) - min(pages) + 1
            entries = memoryview(os.pread(pagemap, count * 8, (first + low) * 8)).cast("Q")
            return {page for page in pages if entries[page - low] & _PRESENT}
        return {page for page in pages if int.from_bytes(os.pread(pagemap, 8, (first + page) * 8), "little") & _PRESENT}
    except (OSError, IndexError):
        return set(pages)
    finally:
        os.close(pagemap)
