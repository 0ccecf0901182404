"""An image: a machine's memory on storage, saved when the machine stops and opened when it starts again.

    writer = await ImageWriter.begin(disk, "down", memory_id, objects)
    await writer.write(0, offset, data)
    await writer.finish(saved_at_ns)

    survey = await examine(disk)                       # none, complete, incomplete or opened
    image = await Image.open(disk, survey.generation, survey.marker)
    async for run in image.runs(): ...                 # every byte verified

Three files in `image/`: `pages.G` (the present pages, packed), `index.G` (which pages they are, with checksums) and
`marker`, written last, which names the generation G that counts. A new save writes beside the old one and then replaces
the marker, so one complete image is always there once the first has been. An image is opened silently only if it is
complete and nobody opened it before: memory that guests have used since is gone for good if it is not in a newer image,
and starting from the older one is a person's choice. docs/formats.md, "Image", has the layout.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

from everram.runtime.environment import Disk, DiskFile
from everram.runtime.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from everram.runtime.formats.page_stream import PageStream
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.version import PACKAGE_VERSION

FOLDER = "image"
MARKER = f"{FOLDER}/marker"
VERSION = (1, 0)
RUN_BYTES = 64 * 1024
"""One checksum each: small enough to say where damage is; the index takes no more than 1/2000 of the pages."""
PIECE_BYTES = 1024 * 1024
"""Read or written at once, so that a loop lives on while an image of any size passes through it."""
RUNS_PER_ENTRY = 16 * 1024
ENTRY_PAGES_BYTES = 64 * 1024 * 1024
"""How much of a save may be lost beyond what was interrupted."""
PAGES_MAGIC = b"EVRIMAGE"
INDEX_MAGIC = b"EVRINDEX"
_HEADER = struct.Struct("<8sHHIQQ32s32s")
"""magic, major, minor, reserved, required features, generation, memory_id, producer; CRC-32 ends the header's block."""
_CHECKSUM = struct.Struct("<I")
PAGES_HEADER_BYTES = PAGE_BYTES
INDEX_HEADER_BYTES = 128
_ENTRY = struct.Struct("<HHII")
"""type, reserved, length of the payload, CRC-32 over generation, type, reserved, length and payload."""
_OBJECTS, _RUNS, _END = 1, 2, 3
_OBJECT = struct.Struct("<QH")
_RUN = struct.Struct("<IIQQI")
"""object, length, offset in the object, offset in the pages file, CRC-32."""
_TOTALS = struct.Struct("<QQ")
_MAX_ENTRY_BYTES = 16 * 1024 * 1024
_FILE = re.compile(r"(?:pages|index)\.([0-9]{1,18})")
_ZEROS = bytes(RUN_BYTES)


@dataclass(frozen=True, slots=True)
class SavedObject:
    """A memory object as it was."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring pages of one object, with their content."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Marker:
    """Which image counts, and whether it may be opened."""

    state: str
    """"complete" or "opened"."""
    generation: int
    cause: str
    memory_id: str
    whole: bool
    """False: opened although its save was never finished."""
    objects: int = 0
    pages_bytes: int = 0
    index_bytes: int = 0
    index_crc32: int = 0
    saved_at_ns: int = 0
    """Since 1970, for people."""
    opened_by: str = ""
    """Of the opening that is allowed to begin again, see `everram.actors.power_monitor`."""
    producer: str = ""
    format: str = "1.0"

    def encode(self) -> bytes:
        """A line with the checksum of the rest, then JSON."""
        body = json.dumps(asdict(self), indent=2).encode() + b"\n"
        return b"everram-image %08x\n" % zlib.crc32(body) + body

    @staticmethod
    def decode(data: bytes) -> Marker:
        """Raises DataLoss, or FailedPrecondition for a later format."""
        head, _, body = data.partition(b"\n")
        if head != b"everram-image %08x" % zlib.crc32(body):
            raise DataLoss(f"{MARKER} is damaged at offset 0: it does not match its checksum")
        try:
            members = json.loads(body)
            major = int(members["format"].split(".")[0])
            if major <= VERSION[0]:
                return Marker(**{name: members[name] for name in Marker.__slots__ if name in members})
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{MARKER} is damaged at offset {len(head) + 1}: {error!r}") from error
        raise _too_new(MARKER, members["format"], members.get("producer", ""))


@dataclass(frozen=True, slots=True)
class Survey:
    """What images there are."""

    state: str
    """"none", "complete", "incomplete" or "opened"."""
    generation: int = 0
    """Of the image that counts: the newest one, finished or not."""
    marker: Marker | None = None
    unfinished: int = 0
    """Generation of a save that was never finished and is newer than the marker's; 0: none."""
    reason: str = ""
    """Why it is incomplete, in a sentence."""
    generations: tuple[int, ...] = ()


async def examine(disk: Disk) -> Survey:
    """Look, and change nothing. Raises FailedPrecondition for an image of a later everram."""
    names = await disk.list(FOLDER)
    generations = tuple(sorted({int(match[1]) for name in names if (match := _FILE.fullmatch(name))}))
    newest = generations[-1] if generations else 0
    marker, reason = None, "its save was interrupted before the end"
    if "marker" in names:
        try:
            marker = Marker.decode(await disk.read(MARKER))
        except DataLoss as error:
            reason = error.message
    elif not generations:
        return Survey("none")
    if marker is None:
        return Survey("incomplete", newest, None, newest, reason, generations)
    if newest > marker.generation:
        return Survey("incomplete", newest, marker, newest, reason, generations)
    return Survey(marker.state, marker.generation, marker, generations=generations)


async def mark_opened(disk: Disk, survey: Survey, generation: int, memory_id: str, *, opened_by: str = "") -> None:
    """Durably note that guests may run on this image, as memory `memory_id`: it never opens silently again."""
    marker = survey.marker
    if marker is None or marker.generation != generation:
        marker = Marker("opened", generation, "an unfinished save", memory_id, whole=False)
    producer = PACKAGE_VERSION
    opened = replace(marker, state="opened", memory_id=memory_id, opened_by=opened_by, producer=producer)
    await disk.replace(MARKER, opened.encode())


class ImageWriter:
    """Writes one image beside whatever there is; only `finish` makes it count."""

    def __init__(self, disk: Disk, generation: int, cause: str, memory_id: str, objects: Sequence[SavedObject]) -> None:
        self._disk = disk
        self._cause = cause
        self._memory_id = memory_id
        self._objects = objects
        self.generation = generation
        self._index_end = 0
        self._index_crc32 = 0
        self._run_count = 0
        self._indexed_bytes = 0
        self._pages: PageStream
        self._index: DiskFile

    @staticmethod
    async def begin(disk: Disk, cause: str, memory_id: str, objects: Sequence[SavedObject]) -> ImageWriter:
        """Raises ResourceExhausted on a full disk. What other unfinished saves left is removed first."""
        survey = await examine(disk)
        counts = survey.marker.generation if survey.marker else 0
        for generation in survey.generations:
            if generation != counts:
                await _remove(disk, generation)
        generation = max((*survey.generations, counts), default=0) + 1
        writer = ImageWriter(disk, generation, cause, memory_id, objects)
        pages = await disk.open(_pages_name(generation), create=True)
        writer._pages = PageStream(pages, PAGES_HEADER_BYTES)
        try:
            writer._index = await disk.open(_index_name(generation), create=True)
        except BaseException:
            await writer._pages.close()
            raise
        try:
            await writer._write_headers(pages)
        except BaseException:
            await writer.abandon()
            raise
        return writer

    async def write(self, number: int, offset: int, data: bytes) -> None:
        """Whole pages of object `number`, at most PIECE_BYTES; runs of nothing but zeros are left out."""
        if offset % PAGE_BYTES or len(data) > PIECE_BYTES:
            raise InvalidArgument(f"{len(data)} bytes at {offset}: write whole pages, at most {PIECE_BYTES} bytes")
        view = memoryview(data)
        for at in range(0, len(data), RUN_BYTES):
            run = view[at : at + RUN_BYTES]
            if data[at] or run.tobytes() != _ZEROS[: len(run)]:  # most are told by their first byte, without a copy
                await self._pages.add((number, offset + at), run)
        if self._pages.end - self._indexed_bytes >= ENTRY_PAGES_BYTES:
            await self._write_runs()

    @property
    def saved_bytes(self) -> int:
        return self._pages.end - PAGES_HEADER_BYTES

    async def finish(self, saved_at_ns: int) -> Marker:
        """Make it durable, then make it count, then remove the one before."""
        await self._write_runs()
        await self._append(_END, _TOTALS.pack(self._run_count, self._pages.end))
        await self._index.sync()
        await self._close()
        marker = Marker(
            state="complete",
            generation=self.generation,
            cause=self._cause,
            memory_id=self._memory_id,
            whole=True,
            objects=len(self._objects),
            pages_bytes=self._pages.end,
            index_bytes=self._index_end,
            index_crc32=self._index_crc32,
            saved_at_ns=saved_at_ns,
            producer=PACKAGE_VERSION,
        )
        await self._disk.replace(MARKER, marker.encode())
        for generation in (await examine(self._disk)).generations:
            if generation != self.generation:
                await _remove(self._disk, generation)
        return marker

    async def abandon(self) -> None:
        """Give up: what was written is removed, unless it counts already; what counted before counts on."""
        await self._close()
        marker = (await examine(self._disk)).marker
        if marker is None or marker.generation != self.generation:
            await _remove(self._disk, self.generation)

    async def _close(self) -> None:
        await self._pages.close()
        await self._index.close()

    async def _write_headers(self, pages: DiskFile) -> None:
        await pages.pwrite(0, self._header(PAGES_MAGIC, PAGES_HEADER_BYTES))
        header = self._header(INDEX_MAGIC, INDEX_HEADER_BYTES)
        await self._index.pwrite(0, header)
        self._index_end, self._index_crc32 = len(header), zlib.crc32(header)
        packed = [_OBJECT.pack(o.size_bytes, len(o.name.encode())) + o.name.encode() for o in self._objects]
        await self._append(_OBJECTS, b"".join(packed))

    def _header(self, magic: bytes, block_bytes: int) -> bytes:
        memory_id, producer = self._memory_id.encode(), PACKAGE_VERSION.encode()
        header = _HEADER.pack(magic, *VERSION, 0, 0, self.generation, memory_id, producer)
        block = header.ljust(block_bytes - _CHECKSUM.size, b"\0")
        return block + _CHECKSUM.pack(zlib.crc32(block))

    async def _write_runs(self) -> None:
        """The index never names pages that are not durable."""
        runs = await self._pages.settle()
        self._indexed_bytes = self._pages.end
        for first in range(0, len(runs), RUNS_PER_ENTRY):
            entry = runs[first : first + RUNS_PER_ENTRY]
            packed = (_RUN.pack(number, length, offset, at, crc32) for (number, offset), length, at, crc32 in entry)
            await self._append(_RUNS, b"".join(packed))
        await self._index.sync()
        self._run_count += len(runs)

    async def _append(self, kind: int, payload: bytes) -> None:
        entry = _ENTRY.pack(kind, 0, len(payload), _entry_checksum(self.generation, kind, payload)) + payload
        await self._index.pwrite(self._index_end, entry)
        self._index_end += len(entry)
        self._index_crc32 = zlib.crc32(entry, self._index_crc32)


class _Place(NamedTuple):
    """Where a run lies; the fields of `_RUN`."""

    number: int
    length: int
    offset: int
    at: int
    crc32: int


@dataclass(slots=True)
class _Index:
    """What an index says, as far as it can be read."""

    objects: list[SavedObject] = field(default_factory=list)
    runs: list[_Place] = field(default_factory=list)
    totals: tuple[int, int] | None = None


class Image:
    """An image that is being read. `lost` says in sentences what a lenient reader had to leave out."""

    def __init__(self, disk: Disk, generation: int, index: _Index, *, lenient: bool) -> None:
        self._disk = disk
        self._index = index
        self._lenient = lenient
        self._generation = generation
        self._pages_name = _pages_name(generation)
        self.objects = index.objects
        self.lost: list[str] = []

    @staticmethod
    async def open(disk: Disk, generation: int, marker: Marker | None) -> Image:
        """Read and verify everything but the pages. Without a marker of a whole image: as far as it goes.

        Raises DataLoss for damage, with the file and the offset, FailedPrecondition for a later format.
        """
        lenient = marker is None or not marker.whole
        try:
            index_file = await disk.open(_index_name(generation))
        except NotFound as error:
            raise DataLoss(f"{_index_name(generation)} is missing: the image cannot be opened") from error
        try:
            index = await _IndexReader(index_file, generation).read(lenient=lenient, marker=marker)
        finally:
            await index_file.close()
        return Image(disk, generation, index, lenient=lenient)

    async def runs(self) -> AsyncIterator[Run]:
        """Everything that was saved, verified. Raises DataLoss with the file and the offset."""
        try:
            pages = await self._disk.open(self._pages_name)
        except NotFound as error:
            raise DataLoss(f"{self._pages_name} is missing: the image cannot be opened") from error
        try:
            header = await pages.pread(0, PAGES_HEADER_BYTES)
            if _check_header(header, PAGES_MAGIC, PAGES_HEADER_BYTES, self._pages_name) != self._generation:
                raise DataLoss(f"{self._pages_name} is damaged at offset 0: it is of another generation")
            for piece in _pieces(self._index.runs):
                first = piece[0].at
                data = await pages.pread(first, piece[-1].at + piece[-1].length - first)
                for place in piece:
                    run = self._verified(place, data[place.at - first : place.at - first + place.length])
                    if run is not None:
                        yield run
        finally:
            await pages.close()

    def _verified(self, place: _Place, data: bytes) -> Run | None:
        name = self.objects[place.number].name
        if len(data) == place.length and zlib.crc32(data) == place.crc32:
            return Run(name, place.offset, data)
        damage = (
            f"{self._pages_name} is damaged at offset {place.at}: {place.length} bytes of {name} at {place.offset} "
            "do not match their checksum"
        )
        if not self._lenient:
            raise DataLoss(damage)
        self.lost.append(damage)
        return None


class _IndexReader:
    """Reads an index entry by entry, and believes nothing that is not checked."""

    def __init__(self, index_file: DiskFile, generation: int) -> None:
        self._file = index_file
        self._generation = generation
        self._name = _index_name(generation)
        self._at = INDEX_HEADER_BYTES
        self._crc32 = 0

    async def read(self, *, lenient: bool, marker: Marker | None) -> _Index:
        header = await self._file.pread(0, INDEX_HEADER_BYTES)
        generation = _check_header(header, INDEX_MAGIC, INDEX_HEADER_BYTES, self._name)
        if generation != self._generation:
            raise DataLoss(f"{self._name} is damaged at offset 0: it says generation {generation}")
        self._crc32 = zlib.crc32(header)
        index = _Index()
        try:
            while index.totals is None:
                await self._read_entry(index)
            if marker is not None and not lenient:
                self._check_end(index, marker, await self._file.size())
        except DataLoss:
            if not lenient or not index.objects:
                raise
        return index

    async def _read_entry(self, index: _Index) -> None:
        start = self._at
        head = await self._file.pread(start, _ENTRY.size)
        if len(head) < _ENTRY.size:
            raise self._damaged(start, "it ends before its last entry")
        kind, reserved, length, checksum = _ENTRY.unpack(head)
        payload = await self._file.pread(start + _ENTRY.size, min(length, _MAX_ENTRY_BYTES))
        if reserved or len(payload) != length or checksum != _entry_checksum(self._generation, kind, payload):
            raise self._damaged(start, "the entry does not match its checksum")
        if kind == _OBJECTS:
            index.objects.extend(_unpack_objects(payload))
        elif kind == _RUNS:
            index.runs.extend(self._checked_runs(start, payload, index.objects))
        elif kind == _END:
            index.totals = _TOTALS.unpack(payload)
        else:
            raise self._damaged(start, f"{kind} is not a type of entry")
        self._at = start + _ENTRY.size + length
        self._crc32 = zlib.crc32(payload, zlib.crc32(head, self._crc32))

    def _checked_runs(self, start: int, payload: bytes, objects: Sequence[SavedObject]) -> Iterable[_Place]:
        for place in map(_Place._make, _RUN.iter_unpack(payload)):
            end = place.offset + place.length
            if place.number >= len(objects) or place.length > RUN_BYTES or end > objects[place.number].size_bytes:
                raise self._damaged(start, f"{place.length} bytes at {place.offset} of object {place.number} cannot be")
            yield place

    def _check_end(self, index: _Index, marker: Marker, size_bytes: int) -> None:
        wrong = (
            (self._at, size_bytes, self._crc32) != (marker.index_bytes, marker.index_bytes, marker.index_crc32)
            or index.totals != (len(index.runs), marker.pages_bytes)
            or len(index.objects) != marker.objects
        )
        if wrong:
            raise self._damaged(self._at, f"it is not the index that {MARKER} names")

    def _damaged(self, offset: int, what: str) -> DataLoss:
        return DataLoss(f"{self._name} is damaged at offset {offset}: {what}")


def _check_header(block: bytes, magic: bytes, block_bytes: int, name: str) -> int:
    """The generation that a file's header names."""
    if len(block) < block_bytes:
        raise DataLoss(f"{name} is damaged at offset 0: {len(block)} bytes are too few for its header")
    found, major, minor, _, features, generation, _, producer = _HEADER.unpack_from(block)
    if found != magic:
        raise DataLoss(f"{name} is damaged at offset 0: {found!r} is not its magic {magic!r}")
    if _CHECKSUM.unpack_from(block, block_bytes - _CHECKSUM.size) != (zlib.crc32(block[: -_CHECKSUM.size]),):
        raise DataLoss(f"{name} is damaged at offset 0: the header does not match its checksum")
    if major > VERSION[0] or features:
        raise _too_new(name, f"{major}.{minor}", producer.rstrip(b"\0").decode("ascii", "replace"))
    return int(generation)


def _too_new(name: str, found: str, producer: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{name}: written by everram {producer} in version {found}, this is everram {PACKAGE_VERSION} "
        f"with version {VERSION[0]}.{VERSION[1]}: use the later everram"
    )


def _entry_checksum(generation: int, kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QHHI", generation, kind, 0, len(payload))))


def _unpack_objects(payload: bytes) -> Iterable[SavedObject]:
    at = 0
    while at < len(payload):
        size_bytes, name_bytes = _OBJECT.unpack_from(payload, at)
        at += _OBJECT.size + name_bytes
        yield SavedObject(payload[at - name_bytes : at].decode(), size_bytes)


def _pieces(places: Iterable[_Place]) -> Iterable[list[_Place]]:
    """Runs that lie one after the other in the pages file, together at most PIECE_BYTES: one read each."""
    piece: list[_Place] = []
    for place in places:
        if piece:
            end = piece[-1].at + piece[-1].length
            if place.at != end or place.at + place.length - piece[0].at > PIECE_BYTES:
                yield piece
                piece = []
        piece.append(place)
    if piece:
        yield piece


def _pages_name(generation: int) -> str:
    return f"{FOLDER}/pages.{generation}"


def _index_name(generation: int) -> str:
    return f"{FOLDER}/index.{generation}"


async def _remove(disk: Disk, generation: int) -> None:
    await disk.remove(_index_name(generation))
    await disk.remove(_pages_name(generation))
