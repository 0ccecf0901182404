"""`everram mount DIR` and `everram umount DIR`: the cluster's memory as a file system of this computer."""

from __future__ import annotations

import argparse
import asyncio
import os

from everram.runtime.cli.output import emit, say
from everram.runtime.errors import NotFound

MOUNT_TIMEOUT_S = 10.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mount = subparsers.add_parser("mount", help="mount the cluster's memory as files (needs root)")
    mount.add_argument("folder", metavar="DIR", help="a folder that is there")
    mount.add_argument("--host", default="", metavar="HOST", help="whose agent serves it (default: any)")
    mount.add_argument(
        "--no-passthrough", action="store_true", help="have the host read and write even its own files, not the kernel"
    )
    mount.set_defaults(handler=lambda args: asyncio.run(_mount(args)))
    umount = subparsers.add_parser("umount", help="unmount it; programs that use it keep it until they let go")
    umount.add_argument("folder", metavar="DIR")
    umount.set_defaults(handler=_umount)


async def _mount(args: argparse.Namespace) -> int:
    from everram.runtime.client import Cluster
    from everram.runtime.contracts.remote_memory_pb2 import MountRequest

    folder = os.path.abspath(args.folder)  # noqa: PTH100 - nothing of a dead mount may be looked at
    async with await Cluster.connect(args.cluster, args.dir) as cluster:
        host = await cluster.agent_host(args.host)
        request = MountRequest(folder=folder, passthrough=not args.no_passthrough)
        await cluster.host(host).memory_agent.mount(request, timeout_s=MOUNT_TIMEOUT_S)
    if args.json:
        emit({"folder": folder, "host": host, "passthrough": request.passthrough})
    else:
        say(
            f"{folder} is mounted: files/ are the cluster's files, regions/ the memory of the guests on {host}, "
            "snapshots/ what it was"
        )
    return 0


def _umount(args: argparse.Namespace) -> int:
    from everram.runtime.fuse import mount as fuse

    folder = os.path.abspath(args.folder)  # noqa: PTH100 - a dead mount may lie there
    if not fuse.unmount(folder):
        raise NotFound(f"no mount of everram lies on {folder}: `mount -t {fuse.TYPE}` lists them")
    if args.json:
        emit({"folder": folder})
    else:
        say(f"{folder} is unmounted")
    return 0
