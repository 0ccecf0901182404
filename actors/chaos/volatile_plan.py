"""What a seed draws for guests' volatile memory: how much they were promised, and how little there is for it."""

from __future__ import annotations

from dataclasses import dataclass

from everram.runtime.memory.contract import PAGE_BYTES
from everram.runtime.simulation.entropy import Stream

GUEST_BYTES = 1 << 20
"""Of each guest: the least there may be."""
SHARES = (0.35, 0.5, 0.7, 1.5)
"""Of what the guests on one host were promised: what it has for them. In the last case nothing has to be taken."""
SWAP_MARGINS = (1.01, 1.01, 1.5)
"""Times the least swap space with which any host has room for all guests: with the smallest it is full before memory is
enough."""


@dataclass(frozen=True, slots=True)
class VolatilePlan:
    guest_bytes: int
    limit_bytes: int
    """Of each host, for all guests there."""
    swap_bytes: int
    agents: tuple[bool, ...]
    """Of each guest: whether its agent listens. One that does not is a guest whose balloon does nothing."""
    used: float
    """Part of its memory that a guest uses."""

    @staticmethod
    def draw(stream: Stream, guests: int, together: int) -> VolatilePlan:
        """`together`: how many of them are on one host as long as nothing has happened."""
        promised = guests * GUEST_BYTES
        limit = _pages(together * GUEST_BYTES * stream.choice(SHARES))
        # A quarter of so small a limit has to stay available, and does not count where guests are admitted.
        short = max(PAGE_BYTES, promised - limit * 3 // 4)
        return VolatilePlan(
            guest_bytes=GUEST_BYTES,
            limit_bytes=limit,
            swap_bytes=_pages(short * stream.choice(SWAP_MARGINS)) + PAGE_BYTES,
            agents=tuple(stream.random() < 0.7 for _ in range(guests)),
            used=stream.uniform(0.6, 0.95),
        )

    def __str__(self) -> str:
        silent = self.agents.count(False)
        return (
            f"{self.limit_bytes >> 10} KiB for guests of {self.guest_bytes >> 10} KiB with {self.swap_bytes >> 10} KiB "
            f"of swap, {silent} without an agent"
        )


def _pages(size_bytes: float) -> int:
    return int(size_bytes) // PAGE_BYTES * PAGE_BYTES
