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
REPLICATOR = Contract("everram.v1.Replicator", (REPLICATOR_FOLLOW, REPLICATOR_UNFOLLOW, REPLICATOR_POSITIONS,))


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


class ReplicatorActor(Actor):
    """Answers the Replicator contract: override every method."""

    contract = REPLICATOR

    def follow(self, request: replicator_pb2.FollowRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def unfollow(self, request: replicator_pb2.FollowRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def positions(self, request: replicator_pb2.FollowRequest) -> common_pb2.LogPositions | Awaitable[common_pb2.LogPositions]:
        raise NotImplementedError
