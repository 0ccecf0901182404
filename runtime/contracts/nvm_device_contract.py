"""Generated from proto/nvm_device.proto by proto/generate.py; do not edit."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

from everram.runtime.actor import Actor
from everram.runtime.contracts import common_pb2, nvm_device_pb2
from everram.runtime.method import DEFAULT_TIMEOUT_S, Contract, Method
from everram.runtime.refs import Ref


NVM_DEVICE_CREATE_REGIONS = Method("everram.v1.NvmDevice", "CreateRegions", nvm_device_pb2.CreateRegionsRequest, nvm_device_pb2.RegionSet)
NVM_DEVICE_LIST_REGIONS = Method("everram.v1.NvmDevice", "ListRegions", nvm_device_pb2.RegionFilter, nvm_device_pb2.RegionSet)
NVM_DEVICE_REMOVE_REGIONS = Method("everram.v1.NvmDevice", "RemoveRegions", nvm_device_pb2.RegionFilter, common_pb2.Empty)
NVM_DEVICE_ADOPT_COPY = Method("everram.v1.NvmDevice", "AdoptCopy", nvm_device_pb2.AdoptRequest, nvm_device_pb2.RegionSet)
NVM_DEVICE_STATUS = Method("everram.v1.NvmDevice", "Status", common_pb2.Empty, nvm_device_pb2.NvmStatus)
NVM_DEVICE_SNAPSHOT = Method("everram.v1.NvmDevice", "Snapshot", nvm_device_pb2.SnapshotRequest, nvm_device_pb2.SnapshotList)
NVM_DEVICE_SNAPSHOTS = Method("everram.v1.NvmDevice", "Snapshots", nvm_device_pb2.SnapshotFilter, nvm_device_pb2.SnapshotList)
NVM_DEVICE_REMOVE_SNAPSHOTS = Method("everram.v1.NvmDevice", "RemoveSnapshots", nvm_device_pb2.SnapshotNames, nvm_device_pb2.Freed)
NVM_DEVICE_FOLLOW_OPERATION = Method("everram.v1.NvmDevice", "FollowOperation", nvm_device_pb2.CopyOperation, common_pb2.Empty)
NVM_DEVICE_GIVE_UP_COPY_SNAPSHOTS = Method("everram.v1.NvmDevice", "GiveUpCopySnapshots", nvm_device_pb2.RegionFilter, nvm_device_pb2.SnapshotNames)
NVM_DEVICE_PREVIEW_REMOVAL = Method("everram.v1.NvmDevice", "PreviewRemoval", nvm_device_pb2.SnapshotNames, nvm_device_pb2.Freed)
NVM_DEVICE_READ_SNAPSHOT = Method("everram.v1.NvmDevice", "ReadSnapshot", nvm_device_pb2.ReadSnapshotRequest, nvm_device_pb2.SnapshotData)
NVM_DEVICE_CHECK_SNAPSHOT = Method("everram.v1.NvmDevice", "CheckSnapshot", nvm_device_pb2.SnapshotName, nvm_device_pb2.SnapshotRecord)
NVM_DEVICE_REVERT = Method("everram.v1.NvmDevice", "Revert", nvm_device_pb2.SnapshotName, common_pb2.Empty)
NVM_DEVICE_CLONE_SNAPSHOT = Method("everram.v1.NvmDevice", "CloneSnapshot", nvm_device_pb2.CloneRequest, common_pb2.Region)
NVM_DEVICE_GROW_REGION = Method("everram.v1.NvmDevice", "GrowRegion", nvm_device_pb2.GrowRequest, common_pb2.Region)
NVM_DEVICE_REMOVE_REGION = Method("everram.v1.NvmDevice", "RemoveRegion", nvm_device_pb2.RegionName, common_pb2.Empty)
NVM_DEVICE_PURGE = Method("everram.v1.NvmDevice", "Purge", nvm_device_pb2.PurgeRequest, nvm_device_pb2.PurgeStatus)
NVM_DEVICE_CONTROL_PURGE = Method("everram.v1.NvmDevice", "ControlPurge", nvm_device_pb2.PurgeControl, nvm_device_pb2.PurgeStatus)
NVM_DEVICE_CHECK = Method("everram.v1.NvmDevice", "Check", common_pb2.Empty, nvm_device_pb2.Findings)
NVM_DEVICE_QUIESCE = Method("everram.v1.NvmDevice", "Quiesce", nvm_device_pb2.QuiesceMoves, common_pb2.Empty)
NVM_DEVICE = Contract("everram.v1.NvmDevice", (NVM_DEVICE_CREATE_REGIONS, NVM_DEVICE_LIST_REGIONS, NVM_DEVICE_REMOVE_REGIONS, NVM_DEVICE_ADOPT_COPY, NVM_DEVICE_STATUS, NVM_DEVICE_SNAPSHOT, NVM_DEVICE_SNAPSHOTS, NVM_DEVICE_REMOVE_SNAPSHOTS, NVM_DEVICE_FOLLOW_OPERATION, NVM_DEVICE_GIVE_UP_COPY_SNAPSHOTS, NVM_DEVICE_PREVIEW_REMOVAL, NVM_DEVICE_READ_SNAPSHOT, NVM_DEVICE_CHECK_SNAPSHOT, NVM_DEVICE_REVERT, NVM_DEVICE_CLONE_SNAPSHOT, NVM_DEVICE_GROW_REGION, NVM_DEVICE_REMOVE_REGION, NVM_DEVICE_PURGE, NVM_DEVICE_CONTROL_PURGE, NVM_DEVICE_CHECK, NVM_DEVICE_QUIESCE,))


class NvmDeviceRef(Ref):
    """Asks a NvmDevice actor, wherever it is."""

    contract = NVM_DEVICE

    def create_regions(
        self, request: nvm_device_pb2.CreateRegionsRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.RegionSet]:
        return self.ask(NVM_DEVICE_CREATE_REGIONS, request, timeout_s)

    def list_regions(
        self, request: nvm_device_pb2.RegionFilter, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.RegionSet]:
        return self.ask(NVM_DEVICE_LIST_REGIONS, request, timeout_s)

    def remove_regions(
        self, request: nvm_device_pb2.RegionFilter, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(NVM_DEVICE_REMOVE_REGIONS, request, timeout_s)

    def adopt_copy(
        self, request: nvm_device_pb2.AdoptRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.RegionSet]:
        return self.ask(NVM_DEVICE_ADOPT_COPY, request, timeout_s)

    def status(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.NvmStatus]:
        return self.ask(NVM_DEVICE_STATUS, request, timeout_s)

    def snapshot(
        self, request: nvm_device_pb2.SnapshotRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.SnapshotList]:
        return self.ask(NVM_DEVICE_SNAPSHOT, request, timeout_s)

    def snapshots(
        self, request: nvm_device_pb2.SnapshotFilter, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.SnapshotList]:
        return self.ask(NVM_DEVICE_SNAPSHOTS, request, timeout_s)

    def remove_snapshots(
        self, request: nvm_device_pb2.SnapshotNames, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.Freed]:
        return self.ask(NVM_DEVICE_REMOVE_SNAPSHOTS, request, timeout_s)

    def follow_operation(
        self, request: nvm_device_pb2.CopyOperation, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(NVM_DEVICE_FOLLOW_OPERATION, request, timeout_s)

    def give_up_copy_snapshots(
        self, request: nvm_device_pb2.RegionFilter, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.SnapshotNames]:
        return self.ask(NVM_DEVICE_GIVE_UP_COPY_SNAPSHOTS, request, timeout_s)

    def preview_removal(
        self, request: nvm_device_pb2.SnapshotNames, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.Freed]:
        return self.ask(NVM_DEVICE_PREVIEW_REMOVAL, request, timeout_s)

    def read_snapshot(
        self, request: nvm_device_pb2.ReadSnapshotRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.SnapshotData]:
        return self.ask(NVM_DEVICE_READ_SNAPSHOT, request, timeout_s)

    def check_snapshot(
        self, request: nvm_device_pb2.SnapshotName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.SnapshotRecord]:
        return self.ask(NVM_DEVICE_CHECK_SNAPSHOT, request, timeout_s)

    def revert(
        self, request: nvm_device_pb2.SnapshotName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(NVM_DEVICE_REVERT, request, timeout_s)

    def clone_snapshot(
        self, request: nvm_device_pb2.CloneRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Region]:
        return self.ask(NVM_DEVICE_CLONE_SNAPSHOT, request, timeout_s)

    def grow_region(
        self, request: nvm_device_pb2.GrowRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Region]:
        return self.ask(NVM_DEVICE_GROW_REGION, request, timeout_s)

    def remove_region(
        self, request: nvm_device_pb2.RegionName, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(NVM_DEVICE_REMOVE_REGION, request, timeout_s)

    def purge(
        self, request: nvm_device_pb2.PurgeRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.PurgeStatus]:
        return self.ask(NVM_DEVICE_PURGE, request, timeout_s)

    def control_purge(
        self, request: nvm_device_pb2.PurgeControl, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.PurgeStatus]:
        return self.ask(NVM_DEVICE_CONTROL_PURGE, request, timeout_s)

    def check(
        self, request: common_pb2.Empty, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, nvm_device_pb2.Findings]:
        return self.ask(NVM_DEVICE_CHECK, request, timeout_s)

    def quiesce(
        self, request: nvm_device_pb2.QuiesceMoves, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Coroutine[Any, Any, common_pb2.Empty]:
        return self.ask(NVM_DEVICE_QUIESCE, request, timeout_s)


class NvmDeviceActor(Actor):
    """Answers the NvmDevice contract: override every method."""

    contract = NVM_DEVICE

    def create_regions(self, request: nvm_device_pb2.CreateRegionsRequest) -> nvm_device_pb2.RegionSet | Awaitable[nvm_device_pb2.RegionSet]:
        raise NotImplementedError

    def list_regions(self, request: nvm_device_pb2.RegionFilter) -> nvm_device_pb2.RegionSet | Awaitable[nvm_device_pb2.RegionSet]:
        raise NotImplementedError

    def remove_regions(self, request: nvm_device_pb2.RegionFilter) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def adopt_copy(self, request: nvm_device_pb2.AdoptRequest) -> nvm_device_pb2.RegionSet | Awaitable[nvm_device_pb2.RegionSet]:
        raise NotImplementedError

    def status(self, request: common_pb2.Empty) -> nvm_device_pb2.NvmStatus | Awaitable[nvm_device_pb2.NvmStatus]:
        raise NotImplementedError

    def snapshot(self, request: nvm_device_pb2.SnapshotRequest) -> nvm_device_pb2.SnapshotList | Awaitable[nvm_device_pb2.SnapshotList]:
        raise NotImplementedError

    def snapshots(self, request: nvm_device_pb2.SnapshotFilter) -> nvm_device_pb2.SnapshotList | Awaitable[nvm_device_pb2.SnapshotList]:
        raise NotImplementedError

    def remove_snapshots(self, request: nvm_device_pb2.SnapshotNames) -> nvm_device_pb2.Freed | Awaitable[nvm_device_pb2.Freed]:
        raise NotImplementedError

    def follow_operation(self, request: nvm_device_pb2.CopyOperation) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def give_up_copy_snapshots(self, request: nvm_device_pb2.RegionFilter) -> nvm_device_pb2.SnapshotNames | Awaitable[nvm_device_pb2.SnapshotNames]:
        raise NotImplementedError

    def preview_removal(self, request: nvm_device_pb2.SnapshotNames) -> nvm_device_pb2.Freed | Awaitable[nvm_device_pb2.Freed]:
        raise NotImplementedError

    def read_snapshot(self, request: nvm_device_pb2.ReadSnapshotRequest) -> nvm_device_pb2.SnapshotData | Awaitable[nvm_device_pb2.SnapshotData]:
        raise NotImplementedError

    def check_snapshot(self, request: nvm_device_pb2.SnapshotName) -> nvm_device_pb2.SnapshotRecord | Awaitable[nvm_device_pb2.SnapshotRecord]:
        raise NotImplementedError

    def revert(self, request: nvm_device_pb2.SnapshotName) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def clone_snapshot(self, request: nvm_device_pb2.CloneRequest) -> common_pb2.Region | Awaitable[common_pb2.Region]:
        raise NotImplementedError

    def grow_region(self, request: nvm_device_pb2.GrowRequest) -> common_pb2.Region | Awaitable[common_pb2.Region]:
        raise NotImplementedError

    def remove_region(self, request: nvm_device_pb2.RegionName) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError

    def purge(self, request: nvm_device_pb2.PurgeRequest) -> nvm_device_pb2.PurgeStatus | Awaitable[nvm_device_pb2.PurgeStatus]:
        raise NotImplementedError

    def control_purge(self, request: nvm_device_pb2.PurgeControl) -> nvm_device_pb2.PurgeStatus | Awaitable[nvm_device_pb2.PurgeStatus]:
        raise NotImplementedError

    def check(self, request: common_pb2.Empty) -> nvm_device_pb2.Findings | Awaitable[nvm_device_pb2.Findings]:
        raise NotImplementedError

    def quiesce(self, request: nvm_device_pb2.QuiesceMoves) -> common_pb2.Empty | Awaitable[common_pb2.Empty]:
        raise NotImplementedError
