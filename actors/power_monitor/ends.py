"""How the lives of this machine's memory ended: counted, and told from one another at the next start.

    record = await EndRecord.read(disk)
    await record.begin_life()                 # the memory is whole: guests may run
    await record.mains(lost=True)             # a loss of the mains begins, or was taken back
    await record.saved()                      # the memory is saved, and the machine may end
    ended = await record.end_life(survey, report)     # at the next start with empty memory: how the last life ended

A life of the memory begins when it starts empty or is restored, and ends when the machine does. Hosts that die and
start again within it are none of this: a crash of a process is never taken for a loss of power.

In `power/ends`, two slots of 4096 bytes that are written in turns and in place, from the beginning of the first life
on: to say that the mains are lost takes no space on a disk that is full. docs/formats.md, "Ends of lives".
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace

from everram.actors.power_monitor.report import AC_LOSS, is_unsaved
from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.environment import Disk
from everram.runtime.errors import EverramError, NotFound
from everram.runtime.formats.image import Survey

NAME = "power/ends"
SLOT_BYTES = 4096
CLEAN, SAVED, INCOMPLETE, CRASH = "clean", "power loss, saved", "power loss, not saved", "crash"
"""Ends: by an orderly save; after the mains were lost, with a complete image or without; and all others."""
MISSING = "clean, and what was saved is gone"
ON_MAINS, MAINS_LOST, SAVED_WHOLE = "on mains", "mains lost", "saved"
"""What a life says of itself."""


@dataclass(frozen=True, slots=True)
class Counts:
    clean: int = 0
    power_saved: int = 0
    power_incomplete: int = 0
    crashes: int = 0
    last: str = ""
    """How the last life ended; empty: there was none."""
    life: str = ""
    """The present life, or one whose end is not counted yet: ON_MAINS, MAINS_LOST, or SAVED_WHOLE if an orderly save is
    the last that was heard of it; empty: none."""
    told_by: str = ""
    """Who said that the mains are lost: the UPS's name, or empty. Who said so has to say when they are back."""
    turn: int = 0
    """Of the slots: the higher one is right."""

    def encode(self) -> bytes:
        body = json.dumps(asdict(self)).encode()
        return (b"everram-ends %08x\n" % zlib.crc32(body) + body).ljust(SLOT_BYTES, b" ")

    @staticmethod
    def decode(slot: bytes) -> Counts | None:
        head, _, body = slot.rstrip(b" ").partition(b"\n")
        if head != b"everram-ends %08x" % zlib.crc32(body):
            return None
        try:
            return Counts(**json.loads(body))
        except (ValueError, TypeError):
            return None


def ending(survey: Survey, report: PowerReport | None, life: str) -> str:
    """How a life ended that left this behind."""
    if survey.state == "complete" and survey.marker is not None:
        return SAVED if survey.marker.cause == AC_LOSS else CLEAN
    if survey.state == "none" and life == SAVED_WHOLE:
        return MISSING
    return INCOMPLETE if life == MAINS_LOST or is_unsaved(report) else CRASH


class EndRecord:
    """See the module. Nothing here stops a machine from working: a disk that does not take it is said in the log."""

    def __init__(self, disk: Disk, counts: Counts) -> None:
        self.counts = counts
        self._disk = disk

    @staticmethod
    async def read(disk: Disk) -> EndRecord:
        try:
            file = await disk.open(NAME)
        except NotFound:
            return EndRecord(disk, Counts())
        try:
            content = await file.pread(0, 2 * SLOT_BYTES)
        finally:
            await file.close()
        slots = [Counts.decode(content[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
        known = [counts for counts in slots if counts is not None]
        return EndRecord(disk, max(known, key=lambda counts: counts.turn, default=Counts()))

    async def end_life(self, survey: Survey, report: PowerReport | None) -> str:
        """Count the end of the life before, once. Gives back how it ended; empty if nothing ended."""
        if not self.counts.life:
            return ""
        ended = ending(survey, report, self.counts.life)
        counts = self.counts
        await self._write(
            replace(
                counts,
                clean=counts.clean + (ended == CLEAN),
                power_saved=counts.power_saved + (ended == SAVED),
                power_incomplete=counts.power_incomplete + (ended == INCOMPLETE),
                crashes=counts.crashes + (ended == CRASH),
                last=ended,
                life="",
            )
        )
        return ended

    async def begin_life(self) -> None:
        await self._write(replace(self.counts, life=ON_MAINS))

    async def mains(self, *, lost: bool, told_by: str = "") -> None:
        await self._write(replace(self.counts, life=MAINS_LOST if lost else ON_MAINS, told_by=told_by))

    async def saved(self) -> None:
        """In an orderly way. Whoever goes on after that takes it back by `goes_on`."""
        await self._write(replace(self.counts, life=SAVED_WHOLE))

    async def goes_on(self) -> None:
        if self.counts.life == SAVED_WHOLE:
            await self._write(replace(self.counts, life=ON_MAINS))

    async def _write(self, counts: Counts) -> None:
        self.counts = counts = replace(counts, turn=self.counts.turn + 1)
        try:
            file = await self._disk.open(NAME, create=True)
            try:
                if await file.size() < 2 * SLOT_BYTES:
                    await file.pwrite(0, bytes(2 * SLOT_BYTES))
                await file.pwrite(counts.turn % 2 * SLOT_BYTES, counts.encode())
                await file.sync()
            finally:
                await file.close()
        except EverramError:
            pass  # what is counted may be less than what happened; nothing is decided by the counts alone
