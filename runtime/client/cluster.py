"""`Cluster`: a running cluster, from outside. gRPC is imported when a connection is made, not with this module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from everram.runtime.cluster.folders import DEFAULT_CLUSTER, Folders, Phase, state_folder
from everram.runtime.errors import (
    AlreadyExists,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    NotFound,
    Outcome,
    Unavailable,
)

if TYPE_CHECKING:
    from everram.runtime.contracts.availability_contract import AvailabilityRef
    from everram.runtime.contracts.common_pb2 import Guest, GuestSpec
    from everram.runtime.contracts.host_contract import HostRef
    from everram.runtime.contracts.hypervisor_contract import HypervisorRef
    from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
    from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
    from everram.runtime.contracts.replicator_contract import ReplicatorRef
    from everram.runtime.contracts.supervisor_contract import SupervisorRef
    from everram.runtime.contracts.vmemfs_contract import VMemFSRef
    from everram.runtime.refs import Carrier
    from everram.runtime.transport.channel_carrier import ChannelCarrier

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a request waits for a host that is being restarted: half a second, on a very busy computer more."""
RETRY_S = 0.05
RUN_TIMEOUT_S = 20.0
"""A new guest waits for its host's lease, at worst for its coordination to be restarted."""


class Host:
    """One host: a typed ref to each of its actors."""

    def __init__(self, name: str, carrier: Carrier) -> None:
        from everram.runtime.contracts.availability_contract import AvailabilityRef
        from everram.runtime.contracts.host_contract import HostRef
        from everram.runtime.contracts.hypervisor_contract import HypervisorRef
        from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
        from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
        from everram.runtime.contracts.replicator_contract import ReplicatorRef
        from everram.runtime.contracts.vmemfs_contract import VMemFSRef

        self.name = name
        self.host: HostRef = HostRef(carrier)
        self.hypervisor: HypervisorRef = HypervisorRef(carrier)
        self.nvm_device: NvmDeviceRef = NvmDeviceRef(carrier)
        self.power_monitor: PowerMonitorRef = PowerMonitorRef(carrier)
        self.vmemfs: VMemFSRef = VMemFSRef(carrier)
        self.replicator: ReplicatorRef = ReplicatorRef(carrier)
        self.availability: AvailabilityRef = AvailabilityRef(carrier)


async def patiently(attempt: Callable[[], Awaitable[T]], *, repeatable: bool, patience_s: float = PATIENCE_S) -> T:
    """The first answer of `attempt` that is not for want of a connection.

    `repeatable`: it may be sent again although the one before may have taken effect (it only reads, or asking twice is
    asking once). Raises what the last attempt raised; its `outcome` tells failed from unknown.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            certain = error.outcome is Outcome.FAILED
            if not (certain or repeatable) or loop.time() >= until_s:
                raise
        await asyncio.sleep(RETRY_S)


class Cluster:
    """A connection to one cluster. Make it with `connect`; close it, or use it as an async context manager."""

    def __init__(self, folders: Folders) -> None:
        """Connects nothing yet. Most callers want `connect`."""
        from everram.runtime.contracts.supervisor_contract import SupervisorRef

        self.folders = folders
        self.name = ""
        self._carriers: list[ChannelCarrier] = []
        self._hosts: dict[str, Host] = {}
        self.supervisor: SupervisorRef = SupervisorRef(self._carrier(str(folders.supervisor_socket), "the supervisor"))

    @staticmethod
    async def connect(name: str | None = None, dir: str | None = None) -> Cluster:
        """The cluster that `name` or `dir` says, by default EVERRAM_DIR or the one named "default".

        Raises Unavailable if no such cluster is running, or its supervisor does not answer.
        """
        from everram.runtime.contracts.common_pb2 import Empty

        folders = Folders.of(name, dir, os.environ)
        if folders.phase() is not Phase.RUNNING:
            raise not_running(name, folders)
        cluster = Cluster(folders)
        try:
            status = await patiently(lambda: cluster.supervisor.status(Empty()), repeatable=True, patience_s=PATIENCE_S)
        except (Unavailable, DeadlineExceeded):
            await cluster.close()
            # It may have ended meanwhile.
            raise (silent(folders) if folders.phase() is Phase.RUNNING else not_running(name, folders)) from None
        except BaseException:
            await cluster.close()
            raise
        cluster.name = status.cluster
        for machine in status.machines:
            cluster._hosts[machine.name] = Host(
                machine.name, cluster._carrier(machine.host_socket, f"host {machine.name}")
            )
        return cluster

    def _carrier(self, socket: str, whom: str) -> ChannelCarrier:
        from everram.runtime.transport.channel_carrier import ChannelCarrier

        self._carriers.append(ChannelCarrier(f"unix:{socket}", whom=whom))
        return self._carriers[-1]

    @property
    def hosts(self) -> tuple[Host, ...]:
        return tuple(self._hosts.values())

    def host(self, name: str) -> Host:
        """Raises NotFound."""
        if name not in self._hosts:
            raise NotFound(f'no host "{name}": cluster "{self.name}" has {", ".join(self._hosts)}')
        return self._hosts[name]

    async def close(self) -> None:
        for carrier in self._carriers:
            await carrier.close()

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    # -- guests

    async def guests(self) -> tuple[list[Guest], dict[str, EverramError]]:
        """Every guest by name, and the hosts that could not be asked, with why."""
        from everram.runtime.contracts.common_pb2 import Empty

        asked = [patiently(lambda host=host: host.hypervisor.list(Empty()), repeatable=True) for host in self.hosts]  # type: ignore[misc]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[Guest] = []
        silent: dict[str, EverramError] = {}
        for host, answer in zip(self.hosts, answers, strict=True):
            if isinstance(answer, EverramError):
                silent[host.name] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.extend(answer.guests)
        return sorted(found, key=lambda guest: (guest.name, guest.guest_id)), silent

    async def find_guest(self, name: str) -> tuple[Host, Guest]:
        """By name or guest_id.

        Raises NotFound, Unavailable if a host that may have it cannot be asked, or what its host says of it.
        """
        from everram.runtime.contracts.hypervisor_pb2 import GuestName

        async def look(host: Host) -> Guest:
            return await patiently(lambda: host.hypervisor.inspect(GuestName(guest=name)), repeatable=True)

        answers = await asyncio.gather(*(look(host) for host in self.hosts), return_exceptions=True)
        silent = []
        for host, answer in zip(self.hosts, answers, strict=True):
            if not isinstance(answer, BaseException):
                return host, answer
            if not isinstance(answer, EverramError):
                raise answer
            if isinstance(answer, (Unavailable, DeadlineExceeded)):
                silent.append(f"{host.name}: {answer.message}")
            elif not isinstance(answer, NotFound):
                raise answer  # about this very guest: its host is not silent at all
        if silent:
            raise Unavailable(f'whether there is a guest "{name}" is not known, because a host is silent ({silent[0]})')
        raise NotFound(f'there is no guest "{name}": `everram guests` lists them all')

    async def run(self, spec: GuestSpec) -> Guest:
        """Start a guest on the host with the most free persistent memory.

        Raises AlreadyExists (the name, or the published port), what the host refuses, or Unavailable with outcome
        unknown if it broke off and the guest cannot be found afterwards.
        """
        from everram.runtime.contracts.supervisor_pb2 import PortRequest

        if any(guest.name == spec.name for guest in (await self.guests())[0]):
            raise AlreadyExists(
                f'a guest named "{spec.name}" exists: choose another --name, or `everram rm {spec.name}` first'
            )
        host = await self._roomiest()
        port = PortRequest(port=spec.publish_port, guest=spec.name)
        if spec.publish_port:
            await patiently(lambda: self.supervisor.reserve_port(port), repeatable=True)
        try:
            return await self._run_on(host, spec)
        except EverramError as error:
            if spec.publish_port and error.outcome is Outcome.FAILED:
                await self.supervisor.release_port(port)
            raise

    async def _run_on(self, host: Host, spec: GuestSpec) -> Guest:
        """A broken connection leaves it open whether the guest runs: then its name is looked for."""
        try:
            return await patiently(lambda: host.hypervisor.run(spec, timeout_s=RUN_TIMEOUT_S), repeatable=False)
        except (Unavailable, DeadlineExceeded) as error:
            if error.outcome is Outcome.FAILED:
                raise
            try:
                _, guest = await self.find_guest(spec.name)
            except NotFound:
                raise Unavailable(
                    f'{host.name} broke off before it answered, and there is no guest "{spec.name}": run it again'
                ) from error
            return guest

    async def _roomiest(self) -> Host:
        """The host with the most free persistent memory; of equals, the first. Raises Unavailable if none answers."""
        from everram.runtime.contracts.common_pb2 import Empty

        async def free_bytes(host: Host) -> int:
            status = await patiently(lambda: host.nvm_device.status(Empty()), repeatable=True)
            return status.capacity_bytes - status.allocated_bytes

        answers = await asyncio.gather(*(free_bytes(host) for host in self.hosts), return_exceptions=True)
        rooms: list[tuple[int, Host]] = []
        silent: BaseException | None = None
        for host, answer in zip(self.hosts, answers, strict=True):
            if isinstance(answer, BaseException):
                silent = answer
            else:
                rooms.append((answer, host))
        if not rooms:
            raise silent or FailedPrecondition("the cluster has no hosts")
        return max(rooms, key=lambda room: room[0])[1]


def silent(folders: Folders) -> Unavailable:
    """Its supervisor lives, as its lock says, and does not answer."""
    record = folders.supervisor_record()
    which = f" (process {record.pid})" if record else ""
    return Unavailable(
        f"the supervisor of the cluster in {folders.state} runs{which} but does not answer: it may be stopped "
        f"(`kill -CONT PID` lets it go on) or overloaded; {folders.log} says what it did last"
    )


def not_running(name: str | None, folders: Folders) -> Unavailable:
    """Says which cluster, and what to type. The default one goes by its name, others by where they were looked for."""
    known = name or (DEFAULT_CLUSTER if folders.state == state_folder(DEFAULT_CLUSTER, None, os.environ) else None)
    if known is None:
        return Unavailable(
            f"no cluster is running in {folders.state}: start one with `everram up --dir {folders.state}`"
        )
    flag = f" --cluster {known}" if known != DEFAULT_CLUSTER else ""
    return Unavailable(f'no cluster "{known}" is running: start one with `everram up{flag}`')
