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
NVM_DEVICE = Contract("everram.v1.NvmDevice", (NVM_DEVICE_CREATE_REGIONS, NVM_DEVICE_LIST_REGIONS, NVM_DEVICE_REMOVE_REGIONS, NVM_DEVICE_ADOPT_COPY, NVM_DEVICE_STATUS,))


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
