"""Draws what happened side by side over time, in text: one lane a thing, one column a moment."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLUMNS = 72
BARS = " ▁▂▃▄▅▆▇█"
BARS_ASCII = " .:-=+*#@"


@dataclass(frozen=True, slots=True)
class Lane:
    """A name, and what to draw between two moments; a number from 0 to 1 is drawn as a bar."""

    name: str
    cells: Callable[[Sequence[tuple[float, float]]], list[str | float]]

    @staticmethod
    def of_rate(name: str, times: Sequence[float]) -> Lane:
        """How often something happened; `times` ascending."""

        def cells(spans: Sequence[tuple[float, float]]) -> list[str | float]:
            counts = [bisect_left(times, end) - bisect_left(times, begin) for begin, end in spans]
            most = max(counts, default=0) or 1
            return [count / most for count in counts]

        return Lane(name, cells)

    @staticmethod
    def of_states(name: str, samples: Sequence[tuple[float, str]]) -> Lane:
        """The state in each moment; one that differs from "=" is drawn however short it was."""

        def cells(spans: Sequence[tuple[float, float]]) -> list[str | float]:
            times = [at for at, _ in samples]
            drawn: list[str | float] = []
            for begin, end in spans:
                inside = [letter for _, letter in samples[bisect_left(times, begin) : bisect_left(times, end)]]
                before = bisect_right(times, begin) - 1
                letters = inside or ([samples[before][1]] if before >= 0 else [" "])
                drawn.append(next((letter for letter in letters if letter != "="), letters[-1]))
            return drawn

        return Lane(name, cells)

    @staticmethod
    def of_mark(name: str, at_s: float, text: str) -> Lane:
        """A text that begins at one moment, as far as there is room."""

        def cells(spans: Sequence[tuple[float, float]]) -> list[str | float]:
            before = sum(end <= at_s for _, end in spans)
            return list(f"{'':{before}}{text}".ljust(len(spans))[: len(spans)])

        return Lane(name, cells)

    @staticmethod
    def of_span(name: str, begin_s: float, end_s: float, text: str) -> Lane:
        """From one moment to another, with a text inside if it fits there, otherwise behind."""

        def cells(spans: Sequence[tuple[float, float]]) -> list[str | float]:
            before = sum(end <= begin_s for _, end in spans)
            width = max(2, sum(begin < end_s and end > begin_s for begin, end in spans))
            inside = f"{f' {text} ':-^{width - 2}}"
            arrow = f"<{inside}>" if len(inside) <= width - 2 else f"<{'-' * (width - 2)}> {text}"
            return list(f"{'':{before}}{arrow}".ljust(len(spans))[: len(spans)])

        return Lane(name, cells)


def draw(lanes: Sequence[Lane], begin_s: float, end_s: float, *, unicode: bool, columns: int = COLUMNS) -> str:
    """The lanes from `begin_s` to `end_s`, below them the time in seconds."""
    step_s = (end_s - begin_s) / columns
    spans = [(begin_s + i * step_s, begin_s + (i + 1) * step_s) for i in range(columns)]
    width = max(len(lane.name) for lane in lanes)
    bars = BARS if unicode else BARS_ASCII
    lines = []
    for lane in lanes:
        text = "".join(cell if isinstance(cell, str) else _bar(cell, bars) for cell in lane.cells(spans))
        lines.append(f"{lane.name:>{width}} |{text}|")
    total = f"{end_s - begin_s:.1f} s"
    lines.append(f"{'':>{width}}  0{total:>{columns - 1}}")
    return "\n".join(lines)


def _bar(share: float, bars: str) -> str:
    """What is not nothing is drawn as something."""
    if share <= 0:
        return bars[0]
    return bars[max(1, round(share * (len(bars) - 1)))]
