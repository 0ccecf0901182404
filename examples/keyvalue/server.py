"""The server: connections, one transaction for all requests that were read together, answers when they are promised.

    await Server(me, region, ack="replicated").serve(port)

The way of requests: `data_received` -> executed, in what is kept aside -> one commit for all that were read together
-> with `replicated` once the copies hold that -> their answers leave, in one write. Nothing of that waits for other
connections, so that while one client takes its answers the next one's requests are executed.

With `replicated` reads wait too: they may have seen what is not replicated yet, and an answer must not show what a
failover could take back. No answer overtakes another one.

What cannot be promised in time is unknown, neither done nor refused: the connection is closed without an answer.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from typing import NamedTuple, cast

from everram.examples.keyvalue import commands
from everram.examples.keyvalue.registry import REDIS_VERSION, Session
from everram.examples.keyvalue.resp import Parser, error
from everram.examples.keyvalue.store import Store
from everram.runtime import guest

REPLICATED_TIMEOUT_S = 10.0
"""Longer than a failover of a copy's host, shorter than clients wait."""
ROOM_WAIT_S, ROOM_POLL_S = 10.0, 0.001
"""For a copy to catch up while the log is full."""
SWEEP_S, SWEEP_CHAINS = 0.1, 200
REQUEST_BYTES_MAX = 64 << 20
BACKLOG_BYTES_MAX = 1 << 20
"""Of answers that a client has yet to get: until then nothing more is read from it."""
RECORD_BYTES = 256
"""Of a transaction's record that are not stores, generously."""


class Answers(NamedTuple):
    """To requests of one connection that were read together."""

    connection: Connection
    data: bytes
    ends: bool
    """Close the connection then."""


class Promise(NamedTuple):
    lsn: int
    deadline_s: float
    answers: list[Answers]


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = Parser(REQUEST_BYTES_MAX, REQUEST_BYTES_MAX)
        self._session = Session(server.store, server.next_client_id(), server.about)
        self._transport: asyncio.Transport | None = None
        self._waiting: list[list[bytes]] = []
        """Requests that were read and not executed, because a commit has to come first."""
        self._owed_bytes = 0
        """Of answers that are not promised yet."""
        self._slow = self._paused = self._ended = self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._server.connections.add(self)

    def connection_lost(self, reason: Exception | None) -> None:
        self._transport = None
        self._waiting = []
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        requests = self._parser.feed(data)
        if self._waiting:
            self._waiting += requests
        else:
            self._execute(requests)

    def eof_received(self) -> bool:
        """Who has said all gets all answers yet."""
        self._eof = True
        return self._owes

    @property
    def _owes(self) -> bool:
        return bool(self._owed_bytes or self._waiting)

    def go_on(self) -> None:
        """A commit has made room."""
        requests, self._waiting = self._waiting, []
        self._execute(requests)

    def _execute(self, requests: list[list[bytes]]) -> None:
        server, session, run = self._server, self._session, commands.run
        store, full = server.store, server.log_is_full
        replies: list[bytes] = []
        server.begin_batch()
        for number, request in enumerate(requests):
            if full or (number and store.crowded):
                self._waiting = requests[number:]
                server.crowd.append(self)
                break
            try:
                replies.append(run(session, request))
            except guest.LogFull:
                replies.append(error("ERR the log is full until a copy has caught up: try again"))
            except guest.GuestError as reason:
                server.stop(reason)
                return
            if session.ended:
                break
        ends = session.ended
        if self._parser.error and not self._waiting and not ends:
            replies.append(error(f"ERR {self._parser.error}"))
            ends = True
        if replies and not self._ended:
            self._ended = ends
            data = b"".join(replies)
            self._owed_bytes += len(data)
            server.end_batch(Answers(self, data, ends))
        if self._owed_bytes or self._waiting or self._paused or ends:
            self._regulate()

    def send(self, answers: Answers) -> None:
        self._owed_bytes -= len(answers.data)
        transport = self._transport
        if transport is None:
            return
        transport.write(answers.data)
        if answers.ends or (self._eof and not self._owes):
            transport.close()  # after what was written
        elif self._paused:
            self._regulate()

    def pause_writing(self) -> None:
        self._slow = True
        self._regulate()

    def resume_writing(self) -> None:
        self._slow = False
        self._regulate()

    def _regulate(self) -> None:
        """Read on from a client that takes its answers, and only from one that does."""
        pause = self._slow or self._ended or bool(self._waiting) or self._owed_bytes > BACKLOG_BYTES_MAX
        if pause is not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def abort(self) -> None:
        """End it without an answer."""
        if self._transport is not None:
            self._transport.abort()


class Server:
    """All connections, and the store. Raises RegionError if the region holds something else."""

    def __init__(self, me: guest.AsyncGuest, region: guest.Region, *, ack: str) -> None:
        self._me = me
        self._replicated = ack == "replicated"
        self.store = Store(me.begin, region, me.core.ring.capacity_bytes // 2 - RECORD_BYTES)
        self.about: dict[str, dict[str, object]] = {
            "Server": {
                "redis_version": REDIS_VERSION,
                "redis_mode": "standalone",
                "everram_guest": me.name,
                "everram_epoch": me.epoch,
                "everram_ack": ack,
                "tcp_port": me.port,
            },
            "Replication": {"role": "master", "connected_slaves": 0},
        }
        self.connections: set[Connection] = set()
        self.crowd: list[Connection] = []
        """Those with requests that wait for a commit."""
        self._client_ids = 0
        self._batch: list[Answers] = []
        self._room_deadline_s = 0.0
        """Until when the log may stay full; 0: it is not."""
        self._promises: deque[Promise] = deque()
        self._promised = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()

    def next_client_id(self) -> int:
        self._client_ids += 1
        return self._client_ids

    # -- a batch

    def begin_batch(self) -> None:
        self.store.now_ms = time.time_ns() // 1_000_000

    @property
    def log_is_full(self) -> bool:
        """What was executed last is not committed yet, and nothing more can be."""
        return self._room_deadline_s > 0

    def end_batch(self, answers: Answers | None) -> None:
        """Commit what was executed, and answer."""
        if answers is not None:
            self._batch.append(answers)
        if not self._room_deadline_s:
            self._commit()

    def _commit(self) -> None:
        core = self._me.core
        try:
            if not self.store.commit():
                core.check_lease()  # what was only read must not be answered by an incarnation that is over either
            waits = self._replicated and (bool(self._promises) or not core.replicated(core.lsn))
        except guest.LogFull:
            self._wait_for_room()
            return
        except guest.GuestError as reason:
            self.stop(reason)
            return
        self._room_deadline_s = 0.0
        batch, self._batch = self._batch, []
        if waits:
            self._promises.append(Promise(core.lsn, self._loop.time() + REPLICATED_TIMEOUT_S, batch))
            self._promised.set()
        else:
            for answers in batch:
                answers.connection.send(answers)
        if self.crowd:
            self._loop.call_soon(self._admit)

    def _admit(self) -> None:
        """There is room again for those that wait for it."""
        crowd, self.crowd = self.crowd, []
        for connection in crowd:
            connection.go_on()

    def _wait_for_room(self) -> None:
        now_s = self._loop.time()
        self._room_deadline_s = self._room_deadline_s or now_s + ROOM_WAIT_S
        if now_s < self._room_deadline_s:
            self._loop.call_later(ROOM_POLL_S, self._commit)
            return
        self.store.rollback()
        for connection in [answers.connection for answers in self._batch] + self.crowd:
            connection.abort()
        self._batch, self.crowd = [], []
        self._room_deadline_s = 0.0

    async def _keep_promises(self) -> None:
        """Send answers as soon as they are true wherever the guest may go on."""
        promises = self._promises
        while True:
            while promises:
                first = promises[0]
                try:
                    await self._me.wait_replicated(first.lsn, max(0.0, first.deadline_s - self._loop.time()))
                except guest.Timeout:
                    for answers in promises.popleft().answers:
                        answers.connection.abort()
                    continue
                for answers in promises.popleft().answers:
                    answers.connection.send(answers)
            self._promised.clear()
            await self._promised.wait()

    async def _sweep(self) -> None:
        """Delete what has expired and nobody asks for."""
        while True:
            await asyncio.sleep(SWEEP_S)
            if self.store.heap.expiring and not self.log_is_full:
                self.begin_batch()
                self.store.sweep(SWEEP_CHAINS)
                self.end_batch(None)

    # -- life

    def stop(self, reason: BaseException | None = None) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None) if reason is None else self._stopped.set_exception(reason)

    async def serve(self, port: int) -> None:
        """Serve clients until SIGTERM or SIGINT. Raises Fenced when another incarnation may serve, OSError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop)
        listener = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=1024)
        tasks = [self._loop.create_task(work()) for work in (self._keep_promises, self._sweep)]
        for task in tasks:
            task.add_done_callback(self._task_ended)
        print(f"{self._me.name}: {len(self.store)} keys; serving 127.0.0.1:{port}", flush=True)
        try:
            await self._stopped
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for connection in list(self.connections):
                connection.abort()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (reason := task.exception()):
            self.stop(reason)
