"""Which processes belong to a guest, or to a machine: read from /proc.

A program may fork, daemonise, make sessions; its processes are its descendants, and those reparented to the machine
(their subreaper) whose environment carries the marks EVERRAM_MACHINE and EVERRAM_GUEST. A process that has both wiped
its environment and left its parent is only found where the guest has a cgroup.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

MACHINE_MARK = "EVERRAM_MACHINE"
GUEST_MARK = "EVERRAM_GUEST"
ENVIRON_BYTES_MAX = 4 * 1024 * 1024

_ENDED = "ZX"
_STOPPED = "TtZX"
_FROZEN_WAITS = frozenset({"do_freezer_trap", "get_signal", "do_signal_stop", "ptrace_stop"})
"""Where a stopped thread waits in the kernel; compilers inline the freezer's trap into get_signal."""


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    state: str
    """The letter of /proc/PID/stat."""


def processes() -> dict[int, Process]:
    """Everything that /proc shows; a process that comes or goes meanwhile may be missing."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (pathlib is slow to import)
        if name.isdecimal() and (process := read_process(int(name))) is not None:
            found[process.pid] = process
    return found


def read_process(pid: int) -> Process | None:
    fields = _stat_fields(f"/proc/{pid}/stat")
    return Process(pid, int(fields[1]), fields[0]) if fields else None


def descendants(table: dict[int, Process], roots: set[int]) -> set[int]:
    """The roots that exist and everything below them."""
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    pending = [pid for pid in roots if pid in table]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, ())
    return found


def guest_processes(machine_pid: int, mark: str, guest_id: str, guest_pid: int) -> set[int]:
    """The living processes of a guest; seen from the machine itself, whose pid it is."""
    table = processes()
    wanted = {MACHINE_MARK: mark, GUEST_MARK: guest_id}
    roots = {guest_pid}
    for process in table.values():
        if process.parent == machine_pid and process.pid != guest_pid and has_marks(process.pid, wanted):
            roots.add(process.pid)
    return {pid for pid in descendants(table, roots) if table[pid].state not in _ENDED}


def marked(mark: str) -> list[int]:
    """The living processes with EVERRAM_MACHINE=mark in their environment, ascending."""
    wanted = {MACHINE_MARK: mark}
    table = processes()
    return sorted(pid for pid in table if table[pid].state not in _ENDED and has_marks(pid, wanted))


def kill_marked(mark: str) -> list[int]:
    """SIGKILL to every process with the mark, one round. Repeat until it returns none: only that proves their death."""
    found = marked(mark)
    for pid in found:
        send_signal(pid, signal.SIGKILL)
    return found


def has_marks(pid: int, wanted: dict[str, str]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = set(file.read(ENVIRON_BYTES_MAX).split(b"\0"))
    except OSError:
        return False
    return all(os.fsencode(f"{key}={value}") in entries for key, value in wanted.items())


def restless_threads(pid: int) -> tuple[int, int]:
    """How many of its threads could run on, and how many wait in a page fault for a userfaultfd's owner."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return 0, 0
    states = [_thread_state(f"/proc/{pid}/task/{thread}") for thread in threads]
    return states.count(RUNS), states.count(FAULTS)


RUNS, FAULTS, RESTS = range(3)


def _thread_state(folder: str) -> int:
    fields = _stat_fields(f"{folder}/stat")
    if not fields or fields[0] in _STOPPED:
        return RESTS
    try:
        with open(f"{folder}/wchan") as file:
            wait = file.read()
    except OSError:
        return RUNS
    if wait == "handle_userfault":
        return FAULTS
    return RESTS if wait in _FROZEN_WAITS else RUNS


def blocked_in_faults(userfaultfd: int) -> int:
    """How many threads wait for this userfaultfd's owner, at most, in a few looks.

    A thread that faulted in kernel mode and has a signal pending does not sleep: it leaves the queue and enters it
    again, without end, so that one look may miss it.
    """
    return max(_waiting(userfaultfd) for _ in range(FAULT_LOOKS))


FAULT_LOOKS = 50
"""Half a millisecond; such a thread is in the queue for more than a tenth of the time."""


def _waiting(userfaultfd: int) -> int:
    with open(f"/proc/self/fdinfo/{userfaultfd}") as file:
        for line in file:
            if line.startswith("total:"):
                return int(line.split()[1])
    return 0


def waited_ns(pid: int) -> int:
    """How long the first thread of a process, where a host's loop is, was ready to run and had no processor, in all;
    0 where the kernel does not count that."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def send_signal(pid: int, number: int) -> bool:
    """Whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _stat_fields(path: str) -> list[str]:
    """From the state on: the name before it may hold anything, even parentheses."""
    try:
        with open(path, "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []
