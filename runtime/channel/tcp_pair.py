"""A queue pair of the TCP carrier: requests are sent in order, and pinned until their completion comes back.

    pair = await TcpPair.open(host, port, "h2", me, token, number)   # raises Unavailable

A cut connection is resumed: requests without a completion are sent again, and the owner carries none out twice. If
nobody listens there any more, or the owner does not know this queue pair, or it cannot be reached in time, the queue
pair breaks, and what was under way is unknown. An owner that takes nothing and says nothing for DEADLINE_S is given up.
What was damaged on its way, to either side, ends the connection and is sent again on the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from everram.runtime.channel.addresses import TCP
from everram.runtime.channel.completions import CompletionQueue, completed
from everram.runtime.channel.contract import (
    ChannelError,
    Opcode,
    Status,
    WorkRequest,
    check,
    check_length,
)
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.tcp_frames import (
    CODES,
    NUMBERS,
    STATUSES,
    UNCHECKED,
    VERSION,
    Damaged,
    Header,
    Hello,
    Kind,
    Refused,
    Welcome,
    encode,
    encode_operands,
)
from everram.runtime.channel.tcp_framing import DIGEST_BYTES_MAX, PLAIN, Framing, Heap, Line, Target
from everram.runtime.channel.tcp_responder import RESULTS_MAX
from everram.runtime.channel.tcp_sockets import connect
from everram.runtime.checksums import crc32
from everram.runtime.errors import EverramError, ResourceExhausted, Unavailable

ANSWER_TIMEOUT_S = 2.0
"""For a peer to greet."""
DEADLINE_S = 2.0
"""Without any progress for so long, and for a cut connection to be resumed: far longer than a loop is ever busy."""
LOOKS = 4
"""At the progress, within the deadline: a loop of ours that was busy itself costs one look, not all."""
UNCHECKED_ONLY = f"speaks version {UNCHECKED} of the channel over TCP, not {VERSION}"
"""What an owner of the version before refuses a HELLO of this one with."""
DIAL_S = 1.0
"""For one try to resume, of several."""
RETRY_S = 0.05
DAMAGED_MAX = 16
"""Connections in a row that brought nothing but what was damaged: then it is not the line that is bad."""
WINDOW_BYTES = 64 << 20
"""Sent and not yet acknowledged, or one request that is larger by itself."""
REQUESTS_MAX = RESULTS_MAX
"""Sent and not yet acknowledged: as many as the owner remembers the results of."""
POSTED_MAX = 4096
"""Not yet completed, of those that were posted."""
COPIED_BYTES = 16 * 1024
"""Data up to this is copied beside its header: cheaper than two pieces."""

KINDS = {
    Opcode.WRITE: Kind.WRITE,
    Opcode.WRITE_WITH_IMMEDIATE: Kind.WRITE_WITH_IMMEDIATE,
    Opcode.READ: Kind.READ,
    Opcode.COMPARE_AND_SWAP: Kind.COMPARE_AND_SWAP,
    Opcode.FETCH_AND_ADD: Kind.FETCH_AND_ADD,
}
SUCCESS = CODES[Status.SUCCESS]
MESSAGES = {
    Status.REM_ACCESS_ERR: "host {} has no such region, has revoked it, or does not allow this",
    Status.REM_INV_REQ_ERR: "host {} does no atomic operations at an offset that is no multiple of 8",
    Status.REM_OP_ERR: "host {} could not carry this out: its log says why",
    Status.WR_FLUSH_ERR: "host {} revoked the region during a write",
}


class _Request:
    """Posted, and not yet completed."""

    __slots__ = ("data", "header", "number", "outcome", "size_bytes", "target")

    def __init__(
        self,
        number: int,
        header: bytes,
        data: bytes | memoryview,
        size_bytes: int,
        target: memoryview | None,
        outcome: asyncio.Future[int],
    ) -> None:
        self.number = number
        self.header = header
        self.data = data
        """Sent after the header; pinned here until the completion."""
        self.size_bytes = size_bytes
        """Counted against the window."""
        self.target = target
        """Of a read."""
        self.outcome = outcome
        """The word that an atomic operation found, else 0; or a ChannelError."""


class TcpPair:
    """`contract.QueuePair`."""

    carrier = TCP

    def __init__(
        self, host: str, port: int, peer: str, me: Identity, token: str, number: int, line: Line = PLAIN
    ) -> None:
        """Use `open`. `number` is drawn: the owner knows the queue pair by it."""
        self.line = line
        self.version = VERSION
        """That the owner speaks."""
        self.peer = peer
        self._where = host, port
        self._me, self._token, self._pair = me, token, number
        self._loop = asyncio.get_running_loop()
        self._broken = asyncio.Event()
        self._numbers = 0
        self._waiting: deque[_Request] = deque()  # not yet sent on this connection
        self._sent: deque[_Request] = deque()  # without a completion
        self._sent_bytes = 0
        self._completed = 0
        self._posted = 0
        self._connection: _Connection | None = None
        """None while it is cut."""
        self._resuming: asyncio.Task[None] | None = None
        self._look: asyncio.TimerHandle | None = None
        self._seen: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._idle_looks = 0
        self._damaged = 0

    @staticmethod
    async def open(
        host: str, port: int, peer: str, me: Identity, token: str, number: int, line: Line = PLAIN
    ) -> TcpPair:
        """Raises Unavailable."""
        pair = TcpPair(host, port, peer, me, token, number, line)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                try:
                    await pair._dial(resume=False)
                except Unavailable as error:
                    if UNCHECKED_ONLY not in error.message:
                        raise
                    pair.version = UNCHECKED
                    await pair._dial(resume=False)
        except TimeoutError:
            pair.close()
            raise Unavailable(f"host {peer} does not answer on its channel: try again when it does") from None
        except OSError as error:
            pair.close()
            why = error.strerror or str(error)
            raise Unavailable(f"nothing answers at {host}:{port} ({why}): try again when it runs") from None
        except BaseException:
            pair.close()
            raise
        return pair

    @property
    def broken(self) -> bool:
        return self._broken.is_set()

    async def wait_broken(self) -> None:
        await self._broken.wait()

    def close(self) -> None:
        """Idempotent. Requests under way end in WR_FLUSH_ERR; some may still take effect."""
        self._break(Status.WR_FLUSH_ERR, f"the queue pair to host {self.peer} was closed")

    # -- requests

    async def write(self, rkey: int, offset: int, data: bytes | memoryview) -> None:
        await self._submit(Kind.WRITE, rkey, offset, len(data), data)

    async def write_with_immediate(self, rkey: int, offset: int, data: bytes | memoryview, immediate: int) -> None:
        await self._submit(Kind.WRITE_WITH_IMMEDIATE, rkey, offset, len(data), data, immediate=immediate)

    async def read(self, rkey: int, offset: int, length: int) -> bytes:
        if length < 0:
            raise self._break(Status.REM_ACCESS_ERR, f"a read of {length} bytes")
        check_length(length)
        found = bytearray(length)
        await self._submit(Kind.READ, rkey, offset, length, target=memoryview(found))
        return bytes(found)

    async def read_into(self, rkey: int, offset: int, target: memoryview) -> None:
        await self._submit(Kind.READ, rkey, offset, len(target), target=target)

    async def compare_and_swap(self, rkey: int, offset: int, expected: int, desired: int) -> int:
        operands = encode_operands(expected, desired)
        return await self._submit(Kind.COMPARE_AND_SWAP, rkey, offset, len(operands), operands)

    async def fetch_and_add(self, rkey: int, offset: int, addend: int) -> int:
        operands = encode_operands(0, addend)
        return await self._submit(Kind.FETCH_AND_ADD, rkey, offset, len(operands), operands)

    def post(self, request: WorkRequest, completions: CompletionQueue) -> None:
        check(request)
        if self._posted >= POSTED_MAX:
            raise ResourceExhausted(f"{POSTED_MAX} requests wait on the queue pair to {self.peer}: poll some first")
        kind, length, data, target = KINDS[request.opcode], len(request.data), request.data, None
        if request.opcode is Opcode.READ:
            length, target = request.length, bytearray(max(0, request.length))
        elif request.opcode in (Opcode.COMPARE_AND_SWAP, Opcode.FETCH_AND_ADD):
            data = encode_operands(request.expected, request.operand)
            length = len(data)
        self._posted += 1

        def ended(outcome: asyncio.Future[int]) -> None:
            self._posted -= 1
            error = outcome.exception()
            if error is None:
                found = outcome.result() if target is None else bytes(target)
                completions.push(completed(request, found))
            else:
                assert isinstance(error, ChannelError)
                completions.push(completed(request, error))

        try:
            outcome = self._submit(
                kind, request.rkey, request.offset, length, data,
                immediate=request.immediate, target=None if target is None else memoryview(target),
            )  # fmt: skip
        except ChannelError as error:
            outcome = self._loop.create_future()
            outcome.set_exception(error)
        outcome.add_done_callback(ended)

    def _submit(
        self,
        kind: Kind,
        rkey: int,
        offset: int,
        length: int,
        data: bytes | memoryview = b"",
        *,
        immediate: int = 0,
        target: memoryview | None = None,
    ) -> asyncio.Future[int]:
        """Post it. Raises ChannelError for what need not be sent, InvalidArgument."""
        if self.broken:
            raise ChannelError(Status.WR_FLUSH_ERR, f"the queue pair to host {self.peer} is broken: connect again")
        check_length(length)
        if not 0 <= offset < 1 << 64 or length < 0:
            # No header could say it.
            raise self._break(Status.REM_ACCESS_ERR, MESSAGES[Status.REM_ACCESS_ERR].format(self.peer))
        self._numbers += 1
        digest = None
        if data and self.version != UNCHECKED and (self.line.digests or len(data) <= DIGEST_BYTES_MAX):
            data = bytes(data)  # it may change until it has left, and its digest would not
            digest = crc32(data)
        header = encode(
            kind, length, self._numbers, rkey, offset, immediate=immediate, digest=digest, version=self.version
        )
        request = _Request(self._numbers, header, data, length, target, self._loop.create_future())
        self._waiting.append(request)
        self._pump()
        if self._look is None:
            self._idle_looks = 0
            self._look = self._loop.call_later(DEADLINE_S / LOOKS, self._look_at_progress)
        return request.outcome

    def _pump(self) -> None:
        """Send what the window takes."""
        connection, waiting, sent = self._connection, self._waiting, self._sent
        if connection is None:
            return
        while waiting and len(sent) < REQUESTS_MAX:
            request = waiting[0]
            if sent and self._sent_bytes + request.size_bytes > WINDOW_BYTES:
                return
            sent.append(waiting.popleft())
            self._sent_bytes += request.size_bytes
            connection.send(request.header, request.data)

    # -- completions

    def expected(self, header: Header) -> _Request:
        """The request that ends with this completion. Raises ValueError."""
        if header.kind is not Kind.COMPLETION or not self._sent:
            raise ValueError(f"{header.kind.name} where nothing is expected")
        request = self._sent[0]
        data_bytes = request.size_bytes if request.target is not None and header.status == SUCCESS else 0
        if header.number != request.number % NUMBERS or header.length != data_bytes:
            raise ValueError(f"a completion of request {header.number} with {header.length} bytes")
        return request

    def complete(self, header: Header) -> None:
        """The oldest request has ended."""
        request = self._sent.popleft()
        self._sent_bytes -= request.size_bytes
        self._completed += 1
        self._damaged = 0
        if header.status == SUCCESS:
            if not request.outcome.done():
                request.outcome.set_result(header.first)
            self._pump()
        else:
            status = STATUSES[header.status]
            self._break(status, MESSAGES[status].format(self.peer), first=request)

    def nonsense(self, error: ValueError) -> None:
        self._damaged += 1
        if isinstance(error, Damaged) and self._damaged <= DAMAGED_MAX:
            return  # so it is asked for again on the next connection
        self._break(Status.RETRY_EXC_ERR, f"host {self.peer} sent nonsense on its channel: {error}")

    def _break(self, status: Status, message: str, *, first: _Request | None = None) -> ChannelError:
        """For good: the oldest request ends in `status`, the others are flushed. What to raise."""
        error = ChannelError(status, message)
        if self.broken:
            return error
        self._broken.set()
        if self._look is not None:
            self._look.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
        if self._connection is not None:
            self._connection.end()
            self._connection = None
        oldest = [] if first is None else [first]
        open_requests = [*oldest, *self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        for place, request in enumerate(open_requests):
            if not request.outcome.done():
                flushed = ChannelError(Status.WR_FLUSH_ERR, message)
                # A refusal is of one request alone; a peer that is lost is lost for the oldest.
                own = place == 0 and (first is not None or status is Status.RETRY_EXC_ERR)
                request.outcome.set_exception(error if own else flushed)
                request.outcome.exception()  # who was cancelled does not ask for it
        return error

    def _look_at_progress(self) -> None:
        """LOOKS times without any: the owner hangs."""
        self._look = None
        connection = self._connection
        if not self._sent and not self._waiting:
            return
        if connection is not None:  # resuming has a deadline of its own
            seen = self._completed, connection.received_bytes, connection.queued_bytes, id(connection)
            self._idle_looks = self._idle_looks + 1 if seen == self._seen else 0
            self._seen = seen
            if self._idle_looks >= LOOKS:
                self._break(Status.RETRY_EXC_ERR, f"host {self.peer} does not answer on its channel")
                return
        self._look = self._loop.call_later(DEADLINE_S / LOOKS, self._look_at_progress)

    # -- connections

    async def _dial(self, *, resume: bool) -> None:
        """Raises Unavailable where the peer refuses, OSError."""
        host, port = self._where
        connection = await connect(host, port, lambda: _Connection(self))
        try:
            hello = Hello(self._me, self._token, self.peer, self._pair, resume, self.version)
            connection.send(hello.encode())
            welcome = await connection.welcomed
        except BaseException:
            connection.end()
            raise
        # Those that were carried out are answered from memory.
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._sent_bytes = 0
        oldest = self._waiting[0].number if self._waiting else self._numbers + 1
        if not oldest <= welcome.expected <= self._numbers + 1:
            connection.end()
            raise Unavailable(f"host {self.peer} expects request {welcome.expected}, not {oldest}: connect again")
        if connection.transport is None:
            raise ConnectionResetError("the connection ended")
        self._connection = connection
        self._pump()

    def lost(self, connection: _Connection) -> None:
        if connection is self._connection:
            self._connection = None
            if not self.broken:
                self._resuming = self._loop.create_task(self._resume())

    async def _resume(self) -> None:
        message = f"host {self.peer} cannot be reached any more"
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self._connection is None:
                    try:
                        async with asyncio.timeout(DIAL_S):
                            await self._dial(resume=True)
                    except TimeoutError:
                        pass  # a greeting whose length was damaged is waited for in vain
                    except ConnectionRefusedError:
                        # Its process has ended: what it knew of this queue pair went with it.
                        message = f"host {self.peer} has ended"
                        break
                    except OSError:
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            pass
        except EverramError as error:
            message = error.message
        self._resuming = None
        if self._connection is None:
            self._break(Status.RETRY_EXC_ERR, message)


class _Connection(Framing):
    """One connection of a queue pair."""

    def __init__(self, pair: TcpPair) -> None:
        super().__init__(pair.line.weather)
        self.welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._pair = pair
        self._greeting: tuple[Kind, bytearray] | None = None
        self._completion: Header | None = None

    @property
    def queued_bytes(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def send(self, header: bytes, data: bytes | memoryview = b"") -> None:
        transport = self.transport
        if transport is None:
            return
        if not data:
            transport.write(header)
        elif len(data) <= COPIED_BYTES:
            transport.write(b"".join((header, data)))
        else:
            transport.write(header)
            transport.write(data)

    def on_frame(self, header: Header, payload: bytes) -> None:
        request = self._pair.expected(header)
        if request.target is not None and payload:
            request.target[:] = payload
        self._pair.complete(header)

    def on_payload(self, header: Header) -> Target:
        if not self.welcomed.done():
            if header.kind not in (Kind.WELCOME, Kind.REFUSED):
                raise ValueError(f"{header.kind.name} instead of a greeting")
            self._greeting = header.kind, bytearray(header.length)
            return Heap(memoryview(self._greeting[1]))
        request = self._pair.expected(header)
        assert request.target is not None
        self._completion = header
        return Heap(request.target)

    def on_payload_end(self) -> None:
        if self._completion is not None:
            header, self._completion = self._completion, None
            self._pair.complete(header)
            return
        assert self._greeting is not None
        kind, data = self._greeting
        if self.welcomed.done():  # given up
            self.end()
        elif kind is Kind.REFUSED:
            self.welcomed.set_exception(Unavailable(Refused.decode(bytes(data)).message))
        else:
            welcome = Welcome.decode(bytes(data))
            told, me = welcome.identity, self._pair._me
            if (
                welcome.version != self._pair.version
                or told.cluster_id != me.cluster_id
                or told.host != self._pair.peer
            ):
                message = (
                    f"at the address of host {self._pair.peer} answers host {told.host} of cluster {told.cluster_id}, "
                    f"with version {welcome.version} of the channel over TCP (this is version {self._pair.version})"
                )
                self.welcomed.set_exception(Unavailable(message))
            else:
                self.version, self.greeted = welcome.version, True
                self.welcomed.set_result(welcome)

    def on_nonsense(self, error: ValueError) -> None:
        if self.welcomed.done():
            self._pair.nonsense(error)
        else:
            # Perhaps it was damaged on its way.
            self.welcomed.set_exception(ConnectionResetError(f"host {self._pair.peer} sent nonsense: {error}"))

    def on_end(self, reason: str) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionResetError(f"the connection ended: {reason}"))
            with contextlib.suppress(BaseException):
                self.welcomed.exception()
        self._pair.lost(self)
