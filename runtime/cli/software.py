"""Which everram is meant by `--python VENV|WHEEL`: the interpreter that has it.

    python = interpreter("./everram-0.2.0-py3-none-any.whl", state_folder)

A folder is a virtual environment, a file is its interpreter or a wheel. A wheel is installed into a virtual environment
of its own below the cluster's state folder, once; the same wheel is found there again by its content.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from everram.runtime.errors import FailedPrecondition, InvalidArgument, NotFound

SOFTWARE = "software"
"""Folder of the virtual environments, below the cluster's state folder."""
INSTALL_TIMEOUT_S = 300.0
CHECK_TIMEOUT_S = 30.0
COMPLETE = "installed"
"""A file in an environment that was made to its end."""


def interpreter(given: str, state: Path) -> str:
    """Raises NotFound, InvalidArgument, FailedPrecondition (it has no everram, or cannot be installed)."""
    if not given:
        return sys.executable
    path = Path(os.path.abspath(given))  # noqa: PTH100 - an environment's interpreter is a link that must stay one
    if not path.exists():
        raise NotFound(f"{given} does not exist: give a virtual environment, its interpreter, or a wheel of everram")
    if path.suffix == ".whl":
        path = _installed(path, state)
    python = path / "bin" / "python" if path.is_dir() else path
    if not os.access(python, os.X_OK) or python.is_dir():
        raise InvalidArgument(f"{given} is no virtual environment: there is no {python} to execute")
    _check(python)
    return str(python)


def _check(python: Path) -> None:
    """It has everram's host, which a wrong environment should say before anything is begun."""
    command = [str(python), "-P", "-c", "import everram.actors.host"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"{python} cannot be used: {error}") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        raise FailedPrecondition(f"{python} has no everram that could serve: {last}")


def _installed(wheel: Path, state: Path) -> Path:
    """The virtual environment of a wheel. What the wheel needs and this environment has is taken from here."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]
    folder = state / SOFTWARE / f"{wheel.name.split('-py')[0]}-{digest}"
    if (folder / COMPLETE).exists():
        return folder
    venv.create(folder, symlinks=True, with_pip=False, clear=True)
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"{wheel} cannot be installed: {error}") from error
    if done.returncode:
        raise FailedPrecondition(f"{wheel} cannot be installed: {done.stderr.strip()[-500:]}")
    (folder / COMPLETE).touch()
    return folder
