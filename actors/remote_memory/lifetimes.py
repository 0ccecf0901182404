"""Files that live only as long as whoever created them: a client's session here, or a guest.

The directory has a key for each under the host that keeps it (`created/HOST/CREATOR/ID`), so a host that starts again
knows them: sessions ended with its predecessor, and guests are waited for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import cast

from everram.runtime.coordination.api import Coordination, Range, WatchBatch, prefix
from everram.runtime.coordination.directory import guest_key
from everram.runtime.coordination.file_directory import created_prefix
from everram.runtime.errors import EverramError, InvalidArgument

SESSION, GUEST = "session", "guest:"
CLIENT = "client:"
RETRY_S = 0.5
"""While coordination does not answer."""


class Lifetimes:
    """`remove` unlinks a file by its id, and raises only what may be tried again; `spawn` runs a task of the agent."""

    def __init__(
        self,
        host: str,
        coordination: Coordination,
        remove: Callable[[str], Awaitable[None]],
        spawn: Callable[..., object],
    ) -> None:
        self._host, self._coordination, self._remove, self._spawn = host, coordination, remove, spawn
        self._watched: set[str] = set()  # guest_ids

    def creator_of(self, wanted: str, session: str) -> str:
        """The creator to write into an inode: `wanted` as in OpenFileRequest. Raises InvalidArgument."""
        if wanted == SESSION:
            return f"{CLIENT}{self._host}:{session}"
        if wanted and not (wanted.startswith(GUEST) and "/" not in wanted):
            raise InvalidArgument(f"{wanted!r}: a file lives with 'session' or 'guest:GUEST_ID' (EINVAL)")
        return wanted

    def created(self, creator: str) -> None:
        """A file of this creator exists from now on. If that has ended already, it goes at once."""
        if creator.startswith(GUEST):
            self._watch(creator.removeprefix(GUEST))

    async def resume(self, living: Callable[[], Iterable[str]]) -> None:
        """Once, after the start of this host's agent; `living`: the sessions that have begun since."""
        left = prefix(created_prefix(self._host))
        _, pairs = await self._coordination.range(left)
        for pair in pairs:
            creator, _, file_id = pair.key.removeprefix(left.key).decode().rpartition("/")
            if creator.startswith(GUEST):
                self._watch(creator.removeprefix(GUEST))
            elif creator.rpartition(":")[2] not in living():
                await self._remove(file_id)

    async def end(self, creator: str) -> None:
        """Whatever lives with it goes. Tries again until coordination answers."""
        files = prefix(created_prefix(self._host) + creator.encode() + b"/")
        while True:
            try:
                for pair in (await self._coordination.range(files))[1]:
                    await self._remove(pair.key.removeprefix(files.key).decode())
                return
            except EverramError:
                await asyncio.sleep(RETRY_S)

    def _watch(self, guest_id: str) -> None:
        if guest_id not in self._watched:
            self._watched.add(guest_id)
            self._spawn(self._wait_for(guest_id), name=f"life of {guest_id}")

    async def _wait_for(self, guest_id: str) -> None:
        """Until the guest is removed."""
        key = Range(guest_key(guest_id))
        while True:
            try:
                revision, found = await self._coordination.range(key)
                if not found:
                    break
                watch = cast(AsyncGenerator[WatchBatch, None], self._coordination.watch(key, revision + 1))
                async with aclosing(watch) as batches:
                    async for batch in batches:
                        if any(event.deleted for event in batch.events):
                            break
            except EverramError:
                await asyncio.sleep(RETRY_S)
        self._watched.discard(guest_id)
        await self.end(GUEST + guest_id)
