"""Generated from proto/availability.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import availability_pb2, common_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


AVAILABILITY_LEAVE = Method("everram.v1.Availability", "Leave", common_pb2.Empty, common_pb2.Empty)
AVAILABILITY_REACHED = Method("everram.v1.Availability", "Reached", availability_pb2.GuestKey, availability_pb2.ReachedGuest)
AVAILABILITY_REGISTER = Method("everram.v1.Availability", "Register", availability_pb2.Registration, common_pb2.Empty)
AVAILABILITY_GIVE_BACK = Method("everram.v1.Availability", "GiveBack", availability_pb2.GuestKey, common_pb2.Empty)
AVAILABILITY_DISOWN = Method("everram.v1.Availability", "Disown", availability_pb2.GuestKey, common_pb2.Empty)
AVAILABILITY_FORGET = Method("everram.v1.Availability", "Forget", availability_pb2.GuestKey, common_pb2.Empty)
AVAILABILITY_SET_MEMBERS = Method("everram.v1.Availability", "SetMembers", availability_pb2.Members, common_pb2.Empty)
AVAILABILITY_AIM = Method("everram.v1.Availability", "Aim", availability_pb2.AimRequest, common_pb2.Empty)
AVAILABILITY_HAND_TO = Method("everram.v1.Availability", "HandTo", availability_pb2.HandToRequest, common_pb2.Empty)
AVAILABILITY_HOLD = Method("everram.v1.Availability", "Hold", availability_pb2.HoldRequest, common_pb2.Empty)
AVAILABILITY_END_HOLDS = Method("everram.v1.Availability", "EndHolds", common_pb2.Empty, common_pb2.Empty)
AVAILABILITY_GO_ON = Method("everram.v1.Availability", "GoOn", availability_pb2.GuestKey, common_pb2.Empty)
AVAILABILITY_LIMIT = Method("everram.v1.Availability", "Limit", availability_pb2.GuestLimits, common_pb2.Empty)
AVAILABILITY_NOTE_MEMORY = Method("everram.v1.Availability", "NoteMemory", availability_pb2.MemoryFigures, common_pb2.Empty)
AVAILABILITY_STATUS = Method("everram.v1.Availability", "Status", common_pb2.Empty, availability_pb2.LeaseStatus)
AVAILABILITY = Contract("everram.v1.Availability", (AVAILABILITY_LEAVE, AVAILABILITY_REACHED, AVAILABILITY_REGISTER, AVAILABILITY_GIVE_BACK, AVAILABILITY_DISOWN, AVAILABILITY_FORGET, AVAILABILITY_SET_MEMBERS, AVAILABILITY_AIM, AVAILABILITY_HAND_TO, AVAILABILITY_HOLD, AVAILABILITY_END_HOLDS, AVAILABILITY_GO_ON, AVAILABILITY_LIMIT, AVAILABILITY_NOTE_MEMORY, AVAILABILITY_STATUS,))


class AvailabilityRef(Ref):
    """Asks a Availability actor, wherever it is."""

    contract = AVAILABILITY

    def leave(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_LEAVE, request, timeout_s)

    def reached(
        self, request: availability_pb2.GuestKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, availability_pb2.ReachedGuest]:
        return self.ask(AVAILABILITY_REACHED, request, timeout_s)

    def register(
        self, request: availability_pb2.Registration, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_REGISTER, request, timeout_s)

    def give_back(
        self, request: availability_pb2.GuestKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_GIVE_BACK, request, timeout_s)

    def disown(
        self, request: availability_pb2.GuestKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_DISOWN, request, timeout_s)

    def forget(
        self, request: availability_pb2.GuestKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_FORGET, request, timeout_s)

    def set_members(
        self, request: availability_pb2.Members, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_SET_MEMBERS, request, timeout_s)

    def aim(
        self, request: availability_pb2.AimRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_AIM, request, timeout_s)

    def hand_to(
        self, request: availability_pb2.HandToRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_HAND_TO, request, timeout_s)

    def hold(
        self, request: availability_pb2.HoldRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_HOLD, request, timeout_s)

    def end_holds(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_END_HOLDS, request, timeout_s)

    def go_on(
        self, request: availability_pb2.GuestKey, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_GO_ON, request, timeout_s)

    def limit(
        self, request: availability_pb2.GuestLimits, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_LIMIT, request, timeout_s)

    def note_memory(
        self, request: availability_pb2.MemoryFigures, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(AVAILABILITY_NOTE_MEMORY, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, availability_pb2.LeaseStatus]:
        return self.ask(AVAILABILITY_STATUS, request, timeout_s)


class AvailabilityActor(Actor):
    """Answers the Availability contract: override every method."""

    contract = AVAILABILITY

    def leave(self, request: common_pb2.Empty) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def reached(self, request: availability_pb2.GuestKey) -> availability_pb2.ReachedGuest | Awaitable[availability_pb2.ReachedGuest]:
        raise NotImplementedError

    def register(self, request: availability_pb2.Registration) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def give_back(self, request: availability_pb2.GuestKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def disown(self, request: availability_pb2.GuestKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def forget(self, request: availability_pb2.GuestKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def set_members(self, request: availability_pb2.Members) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def aim(self, request: availability_pb2.AimRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def hand_to(self, request: availability_pb2.HandToRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def hold(self, request: availability_pb2.HoldRequest) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def end_holds(self, request: common_pb2.Empty) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def go_on(self, request: availability_pb2.GuestKey) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def limit(self, request: availability_pb2.GuestLimits) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def note_memory(self, request: availability_pb2.MemoryFigures) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> availability_pb2.LeaseStatus | Awaitable[availability_pb2.LeaseStatus]:
        raise NotImplementedError
