"""`everram chaos`: proof by simulation, and on real clusters.

    everram chaos sim --seeds 1..200             # whole clusters, workloads and faults, each drawn from its seed
    everram chaos replay 17 --until 1.5s         # one of them again, exactly, with everything it did
    everram chaos run --seed 7 --duration 120s --report r.html      # a real cluster, broken by a drawn schedule

A violation is printed with the seed that replays it. Exit status 0 only if none was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from hashlib import blake2b

from everram.actors.chaos.planted import PLANTED
from everram.actors.chaos.real import command as real
from everram.actors.chaos.seeds import parse_seeds
from everram.actors.chaos.simulate import SCENARIOS, TIERS, simulate
from everram.actors.chaos.swarm import Outcome, run_all
from everram.runtime.cli.units import duration
from everram.runtime.errors import InvalidArgument

SHOWN_MAX = 20
"""Violations printed in full; the rest is counted."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `everram chaos`."""
    parser = subparsers.add_parser("chaos", help="prove the promises by simulation, or replay what broke one")
    commands = parser.add_subparsers(dest="chaos_command", required=True, metavar="COMMAND")

    sim = commands.add_parser("sim", help="simulate whole clusters under faults, one for each seed")
    sim.add_argument("--seeds", type=_seeds, default=range(1, 21), metavar="A..B", help="default 1..20")
    sim.add_argument("--tier", choices=sorted(TIERS), default="quick", help="how long and how hard (default quick)")
    sim.add_argument("--scenario", choices=SCENARIOS, help="only this one, instead of one drawn for each seed")
    sim.add_argument("--plant", choices=sorted(PLANTED), help="plant a known bug, which has to be found")
    sim.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes at once")
    sim.add_argument("--digest", action="store_true", help="print the digest of everything that happened")
    sim.add_argument("--json", action="store_true", help="one object instead of lines for people")
    sim.set_defaults(handler=run_sim)

    replay = commands.add_parser("replay", help="one seed again, exactly, with everything it did")
    replay.add_argument("seed", type=_seed, metavar="SEED")
    replay.add_argument("--until", type=duration, metavar="D", help="stop there, in virtual time: 500ms, 2s")
    replay.add_argument("--tier", choices=sorted(TIERS), default="quick")
    replay.add_argument("--scenario", choices=SCENARIOS)
    replay.add_argument("--plant", choices=sorted(PLANTED))
    replay.set_defaults(handler=run_replay)

    real.register(commands)


def run_sim(args: argparse.Namespace) -> int:
    started_s = time.monotonic()
    run = partial(_outcome, tier=args.tier, scenario=args.scenario or "", plant=args.plant or "")
    outcomes: list[Outcome] = []
    for outcome in run_all(args.seeds, run, max(1, args.workers)):
        outcomes.append(outcome)
        if not args.json:
            _show(outcome, len(outcomes), len(args.seeds), _replay_command(outcome["seed"], args))
    failures = [_failure(outcome, args) for outcome in outcomes if outcome["violations"]]
    summary = {
        "runs": len(outcomes),
        "violations": sum(len(outcome["violations"]) for outcome in outcomes),
        "failures": failures,
        "digest": _digest(outcomes),
        "virtual_s": round(sum(outcome["virtual_s"] for outcome in outcomes), 3),
        "real_s": round(time.monotonic() - started_s, 3),
        "steps": sum(outcome["steps"] for outcome in outcomes),
    }
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show_summary(summary, with_digest=args.digest)
    return 1 if failures else 0


def run_replay(args: argparse.Namespace) -> int:
    scenario, plant = args.scenario or "", args.plant or ""
    result = simulate(args.seed, tier=args.tier, scenario=scenario, plant=plant, echo=print, until_s=args.until)
    print(f"seed {args.seed}: {result.configuration}")
    print(f"digest {result.digest}, {result.steps} steps, {result.virtual_s:.3f} virtual seconds")
    for violation in result.violations:
        print(f"VIOLATION {violation}")
    return 1 if result.violations else 0


def _outcome(seed: int, *, tier: str, scenario: str, plant: str) -> Outcome:
    return simulate(seed, tier=tier, scenario=scenario, plant=plant).to_json()


def _failure(outcome: Outcome, args: argparse.Namespace) -> Outcome:
    return {
        "seed": outcome["seed"],
        "violations": outcome["violations"],
        "configuration": outcome["configuration"],
        "replay": _replay_command(outcome["seed"], args),
    }


def _replay_command(seed: int, args: argparse.Namespace) -> str:
    plant = f" --plant {args.plant}" if args.plant else ""
    tier = f" --tier {args.tier}" if args.tier != "quick" else ""
    scenario = f" --scenario {args.scenario}" if args.scenario else ""
    return f"everram chaos replay {seed}{tier}{scenario}{plant}"


def _digest(outcomes: list[Outcome]) -> str:
    together = blake2b(digest_size=16)
    for outcome in outcomes:
        together.update(f"{outcome['seed']} {outcome['digest']}\n".encode())
    return together.hexdigest()


def _show(outcome: Outcome, number: int, total: int, replay: str) -> None:
    if outcome["violations"]:
        print(f"seed {outcome['seed']}: {outcome['configuration']}")
        for violation in outcome["violations"][:SHOWN_MAX]:
            print(f"  VIOLATION {violation['property']} at {violation['at_s']:.6f} s: {violation['what']}")
        print(f"  replay it with: {replay}", flush=True)
    elif number % 20 == 0 and number < total:
        print(f"{number} of {total} seeds simulated", file=sys.stderr, flush=True)


def _show_summary(summary: Outcome, *, with_digest: bool) -> None:
    speed = summary["virtual_s"] / summary["real_s"] if summary["real_s"] else 0.0
    print(
        f"{summary['runs']} runs, {summary['violations']} violations; "
        f"{summary['virtual_s']:.1f} virtual seconds in {summary['real_s']:.1f} real ones ({speed:.1f} to 1)"
    )
    if with_digest:
        print(f"digest {summary['digest']}")


def _seeds(text: str) -> range:
    try:
        return parse_seeds(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(error.message) from None


def _seed(text: str) -> int:
    return _seeds(text)[0]
