"""`everram up`, `down`, `status`, `fault`, `version`: the cluster itself."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import select
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from everram.runtime.cli import unbuilt
from everram.runtime.cli.output import emit, note, plural, say
from everram.runtime.cli.units import duration, format_duration, size
from everram.runtime.cluster.folders import ClusterLock, Folders, Phase
from everram.runtime.errors import EverramError, InvalidArgument, NotFound, Unavailable, of_code
from everram.runtime.formats.faults import HOST_FAULTS
from everram.runtime.version import PACKAGE_VERSION

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.cluster.launch import Plan, Progress

END_S = 10.0
"""Within which a supervisor ends that does not answer any more."""
GUEST_FAULTS = ("guest-kill",)
HEAL = "heal"
FAULT_TIMEOUT_S = 45.0
"""A killed machine wipes its memory; a healed one is back when its host is ready."""
IMAGES = ("incomplete", "opened", "empty")
WATCH_INTERVAL_S = 1.0
"""Of `status --watch`: as fast as a person reads."""

FAULT_HELP = (
    "host-kill and hang break a host's software: its machine starts another, and guests go on. machine-kill loses the "
    "machine with all its memory and guests. partition cuts a machine off from every other machine, from coordination "
    "and from its published ports' clients; it can still be looked at. What a host hears of its peers, on links and "
    "on the channel over TCP, comes late with link-delay, in drops with link-slow, damaged with link-corrupt, not at "
    "all with one-way, and they hear it well. disk-full lets nothing more be written in its state folder, "
    "disk-slow only slowly, and with disk-fails one write in three fails. guest-kill ends a guest's processes. "
    "`fault heal HOST` connects a machine that was cut off, starts a lost one again (empty), ends the faults of its "
    "links and disk, or waits for a host to be back."
)

_Subparsers = argparse._SubParsersAction  # generic in the type checker only


def register(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    _register_up(subparsers.add_parser("up", help="start a local cluster, or start it again where it stopped"))
    down = subparsers.add_parser("down", help="stop the cluster in order: everything is saved, `up` restores it")
    down.add_argument("--discard", action="store_true", help="save nothing and erase everything the cluster ever kept")
    down.set_defaults(handler=down_command)
    status = subparsers.add_parser("status", help="what the cluster is made of and how it does")
    status.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    status.set_defaults(handler=status_command)
    fault = subparsers.add_parser("fault", help="break your own cluster, and heal it again", description=FAULT_HELP)
    fault.usage = "everram fault HOST FAULT | GUEST guest-kill | heal HOST"
    fault.add_argument("target", metavar="TARGET", help="a host's name, or a guest's")
    fault.add_argument("fault", metavar="FAULT", help=f"{', '.join(HOST_FAULTS)} (a host), guest-kill (a guest)")
    fault.set_defaults(handler=fault_command)
    version = subparsers.add_parser("version", help="the version, and what it runs on")
    version.set_defaults(handler=version_command)


def _register_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--hosts", type=int, metavar="N", help="how many hosts, named h1 to hN (default 3)")
    up.add_argument("--memory", type=size, metavar="SIZE", help="memory of each machine (default 1GiB)")
    up.add_argument(
        "--battery", type=duration, metavar="D", help="how long each machine runs without mains (default 30s)"
    )
    up.add_argument(
        "--dirty-cap",
        type=size,
        metavar="SIZE",
        help="how much of regions may differ from what is on storage (default 0: as much as the battery lasts for)",
    )
    up.add_argument(
        "--link-delay",
        type=duration,
        metavar="D",
        help="how far away copies are: what a record takes to them at least (default 0s; for trials)",
    )
    up.add_argument(
        "--ups", metavar="NAME@HOST[:PORT]", help="a UPS of the Network UPS Tools that tells of the mains (none: '')"
    )
    up.add_argument(
        "--on-battery",
        choices=("act", "wait"),
        help="what a UPS on battery means: save at once, or wait until its battery is low (the default)",
    )
    up.add_argument(
        "--log-json",
        action=argparse.BooleanOptionalAction,
        help="write hosts' logs as JSON, one object a line, with host, actor, guest, epoch and LSN",
    )
    up.add_argument(
        "--restore",
        choices=("lazy", "eager"),
        help="saved memory is read while guests run already (the default), or before they start",
    )
    up.add_argument(
        "--storage", type=size, metavar="SIZE", help="disk for what snapshots hold (default: four times --nvm)"
    )
    up.add_argument(
        "--swap",
        type=size,
        metavar="SIZE",
        help="disk for guests' pages (default: twice their part of --memory)",
    )
    up.add_argument("--nvm", type=size, metavar="SIZE", help="how much of it is persistent (default 512MiB)")
    up.add_argument(
        "--nvm-files",
        metavar="DIR",
        help="keep it in ordinary files in DIR (a tmpfs or a DAX file system is best): it outlives its machine",
    )
    up.add_argument("--coordination", default="embedded", metavar="WHERE", help="embedded (the default)")
    up.add_argument(
        "--channel",
        metavar="HOW",
        help="how hosts reach each other's memory: auto (the default: shared memory on one computer, TCP between "
        "computers), shm or tcp for all, or for single hosts: h2=tcp,h3=tcp",
    )
    up.add_argument(
        "--checksums",
        action=argparse.BooleanOptionalAction,
        help="on TCP give all data a checksum, however long (the default; --no-checksums is faster, but what is longer "
        "than 16KiB may then be damaged on its way without anybody's noticing)",
    )
    up.add_argument(
        "--lease",
        type=duration,
        metavar="D",
        help="how long guests may serve while their host cannot renew their lease (default 2s): more for a computer "
        "that is slow or busy, at the price of a later failover where no death can be proved",
    )
    up.add_argument(
        "--open",
        choices=IMAGES,
        default="",
        help="start from saved memory that may not be opened silently; see the error",
    )
    up.add_argument("-d", "--detach", action="store_true", help="return as soon as all hosts are ready")
    unbuilt.add_flags(up, "up")
    up.set_defaults(handler=up_command)


# -- up


def up_command(args: argparse.Namespace) -> int:
    from everram.runtime.cluster import launch

    if args.coordination != "embedded":
        if not args.coordination.startswith("etcd://"):
            raise InvalidArgument(f'"{args.coordination}" is no coordination: only "embedded" is built yet')
        unbuilt.refuse(f"--coordination {args.coordination}")
    folders = Folders.of(args.cluster, args.dir, os.environ)
    if args.ups:
        from everram.runtime.production.nut import NutUps

        NutUps.parse(args.ups)
    wishes = launch.Wishes(
        name=args.cluster,
        hosts=args.hosts,
        memory_bytes=args.memory,
        nvm_bytes=args.nvm,
        open_image=args.open,
        channel=args.channel,
        lease_ttl_s=args.lease,
        storage_bytes=args.storage,
        nvm_files=str(Path(args.nvm_files).absolute()) if args.nvm_files else None,
        swap_bytes=args.swap,
        battery_s=args.battery,
        ups=args.ups,
        on_battery=args.on_battery,
        restore=args.restore,
        log_json=args.log_json,
        dirty_cap_bytes=args.dirty_cap,
        link_delay_s=args.link_delay,
        checksums=args.checksums,
    )
    plan = launch.prepare(folders, wishes)
    if not args.json:
        _introduce(plan, folders)
    with launch.start(folders) as progress:
        return _follow(args, plan, folders, progress)


def _introduce(plan: Plan, folders: Folders) -> None:
    config = plan.config
    verb = {Phase.NEW: "starting", Phase.STOPPED: "starting again"}.get(plan.phase, "recovering")
    say(f'{verb} cluster "{config.name}" ({plural(len(config.hosts), "host")}) in {folders.state}')
    if plan.phase is Phase.CRASHED and not config.nvm_files:
        say(
            "  it was not stopped in order: its supervisor ended without `everram down`, and what had not been saved "
            "was lost with the memory of its machines"
        )


def _follow(args: argparse.Namespace, plan: Plan, folders: Folders, progress: Progress) -> int:
    """Show the progress; return when ready (`-d`), or when the cluster has ended."""
    asked = False
    failed = False
    while True:
        try:
            step = next(progress, None)
            if step is None:
                return _ended(folders, progress, failed)
            failed = failed or step["kind"] == "error"
            asked = asked and step["kind"] != "stays"
            if args.json and not args.detach:
                emit(step)
            elif step["kind"] in ("error", "stays"):
                note(f"everram: {step['text']}")
                if step["kind"] == "stays" and args.detach:
                    return 1
            elif step["kind"] == "ready":
                _say_ready(args, plan, folders, step["seconds"])
                if args.detach:
                    return 0
            elif not args.json:
                say(f"  {step['text']}")
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            if not args.json:
                say("\nstopping in order (Ctrl-C again leaves it to itself)")
            progress.stop()


def _say_ready(args: argparse.Namespace, plan: Plan, folders: Folders, seconds: float) -> None:
    config = plan.config
    if args.json:
        hosts = list(config.hosts)
        emit({"cluster": config.name, "dir": str(folders.state), "hosts": hosts, "ready_s": round(seconds, 3)})
        return
    say(f"ready in {format_duration(seconds)}: {', '.join(config.hosts)}")
    where = f" --dir {args.dir}" if args.dir else f" --cluster {args.cluster}" if args.cluster else ""
    if args.detach:
        say(f"next: `everram run{where} -- PROGRAM`, `everram status{where}`, `everram down{where}`")
    else:
        say("it runs until Ctrl-C; in another terminal: " + f"`everram run{where} -- PROGRAM`, `everram status{where}`")


def _ended(folders: Folders, progress: Progress, failed: bool) -> int:
    status = progress.wait()
    if status and not failed:
        raise Unavailable(f"the supervisor ended (status {status}); its last words are in {folders.log}")
    return status


# -- down


def down_command(args: argparse.Namespace) -> int:
    folders = Folders.of(args.cluster, args.dir, os.environ)
    phase = folders.phase()
    if phase is Phase.RUNNING:
        return asyncio.run(_down(args, folders))
    if phase is Phase.NEW or not args.discard:
        from everram.runtime.client.cluster import not_running

        raise not_running(args.cluster, folders)
    return _discard(args, folders)


def _discard(args: argparse.Namespace, folders: Folders) -> int:
    """Erase a cluster that does not run, and whatever a crashed supervisor may have left of it."""
    from everram.runtime.cluster.remains import end_remains

    lock = ClusterLock.take(folders.lock)
    try:
        end_remains(folders)
        folders.remove_run()
        folders.discard()
    finally:
        lock.release()
    _say_down(args, folders)
    return 0


async def _down(args: argparse.Namespace, folders: Folders) -> int:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.supervisor_pb2 import DownRequest

    record = folders.supervisor_record()
    if record is None:
        raise Unavailable(f"the cluster in {folders.state} is just starting or stopping: try again")
    ended = os.pidfd_open(record.pid)
    try:
        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            refused: EverramError | None = None
            try:
                async for progress in cluster.supervisor.down(DownRequest(discard=args.discard)):
                    if progress.HasField("error"):
                        refused = of_code(progress.error.code, progress.error.message, unknown=progress.error.unknown)
                    elif not args.json:
                        say(f"  {progress.text}")
            except Unavailable:
                # A supervisor that ends may take its last words along; its record goes only if all went well.
                await asyncio.to_thread(select.select, [ended], [], [], END_S)
                if folders.supervisor_record() is not None:
                    raise
            if refused is not None:
                raise refused
        await asyncio.to_thread(select.select, [ended], [], [])
    finally:
        os.close(ended)
    _say_down(args, folders)
    return 0


def _say_down(args: argparse.Namespace, folders: Folders) -> None:
    if args.json:
        emit({"dir": str(folders.state), "discarded": args.discard})
    else:
        say("erased" if args.discard else "stopped; `everram up` starts it again")


# -- status, fault, version


def status_command(args: argparse.Namespace) -> int:
    from everram.runtime.cli import status

    return asyncio.run(status.watch(args) if args.watch else status.once(args))


def fault_command(args: argparse.Namespace) -> int:
    target, fault = what_to_break(args.target, args.fault)
    asyncio.run(_fault(args, target, fault))
    if args.json:
        emit({"target": target, "fault": fault})
    else:
        say(f"{target} is healed" if fault == HEAL else f"{target}: {fault}")
    return 0


def what_to_break(target: str, fault: str) -> tuple[str, str]:
    """(target, fault) of `TARGET FAULT` or `heal TARGET`. Raises InvalidArgument."""
    if target == HEAL and fault not in GUEST_FAULTS:
        return fault, HEAL
    if fault == HEAL:
        raise InvalidArgument(f"write `everram fault heal {target}`")
    if fault == "power-cut":
        raise InvalidArgument(f"write `everram power cut {target}`, and `everram power on {target}` afterwards")
    if fault not in (*HOST_FAULTS, *GUEST_FAULTS):
        raise InvalidArgument(
            f'"{fault}" is no fault: choose {", ".join(HOST_FAULTS)} for a host, {", ".join(GUEST_FAULTS)} for a guest'
        )
    return target, fault


async def _fault(args: argparse.Namespace, target: str, fault: str) -> None:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.hypervisor_pb2 import GuestName
    from everram.runtime.contracts.supervisor_pb2 import FaultRequest

    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        hosts = [host.name for host in cluster.hosts]
        if fault in GUEST_FAULTS:
            await _check_guest(cluster, target, fault, hosts)
            host, guest = await cluster.find_guest(target)
            await host.hypervisor.kill(GuestName(guest=guest.guest_id))
        elif target in hosts:
            await cluster.supervisor.fault(FaultRequest(target=target, name=fault), timeout_s=FAULT_TIMEOUT_S)
        else:
            does = "heals" if fault == HEAL else "breaks"
            raise NotFound(f'{fault} {does} a host, and there is no host "{target}": choose one of {", ".join(hosts)}')


async def _check_guest(cluster: Cluster, target: str, fault: str, hosts: list[str]) -> None:
    """Raises NotFound that lists the guests, if every host could be asked and none is meant."""
    guests, silent = await cluster.guests()
    if silent or any(target in (guest.name, guest.guest_id) for guest in guests):
        return
    if target in hosts:
        raise InvalidArgument(f"{fault} breaks a guest, and {target} is a host: choose {', '.join(HOST_FAULTS)}")
    names = ", ".join(guest.name for guest in guests)
    choice = f"choose one of {names}" if names else "no guest is there"
    raise NotFound(f'{fault} breaks a guest, and there is no guest "{target}": {choice}')


def version_command(args: argparse.Namespace) -> int:
    parts = {name: metadata.version(name) for name in ("grpcio", "protobuf", "uvloop")}
    if args.json:
        emit({"everram": PACKAGE_VERSION, "python": platform.python_version(), **parts, "kernel": platform.release()})
    else:
        others = ", ".join(f"{name} {number}" for name, number in parts.items())
        system = f"{platform.system()} {platform.release()}"
        say(f"everram {PACKAGE_VERSION} (Python {platform.python_version()}, {others}; {system})")
    return 0
