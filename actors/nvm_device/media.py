"""The metadata of snapshots: one memory object of pages, with a superblock, a redo log, directories and bitmaps.

    media = Media.format(space)             # or Media.open(space): finishes what a crash left
    page = media.pages.take()               # reserved; write_page(page, ...) before anything refers to it
    change = Change(); media.pages.mark(change, [page]); change.word(...)
    media.commit(change)

Everything else (page tables, virtblock arrays, records) lies in pages that are taken here. Three bitmaps say which
metadata pages, which blocks of the store and which slots of the storage file are taken. The memory object grows as
pages are needed, within what `space` grants. docs/formats.md, "Snapshots", describes every field.
"""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

from everram.actors.nvm_device.bitmap import BITS_PER_PAGE, Bitmap
from everram.actors.nvm_device.redo import WORD_BYTES, Change, RedoLog
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES, Mapping

MAGIC = b"EVRSNAPS"
MAJOR, MINOR = 1, 0
REQUIRED_FEATURES_KNOWN = 0
_STATIC = struct.Struct("<8sHHIQ")
"""Magic, major, minor, page size, required features; its CRC-32 follows."""
APPLIED_AT = 512
NEXT_SEQUENCE_AT = 520
"""The next number of a snapshot; never given twice."""
INTENTS_AT = 528
"""How many entries of the intent pages a purge that is under way has."""

PAGES_DIRECTORY, STORE_DIRECTORY, STORAGE_DIRECTORY, RECORDS_DIRECTORY = 1, 2, 3, 4
"""Pages of 512 words, each the number of a page of bits or of records; 0: none yet."""
INTENTS, INTENT_PAGES = 5, 24
REDO, REDO_PAGES = 29, 16
FIRST = 45
"""The first page that can be taken: the first page of the pages' own bits lies here."""
WORDS_PER_PAGE = PAGE_BYTES // WORD_BYTES
START_PAGES = 64
GROW_PAGES_MIN = 64
"""And at least an eighth of what there is."""
SPARE_PAGES = 8
"""For deletions alone, which give many back, but take one first: so that they can be made where nothing else can."""
STORE_BLOCKS_MAX = WORDS_PER_PAGE * BITS_PER_PAGE
"""64 GiB of old blocks, and as many of purged ones: what one directory page can name."""
INTENT_ENTRIES_MAX = INTENT_PAGES * PAGE_BYTES // 24


class Space(Protocol):
    """The memory object of the metadata."""

    def map(self) -> Mapping: ...

    def grow(self, size_bytes: int) -> Mapping:
        """Mapped anew, so long. Raises ResourceExhausted."""


class Media:
    """See the module."""

    def __init__(self, space: Space, mapping: Mapping, redo: RedoLog) -> None:
        self.mapping = mapping
        self._space = space
        self._redo = redo
        self.pages = Bitmap("page of metadata", 0, lambda n: self._bits_at(PAGES_DIRECTORY, n))
        self.store = Bitmap("block for old content", 0, lambda n: self._bits_at(STORE_DIRECTORY, n))
        self.storage = Bitmap("place on storage", 0, lambda n: self._bits_at(STORAGE_DIRECTORY, n))

    # -- format and open

    @staticmethod
    def format(space: Space) -> Media:
        """Fresh metadata in zeroed memory, or in what a crash has left of this; the magic goes in last."""
        mapping = space.map()
        if mapping.size_bytes < START_PAGES * PAGE_BYTES:
            mapping = space.grow(START_PAGES * PAGE_BYTES)
        taken = (1 << FIRST + 1) - 1
        mapping.persist(FIRST * PAGE_BYTES, taken.to_bytes(PAGE_BYTES, "little"))
        mapping.publish_u64(PAGES_DIRECTORY * PAGE_BYTES, FIRST)
        mapping.publish_u64(NEXT_SEQUENCE_AT, 1)
        static = _STATIC.pack(MAGIC, MAJOR, MINOR, PAGE_BYTES, 0)
        mapping.persist(WORD_BYTES, static[WORD_BYTES:] + zlib.crc32(static).to_bytes(WORD_BYTES, "little"))
        mapping.publish_u64(0, int.from_bytes(MAGIC, "little"))
        return Media.open(space)

    @staticmethod
    def is_blank(mapping: Mapping) -> bool:
        """Whether nothing was ever formatted here to the end."""
        return mapping.size_bytes < START_PAGES * PAGE_BYTES or not mapping.load_u64(0)

    @staticmethod
    def open(space: Space) -> Media:
        """Raises DataLoss for damaged metadata, FailedPrecondition for that of a later everram."""
        mapping = space.map()
        check_superblock(mapping)
        redo = RedoLog.open(mapping, REDO * PAGE_BYTES, REDO_PAGES * PAGE_BYTES, APPLIED_AT)
        media = Media(space, mapping, redo)
        for bitmap, directory in (
            (media.pages, PAGES_DIRECTORY),
            (media.store, STORE_DIRECTORY),
            (media.storage, STORAGE_DIRECTORY),
        ):
            for page in media.directory(directory):
                bitmap.loaded(media.load_page(page))
        media._limit_pages()
        return media

    # -- words and pages

    def load_page(self, page: int) -> bytes:
        """Raises DataLoss for a page that cannot be: a pointer to it is damaged."""
        if not 0 < page < self.mapping.size_bytes // PAGE_BYTES:
            raise DataLoss(f"snapshots: page {page} of the metadata, which has {self.mapping.size_bytes // PAGE_BYTES}")
        return self.mapping.load(page * PAGE_BYTES, PAGE_BYTES)

    def write_page(self, page: int, data: bytes) -> None:
        """The whole of a page that nothing refers to yet."""
        self.mapping.persist(page * PAGE_BYTES, data)

    def word(self, offset: int) -> int:
        return self.mapping.load_u64(offset)

    def commit(self, change: Change) -> None:
        self._redo.commit(change)
        for bitmap in (self.pages, self.store, self.storage):
            bitmap.committed()

    @property
    def change_bytes_max(self) -> int:
        return self._redo.size_bytes

    # -- taking

    def take_page(self, *, spare: bool = False) -> int:
        """A page, reserved; a `spare` one where there is no other. Raises ResourceExhausted."""
        if self.pages.free < 2 + SPARE_PAGES * (not spare):  # a further page of bits takes one itself
            self._add_pages()
        return self.pages.take()

    def take_block(self) -> int:
        """A block of the store, reserved. Raises ResourceExhausted."""
        if self.store.free_now < 1:
            self._add_bits_for(self.store, STORE_DIRECTORY, 1)
        return self.store.take()

    def take_slots(self, count: int) -> list[int]:
        """Slots of the storage file, reserved. Raises ResourceExhausted."""
        self._add_bits_for(self.storage, STORAGE_DIRECTORY, count)
        return self.storage.take_many(count)

    def _add_bits_for(self, bitmap: Bitmap, directory: int, count: int) -> None:
        while bitmap.nameable < bitmap.limit and bitmap.free_now < count:
            self._add_bits(bitmap, directory)

    def _add_pages(self) -> None:
        """Those that are there and have no bits yet; else more memory."""
        if self.mapping.size_bytes // PAGE_BYTES <= self.pages.nameable:
            now = self.mapping.size_bytes // PAGE_BYTES
            self.mapping = self._space.grow((now + max(GROW_PAGES_MIN, now // 8)) * PAGE_BYTES)
            self._redo.moved(self.mapping)
        if self.mapping.size_bytes // PAGE_BYTES > self.pages.nameable:
            self._limit_pages()  # one of the others is needed for the bits
            self._add_bits(self.pages, PAGES_DIRECTORY)
        self._limit_pages()

    def _limit_pages(self) -> None:
        """To those that have bits: nothing else can be marked as taken."""
        self.pages.limit = min(self.mapping.size_bytes // PAGE_BYTES, self.pages.nameable)

    def _add_bits(self, bitmap: Bitmap, directory: int) -> None:
        """One more page of bits. Raises ResourceExhausted."""
        if bitmap.pages >= WORDS_PER_PAGE:
            raise ResourceExhausted(f"no {bitmap.what} is free: the metadata cannot name more")
        # For places on storage it may be a spare one: purging is what makes room on a full device.
        page = self.pages.take() if bitmap is self.pages else self.take_page(spare=bitmap is self.storage)
        self.write_page(page, bytes(PAGE_BYTES))
        change = Change()
        self.pages.mark(change, [page])
        change.word(directory * PAGE_BYTES + bitmap.pages * WORD_BYTES, page)
        self.commit(change)
        bitmap.loaded(bytes(PAGE_BYTES))

    def directory(self, page: int) -> list[int]:
        """The pages that a directory names."""
        words = struct.unpack(f"<{WORDS_PER_PAGE}Q", self.load_page(page))
        return list(words[: words.index(0)] if 0 in words else words)

    def _bits_at(self, directory: int, number: int) -> int:
        return self.word(directory * PAGE_BYTES + number * WORD_BYTES) * PAGE_BYTES


def check_superblock(mapping: Mapping) -> None:
    if mapping.size_bytes < START_PAGES * PAGE_BYTES:
        raise DataLoss(f"snapshots: {mapping.size_bytes} bytes are too few for their metadata")
    static = mapping.load(0, _STATIC.size)
    magic, major, minor, page_bytes, features = _STATIC.unpack(static)
    if magic != MAGIC:
        raise DataLoss(f"snapshots: {magic!r} at offset 0 is not their magic {MAGIC!r}")
    if mapping.load_u64(_STATIC.size) != zlib.crc32(static):
        raise DataLoss("snapshots: the superblock at offset 0 does not match its checksum")
    if major > MAJOR:
        raise FailedPrecondition(
            f"snapshots: written in version {major}.{minor}, this everram reads {MAJOR}.x: use the later one"
        )
    if features & ~REQUIRED_FEATURES_KNOWN:
        raise FailedPrecondition(
            f"snapshots: they need features {features:#x}, which version {MAJOR}.{MINOR} lacks: use the later everram"
        )
    if page_bytes != PAGE_BYTES:
        raise DataLoss(f"snapshots: pages of {page_bytes} bytes, not {PAGE_BYTES}")
