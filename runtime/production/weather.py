"""The faults of links, for trials: what arrives at this host from its peers is late, little, damaged, or does not come.

    weather = Weather.of(machine, stream)          # as the machine says, now and from now on
    data = await weather.passes(data)              # a batch of a link that has arrived
    Line(weather=weather)                          # the channel over TCP asks it by itself

Only what arrives is touched, so one host with bad weather hears its peers badly, and they hear it well: that is what
makes `one-way` what it says. Coordination is not touched (`partition` cuts that off, too), nor is memory that hosts of
one computer share, which has no link. A damaged batch has one bit changed; that it is noticed is up to its reader.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from everram.runtime.environment import Entropy
from everram.runtime.formats.faults import LINK_CORRUPT, LINK_DELAY, LINK_SLOW, ONE_WAY
from everram.runtime.production.machine import SystemMachine


@dataclass(frozen=True, slots=True)
class Conditions:
    delay_s: tuple[float, float] = (0.0, 0.0)
    """What each batch or piece takes longer, from and to."""
    bytes_per_s: float = math.inf
    deaf: bool = False
    """Nothing arrives before the weather changes; then all of it does."""
    damaged: float = 0.0
    """Of so many batches or pieces one bit is changed."""


FAIR = Conditions()
CONDITIONS = {
    "": FAIR,
    LINK_DELAY: Conditions(delay_s=(0.005, 0.05)),
    LINK_SLOW: Conditions(bytes_per_s=256 * 1024),
    LINK_CORRUPT: Conditions(damaged=0.1),
    ONE_WAY: Conditions(deaf=True),
}
"""By the fault's name."""


class Weather:
    """Of one host."""

    def __init__(self, entropy: Entropy) -> None:
        self.name = ""
        self.damages = 0
        """Bits that were changed."""
        self._conditions = FAIR
        self._entropy = entropy
        self._changed = asyncio.Event()
        self._watchers: dict[object, Callable[[], None]] = {}

    @staticmethod
    def of(machine: SystemMachine, entropy: Entropy) -> Weather:
        weather = Weather(entropy)
        weather.set(machine.weather)
        machine.on_weather = weather.set
        return weather

    def set(self, name: str) -> None:
        """A name that this version does not know is fair weather."""
        self.name, self._conditions = name, CONDITIONS.get(name, FAIR)
        self.look()
        for on_change in list(self._watchers.values()):
            on_change()

    # -- the link

    def look(self) -> None:
        """Something that is waited for may have come."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def passes(self, data: bytes, closed: Callable[[], bool]) -> bytes:
        """When it arrives, as it arrives, or when nobody wants it any more (and somebody said `look`)."""
        while self._conditions.deaf and not closed():
            await self._changed.wait()
        if self.fair:
            return data
        await self._pass_time(self.pause_s(len(data)) or 0.0, closed)
        if not self._draws_damage():
            return data
        piece = bytearray(data)
        self._damage(memoryview(piece))
        return bytes(piece)

    async def _pass_time(self, pause_s: float, closed: Callable[[], bool]) -> None:
        """Unless the weather becomes fair, or nobody wants what is waited for."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + pause_s
        while not self.fair and not closed() and loop.time() < until_s:
            try:
                async with asyncio.timeout_at(until_s):
                    await self._changed.wait()
            except TimeoutError:
                return

    # -- tcp_framing.Weather

    @property
    def fair(self) -> bool:
        return self._conditions is FAIR

    def damage(self, piece: memoryview) -> None:
        if self._draws_damage():
            self._damage(piece)

    def pause_s(self, count: int) -> float | None:
        conditions = self._conditions
        if conditions.deaf:
            return None
        if not count:
            return 0.0
        return self._entropy.uniform(*conditions.delay_s) + count / conditions.bytes_per_s

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        token = object()
        self._watchers[token] = on_change

        def unwatch() -> None:
            self._watchers.pop(token, None)

        return unwatch

    def _draws_damage(self) -> bool:
        rate = self._conditions.damaged
        return rate > 0 and self._entropy.uniform(0, 1) < rate

    def _damage(self, piece: memoryview) -> None:
        if piece:
            self.damages += 1
            at = int(self._entropy.uniform(0, 8 * len(piece) - 1))
            piece[at // 8] ^= 1 << at % 8
