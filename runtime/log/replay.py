"""Brings regions to where the log is: the first thing that a new incarnation does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from everram.runtime.log.record import Record, Store
from everram.runtime.log.ring import Ring, RingCorrupt, is_stores
from everram.runtime.memory.contract import Mapping

Target = tuple[Mapping, Store]
"""A store, and the region it goes to."""


def replay(
    ring: Ring, regions: Sequence[Mapping | None], before: Callable[[Sequence[Target]], object] | None = None
) -> int:
    """Apply every committed record that may not be in the regions yet; returns how many transactions those were.

    `regions` by number; None for one that takes no transactions. `before` is told all that will be stored, before any
    of it is, where there is anything; what it raises ends this with nothing applied. Physical and
    idempotent: a crash in the middle is mended by doing it again. Raises RingCorrupt, before anything is applied, for a
    log that is damaged.
    """
    tail, end = ring.tail, ring.surely_applied
    pending: list[Target] = []
    transactions = 0
    for record in ring.chain(end):
        if end >= tail:
            break
        end = record.end
        pending.extend(targets(record, regions))
        transactions += is_stores(record)
    if end < tail:
        raise RingCorrupt(f"records between {end} and {tail} are damaged: the log was committed up to {tail}")
    if before is not None and pending:
        before(pending)
    store_all(pending, regions)
    if (ring.applied, ring.surely_applied) != (end, end):
        ring.set_applied(end)
    return transactions


def store_all(stores: Iterable[Target], regions: Sequence[Mapping | None]) -> None:
    """Store these persistently."""
    for region, store in stores:
        region.store(store.offset, store.data)
        region.flush(store.offset, len(store.data))
    for touched in regions:
        if touched is not None:
            touched.drain()


def targets(record: Record, regions: Sequence[Mapping | None]) -> list[Target]:
    """What a record stores, and where; nothing for one that stores nothing. Raises RingCorrupt for what makes no
    sense, so that it can be refused before anybody counts on it.
    """
    if not is_stores(record):
        return []
    found = []
    try:
        for store in record.stores():
            region = regions[store.region] if store.region < len(regions) else None
            if region is None or store.offset + len(store.data) > region.size_bytes:
                raise RingCorrupt(f"the record at {record.lsn} stores outside region {store.region}")
            found.append((region, store))
    except RingCorrupt:
        raise
    except ValueError as error:
        raise RingCorrupt(str(error)) from error
    return found
