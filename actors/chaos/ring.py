"""The ring scenario: one guest, its log ring, and a reader, with nothing else around them.

A guest is killed at a drawn store, the next incarnation's epoch is begun by a keeper that may be killed at a store
itself, the guest comes back and the ledger is checked; all the while the real follower reads the log, sleeps, is
killed and comes back. In some seeds the memory is persistent memory behind caches, and power fails. Hundreds of
crashes in a fraction of a real second, where a whole cluster has a handful.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from everram.actors.chaos.checks.reader_wakes import ReaderWakes
from everram.actors.chaos.ledger import Ledger
from everram.actors.hypervisor.resident import begin_epoch
from everram.actors.replicator.follower import Follower
from everram.runtime.errors import DataLoss
from everram.runtime.guest.aio import AsyncGuest
from everram.runtime.guest.core import GuestCore
from everram.runtime.guest.errors import GuestError
from everram.runtime.guest.region import Region
from everram.runtime.log.ring import MIN_CAPACITY_BYTES, Ring, RingCorrupt
from everram.runtime.simulation.cache import CachedBytes
from everram.runtime.simulation.domain import Domain, State
from everram.runtime.simulation.entropy import Stream
from everram.runtime.simulation.machine import Bell
from everram.runtime.simulation.objects import Bytes, Gate, GatedMapping
from everram.runtime.simulation.world import World

GUEST_ID = "0123456789abcdef"
HEALTHY = "the log is never damaged"


@dataclass(frozen=True, slots=True)
class RingPlan:
    """What the seed draws."""

    incarnations: int
    stores_mean: int
    """Gates that an incarnation passes before it is killed, on average."""
    pause_s: float
    preemption: int
    reader_life_s: float
    power_losses: float
    """Part of the incarnations that end with a power loss, on memory that loses what was not flushed."""

    @staticmethod
    def draw(stream: Stream, scale: float) -> RingPlan:
        return RingPlan(
            incarnations=round(stream.randrange(10, 30) * scale),
            stores_mean=stream.choice((20, 60, 200, 600)),
            pause_s=stream.choice((0.001, 0.02, 0.2)),
            preemption=stream.choice((3, 10, 40)),
            reader_life_s=stream.choice((0.05, 0.5, 10.0)),
            power_losses=stream.choice((0.0, 0.5)),
        )


class RingScenario:
    def __init__(self, world: World, plan: RingPlan) -> None:
        self.world = world
        self.plan = plan
        self.loop = world.loop
        memory = CachedBytes if plan.power_losses else Bytes
        self.log = memory(Ring.total_bytes(MIN_CAPACITY_BYTES))
        self.region = memory(Ledger.region_bytes)
        self.epoch = 0
        self._stream = world.stream("ring")
        self.bell = Bell(self.loop, lambda: self._stream.randrange(20_000, 300_000))
        self.follower: Follower | None = None
        self.reader: Domain | None = None
        self.wakes = ReaderWakes(world, self._reader_now, self._verified)
        self.ledger = Ledger(world, "ring", pause_s=plan.pause_s, committed=self._committed)

    async def run(self) -> None:
        Ring.format(GatedMapping(self.log), guest_id=GUEST_ID, epoch=0, capacity_bytes=MIN_CAPACITY_BYTES)
        readers = asyncio.create_task(self._keep_reading())
        for _ in range(self.plan.incarnations):
            await self._begin_epoch()
            await self._live(kill=True)
            if self._stream.random() < self.plan.power_losses:
                self._lose_power()
        await self._begin_epoch()
        await self._live(kill=False)
        readers.cancel()

    def _lose_power(self) -> None:
        """Right after a guest's death: what it had stored and not flushed meets its fate."""
        self.world.note("power", "is lost")
        self._stop_reading()
        for memory in (self.log, self.region):
            if isinstance(memory, CachedBytes):
                memory.lose_power(self._stream)

    # -- the guest --------------------------------------------------------------------------------------------------

    async def _begin_epoch(self) -> None:
        """By a keeper that may die at any store; another one tries again, with the same epoch as hosts do not."""
        while True:
            self.epoch += 1
            domain = self.loop.domain(f"keeper.{self.epoch}")
            kill_at = self._stream.randrange(1, 12) if self._stream.random() < 0.3 else 0
            gate = Gate(self.loop, self._stream, kill_at=kill_at, preemption_mean=self.plan.preemption)
            ended = self._end_of(domain)
            task = self.loop.spawn(domain, self._keep(domain, GatedMapping(self.log, gate)))
            await ended
            if task.done() and not task.cancelled() and task.exception() is None:
                return

    async def _keep(self, domain: Domain, log: GatedMapping) -> None:
        try:
            _, self.epoch = begin_epoch(log, self.epoch, 0)
        except DataLoss as error:
            self.world.violate(HEALTHY, f"epoch {self.epoch} cannot begin: {error}")
        self.loop.call_soon(self.loop.kill, domain)

    async def _live(self, *, kill: bool) -> None:
        """One incarnation: to its death, or for a while."""
        domain = self.loop.domain(f"guest.{self.epoch}")
        kill_at = self._stream.randrange(1, 2 * self.plan.stores_mean) if kill else 0
        gate = Gate(self.loop, self._stream, kill_at=kill_at, preemption_mean=self.plan.preemption)
        ended = self._end_of(domain)
        self.loop.spawn(domain, self._guest(domain, gate))
        try:
            async with asyncio.timeout(1.0):
                await ended
        except TimeoutError:
            self.loop.kill(domain)
        self.world.note("guest", f"epoch {self.epoch} ended after {gate.passed} gates")

    async def _guest(self, domain: Domain, gate: Gate) -> None:
        log, region = GatedMapping(self.log, gate), GatedMapping(self.region, gate)
        try:
            core = GuestCore(
                guest_id=GUEST_ID,
                name="ring",
                epoch=self.epoch,
                ring=Ring.open(log),
                regions=[Region(Ledger.region, 0, "logged", region, Ledger.region_bytes)],
                now_ns=self.world.clock.now_ns,
                ring_bell=self.bell.ring,
                recovered=self.epoch > 1,
            )
            me = AsyncGuest(core)
            self.ledger.recover(me, moved=False)
            await self.ledger.work(me)
        except (GuestError, RingCorrupt) as error:
            self.world.violate(HEALTHY, f"guest, epoch {self.epoch}: {error}")
        self.loop.kill(domain)

    def _committed(self, me: AsyncGuest, lsn: int) -> None:
        self.wakes.committed(lsn)

    # -- the reader -------------------------------------------------------------------------------------------------

    async def _keep_reading(self) -> None:
        while True:
            self.reader = self.loop.domain("reader")
            gate = Gate(self.loop, self._stream, preemption_mean=self.plan.preemption)
            self.loop.spawn(self.reader, self._read(GatedMapping(self.log, gate)))
            await asyncio.sleep(self._stream.uniform(0, 2 * self.plan.reader_life_s))
            self._stop_reading()
            await asyncio.sleep(self._stream.uniform(0, 0.02))

    def _stop_reading(self) -> None:
        self.follower = None
        if self.reader is not None:
            self.loop.kill(self.reader)

    async def _read(self, log: GatedMapping) -> None:
        try:
            self.follower = Follower(Ring.open(log), self.bell)
            while True:
                if self.follower.step():
                    await asyncio.sleep(0)
                else:
                    await self.follower.rest()
        except RingCorrupt as error:
            self.world.violate(HEALTHY, f"reader: {error}")

    def _reader_now(self) -> Follower | None:
        return self.follower if self.reader is not None and self.reader.state is State.RUNNING else None

    async def _verified(self) -> int | None:
        return self.follower.verified if self.follower is not None else None

    def _end_of(self, domain: Domain) -> asyncio.Future[None]:
        ended: asyncio.Future[None] = self.loop.create_future()
        domain.on_death.append(lambda: ended.set_result(None) if not ended.done() else None)
        return ended
