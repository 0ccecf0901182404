"""The supervisor's children: started, watched until their end, and reaped, orphans of dead machines included.

A child dies with the supervisor (PDEATHSIG), has a process group of its own, so that a terminal's Ctrl-C does not
reach it, and appends what it prints to a file. Its pidfd tells its end (uvloop keeps SIGCHLD to itself). It is
signalled by its number, which cannot go to anybody else before it is reaped, and only `reap` does that.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from everram.runtime.machine.launch import Program, become_subreaper, start


class Child:
    """One process; `exit_status` is None while it lives, then its exit code, or 128 + the signal that killed it."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.exit_status: int | None = None
        self.ended = asyncio.Event()

    def send(self, number: signal.Signals) -> None:
        """Nothing happens if it has ended."""
        if self.exit_status is None:
            os.kill(self.pid, number)

    async def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL if that is not enough; returns when it has ended."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.ended.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.ended.wait()

    def how_it_ended(self) -> str:
        status = self.exit_status or 0
        return f"killed by {signal.Signals(status - 128).name}" if status > 128 else f"exit status {status}"


class Children:
    """All of them. Everything that was ever below this process and outlived its parent ends up here (subreaper)."""

    def __init__(self) -> None:
        self._alive: dict[int, Child] = {}
        self._pidfds: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        become_subreaper()

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str], output: Path) -> Child:
        """Raises an EverramError that says what could not be executed."""
        program = Program(
            argv=[os.fsencode(word) for word in argv],
            working_directory=b"/",
            environment={os.fsencode(k): os.fsencode(v) for k, v in environment.items()},
            output_path=str(output),
        )
        child = Child(name, start(program).pid)
        self._alive[child.pid] = child
        self._pidfds[child.pid] = os.pidfd_open(child.pid)
        if self._loop is not None:
            self._loop.add_reader(self._pidfds[child.pid], self.reap)
        return child

    def watch(self) -> None:
        """In the event loop: learn of every child's end from now on, and of those before."""
        self._loop = asyncio.get_running_loop()
        for pidfd in self._pidfds.values():
            self._loop.add_reader(pidfd, self.reap)
        self.reap()

    def reap(self) -> None:
        """Take note of every child that has ended, and let the kernel forget the orphans that have."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._alive.pop(pid, None)
            if child is not None:
                pidfd = self._pidfds.pop(pid)
                if self._loop is not None:
                    self._loop.remove_reader(pidfd)
                os.close(pidfd)
                code = os.waitstatus_to_exitcode(status)
                child.exit_status = code if code >= 0 else 128 - code
                child.ended.set()
