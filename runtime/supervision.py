"""Supervision: whether, and when, a failed actor is started again. Plain and synchronous; time is passed in.

    running     its task or its start failed     restarting (after a back-off), or failed if it failed too often
    restarting  started                          running
    failed      -                                the node fails with it, and the machine starts a new host process

An actor is restarted with the messages that wait in its mailbox; the ask it was busy with ends as *unknown*.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often an actor may fail before its node fails with it."""

    max_restarts: int = 5
    """Within the window; one more is a failure of the node."""
    window_s: float = 30.0
    """Failures that lie further back are forgotten."""
    first_backoff_s: float = 0.02
    """Nearly at once: most failures are single, and a host's lease of 2 s runs meanwhile."""
    longest_backoff_s: float = 1.0


NEVER = RestartPolicy(max_restarts=0)
"""For an actor without which its node must not go on."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again."""

    reason: str


@dataclass(slots=True)
class Failures:
    """The failures of one actor, as far as they matter for the next one."""

    policy: RestartPolicy
    recent_s: deque[float] = field(default_factory=deque)

    def decide(self, now_s: float) -> Restart | GiveUp:
        """What to do about a failure at `now_s`; times never go back."""
        policy = self.policy
        while self.recent_s and self.recent_s[0] <= now_s - policy.window_s:
            self.recent_s.popleft()
        self.recent_s.append(now_s)
        if len(self.recent_s) > policy.max_restarts:
            return GiveUp(f"it failed {len(self.recent_s)} times within {policy.window_s:g} s")
        return Restart(min(policy.first_backoff_s * 2 ** (len(self.recent_s) - 1), policy.longest_backoff_s))
