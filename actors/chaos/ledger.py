"""The ledger workload: a guest whose transactions move money between accounts, so that the sum never changes.

What lies where is in `ledger_region`. The program tells its journal what it does; each incarnation first has the
checkers compare what it finds there.
"""

from __future__ import annotations

from everram.actors.chaos.checks import all_or_nothing, commit_order, nothing_lost, nothing_promised_lost, revert_exact
from everram.actors.chaos.checks.revert_exact import RevertExact
from everram.actors.chaos.journal import Found, Journal, Transfer
from everram.actors.chaos.ledger_region import ACCOUNTS, FILLER_MAX_BYTES, REGION_BYTES, read, transfer
from everram.actors.chaos.workload import Committed, Workload, nobody
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.guest.errors import Fenced, LogFull, Timeout
from everram.runtime.simulation.world import World

CHECKS = (nothing_lost, nothing_promised_lost, all_or_nothing, commit_order)
CHECKS_OF_A_REVERTED = (all_or_nothing, commit_order)
CHECKS_OF_A_COPY = (nothing_promised_lost, all_or_nothing, commit_order)
WAIT_S = 0.3
"""How long a transfer waits until it is replicated."""


class Ledger(Workload):
    """One ledger over all its incarnations."""

    region_bytes = REGION_BYTES

    def __init__(
        self, world: World, name: str, *, pause_s: float, committed: Committed, replicated: Committed = nobody
    ) -> None:
        super().__init__(world, name, pause_s=pause_s, committed=committed, replicated=replicated)
        self.journal = Journal(ACCOUNTS, 0)
        self.reverts = RevertExact()

    def recover(self, me: AsyncGuest, *, moved: bool) -> None:
        """What an incarnation finds is compared with the journal, and settles it."""
        found = read(me.region(self.region))
        reverted, wrong = self.reverts.begins(found)
        if wrong is not None:
            self.world.violate(revert_exact.PROPERTY, f"{self.name}, epoch {me.epoch}: {wrong}")
        checks = CHECKS_OF_A_COPY if moved else CHECKS
        for check in CHECKS_OF_A_REVERTED if reverted else checks:
            wrong = check.check(self.journal, found)
            if wrong is not None:
                self.world.violate(check.PROPERTY, f"{self.name}, epoch {me.epoch}: {wrong}")
        self.journal.settle(found.count)
        self.world.note(self.name, f"epoch {me.epoch} finds {found.count} transfers")

    def state(self) -> Found:
        return Found(self.journal.committed, self.journal.balances_after(self.journal.committed))

    async def operate(self, me: AsyncGuest) -> int:
        """One transfer."""
        source, target = self.stream.sample(range(ACCOUNTS), 2)
        amount = self.stream.randrange(1, 100)
        region = me.region(self.region)
        record = self.journal.begin(source, target, amount)
        try:
            with me.transaction() as tx:
                transfer(tx, region, record.number, source, target, amount, self._filler())
        except (Fenced, LogFull):
            self.journal.discard(record)
            raise
        record.lsn = tx.lsn
        self.committed(me, tx.lsn)
        if me.core.ring.copies and self.stream.random() < self.waits:
            await self._wait(me, record)
        return record.number

    def _filler(self) -> bytes:
        wanted = self.stream.random() < 0.3
        return self.stream.randbytes(self.stream.randrange(1, FILLER_MAX_BYTES)) if wanted else b""

    async def _wait(self, me: AsyncGuest, record: Transfer) -> None:
        try:
            await me.wait_replicated(record.lsn, WAIT_S)
        except Timeout:
            return
        self.journal.promised = max(self.journal.promised, record.number)
        self.replicated(me, record.lsn)
