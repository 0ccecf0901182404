"""The production environment of one host process: everything behind the seam, from the machine's socket outward.

machine = await connect()
production = await Production.furnish(config, machine, GrpcNetwork(Cut.of(machine)))
node = await compose(config, production.environment, faults=production.faults)
...
await production.close()
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from everram.runtime.channel.frames import Identity
from everram.runtime.channel.host_channel import HostChannel, Reach
from everram.runtime.channel.shared_memory import PATH_SUFFIX
from everram.runtime.channel.tcp_framing import PLAIN, Line
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.environment import Environment
from everram.runtime.formats.config import HostConfig
from everram.runtime.memory import probe
from everram.runtime.memory.page_service import PageService
from everram.runtime.production.clock import SystemClock
from everram.runtime.production.disk import Folder
from everram.runtime.production.doorbell import Doorbells
from everram.runtime.production.entropy import SystemEntropy
from everram.runtime.production.logs import OutputFiles
from everram.runtime.production.machine import SystemMachine
from everram.runtime.production.memory import KeptMemory
from everram.runtime.production.mounts import SystemMounts
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.production.nut import NutUps
from everram.runtime.production.nvm_files import NvmFiles
from everram.runtime.production.partition import CutCoordination


@dataclass(frozen=True, slots=True)
class Production:
    """The environment, and the parts of it that only a real process has."""

    environment: Environment
    network: GrpcNetwork
    faults: PageService | None
    """Serves guests' page faults; None where this computer cannot, and `environment.missing` says so."""
    parts: contextlib.AsyncExitStack

    @staticmethod
    async def furnish(
        config: HostConfig, machine: SystemMachine, network: GrpcNetwork, client: CoordinationClient | None = None
    ) -> Production:
        """Take what the machine gave this process, and `network` and `client`, if it is connected already."""
        cut = network.cut
        async with contextlib.AsyncExitStack() as parts:
            files = None
            if config.nvm_files:
                files = NvmFiles(Path(config.nvm_files), f"{config.cluster_id}/{config.host}", boot_id())
                await files.take_up(machine, empty=config.open_image == "empty")
            memory = KeptMemory(machine, config.memory_bytes, files)
            coordination = CutCoordination(client or CoordinationClient(config.coordination), cut)
            parts.push_async_callback(coordination.close)
            parts.push_async_callback(network.close)
            entropy = SystemEntropy()
            me = Identity(config.cluster_id, config.host, incarnation=entropy.token())
            line = PLAIN if network.weather is None else Line(config.checksums, network.weather)
            reach = Reach(config.socket + PATH_SUFFIX, config.channel, config.token, boot_id(), line=line)
            channel = await HostChannel.open(memory, entropy.randbytes, me, reach)
            parts.callback(channel.close)
            cut.watch(channel.sever, channel.mend)
            if not cut.connected:
                channel.sever()
            faults = PageService(memory) if probe.userfaultfd(config.nvm_files).available else None
            if faults is not None:
                parts.callback(faults.close)
            environment = Environment(
                clock=SystemClock(),
                entropy=entropy,
                disk=Folder(config.state_dir),
                memory=memory,
                machine=machine,
                network=network,
                channel=channel,
                coordination=coordination,
                logs=OutputFiles(config.state_dir),
                doorbell=Doorbells(machine),
                missing=tuple(probe.missing_sentences(probe.probe(config.nvm_files))),
                ups=NutUps.parse(config.ups) if config.ups else None,
                nvm_files=files,
                mounts=SystemMounts(machine, f"{config.cluster_id}/{config.host}", entropy.token),
            )
            return Production(environment, network, faults, parts.pop_all())

    async def close(self) -> None:
        """Let go of everything but the machine: nothing of this process touches the memory any more."""
        await self.parts.aclose()


def boot_id() -> str:
    """Of this computer, since it was started last."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
