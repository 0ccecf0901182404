"""What programs do with files, wherever those lie: one object an agent, used by its messages and by the mount.

    file = await files.open(rm.OpenFileRequest(path="a/b", read=True, write=True, create=True, mode=0o644))
    await files.write(file, 0, b"...")
    data = await files.read(file, 0, 4096)
    await files.close(file)

Coherence. Reads and writes meet in the owner's memory, in no order but that of their arrival: nothing is cached here
but a file's size. Who opens a file after another has closed it sees all that this one wrote (close-to-open). That the
others made it longer or shorter while it is open here is seen at the next open, or at the first access that its owner
refuses. Appends never overwrite each other. Nothing else is promised across hosts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from everram.actors.remote_memory.asking import ASK_TIMEOUT_S, Manager
from everram.actors.remote_memory.lifetimes import Lifetimes
from everram.actors.remote_memory.namespace import READ, WRITE, check_access, check_name, split
from everram.actors.remote_memory.refusals import bad_handle, exists, is_folder
from everram.actors.remote_memory.using import UsedFile, Using
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.environment import Clock, Entropy, MemoryObject
from everram.runtime.errors import (
    AlreadyExists,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    Unavailable,
)

CREATE_TRIES = 10
"""Of opening what is created and removed by others at the same time."""


@dataclass(slots=True, eq=False)
class OpenedFile:
    """One open of a file."""

    node: rm.Node
    used: UsedFile
    readable: bool
    writable: bool
    append: bool
    closed: bool = field(default=False)


class Files:
    """See the module."""

    def __init__(
        self, host: str, manager: Manager, using: Using, lifetimes: Lifetimes, entropy: Entropy, clock: Clock
    ) -> None:
        self._host, self._manager, self._using, self._lifetimes = host, manager, using, lifetimes
        self._entropy, self._clock = entropy, clock
        self._unlinked: set[str] = set()  # ids of files that were unlinked while they were open here
        self.pinned: Counter[str] = Counter()
        """Ids of files that programs have open on a mount since before this agent: it has not opened them itself."""

    # -- open files

    async def open(self, request: rm.OpenFileRequest) -> OpenedFile:
        """Raises NotFound, AlreadyExists, PermissionDenied, FailedPrecondition (a folder, or its bytes are gone)."""
        for left in reversed(range(CREATE_TRIES)):
            try:
                node, made = await self._find_or_create(request)
                return await self.open_node(node, request, made=made)
            except AlreadyExists:
                if request.exclusive or not left:
                    raise
        raise AssertionError

    async def open_node(self, node: rm.Node, request: rm.OpenFileRequest, *, made: bool = False) -> OpenedFile:
        if node.folder:
            raise is_folder(node.name)
        if not made:  # whoever creates a file may use it, whatever its mode
            check_access(node, READ * request.read | WRITE * (request.write or request.truncate))
        used = await self._using.open(node)
        file = OpenedFile(node, used, request.read, request.write, request.append)
        if request.truncate and used.size_bytes:
            await self._using.resize(used, 0, rm.EXACTLY)
        return file

    async def _find_or_create(self, request: rm.OpenFileRequest) -> tuple[rm.Node, bool]:
        try:
            node = await self.resolve(request.path)
            if request.create and request.exclusive:
                raise exists(request.path)
            return node, False
        except NotFound:
            if not request.create:
                raise
        above, name = split(request.path)
        parent = await self.resolve(above)
        return await self.create(parent.id, name, request), True

    async def create(self, parent: str, name: str, request: rm.OpenFileRequest) -> rm.Node:
        """A new file in a folder. Raises AlreadyExists."""
        create = rm.CreateRequest(
            id=self._entropy.token(),
            parent=parent,
            name=name,
            mode=request.mode or 0o644,
            host=request.host,
            persistent=request.persistent,
            creator=self._lifetimes.creator_of(request.creator, request.session),
            keeper=self._host,
            modified_ns=self._clock.wall_ns(),
        )
        made = await self._manager.ask(lambda ref: ref.create(create, timeout_s=ASK_TIMEOUT_S))
        self._lifetimes.created(create.creator)
        return made

    async def read(self, file: OpenedFile, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file."""
        if not file.readable or file.closed:
            raise bad_handle(file.node.name, "reading")
        return await self._using.read(file.used, offset, length)

    async def read_into(self, file: OpenedFile, offset: int, target: memoryview) -> int:
        """As `Using.read_into`."""
        if not file.readable or file.closed:
            raise bad_handle(file.node.name, "reading")
        return await self._using.read_into(file.used, offset, target)

    async def write(self, file: OpenedFile, offset: int, data: bytes | memoryview) -> int:
        """Where it went."""
        if not file.writable or file.closed:
            raise bad_handle(file.node.name, "writing")
        if file.append:
            return await self._using.append(file.used, data)
        if data:
            await self._using.write(file.used, offset, data)
        return offset

    async def size(self, file: OpenedFile) -> int:
        """As its owner says it now."""
        return await self._using.refresh(file.used)

    async def truncate(self, file: OpenedFile, size_bytes: int) -> None:
        if not file.writable or file.closed:
            raise bad_handle(file.node.name, "writing")
        await self._using.resize(file.used, size_bytes, rm.EXACTLY)

    async def lengthen(self, file: OpenedFile, size_bytes: int) -> None:
        """To at least this size."""
        await self._using.resize(file.used, size_bytes, rm.AT_LEAST)

    async def flush(self, file: OpenedFile) -> None:
        """Tell the manager the size, if this host has changed it; the bytes are where they belong already."""
        used = file.used
        if not used.written:
            return
        used.written = False
        change = rm.ChangeRequest(id=file.node.id, size_bytes=used.size_bytes, modified_ns=self._clock.wall_ns())
        try:
            await self._manager.ask(lambda ref: ref.change(change, timeout_s=ASK_TIMEOUT_S))
        except NotFound:
            pass  # removed meanwhile
        except EverramError:
            used.written = True
            raise

    async def close(self, file: OpenedFile) -> None:
        """Idempotent. It is closed even if this raises."""
        if file.closed:
            return
        file.closed = True
        try:
            await self.flush(file)
        finally:
            self._using.close(file.used)
            await self.end_unlinked(file.node.id)

    def is_open(self, node_id: str) -> bool:
        return node_id in self._using.files or self.pinned[node_id] > 0

    def is_unlinked(self, node_id: str) -> bool:
        """Whether it waits for its last user here."""
        return node_id in self._unlinked

    async def end_unlinked(self, node_id: str) -> None:
        """If it has no name any more and nobody here has it open, it goes for good."""
        if node_id in self._unlinked and not self.is_open(node_id):
            self._unlinked.discard(node_id)
            await self.release(node_id)

    def keep_unlinked(self, node_id: str) -> None:
        """It had lost its name before this agent began, and is open here still."""
        self._unlinked.add(node_id)

    def memory(self, file: OpenedFile) -> MemoryObject | None:
        """Where it lies, if that is this host. Raises FailedPrecondition if it is gone."""
        return self._using.memory(file.used)

    @property
    def saving(self) -> bool:
        """Whether this host's memory is being saved."""
        return self._using.saving

    async def until_saved(self) -> None:
        await self._using.until_saved()

    # -- names

    async def resolve(self, path: str, access: int = 0, base: str = "") -> rm.Node:
        """The node at the end of a path, which begins at the root or at the folder with the id `base`."""
        request = rm.ResolveRequest(base=base, path=path, access=access)
        return await self._manager.ask(lambda ref: ref.resolve(request, timeout_s=ASK_TIMEOUT_S))

    async def stat(self, path: str) -> rm.Node:
        """With its size as the owner says it; `lost` says why not."""
        return await self._with_size(await self.resolve(path))

    async def node(self, node_id: str) -> rm.Node:
        """As `stat`, also of a file that was unlinked and is open."""
        key = rm.NodeKey(id=node_id)
        return await self._with_size(await self._manager.ask(lambda ref: ref.stat(key, timeout_s=ASK_TIMEOUT_S)))

    async def _with_size(self, node: rm.Node) -> rm.Node:
        if not node.folder:
            try:
                used = await self._using.open(node)
                node.size_bytes = used.size_bytes
                self._using.close(used)
            except (FailedPrecondition, Unavailable, DeadlineExceeded) as error:
                node.lost = error.message
        return node

    async def child(self, parent: str, name: str) -> rm.Node:
        """What has that name in a folder, with its size as last told."""
        check_name(name)
        return await self.resolve(name, base=parent)

    async def children(self, folder_id: str) -> rm.NodeList:
        """With sizes as last told."""
        key = rm.NodeKey(id=folder_id)
        return await self._manager.ask(lambda ref: ref.list(key, timeout_s=ASK_TIMEOUT_S))

    async def list(self, path: str) -> rm.NodeList:
        """With sizes as last told."""
        folder = await self.resolve(path)
        if not folder.folder:
            return rm.NodeList(nodes=[folder])
        return await self.children(folder.id)

    async def make_folder(self, path: str, mode: int) -> rm.Node:
        above, name = split(path)
        return await self.make_child_folder((await self.resolve(above)).id, name, mode)

    async def make_child_folder(self, parent: str, name: str, mode: int) -> rm.Node:
        create = rm.CreateRequest(
            id=self._entropy.token(),
            parent=parent,
            name=name,
            folder=True,
            mode=mode or 0o755,
            modified_ns=self._clock.wall_ns(),
        )
        return await self._manager.ask(lambda ref: ref.create(create, timeout_s=ASK_TIMEOUT_S))

    async def unlink(self, path: str) -> None:
        await self.unlink_node(await self._entry(path))

    async def unlink_id(self, node_id: str) -> None:
        """The file itself, whatever its name is."""
        key = rm.NodeKey(id=node_id)
        node = await self._manager.ask(lambda ref: ref.stat(key, timeout_s=ASK_TIMEOUT_S))
        if not node.holder:
            await self.unlink_node(node)

    async def unlink_node(self, node: rm.Node) -> None:
        """It lives on while it is open here. Elsewhere it becomes stale."""
        request = rm.UnlinkRequest(parent=node.parent, name=node.name, id=node.id, holder=self._holder(node.id))
        gone = await self._manager.ask(lambda ref: ref.unlink(request, timeout_s=ASK_TIMEOUT_S), gone=node)
        await self._unlinked_here(gone.id, request.holder)

    async def remove_folder(self, path: str) -> None:
        await self.remove_folder_node(await self._entry(path))

    async def remove_folder_node(self, node: rm.Node) -> None:
        request = rm.UnlinkRequest(parent=node.parent, name=node.name, id=node.id)
        await self._manager.ask(lambda ref: ref.remove_folder(request, timeout_s=ASK_TIMEOUT_S), gone=node)

    async def rename(self, path: str, new_path: str, *, exclusive: bool = False) -> rm.Node:
        above, name = split(new_path)
        return await self.rename_node(
            await self._entry(path), (await self.resolve(above)).id, name, exclusive=exclusive
        )

    async def rename_node(self, node: rm.Node, new_parent: str, name: str, *, exclusive: bool = False) -> rm.Node:
        """`new_parent`: id of the folder."""
        replaced = ""
        if not exclusive:
            try:
                replaced = (await self.resolve(name, base=new_parent)).id
            except NotFound:
                pass
        request = rm.RenameRequest(
            parent=node.parent,
            name=node.name,
            new_parent=new_parent,
            new_name=name,
            id=node.id,
            exclusive=exclusive,
            holder=self._holder(replaced),
        )
        renamed = await self._manager.ask(lambda ref: ref.rename(request, timeout_s=ASK_TIMEOUT_S))
        if replaced != node.id:
            await self._unlinked_here(replaced, request.holder)
        return renamed

    async def set_mode(self, path: str, mode: int) -> rm.Node:
        return await self.change(rm.ChangeRequest(id=(await self.resolve(path)).id, mode=mode))

    async def change(self, change: rm.ChangeRequest) -> rm.Node:
        return await self._manager.ask(lambda ref: ref.change(change, timeout_s=ASK_TIMEOUT_S))

    async def resize(self, node_id: str, size_bytes: int) -> rm.Node:
        """Whether it is open here or not."""
        change = rm.ChangeRequest(id=node_id, size_bytes=size_bytes, modified_ns=self._clock.wall_ns())
        used = self._using.files.get(node_id)
        if used is None:
            change.resize = True
        else:
            await self._using.resize(used, size_bytes, rm.EXACTLY)
        return await self.change(change)

    async def release(self, node_id: str) -> None:
        """An unlinked file that nobody here has open any more goes for good."""
        key = rm.NodeKey(id=node_id)
        try:
            await self._manager.ask(lambda ref: ref.release(key, timeout_s=ASK_TIMEOUT_S))
        except NotFound:
            pass

    async def _entry(self, path: str) -> rm.Node:
        """The node at a path, which is not the root."""
        split(path)
        return await self.resolve(path)

    def _holder(self, node_id: str) -> str:
        return self._host if self.is_open(node_id) else ""

    async def _unlinked_here(self, node_id: str, holder: str) -> None:
        """A file without a name that was open here when it lost it, and may have been closed meanwhile."""
        if holder:
            self._unlinked.add(node_id)
            await self.end_unlinked(node_id)
