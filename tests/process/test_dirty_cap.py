"""The dirty cap of a real machine: never exceeded, seen from outside; and what was saved in pieces comes back whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._observer import Observer
from everram.runtime.memory import probe
from tests.process.test_power import Cluster, until

CAP_PAGES = 512
WRITER = """
import itertools
from everram.runtime import guest
me = guest.attach()
region = me.region("data")
pages = len(region) // 4096
place = lambda count: 4096 * ((count * 7919) % pages)
last = max(region.load_u64(4096 * page) for page in range(pages))
wrong = sum(region.load_u64(place(count)) != count for count in range(max(1, last - pages + 2), last))
print("found", last, "wrong", wrong, flush=True)
with region.view.cast("B") as view, view.cast("Q") as words:
    for count in itertools.count(last + 1):
        words[place(count) // 8] = count
        if count % 500 == 0:
            print("stored", count, flush=True)
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not probe.userfaultfd().available, reason="this computer has no userfaultfd"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="everram-", dir="/tmp") as runtime:
        cluster = Cluster(tmp_path, runtime)
        yield cluster
        cluster.run("down", "--discard")


def last_found(cluster: Cluster) -> list[str]:
    lines = cluster.run("logs", "w")[1].splitlines()
    return next((line.split() for line in reversed(lines) if line.startswith("found")), ["found", "0"])


def test_no_more_is_ever_dirty_than_the_cap_and_all_of_it_comes_back(cluster: Cluster) -> None:
    sizes = ("--hosts", "1", "--memory", "256MiB", "--nvm", "64MiB")
    status, _, err = cluster.run("up", *sizes, "--dirty-cap", "2MiB", "-d")
    assert status == 0, err
    options = ("--name", "w", "--copies", "0", "--region", "data=10MiB,mapped")
    cluster.json("run", "-d", *options, "--", "python", "-c", WRITER)
    until(lambda: "stored 3000" in cluster.run("logs", "w")[1], "it has stored to every page")
    pid = int(cluster.json("inspect", "w")["pid"])
    with Observer(pid, "region.") as observer:
        observer.allowed_pages = CAP_PAGES
        until(lambda: "stored 5000" in cluster.run("logs", "w")[1], "it goes on at the speed of the flushes")
        assert cluster.run("fault", "h1", "host-kill")[0] == 0
        until(lambda: "stored 7000" in cluster.run("logs", "w")[1], "the next host goes on with the book")
        cluster.json("power", "cut", "h1")
    assert observer.looks > 20
    assert 0 < observer.most_pages <= CAP_PAGES
    cluster.json("power", "on", "h1")
    until(lambda: int(last_found(cluster)[1]) > 7000, "it is there again")  # a slow computer begins it anew before, too
    found = last_found(cluster)
    assert found[3] == "0", "pages hold what they did not hold"
    told = cluster.json("power", "status")["hosts"]["h1"]
    assert told["last"]["outcome"] == "saved"
    assert told["last"]["saved_bytes"] < 8 << 20, "10 MiB are there: the rest was flushed before"
    assert told["budget"]["dirty_bytes"] <= told["budget"]["cap_bytes"] == CAP_PAGES * 4096


def test_a_cap_that_cannot_be_is_refused(cluster: Cluster) -> None:
    for words, why in (
        (("--dirty-cap", "100KiB"), "would stop every guest"),
        (("--dirty-cap=-5MiB",), "is not a size"),
        (("--battery=-5s",), "is not a duration"),
        (("--battery", "0s"), "a battery of 0 s cannot be"),
        (("--battery", "9000s"), "at most an hour"),
    ):
        status, _, err = cluster.run("up", "--hosts", "1", *words, "-d")
        assert status != 0
        assert why in err, err
