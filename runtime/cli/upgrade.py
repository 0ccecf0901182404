"""`everram upgrade HOST ... | --all`: replace the host software under running guests, one host at a time."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.output import emit, note, plural, say
from everram.runtime.cli.units import format_duration
from everram.runtime.errors import Aborted, EverramError, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.supervisor_pb2 import UpgradeReport, UpgradeRequest

UPGRADE_TIMEOUT_S = 70.0
"""More than the supervisor gives the machine."""
INTERRUPTED = 130


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("upgrade", help="replace the host software under running guests")
    parser.add_argument("hosts", nargs="*", metavar="HOST")
    parser.add_argument("--all", action="store_true", help="every host, one after the other")
    parser.add_argument(
        "--python", default="", metavar="VENV|WHEEL", help="which everram (default: the one this command is of)"
    )
    parser.add_argument("--preflight", action="store_true", help="only ask whether it could take the memory")
    parser.add_argument("--pause", action="store_true", help="stop guests while the memory changes hands")
    parser.add_argument(
        "--rollback", action="store_true", help="to the version before: write what it can read, and say what is lost"
    )
    parser.set_defaults(handler=lambda args: asyncio.run(_upgrade(args)))


async def _upgrade(args: argparse.Namespace) -> int:
    from everram.runtime.cli.software import interpreter
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.supervisor_pb2 import UpgradeRequest

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        hosts = _chosen(args, cluster)
        try:
            python = await asyncio.to_thread(interpreter, args.python, cluster.folders.state)
        except asyncio.CancelledError:
            note("everram: nothing was changed")
            return INTERRUPTED
        told: dict[str, Any] = {}
        status = 0
        for host in hosts:  # one at a time: whoever has a copy of another's guests is there meanwhile
            request = UpgradeRequest(machine=host, python=python, preflight=args.preflight, pause=args.pause)
            asking = None
            try:
                if args.rollback:
                    told[host] = await _rolled_back(cluster, host, only_ask=args.preflight)
                    if args.preflight:
                        continue
                asking = _Asking(cluster, request)
                report = await asking.report()
            except (EverramError, asyncio.CancelledError) as error:
                refused = asking is None and isinstance(error, FailedPrecondition)  # nothing was written then
                if args.rollback and not refused:
                    await _take_back(cluster, host)
                if isinstance(error, EverramError):
                    raise
                note(f"everram: {host}: nothing was changed")
                status = INTERRUPTED
                told.pop(host, None)
                break
            told[host] = told.get(host, {}) | _json(report)
            if not args.json:
                say(_words(host, report))
            if asking.interrupted:
                note(f"everram: {host} had begun to hand over, so it came to its end; {_left(hosts, host)}")
                status = INTERRUPTED
                break
    if args.json:
        emit({"hosts": told})
    return status


async def _rolled_back(cluster: Cluster, host: str, *, only_ask: bool) -> dict[str, Any]:
    """The format of the version before is written, or it is only asked what that loses."""
    from everram.runtime.contracts.vmemfs_pb2 import RollbackRequest

    rolled = await cluster.host(host).vmemfs.rollback(RollbackRequest(only_ask=only_ask))
    for sentence in rolled.lost:
        note(f"everram: {host}: with VMemFS {rolled.format} is lost: {sentence}")
    return {"format": rolled.format, "lost": list(rolled.lost)}


class _Asking:
    """One host's upgrade, asked for. Ctrl-C gives it up where there is a way back, and waits for how it ended."""

    def __init__(self, cluster: Cluster, request: UpgradeRequest) -> None:
        self._cluster, self._request = cluster, request
        self.interrupted = False

    async def report(self) -> UpgradeReport:
        """Raises what the machine says, CancelledError if it was given up."""
        asking = asyncio.ensure_future(self._cluster.supervisor.upgrade(self._request, timeout_s=UPGRADE_TIMEOUT_S))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self.interrupted = True
            note(f"everram: {self._request.machine}: giving up, if it has not begun to hand over")
            await self._give_up()
            try:
                return await asking
            except Aborted:
                raise asyncio.CancelledError from None

    async def _give_up(self) -> None:
        from everram.runtime.contracts.supervisor_pb2 import GiveUpgradeUpRequest

        request = GiveUpgradeUpRequest(machine=self._request.machine)
        try:
            await self._cluster.supervisor.give_upgrade_up(request)
        except EverramError as error:
            note(f"everram: it cannot be given up, and goes on to its end: {error.message}")


async def _take_back(cluster: Cluster, host: str) -> None:
    """The version before was not gone back to: its format is not what is to be written. Harmless if it was."""
    from everram.runtime.contracts.common_pb2 import Empty

    try:
        await cluster.host(host).vmemfs.write_latest(Empty())
        status = await cluster.host(host).vmemfs.status(Empty())
    except EverramError as error:
        note(f"everram: {host} may be writing what the version before can read until its next upgrade: {error.message}")
    else:
        note(f"everram: {host}: the rollback is taken back, VMemFS {status.version} is written and nothing is lost")


def _left(hosts: list[str], host: str) -> str:
    after = hosts[hosts.index(host) + 1 :]
    return f"not upgraded: {', '.join(after)}" if after else "nothing else was to be done"


def _chosen(args: argparse.Namespace, cluster: Cluster) -> list[str]:
    """Raises InvalidArgument, NotFound."""
    if args.all == bool(args.hosts):
        raise InvalidArgument("which hosts? name them, or give --all")
    return [host.name for host in cluster.hosts] if args.all else [cluster.host(name).name for name in args.hosts]


def _json(report: UpgradeReport) -> dict[str, Any]:
    return {
        "upgraded": report.upgraded,
        "version": report.version,
        "producer": report.producer,
        "format": report.format,
        "reads": report.reads,
        "guests": report.guests,
        "steps_ms": {step.step: round(step.ns / 1e6, 3) for step in report.steps},
    }


def _words(host: str, report: UpgradeReport) -> str:
    memory = f"VMemFS {report.format} of everram {report.producer}, {plural(report.guests, 'guest')}"
    if not report.upgraded:
        return f"{host}: everram {report.version} can take its memory ({memory}; it reads up to {report.reads})"
    seconds = {step.step: step.ns / 1e9 for step in report.steps}
    unserved = sum(seconds.get(step, 0.0) for step in ("handing", "stopping", "taking", "ingested"))
    return (
        f"{host} runs everram {report.version} now: {memory}; warm in {format_duration(seconds.get('warming', 0.0))}, "
        f"handed over in {format_duration(unserved)}"
    )
