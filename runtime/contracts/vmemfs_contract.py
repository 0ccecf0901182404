"""Generated from proto/vmemfs.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, replicator_pb2, vmemfs_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


VMEMFS_PUT_GUEST = Method("everram.v1.VMemFS", "PutGuest", common_pb2.Guest, vmemfs_pb2.Generation)
VMEMFS_REMOVE_GUEST = Method("everram.v1.VMemFS", "RemoveGuest", vmemfs_pb2.GuestId, vmemfs_pb2.Generation)
VMEMFS_GUESTS = Method("everram.v1.VMemFS", "Guests", common_pb2.Empty, vmemfs_pb2.StoredGuests)
VMEMFS_PUT_COPY = Method("everram.v1.VMemFS", "PutCopy", replicator_pb2.Copy, vmemfs_pb2.Generation)
VMEMFS_REMOVE_COPY = Method("everram.v1.VMemFS", "RemoveCopy", replicator_pb2.GuestCopy, vmemfs_pb2.Generation)
VMEMFS_COPIES = Method("everram.v1.VMemFS", "Copies", common_pb2.Empty, replicator_pb2.CopyList)
VMEMFS_PUT_HOST = Method("everram.v1.VMemFS", "PutHost", vmemfs_pb2.HostRecord, vmemfs_pb2.Generation)
VMEMFS_GET_HOST = Method("everram.v1.VMemFS", "GetHost", common_pb2.Empty, vmemfs_pb2.HostRecord)
VMEMFS_STATUS = Method("everram.v1.VMemFS", "Status", common_pb2.Empty, vmemfs_pb2.VMemFSStatus)
VMEMFS_ROLLBACK = Method("everram.v1.VMemFS", "Rollback", vmemfs_pb2.RollbackRequest, vmemfs_pb2.RollbackReport)
VMEMFS_WRITE_LATEST = Method("everram.v1.VMemFS", "WriteLatest", common_pb2.Empty, vmemfs_pb2.Generation)
VMEMFS = Contract("everram.v1.VMemFS", (VMEMFS_PUT_GUEST, VMEMFS_REMOVE_GUEST, VMEMFS_GUESTS, VMEMFS_PUT_COPY, VMEMFS_REMOVE_COPY, VMEMFS_COPIES, VMEMFS_PUT_HOST, VMEMFS_GET_HOST, VMEMFS_STATUS, VMEMFS_ROLLBACK, VMEMFS_WRITE_LATEST,))


class VMemFSRef(Ref):
    """Asks a VMemFS actor, wherever it is."""

    contract = VMEMFS

    def put_guest(
        self, request: common_pb2.Guest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_PUT_GUEST, request, timeout_s)

    def remove_guest(
        self, request: vmemfs_pb2.GuestId, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_REMOVE_GUEST, request, timeout_s)

    def guests(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.StoredGuests]:
        return self.ask(VMEMFS_GUESTS, request, timeout_s)

    def put_copy(
        self, request: replicator_pb2.Copy, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_PUT_COPY, request, timeout_s)

    def remove_copy(
        self, request: replicator_pb2.GuestCopy, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_REMOVE_COPY, request, timeout_s)

    def copies(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, replicator_pb2.CopyList]:
        return self.ask(VMEMFS_COPIES, request, timeout_s)

    def put_host(
        self, request: vmemfs_pb2.HostRecord, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_PUT_HOST, request, timeout_s)

    def get_host(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.HostRecord]:
        return self.ask(VMEMFS_GET_HOST, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.VMemFSStatus]:
        return self.ask(VMEMFS_STATUS, request, timeout_s)

    def rollback(
        self, request: vmemfs_pb2.RollbackRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.RollbackReport]:
        return self.ask(VMEMFS_ROLLBACK, request, timeout_s)

    def write_latest(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, vmemfs_pb2.Generation]:
        return self.ask(VMEMFS_WRITE_LATEST, request, timeout_s)


class VMemFSActor(Actor):
    """Answers the VMemFS contract: override every method."""

    contract = VMEMFS

    def put_guest(self, request: common_pb2.Guest) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError

    def remove_guest(self, request: vmemfs_pb2.GuestId) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError

    def guests(self, request: common_pb2.Empty) -> vmemfs_pb2.StoredGuests | Awaitable[vmemfs_pb2.StoredGuests]:
        raise NotImplementedError

    def put_copy(self, request: replicator_pb2.Copy) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError

    def remove_copy(self, request: replicator_pb2.GuestCopy) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError

    def copies(self, request: common_pb2.Empty) -> replicator_pb2.CopyList | Awaitable[replicator_pb2.CopyList]:
        raise NotImplementedError

    def put_host(self, request: vmemfs_pb2.HostRecord) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError

    def get_host(self, request: common_pb2.Empty) -> vmemfs_pb2.HostRecord | Awaitable[vmemfs_pb2.HostRecord]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> vmemfs_pb2.VMemFSStatus | Awaitable[vmemfs_pb2.VMemFSStatus]:
        raise NotImplementedError

    def rollback(self, request: vmemfs_pb2.RollbackRequest) -> vmemfs_pb2.RollbackReport | Awaitable[vmemfs_pb2.RollbackReport]:
        raise NotImplementedError

    def write_latest(self, request: common_pb2.Empty) -> vmemfs_pb2.Generation | Awaitable[vmemfs_pb2.Generation]:
        raise NotImplementedError
