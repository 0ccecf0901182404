"""The forwarder of published ports: `127.0.0.1:PORT` always leads to the guest's incarnation that serves now (D18).

    port = PublishedPort.listen(7070, "bank")      # AlreadyExists if somebody has the port
    port.lead_to(route)                            # whenever the directory changes
    await port.close()

A new connection waits, bounded, until an incarnation listens. When the epoch changes, or no incarnation serves, the old
connections are reset: their client learns at once that it must connect again, where a frozen incarnation would leave it
hanging. Bytes pass both ways with back-pressure, and each side's end of stream is passed on by itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from typing import cast

from everram.runtime.cluster.routes import Route
from everram.runtime.errors import AlreadyExists, EverramError, PermissionDenied, ResourceExhausted

CONNECT_TIMEOUT_S = 10.0
"""How long a new connection waits for an incarnation: for a lease to run out (2 s) and a start, with room to spare."""
ENDED_WAIT_S = 2.0
"""The same where the guest has ended: it may be between two incarnations, or stopped by its user."""
CONNECT_RETRY_S = 0.02
"""Between attempts while the guest does not listen yet; a guest that has just been started takes about 100 ms."""
CONNECTIONS_MAX = 1000
"""Of one port: two descriptors each, so one port cannot eat the supervisor's 4096 and more."""
BACKLOG = 128
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on and 0 s: closing sends RST, not FIN, so that the other side sees an error and not an end of stream."""

log = logging.getLogger("everram.forwarder")


class _Leg(asyncio.Protocol):
    """One of the two sockets of a forwarded connection. Until it is joined to the other one it reads at most once."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Leg | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._saw_eof = False
        self._early: list[bytes] = []
        """Read before the join. uvloop starts reading after `connection_made`, whatever that says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def join(self, peer: _Leg) -> None:
        """From now on each passes on what it reads to the other."""
        self.peer, peer.peer = peer, self
        for leg, other in ((self, peer), (peer, self)):
            if leg.transport is None or leg.transport.is_closing() or other.transport is None:
                other.reset()
                continue
            other.transport.writelines(leg._early)
            if leg._saw_eof:
                other.transport.write_eof()
            leg._early.clear()
            if leg._saw_eof and other._saw_eof:
                leg.transport.close()
            else:
                leg.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early.append(data)
            if self.transport is not None:
                self.transport.pause_reading()  # the rest waits in the kernel
        elif self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end on; keep this side open for the answer unless the other side has ended too."""
        self._saw_eof = True
        peer = self.peer
        if peer is None:
            return True
        if peer.transport is None or peer.transport.is_closing():
            return False
        if peer._saw_eof:
            peer.transport.close()
            return False
        peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self.peer is None or self.peer.transport is None:
            return
        if error is None:
            self.peer.transport.close()
        else:
            self.peer.reset()

    def reset(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class _Connection:
    """One client of a published port: its own leg, and the guest's once it listens."""

    def __init__(self, port: PublishedPort) -> None:
        self._port = port
        self.client = _Leg()
        self.epoch = 0
        """Of the incarnation it is connected to; 0 while it waits."""

    async def run(self, sock: socket.socket) -> None:
        """Forward until both sides have ended. Owns `sock`."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self.client, sock)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                backend = await self._connect()
        except TimeoutError:
            self.client.reset()
            return
        if backend is None:
            self.client.reset()
            return
        self.client.join(backend)
        await asyncio.wait([self.client.ended, backend.ended])

    async def _connect(self) -> _Leg | None:
        """The guest's leg, or None when no incarnation may be expected."""
        loop = asyncio.get_running_loop()
        while True:
            route, changed = self._port.route, self._port.changed
            if route is not None and not route.backend_port and not route.expected:
                if not await _first(changed, ENDED_WAIT_S):
                    return None
                continue
            if route is not None and route.backend_port:
                try:
                    _, leg = await loop.create_connection(_Leg, "127.0.0.1", route.backend_port)
                except OSError:
                    await _first(changed, CONNECT_RETRY_S)
                    continue
                if self._port.serves(route.epoch):
                    self.epoch = route.epoch
                    return leg
                leg.reset()
                continue
            await _first(changed, None)

    def reset(self) -> None:
        if self.client.peer is not None:
            self.client.peer.reset()
        self.client.reset()


async def _first(changed: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether it changed before the time was over."""
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        return False
    return True


class PublishedPort:
    """One listening port of this computer's loopback. `guest` is its guest's name; `route` None until it is known."""

    def __init__(self, port: int, guest: str, listener: socket.socket) -> None:
        self.port = port
        self.guest = guest
        self.route: Route | None = None
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, at every change of the route."""
        self._listener = listener
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name=f"accept:{port}")

    @staticmethod
    def listen(port: int, guest: str) -> PublishedPort:
        """Raises AlreadyExists if somebody listens there, PermissionDenied for a privileged port."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise _bind_error(port, error) from error
        return PublishedPort(port, guest, listener)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def serves(self, epoch: int) -> bool:
        return self.route is not None and self.route.backend_port != 0 and self.route.epoch == epoch

    def lead_to(self, route: Route | None) -> None:
        """From now on to `route`; connections of any other incarnation are reset."""
        if route == self.route:
            return
        self.route = route
        for connection in list(self._connections.values()):
            if connection.epoch and not self.serves(connection.epoch):
                connection.reset()
        self.changed.set()
        self.changed = asyncio.Event()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors, or a client that gave up before it was accepted: neither ends the port.
                log.warning("port %d: %s", self.port, error.strerror)
                await asyncio.sleep(CONNECT_RETRY_S)
                continue
            if len(self._connections) >= CONNECTIONS_MAX:
                log.warning("port %d: more than %d connections; one was refused", self.port, CONNECTIONS_MAX)
                sock.close()
                continue
            connection = _Connection(self)
            task = loop.create_task(connection.run(sock), name=f"forward:{self.port}")
            self._connections[task] = connection
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("port %d: a connection failed", self.port, exc_info=error)

    async def close(self) -> None:
        """Stop listening and reset every connection; returns when no task is left."""
        tasks = [self._accepting, *self._connections]
        for connection in list(self._connections.values()):
            connection.reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()


def _bind_error(port: int, error: OSError) -> EverramError:
    if error.errno == errno.EADDRINUSE:
        return AlreadyExists(f"port {port} is in use by another program: choose another one with --publish")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"port {port} needs privileges: choose one from 1024 on with --publish")
    return ResourceExhausted(f"cannot listen on port {port}: {error.strerror}")
