"""Streams between simulated hosts, with everything that a network does to them.

One `Fabric` for a world; each host incarnation gets `fabric.network(host, domain)`, its `environment.Network`. A batch
travels for a seeded delay and arrives in order, unless a fault says otherwise:

- `cut(source, target)`: nothing passes in that direction until `heal`; what was sent meanwhile arrives afterwards
  (that is what TCP's retransmission does), or is gone, as the stream draws it when the cut begins;
- `LinkFaults`: single batches lost, duplicated or swapped with their neighbour. The link's own sequence rules have to
  cope: duplicates are ignored, a gap ends the stream.

When a domain dies the other ends of its streams end after a delay, as a kernel would close the sockets; when it is
frozen nothing ends and nothing is received.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from everram.runtime.environment import HostAddress, LinkStream
from everram.runtime.errors import Unavailable
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.loop import SimulationLoop

WINDOW_BATCHES = 64
"""Batches on their way or not yet received before a sender has to wait: flow control, as in HTTP/2."""

CONNECT_TIMEOUT_S = 1.0
"""After which a connection that gets no answer is given up, as production's link does."""


@dataclass(slots=True)
class LinkFaults:
    """Probabilities per batch, and the range of a batch's delay."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay_min_s: float = 50e-6
    delay_max_s: float = 500e-6


class Fabric:
    """Who listens where, which directions are cut, and every open stream."""

    def __init__(self, loop: SimulationLoop, stream: Stream, faults: LinkFaults | None = None) -> None:
        self.loop = loop
        self.stream = stream
        self.faults = faults if faults is not None else LinkFaults()
        self._listeners: dict[str, Listener] = {}
        self._cuts: dict[tuple[str, str], bool] = {}
        """(source, target) -> whether what is sent during the cut is lost."""
        self._held: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def network(self, host: str, domain: Domain, address: str = "") -> SimulatedNetwork:
        """`address`: where it listens; one is made up if it is empty."""
        return SimulatedNetwork(self, host, domain, address or f"simulated:{host}")

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from `source` to `target` any more."""
        self._cuts[source, target] = self.stream.random() < 0.5

    def heal(self) -> None:
        """All directions pass again, and what was only held arrives."""
        self._cuts.clear()
        held, self._held = self._held, {}
        for deliveries in held.values():
            for deliver in deliveries:
                self.loop.run_in(self.loop.system, deliver)

    def listen(self, address: str, listener: Listener) -> None:
        """A later listener takes an address over, as a restarted host takes its socket's path."""
        self._listeners[address] = listener
        listener.domain.on_death.append(partial(self._unlisten, address, listener))

    def listener(self, address: str) -> Listener | None:
        return self._listeners.get(address)

    def _unlisten(self, address: str, listener: Listener) -> None:
        if self._listeners.get(address) is listener:
            del self._listeners[address]

    def delay_ns(self) -> int:
        return round(self.stream.uniform(self.faults.delay_min_s, self.faults.delay_max_s) * 1e9)

    def carry(self, source: str, target: str, when_ns: int, deliver: Callable[[], None], *, droppable: bool) -> None:
        """`deliver` at `when_ns` in nobody's domain, unless this direction is cut when it sets out."""
        lost = self._cuts.get((source, target))
        if lost is None:
            self.loop.call_at_ns(
                when_ns, self._arrive, source, target, deliver, droppable, context=self.loop.system.context
            )
        elif not (lost and droppable):
            self._held.setdefault((source, target), []).append(deliver)

    def _arrive(self, source: str, target: str, deliver: Callable[[], None], droppable: bool) -> None:
        """A cut also stops what was on its way."""
        lost = self._cuts.get((source, target))
        if lost is None:
            deliver()
        elif not (lost and droppable):
            self._held.setdefault((source, target), []).append(deliver)


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    host: str
    domain: Domain
    accept: Callable[[LinkStream], Awaitable[None]]


class SimulatedNetwork:
    """`environment.Network` of one incarnation of one host; call `listen` before the host starts."""

    def __init__(self, fabric: Fabric, host: str, domain: Domain, address: str) -> None:
        self._fabric = fabric
        self._host = host
        self._domain = domain
        self.address = address

    async def connect(self, peer: HostAddress) -> LinkStream:
        """Raises Unavailable: at once where nobody listens, after a timeout where nothing answers."""
        fabric = self._fabric
        answered: asyncio.Future[SimulatedStream | None] = fabric.loop.create_future()
        arrive = partial(self._arrive, peer.address, answered)
        fabric.carry(self._host, peer.host, fabric.loop.now_ns + fabric.delay_ns(), arrive, droppable=True)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                stream = await answered
        except TimeoutError:
            raise Unavailable(f"host {peer.host} does not answer; try again when it can be reached") from None
        if stream is None:
            raise Unavailable(f"nothing listens for host {peer.host}; try again when it has started")
        return stream

    def serve(self, accept: Callable[[LinkStream], Awaitable[None]]) -> None:
        self._fabric.listen(self.address, Listener(self._host, self._domain, accept))

    def _arrive(self, address: str, answered: asyncio.Future[SimulatedStream | None]) -> None:
        """At the peer's socket, in nobody's domain."""
        fabric = self._fabric
        listener = fabric.listener(address)
        here = there = None
        if listener is not None and self._domain.alive:
            here = SimulatedStream(fabric, self._host, self._domain)
            there = SimulatedStream(fabric, listener.host, listener.domain)
            here.peer, there.peer = there, here
            fabric.loop.run_in(listener.domain, _accept, fabric.loop, listener, there)
        source = listener.host if listener is not None else address
        when_ns = fabric.loop.now_ns + fabric.delay_ns()
        fabric.carry(source, self._host, when_ns, partial(_answer, answered, here), droppable=True)


def _answer(answered: asyncio.Future[SimulatedStream | None], stream: SimulatedStream | None) -> None:
    if not answered.done():
        answered.set_result(stream)
    elif stream is not None:
        stream.close()


def _accept(loop: SimulationLoop, listener: Listener, stream: SimulatedStream) -> None:
    async def serve() -> None:
        try:
            await listener.accept(stream)
        finally:
            stream.close()

    loop.create_task(serve(), name=f"accept at {listener.host}")


class SimulatedStream:
    """One end. Ordered; broken as a whole or not at all, except for what `LinkFaults` does to single batches."""

    def __init__(self, fabric: Fabric, host: str, domain: Domain) -> None:
        self._fabric = fabric
        self._host = host
        self._inbox: deque[bytes] = deque()
        self._unreceived = 0
        """Batches sent from here that the peer has not received: at most WINDOW_BATCHES."""
        self._ended = False
        self._last_ns = 0
        """When the last batch arrives at the peer: a later one is not earlier."""
        self._changed: deque[asyncio.Future[None]] = deque()
        self.peer: SimulatedStream
        domain.on_death.append(self.close)

    async def send(self, batch: bytes) -> None:
        while self._unreceived >= WINDOW_BATCHES and not self._ended:
            await self._change()
        if self._ended:
            raise Unavailable("the stream to the other host has ended")
        faults, draw = self._fabric.faults, self._fabric.stream.random
        if faults.loss and draw() < faults.loss:
            return
        self._carry(batch, swap=bool(faults.reordering) and draw() < faults.reordering)
        if faults.duplication and draw() < faults.duplication:
            self._carry(batch, swap=False)

    async def receive(self) -> bytes:
        while not self._inbox:
            if self._ended:
                raise Unavailable("the stream to the other host has ended")
            await self._change()
        batch = self._inbox.popleft()
        peer = self.peer
        peer._unreceived -= 1
        peer._notify()
        return batch

    def close(self) -> None:
        """Idempotent. The other end learns of it after what was sent before."""
        if not self._ended:
            self._end()
            self._dispatch(self.peer._end, droppable=False)

    def _carry(self, batch: bytes, *, swap: bool) -> None:
        self._unreceived += 1
        self._dispatch(partial(self.peer._deliver, batch, swap), droppable=True)

    def _dispatch(self, deliver: Callable[[], None], *, droppable: bool) -> None:
        fabric = self._fabric
        self._last_ns = max(self._last_ns + 1, fabric.loop.now_ns + fabric.delay_ns())
        fabric.carry(self._host, self.peer._host, self._last_ns, deliver, droppable=droppable)

    def _deliver(self, batch: bytes, swap: bool) -> None:
        if self._ended:
            return
        if swap and self._inbox:
            self._inbox.insert(len(self._inbox) - 1, batch)
        else:
            self._inbox.append(batch)
        self._notify()

    def _end(self) -> None:
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        while self._changed:
            waiter = self._changed.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = self._fabric.loop.create_future()
        self._changed.append(waiter)
        await waiter
