"""`python -m everram.runtime.machine --config FILE`: one machine, until SIGTERM or the control word "stop".

Exit status: 0 after an orderly stop, 78 if the configuration or the socket cannot be used.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

from everram.runtime.errors import EverramError
from everram.runtime.machine.config import MachineConfig
from everram.runtime.machine.lives import EXIT_REFUSED
from everram.runtime.machine.process import MachineProcess

USAGE = "usage: python -m everram.runtime.machine --config FILE"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "--config":
        print(USAGE, file=sys.stderr)
        return 2
    try:
        keep_descriptors_to_itself()
        machine = MachineProcess(MachineConfig.read(arguments[1]))
    except EverramError as error:
        print(f"everram machine: {error.message}", file=sys.stderr)
        return EXIT_REFUSED
    notify_ready()
    machine.run()
    return 0


def keep_descriptors_to_itself() -> None:
    """Hosts and guests inherit nothing but what they are given."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (pathlib is slow to import)
        fd = int(name)
        if fd > 2:
            try:
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            except OSError:
                continue  # the listing's own descriptor, closed by now


def notify_ready() -> None:
    """Tell systemd, if it started this process, that the machine serves."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
