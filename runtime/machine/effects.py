"""What a `MachineCore` tells its driver to do, and the times it goes by.

Each effect says which event of the core reports what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from everram.runtime.errors import EverramError

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The times a machine goes by."""

    watchdog_ns: int = 500 * MILLISECOND_NS
    """A ready host that says nothing for so long is hung; it pings five times as often."""
    start_ns: int = 10 * SECOND_NS
    """A host that is not ready after so long is hung; long, because a loaded computer and a restore are slow."""
    warm_ns: int = 30 * SECOND_NS
    """A successor that says nothing for so long is given up; longer, because it leaves the processor to others, and
    nobody waits for it but who asked for it."""
    lease_margin_ns: int = 150 * MILLISECOND_NS
    """Guests stop so long before the lease's deadline: time to stop every process on a loaded computer (D5)."""
    stop_grace_ns: int = 2 * SECOND_NS
    """A host has so long to end after its socket closed."""
    stable_ns: int = 1 * SECOND_NS
    """A host that was ready for so long did not live a short life."""
    patience: int = 2
    """So many short lives in a row are followed by a restart at once."""
    delay_first_ns: int = 50 * MILLISECOND_NS
    delay_limit_ns: int = 5 * SECOND_NS
    """The pause before a restart doubles from the first to the limit: slow enough to harm nothing, never for ever."""
    hand_over_ns: int = 8 * SECOND_NS
    """A host that is upgraded has so long to finish what it has in hand; then it is killed, and handed over by that."""
    leave_ns: int = 6 * SECOND_NS
    """One that has handed over has so long to pass on what still comes on its old connections."""
    pause_ns: int = 1 * SECOND_NS
    """Guests that are stopped for a hand-over have so long to stop; then it goes on without."""
    battery_ns: int = 30 * SECOND_NS
    """How long everything runs without mains, from a full battery. It fills again as fast as it is used."""
    late_tick_ns: int = 50 * MILLISECOND_NS
    """A tick later than this means that the machine itself did not run: the host's pings may just not be read yet."""

    restart_ns: int = 600 * MILLISECOND_NS
    """A host that takes a silent one's place renews the lease so soon; none is waited for longer than that allows."""
    starved_ns: int = 2 * SECOND_NS
    """A silent host's deadline is put off by so much at most in all, for what it or its machine waited for a processor:
    one that is stopped, or does nothing but run, hangs however busy the computer is."""

    def restart_delay_ns(self, short_lives: int) -> int:
        """How long to wait before the next host, after so many short lives in a row."""
        excess = short_lives - self.patience
        if excess <= 0:
            return 0
        # The exponent is bounded so that a machine left alone for a year does not compute huge powers.
        return min(self.delay_first_ns << min(excess - 1, 20), self.delay_limit_ns)


@dataclass(frozen=True, slots=True)
class StartHost:
    """Start a host process; its end is `host_exited`, even if it could not be executed."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class KillHost:
    """SIGKILL."""

    why: str = field(default="", compare=False)
    """For the log."""


@dataclass(frozen=True, slots=True)
class HangHost:
    """SIGSTOP: a fault for tests; the watchdog finds it."""


@dataclass(frozen=True, slots=True)
class CloseHost:
    """Close the host's socket, which tells it to end."""


@dataclass(frozen=True, slots=True)
class StartSuccessor:
    """Start the new host software beside the host, without memory; its end is `upgrade.successor_exited`."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class EndSuccessor:
    """SIGKILL to the successor, if it runs."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Tell the host to finish and let go; then `upgrade.handed_over`, or its end."""


@dataclass(frozen=True, slots=True)
class PassMemory:
    """The successor is the host now: give it every descriptor. The one before has ended, or ends by itself."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class UseFormer:
    """Start hosts with the software from before the upgrade again."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The upgrade has ended; without an error as it was wished."""

    error: EverramError | None


@dataclass(frozen=True, slots=True)
class SpawnGuest:
    """Start the guest's program; then `guest_spawned` or `spawn_failed`, at once or later."""

    guest_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StopGuest:
    """Stop every process of the guest; `guest_stopped` when none runs, unless `ContinueGuest` or its end came first."""

    guest_id: str


@dataclass(frozen=True, slots=True)
class ContinueGuest:
    guest_id: str


@dataclass(frozen=True, slots=True)
class KillGuest:
    """SIGKILL every process of the guest; `guest_exited` for the first, `guest_gone` when none is left."""

    guest_id: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Tell the attaching process to go on."""

    guest_id: str


@dataclass(frozen=True, slots=True)
class Notify:
    """An event for the host, if there is one: the fields are those of `environment.MachineEvent`."""

    kind: str
    guest_id: str = ""
    epoch: int = 0
    exit_status: int = -1
    pid: int = 0
    mains: bool = True
    connected: bool = True
    weather: str = ""
    reason: str = ""
    deadline_ns: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    request: int


@dataclass(frozen=True, slots=True)
class Failed:
    request: int
    error: EverramError


@dataclass(frozen=True, slots=True)
class PowerOff:
    """There is no power any more: everything below the machine ends at once, its memory is gone, and so is it."""

    why: str


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left: the machine may end."""


Effect = (
    StartHost | KillHost | HangHost | CloseHost | SpawnGuest | StopGuest | ContinueGuest | KillGuest
    | Admit | Notify | Done | Failed | PowerOff | End
    | StartSuccessor | EndSuccessor | HandOver | PassMemory | UseFormer | Upgraded
)  # fmt: skip
