"""Where a host listens, by its name: reads the directory for links to other hosts.

    resolver = HostResolver(environment.coordination)
    address = await resolver.resolve("h2")

Asked once per connection attempt, so it reads instead of watching: the answer is as new as the attempt. While
coordination cannot be reached, the last known address serves, because hosts must go on without it.
"""

from __future__ import annotations

from everram.runtime.coordination.api import Coordination, Range
from everram.runtime.coordination.directory import decode, host_key
from everram.runtime.environment import HostAddress
from everram.runtime.errors import DataLoss, DeadlineExceeded, NotFound, Unavailable


class HostResolver:
    """Addresses of the cluster's hosts."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination
        self._known: dict[str, HostAddress] = {}  # as last read, one per host that was ever asked for

    async def resolve(self, host: str) -> HostAddress:
        """Raises NotFound while no host of that name holds its lease, Unavailable, DeadlineExceeded."""
        try:
            _, found = await self._coordination.range(Range(host_key(host)))
        except (Unavailable, DeadlineExceeded):
            if host in self._known:
                return self._known[host]
            raise
        if not found:
            self._known.pop(host, None)
            raise NotFound(f"no host named {host} is in the directory: it is down, or has lost its lease")
        try:
            entry = decode(found[0].value)
            address = self._known[host] = HostAddress(
                host, str(entry["host_id"]), str(entry["address"]), str(entry.get("channel", ""))
            )
        except (ValueError, KeyError) as error:
            raise DataLoss(
                f"the directory's entry of host {host} cannot be read ({error}): restart that host"
            ) from error
        return address
