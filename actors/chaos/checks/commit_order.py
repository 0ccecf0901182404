"""What is there is a prefix in commit order: the effects of the first so many transactions, and of nothing else."""

from __future__ import annotations

from everram.actors.chaos.journal import Found, Journal

PROPERTY = "a prefix in commit order"


def check(journal: Journal, found: Found) -> str | None:
    if found.count > len(journal.transfers):
        return f"{found.count} transfers are there, only {len(journal.transfers)} were ever begun"
    if found.balances != journal.balances_after(found.count):
        return f"the balances are not those after {found.count} transfers"
    return None
