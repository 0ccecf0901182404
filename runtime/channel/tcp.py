"""The TCP carrier: the channel between computers, on connections of its own beside gRPC.

    carrier = await TcpCarrier.open(protection, randbytes, me, token)
    pair = await carrier.dial("h2", Addresses(tcp=("127.0.0.1", 40001)))

Each queue pair is one connection at a time, opened by the peer. `tcp_frames` says what is said on it, `tcp_framing`
receives it straight into memory, `tcp_responder` is the owner's half, `tcp_pair` the queue pair, `tcp_sockets` opens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from everram.runtime.channel.addresses import TCP, Addresses
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.protection_domain import ProtectionDomain, Region
from everram.runtime.channel.tcp_framing import PLAIN, Line
from everram.runtime.channel.tcp_pair import TcpPair
from everram.runtime.channel.tcp_responder import ResponderConnection, Session
from everram.runtime.channel.tcp_sockets import listen
from everram.runtime.errors import FailedPrecondition, Unavailable


class TcpCarrier:
    """`host_channel.Carrier`."""

    name = TCP

    def __init__(
        self, protection: ProtectionDomain, randbytes: Callable[[int], bytes], me: Identity, token: str, line: Line
    ) -> None:
        """Use `open`."""
        self.me = me
        self.line = line
        self.token = token
        self.protection = protection
        self.address = ("", 0)
        self.severed = False
        self.sessions: dict[str, Session] = {}
        """The queue pairs that lead here, by their host: one a host."""
        self.connections: dict[ResponderConnection, None] = {}
        self._randbytes = randbytes
        self._server: asyncio.Server | None = None

    @staticmethod
    async def open(
        protection: ProtectionDomain,
        randbytes: Callable[[int], bytes],
        me: Identity,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        line: Line = PLAIN,
    ) -> TcpCarrier:
        """Listens. Raises FailedPrecondition without a token or elsewhere than on loopback, Unavailable."""
        if not token:
            raise FailedPrecondition(
                "the channel over TCP needs the cluster's token: anyone on this computer could connect otherwise"
            )
        carrier = TcpCarrier(protection, randbytes, me, token, line)
        try:
            carrier._server, port = await listen(host, port, lambda: ResponderConnection(carrier))
        except OSError as error:
            raise Unavailable(f"the channel cannot listen at {host}:{port}: {error.strerror or error}") from error
        carrier.address = host, port
        return carrier

    async def dial(self, host: str, address: Addresses, lane: str) -> TcpPair:
        """Raises Unavailable. There is one queue pair for each name that says hello: a lane has a name of its own."""
        assert address.tcp is not None
        number = int.from_bytes(self._randbytes(8), "little")
        try:
            me = replace(self.me, host=f"{self.me.host}/{lane}") if lane else self.me
            return await TcpPair.open(*address.tcp, host, me, self.token, number, self.line)
        except FailedPrecondition as error:
            raise Unavailable(error.message) from error

    def registered(self, region: Region) -> None:
        if region.length:  # now, while its memory object is certain to be there
            self.protection.mapping(region)

    def revoked(self, region: Region) -> None:
        for connection in list(self.connections):
            connection.revoked(region)

    def hang_up(self) -> None:
        """On all who came, for good."""
        for session in self.sessions.values():
            if session.expiry is not None:
                session.expiry.cancel()
            session.connection = None
        self.sessions.clear()
        for connection in list(self.connections):
            connection.end()

    def close(self) -> None:
        """Idempotent; after everything was revoked."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.hang_up()
