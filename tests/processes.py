"""Processes by a mark in their environment: inherited by all that comes of a process, at whatever remove."""

from __future__ import annotations

import os
from pathlib import Path


def processes_with(mark: str) -> dict[int, str]:
    """The command line of each living process but this one that has `mark`, as NAME=VALUE."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            marked = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z" and marked:
            found[int(folder.name)] = command
    return found
