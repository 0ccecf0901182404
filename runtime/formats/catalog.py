"""The catalog of an image: what the memory consisted of when its save began, and what was yet to be written.

    catalog = Catalog(generation, memory_id, segments, own_from, objects, plan)
    await disk.replace(catalog_name(generation), catalog.encode())
    catalog = Catalog.decode(content, generation)

It is written beside the pages, so a save that was cut off can still be told apart, page by page: what its plan names
and its segments do not hold is missing; everything else is there. docs/formats.md, "Image", has the layout.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from everram.runtime.errors import DataLoss
from everram.runtime.formats.image_files import (
    CATALOG_MAGIC,
    HEADER_BYTES,
    catalog_name,
    check_header,
    damaged,
    entries,
    entry,
    header,
)
from everram.runtime.memory.contract import PAGE_BYTES

_OBJECTS, _SEGMENTS, _PLAN, _END = 1, 2, 3, 4
_OBJECT = struct.Struct("<IQH")
RUNS_PER_ENTRY = 1 << 18


@dataclass(frozen=True, slots=True)
class SavedObject:
    """A memory object as it was. `number` stands for it in the segments."""

    name: str
    size_bytes: int
    number: int

    @property
    def pages(self) -> int:
        return -(-self.size_bytes // PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Catalog:
    generation: int
    memory_id: str
    segments: tuple[int, ...]
    """In their order; the last is the one that the save itself writes."""
    own_from: int
    """Page of that one's file from which on the save wrote: before it lies what was flushed earlier."""
    objects: tuple[SavedObject, ...]
    plan: array[int]
    """What the save writes: object, first page, count, three words for each run of neighbouring pages. There may be
    hundreds of thousands, and nobody waits for an object of each."""

    def encode(self) -> bytes:
        written = [header(CATALOG_MAGIC, self.generation, self.memory_id)]
        packed = [_OBJECT.pack(o.number, o.size_bytes, len(o.name.encode())) + o.name.encode() for o in self.objects]
        written.append(entry(self.generation, _OBJECTS, b"".join(packed)))
        words = (self.own_from, *self.segments)
        written.append(entry(self.generation, _SEGMENTS, struct.pack(f"<{len(words)}Q", *words)))
        for first in range(0, len(self.plan), 3 * RUNS_PER_ENTRY):
            written.append(entry(self.generation, _PLAN, self.plan[first : first + 3 * RUNS_PER_ENTRY].tobytes()))
        written.append(entry(self.generation, _END, b""))
        return b"".join(written)

    @staticmethod
    def decode(content: bytes, generation: int) -> Catalog:
        """Raises DataLoss, or FailedPrecondition for another format."""
        name = catalog_name(generation)
        check_header(content[:HEADER_BYTES], CATALOG_MAGIC, generation, name)
        memory_id = content[32:64].rstrip(b"\0").decode("ascii", "replace")
        objects: list[SavedObject] = []
        own_from, segments = 0, tuple[int, ...]()
        plan = array("I")
        kind = at = 0
        for at, kind, payload in entries(content, generation, name):
            try:
                if kind == _OBJECTS:
                    objects.extend(_objects(payload))
                elif kind == _SEGMENTS:
                    own_from, *rest = struct.unpack(f"<{len(payload) // 8}Q", payload)
                    segments = tuple(rest)
                elif kind == _PLAN:
                    if len(payload) % 12:
                        raise damaged(name, at, "its runs are no whole words")
                    plan.frombytes(payload)
                elif kind != _END:
                    raise damaged(name, at, f"{kind} is not a type of entry")
            except (struct.error, ValueError) as error:
                raise damaged(name, at, f"the entry cannot be read: {error}") from error
        if kind != _END or not segments:
            raise damaged(name, len(content), "it ends before its last entry")
        _check(objects, plan, name)
        return Catalog(generation, memory_id, segments, own_from, tuple(objects), plan)


def _objects(payload: bytes) -> Iterable[SavedObject]:
    at = 0
    while at < len(payload):
        number, size_bytes, name_bytes = _OBJECT.unpack_from(payload, at)
        at += _OBJECT.size + name_bytes
        yield SavedObject(payload[at - name_bytes : at].decode(), size_bytes, number)


def _check(objects: Sequence[SavedObject], plan: array[int], name: str) -> None:
    pages = {saved.number: saved.pages for saved in objects}
    ends = map(operator.add, plan[1::3], plan[2::3])
    wrong = len(pages) != len(objects) or not pages.keys() >= set(plan[::3])
    if wrong or any(map(operator.gt, ends, map(pages.__getitem__, plan[::3]))):
        raise DataLoss(f"{name} is damaged at offset {HEADER_BYTES}: its objects and its plan do not agree")
