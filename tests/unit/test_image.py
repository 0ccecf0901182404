"""Images: saved, opened once, replaced as a whole; damage is told by file and offset."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import zlib
from array import array
from collections.abc import Sequence

import pytest

from everram.runtime.environment import Piece
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.formats import image, image_files
from everram.runtime.formats.catalog import SavedObject
from everram.runtime.formats.image import Marker, Survey, examine, mark_opened
from everram.runtime.formats.image_reader import Image
from everram.runtime.formats.image_writer import ImageWriter, tidy
from everram.runtime.formats.segment import SegmentWriter, read_index
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk, SimulatedFile
from everram.runtime.simulation.entropy import Seeds

OBJECTS = [SavedObject("vmemfs", 4 * PAGE_BYTES, 1), SavedObject("region.g.ledger", 1 << 20, 2)]
PLAN = array("I", (1, 1, 1, 2, 0, 200))
PAGE = b"0123456789abcdef" * (PAGE_BYTES // 16)


def new_media(seed: int = 1, capacity_bytes: int = 1 << 30) -> Media:
    return Media(Seeds(seed).stream("disk"), capacity_bytes, DiskFaults(latency_min_s=0, latency_max_s=0))


async def save(disk: SimulatedDisk, text: bytes, cause: str = "down") -> Marker:
    writer = await ImageWriter.begin(disk, cause, "m1", OBJECTS, PLAN)
    await writer.add(1, 1, text.ljust(PAGE_BYTES, b"."))
    await writer.add(2, 0, PAGE * 200)
    marker = await writer.finish(saved_at_ns=5)
    await tidy(disk)
    return marker


async def catalog_written(writer: ImageWriter) -> None:
    await asyncio.wait([writer._catalog_written])


async def contents(disk: SimulatedDisk, survey: Survey | None = None) -> dict[tuple[str, int], bytes]:
    survey = survey or await examine(disk)
    marker = survey.marker if survey.marker and survey.marker.generation == survey.generation else None
    opened = await Image.open(disk, survey.generation, marker)
    try:
        return {(run.name, run.offset): run.data async for run in opened.runs()}
    finally:
        await opened.close()


async def test_an_image_gives_back_what_was_saved_and_no_zeros() -> None:
    disk = SimulatedDisk(new_media())
    assert await examine(disk) == Survey("none")
    marker = await save(disk, b"one")
    survey = await examine(disk)
    assert (survey.state, survey.generation, survey.marker) == ("complete", 1, marker)
    assert (marker.cause, marker.memory_id, marker.objects, marker.saved_at_ns) == ("down", "m1", 2, 5)
    opened = await Image.open(disk, 1, marker)
    assert opened.objects == OBJECTS
    found = await contents(disk)
    assert found.pop(("vmemfs", PAGE_BYTES)) == b"one".ljust(PAGE_BYTES, b".")
    assert b"".join(found[key] for key in sorted(found)) == PAGE * 200
    assert [segment.pages_bytes for segment in marker.segments] == [PAGE_BYTES * 202]


async def test_a_new_image_replaces_the_one_before() -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    await save(disk, b"one")
    await mark_opened(disk, await examine(disk), 1, "m1")
    assert (await examine(disk)).state == "opened"
    await save(disk, b"two")
    assert (await examine(disk)).state == "complete"
    assert (await contents(disk))["vmemfs", PAGE_BYTES].startswith(b"two")
    assert sorted(media.files) == ["image/catalog.2", "image/index.2", "image/marker", "image/pages.2"]


async def test_an_unfinished_image_never_counts_as_complete() -> None:
    disk = SimulatedDisk(new_media())
    writer = await ImageWriter.begin(disk, "power", "m1", OBJECTS)
    await writer.add(1, 0, PAGE)
    await catalog_written(writer)
    survey = await examine(disk)
    assert (survey.state, survey.generation, survey.unfinished) == ("incomplete", 1, 1)
    await writer.abandon()
    assert (await examine(disk)).state == "none"


async def test_an_unfinished_save_beside_an_older_image_is_named() -> None:
    disk = SimulatedDisk(new_media())
    await save(disk, b"one")
    writer = await ImageWriter.begin(disk, "power", "m1", OBJECTS)
    await catalog_written(writer)
    survey = await examine(disk)
    assert (survey.state, survey.generation, survey.marker and survey.marker.generation) == ("incomplete", 2, 1)
    await writer.abandon()
    assert (await examine(disk)).state == "complete"


async def test_a_power_loss_at_any_moment_leaves_the_old_image_or_the_new_one() -> None:
    outcomes = set()
    for seed in range(8):
        for changes in range(18):
            media = new_media(seed)
            disk = SimulatedDisk(media)
            await save(disk, b"old")
            with contextlib.suppress(_PowerCutError):
                await save(_CutDisk(media, changes), b"new")
            media.power_loss()
            survey = await examine(disk)
            if survey.state == "complete":
                text = (await contents(disk))["vmemfs", PAGE_BYTES].rstrip(b".")
                assert text == (b"old" if survey.generation == 1 else b"new")
                outcomes.add(text)
            else:
                assert survey.state == "incomplete"
                assert survey.marker is not None
                older = dataclasses.replace(survey, generation=survey.marker.generation)
                assert (await contents(disk, older))["vmemfs", PAGE_BYTES].startswith(b"old")
                outcomes.add(b"incomplete")
    assert outcomes == {b"old", b"new", b"incomplete"}


class _PowerCutError(Exception):
    pass


class _CutFile:
    """A file of `_CutDisk`."""

    def __init__(self, disk: _CutDisk, file: SimulatedFile) -> None:
        self._disk, self._file = disk, file
        self.pread, self.size, self.close = file.pread, file.size, file.close

    async def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        self._disk.count()
        await self._file.pwrite(offset, data)

    async def pwrite_all(self, offset: int, pieces: Sequence[Piece], block_bytes: int) -> list[int]:
        self._disk.count()
        return await self._file.pwrite_all(offset, pieces, block_bytes)

    async def sync(self) -> None:
        self._disk.count()
        await self._file.sync()


class _CutDisk(SimulatedDisk):
    """Does so many changes, and then nothing any more."""

    def __init__(self, media: Media, changes: int) -> None:
        super().__init__(media)
        self._left = changes

    def count(self) -> None:
        if self._left == 0:
            raise _PowerCutError
        self._left -= 1

    async def open(self, name: str, *, create: bool = False) -> SimulatedFile:
        if create:
            self.count()
        return _CutFile(self, await super().open(name, create=create))  # type: ignore[return-value]

    async def replace(self, name: str, data: bytes) -> None:
        self.count()
        await super().replace(name, data)

    async def remove(self, name: str) -> None:
        self.count()
        await super().remove(name)


async def test_an_incomplete_image_gives_back_what_verifies() -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    await save(disk, b"one")
    whole = await contents(disk)
    del media.files["image/marker"]
    media.files["image/pages.1"].cached[PAGE_BYTES * 40] ^= 1
    opened = await Image.open(disk, 1, None)
    runs = {(run.name, run.offset): run.data async for run in opened.runs()}
    assert len(opened.lost) == 1
    assert f"image/pages.1 is damaged at offset {PAGE_BYTES * 33}: 65536 bytes of region.g.ledger at" in opened.lost[0]
    assert sum(map(len, runs.values())) == sum(map(len, whole.values())) - 16 * PAGE_BYTES
    del media.files["image/index.1"].cached[-10:]
    opened = await Image.open(disk, 1, None)
    assert [run async for run in opened.runs()] == []
    assert opened.lost == [
        "1 pages of vmemfs: the save did not get that far",
        "200 pages of region.g.ledger: the save did not get that far",
    ]


async def flushed(disk: SimulatedDisk, first: int, text: bytes) -> SegmentWriter:
    """A segment with the ledger's pages 0 to 9."""
    segment = await SegmentWriter.create(disk, first, "m1")
    for page in range(10):
        await segment.add(2, page, text.ljust(PAGE_BYTES, b"."))
    return segment


async def test_a_save_goes_on_from_what_was_flushed() -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    segment = await flushed(disk, 1, b"flushed")
    base = await segment.settle()
    await segment.close()
    assert (await examine(disk)).state == "none"
    segment = await flushed(disk, 2, b"again")
    await segment.settle()
    writer = await ImageWriter.begin(
        disk, "power", "m1", OBJECTS, array("I", (2, 3, 1, 2, 200, 2)), base=[base], segment=segment
    )
    await writer.add(2, 3, b"saved".ljust(PAGE_BYTES, b"."))
    await writer.add(2, 200, bytes(2 * PAGE_BYTES))
    assert writer.saved_bytes == PAGE_BYTES
    marker = await writer.finish(0)
    assert [named.number for named in marker.segments] == [1, 2]
    await tidy(disk)
    found = await contents(disk)
    pages = {offset // PAGE_BYTES: data for (_, offset), data in found.items()}
    assert pages[0] == b"again".ljust(PAGE_BYTES, b".") * 3
    assert pages[3] == b"saved".ljust(PAGE_BYTES, b".")
    assert sorted(pages) == [0, 3, 4]
    opened = await Image.open(disk, marker.generation, marker)
    assert list(opened.spans(2)) == [(0, 10)]
    block = await opened.block_of(2, 5)
    assert [(run.offset // PAGE_BYTES, len(run.data) // PAGE_BYTES) for run in block] == [(0, 3), (4, 6)]
    assert await opened.block_of(2, 100) == []
    await opened.close()


async def test_what_a_cut_off_save_was_to_write_is_missing_and_not_what_it_was_before() -> None:
    disk = SimulatedDisk(new_media())
    segment = await flushed(disk, 1, b"flushed")
    await segment.settle()
    plan = array("I", (2, 3, 4))
    writer = await ImageWriter.begin(disk, "power", "m1", OBJECTS, plan, segment=segment)
    await writer.add(2, 3, b"saved".ljust(PAGE_BYTES, b"."))
    await segment.settle()
    await catalog_written(writer)
    survey = await examine(disk)
    assert survey.state == "incomplete"
    opened = await Image.open(disk, survey.generation, None)
    pages = {run.offset // PAGE_BYTES: run.data async for run in opened.runs()}
    assert pages.pop(3).startswith(b"saved")
    assert sorted(pages) == [0, 7]
    assert opened.lost == ["3 pages of region.g.ledger: the save did not get that far"]
    await tidy(disk)
    assert (await examine(disk)).state == "incomplete", "a person may want it"


async def test_many_scattered_pages_of_many_batches_come_back() -> None:
    disk = SimulatedDisk(new_media())
    objects = [SavedObject("region.g.big", 64 << 20, 7)]
    writer = await ImageWriter.begin(disk, "power", "m1", objects)
    wanted = {page: b"%d" % page for page in range(0, 16384, 7)}
    for page, text in wanted.items():
        await writer.add(7, page, memoryview(text.ljust(PAGE_BYTES, b"\1")))
    marker = await writer.finish(0)
    assert len((await read_index(disk, 1)).batches) == 2
    opened = await Image.open(disk, 1, marker)
    found = {run.offset // PAGE_BYTES: run.data async for run in opened.runs()}
    assert found == {page: text.ljust(PAGE_BYTES, b"\1") for page, text in wanted.items()}
    assert opened.present_pages() == len(wanted)
    await opened.close()


async def test_every_flipped_byte_is_told_with_its_file() -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    writer = await ImageWriter.begin(disk, "down", "m1", OBJECTS)
    await writer.add(1, 1, PAGE)
    await writer.finish(0)
    right = await contents(disk)
    for name, file in media.files.items():
        sampled = range(PAGE_BYTES, len(file.cached), 41) if "pages" in name else ()
        for offset in (*range(min(PAGE_BYTES, len(file.cached))), *sampled):
            file.cached[offset] ^= 0x11
            survey = await examine(disk)
            if name == image.MARKER:
                assert survey.state == "incomplete"
                assert "image/marker is damaged" in survey.reason
            else:
                with pytest.raises(DataLoss, match=rf"{name} is damaged at offset \d+") as caught:
                    await contents(disk, survey)
                told = int(caught.value.message.split("offset ")[1].split(":")[0])
                assert told <= offset
            file.cached[offset] ^= 0x11
    assert await contents(disk) == right


@pytest.mark.parametrize("name", ["image/pages.1", "image/index.1", "image/catalog.1"])
@pytest.mark.parametrize("what", ["missing", "shorter", "longer"])
async def test_files_of_a_complete_image_must_be_whole(name: str, what: str) -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    await save(disk, b"one")
    if what == "missing":
        del media.files[name]
    elif what == "shorter":
        del media.files[name].cached[-1:]
    else:
        media.files[name].cached.extend(b"x")
    if what == "longer" and "catalog" not in name:
        assert await contents(disk)  # what no index or marker names is nobody's
        return
    with pytest.raises(DataLoss, match=name):
        await contents(disk)


async def test_a_later_format_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    monkeypatch.setattr(image_files, "VERSION", (3, 0))
    await save(disk, b"one")
    monkeypatch.setattr(image_files, "VERSION", (2, 0))
    with pytest.raises(FailedPrecondition, match=r"version 3\.0.*version 2\.0: use the later"):
        await contents(disk)


async def test_a_full_disk_is_said_and_the_old_image_stays() -> None:
    media = new_media(capacity_bytes=1_200_000)
    disk = SimulatedDisk(media)
    await save(disk, b"one")
    writer = await ImageWriter.begin(disk, "down", "m1", OBJECTS)
    with pytest.raises(ResourceExhausted):
        await writer.add(2, 0, PAGE * 200)
        await writer.finish(0)
    await writer.abandon()
    assert (await contents(disk))["vmemfs", PAGE_BYTES].startswith(b"one")


async def test_what_goes_wrong_once_it_counts_takes_nothing_away() -> None:
    media = new_media()
    disk = SimulatedDisk(media)
    await save(disk, b"one")
    await mark_opened(disk, await examine(disk), 1, "m1")

    class Late(SimulatedDisk):
        async def replace(self, name: str, data: bytes) -> None:
            await super().replace(name, data)
            if name == image.MARKER:
                raise DataLoss("what was written is written")

    writer = await ImageWriter.begin(Late(media), "power", "m1", OBJECTS)
    await writer.add(1, 1, b"two".ljust(PAGE_BYTES, b"."))
    with pytest.raises(DataLoss):
        await writer.finish(saved_at_ns=5)
    await writer.abandon()
    assert (await examine(disk)).state == "complete"
    assert (await contents(disk))["vmemfs", PAGE_BYTES].startswith(b"two")


async def test_writes_are_whole_pages() -> None:
    writer = await ImageWriter.begin(SimulatedDisk(new_media()), "down", "m1", OBJECTS)
    with pytest.raises(InvalidArgument):
        await writer.add(1, 0, memoryview(PAGE)[7:])
    await writer.abandon()


def crc_right(body: bytes) -> bytes:
    return b"everram-image %08x\n" % zlib.crc32(body) + body


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"everram-image 00000000\n", crc_right(b"{}"), crc_right(b"[]")])
async def test_any_marker_that_is_not_one_is_named(body: bytes) -> None:
    disk = SimulatedDisk(new_media())
    await disk.replace(image.MARKER, body)
    try:
        survey = await examine(disk)
    except EverramError as error:
        assert image.MARKER in error.message
    else:
        assert survey.state == "incomplete"
        assert "marker is damaged" in survey.reason
