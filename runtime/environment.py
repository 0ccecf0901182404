"""The environment: the one seam behind which production and the simulation differ.

Everything a host needs from the outside comes from here: time, randomness, files, memory, processes, other hosts and
coordination. `everram.runtime.production` fills it with the real thing, `everram.runtime.simulation` with virtual time
and seeded faults. No module outside the seam reads a clock, draws randomness, opens a file or socket, or starts a
process (ruff's banned-api holds the rule). Waiting needs no seam: `asyncio.sleep` runs on the loop's time, virtual or
real.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from everram.runtime.channel.contract import Channel
from everram.runtime.coordination.api import Coordination
from everram.runtime.errors import Unimplemented
from everram.runtime.fuse.filesystem import FileSystem
from everram.runtime.memory.contract import PAGE_SHIFT, Mapping


class Clock(Protocol):
    """CLOCK_MONOTONIC of this computer: the same for all its processes, so deadlines may be shared through memory."""

    def now_ns(self) -> int: ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for people only; never for decisions."""


class Entropy(Protocol):
    def randbytes(self, n: int) -> bytes: ...

    def uniform(self, low: float, high: float) -> float: ...

    def token(self) -> str:
        """A fresh identity: 16 lower-case hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of a memory object that is to be written to a file: read by whoever writes it, when it does."""

    memory: MemoryObject
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def bring(self) -> None:
        """Before it is handed to a thread: what the memory lacks there is brought by the loop, as far as it can be had.
        Raises ResourceExhausted."""
        bring = getattr(self.memory, "bring", None)
        if bring is not None:
            bring(self.offset, self.length)

    def copy_to(self, target: memoryview) -> None:
        """In any thread, after `bring`: as it is, with zeros for what cannot be had."""
        read = getattr(self.memory, "read_as_it_is", self.memory.read_into)
        read(self.offset, target)

    def part(self, start: int, length: int) -> Stretch:
        return Stretch(self.memory, self.offset + start, length)


@dataclass(frozen=True, slots=True)
class Scattered:
    """Pages here and there in a mapping, which are to be written one after the other; read by whoever writes them."""

    window: memoryview
    runs: Sequence[tuple[int, int]]
    """(first page, count)."""
    length: int

    def __len__(self) -> int:
        return self.length

    def read_into(self, target: memoryview) -> None:
        window, at = self.window, 0
        for page, count in self.runs:
            end = at + (count << PAGE_SHIFT)
            start = page << PAGE_SHIFT
            target[at:end] = window[start : start + end - at]
            at = end


Piece: TypeAlias = "bytes | memoryview | Stretch | Scattered"


class DiskFile(Protocol):
    """An open file. Nothing is durable before `sync` returns; after a crash unsynced writes may be lost or torn."""

    async def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; shorter at the end of the file."""

    def pread_now(self, offset: int, length: int) -> bytes:
        """`pread` for who cannot await: it holds the loop up for as long as the disk takes."""

    async def pread_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """`pread` of each (offset, length), in one go."""

    async def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Raises ResourceExhausted on a full disk, DataLoss on an I/O error."""

    async def pwrite_all(self, offset: int, pieces: Sequence[Piece], block_bytes: int) -> list[int]:
        """One after the other from `offset`, as fast as the disk can; the CRC-32 of each block of so many bytes of what
        was written, the last perhaps a shorter one. Raises like `pwrite`."""

    async def pwrite_each(self, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
        """`pwrite` of each (offset, data), in one go. What is long and consists of whole pages, of the file and of
        memory, goes to the disk from where it lies and past the system's cache, where the file system can do that."""

    async def sync(self) -> None: ...

    async def size(self) -> int: ...

    async def close(self) -> None: ...

    def close_now(self) -> None:
        """`close` for who cannot await; nobody may be waiting for the file."""


class Disk(Protocol):
    """The host's state folder. Names are relative paths such as `image/regions/0`; folders appear as needed."""

    async def open(self, name: str, *, create: bool = False) -> DiskFile:
        """Raises NotFound."""

    async def read(self, name: str) -> bytes:
        """Raises NotFound."""

    async def replace(self, name: str, data: bytes) -> None:
        """Atomically and durably: write aside, sync, rename, sync the folder."""

    async def list(self, folder: str) -> list[str]:
        """Sorted names of the files directly in `folder`; empty if it does not exist."""

    async def remove(self, name: str) -> None:
        """A file, or a folder with all it holds; durable; not an error if it does not exist."""

    async def free_bytes(self) -> int: ...


class MemoryObject(Protocol):
    """Memory that the machine keeps under a name; sparse, zero where never written.

    `read`, `read_into` and `write` go by descriptor (a host's mmap read of a hole would silently create a page). A
    resizable object is mapped by nobody but the host that shortens it, and unmaps it first: who touched a mapping of
    what another has shortened would fault. Its views count as mappings.
    """

    name: str

    @property
    def identity(self) -> int:
        """Tells it from every other object of this machine that has or had its name."""

    @property
    def size_bytes(self) -> int:
        """Fixed, but for a resizable object: as it is now."""

    @property
    def resizable(self) -> bool: ...

    def map(self) -> Mapping:
        """A shared writable mapping of the whole object, as long as it is now. Raises InvalidArgument for an empty one,
        ResourceExhausted."""

    def read(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, target: memoryview) -> None:
        """As many bytes as `target` has."""

    def view(self, offset: int, length: int) -> memoryview:
        """Whole pages to be read where they lie, as long as somebody has the view; all of them have to be present. For
        what nobody changes meanwhile: a change may or may not be seen."""

    def window(self) -> memoryview:
        """The whole object to be read where it lies, at any time and as it is then, as long as somebody has it; what is
        not present appears when it is looked at, so what is absent has to be brought before. Not for a resizable
        object. What somebody stores while it is read may or may not be seen."""

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        """(offset, length) of what is present, or of that part of it between two offsets of pages; page-aligned but
        for the object's end, ascending."""

    @property
    def present_bytes(self) -> int:
        """How much memory it takes."""

    def is_present(self, offset: int) -> bool:
        """Whether there is memory behind the page that begins there; far cheaper than `extents`."""

    def present_pages(self) -> bytes:
        """One byte for each page, 1 if there is memory behind it; cheaper than `extents` of scattered pages. Of an
        object that is not resizable."""

    def punch(self, offset: int, length: int) -> None:
        """Give the pages back; they read as zeros afterwards."""


class Memory(Protocol):
    """The machine's memory objects. An object survives its creator until removed or until the machine dies."""

    capacity_bytes: int

    def names(self) -> list[str]:
        """Sorted."""

    def open(self, name: str) -> MemoryObject:
        """Raises NotFound."""

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> MemoryObject:
        """A zeroed object, kept by the machine when this returns. A resizable one may be empty. Raises AlreadyExists,
        ResourceExhausted."""

    def resize(self, name: str, size_bytes: int) -> None:
        """Shorten or lengthen a resizable object; what is added reads as zeros, also where there was something before.
        Raises NotFound, InvalidArgument, ResourceExhausted."""

    async def remove(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """One memory object that a guest gets at attach."""

    label: str
    """What the guest calls it: "log", or a region's name."""
    role: str
    """"log", "logged", "mapped", or "old": where the guest saves what snapshots need of the region of that label."""
    memory: str
    """Name of the memory object."""
    size_bytes: int
    """Logical size, at most the object's."""
    tracked: bool = False
    """Whether its faults are served by the host: the guest makes a userfaultfd and waits for `admit`."""
    lacking: bool = False
    """Whether pages of it are still on storage: only a process whose faults are served may attach."""


@dataclass(frozen=True, slots=True)
class GuestLaunch:
    """What the machine needs to start one incarnation of a guest."""

    guest_id: str
    name: str
    epoch: int
    argv: tuple[bytes, ...]
    working_directory: bytes
    environment: tuple[tuple[str, bytes], ...]
    log_path: str
    """Where stdout and stderr are appended, relative to the machine's state folder."""
    grants: tuple[Grant, ...]
    port: int = 0


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """What the machine knows of a guest's current or last incarnation."""

    guest_id: str
    epoch: int
    pid: int
    """0 once it has ended."""
    exit_status: int = -1
    """-1 while it runs; exit code, or 128 + signal."""
    freeze_reasons: tuple[str, ...] = ()
    attached_pid: int = 0
    """The process in the guest's tree that attached; 0 if none."""


@dataclass(frozen=True, slots=True)
class TrackedRange:
    """A guest's mapping of a tracked region, in the guest's own addresses."""

    label: str
    memory: str
    address: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something the host has to know. `kind`: "exited", "attached", "mains", "frozen", "network"; a host ignores
    kinds that it does not know."""

    kind: str
    guest_id: str = ""
    epoch: int = 0
    exit_status: int = -1
    pid: int = 0
    userfaultfd: int = -1
    """With "attached" of a guest that has tracked ranges: the descriptor, now the host's own."""
    ranges: tuple[TrackedRange, ...] = ()
    served: bool = False
    """Whether an earlier host has served them: what it has protected is protected still."""
    mains: bool = True
    """With "mains": whether there is power from outside."""
    deadline_ns: int = 0
    """With "mains": until when the battery lasts at most (Clock.now_ns)."""
    connected: bool = True
    """With "network": whether the machine is connected; the fault `partition` cuts it off, and its end connects it."""
    weather: str = ""
    """With "network": the fault of its links to other machines; empty: none."""
    reason: str = ""
    """With "frozen": the freeze reason that the machine added by itself ("lease")."""


class Machine(Protocol):
    """The hardware, as its host sees it (D2, D3). Only the machine starts, freezes, thaws and kills guests."""

    async def ready(self) -> None:
        """READY=1: this host serves."""

    def alive(self) -> None:
        """WATCHDOG=1; due every `watchdog_interval_s`."""

    watchdog_interval_s: float
    battery_s: float
    """How long the battery lasts when it is full."""

    async def spawn(self, launch: GuestLaunch) -> GuestProcess:
        """Raises NotFound / PermissionDenied for a program that cannot be executed, FailedPrecondition if it runs."""

    async def freeze(self, guest_id: str, reason: str) -> None:
        """Returns when every process of the guest is stopped (or blocked in a fault of ours).

        With guest_id "" the whole machine: all guests, and no new one is started until the same thaw.
        """

    async def thaw(self, guest_id: str, reason: str) -> None:
        """Takes one reason away; the guest continues when none is left. Reason "lease" cannot be taken away."""

    async def signal(self, guest_id: str, signal_number: int) -> None:
        """To the guest's process group."""

    async def kill(self, guest_id: str) -> GuestProcess:
        """SIGKILL to every process of the guest; returns its end."""

    async def forget(self, guest_id: str) -> None:
        """Drop an ended guest's record."""

    async def admit(self, guest_id: str, pid: int, *, served: bool) -> None:
        """Let this process, which attaches to the guest with tracked ranges, go on; of another one it says nothing.
        `served`: its faults are, from now on."""

    async def guests(self) -> list[GuestProcess]:
        """Everything the machine runs or has run and not forgotten, by guest_id: how a new host takes guests back."""

    async def tracked(self) -> list[MachineEvent]:
        """The kept userfaultfds of attached guests as "attached" events: how a new host takes fault service back."""

    async def lease(self, deadline_ns: int) -> None:
        """Guests may serve until then (Clock.now_ns); the machine freezes them a margin before, reason "lease"."""

    async def free_port(self) -> int:
        """A TCP port on loopback that nobody listens on now, not handed out again soon."""

    def events(self) -> AsyncIterator[MachineEvent]:
        """From the start of this host on, in order; ends with the machine."""

    def power_events(self) -> AsyncIterator[MachineEvent]:
        """Those of kind "mains", for whoever answers for the machine's memory: they are not among `events`."""

    async def report_mains(self, on: bool) -> None:
        """What a source of power outside the machine's own says: from now on its battery counts, or not any more."""

    async def power_off(self) -> None:
        """What could be done on battery is done: everything of this machine ends, and this never returns. Raises
        FailedPrecondition if the mains never failed."""

    async def power_kept(self) -> None:
        """The mains came back in time, and guests go on."""


class LinkStream(Protocol):
    """One end of a stream of batches between two hosts: ordered; broken as a whole or not at all."""

    async def send(self, batch: bytes) -> None:
        """Raises Unavailable when the stream has ended."""

    async def receive(self) -> bytes:
        """Raises Unavailable when the stream has ended."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class HostAddress:
    """Where a host listens, as the directory says it."""

    host: str
    """Its name, unique in the cluster."""
    host_id: str
    address: str
    """`unix:PATH` or `HOST:PORT`."""
    channel: str = ""
    """Address of its channel (`Channel.address`); empty if the directory does not say."""


class Network(Protocol):
    """Streams between hosts. What they carry is decided by `everram.runtime.transport.link`."""

    async def connect(self, peer: HostAddress) -> LinkStream:
        """Raises Unavailable."""

    def serve(self, accept: Callable[[LinkStream], Awaitable[None]]) -> None:
        """`accept` runs for each stream a peer opens, and the stream ends when it returns."""


class Doorbell(Protocol):
    """Wakes a sleeping reader of a guest's log ring (an eventfd shared with the guest)."""

    async def wait(self, timeout_s: float) -> bool:
        """True if it rang, False after `timeout_s`."""

    def close(self) -> None: ...


class Logs(Protocol):
    """Guests' output files, which the machine appends to."""

    async def read(self, path: str, offset: int, limit: int) -> bytes: ...

    async def size(self, path: str) -> int: ...

    async def remove(self, path: str) -> None: ...


class Mount(Protocol):
    """One mount of this host, kept by the machine: it outlives the host's process, and its successor serves it."""

    folder: str

    def held(self) -> frozenset[str]:
        """Keys of the nodes that programs have open through a predecessor of this server."""

    async def serve(self, files: FileSystem) -> None:
        """Until it is unmounted; then nothing is kept of it. If cancelled, whoever serves it next goes on."""


class Mounts(Protocol):
    """Folders of this computer in which programs find a file system of this host."""

    def found(self) -> list[Mount]:
        """Those of this host's predecessors that are mounted still."""

    async def mount(self, folder: str, *, passthrough: bool) -> Mount:
        """Raises NotFound, AlreadyExists, PermissionDenied, Unavailable, Unimplemented."""

    def descriptor(self, memory: MemoryObject) -> int | None:
        """Of what the kernel may read and write in the server's place."""

    def modified_ns(self, memory: MemoryObject) -> int:
        """When it was last written, by the kernel too. Only ever compared."""


class NoMounts:
    """`Mounts` where there is no kernel to mount anything: refuses."""

    def found(self) -> list[Mount]:
        return []

    async def mount(self, folder: str, *, passthrough: bool) -> Mount:
        raise Unimplemented(f"{folder} cannot be mounted here: this environment has no kernel for that")

    def descriptor(self, memory: MemoryObject) -> int | None:
        return None

    def modified_ns(self, memory: MemoryObject) -> int:
        return 0


class LastingFiles(Protocol):
    """Files in which everything lies that outlives the machine, so that a save need only write them back."""

    async def sync(self) -> int:
        """All that was stored by now is on storage when this returns: how many bytes there are. What this host stores
        until its end is written back by whoever ends the machine. Raises DataLoss."""

    def stored_to(self) -> None:
        """Guests store again: what was synced is out of date from now on. Raises DataLoss."""


class UpsReading(enum.Enum):
    """What an uninterruptible power supply says of itself, or why it says nothing."""

    ON_LINE = "on line"
    ON_BATTERY = "on battery"
    LOW_BATTERY = "low battery"
    FORCED_SHUTDOWN = "forced shutdown"
    UNKNOWN = "not known yet"
    STALE = "stale"
    """Its driver has heard nothing of it for a while."""
    LOST = "cannot be asked"


class Ups(Protocol):
    """A real source of power that can be asked."""

    name: str

    async def reading(self) -> UpsReading:
        """Raises nothing: what cannot be read is a reading too."""

    async def lasts_s(self, *, from_low: bool) -> float | None:
        """For how long it would carry its load now, or, `from_low`, from the moment on at which it says that its
        battery is low. None: it does not say, or nothing that can be. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything one host gets from outside."""

    clock: Clock
    entropy: Entropy
    disk: Disk
    memory: Memory
    machine: Machine
    network: Network
    channel: Channel
    """One-sided access to other hosts' memory."""
    coordination: Coordination
    logs: Logs
    doorbell: Callable[[str], Doorbell]
    """The doorbell of a guest, by guest_id."""
    missing: Sequence[str] = field(default=())
    """What this computer cannot do and what is used instead (D13), in sentences for `status`."""
    mounts: Mounts = field(default_factory=NoMounts)
    nvm_files: LastingFiles | None = None
    """None: an image of the memory is all that outlives the machine."""
    ups: Ups | None = None
    """None: the machine's own mains and battery are all there is."""
