"""`everram`: finds its commands through the entry-point group `everram.commands` and runs one.

A command module has `register(subparsers)`, which adds its parsers and gives each a `handler` (`set_defaults`): a
function of the parsed arguments that returns the exit status. `--cluster`, `--dir` and `--json` are added here. What
makes all that it needs itself says so with `alone=True` beside its handler: then a named cluster is refused.

Exit status: 0 only if what was asked for happened; 1 if not; 2 if the request itself was wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import metadata

from everram.runtime.errors import EverramError, Fault, InvalidArgument

GROUP = "everram.commands"
INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
OUTPUT_CLOSED = 141
"""128 + SIGPIPE: whoever read the output has had enough."""


def build_parser(wanted: str = "") -> argparse.ArgumentParser:
    """The parser with the command `wanted`, or with every command of every installed module if none has it.

    Modules are loaded one after another until the command is there, everram's own light ones first: loading them all
    takes longer than most commands.
    """
    parser = argparse.ArgumentParser(
        prog="everram",
        description="Memory that outlives the machine it runs on.",
        epilog="`everram COMMAND --help` explains a command.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    broken = []
    for entry in sorted(metadata.entry_points(group=GROUP), key=_weight):
        if wanted in subparsers.choices:
            break
        try:
            register = entry.load().register
        except (ImportError, AttributeError) as error:
            broken.append(f"the commands of {entry.value} are missing, because it cannot be loaded: {error}")
        else:
            register(subparsers)
    for command in _leaves(parser):
        _add_common(command)
    if broken:
        parser.epilog = f"{parser.epilog} Note: {'; '.join(broken)}."
    return parser


def _weight(entry: metadata.EntryPoint) -> tuple[bool, bool, str]:
    """Sorts entry points: everram's own first, of these the commands that only talk to a cluster."""
    own, light = entry.value.startswith("everram."), entry.value.startswith("everram.runtime.cli.")
    return not own, not light, entry.name


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers without subcommands, each once however many names it has."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        for child in {id(p): p for p in action.choices.values()}.values():
            yield from _leaves(child)


def _add_common(parser: argparse.ArgumentParser) -> None:
    there = parser._option_string_actions
    common = parser.add_argument_group("common options")
    if "--cluster" not in there and "--dir" not in there:
        which = common.add_mutually_exclusive_group()
        which.add_argument(
            "--cluster", metavar="NAME", help="which cluster (default: EVERRAM_DIR, or the one named default)"
        )
        which.add_argument("--dir", metavar="DIR", help="the cluster whose state is in this folder")
    if "--json" not in there:
        common.add_argument(
            "--json", action="store_true", help="print JSON: one object, or one a line where it streams"
        )


def run(argv: list[str]) -> int:
    """The exit status of one command line."""
    try:
        wanted = argv[0] if argv and not argv[0].startswith("-") else ""
        parser = build_parser(wanted)
        args = parser.parse_args(argv)
        _check_alone(args)
        status = args.handler(args)
        sys.stdout.flush()
    except EverramError as error:
        print(f"everram: {error.message}", file=sys.stderr)
        return 2 if error.fault is Fault.CALLER else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    assert isinstance(status, int), "a handler returns the exit status"
    return status


def _check_alone(args: argparse.Namespace) -> None:
    """Raises InvalidArgument."""
    if getattr(args, "alone", False) and (args.cluster or args.dir):
        raise InvalidArgument(
            "this makes what it needs itself and touches no other cluster: leave --cluster and --dir out"
        )


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
