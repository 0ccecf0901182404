"""The replicator actor: takes its messages to the logs of this host's guests and to the copies that it keeps."""

from __future__ import annotations

from collections.abc import Awaitable

from everram.actors.replicator.copy_keeper import CopyKeeper
from everram.actors.replicator.guest_log import GuestLog
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import replicator_pb2 as rp
from everram.runtime.contracts.replicator_contract import ReplicatorActor
from everram.runtime.contracts.replicator_pb2 import FollowRequest
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.coordination.resolver import HostResolver
from everram.runtime.errors import DataLoss, NotFound
from everram.runtime.formats.config import HostConfig
from everram.runtime.log.ring import RingCorrupt, log_name
from everram.runtime.memory.guard import PageGuard


class Replicator(ReplicatorActor):
    """Logs followed and copies kept by one host."""

    def __init__(self, config: HostConfig, guard: PageGuard | None = None) -> None:
        self._config = config
        self._guard = guard if guard is not None else PageGuard()
        self._logs: dict[str, GuestLog] = {}  # by guest_id: the guests that this host has
        self._quiet = False

    async def on_start(self) -> None:
        self._resolver = HostResolver(self.context.environment.coordination)
        self._keeper = CopyKeeper(self.context, self._config, self._resolver, self._guard)
        self.context.resources.callback(self._let_go)
        await self._keeper.start()
        await self._follow_again()

    async def _follow_again(self) -> None:
        """An earlier incarnation of this actor, or of this host, may have been told to; nobody tells again."""
        names = self.context.environment.memory.names()
        for guest in (await self.context.ref(VMemFSRef).guests(pb.Empty())).guests:
            if (memory := log_name(guest.guest_id)) in names:
                try:
                    self._follow(guest.guest_id, memory)
                except DataLoss as error:
                    self.context.log.error("%s", error.message)

    def _let_go(self) -> None:
        """Of all memory; no task is left."""
        self._keeper.close()
        for log in self._logs.values():
            log.let_go()

    async def on_stop(self) -> None:
        for guest_id in list(self._logs):
            await self._drop(guest_id)

    # -- guests that run here

    async def follow(self, request: FollowRequest) -> pb.Empty:
        """Start following, or go on: a new incarnation is noticed in the ring itself. A log that was found damaged is
        looked at anew, for it may have been mended."""
        log = self._logs.get(request.guest_id)
        if log is not None and log.corrupt:
            await self._drop(request.guest_id)
        self._follow(request.guest_id, request.log)
        return pb.Empty()

    def _follow(self, guest_id: str, memory: str) -> GuestLog:
        log = self._logs.get(guest_id)
        if log is None:
            try:
                log = self._logs[guest_id] = GuestLog(
                    self.context,
                    self._config,
                    self._keeper.memory_id,
                    guest_id,
                    memory,
                    self._resolver.resolve,
                    quiet=self._quiet,
                )
            except RingCorrupt as error:
                raise DataLoss(f"the log of guest {guest_id} is damaged: {error}") from error
        return log

    async def unfollow(self, request: FollowRequest) -> pb.Empty:
        await self._drop(request.guest_id)
        return pb.Empty()

    async def _drop(self, guest_id: str) -> None:
        log = self._logs.pop(guest_id, None)
        if log is not None:
            await log.close()

    def positions(self, request: FollowRequest) -> pb.LogPositions:
        """Raises NotFound for a guest that is not followed, DataLoss where its log was found damaged."""
        log = self._log(request.guest_id)
        if log.corrupt:
            raise DataLoss(log.corrupt)
        return log.positions()

    def ship(self, request: rp.ShipRequest) -> pb.Empty:
        """Raises NotFound for a guest that is not followed (yet): ask again."""
        self._log(request.guest.guest_id).ship(request)
        return pb.Empty()

    def drain(self, request: rp.DrainRequest) -> Awaitable[pb.LogPositions]:
        return self.context.later(self._drain(request), cancellable=True)

    async def _drain(self, request: rp.DrainRequest) -> pb.LogPositions:
        log = self._log(request.guest_id)
        await log.drained(request.memory_id)
        return log.positions()

    def _log(self, guest_id: str) -> GuestLog:
        log = self._logs.get(guest_id)
        if log is None:
            raise NotFound(f"the log of guest {guest_id} is not followed on this host: start the guest first")
        return log

    # -- copies that are kept here

    def open(self, request: rp.OpenRequest) -> Awaitable[rp.OpenReply]:
        return self.context.later(self._keeper.open(request))

    def complete(self, request: rp.CompleteRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._keeper.complete(request))

    def promise(self, request: rp.PromiseRequest) -> Awaitable[rp.PromiseReply]:
        return self.context.later(self._keeper.promise(request))

    def release(self, request: rp.GuestCopy) -> Awaitable[pb.Empty]:
        return self.context.later(self._keeper.release(request))

    def copies(self, request: pb.Empty) -> rp.CopyList:
        return self._keeper.listed()

    def quiesce(self, request: rp.QuiesceRequest) -> Awaitable[pb.Empty]:
        return self.context.later(self._quiesce(request.on))

    async def _quiesce(self, on: bool) -> pb.Empty:
        self._quiet = on
        for log in list(self._logs.values()):
            await log.quiesce(on)
        return await self._keeper.quiesce(on)

    def hand_over(self, request: rp.GuestCopy) -> Awaitable[rp.HandedOver]:
        return self.context.later(self._keeper.hand_over(request.guest_id))
