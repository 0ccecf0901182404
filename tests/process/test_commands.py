"""The `everram` command, as users type it, on real clusters."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.coordination import directory
from everram.runtime.coordination.api import KeyValue, prefix
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.machine import tree
from tests.user import COMMAND_TIMEOUT_S, PATIENCE_S, User, free_port, until, user_in

pytestmark = [pytest.mark.process, pytest.mark.timeout(170)]


@pytest.fixture
def everram(tmp_path: Path) -> Iterator[User]:
    with user_in(tmp_path) as user:
        yield user


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A small cluster for tests that leave it as they found it."""
    with user_in(tmp_path_factory.mktemp("shared")) as user:
        user.run("up", "--hosts", "2", "--memory", "256MiB", "--nvm", "64MiB", "-d")
        yield user


class Teller(threading.Thread):
    """A client of the bank on one connection: transfers until told to stop. Every error ends it, and is kept."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(name=name)
        self.acknowledged = 0
        self.error: BaseException | None = None
        self._port = port
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            with Bank(self._port) as bank:
                while not self._stop_asked.wait(0.002):
                    n = self.acknowledged + 1
                    bank.ask(f"TRANSFER {n % 100} {(n + 1) % 100} 1 {self.name}:{n}")
                    self.acknowledged = n
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(PATIENCE_S)


class Bank:
    """One connection to examples/ledger.py."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._lines = self._socket.makefile("r")

    def ask(self, line: str) -> int:
        self._socket.sendall(line.encode() + b"\n")
        answer = self._lines.readline()
        assert answer.startswith("OK "), f"{line}: {answer!r}"
        return int(answer[3:])

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


def host_restarts(everram: User, host: str) -> int:
    found = next(h for h in everram.json("status")["hosts"] if h["name"] == host)
    return int(found["host_restarts"]) if found["host_state"] == "ready" else -1


def test_a_bank_lives_through_the_death_of_its_host_and_an_orderly_stop(everram: User) -> None:
    started = everram.json("up", "--hosts", "3", "-d")
    assert started["hosts"] == ["h1", "h2", "h3"]
    port = free_port()
    bank = ("--name", "bank", "--region", "ledger=16MiB", "--publish", str(port))
    everram.run("run", "-d", *bank, "--", "python", "examples/ledger.py")
    before = everram.json("inspect", "bank")
    assert {"guest", "guest_id", "state", "host", "pid", "epoch", "regions"} <= before.keys()
    assert (before["state"], before["epoch"]) == ("running", 1)
    assert [(r["name"], r["size_bytes"]) for r in before["regions"]] == [("ledger", 16 << 20)]
    host = before["host"]

    tellers = [Teller(port, f"teller{number}") for number in range(4)]
    for teller in tellers:
        teller.start()
    for restarts, fault in enumerate(("host-kill", "hang"), start=1):
        since = [teller.acknowledged for teller in tellers]
        everram.run("fault", host, fault)
        until(lambda restarts=restarts: host_restarts(everram, host) == restarts, f"{host} is back after {fault}")  # type: ignore[misc]
        for teller, reached in zip(tellers, since, strict=True):
            until(lambda t=teller, reached=reached: t.acknowledged > reached or not t.is_alive(), "transfers go on")  # type: ignore[misc]
    for teller in tellers:
        teller.stop()
    assert [teller.error for teller in tellers] == [None] * len(tellers)
    after = everram.json("inspect", "bank")
    assert (after["pid"], after["epoch"], after["guest_id"]) == (before["pid"], 1, before["guest_id"])
    with Bank(port) as connection:
        balances = [connection.ask(f"BALANCE {account}") for account in range(100)]
        assert connection.ask("SUM") == 100_000
        assert connection.ask("COUNT") == sum(teller.acknowledged for teller in tellers)

    everram.run("down")
    everram.ended()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1.0)
    everram.run("up", "-d")
    with Bank(port) as connection:
        assert [connection.ask(f"BALANCE {account}") for account in range(100)] == balances
        assert [connection.ask(f"LAST {teller.name}") for teller in tellers] == [t.acknowledged for t in tellers]
        assert connection.ask("SUM") == 100_000
    restored = everram.json("inspect", "bank")
    assert (restored["guest_id"], restored["epoch"]) == (before["guest_id"], 2)


def test_two_clusters_side_by_side(everram: User, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        other = User(tmp_path / "deep" / ("x" * 120) / ("y" * 120), runtime)
        for user in (everram, other):
            user.run("up", "--hosts", "1", "-d")
            user.run("run", "-d", "--name", "same", "--region", "r=64KiB", "--", "sleep", "1000")
        ids = {user.json("inspect", "same")["guest_id"] for user in (everram, other)}
        assert len(ids) == 2
        other.run("rm", "--regions", "--force", "same")
        assert other.json("guests")["guests"] == []
        assert [g["guest"] for g in everram.json("guests")["guests"]] == ["same"]
        other.run("down")
        other.ended()
        assert everram.json("inspect", "same")["state"] == "running"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("inspect", "nobody"), 2, 'there is no guest "nobody": `everram guests` lists them all'),
        (("logs", "nobody"), 2, 'no guest "nobody"'),
        (("stop", "nobody"), 2, 'no guest "nobody"'),
        (("rm", "nobody"), 2, 'no guest "nobody"'),
        (("fault", "nobody", "guest-kill"), 2, 'no guest "nobody"'),
        (("fault", "h9", "host-kill"), 2, 'no host "h9"'),
        (("fault", "h1", "frobnicate"), 2, '"frobnicate" is no fault'),
        (("fault", "h1", "power-cut"), 2, "write `everram power cut h1`"),
        (("fault", "heal", "h9"), 2, 'no host "h9": choose one of h1, h2'),
        (("fault", "h1", "heal"), 2, "write `everram fault heal h1`"),
        (("fault", "heal", "h1"), 1, "nothing of h1 is broken"),
        (("fault", "h1", "guest-kill"), 2, "h1 is a host"),
        (("move", "nobody", "h1"), 2, 'no guest "nobody"'),
        (("run", "-d", "--region", "big=1TiB", "--", "sleep", "9"), 1, "big"),
        (("run", "-d", "--region", "r=lots", "--", "sleep", "9"), 2, "such as 64MiB"),
        (("run", "-d", "--region", "r", "--", "sleep", "9"), 2, "NAME=SIZE"),
        (("run", "-d", "--region", "a/b=1MiB", "--", "sleep", "9"), 2, "cannot be the name of a region"),
        (("run", "-d", "--region", "r=1MiB", "--region", "r=1MiB", "--", "sleep", "9"), 2, "named twice"),
        (("run", "-d", "--name", "a b", "--", "sleep", "9"), 2, "cannot be"),
        (("run", "--", "no-such-program"), 2, 'no program "no-such-program"'),
        (("run", "--", "./no/such/program"), 2, 'no program "./no/such/program"'),
        (("run", "--", "./README.md"), 2, "cannot be executed"),
        (("run", "-d", "--publish", "99999", "--", "sleep", "9"), 2, "1 to 65535"),
        (("run", "-d", "--copies", "2", "--", "sleep", "9"), 2, "choose 0 to 1"),
        (("run", "-d", "--publish", "0", "--", "sleep", "9"), 2, "1 to 65535"),
        (("run", "-d", "--memory", "64KiB", "--", "sleep", "9"), 2, "at least 1.0 MiB"),
        (("up", "--coordination", "etcd://127.0.0.1:2379"), 2, "not built yet"),
        (("up", "-d"), 2, "already running"),
        (("power", "cut"), 2, "name hosts, or give --all"),
        (("power", "cut", "h9"), 2, 'no host "h9"'),
        (("status", "--cluster", "../x"), 2, "cannot be the name of a cluster"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(shared: User, arguments: tuple[str, ...], status: int, sentence: str) -> None:
    assert sentence in shared.refused(*arguments, status=status)
    assert shared.json("guests")["guests"] == []
    assert shared.json("status")["ports"] == []


def test_a_port_in_use_is_refused_before_the_guest_runs(shared: User) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        sentence = shared.refused("run", "-d", "--publish", port, "--", "sleep", "9", status=2)
    assert sentence == f"port {port} is in use by another program: choose another one with --publish"
    assert shared.json("guests")["guests"] == []


def test_a_name_is_taken_once(shared: User) -> None:
    shared.run("run", "-d", "--name", "one", "--", "sleep", "1000")
    assert 'a guest named "one" exists' in shared.refused("run", "-d", "--name", "one", "--", "sleep", "9", status=2)
    shared.run("rm", "--force", "one")


def test_lifecycle(shared: User) -> None:
    shared.run("run", "-d", "--name", "life", "--region", "r=64KiB", "--", "sh", "-c", "echo begun; exec sleep 1000")
    first = shared.json("inspect", "life")
    assert "is running" in shared.refused("rm", "--regions", "life", status=1)
    assert "add --regions" in shared.refused("rm", "life", status=1)
    assert shared.json("stop", "life")["state"] == "stopped"
    again = shared.json("start", "life")
    assert (again["epoch"], again["guest_id"]) == (first["epoch"] + 1, first["guest_id"])
    assert "runs already" in shared.refused("start", "life", status=1)
    third = shared.json("restart", "life")
    assert third["epoch"] == again["epoch"] + 1
    shared.run("fault", "life", "guest-kill")
    until(lambda: shared.json("inspect", "life")["epoch"] == third["epoch"] + 1, "restarted after guest-kill")
    until(lambda: shared.run("logs", "life") == "begun\n" * 4, "its output, of every incarnation")
    assert shared.run("logs", "--tail", "2", "life") == "begun\n" * 2
    shared.run("rm", "--regions", "--force", "life")
    assert 'no guest "life"' in shared.refused("inspect", "life", status=2)


def test_attached_run_shows_the_output_and_returns_the_exit_status(shared: User) -> None:
    script = "echo out; echo err >&2; exit 7"
    status, out, err = shared.try_run("run", "--name", "brief", "--", "sh", "-c", script)
    assert (status, sorted(out.split())) == (7, ["err", "out"])
    assert "brief has ended" in err
    assert shared.json("inspect", "brief")["exit_status"] == 7
    shared.run("rm", "brief")
    assert shared.try_run("run", "--name", "fine", "--", "true") == (0, "", "")
    shared.run("rm", "fine")


def test_program_is_resolved_where_the_caller_is_with_everrams_own_first(shared: User, tmp_path: Path) -> None:
    script = tmp_path / "here.sh"
    script.write_text('#!/bin/sh\necho "$PWD $VARIABLE"\ncommand -v python\n')
    script.chmod(0o755)
    shared.environment["VARIABLE"] = "of the caller"
    try:
        _, out, _ = shared.try_run("run", "--name", "here", "--", "./here.sh", cwd=tmp_path)
    finally:
        del shared.environment["VARIABLE"]
    assert out.splitlines() == [f"{tmp_path} of the caller", str(Path(sys.executable).parent / "python")]
    shared.run("rm", "here")


def test_ctrl_c_stops_an_attached_guest(shared: User) -> None:
    with shared.start("run", "--name", "long", "--", "sh", "-c", "echo begun; exec sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert shared.json("inspect", "long")["state"] == "stopped"
    shared.run("rm", "long")


def test_output_that_nobody_reads_is_no_error(shared: User) -> None:
    with shared.start("run", "--name", "chatty", "--", "sh", "-c", "while :; do echo line; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
    shared.run("rm", "--force", "chatty")


def test_coordination_is_replaced_when_it_dies_and_when_it_hangs(shared: User) -> None:
    shared.run("run", "-d", "--name", "calm", "--", "sleep", "1000")
    before = shared.json("inspect", "calm")
    for number in (signal.SIGKILL, signal.SIGSTOP):
        old = shared.json("status")["coordination"]
        os.kill(old["pid"], number)

        def replaced(old: dict[str, Any] = old) -> bool:
            now = shared.json("status")["coordination"]
            return bool(now["state"] == "up" and now["pid"] != old["pid"] and now["restarts"] == old["restarts"] + 1)

        until(replaced, f"coordination is replaced after {number.name}")
    shared.run("run", "-d", "--name", "later", "--", "sleep", "1000")
    after = shared.json("inspect", "calm")
    assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])
    for name in ("calm", "later"):
        shared.run("rm", "--force", name)


def test_nothing_of_a_machine_outlives_it(everram: User) -> None:
    """A guest's child that left its session, its process group and its parent dies with its machine."""
    everram.run("up", "--hosts", "1", "-d")
    escape = f"setsid {sys.executable} -c 'import time; time.sleep(1000)' & sleep 0.2"
    everram.run("run", "-d", "--name", "fled", "--", "sh", "-c", f"{escape}; exec sleep 1000")
    status = everram.json("status")
    mark = f"{status['cluster_id']}/h1"
    until(lambda: len(tree.marked(mark)) == 4, "machine, host, guest and its child run")
    os.kill(status["hosts"][0]["pid"], signal.SIGKILL)
    until(lambda: everram.json("status")["hosts"][0]["state"] == "dead", "the supervisor calls it dead")
    assert tree.marked(mark) == []
    assert "memory with it" in everram.json("status")["hosts"][0]["reason"]
    assert "h1 is dead" in everram.refused("fault", "h1", "hang", status=1)
    everram.run("down")


def directory_of(everram: User) -> dict[str, dict[str, Any]]:
    """What coordination holds, by key below the root."""

    async def read() -> list[KeyValue]:
        client = CoordinationClient(everram.json("status")["coordination"]["address"])
        try:
            return (await client.range(prefix(directory.ROOT)))[1]
        finally:
            await client.close()

    return {
        pair.key.removeprefix(directory.ROOT).decode(): directory.decode(pair.value) for pair in asyncio.run(read())
    }


def host_of(everram: User, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(host for host in everram.json("status")["hosts"] if host["name"] == name)
    return found


def test_a_killed_machine_is_dead_at_once_and_comes_back_empty(everram: User) -> None:
    everram.run("up", "--hosts", "3", "--memory", "256MiB", "-d")
    bank = everram.json("run", "-d", "--name", "bank", "--region", "r=1MiB", "--copies", "0", "--", "sleep", "1000")
    everram.run("down")
    everram.run("up", "-d")  # from here on there is an image that has been opened
    host, guest_id = bank["host"], bank["guest_id"]
    until(lambda: f"serving/{guest_id}" in directory_of(everram), "the guest serves again")
    before = host_of(everram, host)
    assert directory_of(everram)[f"machines/{host}"] == {"state": "up"}

    everram.run("fault", host, "machine-kill")
    until(lambda: f"hosts/{host}" not in directory_of(everram), "its lease is ended")
    seen = directory_of(everram)
    assert seen[f"machines/{host}"] == {"state": "dead"}
    assert f"serving/{guest_id}" not in seen
    proof = [line for line in (everram.dir / "supervisor.log").read_text().splitlines() if "the death of" in line]
    print(proof[-1])
    assert host_of(everram, host)["state"] == "dead"
    assert "dead" in everram.run("status")
    assert "is dead" in everram.refused("fault", host, "partition", status=1)
    began = time.monotonic()
    assert [(g["guest"], g["host"]) for g in everram.json("guests")["guests"]] == [("bank", host)]
    everram.run("run", "-d", "--name", "other", "--", "sleep", "1000")
    assert time.monotonic() - began < PATIENCE_S / 2, "no command waits for a dead machine"

    everram.run("fault", "heal", host)
    until(lambda: f"hosts/{host}" in directory_of(everram), "it holds a lease again")
    seen, healed = directory_of(everram), host_of(everram, host)
    assert seen[f"machines/{host}"] == {"state": "up"}
    assert (healed["host_state"], healed["guests"], healed["nvm"]["allocated_bytes"]) == ("ready", 0, 0)
    assert healed["memory_id"] not in ("", before["memory_id"])
    assert seen[f"hosts/{host}"]["memory_id"] == healed["memory_id"]
    assert (everram.dir / "machines" / host / "image.lost-1").is_dir()
    assert "image.lost-1" in (everram.dir / "supervisor.log").read_text()
    assert "nothing of" in everram.refused("fault", "heal", host, status=1)
    everram.run("fault", host, "machine-kill")
    everram.run("fault", "heal", host)
    everram.run("down")
    everram.run("up", "-d")
    assert everram.json("inspect", "other")["state"] == "running"


def test_a_cut_off_machine_serves_nobody_until_it_is_healed(everram: User, tmp_path: Path) -> None:
    everram.run("up", "--hosts", "2", "--memory", "256MiB", "--lease", "2s", "-d")
    port = free_port()
    bank = ("--name", "bank", "--region", "ledger=1MiB", "--copies", "0", "--publish", str(port))
    host = everram.json("run", "-d", *bank, "--", "python", "examples/ledger.py")["host"]
    teller = Teller(port, "teller")
    teller.start()
    until(lambda: teller.acknowledged > 0, "the bank serves")
    pid = everram.json("inspect", "bank")["pid"]

    everram.run("fault", host, "partition")
    teller.join(PATIENCE_S)
    assert isinstance(teller.error, ConnectionResetError | AssertionError), "its connection is reset"
    assert "cut off already" in everram.refused("fault", host, "partition", status=1)
    until(lambda: not host_of(everram, host)["lease"]["held"], "its lease has run out")
    until(lambda: f"hosts/{host}" not in directory_of(everram), "its place in the directory is gone")
    until(lambda: not runs(pid), "the guest runs no more")
    seen = host_of(everram, host)
    assert (seen["state"], seen["cut"], directory_of(everram)[f"machines/{host}"]) == ("up", True, {"state": "up"})
    assert "cut off" in everram.run("status")
    assert [g["guest"] for g in everram.json("guests")["guests"]] == ["bank"]
    everram.run("fault", host, "host-kill")
    until(lambda: host_restarts(everram, host) == 1, "the next host is there")
    assert host_of(everram, host)["cut"]

    everram.run("fault", "heal", host)
    until(lambda: host_of(everram, host)["lease"]["held"], "it holds a lease again")
    until(lambda: everram.json("inspect", "bank")["epoch"] == 2, "a new incarnation runs")
    with Bank(port) as connection:
        assert connection.ask("LAST teller") in (teller.acknowledged, teller.acknowledged + 1)
    assert not host_of(everram, host)["cut"]
    everram.run("fault", host, "hang")
    status, _, complaint = everram.try_run("fault", "heal", host)
    # Its machine needs no help: on a busy computer the next host may be ready before the command has begun.
    assert status == 0 or f"nothing of {host} is broken" in complaint
    assert host_of(everram, host)["host_state"] == "ready"
    for fault in ("link-slow", "one-way", "disk-fails"):
        everram.run("fault", host, fault)
    assert host_of(everram, host)["faults"] == ["one-way", "disk-fails"]
    assert "ready, one-way, disk-fails" in everram.run("status")
    everram.run("fault", "heal", host)
    assert host_of(everram, host)["faults"] == []


def runs(pid: int) -> bool:
    """Whether the process is there and not stopped."""
    found = tree.read_process(pid)
    return found is not None and found.state not in "TtZX"


def test_ctrl_c_of_up_is_the_orderly_stop(everram: User) -> None:
    with everram.start("up", "--hosts", "1") as process:
        assert process.stdout is not None
        until(lambda: "it runs until Ctrl-C" in process.stdout.readline(), "ready")  # type: ignore[union-attr]
        everram.run("run", "-d", "--name", "kept", "--region", "r=64KiB", "--", "sleep", "1000")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    assert "saved" in out
    everram.ended()
    everram.run("up", "-d")
    until(lambda: everram.json("inspect", "kept")["state"] == "running", "restarted")
    assert everram.json("inspect", "kept")["epoch"] == 2


def test_a_crash_of_everything_is_recognised_and_explained(everram: User) -> None:
    everram.run("up", "--hosts", "1", "-d")
    everram.run("run", "-d", "--name", "lost", "--", "sleep", "1000")
    status = everram.json("status")
    os.kill(status["pid"], signal.SIGKILL)
    until(lambda: tree.marked(f"{status['cluster_id']}/h1") == [], "machines die with their supervisor")
    assert "no cluster is running" in everram.refused("status", status=1)
    out = everram.run("up", "-d")
    assert "not stopped in order" in out
    assert "guest lost is lost" in out
    everram.run("run", "-d", "--name", "lost", "--", "sleep", "1000")
    everram.run("down")
    everram.run("up", "-d")
    os.kill(everram.json("status")["pid"], signal.SIGKILL)
    # What was saved is older than what guests wrote since, and is not taken without a word.
    code, _, err = everram.try_run("up", "-d")
    assert code == 1
    assert "`everram up --open opened`" in err
    everram.ended()
    everram.run("up", "-d", "--open", "opened")
    until(lambda: everram.json("inspect", "lost")["state"] == "running", "restarted from the image")


def test_a_stop_that_cannot_save_stops_nothing(everram: User) -> None:
    everram.run("up", "--hosts", "2", "-d")
    for name in ("a", "b"):
        everram.run("run", "-d", "--name", name, "--region", "r=64KiB", "--copies", "0", "--", "sleep", "1000")
    before = everram.json("guests")["guests"]
    assert {guest["host"] for guest in before} == {"h1", "h2"}
    in_the_way = everram.dir / "machines" / "h1" / "image"
    in_the_way.write_text("")
    code, _, err = everram.try_run("down")
    assert code == 1
    assert "h1 cannot be saved" in err
    assert "goes on running" in err
    after = everram.json("guests")["guests"]
    assert [(g["pid"], g["state"], g["epoch"]) for g in after] == [(g["pid"], "running", 1) for g in before]
    in_the_way.unlink()
    everram.run("down")
    everram.run("up", "-d")
    until(lambda: {g["state"] for g in everram.json("guests")["guests"]} == {"running"}, "both are restarted")


def test_damaged_state_is_refused_with_the_files_name(everram: User) -> None:
    everram.run("up", "--hosts", "1", "-d")
    everram.run("down")
    config = everram.dir / "cluster.json"
    good = config.read_text()
    config.write_text(good[:-20])
    assert str(config) in everram.refused("up", "-d", status=1)
    config.write_text(good)
    host = everram.dir / "machines" / "h1" / "host.json"
    host.write_text("{}")
    assert str(host) in everram.refused("up", "-d", status=2)


def test_without_a_cluster(everram: User) -> None:
    for command in (("status",), ("guests",), ("down",), ("run", "--", "true"), ("fault", "h1", "hang")):
        sentence = everram.refused(*command, status=1)
        assert sentence == f"no cluster is running in {everram.dir}: start one with `everram up --dir {everram.dir}`"
    del everram.environment["EVERRAM_DIR"]
    everram.environment["XDG_STATE_HOME"] = str(everram.dir)
    assert everram.refused("status", status=1) == 'no cluster "default" is running: start one with `everram up`'
    lab = everram.refused("status", "--cluster", "lab", status=1)
    assert lab == 'no cluster "lab" is running: start one with `everram up --cluster lab`'
