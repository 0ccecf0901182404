"""`environment.Mounts`: FUSE mounts whose descriptors the machine keeps.

    mounts = SystemMounts(machine, mark, token)
    mount = await mounts.mount("/mnt/everram", passthrough=True)
    await mount.serve(files)

Each has two descriptors in the machine's store, `mount.ID.WAY.book` and `mount.ID.WAY.device`, where WAY is
"passthrough" or "plain". A killed host loses nothing by that, and a dead machine closes the device, which ends the
mount for its users. Its folder is found in /proc/self/mountinfo by the mount's source, `everram:CLUSTER_ID/HOST/ID`, so
no list of mounts can be wrong; whoever cleans up after a dead machine finds them by the same mark
(runtime/cluster/remains.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from everram.runtime.environment import MemoryObject, Mount
from everram.runtime.errors import AlreadyExists, DataLoss, EverramError
from everram.runtime.fuse import mount as fuse
from everram.runtime.fuse.filesystem import FileSystem
from everram.runtime.fuse.mount import Mounted
from everram.runtime.fuse.server import Session
from everram.runtime.machine.protocol import MOUNT_PREFIX
from everram.runtime.production.machine import SystemMachine
from everram.runtime.production.memory import KeptObject

WAYS = {True: "passthrough", False: "plain"}
BOOK, DEVICE = "book", "device"

log = logging.getLogger(__name__)


class SystemMounts:
    """See the module. `mark` is CLUSTER_ID/HOST."""

    def __init__(self, machine: SystemMachine, mark: str, token: Callable[[], str]) -> None:
        self._machine = machine
        self._mark = fuse.mark_of(mark)
        self._token = token

    def found(self) -> list[Mount]:
        folders = fuse.marked(self._mark)
        found: list[Mount] = []
        for name in list(self._machine.kept):
            number, way, what = _parsed(name)
            if what == DEVICE:  # stored last
                folder = folders.pop(self._mark + number, "")
                found.append(SystemMount(self._machine, number, way == WAYS[True], folder))
        for folder in folders.values():
            log.warning("%s was mounted by a host that died before its machine had the mount: it is unmounted", folder)
            with contextlib.suppress(EverramError):
                fuse.unmount(folder)
        return found

    async def mount(self, folder: str, *, passthrough: bool) -> SystemMount:
        if fuse.is_mounted(folder):
            raise AlreadyExists(f"there is a mount on {folder} already: `everram umount {folder}` ends it")
        number = self._token()
        mounted = fuse.mount(folder, source=self._mark + number)
        made = SystemMount(self._machine, number, passthrough, folder)
        try:
            await made.keep(mounted)
        except BaseException:
            fuse.unmount(folder)
            raise
        return made

    def descriptor(self, memory: MemoryObject) -> int | None:
        return memory.descriptor if isinstance(memory, KeptObject) else None

    def modified_ns(self, memory: MemoryObject) -> int:
        return os.fstat(memory.descriptor).st_mtime_ns if isinstance(memory, KeptObject) else 0


class SystemMount:
    """`environment.Mount`."""

    def __init__(self, machine: SystemMachine, number: str, passthrough: bool, folder: str) -> None:
        self.folder = folder
        """Empty if it was unmounted, perhaps while programs use it still."""
        self._machine = machine
        self._passthrough = passthrough
        self._names = {what: f"{MOUNT_PREFIX}{number}.{WAYS[passthrough]}.{what}" for what in (BOOK, DEVICE)}

    async def keep(self, mounted: Mounted) -> None:
        """Takes both descriptors over."""
        try:
            await self._machine.keep(self._names[BOOK], mounted.book)
        except BaseException:
            os.close(mounted.device)
            raise
        await self._machine.keep(self._names[DEVICE], mounted.device)

    def _mounted(self) -> Mounted:
        """Raises DataLoss."""
        kept = self._machine.kept
        if self._names[BOOK] not in kept:
            raise DataLoss("a mount's book is gone: unmount it and mount it again")
        return Mounted(kept[self._names[DEVICE]], kept[self._names[BOOK]])

    def held(self) -> frozenset[str]:
        try:
            book, mapping = fuse.open_book(self._mounted())
        except DataLoss:
            return frozenset()  # `serve` says it
        try:
            return frozenset(node.key for node in book.nodes() if node.handles)
        finally:
            mapping.close()

    async def serve(self, files: FileSystem) -> None:
        try:
            await Session(self._mounted(), files, passthrough=self._passthrough).serve()
        except DataLoss as error:
            log.error("%s cannot be served any more: %s", self.folder, error.message)
            if self.folder:
                fuse.unmount(self.folder)
        for name in (self._names[DEVICE], self._names[BOOK]):
            if name in self._machine.kept:
                await self._machine.drop(name)


def _parsed(name: str) -> tuple[str, str, str]:
    """Of a kept descriptor: id, way and what it is; empty for one that is no mount's."""
    parts = name.removeprefix(MOUNT_PREFIX).split(".")
    if not name.startswith(MOUNT_PREFIX) or len(parts) != 3:
        return "", "", ""
    return parts[0], parts[1], parts[2]
