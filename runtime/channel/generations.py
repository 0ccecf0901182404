"""The generation table: which of a machine's registered regions are valid, in memory that every peer can read.

    generations = Generations.open(mapping)              # raises ValueError; `Generations.format` makes one
    generation = generations.take(slot)                  # at the owner: registered from now on
    generations.word(slot) == generation                 # at a peer, before and after each access
    generations.revoke(slot)

A word only grows: odd while its slot is registered, even while it is not. A peer that finds another value than the
one it was told must not use what it has mapped. A dying machine's words are all ones (`kill`), and a wiped one's are
zero: nothing is valid then. Standard library only: the machine writes here at its death.
"""

from __future__ import annotations

import struct
import zlib

from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MEMORY_NAME = "channel"
"""Of the memory object; made anew with each machine's memory, never saved."""

MAGIC = b"EVRMCHAN"
MAJOR, MINOR = 1, 0
HEADER_BYTES = PAGE_BYTES
SLOTS = 4096
"""Regions registered at a time: a log and a few arenas for each of some hundred copies. Eight pages of words."""
MEMORY_BYTES = HEADER_BYTES + 8 * SLOTS
DYING = (1 << 64) - 1
REQUIRED_FEATURES_KNOWN = 0

_STATIC = struct.Struct("<8sHHIQQQ")
_STATIC_CRC_AT = 120


class Generations:
    """The table in `mapping`, which may be read-only for whoever only looks."""

    def __init__(self, mapping: Mapping, slots: int) -> None:
        self.mapping = mapping
        self.slots = slots

    @staticmethod
    def format(mapping: Mapping) -> Generations:
        """Make an empty table; the header goes in last."""
        static = _STATIC.pack(MAGIC, MAJOR, MINOR, HEADER_BYTES, SLOTS, 0, 0).ljust(_STATIC_CRC_AT, b"\0")
        mapping.persist(HEADER_BYTES, bytes(8 * SLOTS))
        mapping.persist(0, static + zlib.crc32(static).to_bytes(8, "little"))
        return Generations(mapping, SLOTS)

    @staticmethod
    def open(mapping: Mapping) -> Generations:
        """Raises ValueError for anything but a table of a version and with features that this code knows."""
        if mapping.size_bytes < HEADER_BYTES:
            raise ValueError(f"{mapping.size_bytes} bytes are too few for a generation table")
        static = mapping.load(0, _STATIC_CRC_AT)
        magic, major, minor, header_bytes, slots, required, _ = _STATIC.unpack_from(static)
        if magic != MAGIC or mapping.load_u64(_STATIC_CRC_AT) != zlib.crc32(static):
            raise ValueError("there is no generation table, or its header is damaged")
        if major > MAJOR or required & ~REQUIRED_FEATURES_KNOWN:
            raise ValueError(f"the generation table is of version {major}.{minor}; this everram knows {MAJOR}.{MINOR}")
        if header_bytes != HEADER_BYTES or HEADER_BYTES + 8 * slots > mapping.size_bytes:
            raise ValueError(f"the generation table claims {slots} slots in {mapping.size_bytes} bytes")
        return Generations(mapping, slots)

    @staticmethod
    def offset(slot: int) -> int:
        """Where a slot's word lies in the memory object."""
        return HEADER_BYTES + 8 * slot

    def word(self, slot: int) -> int:
        return self.mapping.load_u64(HEADER_BYTES + 8 * slot)

    def take(self, slot: int) -> int:
        """The generation under which this slot, which is free, is valid from now on. A dying table takes nothing: the
        value it gives back is never valid."""
        word = self.word(slot)
        if word == DYING:
            return 0
        self.mapping.publish_u64(self.offset(slot), word + 1)
        return word + 1

    def revoke(self, slot: int) -> None:
        """Idempotent."""
        word = self.word(slot)
        if word & 1 and word != DYING:
            self.mapping.publish_u64(self.offset(slot), word + 1)

    def revoke_all(self) -> None:
        """What a host process does at its start: nothing that its predecessor registered is valid any more."""
        words = self.mapping.load(HEADER_BYTES, 8 * self.slots)
        for slot, (word,) in enumerate(struct.iter_unpack("<Q", words)):
            if word & 1:
                self.revoke(slot)


def kill(mapping: Mapping) -> None:
    """The machine dies: no word is valid from now on, in whatever state the table is (D16)."""
    for offset in range(HEADER_BYTES, mapping.size_bytes - 7, 8):
        mapping.store_u64(offset, DYING)
