"""A follower reads one guest's log ring as the guest commits, and verifies every record.

It is the reading half of replication: what it has verified is what may be shipped. It sleeps when there is nothing to
read, by the ring's own protocol: say so, look once more, then wait for the doorbell; the look between closes the race
with a guest that published after the last read and saw nobody asleep.
"""

from __future__ import annotations

import asyncio

from everram.runtime.environment import Doorbell
from everram.runtime.log.reader import LogReader
from everram.runtime.log.ring import Ring

RUN_BYTES = 256 * 1024
"""Read in one go, about a millisecond of checksums: the loop stays live for everything else."""
SLEEP_LIMIT_S = 0.05
"""A bell that a dying guest did not ring costs at most this."""

BURST_BYTES = 4096
"""So much in one run, a dozen commits or more, is the work of a guest that does not wait for each of them."""
LINGER_S = 0.001
"""After such a run the reader looks again by itself before it asks for the bell: ringing it costs the guest more than
its commit does, and nobody in a hurry is waiting."""


class Follower:
    """Reads `ring` from `lsn` on. `verified` is the LSN up to which every record was read and found whole."""

    def __init__(self, ring: Ring, doorbell: Doorbell) -> None:
        self.ring = ring
        self.doorbell = doorbell
        self._reader = LogReader(ring, ring.applied)
        self._epoch = ring.epoch
        self._run_bytes = 0
        """Read since the last rest."""

    @property
    def verified(self) -> int:
        return self._reader.lsn

    def step(self) -> bool:
        """Read one run. Returns whether there was any. Raises RingCorrupt for a damaged record."""
        if self.ring.epoch != self._epoch:
            self._epoch = self.ring.epoch
            # A new incarnation began at the end of what was chosen; what was read beyond it no longer counts.
            if self._reader.lsn > self.ring.epoch_start:
                self._reader = LogReader(self.ring, self.ring.epoch_start)
        before = self._reader.lsn
        found = self._reader.verify(RUN_BYTES)
        self._run_bytes += self._reader.lsn - before
        return found

    async def rest(self) -> None:
        """Sleep until the guest commits again, or for SLEEP_LIMIT_S."""
        run_bytes, self._run_bytes = self._run_bytes, 0
        if run_bytes >= BURST_BYTES:
            await asyncio.sleep(LINGER_S)
            return
        if self._reader.announce_sleep():
            await self.doorbell.wait(SLEEP_LIMIT_S)
        self._reader.awake()
