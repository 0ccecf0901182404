"""TCP ports on loopback that nobody listens on, not handed out twice within a while."""

from __future__ import annotations

import socket
from collections import deque

from everram.runtime.errors import ResourceExhausted

REMEMBERED = 512
"""A port is not handed out again until so many others were: its guest may be slow to bind it."""
ATTEMPTS = 64


class Ports:
    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=REMEMBERED)

    def free(self) -> int:
        """Raises ResourceExhausted."""
        for _ in range(ATTEMPTS):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind(("127.0.0.1", 0))
                except OSError as error:
                    raise ResourceExhausted(f"no TCP port is free on loopback: {error.strerror}") from error
                port = int(probe.getsockname()[1])
            if port not in self._recent:
                self._recent.append(port)
                return port
        raise ResourceExhausted("no TCP port is free on loopback that was not handed out before; end some guests")
