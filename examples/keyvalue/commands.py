"""Runs commands, and answers in Redis's own words whatever may be wrong with them.

    answer = run(session, [b"SET", b"key", b"value"])

What each does is in `strings`, `keys` and `about`. Only what concerns the whole server is raised (LogFull, Fenced).
"""

from __future__ import annotations

from everram.examples.keyvalue import about, keys, strings
from everram.examples.keyvalue.heap import Full
from everram.examples.keyvalue.registry import COMMANDS, Arguments, Refused, Session, text
from everram.examples.keyvalue.resp import error
from everram.examples.keyvalue.store import TooLarge

__all__ = ["COMMANDS", "Session", "about", "keys", "run", "strings"]
"""The last three for what importing them does: they fill COMMANDS."""

OUT_OF_MEMORY = error("OOM command not allowed when used memory > 'maxmemory'.")
TOO_LARGE = error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
TOO_MANY = error(
    "ERR more than one transaction of the log holds: send less at once, or run the server with a larger --log"
)


def run(session: Session, request: Arguments) -> bytes:
    """The answer to a request. Raises LogFull, Fenced."""
    name = request[0]
    command = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if command is None:
        return _unknown(request)
    if not command.arguments_min <= len(request) <= command.arguments_max:
        return error(f"ERR wrong number of arguments for '{text(name.lower())}' command")
    try:
        return command.do(session, request)
    except Refused as refused:
        return error(str(refused))
    except Full:
        return OUT_OF_MEMORY
    except TooLarge:
        return TOO_MANY if name.upper() == b"MSET" else TOO_LARGE


def _unknown(request: Arguments) -> bytes:
    name, *arguments = (text(word[:128].split(b"\0")[0]) for word in request[:20])
    begin = "".join(f"'{argument}' " for argument in arguments)[:128]
    return error(f"ERR unknown command '{name}', with args beginning with: {begin}")
