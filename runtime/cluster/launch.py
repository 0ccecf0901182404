"""Starts a local cluster: writes its configuration and starts its supervisor, a daemon.

    folders = Folders.of(name, folder, os.environ)
    plan = prepare(folders, Wishes(hosts=3))           # raises what is wrong, before anything is started
    with start(folders) as progress:
        for step in progress: ...                      # {"kind": ..., "text": ...}, see supervisor.Step

The supervisor goes on without its starter; `progress` ends when the supervisor does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from everram.runtime.cluster.config import (
    HOSTS_DEFAULT,
    HOSTS_MAX,
    MEMORY_DEFAULT_BYTES,
    NVM_DEFAULT_BYTES,
    ClusterConfig,
)
from everram.runtime.cluster.folders import (
    DEFAULT_CLUSTER,
    ClusterLock,
    Folders,
    Phase,
    check_name,
    of_os_error,
    write_durably,
)
from everram.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.formats.config import LEASE_TTL_S, HostConfig
from everram.runtime.machine.config import MachineConfig

BATTERY_DEFAULT_S = 30.0

Step = dict[str, Any]
"""One line of progress. `kind` "ready" also has "seconds"; "error" and "stays" have "fault"."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user of `up` asked for; None leaves it as it is, or takes the default."""

    name: str | None = None
    hosts: int | None = None
    memory_bytes: int | None = None
    nvm_bytes: int | None = None
    open_image: str = ""
    channel: str | None = None
    """`tcp` for all hosts, or `h2=tcp,h3=shm` for single ones."""
    lease_ttl_s: float | None = None
    storage_bytes: int | None = None
    swap_bytes: int | None = None
    battery_s: float | None = None
    ups: str | None = None
    on_battery: str | None = None
    nvm_files: str | None = None
    restore: str | None = None
    dirty_cap_bytes: int | None = None
    link_delay_s: float | None = None
    checksums: bool | None = None
    log_json: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    config: ClusterConfig
    phase: Phase
    """What the state folder said before."""


def prepare(folders: Folders, wishes: Wishes) -> Plan:
    """Write every configuration file. Raises AlreadyExists if the cluster runs, InvalidArgument, DataLoss."""
    folders.make()
    lock = ClusterLock.take(folders.lock)
    try:
        phase = folders.phase_unlocked()
        config = _new(folders, wishes) if phase is Phase.NEW else _known(folders, wishes)
        for host in config.hosts:
            _write_machine(folders, config, host, wishes.open_image)
        write_durably(folders.config, config.to_json())
    finally:
        lock.release()
    return Plan(config, phase)


def _new(folders: Folders, wishes: Wishes) -> ClusterConfig:
    count = HOSTS_DEFAULT if wishes.hosts is None else wishes.hosts
    if not 1 <= count <= HOSTS_MAX:
        raise InvalidArgument(f"a local cluster has 1 to {HOSTS_MAX} hosts, not {count}")
    memory = wishes.memory_bytes or max(MEMORY_DEFAULT_BYTES, 2 * (wishes.nvm_bytes or 0))
    config = ClusterConfig(
        name=check_name(wishes.name or DEFAULT_CLUSTER),
        cluster_id=secrets.token_hex(8),
        hosts=tuple(f"h{n}" for n in range(1, count + 1)),
        memory_bytes=memory,
        nvm_bytes=wishes.nvm_bytes or min(NVM_DEFAULT_BYTES, memory // 2),
        token=secrets.token_hex(16),
        lease_ttl_s=wishes.lease_ttl_s or LEASE_TTL_S,
        storage_bytes=wishes.storage_bytes or 0,
        swap_bytes=wishes.swap_bytes or 0,
        nvm_files=wishes.nvm_files or "",
        ups=wishes.ups or "",
        on_battery=wishes.on_battery or "wait",
        restore=wishes.restore or "lazy",
        dirty_cap_bytes=wishes.dirty_cap_bytes or 0,
        link_delay_s=wishes.link_delay_s or 0.0,
        checksums=wishes.checksums is not False,
        log_json=bool(wishes.log_json),
        battery_s=BATTERY_DEFAULT_S if wishes.battery_s is None else wishes.battery_s,
    )
    config = replace(config, channel=_channel(wishes, config))
    config.check()
    return config


def _known(folders: Folders, wishes: Wishes) -> ClusterConfig:
    """What is there; sizes may grow with the next start, the hosts stay."""
    config = ClusterConfig.read(folders.config)
    if wishes.name is not None and wishes.name != config.name:
        raise InvalidArgument(f'the cluster in {folders.state} is named "{config.name}", not "{wishes.name}"')
    if wishes.hosts is not None and wishes.hosts != len(config.hosts):
        raise FailedPrecondition(
            f'cluster "{config.name}" has {len(config.hosts)} hosts and keeps them: leave --hosts out, '
            f"or erase it first with `everram down --discard`"
        )
    if wishes.nvm_files not in (None, config.nvm_files):
        where = f"in files in {config.nvm_files}" if config.nvm_files else "in memory, and is saved as an image"
        raise FailedPrecondition(
            f'the NVM of cluster "{config.name}" is {where}, and stays there: leave --nvm-files out, or erase the '
            "cluster first with `everram down --discard`"
        )
    grown = replace(
        config,
        memory_bytes=wishes.memory_bytes or config.memory_bytes,
        nvm_bytes=wishes.nvm_bytes or config.nvm_bytes,
        token=config.token or secrets.token_hex(16),
        channel=_channel(wishes, config),
        lease_ttl_s=wishes.lease_ttl_s or config.lease_ttl_s,
        storage_bytes=wishes.storage_bytes or config.storage_bytes,
        swap_bytes=wishes.swap_bytes or config.swap_bytes,
        ups=config.ups if wishes.ups is None else wishes.ups,
        on_battery=wishes.on_battery or config.on_battery,
        restore=wishes.restore or config.restore,
        dirty_cap_bytes=config.dirty_cap_bytes if wishes.dirty_cap_bytes is None else wishes.dirty_cap_bytes,
        link_delay_s=config.link_delay_s if wishes.link_delay_s is None else wishes.link_delay_s,
        checksums=config.checksums if wishes.checksums is None else wishes.checksums,
        log_json=config.log_json if wishes.log_json is None else wishes.log_json,
        battery_s=config.battery_s if wishes.battery_s is None else wishes.battery_s,
    )
    if grown.memory_bytes < config.memory_bytes or grown.nvm_bytes < config.nvm_bytes:
        raise FailedPrecondition(
            f'the memory of cluster "{config.name}" can grow, not shrink: its guests may be using it'
        )
    grown.check()
    return grown


def _channel(wishes: Wishes, config: ClusterConfig) -> dict[str, str]:
    """How each host's channel is carried, where it is not "auto". What is not wished for stays. Raises
    InvalidArgument."""
    if wishes.channel is None:
        return config.channel
    if "=" not in wishes.channel:
        modes = dict.fromkeys(config.hosts, wishes.channel)
    else:
        modes = dict(config.channel)
        for word in wishes.channel.split(","):
            host, equals, mode = word.partition("=")
            if not equals:
                raise InvalidArgument(f'"{wishes.channel}" is neither one way for all nor h2=tcp,h3=shm')
            modes[host] = mode
    return {host: mode for host, mode in modes.items() if mode != "auto" or host not in config.hosts}


def _write_machine(folders: Folders, config: ClusterConfig, host: str, open_image: str) -> None:
    folder = folders.machine(host)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise of_os_error(error, f"make the folder {folder}") from error
    host_file, machine_file = folder / "host.json", folder / "machine.json"
    host_config = HostConfig(
        cluster=config.name,
        cluster_id=config.cluster_id,
        host=host,
        host_id=_host_id(host_file),
        socket=str(folders.host_socket(host)),
        state_dir=str(folder),
        coordination=f"unix:{folders.coordination_socket}",
        memory_bytes=config.memory_bytes,
        nvm_bytes=config.nvm_bytes,
        storage_bytes=config.storage_bytes,
        swap_bytes=config.swap_bytes,
        nvm_files=str(Path(config.nvm_files) / host) if config.nvm_files else "",
        ups=config.ups,
        on_battery=config.on_battery,
        restore=config.restore,
        dirty_cap_bytes=config.dirty_cap_bytes,
        link_delay_s=config.link_delay_s,
        checksums=config.checksums,
        log_json=config.log_json,
        token=config.token,
        lease_ttl_s=config.lease_ttl_s,
        # A TCP port is opened on request only: where nobody is made to use TCP, shared memory reaches everybody.
        channel=config.channel.get(host, "auto" if "tcp" in config.channel.values() else "shm"),
        open_image=open_image,
    )
    machine_config = MachineConfig(
        cluster_id=config.cluster_id,
        machine=host,
        state_dir=str(folder),
        socket=str(folders.machine_socket(host)),
        memory_bytes=config.memory_bytes,
        battery_s=config.battery_s,
        host_command=[sys.executable, "-P", "-m", "everram.actors.host", "--config", str(host_file)],
    )
    write_durably(host_file, host_config.to_json())
    write_durably(machine_file, machine_config.to_json())


def _host_id(host_file: Path) -> str:
    """The host keeps its identity for as long as its state folder lives (D1)."""
    if not host_file.exists():
        return secrets.token_hex(8)
    return HostConfig.read(str(host_file)).host_id


class Progress:
    """What the supervisor says of itself, line by line, until it ends."""

    def __init__(self, supervisor_pid: int, descriptor: int, held: int | None = None) -> None:
        self.supervisor_pid = supervisor_pid
        self._lines = os.fdopen(descriptor, encoding="utf-8")
        self._held = held

    def __iter__(self) -> Progress:
        return self

    def __next__(self) -> Step:
        """Blocks. Not a generator: Ctrl-C while it waits must not be the end of the progress."""
        line = self._lines.readline()
        if not line:
            raise StopIteration
        step: Step = json.loads(line)
        return step

    def stop(self) -> None:
        """Ask for the orderly stop; progress goes on until it is done."""
        try:
            os.kill(self.supervisor_pid, signal.SIGTERM)
        except ProcessLookupError:
            return

    def kill(self) -> None:
        """End the supervisor at once, and with it the whole cluster; nothing is saved."""
        try:
            os.kill(self.supervisor_pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        """The supervisor's exit status, once it has ended. Only for its starter."""
        return os.waitstatus_to_exitcode(os.waitpid(self.supervisor_pid, 0)[1])

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        if self._held is not None:
            os.close(self._held)


def start(folders: Folders, *, temporary: bool = False) -> Progress:
    """Start the supervisor in a session of its own. Raises ResourceExhausted if no process can be started.

    `temporary`: it erases the cluster when this process ends, however it ends, or closes the progress.
    """
    progress, said = os.pipe()
    given, held = os.pipe() if temporary else (None, None)
    os.set_inheritable(said, True)
    command = [sys.executable, "-P", "-m", "everram.runtime.cluster.supervisor"]
    command += ["--config", str(folders.config), "--run", str(folders.run), "--progress", str(said)]
    if given is not None:
        os.set_inheritable(given, True)
        command += ["--starter", str(given)]
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(folders.log), log_flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        pid = os.posix_spawn(sys.executable, command, _environment(), file_actions=actions, setsid=True)
    except OSError as error:
        for descriptor in (progress, held):
            if descriptor is not None:
                os.close(descriptor)
        raise ResourceExhausted(f"the supervisor cannot be started: {error.strerror}") from error
    finally:
        os.close(said)
        if given is not None:
            os.close(given)
    return Progress(pid, progress, held)


def _environment() -> dict[str, str]:
    """This process's, but one under which every process of the cluster finds its code compiled.

    A host has to be back well before its guests' lease ends, and compiling everram at each start would take longer than
    everything else that a start does.
    """
    environment = dict(os.environ)
    unwanted = environment.pop("PYTHONDONTWRITEBYTECODE", "")
    if "PYTHONPYCACHEPREFIX" not in environment and (unwanted or not os.access(Path(__file__).parent, os.W_OK)):
        cache = environment.get("XDG_CACHE_HOME", "")
        base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
        environment["PYTHONPYCACHEPREFIX"] = str(base / "everram" / "compiled")
    return environment
