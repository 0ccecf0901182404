"""The files that this host owns: memory objects of the machine, registered for one-sided access when first asked for.

    owned = OwnedFiles(environment.memory, environment.channel, memory_id, limit_bytes)
    await owned.make(key)
    attachment = owned.attach(key)              # its rkey and size
    owned.resize(key, 4096, rm.AT_LEAST)
    await owned.drop(key)

A file keeps its rkey while it grows. When it is shortened, or goes, its region is deregistered first: whoever holds the
old rkey gets an error, asks again, and learns the new one or that the file is gone.
"""

from __future__ import annotations

import asyncio

from everram.actors.remote_memory.refusals import no_room, stale
from everram.runtime.channel.contract import Access, Channel, MemoryRegion
from everram.runtime.contracts import remote_memory_pb2 as rm
from everram.runtime.coordination.file_directory import id_of_memory, memory_name
from everram.runtime.environment import Memory, MemoryObject
from everram.runtime.errors import AlreadyExists, ResourceExhausted, Unavailable
from everram.runtime.sizes import size_text

FILES_MAX = 256
"""Each is a descriptor in the machine, whose usual limit is 1024 and who has those of guests and regions, too."""
BOTH = Access.REMOTE_READ | Access.REMOTE_WRITE


class OwnedFiles:
    """See the module."""

    def __init__(self, memory: Memory, channel: Channel, memory_id: str, limit_bytes: int) -> None:
        self.memory_id = memory_id
        self.limit_bytes = limit_bytes
        self._memory = memory
        self._channel = channel
        self._files = {name for name in memory.names() if id_of_memory(name)}  # names of memory objects
        self._regions: dict[str, MemoryRegion] = {}  # by name: those that are registered
        self._open = asyncio.Event()
        self._open.set()

    @property
    def count(self) -> int:
        return len(self._files)

    @property
    def size_bytes(self) -> int:
        return sum(self._memory.open(name).size_bytes for name in self._files)

    def ids(self) -> list[str]:
        return sorted(id_of_memory(name) for name in self._files)

    def quiesce(self, on: bool) -> None:
        """While memory is saved: what was answered for then would not be in the image. Peers are refused, and ask."""
        if on:
            self._open.clear()
            self.close()
        else:
            self._open.set()

    @property
    def saving(self) -> bool:
        return not self._open.is_set()

    async def until_saved(self) -> None:
        """Until memory is not being saved any more. Where the kernel writes by itself (passthrough) nobody is refused,
        and what is written meanwhile may be missing in the image: nobody is told before that it is kept."""
        await self._open.wait()

    def _check_open(self) -> None:
        """Raises Unavailable."""
        if self.saving:
            raise Unavailable("the memory of this host is being saved: try again when it is back")

    def close(self) -> None:
        for region in self._regions.values():
            region.deregister()
        self._regions.clear()

    async def make(self, key: rm.FileKey) -> None:
        """Raises FailedPrecondition for another memory, ResourceExhausted."""
        self._check_open()
        self._check_memory(key)
        name = memory_name(key.id, persistent=key.persistent)
        if name in self._files:
            return
        if len(self._files) >= FILES_MAX:
            raise no_room(f"this host keeps {FILES_MAX} files already: remove some, or name another host")
        try:
            await self._memory.create(name, 0, resizable=True)
        except AlreadyExists:
            pass  # asked twice at once
        self._files.add(name)

    def attach(self, key: rm.FileKey) -> rm.Attachment:
        """Raises FailedPrecondition if the file is gone, ResourceExhausted."""
        name = self._name(key)
        region = self._regions.get(name)
        if region is not None and region.rkey == key.refused:
            self._deregister(name)  # the network was cut meanwhile, which revokes everything
        if name not in self._regions:
            self._regions[name] = self._channel.register(name, 0, 0, BOTH)
        return rm.Attachment(rkey=self._regions[name].rkey, size_bytes=self._memory.open(name).size_bytes)

    def open(self, key: rm.FileKey) -> MemoryObject:
        """For users on this host. Raises FailedPrecondition if the file is gone."""
        return self._memory.open(self._name(key))

    def resize(self, key: rm.FileKey, size_bytes: int, kind: rm.ResizeKind) -> int:
        """The size before. Raises FailedPrecondition if the file is gone, ResourceExhausted."""
        name = self._name(key)
        before = self._memory.open(name).size_bytes
        wanted = before + size_bytes if kind == rm.BY else size_bytes
        if kind == rm.AT_LEAST:
            wanted = max(wanted, before)
        if wanted > before:
            self._check_room(wanted - before)
        elif wanted < before:
            self._deregister(name)
        try:
            self._memory.resize(name, wanted)
        except ResourceExhausted as error:
            raise no_room(error.message) from error
        return before

    async def drop(self, file_id: str) -> None:
        """Raises Unavailable; what was dropped would come back with the image."""
        self._check_open()
        for persistent in (False, True):
            name = memory_name(file_id, persistent=persistent)
            if name in self._files:
                self._files.discard(name)
                self._deregister(name)
                await self._memory.remove(name)

    def _name(self, key: rm.FileKey) -> str:
        self._check_open()
        self._check_memory(key)
        for persistent in (key.persistent, not key.persistent):
            name = memory_name(key.id, persistent=persistent)
            if name in self._files:
                return name
        raise stale(key.id, "it was removed, or was volatile and this memory was saved and restored")

    def _check_memory(self, key: rm.FileKey) -> None:
        if key.memory_id != self.memory_id:
            raise stale(key.id, "the memory that they were in was lost")

    def _check_room(self, more_bytes: int) -> None:
        left = self.limit_bytes - self.size_bytes
        if more_bytes > left:
            raise no_room(
                f"this host has {size_text(max(0, left))} left of {size_text(self.limit_bytes)} for files, not "
                f"{size_text(more_bytes)}"
            )

    def _deregister(self, name: str) -> None:
        region = self._regions.pop(name, None)
        if region is not None:
            region.deregister()
