"""One suite for `environment.Memory`, `Disk`, `Logs` and `Doorbell`: the real ones and the simulated ones.

The real memory's machine is a bare socket pair at whose other end `DescriptorStore` answers, as it does in a machine.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from everram.runtime.environment import Disk, Memory
from everram.runtime.errors import (
    AlreadyExists,
    EverramError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from everram.runtime.machine import protocol
from everram.runtime.machine.fdstore import DescriptorStore
from everram.runtime.machine.protocol import Message
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production.disk import Folder
from everram.runtime.production.doorbell import Doorbells
from everram.runtime.production.logs import OutputFiles
from everram.runtime.production.machine import SystemMachine
from everram.runtime.production.memory import KeptMemory
from everram.runtime.simulation.disk import Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.objects import Objects, SimulatedMemory

CAPACITY = 64 * PAGE_BYTES


class StoreOnly:
    """A machine that does nothing but keep descriptors."""

    def __init__(self) -> None:
        self.store = DescriptorStore()
        self._socks: list[socket.socket] = []

    def host(self) -> SystemMachine:
        """A host as it begins: with copies of what is kept."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, self._on_readable, ours)
        self._socks.append(ours)
        return SystemMachine(theirs, {name: os.dup(fd) for name, fd in self.store.items()}, on_end=lambda: None)

    def close(self) -> None:
        for sock in self._socks:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self.store.close()

    def _on_readable(self, sock: socket.socket) -> None:
        message = protocol.receive(sock)
        if message is None:
            asyncio.get_running_loop().remove_reader(sock)
            return
        answer = Message({"RE": message.words.get("ID", "0")})
        try:
            if "FDSTORE" in message.words:
                self.store.put(message.words["FDNAME"], message.fds.pop())
            elif "FDSTOREREMOVE" in message.words:
                self.store.remove(message.words["FDNAME"])
        except EverramError as error:
            answer = Message({**answer.words, "CODE": str(error.code)}, {"message": error.message})
        protocol.send(sock, answer)


@pytest.fixture
async def machine() -> AsyncIterator[StoreOnly]:
    made = StoreOnly()
    yield made
    made.close()


@pytest.fixture(params=["real", "simulated"])
async def reopen(request: pytest.FixtureRequest, machine: StoreOnly) -> AsyncIterator[Callable[[], Memory]]:
    """The memory as each host in turn finds it."""
    objects = Objects(CAPACITY)
    hosts: list[SystemMachine] = []

    def begin() -> Memory:
        if request.param == "simulated":
            return SimulatedMemory(objects)
        hosts.append(machine.host())
        return KeptMemory(hosts[-1], CAPACITY)

    yield begin
    for host in hosts:
        host.close()
        for fd in host.kept.values():
            os.close(fd)


async def test_memory_outlives_the_host_until_removed(reopen: Callable[[], Memory]) -> None:
    memory = reopen()
    made = await memory.create("region.g.a", 4 * PAGE_BYTES)
    await memory.create("vmemfs", PAGE_BYTES)
    assert memory.names() == ["region.g.a", "vmemfs"]
    mapping = made.map()
    mapping.store(10, b"by mapping")
    mapping.store_u64(PAGE_BYTES, 7)
    made.write(2 * PAGE_BYTES, b"by write")
    assert made.read(10, 10) == b"by mapping"
    assert mapping.load(2 * PAGE_BYTES, 8) == b"by write"
    mapping.close()
    memory = reopen()
    assert memory.names() == ["region.g.a", "vmemfs"]
    again = memory.open("region.g.a")
    assert again.size_bytes == 4 * PAGE_BYTES
    assert again.read(10, 10) == b"by mapping"
    await memory.remove("vmemfs")
    await memory.remove("vmemfs")
    assert memory.names() == ["region.g.a"]
    with pytest.raises(NotFound):
        memory.open("vmemfs")


async def test_memory_is_zero_sparse_and_can_be_punched(reopen: Callable[[], Memory]) -> None:
    made = await reopen().create("a", 8 * PAGE_BYTES)
    assert made.extents() == []
    assert made.read(0, 8 * PAGE_BYTES) == bytes(8 * PAGE_BYTES)
    made.write(PAGE_BYTES - 1, b"xx")
    made.write(7 * PAGE_BYTES, memoryview(b"end"))
    assert made.extents() == [(0, 2 * PAGE_BYTES), (7 * PAGE_BYTES, PAGE_BYTES)]
    made.punch(PAGE_BYTES, 6 * PAGE_BYTES)
    assert made.extents() == [(0, PAGE_BYTES), (7 * PAGE_BYTES, PAGE_BYTES)]
    assert made.read(PAGE_BYTES - 1, 2) == b"x\0"
    made.punch(0, 0)
    with pytest.raises(IndexError):
        made.punch(1, PAGE_BYTES)


async def test_memory_has_a_capacity_and_names(reopen: Callable[[], Memory]) -> None:
    memory = reopen()
    await memory.create("a", CAPACITY - PAGE_BYTES)
    with pytest.raises(AlreadyExists):
        await memory.create("a", PAGE_BYTES)
    with pytest.raises(ResourceExhausted):
        await memory.create("b", 2 * PAGE_BYTES)
    await memory.create("b", PAGE_BYTES)
    await memory.remove("a")
    memory = reopen()
    await memory.create("c", CAPACITY - PAGE_BYTES)
    with pytest.raises(ResourceExhausted):
        await memory.create("d", PAGE_BYTES)


async def test_memory_ends_where_it_ends(reopen: Callable[[], Memory]) -> None:
    made = await reopen().create("a", PAGE_BYTES)
    for attempt in (
        lambda: made.read(PAGE_BYTES - 1, 2),
        lambda: made.read(-1, 1),
        lambda: made.write(PAGE_BYTES, b"x"),
        lambda: made.punch(0, 2 * PAGE_BYTES),
    ):
        with pytest.raises(IndexError):
            attempt()


async def test_resizable_memory_has_a_size_of_its_own(reopen: Callable[[], Memory]) -> None:
    memory = reopen()
    made = await memory.create("file.1", 0, resizable=True)
    fixed = await memory.create("a", PAGE_BYTES)
    assert (made.resizable, made.size_bytes, made.extents(), fixed.resizable) == (True, 0, [], False)
    memory.resize("file.1", 10)
    made.write(0, b"0123456789")
    with pytest.raises(IndexError):
        made.write(10, b"x")
    memory.resize("file.1", 3)
    with pytest.raises(IndexError):
        made.read(0, 4)
    memory.resize("file.1", PAGE_BYTES + 7)
    assert made.read(0, 10) == b"012" + bytes(7), "what was cut off does not come back"
    memory = reopen()
    made = memory.open("file.1")
    assert (made.resizable, made.size_bytes) == (True, PAGE_BYTES + 7)
    mapping = made.map()
    assert mapping.size_bytes == PAGE_BYTES + 7
    assert mapping.load(0, 3) == b"012"
    mapping.close()
    memory.resize("file.1", 0)
    with pytest.raises(InvalidArgument):
        made.map()
    with pytest.raises(InvalidArgument):
        memory.resize("a", 1)
    with pytest.raises(NotFound):
        memory.resize("b", 1)


async def test_resizable_memory_counts_as_it_is(reopen: Callable[[], Memory]) -> None:
    memory = reopen()
    await memory.create("file.1", 0, resizable=True)
    memory.resize("file.1", CAPACITY)
    with pytest.raises(ResourceExhausted):
        await memory.create("a", PAGE_BYTES)
    with pytest.raises(ResourceExhausted):
        memory.resize("file.1", CAPACITY + 1)
    memory = reopen()
    memory.resize("file.1", CAPACITY - PAGE_BYTES)
    await memory.create("a", PAGE_BYTES)
    with pytest.raises(ResourceExhausted):
        memory.resize("file.1", CAPACITY)
    await memory.remove("file.1")
    await memory.create("b", CAPACITY - PAGE_BYTES)


async def test_only_memory_has_the_names_of_memory(machine: StoreOnly) -> None:
    host = machine.host()
    memory = KeptMemory(host, CAPACITY)
    host.doorbell("g")
    assert memory.names() == []
    for name in ("doorbell.g", "machine", "a:b", "", "x" * 256):
        with pytest.raises(InvalidArgument):
            await memory.create(name, PAGE_BYTES)
    with pytest.raises(InvalidArgument):
        await memory.create("a", 0)
    await memory.create("a", PAGE_BYTES)
    assert KeptMemory(host, CAPACITY).names() == ["a"]
    for fd in host.kept.values():
        os.close(fd)
    host.close()


# -- disk --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "real":
        return Folder(tmp_path / "state")
    return SimulatedDisk(Media(Seeds(1).stream("disk")))


async def test_files_are_made_written_and_read(disk: Disk) -> None:
    with pytest.raises(NotFound):
        await disk.open("image/a")
    file = await disk.open("image/regions/a", create=True)
    await file.pwrite(5, b"five")
    await file.pwrite(0, memoryview(b"zero"))
    await file.sync()
    assert await file.size() == 9
    assert await file.pread(0, 100) == b"zero\0five"
    assert await file.pread(9, 1) == b""
    await file.close()
    with pytest.raises(ValueError, match="closed"):
        await file.pread(0, 1)
    again = await disk.open("image/regions/a")
    assert await again.pread(5, 2) == b"fi"
    await again.close()


@pytest.mark.parametrize("start", [0, PAGE_BYTES, 7])
async def test_many_pieces_are_written_at_once_and_summed(disk: Disk, start: int) -> None:
    batches = [[bytes([65 + batch]) * PAGE_BYTES, memoryview(b"-" * (40 * PAGE_BYTES))] for batch in range(4)]
    batches.append([b"short", memoryview(b"er")])
    block = 16 * PAGE_BYTES
    file = await disk.open("image/pages", create=True)
    await file.pwrite(0, b"header.")
    offsets = [start + 41 * PAGE_BYTES * n for n in range(5)]
    sums = await asyncio.gather(
        *(file.pwrite_all(at, batch, block) for at, batch in zip(offsets, batches, strict=True))
    )
    await file.sync()
    for batch, told in zip(batches, sums, strict=True):
        whole = b"".join(batch)
        assert told == [zlib.crc32(whole[at : at + block]) for at in range(0, len(whole), block)]
    for offset, batch in zip(offsets, batches, strict=True):
        wanted = b"".join(batch)
        assert await file.pread(offset, len(wanted)) == wanted
    assert await file.size() == offsets[-1] + 7
    await file.close()


async def test_where_a_file_system_has_no_direct_writes_the_cache_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.pwrite

    def refuse_blocks(fd: int, data: bytes, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse_blocks)
    file = await Folder(tmp_path).open("a", create=True)
    await file.pwrite_all(0, [b"x" * (64 * PAGE_BYTES)], PAGE_BYTES)
    assert await file.pread(0, 1 << 20) == b"x" * (64 * PAGE_BYTES)
    await file.close()


async def test_files_are_replaced_listed_and_removed(disk: Disk) -> None:
    await disk.replace("b/2", b"two")
    await disk.replace("b/1", b"one")
    await disk.replace("b/1", b"ONE")
    await disk.replace("b/c/3", b"three")
    assert await disk.read("b/1") == b"ONE"
    assert await disk.list("b") == ["1", "2"]
    assert await disk.list("nowhere") == []
    await disk.remove("b/1")
    await disk.remove("b/1")
    with pytest.raises(NotFound):
        await disk.read("b/1")
    await disk.remove("b")
    assert await disk.list("b/c") == []
    assert await disk.free_bytes() > 0


async def test_a_real_folder_says_what_is_wrong(tmp_path: Path) -> None:
    disk = Folder(tmp_path)
    for name in ("../outside", "/etc/passwd", "a/../../b"):
        with pytest.raises(InvalidArgument):
            await disk.read(name)
    full = Folder("/dev")
    file = await full.open("full")
    with pytest.raises(ResourceExhausted, match="free some space"):
        await file.pwrite(0, b"x")
    await file.close()
    if os.geteuid():
        (tmp_path / "closed").mkdir(0o000)
        with pytest.raises(PermissionDenied):
            await disk.replace("closed/a", b"")


async def test_an_unfinished_replacement_is_nobodys(tmp_path: Path) -> None:
    disk = Folder(tmp_path)
    await disk.replace("a", b"old")
    (tmp_path / "a.aside~").write_bytes(b"half a n")
    assert await disk.list("") == ["a"]
    assert await disk.read("a") == b"old"
    await disk.replace("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


async def test_a_cancelled_write_ends_before_its_file_closes(tmp_path: Path) -> None:
    file = await Folder(tmp_path).open("a", create=True)
    data = bytes(32 * 1024 * 1024)
    writing = asyncio.ensure_future(file.pwrite(0, data))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await file.size() == len(data)
    await file.close()


async def test_output_files(tmp_path: Path) -> None:
    logs = OutputFiles(tmp_path)
    assert (await logs.read("guests/g.log", 0, 10), await logs.size("guests/g.log")) == (b"", 0)
    (tmp_path / "guests").mkdir()
    (tmp_path / "guests" / "g.log").write_bytes(b"hello world")
    assert (await logs.read("guests/g.log", 6, 3), await logs.size("guests/g.log")) == (b"wor", 11)
    await logs.remove("guests/g.log")
    await logs.remove("guests/g.log")
    with pytest.raises(InvalidArgument):
        await logs.read("../secret", 0, 1)


# -- doorbell ----------------------------------------------------------------------------------------------------------


async def test_a_doorbell_rings_once_for_many_pushes(machine: StoreOnly) -> None:
    host = machine.host()
    bell = Doorbells(host)("g")
    fd = host.doorbell("g")
    assert not await bell.wait(0.001)
    os.eventfd_write(fd, 1)
    os.eventfd_write(fd, 1)
    assert await bell.wait(5)
    assert not await bell.wait(0.001)
    waiting = asyncio.ensure_future(bell.wait(5))
    await asyncio.sleep(0)
    os.eventfd_write(fd, 1)
    assert await waiting
    waiting = asyncio.ensure_future(bell.wait(5))
    await asyncio.sleep(0)
    bell.close()
    assert not await waiting
    with pytest.raises(ValueError, match="closed"):
        await bell.wait(1)
    os.close(fd)
    host.close()


async def test_a_cancelled_wait_loses_no_ring(machine: StoreOnly) -> None:
    host = machine.host()
    bell = Doorbells(host)("g")
    waiting: Awaitable[bool] = asyncio.ensure_future(bell.wait(5))
    await asyncio.sleep(0)
    waiting.cancel()  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.eventfd_write(host.doorbell("g"), 1)
    assert await bell.wait(5)
    bell.close()
    os.close(host.doorbell("g"))
    host.close()
