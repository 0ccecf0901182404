"""A successor's time before it is the host: it reads what the running host has in memory, without being able to change
it, says whether it could take that, and waits for it.

    await stand_by(machine, front.own_path, coordination)      # returns when this process is the host

What it says goes to whoever asked for the upgrade: versions of the software and of each kind of metadata, and the
reasons, if any, why not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from everram.actors.nvm_device.media import Media, check_superblock
from everram.runtime.coordination.api import Range
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.coordination.directory import CLUSTER
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition
from everram.runtime.formats import nvm, page_classes, swap_table, vmemfs
from everram.runtime.formats.slots import SlotArea
from everram.runtime.memory import old_pages
from everram.runtime.memory.contract import Mapping as MappedMemory
from everram.runtime.memory.mapped import Mapped
from everram.runtime.production.machine import SystemMachine
from everram.runtime.version import PACKAGE_VERSION

READS = 5
"""The host goes on changing its metadata: two changes while it is read may look like damage, five times do not."""

PEEK_MAX = 200
"""Descriptors in one answer, below the kernel's limit."""


@dataclass(frozen=True, slots=True)
class Verdict:
    reasons: tuple[str, ...]
    """Why the memory cannot be taken; empty: it can."""
    said: Mapping[str, Any]
    """For people: what there is, and what this version reads."""


def _read_vmemfs(mapping: MappedMemory) -> dict[str, Any]:
    if SlotArea.is_blank(mapping):
        return {}
    superblock = vmemfs.Superblock.open(mapping)
    return {
        "format": superblock.version,
        "producer": superblock.producer,
        "generation": superblock.generation,
        "guests": len(superblock.guests()),
        "hosts": superblock.host.hosts,
    }


def _read_nvm(mapping: MappedMemory) -> dict[str, Any]:
    if not SlotArea.is_blank(mapping):
        nvm.Metadata.open(mapping)
    return {}


def _read_snapshots(mapping: MappedMemory) -> dict[str, Any]:
    if not Media.is_blank(mapping):
        check_superblock(mapping)
    return {}


READERS: Mapping[str, Callable[[MappedMemory], dict[str, Any]]] = {
    vmemfs.MEMORY_NAME: _read_vmemfs,
    nvm.MEMORY_NAME: _read_nvm,
    nvm.SNAPSHOTS_NAME: _read_snapshots,
}
"""Of each kind of metadata, by the memory object it lies in: raises what its host would refuse to start for."""


TABLES: Mapping[str, Callable[[MappedMemory], object]] = {
    swap_table.TABLE_PREFIX: swap_table.SwapTable.open,
    page_classes.PREFIX: page_classes.check_version,
    old_pages.PREFIX: old_pages.OldPages.open,
}
"""Of guests' own tables, by what the names of their memory objects begin with. Only a version that cannot be read is a
reason: damage is one guest's, and the running host's as well."""


def judge(found: Mapping[str, int]) -> Verdict:
    """`found`: descriptors to read the memory objects of READERS and TABLES with, of those that there are."""
    said: dict[str, Any] = {
        "version": PACKAGE_VERSION,
        "reads": ".".join(map(str, vmemfs.FORMAT.version)),
    }
    reasons: list[str] = []
    if vmemfs.MEMORY_NAME not in found:
        reasons.append("the host has no VMemFS superblock yet: try again when it serves")
    for name, descriptor in found.items():
        try:
            if name in READERS:
                said |= _read_patiently(READERS[name], descriptor)
            else:
                _check_table(name, descriptor)
        except EverramError as error:
            if error.message not in reasons:  # a thousand guests may have one
                reasons.append(error.message)
    return Verdict(tuple(reasons), said)


def _read_patiently(read: Callable[[MappedMemory], dict[str, Any]], descriptor: int) -> dict[str, Any]:
    mapping = Mapped(descriptor, os.fstat(descriptor).st_size, writable=False)
    with contextlib.closing(mapping):
        for _ in range(READS - 1):
            with contextlib.suppress(DataLoss):
                return read(mapping)
        return read(mapping)


def _check_table(name: str, descriptor: int) -> None:
    """Raises FailedPrecondition."""
    open_table = next(opened for prefix, opened in TABLES.items() if name.startswith(prefix))
    mapping = Mapped(descriptor, os.fstat(descriptor).st_size, writable=False)
    with contextlib.closing(mapping), contextlib.suppress(DataLoss):
        open_table(mapping)


async def _judge_running(machine: SystemMachine) -> Verdict:
    names = [*READERS, *await machine.kept_names(list(TABLES))]
    found: dict[str, int] = {}
    try:
        for at in range(0, len(names), PEEK_MAX):
            found |= await machine.peek(names[at : at + PEEK_MAX])
        return judge(found)
    finally:
        for descriptor in found.values():
            os.close(descriptor)


async def stand_by(machine: SystemMachine, socket_path: str, coordination: CoordinationClient) -> None:
    """Until this process is the host, which listens at `socket_path` already. A verdict of no ends with this process:
    the machine ends it."""
    verdict = await _judge_running(machine)
    with contextlib.suppress(EverramError):  # only to be connected by then
        await coordination.range(Range(CLUSTER))
    await machine.judged(verdict.reasons, {**verdict.said, "socket": socket_path})
    await machine.taken()
    last = judge({name: fd for name, fd in machine.kept.items() if name in READERS or name.startswith(tuple(TABLES))})
    if last.reasons:
        raise FailedPrecondition("; ".join(last.reasons))
    await machine.ingested()
