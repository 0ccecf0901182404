"""`everram demo`: a cluster, a bank, clients, a fault in the middle of it, and the proof from the clients' own records.

It makes a cluster of three hosts of its own, runs `examples/ledger.py` on it, and lets several clients transfer money
at the same time. Each client keeps a record of what it asked for and what it was answered. In mid-load the host of the
bank is killed, or made to hang. At the end the bank is asked what it remembers, and that is held against the records:
nothing that was acknowledged may be lost, nothing may have happened twice, and every balance must be what they say.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everram.examples.lanes import Lane, draw
from everram.examples.ledger import ACCOUNTS, OPENING_BALANCE
from everram.runtime.cli import unbuilt
from everram.runtime.cli.output import emit, note, plural, say
from everram.runtime.cli.units import duration
from everram.runtime.client import Cluster
from everram.runtime.cluster import launch
from everram.runtime.cluster.folders import Folders
from everram.runtime.cluster.remains import end_remains
from everram.runtime.errors import InvalidArgument, Unavailable

HOSTS = 3
FAULTS = ("host-kill", "hang")
CLIENTS_DEFAULT, CLIENTS_MAX = 8, 200
DURATION_DEFAULT_S, DURATION_MIN_S, DURATION_MAX_S = 4.0, 1.0, 600.0
FAULT_AT = 0.4
"""Of the duration: there is load before the fault, and more time after it than the longest outage takes."""
THINK_S = 0.002
"""Between a client's transfers: a load that leaves a laptop's two cores some air."""
ANSWER_TIMEOUT_S = 15.0
"""Without an answer for so long the demo has failed: every promise is below it."""
LOOK_S = 0.02
"""Between looks at the host, for the picture."""
SEED = 7
MEMORY_BYTES, NVM_BYTES, REGION_BYTES = 256 << 20, 128 << 20, 1 << 20


@dataclass(frozen=True, slots=True)
class Transfer:
    source: int
    target: int
    amount: int
    sequence: int


@dataclass(slots=True)
class Record:
    """One client's own record."""

    name: str
    asked: list[Transfer] = field(default_factory=list)
    """In the order of their sequence numbers, from 1 on; all but the last are acknowledged."""
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    """(when, LSN) of each acknowledgement, in the same order."""
    refused: int = 0
    """Transfers that the bank declined for want of money; they changed nothing."""
    errors: list[str] = field(default_factory=list)
    """Connections that broke: each was followed by the same request again."""
    wait_s_max: float = 0.0
    """The longest time from a request to its answer, every retry included."""


class Client:
    """One client: transfers as fast as it is answered, until it is told to stop."""

    def __init__(self, port: int, number: int, running: asyncio.Event) -> None:
        self.record = Record(f"client-{number}")
        self._port = port
        self._random = random.Random(SEED * 1000 + number)
        self._running = running
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        loop, record = asyncio.get_running_loop(), self.record
        while self._running.is_set():
            source, target = self._random.sample(range(ACCOUNTS), 2)
            transfer = Transfer(source, target, self._random.randint(1, 50), len(record.acknowledged) + 1)
            record.asked.append(transfer)
            began_s = loop.time()
            answer = await self._ask_until_answered(transfer)
            record.wait_s_max = max(record.wait_s_max, loop.time() - began_s)
            if answer.startswith("OK "):
                record.acknowledged.append((loop.time(), int(answer[3:])))
            else:
                record.refused += 1
                record.asked.pop()
            await asyncio.sleep(THINK_S)

    async def _ask_until_answered(self, transfer: Transfer) -> str:
        """The same request again after every broken connection: the bank does it once."""
        identity = f"{self.record.name}:{transfer.sequence}"
        line = f"TRANSFER {transfer.source} {transfer.target} {transfer.amount} {identity}\n".encode()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                try:
                    return await self._ask(line)
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    self.record.errors.append(f"{type(error).__name__} at transfer {transfer.sequence}")
                    self.close()
                    await asyncio.sleep(THINK_S)

    async def _ask(self, line: bytes) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(line)
        return (await reader.readuntil(b"\n")).decode().strip()

    async def query(self, question: str) -> int:
        """The number that the bank answers. Raises Unavailable if it answers anything else, or not in time."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await self._ask(question.encode() + b"\n")
        word, _, number = answer.partition(" ")
        if word != "OK":
            raise Unavailable(f"the bank answered {question} with: {answer}")
        return int(number)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass(slots=True)
class Watch:
    """What was seen of the host while the clients worked: a sample every LOOK_S."""

    began_s: float
    samples: list[tuple[float, str, int]] = field(default_factory=list)
    """(when, the host's state, its pid)."""
    events: list[tuple[float, str]] = field(default_factory=list)

    def note(self, what: str) -> None:
        self.events.append((asyncio.get_running_loop().time(), what))

    def see(self, state: str, pid: int) -> None:
        before = self.samples[-1][1:] if self.samples else ("", 0)
        self.samples.append((asyncio.get_running_loop().time(), state, pid))
        if before[0] and (state, pid) != before:
            if state != before[0] and state != "ready":
                self.note(f"the machine sees its host {state}")
            if state == "ready":
                self.note(f"a new host is ready (pid {pid})")


# -- the proof


def verify(records: list[Record], last: dict[str, int], count: int, balances: list[int]) -> dict[str, Any]:
    """Hold what the bank remembers against what the clients recorded. Plain arithmetic on both.

    `last`: by client, the sequence number of its last transfer that the bank did; `count`: of all transfers it did.
    """
    expected = [OPENING_BALANCE] * ACCOUNTS
    lost = invented = 0
    recovered_lsns, lost_lsns = [], []
    for record in records:
        done = last[record.name]
        lost += max(0, len(record.acknowledged) - done)
        invented += max(0, done - len(record.asked))
        lsns = [lsn for _, lsn in record.acknowledged]
        recovered_lsns += lsns[:done]
        lost_lsns += lsns[done:]
        for transfer in record.asked[:done]:
            expected[transfer.source] -= transfer.amount
            expected[transfer.target] += transfer.amount
    # What is lost, if anything, must lie after everything that was recovered.
    prefix = not lost_lsns or not recovered_lsns or max(recovered_lsns) < min(lost_lsns)
    whole = sum(balances) == ACCOUNTS * OPENING_BALANCE
    return {
        "acknowledged": sum(len(record.acknowledged) for record in records),
        "recovered": count,
        "lost": lost,
        "duplicated": max(0, count - sum(last.values())) + invented,
        "prefix_holds": prefix,
        "balances_match": balances == expected,
        "invariant": "holds" if whole else f"broken: the sum is {sum(balances)}",
    }


def holds(report: dict[str, Any]) -> bool:
    """Whether everything that the fault promises was kept."""
    return bool(
        report["acknowledged_after_fault"] > 0
        and report["lost"] == 0
        and report["duplicated"] == 0
        and report["prefix_holds"]
        and report["balances_match"]
        and report["invariant"] == "holds"
        and report["guest_pid_unchanged"]
        and report["client_errors"] == 0
    )


# -- the course of it


@asynccontextmanager
async def own_cluster(tell: Callable[[str], None]) -> AsyncIterator[Cluster]:
    """A cluster of its own, in a temporary folder; nothing of it is left afterwards, whatever happens."""
    state = Path(tempfile.mkdtemp(prefix="everram-demo-"))
    folders = Folders.of(None, str(state), os.environ)
    try:
        launch.prepare(folders, launch.Wishes(hosts=HOSTS, memory_bytes=MEMORY_BYTES, nvm_bytes=NVM_BYTES))
        progress = launch.start(folders)
        try:
            tell(f"a cluster of {HOSTS} hosts is ready after {await asyncio.to_thread(_until_ready, progress):.2f} s")
            async with await Cluster.connect(None, str(state)) as cluster:
                yield cluster
        finally:
            await asyncio.shield(asyncio.to_thread(_end, progress, folders))
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _until_ready(progress: launch.Progress) -> float:
    for step in progress:
        if step["kind"] == "ready":
            return float(step["seconds"])
        if step["kind"] == "error":
            raise Unavailable(f"the demo's cluster does not start: {step['text']}")
    raise Unavailable("the demo's cluster does not start: its supervisor ended")


def _end(progress: launch.Progress, folders: Folders) -> None:
    """Nothing of a demo is worth saving, so it ends the way that cannot fail."""
    progress.kill()
    progress.wait()
    end_remains(folders)
    folders.remove_run()
    with progress:
        pass


async def demonstrate(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The report and the picture."""
    async with own_cluster(tell) as cluster:
        port = await asyncio.to_thread(_free_port)
        guest = await cluster.run(_bank_spec(port))
        tell(f"the bank runs on {guest.host} (pid {guest.pid}), published on port {port}")
        running = asyncio.Event()
        running.set()
        clients = [Client(port, number, running) for number in range(1, args.clients + 1)]
        watch = Watch(asyncio.get_running_loop().time())
        await _load(args, cluster, guest.host, clients, running, watch, tell)
        proof = await _ask_the_bank(clients)
        _, after = await cluster.find_guest(guest.guest_id)
        for client in clients:
            client.close()
    fault_s = next(at for at, what in watch.events if what.startswith("fault"))
    records = [client.record for client in clients]
    times = sorted(at for record in records for at, _ in record.acknowledged)
    report = {
        "fault": args.fault,
        "clients": args.clients,
        **proof,
        "acknowledged_after_fault": sum(at > fault_s for at in times),
        "client_errors": sum(len(record.errors) for record in records),
        "unserved_ms_max": round(1000 * max(record.wait_s_max for record in records), 1),
        "guest_pid_unchanged": after.pid == guest.pid,
        "host": guest.host,
        "host_down_ms": round(1000 * _host_down_s(watch, fault_s), 1),
        "timeline": [{"at_ms": round(1000 * (at - watch.began_s), 1), "what": what} for at, what in watch.events],
    }
    return report, _picture(watch, guest.host, times, fault_s)


async def _load(
    args: argparse.Namespace,
    cluster: Cluster,
    host: str,
    clients: list[Client],
    running: asyncio.Event,
    watch: Watch,
    tell: Callable[[str], None],
) -> None:
    """The clients at work, the fault in the middle. Raises what a client raised."""
    from everram.runtime.contracts.supervisor_pb2 import FaultRequest

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch_host(cluster, host, watch))
        watch.note(f"{plural(args.clients, 'client')} begin")
        working = [tasks.create_task(client.run()) for client in clients]
        await asyncio.sleep(args.duration * FAULT_AT)
        watch.note(f"fault: {args.fault} of {host}")
        await cluster.supervisor.fault(FaultRequest(target=host, name=args.fault))
        tell(f"{args.fault} of {host}, while {plural(args.clients, 'client')} transfer money")
        await asyncio.sleep(args.duration * (1 - FAULT_AT))
        running.clear()
        await asyncio.gather(*working)
        watch.note("clients end")
        watching.cancel()


async def _watch_host(cluster: Cluster, host: str, watch: Watch) -> None:
    from everram.runtime.contracts.common_pb2 import Empty

    while True:
        status = await cluster.supervisor.status(Empty())
        machine = next(machine for machine in status.machines if machine.name == host)
        watch.see(machine.host_state, machine.host_pid)
        await asyncio.sleep(LOOK_S)


async def _ask_the_bank(clients: list[Client]) -> dict[str, Any]:
    first = clients[0]
    last = {client.record.name: await first.query(f"LAST {client.record.name}") for client in clients}
    count = await first.query("COUNT")
    balances = [await first.query(f"BALANCE {account}") for account in range(ACCOUNTS)]
    return verify([client.record for client in clients], last, count, balances)


def _bank_spec(port: int) -> Any:
    from everram.runtime.contracts import common_pb2 as pb

    return pb.GuestSpec(
        name="bank",
        argv=[os.fsencode(word) for word in (sys.executable, "-P", "-m", "everram.examples.ledger")],
        working_directory=b"/",
        environment=[pb.EnvironmentVariable(name=k, value=os.fsencode(v)) for k, v in sorted(os.environ.items())],
        regions=[pb.RegionSpec(name="ledger", size_bytes=REGION_BYTES, kind=pb.LOGGED)],
        restart=pb.ALWAYS,
        publish_port=port,
    )


def _free_port() -> int:
    """A port that nobody listens on now. Somebody may be faster; then `run` says so."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _host_down_s(watch: Watch, fault_s: float) -> float:
    """From the fault to the first sight of a ready host with another pid."""
    before = next((pid for at, state, pid in watch.samples if at <= fault_s and state == "ready"), 0)
    back = (at for at, state, pid in watch.samples if at > fault_s and state == "ready" and pid != before)
    return next(back, time.monotonic()) - fault_s


# -- what is shown


def _picture(watch: Watch, host: str, acknowledged: list[float], fault_s: float) -> str:
    end_s = watch.events[-1][0]
    down = [(at, state != "ready") for at, state, _ in watch.samples]
    lanes = [
        Lane.of_rate("transfers", acknowledged),
        Lane.of_states(f"host {host}", [(at, "x" if is_down else "=") for at, is_down in down]),
        Lane.of_states("bank", [(watch.began_s, "=")]),
        Lane.of_mark("fault", fault_s, "^"),
    ]
    return draw(lanes, watch.began_s, end_s, unicode=(sys.stdout.encoding or "").lower().startswith("utf"))


def _show(report: dict[str, Any], picture: str) -> None:
    say(picture)
    say("")
    for event in report["timeline"]:
        say(f"  {event['at_ms']:8.1f} ms  {event['what']}")
    say("")
    pid = "the same process as before" if report["guest_pid_unchanged"] else "NOT the same process as before"
    say(
        f"{report['acknowledged']} transfers acknowledged, {report['acknowledged_after_fault']} of them after the fault"
    )
    say(f"{report['lost']} lost, {report['duplicated']} done twice, {report['client_errors']} errors seen by clients")
    say(f"the longest wait for an answer was {report['unserved_ms_max']} ms; the bank is {pid}")
    matches = "every balance is what the clients' records say" if report["balances_match"] else "balances DIFFER"
    say(f"the sum of all balances {report['invariant']}; {matches}")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="show it: a bank, clients, a fault, and the proof that nothing is lost")
    parser.add_argument("--fault", default="host-kill", metavar="FAULT", help="host-kill (the default) or hang")
    parser.add_argument(
        "--clients", type=int, default=CLIENTS_DEFAULT, metavar="N", help=f"{CLIENTS_DEFAULT} by default"
    )
    parser.add_argument("--duration", type=duration, default=DURATION_DEFAULT_S, metavar="D", help="of the load (4s)")
    unbuilt.add_flags(parser, "demo")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0 only if the proof holds."""
    if args.fault in unbuilt.FAULTS:
        unbuilt.refuse(f"demo --fault {args.fault}")
    if args.fault not in FAULTS:
        raise InvalidArgument(f'"{args.fault}" is no fault the demo knows: choose {" or ".join(FAULTS)}')
    if not 1 <= args.clients <= CLIENTS_MAX:
        raise InvalidArgument(f"--clients {args.clients}: choose 1 to {CLIENTS_MAX}")
    if not DURATION_MIN_S <= args.duration <= DURATION_MAX_S:
        raise InvalidArgument(f"--duration: choose {DURATION_MIN_S:g}s to {DURATION_MAX_S:g}s")
    steps = itertools.count(1)
    report, picture = asyncio.run(demonstrate(args, lambda text: None if args.json else say(f"{next(steps)}. {text}")))
    if args.json:
        emit(report)
    else:
        _show(report, picture)
    if not holds(report):
        note("everram: the proof does NOT hold; see above")
        return 1
    if not args.json:
        say("the proof holds")
    return 0
