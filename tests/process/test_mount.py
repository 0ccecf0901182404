"""The cluster's memory mounted on a real cluster of three hosts: programs on it, and what becomes of them when hosts
and machines die; the same files by `fs exec` and mapped by a client."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from everram.runtime.fuse import mount as fuse
from everram.runtime.machine import tree

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
COMMAND_TIMEOUT_S = 60.0
BIG_BYTES = 64 << 20
HOSTS = ("h1", "h2", "h3")

pytestmark = [pytest.mark.process, pytest.mark.needs("fuse", "root"), pytest.mark.timeout(170)]

LOAD = """
import os, random, sys, time
folder, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
path, size = f"{folder}/{name}", 1 << 20
fd = os.open(path, os.O_RDWR | os.O_CREAT)
shadow, draw, rounds, until = bytearray(size), random.Random(name), 0, time.monotonic() + seconds
assert os.pwrite(fd, shadow, 0) == size
print("begun", flush=True)
while time.monotonic() < until:
    at, data = draw.randrange(size - 5000), draw.randbytes(draw.randrange(1, 5000))
    assert os.pwrite(fd, data, at) == len(data)
    shadow[at : at + len(data)] = data
    at = draw.randrange(size - 5000)
    assert os.pread(fd, 5000, at) == shadow[at : at + 5000]
    if rounds % 20 == 0:
        other = os.open(f"{path}-new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        assert os.write(other, b"x") == 1
        os.close(other)
        os.rename(f"{path}-new", f"{path}-named")
        assert os.stat(f"{path}-named").st_size == 1
        os.unlink(f"{path}-named")
    rounds += 1
os.close(fd)
assert open(path, "rb").read() == shadow
"""
UNLINKED = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(fd, b"unlinked" * 1000)
os.unlink(sys.argv[1])
print("begun", flush=True)
sys.stdin.read()
assert os.pread(fd, 9000, 0) == b"unlinked" * 1000
assert os.pwrite(fd, b"still", 0) == 5
"""
STORING = """
import os, sys, time
from everram.runtime import guest
me = guest.attach()
data = me.region("data")
for text in (b"before" * 1000, b"after" * 1000):
    with me.transaction() as tx:
        tx.store(data, 4000, text)
    print("stored", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
time.sleep(1000)
"""
READER = """
import sys
file = open(sys.argv[1], "rb")
print("begun", flush=True)
sys.stdin.read()
"""
SQLITE = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    assert connection.execute(f"PRAGMA journal_mode={sys.argv[2]}").fetchone() == (sys.argv[2],)
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
    count = 100 if sys.argv[2] == "wal" else 30  # otherwise each makes and removes a journal
    for n in range(count):
        with connection:
            connection.execute("INSERT INTO t VALUES (?, ?)", (n, str(n) * 100))
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT COUNT(*) FROM t").fetchone() == (count,)
"""
REDIRECTED = """
import json, os, pathlib, shutil, sys
top, local, big = sys.argv[1], sys.argv[2], sys.argv[3]
assert open(f"{top}/big", "rb").read() == open(big, "rb").read()
with open(f"{top}/text", "w", encoding="utf-8") as file:
    file.write("grün\\n" * 3)
assert open(f"{top}/text", encoding="utf-8").readlines() == ["grün\\n"] * 3
assert os.stat(f"{top}/text").st_size == os.path.getsize(f"{top}/text") == 18
with open(f"{top}/text", "r+b", buffering=0) as file:
    assert file.seek(1) == 1 and file.write(bytes(range(256))) == 256
    assert file.truncate(10) == 10
assert open(f"{top}/text", "rb").read() == b"g" + bytes(range(9))
for letter in "ab":
    with open(f"{top}/appended", "a") as file:
        file.write(letter)
assert open(f"{top}/appended").read() == "ab"
pathlib.Path(top, "d", "e").mkdir(parents=True)
pathlib.Path(top, "d", "f").write_bytes(b"f")
assert sorted(os.listdir(f"{top}/d")) == ["e", "f"] and [one[2] for one in os.walk(f"{top}/d")] == [["f"], []]
shutil.copy(f"{top}/d/f", local)
assert pathlib.Path(local).read_bytes() == b"f"
os.rename(f"{top}/d/f", f"{top}/d/g")
fd = os.open(f"{top}/d/g", os.O_RDWR | os.O_CREAT)
assert (os.write(fd, b"hello"), os.lseek(fd, 1, 0), os.read(fd, 2), os.pread(fd, 9, 3)) == (5, 1, b"el", b"lo")
os.close(fd)
shutil.rmtree(f"{top}/d")
assert not os.path.exists(f"{top}/d")
for wrong, kind in (
    (lambda: open(f"{top}/nothing"), FileNotFoundError),
    (lambda: open(top), IsADirectoryError),
    (lambda: open(f"{top}/text", "x"), FileExistsError),
    (lambda: os.rmdir(f"{top}/text"), NotADirectoryError),
    (lambda: open(f"{top}/text", "rw"), ValueError),
    (lambda: open("/nothing"), FileNotFoundError),
):
    try:
        wrong()
    except kind as error:
        assert not isinstance(error, OSError) or error.filename, error
    else:
        raise AssertionError(kind)
os.remove(f"{top}/text"), os.remove(f"{top}/appended")
"""


class Mounts:
    """A cluster of three hosts, and a mount of each."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.folder = folder
        # Without the mark of the tests' processes: hosts that are started again in one test are there in the next.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM", "XDG"))}
        self.environment |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(folder / "cluster")}

    def point(self, host: str) -> Path:
        return self.folder / host

    def files(self, host: str) -> Path:
        return self.point(host) / "files"

    def try_run(self, *arguments: object) -> tuple[int, str, str]:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def run(self, *arguments: object) -> str:
        status, out, err = self.try_run(*arguments)
        assert status == 0, f"everram {arguments}: {status}\n{out}{err}"
        return out

    def mount(self, host: str, *flags: str) -> None:
        self.point(host).mkdir(exist_ok=True)
        self.run("mount", self.point(host), "--host", host, *flags)

    def program(self, *command: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", **options,
        )  # fmt: skip

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        """A Python program that has begun."""
        started = self.program(sys.executable, "-c", program, *arguments)
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n", started.communicate(timeout=COMMAND_TIMEOUT_S)
        return started

    def do(self, *command: object) -> None:
        finish(self.program(*command))


def finish(program: subprocess.Popen[str]) -> None:
    """It must end well."""
    try:
        out, err = program.communicate(timeout=COMMAND_TIMEOUT_S)
    finally:
        program.kill()
    assert program.returncode == 0, f"{out}{err}"


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounts]:
    with tempfile.TemporaryDirectory(prefix="er") as runtime, pytest.MonkeyPatch.context() as patched:
        cluster = Mounts(tmp_path_factory.mktemp("mounts"), runtime)
        for name in ("XDG_RUNTIME_DIR", "EVERRAM_DIR"):
            patched.setenv(name, cluster.environment[name])
        with contextlib.ExitStack() as ending:
            for host in HOSTS:
                ending.callback(fuse.unmount, str(cluster.point(host)))
            ending.callback(cluster.try_run, "down", "--discard")
            cluster.run("up", "--lease", "5s", "-d", "--hosts", "3", "--memory", "1GiB", "--nvm", "32MiB")
            for host in HOSTS:
                cluster.mount(host)
            yield cluster


@pytest.fixture(scope="module")
def big(mounts: Mounts) -> Iterator[Path]:
    """A local file, which is also on the mounts."""
    path = mounts.folder / "big"
    path.write_bytes(os.urandom(BIG_BYTES))
    mounts.do("cp", path, mounts.files("h1") / "big")
    yield path


async def test_one_file_by_every_way(mounts: Mounts, big: Path) -> None:
    mounts.do("cmp", big, mounts.files("h1") / "big")
    mounts.do("cmp", big, mounts.files("h2") / "big")
    mounts.do("dd", f"if={mounts.files('h1') / 'big'}", f"of={mounts.files('h3') / 'copied'}", "bs=1M", "status=none")
    mounts.do("cmp", big, mounts.files("h2") / "copied")
    assert mounts.run("fs", "ls").count("64.0MiB") == 2 or mounts.run("fs", "ls").count("64MiB") == 2
    async with await Cluster.connect() as cluster, await cluster.map("big") as mapped:
        assert mapped.node.host == "h1"
        assert mapped.view == big.read_bytes()
        mapped.view[5:8] = b"abc"
        mapped.check()
        with (mounts.files("h2") / "big").open("r+b", buffering=0) as file:
            assert file.read(10)[5:8] == b"abc"
            file.seek(0)
            file.write(b"0123456789")
            assert mapped.read(0, 10) == b"0123456789"
            with big.open("r+b") as local:
                local.write(b"0123456789")
        with pytest.raises(InvalidArgument):
            mapped.write(BIG_BYTES - 1, b"xx")
    mounts.do("rm", mounts.files("h2") / "copied")


def test_fs_exec_redirects_python_and_nothing_else(mounts: Mounts, big: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(REDIRECTED)
    for prefix in ("/everram/files", str(tmp_path / "files")):
        arguments = ("--", sys.executable, script, prefix, tmp_path / "local", big)
        mounts.run("fs", "exec", *(() if prefix == "/everram/files" else ("--prefix", prefix)), *arguments)
    # What a program leaves open is written when it ends, as always.
    mounts.run("fs", "exec", "--", sys.executable, "-c", "f = open('/everram/files/left', 'w'); f.write('open')")
    assert mounts.run("fs", "cat", "left") == "open"
    mounts.run("fs", "rm", "left")
    status, _, err = mounts.try_run("fs", "exec", "--", sys.executable, "-c", "open('/everram/files/no')")
    assert status == 1
    assert "FileNotFoundError" in err
    assert "/everram/files/no" in err


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_programs_on_the_mount(mounts: Mounts, host: str) -> None:
    files = mounts.files(host)
    for journal in ("wal", "delete"):
        database = files / f"{journal}-{host}.db"
        mounts.do(sys.executable, "-c", SQLITE, database, journal)
        mounts.do("cmp", database, mounts.files("h3") / database.name)
    mounts.do("cp", "-p", "/etc/passwd", files / "passwd")
    assert (files / "passwd").stat().st_mtime_ns == Path("/etc/passwd").stat().st_mtime_ns
    (files / "d").mkdir()
    (files / "passwd").rename(files / "d" / "p")
    with (files / "d" / "p").open("a") as appending:
        appending.write("more")
    assert (mounts.files("h3") / "d" / "p").read_text() == Path("/etc/passwd").read_text() + "more"
    os.truncate(files / "d" / "p", 4)
    assert (mounts.files("h3") / "d" / "p").stat().st_size == 4
    for wrong, number in (
        ((files / "d").rmdir, errno.ENOTEMPTY),
        ((files / "no").read_bytes, errno.ENOENT),
        ((files / "d").unlink, errno.EISDIR),
        (lambda: (files / "l").symlink_to("d"), errno.EPERM),
        ((mounts.point(host) / "x").touch, errno.EROFS),
        (lambda: os.setxattr(files / "d", "user.a", b"b"), errno.EOPNOTSUPP),
        ((files / ("n" * 256)).touch, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError) as caught:
            wrong()
        assert caught.value.errno == number
    mounts.do("rm", "-r", files / "d", *files.glob("*.db"))


async def test_after_open_nobody_is_asked(mounts: Mounts) -> None:
    owners, theirs = mounts.files("h2") / "counted", mounts.files("h1") / "counted"
    async with await Cluster.connect() as cluster:

        async def counters() -> list[int]:
            managers = [await host.remote_memory.status(Empty()) for host in cluster.hosts]
            agents = [await host.memory_agent.status(Empty()) for host in cluster.hosts]
            return [one.messages for one in managers] + [one.owner_messages for one in agents]

        for path in (owners, theirs):
            owners.write_bytes(bytes(1 << 16))
            with path.open("r+b", buffering=0) as file:
                assert await asyncio.to_thread(os.pread, file.fileno(), 4096, 0) == bytes(4096)
                before = await counters()
                for number in range(20):
                    assert await asyncio.to_thread(os.pwrite, file.fileno(), b"x" * 100, number * 100) == 100
                    assert await asyncio.to_thread(os.pread, file.fileno(), 100, number * 100) == b"x" * 100
                assert await counters() == before


def test_regions_of_this_hosts_guests_are_shown(mounts: Mounts) -> None:
    mounts.run("run", "-d", "--name", "shown", "--region", "data=1MiB", "--copies", "0", "--", "sleep", "1000")
    (guest,) = json.loads(mounts.run("guests", "--json"))["guests"]
    for host in HOSTS:
        regions = mounts.point(host) / "regions"
        if host != guest["host"]:
            assert list(regions.iterdir()) == []
            continue
        region = regions / "shown" / "data"
        assert region.read_bytes() == bytes(1 << 20)
        assert region.stat().st_mode & 0o777 == 0o444
        with pytest.raises(OSError) as caught:
            os.open(region, os.O_RDWR)
        assert caught.value.errno in (errno.EROFS, errno.EACCES)
    mounts.run("stop", "shown")
    mounts.run("rm", "--regions", "shown")


def test_snapshots_are_files_that_never_change(mounts: Mounts, tmp_path: Path) -> None:
    go_on, exported = tmp_path / "go on", tmp_path / "exported"
    program = (sys.executable, "-c", STORING, go_on)
    mounts.run("run", "-d", "--name", "storing", "--region", "data=1MiB", "--copies", "0", "--", *program)
    (guest,) = json.loads(mounts.run("guests", "--json"))["guests"]
    region = mounts.point(guest["host"]) / "regions" / "storing" / "data"
    snapshots = mounts.point(guest["host"]) / "snapshots" / "storing" / "data"
    wait_for(lambda: b"before" in region.read_bytes())
    taken = json.loads(mounts.run("region", "snapshot", "data", "--name", "first", "--json"))["snapshots"][0]
    go_on.touch()
    wait_for(lambda: b"after" in region.read_bytes())
    assert [path.name for path in snapshots.iterdir()] == ["first"]
    first = snapshots / "first"
    seen = first.stat()
    assert (seen.st_size, seen.st_mode & 0o777, seen.st_mtime_ns) == (1 << 20, 0o444, taken["created_ns"])
    content = first.read_bytes()
    assert content == bytes(4000) + b"before" * 1000 + bytes((1 << 20) - 10_000)
    mounts.run("region", "export", "data@first", exported)
    mounts.do("cmp", first, exported)
    for wrong, number in (
        (lambda: os.open(first, os.O_RDWR), errno.EROFS),
        (first.unlink, errno.EROFS),
        ((snapshots / "second").touch, errno.EROFS),
    ):
        with pytest.raises(OSError) as caught:
            wrong()
        assert caught.value.errno == number
    purged = json.loads(mounts.run("region", "purge", "data", "--json"))["hosts"][guest["host"]]
    assert purged["purged_bytes"] > 0
    with first.open("rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert file.read() == mapped[:] == content, "from the disk"
        mounts.run("fault", guest["host"], "host-kill")
        assert os.pread(file.fileno(), 20, 4000) == content[4000:4020]
        mounts.run("region", "rm", "data@first")
        mounts.run("region", "snapshot", "data", "--name", "first")
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 20, 4000)
        assert caught.value.errno == errno.ESTALE
    assert b"after" in first.read_bytes()
    mounts.run("region", "rm", "data@first")
    assert not first.exists()
    mounts.run("stop", "storing")
    mounts.run("rm", "--regions", "storing")
    assert not snapshots.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + COMMAND_TIMEOUT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_host_costs_its_programs_nothing(mounts: Mounts) -> None:
    local, remote = mounts.files("h1"), mounts.files("h2")
    (local / "of-h1").write_bytes(b"")
    programs = [
        mounts.start(LOAD, local, "local", 6),
        mounts.start(LOAD, remote, "of-h1", 6),  # of another host, so by requests and the channel
        mounts.start(UNLINKED, local / "unlinked"),
        mounts.start(UNLINKED, remote / "unlinked"),
    ]
    mounts.run("fault", "h1", "host-kill")
    mounts.run("fault", "h2", "host-kill")
    for program in programs:
        finish(program)
    assert sorted(path.name for path in local.iterdir() if path.name != "big") == ["counted", "local", "of-h1"]
    mounts.do("rm", local / "local", local / "of-h1", local / "counted")


def test_without_passthrough(mounts: Mounts) -> None:
    assert "already" in mounts.try_run("mount", mounts.point("h3"))[2]
    mounts.run("umount", mounts.point("h3"))
    assert not fuse.is_mounted(str(mounts.point("h3")))
    assert "no mount of everram" in mounts.try_run("umount", mounts.point("h3"))[2]
    mounts.mount("h3", "--no-passthrough")
    program = mounts.start(LOAD, mounts.files("h3"), "plain", 3)
    mounts.run("fault", "h3", "host-kill")
    finish(program)
    mounts.do(sys.executable, "-c", SQLITE, mounts.files("h3") / "plain.db", "wal")
    mounts.do("rm", mounts.files("h3") / "plain.db", mounts.files("h3") / "plain")


async def test_a_dead_machine_shows_no_wrong_byte(mounts: Mounts) -> None:
    own, other = mounts.files("h3") / "lost", mounts.files("h2") / "lost"
    own.write_bytes(b"q" * 100_000)
    async with await Cluster.connect() as cluster:
        mapped = await cluster.map("lost")
        with contextlib.ExitStack() as opened:
            by_owner, by_other = os.open(own, os.O_RDWR), os.open(other, os.O_RDWR)
            for file in (by_owner, by_other):
                opened.callback(close_what_is_gone, file)
            assert os.read(by_other, 10) == b"q" * 10
            await asyncio.to_thread(mounts.run, "fault", "h3", "machine-kill")
            for file in (by_owner, by_other):
                for act in (lambda: os.pread(file, 10, 50), lambda: os.pwrite(file, b"x", 3)):  # noqa: B023
                    with contextlib.suppress(OSError):
                        assert not await asyncio.to_thread(act)
            with pytest.raises(OSError) as caught:
                await asyncio.to_thread(os.pread, by_other, 10, 50)
            assert caught.value.errno == errno.ESTALE
            with pytest.raises(FailedPrecondition, match="ESTALE"):
                mapped.read(0, 10)
            await mapped.close()
    assert not fuse.is_mounted(str(mounts.point("h3")))
    with pytest.raises(OSError) as caught:
        other.read_bytes()
    assert caught.value.errno == errno.ESTALE
    mounts.do("rm", other)
    mounts.run("fault", "heal", "h3")
    mounts.mount("h3")
    assert "lost" not in [path.name for path in mounts.files("h3").iterdir()]


def close_what_is_gone(file: int) -> None:
    """The end of a file on a mount that is gone may say so."""
    with contextlib.suppress(OSError):
        os.close(file)


async def test_what_cannot_be_mapped(mounts: Mounts) -> None:
    async with await Cluster.connect() as cluster:
        await (await cluster.open("empty", "w")).close()
        with pytest.raises(InvalidArgument, match="empty"):
            await cluster.map("empty")
        with pytest.raises(NotFound):
            await cluster.map("nothing")
        with pytest.raises(FailedPrecondition, match="EISDIR"):
            await cluster.map("")
        await (await cluster.files()).remove("empty")


def test_down_leaves_no_mount_and_no_process(mounts: Mounts) -> None:
    cluster_id = json.loads((mounts.folder / "cluster" / "cluster.json").read_text())["cluster_id"]
    assert tree.marked(f"{cluster_id}/h1")
    reader = mounts.start(
        "import sys\nfile = open(sys.argv[1])\nprint('begun', flush=True)\nsys.stdin.read()", "/dev/null"
    )
    mounts.run("down")
    finish(reader)
    for host in HOSTS:
        assert not fuse.is_mounted(str(mounts.point(host)))
        assert list(mounts.point(host).iterdir()) == []
        assert not tree.marked(f"{cluster_id}/{host}")
