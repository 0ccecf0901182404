"""The blocking form of a guest, for ordinary programs and their threads."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.dictionary import Dictionary
from everram.runtime.guest.errors import LogFull, RegionError, Timeout
from everram.runtime.guest.records import Records
from everram.runtime.guest.region import Region
from everram.runtime.guest.transaction import Transaction
from everram.runtime.guest.volatile import Volatile
from everram.runtime.log.record import RawStore

POLL_S = 0.0005
"""How often a wait looks at the positions in the ring's header, which nobody announces to the guest."""
LOOKS_AT_ONCE = 8
"""Before a wait sleeps at all: a copy in the same rack acknowledges within a few of them."""
SHORT_POLL_S = 0.00005
SHORT_POLLS = 10
"""About a millisecond, as the kernel adds as much again to so short a sleep: most acknowledgements come within it."""
POLLS = 30
LONG_POLL_S = 0.005
LONGER = 1.25
"""What has not come within 15 ms waits for a copy that is slow or gone: looks then grow rarer, to some 200 a second."""

ROOM_WAIT_S = 10.0
"""For a copy to catch up before a commit gives up: longer than a restart of its host, shorter than a person waits."""


def pauses_s(looks_at_once: int) -> Iterator[float]:
    """How long to sleep between the looks of one wait: shortly while the answer is about to come, then patiently."""
    yield from itertools.repeat(0.0, looks_at_once)
    yield from itertools.repeat(SHORT_POLL_S, SHORT_POLLS)
    yield from itertools.repeat(POLL_S, POLLS)
    pause_s = POLL_S
    while True:
        pause_s = min(LONGER * pause_s, LONG_POLL_S)
        yield pause_s


def waiting_for_room() -> Callable[[], bool]:
    """To be called whenever there is no room: it sleeps, and says False once ROOM_WAIT_S have passed since now."""
    deadline_ns = time.monotonic_ns() + int(ROOM_WAIT_S * 1e9)

    def wait() -> bool:
        time.sleep(POLL_S)
        return time.monotonic_ns() < deadline_ns

    return wait


class Guest:
    """What `attach` gives: regions, transactions, and what is known of this incarnation."""

    def __init__(self, core: GuestCore) -> None:
        self.core = core
        self.transaction: Callable[[], Transaction] = partial(Transaction, self._commit)
        """`with me.transaction() as tx`: see `Transaction`. While the log is full its end waits, up to ROOM_WAIT_S."""

    @property
    def name(self) -> str:
        return self.core.name

    @property
    def guest_id(self) -> str:
        return self.core.guest_id

    @property
    def epoch(self) -> int:
        """Of this incarnation: the first is 1, each restart has a higher one."""
        return self.core.epoch

    @property
    def recovered(self) -> bool:
        """Whether this is a restart: what the regions hold is an earlier incarnation's."""
        return self.core.recovered

    @property
    def port(self) -> int:
        """Where to listen (EVERRAM_PORT, on 127.0.0.1)."""
        return self.core.port

    def region(self, name: str) -> Region:
        """Raises RegionError."""
        return self.core.region(name)

    @property
    def memory(self) -> Volatile:
        """Its volatile memory, which ends with the process (`--memory SIZE`). Raises RegionError without any."""
        if self.core.memory is None:
            raise RegionError(f"guest {self.name} has no memory of its own: run it with --memory")
        return self.core.memory

    def dict(self, name: str) -> Dictionary:
        """A persistent dictionary that fills the region `name`. Raises RegionError if it holds something else."""
        return Dictionary(self.transaction, self.core.region(name))

    def records(self, name: str, layout: str) -> Records:
        """A persistent array of records packed by `struct`'s `layout` that fills the region `name`."""
        return Records(self.transaction, self.core.region(name), layout)

    def begin(self) -> Transaction:
        """A transaction outside `with`: call its `commit` or `discard`."""
        return self.core.transaction()

    def _commit(self, stores: Sequence[RawStore]) -> int:
        try:
            return self.core.commit(stores)
        except LogFull:
            pass
        wait = waiting_for_room()
        while True:
            in_time = wait()
            try:
                return self.core.commit(stores)
            except LogFull:
                if not in_time:
                    raise

    def wait_replicated(self, lsn: int, timeout_s: float) -> None:
        """Return once everything before `lsn` is held by as many other hosts as were asked for (`--copies`).

        Raises Timeout (unknown, not failed), Fenced (stop).
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        for pause_s in pauses_s(LOOKS_AT_ONCE):
            if self.core.replicated(lsn):
                return
            if time.monotonic_ns() >= deadline_ns:
                raise Timeout(f"position {lsn} is not known to be replicated after {timeout_s:g} s: it may be")
            if pause_s:
                time.sleep(pause_s)
