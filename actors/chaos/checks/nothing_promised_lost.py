"""What was known to be replicated is there after every failover, whatever became of the machine it was committed on."""

from __future__ import annotations

from everram.actors.chaos.journal import Found, Journal

PROPERTY = "nothing promised is lost"


def check(journal: Journal, found: Found) -> str | None:
    if found.count < journal.promised:
        return f"{journal.promised} transfers were replicated, {found.count} are there"
    return None
