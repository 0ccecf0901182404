"""What a mount shows and nobody changes there: the folder at its top, `/regions` and `/snapshots`, in one shape.

    view.has(key)                            # whether the node of this key is one of its own
    await view.lookup(parent, "bank")        # -> Attributes
    file = await view.open(key)              # to be read only
    file.read(0, 4096)

`/regions` and `/snapshots` begin with the guests that this host has now (`Guests`); other hosts show their own.
"""

from __future__ import annotations

import abc
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.fuse.errors import FuseError
from everram.runtime.fuse.filesystem import ROOT_KEY, Answer, Attributes, Entry, Kind
from everram.runtime.fuse.protocol import Buffer

TOP_VALID_NS = 3_600_000_000_000
"""Of what never changes."""
FOLDER_VALID_NS = 1_000_000_000
"""The kernel asks for each folder at each step of a path; what it may be late to see is another host's chmod."""


class ViewedFile(Protocol):
    """An open file of a view."""

    def read(self, offset: int, size: int) -> Answer[Buffer]:
        """Raises FuseError(ESTALE) once it is gone."""


class View(abc.ABC):
    """Some folders and files of a mount. Each method raises FuseError(ENOENT) for what is not there."""

    @abc.abstractmethod
    def has(self, key: str) -> bool: ...

    @abc.abstractmethod
    async def attributes(self, key: str) -> Attributes: ...

    @abc.abstractmethod
    async def entries(self, key: str) -> Sequence[Entry]: ...

    @abc.abstractmethod
    async def open(self, key: str) -> ViewedFile: ...

    async def lookup(self, parent: str, name: str) -> Attributes:
        for entry in await self.entries(parent):
            if entry.name == name:
                return await self.attributes(entry.key)
        raise FuseError(errno.ENOENT)


class Top(View):
    """The folder that was mounted: the key of what is in it, by name. `attributes_of` knows what those keys are."""

    def __init__(self, keys: Mapping[str, str], attributes_of: Callable[[str], Awaitable[Attributes]]) -> None:
        self._keys = keys
        self._attributes_of = attributes_of

    def has(self, key: str) -> bool:
        return key == ROOT_KEY

    async def attributes(self, key: str) -> Attributes:
        return folder(key)

    async def entries(self, key: str) -> Sequence[Entry]:
        return [Entry(name, Kind.FOLDER, found) for name, found in self._keys.items()]

    async def open(self, key: str) -> ViewedFile:
        raise FuseError(errno.EISDIR)

    async def lookup(self, parent: str, name: str) -> Attributes:
        if name not in self._keys:
            raise FuseError(errno.ENOENT)
        return replace(await self._attributes_of(self._keys[name]), name_valid_ns=TOP_VALID_NS)


def folder(key: str) -> Attributes:
    """One that nobody can write to."""
    return Attributes(key, Kind.FOLDER, 0o555, valid_ns=FOLDER_VALID_NS)


class Guests:
    """Those that this host has now. `hypervisor` gives the ref to this host's."""

    def __init__(self, hypervisor: Callable[[], HypervisorRef]) -> None:
        self._hypervisor = hypervisor

    async def all(self) -> list[pb.Guest]:
        """By name."""
        return sorted((await self._hypervisor().list(pb.Empty())).guests, key=lambda guest: guest.name)

    async def find(self, guest_id: str) -> pb.Guest:
        """Raises FuseError(ENOENT)."""
        for guest in await self.all():
            if guest.guest_id == guest_id:
                return guest
        raise FuseError(errno.ENOENT)

    async def region(self, guest_id: str, name: str) -> pb.Region:
        """Raises FuseError(ENOENT)."""
        for region in (await self.find(guest_id)).regions:
            if region.name == name:
                return region
        raise FuseError(errno.ENOENT)
