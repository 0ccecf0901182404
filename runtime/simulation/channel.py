"""The channel between simulated hosts: one-sided requests that travel over the simulation's network.

    wires = Wires(fabric, stream)                        # one for a world
    channel = await SimulatedChannel.open(wires, objects, memory, randbytes, me, domain, address)

A request takes a seeded delay, keeps its order in its queue pair, and lands in the machine's memory, whatever the
owner's process does meanwhile: busy, frozen, or dead and not yet followed by another, which revokes. Some writes land
in two parts with other work between them. What was written is in the caches of `CachedBytes` until the owner flushes.
A cut is noticed by a timeout; what was under way may then land late, until the peer's next queue pair ends this one.
A dead machine answers nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from everram.runtime.channel.contract import Access, ChannelError, Status
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.generations import MEMORY_NAME, Generations
from everram.runtime.channel.registry import Region, Registry, open_generations
from everram.runtime.errors import Unavailable
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.network import CONNECT_TIMEOUT_S, Fabric
from everram.runtime.simulation.objects import WORD_BYTES, GatedMapping, Objects, SimulatedMemory, SimulatedObject

RETRY_S = 1.0
"""Without an answer for so long, the transport gives up."""
TORN = 0.25
"""The part of writes (of more than a word) in whose midst others look or write."""
TORN_NS_MAX = 20_000

MESSAGES = {
    Status.REM_ACCESS_ERR: "host {} has no such region, has revoked it, or does not allow this",
    Status.RETRY_EXC_ERR: "host {} does not answer on its channel",
    Status.WR_FLUSH_ERR: "the queue pair to host {} is broken: connect again",
}


class Wires:
    """Who listens where."""

    def __init__(self, fabric: Fabric, stream: Stream) -> None:
        self.fabric = fabric
        self.stream = stream
        self.by_address: dict[str, SimulatedChannel] = {}


class SimulatedChannel:
    """`contract.Channel` of one host incarnation."""

    def __init__(
        self,
        wires: Wires,
        objects: Objects,
        memory: SimulatedMemory,
        registry: Registry,
        me: Identity,
        domain: Domain,
        address: str,
    ) -> None:
        """Use `open`."""
        self.address = address
        self.wires = wires
        self.objects = objects
        self.registry = registry
        self.me = me
        self.domain = domain
        self.responders: dict[str, _Responder] = {}
        """By the peer's host: the far ends of the queue pairs that lead here."""
        # As a peer sees it: no process of ours can be stopped at a peer's look.
        self._words = Generations(GatedMapping(objects.by_name[MEMORY_NAME], None), registry.generations.slots)
        self._memory = memory
        self._pairs: dict[tuple[str, str], SimulatedPair] = {}
        self._connecting: dict[tuple[str, str], asyncio.Lock] = {}
        wires.by_address[address] = self
        domain.on_death.append(self._die)

    @staticmethod
    async def open(
        wires: Wires,
        objects: Objects,
        memory: SimulatedMemory,
        randbytes: Callable[[int], bytes],
        me: Identity,
        domain: Domain,
        address: str,
    ) -> SimulatedChannel:
        """Revokes what this process's predecessors registered, then listens."""
        registry = Registry(await open_generations(memory), randbytes)
        return SimulatedChannel(wires, objects, memory, registry, me, domain, address)

    def register(self, memory: str, offset: int, length: int, access: Access) -> Region:
        return self.registry.register(self._memory.open(memory), offset, length, access)

    def receive(self, handler: Callable[[], None]) -> int:
        return self.registry.receive(handler)

    def unreceive(self, immediate: int) -> None:
        self.registry.unreceive(immediate)

    async def connect(self, host: str, address: str) -> SimulatedPair:
        key = host, address
        async with self._connecting.setdefault(key, asyncio.Lock()):
            if self.wires.by_address.get(self.address) is not self:
                raise Unavailable("this host's channel is closed")
            pair = self._pairs.get(key)
            if pair is None or pair.broken:
                self._pairs.pop(key, None)
                pair = self._pairs[key] = await self._dial(host, address)
            return pair

    def close(self) -> None:
        """As an orderly end of the process does. Idempotent."""
        for pair in self._pairs.values():
            pair.close()
        if self.wires.by_address.get(self.address) is self:
            self.registry.deregister_all()
            self._die()

    def valid(self, region: Region) -> bool:
        return self._words.word(region.slot) == region.generation

    async def _dial(self, host: str, address: str) -> SimulatedPair:
        fabric = self.wires.fabric
        pair = SimulatedPair(self, host)
        answered: asyncio.Future[str] = fabric.loop.create_future()
        arrive = partial(self._hello_arrives, pair, address, answered)
        fabric.carry(self.me.host, host, fabric.loop.now_ns + fabric.delay_ns(), arrive, droppable=True)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                refusal = await answered
        except TimeoutError:
            pair.close()
            raise Unavailable(f"host {host} does not answer on its channel: try again when it does") from None
        if refusal:
            pair.close()
            raise Unavailable(refusal)
        return pair

    def _hello_arrives(self, pair: SimulatedPair, address: str, answered: asyncio.Future[str]) -> None:
        """At the peer's socket, in nobody's domain; its process answers."""
        owner, loop = self.wires.by_address.get(address), self.wires.fabric.loop
        if owner is None:
            _answer(self, pair.peer, answered, f"nothing answers at {address}: try again when it runs")
        else:
            loop.run_in(owner.domain, owner.accept, self, pair, answered)

    def accept(self, visitor: SimulatedChannel, pair: SimulatedPair, answered: asyncio.Future[str]) -> None:
        """A new queue pair of a host ends its former one: nothing that is late lands from now on."""
        me, peer = self.me, visitor.me
        refusal = ""
        if peer.cluster_id != me.cluster_id:
            refusal = f"host {me.host} is of cluster {me.cluster_id}, host {peer.host} of cluster {peer.cluster_id}"
        elif me.host != pair.peer:
            refusal = f"at {self.address} answers host {me.host}, not {pair.peer}"
        elif not pair.broken:
            former = self.responders.get(peer.host)
            if former is not None:
                former.ended = True
            self.responders[peer.host] = pair.responder = _Responder(self, pair)
        _answer(visitor, me.host, answered, refusal)

    def _die(self) -> None:
        """The kernel closes the sockets; what is registered stays until the machine has another host, or dies."""
        if self.wires.by_address.get(self.address) is self:
            del self.wires.by_address[self.address]
        for responder in self.responders.values():
            responder.hang_up()


def _answer(visitor: SimulatedChannel, source: str, answered: asyncio.Future[str], refusal: str) -> None:
    def arrive() -> None:
        if not answered.done():
            answered.set_result(refusal)

    fabric = visitor.wires.fabric
    fabric.carry(source, visitor.me.host, fabric.loop.now_ns + fabric.delay_ns(), arrive, droppable=True)


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    rkey: int
    offset: int
    length: int
    data: bytes | None
    """None: a read."""
    immediate: int | None
    outcome: asyncio.Future[bytes | Status]
    timer: asyncio.TimerHandle | None = None


def _settle(request: _Request, result: bytes | Status) -> None:
    if request.timer is not None:
        request.timer.cancel()
    if not request.outcome.done():
        request.outcome.set_result(result)


class SimulatedPair:
    """`contract.QueuePair`."""

    def __init__(self, channel: SimulatedChannel, peer: str) -> None:
        self.peer = peer
        self.host = channel.me.host
        self.responder: _Responder | None = None
        self._fabric = channel.wires.fabric
        self._broken = asyncio.Event()
        self._numbers = 0
        self._last_ns = 0  # when the last request arrives
        self._open: dict[int, _Request] = {}  # in the order in which they were posted

    @property
    def broken(self) -> bool:
        return self._broken.is_set()

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        await self._request(rkey, offset, len(data), bytes(data), None)

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        await self._request(rkey, offset, len(data), bytes(data), immediate)

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        return await self._request(rkey, offset, length, None, None)

    async def wait_broken(self) -> None:
        await self._broken.wait()

    def close(self) -> None:
        """Idempotent. Requests under way end in WR_FLUSH_ERR; some may still take effect."""
        if not self.broken:
            self.fail()
            if self.responder is not None:
                self._send(self.responder.end, droppable=False)

    async def _request(self, rkey: int, offset: int, length: int, data: bytes | None, immediate: int | None) -> bytes:
        loop = self._fabric.loop
        if self.broken or self.responder is None:
            raise self._error(Status.WR_FLUSH_ERR)
        self._numbers += 1
        request = _Request(self._numbers, rkey, offset, length, data, immediate, loop.create_future())
        request.timer = loop.call_later(RETRY_S, self.complete, request, Status.RETRY_EXC_ERR)
        self._open[request.number] = request
        self._send(partial(self.responder.arrive, request), droppable=True)
        result = await request.outcome
        if isinstance(result, Status):
            raise self._error(result)
        return result

    def complete(self, request: _Request, result: bytes | Status) -> None:
        """The first word on a request counts."""
        if self._open.pop(request.number, None) is None:
            return
        _settle(request, result)
        if isinstance(result, Status):
            self.fail()

    def fail(self) -> None:
        """Broken for good: what is open is flushed."""
        self._broken.set()
        flushed, self._open = self._open, {}
        for request in flushed.values():
            _settle(request, Status.WR_FLUSH_ERR)

    def _send(self, deliver: Callable[[], None], *, droppable: bool) -> None:
        fabric = self._fabric
        self._last_ns = max(self._last_ns + 1, fabric.loop.now_ns + fabric.delay_ns())
        fabric.carry(self.host, self.peer, self._last_ns, deliver, droppable=droppable)

    def _error(self, status: Status) -> ChannelError:
        return ChannelError(status, MESSAGES[status].format(self.peer))


@dataclass(slots=True, eq=False)
class _Responder:
    """The far end of a queue pair: what the network interface does there, in nobody's domain."""

    channel: SimulatedChannel
    pair: SimulatedPair
    ended: bool = False
    """Nothing that arrives is carried out any more."""
    _expected: int = 1
    _early: dict[int, _Request] = field(default_factory=dict)
    """Arrived before others that were posted before them: a healed cut lets go in any order."""
    _queue: deque[_Request] = field(default_factory=deque)
    _busy: bool = False
    """Whether half of a write has landed."""
    _last_ns: int = 0

    def arrive(self, request: _Request) -> None:
        self._early[request.number] = request
        while (following := self._early.pop(self._expected, None)) is not None:
            self._expected += 1
            self._queue.append(following)
        self._next()

    def end(self) -> None:
        self.ended = True

    def hang_up(self) -> None:
        self._carry(self.pair.fail, droppable=False)

    def _next(self) -> None:
        while self._queue and not self._busy and not self.ended and not self.channel.objects.gone:
            self._perform(self._queue.popleft())

    def _perform(self, request: _Request) -> None:
        region = self.channel.registry.find(request.rkey)
        needed = Access.REMOTE_READ if request.data is None else Access.REMOTE_WRITE
        if (
            region is None
            or not region.access & needed
            or request.offset < 0
            or request.length < 0
            or request.offset + request.length > region.length
            or not self.channel.valid(region)
        ):
            self.ended = True
            self._complete(request, Status.REM_ACCESS_ERR)
        elif request.data is None:
            self._complete(request, self._content(region).load(region.offset + request.offset, request.length))
        else:
            self._write(request, region, request.data)

    def _write(self, request: _Request, region: Region, data: bytes) -> None:
        content, stream, loop = self._content(region), self.channel.wires.stream, self.channel.wires.fabric.loop
        at = region.offset + request.offset
        if len(data) <= WORD_BYTES or stream.random() >= TORN:
            content.store(at, data)
            self._written(request, region)
            return
        # Either half first: only the words are whole.
        cut = min(len(data), (at + stream.randrange(len(data))) // WORD_BYTES * WORD_BYTES + WORD_BYTES - at)
        halves = [(at, data[:cut]), (at + cut, data[cut:])]
        if stream.random() < 0.5:
            halves.reverse()
        content.store(*halves[0])
        self._busy = True

        def finish() -> None:
            self._busy = False
            if not self.ended and not self.channel.objects.gone:
                if self.channel.valid(
                    region
                ):  # a file may have been shortened meanwhile, but only after it was revoked
                    content.store(*halves[1])
                self._written(request, region)
                self._next()

        when_ns = loop.now_ns + stream.randrange(1_000, TORN_NS_MAX)
        loop.call_at_ns(when_ns, finish, context=loop.system.context)

    def _written(self, request: _Request, region: Region) -> None:
        channel = self.channel
        if not channel.valid(region):
            self.ended = True
            self._complete(request, Status.WR_FLUSH_ERR)
            return
        if request.immediate is not None and channel.domain.alive:
            channel.wires.fabric.loop.run_in(channel.domain, channel.registry.ring, (request.immediate,))
        self._complete(request, b"")

    def _content(self, region: Region) -> GatedMapping:
        """The memory as it is reached without its owner: no gate of a process of ours."""
        assert isinstance(region.memory, SimulatedObject)
        return GatedMapping(region.memory.content, None)

    def _complete(self, request: _Request, result: bytes | Status) -> None:
        self._carry(partial(self.pair.complete, request, result), droppable=True)

    def _carry(self, deliver: Callable[[], None], *, droppable: bool) -> None:
        fabric = self.channel.wires.fabric
        self._last_ns = max(self._last_ns + 1, fabric.loop.now_ns + fabric.delay_ns())
        fabric.carry(self.channel.me.host, self.pair.host, self._last_ns, deliver, droppable=droppable)
