"""Carries out the upgrade of the host software that the core decides: starts the successor, passes it what the
machine keeps, and answers whoever asked.

    {"everram": 1, "do": "upgrade", "command": [...], "pause": false, "preflight": false}

is answered when it has ended, by {"ok": true, "upgraded": true, "said": {...}, "took_ns": {...}} or by the error. With
"preflight" nothing is changed: the answer is what the successor says of the memory.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everram.runtime.errors import EverramError, InvalidArgument
from everram.runtime.machine.hostlink import HostLink
from everram.runtime.machine.loop import Timer
from everram.runtime.machine.successor import Successor
from everram.runtime.machine.tree import send_signal

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess

Answer = Callable[[dict[str, Any]], None]


class Leaving:
    """A host that has handed over and answers what it still can; killed if it does not end by itself."""

    def __init__(self, machine: MachineProcess, pid: int, link: HostLink | None) -> None:
        self._machine = machine
        self._pid = pid
        self._link = link
        if link is not None:
            link.handle, link.gone = lambda message: message.close(), lambda: None
        self._timer: Timer = machine.loop.at(machine.now_ns() + machine.core.limits.leave_ns, self._kill)

    def _kill(self) -> None:
        self._machine.loop.log(f"process {self._pid}, which has handed over, does not end: it is killed")
        send_signal(self._pid, signal.SIGKILL)

    def ended(self) -> None:
        self._timer.cancel()
        if self._link is not None:
            self._link.close()


class Upgrades:
    """Of one machine; at most one is under way."""

    def __init__(self, machine: MachineProcess) -> None:
        self._machine = machine
        self._command: list[str] = []
        self._former: list[str] = []
        """The software before the last hand-over."""
        self._answer: Answer | None = None
        self._preflight = False
        self._successor: Successor | None = None
        self._ending: dict[int, Successor | Leaving] = {}
        """Processes that are no host and no successor any more, and have not been reaped, by pid."""

    def begin(self, message: dict[str, Any], answer: Answer) -> None:
        """Raises InvalidArgument, FailedPrecondition."""
        command = message.get("command")
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            raise InvalidArgument('"command" is not a list of program and arguments')
        machine, preflight = self._machine, message.get("preflight") is True
        effects = machine.core.upgrade.begin(machine.now_ns(), pause=message.get("pause") is True, only_ask=preflight)
        self._command, self._answer, self._preflight = command, answer, preflight
        machine.feed(effects)

    def start(self, incarnation: int) -> None:
        machine = self._machine
        try:
            self._successor = Successor(machine, incarnation, self._command)
        except EverramError as error:
            machine.loop.log(f"the successor cannot be started: {error.message}")
            machine.feed(machine.core.upgrade.verdict(machine.now_ns(), incarnation, [error.message], {}))

    def end_successor(self) -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.kill()
            successor.close()
            self._ending[successor.pid] = successor

    def hand_over(self) -> None:
        if self._machine.link is not None:
            said = self._machine.core.upgrade.said
            self._machine.link.event("hand-over", {"socket": said.get("socket", "")})

    def pass_memory(self) -> None:
        machine, successor = self._machine, self._successor
        if successor is None:
            raise AssertionError("there is nobody to pass the memory to")
        self._successor = None
        self.leave()
        self._former = machine.host_command
        machine.adopt(successor)
        successor.pass_memory()

    def leave(self) -> None:
        """The host has handed over; if its process still lives, it is the host no longer, and nobody waits for answers
        to what it asked."""
        machine = self._machine
        if machine.host_pid:
            self._ending[machine.host_pid] = Leaving(machine, machine.host_pid, machine.link)
        machine.host_pid, machine.link = 0, None
        machine.forget_requests()

    def use_former(self) -> None:
        self._machine.host_command = self._former

    def ended(self, error: EverramError | None) -> None:
        machine, answer, self._answer = self._machine, self._answer, None
        said, at_ns = machine.core.upgrade.said, machine.core.upgrade.at_ns
        machine.loop.log(f"the upgrade has ended: {error.message if error else 'well'}")
        if answer is None:
            return
        if error is not None:
            answer({"ok": False, "error": error.message, "code": error.code, "said": said})
        else:
            answer({"ok": True, "upgraded": not self._preflight, "said": said, "took_ns": _took_ns(at_ns, machine)})

    def reaped(self, pid: int, exit_status: int) -> bool:
        """Whether it was one of ours."""
        successor = self._successor
        if successor is not None and successor.pid == pid:
            self._successor = None
            successor.close()
            machine = self._machine
            machine.loop.log(f"the successor ended, process {pid}, status {exit_status}")
            machine.feed(machine.core.upgrade.successor_exited(machine.now_ns(), successor.incarnation, exit_status))
            return True
        ending = self._ending.pop(pid, None)
        if isinstance(ending, Leaving):
            ending.ended()
        return ending is not None


def _took_ns(at_ns: dict[str, int], machine: MachineProcess) -> dict[str, int]:
    """How long each step took: from its beginning to that of the one after it."""
    steps = sorted(at_ns.items(), key=lambda step: step[1])
    ends = [at for _, at in steps[1:]] + [machine.now_ns()]
    return {name: end - at for (name, at), end in zip(steps, ends, strict=True)}
