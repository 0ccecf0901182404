"""What lies where in a ledger's region, and one transfer in it: for simulated guests and for real ones.

The region holds a count of transfers and the balances, far apart, so that one transfer is three stores to different
pages.
"""

from __future__ import annotations

from everram.actors.chaos.journal import Found
from everram.runtime.guest.region import Region
from everram.runtime.guest.transaction import Transaction
from everram.runtime.memory.contract import PAGE_BYTES

ACCOUNTS = 12
FILLER_MAX_BYTES = 2000
"""What some transfers also write, so that records differ in size and wrap around the ring at every place."""
REGION_BYTES = 64 * 1024

_COUNT_AT = 0
_ACCOUNT_AT = tuple(PAGE_BYTES * (1 + account) + 8 * account for account in range(ACCOUNTS))
_FILLER_AT = PAGE_BYTES * (ACCOUNTS + 1)


def transfer(
    tx: Transaction, region: Region, number: int, source: int, target: int, amount: int, filler: bytes = b""
) -> None:
    tx.store_u64(region, _COUNT_AT, number)
    for account, change in ((source, -amount), (target, amount)):
        balance = _signed(tx.load_u64(region, _ACCOUNT_AT[account])) + change
        tx.store(region, _ACCOUNT_AT[account], balance.to_bytes(8, "little", signed=True))
    if filler:
        tx.store(region, _FILLER_AT, filler)


def read(region: Region) -> Found:
    balances = tuple(_signed(region.load_u64(at)) for at in _ACCOUNT_AT)
    return Found(region.load_u64(_COUNT_AT), balances)


def understand(content: bytes) -> Found:
    """The same, of a copy of the region."""
    words = memoryview(content)

    def word(at: int) -> int:
        return int.from_bytes(words[at : at + 8], "little")

    return Found(word(_COUNT_AT), tuple(_signed(word(at)) for at in _ACCOUNT_AT))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
