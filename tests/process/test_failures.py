"""Real clusters under the failures that people do not make on purpose: faults in a row, and in the middle of things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
COMMAND_TIMEOUT_S = 60.0
PATIENCE_S = 20.0
"""For what happens by itself, on a loaded computer."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Everram:
    """One user with one cluster of one host in a folder of its own."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.dir = folder / "cluster"
        self.machine = self.dir / "machines" / "h1"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG")}
        self.environment |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(self.dir)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, env=self.environment, text=True, **pipes)

    def try_run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, what it printed, what it complained."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, out, err

    def run(self, *arguments: str) -> str:
        status, out, err = self.try_run(*arguments)
        assert status == 0, f"everram {' '.join(arguments)}: {status}\n{out}\n{err}"
        return out

    def json(self, *arguments: str) -> dict[str, Any]:
        answer = json.loads(self.run(*arguments[:1], "--json", *arguments[1:]))
        assert isinstance(answer, dict)
        return answer

    def host_pid(self) -> int:
        return int(self.json("status")["hosts"][0]["host_pid"])


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S} s: {what}"
        time.sleep(0.005)


@pytest.fixture
def everram(tmp_path: Path) -> Iterator[Everram]:
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        user = Everram(tmp_path, runtime)
        try:
            yield user
        finally:
            user.try_run("down", "--discard")


FILL = """
import time
from everram.runtime import guest
me = guest.attach()
region = me.region("x")
if not me.recovered:
    for at in range(0, len(region), 1 << 20):
        region.store(at, bytes([at >> 20 & 255]) * (1 << 20))
print("filled", flush=True)
while True:
    time.sleep(1)
"""


def test_a_host_that_is_killed_while_it_saves_is_asked_again(everram: Everram) -> None:
    everram.run("up", "--lease", "5s", "--hosts", "1", "-d")
    everram.run("run", "-d", "--name", "fill", "--region", "x=128MiB,mapped", "--", "python", "-c", FILL)
    until(lambda: "filled" in everram.run("logs", "fill"), "its region is full")
    host = everram.host_pid()
    with everram.start("down") as down:
        until((everram.machine / "image" / "pages.1").exists, "the save has begun")
        os.kill(host, signal.SIGKILL)
        out, err = down.communicate(timeout=COMMAND_TIMEOUT_S)
    assert down.returncode == 0, out + err
    everram.run("up", "--lease", "5s", "-d")
    until(lambda: everram.json("inspect", "fill")["state"] == "running", "it runs again")


def test_a_machine_that_dies_while_it_saves_is_told_of(everram: Everram) -> None:
    everram.run("up", "--lease", "5s", "--hosts", "2", "-d")
    everram.run("run", "-d", "--name", "fill", "--region", "x=128MiB,mapped", "--", "python", "-c", FILL)
    until(lambda: "filled" in everram.run("logs", "fill"), "its region is full")
    machine = int(everram.json("status")["hosts"][0]["pid"])
    with everram.start("down") as down:
        until((everram.machine / "image" / "pages.1").exists, "the save has begun")
        os.kill(machine, signal.SIGKILL)
        _, err = down.communicate(timeout=COMMAND_TIMEOUT_S)
    assert down.returncode == 1
    assert "h1 cannot be saved: it is dead" in err
    assert "frozen" not in err
    assert "h1 is not saved" in everram.run("down")


@pytest.mark.parametrize("file", ["index.1", "pages.1", "catalog.1"])
def test_a_damaged_image_is_refused_with_its_name(everram: Everram, file: str) -> None:
    everram.run("up", "--lease", "5s", "--hosts", "1", "-d")
    everram.run("down")
    image = everram.machine / "image" / file
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0x40
    image.write_bytes(content)
    status, _, err = everram.try_run("up", "--lease", "5s", "-d")
    assert status == 1
    assert f"h1 does not start: image/{file} is damaged at offset" in err
    content[len(content) // 2] ^= 0x40
    image.write_bytes(content)
    everram.run("up", "--lease", "5s", "-d")
