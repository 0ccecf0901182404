"""The machine's public socket (SOCK_SEQPACKET, JSON): guests attach here, and the cluster's supervisor controls.

A connection's first message says what it wants: {"everram": 1, "do": WORD, ...}. The answer is {"ok": true, ...} or
{"ok": false, "error": "a plain sentence"}.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from everram.runtime.machine import protocol
from everram.runtime.machine.attach import Attachment
from everram.runtime.machine.death import die
from everram.runtime.machine.protocol import VERSION
from everram.runtime.machine.requests import guest_payload

if TYPE_CHECKING:
    from everram.runtime.machine.process import MachineProcess

CONNECTIONS_MAX = 1024
"""Open at a time: two orders above the guests of one machine."""
UPGRADE = "upgrade"
"""The one word of control whose answer takes long: it comes when the upgrade has ended."""
_CREDENTIALS = struct.Struct("3i")


class Connection:
    """One peer: who it is, its messages in, our answers out."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.machine = server.machine
        self._server = server
        self._sock = sock
        self.pid, self.uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self.attachment: Attachment | None = None
        self.open = True
        sock.setblocking(False)
        self.machine.loop.watch(sock.fileno(), self._on_readable)

    def send(self, payload: dict[str, Any], fds: list[int] | None = None) -> None:
        """Never raises for a peer that has gone, however long ago, or does not read: nobody waits for it."""
        if not self.open:
            return
        try:
            protocol.send_bytes(self._sock, json.dumps(payload).encode(), fds or [])
        except (Unavailable, OSError) as error:
            if not isinstance(error, Unavailable | BlockingIOError):
                self.machine.loop.log(f"process {self.pid} gets no answer: {error}")
            self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.machine.loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._server.connections.discard(self)
            if self.attachment is not None:
                self.attachment.connection_ended()

    def _on_readable(self) -> None:
        fds: list[int] = []
        try:
            received = protocol.receive_bytes(self._sock)
            if received is None:
                self.close()
                return
            data, fds = received
            self._handle(_object(data), fds)
        except BlockingIOError:
            return
        except EverramError as error:
            self.send({"ok": False, "error": error.message, "code": error.code})
        except Exception as error:
            # A machine that ended of its own mistake would take all memory with it.
            self.machine.loop.log(f"mistake in the machine, at a connection: {traceback.format_exc()}")
            self.send({"ok": False, "error": f"the machine made a mistake, see its log: {error!r}", "code": 13})
        finally:
            for fd in fds:
                os.close(fd)

    def _handle(self, message: dict[str, Any], fds: list[int]) -> None:
        """Takes over the descriptors it removes from `fds`."""
        word = message.get("do")
        if self.attachment is not None:
            self.attachment.handle(message, fds)
        elif message.get("everram") != VERSION:
            raise InvalidArgument(f"this machine speaks version {VERSION}, not {message.get('everram')!r}")
        elif word == "attach":
            Attachment.begin(self, message)
        elif isinstance(word, str) and (word in CONTROLS or word == UPGRADE):
            if self.uid not in (0, os.geteuid()):
                raise PermissionDenied("only the machine's own user may control it")
            if word == UPGRADE:
                self.machine.upgrades.begin(message, self.send)
            else:
                self.send({"ok": True, **CONTROLS[word](self.machine, message)})
        else:
            raise InvalidArgument(f"unknown word {word!r}; known are attach, {', '.join(sorted((*CONTROLS, UPGRADE)))}")


class Server:
    def __init__(self, machine: MachineProcess, path: str) -> None:
        """Raises FailedPrecondition if another machine serves at `path`, or it cannot be used."""
        self.machine = machine
        self.path = path
        self.connections: set[Connection] = set()
        self._listener = listen(path)
        machine.loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        self.machine.loop.unwatch(self._listener.fileno())
        self._listener.close()
        os.unlink(self.path)  # noqa: PTH108 (pathlib is slow to import)
        for connection in list(self.connections):
            connection.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if len(self.connections) >= CONNECTIONS_MAX:
            sock.close()
            return
        self.connections.add(Connection(self, sock))


def listen(path: str) -> socket.socket:
    """A listening socket, for this user only; a dead machine's leftover is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    before = os.umask(0o177)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or is_served(path):
                raise
            os.unlink(path)  # noqa: PTH108
            sock.bind(path)
        sock.listen(128)
    except OSError as error:
        sock.close()
        reason = "another machine serves there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise FailedPrecondition(f"the machine cannot listen at {path}: {reason}") from error
    finally:
        os.umask(before)
    return sock


def is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _object(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"malformed message: {error}") from error
    if not isinstance(message, dict):
        raise InvalidArgument("malformed message: it is not a JSON object")
    return message


# -- control -----------------------------------------------------------------------------------------------------------


def _status(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    core = machine.core
    return {
        "machine": machine.config.machine,
        "cluster_id": machine.config.cluster_id,
        "pid": os.getpid(),
        "host": {"pid": machine.host_pid, "state": core.host.state, "restarts": core.host.restarts},
        "upgrade": core.upgrade.step,
        "host_command": machine.host_command,
        "mains": core.mains,
        "battery_ns": core.battery_ns(machine.now_ns()),
        "battery_full_ns": core.limits.battery_ns,
        "cut": core.cut,
        "weather": core.weather,
        "failing": core.needs_host,
        "stopping": core.stopping,
        "lease_deadline_ns": core.lease_deadline_ns,
        "freezer": "cgroup" if machine.cgroup else "signals",
        "guests": [guest_payload(guest) | {"state": guest.state} for _, guest in sorted(core.guests.items())],
        "descriptors": [name for name, _ in machine.store.items()],
    }


def _host_kill(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    machine.feed(machine.core.kill_host(machine.now_ns()))
    return {}


def _hang(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    machine.feed(machine.core.hang_host(machine.now_ns()))
    return {}


def _retry_host(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    machine.feed(machine.core.retry_host(machine.now_ns()))
    return {}


def _mains(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    machine.feed(machine.core.set_mains(machine.now_ns(), _on(message)))
    return {}


def _cut(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    machine.feed(machine.core.set_cut(machine.now_ns(), _on(message)))
    return {}


def _give_up(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    """An upgrade; whoever asked for that is answered first."""
    machine.feed(machine.core.upgrade.give_up(machine.now_ns()))
    return {}


def _weather(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    name = message.get("name")
    if not isinstance(name, str):
        raise InvalidArgument('"name" is no text')
    machine.feed(machine.core.set_weather(machine.now_ns(), name))
    return {}


def _on(message: dict[str, Any]) -> bool:
    on = message.get("on")
    if not isinstance(on, bool):
        raise InvalidArgument('"on" is neither true nor false')
    return on


def _die(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    """There is no answer: the end of the connection tells that it is done."""
    die(machine)


def _stop(machine: MachineProcess, message: dict[str, Any]) -> dict[str, Any]:
    """The answer comes first; the end of the connection is the end of the machine."""
    machine.loop.at(machine.now_ns(), machine.stop)
    return {}


CONTROLS: dict[str, Callable[[MachineProcess, dict[str, Any]], dict[str, Any]]] = {
    "status": _status,
    "host-kill": _host_kill,
    "hang": _hang,
    "retry-host": _retry_host,
    "mains": _mains,
    "cut": _cut,
    "give-up": _give_up,
    "weather": _weather,
    "die": _die,
    "stop": _stop,
}
