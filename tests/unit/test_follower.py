"""The replicator's follower: reads what a guest commits, through its restarts, and sleeps without missing any."""

from __future__ import annotations

import pytest

from everram.actors.replicator.follower import Follower
from everram.runtime.log.record import RecordFlags, RecordType, Store, pack_stores
from everram.runtime.log.ring import DATA_OFFSET, MIN_CAPACITY_BYTES, Ring, RingCorrupt
from everram.runtime.log.writer import LogWriter
from everram.runtime.memory.heap import HeapMapping


class Bell:
    """A doorbell that only counts."""

    def __init__(self) -> None:
        self.rung = 0
        self.waits = 0

    async def wait(self, timeout_s: float) -> bool:
        self.waits += 1
        return self.rung > 0

    def ring(self) -> None:
        self.rung += 1

    def close(self) -> None:
        pass


class Guest:
    """A ring with a writer and the follower of a host."""

    def __init__(self) -> None:
        self.mapping = HeapMapping(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.ring = Ring.format(self.mapping, guest_id="a" * 16, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
        self.bell = Bell()
        self.restart()
        self.follower = Follower(Ring.open(self.mapping), self.bell)

    def restart(self) -> None:
        self.ring.begin_epoch(self.ring.epoch + 1)
        self.writer = LogWriter(self.ring, self.bell.ring)

    def commit(self, size_bytes: int = 100) -> int:
        payload = pack_stores([Store(0, 0, bytes(size_bytes))])
        end = self.writer.append(RecordType.STORES, RecordFlags.REQUIRED, payload)
        self.writer.publish()
        self.writer.publish_applied()
        return end


def test_reads_what_is_committed_and_no_more() -> None:
    guest = Guest()
    assert not guest.follower.step()
    end = guest.commit()
    guest.writer.append(RecordType.STORES, RecordFlags.REQUIRED, b"")
    assert guest.follower.step()
    assert guest.follower.verified == end
    assert not guest.follower.step()


def test_goes_on_with_a_new_incarnation() -> None:
    guest = Guest()
    guest.commit()
    guest.restart()
    end = guest.commit()
    while guest.follower.step():
        pass
    assert guest.follower.verified == end


def test_a_slow_follower_is_lapped_and_goes_on_where_the_log_still_is() -> None:
    guest = Guest()
    for _ in range(100):
        end = guest.commit(3000)
    while guest.follower.step():
        pass
    assert guest.follower.verified <= end
    end = guest.commit()
    while guest.follower.verified < end:
        guest.follower.step()


def test_a_damaged_record_is_noticed() -> None:
    guest = Guest()
    guest.commit()
    guest.mapping.store(DATA_OFFSET + 60, b"\xff")
    with pytest.raises(RingCorrupt, match="damaged"):
        guest.follower.step()


async def test_sleeps_only_if_there_is_nothing_to_read_and_is_rung_awake() -> None:
    guest = Guest()
    guest.commit()
    await guest.follower.rest()
    assert guest.bell.waits == 0, "it slept on a committed record"
    assert guest.follower.step()
    await guest.follower.rest()
    assert guest.bell.waits == 1
    assert not guest.ring.reader_sleeps
    assert guest.bell.rung == 0, "a bell for a reader that is awake"
    guest.ring.set_reader_sleeps(True)
    guest.commit()
    assert guest.bell.rung == 1
