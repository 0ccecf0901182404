"""Draws what `everram top` shows on a terminal of 80 columns and 24 lines as an SVG: how docs/top.svg was made.

    everram top --json | head -2 | python docs/draw_top.py > docs/top.svg

The lines are those of `top_view.render` from what a real cluster said, in its own two last looks.
"""

from __future__ import annotations

import json
import sys
from html import escape

from everram.runtime.cli.top_view import BAD, GOOD, HEAD, QUIET, TITLE, Line, Seen, render

WIDTH, HEIGHT = 80, 24
LETTER, LINE, MARGIN = 8.4, 18, 14
"""Of the monospaced letters that are drawn, in pixels."""
PAPER, INK = "#0d1117", "#e6edf3"
COLOURS = {GOOD: "#3fb983", BAD: "#ff7b72", QUIET: "#9198a1"}


def draw(seen: Seen, before: Seen | None) -> str:
    lines = render(seen, before, width=WIDTH, height=HEIGHT)
    width, height = WIDTH * LETTER + 2 * MARGIN, HEIGHT * LINE + 2 * MARGIN
    body = "\n".join(_line(line, MARGIN + LINE * number) for number, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="everram top">\n'
        f"<style>text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace }}</style>\n"
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def _line(line: Line, top: float) -> str:
    ink, back = COLOURS.get(line.mood, INK), ""
    if line.mood == TITLE:
        back = f'<rect x="{MARGIN}" y="{top}" width="{WIDTH * LETTER:.0f}" height="{LINE}" fill="{INK}"/>'
        ink = PAPER
    weight = ' font-weight="bold"' if line.mood == HEAD else ""
    length = f' textLength="{len(line.text) * LETTER:.1f}" lengthAdjust="spacingAndGlyphs"' if line.text else ""
    return (
        f'{back}<text x="{MARGIN}" y="{top + 13.5}" fill="{ink}"{weight}{length} xml:space="preserve">'
        f"{escape(line.text)}</text>"
    )


def main() -> None:
    looks: list[Seen] = [json.loads(line) for line in sys.stdin if line.strip()]
    sys.stdout.write(draw(looks[-1], looks[-2] if len(looks) > 1 else None))


if __name__ == "__main__":
    main()
