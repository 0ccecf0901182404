"""Where the TCP carrier opens its sockets: on loopback only, for it has no TLS yet.

A named edge of the environment seam: TCP sockets are opened here and nowhere else in this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import TypeVar

from everram.runtime.errors import FailedPrecondition

BACKLOG = 128
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 1, 1, 2
"""A computer that has gone without a word shows after three seconds on an idle connection."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BufferedProtocol)


def check_loopback(host: str) -> None:
    """Raises FailedPrecondition."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise FailedPrecondition(
            f"the channel over TCP is not encrypted yet, so it stays on loopback: {host} is not (use 127.0.0.1)"
        )


async def listen(host: str, port: int, make: Callable[[], asyncio.BufferedProtocol]) -> tuple[asyncio.Server, int]:
    """The server, and its port. Raises FailedPrecondition for what is not loopback, OSError."""
    check_loopback(host)

    server = await asyncio.get_running_loop().create_server(make, host, port, backlog=BACKLOG)
    return server, server.sockets[0].getsockname()[1]


async def connect(host: str, port: int, make: Callable[[], ProtocolT]) -> ProtocolT:
    """Raises FailedPrecondition, OSError."""
    check_loopback(host)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(make, host, port)
    return protocol


def cut(transport: asyncio.Transport) -> None:
    """Nothing is received and nothing that is queued leaves any more. `abort` alone lets the loop send once more."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0 and not transport.is_closing():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)
    transport.abort()


def tune(transport: asyncio.BaseTransport) -> None:
    """A new connection."""
    sock = transport.get_extra_info("socket")
    if sock is None:  # a test's
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
