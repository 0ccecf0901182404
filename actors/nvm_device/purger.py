"""Purging as it goes on in the background: when, how fast, and what to do when storage does not take it.

    purger.starved()                    # a writer waits for a block
    purger.control(PurgeControl(rate_bytes_per_s=50 << 20))
    await purger.purge(record_filter)   # everything now, whatever the policy
    await purger.make_room()            # at least one batch

By marks: below the low mark old blocks are purged until the high mark is reached. By age: what snapshots of an age
refer to. On demand: by `purge`. A pause stops all of them, writers that wait included, and a rate slows all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from everram.actors.nvm_device import purging
from everram.actors.nvm_device.budget import Budget
from everram.actors.nvm_device.purging import Batch, Purge, everything
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.storage import StorageFile
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.nvm_device_pb2 import PurgeControl, PurgeStatus
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES

LOW_MARK, HIGH_MARK = 0.1, 0.2
"""Parts of the device that are free."""
AGES_PER_LOOK = 4
"""A block is purged at the latest a quarter of the age after it has reached it."""
LOOK_S_MAX = 60.0
RETRY_S = 1.0
"""After storage did not take a batch, while writers wait for it."""


class Purger:
    """See the module. `storage` opens the storage file; `moving`: held during each batch; `room_again`: told after."""

    def __init__(
        self,
        context: ActorContext,
        snapshots: Snapshots,
        storage: Callable[[], Awaitable[StorageFile]],
        moving: asyncio.Lock,
        budget: Budget,
        room_again: Callable[[], None],
    ) -> None:
        self._context, self._clock = context, context.environment.clock
        self._snapshots, self._storage, self._moving = snapshots, storage, moving
        self._budget, self._room_again = budget, room_again
        self._policy = PurgeStatus(low_mark=LOW_MARK, high_mark=HIGH_MARK)
        self._woken = asyncio.Event()
        self._starved = False
        self._running = 0
        self._going = asyncio.Event()
        self._going.set()

    # -- policy

    def control(self, request: PurgeControl) -> PurgeStatus:
        """Raises InvalidArgument, and then nothing has changed."""
        policy = PurgeStatus()
        policy.CopyFrom(self._policy)
        for field in ("paused", "rate_bytes_per_s", "low_mark", "high_mark", "age_s"):
            if request.HasField(field):
                setattr(policy, field, getattr(request, field))
        if not 0 <= policy.low_mark <= policy.high_mark <= 1:
            raise InvalidArgument(
                f"marks of {policy.low_mark:g} and {policy.high_mark:g} cannot be: both are parts of the device, from "
                "0 to 1, and the low one is at most the high one"
            )
        if policy.age_s < 0:
            raise InvalidArgument(f"an age of {policy.age_s:g} s cannot be")
        self._policy = policy
        if policy.paused:
            self._going.clear()
        else:
            self._going.set()
        self._woken.set()
        return self.status()

    def status(self) -> PurgeStatus:
        status = PurgeStatus()
        status.CopyFrom(self._policy)
        status.running = self._running > 0 and not status.paused
        status.purgeable_bytes = self._snapshots.media.store.taken * PAGE_BYTES
        status.entry_updates = self._snapshots.entry_updates
        return status

    def starved(self) -> None:
        """A writer waits for a block."""
        self._starved = True
        self._woken.set()

    def written(self) -> None:
        """One more block was taken."""
        if self._budget.free_part < self._policy.low_mark:
            self._woken.set()

    async def run(self) -> None:
        """Keep to the policy, for ever."""
        while True:
            age_s = self._policy.age_s
            look_s = min(LOOK_S_MAX, age_s / AGES_PER_LOOK) if age_s else None
            try:
                async with asyncio.timeout(look_s):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self._keep_to_policy()

    async def _keep_to_policy(self) -> None:
        try:
            if self._starved or self._budget.free_part < self._policy.low_mark:
                for batch in purging.batches(self._snapshots):
                    await self._purge(batch)
                    self._starved = False
                    if self._budget.free_part >= self._policy.high_mark:
                        break
            if age_s := self._policy.age_s:
                await self.purge(self.older_than(age_s))
        except EverramError as error:
            if error.message != self._policy.trouble:
                self._context.log.error("old blocks are not purged: %s", error.message)
            self._policy.trouble = error.message
        if self._starved and self._policy.trouble:
            await asyncio.sleep(RETRY_S)  # storage may have room by then: a person, or a deletion, makes it
            self._woken.set()

    def older_than(self, age_s: float) -> Callable[[Record], bool]:
        until_ns = self._clock.wall_ns() - int(age_s * 1e9)
        return lambda record: record.created_ns <= until_ns

    # -- work

    async def purge(self, wanted: Callable[[Record], bool] = everything) -> None:
        """All that these snapshots refer to and no running point does. Raises ResourceExhausted, DataLoss."""
        for batch in self._batches(wanted):
            await self._purge(batch)

    async def make_room(self) -> None:
        """Raises ResourceExhausted where nothing can be purged."""
        batch = next(self._batches(everything), None)
        if batch is None:
            raise ResourceExhausted(
                "there is no room for what snapshots need of pages that are written to, and nothing to purge: remove "
                "snapshots, or start the machine with more --nvm"
            )
        await self._purge(batch)

    async def purge_batch(self) -> None:
        """As `make_room`, by whoever holds the lock."""
        batch = next(self._batches(everything), None)
        if batch is None:
            raise FailedPrecondition("nothing can be purged to make room: remove snapshots")
        await self._move(batch)

    def _batches(self, wanted: Callable[[Record], bool]) -> Iterator[Batch]:
        return purging.batches(self._snapshots, wanted=wanted)

    async def _purge(self, batch: Batch) -> None:
        await self._going.wait()
        began_ns = self._clock.now_ns()
        self._running += 1
        try:
            async with self._moving:
                await self._move(batch)
        finally:
            self._running -= 1
        self._room_again()
        if rate := self._policy.rate_bytes_per_s:
            took_s = (self._clock.now_ns() - began_ns) / 1e9
            await asyncio.sleep(max(0.0, len(batch) * PAGE_BYTES / rate - took_s))

    async def _move(self, batch: Batch) -> None:
        """Copy, flush, one update each, free. Raises ResourceExhausted, DataLoss; then all is as before."""
        storage = await self._storage()
        purge = Purge.begin(self._snapshots, batch)
        try:
            await storage.write(purge.slots, purge.virtblocks, purge.load)
            await storage.sync()
        except BaseException:
            purge.abandon()
            raise
        purge.publish()
        purge.end()
        self._policy.purged_bytes += len(purge.slots) * PAGE_BYTES
        self._policy.trouble = ""
