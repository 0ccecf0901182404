"""What a fenced memory has and the guest has not: records that were committed here, but reached no copy in time.

The guest went on elsewhere from a prefix of its log that ends at `start`. What lies beyond is no part of it any more,
and never will be; it is kept in the host's state folder for whoever wants to look into it (docs/formats.md, "Set
aside"): `set-aside/GUEST_ID.EPOCH.log` holds the records as they lay in the ring, `set-aside/GUEST_ID.EPOCH.json` says
what they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from everram.runtime.environment import Disk
from everram.runtime.log.record import RecordType
from everram.runtime.log.ring import Ring

FOLDER = "set-aside"


@dataclass(frozen=True, slots=True)
class Report:
    """Positions are LSNs; `replaced_by` is the epoch that goes on without these records, on `host`."""

    guest: str
    guest_id: str
    epoch: int
    replaced_by: int
    host: str
    begins: int
    ends: int
    transactions: int

    def __str__(self) -> str:
        return (
            f"{self.transactions} transactions of {self.guest} ({self.begins} to {self.ends}, epoch {self.epoch}) had "
            f"reached no copy when epoch {self.replaced_by} began on {self.host}: they are set aside in "
            f"{FOLDER}/{self.guest_id}.{self.epoch}.log"
        )


async def set_aside(disk: Disk, ring: Ring, guest: str, start: int, replaced_by: int, host: str) -> Report | None:
    """Keep what `ring` has beyond `start`, durably; None if there is nothing. Raises RingCorrupt, ResourceExhausted."""
    end = ring.committed_end()
    # What was overwritten since is only in the regions: then begin where the ring still surely has records.
    begins = start if start >= ring.freed else max(ring.epoch_start, ring.surely_applied)
    records = [record for record in ring.chain(begins) if record.lsn < end]
    if not records:
        return None
    report = Report(
        guest=guest,
        guest_id=ring.guest_id,
        epoch=records[-1].epoch,
        replaced_by=replaced_by,
        host=host,
        begins=records[0].lsn,
        ends=records[-1].end,
        transactions=sum(record.type == RecordType.STORES for record in records),
    )
    name = f"{FOLDER}/{report.guest_id}.{report.epoch}"
    whole = b"".join(ring.mapping.load(ring.offset(record.lsn), record.end - record.lsn) for record in records)
    await disk.replace(f"{name}.log", whole)
    await disk.replace(f"{name}.json", (json.dumps(asdict(report), indent=2) + "\n").encode())
    return report
