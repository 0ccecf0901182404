"""What the command line means, before any cluster is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from everram.runtime.cli import cluster, guests, main, unbuilt
from everram.runtime.cli.output import table
from everram.runtime.client import cluster as client_cluster
from everram.runtime.client.whereabouts import Place
from everram.runtime.contracts import common_pb2 as pb
from everram.runtime.errors import InvalidArgument, NotFound, PermissionDenied, Unimplemented


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


@pytest.mark.parametrize(("command", "flag"), [(c, f) for c, flags in unbuilt.FLAGS.items() for f in flags])
def test_flags_not_built_are_refused(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([command, flag, "1"]) == 2
    assert f"everram: {flag}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (("h1", "machine-kill"), ("h1", "machine-kill")),
        (("heal", "h1"), ("h1", "heal")),
        (("heal", "guest-kill"), ("heal", "guest-kill")),  # a guest of that name
        (("bank", "guest-kill"), ("bank", "guest-kill")),
    ],
)
def test_what_to_break(words: tuple[str, str], meaning: tuple[str, str]) -> None:
    assert cluster.what_to_break(*words) == meaning


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("h1", "heal"), "write `everram fault heal h1`"),
        (
            ("h1", "frobnicate"),
            "host-kill, hang, .*, one-way, disk-full, .* for a host, guest-kill for a guest",
        ),
        (("h1", "power-cut"), "write `everram power cut h1`"),
    ],
)
def test_what_cannot_be_broken(words: tuple[str, str], sentence: str) -> None:
    with pytest.raises((InvalidArgument, Unimplemented), match=sentence):
        cluster.what_to_break(*words)


def test_copies_as_people_read_them() -> None:
    in_sync = pb.CopyStatus(host="h2", state="in-sync", required=True)
    building = pb.CopyStatus(host="h3", state="copying", copied_percent=40)
    spec = pb.GuestSpec(copies=1)
    assert guests.copies_word(pb.Guest()) == ""
    assert guests.copies_word(pb.Guest(spec=spec, copies=[in_sync])) == "1/1"
    assert guests.copies_word(pb.Guest(spec=spec, copies=[building], degraded=True)) == "0/1 degraded"
    seen = guests.guest_json(pb.Guest(spec=spec, copies=[in_sync, building], degraded=True))
    assert (seen["copies"], seen["degraded"], len(seen["destinations"])) == (1, True, 2)
    words = guests._words("destinations", seen["destinations"])
    assert words == "h2 in-sync, required, acknowledged 0, h3 copying, 40 %, acknowledged 0"


def test_a_guest_that_only_the_directory_knows_has_its_state() -> None:
    place = Place("g1", "bank", "h1", 3, "failing-over", revision=9)
    guest = client_cluster._nowhere(place)
    assert guests.state_word(guest) == "failing-over"
    seen = guests.guest_json(guest)
    assert (seen["guest"], seen["state"], seen["host"], seen["epoch"]) == ("bank", "failing-over", "h1", 3)


def test_whose_a_guest_is_that_two_hosts_have() -> None:
    old, new = pb.Guest(guest_id="g1", host="h1", epoch=3), pb.Guest(guest_id="g1", host="h2", epoch=4)
    assert client_cluster._rightful(old, new, {}) is new
    assert client_cluster._rightful(new, old, {}) is new
    same = pb.Guest(guest_id="g1", host="h3", epoch=4)
    places = {"g1": Place("g1", "bank", "h3", 4, "running", revision=9)}
    assert client_cluster._rightful(new, same, places) is same
    assert client_cluster._rightful(same, new, places) is same


def test_copies_by_default_and_as_asked_for() -> None:
    logged, mapped = pb.RegionSpec(name="a", kind=pb.LOGGED), pb.RegionSpec(name="b", kind=pb.MAPPED)
    assert client_cluster.default_copies(pb.GuestSpec(regions=[logged, mapped]), hosts=2) == 1
    assert client_cluster.default_copies(pb.GuestSpec(regions=[logged]), hosts=1) == 0
    assert client_cluster.default_copies(pb.GuestSpec(regions=[mapped]), hosts=3) == 0
    assert client_cluster.default_copies(pb.GuestSpec(), hosts=3) == 0
    spec = pb.GuestSpec(name="bank")
    assert client_cluster._with_copies(spec, 2, hosts=3) == pb.GuestSpec(name="bank", copies=2)
    assert spec.copies == 0
    for wrong in (-1, 3):
        with pytest.raises(InvalidArgument, match="choose 0 to 2"):
            client_cluster._with_copies(spec, wrong, hosts=3)


def test_every_command_takes_the_common_options() -> None:
    parsers = list(main._leaves(main.build_parser()))
    assert len(parsers) > 15
    for parser in parsers:
        flags = set(parser._option_string_actions)
        assert {"--cluster", "--dir", "--json"} <= flags, parser.prog


@pytest.mark.parametrize("command", ["demo", "chaos sim", "chaos replay 1", "chaos planted", "chaos run"])
@pytest.mark.parametrize("which", ["--cluster=mine", "--dir=mine"])
def test_what_makes_a_cluster_of_its_own_takes_no_other(
    command: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*command.split(), which]) == 2
    assert "leave --cluster and --dir out" in capsys.readouterr().err


def test_only_what_a_command_needs_is_loaded() -> None:
    parser = main.build_parser("up")
    (action,) = [a for a in parser._actions if a.dest == "==SUPPRESS=="]
    assert isinstance(action.choices, dict)
    assert "demo" not in action.choices


def test_tables() -> None:
    assert table(("A", "LONG"), [("value", ""), (1, None)]) == "A      LONG\nvalue  -\n1      -"
