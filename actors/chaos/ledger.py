"""The ledger workload: a guest whose transactions move money between accounts, so that the sum never changes.

The region holds a count of transfers and the balances, far apart, so that one transfer is three stores to different
pages. The program tells its journal what it does; each incarnation first has the checkers compare what it finds there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from everram.actors.chaos.checks import all_or_nothing, commit_order, nothing_lost
from everram.actors.chaos.journal import Found, Journal
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import Fenced
from everram.runtime.guest.region import Region
from everram.runtime.log.writer import LogFull
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.world import World

REGION = "ledger"
REGION_BYTES = 64 * 1024
ACCOUNTS = 12
_COUNT_AT = 0
_ACCOUNT_AT = tuple(PAGE_BYTES * (1 + account) + 8 * account for account in range(ACCOUNTS))
_FILLER_AT = PAGE_BYTES * (ACCOUNTS + 1)
FILLER_MAX_BYTES = 2000
"""What some transfers also write, so that records differ in size and wrap around the ring at every place."""

SHORT_PAUSE_S = 0.0005
"""As long as the reader takes to wake up, read and go to sleep again: half of the pauses are no longer, so that commits
come while it is at any of that."""

CHECKS = (nothing_lost, all_or_nothing, commit_order)

Committed = Callable[[GuestCore, int], None]
"""Told of each commit that has returned: who committed, and its LSN."""


class Ledger:
    """One ledger over all its incarnations. `pause_s` is the longest wait between two of its own transfers."""

    def __init__(self, world: World, name: str, *, pause_s: float, committed: Committed) -> None:
        self.world = world
        self.name = name
        self.journal = Journal(ACCOUNTS, 0)
        self.pause_s = pause_s
        self._committed = committed
        self._stream: Stream = world.stream(f"ledger/{name}")

    def recover(self, core: GuestCore) -> None:
        """What an incarnation finds is compared with the journal, and settles it."""
        found = read(core.region(REGION))
        for check in CHECKS:
            wrong = check.check(self.journal, found)
            if wrong is not None:
                self.world.violate(check.PROPERTY, f"{self.name}, epoch {core.epoch}: {wrong}")
        self.journal.settle(found.count)
        self.world.note(self.name, f"epoch {core.epoch} finds {found.count} transfers")

    async def work(self, core: GuestCore) -> None:
        """Transfers of its own, in bursts with pauses between them, until the process ends. Raises Fenced."""
        while True:
            for _ in range(self._stream.randrange(1, 8)):
                await self.transfer(core)
                await asyncio.sleep(0)
            short = self._stream.random() < 0.5
            await asyncio.sleep(self._stream.uniform(0, SHORT_PAUSE_S if short else self.pause_s))

    async def transfer(self, core: GuestCore) -> int:
        """One transfer; returns its number. Raises Fenced, and then nothing has happened."""
        source, target = self._stream.sample(range(ACCOUNTS), 2)
        amount = self._stream.randrange(1, 100)
        region = core.region(REGION)
        record = self.journal.begin(source, target, amount)
        try:
            with core.transaction() as tx:
                tx.store_u64(region, _COUNT_AT, record.number)
                for account, change in ((source, -amount), (target, amount)):
                    balance = _signed(tx.load_u64(region, _ACCOUNT_AT[account])) + change
                    tx.store(region, _ACCOUNT_AT[account], balance.to_bytes(8, "little", signed=True))
                if self._stream.random() < 0.3:
                    tx.store(region, _FILLER_AT, self._stream.randbytes(self._stream.randrange(1, FILLER_MAX_BYTES)))
        except (Fenced, LogFull):
            self.journal.discard(record)
            raise
        record.lsn = tx.lsn
        self._committed(core, tx.lsn)
        return record.number


def read(region: Region) -> Found:
    balances = tuple(_signed(region.load_u64(at)) for at in _ACCOUNT_AT)
    return Found(region.load_u64(_COUNT_AT), balances)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
