"""A guest that saves old content itself: what it waits for, and what a replay saves before it stores."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from everram.runtime.guest import Guest, LogFull, shell
from everram.runtime.guest.core import GuestCore, no_waiting
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import Ring
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.heap import HeapMapping
from everram.runtime.memory.old_pages import SLOTS_MAX, OldPages

PAGES = 2 * SLOTS_MAX
SIZE_BYTES = PAGES * PAGE_BYTES


class Memory:
    """A guest's: one logged region "d", whose old content may be saved from some incarnation on."""

    def __init__(self) -> None:
        log = HeapMapping(Ring.total_bytes(1 << 20))
        self.ring = Ring.format(log, guest_id="g", epoch=0, capacity_bytes=1 << 20)
        self.data = HeapMapping(SIZE_BYTES)
        self.old: OldPages | None = None

    def save_old(self, *, armed: bool) -> OldPages:
        self.old = OldPages.format(HeapMapping(OldPages.total_bytes(PAGES)), PAGES, armed=armed)
        return self.old

    def start(self, wait_for_room: Callable[[], bool] = no_waiting) -> GuestCore:
        self.ring.begin_epoch(self.ring.epoch + 1)
        region = Region("d", 0, "logged", self.data, SIZE_BYTES, self.old)
        return GuestCore(
            guest_id="g",
            name="g",
            epoch=self.ring.epoch,
            ring=self.ring,
            regions=[region],
            now_ns=lambda: 0,
            wait_for_room=wait_for_room,
        )

    def commit_without_applying(self, stores: list[tuple[int, int, bytes]]) -> None:
        """By an incarnation that ends then."""
        writer = self.start()._writer
        writer.begin()
        writer.append_stores(stores)
        writer.publish()


@contextlib.contextmanager
def host(old: OldPages) -> Iterator[None]:
    """Takes out what is saved whenever it looks, which is seldom."""
    ending = threading.Event()

    def run() -> None:
        while not ending.wait(0.005):
            while old.pending:
                old.taken()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def test_a_replay_saves_what_it_stores_over() -> None:
    """A region with a snapshot, made where stores were trapped; then its image was opened where they are not."""
    memory = Memory()
    memory.data.store(0, b"before")
    memory.commit_without_applying([(0, 0, b"AFTER!"), (0, 3 * PAGE_BYTES - 1, b"xy")])
    old = memory.save_old(armed=True)
    core = memory.start()
    assert core.replayed == 1
    assert memory.data.load(0, 6) == b"AFTER!"
    found = old.find(0)
    assert found is not None and found[:6] == b"before"
    assert [page for page, _ in old.entries()] == [0, 2, 3], "once each, and nothing else"
    assert old.saver == core.epoch


def test_a_replay_that_finds_no_room_stores_nothing_and_goes_on_when_it_is_tried_again() -> None:
    memory = Memory()
    memory.commit_without_applying([(0, page * PAGE_BYTES, b"new") for page in range(SLOTS_MAX + 8)])
    old = memory.save_old(armed=True)
    with pytest.raises(LogFull, match="nothing was replayed: attach again"):
        memory.start()
    assert memory.data.load(0, 3) == bytes(3)
    saved = []

    def take_out() -> bool:
        saved.extend(old.entries())
        for _ in range(old.pending):
            old.taken()
        return True

    assert memory.start(take_out).replayed == 1
    saved.extend(old.entries())
    assert sorted(page for page, _ in saved) == list(range(SLOTS_MAX + 8))
    assert all(content == bytes(PAGE_BYTES) for _, content in saved)
    assert memory.data.load((SLOTS_MAX + 7) * PAGE_BYTES, 3) == b"new"


def test_a_real_guest_waits_with_its_replay_until_its_host_has_made_room() -> None:
    memory = Memory()
    memory.commit_without_applying([(0, page * PAGE_BYTES, b"new") for page in range(SLOTS_MAX + 8)])
    with host(memory.save_old(armed=True)):
        assert memory.start(shell.waiting_for_room()).replayed == 1


def test_collections_wait_for_their_host_as_a_transaction_does() -> None:
    memory = Memory()
    old = memory.save_old(armed=False)
    me = Guest(memory.start())
    numbers: Any = me.dict("d")
    keys = [f"key-{number}" for number in range(SLOTS_MAX + 40)]
    for key in keys:
        numbers[key] = "x" * 3000
    old.arm()  # a snapshot
    with host(old):
        for key in keys:
            numbers[key] = "y" * 3000
        for key in keys:
            del numbers[key]
        old.arm()
        array = me.records("d", f"{PAGE_BYTES}s")
        for index in range(len(array)):
            array[index] = (b"z",)
    assert array[PAGES - 1][0][:2] == b"z\0"


def test_a_collection_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "ROOM_WAIT_S", 0.0)
    memory = Memory()
    memory.save_old(armed=True)
    array = Guest(memory.start()).records("d", f"{PAGE_BYTES}s")
    with pytest.raises(LogFull):
        for index in range(len(array)):
            array[index] = (b"z",)
    assert array[0][0][:1] == b"z"
    assert array[len(array) - 1][0][:1] == b"\0"
