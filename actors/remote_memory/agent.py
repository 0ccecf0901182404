"""The memory agent: one on every host. As owner it keeps files (`owned`), as user it opens those of others (`using`).

What a program opens is asked of the manager once, and of the file's owner once; reads and writes go one-sidedly from
then on. Programs come by the mount and `fs exec`, which call `Files` in this process, or over gRPC with a session:
what is open in a session is closed with its stream, so a client that dies leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import cast

from everram.actors.remote_memory.asking import Manager
from everram.actors.remote_memory.files import Files, OpenedFile
from everram.actors.remote_memory.lifetimes import CLIENT, Lifetimes
from everram.actors.remote_memory.owned import FILES_MAX, OwnedFiles
from everram.actors.remote_memory.regions import REGIONS, Regions
from everram.actors.remote_memory.snapshot_files import SNAPSHOTS, SnapshotFiles
from everram.actors.remote_memory.tree import Tree
from everram.actors.remote_memory.using import Using
from everram.actors.remote_memory.views import Guests
from everram.actors.remote_memory.vmemfs_files import VMEMFS, VMemFSFiles
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.remote_memory_contract import MemoryAgentActor, MemoryAgentRef, RemoteMemoryRef
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.coordination.api import Delete, Range, WatchBatch, prefix
from everram.runtime.coordination.file_directory import INODES, Inode, dropped_prefix, inode_key
from everram.runtime.environment import Mount
from everram.runtime.errors import (
    Aborted,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from everram.runtime.formats.config import HostConfig
from everram.runtime.fuse.filesystem import Space

PIECE_BYTES = 256 * 1024
"""Of one message of a stream of bytes; a reader may be 32 of them behind."""
WRITE_BYTES_MAX = 1 << 20
RETRY_S = 0.5
"""While coordination does not answer."""
ORPHAN_S = 15.0
"""Longer than a manager takes from making a file to naming it."""


class MemoryAgent(MemoryAgentActor):
    """See the module."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._owner_messages = 0
        self._sessions: dict[str, dict[int, OpenedFile]] = {}  # open files by session and handle
        self._handles = 0

    async def on_start(self) -> None:
        environment, context = self.context.environment, self.context
        self._coordination = environment.coordination
        memory_id = (await context.ref(VMemFSRef).get_host(pb.Empty())).memory_id
        limit_bytes = self._config.files_bytes or environment.memory.capacity_bytes // 4
        self._owned = OwnedFiles(environment.memory, environment.channel, memory_id, limit_bytes)
        context.resources.callback(self._owned.close)
        self._manager = Manager(self._coordination, environment.clock, lambda host: context.ref(RemoteMemoryRef, host))
        self._using = Using(
            context.host,
            self._owned,
            environment.channel,
            self._coordination,
            environment.clock,
            lambda host: context.ref(MemoryAgentRef, host),
        )
        self._lifetimes = Lifetimes(context.host, self._coordination, self._end_file, context.spawn)
        self.files = Files(
            context.host, self._manager, self._using, self._lifetimes, environment.entropy, environment.clock
        )
        guests = Guests(lambda: context.ref(HypervisorRef))
        self._views = {
            REGIONS: Regions(guests, environment.memory),
            SNAPSHOTS: SnapshotFiles(guests, lambda: context.ref(NvmDeviceRef)),
            VMEMFS: VMemFSFiles(lambda: context.ref(VMemFSRef), environment.memory),
        }
        self._mounts: list[Mount] = []
        for mount in environment.mounts.found():
            self._begin_serving(mount)
        context.spawn(self._tidy(self._owned.ids()), name="tidy")

    # -- as owner

    async def make(self, request: rm.FileKey) -> pb.Empty:
        self._owner_messages += 1
        await self._owned.make(request)
        return pb.Empty()

    def attach(self, request: rm.FileKey) -> rm.Attachment:
        self._owner_messages += 1
        return self._owned.attach(request)

    def resize(self, request: rm.ResizeRequest) -> rm.Attachment:
        self._owner_messages += 1
        before = self._owned.resize(request.file, request.size_bytes, request.kind)
        answer = self._owned.attach(request.file)
        answer.before_bytes = before
        return answer

    async def drop(self, request: rm.FileKey) -> pb.Empty:
        self._owner_messages += 1
        if request.memory_id == self._owned.memory_id:
            await self._owned.drop(request.id)
        return pb.Empty()

    def quiesce(self, request: rm.QuiesceFiles) -> pb.Empty:
        self._owned.quiesce(request.on)
        return pb.Empty()

    async def _tidy(self, found: list[str]) -> None:
        """What an earlier incarnation of this host left half done; then whatever the directory has this host drop.

        `found`: the files that were here when this agent started.
        """
        await self._until_done(self._end_unlinked)
        await self._until_done(lambda: self._lifetimes.resume(lambda: self._sessions))
        self.context.spawn(self._until_done(lambda: self._remove_orphans(found)), name="orphans")
        while True:
            await self._until_done(self._follow_dropped)

    async def _until_done(self, work: Callable[[], Awaitable[None]]) -> None:
        """Again and again, while coordination does not answer."""
        while True:
            try:
                await work()
                return
            except EverramError as error:
                self.context.log.info("files are tidied later: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def _remove_orphans(self, found: list[str]) -> None:
        """A manager that died between making a file and naming it leaves memory that nobody will ever ask for. One that
        lives names it within a moment."""
        if suspects := [file_id for file_id in found if await self._is_orphan(file_id)]:
            await asyncio.sleep(ORPHAN_S)
        for file_id in suspects:
            if await self._is_orphan(file_id):
                self.context.log.info("file %s is in nobody's folder: its memory is given back", file_id)
                await self._owned.drop(file_id)

    async def _is_orphan(self, file_id: str) -> bool:
        _, inode = await self._coordination.range(Range(inode_key(file_id)))
        return not inode or Inode.read(file_id, inode[0]).host != self.context.host

    async def _end_unlinked(self) -> None:
        """What was unlinked while it was open here, before this host ended."""
        _, pairs = await self._coordination.range(prefix(INODES))
        for pair in pairs:
            inode = Inode.read(pair.key.removeprefix(INODES).decode(), pair)
            if inode.holder == self.context.host:
                self.files.keep_unlinked(inode.id)
                await self.files.end_unlinked(inode.id)

    async def _follow_dropped(self) -> None:
        """Give back what the directory says, as long as the watch lasts."""
        mine = prefix(dropped_prefix(self.context.host))
        revision, pairs = await self._coordination.range(mine)
        for pair in pairs:
            await self._drop_named(pair.key)
        watch = cast(AsyncGenerator[WatchBatch, None], self._coordination.watch(mine, revision + 1))
        async with aclosing(watch) as batches:
            async for batch in batches:
                for event in batch.events:
                    if not event.deleted:
                        await self._drop_named(event.kv.key)

    async def _drop_named(self, key: bytes) -> None:
        await self._owned.drop(key.rpartition(b"/")[2].decode())
        await self._coordination.txn((), (Delete(key),))

    async def _end_file(self, file_id: str) -> None:
        """Unlink a file whose creator has ended. Raises only where it may be tried again."""
        try:
            await self.files.unlink_id(file_id)
        except NotFound:
            pass
        except (Unavailable, DeadlineExceeded, Aborted):
            raise
        except EverramError as error:
            self.context.log.warning("file %s outlives its creator: %s", file_id, error.message)

    # -- sessions

    async def session(self, request: pb.Empty) -> AsyncIterator[rm.SessionKey]:
        name = self.context.environment.entropy.token()
        self._sessions[name] = {}
        try:
            yield rm.SessionKey(session=name)
            await asyncio.Event().wait()  # ends by being cancelled, with the stream
        finally:
            opened = self._sessions.pop(name)
            ending = self._end_session(name, list(opened.values()))
            try:
                self.context.spawn(ending, name="end of a session")
            except FailedPrecondition:
                pass  # this host ends: its next life finds what lived with the session

    async def _end_session(self, name: str, opened: list[OpenedFile]) -> None:
        for file in opened:
            await self._close(file)
        await self._lifetimes.end(f"{CLIENT}{self.context.host}:{name}")

    async def _close(self, file: OpenedFile) -> None:
        try:
            await self.files.close(file)
        except EverramError as error:
            self.context.log.info("the size of %s was not told: %s", file.node.name, error.message)

    def open(self, request: rm.OpenFileRequest) -> Awaitable[rm.OpenFile]:
        return self.context.later(self._open(request))

    async def _open(self, request: rm.OpenFileRequest) -> rm.OpenFile:
        self._session(request.session)
        file = await self.files.open(request)
        if request.session not in self._sessions:  # it ended meanwhile
            await self._close(file)
        self._handles += 1
        self._session(request.session)[self._handles] = file
        return rm.OpenFile(file=rm.Handle(session=request.session, handle=self._handles), node=file.node)

    async def read(self, request: rm.ReadRequest) -> AsyncIterator[rm.Piece]:
        file, offset = self._file(request.file), request.offset
        end = offset + request.length
        while offset < end:
            data = await self.files.read(file, offset, min(PIECE_BYTES, end - offset))
            if not data:
                return
            yield rm.Piece(data=data)
            offset += len(data)

    def write(self, request: rm.WriteRequest) -> Awaitable[rm.Written]:
        return self.context.later(self._write(request))

    async def _write(self, request: rm.WriteRequest) -> rm.Written:
        if len(request.data) > WRITE_BYTES_MAX:
            raise InvalidArgument(f"{len(request.data)} bytes in one write: send at most {WRITE_BYTES_MAX} (EINVAL)")
        file = self._file(request.file)
        offset = await self.files.write(file, request.offset, request.data)
        return rm.Written(offset=offset, size_bytes=file.used.size_bytes)

    def size(self, request: rm.Handle) -> Awaitable[rm.Written]:
        return self.context.later(self._size(self._file(request)))

    async def _size(self, file: OpenedFile) -> rm.Written:
        return rm.Written(size_bytes=await self.files.size(file))

    def truncate(self, request: rm.TruncateRequest) -> Awaitable[pb.Empty]:
        return self._empty(self.files.truncate(self._file(request.file), request.size_bytes))

    def flush(self, request: rm.Handle) -> Awaitable[pb.Empty]:
        return self._empty(self.files.flush(self._file(request)))

    def close(self, request: rm.Handle) -> Awaitable[pb.Empty]:
        file = self._file(request)
        del self._session(request.session)[request.handle]
        return self._empty(self.files.close(file))

    def _session(self, name: str) -> dict[int, OpenedFile]:
        if name not in self._sessions:
            raise FailedPrecondition("this session has ended: begin another, and open the file again (EBADF)")
        return self._sessions[name]

    def _file(self, handle: rm.Handle) -> OpenedFile:
        file = self._session(handle.session).get(handle.handle)
        if file is None:
            raise InvalidArgument(f"no file is open as {handle.handle} in this session (EBADF)")
        return file

    # -- paths

    def stat_path(self, request: rm.PathRequest) -> Awaitable[rm.Node]:
        return self.context.later(self.files.stat(request.path))

    def list_path(self, request: rm.PathRequest) -> Awaitable[rm.NodeList]:
        return self.context.later(self.files.list(request.path))

    def make_folder(self, request: rm.PathRequest) -> Awaitable[rm.Node]:
        return self.context.later(self.files.make_folder(request.path, request.mode))

    def remove(self, request: rm.PathRequest) -> Awaitable[pb.Empty]:
        return self._empty(self.files.unlink(request.path))

    def remove_folder_at(self, request: rm.PathRequest) -> Awaitable[pb.Empty]:
        return self._empty(self.files.remove_folder(request.path))

    def move(self, request: rm.MovePath) -> Awaitable[rm.Node]:
        return self.context.later(self.files.rename(request.path, request.new_path, exclusive=request.exclusive))

    def set_mode(self, request: rm.PathRequest) -> Awaitable[rm.Node]:
        return self.context.later(self.files.set_mode(request.path, request.mode))

    # -- mounts

    async def mount(self, request: rm.MountRequest) -> pb.Empty:
        mounts = self.context.environment.mounts
        self._begin_serving(await mounts.mount(request.folder, passthrough=request.passthrough))
        return pb.Empty()

    def _begin_serving(self, mount: Mount) -> None:
        self._mounts.append(mount)
        tree = Tree(
            self.context.host,
            self.files,
            self._views,
            self.context.environment.mounts,
            self._space,
            lambda work: self.context.spawn(work, name="forgotten"),
            mount.held(),
        )
        self.context.spawn(self._serve(mount, tree), name=f"mount {mount.folder}")

    async def _serve(self, mount: Mount, tree: Tree) -> None:
        """Until it is unmounted, by whomever."""
        self.context.log.info("serves the mount on %s", mount.folder or "a folder that was unmounted in use")
        await mount.serve(tree)
        tree.close()
        self._mounts.remove(mount)
        self.context.log.info("%s was unmounted", mount.folder)

    def _space(self) -> Space:
        limit_bytes = self._owned.limit_bytes
        free_bytes = max(0, limit_bytes - self._owned.size_bytes)
        return Space(limit_bytes, free_bytes, FILES_MAX, FILES_MAX - self._owned.count)

    def status(self, request: pb.Empty) -> rm.AgentStatus:
        counts = self._using.counts
        return rm.AgentStatus(
            files=self._owned.count,
            files_bytes=self._owned.size_bytes,
            limit_bytes=self._owned.limit_bytes,
            owner_messages=self._owner_messages,
            manager_messages=self._manager.messages,
            owner_asks=counts.owner_asks,
            one_sided_reads=counts.one_sided_reads,
            one_sided_writes=counts.one_sided_writes,
            local_reads=counts.local_reads,
            local_writes=counts.local_writes,
            open_files=len(self._using.files),
            sessions=len(self._sessions),
            mounts=[mount.folder for mount in self._mounts],
        )

    def _empty(self, work: Awaitable[object]) -> Awaitable[pb.Empty]:
        async def done() -> pb.Empty:
            await work
            return pb.Empty()

        return self.context.later(done())
