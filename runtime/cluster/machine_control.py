"""Asks a machine over its control socket: JSON datagrams, one connection a request.

status = await ask(path, "status", timeout_s=1.0)
await tell_last(path, "die", timeout_s=1.0)         # a word whose answer is the end of the machine
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everram.runtime.errors import Internal, Unavailable, of_code
from everram.runtime.machine.protocol import VERSION

ANSWER_BYTES_MAX = 1 << 20
"""The status of a machine with a thousand guests takes about 300 KiB."""


async def ask(path: Path, word: str, *, timeout_s: float, **members: object) -> dict[str, Any]:
    """The answer. Raises Unavailable if the machine does not answer, or the error that it answers with."""
    data = await _exchange(path, word, timeout_s, members)
    if not data:
        raise Unavailable(f"the machine at {path} closed the connection", unknown=True)
    return _answer(path, data)


async def tell_last(path: Path, word: str, *, timeout_s: float) -> None:
    """Returns when the machine has ended of it. Raises like `ask`."""
    try:
        data = await _exchange(path, word, timeout_s, {})
    except Unavailable as error:
        if isinstance(error.__cause__, ConnectionResetError):
            return
        raise
    if data:
        _answer(path, data)


async def _exchange(path: Path, word: str, timeout_s: float, members: Mapping[str, object]) -> bytes:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sent = False
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, str(path))
            await loop.sock_sendall(sock, json.dumps({"everram": VERSION, "do": word, **members}).encode())
            sent = True
            return await loop.sock_recv(sock, ANSWER_BYTES_MAX)
    except (OSError, TimeoutError) as error:
        reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
        raise Unavailable(f"the machine at {path} cannot be asked: {reason}", unknown=sent) from error
    finally:
        sock.close()


def _answer(path: Path, data: bytes) -> dict[str, Any]:
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise Internal(f"the machine at {path} answered {answer!r}")
    if not answer.get("ok"):
        raise of_code(int(answer.get("code", Internal.code)), str(answer.get("error", "")))
    return answer
