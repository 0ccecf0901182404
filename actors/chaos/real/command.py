"""`everram chaos run`: the same checkers on a real cluster, and the page about it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everram.actors.chaos.commit import commit
from everram.actors.chaos.real import schedule
from everram.actors.chaos.real.report import page, summarize, verdict_of
from everram.actors.chaos.real.run import DURATION_MAX_S, DURATION_MIN_S, HOSTS_MAX, HOSTS_MIN, Options, run
from everram.actors.chaos.seeds import SEED_MAX, check_seed
from everram.runtime.cli.main import INTERRUPTED
from everram.runtime.cli.output import emit, note, plural, say
from everram.runtime.cli.units import duration
from everram.runtime.errors import InvalidArgument, ResourceExhausted

DURATION_DEFAULT_S = 30.0


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="break a real cluster of its own, by a schedule drawn from a seed")
    parser.add_argument("--seed", type=_seed, default=1, metavar="S", help="what draws everything (default 1)")
    parser.add_argument("--duration", type=duration, default=DURATION_DEFAULT_S, metavar="D", help="default 30s")
    parser.add_argument("--report", metavar="FILE.html", help="write a page about it: one file, for any browser")
    parser.add_argument("--hosts", type=int, metavar="N", help="instead of a number drawn from the seed")
    parser.add_argument("--faults", metavar="A,B", help=f"only these of {', '.join(schedule.FAULTS)}")
    parser.set_defaults(handler=run_command, alone=True)


def run_command(args: argparse.Namespace) -> int:
    """Exit status 0 only if it came to its end, and there was no violation."""
    options = _options(args)
    if args.report is not None:
        check_writable(Path(args.report))
    tell: Callable[[str], None] = note if args.json else say
    outcome = asyncio.run(run(options, tell))
    summary = summarize(outcome)
    if args.json:
        emit(summary)
    else:
        _show(summary)
    if args.report is not None:
        write(Path(args.report), page(outcome, commit()))
        tell(f"the page about it is {args.report}")
    if summary["violations"]:
        tell(f"again, by {commit()}: {outcome.again}")
        return 1
    return INTERRUPTED if outcome.interrupted else 0


def _options(args: argparse.Namespace) -> Options:
    """Raises InvalidArgument: before anything is started."""
    check_seed(args.seed)
    if not DURATION_MIN_S <= args.duration <= DURATION_MAX_S:
        raise InvalidArgument(f"--duration: choose {DURATION_MIN_S:g}s to {DURATION_MAX_S / 3600:g}h")
    if args.hosts is not None and not HOSTS_MIN <= args.hosts <= HOSTS_MAX:
        raise InvalidArgument(f"--hosts {args.hosts}: choose {HOSTS_MIN} to {HOSTS_MAX}, or leave it out")
    kinds = None
    if args.faults is not None:
        names = args.faults.split(",")
        for name in names:
            if name not in schedule.FAULTS:
                raise InvalidArgument(f'"{name}" is no fault of a chaos run: choose {", ".join(schedule.FAULTS)}')
        kinds = {name: schedule.FAULTS[name] for name in names}
    return Options(args.seed, args.duration, args.hosts or 0, kinds)


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: choose 0 to {SEED_MAX}") from None


def check_writable(path: Path) -> None:
    """Raises InvalidArgument: a run of minutes shall not end with a page that cannot be written."""
    new = not path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise InvalidArgument(f"the report cannot be written to {path}: {os.strerror(error.errno or 0)}") from None


def write(path: Path, text: str) -> None:
    """Beside it first, so that a full disk leaves what was there. Raises ResourceExhausted."""
    path = path.resolve()
    beside = path.with_name(f"{path.name}.part")
    try:
        if not os.access(path.parent, os.W_OK) or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8")  # nothing can be put beside it
            return
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ResourceExhausted(f"the report could not be written to {path}: {why}") from None


def _show(summary: dict[str, Any]) -> None:
    for name, one in summary["clients"].items():
        say(
            f"{name}: {one['transfers']} transfers, median {one['wait_ms_median']} ms, p99 {one['wait_ms_p99']} ms; "
            f"{plural(one['unserved_times'], 'time')} without service, {one['unserved_s']} s in all"
        )
    for checker in summary["checkers"]:
        looked = (
            f"looked at {plural(checker['looked'], 'time')}; {checker['evidence']}" if checker["looked"] else "never"
        )
        say(f"{checker['word']:8} {checker['property']} ({looked})")
        for violation in checker["violations"]:
            say(f"         {violation['what']}")
    say(
        f"{summary['transfers']} transfers ({summary['transfers_per_s']}/s), "
        f"{plural(len(summary['faults']), 'fault')}, "
        f"longest time without service {summary['unserved_s_longest']} s: {verdict_of(summary)}"
    )
