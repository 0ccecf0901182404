"""Guests that outlive machines, on one real cluster of three: every promise is checked by the clients it was made to.

The guest is a ledger of client numbers: it answers `PUT client n` once that is replicated, so whatever was answered has
to be there for ever, whoever dies, and what was not answered is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_pb2 import GuestName
from everram.runtime.contracts.replicator_pb2 import CopyList
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import prefix
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.errors import DeadlineExceeded, Unavailable
from tests.user import PATIENCE_S, User, free_port, until, user_in

HOSTS = ("h1", "h2", "h3")
CLIENTS = 3
M = TypeVar("M", bound=Message)

pytestmark = [pytest.mark.process, pytest.mark.timeout(170)]

LEDGER = """
import asyncio, signal
from everram.runtime import guest

TOTAL, NOISE, FILLED, BLOCK = 64 * 64, 64 * 65, 64 * 66, 64 * 1024
me = guest.attach_async()
region = me.region("ledger")
bulk = me.core.regions.get("bulk")
putting = asyncio.Lock()

def block(at):
    return bytes([at // BLOCK & 255 | 1]) * BLOCK

async def fill():
    while bulk is not None and region.load_u64(FILLED) < len(bulk):
        at = region.load_u64(FILLED)
        async with me.transaction() as tx:
            tx.store(bulk, at, block(at))
            tx.store_u64(region, FILLED, at + BLOCK)

async def noise():
    while True:  # committed, and nobody waits for it
        async with me.transaction() as tx:
            tx.store_u64(region, NOISE, region.load_u64(NOISE) + 1)
        await asyncio.sleep(0.001)

async def answer(words):
    if words[0] == b"PUT":
        at, n = 64 * int(words[1]), int(words[2])
        async with putting:  # a transaction that waits for room must not be overtaken
            if region.load_u64(at) < n:
                async with me.transaction() as tx:
                    tx.store_u64(region, at, n)
                    tx.store_u64(region, TOTAL, region.load_u64(TOTAL) + 1)
        await me.wait_replicated(me.core.lsn, 60)
        return n
    if words[0] == b"GET":
        return region.load_u64(64 * int(words[1]))
    if words[0] == b"TOTAL":
        return region.load_u64(TOTAL)
    if words[0] == b"NOISE":
        asyncio.get_running_loop().noise = asyncio.ensure_future(noise())
        return 0
    if words[0] == b"BULK":
        return sum(bulk.load(at, BLOCK) != block(at) for at in range(0, len(bulk), BLOCK))

async def talk(reader, writer):
    try:
        while line := await reader.readline():
            writer.write(b"OK %d\\n" % await answer(line.split()))
    except (ConnectionError, guest.GuestError):
        pass
    finally:
        writer.close()

async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await fill()
    async with await asyncio.start_server(talk, "127.0.0.1", me.port):
        await stopped.wait()

asyncio.run(main())
"""


class Ended(Exception):
    """The ledger did not answer: its connection ended, or there was none."""


def ask(port: int, line: str, patience_s: float = PATIENCE_S) -> int:
    """One question, on a connection of its own, asked until it is answered."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with Line(port) as connection:
                return connection.ask(line)
        except Ended:
            assert time.monotonic() < deadline, f"{line} was not answered in {patience_s} s"
            time.sleep(0.02)


class Line:
    """A connection to the ledger. Everything raises Ended."""

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), 1.0)
        except OSError as error:
            raise Ended from error
        self._socket.settimeout(PATIENCE_S)
        self._lines = self._socket.makefile("r")

    def ask(self, line: str) -> int:
        try:
            self._socket.sendall(line.encode() + b"\n")
            answer = self._lines.readline()
        except OSError as error:
            raise Ended from error
        if not answer.endswith("\n"):
            raise Ended
        assert answer.startswith("OK "), answer
        return int(answer[3:])

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


class Client(threading.Thread):
    """Puts one number after the other, each until it is answered; after `stop` it has an answer to all it sent."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.acknowledged = 0
        self.error: BaseException | None = None
        self._port = port
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                with contextlib.suppress(Ended), Line(self._port) as line:
                    while not self._stop_asked.wait(0.001):
                        n = self.acknowledged + 1
                        assert line.ask(f"PUT {self.number} {n}") == n
                        self.acknowledged = n
                self._stop_asked.wait(0.01)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(PATIENCE_S)


class Cluster(User):
    """One cluster of three machines, as its user handles it."""

    def directory(self) -> dict[str, dict[str, Any]]:
        """What coordination holds, by key below the root."""

        async def read() -> dict[str, dict[str, Any]]:
            client = CoordinationClient(self.coordination)
            try:
                _, pairs = await client.range(prefix(directory.ROOT))
            finally:
                await client.close()
            return {p.key.removeprefix(directory.ROOT).decode(): directory.decode(p.value) for p in pairs}

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return asyncio.run(read())
            except (Unavailable, DeadlineExceeded):
                assert time.monotonic() < deadline, "coordination does not answer"

    def memory_id(self, host: str) -> str:
        """Empty while the host is not in the directory."""
        return str(self.directory().get(f"hosts/{host}", {}).get("memory_id", ""))

    def address(self, host: str) -> str:
        return str(self.directory()[f"hosts/{host}"]["address"])

    def look(self) -> None:
        """Find out where coordination is; commands that begin the cluster anew may change it."""
        self.coordination = self.json("status")["coordination"]["address"]

    def heal(self) -> None:
        """Every machine is there, connected, and in the directory."""
        for host in self.json("status")["hosts"]:
            if host["state"] != "up" or host["cut"]:
                self.run("fault", "heal", host["name"])
        until(lambda: all(f"hosts/{name}" in self.directory() for name in HOSTS), "every host is in the directory")

    def exported(self, snapshot: str) -> bytes:
        """What a snapshot holds."""
        target = self.dir / "exported"
        self.run("region", "export", snapshot, str(target))
        return target.read_bytes()


class Guest:
    """A ledger on the cluster, with its clients."""

    def __init__(self, cluster: Cluster, name: str, copies: int, *, bulk: str = "") -> None:
        self.cluster, self.name, self.copies = cluster, name, copies
        self.port = free_port()
        regions = ["--region", "ledger=64KiB", *(["--region", f"bulk={bulk}"] if bulk else [])]
        options = ["--name", name, "--publish", str(self.port), "--copies", str(copies), *regions]
        cluster.run("run", "-d", *options, "--", "python", "-c", LEDGER)
        self.guest_id = cluster.json("inspect", name)["guest_id"]
        self.clients = [Client(self.port, number) for number in range(CLIENTS)]
        for client in self.clients:
            client.start()

    def inspect(self) -> pb.Guest | None:
        """What its host says of it; None if that cannot be asked now."""
        seen = self.cluster.directory()
        host = seen.get(f"hosts/{seen[f'guests/{self.guest_id}']['host']}")
        if host is None:
            return None
        try:
            return call(host["address"], "Hypervisor/Inspect", GuestName(guest=self.guest_id), pb.Guest)
        except grpc.RpcError:
            return None

    def destination(self) -> str:
        """Where its copy is, if it has one."""
        seen = self.inspect()
        assert seen is not None
        return seen.copies[0].host

    @property
    def host(self) -> str:
        return str(self.record()["host"])

    def record(self) -> dict[str, Any]:
        return self.cluster.directory()[f"guests/{self.guest_id}"]

    def in_sync(self) -> bool:
        """Whether it has as many copies as were asked for, in memories that are there."""
        seen = self.inspect()
        if seen is None or seen.state != pb.RUNNING or seen.degraded:
            return False
        there = [copy for copy in seen.copies if copy.state == "in-sync" and copy.required]
        return len(there) >= self.copies

    def wait_in_sync(self) -> None:
        until(self.in_sync, f"{self.name} is in sync with {self.copies} copies")

    def goes_on(self) -> None:
        """Every client gets answers."""
        before = [client.acknowledged for client in self.clients]
        until(
            lambda: all(client.acknowledged >= n + 20 for client, n in zip(self.clients, before, strict=True)),
            f"the clients of {self.name} get answers",
        )

    def check(self) -> None:
        """Nothing that was answered is missing, and nothing is there in part."""
        for client in self.clients:
            client.stop()
        found = [ask(self.port, f"GET {client.number}") for client in self.clients]
        for client, n in zip(self.clients, found, strict=True):
            assert client.error is None
            assert n in (client.acknowledged, client.acknowledged + 1)
        assert ask(self.port, "TOTAL") == sum(found)

    def remove(self) -> None:
        self.check()
        self.cluster.run("rm", "--regions", "--force", self.name)


def call(address: str, method: str, request: Message, answer: type[M]) -> M:
    """Raises grpc.RpcError."""
    with grpc.insecure_channel(address) as channel:
        ask_it = channel.unary_unary(
            f"/everram.v1.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        answered = ask_it(request, timeout=PATIENCE_S)
    assert isinstance(answered, answer)
    return answered


def copies_at(address: str) -> CopyList:
    """What the replicator of a host says that it keeps."""
    return call(address, "Replicator/Copies", pb.Empty(), CopyList)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with user_in(tmp_path_factory.mktemp("failover"), Cluster) as cluster:
        cluster.run("up", "--lease", "5s", "--hosts", "3", "--memory", "512MiB", "--nvm", "256MiB", "-d")
        cluster.look()
        yield cluster


@pytest.fixture
def cluster(whole: Cluster) -> Iterator[Cluster]:
    """With every machine there, before and after."""
    whole.heal()
    yield whole
    for guest in whole.json("guests")["guests"]:
        whole.try_run("rm", "--regions", "--force", guest["guest"])


def test_two_machines_are_lost_one_after_the_other(cluster: Cluster) -> None:
    guest = Guest(cluster, "twice", copies=1)
    for number in range(2):
        guest.wait_in_sync()
        guest.goes_on()
        cluster.run("region", "snapshot", "twice/ledger", "--name", f"n{number}")
        kept = cluster.exported(f"twice/ledger@n{number}")
        guest.goes_on()  # what is answered now the copy has, and so the snapshot before it
        host = guest.host
        memory_id = cluster.memory_id(host)
        cluster.run("fault", host, "machine-kill")
        guest.goes_on()
        assert guest.host != host
        assert cluster.exported(f"twice/ledger@n{number}") == kept
        cluster.run("fault", "heal", host)
        until(lambda host=host: cluster.memory_id(host) != "", "it is back")  # type: ignore[misc]
        # Back under its old name, and empty: what is counted on is another memory, or this one's new identity.
        record = guest.record()
        assert memory_id not in [record["memory_id"], *record["required"]]
        assert cluster.memory_id(host) != memory_id
    guest.wait_in_sync()
    guest.remove()


def test_destinations_are_lost_one_of_them_while_it_is_filled(cluster: Cluster) -> None:
    guest = Guest(cluster, "large", copies=1, bulk="96MiB")
    guest.wait_in_sync()
    guest.goes_on()
    first = guest.destination()
    second = next(name for name in HOSTS if name not in (first, guest.host))
    machine, address = cluster.host(second)["pid"], cluster.address(second)
    cluster.run("fault", first, "machine-kill")
    until(lambda: bool(copies_at(address).copies), f"a copy is begun on {second}")
    os.kill(machine, signal.SIGKILL)
    until(lambda: cluster.host(second)["state"] == "dead", f"{second} is known to be dead")
    seen = cluster.json("inspect", guest.name)
    assert (seen["state"], seen["degraded"]) == ("running", True)
    assert len(guest.record()["required"]) == 1, "who is gone stays required until somebody else is in sync"
    cluster.run("fault", "heal", first)
    guest.wait_in_sync()
    cluster.run("fault", guest.host, "machine-kill")
    cluster.run("fault", "heal", second)
    guest.goes_on()
    assert guest.host == first
    assert ask(guest.port, "BULK") == 0
    guest.remove()


def test_a_guest_moves_there_and_back_and_its_leader_is_lost(cluster: Cluster) -> None:
    guest = Guest(cluster, "mover", copies=1)
    guest.goes_on()
    home = guest.host
    leader = cluster.directory()["leader"]["host"]
    away = leader if leader != home else next(name for name in HOSTS if name != home)
    for target in (away, home, leader):
        if target != guest.host:
            cluster.run("move", guest.name, target)
            until(lambda target=target: guest.host == target, f"it is on {target}")  # type: ignore[misc]
        guest.goes_on()
    guest.wait_in_sync()
    assert guest.host == leader
    cluster.run("fault", leader, "machine-kill")
    guest.goes_on()
    assert guest.host != leader
    assert cluster.directory()["leader"]["host"] != leader
    guest.remove()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_machine_and_coordination_are_lost_at_once(cluster: Cluster, number: signal.Signals) -> None:
    guest = Guest(cluster, "both", copies=1)
    guest.wait_in_sync()
    guest.goes_on()
    host, coordination = guest.host, cluster.json("status")["coordination"]
    os.kill(coordination["pid"], number)
    cluster.run("fault", host, "machine-kill")
    with contextlib.suppress(ProcessLookupError):
        os.kill(coordination["pid"], signal.SIGCONT)
    guest.goes_on()
    assert guest.host != host
    # And once more while it is being decided.
    cluster.run("fault", "heal", host)
    guest.wait_in_sync()
    host, coordination = guest.host, cluster.json("status")["coordination"]
    cluster.run("fault", host, "machine-kill")
    os.kill(coordination["pid"], number)
    guest.goes_on()
    assert guest.host != host
    guest.remove()


def test_a_cut_off_primary_is_fenced_and_becomes_a_destination(cluster: Cluster) -> None:
    guest = Guest(cluster, "cut", copies=2)
    guest.wait_in_sync()
    guest.goes_on()
    ask(guest.port, "NOISE")
    host, pid = guest.host, cluster.json("inspect", guest.name)["pid"]
    cluster.run("fault", host, "partition")
    guest.goes_on()
    assert guest.host != host
    record = guest.record()
    assert not Path(f"/proc/{pid}").exists() or "T" in state_of(pid), "the old incarnation is frozen or dead"
    folder = cluster.dir / "machines" / host / "set-aside"
    assert not folder.exists()
    cluster.run("fault", "heal", host)
    guest.wait_in_sync()
    assert not Path(f"/proc/{pid}").exists()
    assert cluster.memory_id(host) in guest.record()["required"]
    (report,) = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert (report["guest"], report["guest_id"], report["host"]) == ("cut", guest.guest_id, record["host"])
    assert report["transactions"] > 0
    assert report["begins"] >= record["start"]
    # What it holds now is what the others hold: it may be the next.
    cluster.run("move", guest.name, host)
    guest.goes_on()
    guest.remove()


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"


def test_a_destination_whose_host_dies_goes_on_where_it_was(cluster: Cluster) -> None:
    guest = Guest(cluster, "steady", copies=1)
    guest.wait_in_sync()
    target = guest.destination()
    (before,) = copies_at(cluster.address(target)).copies
    guest.goes_on()
    cluster.run("fault", target, "host-kill")
    guest.goes_on()
    guest.wait_in_sync()
    (after,) = copies_at(cluster.address(target)).copies
    assert after.copy_id == before.copy_id
    assert after.held > before.held
    guest.remove()


def test_an_orderly_stop_keeps_copies_and_places(cluster: Cluster) -> None:
    guest = Guest(cluster, "kept", copies=2, bulk="8MiB")
    guest.wait_in_sync()
    guest.goes_on()
    host, required = guest.host, guest.record()["required"]
    copies = {name: [c.copy_id for c in copies_at(cluster.address(name)).copies] for name in HOSTS if name != host}
    cluster.run("down")
    cluster.run("up", "--lease", "5s", "-d")
    cluster.look()
    guest.goes_on()
    guest.wait_in_sync()
    assert guest.host == host, "no needless failover"
    assert guest.record()["required"] == required
    assert {name: [c.copy_id for c in copies_at(cluster.address(name)).copies] for name in copies} == copies
    cluster.run("fault", host, "machine-kill")
    guest.goes_on()
    assert ask(guest.port, "BULK") == 0
    guest.remove()
