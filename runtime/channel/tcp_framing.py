"""Cuts a TCP stream into headers and payloads; a payload is received straight into the memory where it belongs.

    class Responder(Framing):
        def on_frame(self, header, payload): ...         # a frame whose payload is short: all of it
        def on_payload(self, header): return target      # a longer one: where it goes, piece by piece
        def on_payload_end(self): ...

`get_buffer` hands out `target`'s own memory, so nothing is copied here but what came in the same piece as its header:
headers are staged 16 KiB at a time, because a system call for each would halve the speed of small requests. A payload
with a digest is checked when all of it is there: it may have landed by then, but nobody is told that it has.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from everram.runtime.channel.tcp_frames import (
    LAST_GREETING,
    OPERANDS_BYTES,
    VERSION,
    Damaged,
    Header,
    decode,
    header_bytes,
)
from everram.runtime.channel.tcp_sockets import cut, tune
from everram.runtime.checksums import crc32

STAGING_BYTES = 16 * 1024
INLINE_BYTES = OPERANDS_BYTES
"""Payloads up to this are staged as a whole: words are stored as words, and operands are looked at."""
SCRATCH_BYTES = 256 * 1024
DIGEST_BYTES_MAX = 16 * 1024
"""Data up to this has a digest always: words and operands that are acted upon are far shorter. More has one where
`Line.digests` says so, as it does for hosts unless somebody chose speed: it is copied, lest it change on its way."""

log = logging.getLogger(__name__)
_scratch = memoryview(bytearray(SCRATCH_BYTES))
"""Where everybody receives what nobody wants."""


class Weather(Protocol):
    """What the network does to what arrives: the faults of links, for trials."""

    @property
    def fair(self) -> bool:
        """Nothing."""

    def damage(self, piece: memoryview) -> None:
        """Perhaps change a bit of it."""

    def pause_s(self, count: int) -> float | None:
        """How long after so many bytes nothing more arrives; None: until the weather changes."""

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """From now on; calling the result ends it."""


class _Fair:
    fair = True

    def damage(self, piece: memoryview) -> None:
        pass

    def pause_s(self, count: int) -> float | None:
        return 0.0

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


@dataclass(frozen=True, slots=True)
class Line:
    """What all connections of a host have in common."""

    digests: bool = False
    """Whether all data has digests, whatever its length."""
    weather: Weather = _Fair()  # noqa: RUF009 (it has no state)


PLAIN = Line()


class Target(Protocol):
    """Where a payload goes."""

    def buffer(self, at: int, length: int) -> memoryview:
        """Writable memory for up to `length` bytes from `at` on; not empty, and never kept by who gets it."""


class Discard:
    """For payloads that must not land anywhere."""

    def buffer(self, at: int, length: int) -> memoryview:
        return _scratch[:length]


class Heap:
    """Into memory of this process alone."""

    def __init__(self, view: memoryview) -> None:
        self.view = view

    def buffer(self, at: int, length: int) -> memoryview:
        return self.view[at : at + length]


class Framing(asyncio.BufferedProtocol):
    """One end of a connection. What a subclass raises as ValueError ends the connection, and nothing else."""

    def __init__(self, weather: Weather = PLAIN.weather) -> None:
        self.transport: asyncio.Transport | None = None
        """None before and after."""
        self.version = VERSION
        """That is spoken on it, once the greetings have said so."""
        self.greeted = False
        """Whether they have: no other greeting comes on it."""
        self.received_bytes = 0
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0  # of what is staged and not yet used
        self._target: Target | None = None  # of the payload that is being received; nothing is staged then
        self._at = self._left = 0
        self._told: int | None = None  # the payload's digest
        self._digest = 0  # of what has come of it
        self._held = False
        self._weather = weather
        self._unwatch: Callable[[], None] = lambda: None
        self._calm = False  # nothing more arrives now, because of the weather
        self._wind: asyncio.TimerHandle | None = None

    # -- for subclasses

    def on_frame(self, header: Header, payload: bytes) -> None:
        """Raises ValueError."""
        raise NotImplementedError

    def on_payload(self, header: Header) -> Target:
        """Raises ValueError."""
        raise NotImplementedError

    def on_payload_end(self) -> None:
        """Raises ValueError."""
        raise NotImplementedError

    def on_cut(self) -> None:
        """Everything that arrived together has been looked at."""

    def on_nonsense(self, error: ValueError) -> None:
        """What arrived cannot be understood; the connection ends now."""

    def on_end(self, reason: str) -> None:
        """The connection has ended; called once."""

    def end(self) -> None:
        """Drop the connection at once. Idempotent."""
        if self.transport is not None:
            cut(self.transport)

    def hold(self) -> None:
        """Look at no further frame until `proceed`: the other side does not take its answers."""
        if not self._held:
            self._held = True
            if self.transport is not None and not self.transport.is_closing() and not self._calm:
                self.transport.pause_reading()

    def proceed(self) -> None:
        if self._held and self.transport is not None and not self.transport.is_closing():
            self._held = False
            if not self._calm:
                self.transport.resume_reading()
            self._guarded_cut()

    # -- the weather

    def _suffer(self, count: int) -> None:
        """So many bytes have arrived, and are not yet looked at."""
        target = self._target
        at, end = self._at, self._end
        self._weather.damage(self._staging[end : end + count] if target is None else target.buffer(at, count))
        self._abate(count)

    def _abate(self, count: int = 0) -> None:
        """The weather has changed, or something has come through it: whether more may come."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._wind is not None:
            self._wind.cancel()
            self._wind = None
        pause_s = self._weather.pause_s(count)
        calm = pause_s is None or pause_s > 0
        if pause_s:
            self._wind = asyncio.get_running_loop().call_later(pause_s, self._abate)
        if calm != self._calm:
            self._calm = calm
            if calm and not self._held:
                transport.pause_reading()
            elif not calm and not self._held:
                transport.resume_reading()

    # -- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        tune(transport)
        self._unwatch = self._weather.watch(self._abate)
        if not self._weather.fair:
            self._abate()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._unwatch()
        if self._wind is not None:
            self._wind.cancel()
        self._target = None
        self.on_end(str(error) if error is not None else "it was closed")

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is not None:
            return self._target.buffer(self._at, self._left)
        return self._staging[self._end :]

    def buffer_updated(self, count: int) -> None:
        self.received_bytes += count
        if not self._weather.fair:
            self._suffer(count)
        if self._target is None:
            self._end += count
            self._guarded_cut()
            return
        self._digested(self._target.buffer(self._at, count))
        self._at += count
        self._left -= count
        if not self._left:
            self._guarded_cut()

    def _guarded_cut(self) -> None:
        try:
            self._cut()
        except ValueError as error:
            log.warning("a connection of the channel is dropped: %s", error)
            self.on_nonsense(error)
            self.end()
        self.on_cut()

    def _cut(self) -> None:
        """Use all that is staged, as far as it goes. Raises ValueError."""
        while self.transport is not None and not self.transport.is_closing():
            if self._target is not None:
                self._fill(self._target)
                if self._left:
                    break
                self._target = None
                self._verify(self._told, self._digest)
                self.on_payload_end()
            if self._held or not self._next():
                break
        if self._start:
            staged = self._end - self._start
            self._staging[:staged] = self._staging[self._start : self._end]
            self._start, self._end = 0, staged

    def _next(self) -> bool:
        """Whether there was a header, and everything that has to be there with it."""
        start, staged = self._start, self._end - self._start
        if staged and self.greeted and self._staging[start] <= LAST_GREETING:
            raise Damaged(f"a header of kind {self._staging[start]} after the greetings")
        if not staged or staged < (head := header_bytes(self._staging[start], self.version)):
            return False
        header = decode(self._staging[start : start + head], self.version)
        length = header.payload_bytes
        start += head
        if length > INLINE_BYTES:
            self._target = self.on_payload(header)
            self._at, self._left = 0, length
            self._told, self._digest = header.digest, header.seed
            self._start = start
            return True
        if staged < head + length:
            return False
        self._start = start + length
        payload = bytes(self._staging[start : start + length])
        if header.digest is not None:
            self._verify(header.digest, zlib.crc32(payload, header.seed))
        self.on_frame(header, payload)
        return True

    def _digested(self, piece: memoryview) -> None:
        if self._told is not None:
            self._digest = crc32(piece, self._digest)

    def _verify(self, told: int | None, found: int) -> None:
        if told is not None and told != found:
            raise Damaged("data was damaged on its way")

    def _fill(self, target: Target) -> None:
        """With the part of its payload that was staged."""
        while self._left and self._start < self._end:
            buffer = target.buffer(self._at, min(self._left, self._end - self._start))
            count = len(buffer)
            buffer[:] = self._staging[self._start : self._start + count]
            self._digested(buffer)
            self._start += count
            self._at += count
            self._left -= count
