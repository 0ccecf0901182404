"""`/.vmemfs` of a mount: what this host would leave to its successor, to be read only.

    /.vmemfs/superblock.json             versions, history of hosts, and every file with its extents
    /.vmemfs/guests/GUEST_ID/log         the files of VMemFS, byte by byte: logs, regions, page tables, devices
    /.vmemfs/devices/nvm

The bytes are those of the memory objects as they are at that moment, while guests and this host go on writing them.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict

from everram.actors.remote_memory.views import View, folder
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.contracts.vmemfs_pb2 import FileRecord, VMemFSStatus
from everram.runtime.environment import Memory
from everram.runtime.errors import NotFound
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Attributes, Entry, Kind
from everram.runtime.memory.contract import PAGE_BYTES

VMEMFS, SUPERBLOCK = ".vmemfs", "superblock.json"


@dataclass(frozen=True, slots=True)
class Text:
    """`ViewedFile` of what was written down when it was opened."""

    content: bytes

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


@dataclass(frozen=True, slots=True)
class Pages:
    """`ViewedFile` of a file of VMemFS."""

    memory: Memory
    record: FileRecord

    def read(self, offset: int, size: int) -> bytes:
        """Raises FuseError(ESTALE) once it is gone from this host."""
        end = min(offset + size, self.record.size_bytes)
        pieces = []
        for extent in self.record.extents:
            first, last = extent.page * PAGE_BYTES, (extent.page + extent.pages) * PAGE_BYTES
            begin, stop = max(offset, first), min(end, last)
            if begin < stop:
                pieces.append(self._piece(extent.object, extent.object_page * PAGE_BYTES + begin - first, stop - begin))
        return b"".join(pieces)

    def _piece(self, held: str, offset: int, length: int) -> bytes:
        try:
            return self.memory.open(held).read(offset, length)
        except (NotFound, IndexError):
            raise FuseError(errno.ESTALE) from None


class VMemFSFiles(View):
    """`vmemfs` gives the ref to this host's. Keys are paths below the mount."""

    def __init__(self, vmemfs: Callable[[], VMemFSRef], memory: Memory) -> None:
        self._vmemfs, self._memory = vmemfs, memory

    def has(self, key: str) -> bool:
        return key == VMEMFS or key.startswith(f"{VMEMFS}/")

    async def entries(self, key: str) -> Sequence[Entry]:
        status = await self._status()
        names = {file.name for file in status.records} | {SUPERBLOCK}
        prefix = key.removeprefix(VMEMFS).removeprefix("/")
        below = sorted(name.removeprefix(prefix).removeprefix("/") for name in names if _is_below(name, prefix))
        if not below:
            raise FuseError(errno.ENOENT if prefix not in names else errno.ENOTDIR)
        kinds = {name.partition("/")[0]: Kind.FOLDER if "/" in name else Kind.FILE for name in below}
        return [Entry(name, kind, f"{key}/{name}") for name, kind in kinds.items()]

    async def attributes(self, key: str) -> Attributes:
        status = await self._status()
        if key == f"{VMEMFS}/{SUPERBLOCK}":
            return _file(key, len(_text(status)))
        record = _record(status, key)
        if record is not None:
            return _file(key, record.size_bytes)
        if key != VMEMFS and not any(_is_below(file.name, key[len(VMEMFS) + 1 :]) for file in status.records):
            raise FuseError(errno.ENOENT)
        return folder(key)

    async def open(self, key: str) -> Text | Pages:
        status = await self._status()
        if key == f"{VMEMFS}/{SUPERBLOCK}":
            return Text(_text(status))
        record = _record(status, key)
        if record is None:
            raise FuseError(errno.EISDIR if self.has(key) else errno.ENOENT)
        return Pages(self._memory, record)

    async def _status(self) -> VMemFSStatus:
        return await self._vmemfs().status(Empty())


def _is_below(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}/")


def _record(status: VMemFSStatus, key: str) -> FileRecord | None:
    name = key[len(VMEMFS) + 1 :]
    return next((record for record in status.records if record.name == name), None)


def _file(key: str, size_bytes: int) -> Attributes:
    return Attributes(key, Kind.FILE, 0o444, size_bytes=size_bytes, allocated_bytes=size_bytes)


def _text(status: VMemFSStatus) -> bytes:
    return json.dumps(MessageToDict(status, preserving_proto_field_name=True), indent=2).encode() + b"\n"
