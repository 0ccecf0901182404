"""`everram top` on a real terminal: it draws a cluster, follows the window's size, ends by `q` or with the cluster."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
PATIENCE_S = 30.0
ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78M])|\x0f|\r")

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="evr-") as runtime:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM_DIR", "XDG", "NO_COLOR"))}
        clean |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(tmp_path / "cluster"), "TERM": "xterm-256color"}
        try:
            everram(clean, "up", "--hosts", "1", "-d")
            yield clean
        finally:
            everram(clean, "down", "--discard")


def everram(environment: dict[str, str], *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


class Terminal:
    """A program on a terminal of its own, 80x24 at first."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(80, 24)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read_until(self, *words: str) -> str:
        """What is drawn from now on, without control sequences, until all the words are in it."""
        drawn = b""
        while not all(word in ESCAPES.sub(b"", drawn).decode(errors="replace") for word in words):
            ready, _, _ = select.select([self.ours], [], [], PATIENCE_S)
            assert ready, f"never drawn: {words} in {ESCAPES.sub(b'', drawn)!r}"
            try:
                drawn += os.read(self.ours, 65536)
            except OSError as end:  # EIO: it has ended
                raise AssertionError(f"ended before it drew {words}: {ESCAPES.sub(b'', drawn)!r}") from end
        return ESCAPES.sub(b"", drawn).decode(errors="replace")

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.ours)


def test_top(environment: dict[str, str]) -> None:
    everram(environment, "run", "-d", "--name", "sleeper", "--region", "data=1MiB", "--", "/bin/sleep", "600")

    refused = everram(environment, "top", status=2)
    assert refused.stderr.startswith("everram: top needs a terminal")
    stream = subprocess.Popen([*COMMAND, "top", "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    assert stream.stdout is not None
    seen = json.loads(stream.stdout.readline())
    stream.kill()
    stream.communicate()
    assert [host["name"] for host in seen["hosts"]] == ["h1"]
    assert [guest["name"] for guest in seen["guests"]] == ["sleeper"]

    terminal = Terminal(environment, "top", "--interval", "200ms")
    terminal.read_until("HOST", "DIRTY/CAP", "LEASE", "h1", "ready", "sleeper", "running", "q quit")
    terminal.resize(150, 30)
    terminal.process.send_signal(signal.SIGWINCH)  # a terminal that controls its program would do that by itself
    terminal.read_until("UP", "HOST", "sleeper")  # what has not changed is drawn again only for a new size
    terminal.type("q")
    assert terminal.end() == 0

    terminal = Terminal(environment, "top", "--interval", "200ms")
    terminal.read_until("sleeper")
    everram(environment, "down")
    terminal.read_until("the cluster has ended")
    assert terminal.end() == 1
