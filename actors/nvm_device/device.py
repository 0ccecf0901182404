"""The NVM device's decisions: which regions there may be, what they are called and how much they take. Awaits nothing.

A guest's memory objects are made first and committed to the metadata last, and go the other way round: whatever object
the metadata does not name is an orphan of a host that died in between, and `orphans` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import LogArea
from everram.runtime.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from everram.runtime.formats.nvm import Metadata
from everram.runtime.formats.pages import PageTable, table_name
from everram.runtime.log.ring import DEFAULT_CAPACITY_BYTES, MAX_CAPACITY_BYTES, MIN_CAPACITY_BYTES, Ring
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.sizes import size_text

REGION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
GUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,16}")
"""As long as a log's header has room for. No dots: the names of memory objects separate their parts by dots."""
MAX_REGIONS_PER_GUEST = 64
"""Each is a descriptor in the guest and up to two in the machine, whose usual limit is 1024."""
MAX_REGION_BYTES = 1 << 46
"""What one mapping can take of an x86-64 process's addresses with room to spare."""
OWNED_PREFIXES = ("region.", "pages.", "log.")


def arena_name(guest_id: str, region: str) -> str:
    return f"region.{guest_id}.{region}"


def log_name(guest_id: str) -> str:
    return f"log.{guest_id}"


def whole_pages(size_bytes: int) -> int:
    """`size_bytes` rounded up to pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """What one creation makes."""

    regions: tuple[pb.Region, ...]
    log: LogArea | None
    """None if the guest has its log already."""

    def objects(self) -> list[tuple[str, int]]:
        """(name, size in bytes) of the memory objects to make."""
        objects = [(self.log.memory, Ring.total_bytes(self.log.capacity_bytes))] if self.log else []
        for region in self.regions:
            objects.append((region.arena, whole_pages(region.size_bytes)))
            if region.tracked:
                objects.append((table_name(region.guest_id, region.name), PageTable.total_bytes(pages_of(region))))
        return objects


def pages_of(region: pb.Region) -> int:
    return whole_pages(region.size_bytes) // PAGE_BYTES


class Device:
    """Regions and logs within `capacity_bytes`; `tracking`: whether stores to mapped regions can be tracked here."""

    def __init__(self, metadata: Metadata, capacity_bytes: int, *, tracking: bool) -> None:
        self.metadata = metadata
        self.capacity_bytes = capacity_bytes
        self._tracking = tracking

    def allocated_bytes(self) -> int:
        """Of arenas, page tables and logs, at their full sizes: what they may grow to is promised already."""
        return sum(size for _, size in Plan(tuple(self.metadata.regions()), None).objects()) + sum(
            Ring.total_bytes(log.capacity_bytes) for log in self.metadata.logs()
        )

    def plan(self, guest_id: str, specs: Sequence[pb.RegionSpec], log_bytes: int) -> Plan:
        """What to make for a request, all or none.

        Raises InvalidArgument for names and sizes that can never be, AlreadyExists for a region the guest has,
        ResourceExhausted if the device is too full.
        """
        if not GUEST_ID.fullmatch(guest_id):
            raise InvalidArgument(f"{guest_id!r} cannot be a guest_id")
        present = {region.name for region in self.metadata.regions(guest_id)}
        if len(specs) + len(present) > MAX_REGIONS_PER_GUEST:
            raise InvalidArgument(f"{len(specs) + len(present)} regions; a guest may have {MAX_REGIONS_PER_GUEST}")
        regions = []
        for spec in specs:
            _check_name(spec.name)
            if spec.name in present:
                raise AlreadyExists(f"the guest has a region {spec.name} already: choose another name")
            present.add(spec.name)
            _check_size(spec)
            regions.append(self._region(guest_id, spec))
        log = None if self.metadata.log(guest_id) else _log(guest_id, log_bytes)
        plan = Plan(tuple(regions), log)
        self._check_room(plan)
        return plan

    def object_names(self, guest_id: str) -> list[str]:
        """The memory objects of one guest, its log last."""
        names = [name for name, _ in Plan(tuple(self.metadata.regions(guest_id)), None).objects()]
        log = self.metadata.log(guest_id)
        return [*names, log.memory] if log else names

    def orphans(self, names: Iterable[str]) -> list[str]:
        """Of the memory objects there are, those of this device's kind that its metadata does not name."""
        known = {name for name, _ in Plan(tuple(self.metadata.regions()), None).objects()}
        known.update(log.memory for log in self.metadata.logs())
        return [name for name in names if name.startswith(OWNED_PREFIXES) and name not in known]

    def _region(self, guest_id: str, spec: pb.RegionSpec) -> pb.Region:
        mapped = spec.kind == pb.MAPPED
        return pb.Region(
            name=spec.name,
            guest_id=guest_id,
            kind=pb.MAPPED if mapped else pb.LOGGED,
            size_bytes=whole_pages(spec.size_bytes),
            arena=arena_name(guest_id, spec.name),
            tracked=mapped and self._tracking,
        )

    def _check_room(self, plan: Plan) -> None:
        free = max(0, self.capacity_bytes - self.allocated_bytes())
        wanted = sum(size for _, size in plan.objects())
        if wanted <= free:
            return
        largest = max(plan.regions, key=lambda region: region.size_bytes, default=None)
        what = "the guest's log" if largest is None else f"region {largest.name}"
        size = wanted if largest is None else largest.size_bytes
        others = "" if size > free else f" ({size_text(wanted)} with the guest's other regions and its log)"
        raise ResourceExhausted(
            f"{what} wants {size_text(size)}{others}, {size_text(free)} of {size_text(self.capacity_bytes)} are free: "
            "ask for less, or start the machine with more --nvm"
        )


def _check_name(name: str) -> None:
    if not REGION_NAME.fullmatch(name) or name == "log":
        raise InvalidArgument(
            f"{name!r} cannot be a region's name: use up to 63 letters, digits, '_', '.' and '-', and not 'log'"
        )


def _check_size(spec: pb.RegionSpec) -> None:
    if not 0 < spec.size_bytes <= MAX_REGION_BYTES:
        raise InvalidArgument(
            f"region {spec.name} cannot have {spec.size_bytes} bytes: give a size such as 16MiB, at most "
            f"{size_text(MAX_REGION_BYTES)}"
        )


def _log(guest_id: str, log_bytes: int) -> LogArea:
    capacity_bytes = log_bytes or DEFAULT_CAPACITY_BYTES
    if not MIN_CAPACITY_BYTES <= capacity_bytes <= MAX_CAPACITY_BYTES:
        raise InvalidArgument(
            f"a log of {size_text(capacity_bytes)} cannot be: choose from {size_text(MIN_CAPACITY_BYTES)} to "
            f"{size_text(MAX_CAPACITY_BYTES)}"
        )
    return LogArea(guest_id=guest_id, memory=log_name(guest_id), capacity_bytes=whole_pages(capacity_bytes))
