"""Datagrams with descriptors between processes of one computer: Unix SOCK_SEQPACKET sockets on the loop.

    listener = Listener(path, accept)                    # accept(sock) for each peer; takes a dead one's path over
    connection = Connection(sock, on_batch, on_end)      # owns the socket
    connection.post(data, descriptors)                   # never blocks: what does not fit waits, in order
    connection.ring(immediate)                           # what does not fit waits as a set

A named edge of the environment seam: sockets are opened here and nowhere else in this package.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from everram.runtime.channel.frames import DATAGRAM_BYTES_MAX, IMMEDIATES_MAX, Ring, encode_ring
from everram.runtime.errors import InvalidArgument, Unavailable

PATH_BYTES_MAX = 107
"""sun_path has 108 bytes, the last one a zero."""
BACKLOG = 128
BATCH_DATAGRAMS = 64
"""Read before other callbacks of the loop get their turn."""
DESCRIPTORS_MAX = 4
"""More than any datagram carries."""

Batch = list[tuple[bytes, list[int]]]
"""Datagrams in order, each with its descriptors, which are the receiver's."""

_DESCRIPTOR_SPACE = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)


class Unreachable(Unavailable):
    """Nobody listens at that path, on this computer."""


def dial(path: str) -> socket.socket:
    """Raises Unreachable at once if nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Unreachable(f"nothing answers at {path} ({error.strerror or error}): try again when it runs") from error
    return sock


class Listener:
    """Only this user may connect. Raises InvalidArgument for a path that is too long, OSError."""

    def __init__(self, path: str, accept: Callable[[socket.socket], None]) -> None:
        # Bound beside it and renamed over it, so that there is never nobody at `path` while a successor starts.
        beside = f"{path}~"
        if len(os.fsencode(beside)) > PATH_BYTES_MAX:
            raise InvalidArgument(f"{path} is too long for a socket: use a folder with a shorter path")
        self._path = Path(path)
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            Path(beside).unlink(missing_ok=True)
            self._sock.bind(beside)
            Path(beside).chmod(0o600)
            self._inode = Path(beside).stat().st_ino
            self._sock.listen(BACKLOG)
            Path(beside).rename(path)
        except BaseException:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(BATCH_DATAGRAMS):
            try:
                sock, _ = self._sock.accept()
            except OSError:
                # Nobody waits, whoever did has gone, or there are no descriptors left: the next turn tries again.
                return
            sock.setblocking(False)
            self._accept(sock)

    def close(self) -> None:
        """Idempotent. A successor's socket under the same path stays."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            try:
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            except FileNotFoundError:
                pass


class Connection:
    """`on_batch` gets what arrives, `on_end` is called once when the peer has closed; neither after `close`.

    `polite`: read nothing while the peer does not take what it asked for, so that it cannot make us keep without end.
    """

    def __init__(
        self, sock: socket.socket, on_batch: Callable[[Batch], None], on_end: Callable[[], None], *, polite: bool
    ) -> None:
        self._sock = sock
        self._on_batch = on_batch
        self._on_end = on_end
        self._polite = polite
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[tuple[bytes, list[int]]] = deque()
        self._rings: dict[int, None] = {}  # immediates that wait, in the order of their first ring
        self._writing = False  # whether the loop watches for room
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def post(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """The descriptors stay the caller's. A closed connection swallows everything."""
        if self.closed or (not self._writing and self._send(data, descriptors)):
            return
        self._backlog.append((data, [os.dup(fd) for fd in descriptors]))
        self._watch()

    def ring(self, immediate: int) -> None:
        if self.closed or (not self._writing and self._send(encode_ring(immediate))):
            return
        self._rings[immediate] = None
        self._watch()

    def close(self) -> None:
        """Idempotent."""
        if self.closed:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._rings.clear()
        while self._backlog:
            _close_all(self._backlog.popleft()[1])

    def _send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Whether there was room. A peer that has gone takes everything; reading finds its end."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _watch(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._flush)
            if self._polite:
                self._loop.remove_reader(self._sock.fileno())

    def _flush(self) -> None:
        while self._backlog:
            data, descriptors = self._backlog[0]
            if not self._send(data, descriptors):
                return
            _close_all(self._backlog.popleft()[1])
        while self._rings:
            some = list(self._rings)[:IMMEDIATES_MAX]
            if not self._send(Ring(some).encode()):
                return
            for immediate in some:
                del self._rings[immediate]
        self._writing = False
        self._loop.remove_writer(self._sock.fileno())
        if self._polite:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        batch: Batch = []
        ended = False
        while len(batch) < BATCH_DATAGRAMS:
            try:
                datagram = self._receive()
            except BlockingIOError:
                break
            except OSError:
                datagram = None
            if datagram is None:
                ended = True
                break
            batch.append(datagram)
        if batch:
            self._on_batch(batch)
        if ended and not self.closed:
            self.close()
            self._on_end()

    def _receive(self) -> tuple[bytes, list[int]] | None:
        """None at the end, which a truncated datagram is too. Raises OSError."""
        fds = array.array("i")
        data, ancillary, flags, _ = self._sock.recvmsg(DATAGRAM_BYTES_MAX, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not data:
            _close_all(fds.tolist())
            return None
        return data, fds.tolist()


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
