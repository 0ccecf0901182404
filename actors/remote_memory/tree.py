"""What programs find on a mount: `/files`, the cluster's files through this host's agent, and what is only shown.

    tree = Tree(host, files, {"regions": regions, "snapshots": snapshots}, environment.mounts, space, spawn, held)
    await mount.serve(tree)

What is shown, and cannot be changed there, are views (`views`): the top itself, `/regions` and `/snapshots`. All else
is `/files`. New files lie on this host if it has room, because here the kernel itself may read and write them
(passthrough): it asks nobody then, and the agent learns what it has done at the next flush or stat.

A node of `/files` has its inode's id as its key. Permissions are checked by the kernel, as on any file system: root
passes. A file that was unlinked lives on while this mount has it open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from everram.actors.remote_memory.buffers import Buffers
from everram.actors.remote_memory.files import Files, OpenedFile
from everram.actors.remote_memory.views import FOLDER_VALID_NS, Top, View, ViewedFile
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.coordination.file_directory import ROOT_ID
from everram.runtime.environment import MemoryObject, Mounts
from everram.runtime.errors import AlreadyExists, EverramError, ResourceExhausted
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Answer, Attributes, Changes, Entry, FileSystem, Kind, Opened, Space
from everram.runtime.fuse.protocol import Buffer

FILES = "files"
LARGE_BYTES = 32 << 10
"""Reads from here on go into buffers that are kept. Below, a fresh object costs less than to ask for one."""


@dataclass(slots=True, eq=False)
class OpenOnMount:
    opened: OpenedFile
    memory: MemoryObject | None
    """Where this host is the owner."""


AnyFile: TypeAlias = OpenOnMount | ViewedFile


class Tree(FileSystem):
    """See the module. `views`: by their names, which are their keys; `spawn` runs a task of the agent; `held`: keys
    that a predecessor's programs have open."""

    def __init__(
        self,
        host: str,
        files: Files,
        views: Mapping[str, View],
        mounts: Mounts,
        space: Callable[[], Space],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        held: Collection[str] = (),
    ) -> None:
        self._buffers = Buffers()
        self._host, self._files, self._mounts = host, files, mounts
        top = Top({FILES: ROOT_ID} | {name: name for name in views}, lambda key: self.getattr(key, None))
        self._views = (top, *views.values())
        self._space, self._spawn = space, spawn
        self._told_ns: dict[str, int] = {}
        """Of files of this host that are open: when their memory had been written last as their size was told."""
        self._known: dict[str, rm.Node] = {}
        """By key: files as they were looked up. Where one lies never changes, so opening it asks its owner alone."""
        self._opened: dict[str, list[OpenOnMount]] = {}
        """By key."""
        self._held = {key for key in held if self._view(key) is None}
        files.pinned.update(self._held)

    def close(self) -> None:
        """When it is not served any more."""
        self._files.pinned.subtract(self._held)

    def _view(self, key: str) -> View | None:
        """None: the node is one of `/files`."""
        return next((view for view in self._views if view.has(key)), None)

    def _check_writable(self, key: str) -> None:
        if self._view(key) is not None:
            raise FuseError(errno.EROFS)

    # -- nodes

    async def lookup(self, parent: str, name: str) -> Attributes:
        if view := self._view(parent):
            return await view.lookup(parent, name)
        return self._attributes(await self._files.child(parent, name))

    async def getattr(self, key: str, file: Any | None) -> Attributes:
        if view := self._view(key):
            return await view.attributes(key)
        return self._attributes(await self._files.node(key))

    def _attributes(self, node: rm.Node) -> Attributes:
        if not node.folder:
            self._known[node.id] = node
        return Attributes(
            key=node.id,
            kind=Kind.FOLDER if node.folder else Kind.FILE,
            mode=node.mode,
            size_bytes=node.size_bytes,
            allocated_bytes=node.size_bytes,
            accessed_ns=node.modified_ns,
            modified_ns=node.modified_ns,
            changed_ns=node.modified_ns,
            links=0 if node.holder else 1,
            valid_ns=FOLDER_VALID_NS if node.folder else 0,
        )

    async def setattr(self, key: str, file: Any | None, changes: Changes) -> Attributes:
        self._check_writable(key)
        for wanted, own in ((changes.uid, os.getuid()), (changes.gid, os.getgid())):
            if wanted not in (None, own):
                raise FuseError(errno.EPERM)
        if changes.size_bytes is not None:
            await self._files.resize(key, changes.size_bytes)
        for opened in self._opened.get(key, ())[:1]:
            # What is written so far shall not be told later, and change the time that is set now.
            await self.flush(opened)
        change = rm.ChangeRequest(id=key)
        if changes.mode is not None:
            change.mode = changes.mode
        if changes.modified_ns is not None:
            change.modified_ns = changes.modified_ns
        if changes.mode is not None or changes.modified_ns is not None:
            await self._files.change(change)
        return await self.getattr(key, file)

    def forget(self, key: str) -> None:
        self._told_ns.pop(key, None)
        self._known.pop(key, None)
        if key in self._held:
            self._held.discard(key)
            self._files.pinned[key] -= 1
        if self._files.is_unlinked(key):
            self._spawn(self._end_unlinked(key))

    async def _end_unlinked(self, key: str) -> None:
        try:
            await self._files.end_unlinked(key)
        except EverramError:
            pass  # no manager to be had: the agent's next life finds it

    # -- names

    async def readdir(self, key: str) -> Sequence[Entry]:
        if view := self._view(key):
            return await view.entries(key)
        nodes = (await self._files.children(key)).nodes
        return [Entry(node.name, Kind.FOLDER if node.folder else Kind.FILE, node.id) for node in nodes]

    async def mkdir(self, parent: str, name: str, mode: int) -> Attributes:
        self._check_writable(parent)
        return self._attributes(await self._files.make_child_folder(parent, name, mode & 0o7777))

    async def rmdir(self, parent: str, name: str) -> None:
        self._check_writable(parent)
        node = await self._files.child(parent, name)
        await self._files.remove_folder_node(node)

    async def unlink(self, parent: str, name: str) -> None:
        self._check_writable(parent)
        node = await self._files.child(parent, name)
        await self._files.unlink_node(node)

    async def rename(self, parent: str, name: str, new_parent: str, new_name: str, replace: bool) -> None:
        self._check_writable(parent)
        self._check_writable(new_parent)
        node = await self._files.child(parent, name)
        await self._files.rename_node(node, new_parent, new_name, exclusive=not replace)

    # -- open files

    async def create(self, parent: str, name: str, mode: int, flags: int, exclusive: bool) -> tuple[Attributes, Opened]:
        self._check_writable(parent)
        request = rm.OpenFileRequest(mode=mode & 0o7777, host=self._host)
        try:
            node = await self._create(parent, name, request)
        except AlreadyExists:
            if exclusive:
                raise
            node = await self._files.child(parent, name)
            if node.folder:
                raise FuseError(errno.EISDIR) from None
        return self._attributes(node), await self._open(node, flags)

    async def _create(self, parent: str, name: str, request: rm.OpenFileRequest) -> rm.Node:
        try:
            return await self._files.create(parent, name, request)
        except ResourceExhausted:
            request.host = ""
            return await self._files.create(parent, name, request)

    async def open(self, key: str, flags: int) -> Opened:
        if view := self._view(key):
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise FuseError(errno.EROFS)
            return Opened(await view.open(key))
        return await self._open(self._known.get(key) or await self._files.node(key), flags)

    async def _open(self, node: rm.Node, flags: int) -> Opened:
        # The kernel reads also for who only writes, where it maps; and it has checked what is permitted.
        request = rm.OpenFileRequest(read=True, write=True, append=bool(flags & os.O_APPEND))
        opened = await self._files.open_node(node, request, made=True)
        memory = self._files.memory(opened)
        file = OpenOnMount(opened, memory)
        self._opened.setdefault(node.id, []).append(file)
        if memory is None:
            return Opened(file)
        self._told_ns.setdefault(node.id, self._mounts.modified_ns(memory))
        return Opened(file, self._mounts.descriptor(memory))

    def read(self, file: AnyFile, offset: int, size: int) -> Answer[Buffer]:
        if not isinstance(file, OpenOnMount):
            return file.read(offset, size)
        if size < LARGE_BYTES or file.memory is not None:
            return self._files.read(file.opened, offset, size)
        return self._read_large(file.opened, offset, size)

    async def _read_large(self, file: OpenedFile, offset: int, size: int) -> memoryview:
        """What lies elsewhere. The view goes to the kernel before anybody else can be lent its buffer."""
        with self._buffers.lend(size) as buffer:
            return buffer[: await self._files.read_into(file, offset, buffer)]

    async def write(self, file: AnyFile, offset: int, data: memoryview) -> int:
        if not isinstance(file, OpenOnMount):
            raise FuseError(errno.EROFS)
        await self._files.write(file.opened, offset, data)
        return len(data)

    async def flush(self, file: AnyFile) -> None:
        if not isinstance(file, OpenOnMount):
            return
        key, memory, now_ns = file.opened.node.id, file.memory, 0
        if memory is not None:
            now_ns = self._mounts.modified_ns(memory)
            if self._told_ns.get(key) != now_ns:  # by the kernel, in our place
                await self._files.until_saved()
                file.opened.used.size_bytes = memory.size_bytes
                file.opened.used.written = True
        await self._files.flush(file.opened)
        if memory is not None:
            self._told_ns[key] = now_ns

    def fsync(self, file: AnyFile, data_only: bool) -> Answer[None]:
        """Memory is all there is; but while that is saved nobody knows what of it the image will have."""
        waits = isinstance(file, OpenOnMount) and file.memory is not None and self._files.saving
        return self._files.until_saved() if waits else None

    async def release(self, file: AnyFile) -> None:
        if isinstance(file, OpenOnMount):
            key = file.opened.node.id
            self._opened[key].remove(file)
            if not self._opened[key]:
                del self._opened[key]
            await self._files.close(file.opened)

    async def fallocate(self, file: AnyFile, offset: int, length: int, mode: int) -> None:
        if mode:
            raise FuseError(errno.EOPNOTSUPP)
        if not isinstance(file, OpenOnMount):
            raise FuseError(errno.EROFS)
        await self._files.lengthen(file.opened, offset + length)

    def statfs(self) -> Space:
        return self._space()
