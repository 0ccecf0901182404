"""How commands print: a table or a sentence for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say(text: str) -> None:
    """A line for people, at once even if it is piped."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line beside the output: on stderr, so that it never mixes with what a program reads."""
    print(text, file=sys.stderr, flush=True)


def emit(value: dict[str, Any]) -> None:
    """One JSON object on one line."""
    print(json.dumps(value), flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be, two spaces apart; `-` for what is empty."""
    cells = [list(head), *([str(cell) if cell not in ("", None) else "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def done(args: argparse.Namespace, told: dict[str, Any], words: str) -> int:
    """The end of a command that did what it was told: its exit status."""
    if args.json:
        emit(told)
    else:
        say(words)
    return 0
