"""`everram power status|cut|on|rehearse`: the machines' mains, and what happens without them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.cluster import IMAGES
from everram.runtime.cli.output import done, emit, note, say, table
from everram.runtime.cli.units import format_duration, format_size
from everram.runtime.errors import EverramError, InvalidArgument

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.power_monitor_pb2 import BudgetStatus, PowerReport, PowerStatus, Rehearsal

Act = Callable[[argparse.Namespace, "Cluster"], Awaitable[int]]

CUT_TIMEOUT_S = 3700.0
"""A battery may last an hour."""
ENDS = {
    "clean": "clean",
    "power_loss_saved": "by a loss of power, saved",
    "power_loss_incomplete": "by one, not saved",
    "crash": "by a crash",
}
ON_TIMEOUT_S = 300.0
REHEARSE_TIMEOUT_S = 120.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    power = subparsers.add_parser("power", help="the machines' mains: cut them, give them back, rehearse")
    acts = power.add_subparsers(metavar="ACTION", required=True)
    _add(acts, "status", "mains, battery, what is saved, and the last loss of the mains", _status, many=True)
    cut = "cut a machine's mains: on battery it drains its logs, saves its memory and hands its guests over"
    _add(acts, "cut", cut, _cut, many=True)
    on = _add(acts, "on", "give the mains back: a machine that is off starts from what it saved", _on, many=True)
    on.add_argument(
        "--open", choices=IMAGES, default="", help="start from memory that may not be opened silently; see the error"
    )
    _add(acts, "rehearse", "how long a loss of the mains would take now, without one", _rehearse, many=False)


def _add(
    acts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str, act: Act, *, many: bool
) -> argparse.ArgumentParser:
    parser = acts.add_parser(name, help=help_text)
    parser.add_argument("hosts", nargs="*", metavar="HOST")
    if many:
        parser.add_argument("--all", action="store_true", help="every machine")

    async def connect_and_act(args: argparse.Namespace) -> int:
        from everram.runtime.client import Cluster

        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            return await act(args, cluster)

    parser.set_defaults(handler=lambda args: asyncio.run(connect_and_act(args)))
    return parser


def _chosen(args: argparse.Namespace, cluster: Cluster) -> list[str]:
    """Raises InvalidArgument, NotFound."""
    if args.all == bool(args.hosts):
        raise InvalidArgument("which machines? name hosts, or give --all")
    if args.all:
        return [host.name for host in cluster.hosts]
    return [cluster.host(name).name for name in args.hosts]


async def _cut(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.supervisor_pb2 import PowerRequest

    hosts = _chosen(args, cluster)
    await cluster.supervisor.power(PowerRequest(machines=hosts), timeout_s=CUT_TIMEOUT_S)
    return done(args, {"off": hosts}, f"{', '.join(hosts)} {'are' if len(hosts) > 1 else 'is'} off")


async def _on(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.supervisor_pb2 import PowerRequest

    hosts = _chosen(args, cluster)
    request = PowerRequest(machines=hosts, on=True, open_image=args.open)
    await cluster.supervisor.power(request, timeout_s=ON_TIMEOUT_S)
    return done(args, {"on": hosts}, f"{', '.join(hosts)} {'have' if len(hosts) > 1 else 'has'} power")


async def _status(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.common_pb2 import Empty

    hosts = [cluster.host(name).name for name in args.hosts] or [host.name for host in cluster.hosts]
    machines = {one.name: one for one in (await cluster.supervisor.status(Empty())).machines}
    told: dict[str, dict[str, Any]] = {}
    for name in hosts:
        machine = machines[name]
        told[name] = {"state": machine.state, "mains": machine.mains, "battery_s": round(machine.battery_s, 3)}
        if machine.state == "up":
            try:
                told[name] |= _status_json(await cluster.host(name).power_monitor.status(Empty()))
            except EverramError as error:
                note(f"everram: {name} does not answer: {error.message}")
    if args.json:
        emit({"hosts": told})
        return 0
    rows = [
        (
            name,
            one["state"],
            "on" if one["mains"] else "off",
            format_duration(one["battery_s"]),
            one.get("doing", ""),
            one.get("image", ""),
            one.get("restored_from", ""),
        )
        for name, one in told.items()
    ]
    say(table(("HOST", "STATE", "MAINS", "BATTERY", "DOING", "IMAGE", "MEMORY IS FROM"), rows))
    for name, one in told.items():
        if any((ends := one.get("ends", {})).get(kind) for kind in ENDS):
            counted = ", ".join(f"{ends[kind]} {words}" for kind, words in ENDS.items())
            say(f"{name}: its memory's lives have ended so far: {counted}; the last: {ends['last']}")
        if one.get("restoring_bytes"):
            say(f"{name}: {format_size(one['restoring_bytes'])} of its memory are still read from the image")
        if one.get("warning"):
            say(f"{name}: {one['warning']}")
        if "budget" in one:
            say(f"{name}: {_budget_words(one['budget'])}")
        if "last" in one:
            say(f"{name}: {_report_words(one['last'])}")
    return 0


def _status_json(status: PowerStatus) -> dict[str, Any]:
    told: dict[str, Any] = {
        "doing": status.state,
        "image": status.image,
        "image_generation": status.image_generation,
        "restored_from": status.restored_from,
        "ups": status.ups,
        "warning": status.warning,
        "restoring_bytes": status.restoring_bytes,
        "restore_s": round(status.restore_s, 4),
        "restore_all_s": round(status.restore_all_s, 4),
        "ends": {
            "clean": status.clean,
            "power_loss_saved": status.power_saved,
            "power_loss_incomplete": status.power_incomplete,
            "crash": status.crashes,
            "last": status.last_end,
        },
        "budget": _budget_json(status.budget),
    }
    if status.HasField("last"):
        told["last"] = report_json(status.last)
    return told


def _budget_json(budget: BudgetStatus) -> dict[str, Any]:
    return {
        "battery_s": round(budget.battery_s, 3),
        "save_bytes_per_s": round(budget.save_bytes_per_s),
        "measured": budget.measured,
        "save_bytes": budget.save_bytes,
        "full_bytes": budget.full_bytes,
        "tracked_bytes": budget.tracked_bytes,
        "covered": budget.covered,
        "tracking": budget.tracking,
        "cap_bytes": budget.cap_bytes if budget.tracking else None,
        "dirty_bytes": budget.dirty_bytes if budget.tracking else None,
        "most_dirty_bytes": budget.most_dirty_bytes,
        "flushed_bytes": budget.flushed_bytes,
        "delayed_pages": budget.delayed_pages,
        "waited_pages": budget.waited_pages,
        "log_bytes": budget.log_bytes or None,
        "outstanding_log_bytes": budget.outstanding_log_bytes,
    }


def _budget_words(budget: dict[str, Any]) -> str:
    rate = f"{format_size(budget['save_bytes_per_s'])}/s{'' if budget['measured'] else ' (believed)'}"
    words = f"the battery saves {format_size(budget['save_bytes'])} at {rate}"
    if budget["tracking"]:
        words += (
            f"; of regions {format_size(budget['cap_bytes'])} may be dirty, {format_size(budget['dirty_bytes'])} are "
            f"(of {format_size(budget['tracked_bytes'])}; besides {format_size(budget['full_bytes'])} in any case)"
        )
    elif budget["covered"]:
        words += ": everything may be dirty"
    if budget["log_bytes"] is not None:
        words += f"; of logs {format_size(budget['log_bytes'])} may be outstanding"
    return words + f"; {format_size(budget['outstanding_log_bytes'])} of a log are outstanding"


def report_json(report: PowerReport) -> dict[str, Any]:
    """What a loss of the mains came to."""
    return {
        "outcome": report.outcome,
        "began_ns": report.began_ns,
        "battery_s": round(report.battery_s, 4),
        "freeze_s": round(report.freeze_s, 4),
        "drain_s": round(report.drain_s, 4),
        "save_s": round(report.save_s, 4),
        "left_s": round(report.left_s, 4),
        "saved_bytes": report.saved.saved_bytes,
        "not_held": list(report.not_held),
        "guests": [
            {
                "guest": guest.name,
                "epoch": guest.epoch,
                "tail": guest.tail,
                "copies": [
                    {"host": copy.host, "durable": copy.durable, "drained": copy.drained} for copy in guest.copies
                ],
            }
            for guest in report.guests
        ],
    }


def _report_words(report: dict[str, Any]) -> str:
    words = f"last loss of the mains: {report['outcome']}"
    if report["outcome"] == "saved":
        words += (
            f"; guests stopped in {format_duration(report['freeze_s'])}, logs drained in "
            f"{format_duration(report['drain_s'])}, {format_size(report['saved_bytes'])} saved in "
            f"{format_duration(report['save_s'])}, {format_duration(report['left_s'])} of the battery left"
        )
    behind = [
        f"{guest['guest']}: what lies between {copy['durable']} and {guest['tail']} did not make it to {copy['host']}"
        for guest in report["guests"]
        for copy in guest["copies"]
        if not copy["drained"]
    ]
    if report.get("not_held"):
        behind.append(f"nobody could be told that {', '.join(report['not_held'])} should wait for what was saved")
    return "; ".join([words, *behind])


async def _rehearse(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.common_pb2 import Empty

    if len(args.hosts) != 1:
        raise InvalidArgument("which machine? name one host")
    host = cluster.host(args.hosts[0])
    found = await host.power_monitor.rehearse(Empty(), timeout_s=REHEARSE_TIMEOUT_S)
    if args.json:
        emit(_rehearsal_json(found))
    else:
        say(
            f"stopping the guests took {format_duration(found.freeze_s)}; saving {format_size(found.memory_bytes)} at "
            f"{format_size(int(found.bytes_per_s))}/s would take {format_duration(found.save_s)} of a battery of "
            f"{format_duration(found.battery_s)}"
        )
        enough = "it is enough" if found.margin_s >= 0 else "IT IS NOT ENOUGH"
        say(f"{enough}: {format_duration(abs(found.margin_s))} {'are left' if found.margin_s >= 0 else 'are missing'}")
    return 0 if found.margin_s >= 0 else 1


def _rehearsal_json(found: Rehearsal) -> dict[str, Any]:
    return {
        "battery_s": found.battery_s,
        "freeze_s": round(found.freeze_s, 6),
        "memory_bytes": found.memory_bytes,
        "bytes_per_s": round(found.bytes_per_s),
        "save_s": round(found.save_s, 4),
        "margin_s": round(found.margin_s, 4),
    }
