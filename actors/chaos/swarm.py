"""Runs many seeds, each in a process of its own: what one run leaves in memory can then not reach the next.

    for result in run_all(range(1, 201), simulate, workers=2): ...

Results come in the order of the seeds, whatever order the processes end in.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SEED_TIMEOUT_S = 120.0
"""Of processor time for one seed, unless told otherwise: a busy computer is no violation."""
WAITING_FACTOR = 30
"""That many times as long in real time, for a seed that does not even use its processor."""

PR_SET_PDEATHSIG = 1
"""prctl(2): a child does not outlive whoever counts on its result."""

Outcome = dict[str, Any]
"""A result as JSON: at least `seed` and `violations`."""


@dataclass(slots=True)
class _Child:
    seed: int
    pid: int
    started_s: float
    output: bytearray = field(default_factory=bytearray)


def run_all(
    seeds: Iterable[int], run: Callable[[int], Outcome], workers: int, *, timeout_s: float = SEED_TIMEOUT_S
) -> Iterator[Outcome]:
    """`run(seed)` of each seed in a forked process, at most `workers` at a time."""
    swarm = _Swarm(run, timeout_s)
    try:
        yield from swarm.results(iter(seeds), workers)
    finally:
        swarm.close()


class _Swarm:
    def __init__(self, run: Callable[[int], Outcome], timeout_s: float) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        """By the descriptor that its result comes from."""
        self._done: dict[int, Outcome] = {}
        """Results that wait for an earlier seed, by seed."""

    def results(self, seeds: Iterator[int], workers: int) -> Iterator[Outcome]:
        order: list[int] = []
        exhausted = False
        while True:
            while not exhausted and len(self._children) < workers:
                seed = next(seeds, None)
                if seed is None:
                    exhausted = True
                else:
                    order.append(seed)
                    self._start(seed)
            while order and order[0] in self._done:
                yield self._done.pop(order.pop(0))
            if not self._children:
                if exhausted and not order:
                    return
                continue
            self._wait()

    def _start(self, seed: int) -> None:
        result, report = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(result)
            _be_child(seed, self._run, report, self._timeout_s)
        os.close(report)
        self._children[result] = _Child(seed, pid, time.monotonic())
        self._selector.register(result, selectors.EVENT_READ)

    def _wait(self) -> None:
        for key, _ in self._selector.select(timeout=1.0):
            child = self._children[key.fd]
            data = os.read(key.fd, 1 << 16)
            if data:
                child.output.extend(data)
            else:
                self._reap(key.fd)
        now_s = time.monotonic()
        for child in self._children.values():
            if now_s - child.started_s > WAITING_FACTOR * self._timeout_s:
                os.kill(child.pid, signal.SIGKILL)

    def _reap(self, fd: int) -> None:
        child = self._children.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(child.pid, 0)
        try:
            outcome = json.loads(child.output)
        except ValueError:
            exit_status = os.waitstatus_to_exitcode(status)
            what = f"its process ended with status {exit_status} and no result"
            if exit_status == -signal.SIGXCPU:
                what = f"it was not over after {self._timeout_s:g} s of processor time"
            outcome = failure(child.seed, what)
        self._done[child.seed] = outcome

    def close(self) -> None:
        for fd, child in list(self._children.items()):
            os.kill(child.pid, signal.SIGKILL)
            self._reap(fd)
        self._selector.close()


def failure(seed: int, what: str) -> Outcome:
    """The outcome of a seed that could not be simulated to its end."""
    violation = {"property": "the simulation runs", "at_s": 0.0, "what": what}
    return {"seed": seed, "violations": [violation], "digest": "", "steps": 0, "virtual_s": 0.0, "configuration": ""}


def _be_child(seed: int, run: Callable[[int], Outcome], report: int, timeout_s: float) -> None:
    """Simulate, report, and end without any of what an interpreter does at its end."""
    limit_s = math.ceil(timeout_s)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))  # SIGXCPU
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.disable()
    status = 1
    try:
        try:
            outcome = run(seed)
        except BaseException:
            outcome = failure(seed, traceback.format_exc())
        data = memoryview(json.dumps(outcome).encode())
        while data:
            data = data[os.write(report, data) :]
        status = 0
    finally:
        os._exit(status)
