"""Every transaction whose commit has returned is there after every restart."""

from __future__ import annotations

from everram.actors.chaos.journal import Found, Journal

PROPERTY = "nothing committed is lost"


def check(journal: Journal, found: Found) -> str | None:
    if found.count < journal.committed:
        return f"{journal.committed} transfers were committed, {found.count} are there"
    return None
