"""The host software replaced under running guests, again and again, on a real cluster of one host.

- `guest_gap_ms`: how much longer than otherwise a guest that looks at the clock in a loop was ever kept from it between
  the request of an upgrade and its end (the longest of all guests, less the median of the longest gaps between
  upgrades): median and maximum of the runs. `guest_gap_paused_ms`: the same with `--pause`. For a guest with 64 MiB,
  one with 2 GiB, and 32 guests. A guest alone naps 0.2 ms between two looks. Of 32 each naps 2 ms: with 0.2 ms they
  took both processors of a small computer, and what was measured was how they shared these with a host that starts.
  Since whichever guest was about to look notes the whole of a stop, that makes no gap shorter.
- `gap_2gib_vs_64mib`: of the longest gaps with `--pause` as they are, nothing subtracted.
- `client_unserved_ms`: the longest time between two answers to a client that asks one request after the other, through
  gRPC and through a link, around each upgrade, and `client_otherwise_ms` between upgrades, which is how busy the
  computer is; none of them ever tries again, and `client_errors` counts.
- `vs_exec_restart`: the same through gRPC when the host is killed and started cold instead, over the upgrade's.
- `bytes_of_guest_memory_copied`: of regions that are not, after all of it, in the very memory object that the guest had
  mapped before (the same inode in the guest and in the host), with as many pages; what guests had stored was there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.footprint import everram
from everram.runtime.client import Cluster
from everram.runtime.client.cluster import patiently
from everram.runtime.contracts.common_pb2 import MAPPED, NO, Empty, Guest, GuestSpec
from everram.runtime.contracts.host_contract import HostRef
from everram.runtime.contracts.host_pb2 import EchoMessage
from everram.runtime.contracts.hypervisor_pb2 import RemoveRequest, StopRequest
from everram.runtime.contracts.supervisor_pb2 import FaultRequest, UpgradeRequest
from everram.runtime.environment import HostAddress
from everram.runtime.errors import EverramError, FailedPrecondition, NotFound, Unavailable
from everram.runtime.formats.config import HostConfig
from everram.runtime.node import Node
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links

GUEST = Path(__file__).with_name("_upgrade_guest.py")
RUNS = 10
SCENARIOS = {"64MiB": (1, 64 << 20, 0.0002), "2GiB": (1, 2 << 30, 0.0002), "32guests": (32, 1 << 20, 0.002)}
"""Guests, the size of each one's region, and how long each naps."""
REST_S = 1.2
"""Between two upgrades, with the linger of the host before about twice as long as one takes: what happens after that is
what happens otherwise."""
LINGER_S = 0.4
"""So long the host before passes on what still comes on its old connections."""
KILLS = 5
TIMEOUT_S = 60.0
LIMITS = {
    "guest_gap_paused_ms": {"64MiB": 5, "2GiB": 5, "32guests": 15},
    "guest_gap_ms": {"64MiB": 3, "2GiB": 3, "32guests": 3},
    "gap_2gib_vs_64mib": 1.5,
    "client_unserved_ms": 150,
    "bytes_of_guest_memory_copied": 0,
}
Window = tuple[int, int]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"upgrades of each kind ({RUNS})")
    parser.add_argument(
        "--only", action="append", default=[], choices=SCENARIOS, help="leave the other scenarios out; repeatable"
    )


def run(runs: int = RUNS, only: Sequence[str] = ()) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-") as folder:
        state = Path(folder) / "cluster"
        everram("up", "--hosts", "1", "-d", "--memory", "6GiB", "--nvm", "5GiB", "--lease", "10s", dir=state)
        try:
            return asyncio.run(measure(state, runs, only or list(SCENARIOS)))
        finally:
            everram("down", "--discard", dir=state)


async def measure(state: Path, runs: int, names: Sequence[str]) -> dict[str, Any]:
    gaps: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    longest: dict[str, float] = {}
    copied = 0
    errors: list[str] = []
    unserved: dict[str, list[float]] = {"grpc": [], "link": []}
    otherwise: list[float] = []
    steps: list[dict[str, float]] = []
    async with await Cluster.connect(dir=str(state)) as cluster:
        for name in names:
            running = await started(cluster, state, *SCENARIOS[name])
            async with asked(cluster, state) as clients:
                windows = {pause: await upgrades(cluster, runs, pause, steps) for pause in (False, True)}
            for client in clients:
                unserved[client.way] += [client.longest_ms(window) for w in windows.values() for window in w]
                otherwise += [client.otherwise_ms(*pair) for w in windows.values() for pair in itertools.pairwise(w)]
                errors += [f"{client.way}: {error.message}" for error in client.errors]
            copied += running.copied_bytes((await cluster.host("h1").host.status(Empty())).pid)
            seen = await running.end(cluster)
            for pause, several in windows.items():
                raw, above = gaps_ms(seen, several)
                gaps[pause][name] = {"p50": round(median(above), 2), "max": round(max(above), 2)}
                if pause:
                    longest[name] = median(raw)
        cold = await killed(cluster)
    ratio = round(longest["2GiB"] / longest["64MiB"], 2) if {"2GiB", "64MiB"} <= longest.keys() else None
    ways = {way: {"p50": round(median(ms), 1), "max": round(max(ms), 1)} for way, ms in unserved.items()}
    return {
        "guest_gap_ms": gaps[False],
        "guest_gap_paused_ms": gaps[True],
        "gap_2gib_vs_64mib": ratio,
        "client_unserved_ms": ways,
        "client_otherwise_ms": {"p50": round(median(otherwise), 1), "max": round(max(otherwise), 1)},
        "client_errors": len(errors),
        "errors": sorted(set(errors)),
        "bytes_of_guest_memory_copied": copied,
        "vs_exec_restart": round(median(cold) / ways["grpc"]["p50"], 1),
        "steps_ms": {step: round(median(s.get(step, 0.0) for s in steps), 2) for step in steps[0]},
        "upgrades": len(steps),
        "limits": LIMITS,
    }


async def upgrades(cluster: Cluster, runs: int, pause: bool, steps: list[dict[str, float]]) -> list[Window]:
    windows: list[Window] = []
    while len(windows) < runs:
        await asyncio.sleep(REST_S)
        began_ns = time.monotonic_ns()
        request = UpgradeRequest(machine="h1", python=sys.executable, pause=pause)
        try:
            report = await cluster.supervisor.upgrade(request, timeout_s=TIMEOUT_S)
        except (Unavailable, FailedPrecondition):
            continue  # on a computer so busy that the machine takes its silent host for hung, and starts another
        assert report.upgraded
        windows.append((began_ns, time.monotonic_ns()))
        steps.append({step.step: step.ns / 1e6 for step in report.steps})
    await asyncio.sleep(REST_S)
    return windows


async def killed(cluster: Cluster) -> list[float]:
    """How long a client through gRPC has no answer when the host is killed and started again, cold."""
    waits = []
    for _ in range(KILLS):
        before = (await cluster.host("h1").host.status(Empty())).pid
        began_s = time.monotonic()
        await cluster.supervisor.fault(FaultRequest(target="h1", name="host-kill"))
        while True:
            with contextlib.suppress(EverramError):
                if (await cluster.host("h1").host.status(Empty(), timeout_s=1.0)).pid != before:
                    break
            await asyncio.sleep(0.002)
        waits.append(1000 * (time.monotonic() - began_s))
        await asyncio.sleep(REST_S)
    return waits


def gaps_ms(seen: list[list[tuple[int, int]]], windows: list[Window]) -> tuple[list[float], list[float]]:
    """For each upgrade the longest gap of any guest, and by how much that is longer than it otherwise is."""

    def longest(begin: int, end: int) -> float:
        return max((gap for gaps in seen for at, gap in gaps if begin <= at and at - gap <= end), default=0) / 1e6

    during = [longest(*window) for window in windows]
    quiet = [longest(end + 100_000_000, begin) for (_, end), (begin, _) in itertools.pairwise(windows)]
    otherwise = median(quiet) if quiet else 0.0
    return during, [max(0.0, gap - otherwise) for gap in during]


class Running:
    """Guests that look at the clock."""

    def __init__(self, state: Path, guests: list[Guest]) -> None:
        self._state = state
        self._guests = guests
        self._before = [self._memory(guest.pid) for guest in guests]

    def _memory(self, pid: int) -> tuple[int, int, int]:
        """Of its region: inode, bytes, and bytes that are present."""
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "memfd:region." in line:
                found = Path(f"/proc/{pid}/map_files/{line.split()[0]}").stat()
                return found.st_ino, found.st_size, 512 * found.st_blocks
        raise AssertionError(f"guest {pid} has no region mapped")

    def copied_bytes(self, host_pid: int) -> int:
        """Of regions that lie elsewhere now."""
        held = set()
        for link in Path(f"/proc/{host_pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:region." in str(link.readlink()):
                    held.add(link.stat().st_ino)
        after = [self._memory(guest.pid) for guest in self._guests]
        return sum(b[1] for b, a in zip(self._before, after, strict=True) if a != b or a[0] not in held)

    async def end(self, cluster: Cluster) -> list[list[tuple[int, int]]]:
        """What the guests noted."""
        told = []
        hypervisor = cluster.host("h1").hypervisor
        for guest in self._guests:
            stop = StopRequest(guest=guest.guest_id, grace_s=TIMEOUT_S)
            await patiently(partial(hypervisor.stop, stop, timeout_s=TIMEOUT_S), repeatable=True)
            noted = json.loads(output(self._state, guest)[-1])
            assert noted["intact"], "its memory is not what it stored"
            told.append([(at, gap) for at, gap in noted["gaps"]])
            remove = RemoveRequest(guest=guest.guest_id, regions=True)
            with contextlib.suppress(NotFound):  # it was removed, and the answer lost
                await patiently(partial(hypervisor.remove, remove, timeout_s=TIMEOUT_S), repeatable=True)
        return told


async def started(cluster: Cluster, state: Path, guests: int, region_bytes: int, nap_s: float) -> Running:
    found = []
    for number in range(guests):
        spec = GuestSpec(name=f"g{number}", working_directory=b"/", restart=NO, log_bytes=1 << 20)
        spec.argv.extend([sys.executable.encode(), str(GUEST).encode(), str(nap_s).encode()])
        spec.regions.add(name="data", size_bytes=region_bytes, kind=MAPPED)
        found.append(await cluster.run(spec))
    async with asyncio.timeout(TIMEOUT_S):
        for guest in found:
            while "ready" not in output(state, guest):  # noqa: ASYNC110 - it tells nobody else
                await asyncio.sleep(0.1)
    return Running(state, found)


def output(state: Path, guest: Guest) -> list[str]:
    """The lines of a guest so far."""
    path = state / "machines" / "h1" / "guests" / f"{guest.guest_id}.log"
    return path.read_text().splitlines() if path.exists() else []


class Client:
    """Asks one request after the other and notes when each was answered."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.errors: list[EverramError] = []
        self._answered_ns: list[int] = []

    async def ask(self, ref: HostRef) -> None:
        while True:
            try:
                await ref.echo(EchoMessage(value=1), timeout_s=TIMEOUT_S)
            except EverramError as error:
                self.errors.append(error)
            self._answered_ns.append(time.monotonic_ns())
            await asyncio.sleep(0.001)

    def longest_ms(self, window: Window) -> float:
        """Between two answers around an upgrade, the linger of the host before included."""
        begin, end = window
        return self._longest_ms(begin - 50_000_000, end + LINGER_S * 1e9)

    def otherwise_ms(self, before: Window, after: Window) -> float:
        """The same between two upgrades."""
        return self._longest_ms(before[1] + LINGER_S * 1e9, after[0])

    def _longest_ms(self, begin: float, end: float) -> float:
        near = [at for at in self._answered_ns if begin <= at <= end]
        return max((after - before for before, after in itertools.pairwise(near)), default=0) / 1e6


@contextlib.asynccontextmanager
async def asked(cluster: Cluster, state: Path) -> AsyncIterator[list[Client]]:
    """Clients through gRPC, and through a link of a host that this process is for them."""
    config = HostConfig.read(str(state / "machines" / "h1" / "host.json"))

    async def resolve(host: str) -> HostAddress:
        return HostAddress(host, config.host_id, f"unix:{config.socket}")

    node, network, numbers = Node(None, "probe"), GrpcNetwork(), itertools.count()  # type: ignore[arg-type]
    me = Identity(config.cluster_id, "probe", "ffffffffffffffff", f"probe-{time.monotonic_ns()}")
    node.use_links(Links(node, network, me, resolve, lambda: f"{me.incarnation}-{next(numbers)}"))
    await node.start()
    clients = [Client("grpc"), Client("link")]
    refs = [cluster.host("h1").host, node.ref(HostRef, host="h1")]
    asking = [asyncio.create_task(client.ask(ref)) for client, ref in zip(clients, refs, strict=True)]
    try:
        yield clients
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await node.stop()
        await network.close()
