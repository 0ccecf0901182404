"""`cluster.json`: what a local cluster is made of, written by `up` and read by its supervisor.

JSON, so that a person can read it; members that are unknown are refused by name, because a setting that is silently
ignored is worse than an error.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.errors import DataLoss, InvalidArgument
from everram.runtime.formats.config import LEASE_TTL_S

FORMAT = 1
CHANNEL_MODES = ("auto", "shm", "tcp")
HOSTS_DEFAULT = 3
HOSTS_MAX = 32
"""Each host is a machine process, a Python process and its links: more than this is no laptop's work."""
MEMORY_DEFAULT_BYTES = 1 << 30
"""Of each machine: a limit, not a reservation, since memory objects are sparse."""
NVM_DEFAULT_BYTES = 512 << 20
NVM_MIN_BYTES = 4 << 20
"""Room for one guest with the smallest log ring and a region."""
BATTERY_MAX_S = 3600
DIRTY_CAP_MIN_BYTES = 1 << 20
LINK_DELAY_MAX_S = 0.5
"""Who acknowledges nothing for a second counts as lost."""
LEASE_TTL_MIN_S, LEASE_TTL_MAX_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    name: str
    cluster_id: str
    hosts: tuple[str, ...]
    memory_bytes: int
    nvm_bytes: int
    coordination: str = "embedded"
    token: str = ""
    """Shared by the cluster's hosts and nobody else: what listens on TCP asks for it."""
    channel: dict[str, str] = dataclasses.field(default_factory=dict)
    """By host, where it is not "auto": "shm" or "tcp" (`HostConfig.channel`)."""
    lease_ttl_s: float = LEASE_TTL_S
    """How long guests may serve without a renewal: as long as a failover without proof of death waits at least."""
    storage_bytes: int = 0
    """Of the disk, for purged blocks of each host; 0: as HostConfig says."""
    swap_bytes: int = 0
    """Of the disk, for pages of each host's guests; 0: as HostConfig says."""
    nvm_files: str = ""
    """The folder with a folder for each host's lasting memory, as ordinary files; empty: in memory."""
    ups: str = ""
    on_battery: str = "wait"
    restore: str = "lazy"
    """As in HostConfig."""
    checksums: bool = True
    link_delay_s: float = 0.0
    dirty_cap_bytes: int = 0
    """As in HostConfig."""
    log_json: bool = False
    """As in HostConfig; the supervisor's log, too."""
    battery_s: float = 30.0
    """How long each machine runs without mains."""
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def read(path: Path) -> ClusterConfig:
        """Raises DataLoss with the file's name and what is wrong in it."""
        try:
            members = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(members, dict) or not isinstance(members.get("hosts"), list):
                raise ValueError("it is not an object with a list of hosts")
            if members.get("format") != FORMAT:
                raise ValueError(f"it has format {members.get('format')!r}, and this version reads format {FORMAT}")
            if not isinstance(members.get("channel", {}), dict):
                raise ValueError("its channel is no object of hosts and ways")
            members["hosts"] = tuple(str(host) for host in members["hosts"])
            config = ClusterConfig(**members)
            config.check()
        except (OSError, ValueError, TypeError, InvalidArgument) as error:
            raise DataLoss(
                f"{path} is not a cluster's configuration ({error}): restore that file, "
                f"or erase the cluster with `everram down --discard`"
            ) from error
        return config

    def check(self) -> None:
        """Raises InvalidArgument if no such cluster could run."""
        if not 1 <= len(self.hosts) <= HOSTS_MAX:
            raise InvalidArgument(f"a local cluster has 1 to {HOSTS_MAX} hosts, not {len(self.hosts)}")
        for host, mode in self.channel.items():
            if host not in self.hosts or mode not in CHANNEL_MODES:
                raise InvalidArgument(
                    f'the channel of host "{host}" cannot be "{mode}": the hosts are {", ".join(self.hosts)}, and the '
                    f"ways are {', '.join(CHANNEL_MODES)}"
                )
        if not LEASE_TTL_MIN_S <= self.lease_ttl_s <= LEASE_TTL_MAX_S:
            raise InvalidArgument(
                f"a lease of {self.lease_ttl_s:g} s cannot be kept: choose from {LEASE_TTL_MIN_S:g} s, in which a host "
                f"has to start again, to {LEASE_TTL_MAX_S:g} s"
            )
        if not 0 < self.battery_s <= BATTERY_MAX_S:
            raise InvalidArgument(
                f"a battery of {self.battery_s:g} s cannot be: give a time such as 5ms or 30s, at most an hour"
            )
        if not 0 <= self.link_delay_s <= LINK_DELAY_MAX_S:
            raise InvalidArgument(f"copies cannot be {self.link_delay_s:g} s away: at most {LINK_DELAY_MAX_S:g} s")
        if self.dirty_cap_bytes and self.dirty_cap_bytes < DIRTY_CAP_MIN_BYTES:
            raise InvalidArgument(
                f"a dirty cap of {self.dirty_cap_bytes} bytes would stop every guest: at least {DIRTY_CAP_MIN_BYTES}, "
                "or 0 for what the battery lasts for"
            )
        if not NVM_MIN_BYTES <= self.nvm_bytes <= self.memory_bytes:
            raise InvalidArgument(
                f"persistent memory (--nvm, {self.nvm_bytes} bytes) is part of the machine's memory "
                f"(--memory, {self.memory_bytes} bytes), and at least {NVM_MIN_BYTES} bytes"
            )
