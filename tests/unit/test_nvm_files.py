"""A machine's lasting memory in ordinary files: what the next machine finds, and what nobody may open."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from everram.runtime.errors import AlreadyExists, DataLoss, FailedPrecondition, Unavailable
from everram.runtime.memory import memfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production import nvm_files
from everram.runtime.production.memory import KeptMemory
from everram.runtime.production.nvm_files import LOCK_NAME, NvmFiles

OWNER = "c/h1"


class Machine:
    """Keeps descriptors until it dies."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.keeps = 1 << 30
        """How many more before its host dies."""

    async def keep(self, name: str, fd: int) -> None:
        self.keeps -= 1
        if self.keeps < 0:
            os.close(fd)
            raise Unavailable("the host dies")
        self.kept[name] = fd

    async def drop(self, name: str) -> None:
        os.close(self.kept.pop(name))

    def die(self) -> None:
        for fd in self.kept.values():
            os.close(fd)


class Lives:
    """Machines of one name, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: list[Machine] = []

    def machine(self) -> Any:
        self.machines.append(Machine())
        return self.machines[-1]

    async def host(self, machine: Any, *, owner: str = OWNER, boot: str = "b1", empty: bool = False) -> KeptMemory:
        self.files = NvmFiles(self.folder, owner, boot)
        await self.files.take_up(machine, empty=empty)
        return KeptMemory(machine, 1 << 30, self.files)


@pytest.fixture
def lives(tmp_path: Path) -> Any:
    made = Lives(tmp_path / "nvm")
    yield made
    for machine in made.machines:
        machine.die()


async def fill(memory: KeptMemory) -> None:
    fixed = await memory.create("region.g.a@c1+2", 8 * PAGE_BYTES)
    fixed.write(PAGE_BYTES, b"fixed")
    grows = await memory.create("nvm.blocks", 0, resizable=True)
    memory.resize("nvm.blocks", 4 * PAGE_BYTES)
    grows.write(3 * PAGE_BYTES, b"grows")
    (await memory.create("vfile.7", 0, resizable=True)).resize(5)
    await memory.create("channel", PAGE_BYTES)


def look(memory: KeptMemory) -> None:
    fixed, grows = memory.open("region.g.a@c1+2"), memory.open("nvm.blocks")
    assert (fixed.size_bytes, fixed.resizable, fixed.read(PAGE_BYTES, 5)) == (8 * PAGE_BYTES, False, b"fixed")
    assert fixed.extents() == [(PAGE_BYTES, PAGE_BYTES)], "what was never written takes no room"
    assert (grows.size_bytes, grows.resizable, grows.read(3 * PAGE_BYTES, 5)) == (4 * PAGE_BYTES, True, b"grows")
    mapping = fixed.map()
    assert mapping.load(PAGE_BYTES, 5) == b"fixed"
    mapping.close()


async def test_the_next_machine_goes_on_with_what_lasts_and_nothing_else(lives: Lives) -> None:
    first = lives.machine()
    memory = await lives.host(first)
    await fill(memory)
    look(memory)
    with pytest.raises(AlreadyExists):
        await memory.create("nvm.blocks", 0, resizable=True)
    again = await lives.host(first)  # another host of the same machine
    look(again)
    lives.machines.remove(first)
    first.die()
    second = lives.machine()
    memory = await lives.host(second)
    look(memory)
    assert memory.names() == ["nvm.blocks", "region.g.a@c1+2"]
    await memory.remove("region.g.a@c1+2")
    await memory.create("region.g.a@c1+2", PAGE_BYTES)
    assert LOCK_NAME not in memory.names()


async def test_a_host_that_dies_as_it_takes_them_up_leaves_the_rest_to_the_next(lives: Lives) -> None:
    first = lives.machine()
    await fill(await lives.host(first))
    lives.machines.remove(first)
    first.die()
    machine = lives.machine()
    for keeps in (0, 1, 1):
        machine.keeps = keeps
        with pytest.raises(Unavailable):
            await lives.host(machine)
    machine.keeps = 1
    look(await lives.host(machine))


async def test_what_a_host_left_that_died_as_it_made_it_is_not_taken_for_the_next_of_its_name(lives: Lives) -> None:
    first = lives.machine()
    memory = await lives.host(first)
    first.keeps = 0
    with pytest.raises(Unavailable):
        await memory.create("region.g.x", PAGE_BYTES)
    first.keeps = 1
    memory = await lives.host(first)
    (await memory.create("region.g.x", 2 * PAGE_BYTES)).write(0, b"right")
    lives.machines.remove(first)
    first.die()
    memory = await lives.host(lives.machine())
    assert memory.open("region.g.x").read(0, 5) == b"right"


async def test_two_machines_cannot_have_one_device(lives: Lives) -> None:
    await lives.host(lives.machine())
    with pytest.raises(FailedPrecondition, match="in use by another machine"):
        await lives.host(lives.machine())


async def test_nobody_takes_up_what_is_not_his(lives: Lives) -> None:
    first = lives.machine()
    await lives.host(first)
    lives.machines.remove(first)
    first.die()
    with pytest.raises(FailedPrecondition, match="holds the memory of c/h1, not of d/h1"):
        await lives.host(lives.machine(), owner="d/h1")
    nvm_files.discard(lives.folder, "d/h1")
    assert lives.folder.exists()
    nvm_files.discard(lives.folder, OWNER)
    assert not lives.folder.exists()


async def test_what_a_stopped_computer_left_is_taken_up_only_if_it_was_synced(lives: Lives) -> None:
    first = lives.machine()
    await fill(await lives.host(first))
    assert await lives.files.sync() >= 2 * PAGE_BYTES
    lives.machines.remove(first)
    first.die()
    nvm_files.finish(lives.folder, OWNER)
    second = lives.machine()
    look(await lives.host(second, boot="b2"))
    await lives.files.sync()
    lives.files.stored_to()  # the guests went on
    lives.machines.remove(second)
    second.die()
    nvm_files.finish(lives.folder, OWNER)
    with pytest.raises(FailedPrecondition, match="--open empty"):
        await lives.host(lives.machine(), boot="b3")
    memory = await lives.host(lives.machine(), boot="b3", empty=True)
    assert memory.names() == []
    assert len(list((lives.folder / "objects.lost-1").iterdir())) == 2


async def test_that_all_was_written_back_is_said_when_nobody_is_left_who_stores(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        order.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def says() -> bool:
        return bool(json.loads((lives.folder / "device.json").read_text())["synced"])

    first = lives.machine()
    memory = await lives.host(first)
    await fill(memory)
    await lives.files.sync()
    assert not says()
    memory.open("region.g.a@c1+2").write(0, b"last words")  # the host's, after the save
    with pytest.raises(FailedPrecondition, match="in use by another machine"):
        nvm_files.finish(lives.folder, OWNER)
    await lives.host(first)  # its host died, and the next one is ended too
    assert not says()
    lives.machines.remove(first)
    first.die()
    nvm_files.finish(lives.folder, "d/h1")
    with pytest.raises(FailedPrecondition, match="--open empty"):
        await lives.host(lives.machine(), boot="b2")
    monkeypatch.setattr(os, "fsync", noted)
    nvm_files.finish(lives.folder, OWNER)
    assert says()
    *files, objects, record, folder = order
    assert (len(files), objects, record, folder) == (2, "objects", ".device.json", "nvm")
    memory = await lives.host(lives.machine(), boot="b2")
    assert memory.open("region.g.a@c1+2").read(0, 10) == b"last words"
    assert not says()


async def test_files_that_were_never_saved_are_not_finished(lives: Lives) -> None:
    first = lives.machine()
    await fill(await lives.host(first))
    lives.machines.remove(first)
    first.die()
    nvm_files.finish(lives.folder, OWNER)
    with pytest.raises(FailedPrecondition, match="--open empty"):
        await lives.host(lives.machine(), boot="b2")
    nvm_files.finish(lives.folder / "none", OWNER)


async def test_files_that_somebody_has_changed_are_refused(lives: Lives) -> None:
    first = lives.machine()
    await fill(await lives.host(first))
    lives.machines.remove(first)
    first.die()
    (path,) = (lives.folder / "objects").glob("region*")
    os.truncate(path, PAGE_BYTES)
    with pytest.raises(DataLoss, match="4096 bytes long, not 32768"):
        await lives.host(lives.machine())
    os.truncate(path, 8 * PAGE_BYTES)
    record = lives.folder / "device.json"
    content = record.read_text()
    record.write_text(json.dumps(json.loads(content) | {"format": 2}))
    with pytest.raises(FailedPrecondition, match="written in format 2"):
        await lives.host(lives.machine())
    record.write_text("{")
    with pytest.raises(DataLoss, match="does not say whose memory"):
        await lives.host(lives.machine())
    record.unlink()
    with pytest.raises(DataLoss, match=r"no device\.json"):
        await lives.host(lives.machine())


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = NvmFiles(tmp_path / "file" / "nvm", OWNER, "b1")
    with pytest.raises(FailedPrecondition, match="name a folder that everram may write to"):
        await files.take_up(cast("Any", Machine()))


def test_peers_map_only_what_keeps_its_length(tmp_path: Path) -> None:
    files = NvmFiles(tmp_path, OWNER, "b1")
    (tmp_path / "objects").mkdir()
    for resizable in (False, True):
        fd = files.create("region.g.x", PAGE_BYTES, resizable=resizable)
        assert memfd.is_resizable(fd) == resizable
        assert memfd.is_file(fd), "so it is not wiped with its machine"
        os.close(fd)
