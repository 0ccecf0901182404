"""Structured logs: what a line says of itself."""

from __future__ import annotations

import ast
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from everram.runtime.actor import ActorLog
from everram.runtime.json_log import JsonFormatter


def line(
    log: logging.LoggerAdapter[logging.Logger] | logging.Logger, *words: object, **named: object
) -> dict[str, object]:
    """What is written of one message."""
    written: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(JsonFormatter("h1"))
    handler.emit = lambda record: written.append(handler.format(record))  # type: ignore[method-assign]
    logger = log.logger if isinstance(log, logging.LoggerAdapter) else log
    logger.addHandler(handler)
    try:
        log.warning(*words, **named)  # type: ignore[arg-type]
    finally:
        logger.removeHandler(handler)
    (text,) = written
    assert b"\n" not in text.encode()
    told = json.loads(text)
    assert told.pop("at").endswith("Z")
    return dict(told)


def logger(name: str) -> logging.Logger:
    made = logging.Logger(name)
    made.propagate = False
    return made


def test_an_actors_line_says_what_it_is_about() -> None:
    log = ActorLog(logger("everram.actor"), {"host": "h1", "actor": "Availability"})
    about = {"guest": "5f", "epoch": 3, "lsn": 4711}
    who = {"level": "warning", "host": "h1", "actor": "Availability", "logger": "everram.actor"}
    assert line(log.about(**about), "takes %s over", "5f") == who | about | {"message": "takes 5f over"}
    assert line(log, "100% done") == who | {"message": "100% done"}


def test_what_a_line_has_nothing_to_say_of_is_left_out() -> None:
    told = line(logger("everram.link"), "two\nlines, ümläute")
    assert told == {"level": "warning", "host": "h1", "logger": "everram.link", "message": "two\nlines, ümläute"}


LEVELS = ("debug", "info", "warning", "error", "exception")
BOUND = ("about", "log_of", "_log_of")
"""What binds a log to a guest, or a name for the result."""


def lines_of(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call that logs, with the words that it begins with."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            words = node.args[0] if node.args else None
            if isinstance(words, ast.Constant) and isinstance(words.value, str):
                yield node, words.value


def is_bound(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    log = call.func.value
    log = log.func if isinstance(log, ast.Call) else log
    name = log.attr if isinstance(log, ast.Attribute) else log.id if isinstance(log, ast.Name) else ""
    return name in BOUND or any(keyword.arg == "extra" for keyword in call.keywords)


def test_who_speaks_of_a_guest_says_which() -> None:
    actors = Path(__file__).parents[2] / "actors"
    spoken = [
        (f"{path.relative_to(actors)}:{call.lineno}", words, is_bound(call))
        for path in sorted(actors.rglob("*.py"))
        if "chaos" not in path.parts
        for call, words in lines_of(path)
        if any(word in words for word in ("guest %s", "copy of %s", "memory of %s"))
    ]
    assert len(spoken) > 10
    assert not [(where, words) for where, words, bound in spoken if not bound]


def test_a_name_that_is_no_text_can_be_written() -> None:
    said = line(logger("everram.files"), "no file %s", "\udcff")
    assert said["message"] == "no file \udcff"


def test_an_exception_is_told() -> None:
    try:
        raise ValueError("no good")
    except ValueError:
        told = line(logger("everram.node"), "it fails", exc_info=sys.exc_info())
    assert "ValueError: no good" in str(told["error"])
