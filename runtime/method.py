"""What an actor's interface is made of: a contract is a gRPC service, a method one of its calls.

Both are generated from `proto/` into `runtime/contracts/*_contract.py`; nobody writes them by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

DEFAULT_TIMEOUT_S = 5.0
"""Deadline of an ask whose caller names none: long enough for a loaded laptop, short enough to be noticed."""


@dataclass(frozen=True, eq=False, slots=True)
class Method(Generic[Request, Reply]):
    """One call of a contract; `path` is gRPC's, `/everram.v1.Hypervisor/Run`."""

    service: str
    name: str
    request: type[Request]
    reply: type[Reply]
    streams: bool = False
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")


@dataclass(frozen=True, eq=False, slots=True)
class Contract:
    """One gRPC service, answered by one actor per host."""

    service: str
    methods: tuple[Method[Any, Any], ...]
