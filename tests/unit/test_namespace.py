"""The namespace's decisions against a plain tree, with operations that interleave at every reading."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everram.actors.remote_memory import namespace
from everram.actors.remote_memory.namespace import Placed, Plan, Ranges, Steps
from everram.actors.remote_memory.placement import place
from everram.actors.remote_memory.refusals import errno_in
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.coordination.api import KeyValue, Range, prefix
from everram.runtime.coordination.directory import HOSTS, encode
from everram.runtime.coordination.file_directory import CREATED, DROPPED, ENTRIES, INODES, ROOT_ID, Inode, entry_key
from everram.runtime.coordination.store import Saved, Store
from everram.runtime.errors import EverramError, NotFound, ResourceExhausted

HERE = Placed("h1", "m1")


class Space:
    """The store that operations work on."""

    def __init__(self) -> None:
        self.store = Store(Saved(1, 0, (), (), ()), 0)

    def pairs(self, op: Range) -> list[KeyValue]:
        return list(self.store.range(op).pairs)

    def answer(self, wanted: Ranges) -> list[list[KeyValue]]:
        return [self.pairs(op) for op in wanted]

    def commit(self, plan: Plan) -> bool:
        done = not plan.success or self.store.txn(plan.compare, plan.success, ()).succeeded
        self.store.commit()
        return done

    def run(self, begin: Callable[[], Steps]) -> Inode:
        while True:
            operation = Operation(self, begin)
            while operation.step():
                pass
            if operation.error is not None:
                raise operation.error
            assert operation.node is not None
            return operation.node


class Operation:
    """One that goes from reading to reading, and begins anew when its plan has lost a race."""

    def __init__(self, space: Space, begin: Callable[[], Steps]) -> None:
        self.space, self.begin = space, begin
        self.node: Inode | None = None
        self.error: EverramError | None = None
        self.races = 0
        self._steps, self._plan = begin(), None
        self._answer: Any = None

    def step(self) -> bool:
        """Whether there is more to do."""
        if self._plan is not None:
            if self.space.commit(self._plan):
                self.node = self._plan.node
                return False
            self.races += 1
            self._steps, self._plan, self._answer = self.begin(), None, None
            return True
        try:
            self._answer = self.space.answer(self._steps.send(self._answer))
        except StopIteration as end:
            self._plan = end.value
        except EverramError as error:
            self.error = error
            return False
        return True


def create(parent: str, name: str, node_id: str, *, folder: bool = False, **more: Any) -> Callable[[], Steps]:
    request = rm.CreateRequest(id=node_id, parent=parent, name=name, folder=folder, mode=0o755, **more)
    return lambda: namespace.create(request, Placed() if folder else HERE)


def unlink(parent: str, name: str, **more: Any) -> Callable[[], Steps]:
    return lambda: namespace.unlink(rm.UnlinkRequest(parent=parent, name=name, **more))


def rmdir(parent: str, name: str) -> Callable[[], Steps]:
    return lambda: namespace.remove_folder(rm.UnlinkRequest(parent=parent, name=name))


def rename(parent: str, name: str, new_parent: str, new_name: str, **more: Any) -> Callable[[], Steps]:
    request = rm.RenameRequest(parent=parent, name=name, new_parent=new_parent, new_name=new_name, **more)
    return lambda: namespace.rename(request)


def refused(space: Space, begin: Callable[[], Steps]) -> int | None:
    with pytest.raises(EverramError) as caught:
        space.run(begin)
    return errno_in(caught.value)


# -- the plain tree


@dataclass
class Thing:
    id: str
    folder: bool
    entries: dict[str, Thing] = field(default_factory=dict)


class Tree:
    def __init__(self) -> None:
        self.root = Thing(ROOT_ID, folder=True)

    def find(self, node_id: str) -> Thing | None:
        todo = [self.root]
        while todo:
            thing = todo.pop()
            if thing.id == node_id:
                return thing
            todo += thing.entries.values()
        return None

    def folder(self, node_id: str) -> Thing | int:
        thing = self.find(node_id)
        if thing is None:
            return errno.ENOENT
        return thing if thing.folder else errno.ENOTDIR

    def apply(self, what: tuple[Any, ...]) -> int:
        """The errno; 0 if it happened."""
        kind, parent_id, name, *rest = what
        parent = self.folder(parent_id)
        if isinstance(parent, int):
            return parent
        if kind in ("file", "folder"):
            if name in parent.entries:
                return errno.EEXIST
            parent.entries[name] = Thing(rest[0], folder=kind == "folder")
            return 0
        if kind == "rename":
            return self._rename(parent, name, *rest)
        thing = parent.entries.get(name)
        if thing is None:
            return errno.ENOENT
        if (kind == "rmdir") != thing.folder:
            return errno.ENOTDIR if kind == "rmdir" else errno.EISDIR
        if thing.entries:
            return errno.ENOTEMPTY
        del parent.entries[name]
        return 0

    def _rename(self, parent: Thing, name: str, new_parent_id: str, new_name: str) -> int:
        target = self.folder(new_parent_id)
        if isinstance(target, int):
            return target
        thing, there = parent.entries.get(name), target.entries.get(new_name)
        if thing is None:
            return errno.ENOENT
        if thing is there:
            return 0
        if thing.folder and Tree.find(_under(thing), target.id) is not None:
            return errno.EINVAL
        if there is not None:
            if there.folder != thing.folder:
                return errno.EISDIR if there.folder else errno.ENOTDIR
            if there.entries:
                return errno.ENOTEMPTY
        del parent.entries[name]
        target.entries[new_name] = thing
        return 0

    def paths(self) -> dict[str, str]:
        found, todo = {}, [("", self.root)]
        while todo:
            path, thing = todo.pop()
            for name, below in thing.entries.items():
                found[f"{path}/{name}"] = below.id
                todo.append((f"{path}/{name}", below))
        return found


def _under(thing: Thing) -> Tree:
    tree = Tree()
    tree.root = thing
    return tree


def paths_in(space: Space) -> dict[str, str]:
    """Every path by the entries, checking on the way that inodes, entries and nothing else fit together."""
    inodes = {pair.key.removeprefix(INODES).decode(): pair for pair in space.pairs(prefix(INODES))}
    found: dict[str, str] = {}
    todo, seen = [("", ROOT_ID)], {ROOT_ID}
    while todo:
        path, folder_id = todo.pop()
        for node in _listed(space, folder_id):
            assert node.id not in seen, "a node has two names"
            seen.add(node.id)
            stored = Inode.read(node.id, inodes[node.id])
            assert (stored.parent, stored.name) == (folder_id, node.name)
            found[f"{path}/{node.name}"] = node.id
            if node.folder:
                todo.append((f"{path}/{node.name}", node.id))
    assert set(inodes) - {ROOT_ID} == seen - {ROOT_ID}, "an inode that cannot be reached, or a name without one"
    assert len(space.pairs(prefix(ENTRIES))) == len(found)
    return found


def _listed(space: Space, folder_id: str) -> list[Inode]:
    steps, answer = namespace.listing(folder_id), None
    try:
        while True:
            answer = space.answer(steps.send(answer))  # type: ignore[arg-type]
    except StopIteration as end:
        nodes: list[Inode] = end.value
        return nodes


IDS = ["1", "a1", "a2", "a3", "a4", "a5"]
NAMES = st.sampled_from(["x", "y"])
FOLDERS = st.sampled_from(IDS)
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["file", "folder", "folder"]), FOLDERS, NAMES),
    st.tuples(st.sampled_from(["unlink", "rmdir"]), FOLDERS, NAMES),
    st.tuples(st.just("rename"), FOLDERS, NAMES, FOLDERS, NAMES),
    st.tuples(st.just("rename"), FOLDERS, NAMES, FOLDERS, NAMES),
)


def begun(what: tuple[Any, ...]) -> Callable[[], Steps]:
    kind, parent, name, *rest = what
    if kind in ("file", "folder"):
        return create(parent, name, rest[0], folder=kind == "folder")
    if kind == "rename":
        return rename(parent, name, *rest)
    return unlink(parent, name) if kind == "unlink" else rmdir(parent, name)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATIONS, max_size=40), st.integers(0, 2**32), st.integers(1, 5))
def test_interleaved_operations_are_those_of_a_plain_tree_in_the_order_of_their_transactions(
    wanted: list[tuple[Any, ...]], seed: int, at_once: int
) -> None:
    """Whatever happened is applied to the tree when it happens. A refusal that nothing came between has to be what the
    tree says."""
    space, tree, draw = Space(), Tree(), random.Random(seed)
    numbers = 0
    waiting: list[tuple[Any, ...]] = []
    for what in wanted:
        numbers += what[0] in ("file", "folder")
        waiting.append((*what, f"a{numbers}") if what[0] in ("file", "folder") else what)
    running: list[tuple[tuple[Any, ...], Operation, set[int]]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            what = waiting.pop(0)
            running.append((what, Operation(space, begun(what)), set()))
        for what, _, possible in running:
            possible.add(_would(tree, what))
        chosen = draw.choice(running)
        what, operation, possible = chosen
        if operation.step():
            continue
        running.remove(chosen)
        if operation.error is not None:
            number = errno_in(operation.error)
            assert number in possible or at_once > 1, (what, number, possible)
            continue
        assert tree.apply(what) == 0, what
    assert paths_in(space) == tree.paths()


def _would(tree: Tree, what: tuple[Any, ...]) -> int:
    import copy

    return copy.deepcopy(tree).apply(what)


# -- one by one


def test_asking_again_changes_nothing() -> None:
    space = Space()
    made = space.run(create("1", "a", "n1"))
    assert space.run(create("1", "a", "n1")) == made
    assert refused(space, create("1", "a", "n2")) == errno.EEXIST
    space.run(rename("1", "a", "1", "b", id="n1"))
    assert space.run(rename("1", "a", "1", "b", id="n1")).name == "b"
    assert space.run(create("1", "a", "n1")).name == "b", "it was made, and has another name by now"
    assert refused(space, rename("1", "a", "1", "b", id="n3")) == errno.ENOENT


def test_what_is_removed_is_left_for_its_owner_to_drop() -> None:
    space = Space()
    space.run(create("1", "a", "n1", creator="client:h2:s", keeper="h2"))
    assert [pair.key for pair in space.pairs(prefix(CREATED))] == [CREATED + b"h2/client:h2:s/n1"]
    space.run(unlink("1", "a"))
    assert [pair.key for pair in space.pairs(prefix(DROPPED))] == [DROPPED + b"h1/n1"]
    assert not space.pairs(prefix(CREATED))
    assert not space.pairs(prefix(INODES))
    space.run(create("1", "b", "n2"))
    space.run(create("1", "c", "n3"))
    space.run(rename("1", "b", "1", "c"))
    assert [pair.key for pair in space.pairs(prefix(DROPPED))] == [DROPPED + b"h1/n1", DROPPED + b"h1/n3"]


def test_an_open_file_lives_on_without_a_name_until_it_is_released() -> None:
    space = Space()
    space.run(create("1", "a", "n1"))
    space.run(unlink("1", "a", holder="h2"))
    held = space.run(lambda: namespace.stat("n1"))
    assert (held.holder, held.name, held.parent) == ("h2", "", "")
    assert not space.pairs(prefix(DROPPED))
    space.run(lambda: namespace.release("n1"))
    assert [pair.key for pair in space.pairs(prefix(DROPPED))] == [DROPPED + b"h1/n1"]
    assert refused(space, lambda: namespace.release("n1")) == errno.ENOENT


def test_mode_bits_are_enforced() -> None:
    space = Space()
    space.run(create("1", "d", "n1", folder=True))
    space.run(create("n1", "f", "n2"))
    space.run(lambda: namespace.change(rm.ChangeRequest(id="n1", mode=0o500)))
    assert refused(space, create("n1", "g", "n3")) == errno.EACCES
    assert refused(space, unlink("n1", "f")) == errno.EACCES
    assert space.run(lambda: namespace.resolve(rm.ResolveRequest(path="d/f"))).id == "n2"
    space.run(lambda: namespace.change(rm.ChangeRequest(id="n1", mode=0o600)))
    assert refused(space, lambda: namespace.resolve(rm.ResolveRequest(path="d/f"))) == errno.EACCES
    space.run(lambda: namespace.change(rm.ChangeRequest(id=ROOT_ID, mode=0o500)))
    assert refused(space, create("1", "x", "n4")) == errno.EACCES


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_bad_names_are_refused(name: str) -> None:
    assert refused(Space(), create("1", name, "n1")) == errno.EINVAL


def test_long_names_are_refused() -> None:
    assert refused(Space(), create("1", "ä" * 128, "n1")) == errno.ENAMETOOLONG


def test_values_of_a_later_version_are_kept() -> None:
    space = Space()
    space.run(create("1", "a", "n1"))
    (pair,) = space.pairs(prefix(INODES))
    node = Inode.read("n1", pair)
    assert node.raw is not None
    later = node.changed(raw={**node.raw, "colour": "red"})
    assert b'"colour":"red"' in later.changed(mode=0o600).value()
    assert entry_key("1", "a") == ENTRIES + b"1/a"


def test_a_new_file_goes_where_most_memory_is_free_or_where_it_is_wanted() -> None:
    def host(name: str, free_bytes: int) -> KeyValue:
        value = encode({"host_id": name, "memory_id": f"m-{name}", "memory_free_bytes": free_bytes})
        return KeyValue(HOSTS + name.encode(), value, 1, 1, 1)

    hosts = [host("h1", 5), host("h2", 7), host("h3", 7), KeyValue(HOSTS + b"h4", b"?", 1, 1, 1)]
    assert place(hosts, "") == Placed("h2", "m-h2")
    assert place(hosts, "h1") == Placed("h1", "m-h1")
    with pytest.raises(NotFound):
        place(hosts, "h9")
    with pytest.raises(ResourceExhausted, match="ENOSPC"):
        place([host("h1", 0)], "")
