"""What the design has and this version has not: refused with a plain sentence, never ignored.

Whoever builds an entry takes it out here; nothing else has to change.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from everram.runtime.errors import Unimplemented

FLAGS: dict[str, dict[str, str]] = {
    "up": {
        "--config": "a cluster described by a file",
    },
}
"""By command; each takes a value."""

REMEDY = "`everram --help` lists what this version can do"


def refuse(what: str) -> NoReturn:
    """`what` completes "... is not built yet"."""
    raise Unimplemented(f"{what} is not built yet: {REMEDY}")


class _Refused(argparse.Action):
    """A flag that exists only to be refused by name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        refuse(f"{option_string} ({self.metavar or self.dest.replace('_', ' ')})")


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """The flags of `command` that are not built yet; they do not show in its help."""
    for flag, meaning in FLAGS[command].items():
        parser.add_argument(flag, action=_Refused, metavar=meaning, help=argparse.SUPPRESS)
