"""A cluster whose lasting memory lies in ordinary files: it outlives hosts, machines and `down`, snapshots included."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.user import User, until, user_in

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

PROGRAM = """
from everram.runtime import guest

me = guest.attach()
counts, lsn = me.region("counts"), 0
n = counts.load_u64(0)
print("begins after", n, flush=True)
while True:
    n += 1
    with me.transaction() as tx:
        tx.store_u64(counts, 0, n)
        tx.store_u64(counts, n * 4096 % len(counts) or 8, n)
"""


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    with user_in(tmp_path) as made:
        yield made


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path / "nvm"
        return
    made = tempfile.mkdtemp(prefix="everram-test-", dir="/dev/shm")
    yield Path(made) / "nvm"
    shutil.rmtree(made)


def begins(user: User) -> list[int]:
    lines = user.run("logs", "counter").splitlines()
    return [int(line.rpartition(" ")[2]) for line in lines if line.startswith("begins")]


def is_synced(folder: Path) -> bool:
    return bool(json.loads((folder / "h1" / "device.json").read_text())["synced"])


def test_memory_in_files_outlives_its_machine(user: User, folder: Path, tmp_path: Path) -> None:
    user.run("up", "--hosts", "1", "--memory", "256MiB", "--nvm", "64MiB", "--nvm-files", str(folder), "-d")
    said = " ".join(user.json("status")["hosts"][0]["missing"])
    assert ("not for files in" in said) == (folder.is_relative_to(tmp_path)), "only those of a tmpfs are memory"
    user.run("run", "-d", "--name", "counter", "--region", "counts=1MiB", "--", "python", "-c", PROGRAM)
    until(lambda: begins(user), "the guest runs")
    user.run("region", "snapshot", "counts", "--name", "s")
    exported = tmp_path / "exported"

    def content() -> bytes:
        exported.unlink(missing_ok=True)
        user.run("region", "export", "counts@s", str(exported))
        return exported.read_bytes()

    before = content()
    user.run("region", "purge")

    user.run("down")
    machine = user.dir / "machines" / "h1"
    assert not list(machine.glob("image/pages.*")), "there is no image"
    assert is_synced(folder)
    assert "stays there" in user.refused("up", "--nvm-files", str(tmp_path / "elsewhere"))
    user.run("up", "-d")
    until(lambda: len(begins(user)) == 2, "the guest goes on")
    assert content() == before
    assert not is_synced(folder)

    user.run("fault", "h1", "machine-kill")
    user.run("fault", "heal", "h1")
    until(lambda: len(begins(user)) == 3, "the guest goes on after the death of its machine")
    first, second, third = begins(user)
    assert first == 0 < second < third, "nothing that it had committed is lost"
    assert content() == before
    user.run("region", "check")

    user.run("fault", "h1", "host-kill")
    until(lambda: user.host("h1")["host_state"] == "ready", "the host is back")
    assert content() == before
    user.run("power", "cut", "h1")
    until(lambda: is_synced(folder), "what was saved on battery outlives the computer as well")
    user.run("down", "--discard")
    assert not list(folder.glob("h1")), "nothing is left"
