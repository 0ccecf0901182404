"""The configuration files of a machine's host, written by whoever starts the cluster and read by `everram host`.

JSON, so that a person can read and an installer can write them; unknown members are refused by name, because a setting
that is silently ignored is worse than an error.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.errors import InvalidArgument

STORAGE_PART = 4
FILES_PART = 4
"""Files may take this part of the machine's memory."""
SWAP_PART = 2
LEASE_TTL_S = 2.0
"""How long guests may serve without a renewal (D5); a host restart must fit well inside."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What one host is told at its start."""

    cluster: str
    cluster_id: str
    host: str
    host_id: str
    socket: str
    """Path of the Unix socket on which it serves gRPC."""
    state_dir: str
    coordination: str
    """`unix:PATH` or `HOST:PORT` of an etcd v3 server."""
    memory_bytes: int
    nvm_bytes: int
    ups: str = ""
    """`NAME@HOST:PORT` of a UPS of the Network UPS Tools; empty: none."""
    on_battery: str = "wait"
    """What "on battery" means of it: "act" saves at once, "wait" only when the battery is low."""
    link_delay_s: float = 0.0
    """How long a run of records takes to a copy, at least: as if copies were that far away. For trials."""
    dirty_cap_bytes: int = 0
    """How much of regions may differ from what is flushed, at most; 0: as much as the battery lasts for."""
    storage_bytes: int = 0
    """What purged blocks may take of the disk; 0: as much as STORAGE_PART times the NVM."""
    nvm_files: str = ""
    """The folder in which this machine's lasting memory lies, as ordinary files; empty: in memory of its own."""
    files_bytes: int = 0
    """What the files of remote memory may take of `memory_bytes`; 0: a quarter."""
    lease_ttl_s: float = LEASE_TTL_S
    tcp_port: int = 0
    """0: no TCP listener. On loopback only, and with the token."""
    token: str = ""
    """The cluster's: asked for by whatever listens on TCP."""
    channel: str = "auto"
    """How other hosts' memory is reached, and this one's: "shm", "tcp", or "auto": the better of both for each peer."""
    checksums: bool = True
    """Whether all data on TCP has a checksum, however long. Short data has one in any case."""
    open_image: str = ""
    """Named choice for an image that may not be opened silently: "incomplete" or "opened" (D1)."""

    log_json: bool = False
    """Whether its log is JSON, one object a line (`everram.runtime.json_log`)."""

    restore: str = "lazy"
    """"lazy": guests run before all of their memory is read, where this computer can; "eager": after."""
    swap_bytes: int = 0
    """What pages of guests may take of the disk; 0: SWAP_PART times `guest_memory_bytes`."""

    @property
    def guest_memory_bytes(self) -> int:
        """What guests' volatile memory may take: what regions and files leave of `memory_bytes`."""
        files_bytes = self.files_bytes or self.memory_bytes // FILES_PART
        return max(0, self.memory_bytes - self.nvm_bytes - files_bytes)

    @property
    def swap_space_bytes(self) -> int:
        return self.swap_bytes or SWAP_PART * self.guest_memory_bytes

    def to_json(self) -> str:
        """Without what is as it is anyway: an earlier everram, to which a host is rolled back, may not know it."""
        members = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }
        return json.dumps(members, indent=2) + "\n"

    @staticmethod
    def read(path: str) -> HostConfig:
        """Raises InvalidArgument with the file's name and what is wrong in it."""
        try:
            members = json.loads(Path(path).read_text())
            return HostConfig(**members)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidArgument(f"{path} is not a host's configuration: {error}") from error
