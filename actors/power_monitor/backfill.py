"""Restoring lazily: guests run at once, and what they have not touched yet comes from the image behind them.

    backfill = await Backfill.begin(image, generation, memory, faults)     # during the restore, see `save`
    backfill = await Backfill.resume(disk, memory, faults)                 # at the start of a successor of that host
    backfill.start(context.spawn, on_damage)       # once every guest that lives is served: pages come from now on
    await backfill.finished()                      # before the memory is saved

Only regions of guests of this host are left in the image, and only where faults are served. A page that a guest touches
is read with the block of 64 KiB that it was saved in, verified, and put into its mapping (`PageService`); what the host
itself touches is brought before, whoever asks (`absent.Lack`); and a task goes through the image from its beginning to
its end.

**A page is absent exactly if the image has it and there is a hole where it belongs.** Nothing else is written down, so
a host may die at any moment. For that nobody punches holes into an object that lacks anything (`KeptObject.punch`
writes zeros), and the object `restoring.pages` says which objects those are (`Unfinished`), by their inodes: one that
was removed and made anew under the same name is none of them, and one that is complete is taken out before anybody may
punch.

A block that does not match its checksum is lost: its pages are poisoned, and the guest is given up (`on_damage`). The
other guests of this machine do not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from everram.runtime.environment import Disk, Memory
from everram.runtime.errors import DataLoss, NotFound, ResourceExhausted
from everram.runtime.formats.catalog import SavedObject
from everram.runtime.formats.image import examine
from everram.runtime.formats.image_reader import Image, Run
from everram.runtime.formats.lasting import RESTORING_PAGES
from everram.runtime.memory.absent import Fill, LackingObject
from everram.runtime.memory.contract import PAGE_BYTES, Mapping
from everram.runtime.memory.page_service import PageService

log = logging.getLogger("everram.power_monitor")

RECORD = RESTORING_PAGES
REGION_PREFIX, COPY_MARK = "region.", "@"
LAZY_FROM_PAGES = 64
"""An object with fewer is read at once: it takes less than a millisecond."""
PUT_PAGES = 64
"""At once; between two such pieces faults are served."""
AGAIN_S = 0.02
"""Between attempts to put a page where there is no memory for it."""

Spawn = Callable[..., asyncio.Task[None]]
OnDamage = Callable[[str, str], None]
"""(guest_id, what is lost of its memory); perhaps more than once."""


class Unfinished:
    """The object `restoring.pages`: the image's generation, and the inodes of what is not complete; docs/formats.md."""

    MAGIC = int.from_bytes(b"EVRLAZY1", "little")

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    @staticmethod
    async def create(memory: Memory, generation: int, inodes: list[int]) -> Unfinished:
        size_bytes = -(-(3 + len(inodes)) * 8 // PAGE_BYTES) * PAGE_BYTES
        mapping = (await memory.create(RECORD, size_bytes)).map()
        for at, word in enumerate((generation, len(inodes), *inodes), 1):
            mapping.publish_u64(8 * at, word)
        mapping.publish_u64(0, Unfinished.MAGIC)
        return Unfinished(mapping)

    @staticmethod
    def open(memory: Memory) -> Unfinished | None:
        """None if there is none, or the host that made it died before it was whole: then nothing lacks yet."""
        if RECORD not in memory.names():
            return None
        mapping = memory.open(RECORD).map()
        if mapping.load_u64(0) != Unfinished.MAGIC:
            mapping.close()
            return None
        return Unfinished(mapping)

    @property
    def generation(self) -> int:
        return self._mapping.load_u64(8)

    def inodes(self) -> list[int]:
        count = min(self._mapping.load_u64(16), self._mapping.size_bytes // 8 - 3)
        return self._mapping.load_words(range(3, 3 + count))

    def take_out(self, inode: int) -> None:
        for at, known in enumerate(self.inodes(), 3):
            if known == inode:
                self._mapping.publish_u64(8 * at, 0)

    def close(self) -> None:
        self._mapping.close()


class _Lacking:
    """One object, as `absent.Lack` knows it."""

    def __init__(self, backfill: Backfill, saved: SavedObject, kept: LackingObject, absent: bytearray) -> None:
        self.saved, self.kept, self.inode = saved, kept, kept.inode
        self.absent = absent
        """A byte for each page: 1 while it is absent."""
        self.left = absent.count(1)
        self.lost: set[int] = set()
        """Pages that nobody can have any more; they stay absent."""
        self.why = ""
        self._backfill = backfill

    def bring(self, offset: int, length: int, *, leniently: bool = False) -> None:
        end = -(-(offset + length) // PAGE_BYTES)
        self._backfill.bring_now(self, offset // PAGE_BYTES, end, leniently=leniently)

    def extents(self, start: int, end: int) -> list[tuple[int, int]]:
        runs = _absent_runs(self.absent, start // PAGE_BYTES, -(-end // PAGE_BYTES))
        return [(first * PAGE_BYTES, min(stop * PAGE_BYTES, end) - first * PAGE_BYTES) for first, stop in runs]

    def forget(self, pages: range) -> None:
        """They are there."""
        here = self.absent[pages.start : pages.stop]
        self.left -= here.count(1)
        self.absent[pages.start : pages.start + len(here)] = bytes(len(here))


class Backfill:
    """See the module. `absent.AbsentPages` for the page service."""

    def __init__(self, image: Image, memory: Memory, faults: PageService, unfinished: Unfinished) -> None:
        self._image, self._memory, self._faults, self._unfinished = image, memory, faults, unfinished
        self._lacking: dict[str, _Lacking] = {}
        """By object: exactly those that have a `lack`, and are in `unfinished`."""
        self._wanted: set[tuple[str, int]] = set()
        """Pages that threads wait for."""
        self.total_pages = 0
        self._spawn: Spawn | None = None
        self._on_damage: OnDamage | None = None
        self.had = asyncio.Event()
        """Everything is there that can be had."""
        self.on_had: Callable[[], None] = lambda: None
        """Called once, when everything is there that can be had."""
        faults.absent.append(self)

    @staticmethod
    def takes(saved: SavedObject, image: Image) -> bool:
        """Whether an object is left in the image at first."""
        if not saved.name.startswith(REGION_PREFIX) or COPY_MARK in saved.name:
            return False
        return image.present_pages(saved.number) >= LAZY_FROM_PAGES

    @staticmethod
    async def begin(
        image: Image, generation: int, memory: Memory, faults: PageService, objects: Iterable[SavedObject]
    ) -> Backfill:
        """`objects` are in memory, without a page; the image is the backfill's own. Raises DataLoss."""
        await image.prepare()
        kept = [(saved, cast("LackingObject", memory.open(saved.name))) for saved in objects]
        unfinished = await Unfinished.create(memory, generation, [each.inode for _, each in kept])
        return Backfill._of(image, memory, faults, unfinished, kept)

    @staticmethod
    async def resume(disk: Disk, memory: Memory, faults: PageService | None) -> Backfill | None:
        """What an earlier host of this memory had begun; None if there is nothing. Raises DataLoss if the image cannot
        be read any more, FailedPrecondition."""
        unfinished = Unfinished.open(memory)
        if unfinished is None:
            return None
        marker = (await examine(disk)).marker
        if faults is None or marker is None or marker.generation < unfinished.generation:
            raise DataLoss(
                f"this machine's memory is being restored from generation {unfinished.generation} of its image, which "
                "cannot be read here any more: `everram down --discard` erases both"
            )
        image = await Image.open(disk, marker.generation, marker)
        await image.prepare()
        inodes, names = set(unfinished.inodes()), set(memory.names())
        there = [(each, cast("LackingObject", memory.open(each.name))) for each in image.objects if each.name in names]
        return Backfill._of(image, memory, faults, unfinished, [each for each in there if each[1].inode in inodes])

    @staticmethod
    def _of(
        image: Image,
        memory: Memory,
        faults: PageService,
        unfinished: Unfinished,
        objects: list[tuple[SavedObject, LackingObject]],
    ) -> Backfill:
        backfill = Backfill(image, memory, faults, unfinished)
        for saved, kept in objects:
            absent = image.presence(saved.number)
            for offset, length in memory.open(saved.name).extents():
                first, end = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
                absent[first:end] = bytes(end - first)
            lacking = backfill._lacking[saved.name] = _Lacking(backfill, saved, kept, absent)
            kept.lack = lacking
            backfill.total_pages += lacking.left
        backfill._settle()
        return backfill

    def start(self, spawn: Spawn, on_damage: OnDamage) -> None:
        """When no guest that has this memory mapped is without fault service any more."""
        self._spawn, self._on_damage = spawn, on_damage
        for lacking in list(self._lacking.values()):
            if lacking.lost:
                self._tell(lacking, sorted(lacking.lost))
        for name, page in list(self._wanted):
            spawn(self._fetch(name, page), name=f"restore {name}")
        spawn(self._run(), name="restore")

    @property
    def left_pages(self) -> int:
        return sum(lacking.left - len(lacking.lost) for lacking in self._lacking.values())

    def absent_pages(self) -> dict[str, bytearray]:
        """Of each object that lacks anything: a byte for each page, 1 where it can be had and is absent still."""
        found = {name: one.absent for name, one in self._lacking.items()}
        for name, one in self._lacking.items():
            if one.lost:
                found[name] = bytearray(one.absent)
                for page in one.lost:
                    found[name][page] = 0
        return found

    async def finished(self) -> None:
        """Everything is in memory that can be had. What is lost reads as zeros from then on; its guest does not start
        any more."""
        await self.had.wait()
        for name in list(self._lacking):
            self._complete(name)

    # -- absent.AbsentPages

    def may_lack(self, arena: str) -> bool:
        return self._find(arena) is not None

    def is_absent(self, arena: str, page: int) -> bool:
        lacking = self._find(arena)
        return lacking is not None and page < len(lacking.absent) and bool(lacking.absent[page])

    def fill(self, arena: str, page: int) -> Fill | None:
        lacking = self._find(arena)
        if lacking is not None and page in lacking.lost:
            self._tell(lacking, [page])
        elif (arena, page) not in self._wanted:
            self._wanted.add((arena, page))
            if self._spawn is not None:
                self._spawn(self._fetch(arena, page), name=f"restore {arena}")
        return None

    def filled(self, arena: str, pages: range) -> None:
        lacking = self._find(arena)
        if lacking is not None:
            lacking.forget(pages)
            if lacking.left == len(lacking.lost):
                self._settle()

    def _find(self, name: str) -> _Lacking | None:
        """None also for what was made anew under its name."""
        lacking = self._lacking.get(name)
        if lacking is None:
            return None
        try:
            there = cast("LackingObject", self._memory.open(name)).lack is lacking
        except NotFound:
            there = False
        if not there:
            self._complete(name)
        return lacking if there else None

    # -- bringing pages

    async def _fetch(self, name: str, page: int) -> None:
        """A thread waits for it."""
        try:
            while (lacking := self._find(name)) is not None and lacking.absent[page] and page not in lacking.lost:
                await self._bring_block(lacking, page)
                if lacking.absent[page] and page not in lacking.lost:
                    await asyncio.sleep(AGAIN_S)  # there is no memory for it now
        finally:
            self._wanted.discard((name, page))

    async def _bring_block(self, lacking: _Lacking, page: int) -> None:
        try:
            for run in await self._image.block_of(lacking.saved.number, page):
                self._put(run)
        except DataLoss as error:
            self._lose(lacking, page, error)

    async def _run(self) -> None:
        """From the beginning of the image to its end; then, one by one, what could not be had on the way."""
        while not self.had.is_set():
            numbers = {lacking.saved.number for lacking in self._lacking.values()}
            try:
                async for run in self._image.runs(numbers):
                    for part in _parts(run):
                        self._put(part)
                        await asyncio.sleep(0)
            except DataLoss:  # what is around the damage can be had
                for name in list(self._lacking):
                    await self.bring(name)
            self._settle()
            if not self.had.is_set():
                await asyncio.sleep(AGAIN_S)
        await self._end()

    async def _end(self) -> None:
        if any(lacking.lost for lacking in self._lacking.values()):
            return  # who touches that has to be told, also by a successor
        self._faults.absent.remove(self)
        self._unfinished.close()
        await self._memory.remove(RECORD)
        await self._image.close()
        log.info("all memory is restored")

    async def bring(self, name: str) -> None:
        """All of one object that can be had, before the others."""
        page = 0
        while (lacking := self._find(name)) is not None and page >= 0:
            page = lacking.absent.find(1, page)
            if page >= 0 and page not in lacking.lost:
                await self._bring_block(lacking, page)
            page += page >= 0

    def bring_now(self, lacking: _Lacking, first: int, end: int, *, leniently: bool = False) -> None:
        """For the host, which cannot wait. Raises DataLoss, ResourceExhausted."""
        page = lacking.absent.find(1, first, end)
        while page >= 0:
            if page not in lacking.lost:
                try:
                    for run in self._image.block_now(lacking.saved.number, page):
                        self._put(run)
                except DataLoss as error:
                    self._lose(lacking, page, error)
            if page in lacking.lost:
                if not leniently:
                    raise DataLoss(lacking.why)
            elif lacking.absent[page]:
                raise ResourceExhausted(f"there is no memory for {lacking.saved.name} at {page * PAGE_BYTES}")
            page = lacking.absent.find(1, page + 1, end)

    def _put(self, run: Run) -> None:
        """What of it is absent still."""
        lacking = self._find(run.name)
        if lacking is None:
            return
        first, mapped = run.offset // PAGE_BYTES, self._faults.mapped_pages(run.name)
        for start, stop in list(_absent_runs(lacking.absent, first, first + -(-len(run.data) // PAGE_BYTES))):
            data = bytes(run.data[(start - first) * PAGE_BYTES : (stop - first) * PAGE_BYTES])
            if start < mapped:
                self._faults.supply(run.name, Fill(start, data.ljust((stop - start) * PAGE_BYTES, b"\0")))
            if lacking.absent.find(1, start, stop) >= 0:
                self._put_unmapped(lacking, Fill(start, data))

    def _put_unmapped(self, lacking: _Lacking, found: Fill) -> None:
        """What no guest has mapped, so that nobody sees it being written. Where there is no memory, it stays absent."""
        first = max(found.first, self._faults.mapped_pages(lacking.saved.name))
        last = found.first + -(-len(found.data) // PAGE_BYTES)
        for start, stop in list(_absent_runs(lacking.absent, first, last)):
            at = (start - found.first) * PAGE_BYTES
            try:
                lacking.kept.fill(start * PAGE_BYTES, found.data[at : at + (stop - start) * PAGE_BYTES])
            except ResourceExhausted as error:
                log.warning("memory is restored when there is room for it: %s", error.message)
                return
            self.filled(lacking.saved.name, range(start, stop))

    # -- ends

    def _lose(self, lacking: _Lacking, page: int, error: DataLoss) -> None:
        """All that is in the block of this page, also of other objects."""
        for name, first, count in self._image.pages_with(lacking.saved.number, page):
            other = self._find(name)
            pages = [p for p in range(first, first + count) if other is not None and other.absent[p]]
            if other is None or not pages:
                continue
            log.error("%s has lost pages: %s", name, error.message)
            other.why = error.message
            other.lost.update(pages)
            self._tell(other, pages)
        self._settle()

    def _tell(self, lacking: _Lacking, pages: Iterable[int]) -> None:
        """Whoever touches lost pages, and who owns the guest; again to those who come later."""
        for page in pages:
            self._faults.poison(lacking.saved.name, page)
        if self._on_damage is not None:
            self._on_damage(lacking.saved.name.split(".")[1], lacking.why)

    def _settle(self) -> None:
        for name, lacking in list(self._lacking.items()):
            if not lacking.left:
                self._complete(name)
        if not self.left_pages:
            self._set_had()

    def _set_had(self) -> None:
        if not self.had.is_set():
            self.had.set()
            self.on_had()

    def _complete(self, name: str) -> None:
        """It lacks nothing any more, or is no more. That is written down before anybody may punch holes into it."""
        lacking = self._lacking.pop(name)
        self._unfinished.take_out(lacking.inode)
        lacking.kept.lack = None
        if not self.left_pages:
            self._set_had()


def _absent_runs(absent: bytearray, first: int, end: int) -> Iterator[tuple[int, int]]:
    """(first, end) of neighbours that are absent, between two pages."""
    end = min(end, len(absent))
    start = absent.find(1, first, end)
    while start >= 0:
        stop = absent.find(0, start, end)
        stop = end if stop < 0 else stop
        yield start, stop
        start = absent.find(1, stop, end)


def _parts(run: Run) -> Iterator[Run]:
    step = PUT_PAGES * PAGE_BYTES
    for at in range(0, len(run.data), step):
        yield run._replace(offset=run.offset + at, data=run.data[at : at + step])
