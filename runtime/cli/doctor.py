"""`everram doctor`: what this computer can do, what is used instead of what it cannot, and how to enable it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everram.runtime.memory.probe import Fact

WIDTH_COLUMNS = 100


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("doctor", help="what this computer can do, and how to enable what it cannot")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """0 if everram can run here, whatever is done without; 1 if it cannot."""
    from everram.runtime.memory.probe import probe  # here, so that other commands do not pay for it

    facts = probe()
    runs = all(fact.available for fact in facts if fact.name in ("processor", "sealed memory"))
    if args.json:
        print(json.dumps({"runs": runs, "facts": [dataclasses.asdict(fact) for fact in facts]}, indent=2))
    else:
        print("\n".join(report(facts)))
        print()
        print("everram runs on this computer." if runs else "everram cannot run on this computer.")
    return 0 if runs else 1


def report(facts: list[Fact]) -> list[str]:
    """One line for each fact; what is missing with what that means and what to do."""
    width = max(len(fact.name) for fact in facts)
    lines = []
    for fact in facts:
        lines.append(f"{'ok     ' if fact.available else 'missing'}  {fact.name:{width}}  {fact.found}")
        about = [f"for {fact.purpose}"]
        if not fact.available:
            about += [f"now: {fact.instead}", f"to enable: {fact.enable}"]
        for text in about:
            indent = " " * (width + 11)
            lines += textwrap.wrap(text, WIDTH_COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ")
    return lines
