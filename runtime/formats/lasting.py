"""Which memory objects outlive their machine: those that a save writes, or that lie in NVM files.

is_lasting("region.0f3c.ledger")
"""

from __future__ import annotations

from everram.runtime.channel import generations
from everram.runtime.formats import dirty_book
from everram.runtime.formats.page_classes import PREFIX as CLASSES_PREFIX
from everram.runtime.formats.swap_table import MEMORY_PREFIX, TABLE_PREFIX

RESTORING, RESTORING_PAGES = "restoring", "restoring.pages"
"""While an image is being opened: whose attempt that is, and which pages are still to come."""
VOLATILE_FILE_PREFIX = "vfile."
"""Of the files of remote memory that end with this memory."""
_NAMES = (RESTORING, RESTORING_PAGES, generations.MEMORY_NAME, dirty_book.MEMORY_NAME)
"""The generation table says what peers may touch of this memory, now; the next memory has its own."""
_PREFIXES = (VOLATILE_FILE_PREFIX, MEMORY_PREFIX, CLASSES_PREFIX, TABLE_PREFIX)
"""Guests' own memory, and what is known of it, end with this memory too."""


def is_lasting(name: str) -> bool:
    return name not in _NAMES and not name.startswith(_PREFIXES)
