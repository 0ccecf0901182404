"""A machine's lasting memory in ordinary files: one for each memory object, in a folder that a person named.

    files = NvmFiles(Path("/mnt/pmem/h1"), "CLUSTER_ID/h1", boot_id())
    await files.take_up(machine)             # what is there is the machine's memory from now on
    memory = KeptMemory(machine, capacity_bytes, files)
    await files.sync()                       # all that was stored by now is on its storage
    ...
    finish(folder, owner)                    # by whoever has seen the machine end: and so is what came after that

Such memory outlives its machine: the next one of the same name goes on with it, as with a module that keeps what it
holds without power. The machine keeps a descriptor of each file and everybody maps it, exactly as with memfds; so the
content is the kernel's page cache, or, on a DAX file system, the medium itself.

What that promises. Every store outlives every process, the machine's own included. What was written back outlives the
computer as well. `everram down` and a save on battery do that in two steps: `sync` while the guests stand still, which
is nearly all, and `finish` when nothing of the machine is left, for its host goes on storing to its last moment. If the
computer itself stopped before, stores may be missing in any order, which nobody could tell later: such a folder is not
opened (`everram up --open empty` sets it aside). So that everything was written back is said last of all, by `finish`.

A file cannot be sealed. So its length stands in its name and is checked whenever it is opened, the folder is private,
and whoever opens it has it locked for as long as the machine lives. docs/formats.md, "NVM files", has the layout.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, ResourceExhausted
from everram.runtime.formats.lasting import is_lasting
from everram.runtime.machine.protocol import HELD_PREFIX
from everram.runtime.memory import memfd
from everram.runtime.memory.contract import PAGE_BYTES

if TYPE_CHECKING:
    from everram.runtime.production.machine import SystemMachine

FORMAT = 1
LOCK_NAME = f"{HELD_PREFIX}nvm-files"
"""Kept by the machine: the lock ends with the last descriptor of it."""
RECORD, LOCK, OBJECTS = "device.json", "lock", "objects"
RESIZABLE = "grows"
"""In a file's name, in place of its length."""


class NvmFiles:
    """`owner`: whose memory this is; another one's is refused."""

    def __init__(self, folder: Path, owner: str, boot_id: str) -> None:
        self.folder = folder
        self._objects = folder / OBJECTS
        self._owner = owner
        self._boot_id = boot_id

    # -- a host's start

    async def take_up(self, machine: SystemMachine, *, empty: bool = False) -> None:
        """Have the machine keep what the files hold, unless an earlier host of it did that. `empty`: set aside what
        nobody may open. Raises FailedPrecondition, DataLoss."""
        try:
            if LOCK_NAME in machine.kept:
                return  # nobody has said since that all is written back: `finish` needs the lock
            self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._lock()
            try:
                self._check(empty=empty)
                self._write_record()
                for name, path in self._named():
                    if name not in machine.kept:  # a host died as it did this
                        await machine.keep(name, _open(path))
            except BaseException:
                os.close(lock)
                raise
            await machine.keep(LOCK_NAME, lock)
        except OSError as error:
            raise FailedPrecondition(
                f"the NVM files in {self.folder} cannot be used ({error.strerror}): name a folder that everram may "
                "write to"
            ) from error

    def _lock(self) -> int:
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise FailedPrecondition(
                f"the NVM files in {self.folder} are in use by another machine: two cannot have one device"
            ) from error
        return lock

    def _check(self, *, empty: bool) -> None:
        """Raises FailedPrecondition, DataLoss."""
        found = self._read_record()
        if found is None:
            if any(self._objects.iterdir()):
                raise DataLoss(f"{self.folder} has NVM files, but no {RECORD}, which says whose they are")
            self._check_holes()
            return
        if found["owner"] != self._owner:
            raise FailedPrecondition(
                f"{self.folder} holds the memory of {found['owner']}, not of {self._owner}: name another --nvm-files"
            )
        if not found["synced"] and found["boot_id"] != self._boot_id:
            if not empty:
                raise FailedPrecondition(
                    f"the computer stopped while the NVM files in {self.folder} were in use, and they were not all "
                    "written back: what they hold may be of several moments. Choose: `everram up --open empty` sets "
                    "them aside and starts with empty memory"
                )
            self._set_aside()

    def _check_holes(self) -> None:
        """Raises FailedPrecondition where nothing can be given back."""
        probe = self.folder / "probe"
        descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, bytes(2 * PAGE_BYTES), 0)
            memfd.punch(descriptor, 0, PAGE_BYTES)
            if memfd.extents(descriptor, 0, 2 * PAGE_BYTES) != [(PAGE_BYTES, PAGE_BYTES)]:
                raise OSError(errno.EOPNOTSUPP, "its file system has no holes of a page")
        finally:
            os.close(descriptor)
            probe.unlink()

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.folder / f"{OBJECTS}.lost-{number}").exists():
            number += 1
        self._objects.rename(aside)
        self._objects.mkdir(mode=0o700)

    def _named(self) -> Iterator[tuple[str, Path]]:
        """What begins with a dot was never whole."""
        for path in sorted(self._objects.iterdir()):
            if not path.name.startswith("."):
                yield unquote(path.name.rpartition(",")[0]), path

    # -- its record

    def _read_record(self) -> dict[str, object] | None:
        """Raises DataLoss, FailedPrecondition."""
        path = self.folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] > FORMAT:
                raise FailedPrecondition(
                    f"{path}: written in format {record['format']}, this everram reads {FORMAT}: use the later one"
                )
            known = {name: record[name] for name in ("owner", "boot_id", "synced")}
            return known | {"saved": record.get("saved", False)}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{path} does not say whose memory the files beside it are: {error!r}") from error

    def _write_record(self, *, saved: bool = False, synced: bool = False) -> None:
        """Durably. `saved`: nearly all is written back, which leaves `finish` little to do; `synced`: all of it."""
        record = {"format": FORMAT, "owner": self._owner, "boot_id": self._boot_id, "saved": saved, "synced": synced}
        fresh = self.folder / f".{RECORD}"
        with fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.folder / RECORD)
        _sync_folder(self.folder)

    # -- memory objects

    def holds(self, name: str) -> bool:
        """Whether it is one of those that outlive a machine."""
        return is_lasting(name)

    def create(self, name: str, size_bytes: int, *, resizable: bool) -> int:
        """A descriptor of a new, zeroed file, the caller's own. Raises ResourceExhausted."""
        fresh = self._objects / f".{_file_name(name)}"
        try:
            descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size_bytes)
                os.fchmod(descriptor, 0o600 if resizable else memfd.FIXED_MODE)
                self.remove(name)  # what a host has left that died before the machine kept it
                fresh.rename(self._objects / f"{_file_name(name)},{RESIZABLE if resizable else size_bytes}")
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise ResourceExhausted(f"no NVM file of {size_bytes} bytes can be made: {error.strerror}") from error
        return descriptor

    def remove(self, name: str) -> None:
        for path in list(self._objects.iterdir()):
            if path.name.startswith(f"{_file_name(name)},"):
                path.unlink()

    # -- its storage

    async def sync(self) -> int:
        """All that was stored by now is on the storage when this returns: how many bytes there are. Raises DataLoss."""
        return await asyncio.get_running_loop().run_in_executor(None, self._sync)

    def _sync(self, *, last: bool = False) -> int:
        """`last`: nobody can store any more."""
        total_bytes = 0
        try:
            for _, path in self._named():
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                    total_bytes += os.fstat(descriptor).st_blocks * 512
                finally:
                    os.close(descriptor)
            _sync_folder(self._objects)
            self._write_record(saved=True, synced=last)
        except OSError as error:
            raise DataLoss(f"the NVM files in {self.folder} cannot be written back: {error.strerror}") from error
        return total_bytes

    def stored_to(self) -> None:
        """Guests store to them again: what was saved is out of date. Raises DataLoss."""
        try:
            self._write_record()
        except OSError as error:
            raise DataLoss(f"{self.folder}/{RECORD} cannot be written: {error.strerror}") from error


def _file_name(name: str) -> str:
    """Without its length."""
    return quote(name, safe="@+")


def _open(path: Path) -> int:
    """Raises DataLoss if it has another length than it was made with."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    length = path.name.rpartition(",")[2]
    found = os.fstat(descriptor).st_size
    if length != RESIZABLE and length != str(found):
        os.close(descriptor)
        raise DataLoss(f"{path} is {found} bytes long, not {length}: it was changed by somebody else")
    return descriptor


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finish(folder: Path, owner: str) -> None:
    """Once nothing of this owner's machine is left: if it was saved, what its host has stored since is written back,
    too, and that all of it was is said last of all. Raises DataLoss, FailedPrecondition (somebody uses them)."""
    try:
        found = NvmFiles(folder, owner, "")._read_record()
        if found is None or found["owner"] != owner or not found["saved"] or found["synced"]:
            return
        files = NvmFiles(folder, owner, str(found["boot_id"]))
        lock = files._lock()  # the machine's own ends with the last of its processes
    except OSError as error:
        raise DataLoss(f"the NVM files in {folder} cannot be written back: {error.strerror}") from error
    try:
        files._sync(last=True)
    finally:
        os.close(lock)


def discard(folder: Path, owner: str) -> None:
    """Erase them, if they are this owner's, who does not use them any more. Others are left alone."""
    files = NvmFiles(folder, owner, "")
    try:
        record = files._read_record()
    except EverramError:
        return
    if record is not None and record["owner"] == owner:
        shutil.rmtree(folder)
