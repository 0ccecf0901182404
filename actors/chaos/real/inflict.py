"""Carries out one fault after the other on a real cluster, and undoes what lasts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from everram.actors.chaos.real.hoarder import HIGH, LOW, Hoarder
from everram.actors.chaos.real.schedule import Fault
from everram.actors.chaos.watch import Watch
from everram.runtime.client import Cluster
from everram.runtime.contracts.hypervisor_pb2 import GuestName
from everram.runtime.contracts.supervisor_pb2 import FaultRequest, PowerRequest, UpgradeRequest
from everram.runtime.errors import EverramError
from everram.runtime.formats.faults import DISK_FAULTS, LINK_FAULTS

FAULT_TIMEOUT_S = 60.0
"""A killed machine wipes its memory; one that comes back is told of when its host is ready."""


class Inflictor:
    def __init__(self, cluster: Cluster, watch: Watch, guests: dict[str, str], hoarders: Sequence[Hoarder]) -> None:
        """`guests`: guest_id by name."""
        self._hoarders = hoarders
        self._cluster = cluster
        self._watch = watch
        self._guests = guests
        self._acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "guest-kill": self._guest_kill,
            "host-kill": self._host_fault,
            "hang": self._host_fault,
            "host-stop": self._host_stop,
            "machine-kill": self._host_fault_and_heal,
            "partition": self._host_fault_and_heal,
            **dict.fromkeys((*LINK_FAULTS, *DISK_FAULTS), self._host_fault_and_heal),
            "upgrade": self._upgrade,
            "upgrade-paused": self._upgrade,
            "memory-pressure": self._memory_pressure,
            "machine-stop": self._machine_stop,
            "power-cut": self._power_cut,
            "coordination-kill": self._coordination_kill,
            "coordination-stop": self._coordination_stop,
        }

    async def inflict(self, fault: Fault) -> str:
        """Do it and undo it; what could not be done, in words, or ""."""
        try:
            await self._acts[fault.kind](fault)
        except EverramError as error:
            return error.message
        except ProcessLookupError:
            return "the process had ended by itself"
        return ""

    async def _guest_kill(self, fault: Fault) -> None:
        host, guest = await self._cluster.find_guest(self._guests[fault.guest])
        await host.hypervisor.kill(GuestName(guest=guest.guest_id))

    async def _fault(self, host: str, name: str) -> None:
        await self._cluster.supervisor.fault(FaultRequest(target=host, name=name), timeout_s=FAULT_TIMEOUT_S)

    async def _host_fault(self, fault: Fault) -> None:
        await self._fault(fault.host, fault.kind)

    async def _host_fault_and_heal(self, fault: Fault) -> None:
        await self._fault(fault.host, fault.kind)
        await asyncio.sleep(fault.length_s)
        await self._fault(fault.host, "heal")

    async def _upgrade(self, fault: Fault) -> None:
        """To the version that runs already, which does all that another would."""
        request = UpgradeRequest(machine=fault.host, python=sys.executable, pause=fault.kind == "upgrade-paused")
        await self._cluster.supervisor.upgrade(request, timeout_s=FAULT_TIMEOUT_S)

    async def _memory_pressure(self, fault: Fault) -> None:
        for hoarder in self._hoarders:
            hoarder.blocks = HIGH
        try:
            await asyncio.sleep(fault.length_s)
        finally:
            for hoarder in self._hoarders:
                hoarder.blocks = LOW

    async def _power_cut(self, fault: Fault) -> None:
        request = PowerRequest(machines=[fault.host])
        await self._cluster.supervisor.power(request, timeout_s=FAULT_TIMEOUT_S)
        await asyncio.sleep(fault.length_s)
        request = PowerRequest(machines=[fault.host], on=True)
        await self._cluster.supervisor.power(request, timeout_s=FAULT_TIMEOUT_S)

    # -- processes that only stand still

    async def _stop(self, pid: int, length_s: float) -> None:
        if pid <= 0:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(length_s)
        finally:
            with suppress(ProcessLookupError):  # one that stood still for too long may have been replaced
                os.kill(pid, signal.SIGCONT)

    async def _host_stop(self, fault: Fault) -> None:
        await self._stop(self._watch.machines[fault.host].host_pid, fault.length_s)

    async def _machine_stop(self, fault: Fault) -> None:
        await self._stop(self._watch.machines[fault.host].pid, fault.length_s)

    async def _coordination_kill(self, fault: Fault) -> None:
        if self._watch.coordination_pid > 0:
            os.kill(self._watch.coordination_pid, signal.SIGKILL)

    async def _coordination_stop(self, fault: Fault) -> None:
        await self._stop(self._watch.coordination_pid, fault.length_s)
