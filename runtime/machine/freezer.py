"""Stops, continues and kills every process of one guest (D3): by its cgroup where it has one, otherwise by signals.

Both ways are asked repeatedly: `is_stopped` and `is_gone` do one round and say whether it was the last. A process
blocked in kernel mode in a fault that only the host can serve never stops: with a signal pending it spins in the kernel
(state R) until it is served. It cannot run a line of its program meanwhile, and counts as stopped; the queue of the
guest's userfaultfd tells how many such threads there are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Protocol

from everram.runtime.machine.tree import read_process, restless_threads, send_signal

CLEAN_ROUNDS = 2
"""A process may fork while /proc is read, and its child be missed. In a second round nobody is left who could fork."""


class Freezer(Protocol):
    def members(self) -> set[int]:
        """Pids of the guest's living processes."""

    def stop(self) -> None:
        """Begin; `is_stopped` says when it is done."""

    def is_stopped(self) -> bool: ...

    def resume(self) -> None: ...

    def is_gone(self) -> bool:
        """SIGKILL to all that is left; whether nothing was."""

    def close(self) -> None:
        """Once nothing is left."""


class SignalFreezer:
    """SIGSTOP, SIGCONT and SIGKILL to every process that `members` finds; `faults` counts threads blocked in ours."""

    def __init__(self, members: Callable[[], set[int]], faults: Callable[[], int]) -> None:
        self._members = members
        self._faults = faults
        self._clean_rounds = 0

    def members(self) -> set[int]:
        return self._members()

    def stop(self) -> None:
        self._clean_rounds = 0

    def is_stopped(self) -> bool:
        members = self._members()
        for pid in members:
            # Also to one in a fault of ours: it must not run on once the fault is served.
            process = read_process(pid)
            if process is not None and process.state != "T":
                send_signal(pid, signal.SIGSTOP)
        self._clean_rounds = self._clean_rounds + 1 if at_rest(members, self._faults) else 0
        return self._clean_rounds >= CLEAN_ROUNDS

    def resume(self) -> None:
        for pid in self._members():
            send_signal(pid, signal.SIGCONT)

    def is_gone(self) -> bool:
        members = self._members()
        for pid in members:
            send_signal(pid, signal.SIGKILL)
        return not members

    def close(self) -> None:
        pass


class CgroupFreezer:
    """A cgroup2 folder of the guest's own: membership is inherited and cannot be escaped by forks or sessions."""

    def __init__(self, folder: str, faults: Callable[[], int]) -> None:
        self.folder = folder
        self._faults = faults

    def members(self) -> set[int]:
        return cgroup_members(self.folder)

    def stop(self) -> None:
        freeze_cgroup(self.folder)

    def is_stopped(self) -> bool:
        return "frozen 1" in _read(f"{self.folder}/cgroup.events") or at_rest(self.members(), self._faults)

    def resume(self) -> None:
        _write(f"{self.folder}/cgroup.freeze", "0")

    def is_gone(self) -> bool:
        if "populated 0" in _read(f"{self.folder}/cgroup.events"):
            return True
        kill_cgroup(self.folder, self.members())
        return False

    def close(self) -> None:
        remove_cgroup(self.folder)


def at_rest(members: set[int], faults: Callable[[], int]) -> bool:
    """Whether all their threads are stopped, or blocked in a fault of ours."""
    counts = [restless_threads(pid) for pid in members]
    running, faulting = sum(count[0] for count in counts), sum(count[1] for count in counts)
    # Threads seen waiting in a fault have used up their part of the queue: the rest explains those that seem to run.
    return running == 0 or running + faulting <= faults()


def cgroup_members(folder: str) -> set[int]:
    found: set[int] = set()
    for inner, _, _ in os.walk(folder):
        found.update(int(pid) for pid in _read(f"{inner}/cgroup.procs").split())
    return found


def delegate(name: str) -> str:
    """A new cgroup2 folder of this name below our own, for guests' cgroups; empty if that is not allowed."""
    own = own_cgroup()
    if not own:
        return ""
    folder = f"{own}/{name}"
    try:
        if os.path.isdir(folder):  # noqa: PTH112 (pathlib is slow to import)
            end_cgroup(folder)
        else:
            os.mkdir(folder, 0o755)  # noqa: PTH102
        return folder if os.access(f"{folder}/cgroup.freeze", os.W_OK) else ""
    except OSError:
        return ""


def own_cgroup() -> str:
    """The folder of this process's cgroup2; empty without one."""
    root, point = _cgroup2()
    inside = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "")
    if not point or not inside or (root != "/" and not (inside + "/").startswith(root + "/")):
        return ""
    return (point + inside.removeprefix(root if root != "/" else "")).rstrip("/")


def end_machine_cgroups(mark: str) -> bool:
    """One round of ending what a machine that is dead left in its cgroup, wherever that is; whether nothing is left.

    Besides `tree.marked` part of the proof of a machine's death: a process can wipe its environment, but not leave.
    """
    name, gone = machine_cgroup_name(mark), True
    for folder, inner, _ in os.walk(_cgroup2()[1] or os.devnull):
        if name in inner:
            inner.remove(name)
            gone &= end_cgroup(f"{folder}/{name}")
    return gone


def _cgroup2() -> tuple[str, str]:
    """(root inside the file system, mount point) of the first cgroup2; both empty without one."""
    return next((found for found in map(_cgroup2_mount, _read("/proc/self/mountinfo").splitlines()) if found), ("", ""))


def _cgroup2_mount(line: str) -> tuple[str, str] | None:
    """(root inside the file system, mount point) of one line of mountinfo, if it is a cgroup2."""
    fields, _, kind = line.partition(" - ")
    words = fields.split(" ")
    return (words[3], words[4]) if kind.startswith("cgroup2 ") and len(words) > 4 else None


def end_cgroup(folder: str) -> bool:
    """One round of killing everything in it and removing what is empty; whether it is gone."""
    if not os.path.isdir(folder):  # noqa: PTH112
        return True
    kill_cgroup(folder, cgroup_members(folder))
    remove_cgroup(folder)
    return not os.path.isdir(folder)  # noqa: PTH112


def freeze_cgroup(folder: str) -> None:
    """Begin to stop everything in it, whatever it was told before."""
    _write(f"{folder}/cgroup.freeze", "1")


def kill_cgroup(folder: str, members: set[int]) -> None:
    try:
        _write(f"{folder}/cgroup.kill", "1")
    except OSError:
        # Kernels before 5.14 have no cgroup.kill.
        for pid in members:
            send_signal(pid, signal.SIGKILL)


def remove_cgroup(folder: str) -> None:
    """With what is inside; a part that still has processes stays."""
    for inner, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(inner)  # noqa: PTH106
        except OSError:
            return


def machine_cgroup_name(mark: str) -> str:
    return "everram-" + mark.replace("/", "-")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
