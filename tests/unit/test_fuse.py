"""FUSE without a kernel: requests made by hand and at random, the book after a death, errors as errnos."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everram.runtime import errors
from everram.runtime.errors import DataLoss
from everram.runtime.fuse import protocol, server
from everram.runtime.fuse.book import BOOK_BYTES, MODE_FILE, MODE_FOLDER, Book
from everram.runtime.fuse.errors import BY_ERROR, FuseError, errno_of
from everram.runtime.fuse.filesystem import KEY_BYTES_MAX, ROOT_KEY
from everram.runtime.fuse.in_memory import InMemory
from everram.runtime.fuse.mount import Mounted
from everram.runtime.fuse.operations import DONE, Operations, Reply, settled
from everram.runtime.fuse.protocol import RESENT, ROOT_NODE, Init, Opcode, Request
from everram.runtime.memory import memfd
from everram.runtime.memory.mapped import Mapped
from everram.runtime.tasks import TaskScope

HANDLE_OFFSET_SIZE = struct.Struct("<QQIIQII")
OPEN_OUT = struct.Struct("<QIi")
ENTRY_BYTES = 40 + 88


class Backings:
    """The kernel's register, as a list of what is in it."""

    def __init__(self) -> None:
        self.ids: dict[int, int] = {}
        self.count = 0

    def open(self, descriptor: int) -> int:
        self.count += 1
        self.ids[self.count] = descriptor
        return self.count

    def close(self, backing: int) -> None:
        del self.ids[backing]


class Kernel:
    """Asks by hand."""

    def __init__(self) -> None:
        descriptor = memfd.create("book", BOOK_BYTES)
        self.mapping = Mapped(descriptor, BOOK_BYTES)
        os.close(descriptor)
        Book.format(self.mapping)
        self.files = InMemory(now_ns=lambda: 1)
        self.backings = Backings()
        self.scope = TaskScope("test")
        self.start()

    def start(self, *, passthrough: bool = True) -> None:
        """A server, the first or a successor."""
        self.book = Book.open(self.mapping)
        self.operations = Operations(
            self.files, self.book, owner=(1, 2), backings=self.backings, passthrough=passthrough, scope=self.scope
        )

    def ask(self, opcode: int, node: int = ROOT_NODE, body: bytes = b"", unique: int = 2) -> Any:
        return self.operations.answer(Request(opcode, unique, node, 0, 0, 0, memoryview(body)))

    def bytes(self, *arguments: Any) -> bytes:
        reply = self.ask(*arguments)
        assert isinstance(reply, Reply)
        return b"".join(reply.parts)

    def init(self) -> None:
        flags = int(Init.EXT | Init.PASSTHROUGH | Init.MAX_PAGES | Init.HAS_RESEND)
        self.bytes(Opcode.INIT, 0, struct.pack("<IIIII", 7, 45, 1 << 17, flags & 0xFFFFFFFF, flags >> 32))

    def create(self, name: bytes, flags: int = os.O_RDWR, unique: int = 2) -> tuple[int, int, int]:
        """Node, handle, backing."""
        out = self.bytes(Opcode.CREATE, ROOT_NODE, struct.pack("<IIII", flags, 0o644, 0, 0) + name + b"\0", unique)
        handle, _, backing = OPEN_OUT.unpack(out[ENTRY_BYTES:])
        return struct.unpack_from("<Q", out)[0], handle, backing

    def open(self, node: int) -> tuple[int, int]:
        """Handle, backing."""
        handle, _, backing = OPEN_OUT.unpack(self.bytes(Opcode.OPEN, node, struct.pack("<II", os.O_RDWR, 0)))
        return handle, backing

    def release(self, node: int, handle: int, unique: int = 2) -> None:
        assert self.ask(Opcode.RELEASE, node, struct.pack("<QIIQ", handle, 0, 0, 0), unique) is DONE

    def close(self) -> None:
        self.files.close()
        self.mapping.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    kernel.init()
    yield kernel
    kernel.close()


@pytest.fixture
async def running(kernel: Kernel) -> AsyncIterator[Kernel]:
    yield kernel
    await kernel.scope.close()


def packed(opcode: int, node: int, body: bytes, unique: int = 2) -> bytes:
    return protocol.IN_HEADER.pack(protocol.IN_HEADER.size + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body


# -- the wire -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_what_is_no_request_is_refused(data: bytes) -> None:
    try:
        request = protocol.parse(memoryview(data))
    except FuseError as error:
        assert error.number == errno.EINVAL
    else:
        assert len(request.body) == len(data) - protocol.IN_HEADER.size


names = st.binary(min_size=0, max_size=300)
words = st.one_of(st.integers(0, 3), st.sampled_from([1 << 31, 1 << 32, (1 << 32) + 1, (1 << 64) - 1]))
bodies = st.one_of(
    st.binary(max_size=150),
    st.tuples(st.lists(words, max_size=12), st.lists(names, max_size=2)).map(
        lambda parts: b"".join(struct.pack("<Q", word) for word in parts[0]) + b"\0".join([*parts[1], b""])
    ),
)
requests = st.tuples(st.one_of(st.sampled_from(Opcode), st.integers(0, 5000)), words, bodies)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, max_size=30))
def test_no_request_ends_the_server(asked: list[tuple[int, int, bytes]]) -> None:
    """Each gets an answer, or an error that a program can be told."""

    async def run() -> None:
        kernel = Kernel()
        kernel.init()
        kernel.create(b"there")
        for opcode, node, body in asked:
            request = protocol.parse(memoryview(packed(opcode, node, body)))
            try:
                answer = await settled(kernel.operations.answer(request))
            except Exception as error:
                assert 0 < errno_of(error) < 512
                assert isinstance(error, FuseError | errors.EverramError | OSError), repr(error)
            else:
                assert all(isinstance(part, bytes | bytearray | memoryview) for part in answer.parts)
        kernel.start()
        assert kernel.book.ready
        await kernel.scope.close()
        kernel.close()

    asyncio.run(run())


class Holding(InMemory):
    """Holds what is written, as a queue pair does until its request has ended; and none ends."""

    def __init__(self) -> None:
        super().__init__(now_ns=lambda: 1)
        self.held: list[memoryview] = []
        self.begun = asyncio.Semaphore(0)

    def write(self, file: Any, offset: int, data: memoryview) -> Any:
        self.held.append(data)
        self.begun.release()
        return asyncio.get_running_loop().create_future()


async def test_what_an_interrupted_write_may_still_send_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "INTERRUPT_GRACE_S", 0.0)
    files = Holding()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    book = memfd.create("book", BOOK_BYTES)
    mapping = Mapped(book, BOOK_BYTES)
    Book.format(mapping).agree(45, 0)
    node = Book.open(mapping).know((await settled(files.create(ROOT_KEY, "f", 0o600, os.O_RDWR, True)))[0].key)
    handle = Book.open(mapping).hold(node, os.O_RDWR, MODE_FILE)
    serving = asyncio.ensure_future(server.Session(Mounted(theirs.fileno(), book), files).serve())
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    size = server.COPIED_BYTES_MAX * 2
    for unique, letter in ((2, b"a"), (4, b"b")):
        body = HANDLE_OFFSET_SIZE.pack(handle.number, 0, size, 0, 0, 0, 0) + letter * size
        await loop.sock_sendall(ours, packed(Opcode.WRITE, node.number, body, unique))
        await files.begun.acquire()
        await loop.sock_sendall(ours, packed(Opcode.INTERRUPT, 0, struct.pack("<Q", unique), unique + 1))
        while struct.unpack_from("<iQ", await loop.sock_recv(ours, 1 << 16), 4) != (-errno.EINTR, unique):
            pass  # what it says of itself when it begins
    assert [bytes(data) for data in files.held] == [b"a" * size, b"b" * size]
    serving.cancel()
    await asyncio.wait([serving])
    for one in (ours, theirs, mapping, files):
        one.close()
    os.close(book)


def test_a_request_before_init_is_refused() -> None:
    kernel = Kernel()
    with pytest.raises(FuseError):
        kernel.ask(Opcode.STATFS)
    with pytest.raises(FuseError, match="too old"):
        kernel.ask(Opcode.INIT, 0, struct.pack("<IIII", 7, 19, 0, 0))
    assert not kernel.book.ready
    kernel.close()


def test_a_listing_is_told_in_pieces(kernel: Kernel) -> None:
    for number in range(40):
        kernel.create(b"file %d" % number)
    (handle, _, _) = OPEN_OUT.unpack(kernel.bytes(Opcode.OPENDIR, ROOT_NODE, struct.pack("<II", 0, 0)))
    told: list[bytes] = []
    position = 0
    while data := kernel.bytes(Opcode.READDIR, ROOT_NODE, HANDLE_OFFSET_SIZE.pack(handle, position, 200, 0, 0, 0, 0)):
        assert len(data) <= 200
        at = 0
        while at < len(data):
            inode, position, length, _ = struct.unpack_from("<QQII", data, at)
            assert inode
            told.append(data[at + 24 : at + 24 + length])
            at += 24 + -(-length // 8) * 8
    assert sorted(told) == sorted([b".", b"..", *(b"file %d" % number for number in range(40))])


# -- what a successor finds -----------------------------------------------------------------------------------------


async def test_a_successor_knows_nodes_and_open_files(running: Kernel) -> None:
    kernel = running
    node, handle, backing = kernel.create(b"f")
    kernel.ask(Opcode.WRITE, node, HANDLE_OFFSET_SIZE.pack(handle, 0, 5, 0, 0, 0, 0) + b"hello")
    kernel.bytes(Opcode.UNLINK, ROOT_NODE, b"f\0")
    kernel.start()
    read = HANDLE_OFFSET_SIZE.pack(handle, 0, 100, 0, 0, 0, 0)
    one, two = kernel.ask(Opcode.READ, node, read), kernel.ask(Opcode.READ, node, read)
    assert [b"".join(reply.parts) for reply in await asyncio.gather(one, two)] == [b"hello"] * 2
    assert kernel.bytes(Opcode.READ, node, read) == b"hello", "it is opened again once, and then known"
    assert kernel.open(node)[1] == backing != 0
    with pytest.raises(FuseError) as refused:
        kernel.ask(Opcode.READ, node, HANDLE_OFFSET_SIZE.pack(handle + 1000, 0, 100, 0, 0, 0, 0))
    assert refused.value.number == errno.EBADF


async def test_a_file_that_cannot_be_opened_again_says_so_each_time(running: Kernel) -> None:
    kernel = running
    node, handle, _ = kernel.create(b"f")
    kernel.start()
    lost = kernel.files._nodes.pop(kernel.book.node(node).key)
    for _ in range(2):
        with pytest.raises(FuseError) as refused:
            await kernel.ask(Opcode.READ, node, HANDLE_OFFSET_SIZE.pack(handle, 0, 100, 0, 0, 0, 0))
        assert refused.value.number == errno.ESTALE
    kernel.files._nodes[lost.key] = lost


def test_what_was_done_already_is_not_an_error_when_it_is_asked_again(running: Kernel) -> None:
    kernel = running
    node, _, _ = kernel.create(b"f", os.O_RDWR | os.O_EXCL)
    with pytest.raises(errors.AlreadyExists):
        kernel.create(b"f", os.O_RDWR | os.O_EXCL)
    assert kernel.create(b"f", os.O_RDWR | os.O_EXCL, RESENT | 2)[0] == node

    async def again() -> None:
        made = struct.pack("<II", 0o755, 0) + b"d\0"
        assert len((await kernel.ask(Opcode.MKDIR, ROOT_NODE, made, 2 | RESENT)).parts[0]) == ENTRY_BYTES
        assert len((await kernel.ask(Opcode.MKDIR, ROOT_NODE, made, 2 | RESENT)).parts[0]) == ENTRY_BYTES
        for opcode, body in (
            (Opcode.RENAME, struct.pack("<Q", ROOT_NODE) + b"f\0g\0"),
            (Opcode.UNLINK, b"g\0"),
            (Opcode.RMDIR, b"d\0"),
        ):
            assert await settled(kernel.ask(opcode, ROOT_NODE, body)) is DONE
            with pytest.raises(errors.NotFound):
                kernel.ask(opcode, ROOT_NODE, body)
            assert await kernel.ask(opcode, ROOT_NODE, body, RESENT | 2) is DONE

    asyncio.run(again())


def test_all_opens_of_a_file_share_its_backing_until_the_last_is_released(kernel: Kernel) -> None:
    node, first, backing = kernel.create(b"f")
    second, same = kernel.open(node)
    assert backing == same != 0
    kernel.release(node, first)
    kernel.release(node, first, RESENT | 2)
    assert kernel.backings.ids, "released twice, when its answer was lost; the other is still open"
    kernel.start(passthrough=False)
    third, same = kernel.open(node)
    assert same == backing, "the kernel would refuse another way"
    kernel.release(node, second)
    kernel.release(node, third)
    assert not kernel.backings.ids
    assert kernel.open(node)[1] == 0


def test_what_the_kernel_did_not_want_is_taken_back(kernel: Kernel) -> None:
    reply = kernel.ask(Opcode.CREATE, ROOT_NODE, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"f\0")
    assert len(list(kernel.book.nodes())) == 2
    reply.undo()
    assert len(list(kernel.book.nodes())) == 1
    assert not kernel.backings.ids


async def test_the_end_of_a_mount_releases_and_forgets(running: Kernel) -> None:
    kernel = running
    kernel.create(b"f")
    node, _, _ = kernel.create(b"unlinked")
    kernel.bytes(Opcode.UNLINK, ROOT_NODE, b"unlinked\0")
    key = kernel.book.node(node).key
    assert key in kernel.files._nodes
    await kernel.operations.end()
    assert key not in kernel.files._nodes
    assert len(kernel.files._nodes) == 2


# -- the book -------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_book_opened_again_says_the_same(data: st.DataObject) -> None:
    descriptor = memfd.create("book", BOOK_BYTES)
    mapping = Mapped(descriptor, BOOK_BYTES)
    os.close(descriptor)
    book = Book.format(mapping)
    lookups: dict[int, int] = {}
    numbers: set[int] = {ROOT_NODE}
    handles: dict[int, int] = {}
    every_handle: set[int] = set()
    for _ in range(data.draw(st.integers(0, 40))):
        nodes = sorted(lookups)
        match data.draw(st.sampled_from(["know", "forget", "hold", "let go", "open"])):
            case "know":
                node = book.know(data.draw(st.sampled_from("abcdef")))
                assert (node.number in numbers) is (node.number in lookups), "a number is not used again"
                numbers.add(node.number)
                lookups[node.number] = lookups.get(node.number, 0) + 1
            case "forget" if nodes:
                number = data.draw(st.sampled_from(nodes))
                count = data.draw(st.integers(1, lookups[number]))
                lookups[number] -= count
                assert (book.forget(number, count) is not None) is (lookups[number] == 0)
                if not lookups[number]:
                    del lookups[number]
                    handles = {handle: node for handle, node in handles.items() if node != number}
            case "hold" if nodes:
                number = data.draw(st.sampled_from(nodes))
                held = book.hold(book.node(number), 2, MODE_FILE)
                assert held.number not in every_handle
                every_handle.add(held.number)
                handles[held.number] = number
            case "let go" if handles:
                handle = data.draw(st.sampled_from(sorted(handles)))
                book.let_go(handle)
                del handles[handle]
            case "open":
                book = Book.open(mapping)
        assert {node.number for node in book.nodes()} == {ROOT_NODE, *lookups}
        assert {handle for node in book.nodes() for handle in node.handles} == set(handles)
    mapping.close()


class Killed(BaseException):
    pass


class Mortal(Mapped):
    """Its process is killed before a store: what was stored stays, in order."""

    lives = 1 << 30

    def _spend(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._spend()
        super().store(offset, data)

    def store_u64(self, offset: int, value: int) -> None:
        self._spend()
        super().store_u64(offset, value)

    def publish_u64(self, offset: int, value: int) -> None:
        self._spend()
        super().publish_u64(offset, value)


def use_book(book: Book, told: dict[int, str], open_files: dict[int, int]) -> None:
    """What the kernel was told stands in the two, from before it could be told until it has said that it forgot it."""
    for turn in range(3):
        for key in "abc":
            told[book.know(f"{key}{turn // 2}").number] = f"{key}{turn // 2}"
        for number in list(told):
            held = book.hold(book.node(number), os.O_RDWR, MODE_FILE)
            open_files[held.number] = number
            book.set_backing(book.node(number), 7)
        gone = min(told)
        for handle in [handle for handle, number in open_files.items() if number == gone]:
            del open_files[handle]
            book.let_go(handle)
        del told[gone]
        book.forget(gone, 10)


def test_a_server_may_be_killed_before_any_store_to_the_book() -> None:
    deaths = 0
    for lives in range(1000):
        descriptor = memfd.create("book", BOOK_BYTES)
        mapping = Mortal(descriptor, BOOK_BYTES)
        os.close(descriptor)
        book = Book.format(mapping)
        told: dict[int, str] = {}
        open_files: dict[int, int] = {}
        mapping.lives = lives
        try:
            use_book(book, told, open_files)
        except Killed:
            deaths += 1
        done = mapping.lives >= 0
        mapping.lives = 1 << 30
        again = Book.open(mapping)
        found = {node.number: node.key for node in again.nodes()}
        held = {handle: node.number for node in again.nodes() for handle in node.handles}
        assert told.items() <= found.items() and len(found) - len(told) <= 2, "the root, and one that was not told"
        assert open_files.items() <= held.items() and len(held) - len(open_files) <= 1
        assert again.know("new").number not in told
        assert again.hold(again.node(ROOT_NODE), 0, MODE_FOLDER).number not in open_files
        mapping.close()
        if done:
            break
    assert deaths > 80


def test_the_book_has_limits_and_is_read_defensively(kernel: Kernel) -> None:
    with pytest.raises(FuseError) as long:
        kernel.book.know("k" * (KEY_BYTES_MAX + 1))
    assert long.value.number == errno.ENAMETOOLONG
    kernel.book.know("k" * KEY_BYTES_MAX)
    assert {node.key for node in Book.open(kernel.mapping).nodes()} == {ROOT_KEY, "k" * KEY_BYTES_MAX}
    with pytest.raises(FuseError) as stale:
        kernel.book.node(77)
    assert stale.value.number == errno.ESTALE
    kernel.mapping.store_u64(88, 1 << 40)
    with pytest.raises(DataLoss, match="damaged"):
        Book.open(kernel.mapping)
    kernel.mapping.store(8, struct.pack("<I", 9))
    with pytest.raises(DataLoss, match="version 9"):
        Book.open(kernel.mapping)
    kernel.mapping.store(0, bytes(8))
    with pytest.raises(DataLoss, match="not its book"):
        Book.open(kernel.mapping)


def test_a_book_that_is_full_says_so(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everram.runtime.fuse.book.HANDLES_MAX", 3)
    root = kernel.book.node(ROOT_NODE)
    held = [kernel.book.hold(root, 0, MODE_FOLDER) for _ in range(2)]
    with pytest.raises(FuseError) as full:
        kernel.book.hold(root, 0, MODE_FOLDER)
    assert full.value.number == errno.ENFILE
    kernel.book.let_go(held[0].number)
    assert kernel.book.hold(root, 0, MODE_FOLDER).number != held[0].number
    gone = kernel.book.know("gone")
    kernel.book.forget(gone.number, 1)
    with pytest.raises(FuseError) as stale:
        kernel.book.hold(gone, 0, MODE_FILE)
    assert stale.value.number == errno.ESTALE


# -- errors ---------------------------------------------------------------------------------------------------------


def test_every_error_has_an_errno() -> None:
    assert set(BY_ERROR) == set(errors.BY_CODE.values())
    assert errno_of(errors.ResourceExhausted("")) == errno.ENOSPC
    assert errno_of(errors.FailedPrecondition("")) == errno.ESTALE
    assert errno_of(OSError(errno.EROFS, "")) == errno.EROFS
    assert errno_of(FuseError(100_000)) == errno.EIO
    assert errno_of(OSError("no number")) == errno.EIO
    assert errno_of(cast(Exception, KeyError())) == errno.EIO
