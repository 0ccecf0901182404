"""What commands have in common: who asks (`Session`), what is known of each (`Command`), and how to find it.

@command("GET", 2, keys=(1, 1, 1))
def _get(session: Session, request: Arguments) -> bytes: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from everram.examples.keyvalue.resp import NULL, bulk
from everram.examples.keyvalue.store import Store

REDIS_VERSION = "7.0.0"
"""Of the behaviour that clients may expect."""
INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX = "ERR syntax error"

Arguments = list[bytes]


class Refused(Exception):
    """The command cannot be done; the message is the answer, its code first."""


class Session:
    """What a client's commands work on."""

    def __init__(self, store: Store, client_id: int, about: dict[str, dict[str, object]]) -> None:
        self.store = store
        self.client_id = client_id
        self.about = about
        """For INFO: sections and their fields. Those of the store itself are added."""
        self.name = b""
        self.protocol = 2
        self.null = NULL
        self.ended = False
        """QUIT was said."""

    def bulk(self, value: bytes | None) -> bytes:
        return self.null if value is None else bulk(value)


class Command(NamedTuple):
    do: Callable[[Session, Arguments], bytes]
    arguments_min: int
    """The command's name counts."""
    arguments_max: int
    writes: bool
    keys: tuple[int, int, int]
    """First key, last key, step, as COMMAND tells them."""

    @property
    def arity(self) -> int:
        return self.arguments_min if self.arguments_min == self.arguments_max else -self.arguments_min


COMMANDS: dict[bytes, Command] = {}
"""By name, in capitals and in small letters."""
MANY = 1 << 30
Handler = Callable[[Session, Arguments], bytes]


def command(
    names: str, least: int, most: int = 0, *, writes: bool = False, keys: tuple[int, int, int] = (0, 0, 0)
) -> Callable[[Handler], Handler]:
    """Register a handler; `most` 0: as many as `least`."""

    def register(handler: Handler) -> Handler:
        for name in names.split():
            found = Command(handler, least, most or least, writes, keys)
            COMMANDS[name.encode()] = COMMANDS[name.lower().encode()] = found
        return handler

    return register


def text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def parse_integer(word: bytes, complaint: str = NOT_AN_INTEGER) -> int:
    """A number in its one spelling, as Redis keeps them."""
    if _INTEGER.fullmatch(word) and INT_MIN <= (number := int(word)) <= INT_MAX:
        return number
    raise Refused(complaint)
