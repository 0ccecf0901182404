"""The replicator actor: one follower a guest, each an owned task.

In this version it verifies what guests commit and tells their positions; shipping to other hosts stands on it.
"""

from __future__ import annotations

import asyncio

from everram.actors.replicator.follower import Follower
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.replicator_contract import ReplicatorActor
from everram.runtime.contracts.replicator_pb2 import FollowRequest
from everram.runtime.errors import DataLoss, NotFound
from everram.runtime.log.ring import Ring, RingCorrupt
from everram.runtime.memory.contract import Mapping


class _Followed:
    """A guest's follower with what it holds open."""

    def __init__(self, follower: Follower, mapping: Mapping, task: asyncio.Task[None] | None = None) -> None:
        self.follower = follower
        self.mapping = mapping
        self.task = task
        self.corrupt = ""

    def close(self) -> None:
        self.follower.doorbell.close()
        self.mapping.close()


class Replicator(ReplicatorActor):
    """Follows the log rings of this host's guests."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    async def on_stop(self) -> None:
        for guest_id in list(self._followed):
            await self._drop(guest_id)

    def follow(self, request: FollowRequest) -> pb.Empty:
        """Start following, or go on: a new incarnation is noticed in the ring itself."""
        if request.guest_id not in self._followed:
            environment = self.context.environment
            mapping = environment.memory.open(request.log).map()
            follower = Follower(Ring.open(mapping), environment.doorbell(request.guest_id))
            followed = self._followed[request.guest_id] = _Followed(follower, mapping)
            followed.task = self.context.spawn(self._run(request.guest_id, followed), name=f"log {request.guest_id}")
        return pb.Empty()

    async def unfollow(self, request: FollowRequest) -> pb.Empty:
        await self._drop(request.guest_id)
        return pb.Empty()

    def positions(self, request: FollowRequest) -> pb.LogPositions:
        """Raises NotFound for a guest that is not followed, DataLoss where its log was found damaged."""
        followed = self._followed.get(request.guest_id)
        if followed is None:
            raise NotFound(f"the log of guest {request.guest_id} is not followed on this host: start the guest first")
        if followed.corrupt:
            raise DataLoss(followed.corrupt)
        ring = followed.follower.ring
        return pb.LogPositions(
            epoch=ring.epoch,
            tail=ring.tail,
            applied=ring.applied,
            freed=ring.freed,
            verified=followed.follower.verified,
            capacity_bytes=ring.capacity_bytes,
        )

    async def _run(self, guest_id: str, followed: _Followed) -> None:
        try:
            while True:
                if followed.follower.step():
                    await asyncio.sleep(0)  # one run a turn: others on this loop come first
                else:
                    await followed.follower.rest()
        except RingCorrupt as error:
            # The guest's own checks decide about the guest; here the log is no longer taken for good, and says so.
            followed.corrupt = f"the log of guest {guest_id} is damaged: {error}"
            self.context.log.error("%s", followed.corrupt)

    async def _drop(self, guest_id: str) -> None:
        followed = self._followed.pop(guest_id, None)
        if followed is None:
            return
        if followed.task is not None:
            followed.task.cancel()
            await asyncio.wait([followed.task])
        followed.close()
