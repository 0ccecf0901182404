"""A machine's configuration file: JSON, written by whoever starts the machine; unknown members are refused by name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from everram.runtime.errors import InvalidArgument
from everram.runtime.machine.effects import SECOND_NS, Limits

SOCKET_PATH_BYTES_MAX = 107
"""The kernel's limit of a Unix socket's path."""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What one machine is told at its start."""

    cluster_id: str
    machine: str
    """Its name, unique in the cluster; the host on it has the same."""
    state_dir: str
    """Guests' output goes to files in it, the host's to `host.log`."""
    socket: str
    """Path of the Unix socket for control and for attaching guests; at most 107 bytes."""
    memory_bytes: int
    """The capacity of its memory."""
    host_command: list[str]
    """Program and arguments of the host."""
    watchdog_timeout_s: float = 0.5
    start_timeout_s: float = 10.0
    lease_margin_s: float = 0.15
    stop_grace_s: float = 2.0
    battery_s: float = 30.0
    """How long everything runs without mains, from a full battery: what a laptop does not have is modelled."""
    freezer: str = "auto"
    """"auto": a cgroup where one is writable, otherwise signals; "signals": signals in any case."""
    host_environment: dict[str, str] = field(default_factory=dict)
    """Added to what the host inherits."""

    @property
    def mark(self) -> str:
        """What `EVERRAM_MACHINE` says in the environment of every process of this machine."""
        return f"{self.cluster_id}/{self.machine}"

    def limits(self) -> Limits:
        return Limits(
            watchdog_ns=int(self.watchdog_timeout_s * SECOND_NS),
            start_ns=int(self.start_timeout_s * SECOND_NS),
            lease_margin_ns=int(self.lease_margin_s * SECOND_NS),
            stop_grace_ns=int(self.stop_grace_s * SECOND_NS),
            battery_ns=int(self.battery_s * SECOND_NS),
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "the text") -> MachineConfig:
        """Raises InvalidArgument with what is wrong; `source` names where the text is from."""
        try:
            members = json.loads(text)
            if not isinstance(members, dict):
                raise TypeError("it is not a JSON object")
            config = MachineConfig(**members)
            config._check()
        except (ValueError, TypeError) as error:
            reason = str(error).replace("MachineConfig.__init__() ", "")
            raise InvalidArgument(f"{source} is not a machine's configuration: {reason}") from error
        return config

    @staticmethod
    def read(path: str) -> MachineConfig:
        """Raises InvalidArgument with the file's name and what is wrong in it."""
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} cannot be read as a machine's configuration: {error}") from error
        return MachineConfig.from_json(text, path)

    def _check(self) -> None:
        members: dict[str, Any] = dataclasses.asdict(self)
        for name in ("cluster_id", "machine", "state_dir", "socket", "freezer"):
            if not isinstance(members[name], str) or not members[name]:
                raise ValueError(f"{name} is {members[name]!r}")
        if "/" in self.cluster_id + self.machine:
            raise ValueError("cluster_id and machine may not contain a slash")
        if len(self.socket.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"the socket's path is longer than {SOCKET_PATH_BYTES_MAX} bytes: {self.socket}")
        if not isinstance(members["memory_bytes"], int) or self.memory_bytes <= 0:
            raise ValueError(f"memory_bytes is {self.memory_bytes!r}")
        command = members["host_command"]
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise ValueError("host_command is not a list of program and arguments")
        for name in ("watchdog_timeout_s", "start_timeout_s", "lease_margin_s", "stop_grace_s", "battery_s"):
            value = members[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < SECONDS_MAX:
                raise ValueError(f"{name} is {value!r}, not a number of seconds")
        if self.freezer not in ("auto", "signals"):
            raise ValueError(f'freezer is {self.freezer!r}, neither "auto" nor "signals"')


SECONDS_MAX = 3600
"""More is surely a mistaken unit."""
