"""How long a copy waits for room before it gives its snapshots up.

    patience = Patience(stores_left)
    if patience.is_out(stores_left): ...       # after each attempt that failed

Purging, where it can make room, has made some by then. A copy's guest must neither wait for a full disk of another
host, nor be kept from going on there.
"""

from __future__ import annotations

from dataclasses import dataclass

STUCK_TRIES, TRIES_MAX = 10, 50
"""Attempts without any progress, and altogether for one run."""


@dataclass(slots=True)
class Patience:
    """See the module. `left`: stores of the run that are still to be made."""

    left: int
    stuck: int = 0
    tries: int = 0

    def is_out(self, left: int) -> bool:
        """One more attempt has failed. Again and again, for what was asked then may have been refused."""
        self.tries += 1
        self.stuck = self.stuck + 1 if left == self.left else 1
        self.left = left
        return self.stuck % STUCK_TRIES == 0 or self.tries % TRIES_MAX == 0
