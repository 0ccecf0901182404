"""The words between a machine and its host: datagrams of KEY=VALUE lines on a SOCK_SEQPACKET pair, version 1.

systemd's notify words keep their meaning: READY=1, WATCHDOG=1, FDSTORE=1 and FDSTOREREMOVE=1 with FDNAME=..., and the
host finds its descriptors by LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID; one of them is named "machine", this socket.
Ours are added:

    host:     EVERRAM=1                       its version, in its first datagram
              DO=word  ID=n  JSON=...         a request; FDSTORE and FDSTOREREMOVE with an ID are answered likewise
    machine:  EVERRAM=1  EV=hello  JSON=...   its version, first of all
              RE=n  JSON=...                  the answer, or RE=n CODE=c JSON={"message": ...} (a gRPC status code)
              EV=word  JSON=...               an event

A payload that does not fit is put into a memfd, which goes along as the last descriptor; then JSON=@fd.
Text that is not UTF-8 (arguments, environment, paths) travels as Python's surrogate escapes.
"""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from everram.runtime.errors import EverramError, InvalidArgument, Unavailable, of_code

VERSION = 1
DATAGRAM_BYTES_MAX = 64 * 1024
"""Well below the default send buffer of 208 KiB, so that a few always fit."""
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
"""Of a payload in a memfd: the kernel's limit on arguments and environment (6 MiB), escaped, rarely comes near."""
DESCRIPTORS_MAX = 253
"""The kernel's limit in one message."""
IN_MEMFD = "@fd"
DOORBELL_PREFIX, MOUNT_PREFIX, HELD_PREFIX = "doorbell.", "mount.", "held."
NO_MEMORY = (DOORBELL_PREFIX, MOUNT_PREFIX, HELD_PREFIX)
"""What the names of kept descriptors begin with that are no memory objects."""


@dataclass(slots=True)
class Message:
    """One datagram. Whoever receives it owns the descriptors."""

    words: dict[str, str] = field(default_factory=dict)
    payload: Any = None
    """What JSON says; None if absent."""
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def send(sock: socket.socket, message: Message) -> None:
    """Raises BlockingIOError when the peer is behind, Unavailable when it is gone."""
    lines = [f"{key}={value}" for key, value in message.words.items()]
    text = "" if message.payload is None else json.dumps(message.payload)
    overflow = -1
    if len(text) > DATAGRAM_BYTES_MAX:
        overflow = os.memfd_create("payload", os.MFD_CLOEXEC)
    try:
        if overflow >= 0:
            write_all(overflow, text.encode())
            text = IN_MEMFD
        if text:
            lines.append(f"JSON={text}")
        fds = [*message.fds, overflow] if overflow >= 0 else message.fds
        send_bytes(sock, "\n".join(lines).encode(), fds)
    finally:
        if overflow >= 0:
            os.close(overflow)


def receive(sock: socket.socket) -> Message | None:
    """The next datagram; None when the peer has closed. Raises BlockingIOError, InvalidArgument (malformed)."""
    received = receive_bytes(sock)
    if received is None:
        return None
    message = Message(fds=received[1])
    try:
        _decode(received[0], message)
    except BaseException:
        message.close()
        raise
    return message


def send_bytes(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    """Raises BlockingIOError when the peer is behind, Unavailable when it is gone."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Unavailable("the other side has closed its socket") from error


def receive_bytes(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """One datagram and its descriptors; None when the peer has closed. Raises BlockingIOError, InvalidArgument."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(DESCRIPTORS_MAX * fds.itemsize)
    try:
        data, ancillary, flags, _ = sock.recvmsg(DATAGRAM_BYTES_MAX * 2, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise InvalidArgument(
            f"a message is longer than {DATAGRAM_BYTES_MAX * 2} bytes or carries too many descriptors"
        )
    if not data and not fds:
        return None
    return data, fds.tolist()


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _decode(data: bytes, message: Message) -> None:
    try:
        for line in data.decode().split("\n"):
            key, separator, value = line.partition("=")
            if not separator or not key:
                raise ValueError(f"{line[:40]!r} is not KEY=VALUE")
            message.words[key] = value
        text = message.words.pop("JSON", None)
        if text == IN_MEMFD:
            text = _read_payload(message.fds.pop())
        if text is not None:
            message.payload = json.loads(text)
    except (ValueError, IndexError, RecursionError) as error:
        raise InvalidArgument(f"malformed message: {error}") from error


def _read_payload(fd: int) -> str:
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload of {size_bytes} bytes is too long")
        data = bytearray()
        while len(data) < size_bytes:
            piece = os.pread(fd, size_bytes - len(data), len(data))
            if not piece:
                raise ValueError("a payload is shorter than its memory")
            data += piece
        return data.decode()
    finally:
        os.close(fd)


def error_of(message: Message) -> EverramError | None:
    """The error an answer carries, if it does."""
    code = message.words.get("CODE")
    if code is None:
        return None
    text = message.payload.get("message", "") if isinstance(message.payload, dict) else ""
    return of_code(int(code) if code.isdecimal() else 13, str(text))


def doorbell_name(guest_id: str) -> str:
    """Under which the machine keeps the eventfd that wakes a log's reader, as long as the guest's record."""
    return DOORBELL_PREFIX + guest_id
