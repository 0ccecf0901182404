"""A small complete file system: folders in this process, each file a memfd.

    files = InMemory(now_ns=time.time_ns)
    files = InMemory(now_ns=time.time_ns, keep=keep)                # keep(name, descriptor): kept elsewhere
    files = InMemory(now_ns=time.time_ns, keep=keep, kept={...})    # a successor, with what was kept

It shows how `FileSystem` is implemented, and serves tests and benchmarks. With `keep` it survives its process: whoever
keeps the descriptors hands them to the next one. The tree of names is then written to a memfd of its own at each
change, with its length last, as plain JSON; that is enough for a test and no format that anything else reads.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from everram.runtime.errors import AlreadyExists, NotFound
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import (
    ROOT_KEY,
    Attributes,
    Changes,
    Entry,
    FileSystem,
    Kind,
    Opened,
    Space,
)

TREE = "tree"
LENGTH_BYTES = 8
CAPACITY_BYTES = 1 << 34


@dataclass(slots=True)
class _Node:
    key: str
    kind: Kind
    mode: int
    descriptor: int = -1
    """Of a file."""
    children: dict[str, str] = field(default_factory=dict)
    """Of a folder: name -> key."""
    named: bool = True
    times_ns: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Accessed, modified, changed."""


Keep = Callable[[str, int], None]


class InMemory(FileSystem):
    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        passthrough: bool = True,
        keep: Keep | None = None,
        kept: dict[str, int] | None = None,
    ) -> None:
        """`passthrough` False: files are opened without a backing descriptor."""
        self._now_ns = now_ns
        self._passthrough = passthrough
        self._keep = keep
        self._nodes: dict[str, _Node] = {ROOT_KEY: _Node(ROOT_KEY, Kind.FOLDER, 0o755)}
        self._next = 1
        self._tree = -1
        if kept and TREE in kept:
            self._tree = kept[TREE]
            self._load(kept)
        elif keep is not None:
            self._tree = os.memfd_create(TREE, os.MFD_CLOEXEC)
            self._save()
            keep(TREE, self._tree)

    def close(self) -> None:
        for node in self._nodes.values():
            if node.descriptor >= 0:
                os.close(node.descriptor)
        if self._tree >= 0:
            os.close(self._tree)

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, key: str) -> _Node:
        node = self._nodes.get(key)
        if node is None:
            raise FuseError(errno.ESTALE)
        return node

    def _child(self, parent: str, name: str) -> _Node:
        key = self._folder(parent).children.get(name)
        if key is None:
            raise NotFound(f"there is no {name}")
        return self._nodes[key]

    def _folder(self, key: str) -> _Node:
        node = self._node(key)
        if node.kind is not Kind.FOLDER:
            raise FuseError(errno.ENOTDIR)
        return node

    def _add(self, parent: str, name: str, kind: Kind, mode: int) -> _Node:
        folder = self._folder(parent)
        if name in folder.children:
            raise AlreadyExists(f"{name} is there already")
        key = str(self._next)
        self._next += 1
        node = _Node(key, kind, mode, times_ns=[self._now_ns()] * 3)
        if kind is Kind.FILE:
            node.descriptor = os.memfd_create(f"file-{key}", os.MFD_CLOEXEC)
            if self._keep is not None:
                self._keep(key, node.descriptor)
        self._nodes[key] = node
        folder.children[name] = key
        self._changed(folder)
        return node

    def _changed(self, folder: _Node) -> None:
        folder.times_ns[1] = folder.times_ns[2] = self._now_ns()
        self._save()

    def _attributes(self, node: _Node) -> Attributes:
        accessed, modified, changed = node.times_ns
        size = allocated = 0
        if node.kind is Kind.FILE:
            status = os.fstat(node.descriptor)
            size, allocated = status.st_size, status.st_blocks * 512
            # With passthrough the kernel writes without us; the memfd knows when.
            modified, changed = max(modified, status.st_mtime_ns), max(changed, status.st_ctime_ns)
        links = 1 if node.kind is Kind.FILE else 2
        return Attributes(
            node.key, node.kind, node.mode, size, allocated, accessed, modified, changed, links if node.named else 0
        )

    def lookup(self, parent: str, name: str) -> Attributes:
        return self._attributes(self._child(parent, name))

    def getattr(self, key: str, file: object | None) -> Attributes:
        return self._attributes(self._node(key))

    def setattr(self, key: str, file: object | None, changes: Changes) -> Attributes:
        node = self._node(key)
        if changes.size_bytes is not None:
            if node.kind is Kind.FOLDER:
                raise FuseError(errno.EISDIR)
            os.ftruncate(node.descriptor, changes.size_bytes)
            node.times_ns[1] = self._now_ns()
        if changes.mode is not None:
            node.mode = changes.mode
        if changes.uid not in (None, os.getuid()) or changes.gid not in (None, os.getgid()):
            raise FuseError(errno.EPERM)
        if changes.accessed_ns is not None:
            node.times_ns[0] = changes.accessed_ns
        if changes.modified_ns is not None:
            node.times_ns[1] = changes.modified_ns
            if node.kind is Kind.FILE:
                os.utime(node.descriptor, ns=(node.times_ns[0], changes.modified_ns))
        node.times_ns[2] = self._now_ns()
        self._save()
        return self._attributes(node)

    # -- names --------------------------------------------------------------------------------------------------

    def readdir(self, key: str) -> Sequence[Entry]:
        folder = self._folder(key)
        return [Entry(name, self._nodes[child].kind, child) for name, child in sorted(folder.children.items())]

    def mkdir(self, parent: str, name: str, mode: int) -> Attributes:
        return self._attributes(self._add(parent, name, Kind.FOLDER, mode))

    def rmdir(self, parent: str, name: str) -> None:
        node = self._child(parent, name)
        if node.kind is not Kind.FOLDER:
            raise FuseError(errno.ENOTDIR)
        if node.children:
            raise FuseError(errno.ENOTEMPTY)
        self._unname(parent, name)

    def unlink(self, parent: str, name: str) -> None:
        if self._child(parent, name).kind is Kind.FOLDER:
            raise FuseError(errno.EISDIR)
        self._unname(parent, name)

    def _unname(self, parent: str, name: str) -> None:
        folder = self._folder(parent)
        self._nodes[folder.children.pop(name)].named = False
        self._changed(folder)

    def rename(self, parent: str, name: str, new_parent: str, new_name: str, replace: bool) -> None:
        node, target = self._child(parent, name), self._folder(new_parent)
        there = target.children.get(new_name)
        if there == node.key:
            return
        if there is not None:
            self._check_replacement(node, self._nodes[there], replace)
            self._nodes[there].named = False
        del self._folder(parent).children[name]
        target.children[new_name] = node.key
        self._changed(self._folder(parent))
        self._changed(target)

    def _check_replacement(self, node: _Node, there: _Node, replace: bool) -> None:
        if not replace:
            raise FuseError(errno.EEXIST)
        if there.kind is Kind.FOLDER and node.kind is not Kind.FOLDER:
            raise FuseError(errno.EISDIR)
        if there.kind is not Kind.FOLDER and node.kind is Kind.FOLDER:
            raise FuseError(errno.ENOTDIR)
        if there.children:
            raise FuseError(errno.ENOTEMPTY)

    def forget(self, key: str) -> None:
        node = self._nodes.get(key)
        if node is not None and not node.named:
            del self._nodes[key]
            if node.descriptor >= 0:
                os.close(node.descriptor)

    # -- open files ---------------------------------------------------------------------------------------------

    def create(self, parent: str, name: str, mode: int, flags: int, exclusive: bool) -> tuple[Attributes, Opened]:
        there = self._folder(parent).children.get(name)
        if there is not None and exclusive:
            raise AlreadyExists(f"{name} is there already")
        node = self._add(parent, name, Kind.FILE, mode) if there is None else self._nodes[there]
        return self._attributes(node), self.open(node.key, flags)

    def open(self, key: str, flags: int) -> Opened:
        node = self._node(key)
        if node.kind is Kind.FOLDER:
            raise FuseError(errno.EISDIR)
        return Opened(node, node.descriptor if self._passthrough else None)

    def read(self, file: _Node, offset: int, size: int) -> bytes:
        return os.pread(file.descriptor, size, offset)

    def write(self, file: _Node, offset: int, data: memoryview) -> int:
        return os.pwrite(file.descriptor, data, offset)

    def release(self, file: _Node) -> None:
        return None

    def lseek(self, file: _Node, offset: int, whence: int) -> int:
        return os.lseek(file.descriptor, offset, whence)

    def fallocate(self, file: _Node, offset: int, length: int, mode: int) -> None:
        if mode:
            raise FuseError(errno.EOPNOTSUPP)
        os.posix_fallocate(file.descriptor, offset, length)

    def statfs(self) -> Space:
        used = sum(os.fstat(node.descriptor).st_blocks * 512 for node in self._nodes.values() if node.descriptor >= 0)
        return Space(CAPACITY_BYTES, max(0, CAPACITY_BYTES - used), len(self._nodes), 1 << 20)

    # -- outliving the process ----------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._tree < 0:
            return
        nodes = [[n.key, n.kind, n.mode, n.children, n.named, n.times_ns] for n in self._nodes.values()]
        text = json.dumps([self._next, nodes]).encode()
        # One system call, so that a kill leaves the old tree or the new one.
        os.pwrite(self._tree, len(text).to_bytes(LENGTH_BYTES, "little") + text, 0)

    def _load(self, kept: dict[str, int]) -> None:
        length = int.from_bytes(os.pread(self._tree, LENGTH_BYTES, 0), "little")
        self._next, nodes = json.loads(os.pread(self._tree, length, LENGTH_BYTES))
        for key, kind, mode, children, named, times_ns in nodes:
            self._nodes[key] = _Node(key, Kind(kind), mode, kept.get(key, -1), children, named, times_ns)
