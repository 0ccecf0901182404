"""One other host: what is asked of it, what it asks, and the one stream that carries both.

The stream is opened when there is something to send, by whoever has it. If both open at once, the stream of the lower
host_id wins and the other is refused before it has carried anything. After the end of a stream the next one is opened
when there is something to send again, or at once while the peer is watched.

    idle -> connecting   something was queued, or it is watched
    connecting -> up     hello both ways (or the peer's own stream was taken)
    connecting -> down   no stream could be opened: what waits fails, the next try comes after the back-off
    up -> suspect        watched, and silent for too long; up again when it is heard
    up -> down           the stream ended: what was sent and not answered is unknown
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from everram.runtime.contracts import host_pb2, link_pb2
from everram.runtime.environment import HostAddress, LinkStream, Network
from everram.runtime.errors import EverramError, FailedPrecondition, Unavailable
from everram.runtime.tasks import TaskScope
from everram.runtime.transport.inbound import Inbound, Route
from everram.runtime.transport.link import LEAVING_SINCE, Heartbeat, Identity, LinkSession, Watch
from everram.runtime.transport.outbound import Control, Outbound, Steer

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 0.2
"""A restarted host is back within 0.5 s; asking for it five times a second costs nothing on one computer."""
OPEN_TIMEOUT_S = 1.0
"""From resolving the name to the peer's hello; a stopped process accepts connections and then says nothing."""
MAX_REFUSALS = 5
"""Refused streams in a row before what waits fails. A refusal means that the peer's own stream is about to arrive."""

SUCCESSOR_S = 5.0
"""What waits is not given up for so long after the peer has said that a successor follows it."""

Resolve = Callable[[str], Awaitable[HostAddress]]
"""A host's name to its address; raises NotFound."""

OnChange = Callable[[str, bool, str], None]
"""Called with the peer's name, whether it is suspect now, and why."""

log = logging.getLogger("everram.link")


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What all links of a host share."""

    me: Identity
    network: Network
    resolve: Resolve
    route: Route
    token: Callable[[], str]
    """A fresh identity for each stream."""
    scope: TaskScope
    need_ticks: Callable[[], None]
    """`Peer.tick` has to be called while `Peer.needs_ticks`."""


@dataclass(slots=True)
class Watching:
    """What was asked of a watched peer, and who is told."""

    watch: Watch
    heartbeat_s: float
    on_change: OnChange
    told_suspect: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Current:
    """The stream that carries everything now."""

    stream: LinkStream
    session: LinkSession
    opened: bool
    """By this host."""
    first: link_pb2.Batch | None = None
    """The acceptor's first batch, which came with its hello and may hold frames."""


class Peer:
    """One other host; `outbound` is the carrier of refs to it."""

    def __init__(self, host: str, parts: LinkParts) -> None:
        self.host = host
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._control = Control(self._wake)
        self.outbound = Outbound(host, self._control, self._wake)
        self._inbound = Inbound(host, parts.route, self._control, self._loop.time)
        self._handlers = self._frame_handlers()
        self._heartbeat = Heartbeat()
        self._watching: Watching | None = None
        self._heartbeat_news = False  # the peer has not been told yet what we want to hear
        self._current: Current | None = None
        self._last_session = ""  # of the last stream that carried anything
        self._opening = False
        self._connector: asyncio.Task[None] | None = None
        self._sleeper: asyncio.Future[None] | None = None  # the writer, while it has nothing to send
        self._writing = False  # a batch is being sent
        self._flushed: asyncio.Future[None] | None = None  # set while closing waits
        self._leaving_s = 0.0  # when the peer said that a successor follows it
        self._left: asyncio.Future[None] | None = None  # set while leaving waits for the peer's last ask
        self._closed = False
        self._sent = 0  # frames
        self._received = 0

    def _frame_handlers(self) -> dict[int, Callable[[link_pb2.Frame], None]]:
        kind, inbound, outbound = link_pb2.Frame, self._inbound, self.outbound
        return {
            kind.TELL: inbound.on_tell,
            kind.ASK: inbound.on_ask,
            kind.STREAM: inbound.on_stream,
            kind.CANCEL: inbound.on_cancel,
            kind.MORE: inbound.on_more,
            kind.REPLY: outbound.on_reply,
            kind.ITEM: outbound.on_item,
            kind.END: outbound.on_end,
            kind.ERROR: outbound.on_error,
            kind.LEAVING: self._on_leaving,
            kind.LEFT: self._on_left,
        }

    # Which stream.

    @property
    def _wanted(self) -> bool:
        return not self._closed and (len(self.outbound) > 0 or self._watching is not None)

    def _wake(self) -> None:
        """Something is queued."""
        if self._current is None:
            self._connect()
            return
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def _connect(self) -> None:
        if self._closed:
            self.outbound.unreachable(Unavailable("this host closes its links"))
        elif self._wanted and (self._connector is None or self._connector.done()):
            self._connector = self._parts.scope.start(self._keep_connected(), name=f"connect {self.host}")

    async def _keep_connected(self) -> None:
        """Open streams until nobody wants one, the peer's own has come, or this one ends with nothing left to do."""
        backoff_s, refusals = FIRST_BACKOFF_S, 0
        while self._wanted and self._current is None:
            try:
                opened = await self._open()
            except EverramError as error:
                refusals = refusals + 1 if isinstance(error, _Refused) else MAX_REFUSALS
                given_up = refusals >= MAX_REFUSALS and not self._awaits_successor()
                if given_up and self._current is None:
                    self._unreachable(error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                continue
            if opened is not None:
                backoff_s, refusals = FIRST_BACKOFF_S, 0
                await self._carry(opened)
                if not self.outbound.held:  # otherwise its successor listens already
                    await asyncio.sleep(backoff_s)

    async def _open(self) -> Current | None:
        """A new stream with hello both ways; None if the peer's own was taken meanwhile."""
        self._opening = True
        stream: LinkStream | None = None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                address = await self._parts.resolve(self.host)
                stream = await self._parts.network.connect(address)
                session = LinkSession(self._parts.me, self._parts.token(), replaces=self._last_session)
                first = await self._greet(stream, session)
            hello = session.peer
            if hello is not None and hello.host_id != address.host_id:
                who = f"host {hello.host} ({hello.host_id})"
                raise FailedPrecondition(
                    f"{who} answers at {address.address}, where the directory has {address.host_id}"
                )
            if self._current is not None:
                stream.close()
                return None
            return Current(stream, session, opened=True, first=first)
        except TimeoutError:
            _close(stream)
            raise Unavailable(f"host {self.host} gave no answer within {OPEN_TIMEOUT_S:g} s") from None
        except BaseException:
            _close(stream)
            raise
        finally:
            self._opening = False

    async def _greet(self, stream: LinkStream, session: LinkSession) -> link_pb2.Batch | None:
        await stream.send(session.encode(link_pb2.Batch()))
        try:
            data = await stream.receive()
        except Unavailable as error:
            raise _Refused(f"host {self.host} refused the stream: {error.message}") from error
        return session.decode(data)

    async def accept(self, stream: LinkStream, session: LinkSession) -> None:
        """Carry what the peer's own stream brings until it ends; return at once if it is refused."""
        hello = session.peer
        assert hello is not None, "a stream is accepted after its hello"
        if self._closed or not self._takes(hello):
            return
        await self._carry(Current(stream, session, opened=False))

    def _takes(self, hello: link_pb2.Hello) -> bool:
        """Whether the peer's stream takes the place of what there is."""
        mine_wins = self._parts.me.host_id < hello.host_id
        current = self._current
        if current is None:
            return not (self._opening and mine_wins)
        known = current.session.peer
        if known is None or known.incarnation != hello.incarnation:
            return True  # the peer has been restarted: its old stream is dead, whether we have seen that or not
        # The peer gave up what it knew; what it cannot know yet is our own stream, opened at the same time as this one.
        return not (current.opened and mine_wins) or hello.replaces == current.session.session

    # One stream.

    async def _carry(self, current: Current) -> None:
        """Read and write until the stream ends or another takes its place."""
        if self._current is not None:
            self._end(self._current, Unavailable(f"host {self.host} opened a new stream"))
        self._current, self._last_session = current, current.session.session
        self.outbound.held = False
        self._heartbeat = Heartbeat(sent_s=self._loop.time())
        self._heartbeat_news = self._watching is not None
        self._heard()
        writer = self._parts.scope.start(self._write(current), name=f"write {self.host}")
        try:
            await self._read(current)
        except EverramError as error:
            self._end(current, error)
        finally:
            self._end(current, Unavailable("the link was closed"))
            writer.cancel()
        if self._wanted:
            self._connect()

    def _end(self, current: Current, error: EverramError) -> None:
        """Everything that was on its way is unknown. Once per stream."""
        current.stream.close()
        if self._current is not current:
            return
        self._current, self._sleeper, self._writing = None, None, False
        self._tell_flushed()
        self._control.clear()
        self._inbound.broken()
        self.outbound.broken(error)
        self._on_left(link_pb2.Frame())
        if not self.outbound.held:  # it said that it would go, and who comes
            self._suspect(error.message)

    async def _read(self, current: Current) -> None:
        if current.first is not None:
            self._take(current.first)
        while self._current is current:
            batch = current.session.decode(await current.stream.receive())
            self._heard()
            if batch is not None:
                self._take(batch)

    def _take(self, batch: link_pb2.Batch) -> None:
        if batch.heartbeat_ms:
            self._heartbeat.interval_s = batch.heartbeat_ms / 1000
            self._parts.need_ticks()
        self._received += len(batch.frames)
        handlers = self._handlers
        for frame in batch.frames:
            handler = handlers.get(frame.kind)
            if handler is not None:  # else a kind of a newer version, which needs no answer
                handler(frame)

    async def _write(self, current: Current) -> None:
        """Everything that queued up during one send is the next batch."""
        first = not current.opened  # the acceptor's hello goes out at once
        try:
            while self._current is current:
                now_s = self._loop.time()
                batch = self._batch(now_s)
                if batch is None and not first:
                    self._writing = False
                    self._tell_flushed()
                    self._sleeper = self._loop.create_future()
                    await self._sleeper
                    continue
                first, self._writing = False, True
                self._heartbeat.sent(now_s)
                await current.stream.send(current.session.encode(batch or link_pb2.Batch()))
        except EverramError as error:
            self._end(current, error)

    def _tell_flushed(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _batch(self, now_s: float) -> link_pb2.Batch | None:
        """What is queued, or a heartbeat that is due; None if there is nothing to say."""
        batch = link_pb2.Batch()
        size_bytes = self._control.fill(batch, now_s)
        self.outbound.fill(batch, now_s, size_bytes)
        if self._heartbeat_news and self._watching is not None:
            batch.heartbeat_ms = max(1, round(self._watching.heartbeat_s * 1000))
            self._heartbeat_news = False
        if not batch.frames and not batch.heartbeat_ms and not self._heartbeat.due(now_s):
            return None
        self._sent += len(batch.frames)
        return batch

    # Leaving the peer's questions to a successor.

    async def leave(self) -> None:
        """Return when the peer asks nothing more on this stream; what it asked before has arrived by then. A peer that
        does not know the word is not waited for."""
        hello = self._current.session.peer if self._current is not None else None
        if hello is not None and hello.protocol >= LEAVING_SINCE:
            self._left = self._loop.create_future()
            self._control.put(Steer(link_pb2.Frame.LEAVING))
            await self._left

    def _awaits_successor(self) -> bool:
        return self.outbound.held and self._loop.time() < self._leaving_s + SUCCESSOR_S

    def _on_leaving(self, frame: link_pb2.Frame) -> None:
        self.outbound.held, self._leaving_s = True, self._loop.time()
        self._control.put(Steer(link_pb2.Frame.LEFT))

    def _on_left(self, frame: link_pb2.Frame) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    # Suspicion.

    def watch(self, on_change: OnChange, heartbeat_s: float, suspect_after_s: float) -> None:
        """Keep a stream open and tell `on_change` whenever the peer becomes suspect, or is heard again."""
        self._watching = Watching(Watch(suspect_after_s, self._loop.time()), heartbeat_s, on_change)
        self._heartbeat_news = True
        self._parts.need_ticks()
        self._wake()

    def unwatch(self) -> None:
        self._watching = None

    @property
    def needs_ticks(self) -> bool:
        return self._watching is not None or (self._current is not None and self._heartbeat.interval_s > 0)

    def tick(self, expected_s: float) -> None:
        """Called every `expected_s` by the owner of all peers."""
        now_s = self._loop.time()
        if self._current is not None and self._heartbeat.due(now_s):
            self._wake()
        if self._watching is not None:
            self._watching.watch.tick(now_s, expected_s)
            if self._watching.watch.suspect:
                self._tell_suspect("nothing was heard of it in time")

    def _heard(self) -> None:
        watching = self._watching
        if watching is not None:
            watching.watch.heard(self._loop.time())
            if watching.told_suspect:
                watching.told_suspect = False
                watching.on_change(self.host, False, "it was heard again")

    def _suspect(self, reason: str) -> None:
        if self._watching is not None:
            self._watching.watch.ended()
            self._tell_suspect(reason)

    def _tell_suspect(self, reason: str) -> None:
        watching = self._watching
        if watching is not None and not watching.told_suspect:
            watching.told_suspect = True
            watching.on_change(self.host, True, reason)

    def _unreachable(self, error: EverramError) -> None:
        self.outbound.unreachable(error)
        self._suspect(error.message)

    # The end.

    async def flushed(self) -> None:
        """Return when every answer that is ready has been given to the stream."""
        while self._current is not None and (self._control or self._writing):
            self._flushed = self._loop.create_future()
            await self._flushed

    def close(self) -> None:
        """End the stream; what waits fails, and nothing is opened any more."""
        self._closed = True
        self._watching = None
        if self._current is not None:
            self._end(self._current, Unavailable("this host closes its links"))
        self.outbound.unreachable(Unavailable("this host closes its links"))

    def status(self) -> host_pb2.LinkStatus:
        return host_pb2.LinkStatus(peer=self.host, state=self._state(), sent=self._sent, received=self._received)

    def _state(self) -> str:
        if self._current is not None:
            return "suspect" if self._watching is not None and self._watching.told_suspect else "up"
        if self._opening:
            return "connecting"
        return "down" if self._wanted else "idle"


class _Refused(Unavailable):
    """The peer ended the stream before its hello."""


def _close(stream: LinkStream | None) -> None:
    if stream is not None:
        stream.close()
