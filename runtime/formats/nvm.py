"""The NVM device's metadata, version 1: which regions and log rings there are, and in which memory objects they lie.

    metadata = Metadata.format(mapping)
    metadata.add(regions, log)
    Metadata.open(mapping).regions()

A two-slot record area (`slots`) with one record for each region and one for each guest's log ring, in memory that no
guest ever gets. docs/formats.md, "NVM device", has the fields.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogArea
from everram.runtime.errors import DataLoss
from everram.runtime.formats.slots import Format, Record, SlotArea
from everram.runtime.memory.contract import Mapping

MEMORY_NAME = "nvm"
MEMORY_BYTES = 2 * 1024 * 1024
"""Sparse. Each of the two slots then holds some 8000 regions of 128 bytes: more than a machine has descriptors for."""
REGION = 1
LOG = 2
FORMAT = Format(
    name="NVM device",
    magic=b"EVRNVMDV",
    version=(1, 0),
    record_types=frozenset({REGION, LOG}),
    when_full="remove regions that are no longer needed",
)


class Metadata:
    """Regions by (guest_id, name) and log rings by guest_id; each change is one commit, whole or not at all."""

    def __init__(self, area: SlotArea, regions: Iterable[pb.Region], logs: Iterable[LogArea]) -> None:
        self._area = area
        self._regions = {(region.guest_id, region.name): region for region in regions}
        self._logs = {log.guest_id: log for log in logs}

    @staticmethod
    def format(mapping: Mapping) -> Metadata:
        return Metadata(SlotArea.format(mapping, FORMAT), (), ())

    @staticmethod
    def open(mapping: Mapping) -> Metadata:
        """Raises DataLoss for damaged metadata, FailedPrecondition for that of a later everram."""
        area = SlotArea.open(mapping, FORMAT)
        regions: list[pb.Region] = []
        logs: list[LogArea] = []
        for number, record in enumerate(area.content.records):
            try:
                if record.type == REGION:
                    regions.append(pb.Region.FromString(record.payload))
                elif record.type == LOG:
                    logs.append(LogArea.FromString(record.payload))
            except DecodeError as error:
                raise DataLoss(f"{FORMAT.name} is damaged: record {number} cannot be decoded: {error}") from error
        return Metadata(area, regions, logs)

    @property
    def generation(self) -> int:
        return self._area.content.generation

    def regions(self, guest_id: str = "") -> list[pb.Region]:
        """Of one guest, or of all; by guest_id and name."""
        return [self._regions[key] for key in sorted(self._regions) if not guest_id or key[0] == guest_id]

    def logs(self) -> list[LogArea]:
        """By guest_id."""
        return [self._logs[guest_id] for guest_id in sorted(self._logs)]

    def log(self, guest_id: str) -> LogArea | None:
        return self._logs.get(guest_id)

    def add(self, regions: Iterable[pb.Region], log: LogArea | None) -> int:
        """The new generation; persistent. Raises ResourceExhausted, and then nothing has changed."""
        added = {(region.guest_id, region.name): _stored(region) for region in regions}
        return self._commit({**self._regions, **added}, {**self._logs, **({log.guest_id: log} if log else {})})

    def remove_guest(self, guest_id: str) -> int:
        """Forget all of a guest's regions and its log."""
        return self._commit(
            {key: region for key, region in self._regions.items() if key[0] != guest_id},
            {key: log for key, log in self._logs.items() if key != guest_id},
        )

    def _commit(self, regions: dict[tuple[str, str], pb.Region], logs: dict[str, LogArea]) -> int:
        records = [Record(LOG, logs[k].SerializeToString(deterministic=True), required=True) for k in sorted(logs)]
        for key in sorted(regions):
            records.append(Record(REGION, regions[key].SerializeToString(deterministic=True), required=True))
        generation = self._area.commit(records)
        self._regions, self._logs = regions, logs
        return generation


def _stored(region: pb.Region) -> pb.Region:
    """Without the fields that are answered and not kept."""
    stored = pb.Region()
    stored.CopyFrom(region)
    stored.ClearField("written_pages")
    stored.ClearField("tracking")
    return stored
