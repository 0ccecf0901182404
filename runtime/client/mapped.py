"""A file of the cluster in this process's own memory: one-sided access without copies.

    async with await cluster.map("notes/table") as mapped:
        mapped.view[0:8]                          # the file's bytes themselves; also stores, if it is writable
        data = mapped.read(0, 4096)               # a copy that is right, or an error

It works where the file lies on this computer: its owner's host passes the descriptor over its channel, as it does to
peers, and does no work after that. Three things to know:

- The mapping is as long as the file was when it was mapped.
- A file that another shortens takes its pages along: touching `view` behind its new end kills this process (SIGBUS).
  `read` and `write` go by the descriptor, and raise instead.
- The file may go: its machine dies, it is removed or shortened, its host starts again. `check` raises then, and so do
  `read` and `write`, which look before and after. Who uses `view` calls `check` after it has looked, before it believes
  what it saw. Where the file is still there, map it again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from types import TracebackType
from typing import TYPE_CHECKING

from everram.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from everram.runtime.channel.shared_memory_pair import SharedMemoryPair, SharedRegion
    from everram.runtime.client.files import File


class MappedFile:
    """See the module. Made by `Cluster.map`."""

    def __init__(self, file: File, pair: SharedMemoryPair, region: SharedRegion, *, writable: bool) -> None:
        """Takes all three over. Raises InvalidArgument, ResourceExhausted; then they are the caller's still."""
        self.node = file.node
        self._file, self._pair, self._region, self._writable = file, pair, region, writable
        self._fd = region.descriptor
        self.size_bytes = os.fstat(self._fd).st_size
        if not self.size_bytes:
            raise InvalidArgument(f"{file.node.name!r} is empty, so there is nothing to map (EINVAL)")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._mapping = mmap.mmap(self._fd, self.size_bytes, mmap.MAP_SHARED, protection)
        except OSError as error:
            raise ResourceExhausted(f"{file.node.name!r} cannot be mapped: {error.strerror} (ENOMEM)") from error
        self.view = memoryview(self._mapping)
        """The file's bytes. Release whatever was made of it before `close`."""

    def check(self) -> None:
        """Raises FailedPrecondition if what is mapped may not be the file any more."""
        if not self._region.valid:
            raise FailedPrecondition(
                f"what is mapped of {self.node.name!r} is not that file any more: its memory was lost, it was removed "
                "or shortened, or its host was restarted; map it again (ESTALE)"
            )

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file. Raises FailedPrecondition."""
        self.check()
        data = os.pread(self._fd, length, offset)
        self.check()
        return data

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """All of it, inside what is mapped. Raises FailedPrecondition, InvalidArgument."""
        if not self._writable:
            raise InvalidArgument(f"{self.node.name!r} is not mapped for writing (EBADF)")
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise InvalidArgument(f"{len(data)} bytes at {offset} are not inside {self.size_bytes} (EINVAL)")
        self.check()
        os.pwrite(self._fd, data, offset)
        self.check()
        return len(data)

    async def close(self) -> None:
        """Idempotent. Raises BufferError while something made of `view` is in use."""
        self.view.release()
        self._mapping.close()
        self._pair.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(Unavailable, FailedPrecondition):
            await self._file.close()  # if its host has ended, so has what was open there

    async def __aenter__(self) -> MappedFile:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
