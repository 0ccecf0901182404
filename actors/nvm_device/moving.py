"""Old blocks on their way to storage: copy, flush, one update each, free, in a pipeline of two batches.

    async for moved in move(snapshots, storage, batches): ...    # blocks that a batch has moved

While one batch is on its way to the disk and made durable, the next is found, loaded and checksummed, and the one
before is published. Each takes its own steps strictly one after the other: what overlaps are steps of different
batches, which have nothing in common. A batch larger than what is left of storage is moved as far as it goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from itertools import islice

from everram.actors.nvm_device.purging import Batch, Purge
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.storage import StorageFile
from everram.runtime.errors import EverramError

BATCHES_UNDER_WAY = 2


async def move(snapshots: Snapshots, storage: StorageFile, batches: Iterable[Batch]) -> AsyncGenerator[int, None]:
    """Nothing may be deleted or reverted meanwhile. Raises ResourceExhausted, DataLoss once it has told of all that was
    moved nevertheless. Whoever does not go on to its end has to close it (`contextlib.aclosing`)."""
    moving: deque[asyncio.Task[int]] = deque()
    trouble: EverramError | None = None

    async def first_moved() -> int:
        nonlocal trouble
        try:
            return await moving.popleft()
        except EverramError as error:
            trouble = trouble or error
            return 0

    try:
        for batch in batches:
            if not batch:
                await asyncio.sleep(0)
                continue
            left = batch
            while left and trouble is None:
                places = snapshots.media.storage.free
                while moving and (not places or len(moving) == BATCHES_UNDER_WAY):
                    if moved := await first_moved():
                        yield moved
                some = dict(islice(left.items(), max(1, places)))  # where there is no place at all, one says so
                left = dict(islice(left.items(), len(some), None))
                try:
                    moving.append(asyncio.create_task(_move(Purge.begin(snapshots, some), storage)))
                except EverramError as error:
                    trouble = error
                await asyncio.sleep(0)
            if trouble is not None:
                break
        while moving:
            if moved := await first_moved():
                yield moved
    finally:
        await asyncio.gather(*moving, return_exceptions=True)
    if trouble is not None:
        raise trouble


async def _move(purge: Purge, storage: StorageFile) -> int:
    try:
        await storage.write(purge.slots, purge.virtblocks, purge.load)
        await storage.sync()
    except BaseException:
        purge.abandon()
        raise
    purge.publish()
    purge.end()
    return len(purge.slots)
