"""`examples/kv.py` beside redis-server, both driven by redis-benchmark: SET and GET, one or sixteen requests at a time.

kv.py is a guest of a real local cluster without copies (`--ack local`), asked at its own port; `published` are the
same requests through the forwarder behind `--publish`. redis-server keeps an append-only file and syncs it every
second. All are asked in turns, over 50 connections, with values of 3 bytes under one key.

`..._vs_redis`: requests a second of kv.py by those of redis-server; one process of Python against one of C.
"""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVERRAM = [sys.executable, "-m", "everram.runtime.cli.main"]
ROUNDS = 5
REQUESTS = {1: 10_000, 16: 40_000}
"""By requests that a connection has under way: a round takes some tenths of a second."""
START_S, COMMAND_S = 15.0, 60.0
FOLDERS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def run() -> dict[str, Any]:
    missing = [name for name in ("redis-server", "redis-benchmark") if shutil.which(name, path=FOLDERS) is None]
    if missing:
        return {"skipped": f"{missing[0]} is not installed, so there is nothing to compare with"}
    with (
        tempfile.TemporaryDirectory(prefix="everram-", dir="/tmp") as folder,
        kv_guest(Path(folder)) as (own, published),
        redis_everysec(Path(folder)) as redis,
    ):
        rates = measure({"kv": own, "published": published, "redis": redis})
    ratios = {f"{case}_vs_redis": round(rates["kv"][case] / rates["redis"][case], 3) for case in rates["kv"]}
    return {**ratios, **{f"{name}_per_s": cases for name, cases in rates.items()}}


def measure(ports: dict[str, int]) -> dict[str, dict[str, int]]:
    """Requests a second of each server and case: medians over rounds in which all take their turn."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ports}
    for _ in range(ROUNDS):
        for pipelined in REQUESTS:
            for name, port in ports.items():
                for command, rate in benchmark(port, pipelined).items():
                    found[name].setdefault(f"{command}_p{pipelined}", []).append(rate)
    return {name: {case: round(median(rates)) for case, rates in cases.items()} for name, cases in found.items()}


def benchmark(port: int, pipelined: int) -> dict[str, float]:
    options = f"-p {port} -t set,get -n {REQUESTS[pipelined]} -P {pipelined} --csv".split()
    done = subprocess.run(["redis-benchmark", *options], capture_output=True, text=True, timeout=COMMAND_S, check=True)
    return {row["test"].lower(): float(row["rps"]) for row in csv.DictReader(done.stdout.splitlines())}


@contextmanager
def kv_guest(folder: Path) -> Iterator[tuple[int, int]]:
    """kv.py's own port and its published one."""
    published = _free_port()
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "EVERRAM_DIR": str(folder / "cluster")}

    def everram(*arguments: str) -> None:
        done = subprocess.run(
            [*EVERRAM, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"everram {arguments[0]} failed: {done.stderr.strip()}")

    try:
        everram("up", "--hosts", "1", "--memory", "256MiB", "--nvm", "128MiB", "-d")
        where = ("--name", "kv", "--region", "kv=64MiB", "--publish", str(published))
        everram("run", "-d", *where, "--", "python", "examples/kv.py", "--ack", "local")
        about = _ask(published, b"INFO server\r\n")
        own = next(line for line in about.split(b"\r\n") if line.startswith(b"tcp_port:"))
        yield int(own.partition(b":")[2]), published
    finally:
        everram("down", "--discard")


@contextmanager
def redis_everysec(folder: Path) -> Iterator[int]:
    program, port = shutil.which("redis-server", path=FOLDERS), _free_port()
    assert program is not None
    options = f"--port {port} --bind 127.0.0.1 --dir {folder} --appendonly yes --appendfsync everysec".split()
    server = subprocess.Popen([program, *options, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        _ask(port, b"PING\r\n")
        yield port
    finally:
        server.terminate()
        server.wait()


def _ask(port: int, line: bytes) -> bytes:
    """What the server there answers to a line as soon as it does."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), START_S) as connection:
                connection.sendall(line)
                if answer := connection.recv(4096):
                    return answer
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody answers on port {port}")
        time.sleep(0.05)  # another process's socket: there is nothing to wait on


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
