"""Losses of the mains of real machines: drained, saved, handed over, restored; and batteries that die early."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.user import COMMAND, look, looks_only, until

WRITER = """
import time
from everram.runtime import guest
me = guest.attach()
ledger = me.region("ledger")
print("began at", ledger.load_u64(0), flush=True)
print("epoch", me.epoch, flush=True)
while True:
    with me.transaction() as tx:
        for place in range(8):
            tx.store_u64(ledger, 4096 * place, tx.load_u64(ledger, 4096 * place) + 1)
    print("committed", ledger.load_u64(0), flush=True)
    time.sleep(0.005)
"""

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Cluster:
    def __init__(self, folder: Path, runtime: str) -> None:
        self.dir = folder / "cluster"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM", "XDG"))}
        self.environment |= {"EVERRAM_TEST_SESSION": os.environ["EVERRAM_TEST_SESSION"]}
        self.environment |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(self.dir)}

    def run(self, *arguments: str) -> tuple[int, str, str]:
        if looks_only(arguments):
            return look(self.environment, arguments)
        done = subprocess.run(
            [*COMMAND, *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *arguments: str) -> dict[str, Any]:
        status, out, err = self.run(arguments[0], *arguments[1:2], "--json", *arguments[2:])
        assert status == 0, f"everram {' '.join(arguments)}: {out}{err}"
        answer: dict[str, Any] = json.loads(out)
        return answer

    def start_writer(self, name: str, copies: int) -> str:
        """Where it runs."""
        options = ["--name", name, "--region", "ledger=1MiB", "--copies", str(copies)]
        host: str = self.json("run", "-d", *options, "--", "python", "-c", WRITER)["host"]
        if copies:
            until(lambda: not self.json("inspect", name)["degraded"], f"{name} has its copy")
        until(lambda: self.numbers(name, "committed"), f"{name} has committed")
        return host

    def numbers(self, name: str, word: str) -> list[int]:
        """What the guest has printed, where it runs now."""
        lines = self.run("logs", name)[1].splitlines()
        return [int(line.split()[-1]) for line in lines if line.startswith(word)]

    def epoch(self, name: str) -> int:
        return int(self.json("inspect", name)["epoch"])

    def began_after(self, name: str, epoch: int) -> int:
        """What the next incarnation found. Its output may follow that of earlier ones."""
        until(lambda: max(self.numbers(name, "epoch"), default=0) > epoch, f"{name} has begun again")
        return self.numbers(name, "began at")[-1]

    def where(self, name: str) -> str:
        return str(self.json("inspect", name)["host"])

    def printed(self, host: str, guest_id: str) -> int:
        """The last number that the guest has printed on a machine that is off: its file outlives it."""
        lines = (self.dir / "machines" / host / "guests" / f"{guest_id}.log").read_text().splitlines()
        return int([line for line in lines if line.startswith("committed") and line.split()[1:]][-1].split()[-1])


@contextmanager
def cluster_of(folder: Path, *options: str) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        cluster = Cluster(folder, runtime)
        status, _, err = cluster.run("up", "-d", *options)
        assert status == 0, err
        try:
            yield cluster
        finally:
            assert cluster.run("down", "--discard")[0] == 0


def test_machines_lose_their_mains_one_by_one_and_all_at_once(tmp_path: Path) -> None:
    with cluster_of(tmp_path, "--hosts", "3") as cluster:
        copied = cluster.start_writer("copied", copies=1)
        alone = cluster.start_writer("alone", copies=0)
        rehearsal = cluster.json("power", "rehearse", copied)
        assert rehearsal["margin_s"] > 0 < rehearsal["bytes_per_s"]
        guest_id = cluster.json("inspect", "copied")["guest_id"]

        # One machine: its guest goes on elsewhere, with everything that it had committed; nothing was replicated first.
        epoch = cluster.epoch("copied")
        cluster.json("power", "cut", copied)
        until(lambda: cluster.where("copied") != copied, "copied runs elsewhere")
        assert cluster.began_after("copied", epoch) >= cluster.printed(copied, guest_id)
        assert cluster.json("power", "status")["hosts"][copied]["state"] == "off"
        status, _, err = cluster.run("fault", "heal", copied)
        assert (status, "everram power on" in err) == (1, True)

        # Power returns: the machine is there again with what it saved, and knows whose the guest is by now.
        cluster.json("power", "on", copied)
        told = cluster.json("power", "status", copied)["hosts"][copied]
        assert (told["state"], told["last"]["outcome"]) == ("up", "saved")
        assert "loss of the mains" in told["restored_from"]
        assert all(copy["drained"] for guest in told["last"]["guests"] for copy in guest["copies"])

        # All of them: nothing is lost, with a copy or without.
        names = ("copied", "alone")
        before = {name: (cluster.numbers(name, "committed")[-1], cluster.epoch(name)) for name in names}
        cluster.json("power", "cut", "--all")
        assert {one["state"] for one in cluster.json("power", "status")["hosts"].values()} == {"off"}
        cluster.json("power", "on", "--all")
        for name, (number, epoch) in before.items():
            assert cluster.began_after(name, epoch) >= number
        assert cluster.where("alone") == alone, "only its own machine has its memory"


def test_a_battery_that_dies_before_anything_is_saved_is_never_passed_over(tmp_path: Path) -> None:
    with cluster_of(tmp_path, "--hosts", "2", "--battery", "1ms") as cluster:
        host = cluster.start_writer("alone", copies=0)
        cluster.json("power", "cut", host)
        status, _, err = cluster.run("power", "on", host)
        if status:  # a millisecond may not suffice for any word of it
            assert "its battery did not last" in err or "not even a report" in err
            assert "--open empty" in err
            cluster.json("power", "on", host, "--open", "empty")
        told = cluster.json("power", "status", host)["hosts"][host]
        assert (told["state"], told["restored_from"]) == ("up", "")


def test_a_choice_is_made_while_the_cluster_is_up(tmp_path: Path) -> None:
    with cluster_of(tmp_path, "--hosts", "1") as cluster:
        cluster.start_writer("alone", copies=0)
        cluster.json("power", "cut", "h1")
        (cluster.dir / "machines" / "h1" / "image" / "marker").unlink()
        for _ in range(2):  # it is off at first, and then up with a host that waits for a choice
            status, _, err = cluster.run("power", "on", "h1")
            assert (status, "is incomplete" in err, "everram power on HOST --open" in err) == (1, True, True), err
        cluster.json("power", "on", "h1", "--open", "incomplete")
        assert "an unfinished save" in cluster.json("power", "status")["hosts"]["h1"]["restored_from"]


def test_what_cannot_be_is_refused_in_plain_words(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        cluster = Cluster(tmp_path, runtime)
        for battery in ("0s", "-5s", "2h", "much"):
            status, _, err = cluster.run("up", "-d", "--battery", battery)
            assert status != 0
            assert "everram" in err
    with cluster_of(tmp_path, "--hosts", "1") as cluster:
        for words, why in (
            (("power", "cut"), "name hosts, or give --all"),
            (("power", "cut", "h1", "--all"), "name hosts, or give --all"),
            (("power", "cut", "h7"), 'no host "h7"'),
            (("power", "rehearse"), "name one host"),
        ):
            status, _, err = cluster.run(*words)
            assert (status != 0, why in err) == (True, True), err
        assert cluster.json("power", "on", "h1") == {"on": ["h1"]}, "it has power already"


LAZY = """
import random, signal, sys
from everram.runtime import guest
me = guest.attach()
words = memoryview(me.region("data").view).cast("B").cast("Q")
pages = len(words) // 512
if words[7] != 1:
    for page in range(pages):
        words[page * 512] = words[page * 512 + 511] = page + 1
    words[7] = 1
    print("written", pages, flush=True)
else:
    order = list(range(pages))
    random.Random(sys.argv[1]).shuffle(order)
    wrong = 0
    for page in order:
        wrong += words[page * 512] != page + 1 or words[page * 512 + 511] != page + 1
        words[page * 512 + 3] += 1
    print("wrong", wrong, flush=True)
    print("times", words[3], flush=True)
signal.pause()
"""


@pytest.mark.needs("userfaultfd")
def test_guests_run_while_their_memory_is_read(tmp_path: Path) -> None:
    with cluster_of(tmp_path, "--hosts", "1", "--nvm", "256MiB", "--memory", "512MiB") as cluster:
        options = ["--name", "big", "--region", "data=96MiB,mapped", "--copies", "0"]
        cluster.json("run", "-d", *options, "--", "python", "-c", LAZY, "5")
        until(lambda: cluster.numbers("big", "written"), "all pages are written")
        for times in (1, 2):
            cluster.json("power", "cut", "h1")
            cluster.json("power", "on", "h1")
            if times == 2:  # its successor goes on with what is still in the image
                cluster.json("fault", "h1", "host-kill")
            until(lambda n=times: len(cluster.numbers("big", "times")) == n, "it has looked at all")  # type: ignore[misc]
            until(lambda: not cluster.json("power", "status")["hosts"]["h1"].get("restoring_bytes", 1), "all is read")
        assert set(cluster.numbers("big", "wrong")) == {0}
        cluster.json("power", "cut", "h1")
        pages = next((cluster.dir / "machines" / "h1" / "image").glob("pages.*"))
        with pages.open("r+b") as file:  # in the midst of the region
            file.seek(pages.stat().st_size // 2)
            file.write(b"rubbish")
        cluster.json("power", "on", "h1")
        until(lambda: cluster.json("inspect", "big")["state"] == "failed", "it is given up")
        assert "do not match their checksum" in cluster.json("inspect", "big")["reason"]
        status, _, err = cluster.run("start", "big")
        assert (status, "has lost memory" in err) == (1, True)
