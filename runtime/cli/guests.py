"""`everram run`, `guests`, `inspect`, `logs`, `stop`, `start`, `restart`, `rm`: guests."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everram.runtime.cli.output import emit, note, say, table
from everram.runtime.cli.units import duration, format_size, parse_size, size
from everram.runtime.cluster.folders import check_name
from everram.runtime.errors import InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from everram.runtime.client import Cluster, Host
    from everram.runtime.contracts.common_pb2 import Guest, GuestSpec, RegionSpec

RESTARTS = ("always", "on-failure", "no")
INTERRUPTED = 130
STOP_ANSWER_S = 5.0
"""Beyond a guest's grace, for its host to answer."""
GRACE_S = 5.0
WAIT_S = 3600.0
"""Of one wait for a guest's end, which is then waited for again: no request is without a deadline."""

_Subparsers = argparse._SubParsersAction  # generic in the type checker only


def register(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    _register_run(subparsers.add_parser("run", help="run a program as a guest, with memory that everram keeps"))
    guests = subparsers.add_parser("guests", aliases=["ps"], help="list the guests")
    guests.set_defaults(handler=lambda args: asyncio.run(_guests(args)))
    _guest_parser(subparsers, "inspect", "everything about a guest", _inspect)
    logs = _guest_parser(subparsers, "logs", "what a guest printed", _logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the guest has ended for good")
    logs.add_argument("--tail", type=int, default=0, metavar="N", help="only the last N lines")
    stop = _guest_parser(subparsers, "stop", "stop a guest; its regions stay, `start` takes them up again", _stop)
    start = _guest_parser(subparsers, "start", "start a guest that was stopped or has ended", _start)
    start.add_argument(
        "--from-copy", action="store_true",
        help="one that waits for the saved memory of a host without power: go on with a copy, which has less",
    )  # fmt: skip
    restart = _guest_parser(subparsers, "restart", "stop a guest and start it again", _restart)
    for parser in (stop, restart):
        parser.add_argument("--grace", type=duration, default=GRACE_S, metavar="D", help="before it is killed (5s)")
    _guest_parser(subparsers, "suspend", "stop a guest as it is, volatile memory and all, until `resume`", _suspend)
    _guest_parser(subparsers, "resume", "let a suspended guest go on", _resume)
    move = _guest_parser(subparsers, "move", "hand a guest over to another host, with all it has written", _move)
    move.add_argument("host", metavar="HOST", help="where it shall run")
    remove = _guest_parser(subparsers, "rm", "remove a guest", _remove)
    remove.add_argument("--regions", action="store_true", help="erase its regions and log with it")
    remove.add_argument("--force", action="store_true", help="stop it first")


def _guest_parser(
    subparsers: _Subparsers[argparse.ArgumentParser],
    name: str,
    help_text: str,
    act: Callable[[argparse.Namespace, Cluster, Host, Guest], Coroutine[Any, Any, int]],
) -> argparse.ArgumentParser:
    """A command on one guest, which it finds."""
    parser = subparsers.add_parser(name, help=help_text)
    parser.add_argument("guest", metavar="GUEST", help="its name or id")

    async def find_and_act(args: argparse.Namespace) -> int:
        from everram.runtime.client import Cluster

        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            if act is _remove and await cluster.forget_lost(args.guest):
                return _removed(args, args.guest, "")
            if getattr(args, "from_copy", False) and await cluster.go_on_without_saved(args.guest):
                note(f"{args.guest} goes on with the copy that has most")
                return _changed(args, (await cluster.find_guest(args.guest))[1])
            host, guest = await cluster.find_guest(args.guest)
            return await act(args, cluster, host, guest)

    parser.set_defaults(handler=lambda args: asyncio.run(find_and_act(args)))
    return parser


# -- run


def _register_run(run: argparse.ArgumentParser) -> None:
    run.usage = (
        "everram run [-d] [--name NAME] [--region NAME=SIZE[,mapped]]... [--publish PORT] "
        "[--restart always|on-failure|no] [--log SIZE] [--copies K] [--memory SIZE] -- PROGRAM [ARG]..."
    )
    run.add_argument("-d", "--detach", action="store_true", help="return when it runs; otherwise its output is shown")
    run.add_argument("--name", metavar="NAME", help="its name (default: the program's, with a number if need be)")
    run.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="NAME=SIZE[,mapped]",
        help="persistent memory; mapped: plain loads and stores, durable on this host only",
    )
    run.add_argument("--publish", type=int, metavar="PORT", help="lead 127.0.0.1:PORT to its EVERRAM_PORT")
    run.add_argument(
        "--restart", choices=RESTARTS, help="what follows its end (default: always with -d, no where it is attached)"
    )
    run.add_argument("--log", type=size, default=0, metavar="SIZE", help="capacity of its log ring")
    run.add_argument(
        "--copies",
        type=int,
        metavar="K",
        help="on how many other hosts its logged regions are kept too (default: 1, if there are any and another host)",
    )
    run.add_argument(
        "--memory",
        type=size,
        default=0,
        metavar="SIZE",
        help="volatile memory of its own, which the host may ask back while others need it more",
    )
    run.add_argument("program", nargs="+", metavar="PROGRAM", help="the program and its arguments, after --")
    run.set_defaults(handler=run_command)


def run_command(args: argparse.Namespace) -> int:
    if args.publish is not None and not 0 < args.publish <= 65535:
        raise InvalidArgument(f"--publish {args.publish}: a port is a number from 1 to 65535")
    regions = [parse_region(text) for text in args.region]
    program = resolve(args.program[0], Path.cwd(), guest_environment())
    return asyncio.run(_run(args, regions, [program, *args.program[1:]]))


def parse_region(text: str) -> tuple[str, int, bool]:
    """`NAME=SIZE[,mapped]` -> (name, bytes, whether it is mapped). Raises InvalidArgument."""
    name, equals, rest = text.partition("=")
    size_text, comma, kind = rest.partition(",")
    if not equals or (comma and kind not in ("mapped", "logged")):
        raise InvalidArgument(f'"{text}" is no region: write NAME=SIZE or NAME=SIZE,mapped, such as ledger=16MiB')
    return check_name(name, "region"), parse_size(size_text), kind == "mapped"


def guest_environment() -> dict[str, str]:
    """The caller's, with everram's own programs found first."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(own_bin()), environment.get("PATH", os.defpath)])
    return environment


def own_bin() -> Path:
    """Where this everram's own Python and commands lie. A link is not followed: it makes a virtual environment."""
    return Path(sys.executable).parent


def resolve(program: str, folder: Path, environment: dict[str, str]) -> str:
    """The absolute path of what the caller means. Raises NotFound or PermissionDenied."""
    found = str(folder / program) if os.sep in program else shutil.which(program, path=environment["PATH"])
    if found is None:
        raise NotFound(f'there is no program "{program}" in PATH: give its path')
    path = Path(found)
    if not path.exists():
        raise NotFound(f'there is no program "{program}": {os.strerror(errno.ENOENT)}')
    if not path.is_file() or not os.access(path, os.X_OK):
        raise PermissionDenied(f'"{program}" cannot be executed: is it a program, and is its x bit set?')
    return str(path.absolute())


async def _run(args: argparse.Namespace, regions: list[tuple[str, int, bool]], argv: list[str]) -> int:
    from everram.runtime.client import Cluster

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        taken = {guest.name for guest in (await cluster.guests())[0]} if args.name is None else set()
        name = args.name or free_name(Path(args.program[0]).stem, taken)
        guest = await cluster.run(spec_of(args, name, regions, argv), copies=args.copies)
        if args.detach:
            if args.json:
                emit(guest_json(guest))
            else:
                say(f"{guest.name} runs on {guest.host} (pid {guest.pid})")
            return 0
        return await _attached(args, cluster, guest)


def free_name(stem: str, taken: set[str]) -> str:
    """A name for a guest without one: its program's, with a number if that is taken."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:50] or "guest"
    number, name = 1, base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def spec_of(args: argparse.Namespace, name: str, regions: list[tuple[str, int, bool]], argv: list[str]) -> GuestSpec:
    from everram.runtime.contracts import common_pb2 as pb

    policies = {"always": pb.ALWAYS, "on-failure": pb.ON_FAILURE, "no": pb.NO}
    specs: list[RegionSpec] = [
        pb.RegionSpec(name=region, size_bytes=size_bytes, kind=pb.MAPPED if mapped else pb.LOGGED)
        for region, size_bytes, mapped in regions
    ]
    variables = [
        pb.EnvironmentVariable(name=key, value=os.fsencode(value)) for key, value in sorted(guest_environment().items())
    ]
    return pb.GuestSpec(
        name=name,
        argv=[os.fsencode(word) for word in argv],
        working_directory=os.fsencode(Path.cwd()),
        environment=variables,
        regions=specs,
        restart=policies[args.restart or ("always" if args.detach else "no")],
        publish_port=args.publish or 0,
        log_bytes=args.log,
        memory_bytes=args.memory,
    )


async def _attached(args: argparse.Namespace, cluster: Cluster, guest: Guest) -> int:
    """Show its output until it has ended for good; Ctrl-C stops it. Its exit status."""
    try:
        await _stream(cluster, guest, follow=True, tail_lines=0, as_json=args.json)
        ended = await _wait(cluster, guest)
    except asyncio.CancelledError:
        note(f"stopping {guest.name}")
        host, _ = await cluster.find_guest(guest.guest_id)
        await _stopped(host, guest, GRACE_S)
        return INTERRUPTED
    if args.json:
        emit(guest_json(ended))
    elif ended.exit_status != 0:
        note(f"{ended.name} has ended: {ended.reason or f'exit status {ended.exit_status}'}")
    return max(0, ended.exit_status) if ended.exit_status >= 0 else 1


async def _wait(cluster: Cluster, guest: Guest) -> Guest:
    """Until it has ended for good, over restarts of its host and on other hosts."""
    from everram.runtime.contracts.hypervisor_pb2 import GuestName
    from everram.runtime.errors import DeadlineExceeded

    request = GuestName(guest=guest.guest_id)
    while True:
        try:
            return await cluster.insist(guest, lambda host: host.hypervisor.wait(request, timeout_s=WAIT_S))
        except DeadlineExceeded:
            continue  # it still runs


async def _stopped(host: Host, guest: Guest, grace_s: float) -> Guest:
    from everram.runtime.client.cluster import patiently
    from everram.runtime.contracts.hypervisor_pb2 import StopRequest

    request = StopRequest(guest=guest.guest_id, grace_s=grace_s)
    return await patiently(lambda: host.hypervisor.stop(request, timeout_s=grace_s + STOP_ANSWER_S), repeatable=True)


async def _stream(cluster: Cluster, guest: Guest, *, follow: bool, tail_lines: int, as_json: bool) -> None:
    """Print its output; a stream that breaks with its host is taken up where it broke. What a guest printed stays on
    its machine: on another host the output begins anew."""
    from everram.runtime.contracts.hypervisor_pb2 import LogsRequest

    offset, reading = 0, guest.host

    async def read(host: Host) -> None:
        nonlocal offset, reading
        if host.name != reading:
            offset, reading = 0, host.name
        request = LogsRequest(guest=guest.guest_id, follow=follow, tail_lines=tail_lines, offset=offset)
        chunks: AsyncIterator[Any] = host.hypervisor.logs(request)
        async for chunk in chunks:
            offset = chunk.offset
            if as_json:
                emit({"guest": guest.name, "text": chunk.data.decode(errors="replace")})
            else:
                sys.stdout.buffer.write(chunk.data)
                sys.stdout.buffer.flush()

    await cluster.insist(guest, read)


# -- the others


async def _guests(args: argparse.Namespace) -> int:
    from everram.runtime.client import Cluster

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        found, silent = await cluster.guests()
    if args.json:
        emit({"guests": [guest_json(g) for g in found], "silent": {name: e.message for name, e in silent.items()}})
    elif found:
        say(
            table(
                ("NAME", "ID", "STATE", "HOST", "PID", "EPOCH", "RESTARTS", "PORT", "COPIES", "REGIONS"),
                map(_row, found),
            )
        )
    else:
        say("no guests; run one with `everram run -- PROGRAM`")
    for name, error in silent.items():
        note(f"everram: {name} is not in this list, because it does not answer: {error.message}")
    return 1 if silent else 0


def _row(guest: Guest) -> tuple[object, ...]:
    regions = ", ".join(f"{r.name} {format_size(r.size_bytes)}" for r in guest.regions)
    port = guest.spec.publish_port
    return (
        guest.name,
        guest.guest_id,
        state_word(guest),
        guest.host,
        guest.pid or "",
        guest.epoch,
        guest.restarts,
        port or "",
        copies_word(guest),
        regions,
    )


def copies_word(guest: Guest) -> str:
    """How many of the copies that were asked for are in sync, such as "1/1" or "0/1 degraded"; empty if none were."""
    if not guest.spec.copies:
        return ""
    in_sync = sum(copy.required and copy.state == "in-sync" for copy in guest.copies)
    return f"{in_sync}/{guest.spec.copies}{' degraded' if guest.degraded else ''}"


def state_word(guest: Guest) -> str:
    from everram.runtime.contracts.common_pb2 import GuestState

    if guest.state == GuestState.GUEST_STATE_UNSPECIFIED:
        return guest.reason  # what the directory says of a guest that no host has
    return GuestState.Name(guest.state).lower()


def guest_json(guest: Guest) -> dict[str, Any]:
    """A guest as `--json` shows it."""
    from everram.runtime.contracts import common_pb2 as pb

    return {
        "guest": guest.name,
        "guest_id": guest.guest_id,
        "state": state_word(guest),
        "host": guest.host,
        "pid": guest.pid,
        "epoch": guest.epoch,
        "regions": [
            {
                "name": r.name,
                "kind": "mapped" if r.kind == pb.MAPPED else "logged",
                "size_bytes": r.size_bytes,
                "tracking": r.tracking,
                "written_pages": r.written_pages,
            }
            for r in guest.regions
        ],
        "exit_status": guest.exit_status if guest.exit_status >= 0 else None,
        "restarts": guest.restarts,
        "restart": pb.RestartPolicy.Name(guest.spec.restart).lower().replace("_", "-"),
        "port": guest.port,
        "publish_port": guest.spec.publish_port,
        "reason": guest.reason,
        "freeze_reasons": list(guest.freeze_reasons),
        "copies": guest.spec.copies,
        "degraded": guest.degraded,
        "destinations": [
            {
                "host": copy.host,
                "memory_id": copy.memory_id,
                "state": copy.state,
                "required": copy.required,
                "durable": copy.durable,
                "copied_percent": copy.copied_percent,
            }
            for copy in guest.copies
        ],
        "argv": [os.fsdecode(word) for word in guest.spec.argv],
        "working_directory": os.fsdecode(guest.spec.working_directory),
        "log": {
            "tail": guest.log.tail,
            "applied": guest.log.applied,
            "freed": guest.log.freed,
            "verified": guest.log.verified,
            "capacity_bytes": guest.log.capacity_bytes,
        },
    }


async def _inspect(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    seen = guest_json(guest)
    if args.json:
        emit(seen)
        return 0
    width = max(len(key) for key in seen)
    for key, value in seen.items():
        say(f"{key.replace('_', ' '):{width}}  {_words(key, value)}")
    return 0


def _words(key: str, value: Any) -> str:
    """One member of a guest's JSON for a person."""
    if key == "regions":
        return ", ".join(f"{r['name']} {format_size(r['size_bytes'])} {r['kind']}" for r in value) or "-"
    if key == "destinations":
        return ", ".join(map(_destination_words, value)) or "-"
    if key == "log":
        return f"written up to {value['tail']}, applied {value['applied']}, verified {value['verified']}"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return "-" if value in ("", None) else str(value)


def _destination_words(copy: dict[str, Any]) -> str:
    state = f"copying, {copy['copied_percent']} %" if copy["state"] == "copying" else copy["state"]
    return f"{copy['host']} {state}, {'required, ' if copy['required'] else ''}acknowledged {copy['durable']}"


async def _logs(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    if args.tail < 0:
        raise InvalidArgument(f"--tail {args.tail}: give the number of lines")
    await _stream(cluster, guest, follow=args.follow, tail_lines=args.tail, as_json=args.json)
    return 0


async def _stop(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    return _changed(args, await _stopped(host, guest, args.grace))


async def _start(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    from everram.runtime.client.cluster import RUN_TIMEOUT_S, patiently
    from everram.runtime.contracts.hypervisor_pb2 import GuestName

    request = GuestName(guest=guest.guest_id)
    return _changed(
        args, await patiently(lambda: host.hypervisor.start(request, timeout_s=RUN_TIMEOUT_S), repeatable=False)
    )


async def _restart(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    from everram.runtime.client.cluster import RUN_TIMEOUT_S, patiently
    from everram.runtime.contracts.hypervisor_pb2 import StopRequest

    request = StopRequest(guest=guest.guest_id, grace_s=args.grace)
    timeout_s = args.grace + RUN_TIMEOUT_S
    return _changed(
        args, await patiently(lambda: host.hypervisor.restart(request, timeout_s=timeout_s), repeatable=False)
    )


async def _suspend(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    from everram.runtime.client.cluster import patiently
    from everram.runtime.contracts.hypervisor_pb2 import GuestName

    request = GuestName(guest=guest.guest_id)
    return _changed(args, await patiently(lambda: host.hypervisor.suspend(request), repeatable=True))


async def _resume(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    from everram.runtime.client.cluster import patiently
    from everram.runtime.contracts.hypervisor_pb2 import GuestName

    request = GuestName(guest=guest.guest_id)
    return _changed(args, await patiently(lambda: host.hypervisor.resume(request), repeatable=True))


async def _move(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    if not args.json and guest.host != args.host:
        note(f"moving {guest.name} from {guest.host} to {args.host}")
    moved = await cluster.move(guest, args.host)
    if args.json:
        emit(guest_json(moved))
    else:
        say(f"{moved.name} runs on {moved.host}")
    return 0


async def _remove(args: argparse.Namespace, cluster: Cluster, host: Host, guest: Guest) -> int:
    from everram.runtime.client.cluster import patiently
    from everram.runtime.contracts.hypervisor_pb2 import RemoveRequest

    request = RemoveRequest(guest=guest.guest_id, regions=args.regions, force=args.force)
    timeout_s = GRACE_S + STOP_ANSWER_S
    await patiently(lambda: host.hypervisor.remove(request, timeout_s=timeout_s), repeatable=False)
    return _removed(args, guest.name, guest.guest_id)


def _removed(args: argparse.Namespace, name: str, guest_id: str) -> int:
    if args.json:
        emit({"guest": name, "guest_id": guest_id, "removed": True})
    else:
        say(f"{name} is removed")
    return 0


def _changed(args: argparse.Namespace, guest: Guest) -> int:
    if args.json:
        emit(guest_json(guest))
    else:
        say(f"{guest.name} is {state_word(guest)}{f' (pid {guest.pid})' if guest.pid else ''}")
    return 0
