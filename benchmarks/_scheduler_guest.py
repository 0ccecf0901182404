"""A guest of `benchmarks/scheduler.py`: works on its volatile memory, verifies every byte that it reads, and counts.

argv: socket, memory, table and report descriptors, pages, workload. Workloads are named in `WORKLOADS`. The report
has its operations, and from the second page on a byte for each page: 1 while the workload means to use it all the
time. That is what is true of a page, whatever the guest's library or its host make of it.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
import zlib
from collections.abc import Callable

from everram.runtime.formats.page_classes import PageClasses
from everram.runtime.guest import agent
from everram.runtime.guest.volatile import Block, Volatile
from everram.runtime.memory import userfaultfd
from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.memory.mapped import Mapped
from everram.runtime.memory.userfaultfd import Feature

OBJECT_BYTES = 16384
STORAGE_S = 0.004
"""Of one access to storage, a disk with moving parts or a busy one in the network: what getting an object of a cache
again costs, and what reading the swap file costs."""
FILL = 0.97
"""Of its memory, that a guest uses."""
THINK_S = 0.0002
"""After each operation: what a guest does besides."""
WORKLOADS = {
    "cache-heavy": "a cache in 97 % of its memory; 99 % of gets to a fifth of the keys; a miss is an access to storage",
    "anonymous-heavy": "blocks in 97 % of its memory; 99.8 % of accesses to half of them; a tenth of them store",
    "mixed": "half as anonymous-heavy, half as cache-heavy",
    "mostly free": "an eighth of its memory all the time; now and then 60 % more is filled, verified and freed again",
    "idle": "used 97 % of its memory once, and does nothing any more",
    "freed": "used 97 % of its memory once, and freed it",
}
"""In objects of 16 KiB."""


def content(number: int) -> bytes:
    return (number * 2654435761 & 0xFFFFFFFF).to_bytes(4, "little") * (OBJECT_BYTES // 4)


SUMS: dict[int, int] = {}


def check(number: int, data: bytes) -> None:
    if number not in SUMS:
        SUMS[number] = zlib.crc32(content(number))
    if zlib.crc32(data) != SUMS[number]:
        raise AssertionError(f"object {number} is not what was stored")


class Truth:
    """Which pages are in use, as only the workload can know."""

    def __init__(self, report: Mapped) -> None:
        self._view = report.view

    def tell(self, block: Block, *, used: bool) -> None:
        for first, count in block.runs:
            self._view[PAGE_BYTES + first : PAGE_BYTES + first + count] = bytes((used,)) * count


class Blocks:
    def __init__(self, memory: Volatile, count: int, hot: float, dice: random.Random, truth: Truth) -> None:
        self.blocks: list[Block] = []
        self.hot, self.dice = max(1, int(count * hot)), dice
        for number in range(count):
            self.blocks.append(memory.allocate(OBJECT_BYTES))
            self.blocks[number].store(0, content(number))
            truth.tell(self.blocks[number], used=number < self.hot)

    def __call__(self) -> None:
        hot = self.dice.random() < 0.998
        number = self.dice.randrange(self.hot) if hot else self.dice.randrange(len(self.blocks))
        check(number, self.blocks[number].load())
        if self.dice.random() < 0.1:
            self.blocks[number].store(0, content(number))


class Cached:
    def __init__(self, memory: Volatile, keys: int, dice: random.Random, truth: Truth) -> None:
        self.cache, self.keys, self.dice, self.truth = memory.cache(), keys, dice, truth
        for key in range(keys):
            self.put(key)

    def put(self, key: int) -> None:
        if self.cache.put(key, content(key)):
            self.truth.tell(self.cache._clean[key], used=key < self.keys // 5)

    def __call__(self) -> None:
        part = self.keys // 5 if self.dice.random() < 0.99 else self.keys
        key = self.dice.randrange(part)
        data = self.cache.get(key)
        if data is None:
            time.sleep(STORAGE_S)
            data = content(key)
            self.put(key)
        check(key, data)


class Bursts:
    """A job that comes now and then: fills memory, verifies it, frees it; then nothing for half as long."""

    def __init__(self, memory: Volatile, objects: int, truth: Truth) -> None:
        self.memory, self.objects, self.blocks, self.pause, self.truth = memory, objects, list[Block](), 0, truth

    def __call__(self) -> None:
        if self.pause:
            self.pause -= 1
        elif len(self.blocks) < self.objects:
            self.blocks.append(self.memory.allocate(OBJECT_BYTES))
            self.truth.tell(self.blocks[-1], used=True)
            self.blocks[-1].store(0, content(len(self.blocks)))
        else:
            for number, block in enumerate(self.blocks, 1):
                check(number, block.load())
                self.truth.tell(block, used=False)
                self.memory.free(block)
            self.blocks, self.pause = [], self.objects


def work(memory: Volatile, workload: str, truth: Truth) -> list[Callable[[], None]]:
    dice, objects = random.Random(workload), int(memory.size_bytes * FILL) // OBJECT_BYTES
    if workload == "cache-heavy":
        return [Cached(memory, objects, dice, truth)]
    if workload == "anonymous-heavy":
        return [Blocks(memory, objects, 0.5, dice, truth)]
    if workload == "mixed":
        return [Blocks(memory, objects // 2, 0.5, dice, truth), Cached(memory, objects // 2, dice, truth)]
    if workload == "mostly free":
        return [Blocks(memory, objects // 8, 1.0, dice, truth), Bursts(memory, objects * 6 // 10, truth)]
    blocks = Blocks(memory, objects, 1.0, dice, truth)
    if workload == "freed":
        for block in blocks.blocks:
            memory.free(block)
    return []


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    memory_fd, table_fd, report_fd, pages = map(int, sys.argv[2:6])
    mapping = Mapped(memory_fd, pages * PAGE_BYTES)
    table = Mapped(table_fd, PageClasses.total_bytes(pages))
    report = Mapped(report_fd, PAGE_BYTES + -(-pages // PAGE_BYTES) * PAGE_BYTES)
    uffd = userfaultfd.make()
    userfaultfd.handshake(uffd, Feature.PAGEFAULT_FLAG_WP | Feature.WP_SHMEM | Feature.MISSING_SHMEM)
    socket.send_fds(channel, [json.dumps({"address": mapping.address}).encode()], [uffd])
    channel.recv(10)
    memory = Volatile(mapping, PageClasses.open(table))
    agent.start(memory, table.address)
    steps = work(memory, sys.argv[6], Truth(report))
    channel.send(b"ready")
    count = 0
    while steps:
        for step in steps:
            step()
            count += 1
            time.sleep(THINK_S)
        report.store_u64(0, count)
    channel.recv(10)


if __name__ == "__main__":
    main()
