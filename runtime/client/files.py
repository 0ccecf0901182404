"""The cluster's files from outside: through the agent of one host, which reads and writes them one-sidedly.

    async with await cluster.open("notes/today", "w+") as file:
        await file.write(b"...")
        await file.seek(0)
        data = await file.read()

The session with the agent is a stream: when it ends, because this client or its host does, the agent closes what is
open in it. A `File` is then of no use any more; open it again.
"""

from __future__ import annotations

import io
from contextlib import aclosing
from types import TracebackType

from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef
from everram.runtime.errors import FailedPrecondition, InvalidArgument, Unavailable
from everram.runtime.refs import Replies

WRITE_BYTES = 512 * 1024
"""Of one message."""
TIMEOUT_S = 30.0
"""Of one ask: its agent gives up waiting for a manager or an owner before."""


class Files:
    """See the module. Connects when a file is first opened."""

    def __init__(self, agent: MemoryAgentRef) -> None:
        self.agent = agent
        self._session = ""
        self._stream: Replies[rm.SessionKey] | None = None

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream, self._session = None, ""

    async def session(self) -> str:
        if self._stream is None:
            stream = self.agent.session(Empty())
            self._session = (await anext(stream)).session
            self._stream = stream
        return self._session

    async def open(
        self, path: str, mode: str = "r", *, host: str = "", persistent: bool = False, creator: str = "", bits: int = 0
    ) -> File:
        """As Python's `open` in binary. `creator`: "session" or "guest:GUEST_ID", whose end is the file's; `bits`: of a
        new file's mode. Raises NotFound, AlreadyExists, PermissionDenied, FailedPrecondition, InvalidArgument."""
        request = request_of(path, mode)
        request.host, request.persistent, request.creator, request.mode = host, persistent, creator, bits
        for last in (False, True):
            request.session = await self.session()
            try:
                opened = await self.agent.open(request, timeout_s=TIMEOUT_S)
            except FailedPrecondition as error:
                if last or "(EBADF)" not in error.message:
                    raise
                await self.close()  # the agent was restarted: there is a new session to be had
            else:
                return File(self.agent, opened)
        raise AssertionError

    async def stat(self, path: str) -> rm.Node:
        return await self.agent.stat_path(rm.PathRequest(path=path), timeout_s=TIMEOUT_S)

    async def list(self, path: str) -> list[rm.Node]:
        return list((await self.agent.list_path(rm.PathRequest(path=path), timeout_s=TIMEOUT_S)).nodes)

    async def mkdir(self, path: str, bits: int = 0) -> rm.Node:
        return await self.agent.make_folder(rm.PathRequest(path=path, mode=bits), timeout_s=TIMEOUT_S)

    async def remove(self, path: str) -> None:
        await self.agent.remove(rm.PathRequest(path=path), timeout_s=TIMEOUT_S)

    async def rmdir(self, path: str) -> None:
        await self.agent.remove_folder_at(rm.PathRequest(path=path), timeout_s=TIMEOUT_S)

    async def rename(self, path: str, new_path: str, *, exclusive: bool = False) -> rm.Node:
        request = rm.MovePath(path=path, new_path=new_path, exclusive=exclusive)
        return await self.agent.move(request, timeout_s=TIMEOUT_S)

    async def chmod(self, path: str, bits: int) -> rm.Node:
        return await self.agent.set_mode(rm.PathRequest(path=path, mode=bits), timeout_s=TIMEOUT_S)


class File:
    """An open file, with a position as Python's files have."""

    def __init__(self, agent: MemoryAgentRef, opened: rm.OpenFile) -> None:
        self.node = opened.node
        self._agent = agent
        self._handle = opened.file
        self._at = 0
        self._open = True

    async def read(self, length: int = -1) -> bytes:
        """To the end of the file if `length` is negative."""
        data = await self.pread(self._at, length)
        self._at += len(data)
        return data

    async def pread(self, offset: int, length: int = -1) -> bytes:
        wanted = rm.ReadRequest(file=self._handle, offset=offset, length=(1 << 62) if length < 0 else length)
        async with aclosing(self._agent.read(wanted)) as pieces:
            return b"".join([piece.data async for piece in pieces])

    async def write(self, data: bytes | memoryview) -> int:
        """All of it. In mode "a" at the end of the file, whoever else appends."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), WRITE_BYTES):
            piece = view[at : at + WRITE_BYTES]
            self._at = await self._pwrite(self._at, piece) + len(piece)
        return len(view)

    async def pwrite(self, offset: int, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), WRITE_BYTES):
            await self._pwrite(offset + at, view[at : at + WRITE_BYTES])
        return len(view)

    async def _pwrite(self, offset: int, data: memoryview) -> int:
        request = rm.WriteRequest(file=self._handle, offset=offset, data=bytes(data))
        return (await self._agent.write(request, timeout_s=TIMEOUT_S)).offset

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = self._at if whence == io.SEEK_CUR else await self.size() if whence == io.SEEK_END else 0
        if origin + offset < 0:
            raise InvalidArgument(f"a position before the beginning of the file, {origin + offset} (EINVAL)")
        self._at = origin + offset
        return self._at

    async def size(self) -> int:
        """As the file's owner says it now."""
        return (await self._agent.size(self._handle, timeout_s=TIMEOUT_S)).size_bytes

    def tell(self) -> int:
        return self._at

    async def truncate(self, size_bytes: int | None = None) -> int:
        size_bytes = self._at if size_bytes is None else size_bytes
        request = rm.TruncateRequest(file=self._handle, size_bytes=size_bytes)
        await self._agent.truncate(request, timeout_s=TIMEOUT_S)
        return size_bytes

    async def flush(self) -> None:
        """Whoever opens the file from now on sees its size, too."""
        await self._agent.flush(self._handle, timeout_s=TIMEOUT_S)

    async def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            await self._agent.close(self._handle, timeout_s=TIMEOUT_S)

    async def __aenter__(self) -> File:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        try:
            await self.close()
        except (Unavailable, FailedPrecondition):
            pass  # what went wrong first is what there is to say


def request_of(path: str, mode: str) -> rm.OpenFileRequest:
    """Raises InvalidArgument."""
    letters = mode.replace("b", "", 1)
    kind, plus = letters[:1], letters[1:]
    if kind not in ("r", "w", "a", "x") or plus not in ("", "+"):
        raise InvalidArgument(f"{mode!r} is no mode to open a file with: r, w, a or x, and + for both ways (EINVAL)")
    return rm.OpenFileRequest(
        path=path,
        read=kind == "r" or bool(plus),
        write=kind != "r" or bool(plus),
        create=kind != "r",
        exclusive=kind == "x",
        truncate=kind == "w",
        append=kind == "a",
    )
