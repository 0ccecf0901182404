"""A guest's log as its host writes to it: records of operations on regions, beside the transactions of the guest.

    with GuestLog.open(environment.memory, guest_id) as log:
        if log.is_still():                              # the guest stands still, between two commits
            log.append(RecordType.SNAPSHOT, operation)
            log.publish()                               # and everybody who reads the log finds it there

Nothing here waits: between `is_still` and the last call the guest must not run.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from everram.runtime.contracts.nvm_device_pb2 import LogOperation
from everram.runtime.environment import Memory
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.log.record import HEADER_BYTES, RecordFlags, RecordType, padded
from everram.runtime.log.replay import replay
from everram.runtime.log.ring import BUSY, COMMITTING, PASSED_OVER, UNSAID, Ring, RingCorrupt, log_name
from everram.runtime.log.writer import LogWriter, RingFull
from everram.runtime.memory.contract import Mapping


class GuestLog:
    """See the module."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._writer = LogWriter(ring)
        self._appended: int | None = None
        """Where a record begins that is not published."""

    @staticmethod
    @contextlib.contextmanager
    def open(memory: Memory, guest_id: str) -> Iterator[GuestLog]:
        """Raises NotFound, DataLoss."""
        mapping = memory.open(log_name(guest_id)).map()
        try:
            yield GuestLog(Ring.open(mapping))
        except RingCorrupt as error:
            raise DataLoss(f"the log of guest {guest_id} is damaged: {error}") from error
        finally:
            mapping.close()

    @property
    def epoch(self) -> int:
        return self._ring.epoch

    @property
    def tail(self) -> int:
        return self._ring.tail

    def is_still(self) -> bool:
        """Whether a guest that does not run now was stopped between two commits. Raises FailedPrecondition for one that
        never says."""
        committing = self._committing
        if committing == UNSAID and self._has_committed():
            raise FailedPrecondition("the guest's everram does not say when it commits: restart the guest first")
        return committing != BUSY and (self._ring.applied == self._ring.tail or self._is_hosts_own())

    def _is_hosts_own(self) -> bool:
        """Whether all that is not applied are records of hosts, which change no region: one may have died between the
        two, and the guest has nothing to commit. They are applied then."""
        ring = self._ring
        at, tail = ring.applied, ring.tail
        for record in ring.chain(at):
            if at == tail or record.type not in PASSED_OVER:
                break
            at = record.end
        if at != tail:
            return False
        self._writer.publish_applied()
        return True

    def may_begin(self) -> bool:
        """Whether a process of this epoch, which is not there, may still come: it is being started."""
        return self._committing == UNSAID

    @property
    def _committing(self) -> int:
        return self._ring.mapping.load_u64(COMMITTING)

    def _has_committed(self) -> bool:
        """Whether the guest has, in this epoch; what its host appended is none of its own."""
        ring = self._ring
        if ring.freed > ring.epoch_start:
            return True
        records = itertools.takewhile(lambda record: record.lsn < ring.tail, ring.chain(ring.epoch_start))
        return any(record.type not in PASSED_OVER for record in records)

    def settle(self, regions: Sequence[Mapping | None]) -> None:
        """Of a guest without a process: bring its regions to the end of what it has committed."""
        self._ring.set_tail(self._ring.committed_end())
        replay(self._ring, regions)
        self._writer = LogWriter(self._ring)

    def append(self, record_type: RecordType, operation: LogOperation) -> None:
        """Write the record; it counts once it is published. Raises ResourceExhausted."""
        payload = operation.SerializeToString(deterministic=True)
        try:
            end = self._writer.append(record_type, RecordFlags.REQUIRED, payload)
        except RingFull as error:
            raise ResourceExhausted(f"{error}; try again when a copy has caught up") from error
        self._appended = end - padded(HEADER_BYTES + len(payload))

    def publish(self) -> None:
        self._appended = None
        self._writer.publish()
        self._writer.publish_applied()

    def withdraw(self) -> None:
        """What was appended and not published is to be no record: a guest that died now would count it as committed."""
        if self._appended is not None:
            self._ring.mapping.publish_u64(self._ring.offset(self._appended), 0)
            self._appended = None
