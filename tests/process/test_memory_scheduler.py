"""Guests' volatile memory on a real host that has less than they were promised: taken back, and never lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.user import User, until, user_in

MIB = 1 << 20
LEASE = "20s"
"""Nothing here is about failover: guests have to outlive a host that is killed while the computer is overloaded."""

pytestmark = [pytest.mark.process, pytest.mark.needs("userfaultfd"), pytest.mark.timeout(170)]

GUEST = """
import random, sys, threading, time, zlib
from pathlib import Path
from everram.runtime import guest

me = guest.attach()
memory, cache, held, folder = me.memory, me.memory.cache(), {}, Path(sys.argv[1])
PIECE = 64 * 1024

def pattern(number, version=0):
    return random.Random(number * 1000 + version).randbytes(PIECE)

def grow(mib):
    for _ in range(mib * 16):
        number = len(held)
        block = memory.allocate(PIECE)
        block.store(0, pattern(number))
        held[number] = block

def shrink():
    for block in held.values():
        memory.free(block)
    held.clear()

def verify(numbers=None):
    assert held
    for number in sorted(held) if numbers is None else numbers:
        assert held[number].load() == pattern(number), f"{me.name}: block {number} is not what was stored"

def churn(seconds):
    dice, until = random.Random(1), time.monotonic() + seconds
    while time.monotonic() < until:
        number = dice.randrange(len(held))
        verify([number])
        held[number].store(0, pattern(number))

def hang():
    memory._lock.acquire()

def lie():
    memory.classes.set_kind(0, memory.classes.pages, 0)
    memory.classes.set_ballooned(1 << 62)
    memory.classes.set_wanted(1 << 63)

number = 0
while True:
    request = folder / f"{number}.do"
    if not request.exists():
        time.sleep(0.01)
        continue
    try:
        exec(request.read_text())
        answer = ""
    except BaseException as error:
        answer = repr(error) or "?"
    (folder / f"{number}.aside").write_text(answer)
    (folder / f"{number}.aside").rename(folder / f"{number}.done")
    number += 1
"""


class Guest:
    def __init__(self, cluster: Cluster, name: str, memory: str) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.dir.parent / name
        self.folder.mkdir()
        self.asked = 0
        cluster.run(
            "run", "-d", "--name", name, "--memory", memory, "--", sys.executable, "-c", GUEST, str(self.folder)
        )

    def tell(self, *statements: str) -> None:
        (self.folder / "aside").write_text("\n".join(statements))
        (self.folder / "aside").rename(self.folder / f"{self.asked}.do")
        self.asked += 1

    def is_done(self) -> bool:
        return (self.folder / f"{self.asked - 1}.done").exists()

    def do(self, *statements: str) -> None:
        self.tell(*statements)
        self.end()

    def end(self) -> None:
        until(self.is_done, f"{self.name} to do what it was told")
        assert (self.folder / f"{self.asked - 1}.done").read_text() == ""

    def status(self) -> dict[str, Any]:
        return next(guest for guest in self.cluster.memory()["guests"] if guest["name"] == self.name)

    def remove(self) -> None:
        self.cluster.run("rm", "--force", "--regions", self.name)


class Cluster(User):
    """With one host that has little memory."""

    def memory(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("memory", "status")["hosts"]["h1"]
        return found

    def decisions(self, guest: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("memory", "explain", guest)["decisions"]
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with user_in(tmp_path_factory.mktemp("memory"), Cluster) as user:
        # Guests may have 48 MiB: what NVM and files, a quarter, leave.
        sizes = ("--memory", "96MiB", "--nvm", "24MiB", "--swap", "64MiB")
        user.run("up", "--lease", LEASE, "--hosts", "1", *sizes, "-d")
        yield user


def test_free_memory_is_taken_and_nothing_is_swapped(cluster: Cluster) -> None:
    rich, poor = Guest(cluster, "rich", "44MiB"), Guest(cluster, "poor", "44MiB")
    rich.do("grow(38)", "shrink()")
    poor.tell("grow(38)", "verify()", "verify()")
    poor.end()
    given, needed = rich.status(), poor.status()
    assert given["swapped_bytes"] == needed["swapped_bytes"] == 0
    assert given["resident_bytes"] <= 12 * MIB
    assert needed["resident_bytes"] >= 38 * MIB
    assert "WAS TAKEN" in cluster.run("memory", "explain", "rich")
    assert "is more than its memory" in cluster.refused("memory", "set", "rich", "--min", "45MiB")
    assert "is above its max" in cluster.refused("memory", "set", "rich", "--min", "6MiB", "--max", "5MiB")
    # It asks for memory back and gets it, although its min is all that it was left.
    cluster.run("memory", "set", "rich", "--min", "4MiB")
    poor.do("shrink()")
    rich.do("grow(30)", "verify()")
    for guest in (rich, poor):
        guest.remove()
    assert cluster.memory()["resident_bytes"] == 0


def test_a_guest_that_hangs_is_swapped_out_and_in_again(cluster: Cluster) -> None:
    hung, busy = Guest(cluster, "hung", "30MiB"), Guest(cluster, "busy", "40MiB")
    hung.do("grow(28)", "hang()")
    until(lambda: not hung.status()["answers"], "its host to notice")
    busy.do("grow(36)", "verify()")
    until(lambda: hung.status()["swapped_bytes"] > 0, "pages of the guest that hangs to be swapped out")
    if cluster.host("h1")["host_restarts"] == 0:  # what was decided is known to the host's process alone
        assert any("does not answer in time" in decision["reason"] for decision in cluster.decisions("hung"))
    hung.do("verify()")
    busy.do("verify()")
    hung.do("verify()")
    for guest in (hung, busy):
        guest.remove()
    assert cluster.memory()["swap_used_bytes"] == 0


def test_no_byte_is_lost_with_the_host_killed_over_and_over_and_upgraded(cluster: Cluster) -> None:
    guests = [Guest(cluster, name, "32MiB") for name in ("one", "two")]
    for guest in guests:
        guest.do("grow(30)")
    cluster.run("memory", "set", "two", "--min", "6MiB")
    for guest in guests:
        guest.tell("churn(4)", "verify()")
    for _ in range(2):
        time.sleep(0.7)  # somewhere in the middle of whatever it does
        cluster.run("fault", "h1", "host-kill")
    for guest in guests:
        guest.end()
    until(lambda: cluster.host("h1")["host_state"] == "ready", "the host to be back")
    assert cluster.memory()["swap_used_bytes"] > 0
    cluster.run("upgrade", "h1")
    for guest in guests:
        guest.do("verify()")
    assert guests[1].status()["min_bytes"] == 6 * MIB
    cluster.run("restart", "two")
    assert guests[1].status()["min_bytes"] == 6 * MIB, "what was set is not what it was run with"
    for guest in guests:
        guest.remove()


def test_a_balloon_stays_inflated_over_an_upgrade(cluster: Cluster) -> None:
    caching, growing = Guest(cluster, "caching", "44MiB"), Guest(cluster, "growing", "44MiB")
    caching.do("for n in range(320): cache.put(n, pattern(n))", "grow(10)")

    def pressed() -> bool:
        """Memory is short, and not so short that there is no time for a balloon; a little more each time."""
        growing.do("grow(1)")
        return bool(caching.status()["ballooned_bytes"])

    growing.do("grow(9)")
    until(pressed, "its cache to be taken")
    cluster.run("upgrade", "h1")
    assert caching.status()["ballooned_bytes"] > 0
    caching.do("assert all(cache.get(n) in (None, pattern(n)) for n in range(320))", "verify()")
    growing.do("verify()")
    for guest in (caching, growing):
        guest.remove()


def test_a_liar_harms_only_itself(cluster: Cluster) -> None:
    liar, honest = Guest(cluster, "liar", "30MiB"), Guest(cluster, "honest", "40MiB")
    liar.do("grow(28)", "lie()")
    honest.do("grow(36)", "verify()")
    until(lambda: liar.status()["resident_bytes"] < 20 * MIB, "the liar's memory to be thrown away")
    honest.do("verify()")
    liar.tell("verify()")
    until(liar.is_done, "the liar to find out")
    for guest in (liar, honest):
        guest.remove()


def test_a_damaged_swap_file_pauses_its_guest_and_loses_nothing(cluster: Cluster) -> None:
    still, restless = Guest(cluster, "still", "30MiB"), Guest(cluster, "restless", "40MiB")
    still.do("grow(28)", "hang()")
    restless.do("grow(36)")
    until(lambda: still.status()["swapped_bytes"] > 4 * MIB, "pages to be swapped out")
    file = next(cluster.dir.rglob("swap/pages"))

    def rests() -> bool:
        before = file.read_bytes()
        time.sleep(0.5)
        return file.read_bytes() == before

    until(rests, "swapping to come to rest: what is written from now on shall be neither damaged nor mended")
    # Page by page, so that hardly any time is left for a host on a busy computer to write what would be lost.
    whole, noise = {}, os.urandom(4096)
    with open(file, "r+b") as damaged:
        for at in range(4096, file.stat().st_size, 4096):
            whole[at] = os.pread(damaged.fileno(), 4096, at)
            os.pwrite(damaged.fileno(), noise, at)
    still.tell("verify()")
    until(lambda: bool(still.status()["paused"]), "the guest to be paused")
    assert "damaged in the swap file" in still.status()["paused"]
    assert "is paused: page" in cluster.run("memory", "status")
    with open(file, "r+b") as mended:
        for at, page in whole.items():
            if os.pread(mended.fileno(), 4096, at) == noise:
                os.pwrite(mended.fileno(), page, at)
    still.end()
    for guest in (still, restless):
        guest.remove()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "-d", "--memory", "4KiB", "--", "sleep", "9"), "at least 1.0 MiB"),
        (("run", "-d", "--memory", "200MiB", "--", "sleep", "9"), "does not fit"),
        (("memory", "set", "nobody", "--min", "1MiB"), "no guest"),
        (("memory", "set", "nobody"), "--min SIZE"),
    ],
)
def test_bad_input(cluster: Cluster, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in cluster.refused(*arguments)
