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
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from itertools import islice

from everram.actors.nvm_device import moving, purging
from everram.actors.nvm_device.budget import Budget
from everram.actors.nvm_device.purging import Batch, everything
from everram.actors.nvm_device.records import Record
from everram.actors.nvm_device.snapshots import Snapshots
from everram.actors.nvm_device.storage import StorageFile
from everram.runtime.actor import ActorContext
from everram.runtime.contracts.nvm_device_pb2 import PurgeControl, PurgeStatus
from everram.runtime.environment import Clock
from everram.runtime.errors import EverramError, FailedPrecondition, InvalidArgument, ResourceExhausted
from everram.runtime.memory.contract import PAGE_BYTES

LOW_MARK, HIGH_MARK = 0.1, 0.2
"""Parts of the device that are free."""
AGES_PER_LOOK = 4
"""A block is purged at the latest a quarter of the age after it has reached it."""
LOOK_S_MAX = 60.0
TURN_S = 0.1
"""For which deletions and reversions have to wait, and a little longer."""
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

    def room_made(self) -> None:
        """Writers are about to ask again: whoever still has to wait says so anew."""
        self._starved = False
        if self._policy.trouble:
            self._woken.set()  # perhaps nothing has to be purged any more

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
                await self._purge(self._until_high_mark())
            if age_s := self._policy.age_s:
                await self.purge(self.older_than(age_s))
            self._policy.trouble = ""
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
        await self._purge(purging.search(self._snapshots, wanted=wanted))

    async def make_room(self) -> None:
        """Raises ResourceExhausted where nothing can be purged."""
        batch = await self._first_batch()
        if batch is None:
            raise ResourceExhausted(
                "there is no room for what snapshots need of pages that are written to, and nothing to purge: remove "
                "snapshots, or start the machine with more --nvm"
            )
        if self._policy.paused:
            raise ResourceExhausted(
                "there is no room for what snapshots need of pages that are written to, and purging is paused: "
                "`everram region purge --resume`, or remove snapshots"
            )
        await self._purge(iter([batch]), once=True)

    async def purge_batch(self) -> None:
        """As `make_room`, by whoever holds the lock."""
        batch = await self._first_batch()
        if batch is None:
            raise FailedPrecondition("nothing can be purged to make room: remove snapshots")
        # So much as storage takes: it is enough for whoever asks, who would be told of the rest.
        await self._move([dict(islice(batch.items(), max(1, self._snapshots.media.storage.free)))])

    async def _first_batch(self) -> Batch | None:
        for batch in purging.search(self._snapshots):
            if batch:
                return batch
            await asyncio.sleep(0)
        return None

    def _until_high_mark(self) -> Iterator[Batch]:
        for batch in purging.search(self._snapshots):
            yield batch
            if batch and self._budget.free_part >= self._policy.high_mark and not self._starved:
                return

    async def _purge(self, batches: Iterator[Batch], *, once: bool = False) -> None:
        """A turn after the other, or only `once`, as the policy has it. Raises ResourceExhausted where storage does not
        take all of it, after it has taken what it can."""
        ended = False
        while not ended:
            await self._going.wait()
            turn = Turn(batches, self._clock, lambda: self._policy.paused or bool(self._policy.rate_bytes_per_s))
            self._running += 1
            try:
                async with self._moving:
                    moved_bytes = await self._move(turn)
            finally:
                self._running -= 1
            ended = once or turn.is_last
            if rate := self._policy.rate_bytes_per_s:
                await asyncio.sleep(max(0.0, moved_bytes / rate - turn.took_s))

    async def _move(self, batches: Iterable[Batch]) -> int:
        """Copy, flush, one update each, free: how many bytes. Raises ResourceExhausted, DataLoss; then what was not
        moved is as before."""
        moved_bytes = 0
        async with aclosing(moving.move(self._snapshots, await self._storage(), batches)) as moves:
            async for moved in moves:
                moved_bytes += moved * PAGE_BYTES
                self._policy.purged_bytes += moved * PAGE_BYTES
                self._policy.trouble = ""
                self._room_again()
        return moved_bytes


class Turn:
    """As many batches as are moved before others, who wait to delete or revert something, have their turn."""

    def __init__(self, batches: Iterator[Batch], clock: Clock, only_one: Callable[[], bool]) -> None:
        self._batches, self._clock, self._only_one = batches, clock, only_one
        self._began_ns = clock.now_ns()
        self.is_last = False

    @property
    def took_s(self) -> float:
        return (self._clock.now_ns() - self._began_ns) / 1e9

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield batch
            if batch and (self._only_one() or self.took_s >= TURN_S):
                return
        self.is_last = True
