"""What the files of an image have in common: names, headers, and entries that are believed only if they verify.

    block = header(INDEX_MAGIC, number, memory_id)
    written = entry(number, BATCH, payload)

    number = check_header(block, INDEX_MAGIC, name)
    for at, kind, payload in entries(content, number, name): ...

docs/formats.md, "Image", has the layout; `everram.runtime.formats.image` says what the files are for.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from everram.runtime.environment import Disk
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition
from everram.runtime.version import PACKAGE_VERSION

FOLDER = "image"
VERSION = (2, 0)
PAGES_MAGIC = b"EVRIMAGE"
INDEX_MAGIC = b"EVRINDEX"
CATALOG_MAGIC = b"EVRCATAL"
HEADER_BYTES = 128
_HEADER = struct.Struct("<8sHHIQQ32s32s")
"""magic, major, minor, reserved, required features, number, memory_id, producer; CRC-32 ends the header's block."""
_CHECKSUM = struct.Struct("<I")
_ENTRY = struct.Struct("<HHII")
"""type, reserved, length of the payload, CRC-32 over number, type, reserved, length and payload."""
MAX_ENTRY_BYTES = 16 << 20
_PAGES_FILE = re.compile(r"pages\.([0-9]{1,18})")
_INDEX_FILE = re.compile(r"index\.([0-9]{1,18})")
_CATALOG_FILE = re.compile(r"catalog\.([0-9]{1,18})")


def pages_name(segment: int) -> str:
    return f"{FOLDER}/pages.{segment}"


def index_name(segment: int) -> str:
    return f"{FOLDER}/index.{segment}"


def catalog_name(generation: int) -> str:
    return f"{FOLDER}/catalog.{generation}"


@dataclass(frozen=True, slots=True)
class Found:
    """The files that there are, by their numbers, ascending."""

    marker: bool
    segments: tuple[int, ...]
    catalogs: tuple[int, ...]


async def find(disk: Disk) -> Found:
    names = await disk.list(FOLDER)
    segments = {
        int(match[1]) for name in names if (match := _PAGES_FILE.fullmatch(name) or _INDEX_FILE.fullmatch(name))
    }
    catalogs = {int(match[1]) for name in names if (match := _CATALOG_FILE.fullmatch(name))}
    return Found("marker" in names, tuple(sorted(segments)), tuple(sorted(catalogs)))


async def remove_segment(disk: Disk, segment: int) -> None:
    for name in segment_files(segment):
        await disk.remove(name)


def segment_files(segment: int) -> tuple[str, str]:
    """In the order in which they are removed: while one is there, no other segment is given this number."""
    return index_name(segment), pages_name(segment)


def header(magic: bytes, number: int, memory_id: str, block_bytes: int = HEADER_BYTES) -> bytes:
    packed = _HEADER.pack(magic, *VERSION, 0, 0, number, memory_id.encode(), PACKAGE_VERSION.encode())
    block = packed.ljust(block_bytes - _CHECKSUM.size, b"\0")
    return block + _CHECKSUM.pack(zlib.crc32(block))


def check_header(block: bytes, magic: bytes, number: int, name: str, block_bytes: int = HEADER_BYTES) -> None:
    """Raises DataLoss, or FailedPrecondition for another format."""
    if len(block) < block_bytes:
        raise DataLoss(f"{name} is damaged at offset 0: {len(block)} bytes are too few for its header")
    found, major, minor, _, features, says, _, producer = _HEADER.unpack_from(block)
    if found != magic:
        raise DataLoss(f"{name} is damaged at offset 0: {found!r} is not its magic {magic!r}")
    if _CHECKSUM.unpack_from(block, block_bytes - _CHECKSUM.size) != (zlib.crc32(block[: block_bytes - 4]),):
        raise DataLoss(f"{name} is damaged at offset 0: the header does not match its checksum")
    if major != VERSION[0] or features:
        raise other_format(name, f"{major}.{minor}", producer.rstrip(b"\0").decode("ascii", "replace"))
    if says != number:
        raise DataLoss(f"{name} is damaged at offset 0: its header says number {says}")


def other_format(name: str, found: str, producer: str) -> EverramError:
    which = "later" if int(found.split(".")[0]) > VERSION[0] else "earlier"
    return FailedPrecondition(
        f"{name}: written by everram {producer} in version {found}, this is everram {PACKAGE_VERSION} "
        f"with version {VERSION[0]}.{VERSION[1]}: use the {which} everram"
    )


def entry(number: int, kind: int, payload: bytes) -> bytes:
    return _ENTRY.pack(kind, 0, len(payload), _checksum(number, kind, payload)) + payload


def entries(content: bytes, number: int, name: str) -> Iterator[tuple[int, int, bytes]]:
    """(offset, type, payload) of each entry behind the header; raises DataLoss at the first that does not verify."""
    at = HEADER_BYTES
    while at < len(content):
        if len(content) - at < _ENTRY.size:
            raise damaged(name, at, "it ends within an entry")
        kind, reserved, length, checksum = _ENTRY.unpack_from(content, at)
        payload = content[at + _ENTRY.size : at + _ENTRY.size + min(length, MAX_ENTRY_BYTES)]
        if reserved or len(payload) != length or checksum != _checksum(number, kind, payload):
            raise damaged(name, at, "the entry does not match its checksum")
        yield at, kind, payload
        at += _ENTRY.size + length


def damaged(name: str, offset: int, what: str) -> DataLoss:
    return DataLoss(f"{name} is damaged at offset {offset}: {what}")


def _checksum(number: int, kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QHHI", number, kind, 0, len(payload))))
