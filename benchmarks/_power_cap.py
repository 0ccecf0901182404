"""The dirty cap on a real machine: what a save writes and how long it takes, whatever the size of the memory; and an
observer outside that counts what may be written.

A guest fills its region; the cluster is saved and comes up again with a cap, from that image. When all of it is read
the guest stores to pages here and there for a while, as fast as it may, and the mains are cut in the midst of that.
What was dirty then is what the observer saw last, when the guest stood still.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._observer import PAGE_BYTES, Observer
from benchmarks.footprint import everram

MIB = 1 << 20
STORING_S = 4.0
GUEST = """
import os, random, sys
from everram.runtime import guest
me = guest.attach()
view = me.region("data").view
pages, spread = len(view) // 4096, int(sys.argv[1])
if not me.recovered:
    piece = os.urandom(1 << 20)
    for offset in range(0, len(view), 1 << 20):
        view[offset : offset + (1 << 20)] = piece
    print("ready", flush=True)
    import signal; signal.pause()
draw = random.Random(7)
print("storing", flush=True)
while True:
    at = 4096 * draw.randrange(0, pages, spread)
    view[at : at + 64] = os.urandom(64)
"""


def capped(folder: Path, size_bytes: int, cap_bytes: int, best_bytes_per_s: float) -> dict[str, float]:
    state = Path(tempfile.mkdtemp(prefix="everram-power-", dir=folder))
    sizes = ("--nvm", f"{size_bytes + 64 * MIB}B", "--memory", f"{2 * size_bytes + 256 * MIB}B")
    try:
        everram("up", "--hosts", "1", "--battery", "3000s", "-d", *sizes, dir=state)
        words = ("--name", "writer", "--copies", "0", "--region", f"data={size_bytes}B,mapped")
        everram("run", "-d", *words, "--", sys.executable, "-c", GUEST, "3", dir=state)
        until(state, "ready")
        everram("down", dir=state)
        everram("up", "--dirty-cap", f"{cap_bytes}B", "-d", dir=state)
        until(state, "storing")
        pid = int(everram("inspect writer", dir=state)["pid"])
        with Observer(pid, "region.") as observer:
            observer.allowed_pages = cap_bytes // PAGE_BYTES
            while everram("power status", dir=state)["hosts"]["h1"].get("restoring_bytes"):
                time.sleep(0.2)
            time.sleep(STORING_S)
            everram("power cut", "h1", dir=state)
        everram("power on", "h1", dir=state)
        report = everram("power status", dir=state)["hosts"]["h1"]["last"]
    finally:
        everram("down", "--discard", dir=state)
        shutil.rmtree(state, ignore_errors=True)
    return {
        "save_s": report["save_s"],
        "saved_mib": round(report["saved_bytes"] / MIB, 2),
        "saved_bytes_vs_dirty": round(report["saved_bytes"] / max(1, observer.last_pages * PAGE_BYTES), 3),
        "save_vs_best_sequential": round(report["saved_bytes"] / report["save_s"] / best_bytes_per_s, 3),
        "dirty_mib": round(observer.last_pages * PAGE_BYTES / MIB, 2),
        "most_writable_mib": round(observer.most_pages * PAGE_BYTES / MIB, 2),
        "cap_exceeded_instants": observer.exceeded,
        "looks": observer.looks,
    }


def until(state: Path, word: str, timeout_s: float = 300.0) -> None:
    """The guest says so in its log."""
    deadline = time.monotonic() + timeout_s
    while not any(word in path.read_text() for path in state.glob("machines/h1/guests/*.log")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the guest did not say {word!r}")
        time.sleep(0.1)  # another process's output
