"""The files of others, opened here: asked about once, then read and written one-sidedly.

    file = await using.open(node)               # the owner is asked once; the queue pair to its host is shared
    data = await using.read(file, 0, 4096)      # no message to anybody's actor
    count = await using.read_into(file, 0, to)  # the same without a copy, for much at once
    await using.write(file, 0, data)            # nor here, unless the file has to grow first
    using.close(file)

What an open file needs lies in `UsedFile`: where it is, its rkey and its size. A file of this very host is read and
written in the memory object itself. When the channel refuses the rkey the owner is asked again: it says the new one, or
that the file is gone (FailedPrecondition, ESTALE). While the owner cannot be reached, accesses are tried again until
TIMEOUT_S, unless the directory says that its memory is lost. Plain reads and writes may be repeated: a new queue pair
ends what was under way on the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from everram.actors.remote_memory.owned import OwnedFiles
from everram.actors.remote_memory.refusals import stale
from everram.runtime.channel.contract import Channel, ChannelError, QueuePair, Status
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef
from everram.runtime.coordination.api import Coordination, Range
from everram.runtime.coordination.directory import decode, host_key, machine_key
from everram.runtime.coordination.records import DEAD
from everram.runtime.coordination.resolver import HostResolver
from everram.runtime.environment import Clock, MemoryObject
from everram.runtime.errors import DeadlineExceeded, EverramError, NotFound, Outcome, Unavailable

T = TypeVar("T")

LANE = "files"
"""A stale file breaks a queue pair: not the one that logs are shipped by."""
TIMEOUT_S = 5.0
"""Of one access: an owner's host restarts in a tenth of it."""
ASK_TIMEOUT_S = 2.0
RETRY_S = 0.02


@dataclass(slots=True, eq=False)
class UsedFile:
    """A file that is open here; all who have it open share it."""

    key: rm.FileKey
    host: str
    name: str
    rkey: int = 0
    size_bytes: int = 0
    """As known here: right at open, and where this host alone changes it."""
    opens: int = 0
    written: bool = False
    """Since its size was last told to the manager."""


@dataclass(slots=True)
class Counts:
    owner_asks: int = 0
    one_sided_reads: int = 0
    one_sided_writes: int = 0
    local_reads: int = 0
    local_writes: int = 0


class Using:
    """See the module. `owner` gives the ref to a host's agent."""

    def __init__(
        self,
        host: str,
        owned: OwnedFiles,
        channel: Channel,
        coordination: Coordination,
        clock: Clock,
        owner: Callable[[str], MemoryAgentRef],
    ) -> None:
        self.counts = Counts()
        self.files: dict[str, UsedFile] = {}  # by id: file id -> {location, rkey}, as long as anybody has it open
        self._host, self._owned, self._channel = host, owned, channel
        self._coordination, self._clock, self._owner = coordination, clock, owner
        self._resolver = HostResolver(coordination)
        self._pairs: dict[str, QueuePair] = {}  # by host

    async def open(self, node: rm.Node) -> UsedFile:
        """Raises FailedPrecondition if its bytes are gone, Unavailable or DeadlineExceeded."""
        file = self.files.get(node.id)
        if file is None:
            key = rm.FileKey(id=node.id, memory_id=node.memory_id, persistent=node.persistent)
            file = UsedFile(key, node.host, node.name)
        await self.refresh(file)
        file = self.files.setdefault(node.id, file)  # another may have opened it meanwhile
        file.opens += 1
        return file

    def close(self, file: UsedFile) -> None:
        file.opens -= 1
        if not file.opens:
            self.files.pop(file.key.id, None)

    def memory(self, file: UsedFile) -> MemoryObject | None:
        """Of a file of this very host. Raises FailedPrecondition if it is gone."""
        return self._owned.open(file.key) if file.host == self._host else None

    @property
    def saving(self) -> bool:
        """Whether this host's memory is being saved."""
        return self._owned.saving

    async def until_saved(self) -> None:
        await self._owned.until_saved()

    async def refresh(self, file: UsedFile) -> int:
        """Its size, as its owner says it; as `open`."""
        if file.host == self._host:
            file.size_bytes = self._owned.open(file.key).size_bytes
        else:
            await self._insist(file, lambda: self._attach(file))
        return file.size_bytes

    async def read(self, file: UsedFile, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file."""
        if file.host == self._host:
            memory = self._owned.open(file.key)
            self.counts.local_reads += 1
            file.size_bytes = memory.size_bytes
            there = min(length, file.size_bytes - offset)
            return memory.read(offset, there) if there > 0 else b""

        async def from_peer(pair: QueuePair) -> bytes:
            there = min(length, file.size_bytes - offset)
            return await pair.read(file.rkey, offset, there) if there > 0 else b""

        data = await self._one_sided(file, from_peer)
        self.counts.one_sided_reads += 1
        return data

    async def read_into(self, file: UsedFile, offset: int, target: memoryview) -> int:
        """How much of `target` was filled: all, but at the end of the file. After an error it must not be used again:
        the channel may hold it still."""
        if file.host == self._host:
            data = await self.read(file, offset, len(target))
            target[: len(data)] = data
            return len(data)

        async def from_peer(pair: QueuePair) -> int:
            there = min(len(target), file.size_bytes - offset)
            if there <= 0:
                return 0
            await pair.read_into(file.rkey, offset, target[:there])
            return there

        count = await self._one_sided(file, from_peer)
        self.counts.one_sided_reads += 1
        return count

    async def write(self, file: UsedFile, offset: int, data: bytes | memoryview) -> None:
        """Raises ResourceExhausted where the owner has no room for a longer file."""
        end = offset + len(data)
        if file.host == self._host:
            if end > self._owned.open(file.key).size_bytes:
                self._owned.resize(file.key, end, rm.AT_LEAST)
            self._owned.open(file.key).write(offset, data)
            self.counts.local_writes += 1
            file.size_bytes = max(file.size_bytes, end)
        else:
            while not await self._write_to_peer(file, offset, data):
                await self.resize(file, end, rm.AT_LEAST)
            self.counts.one_sided_writes += 1
        file.written = True

    async def _write_to_peer(self, file: UsedFile, offset: int, data: bytes | memoryview) -> bool:
        """False: the file is too short, and nothing was written."""

        async def to_peer(pair: QueuePair) -> bool:
            if offset + len(data) > file.size_bytes:
                return False
            await pair.write(file.rkey, offset, data)
            return True

        return offset + len(data) <= file.size_bytes and await self._one_sided(file, to_peer)

    async def append(self, file: UsedFile, data: bytes | memoryview) -> int:
        """Where it went: the owner gives each appender room of its own, so none overwrites another's bytes."""
        offset = await self.resize(file, len(data), rm.BY)
        await self.write(file, offset, data)
        return offset

    async def resize(self, file: UsedFile, size_bytes: int, kind: rm.ResizeKind) -> int:
        """The size before."""
        file.written = True
        if file.host == self._host:
            before = self._owned.resize(file.key, size_bytes, kind)
            file.size_bytes = self._owned.open(file.key).size_bytes
            return before
        request = rm.ResizeRequest(file=file.key, size_bytes=size_bytes, kind=kind)

        async def ask() -> rm.Attachment:
            self.counts.owner_asks += 1
            return await self._owner(file.host).resize(request, timeout_s=ASK_TIMEOUT_S)

        answer = await self._insist(file, ask, repeatable=kind != rm.BY)
        file.rkey, file.size_bytes = answer.rkey, answer.size_bytes
        return answer.before_bytes

    # -- how

    async def _one_sided(self, file: UsedFile, act: Callable[[QueuePair], Awaitable[T]]) -> T:
        async def attempt() -> T:
            pair = self._pairs.get(file.host) or await self._connect(file.host)
            rkey = file.rkey
            try:
                return await act(pair)
            except ChannelError as error:
                if self._pairs.get(file.host) is pair:
                    del self._pairs[file.host]
                if error.status is Status.REM_ACCESS_ERR and file.rkey == rkey:
                    await self._attach(file, refused=rkey)
                raise

        return await self._insist(file, attempt)

    async def _connect(self, host: str) -> QueuePair:
        """The queue pair to a host, shared by all files there."""
        try:
            address = await self._resolver.resolve(host)
        except NotFound as error:
            raise Unavailable(error.message) from None
        pair = self._pairs[host] = await self._channel.connect(host, address.channel, LANE)
        return pair

    async def _attach(self, file: UsedFile, refused: int = 0) -> None:
        self.counts.owner_asks += 1
        key = rm.FileKey(id=file.key.id, memory_id=file.key.memory_id, persistent=file.key.persistent, refused=refused)
        answer = await self._owner(file.host).attach(key, timeout_s=ASK_TIMEOUT_S)
        file.rkey, file.size_bytes = answer.rkey, answer.size_bytes

    async def _insist(self, file: UsedFile, attempt: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Its result, tried again while the owner cannot be reached. Raises FailedPrecondition once its memory is known
        to be lost."""
        until_ns = self._clock.now_ns() + int(TIMEOUT_S * 1e9)
        while True:
            try:
                return await attempt()
            except (Unavailable, DeadlineExceeded) as error:
                await self._check_memory(file)
                if error.outcome is Outcome.UNKNOWN and not repeatable:
                    raise
                if self._clock.now_ns() >= until_ns:
                    raise DeadlineExceeded(
                        f"{file.host}, where {file.name!r} lies, cannot be reached: {error.message} (ETIMEDOUT)",
                        unknown=error.unknown,
                    ) from None
            await asyncio.sleep(RETRY_S)

    async def _check_memory(self, file: UsedFile) -> None:
        """Raises FailedPrecondition if the directory says that the file's memory is lost."""
        ranges = Range(host_key(file.host)), Range(machine_key(file.host))
        try:
            hosts, machines = (await self._coordination.txn((), ranges)).ranges
            memory_id = str(decode(hosts[0].value).get("memory_id", "")) if hosts else ""
            dead = bool(machines) and decode(machines[0].value).get("state") == DEAD
        except (EverramError, ValueError):
            return
        if (memory_id and memory_id != file.key.memory_id) or (dead and not memory_id):
            raise stale(file.name, f"the memory of {file.host} that they were in was lost")
