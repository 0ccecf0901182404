"""A loss of the mains on a real cluster of one host: how fast memory reaches the disk, how it comes back, and what it
costs to keep the dirty part small.

*Everything dirty.* A guest writes random bytes to its region: all of it (`runs`), or every tenth page (`scattered`).
Then the mains are cut, the machine saves and goes off, and they come back. In the same round `dd` and `fio` write as
many bytes to the same folder, sequentially, past the page cache, durably. Ratios first:

- `save_vs_best_sequential`: our save's speed, as the machine's own report has it, over the better of the two peers;
- `saved_bytes_vs_present`: bytes written, over those of the pages that hold anything;
- `restore_vs_best_sequential`: speed at which memory is whole again, from the first look at the image, over the same;
- `restore_first_byte_ms`: from the first look at the image until guests could run, and then what a guest waits for the
  first page that it touches, in the midst of its region.

*A cap* (`capped`, by size of the region; the cap is the same): a guest stores to pages here and there as fast as it
may, and the mains are cut. `saved_bytes_vs_dirty`, by what was writable when the guest stood still; `save_s`, which
follows the cap; `cap_exceeded_instants`: of the looks, from outside, at the guest's page tables those in which more
pages were writable than the cap.

`overhead_at_11pct_battery`: throughput lost by kv.py under YCSB's workload A (`_ycsb`) with a cap of 11 % of its
region, against none; both clusters are up, and asked in turns.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _ycsb
from benchmarks._power_cap import capped, until
from benchmarks.footprint import everram

ROUNDS = 3
MIB = 1 << 20
PAGE_BYTES = 4096
SCATTERED_STEP = 10
PEER_PIECE_BYTES = 16 * MIB
CAP_BYTES = 28 * MIB
OVERHEAD_REGION_BYTES, OVERHEAD_CAP = 64 * MIB, 0.11
OVERHEAD_S = 8.0
GUEST = """
import os, signal, sys, time
from everram.runtime import guest
me = guest.attach()
view, step = me.region("data").view, int(sys.argv[1])
if me.recovered:
    began = time.perf_counter()
    view[len(view) // 2 // 40960 * 40960]
    print("first", 1000 * (time.perf_counter() - began), flush=True)
    signal.pause()
length = 4096 if step > 1 else 1 << 20
for offset in range(0, len(view), length * step):
    view[offset : offset + length] = os.urandom(length)
print("ready", flush=True)
signal.pause()
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sizes-mib", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--capped-mib", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--overhead-rounds", type=int, default=4, help="of 8 s each; 0: not measured")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure")


def lose_the_mains(folder: Path, size_bytes: int, step: int) -> dict[str, float]:
    """One cluster, from `up` to `down`: seconds and bytes of the save, seconds until the host serves again."""
    state = Path(tempfile.mkdtemp(prefix="everram-power-", dir=folder))
    sizes = ("--nvm", f"{size_bytes + 64 * MIB}B", "--memory", f"{2 * size_bytes + 256 * MIB}B")
    everram("up", "--hosts", "1", "--battery", "600s", "-d", *sizes, dir=state)
    try:
        words = ("--name", "writer", "--copies", "0", "--region", f"data={size_bytes}B,mapped")
        everram("run", "-d", *words, "--", sys.executable, "-c", GUEST, str(step), dir=state)
        until(state, "ready")
        everram("power cut", "h1", dir=state)
        everram("power on", "h1", dir=state)
        first_ms = _first_ms(state)
        while not (told := everram("power status", dir=state)["hosts"]["h1"])["restore_all_s"]:
            time.sleep(0.1)
        report = told["last"]
        return {
            "save_s": report["save_s"],
            "saved_bytes": report["saved_bytes"],
            "restore_first_byte_ms": 1000 * told["restore_s"] + first_ms,
            "restore_all_s": told["restore_all_s"],
        }
    finally:
        everram("down", "--discard", dir=state)
        shutil.rmtree(state, ignore_errors=True)


def _first_ms(state: Path) -> float:
    """What the restarted guest says that its first page took."""
    until(state, "first")
    lines = [line for path in state.glob("machines/h1/guests/*.log") for line in path.read_text().splitlines()]
    return float(next(line for line in lines if line.startswith("first")).split()[-1])


# -- the peers


def dd_bytes_per_s(folder: Path, size_bytes: int) -> float:
    with tempfile.NamedTemporaryFile(dir=folder) as target:
        count = max(1, size_bytes // PEER_PIECE_BYTES)
        words = ["if=/dev/zero", f"of={target.name}", f"bs={PEER_PIECE_BYTES}", f"count={count}"]
        done = subprocess.run(
            ["dd", *words, "oflag=direct", "conv=fdatasync"], capture_output=True, text=True, check=True
        )
    seconds = re.search(r"copied, ([0-9.e-]+) s", done.stderr)
    assert seconds is not None, done.stderr
    return count * PEER_PIECE_BYTES / float(seconds[1])


def fio_bytes_per_s(folder: Path, size_bytes: int) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        words = ["--name=save", f"--directory={place}", "--rw=write", "--direct=1", "--end_fsync=1", "--iodepth=4"]
        sizes = [f"--bs={PEER_PIECE_BYTES}", f"--size={max(PEER_PIECE_BYTES, size_bytes)}"]
        done = subprocess.run(
            ["fio", *words, *sizes, "--ioengine=libaio", "--output-format=json"],
            capture_output=True,
            text=True,
            check=True,
        )
    job = json.loads(done.stdout)["jobs"][0]
    return float(job["write"]["io_bytes"]) / (job["job_runtime"] / 1000)


# -- the figures


def measure(folder: Path, size_bytes: int, step: int, rounds: int) -> dict[str, float]:
    """Medians of the rounds."""
    seen: list[dict[str, float]] = []
    present_bytes = size_bytes // step
    for _ in range(rounds):
        ours = lose_the_mains(folder, size_bytes, step)
        written = int(ours["saved_bytes"])
        best = max(dd_bytes_per_s(folder, written), fio_bytes_per_s(folder, written))
        seen.append(
            {
                "save_vs_best_sequential": written / ours["save_s"] / best,
                "saved_bytes_vs_present": written / present_bytes,
                "restore_vs_best_sequential": present_bytes / ours["restore_all_s"] / best,
                "restore_first_byte_ms": ours["restore_first_byte_ms"],
                "save_s": ours["save_s"],
                "restore_all_s": ours["restore_all_s"],
                "best_sequential_mb_per_s": best / 1e6,
            }
        )
    return {key: round(statistics.median(one[key] for one in seen), 3) for key in seen[0]}


def overhead(folder: Path, rounds: int) -> dict[str, float]:
    """Both clusters stand side by side, and take turns."""
    states = {name: Path(tempfile.mkdtemp(prefix="everram-power-", dir=folder)) for name in ("free", "capped")}
    rates: dict[str, list[float]] = {name: [] for name in states}
    try:
        ports = {name: _kv(state, name == "capped") for name, state in states.items()}
        for number in range(rounds):
            for name, port in ports.items():
                rates[name].append(_ycsb.drive(port, OVERHEAD_S, seed=number))
        budget = everram("power status", dir=states["capped"])["hosts"]["h1"]["budget"]
    finally:
        for state in states.values():
            everram("down", "--discard", dir=state)
            shutil.rmtree(state, ignore_errors=True)
    free, with_cap = (statistics.median(rates[name]) for name in ("free", "capped"))
    return {
        "overhead_at_11pct_battery": round(1 - with_cap / free, 3),
        "free_per_s": round(free),
        "capped_per_s": round(with_cap),
        "flushed_mib": round(budget["flushed_bytes"] / MIB, 1),
    }


def _kv(state: Path, is_capped: bool) -> int:
    """Its own port, filled."""
    cap = ("--dirty-cap", f"{int(OVERHEAD_CAP * OVERHEAD_REGION_BYTES)}B") if is_capped else ()
    everram("up", "--hosts", "1", "--nvm", "128MiB", "--memory", "384MiB", "-d", *cap, dir=state)
    words = (
        "--name",
        "kv",
        "--copies",
        "0",
        "--region",
        f"kv={OVERHEAD_REGION_BYTES}B",
        "--publish",
        str(_free_port()),
    )
    program = Path(__file__).resolve().parents[1] / "examples" / "kv.py"
    everram("run", "-d", *words, "--", sys.executable, str(program), "--ack", "local", dir=state)
    port = int(everram("inspect kv", dir=state)["port"])
    deadline = time.monotonic() + 30
    while True:
        try:
            _ycsb.load(port)
            return port
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # another process's socket: there is nothing to wait on


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(rounds: int, sizes_mib: list[int], capped_mib: list[int], overhead_rounds: int, folder: Path) -> dict[str, Any]:
    cases = {
        f"{name}_{size}mib": measure(folder, size * MIB, step, rounds)
        for size in sizes_mib
        for name, step in (("runs", 1), ("scattered", SCATTERED_STEP))
    }
    ratios = (
        "save_vs_best_sequential",
        "saved_bytes_vs_present",
        "restore_vs_best_sequential",
        "restore_first_byte_ms",
    )
    caps = {}
    for size in capped_mib:
        best = max(dd_bytes_per_s(folder, CAP_BYTES), fio_bytes_per_s(folder, CAP_BYTES))
        caps[f"{size}mib"] = capped(folder, size * MIB, CAP_BYTES, best)
    return {
        **{ratio: {name: case[ratio] for name, case in cases.items()} for ratio in ratios},
        "cap_exceeded_instants": sum(case["cap_exceeded_instants"] for case in caps.values()),
        **(overhead(folder, overhead_rounds) if overhead_rounds else {}),
        "capped": caps,
        "cap_mib": CAP_BYTES // MIB,
        "seconds": {name: {key: v for key, v in case.items() if key not in ratios} for name, case in cases.items()},
        "rounds": rounds,
    }
