"""The user of one guest's snapshots: takes, reads, purges and removes them, and reverts the guest's region to one now
and then, whatever happens to the host meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

from everram.actors.chaos.checks import nothing_leaks
from everram.actors.chaos.checks.revert_exact import RevertExact
from everram.actors.chaos.checks.snapshots_exact import SnapshotsExact, Told
from everram.actors.chaos.cluster import Cluster
from everram.actors.hypervisor.life import ENDED
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts import nvm_device_pb2 as nvm
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.hypervisor_pb2 import GuestName, RegionAct
from everram.runtime.contracts.nvm_device_contract import NvmDeviceRef
from everram.runtime.errors import DataLoss, EverramError, NotFound
from everram.runtime.simulation.world import World

T = TypeVar("T")

ASK_TIMEOUT_S = 1.0
REVERT_TIMEOUT_S = 60.0
"""It ends, or its host does: whoever gave up before would not know whether the guest is about to be stopped for it."""
START_TIMEOUT_S = 5.0
AGAIN_S = 0.1
ACTS = {"take": 4, "read": 4, "purge": 1, "remove": 2, "revert": 3}
"""Each with its weight in the draw."""


class SnapshotUser:
    """`place()` is (host, guest_id) of the guest, None while it has none; `region` has `size_bytes`."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        guest: str,
        place: Callable[[], tuple[str, str] | None],
        region: tuple[str, int],
        exact: SnapshotsExact,
        pause_s: float,
        reverts: RevertExact | None = None,
    ) -> None:
        """`reverts`: who looks at what the region is after it was reverted; None: it never is."""
        self._world, self._cluster = world, cluster
        self.name = f"snapshots of {guest}"
        self._place = place
        self._region, self._size_bytes = region
        self._exact = exact
        self._pause_s = pause_s
        self._stream = world.stream(self.name)
        self._taken = 0
        self._told: list[Told] = []
        self._reverts = reverts
        self._behind: set[int] = set()
        """Sequences of snapshots of what was reverted since: the ledger's journal does not reach there any more."""
        self.is_reverting = self._calm = False
        self._acts = {
            "take": self._take,
            "read": self._read,
            "purge": self._purge,
            "remove": self._remove,
            "revert": self._revert,
        }

    async def live(self) -> None:
        while True:
            await asyncio.sleep(self._stream.uniform(0, 2 * self._pause_s))
            await self.act(self._stream.choices(list(ACTS), weights=list(ACTS.values()))[0])

    async def act(self, kind: str) -> None:
        place = self._place()
        if place is None:
            return
        host, guest_id = place
        try:
            await self._acts[kind](host, guest_id)
        except EverramError as error:
            self._world.note(self.name, f"cannot {kind}: {error.message}")

    def calm_down(self) -> None:
        """Revert nothing any more; what has begun comes to its end (`is_reverting`)."""
        self._calm = True

    async def read_all(self) -> None:
        """What is left, once more."""
        place = self._place()
        for told in list(self._told) if place is not None else ():
            assert place is not None
            host, guest_id = place
            try:
                await self._look(told, host, guest_id)
            except EverramError as error:
                self._world.note(self.name, f"cannot read: {error.message}")

    async def _ask(self, host: str, act: Callable[[NvmDeviceRef], Awaitable[T]]) -> T:
        return await self._cluster.ask(self.name, host, lambda node: act(node.ref(NvmDeviceRef)), ASK_TIMEOUT_S)

    async def _take(self, host: str, guest_id: str) -> None:
        self._taken += 1
        named = nvm.RegionName(guest_id=guest_id, region=self._region)
        request = nvm.SnapshotRequest(regions=[named], name=f"s{self._taken}")
        memory_id = self._cluster.memory_ids.get(host, "")
        (record,) = (await self._ask(host, lambda ref: ref.snapshot(request, timeout_s=ASK_TIMEOUT_S))).snapshots
        self._world.note(self.name, f"{record.name} is taken at {record.epoch}:{record.lsn}")
        if memory_id == self._cluster.memory_ids.get(host, ""):
            self._told.append(Told(memory_id, record))

    async def _read(self, host: str, guest_id: str) -> None:
        if self._told:
            await self._look(self._stream.choice(self._told), host, guest_id)

    async def _look(self, told: Told, host: str, guest_id: str) -> None:
        disk = self._world.media(host).faults
        memory_id, failing = self._cluster.memory_ids.get(host, ""), disk.error_rate > 0
        if memory_id != told.memory_id:
            self._told.remove(told)  # its memory has died, or the guest is elsewhere
            return
        request = nvm.ReadSnapshotRequest(snapshot=self._named(told, guest_id), length=self._size_bytes)
        try:
            content = (await self._ask(host, lambda ref: ref.read_snapshot(request, timeout_s=ASK_TIMEOUT_S))).data
        except NotFound:
            if memory_id == self._cluster.memory_ids.get(host, ""):
                self._exact.missed(told, memory_id)
            self._told.remove(told)
        except DataLoss as error:
            if not failing and disk.error_rate == 0 and not self._world.media(host).rotten:
                self._exact.damaged(told, error.message)
        else:
            self._exact.read(told, content)

    async def _purge(self, host: str, guest_id: str) -> None:
        request = nvm.PurgeRequest(guest_id=guest_id)
        await self._ask(host, lambda ref: ref.purge(request, timeout_s=ASK_TIMEOUT_S))

    async def _remove(self, host: str, guest_id: str) -> None:
        if not self._told:
            return
        told = self._stream.choice(self._told)
        told.removing = True
        request = nvm.SnapshotNames(snapshots=[self._named(told, guest_id)])
        await self._ask(host, lambda ref: ref.remove_snapshots(request, timeout_s=ASK_TIMEOUT_S))
        self._told.remove(told)

    async def _revert(self, host: str, guest_id: str) -> None:
        """To one whose content is known. Whoever is not told what became of it does not ask a second time."""
        left = [told for told in self._told if told.record.sequence not in self._behind]
        if self._reverts is None or not left:
            return
        told = self._stream.choice(left)
        if told.state is None:
            await self._look(told, host, guest_id)
        reverts = self._reverts
        if self._calm or told.state is None or told not in self._told:
            return
        act = RegionAct(guest=guest_id, region=told.record.region, snapshot=told.record.name)
        reverts.asked(told.state)
        self.is_reverting, self._reverts = True, None
        try:
            await self._cluster.ask(
                self.name,
                host,
                lambda node: node.ref(HypervisorRef).revert_region(act, timeout_s=REVERT_TIMEOUT_S),
                REVERT_TIMEOUT_S,
            )
            reverts.acknowledged()
            self._reverts = reverts
            self._world.note(self.name, f"the region is as in {told.record.name}: {told.state.count} transfers")
            self._behind |= {one.record.sequence for one in self._told if told.state.count < _count(one)}
        finally:
            await self._start(guest_id)
            self.is_reverting = False

    async def _start(self, guest_id: str) -> None:
        """It may have been stopped for it and not begun again, as its user is told in words."""
        name = GuestName(guest=guest_id)
        while (place := self._place()) is not None:
            host = place[0]
            try:
                guest = await self._cluster.ask(
                    self.name, host, lambda node: node.ref(HypervisorRef).inspect(name), ASK_TIMEOUT_S
                )
                if guest.state == pb.RUNNING:
                    return
                if guest.state in ENDED:
                    await self._cluster.ask(
                        self.name, host, lambda node: node.ref(HypervisorRef).start(name), START_TIMEOUT_S
                    )
            except NotFound:
                return
            except EverramError as error:
                self._world.note(self.name, f"cannot start: {error.message}")
            await asyncio.sleep(AGAIN_S)

    def _named(self, told: Told, guest_id: str) -> nvm.SnapshotName:
        record = told.record
        return nvm.SnapshotName(guest_id=guest_id, region=record.region, name=record.name, sequence=record.sequence)


def _count(told: Told) -> int:
    """Transfers that it holds; more than any, where nobody has looked."""
    return told.state.count if told.state is not None else sys.maxsize


async def clear(world: World, cluster: Cluster, host: str) -> bool:
    """Check a host's snapshots, remove them all, and check what is left; whether all of that could be asked."""

    async def ask(act: Callable[[NvmDeviceRef], Awaitable[T]]) -> T:
        return await cluster.ask("user", host, lambda node: act(node.ref(NvmDeviceRef)), 2 * ASK_TIMEOUT_S)

    try:
        findings = (await ask(lambda ref: ref.check(Empty(), timeout_s=ASK_TIMEOUT_S))).findings
        listed = (await ask(lambda ref: ref.snapshots(nvm.SnapshotFilter(), timeout_s=ASK_TIMEOUT_S))).snapshots
        names = [nvm.SnapshotName(guest_id=one.guest_id, region=one.region, name=one.name) for one in listed]
        if names and not findings:
            request = nvm.SnapshotNames(snapshots=names)
            await ask(lambda ref: ref.remove_snapshots(request, timeout_s=ASK_TIMEOUT_S))
            findings = (await ask(lambda ref: ref.check(Empty(), timeout_s=ASK_TIMEOUT_S))).findings
        status = await ask(lambda ref: ref.status(Empty(), timeout_s=ASK_TIMEOUT_S))
    except EverramError as error:
        world.note("user", f"{host}'s snapshots cannot be removed: {error.message}")
        return False
    wrong = nothing_leaks.check(findings, status)
    if wrong is not None and not world.media(host).rotten:
        world.violate(nothing_leaks.PROPERTY, f"{host}: {wrong}")
    return True
