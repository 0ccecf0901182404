"""Actions of a command that asks a running cluster, such as `everram region ls`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everram.runtime.client import Cluster

Act = Callable[[argparse.Namespace, "Cluster"], Awaitable[int]]


def add_action(
    acts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str, act: Act
) -> argparse.ArgumentParser:
    parser = acts.add_parser(name, help=help_text)

    async def connect_and_act(args: argparse.Namespace) -> int:
        from everram.runtime.client import Cluster

        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            return await act(args, cluster)

    parser.set_defaults(handler=lambda args: asyncio.run(connect_and_act(args)))
    return parser
