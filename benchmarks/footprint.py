"""What a cluster costs at rest: three hosts, no guests. Everything is read from /proc.

- `ready_s`: from `everram up --hosts 3 -d` until all hosts are ready, as `up` says it (median of the rounds);
- `command_s`: the same command from start to end, Python's own start included;
- `host_rss_mb`: RssAnon + RssFile of the largest host, in MB (10^6 bytes);
- `cpu_percent`: of one core, all processes of the cluster together, supervisor and coordination included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from everram.runtime.machine import tree

ROUNDS = 3
HOSTS = 3
SETTLE_S = 2.0
"""After the start, before it counts as being at rest: renewals have found their rhythm by then."""
WINDOW_S = 6.0
"""Of the measurement: twenty lease renewals, sixty watchdog beats, sixty probes."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
COMMAND_TIMEOUT_S = 60.0

EVERRAM = [sys.executable, "-m", "everram.runtime.cli.main"]


def everram(command: str, *arguments: str, dir: Path) -> dict[str, Any]:
    """Run one command on the cluster in `dir`; its JSON."""
    words = [*EVERRAM, *command.split(), "--dir", str(dir), "--json", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} {' '.join(arguments)} failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def rss_bytes(pid: int) -> int:
    """RssAnon + RssFile: what would be freed if it ended, and the code it maps; not the guests' shared memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:"))]
    return sum(kib) * 1024


def cpu_s(pids: set[int]) -> float:
    """User and system time that the processes have used so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK_S


def pids_of(status: dict[str, Any]) -> set[int]:
    """Every process of the cluster."""
    marks = [f"{status['cluster_id']}/{name}" for name in (*(h["name"] for h in status["hosts"]), "coordination")]
    return {int(status["pid"]), *(pid for mark in marks for pid in tree.marked(mark))}


def measure_rest(status: dict[str, Any]) -> dict[str, float]:
    time.sleep(SETTLE_S)
    pids = pids_of(status)
    began_s, used_s = time.monotonic(), cpu_s(pids)
    time.sleep(WINDOW_S)
    cpu_percent = 100 * (cpu_s(pids) - used_s) / (time.monotonic() - began_s)
    hosts = [rss_bytes(int(host["host_pid"])) for host in status["hosts"]]
    machines = [rss_bytes(int(host["pid"])) for host in status["hosts"]]
    return {
        "host_rss_mb": round(max(hosts) / 1e6, 1),
        "machine_rss_mb": round(max(machines) / 1e6, 1),
        "supervisor_rss_mb": round(rss_bytes(int(status["pid"])) / 1e6, 1),
        "coordination_rss_mb": round(rss_bytes(int(status["coordination"]["pid"])) / 1e6, 1),
        "cpu_percent": round(cpu_percent, 2),
        "processes": len(pids),
    }


def run() -> dict[str, Any]:
    ready, commands = [], []
    rest: dict[str, float] = {}
    for round_number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "cluster"
            began_s = time.monotonic()
            started = everram("up", "--hosts", str(HOSTS), "-d", dir=state)
            commands.append(time.monotonic() - began_s)
            ready.append(float(started["ready_s"]))
            try:
                if round_number == ROUNDS - 1:
                    rest = measure_rest(everram("status", dir=state))
            finally:
                everram("down", "--discard", dir=state)
    return {
        "hosts": HOSTS,
        "ready_s": round(statistics.median(ready), 3),
        "command_s": round(statistics.median(commands), 3),
        **rest,
        "limits": {"ready_s": 1.5, "host_rss_mb": 60, "cpu_percent": 8},
    }
