"""Brings regions to where the log is: the first thing that a new incarnation does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from everram.runtime.log.record import Record, Store
from everram.runtime.log.ring import Ring, RingCorrupt, is_stores
from everram.runtime.memory.contract import Mapping


def replay(ring: Ring, regions: Sequence[Mapping | None]) -> int:
    """Apply every committed record that may not be in the regions yet; returns how many transactions those were.

    `regions` by number; None for one that takes no transactions. Physical and idempotent: a crash in the middle is
    mended by doing it again. Raises RingCorrupt, before anything is applied, for a log that is damaged.
    """
    tail, end = ring.tail, ring.surely_applied
    pending: list[tuple[Mapping, Store]] = []
    transactions = 0
    for record in ring.chain(end):
        if end >= tail:
            break
        end = record.end
        if is_stores(record):
            pending.extend(_targets(record, regions))
            transactions += 1
    if end < tail:
        raise RingCorrupt(f"records between {end} and {tail} are damaged: the log was committed up to {tail}")
    _store_all(pending, regions)
    if (ring.applied, ring.surely_applied) != (end, end):
        ring.set_applied(end)
    return transactions


def apply(records: Iterable[Record], regions: Sequence[Mapping | None]) -> None:
    """Store what `records` say, persistently. Raises RingCorrupt, with nothing stored, for what makes no sense."""
    _store_all([target for record in records if is_stores(record) for target in _targets(record, regions)], regions)


def _store_all(stores: Iterable[tuple[Mapping, Store]], regions: Sequence[Mapping | None]) -> None:
    for region, store in stores:
        region.store(store.offset, store.data)
        region.flush(store.offset, len(store.data))
    for touched in regions:
        if touched is not None:
            touched.drain()


def _targets(record: Record, regions: Sequence[Mapping | None]) -> Iterator[tuple[Mapping, Store]]:
    """What a record stores, and where. Raises RingCorrupt for what is outside."""
    for store in record.stores():
        region = regions[store.region] if store.region < len(regions) else None
        if region is None or store.offset + len(store.data) > region.size_bytes:
            raise RingCorrupt(f"the record at {record.lsn} stores outside region {store.region}")
        yield region, store
