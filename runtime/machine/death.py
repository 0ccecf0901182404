"""The fault `machine-kill`: this machine's death, with the loss of all its memory (D16).

On one computer the memory of a killed process lives on in whoever has mapped it, so every test of durability could pass
by accident. Therefore everything of the machine is stopped first; then the channel's generations are raised, so that
accesses by peers fail from here on, and all memory is wiped, so that who has mapped it reads zeros; and only then it is
killed, as by `kill -9`: nothing is saved and nobody is told.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, NoReturn

from everram.runtime.machine.fdstore import DescriptorStore
from everram.runtime.machine.freezer import CLEAN_ROUNDS, at_rest, freeze_cgroup, kill_cgroup
from everram.runtime.machine.tree import blocked_in_faults, descendants, processes, read_process, send_signal
from everram.runtime.memory import memfd

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess

GENERATIONS = "channel"
"""The memory object with the generation of each registered memory; all ones is none that was ever given out."""
STOP_LIMIT_S = 0.5
"""What has not stopped by then, such as a process stuck in a file system, is killed where it stands."""
POLL_S = 0.0005


def die(machine: MachineProcess, status: int | None = None) -> NoReturn:
    """Everything below this process ends, then this process: as by a kill, or with an exit status that says why."""
    _stop(machine)
    _lose_memory(machine.store)
    _kill(machine.cgroup)
    if status is not None:
        os._exit(status)
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def _stop(machine: MachineProcess) -> None:
    """Nothing below runs any more when this returns, or it has been killed."""
    if machine.cgroup:
        freeze_cgroup(machine.cgroup)
    until_s = time.monotonic() + STOP_LIMIT_S
    clean_rounds = 0
    while clean_rounds < CLEAN_ROUNDS:
        below = _below()
        for pid in below:
            process = read_process(pid)
            if process is not None and process.state != "T":
                send_signal(pid, signal.SIGSTOP)
        if at_rest(below, lambda: _blocked(machine)):
            clean_rounds += 1
            continue
        clean_rounds = 0
        if time.monotonic() > until_s:
            _kill(machine.cgroup)
            return
        time.sleep(POLL_S)


def _blocked(machine: MachineProcess) -> int:
    """How many threads of guests wait in faults that nobody will serve."""
    return sum(blocked_in_faults(r.tracking.userfaultfd) for r in machine.residents.values() if r.tracking is not None)


def _lose_memory(store: DescriptorStore) -> None:
    # What lies in NVM files is not lost with the machine, as with modules that hold what they have without power.
    memories = {name: fd for name, fd in store.items() if stat.S_ISREG(os.fstat(fd).st_mode) and not memfd.is_file(fd)}
    generations = memories.pop(GENERATIONS, -1)
    if generations >= 0:
        # First of all, and never wiped: a peer in the middle of an access checks it afterwards.
        os.pwrite(generations, b"\xff" * os.fstat(generations).st_size, 0)
    for fd in memories.values():
        if size_bytes := os.fstat(fd).st_size:  # an empty file has nothing to lose, and a hole of no length is an error
            memfd.punch(fd, 0, size_bytes)
            if memfd.is_resizable(fd):
                # Of a file, which the kernel may read and write in its host's place, for as long as a program has it
                # open: a zero would be a wrong byte, and a write would be lost without a word.
                os.ftruncate(fd, 0)
                with contextlib.suppress(OSError):  # of memory that takes no seals: it is empty, and this has to end
                    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


def _kill(cgroup: str) -> None:
    if cgroup:
        kill_cgroup(cgroup, set())
    for pid in _below():
        send_signal(pid, signal.SIGKILL)


def _below() -> set[int]:
    """Orphans included: this process is their reaper."""
    return descendants(processes(), {os.getpid()}) - {os.getpid()}
