"""One-sided writes into another process's memory, against a plain copy between two mappings of this process.

The owner is a process of its own that does nothing meanwhile; the peer writes through its queue pair. Sources are the
same for both, and both have touched their pages before.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, cast

import uvloop

from everram.runtime.channel.contract import Access, QueuePair
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.shared_memory import SharedMemoryChannel
from everram.runtime.memory import memfd
from everram.runtime.memory.mapped import Mapped
from everram.runtime.production.memory import KeptMemory

REGION_BYTES = 64 << 20
SIZES = {"64KiB": (64 << 10, 400), "1MiB": (1 << 20, 40), "64MiB": (64 << 20, 1)}
"""Bytes of one write, and writes a round."""
ROUNDS = 15
SMALL_BYTES, SMALL_WRITES = 4096, 5_000
BELL_ROUNDS = 500


class _KeepsOnly:
    """A machine that does nothing but keep descriptors."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    async def keep(self, name: str, fd: int) -> None:
        self.kept[name] = fd


async def _open(folder: str, name: str) -> tuple[KeptMemory, SharedMemoryChannel]:
    memory = KeptMemory(cast(Any, _KeepsOnly()), 1 << 30)
    me = Identity("benchmark", name, name)
    return memory, await SharedMemoryChannel.open(memory, os.urandom, me, f"{folder}/{name}.ch")


async def own(folder: str) -> None:
    """The owner: answers each ring with a one-sided write of its own, and else sleeps."""
    memory, channel = await _open(folder, "owner")
    await memory.create("m", REGION_BYTES)
    region = channel.register("m", 0, REGION_BYTES, Access.REMOTE_WRITE | Access.REMOTE_READ)
    rung = asyncio.Event()
    bell = channel.receive(rung.set)
    print(json.dumps({"rkey": region.rkey, "bell": bell}), flush=True)
    back = json.loads(await asyncio.to_thread(sys.stdin.readline))
    pair = await channel.connect("peer", f"shm:{folder}/peer.ch")
    while True:
        await rung.wait()
        rung.clear()
        await pair.write_with_immediate(back["rkey"], 0, b"12345678", back["bell"])


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        arguments = [sys.executable, __file__, folder]
        owner = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            return uvloop.run(_measure(folder, owner))
        finally:
            owner.kill()
            owner.communicate()


async def _measure(folder: str, owner: subprocess.Popen[str]) -> dict[str, Any]:
    assert owner.stdin is not None and owner.stdout is not None
    told = json.loads(owner.stdout.readline())
    memory, channel = await _open(folder, "peer")
    pair = await channel.connect("owner", f"shm:{folder}/owner.ch")
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
    await memory.create("back", 4096)
    rung = asyncio.Event()
    back = {"rkey": channel.register("back", 0, 4096, Access.REMOTE_WRITE).rkey, "bell": channel.receive(rung.set)}
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


async def _per_call_us(call: Callable[[], Awaitable[None]], count: int) -> float:
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            await call()
        took.append((time.perf_counter() - start) / count * 1e6)
    return median(took)


if __name__ == "__main__":
    uvloop.run(own(sys.argv[1]))
