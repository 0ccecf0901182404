"""From a request to the file system's method and back: everything about FUSE that is not input or output.

    operations = Operations(files, book, owner=(uid, gid), backings=None)
    reply = operations.answer(request)        # a Reply, or an awaitable of one; raises what the file system raises

A reply that names a node or an open file to the kernel stands in the book before it is given; `undo` takes it back if
the kernel did not want it any more.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from everram.runtime.fuse import protocol
from everram.runtime.fuse.book import MODE_FILE, MODE_FOLDER, MODE_PASSTHROUGH, Book, Held, Node
from everram.runtime.fuse.errors import FuseError, errno_of
from everram.runtime.fuse.filesystem import (
    ROOT_KEY,
    Answer,
    Attributes,
    Changes,
    Entry,
    FileSystem,
    Kind,
    Opened,
    Space,
)
from everram.runtime.fuse.protocol import Buffer, Init, Opcode, OpenReply, Request
from everram.runtime.tasks import TaskScope

log = logging.getLogger("everram.fuse")

T = TypeVar("T")
R = TypeVar("R")

BACKGROUND_MAX = 64
"""Requests that the kernel sends without a caller who waits (AIO, read-ahead, releases) before it holds others back."""
BLOCK_BYTES = 64 << 10
"""st_blksize: what stdio and Python's `open` read at a time. Each is a request where there is no passthrough."""
WANTED = (
    Init.ASYNC_READ
    | Init.BIG_WRITES
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.EXT
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.HAS_RESEND
)
"""And passthrough, where it is on. Not WRITEBACK_CACHE: a write that has returned is where others can read it. Not
ATOMIC_O_TRUNC: truncation at open arrives as a setattr like any other. Not POSIX_LOCKS and FLOCK_LOCKS: locks stay
the kernel's. Not DO_READDIRPLUS: names and attributes that may not be cached would be asked for twice."""

UNSUPPORTED = frozenset({Opcode.SYMLINK, Opcode.MKNOD, Opcode.LINK})
"""Refused for good, with what link(2) says of file systems that have no links; other requests that are not served get
ENOSYS, which makes the kernel use its own way, or EOPNOTSUPP of it (extended attributes), and ask no more."""


@dataclass(slots=True)
class Reply:
    parts: Sequence[Buffer] = ()
    undo: Callable[[], Answer[None]] | None = None


DONE = Reply()


class Backings(Protocol):
    """The kernel's register of descriptors for passthrough."""

    def open(self, descriptor: int) -> int:
        """Raises OSError."""
        ...

    def close(self, backing: int) -> None: ...


def then(answer: Answer[T], finish: Callable[[T], Answer[R]]) -> Answer[R]:
    """`finish` of the answer: at once, or when it is there."""
    if hasattr(answer, "__await__"):
        return _later(cast("Awaitable[T]", answer), finish)
    return finish(answer)


async def _later(answer: Awaitable[T], finish: Callable[[T], Answer[R]]) -> R:
    return await settled(finish(await answer))


async def settled(answer: Answer[T]) -> T:
    if hasattr(answer, "__await__"):
        return await cast("Awaitable[T]", answer)
    return answer


@functools.lru_cache(maxsize=1 << 16)
def inode_of(key: str) -> int:
    """What stat(2) calls a node, on every host the same. Programs tell files apart by it (`cp a a`, `find`)."""
    if key == ROOT_KEY:
        return protocol.ROOT_NODE
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return max(int.from_bytes(digest, "little"), protocol.ROOT_NODE + 1)


def _done(_: object) -> Reply:
    return DONE


def _nothing(_: None) -> None:
    return None


def _data(data: Buffer) -> Reply:
    return Reply((data,))


def _written(size: int) -> Reply:
    return Reply((protocol.pack_written(size),))


def _offset(offset: int) -> Reply:
    return Reply((protocol.pack_offset(offset),))


class Operations:
    def __init__(
        self,
        files: FileSystem,
        book: Book,
        *,
        owner: tuple[int, int],
        backings: Backings,
        passthrough: bool,
        scope: TaskScope,
    ) -> None:
        """`scope` owns the work of opening again what a predecessor had open."""
        self._files = files
        self._book = book
        self._owner = owner
        self._backings = backings
        self._passthrough = passthrough
        self._ready = book.ready  # INIT was answered, by this server or another
        self._scope = scope
        self._objects: dict[int, Any] = {}
        """Handle -> the file system's object."""
        self._opening: dict[int, asyncio.Task[Opened | Exception]] = {}
        """Handle -> what opens it again for this server."""
        self._listings: dict[int, Sequence[Entry]] = {}
        self._methods: dict[int, Callable[[Request], Answer[Reply]]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FLUSH: self._flush,
            Opcode.INIT: self._init,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.CREATE: self._create,
            Opcode.DESTROY: self._destroy,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.RENAME2: self._rename2,
            Opcode.LSEEK: self._lseek,
        }

    def answer(self, request: Request) -> Answer[Reply]:
        method = self._methods.get(request.opcode)
        if method is None:
            raise FuseError(errno.EPERM if request.opcode in UNSUPPORTED else errno.ENOSYS)
        if not self._ready and request.opcode != Opcode.INIT:
            raise FuseError(errno.EIO, "a request before INIT")
        return method(request)

    async def end(self) -> None:
        """The mount is gone, and the kernel says goodbye to nothing: what is open is released, all is forgotten."""
        while self._objects:
            handle, file = self._objects.popitem()
            try:
                await settled(self._files.release(file))
            except Exception as error:
                log.error("open file %d of a mount that has ended was not released", handle, exc_info=error)
        for node in self._book.nodes():
            if node.number != protocol.ROOT_NODE:
                self._files.forget(node.key)

    # -- the mount ----------------------------------------------------------------------------------------------

    def _init(self, request: Request) -> Reply:
        asked = protocol.init(request.body)
        if asked.major != protocol.MAJOR or asked.minor < protocol.MINOR_OLDEST:
            raise FuseError(errno.EPROTO, f"this kernel speaks FUSE {asked.major}.{asked.minor}, which is too old")
        wanted = WANTED | (Init.PASSTHROUGH if self._passthrough else Init(0))
        flags = asked.flags & wanted
        minor = min(asked.minor, protocol.MINOR)
        self._book.agree(minor, flags)
        self._ready = True
        parts = protocol.pack_init(minor, asked.readahead_bytes_max, flags, protocol.DATA_BYTES_MAX, BACKGROUND_MAX)
        return Reply((parts,))

    def _destroy(self, request: Request) -> Reply:
        return DONE

    def _statfs(self, request: Request) -> Answer[Reply]:
        def finish(space: Space) -> Reply:
            packed = protocol.pack_statfs(space.capacity_bytes, space.free_bytes, space.files, space.files_free)
            return Reply((packed,))

        return then(self._files.statfs(), finish)

    # -- nodes --------------------------------------------------------------------------------------------------

    def _key(self, number: int) -> str:
        return self._book.node(number).key

    def _stat(self, attributes: Attributes) -> protocol.Stat:
        folder = attributes.kind is Kind.FOLDER
        return protocol.Stat(
            inode=inode_of(attributes.key),
            size_bytes=attributes.size_bytes,
            allocated_bytes=attributes.allocated_bytes,
            accessed_ns=attributes.accessed_ns,
            modified_ns=attributes.modified_ns,
            changed_ns=attributes.changed_ns,
            mode=(stat.S_IFDIR if folder else stat.S_IFREG) | attributes.mode & 0o7777,
            links=attributes.links,
            uid=self._owner[0] if attributes.uid is None else attributes.uid,
            gid=self._owner[1] if attributes.gid is None else attributes.gid,
            block_bytes=BLOCK_BYTES,
        )

    def _entry(self, attributes: Attributes) -> Reply:
        node = self._book.know(attributes.key)
        return Reply((self._pack_entry(node, attributes),), lambda: self._forget_node(node.number, 1))

    def _pack_entry(self, node: Node, attributes: Attributes) -> bytes:
        stat_ = self._stat(attributes)
        return protocol.pack_entry(node.number, stat_, attributes.name_valid_ns, attributes.valid_ns)

    def _attributes(self, attributes: Attributes) -> Reply:
        return Reply((protocol.pack_attributes(self._stat(attributes), attributes.valid_ns),))

    def _lookup(self, request: Request) -> Answer[Reply]:
        return then(self._files.lookup(self._key(request.node), protocol.name(request.body)), self._entry)

    def _getattr(self, request: Request) -> Answer[Reply]:
        handle = protocol.getattr_(request.body)
        file = None if handle is None else self._objects.get(handle)
        return then(self._files.getattr(self._key(request.node), file), self._attributes)

    def _setattr(self, request: Request) -> Answer[Reply]:
        asked = protocol.setattr_(request.body)
        file = None if asked.handle is None else self._objects.get(asked.handle)
        return then(self._files.setattr(self._key(request.node), file, Changes(*asked[1:])), self._attributes)

    def _forget(self, request: Request) -> Reply:
        for node, lookups in protocol.forget(request.node, request.body):
            self._forget_node(node, lookups)
        return DONE

    def _batch_forget(self, request: Request) -> Reply:
        for node, lookups in protocol.batch_forget(request.body):
            self._forget_node(node, lookups)
        return DONE

    def _forget_node(self, number: int, lookups: int) -> None:
        node = self._book.forget(number, lookups)
        if node is not None:
            self._close_backing(node.backing)
            self._files.forget(node.key)

    # -- folders ------------------------------------------------------------------------------------------------

    def _mkdir(self, request: Request) -> Answer[Reply]:
        parent = self._key(request.node)
        name, mode = protocol.mkdir(request.body)

        def there(_: None) -> Answer[Attributes]:
            return self._files.lookup(parent, name)

        return then(
            self._again(request, errno.EEXIST, lambda: self._files.mkdir(parent, name, mode), there), self._entry
        )

    def _unlink(self, request: Request) -> Answer[Reply]:
        parent, name = self._key(request.node), protocol.name(request.body)
        return then(self._again(request, errno.ENOENT, lambda: self._files.unlink(parent, name), _nothing), _done)

    def _rmdir(self, request: Request) -> Answer[Reply]:
        parent, name = self._key(request.node), protocol.name(request.body)
        return then(self._again(request, errno.ENOENT, lambda: self._files.rmdir(parent, name), _nothing), _done)

    def _rename(self, request: Request) -> Answer[Reply]:
        return self._rename_to(request, *protocol.rename(request.body))

    def _rename2(self, request: Request) -> Answer[Reply]:
        return self._rename_to(request, *protocol.rename2(request.body))

    def _rename_to(self, request: Request, new_parent: int, name: str, new_name: str, flags: int) -> Answer[Reply]:
        if flags & ~protocol.RENAME_NOREPLACE:
            raise FuseError(errno.EINVAL)
        old, new, replace = self._key(request.node), self._key(new_parent), not flags

        def work() -> Answer[None]:
            return self._files.rename(old, name, new, new_name, replace)

        return then(self._again(request, errno.ENOENT, work, _nothing), _done)

    def _again(
        self, request: Request, number: int, work: Callable[[], Answer[T]], done: Callable[[None], Answer[T]]
    ) -> Answer[T]:
        """What is asked a second time, because a predecessor died over it, may be done already: then `number` is no
        error but tells so."""
        if not request.resent:
            return work()

        async def attempt() -> T:
            try:
                return await settled(work())
            except Exception as error:
                if errno_of(error) != number:
                    raise
            return await settled(done(None))

        return attempt()

    def _opendir(self, request: Request) -> Reply:
        held = self._book.hold(self._book.node(request.node), os.O_RDONLY, MODE_FOLDER)
        packed = protocol.pack_open(held.number, OpenReply(0), 0)
        return Reply((packed,), lambda: self._close_folder(held.number))

    def _readdir(self, request: Request) -> Answer[Reply]:
        handle, first, size_bytes = protocol.read(request.body)
        key = self._key(request.node)
        self._book.held(handle)

        def finish(entries: Sequence[Entry]) -> Reply:
            self._listings[handle] = entries
            # Two more than the file system knows of; of `..` nobody looks at more than that it is there.
            listed = [(inode_of(key), int(Kind.FOLDER), "."), (inode_of(key), int(Kind.FOLDER), "..")][first:]
            listed += [(inode_of(entry.key), int(entry.kind), entry.name) for entry in entries[max(0, first - 2) :]]
            return Reply((protocol.pack_dirents(listed, first, size_bytes),))

        known = self._listings.get(handle)
        if known is None or first == 0:
            return then(self._files.readdir(key), finish)
        return finish(known)

    def _releasedir(self, request: Request) -> Reply:
        self._close_folder(protocol.handle(request.body))
        return DONE

    def _close_folder(self, handle: int) -> None:
        self._listings.pop(handle, None)
        self._book.let_go(handle)

    def _fsyncdir(self, request: Request) -> Reply:
        return DONE  # names are as durable as they get when the method that changed them returns

    # -- open and close -----------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Answer[Reply]:
        node, flags = self._book.node(request.node), protocol.open_(request.body)

        def finish(opened: Opened) -> Answer[Reply]:
            return self._opened(node, flags, opened, b"")

        return then(self._files.open(node.key, flags), finish)

    def _create(self, request: Request) -> Answer[Reply]:
        name, mode, flags = protocol.create(request.body)
        parent = self._key(request.node)
        exclusive = bool(flags & os.O_EXCL) and not request.resent

        def finish(answer: tuple[Attributes, Opened]) -> Answer[Reply]:
            attributes, opened = answer
            try:
                node = self._book.know(attributes.key)
            except FuseError as error:
                return self._refused(opened, error)
            entry = self._pack_entry(node, attributes)
            return self._opened(node, flags, opened, entry)

        return then(self._files.create(parent, name, mode, flags, exclusive), finish)

    def _opened(self, node: Node, flags: int, opened: Opened, entry: bytes) -> Answer[Reply]:
        try:
            self._book.node(node.number)  # opening may have taken long
            backing = self._backing(node, opened)
            held = self._book.hold(node, flags, MODE_PASSTHROUGH if backing else MODE_FILE)
        except FuseError as error:
            return self._refused(opened, error)
        self._objects[held.number] = opened.file
        reply = OpenReply.PASSTHROUGH if backing else OpenReply.DIRECT_IO | OpenReply.PARALLEL_DIRECT_WRITES

        def undo() -> Answer[None]:
            closed = self._close(held.number)
            if entry:
                self._forget_node(node.number, 1)
            return closed

        return Reply((entry, protocol.pack_open(held.number, reply, backing)), undo)

    def _refused(self, opened: Opened, error: FuseError) -> Answer[Reply]:
        """The file system has opened it, and there is no room to remember that."""

        def finish(_: None) -> Reply:
            raise error

        return then(self._files.release(opened.file), finish)

    def _backing(self, node: Node, opened: Opened) -> int:
        """All open files of a node go the same way, or the kernel fails the open: whoever is there first decides."""
        if node.handles:
            return node.backing
        if not self._passthrough or opened.backing is None or not self._book.init_flags & Init.PASSTHROUGH:
            return 0
        try:
            backing = self._backings.open(opened.backing)
        except OSError:
            return (
                0  # a descriptor that the kernel does not take (not a memfd or tmpfs file): ordinary reads and writes
            )
        self._book.set_backing(node, backing)
        return backing

    def _close_backing(self, backing: int) -> None:
        if backing:
            self._backings.close(backing)

    def _release(self, request: Request) -> Answer[Reply]:
        return then(self._close(protocol.handle(request.body)), _done)

    def _close(self, handle: int) -> Answer[None]:
        node = self._book.let_go(handle)
        if node is not None and not node.handles and node.backing:
            backing = node.backing
            self._book.set_backing(node, 0)
            self._close_backing(backing)
        file = self._objects.pop(handle, None)
        return None if file is None else self._files.release(file)

    # -- what is done with an open file -------------------------------------------------------------------------

    def _with(self, request: Request, handle: int, use: Callable[[Any], Answer[T]]) -> Answer[T]:
        """`use` of the file system's object; a predecessor's handle is opened again first."""
        file = self._objects.get(handle)
        if file is not None:
            return use(file)
        held = self._book.held(handle)
        if held.node != request.node or held.mode == MODE_FOLDER:
            raise FuseError(errno.EBADF)
        opening = self._opening.get(handle)
        if opening is None:
            opening = self._scope.start(self._open_again(held), name=f"open again {handle}")
            self._opening[handle] = opening
        # Shielded: others may wait for it too when this request is interrupted.
        return _later(asyncio.shield(opening), lambda opened: use(self._taken(opened)))

    async def _open_again(self, held: Held) -> Opened | Exception:
        flags = held.flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
        try:
            opened = await settled(self._files.open(self._key(held.node), flags))
        except Exception as error:
            return error  # to whoever waits for it
        finally:
            del self._opening[held.number]
        self._objects[held.number] = opened.file
        return opened

    @staticmethod
    def _taken(opened: Opened | Exception) -> Any:
        if isinstance(opened, Exception):
            raise opened
        return opened.file

    def _read(self, request: Request) -> Answer[Reply]:
        handle, offset, size = protocol.read(request.body)
        file = self._objects.get(handle)
        if file is None:
            return self._with(request, handle, lambda again: self._read_from(again, offset, size))
        return self._read_from(file, offset, size)

    def _read_from(self, file: Any, offset: int, size: int) -> Answer[Reply]:
        answer = self._files.read(file, offset, size)
        if isinstance(answer, (bytes, bytearray, memoryview)):
            return Reply((answer,))
        return _later(answer, _data)

    def _write(self, request: Request) -> Answer[Reply]:
        handle, offset, data = protocol.write(request.body)
        file = self._objects.get(handle)
        if file is None:
            return self._with(request, handle, lambda again: self._write_to(again, offset, data))
        return self._write_to(file, offset, data)

    def _write_to(self, file: Any, offset: int, data: memoryview) -> Answer[Reply]:
        return then(self._files.write(file, offset, data), _written)

    def _flush(self, request: Request) -> Answer[Reply]:
        return then(self._with(request, protocol.handle(request.body), self._files.flush), _done)

    def _fsync(self, request: Request) -> Answer[Reply]:
        handle, data_only = protocol.fsync(request.body)
        return then(self._with(request, handle, lambda file: self._files.fsync(file, data_only)), _done)

    def _lseek(self, request: Request) -> Answer[Reply]:
        handle, offset, whence = protocol.lseek(request.body)
        return then(self._with(request, handle, lambda file: self._files.lseek(file, offset, whence)), _offset)

    def _fallocate(self, request: Request) -> Answer[Reply]:
        handle, offset, length, mode = protocol.fallocate(request.body)
        return then(self._with(request, handle, lambda file: self._files.fallocate(file, offset, length, mode)), _done)
