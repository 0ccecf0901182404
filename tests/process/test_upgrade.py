"""The host software replaced under running guests, on one real cluster of two hosts that all tests here share."""

from __future__ import annotations

import asyncio
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.errors import FailedPrecondition
from everram.runtime.version import PACKAGE_VERSION

COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
COMMAND_TIMEOUT_S = 90.0
PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parents[2]
LATER = ("version=(2, 0),", "runtime/formats/vmemfs.py")
"""What the commit brought into which file before which there was 0.1.0, which writes VMemFS 1.1."""
BUILD_TIMEOUT_S = 120.0

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]


class Site:
    """A cluster of two hosts with a ledger on one of them."""

    def __init__(self, folder: Path) -> None:
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("EVERRAM_DIR")}
        self.environment |= {"EVERRAM_DIR": str(folder / "state"), "EVERRAM_RUN": str(folder / "run")}
        self.environment["EVERRAM_LEDGER_ACK"] = "replicated"
        self.state = folder / "state"

    def tell(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout if not code else done.stderr

    def told(self, *words: str) -> Any:
        return json.loads(self.tell(*words, "--json"))

    def guest(self) -> dict[str, Any]:
        guest: dict[str, Any] = self.told("inspect", "bank")
        return guest

    def host(self, name: str) -> dict[str, Any]:
        return next(host for host in self.told("status")["hosts"] if host["name"] == name)


@pytest.fixture(autouse=True)
def _leaves_no_process() -> None:
    """In place of everybody's: here hosts are replaced by others on purpose. `down` says that nothing is left."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="ever-") as folder:
        cluster = Site(Path(folder))
        # A long lease: hosts that are killed here start cold, which takes a busy computer more than two seconds.
        cluster.tell("up", "-d", "--hosts", "2", "--memory", "256MiB", "--nvm", "128MiB", "--lease", "10s")
        try:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            cluster.environment["PORT"] = str(port)
            run = ["run", "-d", "--name", "bank", "--region", "ledger=1MiB", "--region", "history=4MiB"]
            cluster.tell(*run, "--publish", str(port), "--", sys.executable, "-m", "everram.examples.ledger")
            yield cluster
        finally:
            for log in sorted(cluster.state.glob("machines/*/*.log")):
                print(f"{log}:\n{log.read_text()}")  # shown if a test has failed
            cluster.tell("down", "--discard")


def git(*words: str) -> bytes:
    """Raises OSError, CalledProcessError."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True).stdout


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the version before, built from the repository's history."""
    source, out = tmp_path_factory.mktemp("older"), tmp_path_factory.mktemp("wheel")
    parts = ("pyproject.toml", "README.md", "LICENSE", "runtime", "actors", "examples")
    try:
        found = git("log", "--reverse", "--format=%H", f"-S{LATER[0]}", "--", LATER[1]).split()
        archive = git("archive", f"{found[0].decode()}^", *parts)
    except (OSError, subprocess.CalledProcessError, IndexError):
        pytest.skip("there is no git history here to build the version before from")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("everram-*.whl")
    return wheel


class Teller(threading.Thread):
    """A client that transfers money one after the other and counts what was answered; any failure is its end."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self._port, self._name = port, name
        self.done = 0
        self.longest_s = 0.0
        self.failure: BaseException | None = None
        self.enough = threading.Event()

    def run(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as sock:
                lines = sock.makefile("rw", newline="\n")
                while not self.enough.is_set():
                    began_s = time.monotonic()
                    lines.write(f"TRANSFER {self.done % 100} {(self.done + 7) % 100} 1 {self._name}:{self.done + 1}\n")
                    lines.flush()
                    answer = lines.readline()
                    assert answer.startswith("OK "), answer
                    self.done += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        except BaseException as error:
            self.failure = error


def ask(port: int, line: str) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(line.encode() + b"\n")
        answer = sock.makefile().readline().split()
    assert answer[0] == "OK", answer
    return int(answer[1])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


class Asker(threading.Thread):
    """A client outside that asks a host over one gRPC channel; any error is its end."""

    def __init__(self, site: Site, host: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._host = str(site.state), host
        self.done = 0
        self.pids: set[int] = set()
        self.failure: BaseException | None = None
        self.enough = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._ask())
        except BaseException as error:
            self.failure = error

    async def _ask(self) -> None:
        async with await Cluster.connect(dir=self._folder) as cluster:
            while not self.enough.is_set():
                self.pids.add((await cluster.host(self._host).host.status(Empty(), timeout_s=PATIENCE_S)).pid)
                self.done += 1


def test_the_successor_says_whether_it_can_before_anything_is_touched(site: Site) -> None:
    before = site.host("h1")
    told = site.told("upgrade", "h1", "--preflight")["hosts"]["h1"]
    assert (told["upgraded"], told["format"], told["reads"]) == (False, told["reads"], told["format"])
    assert site.host("h1")["host_pid"] == before["host_pid"]
    refused = site.tell("upgrade", "h1", "--python", sys.prefix + "/no-such", code=2)
    assert "no-such does not exist" in refused


def test_guests_clients_and_copies_notice_nothing_of_upgrades_in_a_row(site: Site) -> None:
    port = int(site.environment["PORT"])
    before, home = site.guest(), site.guest()["host"]
    teller, asker = Teller(port, "teller"), Asker(site, home)
    pids = [site.host(home)["host_pid"]]
    for worker in (teller, asker):
        worker.start()
    for way in ([], ["--pause"], []):
        done = teller.done
        wait_for(lambda done=done: teller.done > done + 20 or not teller.is_alive(), "nothing is transferred")  # type: ignore[misc]
        told = site.told("upgrade", home, *way)["hosts"][home]
        assert told["upgraded"]
        pids.append(site.host(home)["host_pid"])
    everywhere = site.told("upgrade", "--all")["hosts"]
    assert [everywhere[name]["upgraded"] for name in ("h1", "h2")] == [True, True], "also the host with its copy"
    pids.append(site.host(home)["host_pid"])
    done = teller.done
    wait_for(lambda: teller.done > done + 20 or not teller.is_alive(), "nothing is transferred any more")
    for worker in (teller, asker):
        worker.enough.set()
        worker.join(PATIENCE_S)
    if any(host["host_restarts"] for host in site.told("status")["hosts"]):
        pytest.skip("this computer is so busy that a host said nothing for half a second, and its machine killed it")
    for worker in (teller, asker):
        assert worker.failure is None, repr(worker.failure)
    assert len(set(pids)) == 5
    assert set(pids) <= asker.pids, "it asked every one of them"
    after = site.guest()
    assert (after["pid"], after["epoch"], after["host"]) == (before["pid"], before["epoch"], home)
    assert ask(port, "LAST teller") == teller.done
    assert ask(port, "SUM") == 100_000


def test_a_later_memory_is_refused_by_the_version_before_and_rolled_back_for_it(site: Site, older: Path) -> None:
    port = int(site.environment["PORT"])
    before, home = site.guest(), site.guest()["host"]
    pid = site.host(home)["host_pid"]
    refused = site.tell("upgrade", home, "--python", str(older), code=1)
    assert f"written by everram {PACKAGE_VERSION} in version 2.0, this is everram 0.1.0 with version 1.1" in refused
    assert site.host(home)["host_pid"] == pid, "it was asked, and nothing was touched"
    told = site.told("upgrade", home, "--rollback", "--preflight")["hosts"][home]
    assert told["format"] == "1.1"
    assert len(told["lost"]) == 2
    teller = Teller(port, "traveller")
    teller.start()
    for way in (["--rollback", "--python", str(older)], []) * 2:
        done = teller.done
        wait_for(lambda done=done: teller.done > done + 20 or not teller.is_alive(), "nothing is transferred")  # type: ignore[misc]
        told = site.told("upgrade", home, *way)["hosts"][home]
        assert (told["version"], told["format"]) == (("0.1.0", "1.1") if way else (PACKAGE_VERSION, "1.1"))
        assert site.host(home)["version"] == told["version"]
    teller.enough.set()
    teller.join(PATIENCE_S)
    assert teller.failure is None, repr(teller.failure)
    after = site.guest()
    assert (after["pid"], after["epoch"], after["host"]) == (before["pid"], before["epoch"], home)
    assert ask(port, "LAST traveller") == teller.done
    assert ask(port, "SUM") == 100_000


def test_a_suspended_guest_stays_so_over_upgrades_and_goes_on_where_it_was(site: Site) -> None:
    port = int(site.environment["PORT"])
    before, home = site.guest(), site.guest()["host"]
    count = ask(port, "COUNT")
    suspended = site.told("suspend", "bank")
    assert (suspended["state"], suspended["pid"]) == ("frozen", before["pid"])
    for way in ([], ["--pause"]):
        assert site.told("upgrade", home, *way)["hosts"][home]["upgraded"]
        assert site.guest()["state"] == "frozen"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"COUNT\n")
        assert not select.select([sock], [], [], 0.2)[0], "it answers although it is suspended"
        resumed = site.told("resume", "bank")
        assert (resumed["state"], resumed["pid"], resumed["epoch"]) == ("running", before["pid"], before["epoch"])
        assert sock.makefile().readline() == f"OK {count}\n"
    site.told("suspend", "bank")
    site.told("stop", "bank")
    site.told("start", "bank")
    wait_for(lambda: site.guest()["state"] == "running", "a guest that was stopped while suspended does not start")
    wait_for(lambda: ask(port, "COUNT") == count, "it serves again")


def test_a_host_that_is_killed_while_it_hands_over_is_succeeded_all_the_same(site: Site) -> None:
    """SIGSTOP makes it deaf, so the hand-over waits for it; its death is what hands over."""
    before = site.guest()
    home = before["host"]
    pid = site.host(home)["host_pid"]
    upgrading = subprocess.Popen(
        [*COMMAND, "upgrade", home, "--json"], env=site.environment, stdout=subprocess.PIPE, text=True
    )
    log = site.state / "machines" / home / "machine.log"
    began = log.read_text().count("the successor can take the memory")
    wait_for(lambda: log.read_text().count("the successor can take the memory") > began, "there is no successor")
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was faster
    out, _ = upgrading.communicate(timeout=COMMAND_TIMEOUT_S)
    assert json.loads(out)["hosts"][home]["upgraded"]
    after = site.guest()
    assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])


def test_software_that_cannot_be_started_leaves_the_host_untouched(site: Site, tmp_path: Path) -> None:
    home = site.guest()["host"]
    pid = site.host(home)["host_pid"]
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    refused = site.tell("upgrade", home, "--python", str(tmp_path), code=1)
    assert "no everram that could serve" in refused
    for path, why in ((str(python), "status 3"), ("/no/such", "does not exist")):
        with pytest.raises(FailedPrecondition, match=why):
            asyncio.run(_upgrade_with(site, home, path))
    assert site.host(home)["host_pid"] == pid


async def _upgrade_with(site: Site, host: str, python: str) -> None:
    from everram.runtime.contracts.supervisor_pb2 import UpgradeRequest

    async with await Cluster.connect(dir=str(site.state)) as cluster:
        await cluster.supervisor.upgrade(UpgradeRequest(machine=host, python=python), timeout_s=COMMAND_TIMEOUT_S)
