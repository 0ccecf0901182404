"""The cluster's files for a program that blocks: a loop in a thread of its own, begun at the first use.

    files = Blocking()
    data = files.call(lambda files: files.list("a/b"))

A forked child has no such thread. It may begin its own only if its parent had none yet: gRPC does not survive a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
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

END_TIMEOUT_S = 5.0


class Blocking:
    """See the module. Which cluster it is, and through which host, stands in the environment of the program."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: as the program calls the cluster's files, for errors."""
        self._prefix = prefix
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._cluster: Cluster | None = None
        self._files: Files | None = None
        self._forked = self._ended = False
        os.register_at_fork(after_in_child=self._on_fork)

    def call(self, act: Callable[[Files], Awaitable[T]], path: str = "") -> T:
        """Its result. What the cluster refuses is raised as OSError."""
        if self._forked:
            raise OSError(errno.ENOTSUP, "a forked child cannot use the cluster's files: start it by spawn")
        if self._ended:
            raise OSError(errno.EBADF, "the program ends, and its connection has ended before")
        try:
            with self._lock:
                loop = self._loop or self._begin()
            return asyncio.run_coroutine_threadsafe(self._act(act), loop).result()
        except EverramError as error:
            raise OSError(errno_of(error), error.message, f"{self._prefix}/{path}") from None

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="everram", daemon=True)
        self._thread.start()
        return self._loop

    def end(self) -> None:
        """When the program ends: an interpreter cannot end around a connection."""
        self._ended = True
        if self._loop is None or self._thread is None or self._forked:
            return
        if self._cluster is not None:
            with contextlib.suppress(EverramError, TimeoutError):
                asyncio.run_coroutine_threadsafe(self._cluster.close(), self._loop).result(END_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_TIMEOUT_S)

    async def _act(self, act: Callable[[Files], Awaitable[T]]) -> T:
        if self._files is None:
            self._cluster = self._cluster or await Cluster.connect(dir=os.environ.get("EVERRAM_FS_CLUSTER"))
            self._files = await self._cluster.files(os.environ.get("EVERRAM_FS_THROUGH", ""))
        return await act(self._files)

    def _on_fork(self) -> None:
        self._forked = self._loop is not None
        self._lock = threading.Lock()
