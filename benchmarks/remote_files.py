"""Files on a mount, against files on tmpfs: what FUSE itself costs, with passthrough and without.

The mount is served by a process of its own, from memory; the programs' side is this process. Files are read and written
through plain system calls into buffers that are there already, tmpfs and mount in turns, so that both meet the same
weather.
Without passthrough each access is a request to the server, which is what a file of another host begins with.

And files of a real cluster of two hosts: opened through one of them by its mount, read there one-sidedly from the
other, with the messages that this costs its manager and its owner; and mapped by a client.

Tried for `mount_tcp_vs_mount_local`, large sequential reads of another host's file over TCP against local ones by the
same mount (2 virtual CPUs, others at work on them; middle of two to eleven runs each):

    bytes of its own for each read, then a copy of them (as `QueuePair.read` has it)    0.31
    one read in two or in four pieces at once, on the bare channel, against whole       0.80, 0.64 as fast
    into a buffer that is kept from read to read                                        0.77
    the same, and the next 1 MiB, or the next 3, read ahead                             0.85, 0.92

The time went into page faults of fresh buffers. Reading ahead is not done: it would be a cache, and break the promise
that a read finds what is in the owner's memory when it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from everram.runtime.channel.addresses import Addresses
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.tcp_pair import TcpPair
from everram.runtime.client import Cluster
from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.contracts.common_pb2 import Empty
from everram.runtime.contracts.remote_memory_pb2 import FileKey, MountRequest, Node
from everram.runtime.coordination.api import Range
from everram.runtime.coordination.client import CoordinationClient
from everram.runtime.coordination.directory import decode, host_key
from everram.runtime.fuse import mount as mounts
from everram.runtime.fuse.in_memory import InMemory
from everram.runtime.fuse.mount import Mounted
from everram.runtime.fuse.server import Session

FILE_BYTES = 128 << 20
SMALL_BYTES, SMALL_CALLS = 4096, 4_000
LARGE_BYTES = 1 << 20
OPENS = 500
CLUSTER_FILE_BYTES, CLUSTER_CALLS, CLUSTER_OPENS = 32 << 20, 2_000, 50
ROUNDS = 9
STRIDE = 7919
"""A prime: small accesses walk over the whole file, in no order that read-ahead could follow."""
TMPFS = "/dev/shm"


def serve(device: int, book: int, passthrough: bool) -> None:
    async def run() -> None:
        files = InMemory(now_ns=time.time_ns, passthrough=passthrough)
        await Session(Mounted(device, book), files, passthrough=passthrough).serve()

    uvloop.run(run())


@contextlib.contextmanager
def _mounted(folder: Path, passthrough: bool) -> Iterator[Path]:
    folder.mkdir()
    mounted = mounts.mount(str(folder))
    descriptors = (mounted.device, mounted.book)
    arguments = [sys.executable, __file__, *map(str, descriptors), "passthrough" if passthrough else ""]
    server = subprocess.Popen(arguments, pass_fds=descriptors)
    mounted.close()  # the server's are the last ones: if it dies, nobody waits for it
    try:
        yield folder
    finally:
        mounts.unmount(str(folder))
        try:
            server.wait(timeout=10)
        finally:
            server.kill()
            server.wait()


def run() -> dict[str, Any]:
    return _run_mounts() | asyncio.run(_on_cluster(_measure_cluster)) | asyncio.run(_on_cluster(_measure_tcp, "h2=tcp"))


Measurement = Callable[[Cluster, Path], Awaitable[dict[str, Any]]]


async def _on_cluster(measure: Measurement, channel: str = "") -> dict[str, Any]:
    """On a cluster of two hosts, with a mount of the first: with passthrough, unless its channel is forced."""
    with tempfile.TemporaryDirectory(prefix="rf-") as work:
        folder = Path(work) / "mount"
        folder.mkdir()
        state = str(Path(work) / "cluster")
        everram = [sys.executable, "-m", "everram.runtime.cli.main"]
        down = [*everram, "down", "--discard", "--dir", state]
        up = [*everram, "up", "-d", "--hosts", "2", "--dir", state, "--memory", "512MiB", "--nvm", "32MiB"]
        up += ["--channel", channel] if channel else []
        await asyncio.to_thread(subprocess.run, up, check=True, stdout=subprocess.DEVNULL)
        try:
            async with await Cluster.connect(dir=state) as cluster:
                request = MountRequest(folder=str(folder), passthrough=not channel)
                await cluster.host("h1").memory_agent.mount(request)
                return await measure(cluster, folder / "files")
        finally:
            mounts.unmount(str(folder))
            await asyncio.to_thread(subprocess.run, down, check=True, stdout=subprocess.DEVNULL)


async def _write_file(cluster: Cluster, name: str, host: str) -> Node:
    async with await cluster.open(name, "w", host=host) as file:
        for _ in range(CLUSTER_FILE_BYTES // LARGE_BYTES):
            await file.write(bytes(LARGE_BYTES))
        return file.node


async def _measure_tcp(cluster: Cluster, files: Path) -> dict[str, Any]:
    """Large sequential reads in turns: of the other host's file, which comes over TCP; of this host's, which is in its
    own memory; and of the other's again, by a queue pair without a mount."""
    far, _ = await _write_file(cluster, "far", "h2"), await _write_file(cluster, "near", "h1")
    took: dict[str, list[float]] = {"far": [], "near": [], "raw": []}
    pair, rkey = await _raw_pair(cluster, far)
    with contextlib.ExitStack() as opened:
        opened.callback(pair.close)
        descriptors = {}
        for name in ("far", "near"):
            descriptors[name] = await asyncio.to_thread(os.open, files / name, os.O_RDONLY)
            opened.callback(os.close, descriptors[name])
        for _ in range(ROUNDS):
            for name, descriptor in descriptors.items():
                took[name].append(await asyncio.to_thread(_read_all_s, descriptor))
            start = time.perf_counter()
            for offset in range(0, CLUSTER_FILE_BYTES, LARGE_BYTES):
                await pair.read(rkey, offset, LARGE_BYTES)
            took["raw"].append(time.perf_counter() - start)
    mb_s = {name: CLUSTER_FILE_BYTES / median(values) / 1e6 for name, values in took.items()}
    return {
        "mount_tcp_vs_mount_local": round(mb_s["far"] / mb_s["near"], 2),
        "mount_tcp_vs_channel": round(mb_s["far"] / mb_s["raw"], 2),
        "mount_tcp_mb_s": round(mb_s["far"]),
    }


async def _raw_pair(cluster: Cluster, node: Node) -> tuple[TcpPair, int]:
    """A queue pair to a file's owner over TCP, and the file's rkey."""
    config = ClusterConfig.read(cluster.folders.config)
    client = CoordinationClient(f"unix:{cluster.folders.coordination_socket}")
    try:
        _, found = await client.range(Range(host_key(node.host)))
    finally:
        await client.close()
    address = Addresses.parse(str(decode(found[0].value)["channel"])).tcp
    assert address is not None
    me = Identity(config.cluster_id, "benchmark", incarnation=str(os.getpid()))
    pair = await TcpPair.open(*address, node.host, me, config.token, 1)
    attachment = await cluster.host(node.host).memory_agent.attach(FileKey(id=node.id, memory_id=node.memory_id))
    return pair, attachment.rkey


def _read_all_s(descriptor: int) -> float:
    large = bytearray(LARGE_BYTES)
    start = time.perf_counter()
    for offset in range(0, CLUSTER_FILE_BYTES, LARGE_BYTES):
        os.preadv(descriptor, [large], offset)
    return time.perf_counter() - start


async def _measure_cluster(cluster: Cluster, files: Path) -> dict[str, Any]:
    path = files / "file"
    await _write_file(cluster, "file", "h2")
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDWR)
    try:
        await asyncio.to_thread(_access, descriptor, 1)  # the first finds the way
        before = await _messages(cluster)
        took_s = await asyncio.to_thread(_access, descriptor, CLUSTER_CALLS)
        managers, owners = (now - then for now, then in zip(await _messages(cluster), before, strict=True))
    finally:
        await asyncio.to_thread(os.close, descriptor)
    opens_us = await asyncio.to_thread(_open_us, path, CLUSTER_OPENS)
    return {
        "client_map_4k_us": round(await _map_us(cluster), 2),
        "opens_per_s": round(1e6 / opens_us),
        "manager_messages_per_io": managers / (2 * CLUSTER_CALLS),
        "owner_actor_messages_per_io": owners / (2 * CLUSTER_CALLS),
        "mount_of_another_host_4k_us": round(took_s / (2 * CLUSTER_CALLS) * 1e6, 1),
    }


def _access(descriptor: int, calls: int) -> float:
    """Seconds of so many reads and so many writes of 4 KiB."""
    small = bytearray(SMALL_BYTES)
    start = time.perf_counter()
    for number in range(calls):
        place = number * STRIDE % (CLUSTER_FILE_BYTES // SMALL_BYTES) * SMALL_BYTES
        os.preadv(descriptor, [small], place)
        os.pwrite(descriptor, small, place)
    return time.perf_counter() - start


async def _messages(cluster: Cluster) -> tuple[int, int]:
    """Handled by managers, and by agents as owners."""
    managers = [await host.remote_memory.status(Empty()) for host in cluster.hosts]
    owners = [await host.memory_agent.status(Empty()) for host in cluster.hosts]
    return sum(one.messages for one in managers), sum(one.owner_messages for one in owners)


async def _map_us(cluster: Cluster) -> float:
    """A copy of 4 KiB out of the mapping, looked at before and after."""
    took = []
    async with await cluster.map("file") as mapped:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for number in range(SMALL_CALLS):
                mapped.read(number * STRIDE % (CLUSTER_FILE_BYTES // SMALL_BYTES) * SMALL_BYTES, SMALL_BYTES)
            took.append((time.perf_counter() - start) / SMALL_CALLS * 1e6)
    return median(took)


def _run_mounts() -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rf-")))
        tmpfs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rf-", dir=TMPFS)))
        passed = stack.enter_context(_mounted(work / "passthrough", True))
        asked = stack.enter_context(_mounted(work / "requests", False))
        descriptors = {
            name: _filled(folder / "file")
            for name, folder in (("tmpfs", tmpfs), ("passthrough", passed), ("requests", asked))
        }
        for descriptor in descriptors.values():
            stack.callback(os.close, descriptor)
        return _measure(descriptors, asked / "file")


def _filled(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    block = os.urandom(LARGE_BYTES)
    for offset in range(0, FILE_BYTES, LARGE_BYTES):
        os.pwrite(descriptor, block, offset)
    return descriptor


def _measure(descriptors: dict[str, int], path: Path) -> dict[str, Any]:
    small, large = bytearray(SMALL_BYTES), bytearray(LARGE_BYTES)
    read_us = _each_us(descriptors, lambda fd, at: os.preadv(fd, [small], at), SMALL_BYTES, SMALL_CALLS)
    write_us = _each_us(descriptors, lambda fd, at: os.pwrite(fd, small, at), SMALL_BYTES, SMALL_CALLS)
    calls = FILE_BYTES // LARGE_BYTES
    read_mb_s = _mb_s(_each_us(descriptors, lambda fd, at: os.preadv(fd, [large], at), LARGE_BYTES, calls))
    write_mb_s = _mb_s(_each_us(descriptors, lambda fd, at: os.pwrite(fd, large, at), LARGE_BYTES, calls))
    return {
        "passthrough_4k_vs_tmpfs": round(read_us["passthrough"] / read_us["tmpfs"], 2),
        "passthrough_4k_write_vs_tmpfs": round(write_us["passthrough"] / write_us["tmpfs"], 2),
        "tmpfs_4k_us": round(read_us["tmpfs"], 2),
        "mount_4k_us": round(read_us["requests"], 1),
        "mount_4k_write_us": round(write_us["requests"], 1),
        "mount_open_us": round(_open_us(path), 1),
        "read_mb_s": {name: round(value) for name, value in read_mb_s.items()},
        "write_mb_s": {name: round(value) for name, value in write_mb_s.items()},
    }


def _each_us(
    descriptors: dict[str, int], call: Callable[[int, int], int], size_bytes: int, calls: int
) -> dict[str, float]:
    """Microseconds of one call on each file, the median of rounds in turn."""
    took: dict[str, list[float]] = {name: [] for name in descriptors}
    step = STRIDE if size_bytes == SMALL_BYTES else 1
    places = [number * step % (FILE_BYTES // size_bytes) * size_bytes for number in range(calls)]
    for _ in range(ROUNDS):
        for name, descriptor in descriptors.items():
            start = time.perf_counter()
            for place in places:
                call(descriptor, place)
            took[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: median(values) for name, values in took.items()}


def _mb_s(each_us: dict[str, float]) -> dict[str, float]:
    return {name: LARGE_BYTES / value for name, value in each_us.items()}


def _open_us(path: Path, opens: int = OPENS) -> float:
    """Open and close: the name is looked up, the file opened, flushed and released, each a request."""
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(opens):
            os.close(os.open(path, os.O_RDONLY))
        took.append((time.perf_counter() - start) / opens * 1e6)
    return median(took)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "passthrough")
