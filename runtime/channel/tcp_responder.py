"""The owner's half of the TCP carrier: carries requests out on registered memory, each of them once.

A `Session` is one queue pair that leads here. It outlives its connection for RESUME_S: it knows which request comes
next and what came of the last ones, so a peer that had no answer may send them again; what was carried out already is
answered from memory (a read is read again). A region is looked up when a request arrives and again when its payload has
landed; nothing lands in between once it was revoked. The owner's process does this work, unlike with shared memory.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import deque
from typing import Protocol

from everram.runtime.channel.contract import WORD_BYTES, Access, Status
from everram.runtime.channel.frames import Identity
from everram.runtime.channel.protection_domain import ProtectionDomain, Region
from everram.runtime.channel.tcp_frames import (
    CODES,
    NUMBERS,
    UNCHECKED,
    VERSION,
    Header,
    Hello,
    Kind,
    Refused,
    Welcome,
    decode_operands,
    encode,
)
from everram.runtime.channel.tcp_framing import DIGEST_BYTES_MAX, Discard, Framing, Heap, Line, Target
from everram.runtime.checksums import crc32
from everram.runtime.errors import ResourceExhausted
from everram.runtime.memory import atomics
from everram.runtime.memory.mapped import Mapped

GREETING_TIMEOUT_S = 2.0
"""For a connection to say who it is."""
RESUME_S = 10.0
"""How long a queue pair without a connection is remembered: several times as long as its peer tries to resume it."""
RESULTS_MAX = 1024
"""Remembered for each queue pair, and so many requests may be under way on it."""
SESSIONS_MAX = 1024
"""Queue pairs that lead here, one a host."""
SMALL_BYTES = 16 * 1024
"""Read data up to this is copied beside its header: cheaper than two pieces."""

CONNECTIONS_MAX = 2 * SESSIONS_MAX
"""Whoever comes when there are so many is sent away: most of them cannot have said who they are."""

SUCCESS = CODES[Status.SUCCESS]
_DISCARD = Discard()

log = logging.getLogger(__name__)


class Carrier(Protocol):
    """What the connections of one host share."""

    me: Identity
    token: str
    protection: ProtectionDomain
    severed: bool
    line: Line
    sessions: dict[str, Session]
    connections: dict[ResponderConnection, None]


class Session:
    """One queue pair that leads here."""

    def __init__(self, pair: int) -> None:
        self.pair = pair
        self.expected = 1
        """Number of the request that comes next."""
        self.results: deque[tuple[int, int]] = deque(maxlen=RESULTS_MAX)
        """(status, value) of the last requests before it."""
        self.failed = False
        """A request ended badly: nothing is carried out any more."""
        self.connection: ResponderConnection | None = None
        self.expiry: asyncio.TimerHandle | None = None

    def remember(self, status: int, value: int) -> None:
        self.results.append((status, value))
        self.expected += 1
        if status:
            self.failed = True

    def result(self, age: int) -> tuple[int, int]:
        """Of the request `age` before the expected one. Raises ValueError."""
        if not 0 < age <= len(self.results):
            raise ValueError(f"a request that was answered {age} requests ago")
        return self.results[-age]


class _Landing:
    """A write's payload, on its way into a region."""

    __slots__ = ("base", "header", "mapping", "region", "staged")

    def __init__(self, header: Header, region: Region, mapping: Mapped) -> None:
        self.header = header
        self.region = region
        self.mapping = mapping
        self.base = region.offset + header.second
        short = header.digest is not None and header.length <= DIGEST_BYTES_MAX
        self.staged = memoryview(bytearray(header.length)) if short else None
        """Beside the region until it is verified: copying so little costs less than a wrong byte."""

    def buffer(self, at: int, length: int) -> memoryview:
        if self.staged is not None:
            return self.staged[at : at + length]
        if not self.region.valid:
            return _DISCARD.buffer(at, length)
        start = self.base + at
        return self.mapping.view[start : start + length]


class ResponderConnection(Framing):
    """A peer's connection."""

    def __init__(self, carrier: Carrier) -> None:
        super().__init__(carrier.line.weather)
        self._carrier = carrier
        self._session: Session | None = None
        self._landing: _Landing | None = None
        self._duplicate: int | None = None  # number of the request whose payload is discarded, to be answered again
        self._greeting: bytearray | None = None
        self._sending: dict[Region, None] = {}  # regions whose memory may lie in the transport's queue
        self._rung: dict[int, None] = {}
        self._patience: asyncio.TimerHandle | None = None

    # -- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._carrier.connections[self] = None
        if self._carrier.severed or len(self._carrier.connections) > CONNECTIONS_MAX:
            self.end()
            return
        self._patience = asyncio.get_running_loop().call_later(GREETING_TIMEOUT_S, self.end)

    def on_end(self, reason: str) -> None:
        self._carrier.connections.pop(self, None)
        self._sending.clear()
        if self._patience is not None:
            self._patience.cancel()
        session = self._session
        if session is not None and session.connection is self:
            session.connection = None
            session.expiry = asyncio.get_running_loop().call_later(RESUME_S, self._expire, session)

    def _expire(self, session: Session) -> None:
        sessions = self._carrier.sessions
        for host in [host for host, found in sessions.items() if found is session]:
            del sessions[host]

    def revoked(self, region: Region) -> None:
        """What was read of it and has not been sent must not be sent any more: its memory may be used for anything."""
        if region in self._sending and self.transport is not None and self.transport.get_write_buffer_size():
            self.end()

    def pause_writing(self) -> None:
        self.hold()

    def resume_writing(self) -> None:
        self.proceed()

    # -- greetings

    def on_payload(self, header: Header) -> Target:
        if self._session is None:
            if header.kind is not Kind.HELLO:
                raise ValueError(f"{header.kind.name} before HELLO")
            self._greeting = bytearray(header.length)
            return Heap(memoryview(self._greeting))
        return self._on_long_request(self._session, header)

    def on_payload_end(self) -> None:
        session = self._session
        if session is None:
            assert self._greeting is not None
            greeting, self._greeting = self._greeting, None
            self._greet(Hello.decode(bytes(greeting)))
        elif self._landing is not None:
            landing, self._landing = self._landing, None
            if landing.staged is not None and landing.region.valid:
                self._store(landing.region, landing.base, landing.staged)
            self._landed(session, landing.header, landing.region)
        elif self._duplicate is not None:
            number, self._duplicate = self._duplicate, None
            self._answer_again(session, number)

    def _greet(self, hello: Hello) -> None:
        carrier, me, peer = self._carrier, self._carrier.me, hello.identity
        refusal = ""
        session = carrier.sessions.get(peer.host)
        if hello.version not in (UNCHECKED, VERSION):
            ours, theirs = VERSION, hello.version
            refusal = f"host {me.host} speaks version {ours} of the channel over TCP, not {theirs}: upgrade one of them"
        elif peer.cluster_id != me.cluster_id:
            refusal = f"host {me.host} is of cluster {me.cluster_id}, host {peer.host} of cluster {peer.cluster_id}"
        elif not hmac.compare_digest(hello.token.encode(), carrier.token.encode()):
            refusal = f"host {peer.host} does not have the token of cluster {me.cluster_id}"
        elif hello.to != me.host:
            refusal = f"at this address answers host {me.host}, not {hello.to}"
        elif hello.resume and (session is None or session.pair != hello.pair):
            refusal = f"host {me.host} does not know this queue pair any more: connect again"
        elif session is None and len(carrier.sessions) >= SESSIONS_MAX:
            refusal = f"host {me.host} has {SESSIONS_MAX} queue pairs already"
        assert self.transport is not None and self._patience is not None
        self._patience.cancel()
        if refusal:
            self.transport.write(Refused(refusal).encode())
            self.transport.close()
            return
        self._take(session, hello)

    def _take(self, session: Session | None, hello: Hello) -> None:
        """A host's new queue pair ends its former one, and a new connection of a queue pair the old one: nothing that
        is late lands from now on."""
        if session is not None:
            if session.expiry is not None:
                session.expiry.cancel()
            if session.connection is not None:
                former, session.connection = session.connection, None
                former.end()
        if session is None or not hello.resume:
            session = self._carrier.sessions[hello.identity.host] = Session(hello.pair)
        session.connection = self
        self._session = session
        self.version, self.greeted = hello.version, True
        self._send(Welcome(self._carrier.me, session.expected, hello.version).encode())

    # -- requests

    def on_frame(self, header: Header, payload: bytes) -> None:
        session = self._session
        if session is None:
            raise ValueError(f"{header.kind.name} before HELLO")
        age = self._age(session, header)
        if session.failed and age == 0:
            return
        if header.kind is Kind.READ:
            self._read(session, header, again=age > 0)
        elif age:
            self._answer_again(session, header.number)
        elif header.kind in (Kind.COMPARE_AND_SWAP, Kind.FETCH_AND_ADD):
            self._operate(session, header, *decode_operands(payload))
        elif header.kind in (Kind.WRITE, Kind.WRITE_WITH_IMMEDIATE):
            region = self._find(session, header, Access.REMOTE_WRITE, header.length)
            if region is not None:
                self._store(region, region.offset + header.second, payload)
                self._landed(session, header, region)
        else:
            raise ValueError(f"{header.kind.name} is not for this end")

    def _on_long_request(self, session: Session, header: Header) -> Target:
        """A write, with more than a few words."""
        if header.kind not in (Kind.WRITE, Kind.WRITE_WITH_IMMEDIATE):
            raise ValueError(f"{header.kind.name} is not for this end")
        if self._age(session, header):
            self._duplicate = header.number
        elif not session.failed:
            region = self._find(session, header, Access.REMOTE_WRITE, header.length)
            if region is not None:
                self._landing = _Landing(header, region, self._carrier.protection.mapping(region))
                return self._landing
        return _DISCARD

    def _age(self, session: Session, header: Header) -> int:
        """0 for the expected request, n for the n-th before it. Raises ValueError for a later one."""
        age = (session.expected - header.number) % NUMBERS
        if age >= NUMBERS // 2:
            raise ValueError(f"request {header.number} where {session.expected % NUMBERS} is expected")
        return age

    def _find(self, session: Session, header: Header, needed: Access, length: int) -> Region | None:
        """The region, if the request is allowed; otherwise it has ended, and the queue pair with it."""
        region = self._carrier.protection.find(header.first)
        if region is None or not region.allows(needed, header.second, length):
            self._carrier.protection.refused += 1
            self._finish(session, header.number, Status.REM_ACCESS_ERR)
            return None
        try:
            if length:  # an empty file has nothing to map, and nothing of it is wanted
                self._carrier.protection.mapping(region)
        except ResourceExhausted as error:
            log.warning("a request of the channel cannot be carried out: %s", error)
            self._finish(session, header.number, Status.REM_OP_ERR)
            return None
        return region

    def _store(self, region: Region, at: int, payload: bytes | memoryview) -> None:
        if not payload:
            return
        mapping = self._carrier.protection.mapping(region)
        if len(payload) == WORD_BYTES and not at & 7:
            mapping.words[at >> 3] = int.from_bytes(payload, "little")
        else:
            mapping.view[at : at + len(payload)] = payload

    def _landed(self, session: Session, header: Header, region: Region) -> None:
        if not region.valid:
            # A part of it may have been written.
            self._finish(session, header.number, Status.WR_FLUSH_ERR)
            return
        if header.kind is Kind.WRITE_WITH_IMMEDIATE:
            self._rung[header.immediate] = None
        self._finish(session, header.number, Status.SUCCESS)

    def _operate(self, session: Session, header: Header, expected: int, operand: int) -> None:
        region = self._find(session, header, Access.REMOTE_ATOMIC, WORD_BYTES)
        if region is None:
            return
        operations = atomics.probe()
        if header.second & 7 or operations is None:
            self._finish(session, header.number, Status.REM_INV_REQ_ERR)
            return
        address = self._carrier.protection.mapping(region).address + region.offset + header.second
        if header.kind is Kind.FETCH_AND_ADD:
            old = operations.fetch_and_add(address, operand)
        else:
            old = operations.compare_and_swap(address, expected, operand)
        self._finish(session, header.number, Status.SUCCESS, old)

    def _read(self, session: Session, header: Header, *, again: bool) -> None:
        if again and session.result((session.expected - header.number) % NUMBERS)[0]:
            self._answer_again(session, header.number)
            return
        region = self._carrier.protection.find(header.first)
        if region is None or not region.allows(Access.REMOTE_READ, header.second, header.length):
            self._carrier.protection.refused += 1
            if again:
                # It was allowed when it was read first, and nobody may read it now: the queue pair ends.
                session.failed = True
                self._complete(header.number, status=CODES[Status.REM_ACCESS_ERR])
            else:
                self._finish(session, header.number, Status.REM_ACCESS_ERR)
            return
        at, length = region.offset + header.second, header.length
        head = encode(Kind.COMPLETION, length, header.number, version=self.version)
        if not length:  # nothing has to be there for that
            if not again:
                session.remember(SUCCESS, 0)
            self._send(head)
            return
        try:
            mapping = self._carrier.protection.mapping(region)
        except ResourceExhausted as error:
            log.warning("a request of the channel cannot be carried out: %s", error)
            self._finish(session, header.number, Status.REM_OP_ERR)
            return
        if not again:
            session.remember(SUCCESS, 0)
        if length == WORD_BYTES and not at & 7:
            self._send_copy(header, mapping.words[at >> 3].to_bytes(WORD_BYTES, "little"))
        elif length <= SMALL_BYTES:
            self._send_copy(header, mapping.load(at, length))
        else:
            assert self.transport is not None
            if not self.transport.get_write_buffer_size():
                self._sending.clear()
            self._sending[region] = None
            if self._carrier.line.digests:
                self._send_copy(header, mapping.load(at, length))
                return
            self._send(head)
            self._send(mapping.view[at : at + length])

    def _send_copy(self, header: Header, data: bytes) -> None:
        """What was read, as it was at one moment, so that a digest can be of it."""
        checked = self._carrier.line.digests or len(data) <= DIGEST_BYTES_MAX
        digest = crc32(data) if checked else None
        self._send(encode(Kind.COMPLETION, len(data), header.number, digest=digest, version=self.version) + data)

    def _finish(self, session: Session, number: int, status: Status, value: int = 0) -> None:
        session.remember(CODES[status], value)
        self._complete(number, value, CODES[status])

    def _complete(self, number: int, value: int = 0, status: int = SUCCESS) -> None:
        """Without data."""
        self._send(encode(Kind.COMPLETION, 0, number, value, status=status, version=self.version))

    def _answer_again(self, session: Session, number: int) -> None:
        status, value = session.result((session.expected - number) % NUMBERS)
        self._complete(number, value, status)

    def _send(self, data: bytes | memoryview) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def on_cut(self) -> None:
        rung, self._rung = self._rung, {}  # a handler runs once for all that came together
        if rung:
            self._carrier.protection.ring(rung)
