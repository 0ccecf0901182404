"""What a file system has to do to be mounted: `FileSystem`, and the plain values it speaks in.

    class Files(FileSystem):
        async def lookup(self, parent, name): ...          # -> Attributes
        async def open(self, key, flags): return Opened(my_object)
        def read(self, file, offset, size): return view[offset : offset + size]

Each method either returns its answer or an awaitable of it (so `async def` is right, and a plain `def` is faster: it
is answered without a task). What is awaited blocks nobody else. Errors are `FuseError(errno)`, any EverramError, or
OSError (runtime/fuse/errors.py).

A node is named by its `key`, a string of the file system's choice that stays the same for the node's whole life,
through renames and through a change of the server, and is never given to another node. The numbers by which the kernel
knows nodes and open files are the server's own business. `Opened.file` is any object; it comes back with each request
on that open file. When a successor takes a mount over, it calls `open` for the files that its predecessor had open, at
their next request; so `open` must work by key also for a file that was unlinked and is still open. Such a file is gone
for good when `forget` is called for it, which is after its last release and never before. (What a predecessor had
open and nobody used since is released without a call.)

Coherence. Nothing is cached but what `Attributes.valid_ns` and `name_valid_ns` allow, and they are 0 unless they are
set: each open asks for the name, each stat for the attributes, and reads and writes without passthrough go to `read`
and `write` each time (direct I/O). So whoever opens a file after another has closed it sees what that one wrote, on
whatever host; that is close-to-open, and there is no promise beyond. A shared mapping without passthrough is cached by
this host's kernel, from open until it is dropped or the next `open` on this host; with passthrough it is the memory
itself. Set the two for nodes that never change, and perhaps `valid_ns` for folders: the kernel asks for a folder's
attributes at each step of a path. Locks (flock, fcntl) are the kernel's own and hold among the programs of one mount.
"""

from __future__ import annotations

import abc
import enum
import errno
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.protocol import Buffer

T = TypeVar("T")
Answer: TypeAlias = T | Awaitable[T]

ROOT_KEY = "/"
KEY_BYTES_MAX = 232
"""A key has to fit into a slot of the book (runtime/fuse/book.py) beside what else stands there."""


class Kind(enum.IntEnum):
    """Values as in a directory entry (DT_DIR, DT_REG)."""

    FOLDER = 4
    FILE = 8


@dataclass(frozen=True, slots=True)
class Attributes:
    """A node as stat(2) shows it."""

    key: str
    kind: Kind
    mode: int
    """Permission bits alone; the kernel enforces them."""
    size_bytes: int = 0
    allocated_bytes: int = 0
    accessed_ns: int = 0
    modified_ns: int = 0
    changed_ns: int = 0
    links: int = 1
    uid: int | None = None
    """None: whoever mounted it."""
    gid: int | None = None
    valid_ns: int = 0
    """How long the kernel may show these attributes without asking. See Coherence."""
    name_valid_ns: int = 0
    """How long it may take the name that was looked up for this node, without asking."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr has to change: all that is not None."""

    size_bytes: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    accessed_ns: int | None = None
    modified_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    kind: Kind
    key: str


@dataclass(frozen=True, slots=True)
class Opened:
    file: Any
    """Opaque: comes back with each request on this open file."""
    backing: int | None = None
    """A descriptor (memfd or tmpfs file, open for reading and writing) that the kernel may read, write and map in our
    place; needed during the call only, and never closed by the server. All opens of a node should agree."""


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs(2) shows."""

    capacity_bytes: int
    free_bytes: int
    files: int = 0
    files_free: int = 0


class FileSystem(abc.ABC):
    """See the module."""

    @abc.abstractmethod
    def lookup(self, parent: str, name: str) -> Answer[Attributes]:
        """The node of that name. ENOENT."""

    @abc.abstractmethod
    def getattr(self, key: str, file: Any | None) -> Answer[Attributes]:
        """`file` is given where the caller has it open and the server knows it."""

    @abc.abstractmethod
    def setattr(self, key: str, file: Any | None, changes: Changes) -> Answer[Attributes]:
        """Truncation is a change of `size_bytes`; what is between the old end and a later new one reads as zeros."""

    @abc.abstractmethod
    def readdir(self, key: str) -> Answer[Sequence[Entry]]:
        """All of a folder's entries, without `.` and `..`, in an order that stays the same as far as possible."""

    @abc.abstractmethod
    def mkdir(self, parent: str, name: str, mode: int) -> Answer[Attributes]:
        """EEXIST."""

    @abc.abstractmethod
    def rmdir(self, parent: str, name: str) -> Answer[None]:
        """ENOENT, ENOTDIR, ENOTEMPTY."""

    @abc.abstractmethod
    def unlink(self, parent: str, name: str) -> Answer[None]:
        """ENOENT, EISDIR. The file lives on while it is open."""

    @abc.abstractmethod
    def rename(self, parent: str, name: str, new_parent: str, new_name: str, replace: bool) -> Answer[None]:
        """In one step. What had the new name is unlinked, or EEXIST if not `replace`."""

    @abc.abstractmethod
    def create(
        self, parent: str, name: str, mode: int, flags: int, exclusive: bool
    ) -> Answer[tuple[Attributes, Opened]]:
        """Make and open it; if it is there, open it, or EEXIST if `exclusive`."""

    @abc.abstractmethod
    def open(self, key: str, flags: int) -> Answer[Opened]:
        """`flags` of open(2), without O_TRUNC, which arrives as a setattr. Permissions were checked."""

    @abc.abstractmethod
    def read(self, file: Any, offset: int, size: int) -> Answer[Buffer]:
        """Fewer bytes only at the end of the file. A view must stay valid until the next turn of the loop."""

    @abc.abstractmethod
    def write(self, file: Any, offset: int, data: memoryview) -> Answer[int]:
        """How many were written. `data` is valid until the answer. With O_APPEND `offset` is the end as this host's
        kernel knew it; whoever wants more must remember the flag from `open`."""

    @abc.abstractmethod
    def release(self, file: Any) -> Answer[None]:
        """The last descriptor of this open file was closed."""

    @abc.abstractmethod
    def statfs(self) -> Answer[Space]: ...

    def flush(self, file: Any) -> Answer[None]:
        """A descriptor was closed; what it wrote must now be visible to whoever opens the file next."""
        return None

    def fsync(self, file: Any, data_only: bool) -> Answer[None]:
        """Return when what was written is as durable as this file ever gets."""
        return None

    def lseek(self, file: Any, offset: int, whence: int) -> Answer[int]:
        """SEEK_DATA or SEEK_HOLE. Optional."""
        raise FuseError(errno.ENOSYS)

    def fallocate(self, file: Any, offset: int, length: int, mode: int) -> Answer[None]:
        """Optional."""
        raise FuseError(errno.ENOSYS)

    def forget(self, key: str) -> None:
        """The kernel knows nothing of this node any more: no name, no open file."""
        return
