"""Persistent writes with a copy on another host: a guest on a real cluster of two hosts, beside Redis with a replica.

Both keep two copies in memory and wait for the second one at each write: nothing here waits for a disk.

`async_write_vs_local` compares the time that a guest's commits take while they are shipped with the time they take
without a copy; `async_write_cpu_us` and `local_write_cpu_us` say how much of it the guest itself works. Where the ratio
is high and these are alike, guest and hosts wait for a processor: shipping keeps two hosts busy beside the guest.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.footprint import EVERRAM, everram

GUEST = Path(__file__).with_name("_replicated_guest.py")
GUEST_TIMEOUT_S = 120.0
SMALL_BYTES = 256
WARM_UP, WAITED = 300, 3000
TURNS = 3
"""With and without a copy by turns: what else the computer does meanwhile comes to both."""
REDIS_START_S = 10.0


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-") as folder:
        state = Path(folder) / "cluster"
        everram("up", "--hosts", "2", "-d", dir=state)
        try:
            waited_us = run_guest(state, "--copies", "1", words=("--wait",))["waited_us"]
            shipped, local = [], []
            for _ in range(TURNS):
                shipped.append(run_guest(state, "--copies", "1"))
                local.append(run_guest(state, "--copies", "0"))
        finally:
            everram("down", "--discard", dir=state)
    redis_us = redis_waits_us()
    return {
        "replicated_256_us": percentiles(waited_us),
        "redis_wait_256_us": "redis-server is not installed" if redis_us is None else percentiles(redis_us),
        "async_write_vs_local": round(overall(shipped, "commit_us") / overall(local, "commit_us"), 2),
        "async_write_us": round(overall(shipped, "commit_us"), 2),
        "local_write_us": round(overall(local, "commit_us"), 2),
        "async_write_cpu_us": round(overall(shipped, "commit_cpu_us"), 2),
        "local_write_cpu_us": round(overall(local, "commit_cpu_us"), 2),
    }


def overall(measured: Sequence[dict[str, list[float]]], name: str) -> float:
    """The median of every round of every run."""
    return median(time_us for one in measured for time_us in one[name])


def percentiles(times_us: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(times_us, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def run_guest(state: Path, *options: str, words: Sequence[str] = ()) -> dict[str, list[float]]:
    """What the guest measured; it is gone afterwards."""
    name, command = "measured", [sys.executable, str(GUEST), *words]
    everram("run", "-d", "--name", name, "--region", "region=1MiB", *options, "--", *command, dir=state)
    follow = [*EVERRAM, "logs", "-f", name, "--dir", str(state)]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        try:
            line = _first_line(logs, GUEST_TIMEOUT_S)
        finally:
            logs.kill()
    everram("rm", "--regions", "--force", name, dir=state)
    found: dict[str, list[float]] = json.loads(line)
    return found


def _first_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout_s)[0]:
        raise RuntimeError(f"the guest has measured nothing in {timeout_s:g} s")
    return process.stdout.readline()


# -- Redis


def redis_waits_us() -> list[float] | None:
    """SET and WAIT 1 sent together, one pair after the other; None where redis-server is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-") as folder:
        primary, replica = Path(folder) / "primary", Path(folder) / "replica"
        port = _free_port()
        with _redis(program, primary, port), _redis(program, replica, 0, "--replicaof", "127.0.0.1", str(port)):
            with _connected(replica) as connection:
                _until(connection, b"INFO replication\r\n", b"master_link_status:up")
            with _connected(primary) as connection:
                _until(connection, b"WAIT 1 1000\r\n", b":1")
                return _set_and_wait(connection)


@contextmanager
def _redis(program: str, folder: Path, port: int, *more: str) -> Iterator[None]:
    folder.mkdir()
    options = ["--port", str(port), "--unixsocket", str(folder / "socket"), "--dir", str(folder), "--save", "", *more]
    server = subprocess.Popen([program, *options, "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    deadline_s = time.monotonic() + REDIS_START_S
    with socket.socket(socket.AF_UNIX) as connection:
        while connection.connect_ex(str(folder / "socket")):
            if time.monotonic() > deadline_s:
                raise RuntimeError("redis-server does not start")
            time.sleep(0.02)  # another process's socket: there is nothing to wait on
        yield connection


def _until(connection: socket.socket, question: bytes, answer: bytes) -> None:
    deadline_s = time.monotonic() + REDIS_START_S
    while True:
        connection.sendall(question)
        if answer in connection.recv(65536):
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError("redis-server's replica does not follow")
        time.sleep(0.05)


def _set_and_wait(connection: socket.socket) -> list[float]:
    data, times_us = os.urandom(SMALL_BYTES), []
    for number in range(WARM_UP + WAITED):
        key = b"record%02d" % (number % 64)
        pair = b"*3\r\n$3\r\nSET\r\n$8\r\n%b\r\n$%d\r\n%b\r\n" % (key, len(data), data)
        began_s = time.perf_counter()
        connection.sendall(pair + b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n")
        answer = b""
        while answer.count(b"\r\n") < 2:
            answer += connection.recv(64)
        if answer != b"+OK\r\n:1\r\n":
            raise RuntimeError(f"redis-server answered {answer!r}")
        if number >= WARM_UP:
            times_us.append(1e6 * (time.perf_counter() - began_s))
    return times_us


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
