"""Randomness of a simulation: one seed, one independent stream for each component, derived by name.

A component asks once, `seeds.stream("network/h1")`, and draws from its own stream only, so that a draw more in one
place does not shift what another place sees. This is the only module of the simulation that touches `random`.
"""

from __future__ import annotations

import random
from hashlib import blake2b

Stream = random.Random
"""A component's own stream: seeded, never the module-level functions."""


class Seeds:
    """Derives streams from one seed; the same name gives the same stream in every process."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, name: str) -> Stream:
        digest = blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        return Stream(int.from_bytes(digest, "little"))


class SimulatedEntropy:
    """`environment.Entropy` from a stream; equal names would give equal identities, so name each incarnation."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def randbytes(self, n: int) -> bytes:
        return self._stream.randbytes(n)

    def uniform(self, low: float, high: float) -> float:
        return self._stream.uniform(low, high)

    def token(self) -> str:
        return self._stream.randbytes(8).hex()
