"""Actors: each owns its state alone, has one mailbox and handles one message at a time.

An actor derives from the typed base in `runtime/contracts/*_contract.py` and overrides every method of its contract.
The handler of `rpc CreateRegions` is called `create_regions`; it takes the request and may be

- a plain function that returns the reply: the fastest, and enough for most;
- an `async def`: it runs in the mailbox's order, so the next message waits until it has returned;
- a plain function that returns `self.context.later(work)`: the work becomes a task of the actor, its result answers the
  ask, and the mailbox goes on meanwhile;
- an async generator, where the contract says `stream`: always a task of the actor, slowed to the speed of its reader
  and cancelled when the reader closes.

A handler raises an `EverramError` to refuse; anything else it raises is a bug, logged here and `Internal` to the asker.
Once taken up, a handler is never interrupted because its asker has gone (its state change would be half done).
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, MutableMapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from google.protobuf.message import Message

from everram.runtime.method import Contract, Method
from everram.runtime.refs import Ref

if TYPE_CHECKING:
    import asyncio

    from everram.runtime.environment import Environment
    from everram.runtime.node import Node
    from everram.runtime.tasks import TaskScope

T = TypeVar("T")
RefT = TypeVar("RefT", bound=Ref)

AnyMethod = Method[Any, Any]
Handler = Callable[[Any], Message | Awaitable[Message] | AsyncIterator[Message]]


class Actor:
    """Base of every actor. Constructing one does nothing but keep arguments; work begins in `on_start`."""

    contract: ClassVar[Contract]
    context: ActorContext
    """Set before `on_start`."""

    async def on_start(self) -> None:
        """Runs before the first message. Raising fails the start."""

    async def on_stop(self) -> None:
        """Runs at the orderly stop, after the last message; not after a failure (see `ActorContext.resources`)."""


class Later(Generic[T]):
    """Work that a handler hands over to a task of its actor; made by `ActorContext.later`."""

    __slots__ = ("cancellable", "work")

    def __init__(self, work: Coroutine[Any, Any, T], cancellable: bool) -> None:
        self.work = work
        self.cancellable = cancellable

    def __await__(self) -> Generator[Any, None, T]:
        return self.work.__await__()


class ActorLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the host and the actor before each line; both, and what it is about, go into structured logs."""

    def about(self, **names: object) -> ActorLog:
        """For a line about a guest: `log.about(guest=guest_id, epoch=3, lsn=4711).info(...)`, as far as it is known."""
        return ActorLog(self.logger, {**(self.extra or {}), **names})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = self.extra or {}
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        return f"{extra['host']} {extra['actor']}: {msg}", kwargs


class ActorContext:
    """What one incarnation of an actor has from its node."""

    __slots__ = ("_node", "_scope", "host", "log", "resources")

    def __init__(self, node: Node, contract: Contract, scope: TaskScope, resources: ExitStack) -> None:
        self._node = node
        self._scope = scope
        self.host: str = node.host
        """Name of this host."""
        self.resources = resources
        """Closed when this incarnation ends, in whatever way: `context.resources.callback(mapping.close)`."""
        names = {"host": node.host, "actor": contract.service.rsplit(".", 1)[-1]}
        self.log = ActorLog(logging.getLogger("everram.actor"), names)

    @property
    def environment(self) -> Environment:
        return self._node.environment

    def ref(self, ref_class: type[RefT], host: str | None = None) -> RefT:
        """A ref to an actor of this host, or of `host`. Raises NotFound if this host has no such actor."""
        return self._node.ref(ref_class, host)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` beside the mailbox, cancelled when this incarnation ends. If it raises, the actor fails."""
        return self._scope.start(work, name=name)

    def later(self, work: Coroutine[Any, Any, T], *, cancellable: bool = False) -> Later[T]:
        """For a handler to return: the result of `work` answers the ask without blocking the mailbox.

        `cancellable`: cancel it when its asker has gone (its deadline passed, or it was cancelled). Right for pure
        waits; work that changes something finishes by default.
        """
        return Later(work, cancellable)


def handler_name(method_name: str) -> str:
    """`CreateRegions` -> `create_regions`, as proto/generate.py names them."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", method_name).lower()


def handlers_of(actor: Actor) -> dict[AnyMethod, Handler]:
    """The actor's handlers by method: looked up once per incarnation, never per message."""
    return {method: getattr(actor, handler_name(method.name)) for method in actor.contract.methods}
