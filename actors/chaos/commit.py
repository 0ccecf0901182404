"""Which code this is, so that a seed found by other code is not expected to do the same here."""

from __future__ import annotations

import subprocess
from functools import cache
from hashlib import blake2b
from pathlib import Path

import everram.actors
import everram.runtime
from everram.runtime.version import PACKAGE_VERSION

DIGITS = 12


@cache
def commit() -> str:
    """The commit of a checkout, with "+changes" if there are any, elsewhere the version; and the code's digest."""
    ours = _git("ls-files", "--error-unmatch", Path(__file__).resolve().name)  # not of a checkout that it lies in
    described = _git("describe", "--always", "--dirty=+changes", "--exclude=*") if ours else ""
    return f"{described or f'version {PACKAGE_VERSION}'} (code {code()})"


def _git(*words: str) -> str:
    """What it says; empty if there is none, or it refuses."""
    command = ("git", "-C", str(_root()), *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def code() -> str:
    """A digest of every module that a simulation can run: equal if and only if the code is."""
    digest = blake2b(digest_size=DIGITS // 2)
    for package in (everram.runtime, everram.actors):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _root() -> Path:
    """Where the sources lie: in a strict editable install what is imported are links to them."""
    return Path(__file__).resolve().parent
