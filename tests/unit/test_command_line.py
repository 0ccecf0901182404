"""What the command line means, before any cluster is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from everram.runtime.cli import guests, main, unbuilt
from everram.runtime.cli.output import table
from everram.runtime.errors import InvalidArgument, NotFound, PermissionDenied


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("ledger=16MiB", ("ledger", 16 << 20, False)),
        ("a.b-c_d=4KiB,mapped", ("a.b-c_d", 4096, True)),
        ("r=1B,logged", ("r", 1, False)),
    ],
)
def test_regions(text: str, region: tuple[str, int, bool]) -> None:
    assert guests.parse_region(text) == region


@pytest.mark.parametrize("text", ["", "r", "r=", "=1MiB", "r=1MiB,", "r=1MiB,shared", "r=1MiB,mapped,x", "../r=1MiB"])
def test_what_is_no_region(text: str) -> None:
    with pytest.raises(InvalidArgument):
        guests.parse_region(text)


def test_programs_are_found_where_the_caller_is(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\n")
    environment = {"PATH": str(tmp_path)}
    for name in ("tool", "./tool", str(script)):
        if name == "tool":
            with pytest.raises(NotFound, match='no program "tool" in PATH'):
                guests.resolve(name, tmp_path, environment)
        else:
            with pytest.raises(PermissionDenied, match="x bit"):
                guests.resolve(name, tmp_path, environment)
    script.chmod(0o755)
    for name in ("tool", "./tool", str(script)):
        assert Path(guests.resolve(name, tmp_path, environment)).samefile(script)
    with pytest.raises(NotFound):
        guests.resolve("./missing", tmp_path, environment)
    with pytest.raises(PermissionDenied):
        guests.resolve(str(tmp_path), tmp_path, environment)


def test_everrams_own_programs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert guests.guest_environment()["PATH"] == f"{guests.own_bin()}:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("stem", "taken", "name"),
    [
        ("ledger", set(), "ledger"),
        ("ledger", {"ledger", "ledger-2"}, "ledger-3"),
        ("what a name!", set(), "what-a-name-"),
        ("...", set(), "guest"),
        ("x" * 80, set(), "x" * 50),
    ],
)
def test_a_guest_without_a_name_gets_one(stem: str, taken: set[str], name: str) -> None:
    assert guests.free_name(stem, taken) == name


@pytest.mark.parametrize("command", sorted(unbuilt.COMMANDS))
def test_commands_not_built_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([command, "--any", "thing"]) == 2
    assert capsys.readouterr().err.startswith(f"everram: `everram {command}`")


@pytest.mark.parametrize(("command", "flag"), [(c, f) for c, flags in unbuilt.FLAGS.items() for f in flags])
def test_flags_not_built_are_refused(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = [] if flag in unbuilt.SWITCHES else ["1"]
    assert main.run([command, flag, *value]) == 2
    assert f"everram: {flag}" in capsys.readouterr().err


def test_every_command_takes_the_common_options() -> None:
    parsers = list(main._leaves(main.build_parser()))
    assert len(parsers) > 15
    for parser in parsers:
        flags = set(parser._option_string_actions)
        assert {"--cluster", "--dir", "--json"} <= flags, parser.prog


def test_only_what_a_command_needs_is_loaded() -> None:
    parser = main.build_parser("up")
    (action,) = [a for a in parser._actions if a.dest == "==SUPPRESS=="]
    assert isinstance(action.choices, dict)
    assert "demo" not in action.choices


def test_tables() -> None:
    assert table(("A", "LONG"), [("value", ""), (1, None)]) == "A      LONG\nvalue  -\n1      -"
