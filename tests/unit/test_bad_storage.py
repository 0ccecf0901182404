"""A store for images that is read-only, full, or not what it was: said plainly, and nothing is lost by it."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from everram.actors.power_monitor.save import restore, save
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.vmemfs_pb2 import HostRecord
from everram.runtime.environment import Environment
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, PermissionDenied, ResourceExhausted
from everram.runtime.formats import nvm
from everram.runtime.formats.faults import DISK_FAULT_FILE, DISK_FULL
from everram.runtime.formats.image import examine
from everram.runtime.formats.vmemfs import Superblock
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.production.clock import SystemClock
from everram.runtime.production.disk import Folder
from everram.runtime.production.entropy import SystemEntropy
from tests.loose_memory import LooseMemory

ARENA, PAGES = "region.g.ledger", 64


class Store:
    """A folder, and what has become of it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._monkeypatch = monkeypatch
        self._heal: Callable[[], object] = lambda: None

    def environment(self, memory: LooseMemory) -> Environment:
        disk, nothing = Folder(self.root), cast("Any", None)
        return Environment(SystemClock(), SystemEntropy(), disk, cast("Any", memory), *[nothing] * 6)

    def read_only(self) -> None:
        opened = os.open

        def refused(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(self.root)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return opened(path, flags, *rest, **named)

        self._monkeypatch.setattr(os, "open", refused)
        self._heal = self._monkeypatch.undo

    def full(self) -> None:
        (self.root / DISK_FAULT_FILE).write_text(DISK_FULL)
        self._heal = (self.root / DISK_FAULT_FILE).unlink

    def no_folder(self) -> None:
        image, aside = self.root / "image", self.root / "aside"
        if image.exists():
            image.rename(aside)
        image.write_bytes(b"")

        def heal() -> None:
            image.unlink()
            if aside.exists():
                aside.rename(image)

        self._heal = heal

    def heal(self) -> None:
        self._heal()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path, monkeypatch)


@pytest.fixture
async def memory() -> AsyncIterator[LooseMemory]:
    made = LooseMemory()
    superblock = Superblock.format(made.make("vmemfs", 16 * PAGE_BYTES).map(), HostRecord(memory_id="m1", lease_id=5))
    superblock.put_guest(pb.Guest(guest_id="g", name="bank"))
    metadata = nvm.Metadata.format(made.make("nvm", 16 * PAGE_BYTES).map())
    metadata.add([pb.Region(name="ledger", guest_id="g", arena=ARENA, size_bytes=PAGES * PAGE_BYTES)], None)
    arena = made.make(ARENA, PAGES * PAGE_BYTES)
    for page in range(0, PAGES, 3):
        arena.write(page * PAGE_BYTES, b"%d" % page)
    yield made
    made.close()


def held(memory: LooseMemory) -> bytes:
    return memory.open(ARENA).read(0, PAGES * PAGE_BYTES)


HARMS = [
    (Store.read_only, PermissionDenied, "Read-only file system"),
    (Store.full, ResourceExhausted, "No space left on device; free some space"),
    (Store.no_folder, FailedPrecondition, "Not a directory"),
]


@pytest.mark.parametrize(("harm", "error", "words"), HARMS)
async def test_a_save_says_what_is_wrong_and_takes_nothing_away(
    store: Store, memory: LooseMemory, harm: Callable[[Store], None], error: type[EverramError], words: str
) -> None:
    environment, before = store.environment(memory), held(memory)
    await save(environment, "down", "m1")
    memory.open(ARENA).write(PAGE_BYTES, b"later")
    harm(store)
    with pytest.raises(error, match=words):
        await save(environment, "down", "m1")
    assert held(memory) != before, "memory is as it was"
    store.heal()
    survey = await examine(environment.disk)
    assert (survey.state, survey.generation) == ("complete", 1), "and so is the image before"
    await save(environment, "down", "m1")
    again = LooseMemory()
    await restore(store.environment(again))
    assert held(again) == held(memory)
    again.close()


@pytest.mark.parametrize(("harm", "error", "words"), HARMS)
async def test_a_start_says_what_is_wrong_and_opens_nothing(
    store: Store, memory: LooseMemory, harm: Callable[[Store], None], error: type[EverramError], words: str
) -> None:
    await save(store.environment(memory), "down", "m1")
    again = LooseMemory()
    harm(store)
    with pytest.raises((error, DataLoss), match=words):
        await restore(store.environment(again))
    assert again.names() in ([], ["restoring"]), "nobody may take it for whole"
    store.heal()
    assert (await restore(store.environment(again))).kind == "restored"
    assert held(again) == held(memory)
    assert Superblock.open(again.open("vmemfs").map()).host.memory_id == "m1", "it is what it was"
    again.close()
