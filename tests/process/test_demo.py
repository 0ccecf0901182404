"""The demo with real processes, one fault each; `test_wheel.py` runs it as a user does, with a machine that is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "everram.runtime.cli.main", "demo", "--duration", "1s"]

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


def demo(*arguments: str) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVERRAM", "XDG"))}
    done = subprocess.run(
        [*COMMAND, "--json", *arguments], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"], report["invariant"]) == (0, 0, "holds")
    assert report["prefix_holds"]
    return report


@pytest.mark.parametrize("fault", ["host-kill", "hang"])
def test_the_bank_stays_while_its_host_is_away(fault: str) -> None:
    report = demo("--fault", fault)
    assert (report["host_after"], report["epoch_after"]) == (report["host"], report["epoch"])
    assert report["acknowledged_replicated"] == report["acknowledged"] == report["recovered"]


@pytest.mark.parametrize("ack", ["replicated", "local"])
def test_a_cut_off_bank_is_replaced_and_fenced(ack: str) -> None:
    report = demo("--fault", "partition", "--ack", ack)
    assert report["host_after"] != report["host"]
    assert report["set_aside"]["transactions"] >= report["lost_unpromised"] >= (0 if ack == "replicated" else 1)
    steps = [event["what"] for event in report["timeline"]]
    course = ("fault: partition", "the lease of", "is chosen", "serves again", "is fenced")
    found = [next(i for i, what in enumerate(steps) if phrase in what) for phrase in course]
    assert found == sorted(found)


def test_a_bank_without_mains_goes_on_elsewhere_and_even_what_was_not_replicated_is_there() -> None:
    report = demo("--fault", "power-cut", "--ack", "local")
    assert report["lost_unpromised"] == 0
    assert report["host_after"] != report["host"]
    assert report["power"]["outcome"] == "saved"
    assert all(copy["drained"] for guest in report["power"]["guests"] for copy in guest["copies"])


def test_a_bank_without_a_copy_is_restored_when_power_returns() -> None:
    report = demo("--fault", "power-cut", "--ack", "local", "--restore-same")
    assert report["lost_unpromised"] == 0
    assert (report["host_after"], report["epoch_after"]) == (report["host"], report["epoch"] + 1)


def test_a_battery_that_dies_early_leaves_a_prefix() -> None:
    report = demo("--fault", "power-cut", "--ack", "local", "--battery", "2ms")
    assert report["host_after"] != report["host"]
    assert report["power"] is None or report["power"]["outcome"] == "under way"
    assert len(report["missing"]) == report["lost_unpromised"]
