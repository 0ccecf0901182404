"""All published ports of a cluster: reserved before their guest runs, then led by the directory.

A port is listened on from `reserve` (or from the first sight of its guest's record, after a restart of the cluster)
until its guest's record is gone. A reservation whose guest never appears ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from everram.runtime.cluster.forwarder import PublishedPort
from everram.runtime.cluster.routes import Routes
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Coordination, prefix
from everram.runtime.errors import AlreadyExists, EverramError, FailedPrecondition, InvalidArgument, Unavailable

RESERVATION_S = 60.0
"""A `run` whose guest is not in the directory by then has failed or been killed, and its port is free again."""
RECONNECT_S = 0.1
"""Between attempts to read the directory while no coordination server answers."""
PORT_MAX = 65535

log = logging.getLogger("everram.forwarder")


@dataclass(frozen=True, slots=True)
class PortStatus:
    port: int
    guest: str
    epoch: int
    backend_port: int
    """0: no incarnation serves now."""
    connections: int


class PublishedPorts:
    def __init__(self) -> None:
        self._routes = Routes()
        self._ports: dict[int, PublishedPort] = {}
        self._reserved: dict[int, asyncio.TimerHandle] = {}
        """Reserved ports whose guest is not in the directory yet."""
        self._closing: set[asyncio.Task[None]] = set()
        self._refused: set[int] = set()
        """Ports of the directory that could not be bound; said once each."""
        self._cut: set[str] = set()
        """Hosts that nobody reaches."""

    def reserve(self, port: int, guest: str) -> None:
        """Raises InvalidArgument, AlreadyExists if anybody has the port, PermissionDenied."""
        if not 0 < port <= PORT_MAX:
            raise InvalidArgument(f"{port} is not a port: choose one from 1 to {PORT_MAX} with --publish")
        taken = self._ports.get(port)
        if taken is not None and taken.guest != guest:
            raise AlreadyExists(f'port {port} is already published for guest "{taken.guest}": choose another one')
        if taken is None:
            self._ports[port] = PublishedPort.listen(port, guest)
        if port not in self._routes.ports():
            self._expire(port)

    def release(self, port: int, guest: str) -> None:
        """Give a reservation back. A port whose guest is in the directory stays: it ends with its guest."""
        taken = self._ports.get(port)
        if taken is not None and taken.guest == guest and port in self._reserved:
            self._drop(port)

    def set_cut(self, host: str, on: bool) -> None:
        """The network of a host was cut, or is whole again. Connections of its guests are reset, and new ones wait for
        an incarnation elsewhere."""
        if on != (host in self._cut):
            self._cut ^= {host}
            self._reconcile()

    def _expire(self, port: int) -> None:
        if (earlier := self._reserved.pop(port, None)) is not None:
            earlier.cancel()
        self._reserved[port] = asyncio.get_running_loop().call_later(RESERVATION_S, self._drop, port)

    def _drop(self, port: int) -> None:
        if (timer := self._reserved.pop(port, None)) is not None:
            timer.cancel()
        task = asyncio.get_running_loop().create_task(self._ports.pop(port).close(), name=f"close:{port}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _reconcile(self) -> None:
        """Make the listeners what the directory says."""
        wanted = self._routes.ports()
        for port in [p for p in self._ports if p not in wanted and p not in self._reserved]:
            self._drop(port)
        for port, route in wanted.items():
            if (timer := self._reserved.pop(port, None)) is not None:
                timer.cancel()
            if port not in self._ports:
                try:
                    self._ports[port] = PublishedPort.listen(port, route.name)
                except EverramError as error:
                    if port not in self._refused:
                        about = {"guest": route.guest_id, "epoch": route.epoch}
                        log.error('guest "%s" is not reachable: %s', route.name, error.message, extra=about)
                    self._refused.add(port)
                    continue
            self._refused.discard(port)
            self._ports[port].guest = route.name
            self._ports[port].lead_to(replace(route, backend_port=0) if route.host in self._cut else route)

    async def follow(self, coordination: Coordination) -> None:
        """Follow the directory for ever."""
        while True:
            try:
                revision, pairs = await coordination.range(prefix(directory.ROOT))
                self._routes.reset(pairs)
                self._reconcile()
                async for batch in coordination.watch(prefix(directory.ROOT), start_revision=revision + 1):
                    for event in batch.events:
                        self._routes.apply(event)
                    self._reconcile()
            except FailedPrecondition:
                continue  # the history between was compacted: read everything again
            except EverramError as error:
                if not isinstance(error, Unavailable):
                    log.warning("the directory cannot be followed: %s", error.message)
                await asyncio.sleep(RECONNECT_S)

    def statuses(self) -> list[PortStatus]:
        return [
            PortStatus(
                port=p.port,
                guest=p.guest,
                epoch=p.route.epoch if p.route else 0,
                backend_port=p.route.backend_port if p.route else 0,
                connections=p.connections,
            )
            for _, p in sorted(self._ports.items())
        ]

    async def close(self) -> None:
        for port in list(self._ports):
            self._drop(port)
        await asyncio.gather(*self._closing)
