"""One user with one real cluster in folders of its own: how the tests of real processes type the `everram` command.

with user_in(tmp_path) as user:          # what is left of a cluster is taken down at the end, and must be gone then
    user.run("up", "--hosts", "1", "-d")
    user.json("status")["hosts"]
    user.refused("down", "--no-such", status=2)
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import patch

from everram.runtime.cli import main
from everram.runtime.cluster.folders import is_locked
from tests.processes import processes_with

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "everram.runtime.cli.main"]
COMMAND_TIMEOUT_S = 60.0
PATIENCE_S = 30.0
"""For what happens by itself, on a loaded computer."""
LONG_LEASE = "6s"
"""Where a host's restart has to fit well inside, however slow the computer is now; a test may say another one."""
_LOOKS = (("status",), ("guests",), ("inspect",), ("logs",), ("power", "status"), ("memory", "status"))
_SUBCOMMANDS = ("power", "region", "memory", "fs", "chaos")
"""Their first argument names what they do."""

U = TypeVar("U", bound="User")


class User:
    """The command, for one cluster."""

    def __init__(self, folder: Path, runtime: str) -> None:
        self.dir = folder / "cluster"
        self.runtime = Path(runtime)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM", "XDG"))}
        self.environment |= {"XDG_RUNTIME_DIR": runtime, "EVERRAM_DIR": str(self.dir)}
        # Of its own, since a cluster may serve many tests, each of which replaces processes of it.
        self.environment["EVERRAM_TEST_SESSION"] = f"{os.getpid()} {runtime}"

    def start(self, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
        if arguments[0] == "up" and "--lease" not in arguments:
            arguments = ("up", "--lease", LONG_LEASE, *arguments[1:])
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *arguments], cwd=cwd, env=self.environment, text=True, **pipes)

    def try_run(self, *arguments: str, cwd: Path = ROOT) -> tuple[int, str, str]:
        """Exit status, what it printed, what it complained."""
        if looks_only(arguments):
            return look(self.environment, arguments)
        with self.start(*arguments, cwd=cwd) as process:
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
        words = 2 if arguments[0] in _SUBCOMMANDS else 1
        answer = json.loads(self.run(*arguments[:words], "--json", *arguments[words:]))
        assert isinstance(answer, dict)
        return answer

    def refused(self, *arguments: str, status: int = 0) -> str:
        """Run what must fail, with `status` if one is given; its one plain sentence."""
        found, out, err = self.try_run(*arguments)
        assert found == status if status else found > 0, f"everram {' '.join(arguments)}: {found}\n{out}\n{err}"
        assert err.startswith("everram: "), err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1, err
        return err.removeprefix("everram: ").strip()

    def host(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(host for host in self.json("status")["hosts"] if host["name"] == name)
        return found

    def ended(self) -> None:
        """Nothing of it is left: no lock held, no socket, no process."""
        assert not is_locked(self.dir / "supervisor.lock")
        assert [path for path in self.runtime.rglob("*") if path != self.runtime / "everram"] == []
        left = processes_with(f"EVERRAM_TEST_SESSION={self.environment['EVERRAM_TEST_SESSION']}")
        assert not left, f"processes left behind: {left}"


@contextmanager
def user_in(folder: Path, kind: Callable[[Path, str], U] = User) -> Iterator[U]:  # type: ignore[assignment]
    """A user, of some kind, whose cluster ends with the block."""
    with tempfile.TemporaryDirectory(prefix="everram-test-", dir="/tmp") as runtime:
        user = kind(folder, runtime)
        try:
            yield user
        finally:
            user.try_run("down", "--discard")
        user.ended()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what other processes do, and nobody here is told of."""
    began_s = asked_s = time.monotonic()
    while not condition():
        now_s = time.monotonic()
        assert now_s < began_s + PATIENCE_S, f"not in {PATIENCE_S} s: {what}"
        # Asking may take a whole command: what is waited for needs the processor, too.
        time.sleep(max(0.02, now_s - asked_s))
        asked_s = time.monotonic()


def looks_only(arguments: Sequence[str]) -> bool:
    """Whether it can be done by `look`, which no coroutine may wait for."""
    if not any(tuple(arguments[: len(words)]) == words for words in _LOOKS):
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def look(environment: Mapping[str, str], arguments: Sequence[str]) -> tuple[int, str, str]:
    """The command without a process of its own: whoever waits asks often, and what is waited for needs the processor,
    too. Exit status, what it printed, what it complained."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main.run(list(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
    said, complained = (cast("io.BytesIO", stream.buffer).getvalue().decode() for stream in (out, err))
    return status, said, complained


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
