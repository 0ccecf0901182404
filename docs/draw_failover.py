"""Draws `everram demo --json` as an SVG: how docs/failover.svg was made, from a real run.

    everram demo --json > run.json && python docs/draw_failover.py run.json > docs/failover.svg

Every point comes from the report; the drawing is that of `everram chaos run --report` too (actors/chaos/drawing.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from everram.actors.chaos.drawing import svg
from everram.actors.chaos.lanes import Lane, Rate, Spans, State, States
from everram.actors.chaos.watch import UP, legend_of

MARKS = (
    ("is proven dead", "proven dead"),
    ("is over", "lease over"),
    ("is chosen", "chosen"),
    ("serves again", "serves again"),
)


def draw(report: dict[str, Any]) -> str:
    begin_ms, end_ms = report["gap_ms"]
    legend = legend_of("the bank")
    by_words = {state.words: state for state in legend.values()}
    lanes: list[Lane] = [
        Rate("answers", list(_times(report["answers"]))),
        Spans("longest wait", [(begin_ms / 1000, end_ms / 1000, f"{end_ms - begin_ms:.0f} ms")]),
        *(_host(host, states, by_words, legend) for host, states in report["hosts"].items()),
    ]
    return svg(
        lanes,
        0.0,
        report["end_ms"] / 1000,
        title=f"A bank outlives its machine: {report['fault']} of {report['host']} under load",
        subtitle=f"one run of `everram demo`, {report['clients']} clients, one copy; not edited",
        faults=[(report["fault_ms"] / 1000, report["fault"])],
        captions=(_course(report), _proof(report)),
    )


def _times(answers: dict[str, Any]) -> list[float]:
    """The middle of its bin, for each answer."""
    bin_s = answers["bin_ms"] / 1000
    return [(number + 0.5) * bin_s for number, count in enumerate(answers["counts"]) for _ in range(count)]


def _host(host: str, states: list[dict[str, Any]], by_words: dict[str, State], legend: dict[str, State]) -> States:
    samples = [(state["at_ms"] / 1000, by_words.get(state["state"], legend[UP]).letter) for state in states]
    return States(host, samples, legend)


def _course(report: dict[str, Any]) -> str:
    """The moments that matter, from the fault on."""
    fault_ms, found = report["fault_ms"], []
    for phrase, word in MARKS:
        event = next((e for e in report["timeline"] if phrase in e["what"] and e["at_ms"] >= fault_ms), None)
        if event is not None:
            found.append(f"+{event['at_ms'] - fault_ms:.0f} ms {word}")
    return "after the fault: " + ", ".join(found)


def _proof(report: dict[str, Any]) -> str:
    prefix = "a prefix" if report["prefix_holds"] else "NO prefix"
    balances = "right" if report["invariant"] == "holds" else "WRONG"
    return (
        f"{report['acknowledged']:,} transfers acknowledged: {report['lost']} lost, {report['duplicated']} done twice, "
        f"{prefix} in commit order, all balances {balances}"
    )


def main() -> None:
    source = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
    sys.stdout.write(draw(json.loads(source)))


if __name__ == "__main__":
    main()
