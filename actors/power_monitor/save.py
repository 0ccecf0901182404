"""Saving a machine's memory to storage, and making it whole again at the next start.

    report = await save(environment, cause="down", memory_id=..., objects...)
    outcome = await restore(environment, config.open_image)     # before any actor starts, at every start of a host

The order of a restore is what makes it safe against a crash at any point. First every object but `vmemfs` is filled;
then "opened" is written durably into the image; last the superblock appears, whole, with one store. A machine whose
memory has a superblock is whole, so a host that finds none starts over. So that starting over needs nobody's consent,
a small object `restoring` in the machine's memory holds a token that the image's marker repeats: as long as both are
there, nobody can have used what was opened.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from everram.actors.power_monitor.backfill import Backfill
from everram.actors.power_monitor.choices import EMPTY, check_choice
from everram.actors.power_monitor.ends import EndRecord
from everram.actors.power_monitor.flusher import Flushed, Restored
from everram.actors.power_monitor.report import GIVEN_UP, read_report, settle
from everram.runtime.channel import generations
from everram.runtime.contracts.power_monitor_pb2 import SaveReport
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment, Memory, MemoryObject, Stretch
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.formats import image, nvm, vmemfs
from everram.runtime.formats.catalog import SavedObject
from everram.runtime.formats.image import Survey
from everram.runtime.formats.image_reader import Image
from everram.runtime.formats.image_writer import ImageWriter
from everram.runtime.formats.lasting import RESTORING, is_lasting
from everram.runtime.formats.slots import SlotArea
from everram.runtime.memory.absent import bring_what_is_left, is_lacking, read_what_is_left
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.dirty_cap import TRACKED_PREFIX
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.page_service import PageService
from everram.runtime.sizes import size_text

log = logging.getLogger("everram.power_monitor")

_TOKEN_BYTES = 16
FILE_PREFIX = "file."
"""Of the files of remote memory that are saved. They are resizable."""
SNAPSHOTS = (nvm.SNAPSHOTS_NAME, nvm.STORE_NAME)
"""Metadata and old blocks of snapshots: whole or not at all. Both grow."""
METADATA = (vmemfs.MEMORY_NAME, nvm.MEMORY_NAME)
"""Saved first and in one go: actors go on changing them while the rest is being saved."""
PIECE_BYTES = 1 << 20
"""Read at once, so that the loop lives on."""
LONG_RUN_PAGES = 16
RUNS_PER_TURN = 4096
"""Of scattered pages."""
_ORDER = (*METADATA, "log", "pages", "region")
"""What an interrupted save should have got to first."""


@dataclass(slots=True)
class RestoreTimes:
    """How long it took, from the first look at the image."""

    usable_s: float = 0.0
    """Until guests could run; 0: nothing was restored."""
    all_s: float = 0.0
    """Until all was read; 0: it is not yet, or a host died meanwhile."""


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """Where this machine's memory came from."""

    kind: str
    """"kept" by the machine, "restored" from an image, or "empty"."""
    generation: int = 0
    cause: str = ""
    """Why the image was saved."""
    lost: tuple[str, ...] = ()
    """What an image that is not whole did not give back, in sentences."""
    backfill: Backfill | None = None
    """What is still in the image; see there."""
    image: Restored | None = field(default=None, compare=False)
    """If the memory is the image that counts, page for page."""
    times: RestoreTimes = field(default_factory=RestoreTimes, compare=False)


# -- saving


async def save(
    environment: Environment, cause: str, memory_id: str, flushed: Flushed | None = None, *, host_id: str = ""
) -> SaveReport:
    """Save every memory object; guests are frozen already. The image counts when this returns.

    What is `flushed` is not written again. Raises ResourceExhausted or DataLoss if the storage cannot take it; the
    image before then still counts.
    """
    started_ns = environment.clock.now_ns()
    if environment.nvm_files is not None:
        lasting = saved_objects(environment.memory)
        saved_bytes = await environment.nvm_files.sync()
        seconds = (environment.clock.now_ns() - started_ns) / 1e9
        return SaveReport(saved_bytes=saved_bytes, objects=len(lasting), seconds=seconds)
    flushed = Flushed() if flushed is None else flushed
    # No await until the metadata is read: what it says must be of one moment.
    parts = _parts(saved_objects(environment.memory), flushed)
    metadata = {
        part.memory.name: [(page, part.memory.read(page * PAGE_BYTES, pages * PAGE_BYTES)) for page, pages in part.runs]
        for part in parts
        if part.memory.name in METADATA
    }
    await _check_room(environment, sum(pages for part in parts for _, pages in part.runs) * PAGE_BYTES)
    plan = array("I")
    for part in parts:
        plan.extend(word for page, pages in part.runs for word in (part.listed.number, page, pages))
    listing = [part.listed for part in parts]
    writer = await ImageWriter.begin(
        environment.disk, cause, memory_id, listing, plan, base=flushed.base, segment=flushed.segment, host_id=host_id
    )
    try:
        for part in parts:
            if part.memory.name in METADATA:
                for page, data in metadata[part.memory.name]:
                    await writer.add(part.listed.number, page, data)
            else:
                await _save_part(writer, part, flushed)
        await writer.finish(environment.clock.wall_ns())
    except BaseException:
        await writer.abandon()
        raise
    return SaveReport(
        generation=writer.generation,
        saved_bytes=writer.saved_bytes,
        objects=len(parts),
        seconds=(environment.clock.now_ns() - started_ns) / 1e9,
    )


class _Part(NamedTuple):
    """One memory object, and which pages of it are to be written: (first page, count)."""

    memory: MemoryObject
    listed: SavedObject
    runs: Sequence[tuple[int, int]]


def _parts(objects: Iterable[MemoryObject], flushed: Flushed) -> list[_Part]:
    parts, number = [], flushed.first_number
    for memory in objects:
        size_bytes = memory.size_bytes
        if memory.name in flushed.dirty:
            known, runs = flushed.dirty[memory.name]
            parts.append(_Part(memory, SavedObject(memory.name, size_bytes, known), runs))
            continue
        present = [(at // PAGE_BYTES, -(-length // PAGE_BYTES)) for at, length in memory.extents(0, size_bytes)]
        parts.append(_Part(memory, SavedObject(memory.name, size_bytes, number), present))
        number += 1
    return parts


def _is_quiet(name: str, flushed: Flushed) -> bool:
    """Whether nobody stores to it while guests stand still: logs are written by peers, the rest by this host."""
    return name.startswith(TRACKED_PREFIX) and name not in flushed.exposed


async def _save_part(writer: ImageWriter, part: _Part, flushed: Flushed) -> None:
    """Long runs go one by one, and short ones many at a time, without a system call for each."""
    memory, number = part.memory, part.listed.number
    if memory.resizable:
        for page, pages in part.runs:
            for at in range(page, page + pages, PIECE_BYTES // PAGE_BYTES):
                length = min(PIECE_BYTES, (page + pages - at) * PAGE_BYTES)
                await writer.add(number, at, _read_file(memory, at * PAGE_BYTES, length))
                await asyncio.sleep(0)
        return
    if not part.runs:
        return
    lacking = is_lacking(memory)
    quiet, window = _is_quiet(memory.name, flushed), memory.window()
    short: list[tuple[int, int]] = []
    for run in part.runs:
        if lacking and not await _brought(memory, *run):
            await _add_what_is_left(writer, part, *run)
            continue
        if run[1] < LONG_RUN_PAGES:
            short.append(run)
            continue
        offset, length = run[0] * PAGE_BYTES, run[1] * PAGE_BYTES
        await writer.add(number, run[0], window[offset : offset + length] if quiet else Stretch(memory, offset, length))
    for first in range(0, len(short), RUNS_PER_TURN):
        await writer.add_scattered(number, short[first : first + RUNS_PER_TURN], window)
        await asyncio.sleep(0)


async def _brought(memory: MemoryObject, page: int, pages: int) -> bool:
    """Of what a lazy restore has not read yet: what is dirty may lack, too, where a region was exposed, and so counts
    as dirty as a whole. False if something of it is lost: it must not be looked at, or zeros would appear there."""
    there = True
    for offset in range(page * PAGE_BYTES, (page + pages) * PAGE_BYTES, PIECE_BYTES):
        there &= bring_what_is_left(memory, offset, min(PIECE_BYTES, (page + pages) * PAGE_BYTES - offset))
        if pages > 1:
            await asyncio.sleep(0)
    return there


async def _add_what_is_left(writer: ImageWriter, part: _Part, page: int, pages: int) -> None:
    for at in range(page, page + pages, PIECE_BYTES // PAGE_BYTES):
        length = min(PIECE_BYTES, (page + pages - at) * PAGE_BYTES)
        await writer.add(part.listed.number, at, read_what_is_left(part.memory, at * PAGE_BYTES, length))
        await asyncio.sleep(0)


def _read_file(saved: MemoryObject, offset: int, length: int) -> bytes:
    """Whole pages; of a file that may have been shortened since: zeros for what is not there any more."""
    there = max(0, min(length, saved.size_bytes - offset))
    return saved.read(offset, there).ljust(-(-length // PAGE_BYTES) * PAGE_BYTES, b"\0")


def saved_objects(memory: Memory) -> list[MemoryObject]:
    """What a save writes, in its order."""
    return [memory.open(name) for name in sorted(memory.names(), key=_order) if is_lasting(name)]


def pieces_of(saved: MemoryObject, end: int | None = None) -> Iterable[tuple[int, int]]:
    """What is present of an object, before `end`, in pieces of at most PIECE_BYTES."""
    for offset, length in saved.extents():
        stop = offset + length if end is None else min(end, offset + length)
        for at in range(offset, stop, PIECE_BYTES):
            yield at, min(PIECE_BYTES, stop - at)


async def _check_room(environment: Environment, present_bytes: int) -> None:
    free_bytes = await environment.disk.free_bytes()
    if present_bytes > free_bytes:
        raise ResourceExhausted(
            f"saving takes {size_text(present_bytes)}, the disk of the state folder has {size_text(free_bytes)} free: "
            "free some, or give memory up with `everram down --discard`"
        )


def _order(name: str) -> tuple[int, str]:
    if name in SNAPSHOTS:
        return len(_ORDER), name
    kind = name.split(".")[0]
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER), name


# -- restoring


async def restore(
    environment: Environment,
    open_image: str = "",
    faults: PageService | None = None,
    *,
    lazily: bool = True,
    host_id: str = "",
) -> RestoreOutcome:
    """Make the machine's memory whole before any actor starts; harmless if the machine kept it.

    `open_image`: the named choice, "incomplete", "opened" or "empty", where none must be made silently. Raises
    FailedPrecondition with the choices if one is needed, DataLoss if the image is damaged (with file and offset); the
    image is then as it was. `lazily`: leave in the image at first what faults are served for.
    """
    memory = environment.memory
    if _is_whole(memory):
        if RESTORING in memory.names():
            await memory.remove(RESTORING)
        return RestoreOutcome("kept", backfill=await Backfill.resume(environment.disk, memory, faults))
    survey = await image.examine(environment.disk)
    token = _token(memory)
    again = bool(token) and survey.marker is not None and survey.marker.opened_by == token
    await _clear(memory, keep=RESTORING if again else "")
    disk = environment.disk
    ends, report = await EndRecord.read(disk), await read_report(disk)
    await ends.end_life(survey, report)
    _check_ours(survey, host_id)
    silently = again or survey.state == "complete"
    if not again:
        await check_choice(disk, survey, ends.counts.last, report, open_image)
    if not silently:
        await settle(disk, GIVEN_UP)
    if survey.state == "none" or (open_image == EMPTY and not silently):
        await ends.begin_life()
        return RestoreOutcome("empty")
    began_ns = environment.clock.now_ns()
    token = token if again else environment.entropy.token()
    restorer = _Restorer(environment, survey, silently, token, faults if lazily else None)
    try:
        outcome = await restorer.run(_chosen(survey, open_image, silently))
    except DataLoss as error:
        await _clear(memory, keep=RESTORING)
        if open_image == EMPTY:
            await ends.begin_life()
            return RestoreOutcome("empty")
        raise DataLoss(f"{error.message}; `--open {EMPTY}` starts this machine without it") from error
    except BaseException:
        await _clear(memory, keep=RESTORING)
        raise
    await ends.begin_life()
    _take_times(outcome, lambda: (environment.clock.now_ns() - began_ns) / 1e9)
    return outcome


def _take_times(outcome: RestoreOutcome, since_s: Callable[[], float]) -> None:
    times, backfill = outcome.times, outcome.backfill
    times.usable_s = since_s()

    def had() -> None:
        times.all_s = since_s()

    if backfill is None or backfill.had.is_set():
        had()
    else:
        backfill.on_had = had


def _check_ours(survey: Survey, host_id: str) -> None:
    """Raises FailedPrecondition for another host's image: that host has a memory of this identity."""
    found = survey.marker.host_id if survey.marker is not None else ""
    if found and host_id and found != host_id:
        raise FailedPrecondition(
            f"the saved memory of this machine is of another host ({found}, and this is {host_id}), which may be using "
            "it: put it back where it belongs; `everram down --discard` erases it"
        )


async def _clear(memory: Memory, keep: str) -> None:
    """Give back what a restore that did not come to its end has made; the channel was open before."""
    for name in memory.names():
        if name not in (keep, generations.MEMORY_NAME):
            await memory.remove(name)


def _is_whole(memory: Memory) -> bool:
    """Whether the machine's memory has a superblock that was ever committed, damaged or not."""
    if vmemfs.MEMORY_NAME not in memory.names():
        return False
    mapping = memory.open(vmemfs.MEMORY_NAME).map()
    try:
        return not SlotArea.is_blank(mapping)
    finally:
        mapping.close()


def _token(memory: Memory) -> str:
    if RESTORING not in memory.names():
        return ""
    return memory.open(RESTORING).read(0, _TOKEN_BYTES).decode("ascii", "replace")


def _chosen(survey: Survey, open_image: str, silently: bool) -> int:
    """The generation to open."""
    if open_image == "opened" and not silently and survey.marker is not None:
        return survey.marker.generation
    return survey.generation


class _Restorer:
    """One restore, from an image to whole memory."""

    def __init__(
        self, environment: Environment, survey: Survey, silently: bool, token: str, faults: PageService | None
    ) -> None:
        self._environment = environment
        self._memory = environment.memory
        self._survey = survey
        self._silently = silently
        self._token = token
        self._faults = faults
        """Of guests, if it is to be lazy."""

    async def run(self, generation: int) -> RestoreOutcome:
        marker = self._survey.marker
        if marker is not None and marker.generation != generation:
            marker = None
        source = await Image.open(self._environment.disk, generation, marker)
        outcome = None
        try:
            outcome = await self._restore(source, generation, marker)
        finally:
            if outcome is None or outcome.backfill is None:
                await source.close()
        return outcome

    async def _restore(self, source: Image, generation: int, marker: image.Marker | None) -> RestoreOutcome:
        self._check_fits(source)
        reason = await self._why_without_snapshots(whole=marker is not None)
        left_out = SNAPSHOTS if reason else ()
        if any(saved.name in left_out for saved in source.objects):
            source.lost.append(f"the snapshots of all regions: {reason}")
        lazy = self._lazy(source, marker)
        metadata = await self._fill(source, left_out, {saved.number for saved in lazy})
        superblock = metadata.get(vmemfs.MEMORY_NAME)
        if superblock is None or SlotArea.is_blank(superblock) or SlotArea.is_blank(metadata[nvm.MEMORY_NAME]):
            raise DataLoss(
                f"generation {generation} of the image ends before the records of guests and regions: nothing can be "
                "made of it; `everram down --discard` erases it"
            )
        nvm.Metadata.open(metadata[nvm.MEMORY_NAME])
        cause = marker.cause if marker else "an unfinished save"
        record = self._host_record(vmemfs.Superblock.open(superblock), f"generation {generation}, {cause}")
        backfill = None
        if lazy and self._faults is not None:
            backfill = await Backfill.begin(source, generation, self._memory, self._faults, lazy)
        await self._open_durably(generation, record.memory_id)
        target = (await self._memory.create(vmemfs.MEMORY_NAME, superblock.size_bytes)).map()
        SlotArea.copy(superblock, target)
        target.close()
        if RESTORING in self._memory.names():
            await self._memory.remove(RESTORING)
        for sentence in source.lost:
            log.warning("lost: %s", sentence)
        image_of = Restored(generation, tuple(source.objects)) if self._silently else None
        return RestoreOutcome("restored", generation, cause, tuple(source.lost), backfill, image_of)

    def _check_fits(self, source: Image) -> None:
        """A machine may have been given less memory since. Raises FailedPrecondition: trying again does not help."""
        needed_bytes = sum(saved.size_bytes for saved in source.objects)
        if needed_bytes > self._memory.capacity_bytes:
            raise FailedPrecondition(
                f"the saved memory of this machine takes {size_text(needed_bytes)}, and the machine has "
                f"{size_text(self._memory.capacity_bytes)} now: give it as much as before (`everram up --memory SIZE`)"
            )

    def _lazy(self, source: Image, marker: image.Marker | None) -> list[SavedObject]:
        """What guests can do without at first. Of an image that is not whole everything is looked at beforehand."""
        if self._faults is None or marker is None or not marker.whole:
            return []
        return [saved for saved in source.objects if Backfill.takes(saved, source)]

    async def _why_without_snapshots(self, *, whole: bool) -> str:
        """Empty if they can be had: what nobody would notice must not be opened."""
        if not whole:
            return "they were not saved to their end"  # what is missing would read as zeros
        if not self._silently and nvm.PURGED_FILE in await self._environment.disk.list(nvm.PURGED_FOLDER):
            return "blocks were purged since, perhaps over those that they had purged"
        return ""

    async def _fill(self, source: Image, left_out: Sequence[str], lazy: Container[int]) -> dict[str, HeapMapping]:
        """Make every object but the superblock's, and read all but `lazy`; the metadata is given back."""
        targets: dict[str, MemoryObject] = {}
        metadata = {o.name: HeapMapping(o.size_bytes) for o in source.objects if o.name in METADATA}
        metadata.setdefault(nvm.MEMORY_NAME, HeapMapping(2 * PAGE_BYTES))
        for saved in source.objects:
            if saved.name != vmemfs.MEMORY_NAME and saved.name not in left_out:
                resizable = saved.name.startswith(FILE_PREFIX) or saved.name in SNAPSHOTS
                targets[saved.name] = await self._memory.create(saved.name, saved.size_bytes, resizable=resizable)
        async for run in source.runs({saved.number for saved in source.objects if saved.number not in lazy}):
            if run.name in metadata:
                metadata[run.name].store(run.offset, run.data)
            if run.name in targets:
                targets[run.name].write(run.offset, run.data)
            await asyncio.sleep(0)
        return metadata

    def _host_record(self, superblock: vmemfs.Superblock, described: str) -> HostRecord:
        """The memory keeps its identity only if this is all that there ever was of it."""
        record = HostRecord()
        record.CopyFrom(superblock.host)
        record.lease_id = 0
        record.image = described
        if not self._silently:
            record.memory_id = self._environment.entropy.token()
        superblock.put_host(record)
        return record

    async def _open_durably(self, generation: int, memory_id: str) -> None:
        token = self._token if self._silently else ""
        if token and RESTORING not in self._memory.names():
            await self._memory.create(RESTORING, PAGE_BYTES)
            self._memory.open(RESTORING).write(0, token.encode())
        await image.mark_opened(self._environment.disk, self._survey, generation, memory_id, opened_by=token)
