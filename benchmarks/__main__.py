"""`python -m benchmarks NAME [--json] [OPTIONS]`: run one benchmark, a module of this folder with `run(...) -> dict`.

One that has options of its own adds them with `add_options(parser)`; they are the arguments of its `run`.

A benchmark names its workload, compares inside one run, and returns medians; names that say a ratio come first.
`--json` prints one object; otherwise a table. `python -m benchmarks --list` shows what there is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def rows(result: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of a result, for people."""
    flat: list[tuple[str, str]] = []
    for key, value in result.items():
        if isinstance(value, dict):
            flat += rows(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", f"{value:,.3g}" if isinstance(value, float) else str(value)))
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure everram beside its alternatives."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--list", action="store_true", help="print the names")
    arguments, rest = parser.parse_known_args()
    if arguments.list:
        print("\n".join(names()))
        return 0
    if arguments.name not in names():
        print(f"there is no benchmark {arguments.name!r}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    # As on a user's machine, where a process that is started again does not compile everram again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    own = argparse.ArgumentParser(prog=f"python -m benchmarks {arguments.name}")
    if hasattr(benchmark, "add_options"):
        benchmark.add_options(own)
    result: dict[str, Any] = benchmark.run(**vars(own.parse_args(rest)))
    if arguments.json:
        print(json.dumps(result))
        return 0
    table = rows(result)
    width = max(len(name) for name, _ in table)
    for name, value in table:
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
