"""`environment.Memory`: memfds that the machine keeps for this host and its successors, or files of the same use."""

from __future__ import annotations

import mmap
import os

from everram.runtime.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from everram.runtime.formats.swap_table import MEMORY_PREFIX
from everram.runtime.machine.fdstore import is_name
from everram.runtime.machine.protocol import NO_MEMORY
from everram.runtime.memory import memfd
from everram.runtime.memory.absent import Lack
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.mapped import Mapped
from everram.runtime.production.bringing import BringingMapped
from everram.runtime.production.machine import SystemMachine
from everram.runtime.production.nvm_files import NvmFiles


class KeptMemory:
    """Capacity counts what is promised: objects are sparse, but each may be filled up to its size. A resizable one
    counts as it is: another may have lengthened it by its descriptor."""

    def __init__(self, machine: SystemMachine, capacity_bytes: int, files: NvmFiles | None = None) -> None:
        """`files`: where what outlives the machine lies."""
        self.capacity_bytes = capacity_bytes
        self._files = files
        self._machine = machine
        self._objects = {
            name: KeptObject(name, fd) for name, fd in machine.kept.items() if not name.startswith(NO_MEMORY)
        }
        self._resizable = {name: kept for name, kept in self._objects.items() if kept.resizable}
        self._promised_bytes = sum(
            kept.size_bytes for name, kept in self._objects.items() if not kept.resizable and _is_promised(name)
        )

    def names(self) -> list[str]:
        return sorted(self._objects)

    def open(self, name: str) -> KeptObject:
        if name not in self._objects:
            raise NotFound(f"the machine keeps no memory named {name}")
        return self._objects[name]

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> KeptObject:
        if not is_name(name) or name.startswith(NO_MEMORY):
            raise InvalidArgument(f"{name!r} cannot name a memory")
        if size_bytes < 0 or not (size_bytes or resizable):
            raise InvalidArgument(f"a memory of {size_bytes} bytes cannot be made")
        if name in self._machine.kept:
            raise AlreadyExists(f"the machine keeps a memory named {name} already")
        promised_bytes = size_bytes if _is_promised(name) else 0
        self._check_room(promised_bytes)
        # Counted before the machine answers: somebody else may create meanwhile.
        self._promised_bytes += promised_bytes
        try:
            make = self._files.create if self._files is not None and self._files.holds(name) else memfd.create
            fd = make(name, size_bytes, resizable=resizable)
            await self._machine.keep(name, fd)
        except BaseException:
            self._promised_bytes -= promised_bytes
            raise
        made = self._objects[name] = KeptObject(name, fd)
        if resizable:
            self._resizable[name] = made
            self._promised_bytes -= promised_bytes
        return made

    def resize(self, name: str, size_bytes: int) -> None:
        kept = self.open(name)
        if not kept.resizable or size_bytes < 0:
            raise InvalidArgument(f"memory {name} cannot be made {size_bytes} bytes long")
        self._check_room(size_bytes - kept.size_bytes)
        kept.resize(size_bytes)

    def _check_room(self, more_bytes: int) -> None:
        left = self.capacity_bytes - self._promised_bytes - sum(kept.size_bytes for kept in self._resizable.values())
        if more_bytes > 0 and more_bytes > left:
            raise ResourceExhausted(f"the machine has {left} bytes of memory left, not {more_bytes}; free some first")

    async def remove(self, name: str) -> None:
        removed = self._objects.pop(name, None)
        if removed is not None:
            removed.let_go()
            if self._files is not None and self._files.holds(name):
                self._files.remove(name)
            await self._machine.drop(name)
            if self._resizable.pop(name, None) is None:
                self._promised_bytes -= removed.size_bytes if _is_promised(name) else 0


def _is_promised(name: str) -> bool:
    """Guests' volatile memory may be more than there is: the memory scheduler counts what they have."""
    return not name.startswith(MEMORY_PREFIX)


class KeptObject:
    """`environment.MemoryObject`, and `absent.LackingObject`: every access of this process brings first what lacks, so
    that only guests, whose faults are served, see it come. Mappings of a removed object stay valid; everything else
    raises OSError."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.resizable = memfd.is_resizable(fd)
        found = os.fstat(fd)
        self.identity = found.st_ino
        self._fixed_bytes = found.st_size
        self._fd = fd
        self.lack: Lack | None = None
        self._looked_at: Mapped | None = None

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size if self.resizable else self._fixed_bytes

    @property
    def descriptor(self) -> int:
        """Still this object's own."""
        self._bring(0, self.size_bytes)
        return self._fd

    @property
    def inode(self) -> int:
        """Tells it from every other object that has or had its name."""
        return os.fstat(self._fd).st_ino

    def map(self) -> Mapped:
        size_bytes = self.size_bytes
        if not size_bytes:
            raise InvalidArgument(f"memory {self.name} is empty: there is nothing to map")
        try:
            return Mapped(self._fd, size_bytes) if self.lack is None else self._map_lacking(size_bytes)
        except (OSError, OverflowError) as error:
            raise ResourceExhausted(f"memory {self.name} cannot be mapped: {error}") from error

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return os.pread(self._fd, length, offset)

    def read_into(self, offset: int, target: memoryview) -> None:
        self._check(offset, len(target))
        self.read_as_it_is(offset, target)

    def read_as_it_is(self, offset: int, target: memoryview) -> None:
        """`read_into` without bringing anything, in any thread: zeros for what is absent."""
        while target:
            read = os.preadv(self._fd, [target], offset)
            offset += read
            target = target[read:]

    def view(self, offset: int, length: int) -> memoryview:
        self._check(offset, length)
        try:
            # All at once: a fault for each page would cost more than a copy.
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            return memoryview(mmap.mmap(self._fd, length, flags, mmap.PROT_READ, offset=offset))
        except OSError as error:
            raise ResourceExhausted(f"memory {self.name} cannot be mapped: {error}") from error

    def window(self) -> memoryview:
        try:
            return memoryview(mmap.mmap(self._fd, self.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
        except (OSError, ValueError) as error:
            raise ResourceExhausted(f"memory {self.name} cannot be mapped: {error}") from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Raises ResourceExhausted where the computer itself has no memory left."""
        self._check(offset, memoryview(data).nbytes)
        self.fill(offset, data)

    def fill(self, offset: int, data: bytes | memoryview) -> None:
        """`write`, without bringing what lacks there."""
        view = memoryview(data).cast("B")
        while view:
            try:
                written = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise ResourceExhausted(f"memory {self.name} cannot be written: {error.strerror}") from error
            offset += written
            view = view[written:]

    def resize(self, size_bytes: int) -> None:
        """For `KeptMemory`, which counts. Raises ResourceExhausted."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except (OSError, OverflowError) as error:
            raise ResourceExhausted(f"memory {self.name} cannot be {size_bytes} bytes long: {error}") from error

    def extents(self, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        end = self.size_bytes if end is None else min(end, self.size_bytes)
        found = memfd.extents(self._fd, start, end)
        return found if self.lack is None else _joined(found + self.lack.extents(start, end))

    @property
    def present_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * 512

    def present_pages(self) -> bytes:
        if self._looked_at is None:
            self._looked_at = self.map()  # never read nor written: that would make pages
        return self._looked_at.present(0, self._fixed_bytes)

    def let_go(self) -> None:
        """It was removed: what this process has mapped of it would keep its memory."""
        if self._looked_at is not None:
            self._looked_at.close()
            self._looked_at = None

    def is_present(self, offset: int) -> bool:
        return memfd.is_present(self._fd, offset)

    def punch(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if offset % PAGE_BYTES or length % PAGE_BYTES:
            raise IndexError("a hole is made of whole pages")
        if self.lack is not None:  # a hole would be taken for a page that lacks
            self.fill(offset, bytes(length))
        elif length:
            memfd.punch(self._fd, offset, length)

    def bring(self, offset: int, length: int) -> None:
        """What is absent there and can be had; what is lost stays absent. Raises ResourceExhausted."""
        if self.lack is not None:
            self.lack.bring(offset, length, leniently=True)

    def _map_lacking(self, size_bytes: int) -> BringingMapped:
        return BringingMapped(self._fd, size_bytes, self._bring)

    def _bring(self, offset: int, length: int) -> None:
        if self.lack is not None:
            self.lack.bring(offset, length)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise IndexError(f"{length} bytes at {offset} are not inside {self.size_bytes}")
        self._bring(offset, length)


def _joined(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, neighbours as one."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(extents):
        if joined and sum(joined[-1]) >= offset:
            joined[-1] = (joined[-1][0], max(sum(joined[-1]), offset + length) - joined[-1][0])
        else:
            joined.append((offset, length))
    return joined
