"""`everram machine --config FILE`: one machine, as an installer or systemd starts it."""

from __future__ import annotations

import argparse
import os
import sys


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("machine", help="run one machine from its configuration file (`up` starts them)")
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Becomes the machine: it wants a process that has imported nothing but the standard library."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "everram.runtime.machine", "--config", args.config])
