"""The NVM device's metadata, version 1: which regions and log rings there are, and in which memory objects they lie.

    metadata = Metadata.format(mapping)
    metadata.add(regions, log)
    Metadata.open(mapping).regions()

A two-slot record area (`slots`) with one record for each region and one for each log ring, of this host's guests and of
the copies it keeps for other hosts, in memory that no guest ever gets. docs/formats.md, "NVM device", has the fields.
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
SNAPSHOTS_NAME, STORE_NAME = "nvm.snapshots", "nvm.blocks"
"""The memory objects of snapshots: their metadata, and their old blocks. Both grow."""
PURGED_FOLDER, PURGED_FILE = "nvm", "purged"
"""Where on storage purged blocks lie."""
REGION, LOG = 1, 2
"""Of guests of this host."""
COPY_REGION, COPY_LOG = 3, 4
"""Of copies kept for other hosts; types of their own: an everram of 1.0 shall not take them for a guest's own."""
OWN, ANY = "", "*"
"""As a copy_id: what is no copy; what is one and what is none."""
FORMAT = Format(
    name="NVM device",
    magic=b"EVRNVMDV",
    version=(1, 1),
    record_types=frozenset({REGION, LOG, COPY_REGION, COPY_LOG}),
    when_full="remove regions that are no longer needed",
)

_Key = tuple[str, str, str]
"""guest_id, copy_id, and the region's name or the log_id."""


class Metadata:
    """Regions by (guest_id, copy_id, name), logs by (guest_id, copy_id, log_id); each change is one commit, whole or
    not at all. Wherever a copy_id is asked for, OWN and ANY can be given."""

    def __init__(self, area: SlotArea, regions: Iterable[pb.Region], logs: Iterable[LogArea]) -> None:
        self._area = area
        self._regions = {_region_key(region): region for region in regions}
        self._logs = {_log_key(log): log for log in logs}

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
                if record.type in (REGION, COPY_REGION):
                    regions.append(pb.Region.FromString(record.payload))
                elif record.type in (LOG, COPY_LOG):
                    logs.append(LogArea.FromString(record.payload))
            except DecodeError as error:
                raise DataLoss(f"{FORMAT.name} is damaged: record {number} cannot be decoded: {error}") from error
        return Metadata(area, regions, logs)

    @property
    def generation(self) -> int:
        return self._area.content.generation

    def regions(self, guest_id: str = "", copy_id: str = OWN) -> list[pb.Region]:
        """Of one guest, or of all; by guest_id, copy_id and name."""
        return [self._regions[key] for key in sorted(self._regions) if _matches(key, guest_id, copy_id)]

    def logs(self, guest_id: str = "", copy_id: str = OWN, log_id: str = "") -> list[LogArea]:
        """Of one guest, or of all, or the one of this log_id; by guest_id, copy_id and log_id."""
        found = (key for key in sorted(self._logs) if _matches(key, guest_id, copy_id))
        return [self._logs[key] for key in found if not log_id or key[2] == log_id]

    def log(self, guest_id: str, copy_id: str = OWN, log_id: str = "") -> LogArea | None:
        return self._logs.get((guest_id, copy_id, log_id))

    def add(self, regions: Iterable[pb.Region], log: LogArea | None) -> int:
        """The new generation; persistent. Raises ResourceExhausted, and then nothing has changed."""
        added = {_region_key(region): _stored(region) for region in regions}
        return self._commit({**self._regions, **added}, {**self._logs, **({_log_key(log): log} if log else {})})

    def remove(self, guest_id: str, copy_id: str = OWN) -> int:
        """Forget a guest's regions and logs."""
        return self._commit(*self._without(guest_id, copy_id))

    def remove_region(self, region: pb.Region) -> int:
        """Forget one region."""
        wanted = _region_key(region)
        return self._commit({key: one for key, one in self._regions.items() if key != wanted}, self._logs)

    def remove_log(self, guest_id: str, copy_id: str, log_id: str) -> int:
        """Forget one log region of a copy."""
        wanted = (guest_id, copy_id, log_id)
        return self._commit(self._regions, {key: log for key, log in self._logs.items() if key != wanted})

    def replace(self, guest_id: str, copy_id: str, regions: Iterable[pb.Region], log: LogArea) -> int:
        """Forget a guest's regions and logs of `copy_id`, and add these, at once: so a copy becomes the guest's own."""
        kept_regions, kept_logs = self._without(guest_id, copy_id)
        added = {_region_key(region): _stored(region) for region in regions}
        return self._commit({**kept_regions, **added}, {**kept_logs, _log_key(log): log})

    def _without(self, guest_id: str, copy_id: str) -> tuple[dict[_Key, pb.Region], dict[_Key, LogArea]]:
        regions = {key: region for key, region in self._regions.items() if not _matches(key, guest_id, copy_id)}
        return regions, {key: log for key, log in self._logs.items() if not _matches(key, guest_id, copy_id)}

    def _commit(self, regions: dict[_Key, pb.Region], logs: dict[_Key, LogArea]) -> int:
        records = [_record(COPY_LOG if logs[key].copy_id else LOG, logs[key]) for key in sorted(logs)]
        for key in sorted(regions):
            records.append(_record(COPY_REGION if regions[key].copy_id else REGION, regions[key]))
        generation = self._area.commit(records)
        self._regions, self._logs = regions, logs
        return generation


def _region_key(region: pb.Region) -> _Key:
    return region.guest_id, region.copy_id, region.name


def _log_key(log: LogArea) -> _Key:
    return log.guest_id, log.copy_id, log.log_id


def _matches(key: _Key, guest_id: str, copy_id: str) -> bool:
    return guest_id in ("", key[0]) and copy_id in (ANY, key[1])


def _record(kind: int, message: pb.Region | LogArea) -> Record:
    return Record(kind, message.SerializeToString(deterministic=True), required=True)


def _stored(region: pb.Region) -> pb.Region:
    """Without the fields that are answered and not kept."""
    stored = pb.Region()
    stored.CopyFrom(region)
    stored.ClearField("written_pages")
    stored.ClearField("tracking")
    return stored
