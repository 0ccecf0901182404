"""Messages are immutable once sent: the check of it, for tests (`Node(..., check_messages=True)`).

Inside a host a message is handed over as it is, so whoever changes one after sending it changes what others hold. A
checked mailbox serialises every request and reply when it is sent, compares again after the handling and once more
much later, and `Node.stop` raises what it found.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

from everram.runtime.errors import Internal
from everram.runtime.mailbox import Asker, Mailbox
from everram.runtime.method import Method
from everram.runtime.streams import ReplyReader

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

KEPT = 256
"""Messages compared once more some time after they were sent: catches a reply that is kept and changed."""


@dataclass(slots=True)
class MessageCheck:
    """The messages of one node that were sent lately, and those found changed."""

    violations: list[str] = field(default_factory=list)
    _sent: deque[tuple[Message, bytes, str]] = field(default_factory=deque)

    def sent(self, message: Message, what: str) -> None:
        self._sent.append((message, message.SerializeToString(deterministic=True), what))
        if len(self._sent) > KEPT:
            self._compare(*self._sent.popleft())

    def compare_all(self) -> None:
        while self._sent:
            self._compare(*self._sent.popleft())

    def _compare(self, message: Message, before: bytes, what: str) -> None:
        if message.SerializeToString(deterministic=True) != before:
            self.violations.append(f"{what} was changed after it was sent: copy it, or build a new one")

    def raise_violations(self) -> None:
        """Raises Internal, once, if a message was changed."""
        self.compare_all()
        if self.violations:
            found, self.violations = self.violations, []
            raise Internal("; ".join(found))


class CheckedMailbox(Mailbox):
    """A mailbox that watches what goes through it."""

    __slots__ = ("_check",)

    def __init__(self, name: str, capacity: int, check: MessageCheck) -> None:
        super().__init__(name, capacity)
        self._check = check

    def tell(self, method: Method[RequestT, ReplyT], request: RequestT) -> None:
        self._watch(method, request)
        super().tell(method, request)

    async def ask(self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float) -> ReplyT:
        before = request.SerializeToString(deterministic=True)
        reply = await super().ask(method, request, timeout_s)
        if request.SerializeToString(deterministic=True) != before:
            raise Internal(f"the request of {method.path} was changed after it was sent: copy it, or build a new one")
        self._check.sent(reply, f"the reply of {method.path}")
        return reply

    def stream(
        self, method: Method[RequestT, ReplyT], request: RequestT, timeout_s: float | None
    ) -> ReplyReader[ReplyT]:
        self._watch(method, request)
        return super().stream(method, request, timeout_s)

    def deliver(self, method: Method[Any, Any], request: Any, asker: Asker) -> None:
        self._watch(method, request)
        super().deliver(method, request, asker)

    def _watch(self, method: Method[Any, Any], request: Message) -> None:
        if request.__class__ is not method.request:
            self._check.violations.append(f"{method.path} was sent a {type(request).__name__}")
        self._check.sent(request, f"the request of {method.path}")
