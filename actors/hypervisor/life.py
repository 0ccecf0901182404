"""The life of a guest: what follows from how an incarnation ended, and when.

Plain and synchronous; time is passed in. The states are those of `GuestState`, and this is the whole table:

    from          event                                     to
    STARTING      spawned                                   RUNNING
    STARTING      could not be spawned                      FAILED      (its user is told; nothing of it remains)
    RUNNING       machine froze it                          FROZEN
    FROZEN        machine thawed it                         RUNNING
    RUNNING       ended, and its policy restarts it         RESTARTING  (after a back-off)
    RUNNING       ended, and its policy does not            EXITED
    RUNNING       ended too often                           FAILED
    FROZEN        its lease ran out, the machine killed it  RESTARTING  (whatever its policy: it did not end by itself)
    RESTARTING    spawned                                   RUNNING
    any           stop                                      STOPPED
    STOPPED, EXITED, FAILED   start, restart                STARTING

FROZEN is the machine's knowledge and is never stored: a host that asks the machine cannot be wrong about it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from everram.runtime.contracts import common_pb2 as pb

ENDED = frozenset({pb.STOPPED, pb.EXITED, pb.FAILED})
"""States in which no incarnation lives and none is coming by itself."""

FIRST_BACKOFF_S = 0.05
"""The first restart is nearly at once: most crashes are single, and clients are waiting."""
LONGEST_BACKOFF_S = 5.0
WINDOW_S = 60.0
"""Ends that lie further back than this no longer count."""
MAX_ENDS_IN_WINDOW = 20
"""With the back-off above, a guest that dies at once is given up after about a minute."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Begin a new incarnation after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Begin none; the guest is now in `state` because of `reason`."""

    state: pb.GuestState
    reason: str


@dataclass(slots=True)
class Ends:
    """When the incarnations of one guest ended by themselves, as far as it matters for the next one."""

    recent_s: deque[float] = field(default_factory=deque)

    def decide(self, policy: pb.RestartPolicy, exit_status: int, now_s: float) -> Restart | Rest:
        """What follows from an end with `exit_status` (exit code, or 128 + signal) at `now_s`."""
        if policy == pb.NO or (policy != pb.ALWAYS and exit_status == 0):
            return Rest(pb.EXITED, describe(exit_status))
        while self.recent_s and now_s - self.recent_s[0] > WINDOW_S:
            self.recent_s.popleft()
        self.recent_s.append(now_s)
        if len(self.recent_s) > MAX_ENDS_IN_WINDOW:
            reason = f"ended {len(self.recent_s)} times in {WINDOW_S:.0f} s, the last time it {describe(exit_status)}"
            return Rest(pb.FAILED, f"{reason}: see its logs, then start it again")
        return Restart(min(FIRST_BACKOFF_S * 2 ** (len(self.recent_s) - 1), LONGEST_BACKOFF_S))


def describe(exit_status: int) -> str:
    """`exited with status 3`, `was killed by signal 9`."""
    if exit_status > 128:
        return f"was killed by signal {exit_status - 128}"
    return f"exited with status {exit_status}"


def word(state: pb.GuestState) -> str:
    """`running`, as a person reads it."""
    return pb.GuestState.Name(state).lower()
