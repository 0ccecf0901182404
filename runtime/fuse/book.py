"""The book of a mount: by which numbers the kernel knows nodes and open files, in memory that outlives the server.

    book = Book.format(mapping)               # a new mount
    book = Book.open(mapping)                 # a successor, on the same memory
    node = book.know(key)                     # one more answer to the kernel that names this node
    handle = book.hold(node, flags, mode)

The kernel goes on using both kinds of numbers after a server was killed, so its successor has to know what they mean.
Besides, a node that is open for passthrough has a backing id which each further open must repeat, or fail.

The server alone writes here, and may be killed between any two stores. So the word that makes a slot count is stored
last when it is filled and first when it is emptied, and an answer is written down before it is given: what can remain
of a death is one look-up or one open file too many, and with it a slot that stays in use until the node is forgotten
or the mount ends. Slots are used again, numbers are not: each use of a slot has a serial number. docs/formats.md has
the layout.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from everram.runtime.errors import DataLoss
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import KEY_BYTES_MAX, ROOT_KEY
from everram.runtime.fuse.protocol import ROOT_NODE
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MAGIC = b"EVRMFUSE"
VERSION = 1

HANDLES_MAX = 1 << 16
"""Open files of a mount; ENFILE beyond. A program may have 1024 by default."""
NODES_MAX = 1 << 20
"""Names that the kernel holds at a time; ENFILE beyond. It drops them when its memory gets short."""
HANDLE_BYTES = 32
NODE_BYTES = 256
HANDLES_OFFSET = PAGE_BYTES
NODES_OFFSET = HANDLES_OFFSET + HANDLES_MAX * HANDLE_BYTES
BOOK_BYTES = NODES_OFFSET + NODES_MAX * NODE_BYTES
"""Sparse: a page is used when one of its slots is."""

_STATIC = struct.Struct("<8sIIII")
"""magic, version, nodes, handles, reserved."""
READY_AT, MINOR_AT, FLAGS_AT, NODES_USED_AT, HANDLES_USED_AT = 64, 72, 80, 88, 96

_LOOKUPS, _NUMBER, _BACKING, _KEY_LENGTH = 0, 8, 16, 20
_KEY = NODE_BYTES - KEY_BYTES_MAX
_HANDLE_NUMBER, _HANDLE_NODE, _HANDLE_FLAGS, _HANDLE_MODE = 0, 8, 16, 24
_U32 = struct.Struct("<I")
SLOT_BITS = 32

MODE_FILE, MODE_PASSTHROUGH, MODE_FOLDER = 0, 1, 2


@dataclass(slots=True)
class Node:
    """A node that the kernel knows."""

    number: int
    key: str
    handles: set[int]
    """Open files on it (not folders)."""
    backing: int
    """The kernel's id of the descriptor that it reads and writes in our place; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Held:
    """An open file or folder."""

    number: int
    node: int
    flags: int
    """Of open(2)."""
    mode: int


class Book:
    def __init__(self, mapping: Mapping) -> None:
        """Use `format` or `open`."""
        self._memory = mapping
        self._nodes: dict[int, Node] = {}
        self._by_key: dict[str, Node] = {}
        self._held: dict[int, Held] = {}
        self._free_nodes: list[int] = []
        self._free_handles: list[int] = []

    @classmethod
    def format(cls, mapping: Mapping) -> Book:
        """`mapping` is of BOOK_BYTES zeros."""
        mapping.store(0, _STATIC.pack(MAGIC, VERSION, NODES_MAX, HANDLES_MAX, 0))
        mapping.store_u64(HANDLES_USED_AT, 1)  # slot 0 of both is not used: 0 means nothing
        mapping.store_u64(NODES_USED_AT, 1)
        book = cls(mapping)
        book.know(ROOT_KEY)
        return book

    @classmethod
    def open(cls, mapping: Mapping) -> Book:
        """Raises DataLoss if it is no book, or not one of this version."""
        magic, version, nodes, handles, _ = _STATIC.unpack(mapping.load(0, _STATIC.size))
        if magic != MAGIC:
            raise DataLoss("what was kept for this mount is not its book: unmount it and mount it again")
        if (version, nodes, handles) != (VERSION, NODES_MAX, HANDLES_MAX):
            raise DataLoss(
                f"the mount's book is of version {version}, and this everram reads version {VERSION}: "
                "unmount it and mount it again"
            )
        book = cls(mapping)
        book._read_nodes()
        book._read_handles()
        return book

    # -- what the kernel and the first server agreed on ---------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether INIT was answered, or is about to be."""
        return self._memory.load_u64(READY_AT) != 0

    @property
    def init_flags(self) -> int:
        return self._memory.load_u64(FLAGS_AT)

    def agree(self, minor: int, init_flags: int) -> None:
        self._memory.store_u64(MINOR_AT, minor)
        self._memory.store_u64(FLAGS_AT, init_flags)
        self._memory.publish_u64(READY_AT, 1)

    # -- nodes --------------------------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """Raises FuseError(ESTALE)."""
        found = self._nodes.get(number)
        if found is None:
            raise FuseError(errno.ESTALE)
        return found

    def nodes(self) -> Iterator[Node]:
        yield from list(self._nodes.values())

    def know(self, key: str) -> Node:
        """One more answer names this node. Raises FuseError: ENFILE, ENAMETOOLONG."""
        node = self._by_key.get(key)
        if node is None:
            return self._enter(key)
        at = self._node_at(node.number)
        self._memory.store_u64(at + _LOOKUPS, self._memory.load_u64(at + _LOOKUPS) + 1)
        return node

    def _enter(self, key: str) -> Node:
        encoded = key.encode(errors="surrogateescape")
        if len(encoded) > KEY_BYTES_MAX:
            raise FuseError(errno.ENAMETOOLONG, f"the key of a node has {len(encoded)} bytes, more than any may have")
        slot = self._take(self._free_nodes, NODES_USED_AT, NODES_MAX)
        at = NODES_OFFSET + slot * NODE_BYTES
        number = self._next_number(slot, at + _NUMBER)
        self._memory.store_u64(at + _NUMBER, number)
        self._memory.store(at + _BACKING, bytes(4) + _U32.pack(len(encoded)) + encoded)
        self._memory.publish_u64(at + _LOOKUPS, 1)
        return self._add(Node(number, key, set(), 0))

    def _add(self, node: Node) -> Node:
        self._nodes[node.number] = node
        self._by_key[node.key] = node
        return node

    def forget(self, number: int, lookups: int) -> Node | None:
        """The kernel gives back so many answers. Returns the node if that was the last one, and None otherwise."""
        node = self._nodes.get(number)
        if node is None or number == ROOT_NODE:
            return None
        at = self._node_at(number)
        left = self._memory.load_u64(at + _LOOKUPS) - lookups
        if left > 0:
            self._memory.store_u64(at + _LOOKUPS, left)
            return None
        for handle in sorted(node.handles):
            self.let_go(handle)
        self._memory.publish_u64(at + _LOOKUPS, 0)
        del self._nodes[number], self._by_key[node.key]
        self._free_nodes.append(number & (1 << SLOT_BITS) - 1)
        return node

    def set_backing(self, node: Node, backing: int) -> None:
        node.backing = backing
        self._memory.store(self._node_at(node.number) + _BACKING, _U32.pack(backing))

    # -- open files ---------------------------------------------------------------------------------------------

    def hold(self, node: Node, flags: int, mode: int) -> Held:
        """Raises FuseError: ENFILE, ESTALE if it was forgotten meanwhile."""
        self.node(node.number)
        slot = self._take(self._free_handles, HANDLES_USED_AT, HANDLES_MAX)
        at = HANDLES_OFFSET + slot * HANDLE_BYTES
        # The number stays when a slot is emptied (its node becomes 0), so that the next one differs.
        number = self._next_number(slot, at + _HANDLE_NUMBER)
        self._memory.store_u64(at + _HANDLE_NUMBER, number)
        self._memory.store_u64(at + _HANDLE_FLAGS, flags)
        self._memory.store_u64(at + _HANDLE_MODE, mode)
        self._memory.publish_u64(at + _HANDLE_NODE, node.number)
        return self._add_held(Held(number, node.number, flags, mode))

    def _add_held(self, held: Held) -> Held:
        self._held[held.number] = held
        if held.mode != MODE_FOLDER:
            self._nodes[held.node].handles.add(held.number)
        return held

    def held(self, number: int) -> Held:
        """Raises FuseError(EBADF)."""
        found = self._held.get(number)
        if found is None:
            raise FuseError(errno.EBADF)
        return found

    def let_go(self, number: int) -> Node | None:
        """Its node; None if this was not open, or the node is forgotten."""
        held = self._held.pop(number, None)
        if held is None:
            return None
        slot = number & (1 << SLOT_BITS) - 1
        self._memory.publish_u64(HANDLES_OFFSET + slot * HANDLE_BYTES + _HANDLE_NODE, 0)
        self._free_handles.append(slot)
        node = self._nodes.get(held.node)
        if node is not None:
            node.handles.discard(number)
        return node

    # -- slots --------------------------------------------------------------------------------------------------

    def _take(self, free: list[int], used_at: int, slots: int) -> int:
        if free:
            return free.pop()
        used = self._memory.load_u64(used_at)
        if used >= slots:
            raise FuseError(errno.ENFILE)
        self._memory.store_u64(used_at, used + 1)
        return used

    def _next_number(self, slot: int, at: int) -> int:
        """The first use of slot 1 has number 1: the root's."""
        before = self._memory.load_u64(at)
        return (((before >> SLOT_BITS) + 1) << SLOT_BITS | slot) if before else slot

    def _node_at(self, number: int) -> int:
        return NODES_OFFSET + (number & (1 << SLOT_BITS) - 1) * NODE_BYTES

    def _read_nodes(self) -> None:
        for slot in range(1, self._used(NODES_USED_AT, NODES_MAX)):
            at = NODES_OFFSET + slot * NODE_BYTES
            if not self._memory.load_u64(at + _LOOKUPS):
                self._free_nodes.append(slot)
                continue
            backing, length = struct.unpack("<II", self._memory.load(at + _BACKING, 8))
            if length > KEY_BYTES_MAX:
                raise DataLoss("the mount's book is damaged: unmount it and mount it again")
            key = self._memory.load(at + _KEY, length).decode(errors="surrogateescape")
            self._add(Node(self._memory.load_u64(at + _NUMBER), key, set(), backing))

    def _read_handles(self) -> None:
        for slot in range(1, self._used(HANDLES_USED_AT, HANDLES_MAX)):
            at = HANDLES_OFFSET + slot * HANDLE_BYTES
            number, node, flags, mode = struct.unpack("<QQQQ", self._memory.load(at, HANDLE_BYTES))
            if node in self._nodes:
                self._add_held(Held(number, node, flags, mode))
            else:
                self._free_handles.append(slot)

    def _used(self, at: int, slots: int) -> int:
        used = self._memory.load_u64(at)
        if not 1 <= used <= slots:
            raise DataLoss("the mount's book is damaged: unmount it and mount it again")
        return used
