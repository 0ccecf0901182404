"""The guest of `_replicated.py`: times its own commits and prints one JSON object; then sleeps until it is stopped."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time

from everram.runtime import guest

SMALL_BYTES = 256
RECORDS = 64
WARM_UP, WAITED = 300, 3000
ROUNDS, COMMITS = 31, 2_000
"""A round writes a sixth of the log: it is never full, and a copy is being shipped all the while."""
PATIENCE_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wait", action="store_true")
    wait = parser.parse_args().wait
    me = guest.attach()
    region, data = me.region("region"), os.urandom(SMALL_BYTES)

    def commit(number: int) -> int:
        with me.transaction() as tx:
            tx.store(region, number % RECORDS * SMALL_BYTES, data)
        return tx.lsn

    me.wait_replicated(commit(0), PATIENCE_S)
    result: dict[str, list[float]] = {"waited_us": [], "commit_us": [], "commit_cpu_us": []}
    for number in range(WARM_UP + WAITED if wait else 0):
        began_ns = time.perf_counter_ns()
        me.wait_replicated(commit(number), PATIENCE_S)
        if number >= WARM_UP:
            result["waited_us"].append(round((time.perf_counter_ns() - began_ns) / 1000, 1))
    for _ in range(ROUNDS):
        began_ns, used_ns = time.perf_counter_ns(), time.process_time_ns()
        for number in range(COMMITS):
            lsn = commit(number)
        result["commit_cpu_us"].append((time.process_time_ns() - used_ns) / 1000 / COMMITS)
        result["commit_us"].append((time.perf_counter_ns() - began_ns) / 1000 / COMMITS)
        me.wait_replicated(lsn, PATIENCE_S)
    print(json.dumps(result), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
