"""`everram memory status|explain|set`: how hosts divide their memory among their guests."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.actions import add_action
from everram.runtime.cli.output import done, emit, note, plural, say, table
from everram.runtime.cli.units import format_size, parse_size
from everram.runtime.errors import EverramError, InvalidArgument

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.memory_scheduler_pb2 import (
        GuestMemoryStatus,
        MemoryDecision,
        MemoryExplanation,
        MemoryStatus,
    )


PAGE_BYTES = 4096
SHOWN = 10
"""Decisions, the last ones; --json has them all."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    memory = subparsers.add_parser("memory", help="guests' volatile memory: who has how much of it, and why")
    acts = memory.add_subparsers(metavar="ACTION", required=True)
    status = add_action(acts, "status", "each host's memory for guests, and what each guest has of it", _status)
    status.add_argument("hosts", nargs="*", metavar="HOST")
    explain = add_action(acts, "explain", "what is known of a guest's pages, and what was decided about them", _explain)
    explain.add_argument("guest", metavar="GUEST", help="its name or id")
    limits = add_action(acts, "set", "change how much of the host's memory a guest has at least, and at most", _set)
    limits.add_argument("guest", metavar="GUEST", help="its name or id")
    limits.add_argument("--min", type=_limit, metavar="SIZE", help="reserved for it: never taken back; 0 for none")
    limits.add_argument("--max", type=_limit, metavar="SIZE", help="what it has beyond is taken back; 0 for no limit")


def _limit(text: str) -> int:
    return 0 if text in ("0", "none") else parse_size(text)


# -- status


async def _status(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.common_pb2 import Empty

    hosts = [cluster.host(name) for name in args.hosts] or list(cluster.hosts)
    told: list[MemoryStatus] = []
    for host in hosts:
        try:
            told.append(await host.memory_scheduler.status(Empty()))
        except EverramError as error:
            note(f"everram: {host.name} does not answer: {error.message}")
    if args.json:
        emit({"hosts": {status.host: _status_json(status) for status in told}})
    else:
        _say_status(told)
    return 0 if len(told) == len(hosts) else 1


def _say_status(told: list[MemoryStatus]) -> None:
    head = ("HOST", "FOR GUESTS", "IN USE", "PROMISED", "PRESSURE", "SWAP USED")
    rows = [
        (
            one.host,
            format_size(one.limit_bytes),
            format_size(one.resident_bytes),
            format_size(one.promised_bytes),
            one.pressure,
            "off" if one.swapping and not one.swap_used_bytes else f"{_of(one.swap_used_bytes, one.swap_bytes)}",
        )
        for one in told
    ]
    say(table(head, rows))
    for one in told:
        if one.swapping:
            say(f"{one.host}: swapping is off: {one.swapping}")
    guests = [(one.host, guest) for one in told for guest in one.guests]
    if not guests:
        say("no guest has memory of its own; run one with `everram run --memory SIZE`")
        return
    say("")
    say(
        table(
            ("GUEST", "HOST", "MEMORY", "HAS", "WORKS WITH", "BALLOON", "SWAPPED", "MIN", "MAX", "STATE"),
            map(_row, guests),
        )
    )
    for _, guest in guests:
        if guest.paused:
            say(f"{guest.name} is paused: {guest.paused}")
        elif guest.waiting:
            say(f"{guest.name} waits for {plural(guest.waiting_pages, 'page')}: {guest.waiting}")


def _of(part: int, whole: int) -> str:
    return f"{format_size(part)} of {format_size(whole)}"


def _row(each: tuple[str, GuestMemoryStatus]) -> tuple[object, ...]:
    host, guest = each
    state = "paused" if guest.paused else "answers" if guest.answers else "does not answer"
    sizes = (
        guest.memory_bytes,
        guest.resident_bytes,
        guest.working_set_bytes,
        guest.ballooned_bytes,
        guest.swapped_bytes,
    )
    limits = (format_size(limit) if limit else "" for limit in (guest.min_bytes, guest.max_bytes))
    return guest.name, host, *map(format_size, sizes), *limits, state


def _status_json(status: MemoryStatus) -> dict[str, Any]:
    return {
        "limit_bytes": status.limit_bytes,
        "resident_bytes": status.resident_bytes,
        "promised_bytes": status.promised_bytes,
        "min_free_bytes": status.min_free_bytes,
        "pressure": status.pressure,
        "swapping_off": status.swapping,
        "swap_bytes": status.swap_bytes,
        "swap_used_bytes": status.swap_used_bytes,
        "swap_in_p50_s": status.swap_in_p50_s,
        "swap_in_p99_s": status.swap_in_p99_s,
        "guests": [_guest_json(guest) for guest in status.guests],
    }


def _guest_json(guest: GuestMemoryStatus) -> dict[str, Any]:
    return {field.name: getattr(guest, field.name) for field in guest.DESCRIPTOR.fields}


# -- explain


async def _explain(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.memory_scheduler_pb2 import GuestMemoryKey

    host, guest = await cluster.find_guest(args.guest)
    found = await host.memory_scheduler.explain(GuestMemoryKey(guest=guest.guest_id))
    if args.json:
        emit(_explanation_json(found))
    else:
        _say_explanation(host.name, found)
    return 0


def _say_explanation(host: str, found: MemoryExplanation) -> None:
    guest = found.guest
    say(
        f"{guest.name} on {host} has {format_size(guest.resident_bytes)} of {format_size(guest.memory_bytes)} in "
        f"memory; it works with {format_size(guest.working_set_bytes)}. Pressure on {host}: {found.pressure}"
    )
    if guest.paused:
        say(f"it is paused: {guest.paused}")
    elif guest.waiting:
        say(f"it waits for {plural(guest.waiting_pages, 'page')}: {guest.waiting}")
    if found.classes:
        say(f"\nits pages, from {found.sampled_pages} drawn at random, smoothed over {found.samples} samples:\n")
        rows = [(each.name, _pages(each.pages), f"{_pages(each.low)} to {_pages(each.high)}") for each in found.classes]
        say(table(("CLASS", "ABOUT", "95 OF 100 TIMES"), rows))
    say(
        f"\ntaken so far: {_pages(guest.ballooned_pages)} by balloon, {_pages(guest.discarded_pages)} that was free "
        f"inside it, {_pages(guest.swapped_out_pages)} swapped out; {_pages(guest.swapped_in_pages)} came back\n"
    )
    decisions = [
        (
            _when(decision),
            decision.pressure,
            decision.technique,
            format_size(decision.target_bytes),
            format_size(decision.reclaimed_bytes),
            decision.reason,
        )
        for decision in found.decisions[-SHOWN:]
    ]
    say(table(("DECIDED", "PRESSURE", "TECHNIQUE", "TO TAKE", "WAS TAKEN", "BECAUSE"), decisions))


def _when(decision: MemoryDecision) -> str:
    during_s = decision.since_s - decision.ago_s
    return f"{decision.ago_s:.1f} s ago" + (f", for {during_s:.0f} s" if decision.times > 1 else "")


def _pages(pages: float) -> str:
    return format_size(int(pages) * PAGE_BYTES)


def _explanation_json(found: MemoryExplanation) -> dict[str, Any]:
    return {
        "guest": _guest_json(found.guest),
        "pressure": found.pressure,
        "samples": found.samples,
        "sampled_pages": found.sampled_pages,
        "classes": {each.name: {"pages": each.pages, "low": each.low, "high": each.high} for each in found.classes},
        "decisions": [
            {field.name: getattr(decision, field.name) for field in decision.DESCRIPTOR.fields}
            for decision in found.decisions
        ],
    }


# -- set


async def _set(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.memory_scheduler_pb2 import MemoryLimits

    if args.min is None and args.max is None:
        raise InvalidArgument("set what? give --min SIZE, --max SIZE or both")
    host, guest = await cluster.find_guest(args.guest)
    request = MemoryLimits(guest=guest.guest_id, min_bytes=args.min, max_bytes=args.max)
    status = await host.memory_scheduler.set_limits(request)
    least = f"at least {format_size(status.min_bytes)}" if status.min_bytes else "no min"
    most = f"at most {format_size(status.max_bytes)}" if status.max_bytes else "no max"
    told = {"guest": status.name, "min_bytes": status.min_bytes, "max_bytes": status.max_bytes}
    return done(args, told, f"{status.name} has {least} and {most} of {host.name}'s memory")
