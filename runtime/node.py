"""A node: the actors of one host, started in order, supervised, drained and stopped in the reverse order.

    node = Node(environment, "h1")
    node.add(NvmDevice)
    node.add(lambda: Hypervisor(config), after=(NVM_DEVICE,))
    await node.start()
    ...
    await node.stop()

One actor answers each contract on a host, so a service's name is its address. Messages told or asked before an actor
has started wait in its mailbox. A node fails when an actor failed too often; whoever runs it awaits `wait_failed()`
and ends the process, which the machine starts again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from everram.runtime.actor import Actor, AnyMethod
from everram.runtime.cell import Cell
from everram.runtime.contracts import host_pb2
from everram.runtime.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound
from everram.runtime.mailbox import CAPACITY, Mailbox
from everram.runtime.message_check import CheckedMailbox, MessageCheck
from everram.runtime.method import Contract
from everram.runtime.refs import Carrier, Ref
from everram.runtime.supervision import RestartPolicy

if TYPE_CHECKING:
    from everram.runtime.environment import Environment

RefT = TypeVar("RefT", bound=Ref)

log = logging.getLogger("everram.node")


class RemoteCarriers(Protocol):
    """Where a node gets carriers to other hosts from; `everram.runtime.transport.links.Links` is one."""

    def start(self) -> None:
        """Let other hosts in; called once the actors have started."""

    async def leave(self) -> None:
        """Have other hosts ask this one's successor from now on; called before the actors stop."""

    async def close(self) -> None:
        """Send the answers that are ready, then end every stream; called after the actors have stopped."""

    def carrier(self, host: str) -> Carrier: ...

    def statuses(self) -> list[host_pb2.LinkStatus]: ...


class Node:
    """The actors of one host."""

    def __init__(self, environment: Environment, host: str, *, check_messages: bool = False) -> None:
        """`check_messages` (for tests): find messages that are changed after they were sent; see `MessageCheck`."""
        self.environment = environment
        self.host = host
        self._cells: dict[str, Cell] = {}  # by service, in the order of `add`
        self._started: list[Cell] = []  # in the order of their start
        self._routes: dict[str, tuple[Mailbox, AnyMethod]] = {}  # by gRPC path
        self._remote: RemoteCarriers | None = None
        self._failure: asyncio.Future[None] | None = None
        self._check = MessageCheck() if check_messages else None

    def add(
        self,
        factory: Callable[[], Actor],
        *,
        after: Iterable[Contract] = (),
        restart: RestartPolicy | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        """Let `factory` make the actor of its contract: called now, and again for every restart.

        It starts after the actors of the contracts `after`, and stops before them. Raises AlreadyExists if this host
        has an actor of the contract, FailedPrecondition once the node has started.
        """
        if self._started:
            raise FailedPrecondition(f"{self.host} has started; add every actor before")
        first = factory()
        service = first.contract.service
        if service in self._cells:
            raise AlreadyExists(f"{self.host} already has an actor that answers {service}")
        mailbox = Mailbox(service, capacity) if self._check is None else CheckedMailbox(service, capacity, self._check)
        needs = tuple(contract.service for contract in after)
        self._cells[service] = Cell(self, factory, first, mailbox, needs, restart or RestartPolicy())
        for method in first.contract.methods:
            self._routes[method.path] = (mailbox, method)

    def use_links(self, remote: RemoteCarriers) -> None:
        """Where `ref(..., host=OTHER)` finds other hosts."""
        self._remote = remote

    @property
    def contracts(self) -> tuple[Contract, ...]:
        """What this host answers, in the order of `add`."""
        return tuple(cell.contract for cell in self._cells.values())

    def route(self, path: str) -> tuple[Mailbox, AnyMethod] | None:
        """The mailbox and the method of a gRPC path, for messages that come from outside."""
        return self._routes.get(path)

    def ref(self, ref_class: type[RefT], host: str | None = None) -> RefT:
        """A ref to the actor of this contract here or on `host`. Raises NotFound, FailedPrecondition (no links)."""
        if host is not None and host != self.host:
            if self._remote is None:
                raise FailedPrecondition(f"{self.host} has no links to other hosts, so it cannot reach {host}")
            return ref_class(self._remote.carrier(host))
        cell = self._cells.get(ref_class.contract.service)
        if cell is None:
            raise NotFound(f"{self.host} has no actor that answers {ref_class.contract.service}")
        return ref_class(cell.mailbox)

    async def start(self) -> None:
        """Start every actor in order. If one fails to start, stop those that did and raise its error."""
        for cell in self._in_order():
            try:
                await cell.start()
            except BaseException:
                await self.stop()
                raise
            self._started.append(cell)
        if self._remote is not None:
            self._remote.start()

    async def leave(self) -> None:
        """Before `stop`, where a successor takes this node's place at once: other hosts wait for it."""
        if self._remote is not None:
            await self._remote.leave()

    async def stop(self) -> None:
        """Drain and stop every actor, last started first. With `check_messages`: raises Internal if one was changed."""
        while self._started:
            await self._started.pop().stop()
        if self._remote is not None:
            await self._remote.close()
        for cell in self._cells.values():  # those that never started: whoever asked them is told
            cell.mailbox.close(f"{cell.mailbox.name} on {self.host} has stopped")
        if self._check is not None:
            self._check.raise_violations()

    async def wait_failed(self) -> NoReturn:
        """Return never; raise the error once an actor has failed too often."""
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        await self._failure
        raise AssertionError("a node's failure is only ever an error")

    def actor_failed(self, service: str, reason: str, error: BaseException) -> None:
        """Escalation from supervision: the node has failed."""
        log.error("%s fails because of %s: %s", self.host, service, reason, exc_info=error)
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        if not self._failure.done():
            failure = Internal(f"{service} on {self.host} was given up: {reason}; last error: {error}")
            failure.__cause__ = error
            self._failure.set_exception(failure)
            self._failure.exception()  # kept for wait_failed; never a "never retrieved" at exit, it was logged above

    def statuses(self) -> list[host_pb2.ActorStatus]:
        """One per actor, in the order of `add`."""
        return [cell.status() for cell in self._cells.values()]

    def link_statuses(self) -> list[host_pb2.LinkStatus]:
        """One per host that this one has had business with."""
        return [] if self._remote is None else self._remote.statuses()

    def _in_order(self) -> list[Cell]:
        """Each after all it needs, otherwise as added. Raises InvalidArgument for a circle or an actor not added."""
        ordered: dict[str, Cell] = {}
        visiting: list[str] = []

        def visit(service: str) -> None:
            if service in ordered:
                return
            if service in visiting:
                raise InvalidArgument(f"actors start after each other in a circle: {' -> '.join([*visiting, service])}")
            cell = self._cells.get(service)
            if cell is None:
                raise InvalidArgument(f"{visiting[-1]} starts after {service}, which {self.host} does not have")
            visiting.append(service)
            for needed in cell.after:
                visit(needed)
            visiting.pop()
            ordered[service] = cell

        for service in self._cells:
            visit(service)
        return list(ordered.values())
