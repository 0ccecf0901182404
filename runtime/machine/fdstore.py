"""The descriptors a machine keeps for its hosts, by name, as systemd's descriptor store does.

What is stored here is the machine's memory: it lives until it is removed by name or until the machine dies.
"""

from __future__ import annotations

import os

from everram.runtime.errors import AlreadyExists, InvalidArgument, NotFound

NAME_BYTES_MAX = 255
"""systemd's limit of a descriptor's name."""
RESERVED = frozenset({"machine"})


class DescriptorStore:
    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        """Takes `fd` over. Raises InvalidArgument (name), AlreadyExists; then the caller still owns it."""
        if not is_name(name):
            raise InvalidArgument(f"{name[:40]!r} cannot name a descriptor")
        if name in self._fds:
            raise AlreadyExists(f"the machine keeps a descriptor named {name} already; remove that first")
        self._fds[name] = fd

    def get(self, name: str) -> int:
        """Raises NotFound."""
        if name not in self._fds:
            raise NotFound(f"the machine keeps no descriptor named {name}")
        return self._fds[name]

    def remove(self, name: str) -> None:
        """Not an error if it is not there: whoever removes wants it gone."""
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def items(self) -> list[tuple[str, int]]:
        return list(self._fds.items())

    def __contains__(self, name: str) -> bool:
        return name in self._fds

    def close(self) -> None:
        for name in list(self._fds):
            self.remove(name)


def is_name(name: str) -> bool:
    """Printable ASCII without the separator of LISTEN_FDNAMES."""
    printable = all(" " < character <= "~" and character != ":" for character in name)
    return 0 < len(name) <= NAME_BYTES_MAX and printable and name not in RESERVED
