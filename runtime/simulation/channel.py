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

from everram.runtime.channel.completions import CompletionQueue, completed
from everram.runtime.channel.contract import (
    WORDS,
    Access,
    ChannelError,
    Opcode,
    Status,
    WorkRequest,
    check,
    check_length,
)
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.generations import MEMORY_NAME, Generations
from everram.runtime.channel.protection_domain import ProtectionDomain, Region, open_generations
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
    Status.REM_INV_REQ_ERR: "host {} does no atomic operations at an offset that is no multiple of 8",
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
        protection: ProtectionDomain,
        me: Identity,
        domain: Domain,
        address: str,
    ) -> None:
        """Use `open`."""
        self.address = address
        self.wires = wires
        self.objects = objects
        self.protection = protection
        self.me = me
        self.domain = domain
        self.responders: dict[tuple[str, str], _Responder] = {}
        """By the peer's host and lane: the far ends of the queue pairs that lead here."""
        # As a peer sees it: no process of ours can be stopped at a peer's look.
        self._words = Generations(GatedMapping(objects.by_name[MEMORY_NAME], None), protection.generations.slots)
        self._memory = memory
        self._pairs: dict[tuple[str, str, str], SimulatedPair] = {}
        self._connecting: dict[tuple[str, str, str], asyncio.Lock] = {}
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
        protection = ProtectionDomain(await open_generations(memory), randbytes, atomic=True)
        return SimulatedChannel(wires, objects, memory, protection, me, domain, address)

    def register(self, memory: str, offset: int, length: int, access: Access) -> Region:
        return self.protection.register(self._memory.open(memory), offset, length, access)

    def local(self, lkey: int, offset: int, length: int) -> memoryview:
        region = self.protection.find_local(lkey, offset, length)
        assert isinstance(region.memory, SimulatedObject)
        at = region.offset + offset
        return memoryview(region.memory.content.content)[at : at + length]

    @property
    def refused(self) -> int:
        return self.protection.refused

    def carriers(self) -> dict[str, str]:
        return {host: pair.carrier for (host, _, _), pair in sorted(self._pairs.items()) if not pair.broken}

    def receive(self, handler: Callable[[], None]) -> int:
        return self.protection.receive(handler)

    def unreceive(self, immediate: int) -> None:
        self.protection.unreceive(immediate)

    async def connect(self, host: str, address: str, lane: str = "") -> SimulatedPair:
        key = host, address, lane
        async with self._connecting.setdefault(key, asyncio.Lock()):
            if self.wires.by_address.get(self.address) is not self:
                raise Unavailable("this host's channel is closed")
            pair = self._pairs.get(key)
            if pair is None or pair.broken:
                self._pairs.pop(key, None)
                pair = self._pairs[key] = await self._dial(host, address, lane)
            return pair

    def close(self) -> None:
        """As an orderly end of the process does. Idempotent."""
        for pair in self._pairs.values():
            pair.close()
        if self.wires.by_address.get(self.address) is self:
            self.protection.deregister_all()
            self._die()

    def valid(self, region: Region) -> bool:
        return self._words.word(region.slot) == region.generation

    async def _dial(self, host: str, address: str, lane: str) -> SimulatedPair:
        fabric = self.wires.fabric
        pair = SimulatedPair(self, host, lane)
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
        """A new queue pair of a host's lane ends its former one: nothing that is late lands from now on."""
        me, peer = self.me, visitor.me
        refusal = ""
        if peer.cluster_id != me.cluster_id:
            refusal = f"host {me.host} is of cluster {me.cluster_id}, host {peer.host} of cluster {peer.cluster_id}"
        elif me.host != pair.peer:
            refusal = f"at {self.address} answers host {me.host}, not {pair.peer}"
        elif not pair.broken:
            former = self.responders.get((peer.host, pair.lane))
            if former is not None:
                former.ended = True
            self.responders[peer.host, pair.lane] = pair.responder = _Responder(self, pair)
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
    work: WorkRequest
    outcome: asyncio.Future[bytes | int | Status]
    timer: asyncio.TimerHandle | None = None

    @property
    def length(self) -> int:
        """Of the memory that it touches."""
        match self.work.opcode:
            case Opcode.READ:
                return self.work.length
            case Opcode.COMPARE_AND_SWAP | Opcode.FETCH_AND_ADD:
                return WORD_BYTES
            case _:
                return len(self.work.data)


NEEDED = {
    Opcode.READ: Access.REMOTE_READ,
    Opcode.WRITE: Access.REMOTE_WRITE,
    Opcode.WRITE_WITH_IMMEDIATE: Access.REMOTE_WRITE,
    Opcode.COMPARE_AND_SWAP: Access.REMOTE_ATOMIC,
    Opcode.FETCH_AND_ADD: Access.REMOTE_ATOMIC,
}


def _settle(request: _Request, result: bytes | int | Status) -> None:
    if request.timer is not None:
        request.timer.cancel()
    if not request.outcome.done():
        request.outcome.set_result(result)


class SimulatedPair:
    """`contract.QueuePair`."""

    carrier = "simulated"

    def __init__(self, channel: SimulatedChannel, peer: str, lane: str) -> None:
        self.peer = peer
        self.lane = lane
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
        await self._request(WorkRequest(Opcode.WRITE, rkey, offset, bytes(data)))

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        await self._request(WorkRequest(Opcode.WRITE_WITH_IMMEDIATE, rkey, offset, bytes(data), immediate=immediate))

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        found = await self._request(WorkRequest(Opcode.READ, rkey, offset, length=length))
        assert isinstance(found, bytes)
        return found

    async def read_into(self, rkey: int, offset: int, target: memoryview) -> None:
        target[:] = await self.read(rkey, offset, len(target))

    async def compare_and_swap(self, rkey: int, offset: int, expected: int, desired: int) -> int:
        work = WorkRequest(Opcode.COMPARE_AND_SWAP, rkey, offset, expected=expected, operand=desired)
        found = await self._request(work)
        assert isinstance(found, int)
        return found

    async def fetch_and_add(self, rkey: int, offset: int, addend: int) -> int:
        found = await self._request(WorkRequest(Opcode.FETCH_AND_ADD, rkey, offset, operand=addend))
        assert isinstance(found, int)
        return found

    def post(self, request: WorkRequest, completions: CompletionQueue) -> None:
        check(request)

        def ended(outcome: asyncio.Future[bytes | int | Status]) -> None:
            result = outcome.result()
            completions.push(completed(request, self._error(result) if isinstance(result, Status) else result))

        self._post(request).outcome.add_done_callback(ended)

    async def wait_broken(self) -> None:
        await self._broken.wait()

    def close(self) -> None:
        """Idempotent. Requests under way end in WR_FLUSH_ERR; some may still take effect."""
        if not self.broken:
            self.fail()
            if self.responder is not None:
                self._send(self.responder.end, droppable=False)

    async def _request(self, work: WorkRequest) -> bytes | int:
        check_length(max(work.length, len(work.data)))
        result = await self._post(work).outcome
        if isinstance(result, Status):
            raise self._error(result)
        return result

    def _post(self, work: WorkRequest) -> _Request:
        loop = self._fabric.loop
        self._numbers += 1
        request = _Request(self._numbers, work, loop.create_future())
        if self.broken or self.responder is None:
            request.outcome.set_result(Status.WR_FLUSH_ERR)
            return request
        request.timer = loop.call_later(RETRY_S, self.complete, request, Status.RETRY_EXC_ERR)
        self._open[request.number] = request
        self._send(partial(self.responder.arrive, request), droppable=True)
        return request

    def complete(self, request: _Request, result: bytes | int | Status) -> None:
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
        work = request.work
        region = self.channel.protection.find(work.rkey)
        if (
            region is None
            or not region.access & NEEDED[work.opcode]
            or work.offset < 0
            or request.length < 0
            or work.offset + request.length > region.length
            or not self.channel.valid(region)
        ):
            self.ended = True
            self.channel.protection.refused += 1
            self._complete(request, Status.REM_ACCESS_ERR)
        elif work.opcode is Opcode.READ:
            self._complete(request, self._content(region).load(region.offset + work.offset, request.length))
        elif work.opcode in (Opcode.COMPARE_AND_SWAP, Opcode.FETCH_AND_ADD):
            self._operate(request, region)
        else:
            self._write(request, region, bytes(work.data))

    def _operate(self, request: _Request, region: Region) -> None:
        """As the processor does, in one step of the simulation."""
        work = request.work
        if work.offset % WORD_BYTES:
            self.ended = True
            self._complete(request, Status.REM_INV_REQ_ERR)
            return
        content, at = self._content(region), region.offset + work.offset
        old = content.load_u64(at)
        if work.opcode is Opcode.FETCH_AND_ADD:
            content.store_u64(at, (old + work.operand) % WORDS)
        elif old == work.expected:
            content.store_u64(at, work.operand)
        self._complete(request, old)

    def _write(self, request: _Request, region: Region, data: bytes) -> None:
        content, stream, loop = self._content(region), self.channel.wires.stream, self.channel.wires.fabric.loop
        at = region.offset + request.work.offset
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
        if request.work.opcode is Opcode.WRITE_WITH_IMMEDIATE and channel.domain.alive:
            channel.wires.fabric.loop.run_in(channel.domain, channel.protection.ring, (request.work.immediate,))
        self._complete(request, b"")

    def _content(self, region: Region) -> GatedMapping:
        """The memory as it is reached without its owner: no gate of a process of ours."""
        assert isinstance(region.memory, SimulatedObject)
        return GatedMapping(region.memory.content, None)

    def _complete(self, request: _Request, result: bytes | int | Status) -> None:
        self._carry(partial(self.pair.complete, request, result), droppable=True)

    def _carry(self, deliver: Callable[[], None], *, droppable: bool) -> None:
        fabric = self.channel.wires.fabric
        self._last_ns = max(self._last_ns + 1, fabric.loop.now_ns + fabric.delay_ns())
        fabric.carry(self.channel.me.host, self.pair.host, self._last_ns, deliver, droppable=droppable)
