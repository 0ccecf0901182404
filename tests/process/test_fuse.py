"""Real mounts: unmodified programs on them, with passthrough and without, and servers that are killed.

The test keeps a mount's descriptors and those of its files, as a machine does, and never touches the mount itself: that
is left to programs, each with a time limit, and every mount is taken away at the end whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.fuse import mount as mounts
from everram.runtime.fuse.protocol import Opcode

pytestmark = [pytest.mark.process, pytest.mark.needs("fuse"), pytest.mark.timeout(120)]

PROGRAM_TIMEOUT_S = 45
END_TIMEOUT_S = 10
WITH_PASSTHROUGH = pytest.param(True, id="passthrough", marks=pytest.mark.needs("fuse passthrough"))
WITHOUT = pytest.param(False, id="requests")

SERVER = """
import asyncio, errno, json, logging, os, signal, socket, sys, time
import uvloop
from everram.runtime import errors
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.in_memory import InMemory
from everram.runtime.fuse.mount import Mounted
from everram.runtime.fuse.server import Session

asked = json.loads(sys.argv[1])
keeper = socket.socket(fileno=asked["keeper"])
logging.basicConfig()

class Files(InMemory):
    '''Reads of a file of mode 0604 wait until something is named `go`, and are long remembered.'''
    waiting = 0

    def read(self, file, offset, size):
        return self.slow(file, offset, size) if file.mode == 0o604 else super().read(file, offset, size)

    async def slow(self, file, offset, size):
        socket.send_fds(keeper, [b"waits"], [0])
        while "go" not in self._nodes["/"].children:
            await asyncio.sleep(0.01)
        return super().read(file, offset, size)

    def lookup(self, parent, name):
        if name == "no answer":
            raise errors.DeadlineExceeded("nobody answers")
        if name == "a bug":
            raise ValueError("this is a test of what happens then")
        return super().lookup(parent, name)

async def main():
    files = Files(now_ns=time.time_ns, passthrough=asked["passthrough"], kept=asked["kept"],
                  keep=lambda name, fd: socket.send_fds(keeper, [name.encode()], [fd]))
    session = Session(Mounted(asked["device"], asked["book"]), files, passthrough=asked["passthrough"])
    serving = asyncio.ensure_future(session.serve())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    await asyncio.wait([serving])
    assert serving.cancelled() or serving.result() is None
    print(json.dumps(session.counts), flush=True)

uvloop.run(main())
"""


class Tree:
    """A mount, its server in another process, and everything that has to survive that."""

    def __init__(self, folder: Path, *, passthrough: bool) -> None:
        self.folder = folder
        self.passthrough = passthrough
        self.kept: dict[str, int] = {}
        self.waits = threading.Semaphore(0)
        """Released when a slow read has begun."""
        self.programs: list[subprocess.Popen[str]] = []
        self.server: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        folder.mkdir()
        self.mounted = mounts.mount(str(folder))

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {
            "keeper": theirs.fileno(),
            "device": self.mounted.device,
            "book": self.mounted.book,
            "passthrough": self.passthrough,
            "kept": self.kept,
        }
        fds = [theirs.fileno(), self.mounted.device, self.mounted.book, *self.kept.values()]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(asked)], pass_fds=fds, stdout=subprocess.PIPE, text=True
        )
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(ours,))
        self._listener.start()

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while True:
                try:
                    name, fds, _, _ = socket.recv_fds(ours, 4096, 1)
                except ConnectionResetError:
                    return
                if not name:
                    return
                if name == b"waits":
                    os.close(fds[0])
                    self.waits.release()
                else:
                    self.kept[name.decode()] = fds[0]

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """By kill -9, or told to leave; and everything it has sent is here."""
        assert self.server is not None and self._listener is not None
        self.server.send_signal(how)
        self.server.communicate(timeout=END_TIMEOUT_S)
        self._listener.join(END_TIMEOUT_S)
        assert not self._listener.is_alive()
        self.server = None

    def run(self, *command: object, **options: Any) -> str:
        """Its output; it must end well."""
        done = subprocess.run(
            [str(part) for part in command],
            check=False, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, cwd="/", **options,
        )  # fmt: skip
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    def python(self, program: str, *arguments: object) -> str:
        return self.run(sys.executable, "-c", PREAMBLE + program, self.folder, *arguments)

    def start_program(self, *command: object, **options: Any) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", **options,
        )  # fmt: skip
        self.programs.append(program)
        return program

    def counts(self) -> dict[Opcode, int]:
        """Unmount, and what the server was asked."""
        assert self.server is not None
        mounts.unmount(str(self.folder))
        counts = json.loads(self.server.communicate(timeout=END_TIMEOUT_S)[0])
        assert self.server.returncode == 0
        return {Opcode(int(code)): count for code, count in counts.items() if int(code) in list(Opcode)}

    def close(self) -> None:
        mounts.unmount(str(self.folder))
        if self.server is not None:
            self.server.kill()
            self.server.communicate(timeout=END_TIMEOUT_S)
        self.mounted.close()  # from here on nobody can wait for the mount any more
        for program in self.programs:
            program.kill()
            program.communicate(timeout=END_TIMEOUT_S)
        if self._listener is not None:
            self._listener.join(END_TIMEOUT_S)
        for fd in self.kept.values():
            os.close(fd)


PREAMBLE = """
import errno, mmap, os, sys
from pathlib import Path
folder = Path(sys.argv[1])

def refused(number, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError(f"{call} {arguments} was not refused")
"""


@contextlib.contextmanager
def made(folder: Path, passthrough: bool) -> Iterator[Tree]:
    tree = Tree(folder, passthrough=passthrough)
    try:
        tree.start()
        yield tree
    finally:
        tree.close()


@pytest.fixture(params=[WITH_PASSTHROUGH, WITHOUT])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    with made(tmp_path / "mount", request.param) as tree:
        yield tree


@pytest.fixture
def requests_tree(tmp_path: Path) -> Iterator[Tree]:
    with made(tmp_path / "mount", False) as tree:
        yield tree


def test_copies_are_equal(tree: Tree, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5_000_001))
    there = tree.folder / "d"
    tree.run("mkdir", there)
    tree.run("cp", source, there / "copy")
    tree.run("cmp", source, there / "copy")
    tree.run("dd", f"if={source}", f"of={there}/dd", "bs=4096", "conv=fsync", "status=none")
    tree.run("cmp", source, there / "dd")
    tree.run("dd", f"if={there}/dd", f"of={tmp_path}/back", "bs=1M", "iflag=direct", "status=none")
    tree.run("cmp", source, tmp_path / "back")
    tree.run("mv", there / "copy", there / "dd")
    assert tree.run("ls", there) == "dd\n"
    tree.run("rm", "-r", there)
    assert tree.run("ls", "-A", tree.folder) == ""
    assert "everram" in tree.run("df", tree.folder)
    counts = tree.counts()
    assert (Opcode.READ in counts) is not tree.passthrough
    assert (Opcode.WRITE in counts) is not tree.passthrough


def test_files_mean_what_posix_says(tree: Tree) -> None:
    tree.python(
        """
file = folder / "f"
refused(errno.ENOENT, file.read_bytes)
first, second = (os.open(file, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o640) for _ in range(2))
for n in range(50):
    os.write(first, b"1")
    os.write(second, b"2")
assert file.read_bytes() == b"12" * 50
assert file.stat().st_mode & 0o7777 == 0o640 and file.stat().st_size == 100
refused(errno.EEXIST, os.open, file, os.O_CREAT | os.O_EXCL | os.O_RDWR)
os.ftruncate(first, 10)
os.truncate(file, 8192)
assert file.read_bytes() == b"12" * 5 + bytes(8182)
assert os.pread(first, 100, 8150) == bytes(42) and os.pread(first, 100, 9000) == b""
file.unlink()
refused(errno.ENOENT, os.stat, file)
os.write(first, b"still there")
assert os.pread(second, 100, 8192) == b"still there"
assert os.fstat(first).st_nlink == 0
os.close(first), os.close(second)

os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
file.write_bytes(b"first")
with open(file, "rb") as old:
    (folder / "g").write_bytes(b"second")
    os.replace(folder / "g", file)
    assert old.read() == b"first" and file.read_bytes() == b"second"

refused(errno.EPERM, os.symlink, "f", folder / "s")
refused(errno.EPERM, os.link, file, folder / "s")
refused(errno.ENOTSUP, os.setxattr, file, "user.x", b"1")
refused(errno.ENOTSUP, os.getxattr, file, "user.x")
refused(errno.ENAMETOOLONG, os.stat, folder / ("n" * 256))
refused(errno.ENOTDIR, os.stat, file / "x")
os.chmod(file, 0o400)
assert file.stat().st_mode & 0o7777 == 0o400
os.utime(file, ns=(1_000_000_001, 2_000_000_002))
assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
os.posix_fallocate(os.open(file, os.O_RDWR), 0, 10_000)
assert file.stat().st_size == 10_000
with open(file, "rb") as sparse:
    assert os.lseek(sparse.fileno(), 0, os.SEEK_HOLE) > 0
"""
    )


def test_folders_mean_what_posix_says(tree: Tree) -> None:
    tree.python(
        """
deep = folder / "a" / "b"
deep.mkdir(parents=True)
refused(errno.EEXIST, os.mkdir, deep)
refused(errno.ENOTEMPTY, os.rmdir, folder / "a")
refused(errno.EISDIR, os.unlink, deep)
refused(errno.EISDIR, os.open, deep, os.O_RDWR)
names = [f"file with a rather long name, number {n}" for n in range(300)]
for name in names:
    (deep / name).touch()
assert sorted(os.listdir(deep)) == sorted(names)
os.rename(deep, folder / "c")
assert sorted(os.listdir(folder / "c")) == sorted(names) and os.listdir(folder / "a") == []
by_entry = {entry.name: entry.inode() for entry in os.scandir(folder / "c")}
assert all((folder / "c" / name).stat().st_ino == inode for name, inode in by_entry.items())
refused(errno.ENOTDIR, os.rename, folder / "a", folder / "c" / names[0])
odd = os.fsdecode(b"not \\xff utf-8 \\xc3\\xa4")
(folder / odd).touch()
assert odd in os.listdir(folder)
"""
    )


def test_shared_mappings_and_reads_agree(tree: Tree) -> None:
    tree.python(
        """
file = os.open(folder / "f", os.O_CREAT | os.O_RDWR)
os.ftruncate(file, 1 << 20)
with mmap.mmap(file, 1 << 20) as one, mmap.mmap(os.open(folder / "f", os.O_RDWR), 1 << 20) as other:
    one[5000:5005] = b"store"
    assert other[5000:5005] == b"store" and os.pread(file, 5, 5000) == b"store"
    os.pwrite(file, b"write", 70_000)
    assert one[70_000:70_005] == b"write" == other[70_000:70_005]
    one.flush()
assert (folder / "f").read_bytes()[5000:5005] == b"store"
"""
    )


def test_sqlite_in_wal_mode(tree: Tree) -> None:
    tree.python(
        """
import sqlite3, subprocess
if len(sys.argv) == 2:
    base = sqlite3.connect(folder / "base", timeout=30)
    assert base.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    base.execute("CREATE TABLE t (writer INT, number INT, filling BLOB)")
    base.commit()
    writers = [subprocess.Popen([sys.executable, "-c", open("/proc/self/cmdline").read().split("\\0")[2],
                                 sys.argv[1], str(writer)]) for writer in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert base.execute("SELECT count(*), sum(length(filling)) FROM t").fetchone() == (400, 400 * 3000)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()
    again = sqlite3.connect(folder / "base")
    assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
else:
    base = sqlite3.connect(folder / "base", timeout=30)
    for number in range(200):
        base.execute("INSERT INTO t VALUES (?, ?, ?)", (int(sys.argv[2]), number, os.urandom(3000)))
        base.commit()
"""
    )


@pytest.mark.needs("python lmdb")
@pytest.mark.parametrize("writemap", [False, True])
def test_lmdb(tree: Tree, writemap: bool) -> None:
    tree.python(
        """
import lmdb
where = str(folder / "base")
os.mkdir(where)
writemap = sys.argv[2] == "True"
with lmdb.open(where, map_size=32 << 20, writemap=writemap) as base:
    for number in range(300):
        with base.begin(write=True) as transaction:
            transaction.put(b"%d" % number, b"%d" % number * 500)
with lmdb.open(where, map_size=32 << 20, readonly=True) as base, base.begin() as transaction:
    assert all(transaction.get(b"%d" % number) == b"%d" % number * 500 for number in range(300))
""",
        writemap,
    )


@pytest.mark.needs("redis-server")
def test_redis_appends_always_and_survives_its_death(tree: Tree, tmp_path: Path) -> None:
    path = f"{tmp_path}/r.sock"
    command = [
        "redis-server", "--port", 0, "--unixsocket", path, "--dir", tree.folder, "--save", "",
        "--appendonly", "yes", "--appendfsync", "always",
    ]  # fmt: skip
    for first in (0, 500):
        server = tree.start_program(*command)
        tree.run(sys.executable, "-c", REDIS_CLIENT, path, first)
        server.kill()
        server.communicate(timeout=END_TIMEOUT_S)


REDIS_CLIENT = """
import sys, time
import redis
client = redis.Redis(unix_socket_path=sys.argv[1])
first = int(sys.argv[2])
for attempt in range(300):
    try:
        client.ping()
        break
    except (redis.ConnectionError, redis.BusyLoadingError):
        time.sleep(0.05)
assert all(client.get(f"k{n}") == b"%d" % n * 100 for n in range(first))
for n in range(first, first + 500):
    client.set(f"k{n}", b"%d" % n * 100)
"""

FIO = (
    "fio", "--name=v", "--rw=randrw", "--bsrange=512-64k", "--size=8m", "--verify=crc32c", "--verify_fatal=1",
    "--verify_backlog=64", "--fallocate=none", "--allow_file_create=1", "--unlink=0", "--group_reporting",
)  # fmt: skip


@pytest.mark.needs("fio")
@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio"])
def test_fio_reads_what_it_wrote(tree: Tree, engine: str) -> None:
    options = {"libaio": ["--iodepth=16", "--direct=1"]}.get(engine, [])
    tree.run(*FIO, f"--directory={tree.folder}", f"--ioengine={engine}", *options)


@pytest.mark.needs("fio")
@pytest.mark.needs("fuse passthrough")
def test_a_killed_server_is_not_noticed_by_fio(tree: Tree) -> None:
    """Several times in the middle of reads, writes, opens and unlinks."""
    fio = tree.start_program(
        *FIO, f"--directory={tree.folder}", "--numjobs=2", "--time_based", "--runtime=3", "--fsync=16", "--size=2m"
    )
    churn = tree.start_program(sys.executable, "-c", PREAMBLE + CHURN, tree.folder, 3)
    for _ in range(4):
        time.sleep(0.5)
        tree.kill()
        tree.start()
    for program in (fio, churn):
        output, _ = program.communicate(timeout=PROGRAM_TIMEOUT_S)
        assert program.returncode == 0, output
    assert tree.run("ls", tree.folder).split() == ["v.0.0", "v.1.0"]


CHURN = """
import time
end = time.monotonic() + float(sys.argv[2])
rounds = 0
while time.monotonic() < end:
    (folder / "d").mkdir()
    with open(folder / "d" / "x", "xb") as file:
        file.write(b"1234567890")
        os.rename(folder / "d" / "x", folder / "d" / "y")
        file.write(b"1234567890")
    assert (folder / "d" / "y").read_bytes() == b"1234567890" * 2
    with open(folder / "d" / "y", "r+b") as file:
        (folder / "d" / "y").unlink()
        assert file.read() == b"1234567890" * 2
    assert os.listdir(folder / "d") == []
    (folder / "d").rmdir()
    rounds += 1
print(rounds)
"""


@pytest.mark.needs("fuse passthrough")  # resending came in the same version
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_successor_answers_what_its_predecessor_had_begun(requests_tree: Tree, how: signal.Signals) -> None:
    tree = requests_tree
    tree.python("(folder / 'f').write_bytes(b'slow'); (folder / 'f').chmod(0o604)")
    reader = tree.start_program("cat", tree.folder / "f")
    assert tree.waits.acquire(timeout=END_TIMEOUT_S)
    tree.kill(how)
    tree.start()
    assert tree.waits.acquire(timeout=END_TIMEOUT_S)
    tree.python("(folder / 'go').touch()")
    assert reader.communicate(timeout=END_TIMEOUT_S) == ("slow", None)
    assert reader.returncode == 0


@pytest.mark.needs("fuse passthrough")
def test_a_server_may_die_over_the_first_request(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "mount", passthrough=True)
    try:
        assert os.read(tree.mounted.device, 2 << 20)
        tree.start()
        tree.python("(folder / 'f').write_bytes(b'1')")
        assert Opcode.WRITE not in tree.counts()
    finally:
        tree.close()


def test_a_slow_read_holds_nobody_up_and_can_be_killed(requests_tree: Tree) -> None:
    tree = requests_tree
    tree.python("(folder / 'f').write_bytes(b'slow'); (folder / 'f').chmod(0o604)")
    readers = [tree.start_program("cat", tree.folder / "f") for _ in range(3)]
    for _ in readers:
        assert tree.waits.acquire(timeout=END_TIMEOUT_S)
    tree.python("(folder / 'g').write_bytes(b'fast'); assert (folder / 'g').read_bytes() == b'fast'")
    readers[0].send_signal(signal.SIGKILL)
    readers[0].communicate(timeout=END_TIMEOUT_S)
    tree.python("(folder / 'go').touch()")
    assert [reader.communicate(timeout=END_TIMEOUT_S)[0] for reader in readers[1:]] == ["slow"] * 2


def test_a_signal_that_is_handled_does_not_end_a_read(requests_tree: Tree) -> None:
    tree = requests_tree
    tree.python("(folder / 'f').write_bytes(b'slow'); (folder / 'f').chmod(0o604)")
    program = """
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.2)
print(os.pread(os.open(folder / "f", os.O_RDONLY), 4, 0))
"""
    reader = tree.start_program(sys.executable, "-c", PREAMBLE + program, tree.folder)
    assert tree.waits.acquire(timeout=END_TIMEOUT_S)
    time.sleep(0.4)
    tree.python("(folder / 'go').touch()")
    assert reader.communicate(timeout=END_TIMEOUT_S)[0] == "b'slow'\n"
    assert not tree.waits.acquire(blocking=False), "the read was ended and begun anew"


def test_errors_arrive_as_they_are_meant(requests_tree: Tree) -> None:
    requests_tree.python(
        """
refused(errno.ETIMEDOUT, os.stat, folder / "no answer")
refused(errno.EIO, os.stat, folder / "a bug")
(folder / "and on it goes").touch()
"""
    )


def test_a_dead_mount_can_be_taken_away(requests_tree: Tree) -> None:
    tree = requests_tree
    tree.run("ls", tree.folder)
    assert mounts.is_mounted(str(tree.folder))
    tree.kill()
    waiter = tree.start_program("ls", tree.folder)
    assert not select.select([waiter.stdout], [], [], 0.3)[0], "it should wait for a successor"
    assert mounts.unmount(str(tree.folder))
    assert not mounts.is_mounted(str(tree.folder))
    assert not mounts.unmount(str(tree.folder))
    assert list(tree.folder.iterdir()) == []
