"""Saving an image: what is left to be written, the catalog beside it, and the marker last.

    writer = await ImageWriter.begin(disk, "down", memory_id, objects, plan, base=segments)
    await writer.add(number, page, data)
    marker = await writer.finish(saved_at_ns)

`base` are the segments into which pages were flushed before, and which hold what is not in the plan. Whatever happens
before `finish` has written the marker, the image before counts; nothing that it needs is removed until then, and
after that by `tidy`, when there is time for it.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from collections.abc import Sequence

from everram.runtime.environment import Disk, Stretch
from everram.runtime.formats.catalog import Catalog, SavedObject
from everram.runtime.formats.image import MARKER, Marker, Survey, examine
from everram.runtime.formats.image_files import catalog_name, remove_segment, segment_files
from everram.runtime.formats.segment import BLOCK_BYTES, SegmentRef, SegmentWriter
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.version import PACKAGE_VERSION

_ZEROS = bytes(BLOCK_BYTES)


class ImageWriter:
    """Writes one image beside whatever there is; only `finish` makes it count."""

    def __init__(self, disk: Disk, cause: str, catalog: Catalog, base: Sequence[SegmentRef], segment: SegmentWriter):
        self.generation = catalog.generation
        self._disk = disk
        self._cause = cause
        self._catalog = catalog
        self._base = tuple(base)
        self._segment = segment
        self._own_segment, self._host_id = True, ""
        self._pages_before = segment.pages
        self._encoded = catalog.encode()
        self._catalog_written = asyncio.get_running_loop().create_task(self._write_catalog(), name="catalog")

    @staticmethod
    async def begin(
        disk: Disk,
        cause: str,
        memory_id: str,
        objects: Sequence[SavedObject],
        plan: array[int] | None = None,
        *,
        base: Sequence[SegmentRef] = (),
        segment: SegmentWriter | None = None,
        host_id: str = "",
    ) -> ImageWriter:
        """`segment`: what has been flushed into already and goes on here, whatever becomes of this save; otherwise a
        new one is begun. Raises ResourceExhausted on a full disk."""
        own = segment is None
        survey = await examine(disk)
        generation = max((*survey.generations, survey.generation), default=0) + 1
        if segment is None:
            segment = await SegmentWriter.create(disk, _next_segment(survey, base), memory_id)
        numbers = (*(ref.number for ref in base), segment.number)
        catalog = Catalog(generation, memory_id, numbers, segment.next_page, tuple(objects), plan or array("I"))
        writer = ImageWriter(disk, cause, catalog, base, segment)
        writer._own_segment, writer._host_id = own, host_id
        return writer

    async def _write_catalog(self) -> None:
        await self._disk.replace(catalog_name(self.generation), self._encoded)

    async def add(self, number: int, page: int, data: bytes | memoryview | Stretch) -> None:
        """Whole pages. Of bytes that are here already, blocks of nothing but zeros are only noted. Raises
        ResourceExhausted, DataLoss."""
        if not isinstance(data, bytes):
            await self._segment.add(number, page, data)
            return
        view = memoryview(data)
        zeros_from = data_from = 0
        for at in range(0, len(view), BLOCK_BYTES):
            block = view[at : at + BLOCK_BYTES]
            if view[at] or block.tobytes() != _ZEROS[: len(block)]:  # most are told by their first byte, without a copy
                if zeros_from < at:
                    await self._add_zeros(number, page, zeros_from, at)
                zeros_from = at + len(block)
            else:
                if data_from < at:
                    await self._segment.add(number, page + data_from // PAGE_BYTES, view[data_from:at])
                data_from = at + len(block)
        if data_from < len(view):
            await self._segment.add(number, page + data_from // PAGE_BYTES, view[data_from:])
        if zeros_from < len(view):
            await self._add_zeros(number, page, zeros_from, len(view))

    async def add_scattered(self, number: int, runs: Sequence[tuple[int, int]], window: memoryview) -> None:
        """Many short runs, (first page, count) each, ascending and not neighbours; `window` shows all of the object."""
        await self._segment.add_scattered(number, runs, window)

    async def _add_zeros(self, number: int, page: int, start: int, end: int) -> None:
        await self._segment.add_zeros(number, page + start // PAGE_BYTES, (end - start) // PAGE_BYTES)

    @property
    def saved_bytes(self) -> int:
        return (self._segment.pages - self._pages_before) * PAGE_BYTES

    async def finish(self, saved_at_ns: int) -> Marker:
        """Make it durable, then make it count."""
        written = await self._segment.settle()
        await self._catalog_written
        await self._segment.close()
        marker = Marker(
            state="complete",
            generation=self.generation,
            cause=self._cause,
            memory_id=self._catalog.memory_id,
            whole=True,
            segments=(*self._base, written),
            objects=len(self._catalog.objects),
            catalog_bytes=len(self._encoded),
            catalog_crc32=zlib.crc32(self._encoded),
            saved_at_ns=saved_at_ns,
            host_id=self._host_id,
            producer=PACKAGE_VERSION,
        )
        await self._disk.replace(MARKER, marker.encode())
        return marker

    async def abandon(self) -> None:
        """Give up: what was written is removed, unless it counts already; what counted before counts on."""
        await asyncio.wait([self._catalog_written])
        if not self._catalog_written.cancelled():
            self._catalog_written.exception()  # whatever it was, the image is given up
        await self._segment.close()
        marker = (await examine(self._disk)).marker
        if marker is None or marker.generation != self.generation:
            await self._disk.remove(catalog_name(self.generation))
            if self._own_segment:
                await remove_segment(self._disk, self._segment.number)


async def tidy(disk: Disk, keep: Sequence[int] = ()) -> None:
    """Remove what is `unneeded`. Nobody may be writing a segment that is not in `keep`."""
    for name in await unneeded(disk, keep):
        await disk.remove(name)


async def unneeded(disk: Disk, keep: Sequence[int] = ()) -> list[str]:
    """Files that nothing names any more, nor ever will: of segments but the marker's and `keep`, catalogs but the
    marker's. Where a save was not finished there are none: a person may want what there is."""
    survey = await examine(disk)
    if survey.state == "incomplete":
        return []
    named = {*keep, *(segment.number for segment in survey.marker.segments)} if survey.marker else {*keep}
    if survey.marker is not None and not survey.marker.whole and survey.generation in survey.generations:
        catalog = Catalog.decode(await disk.read(catalog_name(survey.generation)), survey.generation)
        named.update(catalog.segments)
    names = [catalog_name(generation) for generation in survey.generations if generation != survey.generation]
    for segment in survey.segments:
        if segment not in named:
            names += segment_files(segment)
    return names


def _next_segment(survey: Survey, base: Sequence[SegmentRef]) -> int:
    return max(survey.next_segment, *(ref.number + 1 for ref in base), 0)
