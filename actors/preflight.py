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
from everram.runtime.formats import nvm, vmemfs
from everram.runtime.formats.slots import SlotArea
from everram.runtime.memory.contract import Mapping as MappedMemory
from everram.runtime.memory.mapped import Mapped
from everram.runtime.production.machine import SystemMachine
from everram.runtime.version import PACKAGE_VERSION

READS = 5
"""The host goes on changing its metadata: two changes while it is read may look like damage, five times do not."""


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


def judge(found: Mapping[str, int]) -> Verdict:
    """`found`: descriptors to read the memory objects of READERS with, of those that there are."""
    said: dict[str, Any] = {
        "version": PACKAGE_VERSION,
        "reads": ".".join(map(str, vmemfs.FORMAT.version)),
    }
    reasons: list[str] = []
    if vmemfs.MEMORY_NAME not in found:
        reasons.append("the host has no VMemFS superblock yet: try again when it serves")
    for name, descriptor in found.items():
        try:
            said |= _read_patiently(READERS[name], descriptor)
        except EverramError as error:
            reasons.append(error.message)
    return Verdict(tuple(reasons), said)


def _read_patiently(read: Callable[[MappedMemory], dict[str, Any]], descriptor: int) -> dict[str, Any]:
    mapping = Mapped(descriptor, os.fstat(descriptor).st_size, writable=False)
    with contextlib.closing(mapping):
        for _ in range(READS - 1):
            with contextlib.suppress(DataLoss):
                return read(mapping)
        return read(mapping)


async def stand_by(machine: SystemMachine, socket_path: str, coordination: CoordinationClient) -> None:
    """Until this process is the host, which listens at `socket_path` already. A verdict of no ends with this process:
    the machine ends it."""
    found = await machine.peek(list(READERS))
    try:
        verdict = judge(found)
    finally:
        for descriptor in found.values():
            os.close(descriptor)
    with contextlib.suppress(EverramError):  # only to be connected by then
        await coordination.range(Range(CLUSTER))
    await machine.judged(verdict.reasons, {**verdict.said, "socket": socket_path})
    await machine.taken()
    last = judge({name: machine.kept[name] for name in READERS if name in machine.kept})
    if last.reasons:
        raise FailedPrecondition("; ".join(last.reasons))
    await machine.ingested()
