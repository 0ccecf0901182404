"""Counts from outside how much of a guest's region may be written without anybody being asked.

    with Observer(pid, "region.") as observer: ...
    observer.most_pages, observer.last_pages, observer.looks

It reads the page tables of the guest's process (/proc/PID/pagemap): a page that is there and not write-protected may
have been stored to. It knows nothing of what everram believes.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

PRESENT, PROTECTED = 0x80, 0x02
"""Bits 63 and 57 of an entry, in its last byte (pagemap.rst)."""
_WRITABLE = bytes(bool(top & PRESENT) and not top & PROTECTED for top in range(256))
ENTRY_BYTES, PAGE_BYTES = 8, 4096


def ranges(pid: int, name: str) -> list[tuple[int, int]]:
    """(address, pages) of the writable shared mappings of memory objects whose names begin so."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(rf"([0-9a-f]+)-([0-9a-f]+) rw.s .*/memfd:{re.escape(name)}", line)
        if match:
            start, end = int(match[1], 16), int(match[2], 16)
            found.append((start, (end - start) // PAGE_BYTES))
    return found


def writable_pages(pid: int, mappings: list[tuple[int, int]]) -> int:
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        total = 0
        for address, pages in mappings:
            pagemap.seek(address // PAGE_BYTES * ENTRY_BYTES)
            entries = pagemap.read(pages * ENTRY_BYTES)
            total += entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(_WRITABLE).count(1)
        return total


class Observer:
    """Looks again and again, from a thread of its own, until it is left or the process ends."""

    def __init__(self, pid: int, name: str, every_s: float = 0.005) -> None:
        self._pid, self._mappings, self._every_s = pid, ranges(pid, name), every_s
        self.most_pages = self.last_pages = self.looks = 0
        """`last_pages`: of the last two looks that saw as many, so that the process stood still between them: while it
        ends, its page tables go one by one."""
        self.exceeded = 0
        self.allowed_pages = 1 << 62
        """What `exceeded` counts looks at more than."""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer")

    def __enter__(self) -> Observer:
        if not self._mappings:
            raise RuntimeError(f"process {self._pid} has no such memory mapped")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        before = 0
        while not self._left.wait(self._every_s):
            try:
                pages = writable_pages(self._pid, self._mappings)
            except (OSError, ProcessLookupError):
                return
            if pages and pages == before:
                self.last_pages = pages
            before = pages
            self.most_pages = max(self.most_pages, pages)
            self.exceeded += pages > self.allowed_pages
            self.looks += 1
