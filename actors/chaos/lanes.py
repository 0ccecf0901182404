"""What happened side by side over time: one lane a thing. Plain data, drawn as text here and as a picture in `drawing`.

    lanes = [Rate("clients", times), States("h1", samples, LEGEND), Marks("faults", [(1.5, "machine-kill of h1")])]
    print(draw(lanes, begin_s, end_s, unicode=True))
    svg = drawing.svg(lanes, begin_s, end_s)

All times are seconds of one clock; each sequence ascends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLUMNS = 72
BARS = " ▁▂▃▄▅▆▇█"
BARS_ASCII = " .:-=+*#@"


@dataclass(frozen=True, slots=True)
class State:
    """How a state of a lane looks: its letter in text, its words, and its colour's name in a picture."""

    letter: str
    words: str
    colour: str = "up"


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened."""

    name: str
    times: Sequence[float]
    noun: str = "answers"


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity over time: (since when, how much)."""

    name: str
    samples: Sequence[tuple[float, float]]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One of several quantities that add up: (since when, how much). Its colour's name in a picture."""

    words: str
    colour: str
    samples: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Stack:
    """Quantities that add up, one on the other; in text only their sum."""

    name: str
    layers: Sequence[Layer]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class States:
    """The state in each moment: (since when, its letter). In text one that differs from `usual` is drawn however short
    it was."""

    name: str
    samples: Sequence[tuple[float, str]]
    legend: Mapping[str, State]
    usual: str = "="


@dataclass(frozen=True, slots=True)
class Marks:
    """Texts that begin at one moment each, as far as there is room."""

    name: str
    marks: Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Spans:
    """From one moment to another, with a text inside if it fits there, otherwise behind."""

    name: str
    spans: Sequence[tuple[float, float, str]]


Lane = Rate | Level | Stack | States | Marks | Spans
Cells = list[str | float]
"""One a column; a number from 0 to 1 is drawn as a bar."""
Columns = Sequence[tuple[float, float]]


def draw(lanes: Sequence[Lane], begin_s: float, end_s: float, *, unicode: bool, columns: int = COLUMNS) -> str:
    """The lanes from `begin_s` to `end_s`, below them the time in seconds."""
    step_s = (end_s - begin_s) / columns
    spans = [(begin_s + i * step_s, begin_s + (i + 1) * step_s) for i in range(columns)]
    width = max(len(lane.name) for lane in lanes)
    bars = BARS if unicode else BARS_ASCII
    lines = []
    for lane in lanes:
        text = "".join(cell if isinstance(cell, str) else _bar(cell, bars) for cell in _cells(lane, spans))
        lines.append(f"{lane.name:>{width}} |{text}|")
    total = f"{end_s - begin_s:.1f} s"
    lines.append(f"{'':>{width}}  0{total:>{columns - 1}}")
    return "\n".join(lines)


def counts(times: Sequence[float], columns: Columns) -> list[int]:
    return [bisect_left(times, end) - bisect_left(times, begin) for begin, end in columns]


def level_at(samples: Sequence[tuple[float, float]], at_s: float) -> float:
    """0 before the first sample."""
    index = bisect_right([at for at, _ in samples], at_s) - 1
    return samples[index][1] if index >= 0 else 0.0


def _cells(lane: Lane, columns: Columns) -> Cells:
    match lane:
        case Rate():
            found = counts(lane.times, columns)
            most = max(found, default=0) or 1
            return [count / most for count in found]
        case Level():
            return _shares([level_at(lane.samples, end) for _, end in columns])
        case Stack():
            return _shares([sum(level_at(layer.samples, end) for layer in lane.layers) for _, end in columns])
        case States():
            return _states(lane, columns)
        case Marks():
            line = [" "] * len(columns)
            for at_s, text in lane.marks:
                _write(line, sum(end <= at_s for _, end in columns), text)
            return list(line)
        case Spans():
            line = [" "] * len(columns)
            for begin_s, end_s, text in lane.spans:
                width = max(2, sum(begin < end_s and end > begin_s for begin, end in columns))
                inside = f"{f' {text} ':-^{width - 2}}"
                arrow = f"<{inside}>" if len(inside) <= width - 2 else f"<{'-' * (width - 2)}> {text}"
                _write(line, sum(end <= begin_s for _, end in columns), arrow)
            return list(line)


def _shares(levels: Sequence[float]) -> Cells:
    highest = max(levels, default=0.0) or 1.0
    return [level / highest for level in levels]


def _states(lane: States, columns: Columns) -> Cells:
    times = [at for at, _ in lane.samples]
    drawn: Cells = []
    for begin, end in columns:
        inside = [letter for _, letter in lane.samples[bisect_left(times, begin) : bisect_left(times, end)]]
        before = bisect_right(times, begin) - 1
        letters = inside or ([lane.samples[before][1]] if before >= 0 else [" "])
        drawn.append(next((letter for letter in letters if letter != lane.usual), letters[-1]))
    return drawn


def _write(line: list[str], at: int, text: str) -> None:
    for offset, letter in enumerate(text[: max(0, len(line) - at)]):
        line[at + offset] = letter


def _bar(share: float, bars: str) -> str:
    """What is not nothing is drawn as something."""
    if share <= 0:
        return bars[0]
    return bars[max(1, round(share * (len(bars) - 1)))]
