"""Old blocks on their way to storage: copy, flush, one update each, free, in a pipeline of two batches.

    async for moved in move(snapshots, storage, batches): ...    # blocks that a batch has moved

While one batch is on its way to the disk and made durable, the next is found, loaded and checksummed, and the one
before is published. Each takes its own steps strictly one after the other: what overlaps are steps of different
batches, which have nothing in common. A batch larger than what is left of storage is moved as far as it goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice

from everram.actors.nvm_device.purging import Batch, Purge
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.storage import StorageFile

BATCHES_UNDER_WAY = 2


async def move(snapshots: Snapshots, storage: StorageFile, batches: Iterable[Batch]) -> AsyncIterator[int]:
    """Nothing may be deleted or reverted meanwhile. Raises ResourceExhausted, DataLoss; then all is as before, but for
    the batches that were told. To be run to its end."""
    moving: deque[asyncio.Task[int]] = deque()
    try:
        for batch in batches:
            if not batch:
                await asyncio.sleep(0)
            left = batch
            while left:
                places = snapshots.media.storage.free
                while moving and (not places or len(moving) == BATCHES_UNDER_WAY):
                    yield await moving.popleft()
                some = dict(islice(left.items(), max(1, places)))  # where there is no place at all, one says so
                left = dict(islice(left.items(), len(some), None))
                moving.append(asyncio.create_task(_move(Purge.begin(snapshots, some), storage)))
                await asyncio.sleep(0)
        while moving:
            yield await moving.popleft()
    finally:
        await asyncio.gather(*moving, return_exceptions=True)


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
