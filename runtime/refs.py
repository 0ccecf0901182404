"""Refs: how an actor is reached, wherever it is.

A ref is a contract plus a *carrier* that brings messages to the actor: the mailbox itself inside a host, the link
between hosts, a gRPC channel for clients outside. The typed refs in `runtime/contracts/*_contract.py` derive from
`Ref`, so the code that asks is the same on every way. Messages are immutable once sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import ClassVar, Protocol, TypeVar

from google.protobuf.message import Message

from everram.runtime.method import Contract, Method

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)
ItemT = TypeVar("ItemT", covariant=True)


class Replies(Protocol[ItemT]):
    """The answers of a stream. `aclose()`, or letting go of it, cancels the work behind it.

    Use `async with contextlib.aclosing(ref.count(...)) as replies` where a loop may be left early.
    """

    def __aiter__(self) -> AsyncIterator[ItemT]: ...

    def __anext__(self) -> Awaitable[ItemT]: ...

    def aclose(self) -> Awaitable[None]: ...


class Carrier(Protocol):
    """Brings messages to one actor. `timeout_s` None means no deadline (streams only)."""

    def tell(self, method: Method[RequestT, ReplyT], request: RequestT) -> None:
        """Send and forget. Raises ResourceExhausted if the queue on this side is full."""

    async def ask(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float) -> ReplyT:
        """Send and await the answer. Raises an EverramError; its `outcome` tells failed from unknown."""

    def stream(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float | None) -> Replies[ReplyT]:
        """Send and iterate over the answers, with back-pressure; closing the iterator cancels."""


class Ref:
    """The untyped base of the generated refs."""

    contract: ClassVar[Contract]
    __slots__ = ("ask", "carrier", "stream", "tell")

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        # Bound once: an ask then costs no lookup on the way to its carrier.
        self.tell = carrier.tell
        self.ask = carrier.ask
        self.stream = carrier.stream
