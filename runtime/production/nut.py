"""`environment.Ups` by the Network UPS Tools: one question a reading, in the protocol of `upsd` (RFC 9271).

ups = NutUps.parse("ups@127.0.0.1:3493")
await ups.reading()                      # UpsReading.ON_LINE
"""

from __future__ import annotations

import asyncio
import re

from everram.runtime.environment import UpsReading
from everram.runtime.errors import InvalidArgument

PORT = 3493
TIMEOUT_S = 2.0
LINE_BYTES_MAX = 4096
_ADDRESS = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)@(?P<host>[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")
_STATUS = re.compile(r'VAR (?P<ups>\S+) ups\.status "(?P<words>[^"]*)"')


class NutUps:
    """One UPS of one `upsd`. The connection is kept as long as it answers."""

    def __init__(self, name: str, host: str, port: int) -> None:
        self.name = name
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @staticmethod
    def parse(text: str) -> NutUps:
        """`NAME@HOST[:PORT]`. Raises InvalidArgument."""
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"] or PORT) > 65535:
            raise InvalidArgument(f'"{text}" is no UPS: write NAME@HOST or NAME@HOST:PORT, as upsc(8) takes it')
        return NutUps(match["name"], match["host"], int(match["port"] or PORT))

    async def reading(self) -> UpsReading:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return reading_of(await self._ask(f"GET VAR {self.name} ups.status"))
        except (OSError, TimeoutError, ValueError):
            self.close()
            return UpsReading.LOST

    async def lasts_s(self, *, from_low: bool) -> float | None:
        names = ("battery.runtime", "battery.runtime.low") if from_low else ("battery.runtime",)
        known: list[float] = []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for name in names:
                    known += seconds_of(await self._ask(f"GET VAR {self.name} {name}"), name)
        except (OSError, TimeoutError, ValueError):
            self.close()
        return min(known, default=None)

    async def _ask(self, question: str) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=LINE_BYTES_MAX)
        reader, writer = self._streams
        writer.write(question.encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("upsd has closed the connection")
        return line.decode(errors="replace").strip()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def seconds_of(line: str, name: str) -> list[float]:
    """What `upsd` answered about a length of time; nothing if it does not know, or says what cannot be."""
    match = re.fullmatch(rf'VAR \S+ {re.escape(name)} "([0-9]{{1,7}}(?:\.[0-9]*)?)"', line)
    return [float(match[1])] if match else []


def reading_of(line: str) -> UpsReading:
    """What `upsd` answered. The graver word counts: "OB LB" is a low battery."""
    match = _STATUS.fullmatch(line)
    if match is None:
        return UpsReading.STALE if line == "ERR DATA-STALE" else UpsReading.LOST
    words = set(match["words"].split())
    for word, reading in (
        ("FSD", UpsReading.FORCED_SHUTDOWN),
        ("LB", UpsReading.LOW_BATTERY),
        ("OB", UpsReading.ON_BATTERY),
        ("OL", UpsReading.ON_LINE),
    ):
        if word in words:
            # A worn battery may be low while the mains are there: nothing has to be saved for that.
            return UpsReading.ON_LINE if reading is UpsReading.LOW_BATTERY and "OL" in words else reading
    return UpsReading.UNKNOWN
