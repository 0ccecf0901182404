"""A real `upsd` with a UPS of its own making (`dummy-ups`): its word drives a real cluster's power monitor."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.test_power import cluster_of, until

FOLDERS = ("/lib/nut", "/usr/lib/nut", "/usr/libexec/nut")
"""Of the daemons: the wrappers in sbin refuse to start without a system-wide configuration."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), pytest.mark.needs("upsd")]


def daemon(name: str) -> str:
    found = next((f"{folder}/{name}" for folder in FOLDERS if Path(folder, name).exists()), shutil.which(name))
    assert found is not None, f"{name} is not installed"
    return found


class Nut:
    """`upsd` and the driver of one UPS, whose state is in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "ups.dev"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.environment = os.environ | {
            "NUT_CONFPATH": str(folder), "NUT_STATEPATH": str(folder), "NUT_ALTPIDPATH": str(folder),
        }  # fmt: skip
        self.say("OL")
        (folder / "ups.conf").write_text(
            f"user = root\npollinterval = 1\n[ups]\n  driver = dummy-ups\n  port = {self.state}\n  mode = dummy-loop\n"
        )
        (folder / "upsd.conf").write_text(f"LISTEN 127.0.0.1 {self.port}\nMAXAGE 3\n")
        (folder / "upsd.users").write_text("")
        for path in (folder, *folder.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.driver = self.start("dummy-ups", "-a", "ups", "-F", "-u", "root")
        self.server = self.start("upsd", "-F", "-u", "root")
        until(lambda: "VAR" in self.ask(), "upsd answers")

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([daemon(name), *words], env=self.environment, stdout=log, stderr=log)

    def say(self, status: str) -> None:
        aside = self.state.with_suffix(".new")
        aside.write_text(f"ups.status: {status}\nbattery.runtime: 20\nbattery.runtime.low: 12\nTIMER 1\n")
        aside.chmod(0o600)
        aside.replace(self.state)

    def ask(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"GET VAR ups ups.status\n")
                return connection.recv(200).decode()
        except OSError:
            return ""

    def end(self) -> None:
        for process in (self.driver, self.server):
            process.kill()
            process.wait()


@contextmanager
def nut(folder: Path) -> Iterator[Nut]:
    folder.mkdir()
    made = Nut(folder)
    try:
        yield made
    finally:
        made.end()


def test_a_real_ups_says_when_to_save(tmp_path: Path) -> None:
    with (
        nut(tmp_path / "nut") as ups,
        cluster_of(tmp_path, "--hosts", "1", "--ups", f"ups@127.0.0.1:{ups.port}") as one,
    ):
        one.start_writer("alone", copies=0)

        def told(member: str) -> object:
            return one.json("power", "status")["hosts"]["h1"].get(member)

        until(lambda: told("ups") == "on line", "it is on line")
        until(lambda: told("budget")["battery_s"] == 12.0, "so long it lasts when its battery is low")  # type: ignore[index]
        ups.say("OB DISCHRG")
        until(lambda: told("ups") == "on battery", "it is on battery")
        committed = one.numbers("alone", "committed")[-1]
        until(lambda: one.numbers("alone", "committed")[-1] > committed, "the guest goes on, for the battery lasts")
        ups.say("OL")
        until(lambda: told("ups") == "on line", "a short loss is over")

        # The driver dies: nothing is known, which is said, and nobody is stopped for it.
        ups.driver.kill()
        ups.driver.wait()
        until(lambda: "would not be seen" in str(told("warning")), "its silence is told of")
        assert told("state") == "up"
        ups.driver = ups.start("dummy-ups", "-a", "ups", "-F", "-u", "root")
        until(lambda: told("ups") == "on line", "it is there again")

        epoch = one.epoch("alone")
        ups.say("OB LB")
        until(lambda: told("state") == "off", "the machine saves and goes off")
        before = one.printed("h1", guest_id_of(one.dir))
        ups.say("OL")
        until(lambda: '"OL"' in ups.ask(), "upsd says that the mains are back")
        one.json("power", "on", "h1")
        assert one.began_after("alone", epoch) >= before


def guest_id_of(state: Path) -> str:
    (log,) = (state / "machines" / "h1" / "guests").glob("*.log")
    return log.stem
