"""When a host renews its lease, and until when its guests may serve: plain decisions, the time passed in.

    none  --granted-->  kept  --gone-->  lost  --(published deadline passed), granted-->  kept

- `next_step` says what to do now: wait, ask for a lease, or renew it. After each attempt exactly one of `granted`,
  `renewed`, `gone`, `failed` is called.
- The deadline counts from the *sending* of a renewal, and is shortened by what two clocks may differ in that time
  (CLOCK_DRIFT_MAX), so it is never later than the server's own.
- A deadline once published cannot be called back. So after the lease was lost no new one is asked for until the last
  published deadline has passed: by then the machine has frozen every guest of the lost lease, and none of them goes on
  under the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

RENEW_EVERY_S = 0.3
"""Six attempts within the default TTL of 2 s."""
RETRY_S = (0.05, 0.1, 0.2)
"""Pauses after the first, second and every later failed attempt in a row: a restart of the server takes about 0.3 s."""
SERVE_MARGIN_S = 0.5
"""A new incarnation begins only with this much time left: the machine freezes 0.15 s before the deadline, and starting
a process takes a while."""


CLOCK_DRIFT_MAX = 0.01
"""By how much any two computers' clocks may differ in rate, as a part of the time: twenty times what an operating
system slews a clock by to set it right, hundreds of times what crystals differ by. Beyond it leases are not safe."""


@dataclass(frozen=True, slots=True)
class Wait:
    until_ns: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Ask for a new lease."""


@dataclass(frozen=True, slots=True)
class Renew:
    lease: int


Step = Wait | Grant | Renew


class LeaseKeeper:
    """`lease`: one that a predecessor left, 0 for none; `published_ns`: the last deadline guests were given."""

    def __init__(self, ttl_s: float, *, lease: int = 0, published_ns: int = 0) -> None:
        self.ttl_s = ttl_s
        self.lease = lease
        self.deadline_ns = 0
        """Until when guests of this lease may serve; 0 before the first renewal and after the lease was lost."""
        self.renewals = 0
        self.failures = 0
        self._published_ns = published_ns
        self._due_ns = 0
        self._failures_in_a_row = 0
        self._renew_every_s = min(RENEW_EVERY_S, ttl_s / 6)

    def next_step(self, now_ns: int) -> Step:
        if now_ns < self._due_ns:
            return Wait(self._due_ns)
        if self.lease:
            return Renew(self.lease)
        if now_ns < self._published_ns:
            return Wait(self._published_ns)
        return Grant()

    def granted(self, lease: int, sent_ns: int, ttl_s: float) -> None:
        assert not self.lease, "a lease is kept until it is gone"
        self.lease = lease
        self.renewed(sent_ns, ttl_s)

    def renewed(self, sent_ns: int, ttl_s: float) -> None:
        """A server may grant more than was asked for; guests are promised the configured TTL."""
        serving_s = min(ttl_s, self.ttl_s) * (1 - CLOCK_DRIFT_MAX)
        self.deadline_ns = max(self.deadline_ns, sent_ns + int(serving_s * 1e9))
        self._published_ns = max(self._published_ns, self.deadline_ns)
        self._due_ns = sent_ns + int(self._renew_every_s * 1e9)
        self._failures_in_a_row = 0
        self.renewals += 1

    def failed(self, now_ns: int) -> None:
        """No answer: the lease may or may not have been renewed, so the deadline stays."""
        pause_s = RETRY_S[min(self._failures_in_a_row, len(RETRY_S) - 1)]
        self._failures_in_a_row += 1
        self.failures += 1
        self._due_ns = now_ns + int(pause_s * 1e9)

    def gone(self) -> None:
        """The server has no such lease: nobody may be given a later deadline under it."""
        self.lease = 0
        self.deadline_ns = 0
        self._due_ns = 0

    def remaining_s(self, now_ns: int) -> float:
        return max(0.0, (self.deadline_ns - now_ns) / 1e9)

    def serves(self, now_ns: int) -> bool:
        """Whether a new incarnation may begin under the lease."""
        return self.remaining_s(now_ns) > min(SERVE_MARGIN_S, self.ttl_s / 3)
