"""Counting how the lives of a machine's memory ended."""

from __future__ import annotations

import pytest

from everram.actors.power_monitor.ends import (
    CLEAN,
    CRASH,
    INCOMPLETE,
    MAINS_LOST,
    MISSING,
    NAME,
    ON_MAINS,
    SAVED,
    SAVED_WHOLE,
    SLOT_BYTES,
    EndRecord,
    ending,
)
from everram.actors.power_monitor.report import AC_LOSS, GIVEN_UP, TAKEN_BACK, UNDER_WAY
from everram.actors.power_monitor.report import SAVED as REPORT_SAVED
from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.formats.image import Marker, Survey
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds


def survey(state: str, cause: str = "down") -> Survey:
    marker = Marker(state, 3, cause, "m1", whole=True) if state in ("complete", "opened") else None
    return Survey(state, 3, marker)


@pytest.mark.parametrize(
    ("found", "outcome", "life", "expected"),
    [
        (survey("complete"), "", ON_MAINS, CLEAN),
        (survey("complete"), TAKEN_BACK, ON_MAINS, CLEAN),
        (survey("complete", AC_LOSS), REPORT_SAVED, MAINS_LOST, SAVED),
        (survey("complete", AC_LOSS), UNDER_WAY, MAINS_LOST, SAVED),
        (survey("incomplete"), UNDER_WAY, MAINS_LOST, INCOMPLETE),
        (survey("opened"), UNDER_WAY, MAINS_LOST, INCOMPLETE),
        (survey("none"), "the disk is full", MAINS_LOST, INCOMPLETE),
        (survey("none"), "", MAINS_LOST, INCOMPLETE),
        (survey("opened"), REPORT_SAVED, ON_MAINS, CRASH),
        (survey("opened"), GIVEN_UP, ON_MAINS, CRASH),
        (survey("incomplete"), "", ON_MAINS, CRASH),
        (survey("none"), TAKEN_BACK, ON_MAINS, CRASH),
        (survey("complete"), "", SAVED_WHOLE, CLEAN),
        (survey("none"), "", SAVED_WHOLE, MISSING),
        (survey("opened"), "", SAVED_WHOLE, CRASH),
    ],
)
def test_how_a_life_ended(found: Survey, outcome: str, life: str, expected: str) -> None:
    assert ending(found, PowerReport(outcome=outcome) if outcome else None, life) == expected


def media(size_bytes: int = 1 << 20) -> Media:
    return Media(Seeds(1).stream("disk"), size_bytes, DiskFaults(latency_min_s=0, latency_max_s=0))


async def test_each_end_is_counted_once() -> None:
    disk = SimulatedDisk(media())
    record = await EndRecord.read(disk)
    assert await record.end_life(survey("none"), None) == "", "there was no life before the first"
    await record.begin_life()
    assert await (await EndRecord.read(disk)).end_life(survey("complete"), None) == CLEAN
    again = await EndRecord.read(disk)
    assert await again.end_life(survey("complete"), None) == "", "a host that died while it restored"
    await again.begin_life()
    await again.mains(lost=True)
    await again.mains(lost=False)
    last = await EndRecord.read(disk)
    assert await last.end_life(survey("opened"), None) == CRASH
    counts = (await EndRecord.read(disk)).counts
    assert (counts.clean, counts.crashes, counts.power_saved, counts.power_incomplete) == (1, 1, 0, 0)
    assert counts.last == CRASH


async def test_the_loss_of_the_mains_is_written_on_a_full_disk() -> None:
    full = media(2 * SLOT_BYTES)
    record = await EndRecord.read(SimulatedDisk(full))
    await record.begin_life()
    await record.mains(lost=True)
    full.power_loss()
    assert (await EndRecord.read(SimulatedDisk(full))).counts.life == MAINS_LOST


@pytest.mark.parametrize("slot", [0, 1])
async def test_a_torn_slot_leaves_the_one_before(slot: int) -> None:
    torn = media()
    record = await EndRecord.read(SimulatedDisk(torn))
    await record.begin_life()
    await record.mains(lost=True)
    torn.files[NAME].cached[slot * SLOT_BYTES + 40] ^= 1
    found = (await EndRecord.read(SimulatedDisk(torn))).counts
    assert found.life == (MAINS_LOST if slot == 1 else ON_MAINS)
