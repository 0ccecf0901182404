"""`everram fs ls|stat|cat|cp|mv|rm|mkdir|exec`: the cluster's memory as files."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from everram.runtime.cli.output import emit, say, table
from everram.runtime.cli.units import format_size
from everram.runtime.errors import AlreadyExists, EverramError, FailedPrecondition, InvalidArgument, NotFound

if TYPE_CHECKING:
    from everram.runtime.client import Cluster
    from everram.runtime.client.files import Files
    from everram.runtime.contracts.remote_memory_pb2 import Node

REMOTE = ":"
"""A path of the cluster where one of this computer could be meant, too."""
PIECE_BYTES = 4 << 20
PREFIX = "/everram/files"
"""Of `exec`: what a program calls the cluster's files."""

Act = Callable[[argparse.Namespace, "Cluster", "Files"], Awaitable[int]]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fs = subparsers.add_parser("fs", help="work with the cluster's memory as files")
    acts = fs.add_subparsers(metavar="ACTION", required=True)
    _add(acts, "ls", "list a folder", _ls).add_argument("path", nargs="?", default="", metavar="PATH")
    _add(acts, "stat", "everything about a file", _stat).add_argument("path", metavar="PATH")
    _add(acts, "cat", "print a file", _cat).add_argument("path", metavar="PATH")
    cp = _add(
        acts, "cp", f"copy a file; paths of the cluster begin with {REMOTE!r}, - is standard input or output", _cp
    )
    cp.add_argument("source", metavar="SOURCE")
    cp.add_argument("target", metavar="TARGET")
    cp.add_argument("--host", default="", metavar="HOST", help="where a new file shall lie (default: most free memory)")
    cp.add_argument("--persistent", action="store_true", help="a new file is saved with its machine's other memory")
    mv = _add(acts, "mv", "rename a file or folder, replacing a file that is there", _mv)
    mv.add_argument("source", metavar="PATH")
    mv.add_argument("target", metavar="NEW_PATH")
    rm = _add(acts, "rm", "remove files", _rm)
    rm.add_argument("paths", nargs="+", metavar="PATH")
    rm.add_argument("-r", "--recursive", action="store_true", help="folders too, with all they hold")
    mkdir = _add(acts, "mkdir", "make folders", _mkdir)
    mkdir.add_argument("paths", nargs="+", metavar="PATH")
    mkdir.add_argument("-p", "--parents", action="store_true", help="those above too; no error if it is there")
    run = acts.add_parser("exec", help="run a Python program whose files under a prefix are the cluster's (no root)")
    run.add_argument("--prefix", default=PREFIX, metavar="DIR", help=f"default: {PREFIX}; need not be there")
    run.add_argument("--through", default="", metavar="HOST", help="whose agent does it (default: any)")
    run.add_argument("command", nargs="+", metavar="-- PROGRAM [ARG]...")
    run.set_defaults(handler=_exec)


def _add(
    acts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str, act: Act
) -> argparse.ArgumentParser:
    parser = acts.add_parser(name, help=help_text)
    parser.add_argument("--through", default="", metavar="HOST", help="whose agent does it (default: any)")

    async def connect_and_act(args: argparse.Namespace) -> int:
        from everram.runtime.client import Cluster

        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            return await act(args, cluster, await cluster.files(args.through))

    parser.set_defaults(handler=lambda args: asyncio.run(connect_and_act(args)))
    return parser


def _exec(args: argparse.Namespace) -> int:
    """Becomes the program."""
    import everram.runtime.redirect.launcher as launcher

    async def check() -> str:
        from everram.runtime.client import Cluster

        async with await Cluster.connect(args.cluster, args.dir) as cluster:
            await cluster.agent_host(args.through)
            return str(cluster.folders.state)

    if not args.prefix.startswith("/"):
        raise InvalidArgument(f"{args.prefix} is no prefix: it has to begin with /")
    environ = dict(os.environ)
    environ["EVERRAM_FS_CLUSTER"] = asyncio.run(check())
    environ["EVERRAM_FS_PREFIX"], environ["EVERRAM_FS_THROUGH"] = args.prefix, args.through
    paths = [str(Path(str(launcher.__file__)).parent), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        os.execvpe(args.command[0], args.command, environ)
    except OSError as error:
        raise _of_os_error(error, args.command[0]) from None


def _remote(path: str) -> str:
    return path.removeprefix(REMOTE)


async def _ls(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    nodes = await files.list(_remote(args.path))
    if args.json:
        emit({"files": [described(node) for node in nodes]})
    elif nodes:
        say(table(("MODE", "HOST", "KIND", "SIZE", "NAME"), map(_row, nodes)))
    return 0


async def _stat(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    node = await files.stat(_remote(args.path))
    if args.json:
        emit(described(node))
    else:
        for name, value in described(node).items():
            if value not in ("", None):
                say(f"{name}: {value}")
    return 1 if node.lost else 0


async def _cat(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    await _download(files, _remote(args.path), sys.stdout.buffer)
    return 0


async def _cp(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    source, target = args.source, args.target
    if not source.startswith(REMOTE) and not target.startswith(REMOTE):
        raise InvalidArgument(f"neither path is the cluster's: those begin with {REMOTE!r}, such as {REMOTE}{target}")
    if target.startswith(REMOTE):
        target = await _in_folder(files, _remote(target), source)
        if source.startswith(REMOTE):
            await _copy(args, files, _remote(source), target)
        elif source == "-":
            await _upload(args, files, sys.stdin.buffer, target)
        else:
            with _opened(source, "rb") as stream:
                await _upload(args, files, stream, target)
    elif target == "-":
        await _download(files, _remote(source), sys.stdout.buffer)
    else:
        await files.stat(_remote(source))  # before anything is made here
        local = Path(target)
        with _opened(str(local / Path(_remote(source)).name if local.is_dir() else local), "wb") as stream:
            await _download(files, _remote(source), stream)
    return 0


async def _mv(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    source = _remote(args.source)
    await files.rename(source, await _in_folder(files, _remote(args.target), source))
    return 0


async def _rm(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    for path in map(_remote, args.paths):
        await _remove(files, path, recursive=args.recursive)
    return 0


async def _remove(files: Files, path: str, *, recursive: bool) -> None:
    try:
        await files.remove(path)
    except FailedPrecondition as error:
        if not recursive or "(EISDIR)" not in error.message:
            raise
        for node in await files.list(path):
            await _remove(files, f"{path}/{node.name}", recursive=True)
        await files.rmdir(path)


async def _mkdir(args: argparse.Namespace, _: Cluster, files: Files) -> int:
    for path in map(_remote, args.paths):
        names = [name for name in path.split("/") if name]
        for depth in range(1, len(names)) if args.parents else ():
            await _make(files, "/".join(names[:depth]), exist_ok=True)
        await _make(files, path, exist_ok=args.parents)
    return 0


async def _make(files: Files, path: str, *, exist_ok: bool) -> None:
    try:
        await files.mkdir(path)
    except AlreadyExists:
        if not exist_ok or not (await files.stat(path)).folder:
            raise


async def _in_folder(files: Files, path: str, source: str) -> str:
    """Where a copy goes: into the folder, if it is one."""
    try:
        folder = not path or (await files.stat(path)).folder
    except NotFound:
        folder = False
    return f"{path}/{Path(_remote(source)).name}" if folder else path


async def _upload(args: argparse.Namespace, files: Files, stream: BinaryIO, target: str) -> None:
    async with await files.open(target, "w", host=args.host, persistent=args.persistent) as file:
        while data := stream.read(PIECE_BYTES):
            await file.write(data)


async def _download(files: Files, source: str, stream: BinaryIO) -> None:
    async with await files.open(source) as file:
        while data := await file.read(PIECE_BYTES):
            stream.write(data)
        stream.flush()


async def _copy(args: argparse.Namespace, files: Files, source: str, target: str) -> None:
    async with await files.open(source) as read:
        if (await files.stat(source)).id == await _id_of(files, target):
            raise InvalidArgument(f"{source} and {target} are the same file")
        async with await files.open(target, "w", host=args.host, persistent=args.persistent) as written:
            while data := await read.read(PIECE_BYTES):
                await written.write(data)


async def _id_of(files: Files, path: str) -> str:
    try:
        return (await files.stat(path)).id
    except NotFound:
        return ""


def _opened(path: str, mode: str) -> BinaryIO:
    try:
        return open(path, mode)  # type: ignore[return-value]
    except OSError as error:
        raise _of_os_error(error, path) from None


def _of_os_error(error: OSError, path: str) -> EverramError:
    kind = NotFound if isinstance(error, FileNotFoundError) else FailedPrecondition
    return kind(f"{path}: {os.strerror(error.errno or 0)}")


def described(node: Node) -> dict[str, Any]:
    """A node as one JSON object."""
    told: dict[str, Any] = {
        "id": node.id,
        "name": node.name,
        "kind": "folder" if node.folder else "file",
        "mode": f"{node.mode:04o}",
        "modified_ns": node.modified_ns,
    }
    if not node.folder:
        told |= {
            "host": node.host,
            "memory_id": node.memory_id,
            "size_bytes": node.size_bytes,
            "persistent": node.persistent,
            "creator": node.creator,
            "lost": node.lost,
        }
    return told


def _row(node: Node) -> tuple[object, ...]:
    if node.folder:
        return (_mode(node), "", "", "", node.name + "/")
    kind = "persistent" if node.persistent else "volatile"
    return (_mode(node), node.host, kind, format_size(node.size_bytes), node.name)


def _mode(node: Node) -> str:
    bits = "".join(letter if node.mode >> 8 - i & 1 else "-" for i, letter in enumerate("rwxrwxrwx"))
    return ("d" if node.folder else "-") + bits
