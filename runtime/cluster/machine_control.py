"""Asks a machine over its control socket: JSON datagrams, one connection a request.

status = await ask(path, "status", timeout_s=1.0)
"""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

from everram.runtime.errors import Internal, Unavailable, of_code
from everram.runtime.machine.protocol import VERSION

ANSWER_BYTES_MAX = 1 << 20
"""The status of a machine with a thousand guests takes about 300 KiB."""


async def ask(path: Path, word: str, *, timeout_s: float) -> dict[str, Any]:
    """The answer. Raises Unavailable if the machine does not answer, or the error that it answers with."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sent = False
    try:
        sock.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, str(path))
            await loop.sock_sendall(sock, json.dumps({"everram": VERSION, "do": word}).encode())
            sent = True
            data = await loop.sock_recv(sock, ANSWER_BYTES_MAX)
    except (OSError, TimeoutError) as error:
        reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
        raise Unavailable(f"the machine at {path} cannot be asked: {reason}", unknown=sent) from error
    finally:
        sock.close()
    if not data:
        raise Unavailable(f"the machine at {path} closed the connection", unknown=True)
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise Internal(f"the machine at {path} answered {answer!r}")
    if not answer.get("ok"):
        raise of_code(int(answer.get("code", Internal.code)), str(answer.get("error", "")))
    return answer
