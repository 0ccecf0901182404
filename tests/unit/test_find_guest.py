"""Clients find a guest where the directory says, and wait for no machine that is dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from everram.runtime.client import cluster as client
from everram.runtime.client.cluster import Cluster, Host
from everram.runtime.client.whereabouts import Place, named
from everram.runtime.cluster.folders import Folders
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.contracts.hypervisor_pb2 import GuestList, GuestName, MoveRequest
from everram.runtime.errors import Aborted, FailedPrecondition, NotFound, Unavailable


class Hypervisor:
    """As much of a host as is asked for."""

    def __init__(self, host: str, *guests: pb.Guest) -> None:
        self.guests = list(guests)
        self.host = host
        self.asked = 0
        self.moved: Callable[[MoveRequest], object] = lambda request: None

    async def inspect(self, request: GuestName) -> pb.Guest:
        self.asked += 1
        for guest in self.guests:
            if request.guest in (guest.guest_id, guest.name):
                return guest
        raise NotFound("no such guest")

    async def list(self, _: pb.Empty, *, timeout_s: float = 0.0) -> GuestList:
        self.asked += 1
        return GuestList(guests=self.guests)

    async def move(self, request: MoveRequest, *, timeout_s: float) -> pb.Empty:
        self.moved(request)
        return pb.Empty()


class Bench:
    """A cluster of three hosts; `places` is the directory, None while it does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.setattr(client, "PATIENCE_S", 0.3)
        monkeypatch.setattr(client, "RETRY_S", 0.01)
        self.cluster = Cluster(Folders(tmp_path, tmp_path))
        self.hypervisors = {name: Hypervisor(name) for name in ("h1", "h2", "h3")}
        self.places: dict[str, Place] | None = {}
        self.dead: set[str] = set()
        self.cut: set[str] = set()
        self.reads: list[Callable[[], object]] = []
        """Called one after the other, at each read of the directory."""
        hosts: Any = {n: SimpleNamespace(name=n, hypervisor=h) for n, h in self.hypervisors.items()}
        supervisor: Any = SimpleNamespace(status=self._status)
        whereabouts: Any = SimpleNamespace(read=self._read)
        self.cluster._hosts, self.cluster.supervisor, self.cluster._whereabouts = hosts, supervisor, whereabouts

    async def _status(self, _: pb.Empty) -> Any:
        machines = [
            SimpleNamespace(name=n, state="dead" if n in self.dead else "up", cut=n in self.cut)
            for n in self.hypervisors
        ]
        return SimpleNamespace(machines=machines)

    async def _read(self) -> dict[str, Place] | None:
        if self.reads:
            self.reads.pop(0)()
        return self.places

    def put(self, host: str, *, epoch: int = 1, state: str = "running", has: bool = True) -> pb.Guest:
        """The guest "bank", as the directory has it, and on that host."""
        assert self.places is not None
        self.places["g1"] = Place("g1", "bank", host, epoch, state, revision=1)
        guest = pb.Guest(guest_id="g1", name="bank", host=host, epoch=epoch, state=pb.RUNNING)
        if has:
            self.hypervisors[host].guests.append(guest)
        return guest

    async def find(self, name: str = "bank") -> tuple[str, int]:
        found: tuple[Host, pb.Guest] = await self.cluster.find_guest(name)
        return found[0].name, found[1].epoch


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Bench:
    return Bench(monkeypatch, tmp_path)


async def test_only_the_host_that_has_it_is_asked(bench: Bench) -> None:
    bench.put("h2")
    assert await bench.find() == ("h2", 1)
    assert await bench.find("g1") == ("h2", 1)
    assert [h.asked for h in bench.hypervisors.values()] == [0, 2, 0]


async def test_a_returned_old_host_is_not_believed(bench: Bench) -> None:
    bench.put("h1", epoch=1)
    bench.put("h3", epoch=2)
    assert await bench.find() == ("h3", 2)
    (guest,), silent = await bench.cluster.guests()
    assert (guest.host, guest.epoch, silent) == ("h3", 2, {})


async def test_a_failover_is_waited_for(bench: Bench) -> None:
    bench.put("h1")
    bench.dead.add("h1")
    bench.reads = [
        lambda: None,
        lambda: bench.put("h1", epoch=2, state="failing-over", has=False),
        lambda: bench.put("h2", epoch=2, state="chosen", has=False),
        lambda: bench.put("h2", epoch=3, has=False),
        lambda: bench.put("h2", epoch=3),
    ]
    assert await bench.find() == ("h2", 3)
    assert bench.hypervisors["h1"].asked == 0


@pytest.mark.parametrize(
    ("state", "error", "sentence"),
    [
        ("running", Unavailable, "was on h1, which is dead"),
        ("failing-over", Unavailable, "was on h1, which is dead"),
        ("lost", FailedPrecondition, "its memory ended with h1.*`everram rm bank` frees its name"),
    ],
)
async def test_nobody_has_it(bench: Bench, state: str, error: type[Exception], sentence: str) -> None:
    bench.put("h1", state=state)
    bench.dead.add("h1")
    with pytest.raises(error, match=sentence):
        await bench.find()
    (guest,), silent = await bench.cluster.guests()
    assert (guest.state, guest.reason) == (0, "unserved" if state == "running" else state)
    assert (silent, bench.hypervisors["h1"].asked) == ({}, 0)


async def test_without_a_directory_the_hosts_are_asked(bench: Bench) -> None:
    bench.put("h1", epoch=1)
    bench.put("h2", epoch=2)
    bench.places = None
    assert await bench.find() == ("h2", 2)
    with pytest.raises(NotFound):
        await bench.find("shop")
    bench.dead.add("h3")
    with pytest.raises(Unavailable, match="h3: its machine is dead"):
        await bench.find("shop")


async def test_a_guest_that_is_not_in_the_directory_yet(bench: Bench) -> None:
    bench.hypervisors["h3"].guests.append(pb.Guest(guest_id="g9", name="new", host="h3", epoch=1))
    assert await bench.find("new") == ("h3", 1)
    with pytest.raises(NotFound, match="`everram guests` lists them all"):
        await bench.find()


async def test_insisting_follows_a_guest_to_its_next_host(bench: Bench) -> None:
    guest = bench.put("h1")
    asked: list[str] = []

    async def act(host: Host) -> str:
        asked.append(host.name)
        if host.name == "h1":
            bench.dead.add("h1")
            bench.put("h2", epoch=2)
            raise Unavailable("it has ended")
        return "done"

    assert await bench.cluster.insist(guest, act) == "done"
    assert asked == ["h1", "h2"]


async def test_a_host_that_lost_its_guest_without_knowing_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOOK_S", 0.01)
    guest = bench.put("h1")
    left = asyncio.Event()

    async def act(host: Host) -> str:
        if host.name == "h1":
            bench.put("h2", epoch=2, state="failing-over", has=False)
            bench.reads = [lambda: None, lambda: bench.put("h2", epoch=2)]
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
        return host.name

    assert await bench.cluster.insist(guest, act) == "h2"
    assert left.is_set()


async def test_a_move_ends_where_it_was_meant_to(bench: Bench) -> None:
    guest = bench.put("h1")
    with pytest.raises(FailedPrecondition, match="on h1 already"):
        await bench.cluster.move(guest, "h1")
    with pytest.raises(NotFound, match='no host "h9"'):
        await bench.cluster.move(guest, "h9")
    bench.hypervisors["h1"].moved = lambda request: bench.put(request.host, epoch=2)
    moved = await bench.cluster.move(guest, "h3")
    assert (moved.host, moved.epoch) == ("h3", 2)
    bench.hypervisors["h3"].moved = lambda request: bench.put("h1", epoch=3)
    with pytest.raises(Aborted, match="runs on h1, because h2 could not take it"):
        await bench.cluster.move(moved, "h2")


async def test_new_guests_run_on_hosts_that_can_be_reached(bench: Bench) -> None:
    bench.dead.add("h1")
    bench.cut.add("h2")
    assert [host.name for host in await bench.cluster._reachable()] == ["h3"]


def test_by_name_or_id() -> None:
    place = Place("g1", "bank", "h1", 1, "running", revision=1)
    assert named({"g1": place}, "g1") == named({"g1": place}, "bank") == place
    assert named({"g1": place}, "shop") is None
