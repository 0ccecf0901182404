"""The other end of a machine's public socket: what the cluster's supervisor, and commands, ask of a machine.

    with Control(path) as control:
        control.status()["host"]["state"]

Blocking, with a time limit; a machine answers within a millisecond or has a problem.
"""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any

from everram.runtime.errors import DeadlineExceeded, Unavailable, of_code
from everram.runtime.machine.protocol import DATAGRAM_BYTES_MAX, VERSION

TIMEOUT_S = 5.0
"""Far more than a machine needs under any load a test makes, and soon enough for a person."""
STOP_TIMEOUT_S = 30.0
"""The host's grace and the killing of every guest, on a loaded computer."""


class Control:
    """One connection. Every call raises Unavailable if no machine serves there, DeadlineExceeded if it does not answer,
    and the error the machine answers with."""

    def __init__(self, path: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(timeout_s)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise Unavailable(f"no machine serves at {path}: {error.strerror or error}") from error

    def status(self) -> dict[str, Any]:
        """`machine`, `pid`, `host` {pid, state, restarts}, `mains`, `guests`, `descriptors` and more."""
        return self._ask("status")

    def host_kill(self) -> None:
        """The fault: SIGKILL to the host. Raises FailedPrecondition if none runs."""
        self._ask("host-kill")

    def hang(self) -> None:
        """The fault: SIGSTOP to the host; the machine's watchdog finds it. Raises FailedPrecondition if none runs."""
        self._ask("hang")

    def retry_host(self) -> None:
        """Start a host that refused, or waits for its restart, now."""
        self._ask("retry-host")

    def set_mains(self, on: bool) -> None:
        self._ask("mains", on=on)

    def set_cut(self, on: bool) -> None:
        """The fault: cut the machine off from the network, or connect it again."""
        self._ask("cut", on=on)

    def set_weather(self, name: str) -> None:
        """A fault of the machine's links, by name; empty: none any more."""
        self._ask("weather", name=name)

    def die(self) -> None:
        """The fault: the machine and all its memory are lost; returns when its process has ended."""
        self._send("die")
        self._await_end("lost its memory", self._timeout_s)

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Orderly: returns when the machine and everything on it has ended."""
        self._ask("stop")
        self._await_end("ended", timeout_s)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_end(self, done: str, timeout_s: float) -> None:
        self._sock.settimeout(timeout_s)
        try:
            while self._sock.recv(DATAGRAM_BYTES_MAX):
                pass
        except TimeoutError as error:
            raise DeadlineExceeded(f"the machine at {self._path} has not {done} after {timeout_s} s") from error
        except ConnectionResetError:
            return

    def _send(self, word: str, **members: object) -> None:
        self._sock.sendall(json.dumps({"everram": VERSION, "do": word, **members}).encode())

    def _ask(self, word: str, **members: object) -> dict[str, Any]:
        try:
            self._send(word, **members)
            data = self._sock.recv(STATUS_BYTES_MAX)
        except TimeoutError as error:
            message = f"the machine at {self._path} did not answer within {self._timeout_s} s"
            raise DeadlineExceeded(message, unknown=True) from error
        except OSError as error:
            raise Unavailable(f"the machine at {self._path} has ended: {error.strerror}", unknown=True) from error
        if not data:
            raise Unavailable(f"the machine at {self._path} has ended", unknown=True)
        answer: dict[str, Any] = json.loads(data)
        if not answer.pop("ok"):
            raise of_code(int(answer.get("code", 13)), str(answer.get("error")))
        return answer


STATUS_BYTES_MAX = 1024 * 1024
"""Of one answer; the socket's buffer is the true limit (some 200 KiB: a thousand guests)."""
