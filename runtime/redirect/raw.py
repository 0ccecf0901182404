"""An open file of the cluster as Python's `io` wants it: raw and blocking, to be wrapped in its own buffers."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everram.runtime.client.files import File
    from everram.runtime.redirect.agent import Blocking

BUFFER_BYTES = 1 << 20
"""Each read and write of a buffer is a message to the agent."""


class RemoteRaw(io.RawIOBase):
    """See the module."""

    def __init__(self, files: Blocking, path: str, mode: str, bits: int = 0) -> None:
        """`mode` without "b" and "t"."""
        super().__init__()
        self.name = path
        self.mode = mode.replace("+", "b+") if "+" in mode else mode + "b"
        self._files, self._at = files, 0
        self._append = "a" in mode
        self._readable, self._writable = "r" in mode or "+" in mode, "r" not in mode or "+" in mode
        self._file: File | None = None  # Python closes what could not be opened, too
        self._file = files.call(lambda remote: remote.open(path, mode, bits=bits), path)
        if self._append:
            self._at = self.size()

    def _call(self, act: Any) -> Any:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._files.call(lambda _: act(self._file), self.name)

    def size(self) -> int:
        found: int = self._call(lambda file: file.size())
        return found

    def readable(self) -> bool:
        return self._readable

    def writable(self) -> bool:
        return self._writable

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._check(self._readable, "read")
        view = memoryview(buffer).cast("B")
        data = self.pread(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        self._check(self._readable, "read")
        data = self.pread(self._at, -1)
        self._at += len(data)
        return data

    def write(self, data: Any) -> int:
        self._check(self._writable, "write")
        content = bytes(data)
        if self._append:
            self._call(lambda file: file.write(content))
            self._at = self.size()
        else:
            self._call(lambda file: file.pwrite(self._at, content))
            self._at += len(content)
        return len(content)

    def pread(self, offset: int, length: int) -> bytes:
        data: bytes = self._call(lambda file: file.pread(offset, length))
        return data

    def pwrite(self, offset: int, data: bytes) -> int:
        written: int = self._call(lambda file: file.pwrite(offset, data))
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: lambda: self._at, os.SEEK_END: self.size}[whence]()
        if origin + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._check(self._writable, "truncate")
        wanted = self._at if size is None else size
        self._call(lambda file: file.truncate(wanted))
        return wanted

    def close(self) -> None:
        if not self.closed:
            try:
                if self._file is not None:
                    self._call(lambda file: file.close())
            finally:
                super().close()

    def _check(self, allowed: bool, what: str) -> None:
        if not allowed:
            raise io.UnsupportedOperation(f"not open for this: {what}")
