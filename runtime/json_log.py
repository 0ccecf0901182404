"""Structured logs: one JSON object a line, for programs that gather them. `everram up --log-json` asks for it.

    {"at": "2026-11-26T18:40:02.123Z", "level": "info", "host": "h1", "actor": "Availability", "guest": "5f..",
     "epoch": 3, "lsn": 4711, "logger": "everram.actor", "message": "takes guest 5f.. over, epoch 3"}

Members that a line has nothing to say of are left out; "error" is there where an exception was logged. What a line is
about is said where it is logged: `context.log.about(guest=..., epoch=..., lsn=...).info(...)`.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TextIO

ABOUT = ("actor", "guest", "epoch", "lsn")
"""Attributes of a record that become members as they are."""
PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""For people."""


class JsonFormatter(logging.Formatter):
    """`host`: of this process; empty where it is none."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told: dict[str, object] = {"at": at, "level": record.levelname.lower()}
        if host := getattr(record, "host", "") or self._host:
            told["host"] = host
        told |= {name: value for name in ABOUT if (value := getattr(record, name, None)) is not None}
        told["logger"] = record.name
        prefix = f"{told.get('host')} {told['actor']}: " if "actor" in told else ""
        told["message"] = record.getMessage().removeprefix(prefix)
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        text = json.dumps(told, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()  # names of files need not be text


def begin(*, as_json: bool, host: str = "", stream: TextIO | None = None) -> None:
    """Log from now on, to `stream` or stderr."""
    if not as_json:
        logging.basicConfig(format=PLAIN, level=logging.INFO, stream=stream)
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(host))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
