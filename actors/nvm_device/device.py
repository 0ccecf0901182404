"""The NVM device's decisions: which regions there may be, what they are called and how much they take. Awaits nothing.

A guest's memory objects are made first and committed to the metadata last, and go the other way round: whatever object
the metadata does not name is an orphan of a host that died in between, and `orphans` finds it.

Beside a guest's own regions and log there may be copies of a guest that runs elsewhere, each with a copy_id: regions
(those of kind mapped stay empty, and have no page table) and log regions, one for each time its source opened it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.nvm_device_pb2 import AdoptRequest, CreateRegionsRequest, LogArea, RegionFilter
from everram.runtime.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from everram.runtime.formats.nvm import ANY, OWN, Metadata
from everram.runtime.formats.pages import PageTable, table_name
from everram.runtime.log.record import ALIGNMENT_BYTES
from everram.runtime.log.ring import DEFAULT_CAPACITY_BYTES, MAX_CAPACITY_BYTES, MIN_CAPACITY_BYTES, Ring, log_name
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.old_pages import OldPages, old_pages_name
from everram.runtime.sizes import size_text

REGION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""No '@', which sets a copy's name apart."""
GUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,16}")
"""As long as a log's header has room for. No dots: the names of memory objects separate their parts by dots."""
COPY_ID = re.compile(r"[A-Za-z0-9]{1,16}")
"""And log_id."""
MAX_REGIONS_PER_GUEST = 64
"""Each is a descriptor in the guest and up to two in the machine, whose usual limit is 1024."""
MAX_REGION_BYTES = 1 << 46
"""What one mapping can take of an x86-64 process's addresses with room to spare."""
OWNED_PREFIXES = ("region.", "pages.", "old.", "log.")


def arena_name(guest_id: str, region: str, copy_id: str = OWN) -> str:
    return f"region.{guest_id}.{region}" + (f"@{copy_id}" if copy_id else "")


def whole_pages(size_bytes: int) -> int:
    """`size_bytes` rounded up to pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """What one creation makes."""

    regions: tuple[pb.Region, ...]
    """With their arenas, unless those are `adopted`."""
    log: LogArea | None
    """None if the guest has its log already, or a copy wants none."""
    log_start: int = 0
    log_epoch: int = 0
    adopted: bool = False
    """The regions' arenas are there: they were a copy's."""

    def objects(self) -> list[tuple[str, int]]:
        """(name, size in bytes) of the memory objects to make."""
        objects = [(self.log.memory, Ring.total_bytes(self.log.capacity_bytes))] if self.log else []
        for region in self.regions:
            if not self.adopted:
                objects.append((region.arena, whole_pages(region.size_bytes)))
            if region.tracked:
                objects.append((table_name(region.guest_id, region.name), PageTable.total_bytes(pages_of(region))))
            if region.keeps_old:
                objects.append((old_pages_name(region.guest_id, region.name), OldPages.total_bytes(pages_of(region))))
        return objects

    def size_bytes(self) -> int:
        return sum(size for _, size in self.objects())


def origin_of(region: pb.Region) -> str:
    """What its snapshots know it by, whichever arena it is in by now."""
    return region.origin or region.arena


def pages_of(region: pb.Region) -> int:
    return whole_pages(region.size_bytes) // PAGE_BYTES


class Device:
    """Regions and logs within `capacity_bytes`; `tracking`: whether stores to mapped regions can be tracked here."""

    def __init__(self, metadata: Metadata, capacity_bytes: int, *, tracking: bool) -> None:
        self.metadata = metadata
        self.capacity_bytes = capacity_bytes
        self._tracking = tracking
        self.snapshots_bytes: Callable[[], int] = lambda: 0
        """What snapshots take."""

    def allocated_bytes(self) -> int:
        """By everything."""
        return self.promised_bytes() + self.snapshots_bytes()

    def promised_bytes(self) -> int:
        """To arenas, page tables and logs, at their full sizes: what they may grow to is promised already."""
        return self._kept_bytes("", ANY)

    def plan(self, request: CreateRegionsRequest) -> Plan:
        """What to make for a request, all or none.

        Raises InvalidArgument for names and sizes that can never be, AlreadyExists for a region or log region that is
        there, ResourceExhausted if the device is too full.
        """
        guest_id, copy_id = request.guest_id, request.copy_id
        _check_ids(request)
        present = {region.name for region in self.metadata.regions(guest_id, copy_id)}
        if len(request.regions) + len(present) > MAX_REGIONS_PER_GUEST:
            wanted = len(request.regions) + len(present)
            raise InvalidArgument(f"{wanted} regions; a guest may have {MAX_REGIONS_PER_GUEST}")
        regions = []
        for spec in request.regions:
            _check_name(spec.name)
            if spec.name in present:
                raise AlreadyExists(f"the guest has a region {spec.name} already: choose another name")
            present.add(spec.name)
            _check_size(spec)
            regions.append(self._region(guest_id, copy_id, spec))
        plan = Plan(tuple(regions), self._wanted_log(request), request.log_start, request.log_epoch)
        self._check_room(plan)
        return plan

    def plan_adoption(self, request: AdoptRequest) -> Plan | None:
        """What to make when a copy becomes the guest's own; None if it has become that before.

        Raises NotFound if there is no such copy, InvalidArgument, ResourceExhausted.
        """
        guest_id, copy_id = request.guest_id, request.copy_id
        if not GUEST_ID.fullmatch(guest_id) or not COPY_ID.fullmatch(copy_id):
            raise InvalidArgument(f"copy {copy_id!r} of guest {guest_id!r}: give the guest_id and copy_id of one copy")
        regions = self.metadata.regions(guest_id, copy_id)
        if not regions and not self.metadata.logs(guest_id, copy_id):
            if self._was_adopted(guest_id, copy_id):
                return None
            raise NotFound(f"there is no copy {copy_id} of guest {guest_id} here")
        own = [self._owned(region) for region in regions]
        log = _log(guest_id, request.log_bytes)
        _check_start(request.log_start)
        plan = Plan(tuple(own), log, request.log_start, request.log_epoch, adopted=True)
        # The copy's logs go once it is adopted: for a moment the device may be fuller than it should be.
        logs_bytes = sum(Ring.total_bytes(log.capacity_bytes) for log in self.metadata.logs(guest_id, copy_id))
        released_bytes = logs_bytes + self._kept_bytes(guest_id, OWN)
        if plan.size_bytes() > self._free_bytes() + released_bytes:
            for region in own:
                region.keeps_old = False  # better a guest whose snapshots are copied whole than none
        self._check_room(plan, released_bytes=released_bytes)
        return plan

    def plan_growth(self, old: pb.Region, size_bytes: int) -> pb.Region:
        """The region as it will be, in an arena of its own. Raises InvalidArgument, ResourceExhausted."""
        if size_bytes <= old.size_bytes:
            raise InvalidArgument(f"region {old.name} has {old.size_bytes} bytes already: regions only grow")
        _check_size(pb.RegionSpec(name=old.name, size_bytes=size_bytes))
        new = pb.Region()
        new.CopyFrom(old)
        new.size_bytes, new.origin = whole_pages(size_bytes), origin_of(old)
        grown = int(old.arena.rpartition("+")[2]) + 1 if old.origin else 1
        new.arena = f"{new.origin}+{grown}"
        self._check_room(Plan((new,), None), released_bytes=Plan((old,), None).size_bytes())
        return new

    def object_names(self, guest_id: str, copy_id: str = OWN) -> list[str]:
        """The memory objects of one guest, its logs last."""
        names = [name for name, _ in Plan(tuple(self.metadata.regions(guest_id, copy_id)), None).objects()]
        return names + [log.memory for log in self.metadata.logs(guest_id, copy_id)]

    def orphans(self, names: Iterable[str]) -> list[str]:
        """Of the memory objects there are, those of this device's kind that its metadata does not name."""
        known = set(self.object_names("", ANY))
        return [name for name in names if name.startswith(OWNED_PREFIXES) and name not in known]

    def _kept_bytes(self, guest_id: str, copy_id: str) -> int:
        regions, logs = self.metadata.regions(guest_id, copy_id), self.metadata.logs(guest_id, copy_id)
        logs_bytes = sum(Ring.total_bytes(log.capacity_bytes) for log in logs)
        return Plan(tuple(regions), None).size_bytes() + logs_bytes

    def _region(self, guest_id: str, copy_id: str, spec: pb.RegionSpec) -> pb.Region:
        mapped = spec.kind == pb.MAPPED
        return pb.Region(
            name=spec.name,
            guest_id=guest_id,
            kind=pb.MAPPED if mapped else pb.LOGGED,
            size_bytes=whole_pages(spec.size_bytes),
            arena=arena_name(guest_id, spec.name, copy_id),
            tracked=mapped and self._tracking and not copy_id,
            keeps_old=not mapped and not self._tracking and not copy_id,
            copy_id=copy_id,
        )

    def _wants_old(self, region: pb.Region) -> bool:
        """Whether its guest has to save old content itself, for nobody sees its stores coming (D13)."""
        return region.kind == pb.LOGGED and not self._tracking and not region.copy_id

    def _owned(self, region: pb.Region) -> pb.Region:
        """A copy's region as the guest's own."""
        own = pb.Region()
        own.CopyFrom(region)
        own.copy_id = OWN
        own.tracked = region.kind == pb.MAPPED and self._tracking
        own.keeps_old = self._wants_old(own)
        return own

    def _was_adopted(self, guest_id: str, copy_id: str) -> bool:
        """Adopted arenas keep their names, so these say which copy the guest's own regions once were."""
        regions = self.metadata.regions(guest_id)
        adopted = not regions or any(r.arena == arena_name(guest_id, r.name, copy_id) for r in regions)
        return adopted and self.metadata.log(guest_id) is not None

    def _wanted_log(self, request: CreateRegionsRequest) -> LogArea | None:
        guest_id, copy_id, log_id = request.guest_id, request.copy_id, request.log_id
        if copy_id and not log_id:
            return None
        if self.metadata.logs(guest_id, ANY, log_id) if log_id else self.metadata.log(guest_id):
            if log_id:
                raise AlreadyExists(f"guest {guest_id} has a log region {log_id} here already: choose another log_id")
            return None
        _check_start(request.log_start)
        return _log(guest_id, request.log_bytes, copy_id, log_id)

    def _free_bytes(self) -> int:
        """Less than nothing where more was promised than there is."""
        return self.capacity_bytes - self.allocated_bytes()

    def with_old_pages(self, region: pb.Region) -> pb.Region | None:
        """The same, if its guest should save old content itself and does not yet, and there is room for that."""
        if region.keeps_old or not self._wants_old(region):
            return None
        if OldPages.total_bytes(pages_of(region)) > self._free_bytes():
            return None
        wanted = pb.Region()
        wanted.CopyFrom(region)
        wanted.keeps_old = True
        return wanted

    def _check_room(self, plan: Plan, released_bytes: int = 0) -> None:
        free = max(0, self._free_bytes() + released_bytes)
        wanted = plan.size_bytes()
        if wanted <= free:
            return
        largest = None if plan.adopted else max(plan.regions, key=lambda region: region.size_bytes, default=None)
        what = "the guest's log" if largest is None else f"region {largest.name}"
        size = wanted if largest is None else largest.size_bytes
        others = "" if size > free else f" ({size_text(wanted)} with the guest's other regions and its log)"
        raise ResourceExhausted(
            f"{what} wants {size_text(size)}{others}, {size_text(free)} of {size_text(self.capacity_bytes)} are free: "
            "ask for less, or start the machine with more --nvm"
        )


def check_snapshot_name(name: str) -> None:
    """Raises InvalidArgument."""
    if not REGION_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot be a snapshot's name: use up to 63 letters, digits, '_', '.' and '-', and begin with a "
            "letter or digit"
        )


def check_filter(chosen: RegionFilter) -> None:
    """Raises InvalidArgument for a filter that can find nothing."""
    if chosen.log_id and chosen.copy_id in (OWN, ANY):
        raise InvalidArgument(f"log region {chosen.log_id} of which copy? give its copy_id")


def _check_ids(request: CreateRegionsRequest) -> None:
    if not GUEST_ID.fullmatch(request.guest_id):
        raise InvalidArgument(f"{request.guest_id!r} cannot be a guest_id")
    for what, given in (("copy_id", request.copy_id), ("log_id", request.log_id)):
        if given and not COPY_ID.fullmatch(given):
            raise InvalidArgument(f"{given!r} cannot be a {what}: use up to 16 letters and digits")
    if request.log_id and not request.copy_id:
        raise InvalidArgument(f"log region {request.log_id} of which copy? give its copy_id")


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


def _check_start(lsn: int) -> None:
    if lsn % ALIGNMENT_BYTES:
        raise InvalidArgument(f"a log cannot begin at {lsn}: records lie at multiples of {ALIGNMENT_BYTES}")


def _log(guest_id: str, log_bytes: int, copy_id: str = OWN, log_id: str = "") -> LogArea:
    capacity_bytes = log_bytes or DEFAULT_CAPACITY_BYTES
    if not MIN_CAPACITY_BYTES <= capacity_bytes <= MAX_CAPACITY_BYTES:
        raise InvalidArgument(
            f"a log of {size_text(capacity_bytes)} cannot be: choose from {size_text(MIN_CAPACITY_BYTES)} to "
            f"{size_text(MAX_CAPACITY_BYTES)}"
        )
    return LogArea(
        guest_id=guest_id,
        memory=log_name(guest_id, log_id),
        capacity_bytes=whole_pages(capacity_bytes),
        copy_id=copy_id,
        log_id=log_id,
    )
