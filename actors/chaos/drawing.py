"""Lanes as a picture: SVG, without a font or a script, and with both its colour schemes.

    picture = svg(lanes, begin_s, end_s, title="...", faults=[(1.5, "machine-kill")])

Whoever shows it says which scheme is wanted (`prefers-color-scheme`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from everram.actors.chaos.lanes import Lane, Level, Marks, Rate, Spans, Stack, States, counts, level_at

WIDTH, LEFT, RIGHT = 860, 112, 24
TITLE_HEIGHT, CURVE_HEIGHT, LANE_HEIGHT, GAP = 58, 64, 20, 12
COLUMNS = 240
"""Steps of a curve."""
LETTER_WIDTH = 6.6
"""Of the small letters, as most fonts have it."""
TICKS_MAX = 14

LIGHT = {
    "paper": "#ffffff", "ink": "#1f2328", "quiet": "#59636e", "rule": "#d1d9e0", "serves": "#1a7f5a",
    "copy": "#8cc9f0", "up": "#dfe4e9", "dead": "#cf222e", "fault": "#cf222e", "rate": "#1a7f5a", "bright": "#ffffff",
    "warn": "#e0b040", "lag": "#8250df", "one": "#0969da", "two": "#54aeff", "three": "#bf8700", "four": "#d4a72c",
    "five": "#afb8c1",
}  # fmt: skip
DARK = {
    "paper": "#0d1117", "ink": "#e6edf3", "quiet": "#9198a1", "rule": "#3d444d", "serves": "#238755",
    "copy": "#2f6f9f", "up": "#2a313a", "dead": "#b62324", "fault": "#ff7b72", "rate": "#3fb983", "bright": "#ffffff",
    "warn": "#9e7a1f", "lag": "#a371f7", "one": "#388bfd", "two": "#1f6feb", "three": "#bb8009", "four": "#9e6a03",
    "five": "#484f58",
}  # fmt: skip
LETTERS = """
svg text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif }
svg .title { font-size: 15px; font-weight: 600 }
svg .small { font-size: 12px }
"""
BRIGHT = ("serves", "dead")
"""Colours that letters stand out from only if they are bright."""


def style() -> str:
    """Plain classes: custom properties would be nicer, and some who show SVGs do not know them."""

    def scheme(colours: dict[str, str]) -> str:
        return "\n".join(
            f"svg .{name} {{ fill: {colour} }} svg .{name}-line {{ stroke: {colour} }}"
            for name, colour in colours.items()
        )

    return f"{LETTERS}{scheme(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{scheme(DARK)}\n}}\n"


def svg(
    lanes: Sequence[Lane],
    begin_s: float,
    end_s: float,
    *,
    title: str,
    subtitle: str = "",
    faults: Sequence[tuple[float, str]] = (),
    captions: Sequence[str] = (),
    styled: bool = True,
) -> str:
    """`faults` are lines through all lanes. `styled` False: the page around it has `style()` already."""
    drawing = _Drawing(begin_s, end_s)
    drawing.text(LEFT, 26, title, "ink title")
    drawing.text(LEFT, 45, subtitle, "quiet small")
    y: float = TITLE_HEIGHT + (14 if faults else 0)
    top = y
    for lane in lanes:
        height = CURVE_HEIGHT if isinstance(lane, (Rate, Level, Stack)) else LANE_HEIGHT
        drawing.lane(lane, y, height)
        y += height + GAP
    for at_s, words in faults:
        x = drawing.x(at_s)
        drawing.line(x, top - 14, x, y - GAP + 4, "fault", "4 3")
        drawing.text(x + 5, top - 5, words, "fault small")
    drawing.axis(y - GAP + 4)
    y += 40
    for words in captions:
        drawing.text(LEFT, y, words, "quiet small")
        y += 20
    bottom = drawing.legend(lanes, y) + 20
    body = "\n".join(drawing.parts)
    styles = f"<style>{style()}</style>\n" if styled else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom:.0f}" width="{WIDTH}" '
        f'height="{bottom:.0f}" role="img" aria-label="{escape(title)}">\n{styles}'
        f'<rect width="{WIDTH}" height="{bottom:.0f}" rx="6" class="paper"/>\n{body}\n</svg>\n'
    )


@dataclass(slots=True)
class _Drawing:
    begin_s: float
    end_s: float
    parts: list[str] = field(default_factory=list)

    def x(self, at_s: float) -> float:
        share = (at_s - self.begin_s) / (self.end_s - self.begin_s)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)

    def text(self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start") -> None:
        if words:
            place = f'x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"'
            self.parts.append(f"<text {place}>{escape(words)}</text>")

    def block(self, begin_s: float, end_s: float, top: float, colour: str, words: str, told: str = "") -> None:
        """A rectangle with the words inside if there is room; `told` to whoever points at it."""
        left, right = self.x(begin_s), self.x(end_s)
        width = max(right - left, 1.5)
        self.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{LANE_HEIGHT}" rx="2" class="{colour}">'
            f"<title>{escape(told or words)}</title></rect>"
        )
        if width > LETTER_WIDTH * len(words) + 8:
            ink = "bright" if colour in BRIGHT else "ink"
            self.text((left + right) / 2, top + 14.5, words, f"{ink} small", "middle")

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{colour}-line"{dashes}/>'
        )

    # -- lanes

    def lane(self, lane: Lane, top: float, height: float) -> None:
        match lane:
            case Rate():
                steps = self._steps()
                found = counts(lane.times, steps)
                step_s = (self.end_s - self.begin_s) / len(steps)
                most = max(found, default=0)
                self._curve(lane.name, [float(count) for count in found], top, f"to {most / step_s:,.0f}/s", "rate")
            case Level():
                levels = [level_at(lane.samples, end_s) for _, end_s in self._steps()]
                self._curve(lane.name, levels, top, f"to {max(levels, default=0):,.0f} {lane.unit}", "lag")
            case Stack():
                self._stack(lane, top)
            case States():
                self._name(lane.name, top)
                ends = [*(at_s for at_s, _ in lane.samples), self.end_s][1:]
                for (at_s, letter), end_s in zip(lane.samples, ends, strict=True):
                    state = lane.legend[letter]
                    self.block(at_s, end_s, top, state.colour, state.words)
            case Marks():
                self._name(lane.name, top)
                self._marks(lane, top)
            case Spans():
                self._name(lane.name, top)
                nexts = [*(begin_s for begin_s, _, _ in lane.spans), self.end_s][1:]
                for (begin_s, end_s, words), next_s in zip(lane.spans, nexts, strict=True):
                    self.block(begin_s, end_s, top, "warn", words, f"{words}: {end_s - begin_s:.3f} s")
                    self._beside(begin_s, end_s, next_s, top, words)

    def _beside(self, begin_s: float, end_s: float, next_s: float, top: float, words: str) -> None:
        """What does not fit into a block, where there is room for it before the next."""
        length = LETTER_WIDTH * len(words) + 8
        right = max(self.x(end_s), self.x(begin_s) + 1.5)
        if self.x(end_s) - self.x(begin_s) <= length < self.x(next_s) - right:
            self.text(right + 4, top + 14.5, words, "ink small")

    def _name(self, name: str, top: float) -> None:
        self.text(LEFT - 12, top + 15, name, anchor="end")

    def _marks(self, lane: Marks, top: float) -> None:
        """The words of a mark only where the marks and words around it leave room for them."""
        places = [self.x(at_s) for at_s, _ in lane.marks]
        free_from = float(LEFT)
        for number, (x, (_, words)) in enumerate(zip(places, lane.marks, strict=True)):
            tip = f"<title>{escape(words)}</title>" if words else ""
            self.parts.append(f'<circle cx="{x:.1f}" cy="{top + 10:.1f}" r="4" class="ink">{tip}</circle>')
            length = LETTER_WIDTH * len(words) + 8
            free_to = next((place for place in places[number + 1 :] if place > x + 8), WIDTH - RIGHT + 20.0) - 4
            if words and x >= free_from and x + 8 + length <= free_to:
                self.text(x + 8, top + 14.5, words, "ink small")
                free_from = x + 8 + length
            elif words and x - 8 - length >= free_from:
                self.text(x - 8, top + 14.5, words, "ink small", "end")
                free_from = x + 8
            free_from = max(free_from, x + 8)

    def _steps(self) -> list[tuple[float, float]]:
        step_s = (self.end_s - self.begin_s) / COLUMNS
        return [(self.begin_s + i * step_s, self.begin_s + (i + 1) * step_s) for i in range(COLUMNS)]

    def _curve(self, name: str, values: Sequence[float], top: float, scale: str, colour: str) -> None:
        self._area(values, top, max(values, default=0) or 1, colour)
        self._scale(name, top, scale)

    def _area(self, values: Sequence[float], top: float, most: float, colour: str, told: str = "") -> None:
        base = top + CURVE_HEIGHT
        points = [f"{LEFT},{base:.1f}"]
        width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
        for number, value in enumerate(values):
            y = base - CURVE_HEIGHT * value / most
            points += [f"{LEFT + number * width:.1f},{y:.1f}", f"{LEFT + (number + 1) * width:.1f},{y:.1f}"]
        points.append(f"{WIDTH - RIGHT},{base:.1f}")
        title = f"<title>{escape(told)}</title>" if told else ""
        opacity = "1" if told else "0.75"
        self.parts.append(
            f'<polygon points="{" ".join(points)}" class="{colour}" fill-opacity="{opacity}">{title}</polygon>'
        )

    def _scale(self, name: str, top: float, scale: str) -> None:
        base = top + CURVE_HEIGHT
        self.line(LEFT, base, WIDTH - RIGHT, base, "rule")
        self.text(LEFT - 12, base - CURVE_HEIGHT / 2 - 2, name, anchor="end")
        self.text(LEFT - 12, base - CURVE_HEIGHT / 2 + 14, scale, "quiet small", "end")

    def _stack(self, lane: Stack, top: float) -> None:
        """Each layer is drawn as all up to it, the highest first, so that the lower ones lie before it."""
        steps, sums = self._steps(), []
        total = [0.0] * len(steps)
        for layer in lane.layers:
            total = [so_far + level_at(layer.samples, end_s) for so_far, (_, end_s) in zip(total, steps, strict=True)]
            sums.append(total)
        most = max(total, default=0.0)
        for layer, levels in reversed(list(zip(lane.layers, sums, strict=True))):
            self._area(levels, top, most or 1, layer.colour, layer.words)
        self._scale(lane.name, top, f"to {most:,.0f} {lane.unit}")

    # -- below the lanes

    def axis(self, y: float) -> None:
        self.line(LEFT, y, WIDTH - RIGHT, y, "rule")
        for at_s in self._ticks():
            x = self.x(self.begin_s + at_s)
            self.line(x, y, x, y + 5, "rule")
            self.text(x, y + 19, f"{at_s:g} s", "quiet small", "middle")

    def _ticks(self) -> Iterator[float]:
        length_s = self.end_s - self.begin_s
        steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
        step_s = next((step for step in steps if length_s / step <= TICKS_MAX), length_s)
        for number in range(int(length_s / step_s) + 1):
            yield round(number * step_s, 3)

    def legend(self, lanes: Sequence[Lane], y: float) -> float:
        """What the colours mean, of those that are there, each once; where the last line of it is."""
        states = {lane.legend[letter] for lane in lanes if isinstance(lane, States) for _, letter in lane.samples}
        by_colour: dict[str, list[str]] = {}
        for state in sorted(states, key=lambda state: state.words):
            by_colour.setdefault(state.colour, []).append(state.words)
        y = self._keys("", [(" / ".join(words), colour) for colour, words in by_colour.items()], y)
        for lane in lanes:
            if isinstance(lane, Stack):
                y = self._keys(lane.name, [(layer.words, layer.colour) for layer in lane.layers], y + 20)
        return y

    def _keys(self, name: str, keys: Sequence[tuple[str, str]], y: float) -> float:
        """On as many lines as they need, beside the name of what they belong to."""
        self.text(LEFT - 12, y, name, "quiet small", "end")
        x = float(LEFT)
        for words, colour in keys:
            if x + 20 + LETTER_WIDTH * len(words) > WIDTH - RIGHT and x > LEFT:
                x, y = float(LEFT), y + 20
            self.parts.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" rx="2" class="{colour}"/>')
            self.text(x + 17, y, words, "quiet small")
            x += 36 + LETTER_WIDTH * len(words)
        return y
