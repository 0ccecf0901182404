"""The page about a chaos run: one HTML file that needs nothing from anywhere, light or dark as its reader likes.

Path("r.html").write_text(page(outcome, commit="1a2b3c4"))
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from everram.actors.chaos import drawing
from everram.actors.chaos.lanes import Lane, Layer, Level, Marks, Rate, Spans, Stack, States
from everram.actors.chaos.real.run import Inflicted, Outcome
from everram.actors.chaos.real.teller import UNSERVED_S, Record
from everram.actors.chaos.watch import LEGEND, UP
from everram.runtime.cli.output import plural

KEPT = "0 violations: everything that is promised was kept"
KIB, MIB = 1 << 10, 1 << 20
UNUSED = ("untouched", "ballooned", "swapped")
"""Classes of pages that have none of their hosts' memory."""
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --quiet: #59636e; --rule: #d1d9e0;
  --good: #1a7f5a; --bad: #cf222e; --band: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --quiet: #9198a1; --rule: #3d444d;
  --good: #3fb983; --bad: #ff7b72; --band: #151b23 } }
body { margin: 2rem auto; max-width: 900px; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0 } .quiet { color: var(--quiet) } code { font: 13px ui-monospace, monospace }
.verdict { border-left: 4px solid var(--good); background: var(--band); padding: .6rem 1rem; margin: 1rem 0 }
.verdict.bad { border-color: var(--bad) } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; width: 100%; font-size: 13.5px } .wide { overflow-x: auto }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600 } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
td.number { white-space: nowrap }
td:first-child { white-space: nowrap } svg { max-width: 100%; height: auto }
@media (max-width: 700px) { td:first-child { white-space: normal } body { margin: 1rem auto } }
details { margin: .5rem 0 } summary { cursor: pointer }
"""


def page(outcome: Outcome, commit: str) -> str:
    summary = summarize(outcome)
    options = outcome.options
    bad = summary["violations"] > 0
    word = verdict_of(summary) if bad or outcome.interrupted or summary["not_looked_at"] else KEPT
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>everram chaos run, seed {options.seed}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{drawing.style()}</style>
</head>
<body>
<h1>Chaos on a real cluster</h1>
<p class="quiet">seed {options.seed}, {options.duration_s:g} s, {len(outcome.hosts)} hosts over {outcome.channel},
{len(outcome.records)} banks with a copy each; {escape(commit)}</p>
<div class="{"verdict bad" if bad else "verdict"}"><strong>{escape(word)}</strong><br>
{escape(_throughput(summary))}</div>
<h2>What was checked</h2>
{_verdicts(outcome)}
<h2>What happened</h2>
{picture(outcome)}
<h2>What clients saw</h2>
{_clients(outcome)}
<h2>Faults</h2>
{_faults(outcome)}
<h2>Every event</h2>
{_events(outcome)}
<p class="quiet">again: <code>{escape(outcome.again)}</code></p>
</body>
</html>
"""


def verdict_of(summary: dict[str, Any]) -> str:
    """In words that end a sentence."""
    word = plural(summary["violations"], "violation")
    if summary["not_looked_at"]:
        word += f", {summary['not_looked_at']} of {len(summary['checkers'])} properties not looked at"
    return f"{word} until it was interrupted" if summary["interrupted"] else word


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The numbers, for `--json` and for people."""
    length_s = max(outcome.ended_s - outcome.began_s, 1e-9)
    answered = sum(len(record.answered) for record in outcome.records.values())
    return {
        "seed": outcome.options.seed,
        "duration_s": round(length_s, 2),
        "hosts": len(outcome.hosts),
        "guests": len(outcome.records),
        "violations": outcome.findings.violations,
        "not_looked_at": sum(not (each.looked or each.violations) for each in outcome.findings.verdicts.values()),
        "interrupted": outcome.interrupted,
        "faults": [
            {
                "kind": one.fault.kind,
                "target": one.fault.target,
                "at_s": round(one.begun_s - outcome.began_s, 3),
                "over_after_s": round(one.ended_s - one.begun_s, 3),
                "whole_after_s": round(one.whole_s - one.begun_s, 3) if one.whole_s else None,
                "problem": one.problem,
            }
            for one in outcome.faults
        ],
        "transfers": answered,
        "transfers_per_s": round(answered / length_s, 1),
        "clients": {name: _of_client(record, length_s) for name, record in outcome.records.items()},
        "unserved_s_longest": round(max(map(_longest, outcome.records.values()), default=0.0), 3),
        "unserved_s": round(sum(map(_unserved_s, outcome.records.values())), 3),
        "channel": outcome.channel,
        "snapshots": dict(Counter(kind for _, kind in outcome.snapshots)),
        "swapped_mib_most": round(_most(outcome.gauges.swapped) / MIB, 1),
        "ballooned_mib_most": round(_most(outcome.gauges.ballooned) / MIB, 1),
        "old_kib_most": round(_most(outcome.gauges.old_blocks) / KIB),
        "purged_kib_most": round(_most(outcome.gauges.purged) / KIB),
        "leader_changes": outcome.watch.leader_changes,
        "incarnations": len(outcome.watch.incarnations),
        "checkers": outcome.findings.to_json(),
    }


def _of_client(record: Record, length_s: float) -> dict[str, Any]:
    waits = sorted(record.waits_s)
    unserved_s = _unserved_s(record)
    return {
        "transfers": len(record.answered),
        "replicated": record.replicated,
        "wait_ms_median": round(1000 * _quantile(waits, 0.5), 2),
        "wait_ms_p99": round(1000 * _quantile(waits, 0.99), 2),
        "wait_ms_longest": round(1000 * _quantile(waits, 1.0), 1),
        "unserved_times": len(record.unserved),
        "unserved_s": round(unserved_s, 3),
        "served_share": round(1 - unserved_s / length_s, 4),
        "broken_connections": record.broken,
        "undone_unpromised": record.undone,
    }


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else 0.0


def _most(samples: Sequence[tuple[float, float]]) -> float:
    return max((level for _, level in samples), default=0.0)


def _unserved_s(record: Record) -> float:
    return sum(end_s - begin_s for begin_s, end_s in record.unserved)


def _longest(record: Record) -> float:
    return max((end_s - begin_s for begin_s, end_s in record.unserved), default=0.0)


def _throughput(summary: dict[str, Any]) -> str:
    faults = plural(len(summary["faults"]), "fault")
    return (
        f"{summary['transfers']:,} transfers ({summary['transfers_per_s']:,}/s) through {faults} "
        f"and {summary['incarnations']} incarnations of {summary['guests']} banks; "
        f"no client was without service for longer than {summary['unserved_s_longest']:.2f} s, and all together for "
        f"{summary['unserved_s']:.2f} s. {summary['snapshots'].get('take', 0)} snapshots; up to "
        f"{summary['swapped_mib_most']:g} MiB swapped out and {summary['ballooned_mib_most']:g} MiB in balloons"
    )


# -- the picture


def lanes(outcome: Outcome) -> list[Lane]:
    watch = outcome.watch
    everything = sorted(at_s for record in outcome.records.values() for at_s in record.answered)
    unserved = [
        Spans(name, [(begin_s, end_s, f"{end_s - begin_s:.2f} s") for begin_s, end_s in record.unserved])
        for name, record in outcome.records.items()
    ]
    gauges = outcome.gauges
    return [
        Rate("answers", everything),
        *unserved,
        *(States(host, states or [(outcome.began_s, UP)], LEGEND, UP) for host, states in watch.states.items()),
        Spans("faults", [(one.begun_s, max(one.ended_s, one.begun_s), one.fault.kind) for one in outcome.faults]),
        Marks("failovers", [(at_s, f"{guest} to {host}") for at_s, guest, host in watch.failovers]),
        Level("copies behind", _behind(outcome), "KiB"),
        Stack("pages in use", _classes(outcome), "MiB"),
        Stack(
            "taken back",
            (
                Layer("swapped out", "one", _scaled(gauges.swapped, MIB)),
                Layer("in the balloon", "two", _scaled(gauges.ballooned, MIB)),
            ),
            "MiB",
        ),
        Marks("snapshots", [(at_s, "") for at_s, kind in outcome.snapshots if kind == "take"]),
        Marks("purges", [(at_s, "") for at_s, kind in outcome.snapshots if kind == "purge"]),
        Stack(
            "old content",
            (
                Layer("old content on the disk", "three", _scaled(gauges.purged, KIB)),
                Layer("old content in memory", "four", _scaled(gauges.old_blocks, KIB)),
            ),
            "KiB",
        ),
    ]


def _classes(outcome: Outcome) -> list[Layer]:
    """What guests use their volatile memory for, as their hosts estimate it; what they do not use is left out."""
    colours = itertools.cycle(("one", "two", "three", "four", "five"))
    found = outcome.gauges.classes.items()
    return [
        Layer(name, next(colours), _scaled(samples, MIB))
        for name, samples in found
        if name not in UNUSED and any(size_bytes for _, size_bytes in samples)
    ]


def _scaled(samples: Sequence[tuple[float, float]], unit_bytes: int) -> list[tuple[float, float]]:
    return [(at_s, size_bytes / unit_bytes) for at_s, size_bytes in samples]


def _behind(outcome: Outcome) -> list[tuple[float, float]]:
    """Of all guests together."""
    samples = sorted((at_s, name, level) for name, lag in outcome.gauges.lag.items() for at_s, level in lag)
    now: dict[str, float] = {}
    total = []
    for at_s, name, level in samples:
        now[name] = level
        total.append((at_s, sum(now.values()) / 1024))
    return total


def picture(outcome: Outcome) -> str:
    return drawing.svg(
        lanes(outcome),
        outcome.began_s,
        outcome.ended_s,
        title=f"Seed {outcome.options.seed}: {len(outcome.faults)} faults in {outcome.options.duration_s:g} s",
        subtitle="a real cluster on one computer. A bank's own lane shows when nobody answered its client",
        captions=(f"without service: a wait of more than {1000 * UNSERVED_S:g} ms; point at a block to read it",),
        styled=False,
    )


# -- tables


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    def cell(tag: str, column: int, value: object) -> str:
        text = value if isinstance(value, _Html) else escape(str(value))
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    lines = ["".join(cell("th", i, name) for i, name in enumerate(head))]
    lines += ["".join(cell("td", i, value) for i, value in enumerate(row)) for row in rows]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


class _Html(str):
    """Markup already."""


def _verdicts(outcome: Outcome) -> str:
    rows = []
    for verdict in outcome.findings.verdicts.values():
        word = _Html(f'<span class="{"good" if verdict.holds else "bad"}">{verdict.word}</span>')
        told = [f"{at_s - outcome.began_s:.2f} s: {what}" for at_s, what in verdict.violations]
        evidence = _Html("<br>".join(map(escape, [*told, verdict.evidence])))
        rows.append((verdict.claim, word, f"{verdict.looked:,}", evidence))
    return _table(("property", "verdict", "looked at", "evidence"), rows, (2,))


def _clients(outcome: Outcome) -> str:
    length_s = outcome.ended_s - outcome.began_s
    rows = []
    for name, record in outcome.records.items():
        one = _of_client(record, length_s)
        rows.append(
            (
                name,
                f"{one['transfers']:,}",
                f"{one['replicated']:,}",
                one["wait_ms_median"],
                one["wait_ms_p99"],
                one["wait_ms_longest"],
                one["unserved_times"],
                one["unserved_s"],
                f"{100 * one['served_share']:.2f} %",
                one["broken_connections"],
                one["undone_unpromised"],
            )
        )
    head = ("bank", "transfers", "replicated", "median ms", "p99 ms", "longest ms", "times unserved", "s unserved",
            "served", "broken", "undone, not promised")  # fmt: skip
    return _table(head, rows, tuple(range(1, len(head))))


def _faults(outcome: Outcome) -> str:
    unwhole = "not waited for" if outcome.interrupted else "never"

    def row(one: Inflicted) -> tuple[object, ...]:
        at_s = one.begun_s - outcome.began_s
        whole = f"{one.whole_s - one.begun_s:.2f}" if one.whole_s else unwhole
        return (
            f"{one.fault.at_s:.2f}", f"{at_s:.2f}", one.fault.kind, one.fault.target,
            f"{one.ended_s - one.begun_s:.2f}", whole, one.problem,
        )  # fmt: skip

    head = ("planned at s", "begun at s", "fault", "of", "over after s", "all whole after s", "")
    skipped = len(outcome.planned) - len(outcome.faults)
    note = f'<p class="quiet">{skipped} more were drawn, and there was no time left for them</p>' if skipped else ""
    return _table(head, map(row, outcome.faults), (0, 1, 4, 5)) + note


def _events(outcome: Outcome) -> str:
    faults = [(one.begun_s, f"FAULT {one.fault.kind} of {one.fault.target}") for one in outcome.faults]
    events = sorted([*outcome.watch.events, *faults])
    rows = [(f"{at_s - outcome.began_s:.3f}", what) for at_s, what in events if at_s >= outcome.began_s - 1]
    return f"<details><summary>{len(rows)} events</summary>{_table(('at s', 'what'), rows, (0,))}</details>"
