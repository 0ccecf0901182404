"""Real clusters under the failures that people do not make on purpose: faults in a row, and in the middle of things."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.user import COMMAND_TIMEOUT_S, User, until, user_in

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class OneHost(User):
    """With one cluster of one host."""

    @property
    def machine(self) -> Path:
        return self.dir / "machines" / "h1"

    def host_pid(self) -> int:
        return int(self.host("h1")["host_pid"])


@pytest.fixture
def everram(tmp_path: Path) -> Iterator[OneHost]:
    with user_in(tmp_path, OneHost) as user:
        yield user


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


def test_a_host_that_is_killed_while_it_saves_is_asked_again(everram: OneHost) -> None:
    everram.run("up", "--hosts", "1", "-d")
    everram.run("run", "-d", "--name", "fill", "--region", "x=128MiB,mapped", "--", "python", "-c", FILL)
    until(lambda: "filled" in everram.run("logs", "fill"), "its region is full")
    host = everram.host_pid()
    with everram.start("down") as down:
        until((everram.machine / "image" / "pages.1").exists, "the save has begun")
        os.kill(host, signal.SIGKILL)
        out, err = down.communicate(timeout=COMMAND_TIMEOUT_S)
    assert down.returncode == 0, out + err
    everram.run("up", "-d")
    until(lambda: everram.json("inspect", "fill")["state"] == "running", "it runs again")


def test_a_machine_that_dies_while_it_saves_is_told_of(everram: OneHost) -> None:
    everram.run("up", "--hosts", "2", "-d")
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
def test_a_damaged_image_is_refused_with_its_name(everram: OneHost, file: str) -> None:
    everram.run("up", "--hosts", "1", "-d")
    everram.run("down")
    image = everram.machine / "image" / file
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0x40
    image.write_bytes(content)
    status, _, err = everram.try_run("up", "-d")
    assert status == 1
    assert f"h1 does not start: image/{file} is damaged at offset" in err
    content[len(content) // 2] ^= 0x40
    image.write_bytes(content)
    everram.run("up", "-d")
