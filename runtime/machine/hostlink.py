"""The machine's end of the socket to its host: requests come in, answers and events go out, in order.

The machine never waits for a host: what cannot be sent at once is kept until the host reads, and a host that lets too
much pile up counts as gone.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from everram.runtime.errors import EverramError, InvalidArgument, Unavailable
from everram.runtime.machine import protocol
from everram.runtime.machine.loop import Loop
from everram.runtime.machine.protocol import Message

BACKLOG_MAX = 4096
"""Messages kept for a host that does not read; more than a machine's guests can cause within the watchdog's time."""


class Reply:
    """The answer to one request: called once, with a payload and descriptors of which copies go along, or failed."""

    def __init__(self, link: HostLink, number: str, log: Callable[[str], None]) -> None:
        self._link = link
        self._number = number
        self._log = log

    def __call__(self, payload: Any = None, fds: Sequence[int] = ()) -> None:
        if self._number:
            self._link.send(Message({"RE": self._number}, payload, [os.dup(fd) for fd in fds]))

    def fail(self, error: EverramError) -> None:
        if self._number:
            self._link.send(Message({"RE": self._number, "CODE": str(error.code)}, {"message": error.message}))
        else:
            self._log(f"the host asked for no answer, but: {error.message}")


class HostLink:
    """Of one incarnation of a host. `handle` gets each message and owns its descriptors; `gone` is called once."""

    def __init__(
        self, loop: Loop, sock: socket.socket, handle: Callable[[Message], None], gone: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self.handle = handle
        self.gone = gone
        self._backlog: deque[Message] = deque()
        self._version_known = False
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._on_readable)

    def event(self, word: str, payload: Any, fds: Sequence[int] = ()) -> bool:
        """Whether the host will get it, if it lives; a copy of each descriptor goes along."""
        return self.send(Message({"EV": word}, payload, [os.dup(fd) for fd in fds]))

    def hello(self, payload: Any) -> None:
        self.send(Message({"EVERRAM": str(protocol.VERSION), "EV": "hello"}, payload))

    def drain(self) -> None:
        """Handle everything that has arrived."""
        while self._sock is not None and self._receive():
            pass

    def close(self) -> None:
        """Without calling `gone`."""
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for message in self._backlog:
            message.close()
        self._backlog.clear()

    def _end(self) -> None:
        if self._sock is not None:
            self.close()
            self.gone()

    def _on_readable(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """One message; whether there may be more."""
        assert self._sock is not None
        try:
            message = protocol.receive(self._sock)
        except BlockingIOError:
            return False
        except InvalidArgument as error:
            self._loop.log(f"the host sent a malformed message, it is ended: {error.message}")
            message = None
        if message is None:
            self._end()
            return False
        if not self._check_version(message):
            message.close()
            self._end()
            return False
        self.handle(message)
        return True

    def _check_version(self, message: Message) -> bool:
        """The first message has to say which version the host speaks."""
        if not self._version_known:
            version = message.words.get("EVERRAM", "none")
            if version != str(protocol.VERSION):
                self._loop.log(f"the host speaks version {version} of the machine's protocol, not {protocol.VERSION}")
                return False
            self._version_known = True
        return True

    def send(self, message: Message) -> bool:
        """Owns its descriptors. Whether the host gets it, if it lives on."""
        if self._sock is None or len(self._backlog) >= BACKLOG_MAX:
            message.close()
            if self._sock is not None:
                self._loop.log("the host does not read its messages, it is ended")
                self._end()
            return False
        self._backlog.append(message)
        self._flush()
        return self._sock is not None

    def _flush(self) -> None:
        while self._sock is not None and self._backlog:
            try:
                protocol.send(self._sock, self._backlog[0])
            except BlockingIOError:
                self._loop.watch(self._sock.fileno(), self._on_readable, self._flush)
                return
            except Unavailable:
                # What it wrote before it closed may still be unread: the end of the input tells when it is over.
                for message in self._backlog:
                    message.close()
                self._backlog.clear()
            else:
                self._backlog.popleft().close()
        if self._sock is not None:
            self._loop.watch(self._sock.fileno(), self._on_readable)
