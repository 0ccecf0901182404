"""The library inside a guest. Standard library only.

    from everram.runtime import guest

    me = guest.attach()                           # regions mapped, log replayed
    ledger = me.region("ledger")                  # changed only through transactions
    with me.transaction() as tx:                  # all or nothing, in commit order; reads its own writes
        tx.store(ledger, 0, b"...")
    me.wait_replicated(tx.lsn, timeout_s=1.0)     # only where the caller wants to know

`me.memory` is volatile memory that the host may ask back. `me.dict(name)` and `me.records(name, layout)` are for those
who want no offsets. Threads and tasks may each have a transaction open; `attach_async` gives the same for programs on
an event loop. A forked child is detached.
"""

from __future__ import annotations

from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.guest.errors import (
    Detached,
    Fenced,
    GuestError,
    LogCorrupt,
    LogFull,
    NotAGuest,
    OutOfMemory,
    RegionError,
    Timeout,
)
from everram.runtime.guest.process import attach_core
from everram.runtime.guest.region import Region
from everram.runtime.guest.shell import Guest
from everram.runtime.guest.transaction import Transaction

__all__ = [
    "AsyncGuest",
    "Detached",
    "Fenced",
    "Guest",
    "GuestError",
    "LogCorrupt",
    "LogFull",
    "NotAGuest",
    "OutOfMemory",
    "Region",
    "RegionError",
    "Timeout",
    "Transaction",
    "attach",
    "attach_async",
]


def attach() -> Guest:
    """This process's guest, in the blocking form. Raises NotAGuest, Detached, LogCorrupt."""
    return Guest(attach_core())


def attach_async() -> AsyncGuest:
    """This process's guest, for a program on an event loop. Raises NotAGuest, Detached, LogCorrupt."""
    return AsyncGuest(attach_core())
