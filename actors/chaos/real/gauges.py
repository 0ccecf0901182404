"""What can only be measured, now and then: how far copies are behind, what guests' memory is used for, what snapshots
keep. `run` it meanwhile; then read its samples, each (when, how much), in order.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from typing import TypeVar

from everram.runtime.client import Cluster
from everram.runtime.client.cluster import Host
from everram.runtime.contracts.common_pb2 import Empty, Guest
from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemoryKey
from everram.runtime.errors import EverramError
from everram.runtime.memory.contract import PAGE_BYTES

MEASURE_S = 0.5
ASK_TIMEOUT_S = 1.0
T = TypeVar("T")
Samples = list[tuple[float, float]]


class Gauges:
    """Sums are over all hosts and guests that answer."""

    def __init__(self, cluster: Cluster, guests: dict[str, str]) -> None:
        """`guests`: the names of those that are followed, by guest_id."""
        self.lag: dict[str, Samples] = {name: [] for name in guests.values()}
        """By guest: how many bytes the copy that is farthest behind lacks."""
        self.classes: dict[str, Samples] = defaultdict(list)
        """By class of pages: bytes of guests' volatile memory, as their hosts estimate it."""
        self.resident: Samples = []
        """Bytes of guests' volatile memory that are in memory."""
        self.swapped: Samples = []
        self.ballooned: Samples = []
        self.old_blocks: Samples = []
        """Bytes of memory that only snapshots refer to."""
        self.purged: Samples = []
        """Bytes of storage that hold what was purged."""
        self._cluster = cluster
        self._guests = guests

    async def run(self) -> None:
        while True:
            await self._measure()
            await asyncio.sleep(MEASURE_S)

    async def guests(self) -> list[Guest]:
        """As their hosts have them, as far as those answer."""
        try:
            return (await self._cluster.guests(patience_s=0.0, timeout_s=ASK_TIMEOUT_S))[0]
        except EverramError:
            return []

    async def _measure(self) -> None:
        guests, memories, devices = await asyncio.gather(
            self.guests(),
            asyncio.gather(
                *(answer(host.memory_scheduler.status(Empty(), timeout_s=ASK_TIMEOUT_S)) for host in self._hosts)
            ),
            asyncio.gather(*(answer(host.nvm_device.status(Empty(), timeout_s=ASK_TIMEOUT_S)) for host in self._hosts)),
        )
        now_s = asyncio.get_running_loop().time()
        for guest in guests:
            if guest.guest_id in self._guests and guest.copies:
                behind = max(guest.log.tail - copy.durable for copy in guest.copies)
                self.lag[self._guests[guest.guest_id]].append((now_s, float(max(0, behind))))
        known = [(host, memory) for host, memory in zip(self._hosts, memories, strict=True) if memory is not None]
        self.resident.append((now_s, sum(memory.resident_bytes for _, memory in known)))
        self.swapped.append((now_s, sum(memory.swap_used_bytes for _, memory in known)))
        self.ballooned.append((now_s, sum(guest.ballooned_bytes for _, memory in known for guest in memory.guests)))
        self.old_blocks.append((now_s, sum(device.store_bytes for device in devices if device is not None)))
        self.purged.append((now_s, sum(device.storage_bytes for device in devices if device is not None)))
        await self._measure_classes(
            now_s, [(host, guest.guest_id) for host, memory in known for guest in memory.guests]
        )

    async def _measure_classes(self, now_s: float, guests: list[tuple[Host, str]]) -> None:
        asked = (
            host.memory_scheduler.explain(GuestMemoryKey(guest=guest), timeout_s=ASK_TIMEOUT_S)
            for host, guest in guests
        )
        totals: dict[str, float] = dict.fromkeys(self.classes, 0.0)
        for explanation in await asyncio.gather(*map(answer, asked)):
            for found in () if explanation is None else explanation.classes:
                totals[found.name] = totals.get(found.name, 0.0) + found.pages * PAGE_BYTES
        for name, size_bytes in totals.items():
            self.classes[name].append((now_s, size_bytes))

    @property
    def _hosts(self) -> tuple[Host, ...]:
        return self._cluster.hosts


async def answer(asked: Awaitable[T]) -> T | None:
    """None if there is none."""
    try:
        return await asked
    except EverramError:
        return None
