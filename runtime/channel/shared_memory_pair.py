"""A queue pair of the shared-memory carrier: the peer's registered memory, mapped here; a request is a plain copy.

    pair = await SharedMemoryPair.open(path, host, me)   # raises Unavailable

The first request that names an rkey asks the owner what it stands for; every later one looks only at what it got
then and at the generation table, before the copy and after it. Each memory object is mapped once. When the owner's
process ends its socket does, and every mapping goes.
"""

from __future__ import annotations

import asyncio
import os

from everram.runtime.channel.addresses import SHM
from everram.runtime.channel.completions import CompletionQueue, completed
from everram.runtime.channel.contract import (
    REQUEST_BYTES_MAX,
    WORD_BYTES,
    Access,
    ChannelError,
    Opcode,
    Status,
    WorkRequest,
    check,
    check_length,
)
from everram.runtime.channel.frames import (
    VERSION,
    Drop,
    Hello,
    Identity,
    Refused,
    Resolve,
    Resolved,
    Unknown,
    Welcome,
    decode,
)
from everram.runtime.channel.generations import Generations
from everram.runtime.channel.seqpacket import Batch, Connection, dial
from everram.runtime.channel.turns import Turn, Turns
from everram.runtime.channel.unmapped import Unmapped
from everram.runtime.errors import ResourceExhausted, Unavailable
from everram.runtime.memory import atomics, memfd
from everram.runtime.memory.mapped import Mapped

ANSWER_TIMEOUT_S = 2.0
"""For a peer to greet and to say what an rkey is: far longer than a loop is ever busy, as long as a lease."""
CHUNK_BYTES = 1024 * 1024
"""Copied without a turn of the loop: a tenth of a millisecond or so."""
POSTED_MAX = 1024
"""Requests that were posted and wait for their turn."""
_WRITE, _READ, _ATOMIC = int(Access.REMOTE_WRITE), int(Access.REMOTE_READ), int(Access.REMOTE_ATOMIC)


class _Remote:
    """What an rkey stands for, laid out for the hot path: a request touches these fields and calls nothing."""

    __slots__ = (
        "address", "atomic", "generation", "mapping", "number", "offset", "readable", "table", "view", "word", "words",
        "writable",
    )  # fmt: skip

    def __init__(self, told: Resolved, mapping: Mapped | Unmapped, table: Mapped) -> None:
        self.number = told.number
        """Of the memory object."""
        self.mapping = mapping
        self.view, self.words = mapping.view, mapping.words
        """The memory object, by bytes and by words."""
        self.offset = told.offset
        self.writable = told.length if told.access & _WRITE else -1
        """Where writes have to end; negative where none is allowed."""
        self.readable = told.length if told.access & _READ else -1
        self.atomic = told.length if told.access & _ATOMIC and told.atomics == atomics.METHOD else -1
        self.address = mapping.address + told.offset if self.atomic >= 0 and isinstance(mapping, Mapped) else 0
        """Of the region in this process."""
        self.table = table.words
        self.word = Generations.offset(told.slot) // WORD_BYTES
        """Index of its word in `table`."""
        self.generation = told.generation
        """What the word says as long as the region is registered."""


class _ResizableRemote(_Remote):
    """Of a file: its bounds are what the file has now, and its bytes go by descriptor."""

    __slots__ = ("_access", "_unmapped")

    def __init__(self, told: Resolved, unmapped: Unmapped, table: Mapped) -> None:
        self._access, self._unmapped = told.access, unmapped
        super().__init__(told, unmapped, table)

    def duplicate(self) -> int:
        return self._unmapped.duplicate()

    @property
    def writable(self) -> int:
        return self._unmapped.size_bytes if self._access & _WRITE else -1

    @writable.setter
    def writable(self, _: int) -> None:
        pass

    @property
    def readable(self) -> int:
        return self._unmapped.size_bytes if self._access & _READ else -1

    @readable.setter
    def readable(self, _: int) -> None:
        pass


class SharedRegion:
    """A peer's registered file, for who maps it: its descriptor, and whether that is the file still."""

    def __init__(self, pair: SharedMemoryPair, remote: _ResizableRemote) -> None:
        self._pair, self._remote = pair, remote
        self.descriptor = remote.duplicate()
        """The caller's own."""

    @property
    def valid(self) -> bool:
        """False once it was revoked, or the queue pair is broken."""
        return not self._pair.broken and self._remote.table[self._remote.word] == self._remote.generation


class SharedMemoryPair:
    """`contract.QueuePair`."""

    carrier = SHM

    def __init__(self, path: str, peer: str, me: Identity) -> None:
        """Raises Unavailable."""
        self.peer = peer
        self._me = me
        self._broken = asyncio.Event()
        self._table: Generations | None = None
        self._table_mapping: Mapped | None = None
        self._remotes: dict[int, _Remote] = {}  # by rkey
        self._mappings: dict[tuple[int, bool], Mapped | Unmapped] = {}  # by object number and whether it is writable
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resolving: tuple[int, asyncio.Future[None]] | None = None
        self._turns = Turns()
        self._line = self._turns.line  # requests that have or await the turn: while there are any, nobody overtakes
        self._posted: dict[asyncio.Task[None], None] = {}
        self._atomics = atomics.probe()
        self._connection = Connection(dial(path), self._on_batch, self._on_end, polite=False)

    @staticmethod
    async def open(path: str, peer: str, me: Identity) -> SharedMemoryPair:
        pair = SharedMemoryPair(path, peer, me)
        pair._connection.post(Hello(me).encode())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await pair._greeted
        except TimeoutError:
            pair.close()
            raise Unavailable(f"host {peer} does not answer on its channel: try again when it does") from None
        except BaseException:
            pair.close()
            raise
        return pair

    @property
    def broken(self) -> bool:
        return self._broken.is_set()

    async def wait_broken(self) -> None:
        await self._broken.wait()

    def close(self) -> None:
        """Idempotent. Requests under way end in WR_FLUSH_ERR."""
        self._break(f"the queue pair to host {self.peer} was closed")

    # -- requests

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        remote = self._remotes.get(rkey)
        if remote is not None and not self._line and len(data) <= CHUNK_BYTES:
            self._store(remote, offset, data)
        else:
            await self._write_in_turn(self._turns.take(), rkey, offset, data)

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        remote = self._remotes.get(rkey)
        if remote is not None and not self._line and len(data) <= CHUNK_BYTES:
            self._store(remote, offset, data)
            self._connection.ring(immediate)
        else:
            await self._write_in_turn(self._turns.take(), rkey, offset, data, immediate)

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        remote = self._remotes.get(rkey)
        if remote is not None and not self._line and length <= CHUNK_BYTES:
            return self._load(remote, offset, length)
        return await self._read_in_turn(self._turns.take(), rkey, offset, length)

    async def read_into(self, rkey: int, offset: int, target: memoryview) -> None:
        await self._read_into_in_turn(self._turns.take(), rkey, offset, target)

    async def compare_and_swap(self, rkey: int, offset: int, expected: int, desired: int) -> int:
        remote = self._remotes.get(rkey)
        if remote is not None and not self._line:
            return self._swap(remote, offset, expected, desired)
        async with self._turns.take():
            return self._swap(await self._resolve(rkey), offset, expected, desired)

    async def fetch_and_add(self, rkey: int, offset: int, addend: int) -> int:
        remote = self._remotes.get(rkey)
        if remote is not None and not self._line:
            return self._add(remote, offset, addend)
        async with self._turns.take():
            return self._add(await self._resolve(rkey), offset, addend)

    def post(self, request: WorkRequest, completions: CompletionQueue) -> None:
        check(request)
        remote = self._remotes.get(request.rkey)
        if remote is not None and not self._line and max(len(request.data), request.length) <= CHUNK_BYTES:
            try:
                result = self._perform(remote, request)
            except ChannelError as error:
                completions.push(completed(request, error))
            else:
                completions.push(completed(request, result))
            return
        if len(self._posted) >= POSTED_MAX:
            raise ResourceExhausted(f"{POSTED_MAX} requests wait on the queue pair to {self.peer}: poll some first")
        task = asyncio.get_running_loop().create_task(self._perform_in_turn(self._turns.take(), request, completions))
        self._posted[task] = None
        task.add_done_callback(self._posted.pop)

    def _perform(self, remote: _Remote, request: WorkRequest) -> bytes | int | None:
        match request.opcode:
            case Opcode.READ:
                return self._load(remote, request.offset, request.length)
            case Opcode.WRITE:
                self._store(remote, request.offset, request.data)
            case Opcode.WRITE_WITH_IMMEDIATE:
                self._store(remote, request.offset, request.data)
                self._connection.ring(request.immediate)
            case Opcode.COMPARE_AND_SWAP:
                return self._swap(remote, request.offset, request.expected, request.operand)
            case Opcode.FETCH_AND_ADD:
                return self._add(remote, request.offset, request.operand)
        return None

    async def _perform_in_turn(self, turn: Turn, request: WorkRequest, completions: CompletionQueue) -> None:
        result: bytes | int | ChannelError | None = None
        try:
            match request.opcode:
                case Opcode.READ:
                    result = await self._read_in_turn(turn, request.rkey, request.offset, request.length)
                case Opcode.WRITE:
                    await self._write_in_turn(turn, request.rkey, request.offset, request.data)
                case Opcode.WRITE_WITH_IMMEDIATE:
                    rung = request.immediate
                    await self._write_in_turn(turn, request.rkey, request.offset, request.data, rung)
                case _:
                    async with turn:
                        result = self._perform(await self._resolve(request.rkey), request)
        except ChannelError as error:
            result = error
        completions.push(completed(request, result))

    def _store(self, remote: _Remote, offset: int, data: bytes | memoryview) -> None:
        length = len(data)
        if offset < 0 or offset + length > remote.writable or remote.table[remote.word] != remote.generation:
            raise self._refused()
        at = remote.offset + offset
        if length == WORD_BYTES and not at & 7:
            remote.words[at >> 3] = int.from_bytes(data, "little")
        else:
            remote.view[at : at + length] = data
        if remote.table[remote.word] != remote.generation:
            # It may have been written: whether before or after it was revoked, nobody can tell.
            raise self._fail(Status.WR_FLUSH_ERR, f"host {self.peer} revoked the region during a write")

    def _load(self, remote: _Remote, offset: int, length: int) -> bytes:
        if (
            offset < 0
            or length < 0
            or offset + length > remote.readable
            or remote.table[remote.word] != remote.generation
        ):
            raise self._refused()
        at = remote.offset + offset
        if length == WORD_BYTES and not at & 7:
            data = remote.words[at >> 3].to_bytes(WORD_BYTES, "little")
        else:
            data = remote.mapping.load(at, length)
        if remote.table[remote.word] != remote.generation:
            raise self._refused()
        return data

    def _swap(self, remote: _Remote, offset: int, expected: int, desired: int) -> int:
        operations = self._check_atomic(remote, offset)
        old = operations.compare_and_swap(remote.address + offset, expected, desired)
        if remote.table[remote.word] != remote.generation:
            raise self._fail(Status.WR_FLUSH_ERR, f"host {self.peer} revoked the region during an atomic operation")
        return old

    def _add(self, remote: _Remote, offset: int, addend: int) -> int:
        operations = self._check_atomic(remote, offset)
        old = operations.fetch_and_add(remote.address + offset, addend)
        if remote.table[remote.word] != remote.generation:
            raise self._fail(Status.WR_FLUSH_ERR, f"host {self.peer} revoked the region during an atomic operation")
        return old

    def _check_atomic(self, remote: _Remote, offset: int) -> atomics.Atomics:
        operations = self._atomics
        if (
            offset < 0
            or offset + WORD_BYTES > remote.atomic
            or operations is None
            or remote.table[remote.word] != remote.generation
        ):
            raise self._refused()
        if offset & 7:
            raise self._fail(Status.REM_INV_REQ_ERR, f"an atomic operation at {offset}, which is no multiple of 8")
        return operations

    async def _write_in_turn(
        self, turn: Turn, rkey: int, offset: int, data: bytes | memoryview, immediate: int | None = None
    ) -> None:
        async with turn:
            check_length(len(data))
            remote = await self._resolve(rkey)
            view = memoryview(data)
            if offset < 0 or offset + len(view) > remote.writable:
                raise self._refused()
            self._store(remote, offset, view[:CHUNK_BYTES])
            for at in range(CHUNK_BYTES, len(view), CHUNK_BYTES):
                await asyncio.sleep(0)
                if self._remotes.get(rkey) is not remote or remote.table[remote.word] != remote.generation:
                    raise self._fail(Status.WR_FLUSH_ERR, f"host {self.peer} was lost during a write")
                self._store(remote, offset + at, view[at : at + CHUNK_BYTES])
            if immediate is not None:
                self._connection.ring(immediate)

    async def _read_in_turn(self, turn: Turn, rkey: int, offset: int, length: int) -> bytes:
        if length <= CHUNK_BYTES or length > REQUEST_BYTES_MAX:
            async with turn:
                check_length(length)
                return self._load(await self._resolve(rkey), offset, length)
        found = bytearray(length)
        await self._read_into_in_turn(turn, rkey, offset, memoryview(found))
        return bytes(found)

    async def _read_into_in_turn(self, turn: Turn, rkey: int, offset: int, target: memoryview) -> None:
        async with turn:
            length = len(target)
            check_length(length)
            remote = await self._resolve(rkey)
            if offset < 0 or offset + length > remote.readable or remote.table[remote.word] != remote.generation:
                raise self._refused()
            start = remote.offset + offset
            for at in range(0, length, CHUNK_BYTES):
                if at:
                    await asyncio.sleep(0)
                    if self._remotes.get(rkey) is not remote:
                        raise self._fail(Status.WR_FLUSH_ERR, f"host {self.peer} was lost during a read")
                end = min(at + CHUNK_BYTES, length)
                if end - at == WORD_BYTES and not (start + at) & 7:
                    target[at:end] = remote.words[start + at >> 3].to_bytes(WORD_BYTES, "little")
                else:
                    remote.mapping.load_into(start + at, target[at:end])
                if remote.table[remote.word] != remote.generation:
                    raise self._refused()

    async def share(self, rkey: int) -> SharedRegion:
        """Of a file, never of memory that is mapped here. Raises ChannelError."""
        async with self._turns.take():
            remote = await self._resolve(rkey)
        if not isinstance(remote, _ResizableRemote):
            raise self._refused()
        return SharedRegion(self, remote)

    # -- how a request ends badly

    def _refused(self) -> ChannelError:
        return self._fail(
            Status.REM_ACCESS_ERR, f"host {self.peer} has no such region, has revoked it, or does not allow this"
        )

    def _fail(self, status: Status, message: str) -> ChannelError:
        """Break, and what to raise."""
        self._break(message)
        return ChannelError(status, message)

    def _break(self, message: str) -> None:
        if self.broken:
            return
        self._broken.set()
        self._connection.close()
        if not self._greeted.done():
            self._greeted.set_exception(Unavailable(message))
        if self._resolving is not None and not self._resolving[1].done():
            self._resolving[1].set_result(None)
        self._remotes.clear()
        mappings, self._mappings = self._mappings, {}
        for mapping in mappings.values():
            mapping.close()
        if self._table_mapping is not None:
            self._table_mapping.close()

    # -- what the owner says

    async def _resolve(self, rkey: int) -> _Remote:
        """What an rkey stands for, asked once. Raises ChannelError; call it with the turn."""
        remote = self._remotes.get(rkey)
        if remote is not None:
            return remote
        if not self.broken:
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._resolving = rkey, answered
            self._connection.post(Resolve(rkey).encode())
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await answered
            except TimeoutError:
                raise self._fail(Status.RETRY_EXC_ERR, f"host {self.peer} does not answer on its channel") from None
            finally:
                self._resolving = None
        if self.broken:
            raise ChannelError(Status.WR_FLUSH_ERR, f"the queue pair to host {self.peer} is broken: connect again")
        remote = self._remotes.get(rkey)
        if remote is None:
            raise self._refused()
        return remote

    def _on_end(self) -> None:
        self._break(f"host {self.peer} has ended")

    def _on_batch(self, batch: Batch) -> None:
        for data, descriptors in batch:
            try:
                if not self.broken:
                    self._on_datagram(data, descriptors)
            except (ValueError, OSError) as error:
                self._break(f"host {self.peer} sent nonsense on its channel: {error}")
            finally:
                for fd in descriptors:
                    os.close(fd)

    def _on_datagram(self, data: bytes, descriptors: list[int]) -> None:
        """Raises ValueError, OSError."""
        frame = decode(data)
        if isinstance(frame, Resolved):
            self._remotes[frame.rkey] = self._map(frame, descriptors)
            self._answer(frame.rkey)
        elif isinstance(frame, Unknown):
            self._answer(frame.rkey)
        elif isinstance(frame, Drop):
            self._drop(frame.number)
        elif isinstance(frame, Welcome):
            self._welcome(frame, descriptors)
        elif isinstance(frame, Refused):
            self._break(frame.message)
        else:
            raise ValueError(f"{type(frame).__name__} is not for this end")

    def _welcome(self, frame: Welcome, descriptors: list[int]) -> None:
        if self._greeted.done():
            raise ValueError("a second welcome")
        told = frame.identity
        if frame.version != VERSION or told.cluster_id != self._me.cluster_id or told.host != self.peer:
            self._break(
                f"at the address of host {self.peer} answers host {told.host} of cluster {told.cluster_id}, with "
                f"version {frame.version} of the channel (this is version {VERSION})"
            )
            return
        mapping = self._table_mapping = _mapped(descriptors, None, writable=False)
        self._table = Generations.open(mapping)
        self._greeted.set_result(None)

    def _map(self, frame: Resolved, descriptors: list[int]) -> _Remote:
        if self._table is None or self._table_mapping is None or frame.slot >= self._table.slots:
            raise ValueError(f"slot {frame.slot} is not in the generation table")
        key = frame.number, bool(frame.access & (_WRITE | _ATOMIC))
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = self._mappings[key] = _reached(descriptors, frame.size_bytes, writable=key[1])
        if isinstance(mapping, Unmapped):
            return _ResizableRemote(frame, mapping, self._table_mapping)
        if frame.offset + frame.length > mapping.size_bytes or frame.offset % WORD_BYTES:
            raise ValueError(f"a region of {frame.length} bytes at {frame.offset} of {mapping.size_bytes}")
        return _Remote(frame, mapping, self._table_mapping)

    def _answer(self, rkey: int) -> None:
        if self._resolving is not None and self._resolving[0] == rkey and not self._resolving[1].done():
            self._resolving[1].set_result(None)

    def _drop(self, number: int) -> None:
        for rkey in [rkey for rkey, remote in self._remotes.items() if remote.number == number]:
            del self._remotes[rkey]
        for writable in (False, True):
            mapping = self._mappings.pop((number, writable), None)
            if mapping is not None:
                mapping.close()


def _reached(descriptors: list[int], size_bytes: int, *, writable: bool) -> Mapped | Unmapped:
    """The memory behind a descriptor, not mapped if it can be shortened. Raises ValueError, OSError."""
    if descriptors and memfd.is_resizable(descriptors[0]):
        return Unmapped(descriptors[0])
    return _mapped(descriptors, size_bytes, writable=writable)


def _mapped(descriptors: list[int], size_bytes: int | None, *, writable: bool) -> Mapped:
    """The memory behind a descriptor. Raises ValueError, OSError."""
    if not descriptors:
        raise ValueError("a descriptor is missing")
    fd = descriptors[0]
    if memfd.is_resizable(fd):
        raise ValueError("memory that can be shortened would make this process fault")
    return Mapped(fd, os.fstat(fd).st_size if size_bytes is None else size_bytes, writable=writable)
