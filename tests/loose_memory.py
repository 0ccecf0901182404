"""`environment.Memory` on memfds that no machine keeps, for tests that need real memory and no processes."""

from __future__ import annotations

import os

from everram.runtime.errors import NotFound
from everram.runtime.memory import memfd
from everram.runtime.production.memory import KeptObject


class LooseMemory:
    """Its descriptors are closed by `close`."""

    capacity_bytes = 1 << 40

    def __init__(self) -> None:
        self._objects: dict[str, KeptObject] = {}

    def names(self) -> list[str]:
        return sorted(self._objects)

    def open(self, name: str) -> KeptObject:
        if name not in self._objects:
            raise NotFound(f"there is no memory named {name}")
        return self._objects[name]

    def make(self, name: str, size_bytes: int, *, resizable: bool = False) -> KeptObject:
        self._objects[name] = KeptObject(name, memfd.create(name, size_bytes, resizable=resizable))
        return self._objects[name]

    async def create(self, name: str, size_bytes: int, *, resizable: bool = False) -> KeptObject:
        return self.make(name, size_bytes, resizable=resizable)

    def resize(self, name: str, size_bytes: int) -> None:
        self.open(name).resize(size_bytes)

    async def remove(self, name: str) -> None:
        removed = self._objects.pop(name, None)
        if removed is not None:
            removed.lack = None
            os.close(removed.descriptor)

    def close(self) -> None:
        while self._objects:
            os.close(self._objects.popitem()[1].descriptor)
