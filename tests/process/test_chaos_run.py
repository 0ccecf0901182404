"""`everram chaos run` on a real cluster, for a few seconds, and the page that it writes; a browser looks at it if there
is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from everram.actors.chaos.real.hoarder import PROPERTY as VOLATILE

COMMAND = [sys.executable, "-m", "everram.runtime.cli.main", "chaos", "run"]
pytestmark = [pytest.mark.process, pytest.mark.timeout(170)]


def chaos_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=160, check=False)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a short run printed, and its page."""
    report = tmp_path_factory.mktemp("chaos") / "r.html"
    faults = "guest-kill,host-kill,machine-kill"
    done = chaos_run("--seed", "3", "--duration", "7s", "--faults", faults, "--report", str(report), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, report


def test_a_run_keeps_what_is_promised(page: tuple[str, Path]) -> None:
    summary = json.loads(page[0])
    assert summary["violations"] == 0
    assert summary["faults"]
    assert all(fault["whole_after_s"] is not None and not fault["problem"] for fault in summary["faults"])
    looked = {checker["property"]: checker["looked"] for checker in summary["checkers"]}
    assert all(count > 0 for count in looked.values())
    expected = {"one incarnation at a time", "nothing promised is lost", "a snapshot stays what it is", VOLATILE}
    assert expected <= set(looked)


def test_the_page_needs_nothing_from_anywhere(page: tuple[str, Path]) -> None:
    text = page[1].read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "<script" not in text
    assert "0 violations" in text
    assert all(lane in text for lane in ("pages in use", "taken back", "snapshots", "old content"))
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)


@pytest.mark.needs("chromium")
def test_a_browser_shows_the_page(page: tuple[str, Path], tmp_path: Path) -> None:
    """In both colour schemes, and complains of nothing."""
    pictures = []
    for scheme in (0, 1):
        picture = tmp_path / f"{scheme}.png"
        words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
                 f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
                 "--window-size=960,1400", f"--screenshot={picture}", page[1].as_uri()]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "DBUS_SESSION_BUS_ADDRESS"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=80, env=environment, check=False)
        assert "CONSOLE" not in done.stderr
        pictures.append(picture.read_bytes())
    assert pictures[0] != pictures[1]
