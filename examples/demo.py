"""`everram demo`: a cluster, a bank, clients, a fault in the middle of it, and the proof from the clients' own records.

It makes a cluster of three hosts of its own, runs `ledger.py` on one of them with a copy on another, and lets several
clients (`demo_clients.py`) transfer money at the same time, while a `Watch` follows what happens. In mid-load the
bank's host is broken as `--fault` says:

    host-kill     the host software is killed; the bank goes on in its memory, another host process takes over
    hang          the host software hangs; the machine finds out, and goes on as above
    machine-kill  the machine is lost with all its memory; the bank goes on elsewhere from its copy
    partition     the machine is cut off; once its lease is over the bank goes on elsewhere; then it is connected again

At the end the bank is asked what it remembers, and `demo_proof.py` holds that against the records.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everram.actors.chaos.lanes import Lane, Marks, Rate, Spans, States, draw
from everram.examples.demo_clients import STRAY, Client, Memory, Record, Stray, ask_memory
from everram.examples.demo_proof import verify
from everram.runtime.cli.output import emit, note, plural, say
from everram.runtime.cli.units import duration
from everram.runtime.client import Cluster
from everram.runtime.cluster import launch
from everram.runtime.cluster.temporary import temporary_cluster
from everram.runtime.errors import EverramError, InvalidArgument, Unavailable

if TYPE_CHECKING:
    from everram.actors.chaos.watch import Watch
    from everram.runtime.contracts.common_pb2 import Guest, GuestSpec

HOSTS = 3
POWER_CUT = "power-cut"
FAILOVERS = ("machine-kill", "partition", POWER_CUT)
FAULTS = ("host-kill", "hang", *FAILOVERS)
ACKS = ("replicated", "local")
CLIENTS_DEFAULT, CLIENTS_MAX = 8, 200
DURATION_DEFAULT_S, DURATION_MIN_S, DURATION_MAX_S = 4.0, 1.0, 60.0
BEFORE = 0.4
"""This share of the load comes before the fault, the rest after the bank serves again."""
ENOUGH = (800, 300)
"""Answers before the fault and after it, however slow the computer: from a handful of transfers little would follow."""
PATIENCE_S = 30.0
"""For each thing that is waited for."""
LOOK_S, WATCH_LOOK_S = 0.01, 0.02
COPIES_AWAY_S = 0.02
"""In the demo of a battery."""
BIN_MS = 25
"""Of the numbers of answers in the report."""
MEMORY_BYTES, NVM_BYTES, LEDGER_BYTES, HISTORY_BYTES = 256 << 20, 128 << 20, 1 << 20, 16 << 20
"""The history has room for 8700 transfers a second at the longest duration."""


@dataclass(frozen=True, slots=True)
class Run:
    """One load with a fault in it, and what became of it."""

    fault: str
    ack: str
    records: Sequence[Record]
    watch: Watch
    before: Guest
    """The bank, before the fault and at the end."""
    after: Guest
    fault_s: float
    end_s: float
    fenced: dict[str, Any] | None
    """What the cut-off machine set aside; None where nobody was cut off."""
    power: dict[str, Any] | None = None
    """What the machine reported of the loss of its mains; None where it kept them, or died before it could."""
    restored: bool = False
    """Whether the same machine was to start the bank again."""

    @property
    def all_promised(self) -> bool:
        """Whether the fault spares what was acknowledged, replicated or not."""
        if self.fault == POWER_CUT:
            return self.power is not None and self.power["outcome"] == "saved"
        return self.ack == "replicated" or self.fault not in FAILOVERS

    def answers(self) -> list[float]:
        """When clients were answered, in order."""
        return sorted(ack.at_s for record in self.records for ack in record.acknowledged)

    def events(self) -> list[tuple[float, str]]:
        """What was seen of the cluster, and when clients saw that the bank serves again."""
        new = [ack for record in self.records for ack in record.acknowledged if ack.epoch > self.before.epoch]
        again = (self.gap_s()[1], "the bank answers again")
        if new:
            first = min(new, key=lambda ack: ack.at_s)
            again = (first.at_s, f"the bank serves again: the first answer of epoch {first.epoch}")
        return sorted([*self.watch.events, again])

    def gap_s(self) -> tuple[float, float]:
        """The longest that a client waited: from its request to its answer."""
        return max((record.longest_wait_s for record in self.records), key=lambda wait: wait[1] - wait[0])


# -- the course of it


def own_cluster(tell: Callable[[str], None], battery_s: float | None = None) -> AbstractAsyncContextManager[Cluster]:
    """Of the demo alone; nothing of it is left afterwards."""
    # On one computer a log is shipped within a millisecond, so no battery that lasts for stopping the guests loses
    # anything of it. Where a battery is chosen, the copies are as far away as another site.
    delay_s = 0.0 if battery_s is None else COPIES_AWAY_S
    wishes = launch.Wishes(
        hosts=HOSTS, memory_bytes=MEMORY_BYTES, nvm_bytes=NVM_BYTES, battery_s=battery_s, link_delay_s=delay_s
    )
    if delay_s:
        tell(f"what the bank writes takes {1000 * delay_s:g} ms to its copy")
    return temporary_cluster(wishes, prefix="everram-demo-", tell=tell)


class Demo:
    """A running bank on `cluster`, reached at `port`. May be broken several times, as the benchmark does."""

    def __init__(self, cluster: Cluster, guest_id: str, port: int, ack: str, tell: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.guest_id = guest_id
        self.port = port
        self.ack = ack
        self.tell = tell
        self._clients = itertools.count(1)

    @staticmethod
    async def start(cluster: Cluster, ack: str, tell: Callable[[str], None], copies: int = 1) -> Demo:
        port = await asyncio.to_thread(_free_port)
        guest = await cluster.run(_bank_spec(port, ack), copies=copies)
        tell(f"the bank runs on {guest.host} (pid {guest.pid}), published on port {port}")
        return Demo(cluster, guest.guest_id, port, ack, tell)

    async def in_sync(self) -> Guest:
        """The bank, once as many copies as were asked for hold everything."""
        async with self._patience("the bank's copy is not in sync"):
            while True:
                _, guest = await self.cluster.find_guest(self.guest_id)
                required = [copy for copy in guest.copies if copy.required]
                if not guest.spec.copies:
                    return guest
                if not guest.degraded and required and all(copy.state == "in-sync" for copy in required):
                    return guest
                await asyncio.sleep(LOOK_S)

    async def run(
        self, fault: str, clients: int, duration_s: float, enough: tuple[int, int], *, restore: bool = False
    ) -> Run:
        """The clients at work, the fault in the middle. Raises what a client raises.

        `enough`: answers before the fault and after it, without which the load goes on. `restore`: power is given back
        at once, to the machine that alone has the bank's memory.
        """
        from everram.actors.chaos.watch import Watch

        before = await self.in_sync()
        copies = ", ".join(copy.host for copy in before.copies if copy.required)
        self.tell(f"{copies} holds a copy of it, in sync" if copies else "nobody holds a copy of it")
        running = asyncio.Event()
        running.set()
        workers = [
            Client(self.port, f"client-{number}", number, running)
            for number in itertools.islice(self._clients, clients)
        ]
        watch = Watch(self.cluster, {self.guest_id: "the bank"}, look_s=WATCH_LOOK_S)
        records = [worker.record for worker in workers]
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch.run())
                watch.note(f"{plural(clients, 'client')} begin")
                working = [tasks.create_task(worker.run()) for worker in workers]
                await self._load(records, duration_s * BEFORE, enough[0])
                fault_s = asyncio.get_running_loop().time()
                watch.note(f"fault: {fault} of {before.host}")
                watch.dying = before.host if fault in ("machine-kill", POWER_CUT) else ""
                await self.inflict(fault, before.host)
                self.tell(f"{fault} of {before.host}, while {plural(clients, 'client')} transfer money")
                if restore:
                    watch.note(f"{before.host} has power again")
                    await self.inflict("power-on", before.host)
                stray = Stray(before.port, before.epoch, running)
                if fault == "partition":
                    records.append(stray.record)
                    working.append(tasks.create_task(stray.run()))
                await self._served_again(fault, before, watch)
                if fault == "partition":
                    watch.note(f"{before.host} is connected again")
                    await self.inflict("heal", before.host)
                await self._load(records, duration_s * (1 - BEFORE), enough[1])
                running.clear()
                fenced = await self._fenced(before, watch) if fault == "partition" else None
                await asyncio.gather(*working)
                watch.note("clients end")
                end_s = asyncio.get_running_loop().time()
                watching.cancel()
        except* EverramError as several:
            raise several.exceptions[0] from several
        _, after = await self.cluster.find_guest(self.guest_id)
        power = self._power_report(before.host) if fault == POWER_CUT else None
        return Run(fault, self.ack, records, watch, before, after, fault_s, end_s, fenced, power, restore)

    def _power_report(self, host: str) -> dict[str, Any] | None:
        """What a machine that is off, or was, had written of its end."""
        from google.protobuf.json_format import Parse

        from everram.runtime.cli.power import report_json
        from everram.runtime.contracts.power_monitor_pb2 import PowerReport

        path = self.cluster.folders.machine(host) / "power" / "report.json"
        return report_json(Parse(path.read_bytes(), PowerReport())) if path.exists() else None

    @asynccontextmanager
    async def _patience(self, why: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield
        except TimeoutError:
            raise Unavailable(f"{why} after {PATIENCE_S:g} s") from None

    async def _load(self, records: Sequence[Record], duration_s: float, enough: int) -> None:
        """Let the clients work so long, and until they have got so many answers more."""
        wanted = sum(len(record.acknowledged) for record in records) + enough
        await asyncio.sleep(duration_s)
        async with self._patience(f"the clients have not got {enough} answers"):
            await _seen(lambda: sum(len(record.acknowledged) for record in records) >= wanted)

    async def inflict(self, fault: str, host: str) -> None:
        """By the fault's name; "heal" and "power-on" bring back what one took."""
        from everram.runtime.contracts.supervisor_pb2 import FaultRequest, PowerRequest

        if fault in (POWER_CUT, "power-on"):
            await self.cluster.supervisor.power(
                PowerRequest(machines=[host], on=fault != POWER_CUT), timeout_s=PATIENCE_S
            )
            return
        await self.cluster.supervisor.fault(FaultRequest(target=host, name=fault))

    async def _served_again(self, fault: str, before: Guest, watch: Watch) -> None:
        async with self._patience("the bank is not served again"):
            if fault in FAILOVERS:
                while watch.serving_epoch(self.guest_id) <= before.epoch:
                    await watch.changed.wait()
            else:
                await _seen(lambda: watch.restarts(before.host) > 0)

    async def _fenced(self, before: Guest, watch: Watch) -> dict[str, Any]:
        """What the cut-off machine set aside, once it has found out that the bank is not its own any more."""
        from everram.runtime.contracts.common_pb2 import Empty

        old = self.cluster.host(before.host)
        async with self._patience(f"{before.host} still has the bank"):
            while True:
                guests = (await old.hypervisor.list(Empty())).guests
                if self.guest_id not in {guest.guest_id for guest in guests}:
                    break
                await asyncio.sleep(LOOK_S)
        folder = self.cluster.folders.machine(before.host) / "set-aside"
        reports = [json.loads(path.read_text()) for path in folder.glob(f"{self.guest_id}.{before.epoch}.json")]
        found: dict[str, Any] = reports[0] if reports else {"transactions": 0}
        aside = plural(int(found["transactions"]), "transaction")
        watch.note(f"the old bank on {before.host} is fenced: {aside} that reached no copy set aside")
        return found


async def _seen(condition: Callable[[], bool]) -> None:
    """Return once it holds: for what clients and other processes do, and nobody here is told of."""
    while True:
        if condition():
            return
        await asyncio.sleep(LOOK_S)


def _bank_spec(port: int, ack: str) -> GuestSpec:
    from everram.runtime.contracts import common_pb2 as pb

    words = (sys.executable, "-P", "-m", "everram.examples.ledger", "--ack", ack)
    sizes = {"ledger": LEDGER_BYTES, "history": HISTORY_BYTES}
    return pb.GuestSpec(
        name="bank",
        argv=[os.fsencode(word) for word in words],
        working_directory=b"/",
        environment=[pb.EnvironmentVariable(name=k, value=os.fsencode(v)) for k, v in sorted(os.environ.items())],
        regions=[pb.RegionSpec(name=name, size_bytes=size, kind=pb.LOGGED) for name, size in sizes.items()],
        restart=pb.ALWAYS,
        publish_port=port,
    )


def _free_port() -> int:
    """A port that nobody listens on now. Somebody may be faster; then `run` says so."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- what is reported


def report_of(run: Run, memory: Memory) -> dict[str, Any]:
    """The JSON of `--json`; docs/draw_failover.py draws from it."""
    replicated = run.ack == "replicated"
    proof = verify(run.records, memory, promised=replicated or run.all_promised)
    begin_s, gap_s = run.watch.began_s, run.gap_s()

    def ms(at_s: float) -> float:
        return round(1000 * (at_s - begin_s), 1)

    return {
        "fault": run.fault,
        "ack": run.ack,
        "clients": sum(not record.name.startswith(STRAY) for record in run.records),
        "acknowledged": proof.pop("acknowledged"),
        "acknowledged_replicated": sum(len(record.acknowledged) for record in run.records) if replicated else 0,
        "acknowledged_after_fault": sum(at_s > run.fault_s for at_s in run.answers()),
        **proof,
        "unserved_ms_max": round(1000 * (gap_s[1] - gap_s[0]), 1),
        "client_errors": sum(len(record.errors) for record in run.records),
        "host": run.before.host,
        "host_after": run.after.host,
        "epoch": run.before.epoch,
        "epoch_after": run.after.epoch,
        "guest_pid_unchanged": run.after.pid == run.before.pid,
        "set_aside": run.fenced,
        "power": run.power,
        "restored_same": run.restored,
        "timeline": [{"at_ms": ms(at_s), "what": what} for at_s, what in run.events()],
        "fault_ms": ms(run.fault_s),
        "gap_ms": [ms(at_s) for at_s in gap_s],
        "end_ms": ms(run.end_s),
        "answers": {"bin_ms": BIN_MS, "counts": _counted(run)},
        "hosts": {
            host: [{"at_ms": ms(at_s), "state": run.watch.legend[state].words} for at_s, state in states]
            for host, states in run.watch.states.items()
        },
    }


def _counted(run: Run) -> list[int]:
    counts = [0] * (int(1000 * (run.end_s - run.watch.began_s) / BIN_MS) + 1)
    for at_s in run.answers():
        counts[min(int(1000 * (at_s - run.watch.began_s) / BIN_MS), len(counts) - 1)] += 1
    return counts


def holds(report: dict[str, Any]) -> bool:
    """Whether everything that the fault promises was kept."""
    elsewhere = report["host_after"] != report["host"]
    moved = report["epoch_after"] > report["epoch"] and elsewhere != report["restored_same"]
    stayed = report["epoch_after"] == report["epoch"] and report["guest_pid_unchanged"]
    return bool(
        report["acknowledged_after_fault"] > 0
        and report["lost"] == 0
        and report["duplicated"] == 0
        and report["prefix_holds"]
        and report["invariant"] == "holds"
        and (moved if report["fault"] in FAILOVERS else stayed)
        and (report["set_aside"] is not None) == (report["fault"] == "partition")
    )


def picture_of(run: Run) -> str:
    gap_s = run.gap_s()
    lanes: list[Lane] = [
        Rate("clients", run.answers()),
        *(States(host, states, run.watch.legend) for host, states in run.watch.states.items()),
        Marks("fault", [(run.fault_s, f"^ {run.fault} of {run.before.host}")]),
        Spans("gap", [(*gap_s, f"{1000 * (gap_s[1] - gap_s[0]):.0f} ms")]),
    ]
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    used = {state for states in run.watch.states.values() for _, state in states}
    legend = "   ".join(f"{letter} {state.words}" for letter, state in run.watch.legend.items() if letter in used)
    return f"{draw(lanes, run.watch.began_s, run.end_s, unicode=unicode)}\n\n  {legend}"


def proof_line(report: dict[str, Any]) -> str:
    """One line that says it all."""
    unpromised = f" and {report['lost_unpromised']} that nobody had promised" if report["lost_unpromised"] else ""
    prefix = "a prefix" if report["prefix_holds"] else "NO prefix"
    return (
        f"proof: {report['acknowledged']} transfers acknowledged, {report['lost']} lost{unpromised}, "
        f"{report['duplicated']} done twice; {prefix} in commit order; "
        f"the invariant of all balances: {report['invariant']}"
    )


def _show(report: dict[str, Any], picture: str) -> None:
    say(picture)
    say("")
    for event in report["timeline"]:
        say(f"  {event['at_ms']:8.1f} ms  {event['what']}")
    say("")
    if report["power"] is not None:
        say(_battery_words(report["power"]))
    where = f"the bank went from {report['host']} to {report['host_after']}"
    if report["restored_same"]:
        where = f"the bank was restored on {report['host']}"
    if report["guest_pid_unchanged"]:
        where = f"the bank on {report['host']} is the same process as before"
    say(f"{report['acknowledged_after_fault']} transfers were acknowledged after the fault; {where}")
    say(f"no client waited longer than {report['unserved_ms_max']} ms for an answer")
    say(proof_line(report))


def _battery_words(power: dict[str, Any]) -> str:
    freeze_ms, drain_ms, save_ms = (1000 * power[name] for name in ("freeze_s", "drain_s", "save_s"))
    saved = f"{power['saved_bytes'] >> 10} KiB saved in {save_ms:.1f} ms"
    done = f"guests stopped in {freeze_ms:.1f} ms, log drained in {drain_ms:.1f} ms, {saved}"
    return f"on battery: {done}: {power['outcome']}"


# -- the command


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="show it: a bank, clients, a fault, and the proof that nothing is lost")
    parser.add_argument(
        "--fault", default="machine-kill", metavar="FAULT", help=f"{', '.join(FAULTS)}; machine-kill by default"
    )
    parser.add_argument(
        "--ack",
        default="replicated",
        metavar="WHEN",
        help="replicated (the default): clients are answered once a copy holds it; local: at once",
    )
    parser.add_argument(
        "--clients", type=int, default=CLIENTS_DEFAULT, metavar="N", help=f"{CLIENTS_DEFAULT} by default"
    )
    parser.add_argument("--duration", type=duration, default=DURATION_DEFAULT_S, metavar="D", help="of the load (4s)")
    parser.add_argument(
        "--battery", type=duration, metavar="D", help="of --fault power-cut: how long the machine has, such as 5ms"
    )
    parser.add_argument(
        "--restore-same", action="store_true", help="of --fault power-cut: the bank has no copy, and power comes back"
    )
    parser.set_defaults(handler=run, alone=True)


async def demonstrate(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Run, Memory]:
    """What happened, and what the bank remembers of it."""
    async with own_cluster(tell, args.battery) as cluster:
        demo = await Demo.start(cluster, args.ack, tell, copies=0 if args.restore_same else 1)
        run = await demo.run(args.fault, args.clients, args.duration, ENOUGH, restore=args.restore_same)
        return run, await ask_memory(demo.port)


def run(args: argparse.Namespace) -> int:
    """Exit status 0 only if the proof holds."""
    if args.fault != POWER_CUT and (args.battery is not None or args.restore_same):
        raise InvalidArgument("--battery and --restore-same belong to --fault power-cut")
    if args.restore_same and args.ack != "local":
        raise InvalidArgument("--restore-same is of a bank without a copy: nobody could hold anything, add --ack local")
    if args.fault not in FAULTS:
        raise InvalidArgument(f'"{args.fault}" is no fault the demo knows: choose {", ".join(FAULTS)}')
    if args.ack not in ACKS:
        raise InvalidArgument(f"--ack {args.ack}: choose {' or '.join(ACKS)}")
    if not 1 <= args.clients <= CLIENTS_MAX:
        raise InvalidArgument(f"--clients {args.clients}: choose 1 to {CLIENTS_MAX}")
    if not DURATION_MIN_S <= args.duration <= DURATION_MAX_S:
        raise InvalidArgument(f"--duration: choose {DURATION_MIN_S:g}s to {DURATION_MAX_S:g}s")
    steps = itertools.count(1)
    course, memory = asyncio.run(demonstrate(args, lambda text: None if args.json else say(f"{next(steps)}. {text}")))
    report = report_of(course, memory)
    if args.json:
        emit(report)
    else:
        _show(report, picture_of(course))
    if not holds(report):
        note("everram: the proof does NOT hold; see above")
        return 1
    return 0
