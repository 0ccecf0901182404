"""The course of a chaos run: a cluster, banks with all who use them, one fault after the other, calm, and the verdict.

outcome = await run(Options(seed=7, duration_s=120.0), tell=print)
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from everram.actors.chaos.checks import (
    all_or_nothing,
    commit_order,
    nothing_lost,
    nothing_promised_lost,
    one_incarnation,
    snapshots_exact,
)
from everram.actors.chaos.checks.converges import PROPERTY as CONVERGES
from everram.actors.chaos.ledger_region import REGION_BYTES
from everram.actors.chaos.real import bank, hoarder, schedule
from everram.actors.chaos.real.album import Album
from everram.actors.chaos.real.findings import Findings
from everram.actors.chaos.real.gauges import Gauges
from everram.actors.chaos.real.hoarder import Hoarder
from everram.actors.chaos.real.inflict import Inflictor
from everram.actors.chaos.real.prober import Prober
from everram.actors.chaos.real.schedule import Fault
from everram.actors.chaos.real.teller import ANSWERED, EPOCHS, Record, Teller
from everram.actors.chaos.watch import Watch
from everram.runtime.cli.output import plural
from everram.runtime.client import Cluster
from everram.runtime.cluster.launch import Wishes
from everram.runtime.cluster.temporary import temporary_cluster
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.simulation.entropy import Seeds

DURATION_MIN_S, DURATION_MAX_S = 3.0, 24 * 3600.0
HOSTS_MIN, HOSTS_MAX = 2, 9
MEMORY_BYTES, NVM_BYTES, SWAP_BYTES = 128 << 20, 64 << 20, 256 << 20
BANK_MEMORY_BYTES = 48 << 20
"""Volatile, of each: more than a host has for all its guests, and less than it has with its swap space."""
CHANNELS = {"shm": "shared memory", "tcp": "TCP"}
LOOK_S = 0.05
WHOLE_BOUND_S = 60.0
"""From the end of a fault until everything is as it should be: a machine that comes back is filled anew."""
CLAIMS = (
    CONVERGES,
    ANSWERED,
    one_incarnation.PROPERTY,
    nothing_lost.PROPERTY,
    nothing_promised_lost.PROPERTY,
    all_or_nothing.PROPERTY,
    commit_order.PROPERTY,
    EPOCHS,
    hoarder.PROPERTY,
    snapshots_exact.STAYS,
    snapshots_exact.PROPERTY,
)
EVIDENCE = "every host ready, every guest served with all its copies in sync, after every fault"


@dataclass(frozen=True, slots=True)
class Options:
    seed: int
    duration_s: float
    hosts: int = 0
    """0: drawn from the seed."""
    kinds: dict[str, int] | None = None
    """Faults and their weights; None: all."""


@dataclass(slots=True)
class Inflicted:
    fault: Fault
    begun_s: float
    ended_s: float = 0.0
    whole_s: float = 0.0
    """When everything was as it should be again."""
    problem: str = ""
    """What kept it from being done."""


@dataclass(slots=True)
class Outcome:
    """All times are the loop's, but for `fault.at_s`."""

    options: Options
    hosts: list[str]
    faults: list[Inflicted]
    records: dict[str, Record]
    """By guest."""
    watch: Watch
    gauges: Gauges
    findings: Findings
    began_s: float
    channel: str = ""
    ended_s: float = 0.0
    planned: list[Fault] = field(default_factory=list)
    snapshots: list[tuple[float, str]] = field(default_factory=list)
    """What was done with them, and when."""
    interrupted: bool = False
    """By whoever watched it: what is there was found until then."""

    @property
    def again(self) -> str:
        """The command that does all of this again."""
        options = self.options
        hosts = f" --hosts {options.hosts}" if options.hosts else ""
        faults = f" --faults {','.join(options.kinds)}" if options.kinds is not None else ""
        return f"everram chaos run --seed {options.seed} --duration {options.duration_s:g}s{hosts}{faults}"


async def run(options: Options, tell: Callable[[str], None]) -> Outcome:
    """Raises EverramError if there is no cluster to try anything with."""
    stream = Seeds(options.seed).stream("chaos run")
    hosts = options.hosts or stream.choice((3, 3, 4))
    guests = [f"bank-{number}" for number in range(1, stream.choice((2, 3)) + 1)]
    names = [f"h{number}" for number in range(1, hosts + 1)]
    channel = stream.choice(list(CHANNELS))
    planned = schedule.draw(stream, options.duration_s, names, guests, options.kinds)
    tell(
        f"seed {options.seed} draws {hosts} hosts that reach each other's memory by {CHANNELS[channel]}, "
        f"{len(guests)} banks with a copy each, and {plural(len(planned), 'fault')}:"
    )
    for fault in planned:
        tell(f"  {fault}")
    wishes = Wishes(hosts=hosts, memory_bytes=MEMORY_BYTES, nvm_bytes=NVM_BYTES, swap_bytes=SWAP_BYTES, channel=channel)
    async with temporary_cluster(wishes, prefix="everram-chaos-", tell=tell) as cluster:
        course = await Course.begin(cluster, options, names, guests, planned, tell)
        course.outcome.channel = CHANNELS[channel]
        try:
            await course.run()
        except asyncio.CancelledError:  # Ctrl-C: what was found is worth telling
            course.outcome.interrupted = True
        return course.outcome


class _NotWhole(Exception):
    """Something did not come back: that is a finding, and there is nothing more to try."""


class Course:
    def __init__(
        self, cluster: Cluster, outcome: Outcome, guest_ids: dict[str, str], tell: Callable[[str], None]
    ) -> None:
        self.outcome = outcome
        self._cluster = cluster
        self._guest_ids = guest_ids
        self._tell = tell

    @staticmethod
    async def begin(
        cluster: Cluster,
        options: Options,
        hosts: list[str],
        guests: list[str],
        planned: list[Fault],
        tell: Callable[[str], None],
    ) -> Course:
        guest_ids: dict[str, str] = {}
        for name in guests:
            guest_ids[name] = (await cluster.run(_spec(name), copies=1)).guest_id
        called = {guest_id: name for name, guest_id in guest_ids.items()}
        watch, gauges = Watch(cluster, called), Gauges(cluster, called)
        now_s = asyncio.get_running_loop().time
        findings = Findings(now_s, CLAIMS)
        outcome = Outcome(options, hosts, [], {}, watch, gauges, findings, now_s(), planned=planned)
        return Course(cluster, outcome, guest_ids, tell)

    async def run(self) -> None:
        outcome, watch, findings = self.outcome, self.outcome.watch, self.outcome.findings
        now_s = asyncio.get_running_loop().time
        watching = [asyncio.create_task(watch.run()), asyncio.create_task(outcome.gauges.run())]
        try:
            await self._whole("the start", watching)
            outcome.began_s = now_s()
            names = {guest_id: name for name, guest_id in self._guest_ids.items()}
            tellers = await self._tellers(now_s)
            hoarders = [Hoarder(teller.name, teller.port, findings) for teller in tellers.values()]
            stream = Seeds(outcome.options.seed).stream("album")
            album = Album(self._cluster, watch, tellers, findings, stream)
            outcome.snapshots = album.acts
            users = (Prober(watch, findings, now_s, names).run(), album.run(), *(each.run() for each in hoarders))
            watching += map(asyncio.create_task, users)
            ending = asyncio.Event()
            telling = [asyncio.create_task(teller.run(ending)) for teller in tellers.values()]
            watching += telling
            try:
                await self._play(watching, hoarders)
                await asyncio.sleep(max(0.0, outcome.began_s + outcome.options.duration_s - now_s()))
                self._tell("the faults are over")
                await self._whole("all of them", watching)
            except _NotWhole as error:
                self._tell(f"VIOLATION {error}")
            ending.set()
            await asyncio.gather(*telling)
            _check_alive(watching)
        finally:
            outcome.ended_s = now_s()
            for inflicted in outcome.faults:
                inflicted.ended_s = inflicted.ended_s or outcome.ended_s
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _tellers(self, now_s: Callable[[], float]) -> dict[str, Teller]:
        """By guest_id."""
        seeds, outcome = Seeds(self.outcome.options.seed), self.outcome
        tellers = {}
        for name, guest_id in self._guest_ids.items():
            _, guest = await self._cluster.find_guest(guest_id)

            def memory_of(epoch: int, guest_id: str = guest_id) -> str:
                return outcome.watch.memory_of.get((guest_id, epoch), "")

            port = guest.spec.publish_port
            teller = Teller(name, port, seeds.stream(f"teller {name}"), outcome.findings, now_s, memory_of)
            outcome.records[name] = teller.record
            tellers[guest_id] = teller
        return tellers

    async def _play(self, watching: list[asyncio.Task[None]], hoarders: Sequence[Hoarder]) -> None:
        """Every fault at its time, or as soon as the one before is over."""
        outcome, now_s = self.outcome, asyncio.get_running_loop().time
        inflictor = Inflictor(self._cluster, outcome.watch, self._guest_ids, hoarders)
        until_s = outcome.began_s + outcome.options.duration_s - schedule.CALM_S
        for fault in outcome.planned:
            await asyncio.sleep(max(0.0, outcome.began_s + fault.at_s - now_s()))
            if now_s() > until_s:
                return  # what took longer than planned leaves no time for the rest
            inflicted = Inflicted(fault, now_s())
            outcome.faults.append(inflicted)
            self._tell(f"{now_s() - outcome.began_s:7.2f} s  {fault.kind} of {fault.target}")
            inflicted.problem = await inflictor.inflict(fault)
            inflicted.ended_s = now_s()
            if inflicted.problem:
                self._tell(f"           could not: {inflicted.problem}")
            await self._whole(f"{fault.kind} of {fault.target}", watching)
            inflicted.whole_s = now_s()

    async def _whole(self, after: str, watching: list[asyncio.Task[None]]) -> None:
        """Until everything is as it should be. A teller or a watcher that fails ends the run."""
        loop, findings = asyncio.get_running_loop(), self.outcome.findings
        _check_alive(watching)
        findings.look(CONVERGES).evidence = EVIDENCE
        until_s = loop.time() + WHOLE_BOUND_S
        while missing := await self._missing():
            _check_alive(watching)
            if loop.time() > until_s:
                findings.violate(CONVERGES, f"{WHOLE_BOUND_S:g} s after {after} still: {missing}")
                raise _NotWhole(f"{WHOLE_BOUND_S:g} s after {after} still: {missing}")
            await asyncio.sleep(LOOK_S)

    async def _missing(self) -> str:
        """What is not as it should be; "" if everything is."""
        machines = self.outcome.watch.machines
        if not machines:
            return "nothing is known yet"
        for machine in machines.values():
            ready = machine.state == "up" and machine.host_state == "ready"
            if not ready or machine.cut or not machine.mains or machine.faults:
                faults = "".join(f", {fault}" for fault in machine.faults)
                return f"{machine.name} is {machine.state}, its host {machine.host_state}{faults}"
        guests = {guest.guest_id: guest for guest in await self.outcome.gauges.guests()}
        for name, guest_id in self._guest_ids.items():
            guest = guests.get(guest_id)
            if guest is None or guest.state != pb.RUNNING:
                return f"{name} is not running"
            if guest.degraded or not guest.copies or any(copy.state != "in-sync" for copy in guest.copies):
                return f"{name} has no copy in sync"
        return ""


def _check_alive(watching: Sequence[asyncio.Task[None]]) -> None:
    """Raises what one of them failed by: what it was to look at would be said to hold, and nobody had looked."""
    for task in watching:
        if task.done():
            task.result()


def _spec(name: str) -> pb.GuestSpec:
    import socket  # as the demo does: a port that nobody listens on now

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = (sys.executable, "-P", "-m", bank.__name__)
    return pb.GuestSpec(
        name=name,
        argv=[os.fsencode(word) for word in words],
        working_directory=b"/",
        environment=[pb.EnvironmentVariable(name=k, value=os.fsencode(v)) for k, v in sorted(os.environ.items())],
        regions=[pb.RegionSpec(name=bank.REGION, size_bytes=REGION_BYTES, kind=pb.LOGGED)],
        restart=pb.ALWAYS,
        publish_port=port,
        memory_bytes=BANK_MEMORY_BYTES,
    )
