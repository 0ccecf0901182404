"""The cluster's files for a program that blocks: a loop in a thread of its own, begun at the first use.

    files = Blocking()
    data = files.call(lambda files: files.list("a/b"))

A forked child has no such thread. It may begin its own only if its parent had none yet: gRPC does not survive a fork.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

from everram.runtime.client.cluster import Cluster
from everram.runtime.client.files import Files
from everram.runtime.errors import EverramError
from everram.runtime.fuse.errors import errno_of

T = TypeVar("T")


class Blocking:
    """See the module. Which cluster it is, and through which host, stands in the environment of the program."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: as the program calls the cluster's files, for errors."""
        self._prefix = prefix
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._files: Files | None = None
        self._forked = False
        os.register_at_fork(after_in_child=self._on_fork)

    def call(self, act: Callable[[Files], Awaitable[T]], path: str = "") -> T:
        """Its result. What the cluster refuses is raised as OSError."""
        if self._forked:
            raise OSError(errno.ENOTSUP, "a forked child cannot use the cluster's files: start it by spawn")
        try:
            with self._lock:
                loop = self._loop or self._begin()
            return asyncio.run_coroutine_threadsafe(self._act(act), loop).result()
        except EverramError as error:
            raise OSError(errno_of(error), error.message, f"{self._prefix}/{path}") from None

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="everram", daemon=True).start()
        return self._loop

    async def _act(self, act: Callable[[Files], Awaitable[T]]) -> T:
        if self._files is None:
            cluster = await Cluster.connect(dir=os.environ.get("EVERRAM_FS_CLUSTER"))
            self._files = await cluster.files(os.environ.get("EVERRAM_FS_THROUGH", ""))
        return await act(self._files)

    def _on_fork(self) -> None:
        self._forked = self._loop is not None
        self._lock = threading.Lock()
