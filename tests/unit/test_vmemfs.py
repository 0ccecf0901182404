"""VMemFS over versions and over damage: what a host left is read as it was, or refused by name, guest by guest."""

from __future__ import annotations

import errno
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.remote_memory.vmemfs_files import VMEMFS, VMemFSFiles
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_pb2 import Copy
from everram.runtime.contracts.vmemfs_pb2 import FileExtent, FileRecord, HostRecord, VMemFSStatus
from everram.runtime.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from everram.runtime.formats.slots import GENERATION_OFFSET, SLOTS_OFFSET, Format, Record, SlotArea
from everram.runtime.formats.vmemfs import BEFORE, FORMAT, HOPS_MAX, MEMORY_NAME, DamagedRecord, Superblock
from everram.runtime.formats.vmemfs_files import check, device_files, guest_files
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import Kind
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.version import PACKAGE_VERSION

SIZE_BYTES = 9 * PAGE_BYTES
IMAGES = Path(__file__).resolve().parents[1] / "images"
VERSIONS = ("1.1", "2.0")
"""Of each an image is kept, as the everram of its time left it, with the same content."""


def guest(guest_id: str, **fields: object) -> pb.Guest:
    made = pb.Guest(guest_id=guest_id, name=f"name-{guest_id}", state=pb.RUNNING, epoch=3, **fields)  # type: ignore[arg-type]
    made.regions.add(name="r", guest_id=guest_id, size_bytes=8192, arena=f"region.{guest_id}.r")
    return made


def sizes(*guest_ids: str) -> dict[str, int]:
    return {f"{kind}{g}{rest}": 8192 for g in guest_ids for kind, rest in (("log.", ""), ("region.", ".r"))}


def image(version: str) -> HeapMapping:
    return HeapMapping.of(bytearray(zlib.decompress((IMAGES / f"vmemfs-{version}.z").read_bytes())))


def content(superblock: Superblock) -> tuple[HostRecord, list[pb.Guest], list[Copy]]:
    return superblock.host, superblock.guests(), superblock.copies()


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_up_to_this_one_is_read_and_taken_over(version: str) -> None:
    mapping = image(version)
    found = Superblock.open(mapping)
    copy = Copy(guest=pb.Guest(guest_id="c", name="name-c"), copy_id="c1", promised_epoch=4)
    host = HostRecord(memory_id="m1", lease_id=9, hosts=3)
    assert content(found) == (host, [guest("a"), guest("b")], [copy])
    assert (found.version, found.clean) == (version, True)
    producer = found.producer
    found.succeed(PACKAGE_VERSION)
    assert Superblock.open(mapping).version == version, "until its host serves"
    found.write_latest()
    taken = Superblock.open(mapping)
    assert (taken.version, taken.producer, taken.clean) == ("2.0", PACKAGE_VERSION, False)
    [hop] = taken.history()[-1:]
    assert (hop.number, hop.found, hop.producer, hop.clean) == (4, version, producer, True)
    assert content(taken)[1:] == content(found)[1:]


def test_an_image_is_kept_of_the_version_that_is_written() -> None:
    assert VERSIONS[-1] == "{}.{}".format(*FORMAT.version)
    assert VERSIONS[-2] == "{}.{}".format(*BEFORE.version)


def test_an_earlier_version_refuses_naming_both() -> None:
    with pytest.raises(FailedPrecondition, match=r"version 2\.0.*with version 1\.1: a later format"):
        SlotArea.open(image("2.0"), BEFORE)


def test_what_a_later_version_requires_is_refused_and_what_it_only_adds_survives() -> None:
    mapping = image("2.0")
    later = Format(FORMAT.name, FORMAT.magic, (2, 1), FORMAT.record_types | {77}, indexed_since=(2, 0))
    area = SlotArea.open(mapping, later)
    area.commit([*area.content.records, Record(77, b"of tomorrow", key="x")])
    superblock = Superblock.open(mapping)
    superblock.put_guest(guest("d"))
    assert Record(77, b"of tomorrow") in SlotArea.open(mapping, later).content.records
    assert any("types 77" in sentence for sentence in superblock.lost_by_rollback())
    area = SlotArea.open(mapping, later)
    area.commit([*(r for r in area.content.records if r.type != 77), Record(77, b"", required=True)])
    with pytest.raises(FailedPrecondition, match=r"2\.1.*2\.0.*type 77"):
        Superblock.open(mapping)


def test_a_rollback_writes_the_version_before_and_says_what_is_lost() -> None:
    mapping = HeapMapping(SIZE_BYTES)
    superblock = Superblock.format(mapping, HostRecord(memory_id="m1"))
    superblock.succeed(PACKAGE_VERSION)
    superblock.put_guest(guest("a"), guest_files(guest("a"), sizes("a")))
    assert [sentence.split()[:2] for sentence in superblock.lost_by_rollback()] == [
        ["the", "history"],
        ["the", "records"],
    ]
    superblock.roll_back()
    superblock.put_guest(guest("b"), guest_files(guest("b"), sizes("b")))
    superblock.mark_clean(device_files({"nvm": 8192}))
    old = SlotArea.open(mapping, BEFORE)
    assert (old.content.version, old.content.clean) == ((1, 1), True)
    assert {record.type for record in old.content.records} == {1, 2}
    found = Superblock.open(mapping)
    assert content(found) == (HostRecord(memory_id="m1", hosts=1), [guest("a"), guest("b")], [])
    found.succeed(PACKAGE_VERSION)
    found.write_latest()
    assert Superblock.open(mapping).version == "2.0", "and back again"


def test_the_former_software_can_take_what_new_software_left_that_never_served() -> None:
    mapping = image("1.1")
    for life in range(3):
        found = Superblock.open(mapping)
        found.succeed("2")
        found.put_guest(guest(f"d{life}"), guest_files(guest(f"d{life}"), sizes(f"d{life}")))
    old = SlotArea.open(mapping, BEFORE)
    assert old.content.version == (1, 1)
    found.write_latest()
    served = Superblock.open(mapping)
    assert (served.version, len(served.guests()), len(served.history())) == ("2.0", 5, 1)
    assert [file.guest_id for file in served.files()] == ["d2", "d2"]


def test_who_cannot_page_refuses_a_memory_with_volatile_memory_in_it() -> None:
    mapping, superblock = left()
    before = Format(FORMAT.name, FORMAT.magic, FORMAT.version, FORMAT.record_types, indexed_since=(2, 0))
    pager = guest("p", spec=pb.GuestSpec(memory_bytes=1 << 20))
    superblock.put_guest(pager)
    with pytest.raises(FailedPrecondition, match="required features 0x1 are unknown here"):
        SlotArea.open(mapping, before)
    with pytest.raises(FailedPrecondition, match="volatile memory, which name-p has: stop it first"):
        superblock.roll_back()
    pager.state = pb.STOPPED
    superblock.put_guest(pager)
    assert len(SlotArea.open(mapping, before).content.records) == 12
    superblock.roll_back()
    assert SlotArea.open(mapping, BEFORE).content.version == (1, 1)
    pager.state = pb.RUNNING  # it is started meanwhile
    superblock.put_guest(pager)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="required features 0x1 are unknown here"):
            SlotArea.open(mapping, BEFORE)
        superblock = Superblock.open(mapping)
        superblock.succeed(PACKAGE_VERSION)
    superblock.write_latest()
    assert Superblock.open(mapping).version == "2.0"


def test_guests_with_volatile_memory_can_be_given_back_to_the_software_that_ran_them() -> None:
    mapping = image("1.1")
    SlotArea.open(mapping, BEFORE)
    superblock = Superblock.open(mapping)
    superblock.put_guest(guest("p", spec=pb.GuestSpec(memory_bytes=1 << 20)))
    assert SlotArea.open(mapping, BEFORE).content.required_features == 0


def test_a_rollback_that_is_taken_back_loses_nothing() -> None:
    mapping, superblock = left()
    before = (content(superblock), superblock.files(), superblock.history())
    superblock.roll_back()
    assert SlotArea.open(mapping, BEFORE).content.version == (1, 1)
    superblock.write_latest()
    found = Superblock.open(mapping)
    assert (content(found), found.files(), found.history()) == before
    assert found.version == "2.0"


def test_a_superblock_too_full_for_the_latest_version_is_written_on_as_it_was() -> None:
    mapping, superblock = left()
    superblock.roll_back()
    count = 0
    with pytest.raises(ResourceExhausted):
        while True:
            superblock.put_guest(guest(f"g{count}"))
            count += 1
    with pytest.raises(ResourceExhausted):
        superblock.write_latest()
    superblock.remove_guest("g0")
    assert SlotArea.open(mapping, BEFORE).content.version == (1, 1)
    assert len(Superblock.open(mapping).guests()) == 3 + count - 1


def test_the_history_is_of_the_latest_hosts() -> None:
    superblock = Superblock.format(HeapMapping(SIZE_BYTES), HostRecord(memory_id="m1"))
    for number in range(HOPS_MAX + 5):
        superblock.succeed(f"0.{number}")
    assert superblock.host.hosts == HOPS_MAX + 5
    assert [hop.number for hop in superblock.history()] == list(range(6, HOPS_MAX + 6))
    assert superblock.history()[0].found == "2.0"


# -- damage ------------------------------------------------------------------------------------------------------------


def left() -> tuple[HeapMapping, Superblock]:
    mapping = HeapMapping(SIZE_BYTES)
    superblock = Superblock.format(mapping, HostRecord(memory_id="m1"))
    for name in ("a", "b", "c"):
        superblock.put_guest(guest(name, reason="x" * 40), guest_files(guest(name), sizes(name)))
    superblock.succeed("1")
    return mapping, superblock


def test_no_flipped_byte_of_it_is_ever_believed() -> None:
    """Every byte of the header, the published word and the slot in use: refused, or right but for what is named."""
    mapping, superblock = left()
    whole = {g.guest_id: g for g in superblock.guests()}
    half = (SIZE_BYTES - SLOTS_OFFSET) // 2 // PAGE_BYTES * PAGE_BYTES
    slot = SLOTS_OFFSET + (superblock.generation & 1) * half
    used = range(slot, slot + len(mapping.load(slot, half).rstrip(b"\0")) + 8)
    named: set[str] = set()
    refused = 0
    for offset in [*range(28), *range(GENERATION_OFFSET, GENERATION_OFFSET + 8), *used]:
        right = mapping.load(offset, 1)
        mapping.store(offset, bytes([right[0] ^ 0x40]))
        try:
            found = Superblock.open(mapping)
        except (DataLoss, FailedPrecondition) as error:
            assert error.message.startswith("VMemFS superblock")
            refused += 1
        else:
            assert found.host == superblock.host
            damaged = {record.guest_id for record in found.damaged}
            assert damaged | {g.guest_id for g in found.guests()} == whole.keys()
            assert all(whole[g.guest_id] == g for g in found.guests())
            assert len(damaged) <= 1
            assert all(record.name == f"name-{record.guest_id}" for record in found.damaged)
            named |= damaged
        mapping.store(offset, right)
    assert named == whole.keys()
    assert refused < 350, "most of it is guests' and files' records, and the index"
    assert content(Superblock.open(mapping)) == content(superblock)


def test_a_damaged_guest_is_named_and_costs_no_other() -> None:
    mapping, superblock = left()
    at = mapping.load(0, SIZE_BYTES).rindex(b"name-b" + b"\x18")  # in its record: the state follows the name
    mapping.store(at, b"X")
    found = Superblock.open(mapping)
    [damaged] = found.damaged
    assert (damaged.guest_id, damaged.name) == ("b", "name-b")
    assert [g.guest_id for g in found.guests()] == ["a", "c"]
    found.put_guest(pb.Guest(guest_id="b", name="name-b", state=pb.FAILED))
    assert [g.guest_id for g in Superblock.open(mapping).guests()] == ["a", "b", "c"]
    assert superblock.host == found.host


def test_a_damaged_copy_keeps_its_place_and_costs_no_guest() -> None:
    mapping, superblock = left()
    for name in ("c1", "c2"):
        superblock.put_copy(Copy(guest=guest("z"), copy_id=name, promised_epoch=7))
    mapping.store(mapping.load(0, SIZE_BYTES).rindex(b"\x12\x02c1"), b"X")
    for _ in range(2):
        found = Superblock.open(mapping)
        assert [g.guest_id for g in found.guests()] == ["a", "b", "c"]
        first, second = found.copies()
        assert (first.guest.guest_id, first.copy_id, second.promised_epoch) == ("z", "c1", 7)
        assert first.damaged == "its record in the VMemFS superblock is damaged"
        assert not (found.damaged or first.complete or second.damaged)
        found.succeed("1")


def test_a_damaged_guest_is_known_to_every_host_until_it_was_isolated() -> None:
    mapping, _ = left()
    mapping.store(mapping.load(0, SIZE_BYTES).rindex(b"name-b" + b"\x18"), b"X")
    for _ in range(2):  # hosts that are killed before their hypervisor has isolated anything
        found = Superblock.open(mapping)
        found.succeed("1", [DamagedRecord("c", "name-c", "a page of it is another's")])
        known = {g.guest_id: g for g in Superblock.open(mapping).guests()}
        assert [known[name].damaged for name in "abc"] == [
            "",
            "its record in the VMemFS superblock is damaged",
            "a page of it is another's",
        ]
        assert (known["b"].name, known["c"].epoch, len(known["c"].regions)) == ("name-b", 3, 1)


async def test_every_host_names_what_is_damaged_to_its_hypervisor_until_it_was_isolated() -> None:
    mapping, _ = left()
    mapping.store(mapping.load(0, SIZE_BYTES).rindex(b"name-b" + b"\x18"), b"X")
    objects = SimpleNamespace(map=lambda: mapping, size_bytes=SIZE_BYTES)
    memory = SimpleNamespace(names=lambda: [MEMORY_NAME], open=lambda name: objects)
    log = SimpleNamespace(error=lambda *words: None, about=lambda **names: log)
    for isolated in (False, False, True):
        actor = cast(Any, VMemFS())
        resources = SimpleNamespace(callback=lambda close: None)
        actor.context = SimpleNamespace(environment=SimpleNamespace(memory=memory), resources=resources, log=log)
        await actor.on_start()
        told = actor.guests(pb.Empty())
        assert [g.guest_id for g in told.guests] == ["a", "c"]
        assert [each.guest.guest_id for each in told.damaged] == ["b"]
        if isolated:
            actor.put_guest(pb.Guest(guest_id="b", name="name-b", damaged="x", state=pb.FAILED))
            assert [g.guest_id for g in actor.guests(pb.Empty()).guests] == ["a", "b", "c"]
    actor = cast(Any, VMemFS())
    actor.context = SimpleNamespace(environment=SimpleNamespace(memory=memory), resources=resources, log=log)
    await actor.on_start()
    assert not actor.guests(pb.Empty()).damaged, "it is isolated"


def test_files_are_compared_with_what_the_machine_has() -> None:
    there = sizes("a", "b") | {"nvm": 8192}
    files = [*guest_files(guest("a"), there), *guest_files(guest("b"), there), *device_files(there)]
    assert len(files) == 5
    assert check(files, there) == []
    [missing] = check(files, {name: size for name, size in there.items() if name != "region.b.r"})
    assert (missing.guest_id, missing.file) == ("b", "guests/b/regions/r")
    assert "does not have its memory region.b.r" in missing.reason
    [short] = check(files, there | {"log.a": 4096})
    assert (short.guest_id, short.file) == ("a", "guests/a/log")
    assert "not inside log.a" in short.reason
    [device] = check(files, {name: size for name, size in there.items() if name != "nvm"})
    assert device.guest_id == ""


def file(name: str, guest_id: str, *extents: tuple[int, str, int, int]) -> FileRecord:
    parts = [FileExtent(page=page, object=held, object_page=at, pages=pages) for page, held, at, pages in extents]
    return FileRecord(name=name, guest_id=guest_id, size_bytes=sum(e[3] for e in extents) * PAGE_BYTES, extents=parts)


def test_a_page_that_two_files_claim_is_nobodys() -> None:
    files = [file("fa", "a", (0, "o", 0, 4)), file("fb", "b", (0, "o", 3, 4)), file("fc", "c", (0, "o", 8, 1))]
    faults = check(files, {"o": 9 * PAGE_BYTES})
    assert {fault.guest_id for fault in faults} == {"a", "b"}
    assert all("page 3 of o is in fa and in fb" in fault.reason for fault in faults)
    assert {fault.guest_id for fault in check(files, None)} == {"a", "b"}, "whatever the machine has"


@pytest.mark.parametrize(
    ("extents", "why"),
    [
        ([(0, "o", 0, 2), (2, "o", 1, 2)], "page 1 of o is in it twice"),
        ([(0, "o", 0, 2), (1, "o", 4, 2)], "overlap at page 1"),
        ([(0, "o", 0, 2), (3, "o", 4, 2)], "have a gap at page 3"),
        ([(0, "o", 7, 3)], "not inside o"),
    ],
)
def test_extents_that_cannot_be_are_recognised(extents: list[tuple[int, str, int, int]], why: str) -> None:
    faults = check([file("fa", "a", *extents), file("fb", "b", (0, "p", 0, 1))], {"o": 9 * PAGE_BYTES, "p": 4096})
    assert faults
    assert all((fault.guest_id, fault.file) == ("a", "fa") for fault in faults)
    assert why in faults[0].reason


def test_a_file_that_is_longer_than_its_pages_is_recognised() -> None:
    short = file("fa", "a", (0, "o", 0, 2))
    short.size_bytes = 3 * PAGE_BYTES
    [fault] = check([short], {"o": 9 * PAGE_BYTES})
    assert "2 pages do not hold 12288 bytes" in fault.reason


# -- as files of a mount -----------------------------------------------------------------------------------------------


class Held:
    """A memory object of which every page says its number."""

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(bytes([at // PAGE_BYTES]) for at in range(offset, offset + length))


class Machine:
    """The memory, and the VMemFS that says what lies in it."""

    def __init__(self) -> None:
        self.records = [
            file("guests/g/log", "g", (0, "o", 3, 1), (1, "o", 1, 1)),
            file("devices/nvm", "", (0, "n", 0, 1)),
        ]
        self.records[0].size_bytes -= 100

    def open(self, name: str) -> Held:
        if name != "o":
            raise NotFound(name)
        return Held()

    async def status(self, request: pb.Empty) -> VMemFSStatus:
        return VMemFSStatus(version="2.0", records=self.records)


async def test_a_mount_shows_the_superblock_and_every_file() -> None:
    machine = Machine()
    view = VMemFSFiles(lambda: machine, machine)  # type: ignore[arg-type, return-value]
    assert [entry.name for entry in await view.entries(VMEMFS)] == ["devices", "guests", "superblock.json"]
    assert [(e.name, e.kind) for e in await view.entries(".vmemfs/guests/g")] == [("log", Kind.FILE)]
    found = await view.lookup(".vmemfs/guests/g", "log")
    assert (found.size_bytes, found.kind) == (2 * PAGE_BYTES - 100, Kind.FILE)
    log = await view.open(found.key)
    assert log.read(PAGE_BYTES - 1, 3) == bytes([3, 1, 1])
    assert log.read(2 * PAGE_BYTES - 101, 50) == bytes([1])
    told = await view.open(".vmemfs/superblock.json")
    assert json.loads(bytes(told.read(0, 1 << 20)))["version"] == "2.0"
    gone = await view.open(".vmemfs/devices/nvm")
    for key, number in ((".vmemfs/x", errno.ENOENT), (".vmemfs/guests/g", errno.EISDIR)):
        with pytest.raises(FuseError) as refused:
            await (view.open if number == errno.EISDIR else view.attributes)(key)
        assert refused.value.number == number
    with pytest.raises(FuseError) as refused:
        gone.read(0, 1)
    assert refused.value.number == errno.ESTALE
