"""Builds a host's actors from its configuration: the same call in production and in the simulation.

    node = await compose(config, environment)
    await node.start()

Order matters twice. Before any actor exists, the machine's memory is made whole: kept by the machine, restored from an
image, or empty. Then actors start after those they ask: VMemFS, the NVM device, the power monitor, the replicator, the
lease, remote memory, the memory scheduler, and the guests last; they stop in the reverse order.
"""

from __future__ import annotations

from functools import partial

from everram.actors.availability.actor import Availability
from everram.actors.hypervisor.actor import Hypervisor
from everram.actors.memory_scheduler.actor import Faults, MemoryScheduler
from everram.actors.nvm_device.actor import NvmDevice
from everram.actors.power_monitor.actor import PowerMonitor
from everram.actors.power_monitor.save import restore
from everram.actors.remote_memory.agent import MemoryAgent
from everram.actors.remote_memory.manager import RemoteMemory
from everram.actors.replicator.actor import Replicator
from everram.actors.report import Report
from everram.actors.vmemfs.actor import VMemFS
from everram.runtime.contracts.availability_contract import AVAILABILITY
from everram.runtime.contracts.host_contract import HOST
from everram.runtime.contracts.hypervisor_contract import HYPERVISOR
from everram.runtime.contracts.memory_scheduler_contract import MEMORY_SCHEDULER
from everram.runtime.contracts.nvm_device_contract import NVM_DEVICE
from everram.runtime.contracts.power_monitor_contract import POWER_MONITOR
from everram.runtime.contracts.remote_memory_contract import MEMORY_AGENT, REMOTE_MEMORY
from everram.runtime.contracts.replicator_contract import REPLICATOR
from everram.runtime.contracts.vmemfs_contract import VMEMFS
from everram.runtime.coordination.resolver import HostResolver
from everram.runtime.environment import Environment
from everram.runtime.formats.config import STORAGE_PART, HostConfig
from everram.runtime.memory.guard import PageGuard
from everram.runtime.memory.page_service import PageService
from everram.runtime.node import Node
from everram.runtime.transport.link import Identity
from everram.runtime.transport.links import Links

CONTRACTS = (
    VMEMFS,
    NVM_DEVICE,
    POWER_MONITOR,
    REPLICATOR,
    AVAILABILITY,
    REMOTE_MEMORY,
    MEMORY_AGENT,
    MEMORY_SCHEDULER,
    HYPERVISOR,
    HOST,
)
"""What a host answers, for a front that listens before there is a node."""


async def compose(
    config: HostConfig,
    environment: Environment,
    *,
    faults: PageService | None = None,
    paging: Faults | None = None,
    pid: int = 0,
) -> Node:
    """The node of one host, not started. `faults`: of regions; `paging`: of guests' volatile memory, if that is apart.

    Raises FailedPrecondition for an image that may not be opened silently.
    """
    guard = PageGuard() if faults is None else faults.guard
    storage_bytes = config.storage_bytes or STORAGE_PART * config.nvm_bytes
    outcome = await restore(
        environment, config.open_image, faults, lazily=config.restore == "lazy", host_id=config.host_id
    )
    if faults is not None:  # before anything is called clean: they store meanwhile
        faults.wait_for(process.guest_id for process in await environment.machine.guests() if process.pid)
    node = Node(environment, config.host)
    me = Identity(config.cluster_id, config.host, config.host_id, incarnation=environment.entropy.token())
    resolver = HostResolver(environment.coordination)
    node.use_links(Links(node, environment.network, me, resolver.resolve, environment.entropy.token))
    node.add(VMemFS)
    node.add(
        lambda: PowerMonitor(
            config.on_battery,
            outcome.backfill,
            guard=guard,
            writers=faults,
            cap_bytes_max=config.dirty_cap_bytes,
            restored=outcome.image,
            host_id=config.host_id,
            times=outcome.times,
        ),
        after=(VMEMFS,),
    )
    device = partial(NvmDevice, config.nvm_bytes, storage_bytes, guard=guard, writers=faults)
    node.add(device, after=(POWER_MONITOR,))
    node.add(lambda: Replicator(config, guard), after=(NVM_DEVICE,))
    node.add(lambda: Availability(config), after=(VMEMFS,))
    node.add(RemoteMemory, after=(AVAILABILITY,))
    node.add(lambda: MemoryAgent(config), after=(NVM_DEVICE, REMOTE_MEMORY))
    node.add(lambda: MemoryScheduler(config, paging or faults), after=(VMEMFS,))
    node.add(
        lambda: Hypervisor(config.host, faults, outcome.backfill),
        after=(NVM_DEVICE, REPLICATOR, AVAILABILITY, MEMORY_SCHEDULER),
    )
    node.add(lambda: Report(config, node, pid), after=(NVM_DEVICE,))
    assert {contract.service for contract in node.contracts} == {contract.service for contract in CONTRACTS}
    return node
