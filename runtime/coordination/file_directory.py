"""The namespace of remote memory: which keys coordination holds for files and folders, and what their values say.

    everram-files/inodes/ID               see below
    everram-files/entries/PARENT_ID/NAME  {"id"}                        a name in a folder
    everram-files/dropped/HOST/ID         {"memory_id"}                 HOST shall give this file's memory back; deleted
                                                                        by HOST once it has
    everram-files/created/HOST/CREATOR/ID {}                            HOST shall unlink the file with its creator

An inode:

    kind        "folder" or "file"
    mode        permission bits
    parent, name                          its one entry; both empty once unlinked
    host, memory_id                       of a file: the memory that it is in
    size        of a file: bytes, as last told by who wrote it (its owner's memory object knows better)
    persistent  of a file: saved and restored with its machine's other memory
    modified_ns since 1970
    creator     "", or whose life ends the file's: "client:HOST:SESSION", "guest:GUEST_ID"
    keeper      the HOST of its `created` key
    holder      "", or once unlinked: the host where it is still open

Ids are 16 hexadecimal digits and never used again; the root's is "1", and it has an inode only once its mode was
changed. A file's memory object is called `file.ID` if it is persistent and `vfile.ID` if not. All that one operation
changes is one transaction, which compares everything that the operation has read.

They lie beside `everram/` and not in it, because every host mirrors that whole and wakes at each change there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from everram.runtime.coordination.api import KeyValue
from everram.runtime.coordination.directory import decode, encode
from everram.runtime.errors import DataLoss

ROOT = b"everram-files/"
INODES, ENTRIES, DROPPED, CREATED = ROOT + b"inodes/", ROOT + b"entries/", ROOT + b"dropped/", ROOT + b"created/"
ROOT_ID = "1"
ROOT_MODE = 0o755
NAME_BYTES_MAX = 255
PERSISTENT_PREFIX, VOLATILE_PREFIX = "file.", "vfile."


def inode_key(node_id: str) -> bytes:
    return INODES + node_id.encode()


def entries_prefix(parent: str) -> bytes:
    return ENTRIES + parent.encode() + b"/"


def entry_key(parent: str, name: str) -> bytes:
    return entries_prefix(parent) + name.encode()


def dropped_prefix(host: str) -> bytes:
    return DROPPED + host.encode() + b"/"


def dropped_key(host: str, node_id: str) -> bytes:
    return dropped_prefix(host) + node_id.encode()


def created_prefix(host: str) -> bytes:
    return CREATED + host.encode() + b"/"


def created_key(host: str, creator: str, node_id: str) -> bytes:
    return created_prefix(host) + creator.encode() + b"/" + node_id.encode()


def memory_name(node_id: str, *, persistent: bool) -> str:
    return (PERSISTENT_PREFIX if persistent else VOLATILE_PREFIX) + node_id


def id_of_memory(name: str) -> str:
    """Of a memory object; empty for one that is no file."""
    prefix, dot, node_id = name.partition(".")
    return node_id if prefix + dot in (PERSISTENT_PREFIX, VOLATILE_PREFIX) else ""


@dataclass(frozen=True, slots=True)
class Inode:
    id: str
    folder: bool
    mode: int
    parent: str = ""
    name: str = ""
    host: str = ""
    memory_id: str = ""
    size: int = 0
    persistent: bool = False
    modified_ns: int = 0
    creator: str = ""
    keeper: str = ""
    holder: str = ""
    raw: Mapping[str, Any] | None = field(default=None, compare=False)
    """The value as it was read: members that this version does not know are written back."""

    @staticmethod
    def read(node_id: str, pair: KeyValue) -> Inode:
        """Raises DataLoss."""
        try:
            raw = decode(pair.value)
            return Inode(
                id=node_id,
                folder={"folder": True, "file": False}[raw["kind"]],
                mode=int(raw["mode"]),
                parent=str(raw.get("parent", "")),
                name=str(raw.get("name", "")),
                host=str(raw.get("host", "")),
                memory_id=str(raw.get("memory_id", "")),
                size=int(raw.get("size", 0)),
                persistent=bool(raw.get("persistent", False)),
                modified_ns=int(raw.get("modified_ns", 0)),
                creator=str(raw.get("creator", "")),
                keeper=str(raw.get("keeper", "")),
                holder=str(raw.get("holder", "")),
                raw=raw,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"the directory's record of node {node_id} cannot be read: {error}") from error

    def value(self) -> bytes:
        known: dict[str, Any] = {
            "kind": "folder" if self.folder else "file",
            "mode": self.mode,
            "parent": self.parent,
            "name": self.name,
            "modified_ns": self.modified_ns,
        }
        if not self.folder:
            known |= {
                "host": self.host,
                "memory_id": self.memory_id,
                "size": self.size,
                "persistent": self.persistent,
                "creator": self.creator,
                "keeper": self.keeper,
                "holder": self.holder,
            }
        return encode({**(self.raw or {}), **known})

    def changed(self, **members: Any) -> Inode:
        return replace(self, **members)

    @property
    def memory(self) -> str:
        """Name of its memory object, at its owner."""
        return memory_name(self.id, persistent=self.persistent)


ROOT_INODE = Inode(ROOT_ID, folder=True, mode=ROOT_MODE)
