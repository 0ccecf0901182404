"""`everram region ...`: regions and their snapshots.

A region is REGION or, where several guests have one of that name, GUEST/REGION; a snapshot is REGION@SNAPSHOT.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from everram.runtime.cli.actions import add_action
from everram.runtime.cli.output import done, emit, note, plural, say, table
from everram.runtime.cli.units import duration, format_size, size
from everram.runtime.cluster.folders import check_name
from everram.runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from everram.runtime.client import Cluster, Host
    from everram.runtime.contracts.common_pb2 import Guest, Region
    from everram.runtime.contracts.nvm_device_pb2 import PurgeStatus, SnapshotName, SnapshotRecord


LONG_S = 3600.0
"""For what moves a region's content."""
EXPORT_BYTES = 1 << 20


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    region = subparsers.add_parser("region", help="regions: snapshots, reverting, cloning, purging, checking")
    acts = region.add_subparsers(metavar="ACTION", required=True)
    add_action(acts, "ls", "list the regions", _ls)
    create = add_action(acts, "create", "give a stopped guest one more region", _create)
    create.add_argument("region", metavar="GUEST/REGION")
    create.add_argument("size_bytes", type=size, metavar="SIZE")
    create.add_argument("--mapped", action="store_true", help="plain loads and stores, durable on this host only")
    grow = add_action(acts, "grow", "make a region of a stopped guest longer", _grow)
    grow.add_argument("region", metavar="REGION")
    grow.add_argument("size_bytes", type=size, metavar="SIZE", help="that it has then")
    remove = add_action(acts, "rm", "remove snapshots, or regions of stopped guests with their snapshots", _rm)
    remove.add_argument("names", nargs="+", metavar="REGION[@SNAPSHOT]")
    snapshot = add_action(acts, "snapshot", "take a snapshot of regions, all at one instant; guests go on", _snapshot)
    snapshot.add_argument("regions", nargs="+", metavar="REGION")
    snapshot.add_argument("--name", metavar="NAME", help="the same for all of them (default: the time)")
    snapshots = add_action(acts, "snapshots", "list snapshots, with what each takes up", _snapshots)
    snapshots.add_argument("region", nargs="?", metavar="REGION")
    for name, help_text, act in (
        ("preview", "how much removing exactly these snapshots would free", _preview),
        ("revert", "make a region what it was; its guest is stopped for it and begins anew", _revert),
        ("clone", "make a snapshot a region of its own, which the guest has from its next start on", _clone),
        ("export", "write what a snapshot holds to a file", _export),
    ):
        parser = add_action(acts, name, help_text, act)
        parser.add_argument("snapshots", nargs="+" if name == "preview" else None, metavar="REGION@SNAPSHOT")
        if name in ("clone", "export"):
            parser.add_argument("target", metavar="NAME" if name == "clone" else "FILE")
    purge = add_action(acts, "purge", "move what only snapshots refer to to the disk, now or by a policy", _purge)
    purge.add_argument("region", nargs="?", metavar="REGION", help="default: all of them")
    purge.add_argument("--older-than", type=duration, default=0.0, metavar="D", help="only what snapshots so old hold")
    purge.add_argument("--rate", type=_rate, metavar="SIZE", help="a second, from now on; 0: as fast as the disk")
    purge.add_argument("--low", type=_percent, metavar="PERCENT", help="purge when less of a host's NVM is free")
    purge.add_argument("--high", type=_percent, metavar="PERCENT", help="and until so much is")
    purge.add_argument("--age", type=_age, metavar="D", help="purge what snapshots of this age hold; 0: never")
    going = purge.add_mutually_exclusive_group()
    going.add_argument("--pause", action="store_true", help="purge nothing until --resume")
    going.add_argument("--resume", action="store_true", help="go on")
    check = add_action(acts, "check", "check all that belongs to snapshots, in memory and on disk", _check)
    check.add_argument("host", nargs="?", metavar="HOST", help="default: all of them")


def _rate(text: str) -> int:
    return 0 if text == "0" else size(text)


def _age(text: str) -> float:
    return 0.0 if text == "0" else duration(text)


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is no part of a hundred: write a number such as 20%') from None


# -- names


class Found(NamedTuple):
    host: Host
    guest: Guest
    region: Region


class Named(NamedTuple):
    host: Host
    snapshot: SnapshotName
    text: str


def split(text: str) -> tuple[str, str]:
    """`REGION@SNAPSHOT`. Raises InvalidArgument."""
    region, at, name = text.rpartition("@")
    if not at or not region or not name:
        raise InvalidArgument(f'"{text}" is no snapshot: write REGION@SNAPSHOT, as `everram region snapshots` shows')
    return region, name


async def _found(cluster: Cluster, text: str) -> Found:
    return Found(*await cluster.find_region(text))


async def _named(cluster: Cluster, text: str) -> Named:
    from everram.runtime.contracts.nvm_device_pb2 import SnapshotName

    region, name = split(text)
    found = await _found(cluster, region)
    return Named(found.host, SnapshotName(guest_id=found.guest.guest_id, region=found.region.name, name=name), text)


# -- regions


async def _ls(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts import common_pb2 as pb

    guests, silent = await cluster.guests()
    rows = [(guest, region) for guest in guests for region in guest.regions]
    if args.json:
        emit(
            {
                "regions": [
                    {
                        "guest": guest.name,
                        "region": region.name,
                        "host": guest.host,
                        "kind": "mapped" if region.kind == pb.MAPPED else "logged",
                        "size_bytes": region.size_bytes,
                    }
                    for guest, region in rows
                ]
            }
        )
    elif rows:
        say(
            table(
                ("GUEST", "REGION", "HOST", "KIND", "SIZE"),
                [
                    (
                        guest.name,
                        region.name,
                        guest.host,
                        "mapped" if region.kind == pb.MAPPED else "logged",
                        format_size(region.size_bytes),
                    )
                    for guest, region in rows
                ],
            )
        )
    else:
        say("no regions; a guest gets one with `everram run --region NAME=SIZE`")
    for name, error in silent.items():
        note(f"everram: {name} is not in this list, because it does not answer: {error.message}")
    return 1 if silent else 0


async def _create(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts import common_pb2 as pb
    from everram.runtime.contracts.hypervisor_pb2 import RegionAct

    name, slash, region = args.region.partition("/")
    if not slash:
        raise InvalidArgument(f'"{args.region}": a region belongs to a guest; write GUEST/REGION')
    host, guest = await cluster.find_guest(name)
    kind = pb.MAPPED if args.mapped else pb.LOGGED
    act = RegionAct(guest=guest.guest_id, region=check_name(region, "region"), size_bytes=args.size_bytes, kind=kind)
    await host.hypervisor.add_region(act, timeout_s=LONG_S)
    return done(args, {"created": args.region}, f"{args.region} is there; {guest.name} has it from its next start on")


async def _grow(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.hypervisor_pb2 import RegionAct

    found = await _found(cluster, args.region)
    act = RegionAct(guest=found.guest.guest_id, region=found.region.name, size_bytes=args.size_bytes)
    await found.host.hypervisor.grow_region(act, timeout_s=LONG_S)
    return done(args, {"grown": args.region}, f"{args.region} has {format_size(args.size_bytes)}")


async def _rm(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.hypervisor_pb2 import RegionAct

    named = [await _named(cluster, text) for text in args.names if "@" in text]
    found = [await _found(cluster, text) for text in args.names if "@" not in text]
    memory_bytes = storage_bytes = 0
    for host, names in _by_host(named):
        freed = await host.nvm_device.remove_snapshots(names, timeout_s=LONG_S)
        memory_bytes, storage_bytes = memory_bytes + freed.memory_bytes, storage_bytes + freed.storage_bytes
    for host, guest, region in found:
        await host.hypervisor.drop_region(RegionAct(guest=guest.guest_id, region=region.name), timeout_s=LONG_S)
    told = {"removed": args.names, "freed_memory_bytes": memory_bytes, "freed_storage_bytes": storage_bytes}
    freed_words = f"; {_freed_words(memory_bytes, storage_bytes)}" if named else ""
    return done(args, told, f"{', '.join(args.names)} {'are' if len(args.names) > 1 else 'is'} removed{freed_words}")


def _by_host(named: Sequence[Named]) -> list[tuple[Host, Any]]:
    from everram.runtime.contracts.nvm_device_pb2 import SnapshotNames

    hosts = {one.host.name: one.host for one in named}
    return [
        (host, SnapshotNames(snapshots=[one.snapshot for one in named if one.host is host])) for host in hosts.values()
    ]


def _freed_words(memory_bytes: int, storage_bytes: int) -> str:
    return f"{format_size(memory_bytes)} of memory and {format_size(storage_bytes)} of disk are free again"


# -- snapshots


async def _snapshot(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.nvm_device_pb2 import RegionName, SnapshotRequest

    name = args.name or time.strftime("%Y-%m-%dT%H.%M.%S")
    found = [await _found(cluster, text) for text in args.regions]
    if len({one.host.name for one in found}) > 1:
        where = ", ".join(f"{one.region.name} on {one.host.name}" for one in found)
        raise InvalidArgument(f"one instant is of one host, and these lie on several ({where}): name them one by one")
    regions = [RegionName(guest_id=one.guest.guest_id, region=one.region.name) for one in found]
    taken = (
        await found[0].host.nvm_device.snapshot(SnapshotRequest(regions=regions, name=name), timeout_s=LONG_S)
    ).snapshots
    names = ", ".join(f"{text}@{name}" for text in args.regions)
    told = {"snapshots": [_record_json(record) for record in taken]}
    return done(args, told, f"{names} {'are' if len(taken) > 1 else 'is'} taken")


def _record_json(record: SnapshotRecord) -> dict[str, Any]:
    return {
        "guest_id": record.guest_id,
        "region": record.region,
        "name": record.name,
        "sequence": record.sequence,
        "parent": record.parent,
        "size_bytes": record.size_bytes,
        "created_ns": record.created_ns,
        "epoch": record.epoch,
        "lsn": record.lsn,
        "named_bytes": record.named_bytes,
        "owned_bytes": record.owned_bytes,
        "shared_bytes": record.shared_bytes,
        "purged_bytes": record.purged_bytes,
    }


async def _snapshots(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.nvm_device_pb2 import SnapshotFilter

    guests, silent = await cluster.guests()
    wanted = None if args.region is None else (await _found(cluster, args.region))
    rows: list[tuple[Guest, SnapshotRecord]] = []
    for guest in guests:
        if not guest.regions or guest.host in silent or (wanted and wanted.guest.guest_id != guest.guest_id):
            continue
        asked = SnapshotFilter(guest_id=guest.guest_id, region=wanted.region.name if wanted else "", usage=True)
        listed = await cluster.host(guest.host).nvm_device.snapshots(asked, timeout_s=LONG_S)
        rows += [(guest, record) for record in listed.snapshots]
    if args.json:
        emit({"snapshots": [{"guest": guest.name, "host": guest.host, **_record_json(one)} for guest, one in rows]})
    elif rows:
        say(table(("SNAPSHOT", "GUEST", "TAKEN", "HOLDS", "OWN", "SHARED", "ON DISK"), [_row(*row) for row in rows]))
    else:
        say("no snapshots; take one with `everram region snapshot REGION`")
    return 1 if silent else 0


def _row(guest: Guest, record: SnapshotRecord) -> tuple[object, ...]:
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created_ns / 1e9))
    sizes = (record.named_bytes, record.owned_bytes, record.shared_bytes, record.purged_bytes)
    return f"{record.region}@{record.name}", guest.name, taken, *map(format_size, sizes)


async def _preview(args: argparse.Namespace, cluster: Cluster) -> int:
    named = [await _named(cluster, text) for text in args.snapshots]
    memory_bytes = storage_bytes = 0
    for host, names in _by_host(named):
        freed = await host.nvm_device.preview_removal(names, timeout_s=LONG_S)
        memory_bytes, storage_bytes = memory_bytes + freed.memory_bytes, storage_bytes + freed.storage_bytes
    told = {"freed_memory_bytes": memory_bytes, "freed_storage_bytes": storage_bytes}
    words = f"removing {plural(len(named), 'snapshot')} would free {format_size(memory_bytes)} of memory and "
    return done(args, told, words + f"{format_size(storage_bytes)} of disk")


async def _revert(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.hypervisor_pb2 import RegionAct

    host, snapshot, text = await _named(cluster, args.snapshots)
    act = RegionAct(guest=snapshot.guest_id, region=snapshot.region, snapshot=snapshot.name)
    guest = await host.hypervisor.revert_region(act, timeout_s=LONG_S)
    told = {"reverted": text, "guest": guest.name, "epoch": guest.epoch}
    return done(args, told, f"{snapshot.region} is as in {text}; {guest.name} is in epoch {guest.epoch}")


async def _clone(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.hypervisor_pb2 import RegionAct

    host, snapshot, text = await _named(cluster, args.snapshots)
    name = check_name(args.target, "region")
    act = RegionAct(guest=snapshot.guest_id, region=snapshot.region, snapshot=snapshot.name, name=name)
    guest = await host.hypervisor.clone_region(act, timeout_s=LONG_S)
    told = {"cloned": text, "region": name, "guest": guest.name}
    return done(args, told, f"{name} holds what {text} does; {guest.name} has it from its next start on")


async def _export(args: argparse.Namespace, cluster: Cluster) -> int:
    """Whole or not at all; holes stay holes."""
    from everram.runtime.contracts.nvm_device_pb2 import ReadSnapshotRequest

    host, snapshot, text = await _named(cluster, args.snapshots)
    record = await host.nvm_device.check_snapshot(snapshot)
    snapshot.sequence = record.sequence  # another that is given its name meanwhile is not taken for it
    target = Path(args.target)
    aside = target.with_name(target.name + ".part")
    try:
        with aside.open("wb") as file:
            for offset in range(0, record.size_bytes, EXPORT_BYTES):
                request = ReadSnapshotRequest(snapshot=snapshot, offset=offset, length=EXPORT_BYTES)
                data = (await host.nvm_device.read_snapshot(request, timeout_s=LONG_S)).data
                if data.strip(b"\0"):
                    os.pwrite(file.fileno(), data, offset)
            os.truncate(file.fileno(), record.size_bytes)
        aside.replace(target)
    except OSError as error:
        raise InvalidArgument(f"{args.target} cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)
    told = {"exported": text, "file": args.target, "size_bytes": record.size_bytes}
    return done(args, told, f"{args.target} holds what {text} does ({format_size(record.size_bytes)})")


# -- purging and checking


async def _purge(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.nvm_device_pb2 import PurgeControl, PurgeRequest

    found = None if args.region is None else await _found(cluster, args.region)
    hosts = [found.host] if found else list(cluster.hosts)
    control = PurgeControl(rate_bytes_per_s=args.rate, low_mark=args.low, high_mark=args.high, age_s=args.age)
    if args.pause or args.resume:
        control.paused = args.pause
    policy_only = bool(control.ListFields())
    statuses: dict[str, PurgeStatus] = {}
    for host in hosts:
        if policy_only:
            statuses[host.name] = await host.nvm_device.control_purge(control)
            continue
        request = PurgeRequest(older_than_s=args.older_than)
        if found:
            request.guest_id, request.region = found.guest.guest_id, found.region.name
        statuses[host.name] = await host.nvm_device.purge(request, timeout_s=LONG_S)
    if args.json:
        emit({"hosts": {name: _purge_json(status) for name, status in statuses.items()}})
    else:
        head = ("HOST", "PURGED", "STILL IN MEMORY", "RATE", "MARKS", "AGE", "STATE")
        say(table(head, [(name, *_purge_row(status)) for name, status in statuses.items()]))
    return 0


def _purge_json(status: PurgeStatus) -> dict[str, Any]:
    return {
        "purged_bytes": status.purged_bytes,
        "purgeable_bytes": status.purgeable_bytes,
        "entry_updates": status.entry_updates,
        "rate_bytes_per_s": status.rate_bytes_per_s,
        "low_mark": status.low_mark,
        "high_mark": status.high_mark,
        "age_s": status.age_s,
        "paused": status.paused,
        "running": status.running,
        "trouble": status.trouble,
    }


def _purge_row(status: PurgeStatus) -> tuple[object, ...]:
    state = "paused" if status.paused else status.trouble or ("purging" if status.running else "idle")
    rate = f"{format_size(status.rate_bytes_per_s)}/s" if status.rate_bytes_per_s else ""
    marks = f"{status.low_mark:.0%} to {status.high_mark:.0%}"
    age = f"{status.age_s:g}s" if status.age_s else ""
    return format_size(status.purged_bytes), format_size(status.purgeable_bytes), rate, marks, age, state


async def _check(args: argparse.Namespace, cluster: Cluster) -> int:
    from everram.runtime.contracts.common_pb2 import Empty

    hosts = [cluster.host(args.host)] if args.host else list(cluster.hosts)
    answers = {host.name: await host.nvm_device.check(Empty(), timeout_s=LONG_S) for host in hosts}
    if args.json:
        emit({"hosts": {name: {"findings": list(a.findings), "blocks": a.blocks} for name, a in answers.items()}})
    for name, answer in answers.items() if not args.json else ():
        for finding in answer.findings:
            say(f"{name}: {finding}")
        if not answer.findings:
            say(f"{name}: {plural(answer.blocks, 'block')} of snapshots, all as it has to be")
    return 1 if any(answer.findings for answer in answers.values()) else 0
