"""Draws `everram demo --json` as an SVG: how docs/failover.svg was made, from a real run.

    everram demo --json > run.json && python docs/draw_failover.py run.json > docs/failover.svg

Every point comes from the report. The picture brings no font, and both its colour schemes: whoever shows it says which
one is wanted (`prefers-color-scheme`).
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT = 860, 96, 24
RATE_TOP, RATE_HEIGHT = 72, 84
LANE_HEIGHT, LANE_GAP = 20, 12
SMOOTH_BINS = 2
"""Bins drawn as one step: 50 ms."""
MARKS = (
    ("is proven dead", "proven dead"),
    ("is over", "lease over"),
    ("is chosen", "chosen"),
    ("serves again", "serves again"),
)

LIGHT = {
    "paper": "#ffffff", "ink": "#1f2328", "quiet": "#59636e", "rule": "#d1d9e0", "serves": "#1a7f5a",
    "copy": "#8cc9f0", "up": "#dfe4e9", "dead": "#cf222e", "fault": "#cf222e", "rate": "#1a7f5a", "bright": "#ffffff",
}  # fmt: skip
DARK = {
    "paper": "#0d1117", "ink": "#e6edf3", "quiet": "#9198a1", "rule": "#3d444d", "serves": "#238755",
    "copy": "#2f6f9f", "up": "#2a313a", "dead": "#b62324", "fault": "#ff7b72", "rate": "#3fb983", "bright": "#ffffff",
}  # fmt: skip
LETTERS = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 12px }
"""


def style() -> str:
    """Plain classes: custom properties would be nicer, and some who show SVGs do not know them."""

    def scheme(colours: dict[str, str]) -> str:
        return "\n".join(
            f".{name} {{ fill: {colour} }} .{name}-line {{ stroke: {colour} }}" for name, colour in colours.items()
        )

    return f"{LETTERS}{scheme(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{scheme(DARK)}\n}}\n"


COLOURS = {
    "serves the bank": ("serves", "bright", "serves the bank"),
    "keeps its copy": ("copy", "ink", "keeps its copy"),
    "up": ("up", "quiet", "up"),
    "cut off": ("dead", "bright", "cut off"),
    "dead": ("dead", "bright", "dead"),
}
OTHER = ("up", "ink", "")


class Drawing:
    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.end_ms = float(report["end_ms"])
        self.parts: list[str] = []

    def x(self, at_ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at_ms / self.end_ms, 0.0), 1.0)

    def text(self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def rectangle(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" rx="2" class="{colour}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{colour}-line"{dashes}/>'
        )

    # -- what it shows

    def draw(self) -> str:
        hosts = self.report["hosts"]
        lanes_top = RATE_TOP + RATE_HEIGHT + 26
        bottom = lanes_top + len(hosts) * (LANE_HEIGHT + LANE_GAP)
        height = bottom + 96
        self._title()
        self._rate()
        for number, (host, states) in enumerate(hosts.items()):
            self._lane(host, states, lanes_top + number * (LANE_HEIGHT + LANE_GAP))
        self._fault(bottom)
        self._axis(bottom)
        self._proof(bottom + 80)
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" aria-label="{escape(self._words())}">\n<style>{style()}</style>\n'
            f'<rect width="{WIDTH}" height="{height}" rx="6" class="paper"/>\n{body}\n</svg>\n'
        )

    def _words(self) -> str:
        report = self.report
        return (
            f"{report['clients']} clients transfer money at a bank whose memory is kept by everram; "
            f"{report['fault']} of {report['host']}; {report['host_after']} serves, {report['lost']} lost"
        )

    def _title(self) -> None:
        report = self.report
        self.text(
            LEFT, 26, f"A bank outlives its machine: {report['fault']} of {report['host']} under load", "ink title"
        )
        self.text(
            LEFT, 45, f"one run of `everram demo`, {report['clients']} clients, one copy; not edited", "quiet small"
        )

    def _rate(self) -> None:
        """Answers a second, as the clients counted them."""
        step_ms = self.report["answers"]["bin_ms"] * SMOOTH_BINS
        counts = self.report["answers"]["counts"]
        steps = [sum(counts[i : i + SMOOTH_BINS]) for i in range(0, len(counts), SMOOTH_BINS)]
        most, base = max(steps), RATE_TOP + RATE_HEIGHT
        points = [f"{LEFT},{base}"]
        for number, count in enumerate(steps):
            y = base - RATE_HEIGHT * count / most
            points += [f"{self.x(number * step_ms):.1f},{y:.1f}", f"{self.x((number + 1) * step_ms):.1f},{y:.1f}"]
        points.append(f"{self.x(self.end_ms):.1f},{base}")
        self.parts.append(f'<polygon points="{" ".join(points)}" class="rate" fill-opacity="0.75"/>')
        self.line(LEFT, base, WIDTH - RIGHT, base, "rule")
        self.text(LEFT - 12, base - RATE_HEIGHT / 2 - 2, "answers", anchor="end")
        self.text(LEFT - 12, base - RATE_HEIGHT / 2 + 14, f"to {most * 1000 // step_ms}/s", "quiet small", anchor="end")

    def _lane(self, host: str, states: list[dict[str, Any]], top: float) -> None:
        self.text(LEFT - 12, top + 15, host, anchor="end")
        ends = [*(state["at_ms"] for state in states[1:]), self.end_ms]
        for state, end_ms in zip(states, ends, strict=True):
            colour, ink, words = COLOURS.get(state["state"], OTHER)
            begin, end = self.x(state["at_ms"]), self.x(end_ms)
            self.rectangle(begin, top, end - begin, LANE_HEIGHT, colour)
            if end - begin > 8 * len(words):
                self.text((begin + end) / 2, top + 14.5, words, f"{ink} small", "middle")

    def _fault(self, bottom: float) -> None:
        """The fault, and the longest wait of a client."""
        begin_ms, end_ms = self.report["gap_ms"]
        at, begin, end = self.x(self.report["fault_ms"]), self.x(begin_ms), self.x(end_ms)
        self.line(at, RATE_TOP - 14, at, bottom + 4, "fault", "4 3")
        self.text(at + 5, RATE_TOP - 6, self.report["fault"], "fault")
        self.line(end, RATE_TOP + RATE_HEIGHT - 30, end, RATE_TOP + RATE_HEIGHT, "ink")
        y = RATE_TOP + RATE_HEIGHT - 16
        self.line(begin, y, end, y, "ink")
        self.text((begin + end) / 2, y - 5, f"{end_ms - begin_ms:.0f} ms", "ink small", "middle")

    def _axis(self, bottom: float) -> None:
        self.line(LEFT, bottom + 4, WIDTH - RIGHT, bottom + 4, "rule")
        for second in range(int(self.end_ms / 1000) + 1):
            x = self.x(1000 * second)
            self.line(x, bottom + 4, x, bottom + 9, "rule")
            self.text(x, bottom + 23, f"{second} s", "quiet small", "middle")
        self.text(LEFT, bottom + 46, self._course(), "quiet small")

    def _course(self) -> str:
        """The moments that matter, from the fault on."""
        fault_ms, found = self.report["fault_ms"], []
        for phrase, word in MARKS:
            event = next((e for e in self.report["timeline"] if phrase in e["what"] and e["at_ms"] >= fault_ms), None)
            if event is not None:
                found.append(f"+{event['at_ms'] - fault_ms:.0f} ms {word}")
        return "after the fault: " + ", ".join(found)

    def _proof(self, y: float) -> None:
        report = self.report
        self.text(
            LEFT,
            y - 12,
            f"{report['acknowledged']:,} transfers acknowledged: {report['lost']} lost, "
            f"{report['duplicated']} done twice, "
            f"{'a prefix' if report['prefix_holds'] else 'NO prefix'} in commit order, all balances "
            f"{'right' if report['invariant'] == 'holds' else 'WRONG'}",
        )


def main() -> None:
    source = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
    sys.stdout.write(Drawing(json.loads(source)).draw())


if __name__ == "__main__":
    main()
