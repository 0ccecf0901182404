"""The pages of an image on their way to the disk: runs one after the other, gathered into large writes.

    stream = PageStream(file, start)
    await stream.add((number, offset), data)         # waits only when enough writes are under way
    for place, length, at, crc32 in await stream.settle(): ...    # all of them, and durable

A disk is as fast as it can be only with some megabytes under way at any time, and scattered pages must not cost a write
each. Checksums are taken by the disk's thread, beside the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from everram.runtime.environment import DiskFile

BATCH_BYTES = 4 << 20
UNDER_WAY = 3
"""Batches at once: one is written, one is summed, one waits for its turn."""


class Written(NamedTuple):
    """A run that is in the file."""

    place: tuple[int, int]
    """(object, offset in it)."""
    length: int
    at: int
    crc32: int


class PageStream:
    """Appends to `file` from offset `start`. Whoever settles or closes it waits for what is under way."""

    def __init__(self, file: DiskFile, start: int) -> None:
        self._file = file
        self.end = start
        self._batch_at = start
        self._batch: list[tuple[tuple[int, int], bytes | memoryview]] = []
        self._under_way: deque[asyncio.Task[list[Written]]] = deque()
        self._written: list[Written] = []

    async def add(self, place: tuple[int, int], data: bytes | memoryview) -> None:
        """Raises ResourceExhausted or DataLoss if this or an earlier run cannot be written."""
        self._batch.append((place, data))
        self.end += len(data)
        if self.end - self._batch_at >= BATCH_BYTES:
            await self._send()

    async def settle(self) -> list[Written]:
        """Make all runs durable; those since the last call, in the order of the file. Raises like `add`."""
        if self._batch:
            await self._send()
        while self._under_way:
            await self._take_oldest()
        await self._file.sync()
        written, self._written = self._written, []
        return written

    async def close(self) -> None:
        """Give up what is not settled."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        await self._file.close()

    async def _send(self) -> None:
        if len(self._under_way) == UNDER_WAY:
            await self._take_oldest()
        work = self._write(self._batch_at, self._batch)
        self._under_way.append(asyncio.get_running_loop().create_task(work, name=f"pages:{self._batch_at}"))
        self._batch_at, self._batch = self.end, []

    async def _take_oldest(self) -> None:
        self._written += await self._under_way.popleft()

    async def _write(self, at: int, batch: list[tuple[tuple[int, int], bytes | memoryview]]) -> list[Written]:
        written: list[Written] = []
        for (place, data), crc32 in zip(
            batch, await self._file.pwrite_all(at, [data for _, data in batch]), strict=True
        ):
            written.append(Written(place, len(data), at, crc32))
            at += len(data)
        return written
