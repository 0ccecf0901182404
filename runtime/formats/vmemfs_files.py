"""The files of VMemFS: which pages of which memory objects belong to whom.

    files = [*guest_files(guest, sizes), *device_files(sizes)]
    for fault in check(files, sizes): ...

Each region lies in a memory object of its own at the same offsets (D11), so a file is one extent; the record can say
more, and a reader believes none of it: every extent has to lie in its object, no page may be in two files or in one of
them twice, and every object has to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.vmemfs_pb2 import FileExtent, FileRecord
from everram.runtime.formats import nvm
from everram.runtime.formats.pages import table_name
from everram.runtime.log.ring import log_name
from everram.runtime.memory.contract import PAGE_BYTES

DEVICES = (nvm.MEMORY_NAME, nvm.SNAPSHOTS_NAME, nvm.STORE_NAME)
"""Memory objects that are a device's state."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file, in words."""

    guest_id: str
    """Whose it is; empty: the host's own."""
    file: str
    reason: str


def guest_files(guest: pb.Guest, sizes: Mapping[str, int]) -> list[FileRecord]:
    """Of one guest, as far as its memory objects are among `sizes` (bytes by name)."""
    return [_file(name, guest.guest_id, held, sizes[held]) for name, held in _objects(guest).items() if held in sizes]


def object_names(guest: pb.Guest) -> list[str]:
    """Of the memory objects that a guest may have."""
    return list(_objects(guest).values())


def _objects(guest: pb.Guest) -> dict[str, str]:
    """Memory object by file."""
    folder = f"guests/{guest.guest_id}"
    objects = {f"{folder}/log": log_name(guest.guest_id)}
    for region in guest.regions:
        objects[f"{folder}/regions/{region.name}"] = region.arena
        objects[f"{folder}/pages/{region.name}"] = table_name(guest.guest_id, region.name)
    return objects


def device_files(sizes: Mapping[str, int]) -> list[FileRecord]:
    return [_file(f"devices/{name}", "", name, sizes[name]) for name in DEVICES if name in sizes]


def _file(name: str, guest_id: str, held: str, size_bytes: int) -> FileRecord:
    extent = FileExtent(object=held, pages=_pages(size_bytes))
    return FileRecord(name=name, guest_id=guest_id, size_bytes=size_bytes, extents=[extent])


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES)


def check(files: Iterable[FileRecord], sizes: Mapping[str, int] | None) -> list[Fault]:
    """Everything that is wrong. Of two files with one page both are: nobody knows whose it is.

    `sizes`: of the machine's memory objects; None: do not compare with them.
    """
    faults: list[Fault] = []
    taken: dict[str, list[tuple[int, int, FileRecord]]] = {}
    for file in files:
        reason = _own_fault(file, sizes)
        if reason:
            faults.append(Fault(file.guest_id, file.name, reason))
        for extent in file.extents:
            taken.setdefault(extent.object, []).append((extent.object_page, extent.pages, file))
    for held, extents in sorted(taken.items()):
        extents.sort(key=lambda extent: (extent[0], extent[2].name))
        reach = 0
        before: FileRecord | None = None
        for page, pages, file in extents:
            if before is not None and page < reach:
                reason = f"page {page} of {held} is in {before.name} and in {file.name}"
                if before is file:
                    reason = f"page {page} of {held} is in it twice"
                faults += [Fault(file.guest_id, file.name, reason), Fault(before.guest_id, before.name, reason)]
            if page + pages > reach:
                reach, before = page + pages, file
    return list(dict.fromkeys(faults))


def _own_fault(file: FileRecord, sizes: Mapping[str, int] | None) -> str:
    """Empty if all of it lies where it can."""
    next_page = 0
    for extent in file.extents:
        if extent.page != next_page:
            return f"its extents {'overlap' if extent.page < next_page else 'have a gap'} at page {extent.page}"
        next_page += extent.pages
        if sizes is None:
            continue
        if extent.object not in sizes:
            return f"the machine does not have its memory {extent.object}"
        if extent.object_page + extent.pages > _pages(sizes[extent.object]):
            return f"{extent.pages} pages at {extent.object_page} are not inside {extent.object}"
    return "" if next_page == _pages(file.size_bytes) else f"{next_page} pages do not hold {file.size_bytes} bytes"
