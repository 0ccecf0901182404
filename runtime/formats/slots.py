"""A two-slot record area: a small set of records in persistent memory that changes as a whole, or not at all.

    area = SlotArea.format(mapping, FORMAT)
    area.commit([Record(GUEST, payload)])
    SlotArea.open(mapping, FORMAT).content.records

A commit writes the slot that is not in use, flushes and drains, and then publishes the new generation with one 8-byte
store: a crash at any store leaves the old content or the new one, never a mixture. Each slot says by itself which
version and which features it was written with, so a later everram can take over an area and an earlier one can tell
that it must not. Records it does not know are kept on rewrite unless they are marked required. docs/formats.md,
"Two-slot record area", has the layout.

Where a format is indexed, the last record says of every other what it is and whose, and where it ends: a damaged record
then costs only what it holds (`Content.damaged`), and is named.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.version import PACKAGE_VERSION

AREA_VERSION = 1
_AREA = struct.Struct("<8sIIQ")
"""magic, version of the area's layout, reserved, size in bytes; then its CRC-32."""
_CHECKSUM = struct.Struct("<I")
GENERATION_OFFSET = 64
"""The published word has a cache line to itself."""
SLOTS_OFFSET = PAGE_BYTES
_SLOT = struct.Struct("<4sHHQQQIIQ32s")
"""magic, major, minor, required features, optional features, generation, flags, records, their bytes, producer."""
_SLOT_MAGIC = b"SLOT"
_RECORDS_OFFSET = 128
_RECORD = struct.Struct("<HHI")
INDEX = 0x7FFF
"""Type of the record that says of the others what they are."""
_ENTRY = struct.Struct("<HHIIH")
"""Of the index: type, flags, length and CRC-32 of a record, as in the record itself, and the length of its key."""
_INDEX_END = struct.Struct("<I4s")
"""Bytes of the index with this, and a magic: so it is found from the end."""
_INDEX_MAGIC = b"INDX"
_NOTHING = bytes(PAGE_BYTES)
_CLEAN = 1
_REQUIRED = 1
_PRODUCER_BYTES = 32
_CHECK_BITS = 24
"""Of the published word, so that no flipped bit makes it name another generation, or none."""
MAX_GENERATION = (1 << (64 - _CHECK_BITS)) - 1


@dataclass(frozen=True, slots=True)
class Format:
    """What a kind of area holds, and what this everram knows about it."""

    name: str
    """For messages: "VMemFS superblock"."""
    magic: bytes
    version: tuple[int, int]
    """Major, minor. A reader takes the same or an earlier major; a later minor only if it requires nothing unknown."""
    record_types: frozenset[int]
    required_features: int = 0
    """That this everram knows, and writes unless a commit says which of them it needs."""
    optional_features: int = 0
    when_full: str = "remove something first"
    indexed_since: tuple[int, int] | None = None
    """The version from which on it has an index; None: it has none."""


@dataclass(frozen=True, slots=True)
class Record:
    """One item of the content; its meaning is its type's."""

    type: int
    payload: bytes
    required: bool = False
    """A reader that does not know the type must refuse the area instead of skipping the record."""
    key: str = ""
    """Whose it is, for the index."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that does not match its checksum, as far as the index knows it."""

    type: int
    key: str
    offset: int
    """In the area."""


@dataclass(frozen=True, slots=True)
class Content:
    """What one commit left."""

    generation: int
    version: tuple[int, int]
    required_features: int
    optional_features: int
    producer: str
    """The everram that wrote it."""
    clean: bool
    """Its writer stopped in order after this commit."""
    records: tuple[Record, ...] = field(repr=False)
    damaged: tuple[Damaged, ...] = ()


class SlotArea:
    """One area; `content` is always what the last commit left."""

    def __init__(self, mapping: Mapping, kind: Format, content: Content) -> None:
        self._mapping = mapping
        self._kind = kind
        self.content = content

    @staticmethod
    def is_blank(mapping: Mapping) -> bool:
        """Whether nothing was ever committed here, and so nothing can be lost by formatting it."""
        return mapping.size_bytes < SLOTS_OFFSET or mapping.load_u64(GENERATION_OFFSET) == 0

    @staticmethod
    def format(
        mapping: Mapping, kind: Format, records: Iterable[Record] = (), *, features: int | None = None
    ) -> SlotArea:
        """A new area whose first commit holds `records`; until that is published the area stays blank."""
        if _slot_bytes(mapping.size_bytes) < PAGE_BYTES:
            raise ResourceExhausted(f"{kind.name}: {mapping.size_bytes} bytes are too few for two slots")
        mapping.publish_u64(GENERATION_OFFSET, 0)
        header = _AREA.pack(kind.magic, AREA_VERSION, 0, mapping.size_bytes)
        mapping.persist(0, header + _CHECKSUM.pack(zlib.crc32(header)))
        nothing = Content(0, kind.version, kind.required_features, kind.optional_features, "", False, ())
        area = SlotArea(mapping, kind, nothing)
        area.commit(records, features=features)
        return area

    @staticmethod
    def open(mapping: Mapping, kind: Format) -> SlotArea:
        """Raises DataLoss for a damaged area, FailedPrecondition for one that this everram must not touch."""
        generation = _Reader(mapping, kind).published_generation()
        return SlotArea(mapping, kind, _Reader(mapping, kind).content(generation))

    @staticmethod
    def copy(source: Mapping, target: Mapping) -> None:
        """Copy an area into zeroed memory of the same size; the copy stays blank until its last store."""
        for offset in range(0, source.size_bytes, PAGE_BYTES):
            page = bytearray(source.load(offset, min(PAGE_BYTES, source.size_bytes - offset)))
            if offset == 0:
                page[GENERATION_OFFSET : GENERATION_OFFSET + 8] = bytes(8)
            if page != _NOTHING[: len(page)]:
                target.store(offset, page)
                target.flush(offset, len(page))
        target.drain()
        target.publish_u64(GENERATION_OFFSET, source.load_u64(GENERATION_OFFSET))

    def commit(self, records: Iterable[Record], *, clean: bool = False, features: int | None = None) -> int:
        """Replace the content, keeping records of types unknown here; the new generation.

        `features`: those of the format's that this content requires of its readers; None: all, and what there were.
        Persistent when this returns. Raises ResourceExhausted if it does not fit; the old content then stays.
        """
        old, kind = self.content, self._kind
        generation = old.generation + 1
        new = Content(
            generation=generation,
            version=max(kind.version, old.version),
            required_features=kind.required_features | old.required_features if features is None else features,
            optional_features=kind.optional_features | old.optional_features,
            producer=PACKAGE_VERSION,
            clean=clean,
            records=(*records, *(r for r in old.records if r.type not in kind.record_types)),
        )
        return self._commit(new)

    def rewrite(self, records: Iterable[Record], kind: Format, *, clean: bool = False, features: int = 0) -> int:
        """As `commit`, but in an earlier version of the format, with nothing that it does not know; unless `features`
        require something of its readers."""
        content = Content(
            generation=self.content.generation + 1,
            version=kind.version,
            required_features=kind.required_features | features,
            optional_features=kind.optional_features,
            producer=PACKAGE_VERSION,
            clean=clean,
            records=tuple(records),
        )
        return self._commit(content)

    def _commit(self, new: Content) -> int:
        kind, generation = self._kind, new.generation
        slot = _pack(new, indexed=kind.indexed_since is not None and new.version >= kind.indexed_since)
        capacity = _slot_bytes(self._mapping.size_bytes)
        if len(slot) > capacity or generation > MAX_GENERATION:
            raise ResourceExhausted(
                f"{kind.name} is full: {len(slot)} bytes of {capacity} wanted for {len(new.records)} records: "
                f"{kind.when_full}"
            )
        self._mapping.persist(_slot_offset(self._mapping.size_bytes, generation), slot)
        self._mapping.publish_u64(GENERATION_OFFSET, _published(generation))
        self.content = new
        return generation


class _Reader:
    """Reads an area and believes nothing that is not checked."""

    def __init__(self, mapping: Mapping, kind: Format) -> None:
        self._mapping = mapping
        self._kind = kind

    def published_generation(self) -> int:
        size_bytes = self._mapping.size_bytes
        if _slot_bytes(size_bytes) < PAGE_BYTES:
            raise self._damaged(0, f"{size_bytes} bytes are too few for two slots")
        header = self._mapping.load(0, _AREA.size)
        magic, layout, _, stated_bytes = _AREA.unpack(header)
        if magic != self._kind.magic:
            raise self._damaged(0, f"{magic!r} is not its magic {self._kind.magic!r}")
        if _CHECKSUM.unpack(self._mapping.load(_AREA.size, _CHECKSUM.size)) != (zlib.crc32(header),):
            raise self._damaged(0, "the header does not match its checksum")
        if layout > AREA_VERSION:
            raise FailedPrecondition(
                f"{self._kind.name}: its area has layout {layout}, everram {PACKAGE_VERSION} reads up to {AREA_VERSION}"
            )
        if stated_bytes != size_bytes:
            raise self._damaged(0, f"made for {stated_bytes} bytes, found in {size_bytes}")
        word = self._mapping.load_u64(GENERATION_OFFSET)
        generation = word >> _CHECK_BITS
        if not word or word != _published(generation):
            raise self._damaged(GENERATION_OFFSET, f"{word:#x} names no generation")
        return generation

    def content(self, generation: int) -> Content:
        start = _slot_offset(self._mapping.size_bytes, generation)
        header = self._mapping.load(start, _SLOT.size)
        magic, major, minor, required, optional, own, flags, count, length, producer = _SLOT.unpack(header)
        if magic != _SLOT_MAGIC:
            raise self._damaged(start, f"{magic!r} is not a slot's magic")
        if _CHECKSUM.unpack(self._mapping.load(start + _SLOT.size, _CHECKSUM.size)) != (zlib.crc32(header),):
            raise self._damaged(start, "the slot's header does not match its checksum")
        if own != generation or length > _slot_bytes(self._mapping.size_bytes) - _RECORDS_OFFSET:
            raise self._damaged(start, f"the slot says generation {own} and {length} bytes of records")
        records, damaged = self._records(start + _RECORDS_OFFSET, count, length, generation, (major, minor))
        content = Content(
            generation=generation,
            version=(major, minor),
            required_features=required,
            optional_features=optional,
            producer=producer.rstrip(b"\0").decode("ascii", "replace"),
            clean=bool(flags & _CLEAN),
            records=tuple(record for record in records if record.type != INDEX),
            damaged=tuple(damaged),
        )
        self._check_understood(content)
        return content

    def _records(
        self, start: int, count: int, length: int, generation: int, version: tuple[int, int]
    ) -> tuple[list[Record], list[Damaged]]:
        """Those that verify, and those that the index names instead."""
        data = self._mapping.load(start, length)
        records: list[Record] = []
        try:
            self._walk(data, start, count, generation, records)
        except DataLoss:
            since = self._kind.indexed_since
            if since is None or version < since:
                raise
            index = _find_index(data, generation)
            if index is not None:
                return _by_index(data, start, index, generation)
            if len(records) < count - 1:
                raise
            # It is the index that is damaged: nobody misses it while all it speaks of is right.
        return records, []

    def _walk(self, data: bytes, start: int, count: int, generation: int, records: list[Record]) -> None:
        """Raises DataLoss at the first record that does not verify; those before it are in `records` by then."""
        at, length = 0, len(data)
        overhead = _RECORD.size + _CHECKSUM.size
        for _ in range(count):
            if at + overhead > length:
                raise self._damaged(start + at, "the slot ends within a record")
            kind, flags, payload_bytes = _RECORD.unpack_from(data, at)
            end = at + overhead + payload_bytes
            if end > length:
                raise self._damaged(start + at, "a record is longer than its slot")
            payload = data[at + overhead : end]
            (checksum,) = _CHECKSUM.unpack_from(data, at + _RECORD.size)
            if checksum != _record_checksum(generation, data[at : at + _RECORD.size], payload):
                raise self._damaged(start + at, f"record {len(records)} does not match its checksum")
            records.append(Record(kind, payload, bool(flags & _REQUIRED)))
            at = end
        if at != length:
            raise self._damaged(start + at, f"{length - at} bytes after the last record")

    def _check_understood(self, content: Content) -> None:
        kind = self._kind
        reason = ""
        unknown = content.required_features & ~kind.required_features
        strange = sorted({r.type for r in content.records if r.required and r.type not in kind.record_types})
        if content.version[0] > kind.version[0]:
            reason = "a later format"
        elif unknown:
            reason = f"required features {unknown:#x} are unknown here"
        elif strange:
            reason = f"required records of type {', '.join(map(str, strange))} are unknown here"
        if reason:
            raise FailedPrecondition(
                f"{kind.name}: written by everram {content.producer} in version {_dotted(content.version)}, this "
                f"is everram {PACKAGE_VERSION} with version {_dotted(kind.version)}: {reason}; use the later everram"
            )

    def _damaged(self, offset: int, what: str) -> DataLoss:
        return DataLoss(f"{self._kind.name} is damaged at offset {offset}: {what}")


def _slot_bytes(size_bytes: int) -> int:
    """Two equal slots of whole pages behind the header's page."""
    return (size_bytes - SLOTS_OFFSET) // 2 // PAGE_BYTES * PAGE_BYTES


def _slot_offset(size_bytes: int, generation: int) -> int:
    return SLOTS_OFFSET + (generation & 1) * _slot_bytes(size_bytes)


def _published(generation: int) -> int:
    check = zlib.crc32(generation.to_bytes(8, "little")) >> (32 - _CHECK_BITS)
    return generation << _CHECK_BITS | check


def _record_checksum(generation: int, header: bytes, payload: bytes) -> int:
    """The generation is in it: what an earlier commit left in the same slot never passes for this one's."""
    return zlib.crc32(payload, zlib.crc32(header, zlib.crc32(generation.to_bytes(8, "little"))))


def _find_index(data: bytes, generation: int) -> bytes | None:
    """The payload of the index at the end of the records; None if it does not verify."""
    if len(data) < _INDEX_END.size:
        return None
    length, magic = _INDEX_END.unpack_from(data, len(data) - _INDEX_END.size)
    at = len(data) - length - _CHECKSUM.size - _RECORD.size
    if magic != _INDEX_MAGIC or length < _INDEX_END.size or at < 0:
        return None
    payload = data[len(data) - length :]
    checksum = _CHECKSUM.pack(_record_checksum(generation, _RECORD.pack(INDEX, 0, length), payload))
    return payload if data[at + _RECORD.size : at + _RECORD.size + _CHECKSUM.size] == checksum else None


def _by_index(data: bytes, start: int, index: bytes, generation: int) -> tuple[list[Record], list[Damaged]]:
    """The records, each found and verified by what the index says of it."""
    records: list[Record] = []
    damaged: list[Damaged] = []
    at = entry_at = 0
    while entry_at < len(index) - _INDEX_END.size:
        kind, flags, length, checksum, key_bytes = _ENTRY.unpack_from(index, entry_at)
        entry_at += _ENTRY.size
        key = index[entry_at : entry_at + key_bytes].decode("utf-8", "replace")
        entry_at += key_bytes
        payload_at = at + _RECORD.size + _CHECKSUM.size
        payload = data[payload_at : payload_at + length]
        if _record_checksum(generation, _RECORD.pack(kind, flags, length), payload) == checksum:
            records.append(Record(kind, payload, bool(flags & _REQUIRED)))
        else:
            damaged.append(Damaged(kind, key, start + at))
        at = payload_at + length
    return records, damaged


def _index_of(generation: int, records: Iterable[Record]) -> Record:
    entries = []
    for record in records:
        header, key = _record_header(record), record.key.encode()
        checksum = _record_checksum(generation, header, record.payload)
        entries.append(_ENTRY.pack(*_RECORD.unpack(header), checksum, len(key)) + key)
    payload = b"".join(entries)
    return Record(INDEX, payload + _INDEX_END.pack(len(payload) + _INDEX_END.size, _INDEX_MAGIC))


def _pack(content: Content, *, indexed: bool) -> bytes:
    listed = content.records
    if indexed:
        listed = (*listed, _index_of(content.generation, listed))
    records = b"".join(_pack_record(content.generation, record) for record in listed)
    header = _SLOT.pack(
        _SLOT_MAGIC,
        *content.version,
        content.required_features,
        content.optional_features,
        content.generation,
        _CLEAN if content.clean else 0,
        len(listed),
        len(records),
        content.producer.encode("ascii", "replace")[:_PRODUCER_BYTES],
    )
    return (header + _CHECKSUM.pack(zlib.crc32(header))).ljust(_RECORDS_OFFSET, b"\0") + records


def _record_header(record: Record) -> bytes:
    return _RECORD.pack(record.type, _REQUIRED if record.required else 0, len(record.payload))


def _pack_record(generation: int, record: Record) -> bytes:
    header = _record_header(record)
    return header + _CHECKSUM.pack(_record_checksum(generation, header, record.payload)) + record.payload


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
