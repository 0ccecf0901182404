"""What the two ends of a TCP queue pair say to each other, version 2 (docs/formats.md).

    size_bytes = header_bytes(data[0], version)          # by the kind: greetings are as in version 1
    header = decode(data, version)                       # raises ValueError on anything malformed, Damaged
    header.payload_bytes                                 # how much follows it

A greeting's payload is JSON, a write's and a read's completion's is the data itself; integers are little-endian. Every
other header has a digest, so nothing lands at a place that nobody named. Data may have one, as in NVMe over TCP.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from everram.runtime.channel.contract import REQUEST_BYTES_MAX, Status
from everram.runtime.channel.frames import Identity

VERSION = 2
UNCHECKED = 1
"""The version before, which is spoken to a peer of that version: a cluster is upgraded one host after the other."""
GREETING_HEADER_BYTES = 32
HEADER_BYTES = 40
GREETING_BYTES_MAX = 4096
OPERANDS_BYTES = 16
"""What follows an atomic request: the expected word and the operand."""
NUMBERS = 1 << 32
"""Requests are numbered from 1; a header carries the lower 32 bits."""

_PLAIN = struct.Struct("<BBHIIIQQ")
_CHECKED = struct.Struct("<BBHIIIQQI")
_HEADER = struct.Struct("<BBHIIIQQII")
_OPERANDS = struct.Struct("<QQ")
_HAS_DIGEST = 1
"""Flag: there is one of the payload."""
_GREETING_HAS_DIGEST = 1 << 32
"""In `first` of a greeting, whose header version 1 has to understand: the lower half is its digest."""


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
LAST_GREETING = int(Kind.REFUSED)
_ATOMICS = frozenset({Kind.COMPARE_AND_SWAP, Kind.FETCH_AND_ADD})

STATUSES = (Status.SUCCESS, Status.REM_INV_REQ_ERR, Status.REM_ACCESS_ERR, Status.REM_OP_ERR, Status.WR_FLUSH_ERR)
"""A status on the wire is its place here."""
CODES = {status: code for code, status in enumerate(STATUSES)}


class Damaged(ValueError):
    """Something was changed on its way. The connection ends; what was under way is sent again on another."""


class Header(NamedTuple):
    kind: Kind
    status: int
    """Of a completion."""
    flags: int
    length: int
    """Of the data: that follows, or that is asked for."""
    number: int
    """Of the request."""
    immediate: int
    first: int
    """rkey of a request; the word that an atomic operation found, in its completion."""
    second: int
    """Offset of a request."""
    digest: int | None = None
    """CRC-32 of the payload, if it has one."""
    seed: int = 0
    """What the CRC begins with: that of a greeting is of its header, too."""

    @property
    def payload_bytes(self) -> int:
        return 0 if self.kind is Kind.READ else self.length


def header_bytes(kind: int, version: int = VERSION) -> int:
    return GREETING_HEADER_BYTES if kind <= LAST_GREETING or version == UNCHECKED else HEADER_BYTES


def encode(
    kind: Kind,
    length: int = 0,
    number: int = 0,
    first: int = 0,
    second: int = 0,
    *,
    status: int = 0,
    immediate: int = 0,
    digest: int | None = None,
    version: int = VERSION,
) -> bytes:
    """`digest`: the CRC-32 of the payload, where it has one; version 1 has none of anything."""
    if kind <= LAST_GREETING or version == UNCHECKED:
        return _PLAIN.pack(kind, status, 0, length, number % NUMBERS, immediate, first, second)
    flags = 0 if digest is None else _HAS_DIGEST
    header = _CHECKED.pack(kind, status, flags, length, number % NUMBERS, immediate, first, second, digest or 0)
    return header + zlib.crc32(header).to_bytes(4, "little")


def decode(data: bytes | memoryview, version: int = VERSION) -> Header:
    """Of as many bytes as `header_bytes` says. Raises ValueError."""
    kind = _KINDS.get(data[0])
    if kind is None or len(data) != header_bytes(kind, version):
        raise ValueError(f"a header of kind {data[0]}")
    if kind <= LAST_GREETING:
        return _decode_greeting(kind, data)
    digest = 0
    if version == UNCHECKED:
        _, status, flags, length, number, immediate, first, second = _PLAIN.unpack(data)
    else:
        _, status, flags, length, number, immediate, first, second, digest, told = _HEADER.unpack(data)
        if zlib.crc32(data[: _CHECKED.size]) != told:
            raise Damaged("a header was damaged on its way")
    known = 0 if version == UNCHECKED else _HAS_DIGEST
    if flags > known or status >= len(STATUSES) or (status and kind is not Kind.COMPLETION):
        raise ValueError(f"a {kind.name} with status {status} and flags {flags}")
    if length > REQUEST_BYTES_MAX or (kind in _ATOMICS and length != OPERANDS_BYTES):
        raise ValueError(f"a {kind.name} of {length} bytes")
    return Header(kind, status, flags, length, number, immediate, first, second, digest if flags else None)


def _decode_greeting(kind: Kind, data: bytes | memoryview) -> Header:
    """Raises ValueError. Its digest is found in `first`, and not with all versions."""
    _, status, flags, length, number, immediate, first, second = _PLAIN.unpack(data)
    if flags or status or length > GREETING_BYTES_MAX:
        raise ValueError(f"a {kind.name} of {length} bytes, with status {status} and flags {flags}")
    if not first & _GREETING_HAS_DIGEST:
        return Header(kind, status, flags, length, number, immediate, first, second)
    seed = _greeting_seed(kind, length)
    return Header(kind, status, flags, length, number, immediate, 0, second, first % _GREETING_HAS_DIGEST, seed)


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
    digest = zlib.crc32(text, _greeting_seed(kind, len(text)))
    return encode(kind, len(text), first=_GREETING_HAS_DIGEST | digest) + text


def _greeting_seed(kind: Kind, length: int) -> int:
    return zlib.crc32(encode(kind, length))


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
