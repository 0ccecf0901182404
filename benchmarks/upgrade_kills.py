"""Upgrades under load and under kills, on a real cluster of two hosts: what guests, clients and copies see of them.

A client transfers money at a bank with a copy (`everram.examples.ledger`, acknowledging what is replicated) all the
time; after an error it counts that, connects anew and sends the same transfer again. The bank's host is upgraded
`--upgrades` times in a row, to another version each time if `--older` names the interpreter of the version before, and
then `--kills` times while the host or its successor gets a kill -9 some time into the upgrade.

- `client_errors`: of the upgrades in a row; `client_errors_under_kills`: the bank closes a connection when its copy has
  not acknowledged for two seconds, which the cold start of a killed host may take on a busy computer;
- `lost`: transfers that were answered and are not there;
- `guest_deaths`: incarnations of the guest after its first; `untouched_changed`: whether memory did that nobody
  touched;
- `outcomes`: how the upgrades with kills ended; `serving`: processes of hosts afterwards, which should be 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.footprint import everram
from everram.runtime.client import Cluster
from everram.runtime.client.cluster import patiently
from everram.runtime.contracts.common_pb2 import Empty, Guest, GuestSpec
from everram.runtime.contracts.supervisor_pb2 import UpgradeRequest
from everram.runtime.contracts.vmemfs_pb2 import RollbackRequest
from everram.runtime.errors import EverramError

UPGRADES, KILLS = 10, 30
LEASE = "10s"
"""Of two seconds a busy computer takes too much for the cold start of a host that was killed: guests would go on
elsewhere, as they should, and this measures something else."""
TIMEOUT_S = 60.0
STABLE_S = 1.2
"""A host that lived for so long is started again at once after its death."""
UNTOUCHED_BYTES = 8 << 20


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--upgrades", type=int, default=UPGRADES, metavar="N", help=f"in a row ({UPGRADES})")
    parser.add_argument("--kills", type=int, default=KILLS, metavar="N", help=f"upgrades with a kill -9 ({KILLS})")
    parser.add_argument(
        "--older", default="", metavar="PYTHON", help="the version before, to go back to every other time"
    )


def run(upgrades: int = UPGRADES, kills: int = KILLS, older: str = "") -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-") as folder:
        state = Path(folder) / "cluster"
        everram("up", "--hosts", "2", "-d", "--memory", "512MiB", "--nvm", "256MiB", "--lease", LEASE, dir=state)
        try:
            return asyncio.run(measure(state, upgrades, kills, older))
        finally:
            everram("down", "--discard", dir=state)


async def measure(state: Path, upgrades: int, kills: int, older: str) -> dict[str, Any]:
    async with await Cluster.connect(dir=str(state)) as cluster:
        guest = await started(cluster)
        home = guest.host
        before = digest(guest)
        teller = Teller(guest.port)
        telling = asyncio.create_task(teller.tell())
        versions = [await upgraded(cluster, home, older if number % 2 else "") for number in range(upgrades)]
        in_a_row = len(teller.errors)
        outcomes: dict[str, int] = {}
        for number in range(kills):
            outcome = await killed(cluster, state, home, random.Random(number))
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        teller.enough = True
        await asyncio.wait_for(telling, TIMEOUT_S)
        after = (await cluster.find_guest(guest.guest_id))[1]
        answered = await ask(after.port, f"LAST {teller.name}")
        return {
            "client_errors": in_a_row,
            "client_errors_under_kills": len(teller.errors) - in_a_row,
            "errors": sorted(set(teller.errors)),
            "transfers": teller.done,
            "lost": max(0, teller.done - answered),
            "sum_is_right": await ask(after.port, "SUM") == 100_000,
            "guest_deaths": after.epoch - guest.epoch,
            "untouched_changed": digest(after) != before,
            "versions": versions,
            "outcomes": outcomes,
            "serving": hosts_of(state, home),
        }


async def started(cluster: Cluster) -> Guest:
    spec = GuestSpec(name="bank", working_directory=b"/", log_bytes=4 << 20)
    spec.argv.extend([sys.executable.encode(), b"-m", b"everram.examples.ledger", b"--ack", b"replicated"])
    spec.regions.add(name="ledger", size_bytes=16 << 20)
    guest = await cluster.run(spec)
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            await ask(guest.port, "PING", answer=False)
            return guest
        assert time.monotonic() < end_s
        await asyncio.sleep(0.1)


def digest(guest: Guest) -> str:
    """Of what the bank never touches of its region: the end of its mapping."""
    for line in Path(f"/proc/{guest.pid}/maps").read_text().splitlines():
        if "memfd:region." in line:
            with Path(f"/proc/{guest.pid}/map_files/{line.split()[0]}").open("rb") as memory:
                memory.seek(UNTOUCHED_BYTES)
                return hashlib.sha256(memory.read()).hexdigest()
    raise AssertionError("it has no region mapped")


async def upgraded(cluster: Cluster, host: str, python: str) -> str:
    await asyncio.sleep(STABLE_S)
    if python:
        await cluster.host(host).vmemfs.rollback(RollbackRequest())
    request = UpgradeRequest(machine=host, python=python or sys.executable)
    return (await cluster.supervisor.upgrade(request, timeout_s=TIMEOUT_S)).version


async def killed(cluster: Cluster, state: Path, host: str, draw: random.Random) -> str:
    """One upgrade with a kill -9; how it ended, in a word."""
    await asyncio.sleep(STABLE_S)
    status = await patiently(lambda: cluster.host(host).host.status(Empty()), repeatable=True)
    request = UpgradeRequest(machine=host, python=sys.executable, pause=draw.random() < 0.5)
    upgrading = asyncio.ensure_future(cluster.supervisor.upgrade(request, timeout_s=TIMEOUT_S))
    log = state / "machines" / host / "machine.log"
    told = log.read_text().count("can take the memory")
    which, early = draw.choice(("host", "successor")), draw.random() < 0.3
    if early:
        await asyncio.sleep(draw.uniform(0.05, 0.4))
    else:
        while log.read_text().count("can take the memory") == told and not upgrading.done():  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.005, 0.01, 0.03, 0.1)))
    victims = {"host": [status.pid], "successor": [p for p in pids_of(state, host) if p != status.pid]}[which]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        await upgrading
    except EverramError as error:
        outcome = (
            "ended as before" if "as before" in error.message or "once more" in error.message else "former software"
        )
    else:
        outcome = "upgraded"
    end_s = time.monotonic() + TIMEOUT_S
    while len(pids_of(state, host)) != 1:
        assert time.monotonic() < end_s, pids_of(state, host)
        await asyncio.sleep(0.05)
    return outcome


def pids_of(state: Path, host: str) -> list[int]:
    """Processes of hosts, and of successors, of a machine."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
            if b"everram.actors.host" in words and str(state / "machines" / host / "host.json").encode() in words:
                found.append(int(folder.name))
    return found


def hosts_of(state: Path, host: str) -> int:
    return len(pids_of(state, host))


class Teller:
    """Transfers one after the other, and never tries again."""

    name = "teller"

    def __init__(self, port: int) -> None:
        self._port = port
        self.done = 0
        self.enough = False
        self.errors: list[str] = []

    async def tell(self) -> None:
        while not self.enough:
            try:
                await self._tell()
            except (OSError, ValueError) as error:
                self.errors.append(str(error))
                await asyncio.sleep(0.05)

    async def _tell(self) -> None:
        """Raises OSError, ValueError: whether the last transfer was done is not known then."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while not self.enough:
                line = f"TRANSFER {self.done % 100} {(self.done + 7) % 100} 1 {self.name}:{self.done + 1}\n"
                writer.write(line.encode())
                answer = (await reader.readline()).decode()
                if not answer.startswith("OK"):
                    raise ValueError(answer or "the connection was closed")
                self.done += 1
        finally:
            writer.close()


async def ask(port: int, line: str, *, answer: bool = True) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line.encode() + b"\n")
    words = (await reader.readline()).split()
    writer.close()
    return int(words[1]) if answer else 0
