"""Mounts of a real cluster whose hosts reach each other over TCP: databases and fio on them, exact bytes while others
write, and what programs see while hosts hang, die and are cut off. The first host's mount is with passthrough, the
others' are without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.fuse import mount as fuse
from everram.runtime.machine import tree
from tests.process.test_mount import COMMAND_TIMEOUT_S, HOSTS, Mounts, finish

PATIENCE_S = 40.0
DEADLINE_S = 20.0
"""Of one access: five seconds of trying, and the last attempt's own time; or as long as a manager is looked for."""
FILE_BYTES = 4 << 20

pytestmark = [pytest.mark.process, pytest.mark.needs("fuse", "root"), pytest.mark.timeout(120)]

LMDB = """
import lmdb, sys
where, writemap = sys.argv[1], sys.argv[2] == "passthrough"
with lmdb.open(where, map_size=16 << 20, writemap=writemap) as base:
    for number in range(100):
        with base.begin(write=True) as transaction:
            transaction.put(b"%d" % number, b"%d" % number * 500)
with lmdb.open(where, map_size=16 << 20, readonly=True) as base, base.begin() as transaction:
    assert all(transaction.get(b"%d" % number) == b"%d" % number * 500 for number in range(100))
"""
FIO = (
    "fio", "--name=v", "--rw=randrw", "--bsrange=4k-256k", "--bs_unaligned=1", "--size=4m", "--verify=crc32c",
    "--verify_fatal=1", "--verify_backlog=32", "--fallocate=none",
)  # fmt: skip
STAMPING = """
import array, mmap, os, random, sys, time
path, told, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
block, blocks = 64 << 10, 64
with open(told, "r+b") as file:
    done = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
fd, draw, stamp, until = os.open(path, os.O_RDWR), random.Random(1), 0, time.monotonic() + seconds
print("begun", flush=True)
while time.monotonic() < until:
    stamp, number = stamp + 1, draw.randrange(blocks)
    done[blocks] = stamp
    assert os.pwrite(fd, array.array("Q", [number << 32 | stamp]) * (block // 8), number * block) == block
    done[number] = stamp
"""
"""Every word of a block says which block it is and when it was written; `told` says what has been written, and the last
stamp that may be."""
SEQUENTIAL = """
import array, mmap, os, sys, time
path, told, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
block, blocks, large = 64 << 10, 64, 1 << 20
with open(told, "r+b") as file:
    done = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
fd, until, rounds, fresh = os.open(path, os.O_RDONLY), time.monotonic() + seconds, 0, 0
print("begun", flush=True)
while time.monotonic() < until or not rounds:
    for at in range(0, blocks * block, large):
        first = at // block
        before = list(done[first : first + large // block])
        words = array.array("Q", os.pread(fd, large, at))
        last = done[blocks]
        assert len(words) == large // 8
        for place, least in enumerate(before):
            part = words[place * block // 8 : (place + 1) * block // 8]
            low, high = min(part), max(part)
            assert low >> 32 == high >> 32 == (first + place if high & 0xFFFFFFFF else 0), (at, place, low, high)
            assert least <= low & 0xFFFFFFFF and high & 0xFFFFFFFF <= last, (least, low, high, last)
            fresh += low & 0xFFFFFFFF > 0
    rounds += 1
assert fresh
"""
SHORTENED = """
import os, sys
path = sys.argv[1]
size, fd, other = os.stat(path).st_size, os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
content = b"".join(os.pread(fd, 1 << 20, at) for at in range(0, size, 1 << 20))
for at in range(0, size, 1 << 20):
    assert os.pread(fd, 1 << 20, at) == content[at : at + (1 << 20)]
    assert os.pwrite(other, b"now", at + 5) == 3
    assert os.pread(fd, 1 << 20, at)[:10] == content[at : at + 5] + b"now" + content[at + 8 : at + 10]
os.truncate(path, (1 << 20) + 7)
assert len(os.pread(fd, 1 << 20, 1 << 20)) == 7 and os.pread(fd, 1 << 20, 2 << 20) == b""
os.ftruncate(other, size)
assert os.pread(fd, 1 << 20, 2 << 20) == bytes(1 << 20) == os.pread(fd, 1 << 20, size - (1 << 20))
"""
LOAD = """
import errno, json, mmap, os, random, select, struct, sys, time
path, names, told = sys.argv[1:]
size, large = 4 << 20, 1 << 20
with open(told, "r+b") as file:
    progress = mmap.mmap(file.fileno(), 0)
fd, draw = os.open(path, os.O_RDWR), random.Random(names)
shadow, unsure, rounds, longest_s, errors, made, maybe = bytearray(size), None, 0, 0.0, [], [], []

def tell():
    progress[:16] = struct.pack("<QQ", rounds, len(errors))

def attempt(act):
    global longest_s
    began = time.monotonic()
    try:
        return act()
    except OSError as error:
        errors.append(errno.errorcode[error.errno])
        tell()
    finally:
        longest_s = max(longest_s, time.monotonic() - began)

def write():
    global unsure
    at, data = unsure = unsure or (draw.randrange(size - 50_000), draw.randbytes(draw.randrange(1, 50_000)))
    shadow[at : at + len(data)] = data
    if attempt(lambda: os.pwrite(fd, data, at)) == len(data):
        unsure = None

def read(at):
    # Whether all could be read. The kernel asks for it in parts, so it may be short where a part failed.
    found = bytearray()
    while len(found) < large:
        part = attempt(lambda: os.pread(fd, large - len(found), at + len(found)))
        if part is None:
            break
        assert part, f"the file ends at {at + len(found)}"
        found += part
    end = at + len(found)
    expected = shadow[at:end]
    if unsure and unsure[0] < end and at < unsure[0] + len(unsure[1]):
        start, stop = max(0, unsure[0] - at), min(len(found), unsure[0] + len(unsure[1]) - at)
        expected[start:stop] = found[start:stop]
    assert found == expected, f"wrong bytes at {at} in round {rounds}"
    return end == at + large

def rename_and_remove():
    name = f"{names}-{rounds}"
    for act, left in (
        (lambda: os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)) or True, [name]),
        (lambda: os.rename(name, name + "x") or True, [name + "x"]),
    ):
        if not attempt(act):
            maybe.extend([name, name + "x"])
            return
    made.append(name + "x")
    if len(made) > 5:
        gone = made.pop(0)
        if not attempt(lambda: os.unlink(gone) or True):
            maybe.append(gone)

print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    write()
    read(draw.randrange(size - large))
    if rounds % 5 == 0:
        rename_and_remove()
    rounds += 1
    tell()
until = time.monotonic() + 30
while "ESTALE" not in errors and not all(read(at) for at in range(0, size, large)):
    assert time.monotonic() < until, errors
print(json.dumps({"errors": sorted(set(errors)), "longest_s": longest_s, "made": made, "maybe": maybe}))
"""
"""Until its stdin ends: writes, large reads and names, each of which may fail and none of which may lie. What a write
that failed has left behind is unknown until the same write was repeated; so is a name."""


@contextlib.contextmanager
def running(mounts: Mounts, program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has begun, and does not outlive this."""
    with mounts.start(program, *arguments) as started:
        try:
            yield started
        finally:
            started.kill()


class Load:
    """A running LOAD: on the mount of `host`, on a file that is there."""

    def __init__(self, mounts: Mounts, host: str, file: str, ending: contextlib.ExitStack) -> None:
        self._told = mounts.folder / f"{file}.progress"
        self._told.write_bytes(bytes(16))
        files = mounts.files(host)
        self.program = ending.enter_context(running(mounts, LOAD, files / file, files / f"{file}-{host}", self._told))

    def progress(self) -> tuple[int, int]:
        """Rounds, and accesses that failed."""
        rounds, errors = struct.unpack("<QQ", self._told.read_bytes())
        return rounds, errors

    async def goes_on(self, rounds: int = 6) -> None:
        """So many more rounds."""
        before = self.progress()[0]
        await self.until(lambda: self.progress()[0] >= before + rounds, f"{rounds} more rounds")

    async def fails(self) -> None:
        await self.until(lambda: self.progress()[1] > 0, "an error")

    async def until(self, met: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not met():
            assert self.program.poll() is None, self.program.communicate()
            assert time.monotonic() < until_s, f"not in {PATIENCE_S:g} s: {what}"
            await asyncio.sleep(0.02)

    async def end(self) -> dict[str, Any]:
        out, err = await asyncio.to_thread(self.program.communicate, timeout=COMMAND_TIMEOUT_S)
        assert self.program.returncode == 0, err
        found = json.loads(out)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounts]:
    with tempfile.TemporaryDirectory(prefix="er") as runtime, pytest.MonkeyPatch.context() as patched:
        cluster = Mounts(tmp_path_factory.mktemp("tcp"), runtime)
        for name in ("XDG_RUNTIME_DIR", "EVERRAM_DIR"):
            patched.setenv(name, cluster.environment[name])
        with contextlib.ExitStack() as ending:
            for host in HOSTS:
                ending.callback(fuse.unmount, str(cluster.point(host)))
            ending.callback(cluster.try_run, "down", "--discard")
            cluster.run("up", "--lease", "5s", "-d", "--memory", "512MiB", "--nvm", "32MiB", "--channel", "tcp")
            for host in HOSTS:
                cluster.mount(host, *flags(host))
            yield cluster


def flags(host: str) -> list[str]:
    return [] if host == "h1" else ["--no-passthrough"]


def make(mounts: Mounts, name: str, host: str) -> None:
    """A file of zeros on that host."""
    zeros = mounts.folder / "zeros"
    zeros.write_bytes(bytes(FILE_BYTES))
    mounts.run("fs", "cp", zeros, f":{name}", "--host", host)


@contextlib.contextmanager
def redis_server(folder: Path, socket: str) -> Iterator[redis.Redis]:
    """It ends by kill -9, as always."""
    command = [
        "redis-server", "--port", "0", "--unixsocket", socket, "--dir", str(folder), "--save", "",
        "--appendonly", "yes", "--appendfsync", "always",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/")
    try:
        with redis.Redis(unix_socket_path=socket, socket_timeout=COMMAND_TIMEOUT_S) as client:
            until_s = time.monotonic() + PATIENCE_S
            while True:
                try:
                    client.ping()
                    break
                except (redis.ConnectionError, redis.BusyLoadingError):
                    assert server.poll() is None
                    assert time.monotonic() < until_s
                    time.sleep(0.02)
            yield client
    finally:
        server.kill()
        server.wait(COMMAND_TIMEOUT_S)


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("host", [pytest.param("h1", marks=pytest.mark.needs("fuse passthrough")), "h2"])
def test_redis_keeps_all_that_it_acknowledged(mounts: Mounts, host: str) -> None:
    folder = mounts.files(host) / f"redis-{host}"
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="er") as short:
        for first in (0, 200, 400):
            with redis_server(folder, f"{short}/r") as client:
                assert client.dbsize() == first
                assert all(client.get(f"k{n}") == b"%d" % n * 100 for n in range(first))
                for n in range(first, first + 200):
                    if n == 300:
                        mounts.run("fault", host, "host-kill")
                    client.set(f"k{n}", b"%d" % n * 100)
    mounts.do("rm", "-r", folder)


@pytest.mark.needs("fio", "python lmdb")
@pytest.mark.parametrize("host", [pytest.param("h1", marks=pytest.mark.needs("fuse passthrough")), "h2"])
def test_lmdb_and_fio_find_what_they_wrote(mounts: Mounts, host: str) -> None:
    folder = mounts.files(host) / f"programs-{host}"
    (folder / "lmdb").mkdir(parents=True)
    mounts.do(sys.executable, "-c", LMDB, folder / "lmdb", "passthrough" if host == "h1" else "")
    mounts.do(*FIO, f"--filename={folder}/own")
    if host == "h1":
        mounts.do(*FIO, f"--filename={folder}/mapped", "--ioengine=mmap")
    make(mounts, f"programs-{host}/far", "h3")  # by requests and the channel, on either mount
    mounts.do(*FIO, f"--filename={folder}/far", "--numjobs=1", "--overwrite=1")
    mounts.do("rm", "-r", folder)


def test_large_reads_are_exact_while_this_host_writes_and_after_it_shortened(mounts: Mounts, tmp_path: Path) -> None:
    make(mounts, "stamped", "h3")
    told = tmp_path / "told"
    told.write_bytes(bytes(65 * 8))
    path = mounts.files("h2") / "stamped"
    with running(mounts, STAMPING, path, told, 2) as writer, running(mounts, SEQUENTIAL, path, told, 2) as reader:
        finish(reader)
        finish(writer)
    mounts.do(sys.executable, "-c", SHORTENED, path)
    mounts.do("rm", path)


async def test_hosts_that_hang_and_die_are_not_noticed_by_programs(mounts: Mounts) -> None:
    """The owner's, the manager's and the agent's own; and the manager's machine is lost."""
    async with await Cluster.connect() as cluster:
        leader = (await cluster.host("h2").availability.status(Empty())).leader
    user, owner = [host for host in HOSTS if host != leader]
    make(mounts, "loaded", owner)
    with contextlib.ExitStack() as ending:
        load = Load(mounts, user, "loaded", ending)
        for host, fault in (
            (owner, "hang"),
            (owner, "host-kill"),
            (leader, "host-kill"),
            (user, "hang"),
            (leader, "machine-kill"),
        ):
            await load.goes_on()
            await asyncio.to_thread(mounts.run, "fault", host, fault)
        await load.goes_on()
        told = await load.end()
    assert (told["errors"], told["maybe"]) == ([], [])
    names = {"loaded", *(Path(name).name for name in told["made"])}
    assert listed(mounts, user) == names
    mounts.run("fault", "heal", leader)
    mounts.mount(leader, *flags(leader))
    assert listed(mounts, leader) == names
    mounts.do("rm", *(mounts.files(user) / name for name in names))


async def test_owners_that_cannot_be_reached_are_timeouts_and_never_wrong_bytes(mounts: Mounts) -> None:
    """One is cut off, the other's whole machine is stopped; at times one of the two is the manager's."""
    user, cut, stopped = "h2", "h1", "h3"
    cluster_id = json.loads((mounts.folder / "cluster" / "cluster.json").read_text())["cluster_id"]
    with contextlib.ExitStack() as ending:
        loads = []
        for owner in (cut, stopped):
            make(mounts, f"on-{owner}", owner)
            loads.append(Load(mounts, user, f"on-{owner}", ending))
        for load in loads:
            await load.goes_on()
        for pid in tree.marked(f"{cluster_id}/{stopped}"):
            ending.callback(go_on, pid)
            os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(mounts.run, "fault", cut, "partition")
        for load in loads:
            await load.fails()
        for pid in tree.marked(f"{cluster_id}/{stopped}"):
            go_on(pid)
        await asyncio.to_thread(mounts.run, "fault", "heal", cut)
        for load in loads:
            await load.goes_on()
        told = [await load.end() for load in loads]
    for one in told:
        assert set(one["errors"]) <= {"ETIMEDOUT", "EIO", "ESTALE"}
        assert one["longest_s"] < DEADLINE_S
    sure = {f"on-{owner}" for owner in (cut, stopped)} | {Path(name).name for one in told for name in one["made"]}
    maybe = {Path(name).name for one in told for name in one["maybe"]}
    for host in HOSTS:
        assert sure <= listed(mounts, host) <= sure | maybe


def go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def listed(mounts: Mounts, host: str) -> set[str]:
    return {path.name for path in mounts.files(host).iterdir()}
