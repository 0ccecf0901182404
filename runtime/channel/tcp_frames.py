"""What the two ends of a TCP queue pair say to each other, version 1 (docs/formats.md).

    header = decode(data)                                # 32 bytes; raises ValueError on anything malformed
    header.payload_bytes                                 # how much follows it

A greeting's payload is JSON, a write's and a read's completion's is the data itself; integers are little-endian.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from everram.runtime.channel.contract import REQUEST_BYTES_MAX, Status
from everram.runtime.channel.frames import Identity

VERSION = 1
HEADER_BYTES = 32
GREETING_BYTES_MAX = 4096
OPERANDS_BYTES = 16
"""What follows an atomic request: the expected word and the operand."""
NUMBERS = 1 << 32
"""Requests are numbered from 1; a header carries the lower 32 bits."""

_HEADER = struct.Struct("<BBHIIIQQ")
_OPERANDS = struct.Struct("<QQ")


class Kind(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    WRITE = 4
    WRITE_WITH_IMMEDIATE = 5
    READ = 6
    COMPARE_AND_SWAP = 7
    FETCH_AND_ADD = 8
    COMPLETION = 9


_KINDS = {int(kind): kind for kind in Kind}
_GREETINGS = frozenset({Kind.HELLO, Kind.WELCOME, Kind.REFUSED})
_ATOMICS = frozenset({Kind.COMPARE_AND_SWAP, Kind.FETCH_AND_ADD})

STATUSES = (Status.SUCCESS, Status.REM_INV_REQ_ERR, Status.REM_ACCESS_ERR, Status.REM_OP_ERR, Status.WR_FLUSH_ERR)
"""A status on the wire is its place here."""
CODES = {status: code for code, status in enumerate(STATUSES)}


class Header(NamedTuple):
    kind: Kind
    status: int
    """Of a completion."""
    reserved: int
    length: int
    """Of the data: that follows, or that is asked for."""
    number: int
    """Of the request."""
    immediate: int
    first: int
    """rkey of a request; the word that an atomic operation found, in its completion."""
    second: int
    """Offset of a request."""

    @property
    def payload_bytes(self) -> int:
        return 0 if self.kind is Kind.READ else self.length


def encode(
    kind: Kind,
    length: int = 0,
    number: int = 0,
    first: int = 0,
    second: int = 0,
    *,
    status: int = 0,
    immediate: int = 0,
) -> bytes:
    return _HEADER.pack(kind, status, 0, length, number % NUMBERS, immediate, first, second)


def decode(data: bytes | memoryview) -> Header:
    """Raises ValueError."""
    number, status, reserved, length, *rest = _HEADER.unpack(data)
    kind = _KINDS.get(number)
    if kind is None or reserved or status >= len(STATUSES) or (status and kind is not Kind.COMPLETION):
        raise ValueError(f"a header of kind {number}, status {status}, reserved {reserved}")
    longest = GREETING_BYTES_MAX if kind in _GREETINGS else REQUEST_BYTES_MAX
    if length > longest or (kind in _ATOMICS and length != OPERANDS_BYTES):
        raise ValueError(f"a {kind.name} of {length} bytes")
    return Header(kind, status, reserved, length, *rest)


def encode_operands(expected: int, operand: int) -> bytes:
    return _OPERANDS.pack(expected, operand)


def decode_operands(data: bytes) -> tuple[int, int]:
    expected, operand = _OPERANDS.unpack(data)
    return expected, operand


# -- greetings


@dataclass(frozen=True, slots=True)
class Hello:
    """Who connects, to whom, for which queue pair."""

    identity: Identity
    token: str
    to: str
    """Name of the host that is meant."""
    pair: int
    """Drawn by the peer; the same when it resumes."""
    resume: bool
    """Whether the queue pair has been used on an earlier connection."""
    version: int = VERSION

    def encode(self) -> bytes:
        members = {"token": self.token, "to": self.to, "pair": self.pair, "resume": self.resume}
        return _greeting(Kind.HELLO, {"version": self.version, **asdict(self.identity), **members})

    @staticmethod
    def decode(data: bytes) -> Hello:
        """Raises ValueError."""
        members = _members(data)
        try:
            pair, resume = members["pair"], members["resume"]
            if not isinstance(pair, int) or not isinstance(resume, bool):
                raise ValueError("its queue pair is no number")
            identity, version = _identity(members)
            return Hello(identity, str(members["token"]), str(members["to"]), pair, resume, version)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"malformed greeting: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer: who is here, and the number of the request that is expected next."""

    identity: Identity
    expected: int
    version: int = VERSION

    def encode(self) -> bytes:
        return _greeting(Kind.WELCOME, {"version": self.version, **asdict(self.identity), "expected": self.expected})

    @staticmethod
    def decode(data: bytes) -> Welcome:
        """Raises ValueError."""
        members = _members(data)
        try:
            expected = members["expected"]
            if not isinstance(expected, int):
                raise ValueError("what it expects is no number")
            identity, version = _identity(members)
            return Welcome(identity, expected, version)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"malformed greeting: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Refused:
    """Instead of WELCOME, with what to do about it."""

    message: str

    def encode(self) -> bytes:
        return _greeting(Kind.REFUSED, {"message": self.message})

    @staticmethod
    def decode(data: bytes) -> Refused:
        """Raises ValueError."""
        return Refused(str(_members(data).get("message", "")))


def _greeting(kind: Kind, members: dict[str, Any]) -> bytes:
    text = json.dumps(members).encode()
    return encode(kind, len(text)) + text


def _members(data: bytes) -> dict[str, Any]:
    try:
        members = json.loads(data)
    except RecursionError as error:
        raise ValueError("malformed greeting: too deep") from error
    if not isinstance(members, dict):
        raise ValueError("malformed greeting: no object")
    return members


def _identity(members: dict[str, Any]) -> tuple[Identity, int]:
    identity = Identity(str(members["cluster_id"]), str(members["host"]), str(members["incarnation"]))
    return identity, int(members["version"])
