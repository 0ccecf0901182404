"""The storage file on a real and a simulated disk, and the block store on real and simulated memory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from everram.actors.nvm_device.bitmap import Bitmap
from everram.actors.nvm_device.block_store import GROW_BLOCKS, BlockStore
from everram.actors.nvm_device.storage import (
    GROUP_SLOTS,
    PIECE_SLOTS,
    StorageFile,
    content_offset,
    trailer_offset,
)
from everram.actors.nvm_device.turns import at_once
from everram.runtime.environment import Disk, Memory
from everram.runtime.errors import DataLoss, FailedPrecondition, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production.disk import Folder
from everram.runtime.simulation.disk import Media, SimulatedDisk
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.objects import Objects, SimulatedMemory
from tests.loose_memory import LooseMemory

NAME = "nvm.storage"


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Folder(tmp_path) if request.param == "real" else SimulatedDisk(Media(Seeds(1).stream("disk")))


def block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE_BYTES // 8)


async def write(storage: StorageFile, slots: Sequence[int], virtblocks: Sequence[int] | None = None) -> None:
    """Slots that ascend, each with the `block` of its number; virtblocks are 10 more."""

    def load(first: int, target: memoryview) -> memoryview:
        count = len(target) // PAGE_BYTES
        target[:] = b"".join(block(slot) for slot in slots[first : first + count])
        return target

    await storage.write(slots, [slot + 10 for slot in slots] if virtblocks is None else virtblocks, load)


async def overwrite(disk: Disk, offset: int, data: bytes) -> None:
    file = await disk.open(NAME)
    await file.pwrite(offset, data)
    await file.close()


async def test_what_was_written_is_read(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    # Pieces, groups and what is shorter than either, each with neighbours and alone.
    slots = [0, *range(2, 2 + 4 * PIECE_SLOTS + 5), *range(GROUP_SLOTS - 3, GROUP_SLOTS + 40), 9000, 9001]
    await write(storage, [])
    await write(storage, slots)
    await storage.sync()
    await storage.close()
    storage = await StorageFile.open(disk, NAME)
    assert await storage.size_bytes() == content_offset(9001) + PAGE_BYTES
    assert await storage.read(9000, 9010) == block(9000)
    await write(storage, [9000], [5])
    assert await storage.read(9000, 5) == block(9000)
    wanted = [(9001, 9011), (3, 13), (2, 12), (GROUP_SLOTS, GROUP_SLOTS + 10), (3, 13)]
    assert await storage.read_all(wanted) == [block(slot) for slot, _ in wanted]
    assert await storage.verify({slot: slot + 10 for slot in slots if slot != 9000}) == {}
    await storage.close()


async def test_others_in_the_same_group_stay(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await write(storage, range(600))
    await storage.sync()
    await write(storage, [5, *range(100, 200), 599], range(102))
    await storage.sync()
    assert await storage.read(100, 1) == block(100)
    assert await storage.verify({slot: slot + 10 for slot in (4, 6, 99, 200, 598)}) == {}
    await storage.close()


async def test_a_bad_block_is_found(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await write(storage, range(8))
    await storage.sync()
    await overwrite(disk, content_offset(3) + 100, b"\xff")
    await overwrite(disk, trailer_offset(6) + 8, b"\xff\xff")
    for slot in (3, 6):
        with pytest.raises(DataLoss, match=f"slot {slot} at offset {content_offset(slot)} does not match"):
            await storage.read(slot, slot + 10)
    with pytest.raises(DataLoss, match="slot 3"):
        await storage.read_all([(2, 12), (3, 13)])
    with pytest.raises(DataLoss, match="holds the content of virtblock 14, not of 15"):
        await storage.read(4, 15)
    found = await storage.verify({slot: 10 + slot for slot in range(8)})
    assert [(slot, finding.count(f"slot {slot}")) for slot, finding in found.items()] == [(3, 1), (6, 1)]
    await storage.close()


async def test_a_block_in_anothers_place_is_found(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await write(storage, range(3), [7, 7, 8])
    file = await disk.open(NAME)
    await file.pwrite(content_offset(1), await file.pread(content_offset(0), PAGE_BYTES))
    with pytest.raises(DataLoss, match="slot 1"):
        await storage.read(1, 7)
    await file.pwrite(trailer_offset(1), await file.pread(trailer_offset(0), 16))  # and its proof with it
    with pytest.raises(DataLoss, match="slot 1"):
        await storage.read(1, 7)
    await file.close()
    assert await storage.read(2, 8) == block(2)
    await storage.close()


async def test_a_truncated_file(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await write(storage, [0, 1])
    await storage.close()
    await disk.replace(NAME, (await disk.read(NAME))[:-20])
    storage = await StorageFile.open(disk, NAME)
    assert await storage.read(0, 10) == block(0)
    for slot in (1, 100):
        with pytest.raises(DataLoss, match=f"the file ends before slot {slot} "):
            await storage.read(slot, slot + 10)
    assert len(await storage.verify({0: 10, 1: 11, 100: 110})) == 2
    await storage.close()
    await disk.replace(NAME, b"EVRSTORE")
    with pytest.raises(DataLoss, match="too few"):
        await StorageFile.open(disk, NAME)


@pytest.mark.parametrize(
    ("offset", "data", "error", "words"),
    [
        (0, b"NOTHING!", DataLoss, "magic"),
        (12, b"\x01", DataLoss, "checksum"),
        (8, b"\x02\0", DataLoss, "checksum"),
    ],
)
async def test_a_damaged_header(disk: Disk, offset: int, data: bytes, error: type[Exception], words: str) -> None:
    await (await StorageFile.open(disk, NAME)).close()
    await overwrite(disk, offset, data)
    before = await disk.read(NAME)
    with pytest.raises(error, match=words):
        await StorageFile.open(disk, NAME)
    assert await disk.read(NAME) == before


async def test_a_newer_version(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("everram.actors.nvm_device.storage.MAJOR", 2)
        await (await StorageFile.open(disk, NAME)).close()
    with pytest.raises(FailedPrecondition, match=r"version 2\.0, this everram reads 1\.x"):
        await StorageFile.open(disk, NAME)


async def test_a_full_disk() -> None:
    media = Media(Seeds(1).stream("disk"), capacity_bytes=content_offset(300))
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    await write(storage, range(20))
    with pytest.raises(ResourceExhausted, match="full"):
        await write(storage, range(6 * PIECE_SLOTS))
    assert await storage.read(3, 13) == block(3)
    await write(storage, range(300))
    assert await storage.verify({slot: slot + 10 for slot in range(300)}) == {}


async def test_what_was_synced_outlives_a_loss_of_power() -> None:
    media = Media(Seeds(3).stream("disk"))
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    await write(storage, range(10))
    await storage.sync()
    await write(storage, range(10, 40))
    media.power_loss()
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    assert await storage.verify({slot: slot + 10 for slot in range(10)}) == {}
    assert await storage.verify({slot: slot + 10 for slot in range(10, 40)})


async def test_a_file_system_that_cannot_pass_the_cache_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once, and refused when it comes to writing."""
    refusals = 0

    def pwrite(fd: int, data: bytes | memoryview, offset: int) -> int:
        nonlocal refusals
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refusals += 1
            raise OSError(errno.EINVAL, "not aligned")
        return written(fd, data, offset)

    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    storage = await StorageFile.open(Folder(tmp_path), NAME)
    await write(storage, range(600))
    assert await storage.verify({slot: slot + 10 for slot in range(600)}) == {}
    assert refusals
    await storage.close()
    monkeypatch.setattr("everram.runtime.production.direct._open_direct", lambda path: -1)
    refusals = 0
    storage = await StorageFile.open(Folder(tmp_path), NAME)
    await write(storage, range(600), range(600))
    assert await storage.verify({slot: slot for slot in range(600)}) == {}
    assert not refusals
    await storage.close()


@pytest.fixture(params=["real", "simulated"])
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    if request.param == "simulated":
        yield SimulatedMemory(Objects(4 * GROW_BLOCKS * PAGE_BYTES))
    else:
        loose = LooseMemory()
        yield loose
        loose.close()


def taken(*blocks: int) -> Bitmap:
    bits = sum(1 << block for block in blocks)
    bitmap = Bitmap("blocks", 8 * PAGE_BYTES, lambda page: 0)
    bitmap.loaded(bits.to_bytes(PAGE_BYTES, "little"))
    return bitmap


async def test_blocks(memory: Memory) -> None:
    store = await BlockStore.open(memory)
    store.discard(0, 10)
    for number in (0, 1, 5, GROW_BLOCKS + 3):
        store.persist(number, block(number))
    assert store.size_bytes == 2 * GROW_BLOCKS * PAGE_BYTES
    store = await BlockStore.open(memory)
    assert store.load(5) == block(5)
    target = memoryview(bytearray(2 * PAGE_BYTES))
    store.load_into(0, target)
    assert target == store.view(0, 2) == block(0) + block(1)
    store.discard(1, 5)
    assert store.load(0) == block(0)
    kept = memory.open("nvm.blocks")
    assert sum(length for _, length in kept.extents()) == 2 * PAGE_BYTES
    assert at_once(store.trim(taken(0))) == 1
    assert kept.extents() == [(0, PAGE_BYTES)]
    assert store.size_bytes == kept.size_bytes == GROW_BLOCKS * PAGE_BYTES
    assert at_once(store.trim(taken())) == 1
    assert kept.size_bytes == 0
    store.persist(0, block(9))
    assert store.load(0) == block(9)


async def test_the_machines_memory_is_full() -> None:
    store = await BlockStore.open(SimulatedMemory(Objects(GROW_BLOCKS * PAGE_BYTES)))
    store.persist(GROW_BLOCKS - 1, block(1))
    with pytest.raises(ResourceExhausted):
        store.persist(GROW_BLOCKS, block(2))
    assert store.load(GROW_BLOCKS - 1) == block(1)
