"""Generated from proto/replicator.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, replicator_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


REPLICATOR_FOLLOW = Method("everram.v1.Replicator", "Follow", replicator_pb2.FollowRequest, common_pb2.Empty)
REPLICATOR_UNFOLLOW = Method("everram.v1.Replicator", "Unfollow", replicator_pb2.FollowRequest, common_pb2.Empty)
REPLICATOR_POSITIONS = Method("everram.v1.Replicator", "Positions", replicator_pb2.FollowRequest, common_pb2.LogPositions)
REPLICATOR_SHIP = Method("everram.v1.Replicator", "Ship", replicator_pb2.ShipRequest, common_pb2.Empty)
REPLICATOR_DRAIN = Method("everram.v1.Replicator", "Drain", replicator_pb2.DrainRequest, common_pb2.LogPositions)
REPLICATOR_OPEN = Method("everram.v1.Replicator", "Open", replicator_pb2.OpenRequest, replicator_pb2.OpenReply)
REPLICATOR_COMPLETE = Method("everram.v1.Replicator", "Complete", replicator_pb2.CompleteRequest, common_pb2.Empty)
REPLICATOR_PROMISE = Method("everram.v1.Replicator", "Promise", replicator_pb2.PromiseRequest, replicator_pb2.PromiseReply)
REPLICATOR_RELEASE = Method("everram.v1.Replicator", "Release", replicator_pb2.GuestCopy, common_pb2.Empty)
REPLICATOR_COPIES = Method("everram.v1.Replicator", "Copies", common_pb2.Empty, replicator_pb2.CopyList)
REPLICATOR_QUIESCE = Method("everram.v1.Replicator", "Quiesce", replicator_pb2.QuiesceRequest, common_pb2.Empty)
REPLICATOR_HAND_OVER = Method("everram.v1.Replicator", "HandOver", replicator_pb2.GuestCopy, replicator_pb2.HandedOver)
REPLICATOR = Contract("everram.v1.Replicator", (REPLICATOR_FOLLOW, REPLICATOR_UNFOLLOW, REPLICATOR_POSITIONS, REPLICATOR_SHIP, REPLICATOR_DRAIN, REPLICATOR_OPEN, REPLICATOR_COMPLETE, REPLICATOR_PROMISE, REPLICATOR_RELEASE, REPLICATOR_COPIES, REPLICATOR_QUIESCE, REPLICATOR_HAND_OVER,))


class ReplicatorRef(Ref):
    """Asks a Replicator actor, wherever it is."""

    contract = REPLICATOR

    def follow(
        self, request: replicator_pb2.FollowRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_FOLLOW, request, timeout_s)

    def unfollow(
        self, request: replicator_pb2.FollowRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_UNFOLLOW, request, timeout_s)

    def positions(
        self, request: replicator_pb2.FollowRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.LogPositions]:
        return self.ask(REPLICATOR_POSITIONS, request, timeout_s)

    def ship(
        self, request: replicator_pb2.ShipRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_SHIP, request, timeout_s)

    def drain(
        self, request: replicator_pb2.DrainRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.LogPositions]:
        return self.ask(REPLICATOR_DRAIN, request, timeout_s)

    def open(
        self, request: replicator_pb2.OpenRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, replicator_pb2.OpenReply]:
        return self.ask(REPLICATOR_OPEN, request, timeout_s)

    def complete(
        self, request: replicator_pb2.CompleteRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_COMPLETE, request, timeout_s)

    def promise(
        self, request: replicator_pb2.PromiseRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, replicator_pb2.PromiseReply]:
        return self.ask(REPLICATOR_PROMISE, request, timeout_s)

    def release(
        self, request: replicator_pb2.GuestCopy, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_RELEASE, request, timeout_s)

    def copies(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, replicator_pb2.CopyList]:
        return self.ask(REPLICATOR_COPIES, request, timeout_s)

    def quiesce(
        self, request: replicator_pb2.QuiesceRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(REPLICATOR_QUIESCE, request, timeout_s)

    def hand_over(
        self, request: replicator_pb2.GuestCopy, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, replicator_pb2.HandedOver]:
        return self.ask(REPLICATOR_HAND_OVER, request, timeout_s)


class ReplicatorActor(Actor):
    """Answers the Replicator contract: override every method."""

    contract = REPLICATOR

    def follow(self, request: replicator_pb2.FollowRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def unfollow(self, request: replicator_pb2.FollowRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def positions(self, request: replicator_pb2.FollowRequest) -> common_pb2.LogPositions | Awaitable[common_pb2.LogPositions]:
        raise NotImplementedError

    def ship(self, request: replicator_pb2.ShipRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def drain(self, request: replicator_pb2.DrainRequest) -> common_pb2.LogPositions | Awaitable[common_pb2.LogPositions]:
        raise NotImplementedError

    def open(self, request: replicator_pb2.OpenRequest) -> replicator_pb2.OpenReply | Awaitable[replicator_pb2.OpenReply]:
        raise NotImplementedError

    def complete(self, request: replicator_pb2.CompleteRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def promise(self, request: replicator_pb2.PromiseRequest) -> replicator_pb2.PromiseReply | Awaitable[replicator_pb2.PromiseReply]:
        raise NotImplementedError

    def release(self, request: replicator_pb2.GuestCopy) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def copies(self, request: common_pb2.Empty) -> replicator_pb2.CopyList | Awaitable[replicator_pb2.CopyList]:
        raise NotImplementedError

    def quiesce(self, request: replicator_pb2.QuiesceRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def hand_over(self, request: replicator_pb2.GuestCopy) -> replicator_pb2.HandedOver | Awaitable[replicator_pb2.HandedOver]:
        raise NotImplementedError
