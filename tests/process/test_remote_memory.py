"""Remote memory as files on a real cluster of three hosts: by the commands and by the client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.errors import EverramError, FailedPrecondition, NotFound

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
COMMAND_TIMEOUT_S = 60.0
PATIENCE_S = 30.0
FILE_BYTES = 16 << 20
HOSTS = ("h1", "h2", "h3")

pytestmark = [pytest.mark.process, pytest.mark.timeout(170)]


class Local:
    """A cluster, as its user handles it."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.dir = folder / "cluster"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM", "XDG"))}
        self.environment |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(self.dir)}

    def try_run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Exit status, what it printed, what it complained."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr.decode()

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        status, out, err = self.try_run(*arguments, stdin=stdin)
        assert status == 0, f"everram {' '.join(arguments)}: {status}\n{err}"
        return out

    def json(self, *arguments: str) -> dict[str, Any]:
        answer = json.loads(self.run(*arguments, "--json"))
        assert isinstance(answer, dict)
        return answer

    def refused(self, *arguments: str) -> str:
        status, _, err = self.try_run(*arguments)
        assert status in (1, 2), err
        assert err.startswith("everram: "), err
        return err


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    with tempfile.TemporaryDirectory(prefix="er") as runtime:
        cluster = Local(tmp_path_factory.mktemp("remote"), runtime)
        with contextlib.ExitStack() as ending:
            ending.callback(cluster.try_run, "down", "--discard")
            cluster.run("up", "--lease", "5s", "-d", "--hosts", "3", "--memory", "256MiB", "--nvm", "64MiB")
            with pytest.MonkeyPatch.context() as patched:
                for name in ("XDG_RUNTIME_DIR", "EVERRAM_DIR"):
                    patched.setenv(name, cluster.environment[name])
                yield cluster


async def counters(cluster: Cluster) -> tuple[int, int]:
    """Messages handled by managers, and by agents as owners."""
    managers = [await host.remote_memory.status(Empty()) for host in cluster.hosts]
    agents = [await host.memory_agent.status(Empty()) for host in cluster.hosts]
    return sum(one.messages for one in managers), sum(one.owner_messages for one in agents)


async def patiently(met: Callable[[], Awaitable[bool]], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not await met():
        assert time.monotonic() < until_s, f"not in {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.05)


async def test_one_file_on_three_hosts_and_nobody_asked_after_open(local: Local, tmp_path: Path) -> None:
    content = os.urandom(FILE_BYTES)
    (tmp_path / "content").write_bytes(content)
    local.run("fs", "cp", str(tmp_path / "content"), ":big", "--host", "h2", "--through", "h1")
    assert local.run("fs", "cat", "big", "--through", "h3") == content
    assert local.run("fs", "cat", "big", "--through", "h2") == content
    found = local.json("fs", "stat", "big")
    assert (found["host"], found["size_bytes"], found["lost"]) == ("h2", FILE_BYTES, "")
    async with await Cluster.connect() as cluster:
        async with (
            await cluster.open("big", "r+", through="h1") as one,
            await cluster.open("big", through="h3") as other,
        ):
            assert await other.read() == content
            before = await counters(cluster)
            for number in range(50):
                await one.pwrite(number * 4096, number.to_bytes(4096, "little"))
                assert await other.pread(number * 4096, 4096) == number.to_bytes(4096, "little")
            assert await counters(cluster) == before
            assert await other.seek(-3, 2) == FILE_BYTES - 3
            assert await other.read() == content[-3:]
            assert await other.read() == b""
        async with await cluster.open("big", "a", through="h3") as file:
            await file.write(b"end")
        assert (await (await cluster.files("h1")).stat("big")).size_bytes == FILE_BYTES + 3
    local.run("fs", "rm", "big")


def test_the_commands_say_plainly_what_is_wrong(local: Local, tmp_path: Path) -> None:
    local.run("fs", "mkdir", "-p", "a/b")
    assert "EEXIST" in local.refused("fs", "mkdir", "a/b")
    local.run("fs", "cp", "-", ":a/b/f", "--persistent", stdin=b"hello")
    assert local.run("fs", "cat", "a/b/f") == b"hello"
    (node,) = local.json("fs", "ls", "a/b")["files"]
    assert (node["name"], node["size_bytes"], node["persistent"]) == ("f", 5, True)
    assert b"persistent" in local.run("fs", "ls", "a/b")
    assert "ENOENT" in local.refused("fs", "cat", "a/nothing")
    assert "EISDIR" in local.refused("fs", "cat", "a")
    assert "ENOTEMPTY" not in local.refused("fs", "rm", "a")
    assert "begin with ':'" in local.refused("fs", "cp", "x", "y")
    assert "h9" in local.refused("fs", "cp", "-", ":x", "--host", "h9")
    too_big = tmp_path / "too-big"
    with too_big.open("wb") as file:
        file.truncate(80 << 20)
    assert "ENOSPC" in local.refused("fs", "cp", str(too_big), ":x", "--host", "h1")
    local.run("fs", "rm", "x")
    local.run("fs", "cp", ":a/b/f", ":a/g")
    local.run("fs", "mv", "a/g", "a/b/g")
    local.run("fs", "cp", ":a/b/g", str(tmp_path))
    assert (tmp_path / "g").read_bytes() == b"hello"
    local.run("fs", "rm", "-r", "a")
    assert local.json("fs", "ls") == {"files": []}


async def test_a_hosts_death_leaves_open_files_and_a_machines_death_says_so(local: Local) -> None:
    async with await Cluster.connect() as cluster:
        leader = (await cluster.host("h1").availability.status(Empty())).leader
        user, owner = [name for name in HOSTS if name != leader]
        files = await cluster.files(user)
        kept = await cluster.open("kept", "w+", host=leader, through=user)
        lost = await cluster.open("lost", "w+", host=owner, through=user)
        await kept.write(b"k" * 100_000)
        await lost.write(b"l" * 100_000)
        local.run("fault", owner, "host-kill")
        assert await lost.pread(0) == b"l" * 100_000
        await lost.pwrite(0, b"again")
        assert await lost.pread(0, 5) == b"again"
        local.run("fault", owner, "machine-kill")
        for work in (lost.pread(0, 5), lost.pwrite(0, b"x"), cluster.open("lost", through=user)):
            with pytest.raises(FailedPrecondition, match="ESTALE"):
                await work
        assert await kept.pread(0) == b"k" * 100_000
        assert sorted(node.name for node in await files.list("")) == ["kept", "lost"]
        assert "ESTALE" in local.refused("fs", "cat", "lost", "--through", user)
        assert "ESTALE" in json.loads(local.try_run("fs", "stat", "lost", "--through", user, "--json")[1])["lost"]
        local.run("fs", "rm", "lost", "kept", "--through", user)
        assert await files.list("") == []
        local.run("fault", "heal", owner)

        async def back() -> bool:
            try:
                await cluster.host(owner).memory_agent.status(Empty(), timeout_s=1.0)
            except EverramError:
                return False
            return True

        await patiently(back, f"{owner} is back")
        with pytest.raises(NotFound, match="ENOENT"):
            await files.stat("lost")


def test_persistent_files_outlive_down_and_up(local: Local) -> None:
    local.run("fs", "cp", "-", ":persistent", "--persistent", stdin=b"p" * 5_000)
    local.run("fs", "cp", "-", ":volatile", stdin=b"v")
    local.run("down")
    local.run("up", "--lease", "5s", "-d")
    assert local.run("fs", "cat", "persistent") == b"p" * 5_000
    assert "ESTALE" in local.refused("fs", "cat", "volatile")
    local.run("fs", "rm", "persistent", "volatile")
    assert local.json("fs", "ls") == {"files": []}
