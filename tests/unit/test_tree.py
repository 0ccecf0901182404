"""The tree of a mount, over files that lie in a dictionary: what goes where, and which errno a refusal is."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.remote_memory import refusals
from everram.actors.remote_memory.files import Files
from everram.actors.remote_memory.owned import OwnedFiles
from everram.actors.remote_memory.regions import REGIONS, Regions
from everram.actors.remote_memory.snapshot_files import SNAPSHOTS, SnapshotFiles
from everram.actors.remote_memory.tree import LARGE_BYTES, Tree
from everram.actors.remote_memory.views import Guests
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.coordination.file_directory import ROOT_ID
from everram.runtime.environment import Memory, MemoryObject, NoMounts
from everram.runtime.errors import AlreadyExists, DataLoss, DeadlineExceeded, NotFound, ResourceExhausted
from everram.runtime.fuse.errors import errno_of
from everram.runtime.fuse.filesystem import ROOT_KEY, Changes, Kind, Space

HOST = "h1"


class FakeFiles:
    """What `Tree` asks of `Files`; every file is of this host."""

    def __init__(self) -> None:
        self.nodes = {ROOT_ID: rm.Node(id=ROOT_ID, folder=True, mode=0o755)}
        self.content: dict[str, bytearray] = {}
        self.pinned: Counter[str] = Counter()
        self.unlinked: set[str] = set()
        self.told: list[tuple[str, int]] = []
        self.asked_hosts: list[str] = []
        self.full: set[str] = set()
        self.far = False
        """Whether files are another host's."""
        self.saved = asyncio.Event()
        self.saved.set()
        self.let_go = asyncio.Event()
        """Before that no read into a buffer ends."""
        self.let_go.set()

    async def node(self, node_id: str) -> rm.Node:
        if node_id not in self.nodes:
            raise refusals.no_entry(node_id)
        return self.nodes[node_id]

    async def child(self, parent: str, name: str) -> rm.Node:
        for node in self.nodes.values():
            if (node.parent, node.name) == (parent, name):
                return node
        raise refusals.no_entry(name)

    async def children(self, folder_id: str) -> rm.NodeList:
        return rm.NodeList(nodes=[node for node in self.nodes.values() if node.parent == folder_id])

    async def create(self, parent: str, name: str, request: rm.OpenFileRequest) -> rm.Node:
        self.asked_hosts.append(request.host)
        if request.host in self.full:
            raise ResourceExhausted("no room (ENOSPC)")
        if any((node.parent, node.name) == (parent, name) for node in self.nodes.values()):
            raise refusals.exists(name)
        return self._add(parent, name, request.mode, folder=False)

    async def make_child_folder(self, parent: str, name: str, mode: int) -> rm.Node:
        return self._add(parent, name, mode, folder=True)

    def _add(self, parent: str, name: str, mode: int, *, folder: bool) -> rm.Node:
        node = rm.Node(id=f"{len(self.nodes):016x}", parent=parent, name=name, mode=mode, folder=folder, host=HOST)
        self.nodes[node.id] = node
        if not folder:
            self.content[node.id] = bytearray()
        return node

    async def open_node(self, node: rm.Node, request: rm.OpenFileRequest, *, made: bool) -> Any:
        assert made, "the kernel has checked what is permitted"
        return SimpleNamespace(node=node, used=SimpleNamespace(size_bytes=0, written=False), append=request.append)

    @property
    def saving(self) -> bool:
        return not self.saved.is_set()

    async def until_saved(self) -> None:
        await self.saved.wait()

    def memory(self, file: Any) -> MemoryObject | None:
        if self.far:
            return None
        content = self.content[file.node.id]
        return cast(MemoryObject, SimpleNamespace(size_bytes=len(content), content=content))

    async def read(self, file: Any, offset: int, size: int) -> bytes:
        return bytes(self.content[file.node.id][offset : offset + size])

    async def read_into(self, file: Any, offset: int, target: memoryview) -> int:
        await self.let_go.wait()
        data = self.content[file.node.id][offset : offset + len(target)]
        target[: len(data)] = data
        return len(data)

    async def write(self, file: Any, offset: int, data: memoryview) -> int:
        content = self.content[file.node.id]
        offset = len(content) if file.append else offset
        content[offset : offset + len(data)] = data
        return offset

    async def flush(self, file: Any) -> None:
        if file.used.written:
            file.used.written = False
            self.told.append((file.node.id, file.used.size_bytes))

    async def close(self, file: Any) -> None:
        await self.flush(file)

    async def change(self, change: rm.ChangeRequest) -> rm.Node:
        node = self.nodes[change.id]
        if change.HasField("mode"):
            node.mode = change.mode
        node.modified_ns = change.modified_ns or node.modified_ns
        return node

    async def resize(self, node_id: str, size_bytes: int) -> rm.Node:
        self.nodes[node_id].size_bytes = size_bytes
        return self.nodes[node_id]

    async def unlink_node(self, node: rm.Node) -> None:
        if node.folder:
            raise refusals.is_folder(node.name)
        self.unlinked.add(node.id)
        node.parent = node.name = ""

    async def remove_folder_node(self, node: rm.Node) -> None:
        if (await self.children(node.id)).nodes:
            raise refusals.not_empty(node.name)
        del self.nodes[node.id]

    async def rename_node(self, node: rm.Node, new_parent: str, name: str, *, exclusive: bool) -> rm.Node:
        if exclusive and any((one.parent, one.name) == (new_parent, name) for one in self.nodes.values()):
            raise AlreadyExists(f"{name} (EEXIST)")
        node.parent, node.name = new_parent, name
        return node

    def is_unlinked(self, node_id: str) -> bool:
        return node_id in self.unlinked

    async def end_unlinked(self, node_id: str) -> None:
        if not self.pinned[node_id]:
            self.unlinked.discard(node_id)
            del self.nodes[node_id]


class Stamped(NoMounts):
    """The kernel writes behind our back: a file's time is its content's length."""

    def modified_ns(self, memory: MemoryObject) -> int:
        return len(cast(Any, memory).content)

    def descriptor(self, memory: MemoryObject) -> int:
        return 77


class FakeHypervisor:
    async def list(self, request: pb.Empty) -> Any:
        region = pb.Region(name="data", guest_id="g1", size_bytes=5, arena="region.g1.data")
        return SimpleNamespace(guests=[pb.Guest(guest_id="g1", name="bank", regions=[region])])


class Arena:
    def open(self, name: str) -> Any:
        assert name == "region.g1.data"
        return SimpleNamespace(read=lambda offset, length: b"bytes and padding"[offset : offset + length])


class FakeDevice:
    """What `SnapshotFiles` asks of the NVM device, of region `data` of guest g1."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[nvm.SnapshotRecord, bytes]] = {}
        self.sequence = 0
        self.lost: set[str] = set()
        """Names of those whose bytes storage has lost."""

    def take(self, name: str, content: bytes, created_ns: int = 0) -> None:
        self.sequence += 1
        record = nvm.SnapshotRecord(
            guest_id="g1",
            region="data",
            name=name,
            sequence=self.sequence,
            size_bytes=len(content),
            created_ns=created_ns,
        )
        self.taken[name] = record, content

    async def snapshots(self, request: nvm.SnapshotFilter) -> nvm.SnapshotList:
        assert (request.guest_id, request.region, request.usage) == ("g1", "data", False)
        return nvm.SnapshotList(snapshots=[record for record, _ in self.taken.values()])

    async def check_snapshot(self, request: nvm.SnapshotName) -> nvm.SnapshotRecord:
        return self._find(request)[0]

    async def read_snapshot(self, request: nvm.ReadSnapshotRequest, *, timeout_s: float) -> nvm.SnapshotData:
        _, content = self._find(request.snapshot)
        if request.snapshot.name in self.lost:
            raise DataLoss("nvm/purged: slot 3 at offset 16432 does not match its checksum")
        return nvm.SnapshotData(data=content[request.offset : request.offset + request.length])

    def _find(self, named: nvm.SnapshotName) -> tuple[nvm.SnapshotRecord, bytes]:
        found = self.taken.get(named.name)
        if (named.guest_id, named.region) != ("g1", "data") or found is None:
            raise NotFound("there is no such snapshot")
        if named.sequence not in (0, found[0].sequence):
            raise NotFound("another has its name now")
        return found


class World:
    def __init__(self, held: tuple[str, ...] = ()) -> None:
        self.files, self.device = FakeFiles(), FakeDevice()
        self.later: list[Coroutine[Any, Any, None]] = []
        hypervisor = cast(Any, FakeHypervisor())
        guests = Guests(lambda: hypervisor)
        views = {
            REGIONS: Regions(guests, cast(Memory, Arena())),
            SNAPSHOTS: SnapshotFiles(guests, lambda: cast(Any, self.device)),
        }
        self.tree = Tree(
            HOST, cast(Files, self.files), views, Stamped(), lambda: Space(100, 50), self.later.append, held
        )


async def refused(work: Any) -> int:
    with pytest.raises(Exception) as caught:
        result = work()
        if hasattr(result, "__await__"):
            await result
    return errno_of(caught.value)


async def test_the_top_has_files_regions_and_snapshots_and_takes_nothing() -> None:
    tree = World().tree
    assert [entry.name for entry in await tree.readdir(ROOT_KEY)] == ["files", "regions", "snapshots"]
    assert (await tree.lookup(ROOT_KEY, "files")).key == ROOT_ID
    assert await refused(lambda: tree.lookup(ROOT_KEY, "other")) == errno.ENOENT
    assert await refused(lambda: tree.open(ROOT_KEY, os.O_RDONLY)) == errno.EISDIR
    for parent in (ROOT_KEY, REGIONS, "guest:g1", SNAPSHOTS, "snapshots:g1", "snapshots:g1/data"):
        assert await refused(lambda: tree.mkdir(parent, "x", 0o755)) == errno.EROFS  # noqa: B023
        assert await refused(lambda: tree.create(parent, "x", 0o644, os.O_RDWR, False)) == errno.EROFS  # noqa: B023
        assert await refused(lambda: tree.unlink(parent, "x")) == errno.EROFS  # noqa: B023
        assert await refused(lambda: tree.rename(ROOT_ID, "a", parent, "x", True)) == errno.EROFS  # noqa: B023
        assert await refused(lambda: tree.setattr(parent, None, Changes(mode=0))) == errno.EROFS  # noqa: B023


async def test_regions_are_read_only_and_end_where_they_end() -> None:
    tree = World().tree
    guest = await tree.lookup(REGIONS, "bank")
    region = await tree.lookup(guest.key, "data")
    assert (guest.kind, region.kind, region.mode, region.size_bytes) == (Kind.FOLDER, Kind.FILE, 0o444, 5)
    assert [entry.name for entry in await tree.readdir(guest.key)] == ["data"]
    assert await refused(lambda: tree.open(region.key, os.O_RDWR)) == errno.EROFS
    opened = await tree.open(region.key, os.O_RDONLY)
    assert opened.backing is None
    assert tree.read(opened.file, 0, 100) == b"bytes"
    assert tree.read(opened.file, 5, 100) == tree.read(opened.file, 50, 1) == b""
    assert await refused(lambda: tree.write(opened.file, 0, memoryview(b"x"))) == errno.EROFS
    await tree.flush(opened.file)
    await tree.release(opened.file)
    assert await refused(lambda: tree.lookup(REGIONS, "nobody")) == errno.ENOENT
    assert await refused(lambda: tree.lookup(guest.key, "nothing")) == errno.ENOENT


async def test_snapshots_are_found_by_guest_and_region_and_never_change() -> None:
    world = World()
    tree = world.tree
    world.device.take("before", b"content", created_ns=17)
    guest = await tree.lookup(SNAPSHOTS, "bank")
    region = await tree.lookup(guest.key, "data")
    taken = await tree.lookup(region.key, "before")
    assert [entry.name for entry in await tree.readdir(SNAPSHOTS)] == ["bank"]
    assert [entry.name for entry in await tree.readdir(guest.key)] == ["data"]
    assert [(entry.name, entry.key) for entry in await tree.readdir(region.key)] == [("before", taken.key)]
    assert (guest.kind, region.kind, taken.kind, taken.mode) == (Kind.FOLDER, Kind.FOLDER, Kind.FILE, 0o444)
    assert (taken.size_bytes, taken.modified_ns) == (7, 17)
    assert taken.valid_ns > 0, "the kernel need not ask again"
    assert taken.name_valid_ns == 0, "it may be removed"
    assert await tree.getattr(taken.key, None) == taken
    assert await tree.getattr(region.key, None) == region
    assert await refused(lambda: tree.open(taken.key, os.O_RDWR)) == errno.EROFS
    opened = (await tree.open(taken.key, os.O_RDONLY)).file
    assert await cast(Any, tree.read(opened, 3, 100)) == b"tent"
    assert await cast(Any, tree.read(opened, 7, 100)) == b""
    assert await refused(lambda: tree.write(opened, 0, memoryview(b"x"))) == errno.EROFS
    await tree.flush(opened)
    await tree.release(opened)
    for parent in (SNAPSHOTS, guest.key, region.key):
        assert await refused(lambda: tree.lookup(parent, "nothing")) == errno.ENOENT  # noqa: B023
    for key in ("snapshots:g2", "snapshots:g1/other"):
        assert await refused(lambda: tree.getattr(key, None)) == errno.ENOENT  # noqa: B023
        assert await refused(lambda: tree.readdir(key)) == errno.ENOENT  # noqa: B023


async def test_a_snapshot_that_was_removed_is_stale_whatever_has_its_name_since() -> None:
    world = World()
    tree = world.tree
    world.device.take("before", b"first")
    taken = await tree.lookup("snapshots:g1/data", "before")
    opened = (await tree.open(taken.key, os.O_RDONLY)).file
    world.device.lost.add("before")
    assert await refused(lambda: tree.read(opened, 0, 5)) == errno.EIO
    world.device.lost.clear()
    for again in (False, True):
        if again:
            world.device.take("before", b"second")
        else:
            del world.device.taken["before"]
        assert await refused(lambda: tree.read(opened, 0, 5)) == errno.ESTALE
        assert await refused(lambda: tree.getattr(taken.key, None)) == errno.ESTALE
        assert await refused(lambda: tree.open(taken.key, os.O_RDONLY)) == errno.ESTALE
    other = await tree.lookup("snapshots:g1/data", "before")
    assert (other.key == taken.key, other.size_bytes) == (False, 6)


async def test_a_file_is_made_here_and_elsewhere_only_without_room() -> None:
    world = World()
    attributes, opened = await world.tree.create(ROOT_ID, "a", 0o640, os.O_RDWR, True)
    assert (attributes.mode, opened.backing) == (0o640, 77)
    assert await world.tree.write(opened.file, 0, memoryview(b"hello")) == 5
    assert await cast(Any, world.tree.read(opened.file, 1, 9)) == b"ello"
    assert await refused(lambda: world.tree.create(ROOT_ID, "a", 0o640, os.O_RDWR, True)) == errno.EEXIST
    again, _ = await world.tree.create(ROOT_ID, "a", 0o640, os.O_RDWR, False)
    assert again.key == attributes.key
    world.files.full.add(HOST)
    world.files.asked_hosts.clear()
    await world.tree.create(ROOT_ID, "b", 0o640, os.O_RDWR, True)
    assert world.files.asked_hosts == [HOST, ""]


async def test_large_reads_of_others_files_share_buffers_but_not_bytes() -> None:
    world = World()
    world.files.far = True
    _, opened = await world.tree.create(ROOT_ID, "a", 0o640, os.O_RDWR, True)
    assert opened.backing is None
    content = os.urandom(3 * LARGE_BYTES)
    await world.tree.write(opened.file, 0, memoryview(content))

    async def read(offset: int, size: int) -> memoryview:
        return cast(memoryview, await cast(Any, world.tree.read(opened.file, offset, size)))

    first = await read(0, LARGE_BYTES)
    assert first == content[:LARGE_BYTES]
    second = await read(2 * LARGE_BYTES, 2 * LARGE_BYTES)
    assert second == content[2 * LARGE_BYTES :]
    assert second.obj is first.obj, "the first has gone to the kernel by now"
    world.files.let_go.clear()
    reading = [asyncio.ensure_future(read(n * LARGE_BYTES, LARGE_BYTES)) for n in range(3)]
    await asyncio.sleep(0)
    reading[0].cancel()
    await asyncio.sleep(0)
    world.files.let_go.set()
    others = await asyncio.gather(*reading[1:])
    assert others == [content[LARGE_BYTES : 2 * LARGE_BYTES], content[2 * LARGE_BYTES :]]
    third = await read(0, LARGE_BYTES)
    assert third.obj in [other.obj for other in others], "not what the one that was cancelled may still be read into"


async def test_what_the_kernel_wrote_is_told_once_and_before_a_time_is_set() -> None:
    world = World()
    attributes, opened = await world.tree.create(ROOT_ID, "a", 0o644, os.O_RDWR, True)
    key = attributes.key
    await world.tree.flush(opened.file)
    assert world.files.told == []
    world.files.content[key] += b"12345"  # by passthrough
    opened.file.memory.size_bytes = 5
    opened.file.memory.content[:] = world.files.content[key]
    await world.tree.flush(opened.file)
    await world.tree.flush(opened.file)
    assert world.files.told == [(key, 5)]
    opened.file.memory.content += b"6"
    opened.file.memory.size_bytes = 6
    changed = await world.tree.setattr(key, None, Changes(modified_ns=42))
    await world.tree.release(opened.file)
    assert (world.files.told, changed.modified_ns) == ([(key, 5), (key, 6)], 42)


async def test_nobody_is_told_that_bytes_are_kept_while_memory_is_saved() -> None:
    world = World()
    owned = OwnedFiles(cast(Any, SimpleNamespace(names=list)), cast(Any, None), "memory", 0)
    world.files.saved = owned._open
    _, opened = await world.tree.create(ROOT_ID, "a", 0o644, os.O_RDWR, True)
    owned.quiesce(on=True)
    await world.tree.flush(opened.file)  # it has written nothing
    opened.file.memory.content += b"x"  # by passthrough, which asks nobody
    waiting = [
        asyncio.ensure_future(cast(Any, world.tree.fsync(opened.file, False))),
        asyncio.ensure_future(world.tree.flush(opened.file)),
    ]
    await asyncio.sleep(0)
    assert not [task for task in waiting if task.done()]
    owned.quiesce(on=False)
    await asyncio.gather(*waiting)
    assert world.tree.fsync(opened.file, False) is None
    world.files.far = True
    _, opened = await world.tree.create(ROOT_ID, "b", 0o644, os.O_RDWR, True)
    owned.quiesce(on=True)
    assert world.tree.fsync(opened.file, False) is None, "it lies elsewhere"


async def test_appends_go_to_the_end_whatever_the_kernel_thinks() -> None:
    world = World()
    _, opened = await world.tree.create(ROOT_ID, "a", 0o644, os.O_WRONLY | os.O_APPEND, True)
    for piece in (b"ab", b"cd"):
        assert await world.tree.write(opened.file, 0, memoryview(piece)) == 2
    assert list(world.files.content.values()) == [bytearray(b"abcd")]


async def test_refusals_are_the_errnos_that_they_name() -> None:
    tree = World().tree
    await tree.mkdir(ROOT_ID, "d", 0o755)
    folder = await tree.lookup(ROOT_ID, "d")
    await tree.create(folder.key, "f", 0o644, os.O_RDWR, True)
    assert await refused(lambda: tree.rmdir(ROOT_ID, "d")) == errno.ENOTEMPTY
    assert await refused(lambda: tree.unlink(ROOT_ID, "d")) == errno.EISDIR
    assert await refused(lambda: tree.lookup(folder.key, "g")) == errno.ENOENT
    assert await refused(lambda: tree.rename(folder.key, "f", ROOT_ID, "d", False)) == errno.EEXIST
    assert await refused(lambda: tree.setattr(folder.key, None, Changes(uid=os.getuid() + 1))) == errno.EPERM
    assert errno_of(refusals.stale("a", "it went")) == errno.ESTALE
    assert errno_of(DeadlineExceeded("h2 cannot be reached (ETIMEDOUT)")) == errno.ETIMEDOUT
    assert errno_of(ResourceExhausted("no such thing (ENOTHING)")) == errno.EIO


async def test_an_unlinked_file_goes_when_the_kernel_forgets_it() -> None:
    world = World()
    attributes, _ = await world.tree.create(ROOT_ID, "a", 0o644, os.O_RDWR, True)
    await world.tree.unlink(ROOT_ID, "a")
    assert attributes.key in world.files.nodes
    world.tree.forget(attributes.key)
    (ending,) = world.later
    await ending
    assert attributes.key not in world.files.nodes


async def test_what_a_predecessor_had_open_is_pinned_until_it_is_forgotten() -> None:
    world = World(held=("0123", "region:g1/data", "snapshot:g1/data/before/1", ROOT_KEY))
    assert world.files.pinned == Counter({"0123": 1})
    world.tree.forget("0123")
    world.tree.forget("0123")
    assert world.files.pinned["0123"] == 0
    assert world.later == []
