"""One operation on the metadata, composed first and committed at once.

    with Draft(media) as draft:
        page = draft.new_page()                  # its content is written before anything refers to it
        draft.word(page * PAGE_BYTES, 7)         # into the new page, or into one that is in use already
        block = draft.new_block()
        draft.free_page(old)
        draft.commit()

Whatever was taken and not committed is free again when the block ends. Stores to pages that are in use go through the
redo log, all or none; new pages need no log, because nobody can reach them before.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from everram.actors.nvm_device.media import RECORDS_DIRECTORY, Media
from everram.actors.nvm_device.records import RECORD_BYTES, Record
from everram.actors.nvm_device.redo import RANGE_OF_ONE_WORD_BYTES, WORD_BYTES, Change
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES

RECORDS_PER_PAGE = PAGE_BYTES // RECORD_BYTES


class Draft:
    """See the module. Raises ResourceExhausted where nothing is left to take; then nothing has changed."""

    def __init__(self, media: Media, *, spare: bool = False) -> None:
        """`spare`: it may take the pages that are kept for this."""
        self._media = media
        self._spare = spare
        self._change = Change()
        self._records: dict[int, bytes] = {}
        self._pages: dict[int, bytearray] = {}
        self._blocks: list[int] = []
        self._slots: list[int] = []
        self._freed_pages: list[int] = []
        self._freed_blocks: list[int] = []
        self._freed_slots: list[int] = []

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._media.pages.unreserve(list(self._pages))
        self._media.store.unreserve(list(self._blocks))
        self._media.storage.unreserve(list(self._slots))

    # -- what it takes and gives back

    def new_page(self, content: bytes = bytes(PAGE_BYTES)) -> int:
        page = self._media.take_page(spare=self._spare)
        self._pages[page] = bytearray(content)
        return page

    def new_block(self) -> int:
        block = self._media.take_block()
        self._blocks.append(block)
        return block

    def reserved_slots(self, slots: Sequence[int]) -> None:
        """Reserved before (`Media.take_slots`): they are its from now on."""
        self._slots += slots

    def free_page(self, page: int) -> None:
        self._freed_pages.append(page)

    def free_block(self, block: int) -> None:
        self._freed_blocks.append(block)

    def free_blocks(self, blocks: Sequence[int]) -> None:
        self._freed_blocks += blocks

    def free_slot(self, slot: int) -> None:
        self._freed_slots.append(slot)

    def free_slots(self, slots: Sequence[int]) -> None:
        self._freed_slots += slots

    # -- what it stores

    def word(self, offset: int, value: int) -> None:
        page, within = divmod(offset, PAGE_BYTES)
        fresh = self._pages.get(page)
        if fresh is None:
            self._change.word(offset, value)
        else:
            fresh[within : within + WORD_BYTES] = value.to_bytes(WORD_BYTES, "little")

    def put(self, offset: int, data: bytes) -> None:
        """Whole words of a page that is in use."""
        self._change.put(offset, data)

    def record(self, record: Record, *, erase: bool = False) -> None:
        self._records[record.number] = bytes(RECORD_BYTES) if erase else record.pack()

    def commit(self) -> None:
        """Raises ResourceExhausted for more than one change can hold; then nothing has changed."""
        media, change = self._media, self._change
        for number, record in self._records.items():
            _put_difference(media, change, record_offset(media, number), record)
        bits = len(self._pages) + len(self._blocks) + len(self._slots)
        bits += len(self._freed_pages) + len(self._freed_blocks) + len(self._freed_slots)
        if change.size_bytes + bits * RANGE_OF_ONE_WORD_BYTES > media.change_bytes_max:  # each in another word, at most
            raise ResourceExhausted("this is too much to be done at once: do it in several parts")
        for page, content in self._pages.items():
            media.write_page(page, bytes(content))
        for bitmap, taken, freed in (
            (media.pages, list(self._pages), self._freed_pages),
            (media.store, self._blocks, self._freed_blocks),
            (media.storage, self._slots, self._freed_slots),
        ):
            if taken:
                bitmap.mark(change, taken)
            if freed:
                bitmap.release(change, freed)
        self._pages, self._blocks, self._slots = {}, [], []
        media.commit(change)


def _put_difference(media: Media, change: Change, offset: int, data: bytes) -> None:
    """The words of a record that are others than before: so one change has room for many records."""
    for at in range(0, len(data), WORD_BYTES):
        word = int.from_bytes(data[at : at + WORD_BYTES], "little")
        if word != media.word(offset + at):
            change.word(offset + at, word)


def record_offset(media: Media, number: int) -> int:
    page, place = divmod(number, RECORDS_PER_PAGE)
    return media.word(RECORDS_DIRECTORY * PAGE_BYTES + page * WORD_BYTES) * PAGE_BYTES + place * RECORD_BYTES
