"""A cluster of the real actors in a simulated world.

    cluster = Cluster(world, hosts=3, programs={b"/ledger": ...})
    cluster.start()
    guest = await cluster.ask("client", "h1", lambda node: node.ref(HypervisorRef).run(spec), timeout_s=5)

Each host is what `everram.actors.compose` builds, on an environment of simulated parts; it lives as
`everram.actors.host` lets it live in production. Machines, the network, disks and coordination are in
`everram.runtime.simulation`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from everram.actors.chaos.checks.promised_is_held import HELD_NOWHERE
from everram.actors.chaos.volatile_plan import VolatilePlan
from everram.actors.compose import compose
from everram.runtime.channel.frames import Identity
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.vmemfs_contract import VMEMFS_WRITE_LATEST, VMemFSRef
from everram.runtime.coordination.api import Put, Range
from everram.runtime.coordination.directory import CLUSTER, decode, encode, guest_key, host_key, machine_key
from everram.runtime.environment import Environment
from everram.runtime.errors import DeadlineExceeded, EverramError, FailedPrecondition, NotFound
from everram.runtime.formats.config import HostConfig
from everram.runtime.formats.vmemfs import MEMORY_NAME, Superblock
from everram.runtime.log.ring import LEASE, TAIL
from everram.runtime.machine.effects import Limits
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.node import Node
from everram.runtime.simulation.channel import SimulatedChannel, Wires
from everram.runtime.simulation.clock import SimulatedClock
from everram.runtime.simulation.disk import SimulatedDisk
from everram.runtime.simulation.domain import Domain
from everram.runtime.simulation.endpoint import Endpoint
from everram.runtime.simulation.entropy import SimulatedEntropy, Stream
from everram.runtime.simulation.logs import SimulatedLogs
from everram.runtime.simulation.machine import GuestProgram, MachinePort, SimulatedMachine
from everram.runtime.simulation.objects import Gate, SimulatedMemory
from everram.runtime.simulation.paging import HostFaults
from everram.runtime.simulation.world import World

T = TypeVar("T")

MEMORY_BYTES = 64 << 20
NVM_BYTES = 32 << 20
BURIAL_S = (0.005, 0.15)
"""From a machine's death to its proof: every process of it has to be found gone."""
RETRY_S = 0.1
CLOCK_OFFSET_NS_MAX = 500_000_000_000
WALL_ERROR_NS_MAX = 50_000_000
OBSERVE_S = 0.002
"""Between looks of an observer outside the world."""
TICK_S = 1e-9
"""Of the simulated clock: what is less does not pass."""
CLUSTER_ID = "5eed5eed5eed5eed"


@dataclass(frozen=True, slots=True)
class Preemption:
    """Mean number of a process's stores between two preemptions in the middle of a callback; 0: never."""

    guests: int = 0
    hosts: int = 0


class Cluster:
    """See the module. Every observer is told of each guest's fate: (host, what, guest_id, epoch)."""

    def __init__(
        self,
        world: World,
        *,
        hosts: int,
        programs: Mapping[str, GuestProgram],
        lease_ttl_s: float = 2.0,
        preemption: Preemption | None = None,
        battery_s: float = 30.0,
        memory: VolatilePlan | None = None,
        nvm_bytes: int = NVM_BYTES,
        clock_drift_ppm: int = 0,
    ) -> None:
        """`clock_drift_ppm`: the most by which any two computers' clocks differ in rate, coordination's included."""
        self.world = world
        self.names = [f"h{number}" for number in range(1, hosts + 1)]
        self.lease_ttl_s = lease_ttl_s
        self.machines: dict[str, SimulatedMachine] = {}
        self.nodes: dict[str, Endpoint[Node]] = {name: Endpoint(world.fabric, name) for name in self.names}
        self.observers: list[Callable[[str, str, str, int], None]] = []
        self.failures: list[tuple[str, Exception]] = []
        """Processes that ended with an exception, by domain."""
        self.also: list[Callable[[str, Node], Coroutine[Any, Any, None]]] = []
        """What else every incarnation of a host does while it serves."""
        self.guest_gates: dict[str, Gate] = {}
        """Of the latest incarnation, by guest_id."""
        self.host_gates: dict[str, Gate] = {}
        """Of the latest incarnation, by host."""
        self.memory_ids: dict[str, str] = {}
        """Of the machines whose memory lives, in their chips or in a saved image, by host."""
        self._programs = programs
        self._preemption = preemption or Preemption()
        self.extend: Callable[[Node], None] = lambda node: None
        """Adds actors of somebody's own to each incarnation of a host, before it starts."""
        self.battery_s, self.nvm_bytes = battery_s, nvm_bytes
        self._memory = memory
        self._burial = world.stream("burial")
        self._wires = Wires(world.fabric, world.stream("channel"))
        self._generations = dict.fromkeys(self.names, 0)
        self._records: dict[str, tuple[bytes, dict[str, Any]]] = {}
        """Of each guest: the directory's record, and what it says."""
        self._clocks: dict[str, SimulatedClock] = {}
        if clock_drift_ppm:
            draw = world.stream("clocks")
            self._clocks = {name: _clock(world, draw, clock_drift_ppm) for name in self.names}
            world.coordination.clock = _clock(world, draw, clock_drift_ppm)

    def start(self) -> None:
        self.world.coordination.start()
        for name in self.names:
            self.power_on(name)

    def power_on(self, name: str) -> None:
        """A machine with empty memory and the disk that it always had."""
        self._generations[name] += 1
        generation = self._generations[name]
        machine = SimulatedMachine(
            self.world.loop,
            name,
            self.world.stream(f"machine/{name}.{generation}"),
            memory_bytes=MEMORY_BYTES,
            start_host=self._live,
            programs=self._programs,
            guest_gate=self._guest_gate,
            generation=generation,
            limits=Limits(battery_ns=int(self.battery_s * 1e9)),
            clock=self._clocks.get(name),
        )
        machine.observers.append(lambda what, guest_id, epoch: self._observed(name, what, guest_id, epoch))
        machine.failures = self.failures
        self.machines[name] = machine
        machine.power_on()

    def power_off(self, name: str) -> None:
        """What its memory held is gone, unless it was saved, and so is what its disk had not written."""
        self.world.note(name, "power off")
        self.machines[name].power_off()
        self.world.media(name).power_loss()

    def lose(self, name: str) -> asyncio.Task[None]:
        """The machine dies with its memory; the task is the supervisor's proof of it, and ends when it is told."""
        self.memory_ids.pop(name, None)
        self.power_off(name)
        return self.world.loop.spawn(self.world.loop.system, self._bury(name))

    async def cut_mains(self, name: str, length_s: float) -> bool:
        """The mains of a machine are away for so long; whether it went off meanwhile. It is on again afterwards, if its
        host does not refuse to start."""
        machine = self.machines[name]
        machine.set_mains(False)
        until_s = self.world.now_s + length_s
        while machine.on and (left_s := until_s - self.world.now_s) > 0:  # noqa: ASYNC110 - an observer, as `_observe`
            await asyncio.sleep(min(OBSERVE_S, left_s + TICK_S))
        machine.set_mains(True)
        # It takes everything back, or it is off, or it goes off still, because it had handed its guests over.
        await _observe(lambda: not machine.on or not machine.core.needs_host)
        if machine.on:
            return False
        self.world.media(name).power_loss()
        await self._bury(name, "off")
        await asyncio.sleep(max(0.0, until_s - self.world.now_s))
        await self.raise_again(name)
        return True

    async def _bury(self, name: str, state: str = "dead") -> None:
        """As the supervisor does: nothing of it is left, so its death is recorded, and its lease ends."""
        await asyncio.sleep(self._burial.uniform(*BURIAL_S))
        client = self.world.coordination.client("supervisor")
        while True:
            try:
                await client.put(Put(machine_key(name), encode({"state": state})))
                _, found = await client.range(Range(host_key(name)))
                if found and found[0].lease:
                    await client.lease_revoke(found[0].lease)
                self.world.note("supervisor", f"{name} is {state}")
                return
            except NotFound:
                return  # it had ended by itself
            except EverramError:
                await asyncio.sleep(RETRY_S)

    async def raise_again(self, name: str) -> None:
        """Start a dead machine, with empty memory."""
        client = self.world.coordination.client("supervisor")
        while True:
            try:
                await client.put(Put(machine_key(name), encode({"state": "up"})))
                break
            except EverramError:
                await asyncio.sleep(RETRY_S)
        self.power_on(name)

    # -- what observers look at, outside the world

    def generation(self, host: str) -> int:
        """How many machines had this name, this one included."""
        return self._generations[host]

    def record(self, guest_id: str) -> dict[str, Any]:
        """The directory's record of a guest, as its disk has it; empty if there is none."""
        value = self.world.coordination.durable.value(guest_key(guest_id))
        if value is None:
            return {}
        before, record = self._records.get(guest_id, (b"", {}))
        if before != value:
            record = decode(value)
            self._records[guest_id] = value, record
        return record

    def lease_deadline_ns(self, host: str, guest_id: str) -> int:
        """The latest that a machine or a guest on it was told, in the world's time."""
        machine = self.machines[host]
        told = int.from_bytes(machine.objects.by_name[f"log.{guest_id}"].content[LEASE : LEASE + 8], "little")
        return machine.clock.when(max(machine.core.lease_deadline_ns, told))

    def required(self, guest_id: str) -> list[str]:
        return [str(memory_id) for memory_id in self.record(guest_id).get("required", [])]

    def holders(self, guest_id: str) -> list[str]:
        """The memory_ids that may have everything promised of a guest."""
        record = self.record(guest_id)
        return [str(record["memory_id"]), *self.required(guest_id)] if record else []

    def held(self, guest_id: str, memory_id: str) -> int | None:
        """Up to where a destination's log regions hold a guest's log; None if it has no log region now."""
        host = next((host for host, lives in self.memory_ids.items() if lives == memory_id), None)
        if host is None:
            return HELD_NOWHERE
        objects = self.machines[host].objects.by_name
        logs = [objects[name].content for name in sorted(objects) if name.startswith(f"log.{guest_id}@")]
        return max((int.from_bytes(log[TAIL : TAIL + 8], "little") for log in logs), default=None)

    def kept_of(self, guest_id: str, region: str, memory_id: str) -> list[bytes]:
        """What a memory keeps as copies of a region."""
        host = next(host for host, lives in self.memory_ids.items() if lives == memory_id)
        objects, prefix = self.machines[host].objects.by_name, f"region.{guest_id}.{region}@"
        return [bytes(objects[name].content) for name in sorted(objects) if name.startswith(prefix)]

    async def ask(self, source: str, host: str, act: Callable[[Node], Awaitable[T]], timeout_s: float) -> T:
        """As a client outside asks. Raises an EverramError within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.nodes[host].call(source, act)
        except TimeoutError:
            raise DeadlineExceeded(f"{host} did not answer in {timeout_s:g} s", unknown=True) from None

    def node(self, host: str) -> Node | None:
        """The node that serves now, for observers; None while there is none."""
        return self.nodes[host].service

    # -- one host -----------------------------------------------------------------------------------------------------

    def _config(self, name: str) -> HostConfig:
        memory = self._memory
        return HostConfig(
            cluster="simulation",
            cluster_id=CLUSTER_ID,
            host=name,
            host_id=f"{self.names.index(name):016x}",
            socket=socket_of(name),
            state_dir=f"/simulated/{name}",
            coordination="unix:/simulated/coordination.sock",
            memory_bytes=MEMORY_BYTES,
            nvm_bytes=self.nvm_bytes,
            lease_ttl_s=self.lease_ttl_s,
            files_bytes=MEMORY_BYTES - self.nvm_bytes - memory.limit_bytes if memory is not None else 0,
            swap_bytes=memory.swap_bytes if memory is not None else 0,
        )

    async def _environment(
        self, machine: SimulatedMachine, port: MachinePort, domain: Domain, gate: Gate
    ) -> Environment:
        world = self.world
        entropy = SimulatedEntropy(world.stream(f"entropy/{domain.name}"))
        memory = SimulatedMemory(machine.objects, gate)
        me = Identity(CLUSTER_ID, machine.name, incarnation=domain.name)
        channel = await SimulatedChannel.open(
            self._wires, machine.objects, memory, entropy.randbytes, me, domain, f"simulated:{machine.name}"
        )
        return Environment(
            clock=machine.clock,
            entropy=entropy,
            disk=SimulatedDisk(world.media(machine.name)),
            memory=memory,
            machine=port,
            network=world.fabric.network(machine.name, domain, f"unix:{socket_of(machine.name)}"),
            channel=channel,
            coordination=world.coordination.client(machine.name),
            logs=SimulatedLogs(machine),
            doorbell=machine.bell,
        )

    async def _live(self, machine: SimulatedMachine, port: MachinePort, domain: Domain) -> None:
        """One life of a host, as `everram.actors.host` has it."""
        stream = self.world.stream(f"gate/{domain.name}")
        gate = Gate(self.world.loop, stream, preemption_mean=self._preemption.hosts)
        self.host_gates[machine.name] = gate
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(_beat(port))
            if port.is_successor:
                await _stand_by(port)
            environment = await self._environment(machine, port, domain, gate)
            paging = HostFaults(machine.spaces, domain, gate, stream) if self._memory is not None else None
            node = await compose(self._config(machine.name), environment, paging=paging)
            self.extend(node)
            await node.start()
            self.nodes[machine.name].open(domain, node)
            await port.ready()
            node.ref(VMemFSRef).tell(VMEMFS_WRITE_LATEST, Empty())
            self.memory_ids[machine.name] = (await node.ref(VMemFSRef).get_host(Empty())).memory_id
            lives = [tasks.create_task(life(machine.name, node)) for life in self.also]
            lives.append(tasks.create_task(node.wait_failed()))
            await port.handing.wait()
            await _hand_over(node, environment, port, [*lives, beating])

    def _guest_gate(self, guest_id: str, epoch: int) -> Gate:
        stream = self.world.stream(f"gate/{guest_id}.{epoch}")
        gate = self.guest_gates[guest_id] = Gate(self.world.loop, stream, preemption_mean=self._preemption.guests)
        return gate

    def _observed(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        self.world.note(host, f"guest {guest_id} epoch {epoch} {what}")
        for observer in self.observers:
            observer(host, what, guest_id, epoch)


def _clock(world: World, draw: Stream, drift_ppm: int) -> SimulatedClock:
    """Each is as far as half of the bound from the world's, which lies in the middle; computers began to count at other
    times, and people's clocks are set well."""
    half = drift_ppm // 2
    return SimulatedClock(
        world.loop,
        drift_ppm=draw.choice((-half, half, draw.randrange(-half, half + 1))),
        offset_ns=draw.randrange(CLOCK_OFFSET_NS_MAX),
        wall_error_ns=draw.randrange(-WALL_ERROR_NS_MAX, WALL_ERROR_NS_MAX),
    )


def socket_of(host: str) -> str:
    return f"/simulated/{host}.sock"


async def _stand_by(port: MachinePort) -> None:
    """As `everram.actors.preflight` does."""
    await port.judged(_reasons(port))
    await port.taken()
    if reasons := _reasons(port):
        raise FailedPrecondition("; ".join(reasons))
    await port.ingested()


def _reasons(port: MachinePort) -> list[str]:
    """Why the memory cannot be taken."""
    content = port.peek(MEMORY_NAME)
    if content is None:
        return ["there is no superblock"]
    try:
        Superblock.open(HeapMapping.of(content))
    except EverramError as error:
        return [error.message]
    return []


async def _hand_over(
    node: Node, environment: Environment, port: MachinePort, tasks: Sequence[asyncio.Task[Any]]
) -> None:
    """As `everram.actors.host` does."""
    assert isinstance(environment.channel, SimulatedChannel)
    for task in tasks[:-1]:
        task.cancel()
    await node.leave()
    await node.stop()
    environment.channel.close()
    await port.handed_over()
    tasks[-1].cancel()


async def _beat(port: MachinePort) -> None:
    while True:
        port.alive()
        await asyncio.sleep(port.watchdog_interval_s)


async def _observe(condition: Callable[[], bool]) -> None:
    """By an observer outside the world, whom nobody tells anything."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(OBSERVE_S)


async def announce(world: World) -> None:
    """What the supervisor writes into the directory of a new cluster."""
    client = world.coordination.client("supervisor")
    await client.put(Put(CLUSTER, encode({"cluster_id": CLUSTER_ID, "name": "simulation"})))
