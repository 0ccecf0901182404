"""Virtblocks: for each data block that a page table names, one word that says where its content lies.

A page-table entry holds the number of a virtblock, never a place. So content that several snapshots share is moved
(from the arena to the store, from there to the storage file) by ONE store of one word, whoever refers to it
(US20220129377A1, claim 1). A virtblock's number is the position of its word in the metadata, counted in words.

Virtblocks lie in arrays: chains of metadata pages, of which the first word names the next. Each array belongs to one
snapshot or to a running point and has as many entries as that owns blocks, whatever the size of the region; when a
snapshot is taken, the running point's array becomes the snapshot's.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from everram.actors.nvm_device.draft import Draft
from everram.actors.nvm_device.media import WORDS_PER_PAGE, Media
from everram.actors.nvm_device.redo import WORD_BYTES
from everram.runtime.errors import DataLoss
from everram.runtime.memory.contract import PAGE_BYTES

KIND_SHIFT = 62
"""Of the tag in a word; the number fills the bits below."""
_NUMBER_MASK = (1 << KIND_SHIFT) - 1
WORDS = struct.Struct(f"<{WORDS_PER_PAGE}Q")


class Place(enum.IntEnum):
    """The tag of a virtblock."""

    FREE = 0
    ARENA = 1
    """The page of that number of the region's own arena: the running point has this content."""
    STORE = 2
    """A block of the store: only snapshots refer to it."""
    STORAGE = 3
    """A slot of the storage file: purged."""


class Location(NamedTuple):
    place: Place
    number: int


def pack_location(place: Place, number: int) -> int:
    return place << KIND_SHIFT | number


def unpack_location(word: int) -> Location:
    return Location(Place(word >> KIND_SHIFT), word & _NUMBER_MASK)


def location(media: Media, virtblock: int) -> Location:
    """Raises DataLoss for a number that names no virtblock."""
    if not 0 < virtblock * WORD_BYTES < media.mapping.size_bytes or virtblock % WORDS_PER_PAGE == 0:
        raise DataLoss(f"snapshots: {virtblock} is not the number of a virtblock")
    return unpack_location(media.word(virtblock * WORD_BYTES))


def words_of(media: Media, virtblocks: Iterable[int]) -> list[int]:
    """What many say, packed."""
    return media.mapping.load_words(virtblocks)


class Array:
    """The array of a running point, which grows. `head` is its first page, 0 while it has none."""

    def __init__(self, media: Media, head: int) -> None:
        self.head = head
        self._media = media
        self._free: deque[int] = deque()
        self._unscanned = head

    def take(self, draft: Draft, count: int) -> list[int]:
        """So many virtblocks that are free; their words are to be stored with the draft. If it is not committed, `head`
        has to be set back by `reset`."""
        taken: list[int] = []
        while len(taken) < count:
            if self._free:
                taken.append(self._free.popleft())
            elif self._unscanned:
                self._scan()
            else:
                page = draft.new_page()
                draft.word(page * PAGE_BYTES, self.head)
                self.head = page
                self._free.extend(range(page * WORDS_PER_PAGE + 1, (page + 1) * WORDS_PER_PAGE))
        return taken

    def give_back(self, virtblocks: list[int]) -> None:
        """Freed by a draft that is committed."""
        self._free.extendleft(virtblocks)

    def reset(self, head: int) -> None:
        """Begin again from what the metadata says."""
        self.head = self._unscanned = head
        self._free.clear()

    def _scan(self) -> None:
        page = self._unscanned
        words = WORDS.unpack(self._media.load_page(page))
        self._unscanned = words[0]
        first = page * WORDS_PER_PAGE
        self._free.extend(first + at for at in range(1, WORDS_PER_PAGE) if not words[at])


def chain(media: Media, head: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The pages of an array and their words. Raises DataLoss for a chain that never ends."""
    seen = set()
    page = head
    while page:
        if page in seen:
            raise DataLoss(f"snapshots: the virtblock array at page {head} runs in a circle")
        seen.add(page)
        words = WORDS.unpack(media.load_page(page))
        yield page, words
        page = words[0]
