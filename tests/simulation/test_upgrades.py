"""The host software is upgraded again and again while hosts and successors are killed at every step of it: guests live,
their memory is what they made of it, and at every instant one host serves at most.

Two hundred kills: `UPGRADE_SEEDS=20 python -m pytest -n 2 tests/simulation/test_upgrades.py`.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from everram.actors.chaos.cluster import Cluster, announce
from everram.actors.chaos.scenario import attach
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.errors import EverramError
from everram.runtime.formats.vmemfs import MEMORY_NAME
from everram.runtime.guest.errors import GuestError
from everram.runtime.log.ring import MIN_CAPACITY_BYTES
from everram.runtime.node import Node
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.machine import Seat
from everram.runtime.simulation.world import World

SEEDS = int(os.environ.get("UPGRADE_SEEDS", "5"))
UPGRADES = 12
"""Of each seed; five in six of them with a kill."""
HOST = "h1"
STEPS = ("warming", "handing", "stopping", "taking")
BOUND_S = 20.0
LOOK_S = 0.001
STABLE_S = 1.0
"""A host that lived for so long is started again at once after its death, not later and later."""

pytestmark = pytest.mark.timeout(300)


class Run:
    """A guest that counts on one host, with a copy on another, while the former is upgraded."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.draw = self.world.stream("test")
        self.cluster = Cluster(self.world, hosts=2, programs={"/count": self._count, "/idle": self._idle})
        self.cluster.also.append(self._serve)
        self.cluster.observers.append(self._observe)
        self.counted = 0
        self.begun = 0
        self.kills = 0
        self.fates: list[str] = []
        self.serving: list[str] = []
        """Domains of hosts that serve on HOST's machine."""

    async def _count(self, seat: Seat) -> int:
        self.begun += 1
        try:
            me = await attach(seat)
            region = me.region("data")
            while True:
                with me.transaction() as tx:
                    for page in range(4):
                        assert region.load_u64(4096 * page) == self.counted, "its memory is not what it stored"
                        tx.store_u64(region, 4096 * page, self.counted + 1)
                self.counted += 1
                if self.counted % 7 == 0:
                    await me.wait_replicated(tx.lsn, timeout_s=BOUND_S)
                await asyncio.sleep(self.draw.uniform(0, 0.04))
        except GuestError as error:
            self.fates.append(f"ended: {error}")
            return 1

    async def _idle(self, seat: Seat) -> int:
        await attach(seat)
        await asyncio.Event().wait()
        return 0

    async def _serve(self, host: str, node: Node) -> None:
        """From the time that an incarnation serves until it hands over, or is killed."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        domain = loop.current_domain()
        if host == HOST:
            self.serving = [name for name in self.serving if name in self._living()]
            self.serving.append(domain.name)
            if len(self.serving) > 1:
                self.world.violate("one host", f"{self.serving} serve at once")
        try:
            await asyncio.Event().wait()
        finally:
            if host == HOST:
                self.serving.remove(domain.name)

    def _living(self) -> set[str]:
        machine = self.cluster.machines[HOST]
        processes = [machine.host, machine.upgrades.successor]
        return {host.domain.name for host in processes if host is not None and host.domain.alive}

    def _observe(self, host: str, what: str, guest_id: str, epoch: int) -> None:
        if what in ("started", "ended"):
            self.fates.append(f"{what} {epoch}")

    async def scenario(self) -> None:
        self.cluster.start()
        await announce(self.world)
        await self._run_guest()
        machine = self.cluster.machines[HOST]
        for _ in range(UPGRADES):
            await self._settle()
            before, count = machine.core.host.incarnation, len(machine.upgrades.ended)
            machine.upgrade(pause=self.draw.random() < 0.5)
            killed = self.draw.random() < 5 / 6
            if killed:
                await self._kill()
            await self._until(lambda count=count: len(machine.upgrades.ended) > count, "the upgrade does not end")  # type: ignore[misc]
            if not killed:
                assert machine.upgrades.ended[-1] is None, machine.upgrades.ended[-1]
                assert machine.core.host.incarnation == before + 1
        await self._settle()
        assert self.fates == ["started 1"], "its process lived through all of it"

    async def _kill(self) -> None:
        """The host, its successor or both, some time into a step."""
        machine, step = self.cluster.machines[HOST], self.draw.choice(STEPS)
        await self._until(lambda: machine.core.upgrade.step in (step, ""), f"never in {step}", whatever=True)
        await asyncio.sleep(self.draw.choice((0.0, 0.0, self.draw.uniform(0, 0.02), self.draw.uniform(0, 0.2))))
        which = self.draw.choice(("host", "successor", "both"))
        if which != "successor":
            machine.kill_host()
        if which != "host":
            machine.kill_successor()
        self.kills += 1

    async def _settle(self) -> None:
        """One host serves, and the guest gets on."""
        machine, counted = self.cluster.machines[HOST], self.counted
        await self._until(
            lambda: machine.core.host.state == "ready" and not machine.core.upgrade.step, "no host is ready"
        )
        await asyncio.sleep(STABLE_S)
        assert self.counted > counted + 20, "the guest does not get on"
        await self._until(lambda: len([d for d in self.serving if d in self._living()]) == 1, "nobody serves")
        assert not machine.core.reasons
        machine.core.validate()

    async def _until(self, condition: object, what: str, *, whatever: bool = False) -> None:
        until_s = self.world.now_s + BOUND_S
        while not condition():  # type: ignore[operator]
            if self.world.now_s > until_s:
                assert whatever, what
                return
            await asyncio.sleep(LOOK_S)

    async def _run_guest(self) -> None:
        spec = pb.GuestSpec(
            name="count", argv=[b"/count"], working_directory=b"/", log_bytes=MIN_CAPACITY_BYTES, copies=1
        )
        spec.regions.add(name="data", size_bytes=4 * 4096)
        until_s = self.world.now_s + BOUND_S
        while True:
            try:
                await self.cluster.ask("user", HOST, lambda node: node.ref(HypervisorRef).run(spec, timeout_s=5.0), 6.0)
                return
            except EverramError:
                assert self.world.now_s < until_s
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_guests_live_through_kills_at_every_step(seed: int) -> None:
    run = Run(seed)
    run.world.run(run.scenario())
    assert not run.world.violations, run.world.violations
    assert not [failure for failure in run.cluster.failures if not isinstance(failure[1], EverramError)]
    assert run.begun == 1
    assert run.kills >= UPGRADES // 2


class Damage(Run):
    """Two guests without copies; one's record in the superblock is damaged while the host is dead."""

    async def scenario(self) -> None:
        self.cluster.start()
        await announce(self.world)
        names = ("spoilt", "whole")
        await self._until(lambda: self.cluster.node(HOST) is not None, "there is no host")
        guests = {name: await self._run_one(name) for name in names}
        machine = self.cluster.machines[HOST]
        machine.kill_host()
        await self._until(lambda: not self._living(), "the host does not die")
        memory = machine.objects.by_name[MEMORY_NAME].content
        at = memory.rfind(b"spoilt", 0, memory.rfind(b"INDX"))  # the last in the slot in use is the index's own
        at = memory.rfind(b"spoilt", 0, at)
        memory[at] ^= 0xFF
        await self._until(lambda: self.cluster.node(HOST) is not None, "there is no host again")
        seen = {}
        until_s = self.world.now_s + BOUND_S
        while not seen or seen["spoilt"].state != pb.FAILED:
            assert self.world.now_s < until_s, seen
            listed = await self.cluster.ask("user", HOST, lambda node: node.ref(HypervisorRef).list(pb.Empty()), 6.0)
            seen = {guest.name: guest for guest in listed.guests}
            await asyncio.sleep(0.05)
        assert seen["spoilt"].guest_id == guests["spoilt"].guest_id
        assert "its record in the VMemFS superblock is damaged" in seen["spoilt"].reason
        assert [region.name for region in seen["spoilt"].regions] == ["data"], "its memory stays"
        assert (seen["whole"].state, seen["whole"].pid) == (pb.RUNNING, guests["whole"].pid)

    async def _run_one(self, name: str) -> pb.Guest:
        spec = pb.GuestSpec(name=name, argv=[b"/idle"], working_directory=b"/", log_bytes=MIN_CAPACITY_BYTES)
        spec.regions.add(name="data", size_bytes=4 * 4096)
        return await self.cluster.ask("user", HOST, lambda node: node.ref(HypervisorRef).run(spec, timeout_s=5.0), 6.0)


def test_a_guest_with_a_damaged_record_is_given_up_and_the_others_go_on() -> None:
    run = Damage(1)
    run.world.run(run.scenario())
    assert not run.world.violations, run.world.violations
