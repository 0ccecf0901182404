"""`everram chaos`: proof by simulation, and on real clusters.

    everram chaos sim --seeds 1..200             # whole clusters, workloads and faults, each drawn from its seed
    everram chaos replay 17 --until 1.5s         # one of them again, exactly, with everything it did
    everram chaos planted                        # plant known bugs, which have to be found
    everram chaos run --seed 7 --duration 120s --report r.html      # a real cluster, broken by a drawn schedule

A violation is printed with the seed that replays it. Exit status 0 only if none was found.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from everram.actors.chaos.commit import code, commit
from everram.actors.chaos.planted import PLANTED, SEEDS_MAX
from everram.actors.chaos.real import command as real
from everram.actors.chaos.seeds import parse_seeds
from everram.actors.chaos.simulate import SCENARIOS, TIERS, simulate
from everram.actors.chaos.swarm import Outcome, run_all
from everram.actors.chaos.sweep import Sweep, Wanted
from everram.runtime.cli.output import emit, note, plural, say, table
from everram.runtime.cli.units import duration
from everram.runtime.errors import InvalidArgument

SHOWN_MAX = 20
"""Violations printed in full; the rest is counted."""
PROGRESS_S = 5.0
NEVER_SHOWN = 10
"""Marks that were never reached, by name."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `everram chaos`."""
    parser = subparsers.add_parser("chaos", help="prove the promises by simulation and on real clusters")
    commands = parser.add_subparsers(dest="chaos_command", required=True, metavar="COMMAND")

    sim = commands.add_parser("sim", help="simulate whole clusters under faults, one for each seed")
    sim.add_argument("--seeds", type=_seeds, default=range(1, 21), metavar="A..B", help="default 1..20")
    _add_kind(sim)
    sim.add_argument("--workers", type=_count, default=_cores(), metavar="N", help="processes at once")
    sim.add_argument("--remember", metavar="FILE", help="keep outcomes there, and go on with those it has already")
    sim.add_argument("--digest", action="store_true", help="print the digest of everything that happened")
    sim.add_argument("--json", action="store_true", help="one object instead of lines for people")
    sim.set_defaults(handler=run_sim, alone=True)

    replay = commands.add_parser("replay", help="one seed again, exactly, with everything it did")
    replay.add_argument("seed", type=_seed, metavar="SEED")
    replay.add_argument("--until", type=duration, metavar="D", help="stop there, in virtual time: 500ms, 2s")
    replay.add_argument("--faults", type=_numbers, metavar="N,N", help="keep these of the drawn faults, or none")
    replay.add_argument("--code", default="", metavar="DIGEST", help="of the code that found it: says if this differs")
    _add_kind(replay)
    replay.set_defaults(handler=run_replay, alone=True)

    plants = commands.add_parser("planted", help="plant each known bug, and find it by the scenario that has to")
    plants.add_argument("names", nargs="*", metavar="BUG", help="default: all")
    plants.add_argument("--workers", type=_count, default=_cores(), metavar="N", help="processes at once")
    plants.set_defaults(handler=run_planted, alone=True)

    real.register(commands)


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tier", choices=sorted(TIERS), default="quick", help="how long and how hard (default quick)")
    parser.add_argument("--scenario", choices=SCENARIOS, default="", help="only this one, not one drawn for each seed")
    parser.add_argument("--plant", choices=sorted(PLANTED), default="", metavar="BUG", help="plant a known bug")


# -- sim


def run_sim(args: argparse.Namespace) -> int:
    started_s = shown_s = time.monotonic()
    wanted = Wanted(args.seeds, args.tier, args.scenario, args.plant)
    sweep = Sweep(wanted, args.workers, Path(args.remember) if args.remember else None)
    if sweep.remembered:
        note(f"{sweep.remembered} of {len(args.seeds)} seeds are remembered in {args.remember}")
    for number, outcome in enumerate(sweep.run(), 1):
        if outcome["violations"] and not args.json:
            _show(outcome, wanted)
        if time.monotonic() - shown_s > PROGRESS_S and not args.json:
            shown_s = time.monotonic()
            note(f"{number} of {len(args.seeds)} seeds simulated")
    summary = sweep.summary() | {"real_s": round(time.monotonic() - started_s, 3)}
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show_summary(summary, with_digest=args.digest)
    return 1 if summary["failures"] else 0


def _show(outcome: Outcome, wanted: Wanted) -> None:
    print(f"seed {outcome['seed']}: {outcome['configuration']}")
    for violation in outcome["violations"][:SHOWN_MAX]:
        print(f"  VIOLATION {violation['property']} at {violation['at_s']:.6f} s: {violation['what']}")
    print(f"  replay it with: {wanted.replay(outcome['seed'])}", flush=True)
    if "shrunk" in outcome:
        print(f"  {len(outcome['shrunk'])} of {outcome['faults']} faults suffice: {outcome['schedule']}")
        print(f"  replay that with: {wanted.replay(outcome['seed'], outcome['shrunk'])}", flush=True)


def _show_summary(summary: dict[str, Any], *, with_digest: bool) -> None:
    speed = summary["virtual_s"] / summary["real_s"] if summary["real_s"] else 0.0
    say(
        f"{summary['runs']} runs, {summary['violations']} violations; "
        f"{summary['virtual_s']:.1f} virtual seconds in {summary['real_s']:.1f} real ones ({speed:.1f} to 1)"
    )
    reached, never = len(summary["marks"]), summary["marks_never"]
    more = f" and {len(never) - NEVER_SHOWN} more (--json names them)" if len(never) > NEVER_SHOWN else ""
    say(f"{reached} of {reached + len(never)} marks reached; never: {', '.join(never[:NEVER_SHOWN]) or 'none'}{more}")
    if with_digest:
        say(f"digest {summary['digest']}")


# -- replay


def run_replay(args: argparse.Namespace) -> int:
    if args.code and args.code != code():
        note(f"this seed was found by code {args.code}, and this is {commit()}: it need not do the same here")
    result = simulate(
        args.seed,
        tier=args.tier,
        scenario=args.scenario,
        plant=args.plant,
        echo=(lambda line: None) if args.json else print,
        until_s=args.until,
        faults=args.faults,
    )
    if args.json:
        emit(result.to_json())
        return 1 if result.violations else 0
    say(f"seed {args.seed}: {result.configuration}")
    for violation in result.violations:
        say(f"VIOLATION {violation}")
    say(f"digest {result.digest}, {result.steps} steps, {result.virtual_s:.3f} virtual seconds")
    return 1 if result.violations else 0


# -- planted


def run_planted(args: argparse.Namespace) -> int:
    """Exit status 0 only if each is found within SEEDS_MAX seeds."""
    for name in args.names:
        if name not in PLANTED:
            raise InvalidArgument(f'"{name}" is no planted bug: there are {", ".join(sorted(PLANTED))}')
    rows = []
    for name in args.names or sorted(PLANTED):
        row = find_plant(name, args.workers)
        rows.append(row)
        if not args.json:
            note(f"{name}: {row['property'] or 'NOT FOUND'} after {plural(row['seeds'], 'seed')}")
    if args.json:
        emit({"planted": rows})
    else:
        say(table(("BUG", "SCENARIO", "CHECKER", "SEEDS"), (tuple(row.values()) for row in rows)))
    return 0 if all(row["property"] for row in rows) else 1


def find_plant(name: str, workers: int, first: int = 1) -> dict[str, Any]:
    """Which property it breaks first, and how many seeds that took, from `first` on."""
    scenario = PLANTED[name].scenario
    run = partial(_to_first, plant=name, scenario=scenario)
    found, seeds = "", 0
    outcomes = run_all(range(first, first + SEEDS_MAX), run, workers)
    for outcome in outcomes:
        seeds += 1
        if outcome["violations"]:
            found = outcome["violations"][0]["property"]
            break
    outcomes.close()  # type: ignore[attr-defined]
    return {"name": name, "scenario": scenario, "property": found, "seeds": seeds}


def _to_first(seed: int, *, plant: str, scenario: str) -> Outcome:
    return simulate(seed, plant=plant, scenario=scenario, to_first=True).to_json()


# -- what people type


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: choose 1 to 1024")
    return int(text)


def _seeds(text: str) -> range:
    try:
        return parse_seeds(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _seed(text: str) -> int:
    seeds = _seeds(text)
    if len(seeds) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} are several seeds: one is replayed")
    return seeds[0]


def _numbers(text: str) -> frozenset[int]:
    if text == "none":
        return frozenset()
    try:
        return frozenset(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of faults such as 0,3,4, nor none") from None
