"""A local cluster of one's own, in a temporary folder; nothing of it is left afterwards, whatever happens.

A request to end (SIGTERM, a terminal that is closed) is taken as Ctrl-C is. If this process is killed, the cluster's
supervisor finds out and erases it.

async with temporary_cluster(Wishes(hosts=3), prefix="everram-demo-", tell=print) as cluster: ...
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from everram.runtime.cluster import launch
from everram.runtime.cluster.folders import Folders
from everram.runtime.cluster.remains import end_remains
from everram.runtime.errors import Unavailable

if TYPE_CHECKING:
    from everram.runtime.client import Cluster


@asynccontextmanager
async def temporary_cluster(
    wishes: launch.Wishes, *, prefix: str, tell: Callable[[str], None]
) -> AsyncIterator[Cluster]:
    from everram.runtime.client import Cluster

    state = Path(tempfile.mkdtemp(prefix=prefix))
    folders = Folders.of(None, str(state), os.environ)
    try:
        with _ending_as_by_ctrl_c():
            launch.prepare(folders, wishes)
            progress = launch.start(folders, temporary=True)
            try:
                took_s = await asyncio.to_thread(_until_ready, progress, tell)
                tell(f"a cluster of {wishes.hosts} hosts is ready after {took_s:.2f} s")
                async with await Cluster.connect(None, str(state)) as cluster:
                    yield cluster
            finally:
                await asyncio.shield(asyncio.to_thread(_end, progress, folders))
    finally:
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """Raises KeyboardInterrupt, like asyncio does for SIGINT. What is ignored (nohup) stays so."""
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), []
    assert task is not None

    def end(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread's loop
                loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        if told:
            raise KeyboardInterrupt from None
        raise


def _until_ready(progress: launch.Progress, tell: Callable[[str], None]) -> float:
    for step in progress:
        if step["kind"] == "ready":
            return float(step["seconds"])
        if step["kind"] == "note":
            tell(step["text"])
        if step["kind"] == "error":
            raise Unavailable(f"the cluster does not start: {step['text']}")
    raise Unavailable("the cluster does not start: its supervisor ended")


def _end(progress: launch.Progress, folders: Folders) -> None:
    """Nothing of it is worth saving, so it ends the way that cannot fail."""
    progress.kill()
    progress.wait()
    end_remains(folders)
    folders.remove_run()
    with progress:
        pass
