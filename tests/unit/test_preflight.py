"""What a successor says of the memory before it takes it: whatever this version cannot read is named beforehand."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from everram.actors.preflight import READERS, TABLES, judge
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.formats.page_classes import PageClasses
from everram.runtime.formats.swap_table import SwapTable
from everram.runtime.formats.vmemfs import MEMORY_NAME, Superblock
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.old_pages import OldPages

SIZE_BYTES = 1 << 20


def swapped() -> HeapMapping:
    mapping = HeapMapping(SIZE_BYTES)
    SwapTable.format(mapping, 16)
    return mapping


def classes() -> HeapMapping:
    mapping = HeapMapping(SIZE_BYTES)
    PageClasses.format(mapping, 16)
    return mapping


def old() -> HeapMapping:
    mapping = HeapMapping(SIZE_BYTES)
    OldPages.format(mapping, 16, armed=False)
    return mapping


class Kept:
    """Memory objects as descriptors."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        superblock = HeapMapping(SIZE_BYTES)
        Superblock.format(superblock, HostRecord(memory_id="m"))
        self.keep(MEMORY_NAME, superblock)

    def keep(self, name: str, mapping: HeapMapping) -> None:
        if name in self.fds:
            os.close(self.fds[name])
        self.fds[name] = os.memfd_create(name)
        os.pwrite(self.fds[name], mapping.load(0, mapping.size_bytes), 0)


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    for fd in kept.fds.values():
        os.close(fd)


def test_all_that_this_version_writes_it_can_take(kept: Kept) -> None:
    kept.keep("swapped.g", swapped())
    kept.keep("classes.g", classes())
    kept.keep("old.g.r", old())
    assert {name.partition(".")[0] + "." for name in kept.fds if name not in READERS} == TABLES.keys()
    assert judge(kept.fds).reasons == ()


def test_tables_of_guests_that_cannot_be_read_are_a_reason_and_named_once(kept: Kept) -> None:
    later = swapped()
    later.publish_u64(8, 2)
    for guest in ("g", "h"):
        kept.keep(f"swapped.{guest}", later)
    [reason] = judge(kept.fds).reasons
    assert "swap table: written in version 2" in reason
    strange = classes()
    strange.publish_u64(8, 9)
    kept.keep("classes.g", strange)
    assert [reason.partition(":")[0] for reason in judge(kept.fds).reasons] == ["swap table", "page classes"]


def test_damage_of_one_guests_table_holds_nobody_up(kept: Kept) -> None:
    for name, table in (("swapped.g", swapped()), ("classes.g", classes()), ("old.g.r", old())):
        table.publish_u64(0, 0)
        kept.keep(name, table)
    assert judge(kept.fds).reasons == ()
