"""The records a `MachineCore` keeps: of its host, and of the last incarnation of each guest.

Each attribute says its invariant; `validate` asserts them. The events that change them are in `core`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEASE = "lease"
REASONS = frozenset({"snapshot", "upgrade", "power", LEASE, "reclaim", "rehearsal", "suspend", "down"})
"""Why a guest may be frozen."""

EXIT_REFUSED = 78
"""A host's exit status before it was ready: starting again will not help, a person has to choose (EX_CONFIG)."""

EXIT_POWER_OFF = 79
"""A machine's exit status when it had no power any more."""

ALIVE = frozenset({"running", "freezing", "frozen"})
"""The states of a guest whose program runs or could run on."""


@dataclass(slots=True)
class HostLife:
    """The host's state; drivers may read it."""

    state: str = "waiting"
    incarnation: int = 0
    """Counts starts; an event that names another one is of a dead host and is ignored."""
    started: int = 0
    """The last number given out, to hosts and to their successors."""
    deadline_ns: int | None = None
    """waiting: when to start; starting, ready: when it counts as hung; stopping: when to kill. None: nothing is due."""
    ready_at_ns: int | None = None
    """None until this incarnation was ready."""
    waited_ns: int = 0
    """How long it had waited for a processor, in all its life, when it was heard last."""
    put_off_ns: int = 0
    """How much longer it may be silent this time, since it, or this machine, waited for a processor."""
    short_lives: int = 0
    restarts: int = 0
    """Starts after the first, for `status`."""

    def validate(self) -> None:
        states = ("waiting", "starting", "ready", "hung", "leaving", "refused", "stopping", "ended")
        assert self.state in states, self.state
        assert self.incarnation <= self.started
        assert self.state != "ready" or self.ready_at_ns is not None
        timed = self.state in ("starting", "ready") or (self.state == "waiting" and self.incarnation > 0)
        assert not timed or self.deadline_ns is not None, f"nothing ever ends the state {self.state}"
        assert self.state not in ("hung", "leaving", "refused", "ended") or self.deadline_ns is None


@dataclass(slots=True)
class GuestLife:
    """The last incarnation of a guest; drivers may read it."""

    guest_id: str
    epoch: int
    state: str = "spawning"
    pid: int = 0
    """The program's own process; kept until the record goes, see `live_pid`."""
    exit_status: int = -1
    """-1 until the program's process was reaped; then its code, or 128 + signal."""
    reasons: set[str] = field(default_factory=set)
    """Not empty exactly in the states freezing and frozen (an ending guest keeps what it had, for people to read)."""
    lease_announced: bool = False
    """Whether the host knows that "lease" is among the reasons."""
    attachment: str = ""
    """"", "mapping", "waiting" or "attached"."""
    attached_pid: int = 0
    """0 exactly if `attachment` is empty."""
    was_attached: bool = False
    """Whether any process of this incarnation ever attached."""
    waiters: list[int] = field(default_factory=list)
    """Requests that end when the guest is stopped (freezing), spawned (spawning) or gone (ending)."""
    before: GuestLife | None = None
    """While spawning: the ended incarnation that stays if the start fails."""

    @property
    def live_pid(self) -> int:
        return 0 if self.state == "exited" else self.pid

    def validate(self) -> None:
        assert self.state in ("spawning", *ALIVE, "ending", "exited"), self.state
        assert self.reasons <= REASONS
        if self.state in ALIVE:
            assert bool(self.reasons) == (self.state in ("freezing", "frozen")), "stopped without a reason, or not"
        assert self.before is None or self.state == "spawning"
        assert self.epoch > (self.before.epoch if self.before is not None else 0)
        assert (self.exit_status >= 0) >= (self.state == "exited")
        assert self.exit_status < 0 or self.state in ("ending", "exited")
        assert not self.waiters or self.state in ("spawning", "freezing", "ending"), "a request waits for nothing"
        assert self.attachment in ("", "mapping", "waiting", "attached")
        assert (self.attached_pid != 0) == bool(self.attachment)
        assert not self.attachment or self.state in (*ALIVE, "ending")
