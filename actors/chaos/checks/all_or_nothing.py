"""A transaction is there with all its stores or with none: transfers only move money, so the sum never changes."""

from __future__ import annotations

from everram.actors.chaos.journal import Found, Journal

PROPERTY = "all or nothing"


def check(journal: Journal, found: Found) -> str | None:
    expected = journal.accounts * journal.opening_balance
    if sum(found.balances) != expected:
        return f"the accounts hold {sum(found.balances)}, not {expected}, after {found.count} transfers"
    return None
