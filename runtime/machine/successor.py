"""The successor of a host, as its machine holds it while the host software is upgraded: a process without memory yet.

It is started with `--successor`, which a version that cannot be started warm refuses, and may ask three things:

    DO=kept     JSON={"prefixes": [...]}        -> the names of the memory objects that begin so
    DO=peek     JSON={"names": [...]}           -> descriptors to read those memory objects with, and which there are
    DO=verdict  JSON={"reasons": [...], ...}    no reasons: it can take the memory

Then it is given what the machine keeps, in one or more events EV=take JSON={"names": [...], "last": true}, and is the
host from the first of them on.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument
from everram.runtime.machine.hostlink import Reply
from everram.runtime.machine.protocol import DESCRIPTORS_MAX, NO_MEMORY, Message
from everram.runtime.machine.tree import send_signal

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess

FLAG = "--successor"
PER_EVENT = DESCRIPTORS_MAX - 5
"""Descriptors in one event: below the kernel's limit, with room for a payload's own."""


class Successor:
    """One, until it is the host or has ended."""

    def __init__(self, machine: MachineProcess, incarnation: int, command: list[str]) -> None:
        """Raises EverramError if it cannot be started."""
        self.machine = machine
        self.incarnation = incarnation
        self.command = command
        self.pid, self.link = machine.launch_host(
            [*command, FLAG], incarnation, [], self._on_message, self._disconnected, successor=True
        )
        machine.loop.log(f"successor started, process {self.pid}, incarnation {incarnation}")

    def kill(self) -> None:
        send_signal(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.link.close()

    def _disconnected(self) -> None:
        """Of no use any more; its end is seen when it is reaped."""
        self.kill()

    def _on_message(self, message: Message) -> None:
        core, machine = self.machine.core, self.machine
        reply = Reply(self.link, message.words.get("ID", ""), machine.loop.log)
        word = message.words.get("DO")
        payload: dict[str, Any] = message.payload if isinstance(message.payload, dict) else {}
        try:
            if message.words.get("WATCHDOG") == "1":
                machine.feed(core.upgrade.alive(machine.now_ns(), self.incarnation))
            if word == "kept":
                prefixes = tuple(str(prefix) for prefix in payload.get("prefixes", ()))
                reply([name for name, _ in machine.store.items() if name.startswith(prefixes)])
            elif word == "peek":
                self._peek(payload, reply)
            elif word == "verdict":
                reply()
                self._verdict(payload)
            elif word is not None or "READY" in message.words or "FDSTORE" in message.words:
                raise FailedPrecondition("a successor is no host before the memory was passed to it")
        except EverramError as error:
            reply.fail(error)
        finally:
            message.close()

    def _peek(self, payload: dict[str, Any], reply: Reply) -> None:
        """Descriptors that only read: whatever a successor does wrong, it cannot harm the memory that way."""
        names = [str(name) for name in payload.get("names", ())]
        found = [name for name in names if name in self.machine.store and not name.startswith(NO_MEMORY)]
        fds: list[int] = []
        try:
            for name in found:
                fds.append(os.open(f"/proc/self/fd/{self.machine.store.get(name)}", os.O_RDONLY | os.O_CLOEXEC))
            reply(found, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _verdict(self, payload: dict[str, Any]) -> None:
        reasons = payload.get("reasons")
        if not isinstance(reasons, list):
            raise InvalidArgument("a verdict says its reasons")
        told = [str(reason) for reason in reasons]
        machine = self.machine
        machine.loop.log(f"the successor {'refuses: ' + '; '.join(told) if told else 'can take the memory'}")
        machine.feed(machine.core.upgrade.verdict(machine.now_ns(), self.incarnation, told, payload))

    def pass_memory(self) -> None:
        """Everything the machine keeps; a copy of each descriptor."""
        kept = self.machine.store.items()
        for at in range(0, max(1, len(kept)), PER_EVENT):
            part = kept[at : at + PER_EVENT]
            payload = {"names": [name for name, _ in part], "last": at + PER_EVENT >= len(kept)}
            self.link.event("take", payload, [fd for _, fd in part])
