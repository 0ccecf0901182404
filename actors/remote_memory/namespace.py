"""The namespace's decisions: what an operation reads, and the one transaction that it makes of it. Awaits nothing.

    steps = unlink(UnlinkRequest(parent="1", name="a"))
    ranges = next(steps)                     # what to read first
    ranges = steps.send(pairs)               # ... and next; ends with StopIteration(Plan)

An operation is a generator: it yields ranges, gets their pairs, and returns a `Plan` or raises a refusal. Whatever it
read is compared by its plan, so if anything of it has changed meanwhile the transaction fails and the operation begins
anew: operations are serializable however they interleave, whether or not there are two managers for a moment.
Operations that a caller may repeat, because the first answer was lost, know by the node's id that they are done.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from everram.actors.remote_memory.refusals import (
    bad_name,
    denied,
    exists,
    into_itself,
    is_folder,
    no_entry,
    no_folder,
    not_empty,
    root,
)
from everram.runtime.contracts.remote_memory_pb2 import (
    ChangeRequest,
    CreateRequest,
    RenameRequest,
    ResolveRequest,
    UnlinkRequest,
)
from everram.runtime.coordination.api import Compare, Delete, KeyValue, Put, Range, Relation, Target, prefix, prefix_end
from everram.runtime.coordination.directory import decode, encode
from everram.runtime.coordination.file_directory import (
    DROPPED,
    NAME_BYTES_MAX,
    ROOT_ID,
    ROOT_INODE,
    Inode,
    created_key,
    dropped_key,
    entries_prefix,
    entry_key,
    inode_key,
)
from everram.runtime.errors import DataLoss

READ, WRITE, SEARCH = 4, 2, 1
"""As in a mode's bits of the owner, who is the one principal that there is until identities arrive."""
WORDS = {READ: "reading", WRITE: "writing", SEARCH: "searching"}
MODE_BITS = 0o7777
RANGES_MAX = 100
"""In one reading: etcd takes 128 operations in a transaction."""


@dataclass(frozen=True, slots=True)
class Plan:
    compare: tuple[Compare, ...]
    success: tuple[Put | Delete, ...]
    """Empty: there is nothing to change."""
    node: Inode
    """How the node of the operation is afterwards, or was before it was removed."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a new file lies."""

    host: str = ""
    memory_id: str = ""


Ranges = Sequence[Range]
Pairs = Sequence[Sequence[KeyValue]]
Steps = Generator[Ranges, Pairs, Plan]


@dataclass(slots=True)
class _Reading:
    """What an operation has read so far, as comparisons."""

    compare: list[Compare] = field(default_factory=list)

    def pair(self, key: bytes) -> Generator[Ranges, Pairs, KeyValue | None]:
        ((*found,),) = yield (Range(key),)
        pair = found[0] if found else None
        self.compare.append(Compare(key, Target.MOD, Relation.EQUAL, pair.mod_revision if pair else 0))
        return pair

    def find_inode(self, node_id: str) -> Generator[Ranges, Pairs, Inode | None]:
        pair = yield from self.pair(inode_key(node_id))
        if pair is None:
            return ROOT_INODE if node_id == ROOT_ID else None
        return Inode.read(node_id, pair)

    def inode(self, node_id: str, name: str = "") -> Generator[Ranges, Pairs, Inode]:
        found = yield from self.find_inode(node_id)
        if found is None:
            raise no_entry(name or node_id)
        return found

    def folder(self, node_id: str, access: int) -> Generator[Ranges, Pairs, Inode]:
        found = yield from self.inode(node_id)
        check_folder(found, access)
        return found

    def entry(self, parent: str, name: str) -> Generator[Ranges, Pairs, str]:
        """The id that the name stands for; empty if there is none."""
        pair = yield from self.pair(entry_key(parent, name))
        return _id_in(pair) if pair is not None else ""

    def empty(self, folder: Inode) -> Generator[Ranges, Pairs, None]:
        """Raises unless the folder is empty, and has the plan insist on it."""
        entries = entries_prefix(folder.id)
        ((*found,),) = yield (Range(entries, prefix_end(entries), limit=1),)
        if found:
            raise not_empty(folder.name)
        self.compare.append(Compare(entries, Target.VERSION, Relation.EQUAL, 0, prefix_end(entries)))

    def plan(self, node: Inode, *success: Put | Delete) -> Plan:
        return Plan(tuple(self.compare), success, node)


class _Moded(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def mode(self) -> int: ...


def check_access(node: _Moded, access: int) -> None:
    """Raises PermissionDenied."""
    for bit in (READ, WRITE, SEARCH):
        if access & bit and not node.mode & bit << 6:
            raise denied(node.name or "/", WORDS[bit])


def check_folder(node: Inode, access: int) -> None:
    if not node.folder:
        raise no_folder(node.name)
    check_access(node, access)


def check_name(name: str) -> None:
    """Raises InvalidArgument."""
    if len(name.encode()) > NAME_BYTES_MAX:
        raise bad_name(name, "ENAMETOOLONG")
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise bad_name(name)


def create(request: CreateRequest, placed: Placed) -> Steps:
    check_name(request.name)
    read = _Reading()
    parent = yield from read.folder(request.parent, WRITE | SEARCH)
    there = yield from read.entry(parent.id, request.name)
    known = yield from read.find_inode(request.id)
    if known is not None:
        return read.plan(known)  # asked again; it may have another name by now
    if there:
        raise exists(request.name)
    node = Inode(
        id=request.id,
        folder=request.folder,
        mode=request.mode & MODE_BITS,
        parent=parent.id,
        name=request.name,
        modified_ns=request.modified_ns,
        host=placed.host,
        memory_id=placed.memory_id,
        persistent=request.persistent,
        creator=request.creator,
        keeper=request.keeper if request.creator else "",
    )
    created = [Put(created_key(node.keeper, node.creator, node.id), b"{}")] if node.creator else []
    return read.plan(node, _put(node), Put(entry_key(parent.id, node.name), encode({"id": node.id})), *created)


def unlink(request: UnlinkRequest) -> Steps:
    read = _Reading()
    node = yield from _named(read, request)
    if node.folder:
        raise is_folder(request.name)
    return read.plan(node, Delete(entry_key(request.parent, request.name)), *_gone(node, request.holder))


def remove_folder(request: UnlinkRequest) -> Steps:
    read = _Reading()
    node = yield from _named(read, request)
    if not node.folder:
        raise no_folder(request.name)
    yield from read.empty(node)
    return read.plan(node, Delete(entry_key(request.parent, request.name)), Delete(inode_key(node.id)))


def release(node_id: str) -> Steps:
    """An unlinked file that was still open somewhere goes for good."""
    read = _Reading()
    node = yield from read.inode(node_id)
    return read.plan(node, *_gone(node, "")) if node.holder else read.plan(node)


def change(request: ChangeRequest) -> Steps:
    read = _Reading()
    node = yield from read.inode(request.id)
    changed = node.changed(modified_ns=request.modified_ns or node.modified_ns)
    if request.HasField("mode"):
        changed = changed.changed(mode=request.mode & MODE_BITS)
    if request.HasField("size_bytes") and not node.folder:
        changed = changed.changed(size=request.size_bytes)
    return read.plan(changed, _put(changed)) if changed != node else read.plan(node)


def rename(request: RenameRequest) -> Steps:
    check_name(request.new_name)
    read = _Reading()
    source = yield from read.folder(request.parent, WRITE | SEARCH)
    target = yield from read.folder(request.new_parent, WRITE | SEARCH)
    moved = yield from read.entry(source.id, request.name)
    there = yield from read.entry(target.id, request.new_name)
    if request.id and there == request.id and moved != request.id:
        return read.plan((yield from read.inode(there)))  # asked again
    if not moved or (request.id and moved != request.id):
        raise no_entry(request.name)
    node = yield from read.inode(moved, request.name)
    if moved == there:
        return read.plan(node)
    if node.folder:
        yield from _not_below(read, target, node)
    gone: list[Put | Delete] = []
    if there:
        gone = yield from _replaced(read, request, node, there)
    renamed = node.changed(parent=target.id, name=request.new_name)
    entry = Put(entry_key(target.id, renamed.name), encode({"id": moved}))
    return read.plan(renamed, Delete(entry_key(source.id, request.name)), entry, _put(renamed), *gone)


def _replaced(
    read: _Reading, request: RenameRequest, node: Inode, there: str
) -> Generator[Ranges, Pairs, list[Put | Delete]]:
    """What becomes of the node whose name another takes."""
    if request.exclusive:
        raise exists(request.new_name)
    old = yield from read.inode(there, request.new_name)
    if old.folder and not node.folder:
        raise is_folder(request.new_name)
    if node.folder and not old.folder:
        raise no_folder(request.new_name)
    if not old.folder:
        return _gone(old, request.holder)
    yield from read.empty(old)
    return [Delete(inode_key(old.id))]


def _not_below(read: _Reading, target: Inode, node: Inode) -> Generator[Ranges, Pairs, None]:
    """Raises where `node` is among the ancestors of `target`. Each of them is compared: a rename of one of them at the
    same time, which could close a circle, makes this one begin anew."""
    above = target
    while True:
        if above.id == node.id:
            raise into_itself(node.name)
        if above.id == ROOT_ID:
            return
        above = yield from read.inode(above.parent)


def _named(read: _Reading, request: UnlinkRequest) -> Generator[Ranges, Pairs, Inode]:
    """The node whose name is to be taken away."""
    parent = yield from read.folder(request.parent, WRITE | SEARCH)
    node_id = yield from read.entry(parent.id, request.name)
    if not node_id or (request.id and node_id != request.id):
        raise no_entry(request.name)
    return (yield from read.inode(node_id, request.name))


def _gone(node: Inode, holder: str) -> list[Put | Delete]:
    """A file without a name: gone for good, or still open at `holder`."""
    changes: list[Put | Delete] = []
    if holder:
        changes.append(_put(node.changed(parent="", name="", holder=holder, creator="")))
    else:
        dropped = Put(dropped_key(node.host, node.id), encode({"memory_id": node.memory_id}))
        changes += [Delete(inode_key(node.id)), dropped]
    if node.creator:
        changes.append(Delete(created_key(node.keeper, node.creator, node.id)))
    return changes


def dropped(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """(host, id, memory_id) of the files that are gone for good by a plan."""
    for op in plan.success:
        if isinstance(op, Put) and op.key.startswith(DROPPED):
            host, _, node_id = op.key.removeprefix(DROPPED).decode().partition("/")
            yield host, node_id, str(decode(op.value)["memory_id"])


# -- what only reads


def resolve(request: ResolveRequest) -> Steps:
    """The node at the end of a path; its plan changes nothing."""
    read = _Reading()
    node = yield from read.inode(request.base or ROOT_ID)
    for name in parts(request.path):
        check_folder(node, SEARCH)
        found = yield from read.entry(node.id, name)
        if not found:
            raise no_entry(name)
        node = yield from read.inode(found, name)
    check_access(node, request.access)
    return read.plan(node)


def stat(node_id: str) -> Steps:
    read = _Reading()
    return read.plan((yield from read.inode(node_id)))


def listing(node_id: str) -> Generator[Ranges, Pairs, list[Inode]]:
    """What a folder has, by name. Names that vanish meanwhile may be missing."""
    folder = yield from _Reading().folder(node_id, READ)
    entries = entries_prefix(folder.id)
    ((*pairs,),) = yield (prefix(entries),)
    names = {pair.key.removeprefix(entries).decode(): _id_in(pair) for pair in pairs}
    nodes: list[Inode] = []
    for some in _chunks(list(names.items())):
        found = yield [Range(inode_key(node_id)) for _, node_id in some]
        for (name, node_id), inode in zip(some, found, strict=True):
            if inode:
                nodes.append(Inode.read(node_id, inode[0]).changed(parent=folder.id, name=name))
    return nodes


def parts(path: str) -> list[str]:
    """The names in a path. Raises InvalidArgument."""
    names = [name for name in path.split("/") if name and name != "."]
    for name in names:
        check_name(name)
    return names


def split(path: str) -> tuple[str, str]:
    """The path of a node's folder, and its name there. Raises InvalidArgument for the root."""
    *above, name = parts(path) or [""]
    if not name:
        raise root()
    return "/".join(above), name


def _chunks(items: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for at in range(0, len(items), RANGES_MAX):
        yield items[at : at + RANGES_MAX]


def _put(node: Inode) -> Put:
    return Put(inode_key(node.id), node.value())


def _id_in(pair: KeyValue) -> str:
    try:
        return str(decode(pair.value)["id"])
    except (ValueError, KeyError) as error:
        raise DataLoss(f"the directory's {pair.key!r} cannot be read: {error}") from error
