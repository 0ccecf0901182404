"""Keeps the embedded coordination server alive: started first, probed, replaced when it ends or does not answer (D17).

keeper.start()                    # before the event loop runs: it starts while everything else is imported
await keeper.run(announce, note)  # for ever, in a task
await keeper.stop()
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from everram.runtime.cluster.children import Child, Children
from everram.runtime.cluster.config import ClusterConfig
from everram.runtime.cluster.folders import Folders
from everram.runtime.coordination import directory
from everram.runtime.coordination.api import Compare, Put, Range, Relation, Target
from everram.runtime.errors import DataLoss, EverramError, Unavailable
from everram.runtime.machine.tree import MACHINE_MARK

if TYPE_CHECKING:
    from everram.runtime.coordination.client import CoordinationClient

PROBE_INTERVAL_S = 0.1
PROBE_TIMEOUT_S = 0.5
"""Without an answer for so long it is stuck, and is replaced."""
START_TIMEOUT_S = 10.0
"""For its first answer: Python's start and the store's recovery, on a loaded computer."""
STOP_GRACE_S = 2.0
RESTART_PAUSES_S = (0.0, 0.1, 0.5, 1.0)
"""Before the first, second, ... start in a row that never came to answer. A single death is made good at once."""
NAME, LOG_NAME = "coordination", "coordination.log"
LAST_BYTES = 4096
"""Of the log: enough for its last line."""

log = logging.getLogger("everram.supervisor")


class CoordinationKeeper:
    def __init__(self, config: ClusterConfig, folders: Folders, children: Children, environ: Mapping[str, str]) -> None:
        self._config = config
        self._folders = folders
        self._children = children
        self._environ = {**environ, MACHINE_MARK: f"{config.cluster_id}/{NAME}"}
        self._child: Child | None = None
        self._client: CoordinationClient | None = None
        self._stop_asked = asyncio.Event()
        self.state = "starting"
        self.reason = ""
        self.restarts = 0
        self.ready = asyncio.Event()

    @property
    def address(self) -> str:
        return f"unix:{self._folders.coordination_socket}"

    @property
    def pid(self) -> int:
        return self._child.pid if self._child and self._child.exit_status is None else 0

    @property
    def client(self) -> CoordinationClient:
        """The supervisor's own client. Made on first use: importing gRPC takes longer than starting a server."""
        if self._client is None:
            from everram.runtime.coordination.client import CoordinationClient

            self._client = CoordinationClient(self.address)
        return self._client

    def start(self) -> None:
        """Raises an EverramError if no process can be started."""
        module = "everram.runtime.coordination.server"
        arguments = ["--socket", str(self._folders.coordination_socket), "--data", str(self._folders.coordination)]
        argv = [sys.executable, "-P", "-m", module, *arguments]
        output = self._folders.coordination / LOG_NAME
        self._child = self._children.start(NAME, argv, self._environ, output)
        self.state = "starting"

    async def run(self, announce: Callable[[str], None], note: Callable[[str], None]) -> None:
        """`announce` tells progress, `note` what is in its way. Raises DataLoss if the store is another cluster's."""
        fruitless = 0
        while not self._stop_asked.is_set():
            child = self._child
            assert child is not None, "start() comes first"
            answered = await self._watch(child, announce)
            if self._stop_asked.is_set():
                return
            fruitless = 0 if answered else fruitless + 1
            child.send(signal.SIGKILL)
            await child.ended.wait()
            self.state, self.reason = "down", f"{child.how_it_ended()}; see {self._folders.coordination}"
            log.warning("coordination ended (%s); starting it again", child.how_it_ended())
            if fruitless == 1:  # it may never come to answer, and somebody waits for it
                note(f"coordination does not start, and is started again and again: {self._last_words()}")
            await asyncio.sleep(RESTART_PAUSES_S[min(fruitless, len(RESTART_PAUSES_S) - 1)])
            self.restarts += 1
            self.start()

    def _last_words(self) -> str:
        """What the server wrote last, or where it would have."""
        path = self._folders.coordination / LOG_NAME
        try:
            lines = path.read_bytes()[-LAST_BYTES:].decode(errors="replace").split("\n")
        except OSError:
            lines = []
        return next((line for line in reversed(lines) if line.strip()), f"see {path}")

    async def _watch(self, child: Child, announce: Callable[[str], None]) -> bool:
        """Until it has ended or is stuck; whether it ever answered."""
        loop = asyncio.get_running_loop()
        until = loop.time() + START_TIMEOUT_S
        answered = False
        while not child.ended.is_set() and not self._stop_asked.is_set():
            if await self._probe(PROBE_TIMEOUT_S):
                if not answered:
                    await self._claim()
                    self.state, self.reason, answered = "up", "", True
                    announce("coordination is ready")
                    self.ready.set()
            elif not child.ended.is_set() and (answered or loop.time() >= until):
                log.warning("coordination did not answer for %g s", PROBE_TIMEOUT_S)
                return answered
            await _either(child.ended, PROBE_INTERVAL_S)
        return answered

    async def _probe(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.client.range(Range(directory.CLUSTER))
        except (EverramError, TimeoutError):
            return False
        return True

    async def _claim(self) -> None:
        """Write the cluster's identity into a new store, or check that of an old one."""
        value = directory.encode({"cluster_id": self._config.cluster_id, "name": self._config.name})
        absent = Compare(directory.CLUSTER, Target.CREATE, Relation.EQUAL, 0)
        read = Range(directory.CLUSTER)
        try:
            result = await self.client.txn([absent], [Put(directory.CLUSTER, value)], [read])
        except Unavailable:
            return  # it has just died; the next life will be asked again
        if not result.succeeded:
            found = directory.decode(result.ranges[0][0].value).get("cluster_id")
            if found != self._config.cluster_id:
                raise DataLoss(
                    f"{self._folders.coordination} belongs to another cluster ({found}): put the right folder back, "
                    f"or erase this cluster with `everram down --discard`"
                )

    async def wait_ready(self) -> None:
        await self.ready.wait()

    async def stop(self) -> None:
        """Returns when the process has ended."""
        self._stop_asked.set()
        self.state = "stopping"
        if self._client is not None:
            await self._client.close()
        if self._child is not None:
            await self._child.end(STOP_GRACE_S)
        self.state = "down"


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
