"""How long clients of a guest with one copy wait when its machine is lost or cut off, or its host software hangs.

The demo's bank and clients (`examples/demo.py`, `--ack replicated`) on one cluster of three hosts, broken again and
again: what a fault took is brought back, and the next one comes when the copy is in sync again. At the end the clients'
records of all runs are held against what the bank remembers.

- `unserved_ms`: the longest that any client waited for an answer in each run: median (`p50`) and `max` of the `runs`;
- `course_ms`: from the fault to each step of it, medians: where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any

from everram.examples.demo import Demo, Run, own_cluster
from everram.examples.demo_clients import Record, ask_memory
from everram.examples.demo_proof import verify

RUNS = {"machine_kill": 20, "partition": 5, "hang": 5}
LEASE_TTL_MS = 2000
LIMITS_MS = {
    "machine_kill": {"p50": 800, "max": 2000},
    "partition": {"max": LEASE_TTL_MS + 1000},
    "hang": {"max": 1500},
}
CLIENTS = 8
LOAD_S = 1.0
ENOUGH = (100, 100)
COURSE = {
    "host_ready": ("a new host is ready",),
    "proven_dead": ("is proven dead",),
    "lease_over": ("the lease of",),
    "chosen": ("is chosen",),
    "started": ("starts the bank",),
    "copy_again": ("holds a copy, in sync",),
    "first_answer": ("serves again", "answers again"),
}
"""By name in the result: phrases of its event, any of them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    for cause, runs in RUNS.items():
        parser.add_argument(
            f"--{cause.replace('_', '-')}", dest=cause, type=int, default=runs, metavar="N", help=f"runs ({runs})"
        )


def run(**runs: int) -> dict[str, Any]:
    return asyncio.run(measure({cause: runs.get(cause, count) for cause, count in RUNS.items()}))


async def measure(wanted: dict[str, int]) -> dict[str, Any]:
    done: dict[str, list[Run]] = {}
    async with own_cluster(lambda text: None) as cluster:
        demo = await Demo.start(cluster, "replicated", lambda text: None)
        for cause, count in wanted.items():
            done[cause] = [await break_once(demo, cause.replace("_", "-")) for _ in range(count)]
        memory = await ask_memory(demo.port)
    records: list[Record] = [record for several in done.values() for one in several for record in one.records]
    proof = verify(records, memory, promised=True)
    return {
        **{cause: measured(several) for cause, several in done.items() if several},
        "limits_ms": LIMITS_MS,
        "lost": proof["lost"],
        "duplicated": proof["duplicated"],
        "invariant": proof["invariant"],
    }


async def break_once(demo: Demo, fault: str) -> Run:
    """One run; afterwards everything is there again, and the copy in sync."""
    one = await demo.run(fault, CLIENTS, LOAD_S, ENOUGH)
    if fault == "machine-kill":
        await demo.inflict("heal", one.before.host)
    await demo.in_sync()
    return one


def measured(several: Sequence[Run]) -> dict[str, Any]:
    waits_ms = [round(1000 * (one.gap_s()[1] - one.gap_s()[0]), 1) for one in several]
    return {
        "unserved_ms": {"p50": round(median(waits_ms), 1), "max": max(waits_ms), "runs": len(waits_ms)},
        "each_ms": waits_ms,
        "course_ms": course_ms(several),
    }


def course_ms(several: Sequence[Run]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in several:
        events = [(at_s, what) for at_s, what in one.events() if at_s > one.fault_s and not what.startswith("fault")]
        for name, phrases in COURSE.items():
            at_s = next((at_s for at_s, what in events if any(p in what for p in phrases)), None)
            if at_s is not None:
                found.setdefault(name, []).append(1000 * (at_s - one.fault_s))
    return {name: round(median(times), 1) for name, times in found.items()}
