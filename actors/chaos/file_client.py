"""A program beside one host that uses remote files, with a session of its own at that host's agent.

client = FileClient(ask, "h1")               # `ask(host, act)` asks a node, as patiently as its owner likes
file = await client.make("a", b"...", host="h2")
data = await client.read(file)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef
from everram.runtime.node import Node

T = TypeVar("T")

MOST_BYTES = 1 << 20


class Ask(Protocol):
    async def __call__(self, host: str, act: Callable[[Node], Awaitable[T]]) -> T: ...


class FileClient:
    """See the module. Every method raises an EverramError within `timeout_s`, or what `ask` does."""

    def __init__(self, ask: Ask, host: str, timeout_s: float) -> None:
        self.host = host
        self.session = ""
        self._ask_host, self._timeout_s = ask, timeout_s
        self._stream: AsyncGenerator[rm.SessionKey, None] | None = None

    async def ask(self, act: Callable[[MemoryAgentRef], Awaitable[T]]) -> T:
        return await self._ask_host(self.host, lambda node: act(node.ref(MemoryAgentRef)))

    async def begin(self) -> None:
        async def begun(agent: MemoryAgentRef) -> str:
            self._stream = cast(AsyncGenerator[rm.SessionKey, None], agent.session(pb.Empty()))
            return (await anext(self._stream)).session

        self.session = await self.ask(begun)

    async def end(self) -> None:
        async def ended(_: MemoryAgentRef) -> None:
            if self._stream is not None:
                await self._stream.aclose()

        await self.ask(ended)

    async def open(self, path: str, **how: Any) -> rm.OpenFile:
        if not self.session:
            await self.begin()
        request = rm.OpenFileRequest(session=self.session, path=path, **{"read": True, **how})
        return await self.ask(lambda agent: agent.open(request, timeout_s=self._timeout_s))

    async def make(self, path: str, data: bytes = b"", **how: Any) -> rm.OpenFile:
        file = await self.open(path, write=True, create=True, **how)
        if data:
            await self.write(file, 0, data)
        return file

    async def read(self, file: rm.OpenFile, offset: int = 0, length: int = MOST_BYTES) -> bytes:
        request = rm.ReadRequest(file=file.file, offset=offset, length=length)

        async def all_of(agent: MemoryAgentRef) -> bytes:
            return b"".join([piece.data async for piece in agent.read(request)])

        return await self.ask(all_of)

    async def write(self, file: rm.OpenFile, offset: int, data: bytes) -> rm.Written:
        request = rm.WriteRequest(file=file.file, offset=offset, data=data)
        return await self.ask(lambda agent: agent.write(request, timeout_s=self._timeout_s))

    async def truncate(self, file: rm.OpenFile, size_bytes: int) -> None:
        request = rm.TruncateRequest(file=file.file, size_bytes=size_bytes)
        await self.ask(lambda agent: agent.truncate(request, timeout_s=self._timeout_s))

    async def close(self, file: rm.OpenFile) -> None:
        await self.ask(lambda agent: agent.close(file.file, timeout_s=self._timeout_s))

    async def stat(self, path: str) -> rm.Node:
        return await self.ask(lambda agent: agent.stat_path(rm.PathRequest(path=path), timeout_s=self._timeout_s))

    async def names(self, path: str = "") -> list[str]:
        found = await self.ask(lambda agent: agent.list_path(rm.PathRequest(path=path), timeout_s=self._timeout_s))
        return [node.name for node in found.nodes]

    async def remove(self, path: str) -> None:
        await self.ask(lambda agent: agent.remove(rm.PathRequest(path=path), timeout_s=self._timeout_s))

    async def mkdir(self, path: str) -> None:
        await self.ask(lambda agent: agent.make_folder(rm.PathRequest(path=path), timeout_s=self._timeout_s))

    async def rename(self, path: str, new_path: str) -> None:
        request = rm.MovePath(path=path, new_path=new_path)
        await self.ask(lambda agent: agent.move(request, timeout_s=self._timeout_s))

    async def status(self) -> rm.AgentStatus:
        return await self.ask(lambda agent: agent.status(pb.Empty()))
