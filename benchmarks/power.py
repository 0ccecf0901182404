"""A loss of the mains on a real cluster of one host: how fast memory reaches the disk, and how it comes back.

A guest writes random bytes to its region: all of it (`runs`), or every tenth page (`scattered`). Then the mains are
cut, the machine saves and goes off, and they come back. In the same round `dd` and `fio` write as many bytes to the
same folder, sequentially, past the page cache, durably. Ratios first:

- `save_vs_best_sequential`: our save's speed, as the machine's own report has it, over the better of the two peers';
- `saved_bytes_vs_present`: bytes written, over those of the pages that hold anything;
- `on_vs_best_sequential`: speed at which memory is whole again, from the command to a host that serves, over the same.

To be reached are 0.85 in runs and 0.4 scattered. On 2 cores and a disk of 1.4 GB/s medians of 3 were 0.71 to 0.78 and
0.15 to 0.20; one write after the other through the system's cache reached 0.28 and 0.08 on a busier computer. Of 1 GiB
in runs the processor takes 1.1 s, half of it for checksums; a scattered page takes it 12 us, which are its own system
call, its place in the index and its turn in a batch. Everything is saved, and everything is restored before guests run:
there is no cap on what may be dirty yet, and no restore page by page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.footprint import everram

ROUNDS = 3
MIB = 1 << 20
PAGE_BYTES = 4096
SCATTERED_STEP = 10
PEER_PIECE_BYTES = 16 * MIB
GUEST_TIMEOUT_S = 120.0
GUEST = """
import os, signal, sys
from everram.runtime import guest
view, step = guest.attach().region("data").view, int(sys.argv[1])
length = 4096 if step > 1 else 1 << 20
for offset in range(0, len(view), length * step):
    view[offset : offset + length] = os.urandom(length)
print("ready", flush=True)
signal.pause()
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sizes-mib", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="on the disk to measure")


def lose_the_mains(folder: Path, size_bytes: int, step: int) -> dict[str, float]:
    """One cluster, from `up` to `down`: seconds and bytes of the save, seconds until the host serves again."""
    state = Path(tempfile.mkdtemp(prefix="everram-power-", dir=folder))
    sizes = ("--nvm", f"{size_bytes + 64 * MIB}B", "--memory", f"{2 * size_bytes + 256 * MIB}B")
    everram("up", "--hosts", "1", "--battery", "600s", "-d", *sizes, dir=state)
    try:
        words = ("--name", "writer", "--copies", "0", "--region", f"data={size_bytes}B,mapped")
        everram("run", "-d", *words, "--", sys.executable, "-c", GUEST, str(step), dir=state)
        _until_ready(state)
        everram("power cut", "h1", dir=state)
        began = time.monotonic()
        everram("power on", "h1", dir=state)
        on_s = time.monotonic() - began
        report = everram("power status", dir=state)["hosts"]["h1"]["last"]
        return {"save_s": report["save_s"], "saved_bytes": report["saved_bytes"], "on_s": on_s}
    finally:
        everram("down", "--discard", dir=state)
        shutil.rmtree(state, ignore_errors=True)


def _until_ready(state: Path) -> None:
    """The guest says so in its log."""
    deadline = time.monotonic() + GUEST_TIMEOUT_S
    words = [sys.executable, "-m", "everram.runtime.cli.main", "logs", "--dir", str(state), "writer"]
    while "ready" not in subprocess.run(words, capture_output=True, text=True, check=True).stdout:
        if time.monotonic() > deadline:
            raise RuntimeError("the guest did not get to the end of its region")
        time.sleep(0.1)


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
                "on_vs_best_sequential": written / ours["on_s"] / best,
                "save_s": ours["save_s"],
                "on_s": ours["on_s"],
                "best_sequential_mb_per_s": best / 1e6,
            }
        )
    return {key: round(statistics.median(one[key] for one in seen), 3) for key in seen[0]}


def run(rounds: int, sizes_mib: list[int], folder: Path) -> dict[str, Any]:
    cases = {
        f"{name}_{size}mib": measure(folder, size * MIB, step, rounds)
        for size in sizes_mib
        for name, step in (("runs", 1), ("scattered", SCATTERED_STEP))
    }
    ratios = ("save_vs_best_sequential", "saved_bytes_vs_present", "on_vs_best_sequential")
    return {
        **{ratio: {name: case[ratio] for name, case in cases.items()} for ratio in ratios},
        "seconds": {name: {key: v for key, v in case.items() if key not in ratios} for name, case in cases.items()},
        "rounds": rounds,
    }
