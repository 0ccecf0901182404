"""The asynchronous form of a guest: the same core, for programs on an event loop, and for simulated guests.

A commit never waits, so transactions are the blocking form's, usable in `async with` too; only waits differ.
"""

from __future__ import annotations

from everram.runtime.guest.errors import Timeout
from everram.runtime.guest.shell import POLL_S, Guest


class AsyncGuest(Guest):
    """What `attach_async` gives."""

    async def wait_replicated(self, lsn: int, timeout_s: float) -> None:  # type: ignore[override]
        """Return once everything before `lsn` is held by as many other hosts as were asked for (`--copies`).

        Raises Timeout (unknown, not failed), Fenced (stop).
        """
        import asyncio  # only here: loading it takes longer than all of this library, which most guests need alone

        try:
            async with asyncio.timeout(timeout_s):
                while not self.core.replicated(lsn):  # noqa: ASYNC110 - a word in shared memory has no event
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise Timeout(f"position {lsn} is not known to be replicated after {timeout_s:g} s: it may be") from error
