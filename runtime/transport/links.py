"""The links of a host to the others: one `Peer` each, made on first use.

    links = Links(node, environment.network, identity, resolve, environment.entropy.token)
    node.use_links(links)          the node starts and closes them with itself

No wall clock, no randomness of its own and no gRPC: it runs unchanged on the simulation's loop and streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from everram.runtime.contracts import host_pb2, link_pb2
from everram.runtime.environment import LinkStream, Network
from everram.runtime.errors import EverramError
from everram.runtime.node import Node
from everram.runtime.tasks import TaskScope
from everram.runtime.transport.link import Identity, LinkSession
from everram.runtime.transport.outbound import Outbound
from everram.runtime.transport.peer import OPEN_TIMEOUT_S, LinkParts, OnChange, Peer, Resolve

HEARTBEAT_S = 0.05
"""What a watcher wants to hear: 20 times a second cost 2 % of a core for two streams."""
SUSPECT_AFTER_S = 0.3
"""Longest silence seen on a live stream under heavy load: 0.126 s."""
TICK_S = HEARTBEAT_S / 2
"""How often silence is looked at while somebody watches or is watched."""

LEAVE_S = 0.5
"""For a round trip to each peer, on a very busy computer."""
FLUSH_S = 0.2
"""How long closing waits for peers that do not take their answers."""

log = logging.getLogger("everram.link")


class Links:
    """All links of one host."""

    def __init__(self, node: Node, network: Network, me: Identity, resolve: Resolve, token: Callable[[], str]) -> None:
        """`resolve` gives a host's address by its name (the directory's knowledge) or raises NotFound."""
        self._network = network
        self._me = me
        self._scope = TaskScope(f"{me.host}/links", self._task_failed)
        self._parts = LinkParts(me, network, resolve, node.route, token, self._scope, self._need_ticks)
        self._peers: dict[str, Peer] = {}  # by host, in the order of first use
        self._accepted: dict[int, LinkStream] = {}  # streams that peers opened, until they end
        self._last_accepted = 0
        self._emptied: asyncio.Future[None] | None = None  # set while `close` waits for them
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Accept the streams that peers open."""
        self._network.serve(self._accept)

    async def leave(self) -> None:
        """Have every peer ask this host's successor from now on. What it has asked before is here when this returns."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(peer.leave() for peer in self._peers.values()))
        except TimeoutError:
            log.info("%s leaves peers that may still ask: what is not answered is unknown to them", self._me.host)

    async def close(self) -> None:
        """Send the answers that are ready, then end every stream. What was not answered is unknown to its asker."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        try:
            async with asyncio.timeout(FLUSH_S):
                for peer in self._peers.values():
                    await peer.flushed()
        except TimeoutError:
            log.info("%s closes its links with answers unsent", self._me.host)
        for peer in self._peers.values():
            peer.close()
        for stream in list(self._accepted.values()):
            stream.close()
        await self._scope.close()
        while self._accepted:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def carrier(self, host: str) -> Outbound:
        """What brings messages to `host`; nothing is opened before the first one."""
        return self._peer(host).outbound

    def watch(
        self,
        host: str,
        on_change: OnChange,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        suspect_after_s: float = SUSPECT_AFTER_S,
    ) -> Callable[[], None]:
        """Tell `on_change(host, suspect, why)` of every change; returns what ends the watch. One watch per host.

        The end of the stream is suspicion at once, silence after `suspect_after_s`. Suspicion is a hint: only a lease
        that has run out, or proof of death, may have consequences.
        """
        peer = self._peer(host)
        peer.watch(on_change, heartbeat_s, suspect_after_s)
        return peer.unwatch

    def statuses(self) -> list[host_pb2.LinkStatus]:
        return [peer.status() for peer in self._peers.values()]

    def _peer(self, host: str) -> Peer:
        peer = self._peers.get(host)
        if peer is None:
            peer = self._peers[host] = Peer(host, self._parts)
        return peer

    async def _accept(self, stream: LinkStream) -> None:
        """One stream that a peer opened; it ends when this returns."""
        if self._closed:
            return
        self._last_accepted = number = self._last_accepted + 1
        self._accepted[number] = stream
        try:
            session = LinkSession(self._me, "")
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                data = await stream.receive()
            try:
                session.decode(data)
            except EverramError as error:
                log.warning("%s refused a stream: %s", self._me.host, error)
                await stream.send(session.encode(link_pb2.Batch()))  # the opener sees what does not fit, too
                return
            if session.peer is not None and not self._closed:
                await self._peer(session.peer.host).accept(stream, session)
        except TimeoutError:
            log.info("%s closed a stream without a hello", self._me.host)
        except EverramError as error:
            log.info("%s lost a stream before it was a link: %s", self._me.host, error)
        finally:
            stream.close()
            del self._accepted[number]
            if not self._accepted and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def _need_ticks(self) -> None:
        """A peer has heartbeats to send or to hear; one timer looks after all of them while there are any."""
        if self._ticker is None and not self._closed:
            self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        for peer in list(self._peers.values()):
            peer.tick(TICK_S)
        if any(peer.needs_ticks for peer in self._peers.values()):
            self._need_ticks()

    def _task_failed(self, name: str, error: BaseException) -> None:
        log.error("%s failed", name, exc_info=error)
