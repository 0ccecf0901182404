"""A guest's output: where a reader starts, and how it follows a growing file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from everram.runtime.contracts.hypervisor_pb2 import LogChunk, LogsRequest
from everram.runtime.environment import Logs

CHUNK_BYTES = 64 * 1024
"""Of one reply: well under gRPC's 4 MiB, and a screenful many times over."""
FOLLOW_INTERVAL_S = 0.1
"""How often a followed file is looked at: the guest writes it directly, and no event tells of it."""


async def read(logs: Logs, path: str, request: LogsRequest, ended: Callable[[], bool]) -> AsyncIterator[LogChunk]:
    """The output from where `request` asks on; with `follow` until the guest has ended and all of it is read."""
    offset = request.offset or await _tail_offset(logs, path, request.tail_lines)
    while True:
        # Asked before reading: what a guest wrote before it ended is then never missed.
        last = not request.follow or ended()
        while data := await logs.read(path, offset, CHUNK_BYTES):
            offset += len(data)
            yield LogChunk(data=data, offset=offset)
        if last:
            return
        await asyncio.sleep(FOLLOW_INTERVAL_S)


async def _tail_offset(logs: Logs, path: str, lines: int) -> int:
    """Where the last `lines` lines begin; 0 for all of it."""
    if not lines:
        return 0
    offset = await logs.size(path)
    wanted = lines + 1  # the newline before the first wanted line
    while offset > 0:
        start = max(0, offset - CHUNK_BYTES)
        block = await logs.read(path, start, offset - start)
        if not wanted_at_end(block, wanted):
            wanted -= block.count(b"\n")
            offset = start
            continue
        return start + nth_newline_from_end(block, wanted) + 1
    return 0


def wanted_at_end(block: bytes, newlines: int) -> bool:
    return block.count(b"\n") >= newlines


def nth_newline_from_end(block: bytes, n: int) -> int:
    """Index of the n-th newline counted from the end (1: the last)."""
    at = len(block)
    for _ in range(n):
        at = block.rindex(b"\n", 0, at)
    return at
