"""The host software replaced under running guests, on one real cluster of two hosts that all tests here share."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from everram.runtime.cli.software import interpreter
from everram.runtime.client import Cluster
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.supervisor_pb2 import UpgradeReport, UpgradeRequest
from everram.runtime.contracts.vmemfs_pb2 import RollbackRequest
from everram.runtime.errors import FailedPrecondition
from everram.runtime.version import PACKAGE_VERSION
from tests.user import PATIENCE_S, ROOT, User, free_port, until, user_in

LATER = ("version=(2, 0),", "runtime/formats/vmemfs.py")
"""What the commit brought into which file before which there was 0.1.0, which writes VMemFS 1.1."""
UPGRADE_TIMEOUT_S = 90.0

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

T = TypeVar("T")


class Bank(User):
    """With a ledger on one of two hosts."""

    port = 0

    def guest(self) -> dict[str, Any]:
        return self.json("inspect", "bank")

    def upgraded(self, *words: str) -> dict[str, Any]:
        """By the command; what it says of each host."""
        told: dict[str, Any] = self.json("upgrade", *words)["hosts"]
        return told

    def ask(self, what: Callable[[Cluster], Awaitable[T]]) -> T:
        """By the client in this process: a command takes half a second to start."""

        async def asked() -> T:
            async with await Cluster.connect(dir=str(self.dir)) as cluster:
                return await what(cluster)

        return asyncio.run(asked())

    def upgrade(self, host: str, *, python: str = sys.executable, pause: bool = False) -> UpgradeReport:
        request = UpgradeRequest(machine=host, python=python, pause=pause)
        return self.ask(lambda cluster: cluster.supervisor.upgrade(request, timeout_s=UPGRADE_TIMEOUT_S))

    def served_by(self, host: str) -> tuple[int, str]:
        """Process and version of the host software."""
        found = self.ask(lambda cluster: cluster.host(host).host.status(Empty(), timeout_s=PATIENCE_S))
        return found.pid, found.version

    def memory_version(self, host: str) -> str:
        """Of the format that is written."""
        return self.ask(lambda cluster: cluster.host(host).vmemfs.status(Empty())).version

    def restarts(self) -> int:
        """Of hosts that died: not one was meant to."""
        return sum(machine.host_restarts for machine in self.ask(lambda c: c.supervisor.status(Empty())).machines)

    def machine_log(self, host: str) -> str:
        return (self.dir / "machines" / host / "machine.log").read_text()


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with user_in(tmp_path_factory.mktemp("upgrade"), Bank) as user:
        # A long lease: hosts that are killed here start cold, which takes a busy computer more than two seconds.
        user.run("up", "-d", "--hosts", "2", "--memory", "256MiB", "--nvm", "128MiB", "--lease", "10s")
        user.port = free_port()
        ledger = (sys.executable, "-m", "everram.examples.ledger", "--ack", "replicated")
        regions = ("--region", "ledger=1MiB", "--region", "history=4MiB")
        user.run("run", "-d", "--name", "bank", *regions, "--publish", str(user.port), "--", *ledger)
        yield user
        for log in sorted(user.dir.glob("machines/*/*.log")):
            print(f"{log}:\n{log.read_text()}")  # shown if a test has failed


def git(*words: str) -> bytes:
    """Raises OSError, CalledProcessError."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True).stdout


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the version before, made of what the repository's history has: the files that a build would put there,
    without the environment of its own that a build makes first."""
    try:
        found = git("log", "--reverse", "--format=%H", f"-S{LATER[0]}", "--", LATER[1]).split()
        archive = git("archive", f"{found[0].decode()}^", "runtime", "actors", "examples")
    except (OSError, subprocess.CalledProcessError, IndexError):
        pytest.skip("there is no git history here to take the version before from")
    path = tmp_path_factory.mktemp("older") / "everram-0.1.0-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: everram\nVersion: 0.1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar, zipfile.ZipFile(path, "w") as wheel:
        for member in tar:
            if (content := tar.extractfile(member)) is not None:
                wheel.writestr(f"everram/{member.name}", content.read())
        for name, text in about.items():
            wheel.writestr(f"everram-0.1.0.dist-info/{name}", text)
    return path


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


class Asker(threading.Thread):
    """A client outside that asks a host over one gRPC channel; any error is its end."""

    def __init__(self, bank: Bank, host: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._host = str(bank.dir), host
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


def goes_on(teller: Teller) -> None:
    """Until it has transferred some more; not for long if it has failed, which is told at its end."""
    done = teller.done
    until(lambda: teller.done > done + 20 or not teller.is_alive(), "something is transferred")


def ended(*workers: Teller | Asker) -> None:
    for worker in workers:
        worker.enough.set()
    for worker in workers:
        worker.join(PATIENCE_S)
        assert worker.failure is None, repr(worker.failure)


def test_the_successor_says_whether_it_can_before_anything_is_touched(bank: Bank) -> None:
    before = bank.served_by("h1")
    told = bank.upgraded("h1", "--preflight")["h1"]
    assert (told["upgraded"], told["format"], told["reads"]) == (False, told["reads"], told["format"])
    assert bank.served_by("h1") == before
    assert "no-such does not exist" in bank.refused("upgrade", "h1", "--python", sys.prefix + "/no-such", status=2)


def test_guests_clients_and_copies_notice_nothing_of_upgrades_in_a_row(bank: Bank) -> None:
    before, home = bank.guest(), bank.guest()["host"]
    teller, asker = Teller(bank.port, "teller"), Asker(bank, home)
    pids = [bank.served_by(home)[0]]
    for worker in (teller, asker):
        worker.start()
    for pause in (False, True, False):
        goes_on(teller)
        assert bank.upgrade(home, pause=pause).upgraded
        pids.append(bank.served_by(home)[0])
    everywhere = bank.upgraded("--all")
    assert [everywhere[name]["upgraded"] for name in ("h1", "h2")] == [True, True], "also the host with its copy"
    pids.append(bank.served_by(home)[0])
    goes_on(teller)
    ended(teller, asker)
    assert bank.restarts() == 0
    assert len(set(pids)) == 5
    assert set(pids) <= asker.pids, "it asked every one of them"
    after = bank.guest()
    assert (after["pid"], after["epoch"], after["host"]) == (before["pid"], before["epoch"], home)
    assert ask(bank.port, "LAST teller") == teller.done
    assert ask(bank.port, "SUM") == 100_000


def test_a_later_memory_is_refused_by_the_version_before_and_rolled_back_for_it(bank: Bank, older: Path) -> None:
    before, home = bank.guest(), bank.guest()["host"]
    served = bank.served_by(home)
    refused = bank.refused("upgrade", home, "--python", str(older), status=1)
    assert f"written by everram {PACKAGE_VERSION} in version 2.0, this is everram 0.1.0 with version 1.1" in refused
    assert bank.served_by(home) == served, "it was asked, and nothing was touched"
    told = bank.upgraded(home, "--rollback", "--preflight")[home]
    assert told["format"] == "1.1"
    assert len(told["lost"]) == 2
    teller = Teller(bank.port, "traveller")
    teller.start()
    goes_on(teller)
    told = bank.upgraded(home, "--rollback", "--python", str(older))[home]
    assert (told["version"], told["format"]) == ("0.1.0", "1.1")
    python = interpreter(str(older), bank.dir)  # which the command has made
    for version in (PACKAGE_VERSION, "0.1.0", PACKAGE_VERSION):
        goes_on(teller)
        if version == "0.1.0":
            bank.ask(lambda cluster: cluster.host(home).vmemfs.rollback(RollbackRequest()))
        report = bank.upgrade(home, python=python if version == "0.1.0" else sys.executable)
        assert (report.version, report.format) == (version, "1.1")
        assert bank.served_by(home)[1] == version
    goes_on(teller)
    ended(teller)
    after = bank.guest()
    assert (after["pid"], after["epoch"], after["host"]) == (before["pid"], before["epoch"], home)
    assert ask(bank.port, "LAST traveller") == teller.done
    assert ask(bank.port, "SUM") == 100_000


def test_a_suspended_guest_stays_so_over_upgrades_and_goes_on_where_it_was(bank: Bank) -> None:
    before, home = bank.guest(), bank.guest()["host"]
    count = ask(bank.port, "COUNT")
    suspended = bank.json("suspend", "bank")
    assert (suspended["state"], suspended["pid"]) == ("frozen", before["pid"])
    for pause in (False, True):
        assert bank.upgrade(home, pause=pause).upgraded
        assert bank.guest()["state"] == "frozen"
    with socket.create_connection(("127.0.0.1", bank.port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"COUNT\n")
        assert not select.select([sock], [], [], 0.2)[0], "it answers although it is suspended"
        resumed = bank.json("resume", "bank")
        assert (resumed["state"], resumed["pid"], resumed["epoch"]) == ("running", before["pid"], before["epoch"])
        assert sock.makefile().readline() == f"OK {count}\n"
    bank.run("suspend", "bank")
    bank.run("stop", "bank")
    bank.run("start", "bank")
    until(lambda: bank.guest()["state"] == "running", "a guest that was stopped while suspended does not start")
    until(lambda: ask(bank.port, "COUNT") == count, "it serves again")


def test_a_host_that_is_killed_while_it_hands_over_is_succeeded_all_the_same(bank: Bank) -> None:
    before = bank.guest()
    home = before["host"]
    pid, _ = bank.served_by(home)
    began = bank.machine_log(home).count("the successor can take the memory")
    with bank.start("upgrade", "--json", home) as upgrading:
        until(lambda: bank.machine_log(home).count("the successor can take the memory") > began, "a successor is there")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it was faster
        out, err = upgrading.communicate(timeout=UPGRADE_TIMEOUT_S)
    assert '"upgraded": true' in out, err
    after = bank.guest()
    assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])


@pytest.mark.parametrize("words", [(), ("--rollback",)])
def test_ctrl_c_leaves_the_host_as_it_was_or_upgraded_and_says_which(bank: Bank, words: tuple[str, ...]) -> None:
    home = bank.guest()["host"]
    before, began = bank.served_by(home), bank.machine_log(home).count("successor started")
    with bank.start("upgrade", *words, home) as upgrading:
        until(lambda: bank.machine_log(home).count("successor started") > began, "a successor is there")
        upgrading.send_signal(signal.SIGINT)
        out, err = upgrading.communicate(timeout=UPGRADE_TIMEOUT_S)
    assert upgrading.returncode == 130, err
    if out:
        assert "came to its end" in err.splitlines()[-1]
        assert bank.served_by(home) != before
    else:
        assert err.splitlines()[-1] == f"everram: {home}: nothing was changed"
        assert bank.served_by(home) == before
    until(lambda: bank.memory_version(home) == "2.0", "what this version has a place for is written")
    assert bank.upgrade(home).upgraded, "the next one is not in its way"


def test_software_that_cannot_be_started_leaves_the_host_untouched(bank: Bank, tmp_path: Path) -> None:
    home = bank.guest()["host"]
    served = bank.served_by(home)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    refused = bank.refused("upgrade", home, "--python", str(tmp_path), status=1)
    assert "no everram that could serve" in refused
    for path, why in ((str(python), "status 3"), ("/no/such", "does not exist")):
        with pytest.raises(FailedPrecondition, match=why):
            bank.upgrade(home, python=path)
    assert bank.served_by(home) == served
