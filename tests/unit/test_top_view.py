"""The screen of `everram top`: what is drawn of what was seen, in windows of every size."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from everram.runtime.cli import top_view
from everram.runtime.cli.top_view import BAD, guest_row, render
from everram.runtime.contracts import common_pb2 as pb

MIB = 1 << 20


def host(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "up",
        "host_state": "ready",
        "host_restarts": 0,
        "reason": "",
        "cut": False,
        "mains": True,
        "battery_s": 30.0,
        "uptime_s": 200.0,
        "memory": {"capacity_bytes": 1024 * MIB, "allocated_bytes": 24 * MIB},
        "nvm": {"capacity_bytes": 512 * MIB, "allocated_bytes": 17 * MIB, "waiting_writers": 0, "warning": ""},
        "guests": 1,
        "lease": {"held": True, "remaining_s": 1.64, "leader": "h1"},
        "links": {"h2": "up", "h3": "up"},
    } | changes


def guest(name: str = "bank", *, tail: int = 9 * MIB, epoch: int = 2, **changes: Any) -> dict[str, Any]:
    copy = pb.CopyStatus(host="h2", state="in-sync", required=True, durable=9 * MIB - 2048)
    log = pb.LogPositions(epoch=epoch, tail=tail, freed=8 * MIB, capacity_bytes=4 * MIB)
    told = pb.Guest(guest_id=f"id-{name}", name=name, host="h1", epoch=epoch, log=log, copies=[copy])
    told.spec.copies = 1
    return guest_row(told, "running") | changes


def cluster(hosts: list[dict[str, Any]], guests: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "cluster": "default",
        "leader": "h1",
        "coordination": {"state": "ready", "restarts": 0},
        "hosts": hosts,
        "guests": guests,
        "ports": [{"port": 7777, "guest": "bank", "epoch": 2, "backend_port": 4001, "connections": 8}],
        "at_s": 100.0,
        "clock": "12:00:00",
    } | changes


def texts(
    seen: dict[str, Any], before: dict[str, Any] | None = None, *, width: int = 80, height: int = 24
) -> list[str]:
    return [line.text for line in render(seen, before, width=width, height=height)]


def test_memory_shows_how_short_it_is() -> None:
    seen = cluster([host("h1", pressure="soft"), host("h2")], [guest(swapped_bytes=3 * MIB)])
    lines = texts(seen)
    assert "PRESSURE" in lines[1] and " soft" in lines[2] and " - " in f"{lines[3]} "
    assert "SWAPPED" in "".join(lines) and any("3MiB" in line for line in lines)


def test_a_terminal_is_drawn() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "draw_top.py"))
    drawn = ElementTree.fromstring(script["draw"](cluster([host("<h1>")], [guest()]), None))
    assert all(word in "".join(drawn.itertext()) for word in ('everram "default"', "<h1>", "bank", "q quit"))


def test_a_small_window_shows_all_that_matters() -> None:
    before = cluster([host("h1")], [guest(tail=8 * MIB)], at_s=98.0)
    lines = texts(cluster([host("h1"), host("h2"), host("h3")], [guest()]), before)
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith('everram "default"  leader h1  coordination ready')
    assert lines[0].endswith("12:00:00")
    assert lines[1].split()[:7] == ["HOST", "STATE", "GUESTS", "NVM", "DIRTY/CAP", "LEASE", "LINKS"]
    assert lines[2].split()[:7] == ["h1", "ready", "1", "17MiB/512MiB", "-", "1.6s", "2"]
    row = next(line for line in lines if line.startswith("bank"))
    assert row.split()[:9] == ["bank", "h1", "running", "2", "512KiB/s", "25%", "2KiB", "h2", "in-sync"]
    assert "port 7777: bank, epoch 2, 8 connections" in lines
    assert lines[-1] == top_view.KEYS


def test_a_wide_window_shows_more() -> None:
    head = texts(cluster([host("h1")], [guest()]), width=160)[1]
    assert {"MEMORY", "BATTERY", "RESTARTS", "UP"} <= set(head.split())


@pytest.mark.parametrize("width", [1, 20, 79, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 10, 24])
def test_no_window_is_overrun(width: int, height: int) -> None:
    seen = cluster(
        [host(f"h{number}") for number in range(1, 31)],
        [guest(f"a-guest-with-a-long-name-{number}") for number in range(40)],
    )
    lines = texts(seen, width=width, height=height)
    assert len(lines) == height
    assert max(map(len, lines)) <= width


def test_what_there_is_no_room_for_is_counted() -> None:
    seen = cluster([host(f"h{number}") for number in range(1, 31)], [guest(f"g{number}") for number in range(40)])
    lines = texts(seen)
    hidden = [line for line in lines if line.startswith("and ")]
    shown_hosts = sum(line.startswith("h") and "ready" in line for line in lines)
    shown_guests = sum(line.startswith("g") and "running" in line for line in lines)
    assert hidden[0].startswith(f"and {30 - shown_hosts} more hosts")
    assert hidden[1].startswith(f"and {40 - shown_guests} more guests")
    assert shown_hosts > 5
    assert shown_guests > 5


def test_trouble_is_seen_at_once() -> None:
    dead = {k: host("h2")[k] for k in ("name", "host_restarts", "cut")} | {
        "state": "dead", "host_state": "down", "reason": "it was killed", "error": "no answer",
    }  # fmt: skip
    links = {"h2": "down", "h3": "up"}
    bank = guest(degraded=True, copies={}, lag_bytes=None)
    lines = render(cluster([host("h1", links=links, mains=False), dead], [bank]), None, width=80, height=24)
    by_name = {line.text.split()[0]: line for line in lines if line.text}
    assert "h2 down" in by_name["h1"].text
    assert "on battery" in by_name["h1"].text
    assert by_name["h2"].text.split()[:7] == ["h2", "dead", "-", "-", "-", "-", "-"]
    assert {by_name[name].mood for name in ("h1", "h2", "bank")} == {BAD}
    assert "none of 1" in by_name["bank"].text
    assert any(line.text == "! h2: it was killed" for line in lines)


def test_a_link_that_nobody_needs_is_no_trouble() -> None:
    line = texts(cluster([host("h1", links={"h2": "idle", "h3": "up"})], []))[2]
    assert "1 up" in line
    assert "idle" not in line


def test_what_a_newer_host_tells_is_shown() -> None:
    lines = texts(cluster([host("h1", dirty={"bytes": 3 * MIB, "cap_bytes": 64 * MIB})], []))
    assert "3MiB/64MiB" in lines[2]
    assert "no guests: `everram run` starts one" in lines


def test_a_new_epoch_has_no_rate_yet() -> None:
    before = cluster([host("h1")], [guest(epoch=1)], at_s=98.0)
    row = next(line for line in texts(cluster([host("h1")], [guest()]), before) if line.startswith("bank"))
    assert row.split()[4] == "-"
