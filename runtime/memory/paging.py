"""A guest's volatile memory as its host pages it: the part of its address space, and what the kernel does to it.

    paged.protect(first_page, count)        # from now on a store to these pages blocks, and is told
    paged.fill(page, content)               # a missing page: whole or not at all, and who waits for it goes on

One per guest, made by the page service when the guest hands in its userfaultfd. Faults go to the service's `pager`,
which resolves each of them; while there is none they wait, and are told again to the next one. Pages that were never
swapped out cost no fault at all: a part of the memory is watched only from its first page that goes.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from everram.runtime.environment import TrackedRange
from everram.runtime.memory import touches, userfaultfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.userfaultfd import FaultFlag, Mode, PageFault

WATCHED_PAGES = 512
"""Watched together, so that the kernel has few pieces to order: 2 MiB."""


class PagingKernel(Protocol):
    """Module `userfaultfd`, or a test's own."""

    def register(self, descriptor: int, address: int, length: int, mode: Mode) -> None: ...

    def protect(self, descriptor: int, address: int, length: int) -> None: ...

    def unprotect(self, descriptor: int, address: int, length: int) -> None: ...

    def wake(self, descriptor: int, address: int, length: int) -> None: ...

    def copy(self, descriptor: int, destination: int, source: int, length: int) -> None: ...

    def zero(self, descriptor: int, address: int, length: int) -> None: ...


class Pager(Protocol):
    """Who pages. None of these awaits."""

    def attached(self, guest_id: str, paged: PagedMemory) -> None:
        """A guest's memory can be paged from now on; what its threads wait for is told again."""

    def detached(self, guest_id: str) -> None: ...

    def fault(self, guest_id: str, page: int, *, protected: bool) -> None:
        """A thread waits: for a page that is missing, or (`protected`) to store to one."""


@dataclass(slots=True)
class PagedMemory:
    descriptor: int
    pid: int
    address: int
    pages: int
    kernel: PagingKernel = userfaultfd
    gone: bool = False
    """The guest has ended: nothing more can be done, and nothing has to."""
    lacks_memory: bool = False
    """Why the last page could not be filled, if it could not: this computer has no memory for it."""
    _watched: set[int] = field(default_factory=set)

    @staticmethod
    def of(descriptor: int, pid: int, tracked: TrackedRange) -> PagedMemory:
        return PagedMemory(descriptor, pid, tracked.address, tracked.length_bytes // PAGE_BYTES)

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.pages * PAGE_BYTES

    def page_of(self, fault: PageFault) -> tuple[int, bool]:
        """(page, whether the fault is a store to a protected one)."""
        return (fault.address - self.address) // PAGE_BYTES, bool(fault.flags & FaultFlag.PROTECTED)

    def watch(self, page: int) -> None:
        """Be told of missing pages here from now on. Raises OSError."""
        number = page // WATCHED_PAGES
        if number not in self._watched:
            first = number * WATCHED_PAGES
            count = min(WATCHED_PAGES, self.pages - first)
            self.kernel.register(
                self.descriptor, self._at(first), count * PAGE_BYTES, Mode.MISSING | Mode.WRITE_PROTECT
            )
            self._watched.add(number)

    def protect(self, first_page: int, count: int) -> None:
        """Of watched pages. Raises OSError."""
        self.kernel.protect(self.descriptor, self._at(first_page), count * PAGE_BYTES)

    def unprotect(self, first_page: int, count: int = 1) -> None:
        self._resolving(lambda: self.kernel.unprotect(self.descriptor, self._at(first_page), count * PAGE_BYTES))

    def fill(self, page: int, content: bytes) -> bool:
        """Give a missing page its content; False if it has to be tried again. One that is there stays as it is."""
        source = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0
        return self._filling(page, lambda: self.kernel.copy(self.descriptor, self._at(page), source, PAGE_BYTES))

    def fill_zeros(self, page: int, count: int = 1) -> bool:
        return self._filling(page, lambda: self.kernel.zero(self.descriptor, self._at(page), count * PAGE_BYTES))

    def wake_all(self) -> None:
        self._resolving(lambda: self.kernel.wake(self.descriptor, self.address, self.pages * PAGE_BYTES))

    def touched(self, pages: list[int]) -> set[int]:
        """Those that the guest has used since `forget_touches` of them, as far as can be seen from outside."""
        return touches.present(self.pid, self.address, pages)

    def forget_touches(self, pages: list[int]) -> None:
        touches.unmap(self.pid, self.address, pages)

    def _filling(self, page: int, fill: Callable[[], None]) -> bool:
        try:
            fill()
        except OSError as error:
            self.lacks_memory = error.errno == errno.ENOMEM
            if error.errno == errno.EEXIST:
                self.wake(page)
            elif error.errno in (errno.ESRCH, errno.ENOENT):
                self.gone = True
            elif error.errno == errno.EAGAIN:
                self.wake(page)  # its address space is just changing: the fault is told again
                return False
            else:
                return False
        return True

    def wake(self, page: int) -> None:
        self._resolving(lambda: self.kernel.wake(self.descriptor, self._at(page), PAGE_BYTES))

    def _resolving(self, resolve: Callable[[], None]) -> None:
        try:
            resolve()
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):
                raise
            self.gone = True

    def _at(self, page: int) -> int:
        return self.address + page * PAGE_BYTES
