"""An image: a machine's memory on storage, flushed while it runs, saved when it stops, opened when it starts again.

    writer = await ImageWriter.begin(...)              # everram.runtime.formats.image_writer
    survey = await examine(disk)                       # none, complete, incomplete or opened
    image = await Image.open(disk, survey.generation, survey.marker)    # everram.runtime.formats.image_reader

In the folder `image/` lie segments (`pages.N` with `index.N`), into which pages are appended while the machine runs and
when it is saved; a catalog for each save (`catalog.G`), which says what the memory consisted of; and the `marker`,
written last, which names the generation G that counts and the segments that it is made of. Pages that were flushed
into segments which no marker and no catalog names are nobody's: only a save makes an image of them, because only then
the guests stand still. One complete image is always there once the first has been.

An image is opened silently only if it is complete and nobody opened it before: memory that guests have used since is
gone for good if it is not in a newer image, and starting from the older one is a person's choice. docs/formats.md,
"Image", has the layout.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace

from everram.runtime.environment import Disk
from everram.runtime.errors import DataLoss
from everram.runtime.formats.image_files import FOLDER, VERSION, Found, find, other_format
from everram.runtime.formats.segment import SegmentRef
from everram.runtime.version import PACKAGE_VERSION

MARKER = f"{FOLDER}/marker"


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
    segments: tuple[SegmentRef, ...] = ()
    """In their order: of two that have a page the later one is right."""
    objects: int = 0
    catalog_bytes: int = 0
    catalog_crc32: int = 0
    saved_at_ns: int = 0
    """Since 1970, for people."""
    opened_by: str = ""
    """Of the opening that is allowed to begin again, see `everram.actors.power_monitor`."""
    host_id: str = ""
    """Of the host whose memory it is; empty if nobody said."""
    producer: str = ""
    format: str = f"{VERSION[0]}.{VERSION[1]}"

    def encode(self) -> bytes:
        """A line with the checksum of the rest, then JSON."""
        members = asdict(self) | {"segments": [segment._asdict() for segment in self.segments]}
        body = json.dumps(members, indent=2).encode() + b"\n"
        return b"everram-image %08x\n" % zlib.crc32(body) + body

    @staticmethod
    def decode(data: bytes) -> Marker:
        """Raises DataLoss, or FailedPrecondition for another format."""
        head, _, body = data.partition(b"\n")
        if head != b"everram-image %08x" % zlib.crc32(body):
            raise DataLoss(f"{MARKER} is damaged at offset 0: it does not match its checksum")
        try:
            members = json.loads(body)
            if int(members["format"].split(".")[0]) == VERSION[0]:
                members["segments"] = tuple(SegmentRef(**segment) for segment in members["segments"])
                return Marker(**{name: members[name] for name in Marker.__slots__ if name in members})
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{MARKER} is damaged at offset {len(head) + 1}: {error!r}") from error
        raise other_format(MARKER, members["format"], members.get("producer", ""))


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
    segments: tuple[int, ...] = ()
    """Those that lie there, whether anything names them or not."""

    @property
    def next_segment(self) -> int:
        """Higher than every number that lies there or is named."""
        named = [segment.number for segment in self.marker.segments] if self.marker else []
        return max((*self.segments, *named), default=0) + 1


async def examine(disk: Disk) -> Survey:
    """Look, and change nothing. Raises FailedPrecondition for an image of another format."""
    found = await find(disk)
    if not found.marker and not found.catalogs:
        return Survey("none", segments=found.segments)
    try:
        marker = Marker.decode(await disk.read(MARKER)) if found.marker else None
        reason = "its save was interrupted before the end"
    except DataLoss as error:
        marker, reason = None, error.message
    return _survey(found, marker, reason)


def _survey(found: Found, marker: Marker | None, reason: str) -> Survey:
    newest = max(found.catalogs, default=0)
    if marker is None or newest > marker.generation:
        return Survey("incomplete", newest, marker, newest, reason, found.catalogs, found.segments)
    return Survey(marker.state, marker.generation, marker, generations=found.catalogs, segments=found.segments)


async def mark_opened(disk: Disk, survey: Survey, generation: int, memory_id: str, *, opened_by: str = "") -> None:
    """Durably note that guests may run on this image, as memory `memory_id`: it never opens silently again."""
    marker = survey.marker
    if marker is None or marker.generation != generation:
        marker = Marker("opened", generation, "an unfinished save", memory_id, whole=False)
    producer = PACKAGE_VERSION
    opened = replace(marker, state="opened", memory_id=memory_id, opened_by=opened_by, producer=producer)
    await disk.replace(MARKER, opened.encode())
