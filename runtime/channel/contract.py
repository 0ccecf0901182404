"""The channel: one-sided access to other hosts' memory, named and shaped like the RDMA verbs.

    region = channel.register(memory, offset, length, Access.REMOTE_WRITE)  # at the owner; its rkey is told by message
    pair = await channel.connect(host, address)                             # elsewhere: one queue pair a peer
    await pair.write(rkey, 0, data)                                         # into the region, no work by its owner
    await pair.write_with_immediate(rkey, 0, data, immediate)               # and then ring the owner's bell

A resizable memory object (a file of remote memory) is registered whole, offset and length 0: its region is as long as
the object is at each access, and no peer maps it, since its owner may shorten it, which revokes the region first.

Offsets are relative to the region. Requests of one queue pair take effect in the order in which they were posted. A
write of 8 aligned bytes is one store, never seen half-done. A request ends in exactly one completion; what is not
SUCCESS is raised as `ChannelError`: after REM_ACCESS_ERR nothing was written, after RETRY_EXC_ERR and WR_FLUSH_ERR
nobody can tell. A queue pair that had an error is broken for good: connect again.

Carriers: `everram.runtime.channel.shared_memory`, `everram.runtime.simulation.channel`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from everram.runtime.errors import Unavailable

IMMEDIATES = 1 << 32
"""An immediate is a number of 32 bits."""


class Access(enum.IntFlag):
    """What others may do with a memory region."""

    REMOTE_READ = 1
    REMOTE_WRITE = 2


class Status(enum.Enum):
    """How a work request ended; the names are the verbs'."""

    SUCCESS = "success"
    REM_ACCESS_ERR = "remote access error"
    """The rkey is unknown, revoked, out of bounds, or does not allow it: nothing was written."""
    RETRY_EXC_ERR = "transport retry counter exceeded"
    """The peer cannot be reached: unknown."""
    WR_FLUSH_ERR = "work request flushed"
    """The queue pair was broken by an earlier request, by its end or by its peer's: unknown."""


class ChannelError(Unavailable):
    """A completion that is not SUCCESS; `unknown` is set where the request may have taken effect."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message, unknown=status is not Status.REM_ACCESS_ERR)
        self.status = status


class MemoryRegion(Protocol):
    """A registered part of a memory object. `rkey` is never used again after `deregister`."""

    rkey: int
    access: Access

    @property
    def length(self) -> int: ...

    def deregister(self) -> None:
        """Revoke: every later access ends in REM_ACCESS_ERR. Idempotent."""


class QueuePair(Protocol):
    """A connection to one peer's memory."""

    peer: str
    """Name of the peer's host."""

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        """Raises ChannelError."""

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        """As `write`; then the peer's handler of `immediate` runs, which finds `data` there. Raises ChannelError."""

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        """Raises ChannelError."""

    async def wait_broken(self) -> None:
        """Returns when the queue pair is broken: by an error, by `close`, or because the peer's process has ended."""

    def close(self) -> None: ...


class Channel(Protocol):
    """One host's end: `environment.channel`."""

    address: str
    """Where peers connect, as the directory tells them (`shm:PATH`)."""

    def register(self, memory: str, offset: int, length: int, access: Access) -> MemoryRegion:
        """`memory`: the name of a memory object of this machine. Offset and length are multiples of 8, and both 0
        for a resizable one. Raises NotFound, InvalidArgument, ResourceExhausted."""

    def receive(self, handler: Callable[[], None]) -> int:
        """A fresh immediate; `handler` runs on the loop, at least once after the last write that carries it. Several
        writes that arrive together may be told as one."""

    def unreceive(self, immediate: int) -> None:
        """Later writes with it ring nothing."""

    async def connect(self, host: str, address: str) -> QueuePair:
        """The queue pair to a peer, made anew if the last one is broken; shared by all who ask. Raises Unavailable,
        for a host of another cluster or name, too: it says which."""
