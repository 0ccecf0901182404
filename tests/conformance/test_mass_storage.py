"""The storage file on a real and a simulated disk, and the block store on real and simulated memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everram.actors.nvm_device.block_store import GROW_BLOCKS, BlockStore
from everram.actors.nvm_device.storage import HEADER_BYTES, PIECE_SLOTS, STRIDE_BYTES, StorageFile
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


async def overwrite(disk: Disk, offset: int, data: bytes) -> None:
    file = await disk.open(NAME)
    await file.pwrite(offset, data)
    await file.close()


async def test_what_was_written_is_read(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    slots = [*range(2, 2 + 2 * PIECE_SLOTS + 5), 0, 9000, 9001]
    await storage.write([])
    await storage.write([(slot, slot + 77, block(slot)) for slot in slots])
    await storage.sync()
    await storage.close()
    storage = await StorageFile.open(disk, NAME)
    assert await storage.size_bytes() == HEADER_BYTES + 9002 * STRIDE_BYTES
    assert await storage.read(9000, 9077) == block(9000)
    await storage.write([(9000, 5, block(6))])
    assert await storage.read(9000, 5) == block(6)
    wanted = [(9001, 9078), (3, 80), (2, 79), (300, 377), (3, 80)]
    assert await storage.read_all(wanted) == [block(slot) for slot, _ in wanted]
    assert await storage.verify({slot: slot + 77 for slot in slots if slot != 9000}) == {}
    with pytest.raises(ValueError, match="slot 1"):
        await storage.write([(0, 1, block(1)), (1, 1, b"short")])
    await storage.close()


async def test_a_bad_block_is_found(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await storage.write([(slot, 10 + slot, block(slot)) for slot in range(8)])
    await storage.sync()
    await overwrite(disk, HEADER_BYTES + 3 * STRIDE_BYTES + 100, b"\xff")
    with pytest.raises(DataLoss, match=f"slot 3 at offset {HEADER_BYTES + 3 * STRIDE_BYTES} does not match"):
        await storage.read(3, 13)
    with pytest.raises(DataLoss, match="slot 3"):
        await storage.read_all([(2, 12), (3, 13)])
    with pytest.raises(DataLoss, match="holds the content of virtblock 14, not of 15"):
        await storage.read(4, 15)
    assert [
        finding.count("slot 3") for finding in (await storage.verify({slot: 10 + slot for slot in range(8)})).values()
    ] == [1]
    await storage.close()


async def test_a_block_in_anothers_place_is_found(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await storage.write([(0, 7, block(0)), (1, 7, block(1))])
    file = await disk.open(NAME)
    await file.pwrite(HEADER_BYTES + STRIDE_BYTES, await file.pread(HEADER_BYTES, STRIDE_BYTES))
    await file.close()
    with pytest.raises(DataLoss, match="slot 1"):
        await storage.read(1, 7)
    await storage.close()


async def test_a_truncated_file(disk: Disk) -> None:
    storage = await StorageFile.open(disk, NAME)
    await storage.write([(0, 7, block(0)), (1, 8, block(1))])
    await storage.close()
    await disk.replace(NAME, (await disk.read(NAME))[:-20])
    storage = await StorageFile.open(disk, NAME)
    assert await storage.read(0, 7) == block(0)
    for slot in (1, 100):
        with pytest.raises(DataLoss, match=f"the file ends before slot {slot} "):
            await storage.read(slot, 8)
    assert len(await storage.verify({0: 7, 1: 8, 100: 8})) == 2
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
    media = Media(Seeds(1).stream("disk"), capacity_bytes=HEADER_BYTES + 300 * STRIDE_BYTES)
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    contents = [(slot, slot, block(slot)) for slot in range(600)]
    await storage.write(contents[:20])
    with pytest.raises(ResourceExhausted, match="full"):
        await storage.write(contents)
    assert await storage.read(3, 3) == block(3)
    await storage.write(contents[:300])
    assert await storage.verify({slot: slot for slot in range(300)}) == {}


async def test_what_was_synced_outlives_a_loss_of_power() -> None:
    media = Media(Seeds(3).stream("disk"))
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    await storage.write([(slot, slot, block(slot)) for slot in range(10)])
    await storage.sync()
    await storage.write([(slot, slot, block(slot)) for slot in range(10, 40)])
    media.power_loss()
    storage = await StorageFile.open(SimulatedDisk(media), NAME)
    assert await storage.verify({slot: slot for slot in range(10)}) == {}
    assert await storage.verify({slot: slot for slot in range(10, 40)})


@pytest.fixture(params=["real", "simulated"])
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    if request.param == "simulated":
        yield SimulatedMemory(Objects(4 * GROW_BLOCKS * PAGE_BYTES))
    else:
        loose = LooseMemory()
        yield loose
        loose.close()


async def test_blocks(memory: Memory) -> None:
    store = await BlockStore.open(memory)
    store.discard(0, 10)
    for number in (0, 1, 5, GROW_BLOCKS + 3):
        store.persist(number, block(number))
    assert store.size_bytes == 2 * GROW_BLOCKS * PAGE_BYTES
    store = await BlockStore.open(memory)
    assert store.load(5) == block(5)
    store.discard(1, 5)
    assert store.load(0) == block(0)
    kept = memory.open("nvm.blocks")
    assert sum(length for _, length in kept.extents()) == 2 * PAGE_BYTES
    assert store.trim(lambda number: number == 0) == 1
    assert kept.extents() == [(0, PAGE_BYTES)]
    assert store.size_bytes == kept.size_bytes == GROW_BLOCKS * PAGE_BYTES
    assert store.trim(lambda number: False) == 1
    assert kept.size_bytes == 0
    store.persist(0, block(9))
    assert store.load(0) == block(9)


async def test_the_machines_memory_is_full() -> None:
    store = await BlockStore.open(SimulatedMemory(Objects(GROW_BLOCKS * PAGE_BYTES)))
    store.persist(GROW_BLOCKS - 1, block(1))
    with pytest.raises(ResourceExhausted):
        store.persist(GROW_BLOCKS, block(2))
    assert store.load(GROW_BLOCKS - 1) == block(1)
