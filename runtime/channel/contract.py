"""The channel: one-sided access to other hosts' memory, named and shaped like the RDMA verbs.

    region = channel.register(memory, offset, length, Access.REMOTE_WRITE)  # at the owner; its rkey is told by message
    pair = await channel.connect(host, address)                             # elsewhere: one queue pair a peer
    await pair.write(rkey, 0, data)                                         # into the region, no work by its owner
    await pair.write_with_immediate(rkey, 0, data, immediate)               # and then ring the owner's bell
    old = await pair.compare_and_swap(rkey, 0, 7, 8)                        # atomic against everybody
    pair.post(WorkRequest(Opcode.READ, rkey, length=8), completions)        # any of them, without waiting for it

A resizable memory object (a file of remote memory) is registered whole, offset and length 0: its region is as long as
the object is at each access, and no peer maps it, since its owner may shorten it, which revokes the region first.

Offsets are relative to the region. Requests of one queue pair are numbered and take effect in the order in which they
were posted. A write of 8 aligned bytes is one store, never seen half-done. A request ends in exactly one completion;
what is not SUCCESS is raised as `ChannelError`, which says by `unknown` whether the request may have taken effect. A
queue pair that had an error is broken for good: connect again. Data belongs to the queue pair until its request ends.

A host's channel is one protection domain: every queue pair that leads to it reaches every region registered there, by
whichever carrier it came. Carriers: `everram.runtime.channel.shared_memory`, `everram.runtime.channel.tcp`,
`everram.runtime.simulation.channel`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from everram.runtime.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from everram.runtime.channel.completions import CompletionQueue

IMMEDIATES = 1 << 32
"""An immediate is a number of 32 bits."""
REQUEST_BYTES_MAX = 1 << 30
"""Of one work request, on every carrier."""
WORD_BYTES = 8
WORDS = 1 << 64


class Access(enum.IntFlag):
    """What others may do with a memory region."""

    REMOTE_READ = 1
    REMOTE_WRITE = 2
    REMOTE_ATOMIC = 4


class Opcode(enum.Enum):
    WRITE = "write"
    WRITE_WITH_IMMEDIATE = "write with immediate"
    READ = "read"
    COMPARE_AND_SWAP = "compare and swap"
    FETCH_AND_ADD = "fetch and add"


class Status(enum.Enum):
    """How a work request ended; the names are the verbs'."""

    SUCCESS = "success"
    LOC_PROT_ERR = "local protection error"
    """The lkey is unknown or out of bounds: nothing was sent."""
    REM_INV_REQ_ERR = "remote invalid request error"
    """An atomic operation on what is no aligned word: nothing happened."""
    REM_ACCESS_ERR = "remote access error"
    """The rkey is unknown, revoked, out of bounds, or does not allow it: nothing happened."""
    REM_OP_ERR = "remote operation error"
    """The owner allows it and cannot do it: nothing happened."""
    RETRY_EXC_ERR = "transport retry counter exceeded"
    """The peer cannot be reached or does not answer: unknown."""
    WR_FLUSH_ERR = "work request flushed"
    """The queue pair was broken by an earlier request, by its end or by its peer's: unknown."""


UNKNOWN = frozenset({Status.RETRY_EXC_ERR, Status.WR_FLUSH_ERR})
"""After these nobody can tell whether the request took effect."""


class ChannelError(Unavailable):
    """A completion that is not SUCCESS; `unknown` is set where the request may have taken effect."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message, unknown=status in UNKNOWN)
        self.status = status


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """What `QueuePair.post` takes. `wr_id` is the caller's own, repeated in the completion."""

    opcode: Opcode
    rkey: int
    offset: int = 0
    data: bytes | memoryview = b""
    """Of a write."""
    length: int = 0
    """Of a read."""
    immediate: int = 0
    operand: int = 0
    """The word to swap in, or to add."""
    expected: int = 0
    """By a compare and swap."""
    wr_id: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """How a posted request ended."""

    wr_id: int
    opcode: Opcode
    status: Status
    data: bytes = b""
    """What a read found."""
    value: int = 0
    """What an atomic operation found."""
    message: str = ""
    """What to tell a person where `status` is not SUCCESS."""


class MemoryRegion(Protocol):
    """A registered part of a memory object. `rkey` is never used again after `deregister`."""

    rkey: int
    """For others, who are told it by message."""
    lkey: int
    """For this process alone: see `Channel.local`."""
    generation: int
    """The word of the generation table under which it is valid."""
    access: Access

    @property
    def length(self) -> int: ...

    def deregister(self) -> None:
        """Revoke: every later access ends in REM_ACCESS_ERR. Idempotent."""


class QueuePair(Protocol):
    """A connection to one peer's memory."""

    peer: str
    """Name of the peer's host."""
    carrier: str
    """What takes it there: "shm", "tcp" or "simulated"."""

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        """Raises ChannelError."""

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        """As `write`; then the peer's handler of `immediate` runs, which finds `data` there. Raises ChannelError."""

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        """Raises ChannelError."""

    async def read_into(self, rkey: int, offset: int, target: memoryview) -> None:
        """As `read`, straight into writable bytes; after an error they hold anything. Raises ChannelError."""

    async def compare_and_swap(self, rkey: int, offset: int, expected: int, desired: int) -> int:
        """The word that was there; `desired` is there now if that was `expected`. Raises ChannelError."""

    async def fetch_and_add(self, rkey: int, offset: int, addend: int) -> int:
        """The word that was there; the sum, modulo 2**64, is there now. Raises ChannelError."""

    def post(self, request: WorkRequest, completions: CompletionQueue) -> None:
        """Without waiting; its completion appears in `completions`, in order with those of other requests. Raises
        InvalidArgument for what is no request at all, ResourceExhausted while too many are under way."""

    async def wait_broken(self) -> None:
        """Returns when the queue pair is broken: by an error, by `close`, or because the peer's process has ended."""

    def close(self) -> None: ...


class Channel(Protocol):
    """One host's end: `environment.channel`."""

    address: str
    """Where peers connect, as the directory tells them; `everram.runtime.channel.addresses` reads it."""

    def register(self, memory: str, offset: int, length: int, access: Access) -> MemoryRegion:
        """`memory`: the name of a memory object of this machine. Offset and length are multiples of 8, and both 0
        for a resizable one. Raises NotFound, InvalidArgument, ResourceExhausted, FailedPrecondition where this computer
        has no atomic operations."""

    def local(self, lkey: int, offset: int, length: int) -> memoryview:
        """The registered memory itself, as the source of a write or the target of a read. Raises ChannelError."""

    def receive(self, handler: Callable[[], None]) -> int:
        """A fresh immediate; `handler` runs on the loop, at least once after the last write that carries it. Several
        writes that arrive together may be told as one."""

    def unreceive(self, immediate: int) -> None:
        """Later writes with it ring nothing."""

    async def connect(self, host: str, address: str, lane: str = "") -> QueuePair:
        """The queue pair to a peer, made anew if the last one is broken; shared by all who ask. Raises Unavailable,
        for a host of another cluster or name, too: it says which. Each lane has a queue pair of its own: an error that
        breaks one leaves the others as they are."""

    @property
    def refused(self) -> int:
        """How many requests asked for what is not registered here, or not for that; where the owner learns of it."""

    def carriers(self) -> dict[str, str]:
        """The carrier of each peer to which there is a queue pair now."""


def check(request: WorkRequest) -> None:
    """Raises InvalidArgument for what no carrier takes."""
    if not 0 <= request.rkey < WORDS or not 0 <= request.immediate < IMMEDIATES:
        raise InvalidArgument(f"rkey {request.rkey} or immediate {request.immediate} is no number of 64 or 32 bits")
    if not 0 <= request.operand < WORDS or not 0 <= request.expected < WORDS:
        raise InvalidArgument("a word is a number from 0 to 2**64 - 1")
    check_length(max(request.length, len(request.data)))


def check_length(length: int) -> None:
    """Raises InvalidArgument."""
    if length > REQUEST_BYTES_MAX:
        raise InvalidArgument(f"one request moves at most {REQUEST_BYTES_MAX} bytes, not {length}: make several of it")
