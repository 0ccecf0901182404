"""`environment.Logs`: the files to which the machine appends what guests print.

Read in the loop: they are small pieces, a moment old, out of the page cache.
"""

from __future__ import annotations

import os
from pathlib import Path

from everram.runtime.production.files import errors_of, inside

READ_BYTES_MAX = 1024 * 1024
"""In one call: below a millisecond of copying; whoever wants more asks again."""


class OutputFiles:
    """Below the machine's state folder. A file that is not there yet is empty."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)

    async def read(self, path: str, offset: int, limit: int) -> bytes:
        file = inside(self._root, path)
        with errors_of(file):
            try:
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return b""
            try:
                return os.pread(fd, min(limit, READ_BYTES_MAX), offset)
            finally:
                os.close(fd)

    async def size(self, path: str) -> int:
        file = inside(self._root, path)
        with errors_of(file):
            try:
                return file.stat().st_size
            except FileNotFoundError:
                return 0

    async def remove(self, path: str) -> None:
        file = inside(self._root, path)
        with errors_of(file):
            file.unlink(missing_ok=True)
