"""One-sided access to another process's memory, side by side with the plain copy, the raw socket and gRPC.

Every owner is a process of its own, and so is each end of what is compared with. Over shared memory the owner does
nothing, and the measure is a plain copy between two mappings of this process. Over TCP the measures are two processes
that send 64 MiB through a socket by `sendall` and `recv_into`, and unary gRPC calls with the bytes in a message, in
processes whose malloc was told to keep large blocks (grpcio is several times faster so). All our data over TCP has a
checksum, as it has by default, and theirs has none; `tcp_no_checksums_vs_raw` is that of `up --no-checksums`. Sources
are the same for all, and everybody has touched their pages before. Rounds take turns, so that all meet the same
weather; medians count.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, cast

import uvloop

MALLOC = "EVERRAM_BENCHMARK_MALLOC"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
if MALLOC in os.environ:  # before grpc is imported
    _libc = ctypes.CDLL(None)
    if not _libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or not _libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1):
        raise OSError("malloc takes no advice here")

from everram.runtime.channel.contract import Access, QueuePair  # noqa: E402
from everram.runtime.channel.frames import Identity  # noqa: E402
from everram.runtime.channel.host_channel import HostChannel, Reach  # noqa: E402
from everram.runtime.channel.tcp_framing import Line  # noqa: E402
from everram.runtime.memory import memfd  # noqa: E402
from everram.runtime.memory.mapped import Mapped  # noqa: E402
from everram.runtime.production.memory import KeptMemory  # noqa: E402

REGION_BYTES = 64 << 20
SIZES = {"64KiB": (64 << 10, 400), "1MiB": (1 << 20, 40), "64MiB": (64 << 20, 1)}
"""Bytes of one write, and writes a round."""
ROUNDS = 15
SMALL_BYTES, SMALL_WRITES = 4096, 5_000
TCP_SMALL_WRITES = 500
BELL_ROUNDS = 500
GRPC_SIZES = {"1MiB": (1 << 20, 64), "64MiB": (64 << 20, 1)}
GRPC_ROUNDS = 7
RAW_CHUNK_BYTES = 1 << 20
METHOD = "/benchmark/Put"


class _KeepsOnly:
    """A machine that does nothing but keep descriptors."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    async def keep(self, name: str, fd: int) -> None:
        self.kept[name] = fd


async def _open(folder: str, name: str, *, checksums: bool = True) -> tuple[KeptMemory, HostChannel]:
    memory = KeptMemory(cast(Any, _KeepsOnly()), 1 << 30)
    me = Identity("benchmark", name, name)
    reach = Reach(f"{folder}/{name}.ch", token="benchmark", line=Line(checksums))
    return memory, await HostChannel.open(memory, os.urandom, me, reach)


# -- the other processes


async def own(folder: str) -> None:
    """The owner: answers each ring with a one-sided write of its own, and else sleeps."""
    memory, channel = await _open(folder, "owner")
    await memory.create("m", REGION_BYTES)
    region = channel.register("m", 0, REGION_BYTES, Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC)
    rung = asyncio.Event()
    bell = channel.receive(rung.set)
    print(json.dumps({"rkey": region.rkey, "bell": bell, "address": channel.address}), flush=True)
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        return
    back = json.loads(line)
    pair = await channel.connect("peer", back["address"])
    while True:
        await rung.wait()
        rung.clear()
        await pair.write_with_immediate(back["rkey"], 0, b"12345678", back["bell"])


def receive_raw(_: str) -> None:
    """Takes rounds of REGION_BYTES into memory of its own, and acknowledges each with a byte."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sock, _ = listener.accept()
    target = memoryview(bytearray(REGION_BYTES))
    while True:
        at = 0
        while at < REGION_BYTES:
            count = sock.recv_into(target[at : at + RAW_CHUNK_BYTES])
            if not count:
                return
            at += count
        sock.sendall(b"x")


async def serve_grpc(_: str) -> None:
    """Takes payloads by unary calls, into memory of its own: what the caller wants is that they lie there."""
    import grpc.aio

    from everram.runtime.contracts.host_pb2 import EchoMessage

    target = memoryview(bytearray(REGION_BYTES))

    async def put(request: EchoMessage, context: Any) -> EchoMessage:
        target[: len(request.payload)] = request.payload
        return EchoMessage()

    class Handler(grpc.GenericRpcHandler):
        def service(self, call: grpc.HandlerCallDetails) -> Any:
            if call.method != METHOD:
                return None
            return grpc.unary_unary_rpc_method_handler(put, EchoMessage.FromString, EchoMessage.SerializeToString)

    server = grpc.aio.server(options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


_GRPC_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def call_grpc(port: str) -> None:
    """Puts as many bytes as often as each line asks for, and says how long it took."""
    import grpc.aio

    from everram.runtime.contracts.host_pb2 import EchoMessage

    data = os.urandom(REGION_BYTES)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_GRPC_OPTIONS) as channel:
        put: Any = channel.unary_unary(METHOD, EchoMessage.SerializeToString, EchoMessage.FromString)
        print("ready", flush=True)
        for line in iter(sys.stdin.readline, ""):
            size_bytes, count = json.loads(line)
            payload = data[:size_bytes]
            start = time.perf_counter()
            for _ in range(count):
                await put(EchoMessage(payload=payload))
            print(time.perf_counter() - start, flush=True)


@contextmanager
def _process(role: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, role, argument]
    environment = dict(os.environ, **({MALLOC: "1"} if role.endswith("grpc") else {}))
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


# -- measuring


def run() -> dict[str, Any]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        with _process("own", folder) as owner:
            measured = uvloop.run(_measure_shared_memory(folder, owner))
        with (
            _process("own", folder) as owner,
            _process("receive_raw", "") as raw,
            _process("serve_grpc", "") as served,
            _process("call_grpc", str(_line(served)["port"])) as caller,
        ):
            measured |= uvloop.run(_measure_tcp(folder, owner, raw, caller))
    return measured | {"load_average_before": round(load, 1)}


async def _measure_shared_memory(folder: str, owner: subprocess.Popen[str]) -> dict[str, Any]:
    assert owner.stdin is not None
    told = _line(owner)
    memory, channel = await _open(folder, "peer")
    pair = await channel.connect("owner", told["address"])
    assert pair.carrier == "shm"
    ratios = {}
    data = os.urandom(REGION_BYTES)
    descriptor = memfd.create("copy", REGION_BYTES)
    target = Mapped(descriptor, REGION_BYTES, populate=True)
    os.close(descriptor)
    await pair.write(told["rkey"], 0, data)
    for name, (size_bytes, count) in SIZES.items():
        ratios[name] = round(await _ratio(pair, told["rkey"], target, memoryview(data)[:size_bytes], count), 3)
    rkey, small, word = told["rkey"], data[:SMALL_BYTES], data[:8]
    small_us = await _per_call_us(lambda: pair.write(rkey, 0, small), SMALL_WRITES)
    word_us = await _per_call_us(lambda: pair.write(rkey, 0, word), SMALL_WRITES)
    cas_us = await _per_call_us(lambda: pair.compare_and_swap(rkey, 0, 1, 2), SMALL_WRITES)
    await memory.create("back", 4096)
    rung = asyncio.Event()
    back = {
        "rkey": channel.register("back", 0, 4096, Access.REMOTE_WRITE).rkey,
        "bell": channel.receive(rung.set),
        "address": channel.address,
    }
    print(json.dumps(back), file=owner.stdin, flush=True)

    async def there_and_back() -> None:
        rung.clear()
        await pair.write_with_immediate(told["rkey"], 0, data[:256], told["bell"])
        await rung.wait()

    bell_us = await _per_call_us(there_and_back, BELL_ROUNDS)
    channel.close()
    target.close()
    return {
        "shm_vs_memcpy": ratios,
        "shm_4k_us": round(small_us, 2),
        "shm_8_us": round(word_us, 2),
        "shm_bell_round_trip_us": round(bell_us, 1),
        "cas_us": round(cas_us, 2),
    }


async def _measure_tcp(
    folder: str, owner: subprocess.Popen[str], raw: subprocess.Popen[str], caller: subprocess.Popen[str]
) -> dict[str, Any]:
    told = _line(owner)
    _, channel = await _open(folder, "peer")
    address = " ".join(word for word in told["address"].split() if word.startswith("tcp:"))
    pair = await channel.connect("owner", address)
    assert pair.carrier == "tcp"
    _, other = await _open(folder, "fast", checksums=False)
    unsummed = await other.connect("owner", address)
    rkey, data = told["rkey"], os.urandom(REGION_BYTES)
    plain = socket.create_connection(("127.0.0.1", _line(raw)["port"]))
    assert caller.stdout is not None and caller.stdin is not None
    assert caller.stdout.readline() == "ready\n"

    def send_raw() -> None:
        plain.sendall(data)
        assert plain.recv(1) == b"x"

    def call_grpc(size_bytes: int, count: int) -> float:
        print(json.dumps([size_bytes, count]), file=caller.stdin, flush=True)
        return float(caller.stdout.readline()) if caller.stdout is not None else 0.0

    await pair.write(rkey, 0, data)
    await unsummed.write(rkey, 0, data)
    send_raw()
    ours, bare, theirs = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        send_raw()
        middle = time.perf_counter()
        await pair.write(rkey, 0, data)
        theirs.append(middle - start)
        ours.append(time.perf_counter() - middle)
        start = time.perf_counter()
        await unsummed.write(rkey, 0, data)
        bare.append(time.perf_counter() - start)
    plain.close()
    other.close()
    ratios = {}
    for name, (size_bytes, count) in GRPC_SIZES.items():
        piece, channel_s, grpc_s = memoryview(data)[:size_bytes], [], [call_grpc(size_bytes, count)]
        grpc_s.clear()  # its first round warms it up
        for _ in range(GRPC_ROUNDS):
            grpc_s.append(call_grpc(size_bytes, count))
            start = time.perf_counter()
            for number in range(count):
                await pair.write(rkey, number * size_bytes, piece)
            channel_s.append(time.perf_counter() - start)
        ratios[name] = round(median(grpc_s) / median(channel_s), 2)
    small = data[:SMALL_BYTES]
    write_us = await _per_call_us(lambda: pair.write(rkey, 0, small), TCP_SMALL_WRITES)
    read_us = await _per_call_us(lambda: pair.read(rkey, 0, SMALL_BYTES), TCP_SMALL_WRITES)
    cas_us = await _per_call_us(lambda: pair.compare_and_swap(rkey, 0, 1, 2), TCP_SMALL_WRITES)
    channel.close()
    return {
        "tcp_vs_raw": round(median(theirs) / median(ours), 3),
        "tcp_no_checksums_vs_raw": round(median(theirs) / median(bare), 3),
        "tcp_vs_grpc": ratios,
        "tcp_64MiB_mb_per_s": round(REGION_BYTES / 1e6 / median(ours)),
        "tcp_4k_write_us": round(write_us, 1),
        "tcp_4k_read_us": round(read_us, 1),
        "tcp_cas_us": round(cas_us, 1),
    }


async def _ratio(pair: QueuePair, rkey: int, target: Mapped, data: memoryview, count: int) -> float:
    """Throughput of the queue pair's writes over that of plain copies, in turns, so that both meet the same weather."""
    ours, plain = [], []
    step = len(data)
    places = max(1, REGION_BYTES // step)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for number in range(count):
            target.view[number % places * step : (number % places + 1) * step] = data
        middle = time.perf_counter()
        for number in range(count):
            await pair.write(rkey, number % places * step, data)
        plain.append(middle - start)
        ours.append(time.perf_counter() - middle)
    return median(plain) / median(ours)


async def _per_call_us(call: Callable[[], Awaitable[Any]], count: int) -> float:
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            await call()
        took.append((time.perf_counter() - start) / count * 1e6)
    return median(took)


ROLES: dict[str, Callable[[str], Any]] = {
    "own": own,
    "receive_raw": receive_raw,
    "serve_grpc": serve_grpc,
    "call_grpc": call_grpc,
}

if __name__ == "__main__":
    role = ROLES[sys.argv[1]]
    if asyncio.iscoroutinefunction(role):
        uvloop.run(role(sys.argv[2]))
    else:
        role(sys.argv[2])
