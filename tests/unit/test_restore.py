"""Saving and restoring a machine's memory: identity, named choices, and a host that dies at any point of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from everram.actors.power_monitor.choices import check_choice
from everram.actors.power_monitor.ends import MISSING, EndRecord
from everram.actors.power_monitor.report import AC_LOSS, UNDER_WAY, write_report
from everram.actors.power_monitor.save import RESTORING, RestoreOutcome, restore, save
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.power_monitor_pb2 import PowerReport, SaveReport
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment, MemoryObject
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.formats import nvm, vmemfs
from everram.runtime.formats.image import Marker, Survey, examine
from everram.runtime.formats.vmemfs import Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.disk import DiskFaults, Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds, SimulatedEntropy
from everram.runtime.simulation.objects import Objects, SimulatedMemory

ARENA = "region.g.ledger"
SMALL_BYTES = 16 * PAGE_BYTES


class HostKilledError(BaseException):
    """Nothing that this host does from now on has any effect."""


@dataclass
class Life:
    """So many changes, and then the host is dead. Also the gate of its mappings' stores."""

    left: int = 1_000_000

    def __call__(self) -> None:
        if self.left <= 0:
            raise HostKilledError
        self.left -= 1

    def split(self, length: int) -> int:
        return length


class MortalDisk(SimulatedDisk):
    def __init__(self, media: Media, life: Life) -> None:
        super().__init__(media)
        self._life = life

    async def replace(self, name: str, data: bytes) -> None:
        self._life()
        await super().replace(name, data)


class MortalMemory(SimulatedMemory):
    def __init__(self, objects: Objects, life: Life) -> None:
        super().__init__(objects, cast("Any", life))
        self._life = life

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> MemoryObject:
        self._life()
        return await super().create(name, size_bytes, resizable=resizable)

    async def remove(self, name: str) -> None:
        self._life()
        await super().remove(name)


class FixedClock:
    def now_ns(self) -> int:
        return 1

    def wall_ns(self) -> int:
        return 2


def _media() -> Media:
    return Media(Seeds(1).stream("disk"), 1 << 30, DiskFaults(latency_min_s=0, latency_max_s=0))


@dataclass
class Computer:
    """A machine whose hosts may die and whose power may fail."""

    media: Media = field(default_factory=_media)
    objects: Objects = field(default_factory=lambda: Objects(1 << 30))
    hosts: int = 0

    def host(self, life: Life | None = None) -> Environment:
        self.hosts += 1
        life = life or Life()
        nothing = cast("Any", None)
        entropy = SimulatedEntropy(Seeds(self.hosts).stream("entropy"))
        memory, disk = MortalMemory(self.objects, life), MortalDisk(self.media, life)
        return Environment(FixedClock(), entropy, disk, memory, nothing, nothing, nothing, nothing, nothing, nothing)

    def power_off(self) -> None:
        self.media.power_loss()
        self.objects.wipe()

    def contents(self) -> dict[str, bytes]:
        return {name: bytes(kept.content) for name, kept in self.objects.by_name.items() if name != vmemfs.MEMORY_NAME}

    def superblock(self) -> Superblock:
        return Superblock.open(SimulatedMemory(self.objects).open(vmemfs.MEMORY_NAME).map())


async def used_computer() -> Computer:
    """With a guest, its region and its log in memory."""
    computer = Computer()
    memory = computer.host().memory
    first = Superblock.format(
        (await memory.create("vmemfs", SMALL_BYTES)).map(), HostRecord(memory_id="m1", lease_id=5)
    )
    first.put_guest(pb.Guest(guest_id="g", name="bank"))
    metadata = nvm.Metadata.format((await memory.create("nvm", SMALL_BYTES)).map())
    metadata.add([pb.Region(name="ledger", guest_id="g", arena=ARENA, size_bytes=1 << 20)], None)
    arena = await memory.create(ARENA, 1 << 20)
    arena.write(3 * PAGE_BYTES, b"accounts".ljust(PAGE_BYTES, b"."))
    (await memory.create("log.g", 1 << 18)).write(0, b"records".ljust(PAGE_BYTES, b"."))
    return computer


async def saved_computer() -> tuple[Computer, dict[str, bytes]]:
    computer = await used_computer()
    await save(computer.host(), "down", "m1")
    contents = computer.contents()
    computer.power_off()
    return computer, contents


async def test_a_machine_without_an_image_starts_empty() -> None:
    assert await restore(Computer().host()) == RestoreOutcome("empty")


async def test_memory_that_the_machine_kept_is_left_alone() -> None:
    computer = await used_computer()
    before = computer.contents()
    assert await restore(computer.host(), "opened") == RestoreOutcome("kept")
    assert computer.contents() == before


async def test_what_was_saved_comes_back_under_the_same_identity() -> None:
    computer, contents = await saved_computer()
    assert await restore(computer.host()) == RestoreOutcome("restored", 1, "down")
    assert computer.contents() == contents
    superblock = computer.superblock()
    assert superblock.host == HostRecord(memory_id="m1", image="generation 1, down")
    assert [guest.name for guest in superblock.guests()] == ["bank"]
    assert (await examine(computer.host().disk)).state == "opened"


async def test_a_report_says_what_was_saved() -> None:
    report = await save((await used_computer()).host(), "down", "m1")
    assert isinstance(report, SaveReport)
    assert (report.generation, report.objects) == (1, 4)
    assert report.saved_bytes % PAGE_BYTES == 0


async def test_an_image_opens_silently_only_once() -> None:
    computer, contents = await saved_computer()
    await restore(computer.host())
    computer.power_off()
    with pytest.raises(FailedPrecondition, match=r"was opened before.*--open opened.*--discard"):
        await restore(computer.host())
    with pytest.raises(FailedPrecondition):
        await restore(computer.host(), "incomplete")
    assert await restore(computer.host(), "opened") == RestoreOutcome("restored", 1, "down")
    assert computer.contents() == contents
    memory_id = computer.superblock().host.memory_id
    assert memory_id not in ("", "m1")
    marker = (await examine(computer.host().disk)).marker
    assert marker is not None
    assert (marker.state, marker.memory_id) == ("opened", memory_id)


@pytest.mark.parametrize("purged", [False, True])
async def test_an_older_image_has_no_snapshots_whose_purged_blocks_may_be_others_now(purged: bool) -> None:
    computer = await used_computer()
    memory = computer.host().memory
    (await memory.create("nvm.snapshots", 1 << 16, resizable=True)).write(0, b"snapshots".ljust(PAGE_BYTES, b"."))
    await memory.create("nvm.blocks", 0, resizable=True)
    if purged:
        await computer.host().disk.replace("nvm/purged", b"blocks")
    await save(computer.host(), "down", "m1")
    contents = computer.contents()
    computer.power_off()
    assert await restore(computer.host()) == RestoreOutcome("restored", 1, "down")
    assert computer.contents() == contents, "nothing has happened since it was saved"
    computer.power_off()
    outcome = await restore(computer.host(), "opened")
    assert ("nvm.snapshots" in computer.contents()) is not purged
    assert [sentence.startswith("the snapshots of all regions: blocks were purged") for sentence in outcome.lost] == (
        [True] if purged else []
    )


async def test_a_new_save_opens_silently_again() -> None:
    computer, _ = await saved_computer()
    await restore(computer.host())
    computer.host().memory.open(ARENA).write(0, b"later".ljust(PAGE_BYTES, b"."))
    await save(computer.host(), "down again", "m1")
    contents = computer.contents()
    computer.power_off()
    assert await restore(computer.host()) == RestoreOutcome("restored", 2, "down again")
    assert computer.contents() == contents


async def interrupted(*, with_runs: bool) -> Computer:
    """A computer whose save ended before its marker, or even before its first runs."""
    computer = await used_computer()
    await save(computer.host(), "down", "m1")
    index = computer.media.files["image/index.1"]
    del computer.media.files["image/marker"]
    if not with_runs:
        del index.cached[128:], index.durable[128:]
    computer.power_off()
    return computer


async def test_an_incomplete_image_opens_only_by_name_and_as_new_memory() -> None:
    computer = await interrupted(with_runs=True)
    with pytest.raises(FailedPrecondition, match=r"incomplete \(generation 1\).*--open incomplete"):
        await restore(computer.host())
    outcome = await restore(computer.host(), "incomplete")
    assert (outcome.kind, outcome.generation) == ("restored", 1)
    assert computer.superblock().host.memory_id != "m1"
    computer.power_off()
    with pytest.raises(FailedPrecondition, match="was opened before"):
        await restore(computer.host())
    await restore(computer.host(), "opened")


async def test_an_image_that_ends_before_the_metadata_is_of_no_use() -> None:
    computer = await interrupted(with_runs=False)
    with pytest.raises(DataLoss, match="ends before the records"):
        await restore(computer.host(), "incomplete")
    assert computer.contents() == {}


async def test_damage_is_told_and_nothing_is_opened() -> None:
    computer, contents = await saved_computer()
    pages = computer.media.files["image/pages.1"]
    pages.cached[-5] ^= 1
    with pytest.raises(DataLoss, match=r"image/pages\.1 is damaged at offset \d+"):
        await restore(computer.host())
    assert computer.contents() == {}
    assert (await examine(computer.host().disk)).state == "complete"
    pages.cached[-5] ^= 1
    await restore(computer.host())
    assert computer.contents() == contents


async def test_too_little_memory_is_told_and_nothing_is_opened() -> None:
    computer, _ = await saved_computer()
    computer.objects = Objects(1 << 20)
    with pytest.raises(FailedPrecondition, match=r"takes 1\.4 MiB, and the machine has 1\.0 MiB now: .*--memory"):
        await restore(computer.host())
    assert (await examine(computer.host().disk)).state == "complete"


async def test_an_image_of_another_host_is_refused() -> None:
    computer = await used_computer()
    await save(computer.host(), "down", "m1", host_id="aa")
    computer.power_off()
    with pytest.raises(FailedPrecondition, match=r"of another host \(aa, and this is bb\)"):
        await restore(computer.host(), host_id="bb")
    assert (await restore(computer.host(), host_id="aa")).kind == "restored"


async def test_a_damaged_image_can_be_given_up() -> None:
    computer, _ = await saved_computer()
    computer.media.files["image/catalog.1"].cached[-5] ^= 1
    with pytest.raises(DataLoss, match=r"catalog\.1 is damaged.*--open empty"):
        await restore(computer.host())
    assert await restore(computer.host(), "empty") == RestoreOutcome("empty")


async def test_a_loss_of_the_mains_that_left_nothing_is_never_passed_over() -> None:
    """The storage was too full for even a report of it."""
    computer = Computer()
    assert await restore(computer.host()) == RestoreOutcome("empty")
    await (await EndRecord.read(computer.host().disk)).mains(lost=True)
    computer.power_off()
    for _ in range(2):
        with pytest.raises(
            FailedPrecondition, match=r"nothing of its memory was saved.*not even a report.*--open empty"
        ):
            await restore(computer.host())
    assert await restore(computer.host(), "empty") == RestoreOutcome("empty")
    computer.power_off()
    assert await restore(computer.host()) == RestoreOutcome("empty"), "then the machine crashed, and had saved nothing"
    counts = (await EndRecord.read(computer.host().disk)).counts
    assert (counts.power_incomplete, counts.crashes, counts.clean, counts.power_saved) == (1, 1, 0, 0)


async def test_a_saved_image_that_is_gone_is_never_passed_over() -> None:
    computer, _ = await saved_computer()
    await restore(computer.host())
    await save(computer.host(), "down", "m1")
    await (await EndRecord.read(computer.host().disk)).saved()
    computer.power_off()
    image = {name: file for name, file in computer.media.files.items() if name.startswith("image/")}
    for name in image:
        del computer.media.files[name]
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=r"put its folder back.*--open empty"):
            await restore(computer.host())
    computer.media.files.update(image)
    assert (await restore(computer.host())).kind == "restored"
    computer.power_off()
    for name in image:
        computer.media.files.pop(name, None)
    assert await restore(computer.host()) == RestoreOutcome("empty"), "a crash, after which there is nothing"


async def test_what_was_said_of_an_image_that_was_gone_is_not_said_of_one_that_is_there() -> None:
    opened = Survey("opened", 3, Marker("opened", 3, "down", "m1", whole=True))
    with pytest.raises(FailedPrecondition, match="was opened before"):
        await check_choice(Computer().host().disk, opened, MISSING, None, "")


async def test_a_choice_says_what_is_missing_and_why() -> None:
    computer = await interrupted(with_runs=False)
    computer.media.files["image/catalog.1"].cached[:] = computer.media.files["image/catalog.1"].durable
    report = PowerReport(outcome=UNDER_WAY, battery_s=0.005, freeze_s=0.001)
    guest = report.guests.add(name="bank", tail=700)
    guest.copies.add(host="h2", durable=500)
    await write_report(computer.host().disk, report)
    with pytest.raises(FailedPrecondition) as refused:
        await restore(computer.host())
    said = refused.value.message
    for words in (
        "is incomplete (generation 1)",
        "missing are",
        "pages of log.g: the save did not get that far",
        "a battery of 0.005 s",
        "its battery did not last",
        "of bank what lies between 500 and 700 did not make it to h2",
        "`everram up --open incomplete` takes",
        "`everram up --open empty` starts",
    ):
        assert words in said, said


async def test_ends_are_counted_over_lives() -> None:
    computer, _ = await saved_computer()
    await restore(computer.host())
    await save(computer.host(), AC_LOSS, "m1")
    computer.power_off()
    await restore(computer.host())
    assert (await restore(computer.host())).kind == "kept", "a host that died ends no life"
    computer.power_off()
    await restore(computer.host(), "opened")
    counts = (await EndRecord.read(computer.host().disk)).counts
    assert (counts.clean, counts.power_saved, counts.power_incomplete, counts.crashes) == (0, 1, 0, 1)
    assert counts.last == "crash"


async def test_a_disk_without_room_is_told_before_anything_is_written() -> None:
    computer = await used_computer()
    computer.media.capacity_bytes = 4 * PAGE_BYTES
    with pytest.raises(ResourceExhausted, match="free some"):
        await save(computer.host(), "down", "m1")
    assert computer.media.files == {}


async def test_a_host_may_die_anywhere_in_a_restore_and_the_next_one_goes_on() -> None:
    deaths = 0
    for changes in range(200):
        computer, contents = await saved_computer()
        try:
            await restore(computer.host(Life(changes)))
        except HostKilledError:
            deaths += 1
        else:
            break
        again = await restore(computer.host())
        assert again.kind in ("restored", "kept")
        assert computer.contents() == contents
        assert computer.superblock().host.memory_id == "m1"
        assert RESTORING not in computer.objects.by_name
    assert 10 < deaths < 199


async def test_power_may_fail_anywhere_in_a_restore_and_nothing_is_opened_twice() -> None:
    for changes in range(0, 200, 3):
        computer, contents = await saved_computer()
        try:
            await restore(computer.host(Life(changes)))
        except HostKilledError:
            pass
        else:
            break
        computer.power_off()
        opened = (await examine(computer.host().disk)).state == "opened"
        if opened:
            with pytest.raises(FailedPrecondition):
                await restore(computer.host())
        else:
            await restore(computer.host())
            assert computer.contents() == contents
