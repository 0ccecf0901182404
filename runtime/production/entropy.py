"""`environment.Entropy` of a real computer."""

from __future__ import annotations

import os
import random


class SystemEntropy:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def randbytes(self, n: int) -> bytes:
        return os.urandom(n)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def token(self) -> str:
        return os.urandom(8).hex()
