"""A guest without I/O: its regions, its log and its transactions. Time, memory and the bell are passed in.

`process` makes one of these from what the machine grants a real process, the simulation makes one from simulated
memory; the blocking and the asynchronous form (`shell`, `aio`) both stand on it. Making one replays the log, so whoever
holds a core sees every committed transaction and nothing of any other.

A commit, in this order (a crash between any two steps loses nothing that was told, and leaves nothing half-done):

    lease looked at -> old content saved -> record in the ring -> tail published: committed -> stores in the regions
        -> applied published

Old content is saved only where the host cannot see a store coming (`runtime.memory.old_pages`), and for all that a
record stores before there is a record. A replay saves as well: the record may be of an incarnation whose stores were
seen, or the host may keep old content only since.

An exception of a signal handler may come between any two as well. If the record is whole by then the commit is finished
all the same, before the exception goes on: a later commit must not publish `applied` over stores that were left out.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

from everram.runtime.guest.errors import Detached, Fenced, LogCorrupt, LogFull, RegionError
from everram.runtime.guest.region import Region
from everram.runtime.guest.transaction import Transaction
from everram.runtime.guest.volatile import Volatile
from everram.runtime.log.record import RawStore
from everram.runtime.log.replay import Target, replay
from everram.runtime.log.ring import LEASE, Ring
from everram.runtime.log.writer import LogWriter, RingFull, no_bell
from everram.runtime.memory.old_pages import OldPagesFull


def no_waiting() -> bool:
    """For those whose host cannot do anything meanwhile."""
    return False


class GuestCore:
    """One incarnation's hold of its memory. `now_ns` is CLOCK_MONOTONIC, the clock of the lease in the ring."""

    def __init__(
        self,
        *,
        guest_id: str,
        name: str,
        epoch: int,
        ring: Ring,
        regions: Sequence[Region],
        now_ns: Callable[[], int],
        ring_bell: Callable[[], None] = no_bell,
        recovered: bool = False,
        port: int = 0,
        memory: Volatile | None = None,
        wait_for_room: Callable[[], bool] = no_waiting,
    ) -> None:
        """`wait_for_room` gives the host a moment to take out old content, so that a replay can go on; False once that
        has lasted long enough. Raises LogCorrupt, LogFull (attach again), and Fenced if the ring is already of a later
        incarnation."""
        if ring.epoch != epoch:
            raise Fenced(f"epoch {epoch} of guest {name} is over, {ring.epoch} has begun: end this process")
        self.guest_id = guest_id
        self.name = name
        self.epoch = epoch
        self.recovered = recovered
        """Whether an earlier incarnation has run on this memory."""
        self.port = port
        """Where this incarnation should listen; 0 if nowhere."""
        self.memory = memory
        """Volatile memory; None if it was run without --memory."""
        self.ring = ring
        self.regions = {region.name: region for region in regions}
        self._mappings = tuple(region.mapping for region in regions)
        self._saving = tuple(region.old for region in regions) if any(region.old for region in regions) else ()
        self._now_ns = now_ns
        self._load_word = ring.mapping.load_u64
        self._committing = threading.Lock()
        self.transaction = functools.partial(Transaction, self.commit)
        """Stores that are committed all together when the `with` block ends, or not at all if it raises."""
        self._detached = False
        self._unfinished: Sequence[RawStore] = ()
        """Of a transaction whose record is whole, until they are all in the regions."""
        try:
            self.replayed = replay(
                ring,
                [r.mapping if r.kind == "logged" else None for r in regions],
                functools.partial(self._save_replayed, wait_for_room) if self._saving else None,
            )
        except ValueError as error:
            raise LogCorrupt(f"guest {name}: {error}") from error
        for old in self._saving:
            if old is not None:
                old.begin(epoch)
        self._writer = LogWriter(ring, ring_bell)
        self._writer.end()
        self.lsn = ring.tail
        """Everything before it is committed."""

    def region(self, name: str) -> Region:
        """Raises RegionError for a name that was not asked for when the guest was run."""
        try:
            return self.regions[name]
        except KeyError:
            known = ", ".join(self.regions) or "none"
            raise RegionError(
                f"guest {self.name} has no region {name} (it has: {known}): run it with --region"
            ) from None

    def commit(self, stores: Sequence[RawStore]) -> int:
        """Commit these stores as one transaction; returns the LSN behind its record.

        Raises Fenced (nothing was written), RegionError for more than one record holds, LogFull, Detached.
        """
        writer, mappings = self._writer, self._mappings
        with self._committing:
            deadline_ns = self._load_word(LEASE)
            if self._detached or (deadline_ns and self._now_ns() >= deadline_ns):
                self.check_lease()
            try:
                writer.begin()
                if self._unfinished:
                    self._finish()
                if self._saving:
                    self._save_old(stores)
                try:
                    lsn = writer.append_stores(stores)
                except ValueError as error:
                    raise RegionError(f"the transaction is too large: {error}; split it into several") from error
                except RingFull as error:
                    raise LogFull(f"{error}; nothing was written: try again when a copy has caught up") from error
                self._unfinished = stores
                try:
                    writer.publish()
                    for number, offset, data in stores:
                        mappings[number].persist(offset, data)
                    writer.publish_applied()
                except BaseException:
                    self._finish()
                    raise
                self._unfinished = ()
                self.lsn = lsn
            finally:
                writer.end()
        return lsn

    def _save_old(self, stores: Sequence[RawStore]) -> None:
        """Raises LogFull."""
        try:
            for number, offset, data in stores:
                if (old := self._saving[number]) is not None:
                    old.save(self._mappings[number], offset, len(data))
        except OldPagesFull as error:
            raise LogFull(f"{error}; nothing was written: try again, or remove snapshots") from error

    def _save_replayed(self, wait_for_room: Callable[[], bool], pending: Sequence[Target]) -> None:
        """Of all that a replay stores. Raises LogFull; who comes next goes on from there."""
        for region, store in pending:
            while (old := self._saving[store.region]) is not None:
                try:
                    old.save(region, store.offset, len(store.data))
                    break
                except OldPagesFull as error:
                    if not wait_for_room():
                        raise LogFull(f"{error}; nothing was replayed: attach again, or remove snapshots") from error

    def _finish(self) -> None:
        """What an interrupted commit left to do; all of it again, which changes nothing; as often as needed."""
        self._writer.publish()
        for number, offset, data in self._unfinished:
            self._mappings[number].persist(offset, data)
        self._writer.publish_applied()
        self._unfinished = ()
        self.lsn = self._writer.ring.tail

    def check_lease(self) -> None:
        """Raises Fenced once the lease has run out, Detached in a forked child."""
        if self._detached:
            raise Detached("this process is a forked child of a guest: only the process that attached may write")
        deadline_ns = self._load_word(LEASE)
        if deadline_ns and self._now_ns() >= deadline_ns:
            raise Fenced(f"the lease of guest {self.name} has run out: another incarnation may serve; end this process")

    def replicated(self, lsn: int) -> bool:
        """Whether everything before `lsn` is held by as many others as were asked for. Raises Fenced, Detached.

        None asked for is satisfied at once; asked for but none there is never satisfied.
        """
        self.check_lease()
        ring = self.ring
        if not ring.copies:
            return self.lsn >= lsn
        required = ring.required()
        return bool(required) and all(ring.durable(slot) >= lsn for slot in required)

    def detach(self) -> None:
        """From now on every write is refused: called in a forked child."""
        self._detached = True
        self._unfinished = ()  # the parent finishes it
        # Whoever held these when the process forked does not run in the child, and would never let them go.
        self._committing = threading.Lock()
        for region in self.regions.values():
            region.changing = threading.RLock()
