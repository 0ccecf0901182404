"""Old content that a guest saves itself, where nobody traps its stores: one memory object for each logged region.

    old = OldPages.open(mapping)
    old.begin(epoch)                        # the guest: from now on it saves before it stores
    old.save(region_mapping, offset, length)      # in a commit, before its record is in the log. Raises OldPagesFull

    old.arm()                               # its host, while the guest stands still: every page is needed once more
    for page, content in old.entries():     # what was there before the guest stored to a page
        ...
        old.taken()                         # the first of them is in the host's own hands

A mark for each page says that its content needs no saving; a snapshot takes all marks away. The guest copies a page
without a mark into the next place of a ring, publishes that, sets the mark, and only then commits what it stores: so
the entry is there before any byte of the page changes. The host takes entries out at its pace; while the ring is full,
commits of the guest wait before anything is written.

Saving too much does no harm, for the host asks who needs it. So each crash is mended by doing things again: a guest
that died between entry and mark saves the same content twice, a host that died between keeping an entry and taking it
out keeps it twice. But an entry belongs to the snapshots that were there when it was published: a host takes all of
them out before it takes the next snapshot. docs/formats.md, "Old pages", has the layout. Standard library only: guests
import this module.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from everram.runtime.errors import DataLoss, FailedPrecondition
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

PREFIX = "old."
"""Of the memory objects' names; a guest_id, a dot and the region's name follow."""
MAGIC = b"EVROLDPG"
MAJOR, MINOR = 1, 0
_HEADER = struct.Struct("<8sHHIQ")
"""Magic, major, minor, slots of the ring, pages of the region; its CRC-32 follows."""
_CHECKSUM = struct.Struct("<I")
ARMED, SAVER, TAIL, HEAD = 64, 128, 192, 256
"""Words, each in a line of its own: whether any snapshot may need anything; the epoch of the guest that saves; entries
ever published; entries ever taken out."""
MARKS = PAGE_BYTES
_ENTRY = struct.Struct("<QQ")
"""Page, CRC-32 of its content, begun with the page's number."""
SLOTS_MAX = 128
"""Half a megabyte: a host that looks every few milliseconds keeps up with a guest that scatters its stores."""
_SAVED = b"\1"


class OldPagesFull(Exception):
    """The host has not yet taken out what was saved before. Nothing was lost: try again later."""


def old_pages_name(guest_id: str, region: str) -> str:
    """Name of the memory object of a region's old pages."""
    return f"{PREFIX}{guest_id}.{region}"


class OldPages:
    """See the module. One guest saves, one host takes out."""

    def __init__(self, mapping: Mapping, pages: int, slots: int) -> None:
        self._mapping = mapping
        self.pages, self.slots = pages, slots
        self._entries_at = MARKS + _whole_pages(pages)
        self._contents_at = self._entries_at + _whole_pages(slots * _ENTRY.size)

    @staticmethod
    def total_bytes(pages: int) -> int:
        """Size of the memory object for a region of so many pages."""
        slots = min(pages, SLOTS_MAX)
        return MARKS + _whole_pages(pages) + _whole_pages(slots * _ENTRY.size) + slots * PAGE_BYTES

    @staticmethod
    def format(mapping: Mapping, pages: int, *, armed: bool) -> OldPages:
        """In zeroed memory. `armed`: the region may have snapshots."""
        slots = min(pages, SLOTS_MAX)
        mapping.publish_u64(ARMED, int(armed))
        header = _HEADER.pack(MAGIC, MAJOR, MINOR, slots, pages)
        mapping.persist(0, header + _CHECKSUM.pack(zlib.crc32(header)))
        return OldPages(mapping, pages, slots)

    @staticmethod
    def open(mapping: Mapping) -> OldPages:
        """Raises DataLoss for a damaged header, FailedPrecondition for one of a later version."""
        if mapping.size_bytes < MARKS:
            raise DataLoss(f"old pages: {mapping.size_bytes} bytes are too few for their header")
        header = mapping.load(0, _HEADER.size)
        magic, major, minor, slots, pages = _HEADER.unpack(header)
        if magic != MAGIC:
            raise DataLoss(f"old pages: {magic!r} at offset 0 is not their magic {MAGIC!r}")
        if _CHECKSUM.unpack(mapping.load(_HEADER.size, _CHECKSUM.size)) != (zlib.crc32(header),):
            raise DataLoss("old pages: the header at offset 0 does not match its checksum")
        if major > MAJOR:
            raise FailedPrecondition(
                f"old pages: written in version {major}.{minor}, this everram reads {MAJOR}.x: use the later one"
            )
        made = OldPages(mapping, pages, slots)
        if not slots or made._contents_at + slots * PAGE_BYTES > mapping.size_bytes:
            raise DataLoss(f"old pages: {slots} places do not fit into their {mapping.size_bytes} bytes")
        return made

    def close(self) -> None:
        self._mapping.close()

    # -- the guest

    def begin(self, epoch: int) -> None:
        """The incarnation of this epoch saves before it stores, whatever it commits from now on."""
        self._mapping.publish_u64(SAVER, epoch)

    def save(self, region: Mapping, offset: int, length: int) -> None:
        """What these bytes' pages hold, where a snapshot may need it. Raises OldPagesFull; what was saved by then need
        not be saved again."""
        mapping = self._mapping
        if not length or not mapping.load_u64(ARMED):
            return
        first, last = offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES
        for nth, mark in enumerate(mapping.load(MARKS + first, last - first + 1)):
            if not mark:
                self._save_page(region, first + nth)

    def _save_page(self, region: Mapping, page: int) -> None:
        mapping = self._mapping
        tail = mapping.load_u64(TAIL)
        if tail - mapping.load_u64(HEAD) >= self.slots:
            raise OldPagesFull(f"what snapshots need of {self.slots} pages has not been taken over by the host yet")
        start, slot = page * PAGE_BYTES, tail % self.slots
        content = region.load(start, min(PAGE_BYTES, region.size_bytes - start)).ljust(PAGE_BYTES, b"\0")
        mapping.persist(self._contents_at + slot * PAGE_BYTES, content)
        mapping.persist(self._entries_at + slot * _ENTRY.size, _ENTRY.pack(page, zlib.crc32(content, page)))
        mapping.publish_u64(TAIL, tail + 1)
        mapping.persist(MARKS + page, _SAVED)

    # -- its host

    @property
    def saver(self) -> int:
        """The epoch of the latest incarnation that saves."""
        return self._mapping.load_u64(SAVER)

    @property
    def armed(self) -> bool:
        return bool(self._mapping.load_u64(ARMED))

    def arm(self) -> None:
        """Each page's content is needed before its next store. No guest may be in the midst of a commit."""
        self._mapping.persist(MARKS, bytes(self.pages))
        self._mapping.publish_u64(ARMED, 1)

    def disarm(self) -> None:
        """There is no snapshot: nothing that was saved is needed."""
        self._mapping.publish_u64(ARMED, 0)
        self._mapping.publish_u64(HEAD, self._mapping.load_u64(TAIL))

    @property
    def is_pending(self) -> bool:
        """Whether there are entries, right or wrong."""
        return self._mapping.load_u64(TAIL) != self._mapping.load_u64(HEAD)

    @property
    def pending(self) -> int:
        """How many entries are not taken out. Raises DataLoss."""
        tail, head = self._mapping.load_u64(TAIL), self._mapping.load_u64(HEAD)
        if not 0 <= tail - head <= self.slots:
            raise DataLoss(f"old pages: {tail} entries were published and {head} taken out, which cannot be")
        return tail - head

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """(page, content) of those that are there now, oldest first. Raises DataLoss."""
        head = self._mapping.load_u64(HEAD)
        for nth in range(self.pending):
            yield self._entry(head + nth)

    def taken(self) -> None:
        """The oldest one is not needed here any more."""
        self._mapping.publish_u64(HEAD, self._mapping.load_u64(HEAD) + 1)

    def find(self, page: int) -> bytes | None:
        """What the page held when those snapshots were taken that have it in common with the region still; None: what
        is there now. To be asked after the page was read. Raises DataLoss."""
        head = self._mapping.load_u64(HEAD)
        for nth in range(self.pending):
            at = self._entries_at + (head + nth) % self.slots * _ENTRY.size
            if self._mapping.load_u64(at) == page:
                return self._entry(head + nth)[1]
        return None

    def _entry(self, number: int) -> tuple[int, bytes]:
        slot = number % self.slots
        page, checksum = _ENTRY.unpack(self._mapping.load(self._entries_at + slot * _ENTRY.size, _ENTRY.size))
        content = self._mapping.load(self._contents_at + slot * PAGE_BYTES, PAGE_BYTES)
        if page >= self.pages or checksum != zlib.crc32(content, page):
            raise DataLoss(f"old pages: what its guest saved of page {page} does not match its checksum")
        return page, content


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
