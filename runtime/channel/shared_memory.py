"""The shared-memory carrier: the channel between hosts of one computer.

    carrier = SharedMemoryCarrier(protection, memory, me, path)
    pair = await carrier.dial("h2", Addresses(shm=path_of_h2))

Each host listens on a Unix socket. Whoever connects is told, once per rkey, where the region lies and gets the
descriptor of its memory object; from then on this process does no work for an access but to run the handlers of
immediates, which travel on the same socket. A peer looks at the generation table by itself, so revoking is one store.

`seqpacket` has the sockets, `frames` what is said on them, `protection_domain` and `generations` what is registered,
and `shared_memory_pair` the other half: the queue pair.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol, cast

from everram.runtime.channel.addresses import SHM, Addresses
from everram.runtime.channel.contract import Access
from everram.runtime.channel.frames import (
    VERSION,
    Drop,
    Hello,
    Identity,
    Refused,
    Resolve,
    Resolved,
    Ring,
    Unknown,
    Welcome,
    decode,
)
from everram.runtime.channel.generations import MEMORY_NAME
from everram.runtime.channel.protection_domain import ProtectionDomain, Region
from everram.runtime.channel.seqpacket import Batch, Connection, Listener
from everram.runtime.channel.shared_memory_pair import SharedMemoryPair
from everram.runtime.environment import Memory, MemoryObject

if TYPE_CHECKING:
    from socket import socket

log = logging.getLogger(__name__)

PATH_SUFFIX = ".ch"
"""After the path of the host's own socket."""
WRITABLE = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
"""What needs a descriptor that may be mapped writable."""


class SharedObject(MemoryObject, Protocol):
    """A memory object that others can be given."""

    @property
    def descriptor(self) -> int: ...


class SharedMemory(Memory, Protocol):
    def open(self, name: str) -> SharedObject: ...


class SharedMemoryCarrier:
    """`carrier.Carrier`: the owner's half, and queue pairs to others'."""

    name = SHM

    def __init__(self, protection: ProtectionDomain, memory: SharedMemory, me: Identity, path: str) -> None:
        """Listens. Raises InvalidArgument for a path that is too long."""
        self.path = path
        self.me = me
        self.protection = protection
        self.severed = False
        """Whether whoever comes is sent away."""
        self._shared: dict[MemoryObject, _Shared] = {}  # those of which something is registered
        self._numbers = 0
        self.table = _read_only(memory.open(MEMORY_NAME).descriptor)
        """Descriptor of the generation table, for peers."""
        self._visitors: dict[_Visitor, None] = {}
        try:
            self._listener = Listener(path, self._accept)
        except BaseException:
            os.close(self.table)
            raise

    async def dial(self, host: str, address: Addresses, lane: str) -> SharedMemoryPair:
        """Raises Unavailable; Unreachable, if nobody listens there on this computer. Each connection is a queue pair
        of its own, whatever its lane."""
        return await SharedMemoryPair.open(address.shm, host, self.me)

    def registered(self, region: Region) -> None:
        memory = cast(SharedObject, region.memory)
        if memory not in self._shared:
            self._numbers += 1
            self._shared[memory] = _Shared(self._numbers, os.dup(memory.descriptor))
        self._shared[memory].regions += 1

    def revoked(self, region: Region) -> None:
        shared = self._shared.get(region.memory)
        if shared is None:  # it could not even be shared
            return
        shared.regions -= 1
        if not shared.regions:
            del self._shared[region.memory]
            shared.close()
            for visitor in self._visitors:
                visitor.drop(shared.number)

    def hang_up(self) -> None:
        """On all who came."""
        for visitor in list(self._visitors):
            visitor.close()

    def close(self) -> None:
        """Idempotent; after everything was revoked."""
        self._listener.close()
        self.hang_up()
        if self.table >= 0:
            os.close(self.table)
            self.table = -1

    # -- visitors

    def share(self, region: Region) -> _Shared:
        return self._shared[region.memory]

    def leave(self, visitor: _Visitor) -> None:
        self._visitors.pop(visitor, None)

    def _accept(self, sock: socket) -> None:
        if self.severed:
            sock.close()
            return
        visitor = _Visitor(self, sock)
        self._visitors[visitor] = None


class _Shared:
    """A memory object of which something is registered."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.regions = 0
        self._writable = descriptor
        self._read_only = -1

    def descriptor(self, access: Access) -> int:
        """What a region of this access gives away; still ours."""
        if access & WRITABLE:
            return self._writable
        if self._read_only < 0:
            self._read_only = _read_only(self._writable)
        return self._read_only

    def close(self) -> None:
        os.close(self._writable)
        if self._read_only >= 0:
            os.close(self._read_only)


class _Visitor:
    """A peer that has a queue pair to this host."""

    def __init__(self, carrier: SharedMemoryCarrier, sock: socket) -> None:
        self._carrier = carrier
        self._greeted = False
        self._given: set[tuple[int, bool]] = set()  # object numbers, and whether writable; never iterated
        self._connection = Connection(sock, self._on_batch, self._on_end, polite=True)

    def close(self) -> None:
        self._connection.close()
        self._carrier.leave(self)

    def drop(self, number: int) -> None:
        if (number, False) in self._given or (number, True) in self._given:
            self._given -= {(number, False), (number, True)}
            self._connection.post(Drop(number).encode())

    def _on_end(self) -> None:
        self._carrier.leave(self)

    def _on_batch(self, batch: Batch) -> None:
        rung: dict[int, None] = {}  # a handler runs once a batch
        try:
            for data, descriptors in batch:
                for fd in descriptors:
                    os.close(fd)
                if not self._connection.closed:
                    self._on_datagram(data, rung)
        except (ValueError, OSError) as error:
            log.warning("a peer on the channel is sent away: %s", error)
            self.close()
        self._carrier.protection.ring(rung)

    def _on_datagram(self, data: bytes, rung: dict[int, None]) -> None:
        """Raises ValueError, OSError."""
        frame = decode(data)
        if isinstance(frame, Ring) and self._greeted:
            rung.update(dict.fromkeys(frame.immediates))
        elif isinstance(frame, Resolve) and self._greeted:
            self._resolve(frame.rkey)
        elif isinstance(frame, Hello):
            self._greet(frame)
        else:
            raise ValueError(f"{type(frame).__name__} is not for this end, or comes too early")

    def _greet(self, hello: Hello) -> None:
        me, peer = self._carrier.me, hello.identity
        refusal = ""
        if hello.version != VERSION:
            refusal = (
                f"host {me.host} speaks version {VERSION} of the channel, not {hello.version}: upgrade one of them"
            )
        elif peer.cluster_id != me.cluster_id:
            refusal = f"host {me.host} is of cluster {me.cluster_id}, host {peer.host} of cluster {peer.cluster_id}"
        if refusal:
            self._connection.post(Refused(refusal).encode())
            self.close()
            return
        self._greeted = True
        self._connection.post(Welcome(me).encode(), [self._carrier.table])

    def _resolve(self, rkey: int) -> None:
        region = self._carrier.protection.find(rkey)
        if region is None:
            self._carrier.protection.refused += 1
            self._connection.post(Unknown(rkey).encode())
            return
        shared = self._carrier.share(region)
        answer = Resolved(
            rkey=rkey,
            number=shared.number,
            size_bytes=region.memory.size_bytes,
            offset=region.offset,
            length=region.length,
            generation=region.generation,
            slot=region.slot,
            access=int(region.access),
            atomics=region.atomics,
        )
        key = shared.number, bool(region.access & WRITABLE)
        descriptors = [] if key in self._given else [shared.descriptor(region.access)]
        self._given.add(key)
        self._connection.post(answer.encode(), descriptors)


def _read_only(descriptor: int) -> int:
    """Another open description of the same memory, which cannot be mapped writable (D14)."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
