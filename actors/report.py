"""The host's own actor: what it says about itself, and echoes for whoever tries a path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import host_pb2
from everram.runtime.contracts.host_contract import HostActor
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.contracts.vmemfs_contract import VMemFSRef
from everram.runtime.formats.config import HostConfig
from everram.runtime.node import Node
from everram.runtime.version import PACKAGE_VERSION


class Report(HostActor):
    """Answers for a whole node; `pid` is its process, 0 where it has none of its own."""

    def __init__(self, config: HostConfig, node: Node, pid: int) -> None:
        self._pid = pid
        self._config = config
        self._node = node

    async def on_start(self) -> None:
        self._started_ns = self.context.environment.clock.now_ns()

    def status(self, request: pb.Empty) -> Awaitable[host_pb2.HostStatus]:
        return self.context.later(self._status())

    async def _status(self) -> host_pb2.HostStatus:
        environment, config = self.context.environment, self._config
        nvm = await self.context.ref(NvmDeviceRef).status(pb.Empty())
        vmemfs = await self.context.ref(VMemFSRef).status(pb.Empty())
        return host_pb2.HostStatus(
            cluster=config.cluster,
            host=config.host,
            host_id=config.host_id,
            memory_id=vmemfs.memory_id,
            version=PACKAGE_VERSION,
            pid=self._pid,
            actors=self._node.statuses(),
            links=self._node.link_statuses(),
            channels=[
                host_pb2.ChannelStatus(peer=peer, carrier=carrier)
                for peer, carrier in environment.channel.carriers().items()
            ],
            channel_refused=environment.channel.refused,
            missing=environment.missing,
            memory_capacity_bytes=nvm.capacity_bytes,
            memory_allocated_bytes=nvm.allocated_bytes,
            uptime_s=(environment.clock.now_ns() - self._started_ns) / 1e9,
        )

    def echo(self, request: host_pb2.EchoMessage) -> host_pb2.EchoMessage:
        return request

    async def count(self, request: host_pb2.EchoMessage) -> AsyncIterator[host_pb2.EchoMessage]:
        for value in range(request.value, 0, -1):
            yield host_pb2.EchoMessage(value=value, payload=request.payload)
