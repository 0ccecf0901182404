"""The address of a channel, as the directory tells it: one word for each way in.

    boot:8f0c... shm:/run/user/1000/everram/ab12/h1.sock.ch tcp:127.0.0.1:40001

`shm` is a Unix socket's path (spaces and percent signs as %20 and %25) and means something only on the computer whose
boot id `boot` says, where one is said; `tcp` is for everybody else. Words of kinds that are unknown are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

SHM, TCP, BOOT = "shm", "tcp", "boot"
MODES = ("auto", SHM, TCP)
"""What a host may be told to use: both, or one alone."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Empty where there is no such way in."""

    shm: str = ""
    """A path."""
    tcp: tuple[str, int] | None = None
    boot_id: str = ""

    def encode(self) -> str:
        words = []
        if self.shm and self.boot_id:
            words.append(f"{BOOT}:{self.boot_id}")
        if self.shm:
            words.append(f"{SHM}:{self.shm.replace('%', '%25').replace(' ', '%20')}")
        if self.tcp is not None:
            words.append(f"{TCP}:{self.tcp[0]}:{self.tcp[1]}")
        return " ".join(words)

    @staticmethod
    def parse(text: str) -> Addresses:
        """Raises ValueError."""
        shm, boot_id, tcp = "", "", None
        for word in text.split(" "):
            kind, _, rest = word.partition(":")
            if kind == SHM:
                shm = rest.replace("%20", " ").replace("%25", "%")
            elif kind == BOOT:
                boot_id = rest
            elif kind == TCP:
                host, _, port = rest.rpartition(":")
                if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
                    raise ValueError(f"{word!r} is no address")
                tcp = host, int(port)
        return Addresses(shm, tcp, boot_id)
