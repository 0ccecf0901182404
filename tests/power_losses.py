"""Losses of the mains at every instant, in the simulation: what was committed is there afterwards wherever the report
says that it was saved, what was promised always, and never anything else.

    run = play(seed)                     # raises AssertionError
    run.cuts, run.world.digest

`tests/simulation/test_power.py` plays a few seeds, `python -m benchmarks power_cuts --simulated 200` as many as one
likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.json_format import Parse

from everram.actors.chaos.cluster import Cluster, announce
from everram.actors.chaos.scenario import attach
from everram.actors.power_monitor import report as reports
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_contract import HypervisorRef
from everram.runtime.contracts.power_monitor_pb2 import PowerReport
from everram.runtime.errors import EverramError
from everram.runtime.guest.errors import GuestError
from everram.runtime.log.ring import MIN_CAPACITY_BYTES
from everram.runtime.simulation.machine import Seat
from everram.runtime.simulation.world import World

HOSTS = ("h1", "h2", "h3")
LENGTHS_S = (0.002, 0.01, 0.05, 1.0, 4.0, 12.0)
"""Of losses of the mains: shorter and longer than it takes to be off, than a lease, and than failovers."""
BOUND_S = 30.0
WAIT_S = 0.01
BUSY_S, CALM_S, BUSY_FOR_S = 0.003, 0.1, 1.0
"""Of the guest: the longest pause between two commits, while something happens and otherwise."""


@dataclass
class Count:
    """What the guest's incarnations have told: the outside view of it."""

    begun: int = 0
    committed: int = 0
    promised: int = 0
    host: str = ""
    recovered: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Of each incarnation: its host, what it found, and what was committed and promised by then."""


class Run:
    """One guest that counts, on a cluster whose machines lose their mains."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.draw = self.world.stream("test")
        self.copies = self.draw.choice((0, 1, 2))
        battery_s = self.draw.choice((0.0005, 0.003, 0.02, 30.0))
        self.cluster = Cluster(self.world, hosts=3, programs={"/count": self._count}, battery_s=battery_s)
        self.count = Count()
        self.guest_id = ""
        self.holders: set[str] = set()
        """memory_ids that had all of the guest when the mains, or its machine, were lost last."""
        self.machine_lost = False
        self.cuts = 0
        self.busy_until_s = 0.0
        """The guest commits as fast as it may around whatever happens, and seldom while nothing does."""

    async def _count(self, seat: Seat) -> int:
        count = self.count
        try:
            me = await attach(seat)
            region = me.region("data")
            found = region.load_u64(0)
            pages = [region.load_u64(4096 * page) for page in range(4)]
            assert pages == [found] * 4, f"a transaction is there in part: {pages}"
            assert found <= count.begun, "nobody has written that"
            count.recovered.append((seat.machine.name, found, count.committed, count.promised))
            count.host, count.begun, count.committed = seat.machine.name, found, found
            while True:
                count.begun += 1
                with me.transaction() as tx:
                    for page in range(4):
                        tx.store_u64(region, 4096 * page, count.begun)
                count.committed = count.begun
                if self.copies and count.committed % 5 == 0:
                    waited = count.committed
                    await me.wait_replicated(tx.lsn, timeout_s=5.0)
                    count.promised = max(count.promised, waited)
                calm = self.world.now_s > self.busy_until_s
                await asyncio.sleep(self.draw.uniform(0, CALM_S if calm else BUSY_S))
        except GuestError:
            return 1

    async def scenario(self) -> None:
        self.cluster.start()
        await announce(self.world)
        await self._run_guest()
        await until(lambda: self.count.committed >= 10)
        for _ in range(self.draw.choice((1, 1, 2, 3))):
            self.busy()
            await asyncio.sleep(self.draw.uniform(0, 0.2))
            await self._lose_mains()
            if self.draw.random() < 0.2:
                await self._lose_machine()
            await self._serves()

    async def _run_guest(self) -> None:
        region = pb.RegionSpec(name="data", size_bytes=64 * 1024)
        spec = pb.GuestSpec(
            name="g", argv=[b"/count"], regions=[region], restart=pb.ALWAYS, log_bytes=MIN_CAPACITY_BYTES,
            copies=self.copies,
        )  # fmt: skip
        while True:
            try:
                guest = await self.cluster.ask(
                    "user", "h1", lambda node: node.ref(HypervisorRef).run(spec, timeout_s=5), 5
                )
                self.guest_id = guest.guest_id
                return
            except EverramError:
                await asyncio.sleep(0.05)

    async def _lose_mains(self) -> None:
        """Of the guest's machine, in some cases of all."""
        victims = HOSTS if self.draw.random() < 0.3 else (self.count.host,)
        apart = self.draw.random() < 0.5
        length_s = self.draw.choice(LENGTHS_S)
        lengths_s = [self.draw.choice(LENGTHS_S) if apart else length_s for _ in victims]
        before, incarnations = self.count.committed, len(self.count.recovered)
        host = self.count.host
        self.holders = set(self.cluster.holders(self.guest_id))
        self.cuts += len(victims)
        killing = asyncio.ensure_future(self._kill_host(host)) if self.draw.random() < 0.3 else None
        cuts = zip(victims, lengths_s, strict=True)
        self.busy()
        off = await asyncio.gather(*(self._cut(name, length_s) for name, length_s in cuts))
        if killing is not None:
            await killing
        for name, went_off in zip(victims, off, strict=True):
            if went_off:
                await self._starts(name)
        await self._serves()
        saved = self._saved(host)
        for _, found, committed, promised in self.count.recovered[incarnations:]:
            assert found >= promised, "what was promised is gone"
            if saved or not any(off):
                assert found == committed, f"{committed - found} committed transactions are gone"
        assert self.count.committed >= (before if saved else 0)

    async def _cut(self, name: str, length_s: float) -> bool:
        went_off = await self.cluster.cut_mains(name, length_s)
        self.busy()
        return went_off

    def busy(self) -> None:
        self.busy_until_s = self.world.now_s + BUSY_FOR_S

    async def _lose_machine(self) -> None:
        """Perhaps after it has opened an image, and before the next save: what it has opened is never opened silently
        again, and what was promised is where else it was."""
        host, incarnations = self.count.host, len(self.count.recovered)
        self.holders = set(self.cluster.holders(self.guest_id)) - {self.cluster.memory_ids.get(host, "")}
        self.machine_lost = True
        self.busy()
        await self.cluster.lose(host)
        await asyncio.sleep(self.draw.choice((0.0, 0.1, 4.0)))
        await self.cluster.raise_again(host)
        machine = self.cluster.machines[host]
        await until(lambda: machine.core.host.state in ("ready", "refused"))
        if machine.core.host.state == "refused":
            self.world.media(host).files.clear()
            machine.retry_host()
        await self._serves()
        for _, found, _, promised in self.count.recovered[incarnations:]:
            assert found >= promised, "what was promised is gone"

    async def _kill_host(self, host: str) -> None:
        """At any moment of the loss: the next one goes on from there."""
        machine = self.cluster.machines[host]
        await asyncio.sleep(self.draw.uniform(0, 0.03))
        if machine.on and machine.core.host.state in ("starting", "ready"):
            machine.kill_host()

    def _saved(self, host: str) -> bool:
        """What the report of the guest's machine says."""
        file = self.world.media(host).files.get(reports.NAME)
        if file is None:
            return False
        return Parse(bytes(file.durable), PowerReport()).outcome == reports.SAVED

    async def _starts(self, host: str) -> None:
        """A host that refuses has nothing that may be opened silently: its user starts without it."""
        machine = self.cluster.machines[host]
        await until(lambda: machine.core.host.state in ("ready", "refused"))
        if machine.core.host.state == "refused":
            assert not self._saved(host), "what was saved to the end is opened silently"
            self.world.media(host).files.clear()
            machine.retry_host()

    async def _serves(self) -> None:
        """It commits again; a guest without a copy whose memory was lost is begun anew by its user."""
        before, until_s = self.count.committed, self.world.now_s + BOUND_S
        await until(lambda: self.count.committed > before or self.world.now_s > until_s)
        if self.count.committed == before:
            living = self.holders & set(self.cluster.memory_ids.values())
            assert not living, f"{living} have what it needs, and it does not serve"
            raise Lost


class Lost(Exception):
    """No battery of those who held the guest's memory lasted."""


async def until(condition: Callable[[], bool]) -> None:
    """By an observer outside the world, whom nobody tells anything."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(WAIT_S)


def play(seed: int) -> Run:
    run = Run(seed)
    failed: list[BaseException] = []

    async def scenario() -> None:
        try:
            await run.scenario()
        except Lost:
            assert run.cluster.battery_s < 1 or run.machine_lost, "a battery that lasts saves everything"
        except BaseException as error:
            failed.append(error)

    run.world.run(scenario())
    if failed:
        raise failed[0]
    assert not run.world.violations, run.world.violations
    return run
