"""The journal of a ledger: what its transactions meant to do, and what they were told. It lies outside the world.

The ledger's program calls `begin` before a transaction's first store and sets `lsn` when the commit has returned. It
commits one transfer after the other, so at most one is *open* when it dies: that one may have happened or not. What the
next incarnation finds is compared with this by the checkers, and settles it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Found:
    """What a ledger's region says."""

    count: int
    """Transfers that were made."""
    balances: tuple[int, ...]


@dataclass(slots=True)
class Transfer:
    """One transaction. Numbers run from 1 in commit order over all incarnations."""

    number: int
    source: int
    target: int
    amount: int
    lsn: int = 0
    """0 until its commit has returned."""


@dataclass(slots=True)
class Journal:
    """Every transfer but the last has happened; the last has if its `lsn` is set, or may have."""

    accounts: int
    opening_balance: int
    transfers: list[Transfer] = field(default_factory=list)
    promised: int = 0
    """The number of the last transfer that was known to be replicated: no loss of a machine may undo it."""
    _balances: list[int] = field(default_factory=list)
    """After all transfers but the last."""

    def __post_init__(self) -> None:
        self._balances = [self.opening_balance] * self.accounts

    def begin(self, source: int, target: int, amount: int) -> Transfer:
        if self.transfers:
            _move(self._balances, self.transfers[-1])
        transfer = Transfer(len(self.transfers) + 1, source, target, amount)
        self.transfers.append(transfer)
        return transfer

    def discard(self, transfer: Transfer) -> None:
        """Its commit was refused before anything was written."""
        assert transfer is self.transfers[-1]
        self.settle(transfer.number - 1)

    def settle(self, count: int) -> None:
        """A new incarnation found the first `count` transfers: they have happened, and no other ever will."""
        if count < len(self.transfers):
            self._balances = list(self.balances_after(max(0, count - 1)))
            del self.transfers[count:]
        if self.transfers:
            self.transfers[-1].lsn = self.transfers[-1].lsn or 1

    @property
    def committed(self) -> int:
        """The number of the last transfer whose commit has returned or that was found done."""
        if not self.transfers or self.transfers[-1].lsn:
            return len(self.transfers)
        return len(self.transfers) - 1

    def balances_after(self, count: int) -> tuple[int, ...]:
        """After the first `count` transfers."""
        balances = list(self._balances)
        if self.transfers and count == len(self.transfers):
            _move(balances, self.transfers[-1])
        for undone in reversed(self.transfers[count:-1]):
            _move(balances, undone, -1)
        return tuple(balances)


def _move(balances: list[int], transfer: Transfer, sign: int = 1) -> None:
    balances[transfer.source] -= sign * transfer.amount
    balances[transfer.target] += sign * transfer.amount
