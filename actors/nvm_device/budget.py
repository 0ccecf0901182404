"""What snapshots may take of the device: all that is not promised to regions and logs.

    budget = Budget(capacity_bytes)
    budget.promise(device.promised_bytes())          # at every change of that
    budget.check_above_reserve()                     # before a snapshot is taken

Exhaustion comes in grades. Under the low mark old blocks are purged; when there is no block left the writer that needs
one waits until something was purged or removed; and no new snapshot is taken while less than the reserve is free. What
regions and logs were promised they always get.
"""

from __future__ import annotations

from everram.actors.nvm_device.media import START_PAGES, Media
from everram.runtime.environment import Memory
from everram.runtime.errors import ResourceExhausted
from everram.runtime.formats.nvm import SNAPSHOTS_NAME
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.sizes import size_text

RESERVE_PART = 64
"""A snapshot is refused while less than this part of the device is free: its first writers would stop at once."""


class Budget:
    """See the module."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._promised_bytes = 0
        self._metadata_bytes = 0
        """Beyond what every device has."""
        self._media: Media | None = None

    def use(self, media: Media) -> None:
        self._media = media
        self.metadata_has(media.mapping.size_bytes)

    def promise(self, size_bytes: int) -> None:
        """Of regions, their page tables and logs."""
        self._promised_bytes = size_bytes
        self._limit()

    @property
    def taken_bytes(self) -> int:
        """By snapshots: old blocks, and metadata beyond what every device has."""
        if self._media is None:
            return 0
        return self._media.store.taken * PAGE_BYTES + self._metadata_bytes

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self._promised_bytes - self.taken_bytes)

    @property
    def free_part(self) -> float:
        return self.free_bytes / self.capacity_bytes

    def check_above_reserve(self) -> None:
        """Raises ResourceExhausted."""
        if self.free_bytes * RESERVE_PART < self.capacity_bytes:
            raise ResourceExhausted(
                f"{size_text(self.free_bytes)} of {size_text(self.capacity_bytes)} are free, too little: "
                "purge old blocks (`everram region purge`), remove snapshots, or start the machine with more --nvm"
            )

    def check_metadata(self, size_bytes: int) -> None:
        """Whether the metadata may be so long. Raises ResourceExhausted."""
        more_bytes = size_bytes - START_PAGES * PAGE_BYTES - self._metadata_bytes
        if more_bytes > self.free_bytes:
            raise ResourceExhausted(f"the metadata of snapshots wants {size_text(more_bytes)} more than there is free")

    def metadata_has(self, size_bytes: int) -> None:
        self._metadata_bytes = size_bytes - START_PAGES * PAGE_BYTES
        self._limit()

    def _limit(self) -> None:
        """How many blocks there may be for old content."""
        if self._media is not None:
            left = self.capacity_bytes - self._promised_bytes - self._metadata_bytes
            self._media.store.limit = max(self._media.store.taken, left // PAGE_BYTES)


class MetadataSpace:
    """`media.Space` in a memory object of the machine."""

    def __init__(self, memory: Memory, budget: Budget, mapping: Mapping) -> None:
        self._memory = memory
        self._budget = budget
        self._mapping = mapping

    @staticmethod
    async def open(memory: Memory, budget: Budget) -> MetadataSpace:
        """Raises ResourceExhausted."""
        if SNAPSHOTS_NAME not in memory.names():
            await memory.create(SNAPSHOTS_NAME, START_PAGES * PAGE_BYTES, resizable=True)
        return MetadataSpace(memory, budget, memory.open(SNAPSHOTS_NAME).map())

    def map(self) -> Mapping:
        return self._mapping

    def grow(self, size_bytes: int) -> Mapping:
        self._budget.check_metadata(size_bytes)
        self._memory.resize(SNAPSHOTS_NAME, size_bytes)
        self._budget.metadata_has(size_bytes)
        self._mapping.close()
        self._mapping = self._memory.open(SNAPSHOTS_NAME).map()
        return self._mapping

    def close(self) -> None:
        self._mapping.close()
