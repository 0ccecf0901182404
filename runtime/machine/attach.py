"""The machine's side of a guest's attachment; the handshake is described in docs/formats.md, "Attach".

What ends it: with a userfaultfd handed in, the end of the process (blocked threads would go on with zeros if the last
descriptor closed while it lives), or a new program in the same process asking anew; without one, already the end of the
connection.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from everram.runtime.machine.protocol import doorbell_name
from everram.runtime.machine.resident import Grant, Resident, Tracking

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess
    from everram.runtime.machine.server import Connection


class Attachment:
    """One process of a guest that has the guest's memory."""

    def __init__(self, connection: Connection, guest_id: str, pidfd: int) -> None:
        self._connection = connection
        self._machine: MachineProcess = connection.machine
        self.guest_id = guest_id
        self.pid = connection.pid
        self._pidfd = pidfd
        self._machine.loop.watch(pidfd, self.end)

    @staticmethod
    def begin(connection: Connection, message: dict[str, Any]) -> None:
        """Answers with the grants and their descriptors. Raises an EverramError for a stranger or at a wrong time."""
        machine, pid = connection.machine, connection.pid
        guest_id, epoch = message.get("guest"), message.get("epoch")
        if not isinstance(guest_id, str) or not isinstance(epoch, int):
            raise InvalidArgument("an attach message names the guest (EVERRAM_GUEST) and its epoch (EVERRAM_EPOCH)")
        resident = machine.residents.get(guest_id)
        if resident is None:
            raise NotFound(f"no guest {guest_id} runs on this machine")
        machine.end_replaced(guest_id, pid)
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError) as error:
            raise PermissionDenied(f"the process that asks cannot be found: {error}") from error
        try:
            _check_saves(resident, message)
            payload, fds = _attach(machine, resident, epoch, pid)
        except EverramError:
            os.close(pidfd)
            raise
        connection.attachment = machine.attachments[guest_id] = Attachment(connection, guest_id, pidfd)
        connection.send(payload, fds)

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        """A later message: the only one is "track". Takes the userfaultfd out of `fds`."""
        machine, resident = self._machine, self._machine.residents[self.guest_id]
        if message.get("do") != "track":
            raise InvalidArgument(f"unknown word {message.get('do')!r}; an attaching process says track")
        ranges = _ranges(message.get("ranges"), resident.launch.grants)
        if len(fds) != (1 if ranges else 0):
            raise InvalidArgument("a track message carries one userfaultfd, or none if it names no ranges")
        if machine.core.guests[self.guest_id].attachment != "mapping":
            raise FailedPrecondition("this process is attached already")
        served = {each["label"]: each["length_bytes"] for each in ranges}
        if any(g.lacking and served.get(g.label, 0) < g.size_bytes for g in resident.launch.grants):
            raise FailedPrecondition(
                "the memory of this guest is being restored: a process cannot use it before that has ended unless it "
                "has userfaultfd, and has all faults of it served; start it again then"
            )
        if not ranges:
            machine.feed(machine.core.untracked(machine.now_ns(), self.guest_id, self.pid))
            self.admit()
            return
        resident.tracking = Tracking(fds.pop(), ranges)
        machine.feed(machine.core.tracked(machine.now_ns(), self.guest_id, self.pid))

    def admit(self) -> None:
        self._connection.send({"ok": True, "go": True})

    def connection_ended(self) -> None:
        resident = self._machine.residents.get(self.guest_id)
        if resident is None or resident.tracking is None:
            self.end()

    @property
    def connected(self) -> bool:
        return self._connection.open

    def end(self) -> None:
        """The process has ended, or has no ties left."""
        if self._machine.attachments.get(self.guest_id) is not self:
            return
        del self._machine.attachments[self.guest_id]
        self._machine.loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        resident = self._machine.residents.get(self.guest_id)
        if resident is not None:
            resident.drop_tracking()
        self._connection.close()
        self._machine.feed(self._machine.core.detached(self._machine.now_ns(), self.guest_id, self.pid))


def _check_saves(resident: Resident, message: dict[str, Any]) -> None:
    """Snapshots rely on it: a process that stored without saving before would change what they hold. Raises
    FailedPrecondition."""
    if any(grant.role == "old" for grant in resident.launch.grants) and message.get("saves") is not True:
        raise FailedPrecondition(
            "on this computer a guest has to save old content for snapshots itself, and this program's everram does "
            "not: install the version of its host"
        )


def _attach(machine: MachineProcess, resident: Resident, epoch: int, pid: int) -> tuple[dict[str, Any], list[int]]:
    """The answer and its descriptors, once the core has agreed."""
    guest_id, grants = resident.launch.guest_id, resident.launch.grants
    in_tree = pid in resident.freezer.members()
    tracked = any(grant.tracked for grant in grants)
    # Looked up first: a refused process must not count as attached.
    names = [grant.memory for grant in grants] + [doorbell_name(guest_id)] if in_tree else []
    fds = [machine.store.get(name) for name in names]
    known = machine.core.guests.get(guest_id)
    again = known is not None and known.was_attached
    machine.feed(machine.core.attach(machine.now_ns(), guest_id, epoch, pid, in_tree=in_tree, tracked=tracked))
    answer = {
        "ok": True,
        "epoch": epoch,
        "recovered": epoch > 1 or again,
        "tracking": tracked,
        "grants": [
            {"label": g.label, "role": g.role, "size_bytes": g.size_bytes, "tracked": g.tracked} for g in grants
        ],
    }
    return answer, fds


def _ranges(payload: Any, grants: tuple[Grant, ...]) -> list[dict[str, Any]]:
    """Raises InvalidArgument."""
    memories = {grant.label: grant.memory for grant in grants if grant.tracked}
    try:
        return [
            {
                "label": entry["label"],
                "memory": memories[entry["label"]],
                "address": int(entry["address"]),
                "length_bytes": int(entry["length"]),
            }
            for entry in payload
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"malformed ranges: {error!r}; tracked are {', '.join(memories) or 'none'}") from error
