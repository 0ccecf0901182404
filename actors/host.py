"""The program of one host: `everram host --config FILE`, or `python -m everram.actors.host --config FILE`.

A machine starts it, and its end is nothing special: everything that matters is in the machine's memory, from which
the next one goes on. It says READY when its actors serve, tells the machine that it lives from its own loop (a stuck
loop is a dead host), and ends on SIGTERM or when the machine's socket closes.

With `--successor` it is started beside a host whose software is upgraded: warm, and without memory until that host has
handed over (`runtime.machine.upgrade` has the steps, docs/architecture.md the way from A to B).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import sys
import traceback
from typing import NoReturn

import uvloop

from everram.actors.compose import CONTRACTS, compose
from everram.actors.preflight import stand_by
from everram.runtime import json_log
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.vmemfs_contract import VMEMFS_WRITE_LATEST, VMemFSRef
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.environment import Machine
from everram.runtime.errors import DataLoss, EverramError, FailedPrecondition, ResourceExhausted
from everram.runtime.formats.config import HostConfig
from everram.runtime.node import Node
from everram.runtime.production.entropy import SystemEntropy
from everram.runtime.production.environment import Production
from everram.runtime.production.machine import SystemMachine, connect
from everram.runtime.production.network import GrpcNetwork
from everram.runtime.production.partition import Cut
from everram.runtime.production.weather import Weather
from everram.runtime.transport.front import Front

EXIT_REFUSED = 78
"""EX_CONFIG of sysexits.h: starting again will not help, a person has to choose. The machine then stops trying."""

DESCRIPTORS = 16_384
"""As many as may be open at once in this process."""


async def serve(config: HostConfig) -> None:
    """One life of a host, from what its predecessor left to its end."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    machine = await connect()
    machine.on_hand_over = ending.set
    loop.add_signal_handler(signal.SIGPWR, _power_fails, machine)
    beating = asyncio.create_task(_beat(machine))
    try:
        network = GrpcNetwork(Cut.of(machine), Weather.of(machine, SystemEntropy()))
        if machine.is_successor:
            await _succeed(config, machine, network, ending)
        else:
            await _begin(config, machine, network, ending)
    except Exception as error:
        _fail(error)
    finally:
        beating.cancel()
        machine.close()


async def _begin(config: HostConfig, machine: SystemMachine, network: GrpcNetwork, ending: asyncio.Event) -> None:
    production = await Production.furnish(config, machine, network)
    try:
        node = await compose(config, production.environment, faults=production.faults, pid=os.getpid())
        await _serve(node, production, machine, _front(node, config, network), ending)
    finally:
        await production.close()


async def _succeed(config: HostConfig, machine: SystemMachine, network: GrpcNetwork, ending: asyncio.Event) -> None:
    """Listen before there is anything to answer with: nobody is refused while the memory changes hands."""
    front = _front(None, config, network)
    await front.open()
    coordination = CoordinationClient(config.coordination)
    try:
        await stand_by(machine, front.own_path, coordination)
        front.appear()  # the host before it has seen to that, unless it was killed
        production = await Production.furnish(config, machine, network, coordination)
    except BaseException:
        await coordination.close()
        raise
    try:
        node = await compose(config, production.environment, faults=production.faults, pid=os.getpid())
        await _serve(node, production, machine, front, ending)
    finally:
        await production.close()


def _front(node: Node | None, config: HostConfig, network: GrpcNetwork) -> Front:
    handlers = (network.handler,)
    port, token = config.tcp_port, config.token
    return Front(node, config.socket, tcp_port=port, token=token, handlers=handlers, contracts=CONTRACTS)


def _power_fails(machine: Machine) -> None:
    """SIGPWR, which init(8) and UPS daemons send: the mains are lost."""
    reporting = asyncio.ensure_future(machine.report_mains(False))
    reporting.add_done_callback(lambda task: task.exception())


def _fail(error: Exception) -> NoReturn:
    """Say why and end, with the machine's socket still open: a host that closed it first would be killed as of no use,
    and started again, before it could say anything."""
    status = _explain(error)
    sys.stderr.flush()
    os._exit(status)


def _explain(error: Exception) -> int:
    """Print why this host ends; the exit status that says it to the machine."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, EverramError):
        traceback.print_exception(error)
    print(f"everram host: {error.message if isinstance(error, EverramError) else repr(error)}", file=sys.stderr)
    return EXIT_REFUSED if isinstance(error, (FailedPrecondition, DataLoss)) else 1


async def _serve(
    node: Node, production: Production, machine: SystemMachine, front: Front, ending: asyncio.Event
) -> None:
    try:
        await node.start()
        await front.start(node)
        await machine.ready()
        with contextlib.suppress(ResourceExhausted):  # so many ask it at once; then the next host does
            node.ref(VMemFSRef).tell(VMEMFS_WRITE_LATEST, Empty())  # from here on the former software is not needed
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(node.wait_failed())
            await ending.wait()
            failing.cancel()
    finally:
        if machine.hands_over:
            await front.hand_to(machine.successor_socket)
            await node.leave()
        # The actors first, while their last answers can still leave.
        await node.stop()
        await production.close()
        if machine.hands_over:
            await machine.handed_over()
        await front.stop()


async def _beat(machine: Machine) -> None:
    """Tell the machine that this loop turns, from the first moment on: restoring much memory takes long."""
    while True:
        machine.alive()
        await asyncio.sleep(machine.watchdog_interval_s)


def _allow_descriptors() -> None:
    """Each file of remote memory that is kept or used here takes some; the usual limit of 1024 is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(path: str) -> int:
    """Exit status: 0 after an orderly end, EXIT_REFUSED where a person has to choose, 1 after a failure."""
    _allow_descriptors()
    try:
        config = HostConfig.read(path)
        json_log.begin(as_json=config.log_json, host=config.host)
        uvloop.run(serve(config))
    except EverramError as error:
        return _explain(error)
    return 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `everram host`."""
    parser = subparsers.add_parser("host", help="run one host from its configuration file (a machine starts it)")
    _add_arguments(parser)
    parser.set_defaults(handler=lambda args: run(args.config))


def main() -> None:
    parser = argparse.ArgumentParser(prog="everram.actors.host")
    _add_arguments(parser)
    sys.exit(run(parser.parse_args().config))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE")
    # The machine says it as well, in its hello; here, so that a version that cannot be started warm refuses at once.
    parser.add_argument("--successor", action="store_true", help="wait beside a host that is upgraded")


if __name__ == "__main__":
    main()
