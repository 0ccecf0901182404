"""`everram chaos`, as far as nothing is simulated or started: what is refused, and in which words."""

from __future__ import annotations

import pytest

from everram.actors.chaos.commit import code, commit
from everram.actors.chaos.seeds import SEED_MAX, parse_seeds
from everram.runtime.cli import main
from everram.runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--report", "/nowhere/at/all/r.html"), "the report cannot be written to /nowhere/at/all/r.html"),
        (("--report", "/tmp"), "the report cannot be written to /tmp"),
        (("--seed", "-1"), "-1 is no seed"),
        (("--seed", str(SEED_MAX + 1)), "is no seed: choose 0 to"),
        (("--duration", "1s"), "--duration: choose"),
        (("--hosts", "1"), "--hosts 1: choose"),
        (("--hosts", "0"), "--hosts 0: choose"),
        (("--faults", "guest-kill,earthquake"), '"earthquake" is no fault of a chaos run'),
        (("--faults", ""), '"" is no fault of a chaos run'),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_starts(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["chaos", "run", *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("everram: ")
    assert sentence in told.err
    assert not told.out


def test_what_is_no_number_is_no_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.run(["chaos", "run", "--seed", "seven"])
    assert ended.value.code == 2
    assert "argument --seed: 'seven' is no seed: choose 0 to" in capsys.readouterr().err


def test_a_replay_on_other_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chaos", "replay", "2", "--scenario", "ring", "--until", "10ms", "--code", "0123456789ab")
    assert main.run([*words]) == 0
    told = capsys.readouterr()
    assert (
        told.err == f"this seed was found by code 0123456789ab, and this is {commit()}: it need not do the same here\n"
    )
    assert "digest" in told.out


def test_faults_that_a_seed_does_not_draw_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["chaos", "replay", "4", "--scenario", "files", "--faults", "0,999", "--until", "10ms"]) == 2
    assert "there is no fault 999: this seed draws 4 of them, from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "5..1", "a..b", "-3", f"0..{SEED_MAX + 1}", "1..99999999999"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        parse_seeds(text)


def test_seeds() -> None:
    assert parse_seeds("1..200") == range(1, 201)
    assert parse_seeds("7") == range(7, 8)


def test_this_code_has_a_name() -> None:
    assert code() in commit()
