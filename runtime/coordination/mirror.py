"""The directory as one host last saw it: a watched copy of everything under `everram/`, decoded.

    mirror = Mirror(environment.coordination)
    mirror.listeners.append(look.set)              # called after each change
    context.spawn(mirror.run(), name="mirror")
    await mirror.filled()
    mirror.guests[guest_id].record.state

All folders are one watch, so what is seen together was true together: the keys of a lease that ended vanish at once. It
is never ahead of coordination and may be behind, so whoever decides by it writes by a transaction that compares
`mod_revision`. It goes on by itself over lost connections and compaction (it then reads everything again). A value that
cannot be read stays as an entry without a record: it is there, and nothing may follow from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Coordination, KeyValue, WatchBatch, prefix
from everram.runtime.coordination.records import GuestRecord, HostRecord, LeaderRecord, MachineRecord, ServingRecord
from everram.runtime.errors import EverramError

RETRY_S = 0.05
"""Between attempts to read everything; the client itself waits for a server within its deadline."""

T = TypeVar("T")

log = logging.getLogger("everram.directory")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    record: T | None
    """None: there is a value that this version cannot read."""
    pair: KeyValue

    @property
    def mod_revision(self) -> int:
        return self.pair.mod_revision


class Folder(Generic[T]):
    """One folder's entries by what follows its prefix."""

    def __init__(self, read: Callable[[dict[str, Any]], T]) -> None:
        self.entries: dict[str, Entry[T]] = {}
        self.revision = 0
        """Of its last change."""
        self._read = read

    def put(self, name: str, pair: KeyValue) -> None:
        record: T | None = None
        try:
            record = self._read(directory.decode(pair.value))
        except ValueError as error:
            log.error(
                "the directory's %s cannot be read and is left alone: %s", pair.key.decode(errors="replace"), error
            )
        self.entries[name] = Entry(record, pair)
        self.revision = max(self.revision, pair.mod_revision)

    def remove(self, name: str, revision: int) -> None:
        if self.entries.pop(name, None) is not None:
            self.revision = max(self.revision, revision)


class Mirror:
    """See the module."""

    def __init__(self, coordination: Coordination) -> None:
        self.revision = 0
        """Everything up to here has been seen; 0 before the first reading."""
        self.listeners: list[Callable[[], None]] = []
        self._coordination = coordination
        self._guests, self._hosts, self._leader = (
            Folder(GuestRecord.read),
            Folder(HostRecord.read),
            Folder(LeaderRecord.read),
        )
        self._serving, self._machines = Folder(ServingRecord.read), Folder(MachineRecord.read)
        self._folders: dict[bytes, Folder[Any]] = {
            directory.GUESTS: self._guests,
            directory.HOSTS: self._hosts,
            directory.SERVING: self._serving,
            directory.MACHINES: self._machines,
            directory.LEADER: self._leader,
        }
        self._filled = asyncio.Event()

    @property
    def guests(self) -> dict[str, Entry[GuestRecord]]:
        return self._guests.entries

    @property
    def guests_revision(self) -> int:
        """Of the last change of any guest's record."""
        return self._guests.revision

    @property
    def hosts(self) -> dict[str, Entry[HostRecord]]:
        return self._hosts.entries

    @property
    def serving(self) -> dict[str, Entry[ServingRecord]]:
        return self._serving.entries

    @property
    def machines(self) -> dict[str, Entry[MachineRecord]]:
        return self._machines.entries

    @property
    def leader(self) -> Entry[LeaderRecord] | None:
        return self._leader.entries.get("")

    async def filled(self) -> None:
        """Return once everything was read for the first time."""
        await self._filled.wait()

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        while True:
            try:
                await self._follow()
            except EverramError as error:
                log.info("the directory is read again: %s", error.message)
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Read everything, then its changes. Returns or raises when it has to be read again."""
        everything = prefix(directory.ROOT)
        revision, pairs = await self._coordination.range(everything)
        self._reset(revision, pairs)
        watch = cast(AsyncGenerator[WatchBatch, None], self._coordination.watch(everything, revision + 1))
        async with aclosing(watch) as batches:
            async for batch in batches:
                self._apply(batch)

    def _reset(self, revision: int, pairs: Sequence[KeyValue]) -> None:
        there = {pair.key for pair in pairs}
        for root, folder in self._folders.items():
            for name in [name for name in folder.entries if root + name.encode() not in there]:
                folder.remove(name, revision)
        for pair in pairs:
            self._put(pair)
        self._seen(revision)
        self._filled.set()

    def _apply(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if not event.deleted:
                self._put(event.kv)
            elif (found := self._find(event.kv.key)) is not None:
                found[0].remove(found[1], event.kv.mod_revision)
        self._seen(batch.revision)

    def _put(self, pair: KeyValue) -> None:
        found = self._find(pair.key)
        if found is None:
            return
        folder, name = found
        known = folder.entries.get(name)
        if known is None or known.mod_revision != pair.mod_revision:
            folder.put(name, pair)

    def _find(self, key: bytes) -> tuple[Folder[Any], str] | None:
        """The folder of a key, and its name there."""
        for root, folder in self._folders.items():
            if key == root or (root.endswith(b"/") and key.startswith(root)):
                return folder, key.removeprefix(root).decode(errors="replace")
        return None

    def _seen(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        for listener in self.listeners:
            listener()
