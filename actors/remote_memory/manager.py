"""The manager of remote memory: answers where its host is the elected leader, from the state in coordination alone.

There is one on every host, and it keeps nothing: whoever is elected next goes on, and a leader that has not heard yet
that it is none does no harm, because every operation is one transaction on what it has read (`namespace`). That only
the leader answers keeps operations from losing races against each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TypeVar

from everram.actors.remote_memory import namespace
from everram.actors.remote_memory.namespace import Pairs, Placed, Plan, Ranges, Steps
from everram.actors.remote_memory.placement import place
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.contracts.availability_contract import AvailabilityRef
from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef, RemoteMemoryActor
from everram.runtime.coordination.api import Coordination, KeyValue, prefix
from everram.runtime.coordination.directory import HOSTS
from everram.runtime.coordination.file_directory import Inode
from everram.runtime.errors import Aborted, EverramError, Outcome, Unavailable

RACES_MAX = 20
"""Transactions that lose to another change, one after the other, before the asker is told."""
OWNER_TIMEOUT_S = 2.0
"""For an owner to make a file or to change its size: as long as a lease, for without one it is no owner."""
DROP_TIMEOUT_S = 0.5
"""For an owner to give a file back. What it is not told now it finds in the directory."""

T = TypeVar("T")


class RemoteMemory(RemoteMemoryActor):
    """See the module."""

    async def on_start(self) -> None:
        self._coordination = self.context.environment.coordination
        self._availability = self.context.ref(AvailabilityRef)
        self._messages = 0

    def _answer(self, work: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        self._messages += 1
        return self.context.later(self._led(work))

    async def _led(self, work: Callable[[], Awaitable[T]]) -> T:
        """Raises Unavailable where another leads: ask that one. (FailedPrecondition is what stale files are told.)"""
        status = await self._availability.status(pb.Empty())
        if not status.held or status.leader != self.context.host:
            raise Unavailable(
                f"{self.context.host} does not manage remote memory: ask {status.leader or 'again later'}"
            )
        return await work()

    # -- what only reads

    def resolve(self, request: rm.ResolveRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._node(lambda: namespace.resolve(request)))

    def stat(self, request: rm.NodeKey) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._node(lambda: namespace.stat(request.id)))

    def list(self, request: rm.NodeKey) -> Awaitable[rm.NodeList]:
        return self._answer(lambda: self._list(request.id))

    async def _list(self, node_id: str) -> rm.NodeList:
        nodes = await read(self._coordination, namespace.listing(node_id))
        return rm.NodeList(nodes=map(node_of, nodes))

    # -- changes

    def create(self, request: rm.CreateRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._create(request))

    async def _create(self, request: rm.CreateRequest) -> rm.Node:
        """The owner makes the memory first: whoever finds the name finds the file."""
        if request.folder:
            return await self._node(lambda: namespace.create(request, Placed()))
        before = await read(self._coordination, namespace.create(request, Placed()))  # refuse before anything is made
        if not before.success:
            return node_of(before.node)  # asked again
        _, hosts = await self._coordination.range(prefix(HOSTS))
        placed = place(hosts, request.host)
        key = rm.FileKey(id=request.id, memory_id=placed.memory_id, persistent=request.persistent)
        owner = self.context.ref(MemoryAgentRef, placed.host)
        await owner.make(key, timeout_s=OWNER_TIMEOUT_S)
        try:
            node = await self._node(lambda: namespace.create(request, placed))
        except EverramError as error:
            if error.outcome is Outcome.FAILED:
                await self._drop(placed.host, key)
            raise
        if node.host != placed.host:  # asked before, and placed elsewhere then
            await self._drop(placed.host, key)
        return node

    def rename(self, request: rm.RenameRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._remove(lambda: namespace.rename(request)))

    def unlink(self, request: rm.UnlinkRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._remove(lambda: namespace.unlink(request)))

    def remove_folder(self, request: rm.UnlinkRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._node(lambda: namespace.remove_folder(request)))

    def release(self, request: rm.NodeKey) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._remove(lambda: namespace.release(request.id)))

    def change(self, request: rm.ChangeRequest) -> Awaitable[rm.Node]:
        return self._answer(lambda: self._change(request))

    async def _change(self, request: rm.ChangeRequest) -> rm.Node:
        if request.resize:
            node = (await read(self._coordination, namespace.stat(request.id))).node
            namespace.check_access(node, namespace.WRITE)
            if not node.folder:
                owner = self.context.ref(MemoryAgentRef, node.host)
                key = rm.FileKey(id=node.id, memory_id=node.memory_id, persistent=node.persistent)
                resize = rm.ResizeRequest(file=key, size_bytes=request.size_bytes)
                await owner.resize(resize, timeout_s=OWNER_TIMEOUT_S)
        return await self._node(lambda: namespace.change(request))

    def status(self, request: pb.Empty) -> Awaitable[rm.ManagerStatus]:
        return self.context.later(self._status())

    async def _status(self) -> rm.ManagerStatus:
        status = await self._availability.status(pb.Empty())
        return rm.ManagerStatus(leads=status.held and status.leader == self.context.host, messages=self._messages)

    # -- how

    async def _node(self, steps: Callable[[], Steps]) -> rm.Node:
        return node_of((await carry_out(self._coordination, steps)).node)

    async def _remove(self, steps: Callable[[], Steps]) -> rm.Node:
        """And tell the owner of what is gone for good at once, so that stale holders hear of it."""
        plan = await carry_out(self._coordination, steps)
        for host, node_id, memory_id in namespace.dropped(plan):
            await self._drop(host, rm.FileKey(id=node_id, memory_id=memory_id))
        return node_of(plan.node)

    async def _drop(self, host: str, key: rm.FileKey) -> None:
        try:
            await self.context.ref(MemoryAgentRef, host).drop(key, timeout_s=DROP_TIMEOUT_S)
        except EverramError as error:
            self.context.log.info("%s was not told that file %s is gone: %s", host, key.id, error.message)


async def read(coordination: Coordination, steps: Generator[Ranges, Pairs, T]) -> T:
    """Carry out the readings of an operation; what it returns. Raises what it refuses with."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(await _pairs(coordination, wanted))
    except StopIteration as end:
        result: T = end.value
        return result


async def _pairs(coordination: Coordination, wanted: Ranges) -> Sequence[Sequence[KeyValue]]:
    if len(wanted) == 1:
        return [(await coordination.range(wanted[0]))[1]]
    return (await coordination.txn((), wanted)).ranges


async def carry_out(coordination: Coordination, begin: Callable[[], Steps]) -> Plan:
    """One operation, begun anew as long as it loses races. Raises what it refuses with, Aborted after RACES_MAX,
    Unavailable or DeadlineExceeded."""
    for _ in range(RACES_MAX):
        plan = await read(coordination, begin())
        if not plan.success or (await coordination.txn(plan.compare, plan.success)).succeeded:
            return plan
    raise Aborted("what this changes is changed by others all the time: try again (EAGAIN)")


def node_of(inode: Inode) -> rm.Node:
    return rm.Node(
        id=inode.id,
        folder=inode.folder,
        mode=inode.mode,
        host=inode.host,
        memory_id=inode.memory_id,
        size_bytes=inode.size,
        persistent=inode.persistent,
        creator=inode.creator,
        modified_ns=inode.modified_ns,
        parent=inode.parent,
        name=inode.name,
        holder=inode.holder,
    )
