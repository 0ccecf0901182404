"""What a chaos run says of itself: its verdicts and its page."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everram.actors.chaos import drawing
from everram.actors.chaos.lanes import Marks
from everram.actors.chaos.real import report, schedule
from everram.actors.chaos.real.command import write
from everram.actors.chaos.real.findings import Findings
from everram.actors.chaos.real.gauges import Gauges
from everram.actors.chaos.real.run import Options, Outcome, _check_alive
from everram.actors.chaos.real.teller import Record
from everram.actors.chaos.watch import UP
from everram.runtime.errors import ResourceExhausted


def test_a_disk_that_is_full_leaves_the_report_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(path, "the first")
    (tmp_path / "r.html.part").symlink_to("/dev/full")
    with pytest.raises(ResourceExhausted, match="No space left"):
        write(path, "the second")
    assert path.read_text() == "the first"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ResourceExhausted):
        write(Path("/dev/full"), "a third")


def outcome(options: Options, findings: Findings) -> Outcome:
    watch = cast(
        Any, SimpleNamespace(states={"h1": [(0.0, UP)]}, failovers=[], incarnations={}, leader_changes=0, events=[])
    )
    gauges = Gauges(cast(Any, None), {"g": "bank-1"})
    return Outcome(options, ["h1", "h2"], [], {"bank-1": Record()}, watch, gauges, findings, 0.0, "TCP", 5.0)


def test_the_page_says_what_nobody_looked_at_and_how_to_do_it_again() -> None:
    findings = Findings(lambda: 2.0, ["all is well", "nothing is <lost>"])
    findings.look("all is well")
    options = Options(7, 120.0, 3, {"host-kill": schedule.FAULTS["host-kill"], "hang": 1})
    found = outcome(options, findings)
    page = report.page(found, "abc")
    assert "NOT LOOKED AT" in page
    assert "0 violations, 1 of 2 properties not looked at" in page
    assert "everram chaos run --seed 7 --duration 120s --hosts 3 --faults host-kill,hang" in page
    findings.violate("nothing is <lost>", "it is")
    found.interrupted = True
    page = report.page(found, "abc")
    assert "2.00 s: it is" in page
    assert "1 violation until it was interrupted" in page
    assert "<lost>" not in page
    findings.verdicts["nothing is <lost>"].violations.clear()
    findings.look("nothing is <lost>")
    found.interrupted = False
    assert report.KEPT in report.page(found, "abc")


async def test_a_watcher_that_failed_ends_the_run() -> None:
    async def fails() -> None:
        raise RuntimeError("it looks no more")

    task = asyncio.create_task(fails())
    _check_alive([task])
    await asyncio.wait([task])
    with pytest.raises(RuntimeError):
        _check_alive([task])


def test_no_mark_lies_on_the_words_of_another() -> None:
    times = [1.0, 1.02, 1.6, 5.0, 5.4, 9.9, 9.95]
    picture = drawing.svg([Marks("failovers", [(at_s, "bank-1 to h3") for at_s in times])], 0.0, 10.0, title="t")
    marks = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', picture)]
    spans = []
    for x, anchor in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="(\w+)">bank-1', picture):
        length = drawing.LETTER_WIDTH * len("bank-1 to h3")
        spans.append((float(x), float(x) + length) if anchor == "start" else (float(x) - length, float(x)))
    assert len(marks) == len(times)
    assert len(spans) >= 3
    assert not [(x, span) for x in marks for span in spans if span[0] - 4 < x < span[1] + 4]
    ordered = sorted(spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
