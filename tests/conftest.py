"""Shared by all tests: what they need, and that they leave nothing behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.processes import processes_with

# A test has one limit of time, pytest's: how long one example takes says how busy the computer is.
hypothesis.settings.register_profile("everram", deadline=None)
hypothesis.settings.load_profile("everram")

FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian puts servers; not on every user's PATH."""


def _missing(need: str) -> str:
    """Empty if `need` is met; otherwise what to do about it."""
    if need == "userfaultfd":
        from everram.runtime.memory import probe

        found = probe.userfaultfd()
        return "" if found.available else found.enable
    if need in ("fuse", "fuse passthrough"):
        from everram.runtime.memory import probe

        found = probe.mounting() if need == "fuse" else probe.passthrough()
        return "" if found.available else f"{found.found}; {found.enable}"
    if need == "python lmdb":
        return "" if importlib.util.find_spec("lmdb") else "`pip install lmdb` to include it"
    if need == "root":
        return "" if os.geteuid() == 0 else "run the tests as root to include it"
    path = os.environ.get("PATH", "") + ":" + ":".join(FOLDERS)
    return "" if shutil.which(need, path=path) else f"install {need} to include it"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for need in marker.args:
            reason = _missing(need)
            if reason and os.environ.get("CI"):
                pytest.fail(f"needs {need}, which may not be missing in CI: {reason}")
            if reason:
                pytest.skip(f"needs {need}: {reason}")


SESSION_MARK = f"EVERRAM_TEST_SESSION={os.getpid()}"
"""Inherited by every process that a test starts, and by all that come of it."""
os.environ.update([SESSION_MARK.split("=")])

# Processes are started by the hundred; where nothing compiled is kept, each host would compile everram for a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores it for what it runs in the background, and every process that a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _leaves_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of real processes ends with those it began with."""
    if request.node.get_closest_marker("process") is None:
        yield
        return
    before = processes_with(SESSION_MARK).keys()
    yield
    left = {pid: command for pid, command in processes_with(SESSION_MARK).items() if pid not in before}
    assert not left, f"processes left behind: {left}"
