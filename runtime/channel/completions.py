"""A completion queue: where the ends of posted work requests appear, in order, until somebody polls them.

completions = CompletionQueue()
pair.post(WorkRequest(...), completions)
for completion in await completions.wait(): ...
"""

from __future__ import annotations

import asyncio
from collections import deque

from everram.runtime.channel.contract import ChannelError, Completion, Opcode, Status, WorkRequest

POLL_MAX = 64


class CompletionQueue:
    """May be used with several queue pairs, by one waiter at a time."""

    def __init__(self) -> None:
        self._ended: deque[Completion] = deque()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ended)

    def push(self, completion: Completion) -> None:
        """For carriers."""
        self._ended.append(completion)
        self._filled.set()

    def poll(self, limit: int = POLL_MAX) -> list[Completion]:
        """The oldest, without waiting."""
        found = [self._ended.popleft() for _ in range(min(limit, len(self._ended)))]
        if not self._ended:
            self._filled.clear()
        return found

    async def wait(self, limit: int = POLL_MAX) -> list[Completion]:
        """At least one."""
        await self._filled.wait()
        return self.poll(limit)


def completed(request: WorkRequest, result: bytes | int | ChannelError | None) -> Completion:
    """The completion of a request that ended in `result`."""
    if isinstance(result, ChannelError):
        return Completion(request.wr_id, request.opcode, result.status, message=result.message)
    if request.opcode is Opcode.READ:
        assert isinstance(result, bytes)
        return Completion(request.wr_id, request.opcode, Status.SUCCESS, data=result)
    value = result if isinstance(result, int) else 0
    return Completion(request.wr_id, request.opcode, Status.SUCCESS, value=value)
