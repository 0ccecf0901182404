"""`Cluster`: a running cluster, from outside. gRPC is imported when a connection is made, not with this module."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from everram.runtime.client.whereabouts import LOST, SETTLING, Place, Whereabouts, named
from everram.runtime.cluster.folders import DEFAULT_CLUSTER, Folders, Phase, state_folder
from everram.runtime.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Outcome,
    Unavailable,
)

if TYPE_CHECKING:
    from everram.runtime.channel.shared_memory_pair import SharedMemoryPair
    from everram.runtime.client.files import File, Files
    from everram.runtime.client.mapped import MappedFile
    from everram.runtime.contracts.availability_contract import AvailabilityRef
    from everram.runtime.contracts.common_pb2 import Guest, GuestSpec, Region
    from everram.runtime.contracts.host_contract import HostRef
    from everram.runtime.contracts.hypervisor_contract import HypervisorRef
    from everram.runtime.contracts.hypervisor_pb2 import GuestList
    from everram.runtime.contracts.memory_scheduler_contract import MemorySchedulerRef
    from everram.runtime.contracts.memory_scheduler_pb2 import MemoryStatus
    from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
    from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
    from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef, RemoteMemoryRef
    from everram.runtime.contracts.replicator_contract import ReplicatorRef
    from everram.runtime.contracts.supervisor_contract import SupervisorRef
    from everram.runtime.contracts.vmemfs_contract import VMemFSRef
    from everram.runtime.refs import Carrier
    from everram.runtime.transport.channel_carrier import ChannelCarrier

T = TypeVar("T")

ENDED = ("dead", "off")
"""States of machines that nobody can ask."""
PATIENCE_S = 10.0
"""How long a request waits for a host that is being restarted: half a second, on a very busy computer more."""
LIST_TIMEOUT_S = 5.0
"""For a host's word on its guests."""
RETRY_S = 0.05
LOOK_S = 1.0
"""Between looks at where a guest is whose output or end is waited for."""
MOVE_TIMEOUT_S = 300.0
"""A guest's regions are copied to the new host first, while it runs."""
RUN_TIMEOUT_S = 20.0
"""A new guest waits for its host's lease, at worst for its coordination to be restarted."""


class Host:
    """One host: a typed ref to each of its actors."""

    def __init__(self, name: str, carrier: Carrier) -> None:
        from everram.runtime.contracts.availability_contract import AvailabilityRef
        from everram.runtime.contracts.host_contract import HostRef
        from everram.runtime.contracts.hypervisor_contract import HypervisorRef
        from everram.runtime.contracts.memory_scheduler_contract import MemorySchedulerRef
        from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
        from everram.runtime.contracts.power_monitor_contract import PowerMonitorRef
        from everram.runtime.contracts.remote_memory_contract import MemoryAgentRef, RemoteMemoryRef
        from everram.runtime.contracts.replicator_contract import ReplicatorRef
        from everram.runtime.contracts.vmemfs_contract import VMemFSRef

        self.name = name
        self.host: HostRef = HostRef(carrier)
        self.hypervisor: HypervisorRef = HypervisorRef(carrier)
        self.nvm_device: NvmDeviceRef = NvmDeviceRef(carrier)
        self.power_monitor: PowerMonitorRef = PowerMonitorRef(carrier)
        self.memory_scheduler: MemorySchedulerRef = MemorySchedulerRef(carrier)
        self.vmemfs: VMemFSRef = VMemFSRef(carrier)
        self.replicator: ReplicatorRef = ReplicatorRef(carrier)
        self.availability: AvailabilityRef = AvailabilityRef(carrier)
        self.remote_memory: RemoteMemoryRef = RemoteMemoryRef(carrier)
        self.memory_agent: MemoryAgentRef = MemoryAgentRef(carrier)


async def patiently(attempt: Callable[[], Awaitable[T]], *, repeatable: bool, patience_s: float = PATIENCE_S) -> T:
    """The first answer of `attempt` that is not for want of a connection.

    `repeatable`: it may be sent again although the one before may have taken effect (it only reads, or asking twice is
    asking once). Raises what the last attempt raised; its `outcome` tells failed from unknown. `patience_s` begins with
    the first that fails: one may have been at work for long until then.
    """
    loop = asyncio.get_running_loop()
    until_s: float | None = None
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            certain, now_s = error.outcome is Outcome.FAILED, loop.time()
            until_s = now_s + patience_s if until_s is None else until_s
            if not (certain or repeatable) or now_s >= until_s:
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
        self._files: dict[str, Files] = {}  # by host: its agent, as far as it was used
        self._whereabouts = Whereabouts(f"unix:{folders.coordination_socket}")
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
        for files in self._files.values():
            await files.close()
        await self._whereabouts.close()
        for carrier in self._carriers:
            await carrier.close()

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    # -- remote memory

    async def files(self, host: str = "") -> Files:
        """The cluster's files, through the agent of one host: the one named, or any that can be reached. Raises
        NotFound, FailedPrecondition."""
        from everram.runtime.client.files import Files

        host = await self.agent_host(host)
        if host not in self._files:
            self._files[host] = Files(self.host(host).memory_agent)
        return self._files[host]

    async def agent_host(self, host: str = "") -> str:
        """`host`, or any that can be reached, one in use first. Raises FailedPrecondition."""
        if not host:
            reachable = [each.name for each in await self._reachable()]
            if not reachable:
                raise FailedPrecondition("every machine of the cluster is dead or cut off: `everram fault heal HOST`")
            host = next((name for name in self._files if name in reachable), reachable[0])
        self.host(host)
        return host

    async def open(
        self, path: str, mode: str = "r", *, host: str = "", persistent: bool = False, through: str = ""
    ) -> File:
        """A file of remote memory, opened as Python's `open` does in binary ("r", "r+", "w", "w+", "a", "x", ...).

        A new one lies on `host` (default: where most memory is free) and is `persistent` or not. Reads and writes go
        through the agent of the host `through`. Raises NotFound, AlreadyExists, PermissionDenied, FailedPrecondition.
        """
        return await (await self.files(through)).open(path, mode, host=host, persistent=persistent)

    async def map(self, path: str, *, writable: bool = True) -> MappedFile:
        """A file that lies on this computer, mapped into this process: see `everram.runtime.client.mapped`.

        Raises NotFound, PermissionDenied, InvalidArgument for an empty file, FailedPrecondition if its bytes are gone,
        Unavailable if its owner's memory cannot be reached from here.
        """
        from everram.runtime.client.mapped import MappedFile
        from everram.runtime.contracts.remote_memory_pb2 import FileKey

        owner = (await (await self.files()).stat(path)).host
        if not owner:
            raise FailedPrecondition(f"{path!r} is a folder (EISDIR)")
        # Through its owner's own agent, so that it lives on there as long as it is mapped.
        file = await self.open(path, "r+" if writable else "r", through=owner)
        try:
            key = FileKey(id=file.node.id, memory_id=file.node.memory_id, persistent=file.node.persistent)
            rkey = (await self.host(owner).memory_agent.attach(key)).rkey
            pair = await self._pair(owner)
            try:
                region = await pair.share(rkey)
                try:
                    return MappedFile(file, pair, region, writable=writable)
                except BaseException:
                    os.close(region.descriptor)
                    raise
            except BaseException:
                pair.close()
                raise
        except BaseException:
            await file.close()
            raise

    async def _pair(self, host: str) -> SharedMemoryPair:
        """A queue pair of this client's own to a host of this computer. Raises Unavailable."""
        from everram.runtime.channel.frames import Identity
        from everram.runtime.channel.shared_memory import PATH_SUFFIX
        from everram.runtime.channel.shared_memory_pair import SharedMemoryPair
        from everram.runtime.cluster.config import ClusterConfig

        cluster_id = ClusterConfig.read(self.folders.config).cluster_id
        me = Identity(cluster_id, "client", incarnation=f"client-{os.getpid()}")
        path = f"{self.folders.host_socket(host)}{PATH_SUFFIX}"
        try:
            return await SharedMemoryPair.open(path, host, me)
        except Unavailable as error:
            raise Unavailable(
                f"the memory of {host} is not shared with this process ({error.message}): open the file and read it"
            ) from None

    # -- guests

    async def guests(
        self, *, patience_s: float = PATIENCE_S, timeout_s: float = LIST_TIMEOUT_S
    ) -> tuple[list[Guest], dict[str, EverramError]]:
        """Every guest by name, and the hosts that could not be asked, with why: waited for so long, if they have just
        been started again, and `timeout_s` for each answer.

        Guests that nobody has are among them, with the state GUEST_STATE_UNSPECIFIED and the directory's word for it
        as their reason: "failing-over", "lost"; "unserved" where its host has ended and nothing is decided yet.
        """
        from everram.runtime.contracts.common_pb2 import Empty

        living, places = await self._living(), await self._whereabouts.read() or {}

        def list_of(host: Host) -> Awaitable[GuestList]:
            return patiently(
                lambda: host.hypervisor.list(Empty(), timeout_s=timeout_s), repeatable=True, patience_s=patience_s
            )

        asked = [list_of(host) for host in living]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: dict[str, Guest] = {}
        silent: dict[str, EverramError] = {}
        for host, answer in zip(living, answers, strict=True):
            if isinstance(answer, EverramError):
                silent[host.name] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for guest in answer.guests:
                    known = found.get(guest.guest_id)
                    found[guest.guest_id] = guest if known is None else _rightful(known, guest, places)
        for place in places.values():
            if place.guest_id not in found and place.host not in silent:
                found[place.guest_id] = _nowhere(place)
        return sorted(found.values(), key=lambda guest: (guest.name, guest.guest_id)), silent

    async def find_region(self, name: str) -> tuple[Host, Guest, Region]:
        """`GUEST/REGION`, or `REGION` where one guest alone has one of that name. Raises NotFound, InvalidArgument, and
        as `find_guest`."""
        guest_name, _, region_name = name.rpartition("/")
        guests = (await self.guests())[0] if not guest_name else [(await self.find_guest(guest_name))[1]]
        found = [(guest, region) for guest in guests for region in guest.regions if region.name == region_name]
        if not found:
            raise NotFound(f'there is no region "{name}": `everram region ls` lists them all')
        if len(found) > 1:
            them = ", ".join(f"{guest.name}/{region.name}" for guest, region in found)
            raise InvalidArgument(f'"{name}" may be several regions: write which one ({them})')
        guest, region = found[0]
        host, guest = await self.find_guest(guest.guest_id)
        return host, guest, region

    async def find_guest(self, name: str) -> tuple[Host, Guest]:
        """By name or guest_id, on the host that has it now; a failover under way is waited for.

        Raises NotFound, FailedPrecondition if it is lost, or Unavailable if a host that may have it cannot be asked.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            living, places = await self._living(), await self._whereabouts.read()
            place = named(places, name) if places is not None else None
            if place is None:
                return await self._ask_all(name, living, self.hosts if places is None else living)
            if place.state == LOST:
                raise FailedPrecondition(
                    f'guest "{place.name}" is lost: its memory ended with {place.host}, and no copy is left; '
                    f"`everram rm {place.name}` frees its name"
                )
            why = f"guest {place.name} is {place.state}"
            host = next((host for host in living if host.name == place.host), None)
            if host is None and place.waits:
                raise FailedPrecondition(waiting_words(place.name, place.host))
            if host is None:
                why = f"guest {place.name} was on {place.host}, which is dead, and no other host has it yet"
            elif place.state not in SETTLING:
                try:
                    return host, await self._inspect(host, place.guest_id)
                except (Unavailable, NotFound) as error:
                    why = f"{place.host} should have guest {place.name}: {error.message}"
            if loop.time() >= until_s:
                raise Unavailable(f"{why}; see `everram status`")
            await asyncio.sleep(RETRY_S)

    async def _inspect(self, host: Host, name: str) -> Guest:
        from everram.runtime.contracts.hypervisor_pb2 import GuestName

        return await host.hypervisor.inspect(GuestName(guest=name))

    async def _ask_all(self, name: str, living: Sequence[Host], needed: Sequence[Host]) -> tuple[Host, Guest]:
        """Of a guest that is not in the directory, or while there is none to ask."""
        asked = [patiently(lambda host=host: self._inspect(host, name), repeatable=True) for host in living]  # type: ignore[misc]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[tuple[Host, Guest]] = []
        silent = [f"{host.name}: its machine is dead" for host in needed if host not in living]
        for host, answer in zip(living, answers, strict=True):
            if not isinstance(answer, BaseException):
                found.append((host, answer))
            elif not isinstance(answer, EverramError):
                raise answer
            elif isinstance(answer, (Unavailable, DeadlineExceeded)):
                silent.append(f"{host.name}: {answer.message}")
            elif not isinstance(answer, NotFound):
                raise answer  # about this very guest: its host is not silent at all
        if found:
            return max(found, key=lambda one: one[1].epoch)
        if silent:
            raise Unavailable(f'whether there is a guest "{name}" is not known, because a host is silent ({silent[0]})')
        raise NotFound(f'there is no guest "{name}": `everram guests` lists them all')

    async def _living(self) -> list[Host]:
        """Hosts whose machines are not dead; those cut off from the network can be asked, too."""
        from everram.runtime.contracts.common_pb2 import Empty

        status = await patiently(lambda: self.supervisor.status(Empty()), repeatable=True)
        return [self._hosts[machine.name] for machine in status.machines if machine.state not in ENDED]

    async def _reachable(self) -> list[Host]:
        """Hosts on which something new can run."""
        from everram.runtime.contracts.common_pb2 import Empty

        status = await patiently(lambda: self.supervisor.status(Empty()), repeatable=True)
        return [
            self._hosts[machine.name] for machine in status.machines if machine.state not in ENDED and not machine.cut
        ]

    async def insist(self, guest: Guest, act: Callable[[Host], Awaitable[T]]) -> T:
        """The answer of the host that has the guest, of the next one if it fails over. `act` may be asked again.

        Raises what `act` raises, and what `find_guest` does if nobody has it any more.
        """
        host = self.host(guest.host)
        while True:
            try:
                return await self._while_there(guest.guest_id, host, act(host))
            except (Unavailable, NotFound):
                host, _ = await self.find_guest(guest.guest_id)
            await asyncio.sleep(RETRY_S)

    async def _while_there(self, guest_id: str, host: Host, work: Awaitable[T]) -> T:
        """Its result. Raises Unavailable when the guest is another host's: a cut-off one would not know and not end."""
        doing = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([doing], timeout=LOOK_S))[0]:
                place = (await self._whereabouts.read() or {}).get(guest_id)
                if place is not None and place.host != host.name and place.state not in SETTLING:
                    raise Unavailable(f"guest {place.name} is on {place.host} now")
            return doing.result()
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    async def move(self, guest: Guest, host: str) -> Guest:
        """Hand a guest over to another host in order; how it is there. Raises FailedPrecondition if it is there
        already, Aborted if it went elsewhere, and what its own host refuses."""
        from everram.runtime.contracts.hypervisor_pb2 import MoveRequest

        self.host(host)
        if guest.host == host:
            raise FailedPrecondition(f"guest {guest.name} is on {host} already")
        request = MoveRequest(guest=guest.guest_id, host=host)
        await self.host(guest.host).hypervisor.move(request, timeout_s=MOVE_TIMEOUT_S)
        _, moved = await self.find_guest(guest.guest_id)
        if moved.host != host:
            raise Aborted(f"guest {guest.name} runs on {moved.host}, because {host} could not take it: move it again")
        return moved

    async def go_on_without_saved(self, name: str) -> bool:
        """A person's choice: a guest that waits for saved memory goes on with what a copy has. Whether it waited."""
        from everram.runtime.contracts.availability_pb2 import GuestKey

        place = named(await self._whereabouts.read() or {}, name)
        living = await self._living()
        if place is None or not place.waits or not living or place.host in {host.name for host in living}:
            return False
        await living[0].availability.go_on(GuestKey(guest_id=place.guest_id))
        return True

    async def forget_lost(self, name: str) -> bool:
        """Free the name of a guest that is lost; whether there was one."""
        place = named(await self._whereabouts.read() or {}, name)
        if place is None or place.state != LOST:
            return False
        await self._whereabouts.forget_lost(place)
        return True

    async def run(self, spec: GuestSpec, *, copies: int | None = None) -> Guest:
        """Start a guest on the host with the most free persistent memory; one with volatile memory on the host whose
        guests leave the most of that.

        `copies`: on how many other hosts; by default `default_copies`. Raises AlreadyExists (the name, or the published
        port), InvalidArgument (more copies than other hosts), what the host refuses, or Unavailable with outcome
        unknown if it broke off and the guest cannot be found afterwards.
        """
        from everram.runtime.contracts.supervisor_pb2 import PortRequest

        spec = _with_copies(spec, default_copies(spec, len(self.hosts)) if copies is None else copies, len(self.hosts))
        if any(guest.name == spec.name for guest in (await self.guests())[0]):
            raise AlreadyExists(
                f'a guest named "{spec.name}" exists: choose another --name, or `everram rm {spec.name}` first'
            )
        host = await self._roomiest(volatile=spec.memory_bytes > 0)
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

    async def _roomiest(self, *, volatile: bool) -> Host:
        """The host with the most free persistent memory, or the most volatile memory that nobody works with; of equals,
        the first. Raises Unavailable if none answers."""
        from everram.runtime.contracts.common_pb2 import Empty

        async def free_bytes(host: Host) -> int:
            if volatile:
                return spare_bytes(await patiently(lambda: host.memory_scheduler.status(Empty()), repeatable=True))
            status = await patiently(lambda: host.nvm_device.status(Empty()), repeatable=True)
            return status.capacity_bytes - status.allocated_bytes

        living = await self._reachable()
        answers = await asyncio.gather(*(free_bytes(host) for host in living), return_exceptions=True)
        rooms: list[tuple[int, Host]] = []
        silent: BaseException | None = None
        for host, answer in zip(living, answers, strict=True):
            if isinstance(answer, BaseException):
                silent = answer
            else:
                rooms.append((answer, host))
        if not rooms:
            raise silent or FailedPrecondition(
                "every machine of the cluster is dead or cut off: `everram fault heal HOST` brings one back"
            )
        return max(rooms, key=lambda room: room[0])[1]


def spare_bytes(status: MemoryStatus) -> int:
    """What a host's guests leave of its memory for guests: each counts as what it works with, reserves, or was promised
    and nobody has looked at yet. Less than nothing where they are too many already."""
    taken = sum(
        max(guest.min_bytes, guest.working_set_bytes or guest.resident_bytes or guest.memory_bytes)
        for guest in status.guests
    )
    return int(status.limit_bytes - status.min_free_bytes - taken)


def default_copies(spec: GuestSpec, hosts: int) -> int:
    """One on another host, for guests that have something to copy."""
    from everram.runtime.contracts.common_pb2 import MAPPED

    return 1 if hosts > 1 and any(region.kind != MAPPED for region in spec.regions) else 0


def _with_copies(spec: GuestSpec, copies: int, hosts: int) -> GuestSpec:
    """Raises InvalidArgument."""
    from everram.runtime.contracts.common_pb2 import GuestSpec

    if copies < 0 or copies >= hosts:
        raise InvalidArgument(
            f"{copies} copies on other hosts cannot be had: the cluster has {hosts} in all, so choose 0 to {hosts - 1}"
        )
    wanted = GuestSpec()
    wanted.CopyFrom(spec)
    wanted.copies = copies
    return wanted


def _rightful(one: Guest, other: Guest, places: Mapping[str, Place]) -> Guest:
    """Whose a guest is that two hosts have: the later epoch's, of equals the one that the directory names."""
    if one.epoch != other.epoch:
        return max(one, other, key=lambda guest: guest.epoch)
    place = places.get(one.guest_id)
    return other if place is not None and place.host == other.host else one


def _nowhere(place: Place) -> Guest:
    """A guest that only the directory knows."""
    from everram.runtime.contracts.common_pb2 import Guest, GuestSpec

    return Guest(
        guest_id=place.guest_id,
        name=place.name,
        host=place.host,
        epoch=place.epoch,
        exit_status=-1,
        spec=GuestSpec(name=place.name),
        reason=f"waits for {place.host}" if place.waits else "unserved" if place.state == "running" else place.state,
    )


def waiting_words(guest: str, host: str) -> str:
    """Of a guest that waits for the saved memory of a host without power, with the choice that there is."""
    return (
        f"guest {guest} waits for {host}, which has no power: the last that it committed is only in the memory that "
        f"was saved there. `everram power on {host}` brings it back; `everram start {guest} --from-copy` goes on "
        "without that, with the copy that has most"
    )


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
