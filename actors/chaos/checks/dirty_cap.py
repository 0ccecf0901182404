"""At no instant more pages differ from what is durable than the dirty cap allows, and what is called clean is durable.

Looked at from outside: pages of memory are compared with what the segments on the disk would give back after a loss of
power in that instant, whatever the power monitor believes.
"""

from __future__ import annotations

from collections.abc import Iterable

from everram.runtime.formats.dirty_book import CLEAN
from everram.runtime.formats.image_files import HEADER_BYTES, index_name, pages_name
from everram.runtime.formats.segment import parse_index
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import DirtyCap
from everram.runtime.simulation.disk import Media
from everram.runtime.simulation.objects import Objects
from everram.runtime.simulation.world import World

BELOW = "no more is dirty than the cap"
CLEAN_IS_DURABLE = "a clean page is durable"
ZEROS = bytes(PAGE_BYTES)


class DirtyCapKept:
    """Of one machine. `allowed` is what the cap was at its highest since something was last lowered and drained."""

    def __init__(self, world: World, objects: Objects, media: Media) -> None:
        self._world = world
        self._objects = objects
        self._media = media
        self.most_differing = 0

    def look(self, cap: DirtyCap, segments: Iterable[int], allowed: int) -> None:
        """`segments`: those under what is flushed, in their order. Takes no time."""
        held = self._durable(segments)
        differing = 0
        for name, region in cap.regions.items():
            if (kept := self._objects.by_name.get(name)) is None:
                continue
            for page in range(region.table.pages):
                content = bytes(kept.content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
                if content == held.get((region.table.number, page), ZEROS):
                    continue
                differing += 1
                if region.table.get(page) == CLEAN:
                    self._world.violate(CLEAN_IS_DURABLE, f"page {page} of {name} is called clean, and is not")
        self.most_differing = max(self.most_differing, differing)
        if differing > allowed:
            self._world.violate(BELOW, f"{differing} pages differ, {allowed} may")

    def _durable(self, segments: Iterable[int]) -> dict[tuple[int, int], bytes]:
        """What a loss of power in this instant leaves at least."""
        held: dict[tuple[int, int], bytes] = {}
        for number in segments:
            index_file, pages_file = (self._media.files.get(name(number)) for name in (index_name, pages_name))
            if index_file is None or pages_file is None or len(index_file.durable) < HEADER_BYTES:
                continue
            pages = pages_file.durable
            for batch in parse_index(bytes(index_file.durable), number).batches:
                for object_number, page, count, at in batch.placed():
                    for n in range(count):
                        content = bytes(pages[(at + n) * PAGE_BYTES : (at + n + 1) * PAGE_BYTES]) if at else ZEROS
                        held[object_number, page + n] = content
        return held
