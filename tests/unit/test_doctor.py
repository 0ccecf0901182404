"""What this computer can do: facts with words for a person, and the sentences for `status`."""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path

import pytest

from everram.runtime.cli import doctor
from everram.runtime.memory import probe
from everram.runtime.memory.probe import Fact, missing_sentences


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.register(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    status: int = args.handler(args)
    return status


def test_every_fact_says_what_it_is_for_and_what_to_do() -> None:
    facts = probe.probe()
    assert len({fact.name for fact in facts}) == len(facts) >= 10
    for fact in facts:
        assert all((fact.purpose, fact.found, fact.instead, fact.enable)), fact


def test_probing_leaves_no_descriptor() -> None:
    probe.probe()
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    probe.probe()
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before


def test_doctor_prints_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    assert all(fact.name in printed for fact in probe.probe())
    assert printed.endswith("everram runs on this computer.\n")


def test_doctor_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["runs"] is True
    assert {fact["name"] for fact in answer["facts"]} >= {"userfaultfd", "processor", "cgroup freezer"}


def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*, user_mode_only: bool = False) -> int:
        if user_mode_only:
            return os.open(os.devnull, os.O_RDONLY)
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("everram.runtime.memory.userfaultfd.make", refused)
    fact = probe.userfaultfd()
    assert not fact.available
    (sentence,) = missing_sentences([fact])
    assert "stores to mapped regions are not tracked" in sentence
    assert "vm.unprivileged_userfaultfd=1" in sentence
    assert run() == 0
    assert "missing  userfaultfd" in capsys.readouterr().out


def test_a_computer_that_cannot_run_everram_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert run() == 1
    assert "everram cannot run on this computer" in capsys.readouterr().out


def test_status_names_only_what_changes_a_promise() -> None:
    other = Fact("mount", "files", False, "no", "something else", "do this")
    assert missing_sentences([other]) == []
