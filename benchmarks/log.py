"""A persistent write: a transaction of one store, against databases that wait for their disk at each commit; and with
a copy on another host, against a Redis with a replica (`_replicated.py`).

The ratios compare memory with fdatasync: what everram's commit survives is in the README's ladder, and the death of a
machine without copies is not in it. They say what a program gains that needs no more than that.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _replicated
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.region import Region
from everram.runtime.guest.shell import Guest
from everram.runtime.log.ring import DEFAULT_CAPACITY_BYTES, Ring
from everram.runtime.memory.mapped import Mapped

GUEST_ID = "benchmark"
REGION_BYTES = 1024 * 1024
OUR_ROUNDS, OUR_COMMITS = 51, 2_000
"""Many rounds of a hundredth of a second: what else the computer does meanwhile falls into some of them."""
DISK_ROUNDS, DISK_COMMITS = 7, 100
SMALL_BYTES, LARGE_BYTES = 256, 4096
REDIS_START_S = 10.0


def run() -> dict[str, Any]:
    with memory_guest() as me:
        small_us = per_call_us(commits(me, SMALL_BYTES), OUR_COMMITS, OUR_ROUNDS)
        large_us = per_call_us(commits(me, LARGE_BYTES), OUR_COMMITS, OUR_ROUNDS)
    with folder_on_disk() as folder:
        with sqlite_full(folder) as commit:
            sqlite_us = per_call_us(commit, DISK_COMMITS, DISK_ROUNDS)
        with redis_always(folder) as redis_set:
            redis_us = None if redis_set is None else per_call_us(redis_set, DISK_COMMITS, DISK_ROUNDS)
    ratios = {"vs_sqlite_full": round(sqlite_us / small_us, 1)}
    if redis_us is not None:
        ratios["vs_redis_always"] = round(redis_us / small_us, 1)
    return {
        **ratios,
        "ratios_compare": "memory against fdatasync",
        "store_256_us": round(small_us, 2),
        "store_4k_us": round(large_us, 2),
        "sqlite_full_us": round(sqlite_us, 1),
        "redis_always_us": "redis-server is not installed" if redis_us is None else round(redis_us, 1),
        **_replicated.measure(),
    }


def per_call_us(work: Callable[[int], None], count: int, rounds: int) -> float:
    """Microseconds for one of `count` calls: the median over rounds, after one that warms up."""
    took = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work(count)
        took.append((time.perf_counter() - start) / count * 1e6)
    return median(took[1:])


@contextmanager
def memory_guest() -> Iterator[Guest]:
    """A guest as a process has it, on memory like the machine's, under a lease that does not run out meanwhile."""
    log = _shared_memory("log", Ring.total_bytes(DEFAULT_CAPACITY_BYTES))
    region = _shared_memory("region", REGION_BYTES)
    try:
        ring = Ring.format(log, guest_id=GUEST_ID, epoch=1, capacity_bytes=DEFAULT_CAPACITY_BYTES)
        ring.set_lease_deadline_ns(time.monotonic_ns() + 3600 * 10**9)
        core = GuestCore(
            guest_id=GUEST_ID,
            name=GUEST_ID,
            epoch=1,
            ring=ring,
            regions=[Region("region", 0, "logged", region, REGION_BYTES)],
            now_ns=time.monotonic_ns,
        )
        yield Guest(core)
    finally:
        log.close()
        region.close()


def _shared_memory(name: str, size_bytes: int) -> Mapped:
    descriptor = os.memfd_create(name)
    try:
        os.ftruncate(descriptor, size_bytes)
        return Mapped(descriptor, size_bytes, populate=True)
    finally:
        os.close(descriptor)


def commits(me: Guest, size_bytes: int) -> Callable[[int], None]:
    region, data = me.region("region"), os.urandom(size_bytes)

    def work(count: int) -> None:
        for number in range(count):
            with me.transaction() as tx:
                tx.store(region, number % 64 * size_bytes, data)

    return work


@contextmanager
def folder_on_disk() -> Iterator[Path]:
    """A temporary folder that is no tmpfs, where a sync would be nothing."""
    in_memory = {
        tuple(int(part) for part in fields[2].split(":"))
        for fields in (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
        if fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    }
    for parent in (Path("/var/tmp"), Path.cwd(), Path.home()):
        device = parent.stat().st_dev
        if (os.major(device), os.minor(device)) not in in_memory and os.access(parent, os.W_OK):
            with tempfile.TemporaryDirectory(dir=parent, prefix="everram-benchmark-") as folder:
                yield Path(folder)
            return
    raise RuntimeError("no folder on a disk to compare with: run it in one")


@contextmanager
def sqlite_full(folder: Path) -> Iterator[Callable[[int], None]]:
    """One row of the same size changed in each transaction; WAL, synchronous=FULL."""
    database = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE record (id INTEGER PRIMARY KEY, data BLOB)")
    data = os.urandom(SMALL_BYTES)

    def work(count: int) -> None:
        for number in range(count):
            database.execute("INSERT OR REPLACE INTO record VALUES (?, ?)", (number % 64, data))

    try:
        yield work
    finally:
        database.close()


@contextmanager
def redis_always(folder: Path) -> Iterator[Callable[[int], None] | None]:
    """SET of the same size, one after the other, over a Unix socket; None where redis-server is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    path = folder / "redis.sock"
    options = f"--port 0 --unixsocket {path} --dir {folder} --appendonly yes --appendfsync always".split()
    server = subprocess.Popen([program, *options, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with _connect(path, server) as connection:
            yield _redis_set(connection)
    finally:
        server.terminate()
        server.wait()


def _connect(path: Path, server: subprocess.Popen[bytes]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + REDIS_START_S
    while True:
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                connection.close()
                raise RuntimeError("redis-server does not start") from None
            time.sleep(0.02)  # another process's socket: there is nothing to wait on


def _redis_set(connection: socket.socket) -> Callable[[int], None]:
    data = os.urandom(SMALL_BYTES)

    def work(count: int) -> None:
        for number in range(count):
            key = b"record%02d" % (number % 64)
            connection.sendall(b"*3\r\n$3\r\nSET\r\n$8\r\n%b\r\n$%d\r\n%b\r\n" % (key, len(data), data))
            if connection.recv(64) != b"+OK\r\n":
                raise RuntimeError("redis-server refused to store")

    return work
