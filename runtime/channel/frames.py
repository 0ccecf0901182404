"""The datagrams between two hosts of the shared-memory carrier, version 2 (docs/formats.md).

    data = Resolve(rkey).encode()
    frame = decode(data)                                 # raises ValueError on anything malformed

Each begins with a u32 that says its kind; integers are little-endian. Descriptors go along as ancillary data: the
generation table's with WELCOME, a memory object's with RESOLVED, each once a connection.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

VERSION = 2
DATAGRAM_BYTES_MAX = 16 * 1024
IMMEDIATES_MAX = 1024
"""In one RING: what waits while a peer does not read goes out in few datagrams."""


class Kind(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    RESOLVE = 4
    RESOLVED = 5
    UNKNOWN = 6
    DROP = 7
    RING = 8


_KIND = struct.Struct("<I")
_RKEY = struct.Struct("<IQ")
_RESOLVED = struct.Struct("<IQQQQQQIII")
_RING_ONE = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks. `incarnation` is new with each host process."""

    cluster_id: str
    host: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Hello:
    identity: Identity
    version: int = VERSION

    def encode(self) -> bytes:
        return _encode_identity(Kind.HELLO, self.version, self.identity)


@dataclass(frozen=True, slots=True)
class Welcome:
    """With the generation table's descriptor."""

    identity: Identity
    version: int = VERSION

    def encode(self) -> bytes:
        return _encode_identity(Kind.WELCOME, self.version, self.identity)


@dataclass(frozen=True, slots=True)
class Refused:
    """Instead of WELCOME, with what to do about it."""

    message: str

    def encode(self) -> bytes:
        return _KIND.pack(Kind.REFUSED) + json.dumps({"message": self.message}).encode()


@dataclass(frozen=True, slots=True)
class Resolve:
    """Asks what an rkey stands for."""

    rkey: int

    def encode(self) -> bytes:
        return _RKEY.pack(Kind.RESOLVE, self.rkey)


@dataclass(frozen=True, slots=True)
class Resolved:
    """With the memory object's descriptor if this connection has not had it: writable or not, as the region is."""

    rkey: int
    number: int
    """Of the memory object at its owner; never used again after DROP."""
    size_bytes: int
    """Of the memory object."""
    offset: int
    length: int
    generation: int
    slot: int
    access: int
    atomics: int
    """How atomic operations are done there (`runtime.memory.atomics`); 0 where nobody may."""

    def encode(self) -> bytes:
        return _RESOLVED.pack(
            Kind.RESOLVED, self.rkey, self.number, self.size_bytes, self.offset, self.length, self.generation,
            self.slot, self.access, self.atomics,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing is registered under that rkey."""

    rkey: int

    def encode(self) -> bytes:
        return _RKEY.pack(Kind.UNKNOWN, self.rkey)


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing of this memory object is registered any more: unmap it, so that its memory can be given back."""

    number: int

    def encode(self) -> bytes:
        return _RKEY.pack(Kind.DROP, self.number)


@dataclass(frozen=True, slots=True)
class Ring:
    """Data was written; whose, the immediates say."""

    immediates: Sequence[int]

    def encode(self) -> bytes:
        return struct.pack(f"<I{len(self.immediates)}I", Kind.RING, *self.immediates)


def encode_ring(immediate: int) -> bytes:
    """`Ring((immediate,)).encode()`, on the hot path."""
    return _RING_ONE.pack(Kind.RING, immediate)


Frame = Hello | Welcome | Refused | Resolve | Resolved | Unknown | Drop | Ring


def decode(data: bytes) -> Frame:
    """Raises ValueError."""
    try:
        kind = Kind(_KIND.unpack_from(data)[0])
        match kind:
            case Kind.RING:
                if len(data) % 4:
                    raise ValueError("half an immediate")
                return Ring(struct.unpack(f"<{len(data) // 4 - 1}I", data[4:]))
            case Kind.RESOLVE:
                return Resolve(_RKEY.unpack(data)[1])
            case Kind.UNKNOWN:
                return Unknown(_RKEY.unpack(data)[1])
            case Kind.DROP:
                return Drop(_RKEY.unpack(data)[1])
            case Kind.RESOLVED:
                return Resolved(*_RESOLVED.unpack(data)[1:])
            case Kind.HELLO:
                return Hello(*_decode_identity(data))
            case Kind.WELCOME:
                return Welcome(*_decode_identity(data))
            case Kind.REFUSED:
                return Refused(str(json.loads(data[4:])["message"]))
    except (struct.error, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"malformed: {error}") from error


def _encode_identity(kind: Kind, version: int, identity: Identity) -> bytes:
    return _KIND.pack(kind) + json.dumps({"version": version, **asdict(identity)}).encode()


def _decode_identity(data: bytes) -> tuple[Identity, int]:
    """Members that this version does not know are passed over."""
    members = json.loads(data[4:])
    identity = Identity(str(members["cluster_id"]), str(members["host"]), str(members["incarnation"]))
    return identity, int(members["version"])
