"""One suite for `channel.contract`: shared memory and TCP between real channels, and the simulated carrier.

Run as a program this file is an owner in a process of its own, for the tests that kill and stop one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
import uvloop

from everram.runtime.channel import generations, seqpacket
from everram.runtime.channel.completions import CompletionQueue
from everram.runtime.channel.contract import (
    REQUEST_BYTES_MAX,
    Access,
    Channel,
    ChannelError,
    Completion,
    Opcode,
    QueuePair,
    Status,
    WorkRequest,
)
from everram.runtime.channel.frames import Identity, Resolve
from everram.runtime.channel.host_channel import HostChannel, Reach
from everram.runtime.channel.shared_memory_pair import CHUNK_BYTES
from everram.runtime.channel.tcp_framing import PLAIN
from everram.runtime.environment import Memory
from everram.runtime.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from everram.runtime.memory import memfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production.memory import KeptMemory
from everram.runtime.simulation.cache import CachedBytes
from everram.runtime.simulation.channel import SimulatedChannel, Wires
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.objects import Objects, SimulatedMemory
from everram.runtime.simulation.world import World

BOTH = Access.REMOTE_READ | Access.REMOTE_WRITE
ATOMIC = BOTH | Access.REMOTE_ATOMIC
CAPACITY = 256 << 20
TOKEN = "0123456789abcdef"


class KeepsOnly:
    """A machine that does nothing but keep descriptors."""

    def __init__(self, kept: dict[str, int] | None = None) -> None:
        self.kept = kept or {}

    async def keep(self, name: str, fd: int) -> None:
        self.kept[name] = fd

    async def drop(self, name: str) -> None:
        os.close(self.kept.pop(name))

    def close(self) -> None:
        for fd in self.kept.values():
            os.close(fd)


class Host(Protocol):
    """One process's end, and the memory of its machine."""

    @property
    def channel(self) -> Channel: ...

    memory: Memory


class Bench(Protocol):
    """Hosts on one carrier."""

    async def host(self, name: str, cluster: str = "c1") -> Host:
        """A host process; on the memory of the machine of that name, if there was one."""

    def kill(self, host: Host) -> None:
        """The process, not the memory."""

    def lose(self, host: Host) -> None:
        """The machine."""

    def close(self) -> None: ...


class RealHost:
    def __init__(self, name: str, memory: KeptMemory, channel: HostChannel) -> None:
        self.name, self.memory, self.channel = name, memory, channel


class RealBench:
    """Host processes' ends in this process, each on its own memory."""

    def __init__(self, folder: str, mode: str) -> None:
        self.folder = folder
        self.mode = mode
        self.line = PLAIN
        self.machines: dict[str, KeepsOnly] = {}
        self.hosts: list[RealHost] = []

    async def host(self, name: str, cluster: str = "c1", *, mode: str = "", token: str = TOKEN) -> RealHost:
        machine = self.machines.setdefault(name, KeepsOnly())
        memory = KeptMemory(cast(Any, machine), CAPACITY)
        me = Identity(cluster, name, f"{name}.{len(self.hosts)}")
        reach = Reach(f"{self.folder}/{name}.ch", mode or self.mode, token, line=self.line)
        channel = await HostChannel.open(memory, os.urandom, me, reach)
        self.hosts.append(RealHost(name, memory, channel))
        return self.hosts[-1]

    def kill(self, host: Host) -> None:
        """What the kernel does of it: the sockets close, and nothing is revoked."""
        assert isinstance(host, RealHost)
        if host.channel.shared_memory is not None:
            host.channel.shared_memory._listener.close()
            host.channel.shared_memory.hang_up()
        if host.channel.tcp is not None:
            assert host.channel.tcp._server is not None
            host.channel.tcp._server.close()
            host.channel.tcp.hang_up()

    def lose(self, host: Host) -> None:
        assert isinstance(host, RealHost)
        mapping = host.memory.open(generations.MEMORY_NAME).map()
        generations.kill(mapping)
        mapping.close()

    def close(self) -> None:
        for host in self.hosts:
            host.channel.close()
        for machine in self.machines.values():
            machine.close()


class SimulatedHost:
    def __init__(self, memory: SimulatedMemory, channel: SimulatedChannel, domain: Domain, objects: Objects) -> None:
        self.memory, self.channel, self.domain, self.objects = memory, channel, domain, objects


class SimulatedBench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.wires = Wires(world.fabric, world.stream("channel"))
        self.machines: dict[str, Objects] = {}
        self.started = 0

    async def host(self, name: str, cluster: str = "c1") -> SimulatedHost:
        objects = self.machines.setdefault(name, Objects(CAPACITY))
        memory = SimulatedMemory(objects)
        self.started += 1
        domain = self.world.loop.domain(f"{name}.{self.started}")
        randbytes = self.world.stream(domain.name).randbytes
        me = Identity(cluster, name, domain.name)
        channel = await SimulatedChannel.open(self.wires, objects, memory, randbytes, me, domain, f"simulated:{name}")
        return SimulatedHost(memory, channel, domain, objects)

    def kill(self, host: Host) -> None:
        assert isinstance(host, SimulatedHost)
        self.world.loop.kill(host.domain)

    def lose(self, host: Host) -> None:
        assert isinstance(host, SimulatedHost)
        host.objects.wipe()

    def close(self) -> None:
        pass


Body = Callable[[Any], Coroutine[Any, Any, None]]
Run = Callable[[Body], None]


def on_shared_memory(body: Body) -> None:
    on_real(body, "shm")


def on_tcp(body: Body) -> None:
    on_real(body, "tcp")


def on_real(body: Body, mode: str) -> None:
    async def scenario() -> None:
        with tempfile.TemporaryDirectory(prefix="ch-") as folder:
            bench = RealBench(folder, mode)
            try:
                async with asyncio.timeout(30):
                    await body(bench)
            finally:
                bench.close()

    uvloop.run(scenario())


def in_simulation(body: Body, seed: int = 1) -> World:
    world = World(seed)
    world.run(body(SimulatedBench(world)))
    assert not world.violations, world.violations
    return world


RUNS: dict[str, Run] = {
    "shared memory": on_shared_memory,
    "tcp": on_tcp,
    "simulated": lambda body: cast(None, in_simulation(body)),
}


@pytest.fixture(params=list(RUNS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


async def two(bench: Bench, size_bytes: int = 16 * PAGE_BYTES) -> tuple[Host, Host, QueuePair]:
    """An owner with a memory object "m", a peer, and the queue pair from there."""
    owner, peer = await bench.host("a"), await bench.host("b")
    await owner.memory.create("m", size_bytes)
    return owner, peer, await peer.channel.connect("a", owner.channel.address)


async def fails(request: Coroutine[Any, Any, Any], status: Status) -> None:
    with pytest.raises(ChannelError) as caught:
        await request
    assert caught.value.status is status
    assert caught.value.unknown == (status in (Status.RETRY_EXC_ERR, Status.WR_FLUSH_ERR))


class Rings:
    """A handler that counts, and can be awaited."""

    def __init__(self, on_ring: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.on_ring = on_ring
        self.rang = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.on_ring()
        self.rang.set()


# -- what every carrier does


def test_writes_and_reads_find_each_other_and_the_bell_rings_after_the_data(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 4096, 8192, BOTH)
        assert (region.length, region.access) == (8192, BOTH)
        memory = owner.memory.open("m")
        found: list[bytes] = []
        rings = Rings(lambda: found.append(memory.read(4096 + 100, 5)))
        immediate = owner.channel.receive(rings)
        assert 0 <= immediate < 1 << 32
        await pair.write(region.rkey, 0, b"begin")
        await pair.write_with_immediate(region.rkey, 100, memoryview(b"hello"), immediate)
        await rings.rang.wait()
        assert found == [b"hello"]
        assert memory.read(4096, 5) == b"begin"
        assert await pair.read(region.rkey, 98, 7) == b"\0\0hello"
        assert await pair.read(region.rkey, 0, 8) == b"begin\0\0\0"
        assert await pair.read(region.rkey, 8192, 0) == b""
        assert pair.peer == "a"

    run(body)


def test_requests_take_effect_in_the_order_in_which_they_were_posted(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench, 4 * CHUNK_BYTES)
        large = owner.channel.register("m", 0, 3 * CHUNK_BYTES, BOTH)
        small = owner.channel.register("m", 0, 64, BOTH)
        async with asyncio.TaskGroup() as tasks:
            # Neither the region that is resolved later nor the small one may overtake the large write.
            tasks.create_task(pair.write(large.rkey, 0, b"1" * (2 * CHUNK_BYTES)))
            for number in range(2, 10):
                tasks.create_task(pair.write(small.rkey, 0, str(number).encode()))
            last = tasks.create_task(pair.read(small.rkey, 0, 2))
        assert last.result() == b"91"

    run(body)


def test_a_word_is_never_seen_half_done(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 8, 64, BOTH)
        mapping = owner.memory.open("m").map()
        third = await (await bench.host("c")).channel.connect("a", owner.channel.address)

        async def look() -> None:
            for _ in range(200):
                for word in (mapping.load_u64(16), int.from_bytes(await third.read(region.rkey, 8, 8), "little")):
                    assert word >> 32 == word & 0xFFFF_FFFF
                await asyncio.sleep(0)

        async def write() -> None:
            for number in range(200):
                await pair.write(region.rkey, 8, (number << 32 | number).to_bytes(8, "little"))
                await asyncio.sleep(0)

        await asyncio.gather(look(), write())
        assert mapping.load_u64(16) == 199 << 32 | 199
        mapping.close()
        assert peer is not owner

    run(body)


def test_an_error_on_one_lane_leaves_the_others_as_they_are(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        aside = await peer.channel.connect("a", owner.channel.address, "aside")
        assert aside is not pair
        assert await peer.channel.connect("a", owner.channel.address, "aside") is aside
        await fails(aside.write(region.rkey ^ 1 << 40, 0, b"forged"), Status.REM_ACCESS_ERR)
        await pair.write(region.rkey, 0, b"goes on")
        assert await pair.read(region.rkey, 0, 7) == b"goes on"
        again = await peer.channel.connect("a", owner.channel.address, "aside")
        assert again is not aside
        assert await again.read(region.rkey, 0, 7) == b"goes on"

    run(body)


def test_a_resizable_object_is_reached_as_long_as_it_is_now(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        memory = await owner.memory.create("file.1", 0, resizable=True)
        with pytest.raises(InvalidArgument):
            owner.channel.register("file.1", 0, 8, BOTH)
        region = owner.channel.register("file.1", 0, 0, BOTH)
        assert await pair.read(region.rkey, 0, 0) == b""
        owner.memory.resize("file.1", 13)
        assert region.length == 13
        await pair.write(region.rkey, 0, b"thirteen long")
        await pair.write(region.rkey, 0, b"THIRTEEN")  # a word
        assert await pair.read(region.rkey, 0, 13) == memory.read(0, 13) == b"THIRTEEN long"
        assert await pair.read(region.rkey, 0, 8) == b"THIRTEEN"
        owner.memory.resize("file.1", 3 * CHUNK_BYTES)
        await pair.write(region.rkey, 5, b"x" * (2 * CHUNK_BYTES))
        assert await pair.read(region.rkey, 5, 2 * CHUNK_BYTES + 1) == b"x" * (2 * CHUNK_BYTES) + b"\0"
        found = bytearray(b"?" * (2 * CHUNK_BYTES + 2))
        await pair.read_into(region.rkey, 5, memoryview(found)[:-1])
        assert found == b"x" * (2 * CHUNK_BYTES) + b"\0?"
        await fails(pair.write(region.rkey, 3 * CHUNK_BYTES, b"x"), Status.REM_ACCESS_ERR)
        assert memory.size_bytes == 3 * CHUNK_BYTES, "a peer does not lengthen it"
        pair = await peer.channel.connect("a", owner.channel.address)
        assert await pair.read(region.rkey, 0, 5) == b"THIRT"
        region.deregister()
        owner.memory.resize("file.1", 0)
        await fails(pair.read(region.rkey, 0, 5), Status.REM_ACCESS_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        again = owner.channel.register("file.1", 0, 0, Access.REMOTE_READ)
        owner.memory.resize("file.1", 8)
        assert await pair.read(again.rkey, 0, 8) == bytes(8)
        await fails(pair.write(again.rkey, 0, b"x"), Status.REM_ACCESS_ERR)

    run(body)


def test_a_peer_outlives_an_object_that_is_shortened_under_it() -> None:
    """Without a word from its owner: what a mapping would have ended this process with."""

    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        await owner.memory.create("file.1", 0, resizable=True)
        owner.memory.resize("file.1", 4 * PAGE_BYTES)
        region = owner.channel.register("file.1", 0, 0, BOTH)
        await pair.write(region.rkey, 3 * PAGE_BYTES, b"x")
        owner.memory.resize("file.1", PAGE_BYTES)
        await fails(pair.read(region.rkey, 3 * PAGE_BYTES, 1), Status.REM_ACCESS_ERR)

    on_shared_memory(body)


@pytest.mark.parametrize(("offset", "length"), [(64, 1), (60, 5), (-8, 8), (1 << 62, 8), (0, 65)])
def test_nothing_outside_the_region_is_touched(run: Run, offset: int, length: int) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, _ = await two(bench)
        region = owner.channel.register("m", 8, 64, BOTH)
        memory = owner.memory.open("m")
        memory.write(0, b"x" * 128)
        for known in (False, True):
            for act in ("write", "ring", "read"):
                pair = await peer.channel.connect("a", owner.channel.address)
                if known:
                    await pair.write(region.rkey, 0, b"x")
                if act == "read":
                    await fails(pair.read(region.rkey, offset, length), Status.REM_ACCESS_ERR)
                elif act == "write":
                    await fails(pair.write(region.rkey, offset, b"y" * length), Status.REM_ACCESS_ERR)
                else:
                    await fails(pair.write_with_immediate(region.rkey, offset, b"y" * length, 1), Status.REM_ACCESS_ERR)
                await pair.wait_broken()
                # Broken for good: what is posted later is flushed.
                await fails(pair.write(region.rkey, 0, b"y"), Status.WR_FLUSH_ERR)
        assert memory.read(0, 128) == b"x" * 128

    run(body)


@pytest.mark.parametrize("known", [False, True])
def test_only_what_a_region_allows(run: Run, known: bool) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        readable = owner.channel.register("m", 0, 64, Access.REMOTE_READ)
        writable = owner.channel.register("m", 64, 64, Access.REMOTE_WRITE)
        if known:
            await pair.read(readable.rkey, 0, 8)
            await pair.write(writable.rkey, 0, b"x")
        await fails(pair.write(readable.rkey, 0, b"y"), Status.REM_ACCESS_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        if known:
            await pair.write(writable.rkey, 0, b"x")
        await fails(pair.read(writable.rkey, 0, 1), Status.REM_ACCESS_ERR)
        assert owner.memory.open("m").read(0, 64) == bytes(64)

    run(body)


def test_forged_rkeys_are_refused(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, _ = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        for rkey in (0, region.rkey ^ (1 << 63), region.rkey ^ 1, (1 << 64) - 1):
            pair = await peer.channel.connect("a", owner.channel.address)
            await fails(pair.write(rkey, 0, b"y"), Status.REM_ACCESS_ERR)
        assert owner.memory.open("m").read(0, 64) == bytes(64)
        assert owner.channel.refused == 4

    run(body)


@pytest.mark.parametrize("known", [False, True])
def test_a_deregistered_region_is_closed_to_all(run: Run, known: bool) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        other = owner.channel.register("m", 0, 64, BOTH)
        if known:
            await pair.write(region.rkey, 0, b"x")
        region.deregister()
        region.deregister()
        await fails(pair.write(region.rkey, 0, b"y"), Status.REM_ACCESS_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        await fails(pair.read(region.rkey, 0, 1), Status.REM_ACCESS_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        await pair.write(other.rkey, 0, b"z")
        assert owner.memory.open("m").read(0, 1) == b"z"
        assert len({region.rkey, other.rkey, owner.channel.register("m", 0, 64, BOTH).rkey}) == 3

    run(body)


def test_what_cannot_be_registered_is_told(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, _ = await two(bench)
        with pytest.raises(NotFound):
            owner.channel.register("n", 0, 64, BOTH)
        for offset, length in ((4, 64), (0, 12), (-8, 16), (16 * PAGE_BYTES - 8, 16), (0, 0)):
            with pytest.raises(InvalidArgument):
                owner.channel.register("m", offset, length, BOTH)
        with pytest.raises(InvalidArgument):
            owner.channel.register("m", 0, 64, Access(0))
        regions = [owner.channel.register("m", 0, 8, BOTH) for _ in range(generations.SLOTS)]
        with pytest.raises(ResourceExhausted):
            owner.channel.register("m", 0, 8, BOTH)
        regions[0].deregister()
        owner.channel.register("m", 0, 8, BOTH)

    run(body)


def test_a_restarted_owner_takes_no_rkey_of_its_predecessor(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        bench.kill(owner)
        await pair.wait_broken()
        await fails(pair.write(region.rkey, 0, b"y"), Status.WR_FLUSH_ERR)
        with pytest.raises(Unavailable):
            await peer.channel.connect("a", owner.channel.address)
        owner = await bench.host("a")
        pair = await peer.channel.connect("a", owner.channel.address)
        await fails(pair.write(region.rkey, 0, b"y"), Status.REM_ACCESS_ERR)
        assert owner.memory.open("m").read(0, 1) == b"x"
        region = owner.channel.register("m", 0, 64, BOTH)
        pair = await peer.channel.connect("a", owner.channel.address)
        await pair.write(region.rkey, 0, b"z")
        assert owner.memory.open("m").read(0, 1) == b"z"

    run(body)


def test_a_peer_that_has_not_noticed_the_restart_writes_nothing(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        bench.kill(owner)
        owner = await bench.host("a")
        with pytest.raises(ChannelError):
            await pair.write(region.rkey, 0, b"y")
        assert owner.memory.open("m").read(0, 1) == b"x"

    run(body)


def test_another_cluster_and_another_host_are_refused(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, _ = await two(bench)
        stranger = await bench.host("s", cluster="c2")
        with pytest.raises(Unavailable, match="host a is of cluster c1, host s of cluster c2"):
            await stranger.channel.connect("a", owner.channel.address)
        with pytest.raises(Unavailable, match="host a"):
            await peer.channel.connect("z", owner.channel.address)
        for address in ("", "tcp:1.2.3.4:5", owner.channel.address + "x"):
            with pytest.raises(Unavailable):
                await peer.channel.connect("a", address)

    run(body)


def test_one_queue_pair_a_peer_shared_by_all_who_ask(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        again = await asyncio.gather(*(peer.channel.connect("a", owner.channel.address) for _ in range(5)))
        assert all(found is pair for found in again)
        waiting = asyncio.ensure_future(pair.wait_broken())
        pair.close()
        pair.close()
        await waiting
        assert await peer.channel.connect("a", owner.channel.address) is not pair
        await owner.channel.connect("b", peer.channel.address)
        myself = await owner.channel.connect("a", owner.channel.address)
        region = owner.channel.register("m", 0, 64, BOTH)
        await myself.write(region.rkey, 0, b"x")
        peer.channel.close()  # type: ignore[attr-defined]
        with pytest.raises(Unavailable):
            await peer.channel.connect("a", owner.channel.address)

    run(body)


def test_many_immediates_may_be_told_as_one_but_none_is_lost(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, PAGE_BYTES, BOTH)
        mapping = owner.memory.open("m").map()
        told = [0, 0, 0]
        finished = asyncio.Event()

        def tell(number: int) -> None:
            told[number] = mapping.load_u64(8 * number)
            if told == [3000, 3000, 3000]:
                finished.set()

        handlers = [Rings(lambda number=number: tell(number)) for number in range(3)]  # type: ignore[misc]
        immediates = [owner.channel.receive(handler) for handler in handlers]
        deaf = owner.channel.receive(lambda: pytest.fail("it was given back"))
        owner.channel.unreceive(deaf)
        for value in range(1, 3001):  # more than a socket takes while nobody reads
            for number, immediate in enumerate(immediates):
                word = value.to_bytes(8, "little")
                await pair.write_with_immediate(region.rkey, 8 * number, word, immediate)
        await pair.write_with_immediate(region.rkey, 0, b"", deaf)
        last = Rings()
        await pair.write_with_immediate(region.rkey, 0, b"", owner.channel.receive(last))  # rung only now
        await finished.wait()
        await last.rang.wait()
        assert all(1 <= handler.count <= 3000 for handler in handlers)
        mapping.close()

    run(body)


def test_a_failing_handler_takes_nothing_with_it(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, PAGE_BYTES, BOTH)
        rings = Rings()

        def fail() -> None:
            raise Unavailable("not today")

        first, second = owner.channel.receive(fail), owner.channel.receive(rings)
        await pair.write_with_immediate(region.rkey, 0, b"x", first)
        await pair.write_with_immediate(region.rkey, 0, b"x", second)
        await rings.rang.wait()

    run(body)


def test_large_transfers_arrive_whole(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench, 8 * CHUNK_BYTES)
        region = owner.channel.register("m", 8, 6 * CHUNK_BYTES, BOTH)
        data = bytes(range(256)) * (5 * CHUNK_BYTES // 256) + b"odd"
        rings = Rings()
        await pair.write_with_immediate(region.rkey, 16, data, owner.channel.receive(rings))
        await rings.rang.wait()
        assert owner.memory.open("m").read(24, len(data)) == data
        assert await pair.read(region.rkey, 16, len(data)) == data

    run(body)


def test_atomic_operations_find_what_was_there(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 8, 64, ATOMIC)
        assert await pair.compare_and_swap(region.rkey, 8, 0, 7) == 0
        assert await pair.compare_and_swap(region.rkey, 8, 0, 9) == 7  # not what was expected: nothing changed
        assert await pair.compare_and_swap(region.rkey, 8, 7, (1 << 64) - 1) == 7
        assert await pair.fetch_and_add(region.rkey, 8, 3) == (1 << 64) - 1
        assert await pair.fetch_and_add(region.rkey, 8, (1 << 64) - 2) == 2
        assert await pair.read(region.rkey, 0, 24) == bytes(24)
        mapping = owner.memory.open("m").map()
        assert mapping.load_u64(16) == 0
        mapping.close()

    run(body)


def test_nothing_is_lost_between_peers_that_count_on_one_word(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, ATOMIC)
        others = [await (await bench.host(name)).channel.connect("a", owner.channel.address) for name in "cd"]

        async def add(through: QueuePair) -> list[int]:
            return [await through.fetch_and_add(region.rkey, 0, 1) for _ in range(100)]

        async def swap(through: QueuePair) -> list[int]:
            found = []
            for _ in range(100):
                seen = 0
                while (old := await through.compare_and_swap(region.rkey, 0, seen, seen + 1)) != seen:
                    seen = old
                found.append(seen)
            return found

        found = await asyncio.gather(add(pair), add(others[0]), swap(others[1]), swap(pair))
        assert sorted(old for olds in found for old in olds) == list(range(400))

    run(body)


@pytest.mark.parametrize("known", [False, True])
def test_atomic_operations_need_an_aligned_word_of_a_region_that_allows_them(run: Run, known: bool) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench)
        plain = owner.channel.register("m", 0, 64, BOTH)
        atomic = owner.channel.register("m", 64, 64, Access.REMOTE_ATOMIC)
        refusals = [
            (plain, 0, Status.REM_ACCESS_ERR),
            (atomic, 64, Status.REM_ACCESS_ERR),
            (atomic, -8, Status.REM_ACCESS_ERR),
            (atomic, 60, Status.REM_ACCESS_ERR),
            (atomic, 4, Status.REM_INV_REQ_ERR),
        ]
        for region, offset, status in refusals:
            for adds in (False, True):
                pair = await peer.channel.connect("a", owner.channel.address)
                if known:
                    await pair.write(plain.rkey, 0, b"x")
                    await pair.fetch_and_add(atomic.rkey, 8, 1)
                if adds:
                    await fails(pair.fetch_and_add(region.rkey, offset, 1), status)
                else:
                    await fails(pair.compare_and_swap(region.rkey, offset, 0, 1), status)
        pair = await peer.channel.connect("a", owner.channel.address)
        await fails(pair.write(atomic.rkey, 0, b"x"), Status.REM_ACCESS_ERR)  # it allows nothing else
        assert owner.memory.open("m").read(64, 8) == bytes(8)

    run(body)


def test_posted_requests_complete_in_order(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench, 4 * CHUNK_BYTES)
        region = owner.channel.register("m", 0, 3 * CHUNK_BYTES, ATOMIC)
        rings, completions = Rings(), CompletionQueue()
        rung = owner.channel.receive(rings)
        large = b"1" * (2 * CHUNK_BYTES)
        requests = [
            WorkRequest(Opcode.WRITE, region.rkey, data=large, wr_id=1),
            WorkRequest(Opcode.WRITE_WITH_IMMEDIATE, region.rkey, 8, b"hello", immediate=rung, wr_id=2),
            WorkRequest(Opcode.READ, region.rkey, 6, length=8, wr_id=3),
            WorkRequest(Opcode.READ, region.rkey, 64, length=CHUNK_BYTES + 1, wr_id=4),
            WorkRequest(Opcode.FETCH_AND_ADD, region.rkey, 64, operand=1, wr_id=5),
            WorkRequest(Opcode.COMPARE_AND_SWAP, region.rkey, 64, operand=5, expected=0, wr_id=6),
        ]
        for request in requests:
            pair.post(request, completions)
        ones = int.from_bytes(b"1" * 8, "little")
        assert await pair.read(region.rkey, 64, 8) == (ones + 1).to_bytes(8, "little")  # nobody is overtaken
        await rings.rang.wait()
        ended: list[Completion] = []
        while len(ended) < len(requests):
            ended += await completions.wait(2)
        assert completions.poll() == [] and not len(completions)
        assert [completion.wr_id for completion in ended] == [1, 2, 3, 4, 5, 6]
        assert {completion.status for completion in ended} == {Status.SUCCESS}
        assert [completion.opcode for completion in ended] == [request.opcode for request in requests]
        assert (ended[2].data, ended[3].data) == (b"11hello1", b"1" * (CHUNK_BYTES + 1))
        assert (ended[4].value, ended[5].value) == (ones, ones + 1)
        # The first that fails says why, the others are flushed.
        region.deregister()
        for request in requests[2:]:
            pair.post(request, completions)
        ended = []
        while len(ended) < 4:
            ended += await completions.wait()
        assert [completion.status for completion in ended] == [Status.REM_ACCESS_ERR] + 3 * [Status.WR_FLUSH_ERR]
        assert all(completion.message for completion in ended)
        for wrong in ({"rkey": -1}, {"rkey": 0, "immediate": 1 << 32}, {"rkey": 0, "operand": -1}):
            with pytest.raises(InvalidArgument):
                pair.post(WorkRequest(Opcode.WRITE, **cast(Any, wrong)), completions)
        with pytest.raises(InvalidArgument):
            pair.post(WorkRequest(Opcode.READ, 0, length=REQUEST_BYTES_MAX + 1), completions)

    run(body)


def test_registered_memory_is_a_source_and_a_target(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, peer, pair = await two(bench, 4 * CHUNK_BYTES)
        await peer.memory.create("own", 4 * CHUNK_BYTES)
        there = owner.channel.register("m", 0, 4 * CHUNK_BYTES, BOTH)
        own = peer.channel.register("own", 0, 4 * CHUNK_BYTES, Access.REMOTE_READ)
        length = 2 * CHUNK_BYTES + 24
        peer.memory.open("own").write(8, b"7" * length)
        await pair.write(there.rkey, 16, peer.channel.local(own.lkey, 8, length))
        assert owner.memory.open("m").read(16, length + 1) == b"7" * length + b"\0"
        for size in (0, 8, 100, length):
            await pair.read_into(there.rkey, 16, peer.channel.local(own.lkey, 3 * CHUNK_BYTES - length, size))
            assert peer.memory.open("own").read(3 * CHUNK_BYTES - length, size) == b"7" * size
        for offset, size in ((-1, 1), (4 * CHUNK_BYTES, 1), (0, -1)):
            with pytest.raises(ChannelError) as caught:
                peer.channel.local(own.lkey, offset, size)
            assert caught.value.status is Status.LOC_PROT_ERR and not caught.value.unknown
        own.deregister()
        with pytest.raises(ChannelError):
            peer.channel.local(own.lkey, 0, 8)
        assert pair.carrier == peer.channel.carriers()["a"]
        pair.close()
        assert peer.channel.carriers() == {}

    run(body)


def test_an_abandoned_request_holds_up_nobody(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench, 4 * CHUNK_BYTES)
        region = owner.channel.register("m", 0, 4 * CHUNK_BYTES, BOTH)
        tasks = [asyncio.ensure_future(pair.write(region.rkey, 0, b"1" * (3 * CHUNK_BYTES))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await pair.write(region.rkey, 0, b"2")
        assert await pair.read(region.rkey, 0, 2) == b"21"
        await asyncio.gather(tasks[0], tasks[2])
        assert tasks[1].cancelled()

    run(body)


def test_a_dead_machine_gives_and_takes_nothing(run: Run) -> None:
    async def body(bench: Bench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        bench.lose(owner)
        with pytest.raises(ChannelError):
            await pair.read(region.rkey, 0, 1)
        with pytest.raises(ChannelError):
            await pair.write(region.rkey, 0, b"y")

    run(body)


# -- shared memory


async def until(condition: Callable[[], bool]) -> None:
    """Turn by turn: what is waited for happens on this loop, or is seen by nothing else."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:")


def test_each_object_is_mapped_once_and_nothing_is_left(tmp_path: Path) -> None:
    async def body(bench: RealBench) -> None:
        before = descriptors(), mappings()
        owner, peer, pair = await two(bench)
        regions = [owner.channel.register("m", 64 * number, 64, BOTH) for number in range(20)]
        at_rest = mappings()
        for region in regions:
            await pair.write(region.rkey, 0, b"x")
        assert mappings() == at_rest + 1
        readable = owner.channel.register("m", 0, 64, Access.REMOTE_READ)
        await pair.read(readable.rkey, 0, 1)
        assert mappings() == at_rest + 2
        line = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:m " in line]
        assert sorted(text.split()[1] for text in line) == ["r--s", "rw-s"]
        for region in [*regions, readable]:
            region.deregister()
        await until(lambda: mappings() == at_rest)  # the owner says that nothing of it is registered any more
        assert not pair.broken  # type: ignore[attr-defined]
        await pair.write(owner.channel.register("m", 0, 64, BOTH).rkey, 0, b"y")
        peer.channel.close()  # type: ignore[attr-defined]
        owner.channel.close()  # type: ignore[attr-defined]
        await pair.wait_broken()
        kept = sum(len(machine.kept) for machine in bench.machines.values())
        assert (descriptors(), mappings()) == (before[0] + kept, before[1])
        assert list(Path(bench.folder).iterdir()) == []

    on_shared_memory(body)


def test_a_revocation_during_a_long_write_makes_it_unknown() -> None:
    async def body(bench: RealBench) -> None:
        owner, peer, pair = await two(bench, 8 * CHUNK_BYTES)
        for act in ("deregister", "kill"):
            pair = await peer.channel.connect("a", owner.channel.address)
            region = owner.channel.register("m", 0, 8 * CHUNK_BYTES, BOTH)
            await pair.write(region.rkey, 0, b"x")
            writing = asyncio.ensure_future(pair.write(region.rkey, 0, b"y" * (8 * CHUNK_BYTES)))
            memory = owner.memory.open("m")
            await until(lambda memory=memory: memory.read(0, 1) == b"y")  # type: ignore[misc]
            if act == "deregister":
                region.deregister()
            else:
                bench.kill(owner)
            await fails(cast(Any, writing), Status.WR_FLUSH_ERR)
            assert owner.memory.open("m").read(8 * CHUNK_BYTES - 1, 1) != b"y"

    on_shared_memory(body)


def test_nobody_is_harmed_by_nonsense() -> None:
    async def body(bench: RealBench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        for data in (b"x", b"\xff" * 16, Resolve(region.rkey).encode(), b"\1\0\0\0{", b"\1\0\0\0[]", b"\2\0\0\0" * 4):
            sock = seqpacket.dial(f"{bench.folder}/a.ch")
            ended = asyncio.Event()
            connection = seqpacket.Connection(sock, lambda batch: pytest.fail(repr(batch)), ended.set, polite=False)
            connection.post(data)
            await ended.wait()
        await pair.write(region.rkey, 0, b"x")

    on_shared_memory(body)


def test_a_table_that_cannot_be_read_is_made_anew() -> None:
    async def body(bench: RealBench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        owner.memory.open(generations.MEMORY_NAME).write(8, b"\xff" * 4)
        bench.kill(owner)
        owner = await bench.host("a")
        with pytest.raises(ChannelError):
            await pair.write(region.rkey, 0, b"y")
        region = owner.channel.register("m", 0, 64, BOTH)
        await (await peer.channel.connect("a", owner.channel.address)).write(region.rkey, 0, b"z")

    on_shared_memory(body)


# -- the simulation


def test_the_simulated_carrier_is_deterministic() -> None:
    def digest(seed: int) -> str:
        async def body(bench: SimulatedBench) -> None:
            owner, _, pair = await two(bench)
            region = owner.channel.register("m", 0, 8 * PAGE_BYTES, BOTH)
            await asyncio.gather(*(pair.write(region.rkey, 8 * n, bytes(100)) for n in range(100)))

        return in_simulation(body, seed).digest

    assert digest(1) == digest(1) != digest(2)


def test_a_cut_ends_in_a_timeout_and_the_next_queue_pair_ends_what_is_late() -> None:
    async def body(bench: SimulatedBench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        await pair.write(region.rkey, 0, b"x")
        bench.world.fabric.cut("b", "a")
        first = asyncio.ensure_future(pair.write(region.rkey, 0, b"y"))
        second = asyncio.ensure_future(pair.write(region.rkey, 0, b"z"))
        await fails(cast(Any, first), Status.RETRY_EXC_ERR)
        await fails(cast(Any, second), Status.WR_FLUSH_ERR)
        with pytest.raises(Unavailable):
            await peer.channel.connect("a", owner.channel.address)
        bench.world.fabric.heal()
        pair = await peer.channel.connect("a", owner.channel.address)
        await pair.write(region.rkey, 0, b"w")
        await asyncio.sleep(1)
        assert owner.memory.open("m").read(0, 1) == b"w"

    for seed in range(1, 6):
        in_simulation(body, seed)


def test_nothing_of_a_former_queue_pair_lands_after_the_next_has_written() -> None:
    async def body(bench: SimulatedBench) -> None:
        owner, peer, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        late = asyncio.ensure_future(pair.write(region.rkey, 0, b"y"))
        await asyncio.sleep(0)
        pair.close()
        await fails(cast(Any, late), Status.WR_FLUSH_ERR)
        pair = await peer.channel.connect("a", owner.channel.address)
        await pair.write(region.rkey, 0, b"z")
        await asyncio.sleep(1)
        assert owner.memory.open("m").read(0, 1) == b"z"

    for seed in range(1, 100):
        in_simulation(body, seed)


def test_a_new_host_revokes_before_its_predecessor_is_missed() -> None:
    async def body(bench: SimulatedBench) -> None:
        owner, _, pair = await two(bench)
        region = owner.channel.register("m", 0, 64, BOTH)
        memory = owner.memory.open("m")
        bench.kill(owner)
        before = asyncio.ensure_future(pair.write(region.rkey, 0, b"x"))
        await asyncio.sleep(0.0002)
        await bench.host("a")
        there = memory.read(0, 1)
        with pytest.raises(ChannelError):
            await pair.write(region.rkey, 0, b"y")
        await asyncio.gather(before, return_exceptions=True)
        assert memory.read(0, 1) == there
        landed.add(there)

    landed: set[bytes] = set()
    for seed in range(1, 40):
        in_simulation(body, seed)
    assert landed == {b"\0", b"x"}, "a dead process's memory takes writes until the next one revokes"


def test_the_owner_may_be_stopped_and_what_was_written_is_not_yet_persistent() -> None:
    async def body(bench: SimulatedBench) -> None:
        owner, _, pair = await two(bench)
        assert isinstance(owner, SimulatedHost)
        owner.objects.by_name["p"] = content = CachedBytes(PAGE_BYTES)
        region = owner.channel.register("p", 0, 64, BOTH)
        rings = Rings()
        immediate = owner.channel.receive(rings)
        bench.world.loop.freeze(owner.domain)
        await pair.write_with_immediate(region.rkey, 0, b"x" * 64, immediate)
        assert (content.content[:64], content.durable[:64]) == (b"x" * 64, bytes(64))
        await asyncio.sleep(0.1)
        assert rings.count == 0
        bench.world.loop.thaw(owner.domain)
        await rings.rang.wait()
        mapping = owner.memory.open("p").map()
        mapping.flush(0, 64)
        mapping.drain()
        assert content.durable[:64] == b"x" * 64

    in_simulation(body)


# -- an owner in a process of its own


async def own(folder: str, kept: dict[str, int]) -> None:
    """Registers "m" whole, says so, and tells each ring; looks for halves in the words at 0."""
    memory = KeptMemory(cast(Any, KeepsOnly(kept)), CAPACITY)
    channel = await HostChannel.open(memory, os.urandom, Identity("c1", "a", "x"), Reach(f"{folder}/a.ch", token=TOKEN))
    mapping = memory.open("m").map()
    region = channel.register("m", 0, memory.open("m").size_bytes, ATOMIC)
    immediate = channel.receive(lambda: print("rang", mapping.load_u64(8), flush=True))
    told = {"rkey": region.rkey, "immediate": immediate, "address": channel.address}
    print(json.dumps(told), flush=True)
    while True:
        for _ in range(1000):
            word = mapping.load_u64(0)
            if word >> 32 != word & 0xFFFF_FFFF:
                print("torn", word, flush=True)
        await asyncio.sleep(0)


class Owner:
    """The process, on memory that outlives it."""

    def __init__(self, folder: str, kept: dict[str, int]) -> None:
        arguments = [sys.executable, __file__, folder, json.dumps(kept)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, pass_fds=list(kept.values()))
        self.told = json.loads(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def kept_memory() -> Iterator[dict[str, int]]:
    kept = {name: memfd.create(name, size) for name, size in (("m", 1 << 20), ("channel", generations.MEMORY_BYTES))}
    yield kept
    for fd in kept.values():
        os.close(fd)


@pytest.mark.process
def test_an_owner_in_another_process_is_stopped_continued_and_killed() -> None:
    async def body(bench: RealBench) -> None:
        peer = await bench.host("b")
        address = f"shm:{bench.folder}/a.ch"
        with kept_memory() as kept:
            owner = Owner(bench.folder, kept)
            try:
                pair = await peer.channel.connect("a", address)
                rkey, immediate = owner.told["rkey"], owner.told["immediate"]
                for number in range(50_000):
                    await pair.write(rkey, 0, (number << 32 | number).to_bytes(8, "little"))
                await pair.write_with_immediate(rkey, 8, (1).to_bytes(8, "little"), immediate)
                assert owner.line() == "rang 1\n"
                owner.process.send_signal(signal.SIGSTOP)
                # Its memory needs no work of its own, and however often the bell rings, nobody waits.
                for number in range(2, 10_000):
                    await pair.write_with_immediate(rkey, 8, number.to_bytes(8, "little"), immediate)
                assert await pair.read(rkey, 8, 8) == (9999).to_bytes(8, "little")
                owner.process.send_signal(signal.SIGCONT)
                while (line := await asyncio.to_thread(owner.line)) != "rang 9999\n":
                    assert line.startswith("rang")
                owner.end()
                await pair.wait_broken()
                await fails(pair.write(rkey, 0, bytes(8)), Status.WR_FLUSH_ERR)
                owner = Owner(bench.folder, kept)
                pair = await peer.channel.connect("a", address)
                assert await pair.read(owner.told["rkey"], 8, 8) == (9999).to_bytes(8, "little")
                await fails(pair.read(rkey, 8, 8), Status.REM_ACCESS_ERR)
            finally:
                owner.end()

    on_shared_memory(body)


@pytest.mark.process
def test_a_stopped_owner_ends_in_a_deadline_where_its_word_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everram.runtime.channel.shared_memory_pair.ANSWER_TIMEOUT_S", 0.2)

    async def body(bench: RealBench) -> None:
        peer, other = await bench.host("b"), await bench.host("c")
        address = f"shm:{bench.folder}/a.ch"
        with kept_memory() as kept:
            owner = Owner(bench.folder, kept)
            try:
                pair = await peer.channel.connect("a", address)
                owner.process.send_signal(signal.SIGSTOP)
                await fails(pair.write(owner.told["rkey"], 0, b"x"), Status.RETRY_EXC_ERR)
                with pytest.raises(Unavailable):
                    await other.channel.connect("a", address)
            finally:
                owner.end()

    on_shared_memory(body)


if __name__ == "__main__":
    uvloop.run(own(sys.argv[1], json.loads(sys.argv[2])))
