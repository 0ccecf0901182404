"""Snapshots of a guest that runs, on a real cluster of one host: what it notices of them.

`snapshot_stall_ms_per_gib`: the longest gap between two looks at the clock of a guest with a region of 1 GiB while a
snapshot is taken; "mapped": every page was touched, so every one has to be protected, "unmapped": none was. Beside it
`longest_gap_otherwise_ms`, which the computer makes by itself: nothing is subtracted.
`hot_set_speed_after_snapshot`: stores to a hot set of 10 MiB of that region, in the second after the snapshot over
those in the second before it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.footprint import EVERRAM, everram

GUEST = Path(__file__).with_name("_live_snapshots_guest.py")
REGION_GIB = 1
SETTLE_S, BETWEEN_S = 1.5, 2.5
"""Before the first snapshot, and between two: each has a second before it and one after it to itself."""
SNAPSHOTS = 5
TIMEOUT_S = 60.0


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-") as folder:
        state = Path(folder) / "cluster"
        everram("up", "--hosts", "1", "-d", "--memory", "4GiB", "--nvm", "3GiB", dir=state)
        try:
            mapped_ms, otherwise_ms = stall_ms(state, "--map")
            unmapped_ms, _ = stall_ms(state)
            return {
                "snapshot_stall_ms_per_gib": {
                    "mapped": round(mapped_ms / REGION_GIB, 1),
                    "unmapped": round(unmapped_ms / REGION_GIB, 1),
                },
                "longest_gap_otherwise_ms": round(otherwise_ms, 1),
                "hot_set_speed_after_snapshot": hot_set_speed(state),
            }
        finally:
            everram("down", "--discard", dir=state)


def stall_ms(state: Path, *words: str) -> tuple[float, float]:
    """The median of the longest gaps around each snapshot, and the longest at other times."""
    gaps, instants = run_guest(state, "stamp", *words)
    during = [max((gap for at, gap in gaps if began <= at <= ended), default=0) for began, ended in instants]
    others = [gap for at, gap in gaps if not any(began <= at <= ended for began, ended in instants)]
    return median(during) / 1e6, max(others, default=0) / 1e6


def hot_set_speed(state: Path) -> float:
    buckets, instants = run_guest(state, "write", "--map")
    ratios = []
    for began_ns, ended_ns in instants:
        before = sum(stores for at, stores in buckets if began_ns - 1e9 < at <= began_ns)
        after = sum(stores for at, stores in buckets if ended_ns < at <= ended_ns + 1e9)
        ratios.append(after / before)
    return round(median(ratios), 2)


def run_guest(state: Path, *words: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What the guest noted, and for each snapshot when it was asked for and answered."""
    seconds = SETTLE_S + SNAPSHOTS * BETWEEN_S
    program = (sys.executable, str(GUEST), *words, "--seconds", str(seconds))
    region = f"data={REGION_GIB}GiB,mapped"
    everram("run", "-d", "--name", "live", "--restart", "no", "--region", region, "--", *program, dir=state)
    logs = subprocess.Popen([*EVERRAM, "logs", "-f", "live", "--dir", str(state)], stdout=subprocess.PIPE, text=True)
    try:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "ready\n"
        time.sleep(SETTLE_S)
        instants = []
        for number in range(SNAPSHOTS):
            instants.append(take(state, f"s{number}"))
            time.sleep(BETWEEN_S - 1.0)
        return json.loads(logs.stdout.readline()), instants
    finally:
        logs.kill()
        logs.wait()
        everram("rm", "--force", "--regions", "live", dir=state)


def take(state: Path, name: str) -> tuple[int, int]:
    """When it began and when it had ended, of CLOCK_MONOTONIC: the request's own time, without the command's start."""
    taken = subprocess.run(
        [sys.executable, "-c", TAKE, str(state), name], check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    began_ns, ended_ns = json.loads(taken.stdout)
    return began_ns, ended_ns


TAKE = """
import asyncio, json, sys, time
from everram.runtime.client import Cluster
from everram.runtime.contracts.nvm_device_pb2 import RegionName, SnapshotRequest

async def main():
    async with await Cluster.connect(dir=sys.argv[1]) as cluster:
        host, guest, region = await cluster.find_region("live/data")
        request = SnapshotRequest(regions=[RegionName(guest_id=guest.guest_id, region="data")], name=sys.argv[2])
        began = time.monotonic_ns()
        await host.nvm_device.snapshot(request)
        print(json.dumps((began, time.monotonic_ns())))

asyncio.run(main())
"""


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
