"""One host's channel over real carriers: what is registered reaches every peer, by the way that is best for it.

    channel = await HostChannel.open(memory, entropy.randbytes, me, Reach(path=PATH, boot_id=..., token=TOKEN))
    channel.sever() ... channel.mend()                   # the network is cut: both carriers are
    channel.close()

One protection domain serves all carriers. A peer is reached by shared memory if both use it and its socket is on this
computer, by TCP otherwise. A host that is told to use one carrier offers and uses no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from everram.runtime.channel.addresses import MODES, SHM, TCP, Addresses
from everram.runtime.channel.contract import Access, QueuePair
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.protection_domain import ProtectionDomain, Region, open_generations
from everram.runtime.channel.seqpacket import Unreachable
from everram.runtime.channel.shared_memory import SharedMemory, SharedMemoryCarrier
from everram.runtime.channel.tcp import TcpCarrier
from everram.runtime.channel.tcp_framing import PLAIN, Line
from everram.runtime.errors import InvalidArgument, Unavailable
from everram.runtime.memory import atomics


class Pair(QueuePair, Protocol):
    """A carrier's queue pair."""

    @property
    def broken(self) -> bool: ...


class Carrier(Protocol):
    """What a carrier does for `HostChannel`."""

    name: str
    severed: bool
    """Whether whoever comes is sent away."""

    async def dial(self, host: str, address: Addresses, lane: str) -> Pair: ...

    def registered(self, region: Region) -> None: ...

    def revoked(self, region: Region) -> None: ...

    def hang_up(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reach:
    """By which carriers others reach a host, and it them."""

    path: str
    """Of the Unix socket for the hosts of this computer."""
    mode: str = "auto"
    """"shm", "tcp", or "auto": both, TCP only if there is a token."""
    token: str = ""
    """The cluster's, which TCP asks for."""
    boot_id: str = ""
    """Of this computer; empty: every path is taken for one of this computer."""
    tcp_host: str = "127.0.0.1"
    tcp_port: int = 0
    """0: any."""
    line: Line = PLAIN
    """Of TCP."""


class HostChannel:
    """`contract.Channel`."""

    def __init__(self, memory: SharedMemory, protection: ProtectionDomain, boot_id: str) -> None:
        """Use `open`."""
        self.address = ""
        self._memory = memory
        self.protection = protection
        self.shared_memory: SharedMemoryCarrier | None = None
        self.tcp: TcpCarrier | None = None
        self._boot_id = boot_id
        self._pairs: dict[tuple[str, str, str], Pair] = {}  # by host, address and lane
        self._connecting: dict[tuple[str, str, str], asyncio.Lock] = {}
        self._severed = False
        self._closed = False
        protection.on_revoked = self._on_revoked

    @staticmethod
    async def open(memory: SharedMemory, randbytes: Callable[[int], bytes], me: Identity, reach: Reach) -> HostChannel:
        """Revokes what this process's predecessors registered, then listens. Raises InvalidArgument for a path that is
        too long or an unknown mode, FailedPrecondition where TCP may not be used, ResourceExhausted."""
        if reach.mode not in MODES:
            raise InvalidArgument(f'"{reach.mode}" is no way to carry the channel: choose auto, shm or tcp')
        generations = await open_generations(memory)
        protection = ProtectionDomain(generations, randbytes, atomic=atomics.probe() is not None)
        channel = HostChannel(memory, protection, reach.boot_id)
        try:
            if reach.mode != TCP:
                channel.shared_memory = SharedMemoryCarrier(protection, memory, me, reach.path)
            if reach.mode == TCP or (reach.mode != SHM and reach.token):
                channel.tcp = await TcpCarrier.open(
                    protection, randbytes, me, reach.token, reach.tcp_host, reach.tcp_port, reach.line
                )
        except BaseException:
            channel.close()
            raise
        channel.address = Addresses(
            shm="" if channel.shared_memory is None else reach.path,
            tcp=None if channel.tcp is None else channel.tcp.address,
            boot_id=reach.boot_id,
        ).encode()
        return channel

    # -- contract.Channel

    def register(self, memory: str, offset: int, length: int, access: Access) -> Region:
        region = self.protection.register(self._memory.open(memory), offset, length, access)
        try:
            for carrier in self._carriers():
                carrier.registered(region)
        except BaseException:
            region.deregister()
            raise
        return region

    def local(self, lkey: int, offset: int, length: int) -> memoryview:
        return self.protection.local(lkey, offset, length)

    def receive(self, handler: Callable[[], None]) -> int:
        return self.protection.receive(handler)

    def unreceive(self, immediate: int) -> None:
        self.protection.unreceive(immediate)

    @property
    def refused(self) -> int:
        return self.protection.refused

    def carriers(self) -> dict[str, str]:
        return {host: pair.carrier for (host, _, _), pair in sorted(self._pairs.items()) if not pair.broken}

    async def connect(self, host: str, address: str, lane: str = "") -> Pair:
        try:
            ways = Addresses.parse(address)
        except ValueError as error:
            raise Unavailable(f"host {host} has an address that cannot be read: {error}") from None
        key = host, address, lane
        async with self._connecting.setdefault(key, asyncio.Lock()):
            self._check_open(host)
            pair = self._pairs.get(key)
            if pair is None or pair.broken:
                self._pairs.pop(key, None)
                pair = await self._dial(host, ways, lane)
                self._pairs[key] = pair
                if self._severed or self._closed:
                    pair.close()
                    self._check_open(host)
            return pair

    def _check_open(self, host: str) -> None:
        if self._closed:
            raise Unavailable("this host's channel is closed")
        if self._severed:
            raise Unavailable(f"host {host} cannot be reached: this machine is cut off from the network")

    async def _dial(self, host: str, ways: Addresses, lane: str) -> Pair:
        """By the best of what both have. Raises Unavailable."""
        near = not ways.boot_id or not self._boot_id or ways.boot_id == self._boot_id
        if self.shared_memory is not None and ways.shm and near:
            try:
                return await self.shared_memory.dial(host, ways, lane)
            except Unreachable:
                # Perhaps its folder is not mounted here.
                if self.tcp is None or ways.tcp is None:
                    raise
        if self.tcp is not None and ways.tcp is not None:
            return await self.tcp.dial(host, ways, lane)
        ours = " or ".join(carrier.name for carrier in self._carriers())
        raise Unavailable(
            f"host {host} cannot be reached by {ours}, which is what this host uses (its address is "
            f'"{ways.encode()}"): let one of them use the other\'s carrier (`everram up --channel`)'
        )

    # -- the network is cut

    def sever(self) -> None:
        """Every queue pair breaks, and what peers have mapped is revoked, for they need no help of ours to write
        there. Whoever registered something registers it anew."""
        self._set_severed(True)
        self.protection.deregister_all()
        self._hang_up()

    def mend(self) -> None:
        self._set_severed(False)

    def _set_severed(self, severed: bool) -> None:
        self._severed = severed
        for carrier in self._carriers():
            carrier.severed = severed

    def close(self) -> None:
        """Idempotent. Everything is revoked, and every queue pair breaks."""
        if not self._closed:
            self._closed = True
            self.protection.close()
            self._hang_up()
            for carrier in self._carriers():
                carrier.close()

    def _hang_up(self) -> None:
        for pair in self._pairs.values():
            pair.close()
        for carrier in self._carriers():
            carrier.hang_up()

    def _on_revoked(self, region: Region) -> None:
        for carrier in self._carriers():
            carrier.revoked(region)

    def _carriers(self) -> list[Carrier]:
        return [carrier for carrier in (self.shared_memory, self.tcp) if carrier is not None]
