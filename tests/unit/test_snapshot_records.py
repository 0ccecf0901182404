"""What a host writes into a guest's log beside the guest's own transactions."""

from __future__ import annotations

import pytest

from everram.actors.nvm_device.guest_log import GuestLog
from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.errors import FailedPrecondition
from everram.runtime.log.record import RecordFlags, RecordType, pack_stores
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring
from everram.runtime.log.writer import LogWriter
from everram.runtime.memory.heap import HeapMapping


def ring_of(guest_id: str = "g") -> Ring:
    mapping = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
    return Ring.format(mapping, guest_id=guest_id, epoch=1, capacity_bytes=MIN_CAPACITY_BYTES)


def test_what_a_host_appended_is_no_commit_of_the_guest() -> None:
    """A guest that has not attached yet, or never does, says nothing of commits, and makes none."""
    ring = ring_of()
    log = GuestLog(ring)
    for _ in range(2):
        assert log.is_still()
        log.append(RecordType.SNAPSHOT, LogOperation(name="s", regions=["r"]))
        log.publish()
    writer = LogWriter(ring)
    writer.append(RecordType.STORES, RecordFlags.REQUIRED, pack_stores([(0, 0, b"guest")]))
    writer.publish()
    writer.publish_applied()
    with pytest.raises(FailedPrecondition, match="does not say when it commits"):
        log.is_still()
