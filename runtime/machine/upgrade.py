"""The upgrade of the host software, as the machine's core decides it: a successor is started warm beside the host, says
whether it can take the memory, and takes it when the host has handed over.

    perform(core.upgrade.begin(now_ns))                    # -> [StartSuccessor(incarnation=2)]
    perform(core.upgrade.verdict(now_ns, 2, [], {...}))    # -> [HandOver()]: from here on there is no way back
    perform(core.upgrade.handed_over(now_ns, 1))           # -> [PassMemory(2)]
    perform(core.host_ready(now_ns, 2))                    # -> [Upgraded(None)]

    step       event                             next       effects
    (none)     begin                             warming    StartSuccessor
    warming    alive                             warming    -
    warming    verdict: it can                   handing    HandOver                (the point of no return)
    warming    verdict: it cannot, or nothing
               more was asked                    (none)     EndSuccessor, Upgraded
    warming    successor_exited, its time is up,
               the host exits, mains off, stop,
               give_up                           (none)     EndSuccessor, Upgraded  (the old host serves as before)
    handing    handed_over, the host exits       taking     PassMemory              (with pause: stopping first)
    handing    its time is up                    handing    KillHost
    handing    successor_exited                  (none)     Upgraded                (the old software starts again)
    stopping   every guest has stopped, or
               its time is up                    taking     PassMemory
    stopping   successor_exited                  (none)     Upgraded                (likewise; guests go on)
    taking     ingested                          taking     guests go on
    taking     host_ready                        (none)     Upgraded
    taking     the host exits                    taking     StartHost, with the new software, from the same memory
    taking     it refuses, or exits for the
               second time                       (none)     UseFormer, StartHost, Upgraded

From PassMemory on the successor is the core's host. A host that dies while it hands over has handed over: whatever it
left, its successor takes, as the successor of any killed host does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everram.runtime.errors import Aborted, EverramError, FailedPrecondition, Unavailable
from everram.runtime.machine.effects import (
    EndSuccessor,
    HandOver,
    KillHost,
    PassMemory,
    StartSuccessor,
    Upgraded,
    UseFormer,
)

if TYPE_CHECKING:
    from everram.runtime.machine.core import MachineCore
    from everram.runtime.machine.effects import Effect

REASON = "upgrade"
TRIES = 2
"""Lives that the new software gets before the former one is used again."""


class Upgrade:
    """At most one at a time; see the module. Its methods are events of the core, and return its effects."""

    def __init__(self, core: MachineCore) -> None:
        self._core = core
        self.step = ""
        self.incarnation = 0
        """The successor's, while there is a step."""
        self.pause = False
        """Whether guests are stopped for the hand-over."""
        self.only_ask = False
        """Whether the verdict is all that is wanted."""
        self.failures = 0
        """Lives of the new software that ended before they were ready."""
        self.deadline_ns: int | None = None
        """When the step counts as failed; None while there is none, and in taking, where the host's own counts."""
        self.said: dict[str, Any] = {}
        """What the successor said of itself and of the memory, of the last upgrade."""
        self.at_ns: dict[str, int] = {}
        """When each step of the last upgrade began, and when its guests went on ("ingested")."""

    # -- events --------------------------------------------------------------------------------------------------------

    def begin(self, now_ns: int, *, pause: bool = False, only_ask: bool = False) -> list[Effect]:
        """Raises FailedPrecondition, with the reason in words for a person."""
        core = self._core
        core.effects.extend(core.tick(now_ns))
        self._check_begin()
        self.pause, self.only_ask, self.failures, self.said, self.at_ns = pause, only_ask, 0, {}, {}
        core.host.started += 1
        self.incarnation = core.host.started
        self._enter("warming", now_ns, core.limits.warm_ns)
        core.effects.append(StartSuccessor(self.incarnation))
        return core.take()

    def alive(self, now_ns: int, incarnation: int) -> list[Effect]:
        """WATCHDOG=1 of the successor: importing much of a new version for the first time takes long."""
        if self.step == "warming" and incarnation == self.incarnation:
            self.deadline_ns = now_ns + self._core.limits.warm_ns
        return self._core.tick(now_ns)

    def verdict(self, now_ns: int, incarnation: int, reasons: list[str], said: dict[str, Any]) -> list[Effect]:
        """`reasons` why it cannot take the memory; none: it can. `said` is for people."""
        core = self._core
        if self.step == "warming" and incarnation == self.incarnation:
            self.said = said
            if reasons:
                self._end(FailedPrecondition("; ".join(reasons)), kill=True)
            elif self.only_ask:
                self._end(None, kill=True)
            else:
                self._enter("handing", now_ns, core.limits.hand_over_ns)
                core.effects.append(HandOver())
        return core.tick(now_ns)

    def handed_over(self, now_ns: int, incarnation: int) -> list[Effect]:
        """The host has let go of everything; it will end by itself."""
        if self.step == "handing" and incarnation == self._core.host.incarnation:
            self.host_gone(now_ns)
        return self._core.tick(now_ns)

    def ingested(self, now_ns: int, incarnation: int) -> list[Effect]:
        """The successor has every descriptor, and has read the metadata."""
        if self.step == "taking" and incarnation == self._core.host.incarnation:
            self.at_ns.setdefault("ingested", now_ns)
            self._core.drop_machine_reason(REASON)
        return self._core.tick(now_ns)

    def successor_exited(self, now_ns: int, incarnation: int, exit_status: int) -> list[Effect]:
        """Before the memory was passed to it."""
        if self.step in ("warming", "handing", "stopping") and incarnation == self.incarnation:
            how = f"status {exit_status}" if exit_status <= 128 else f"signal {exit_status - 128}"
            late = self.step != "warming"
            after = "; the former software starts again" if late else "; the host serves as before"
            host_waits = self.step == "stopping"
            self._end(
                FailedPrecondition(f"the new host software ended ({how}) before it had taken over, see host.log{after}")
            )
            if host_waits:
                self._core.start_host(now_ns)
        return self._core.tick(now_ns)

    def give_up(self, now_ns: int) -> list[Effect]:
        """Whoever asked for it wants it no more. Behind the point of no return nothing changes: it comes to its end."""
        if self.step == "warming":
            self._end(Aborted("it was given up: the host serves as before"), kill=True)
        return self._core.tick(now_ns)

    # -- told by the core ----------------------------------------------------------------------------------------------

    def abort(self, why: str) -> None:
        """If there is still a way back, or the machine ends anyway."""
        if self.step == "warming" or (self.step and self._core.stopping):
            self._end(Unavailable(why), kill=self.step != "taking")

    def host_gone(self, now_ns: int) -> bool:
        """The host has exited, or has handed over: whether the successor follows."""
        if self.step == "warming":
            self.abort("the host ended while its successor was being started; it is started again, try once more")
        if self.step != "handing":
            return False
        core = self._core
        core.forget_requests()
        core.host.state, core.host.deadline_ns = "leaving", None
        if self.pause:
            self._enter("stopping", now_ns, core.limits.pause_ns)
            core.add_machine_reason(REASON)
            self.advance(now_ns)
        else:
            self._pass_memory(now_ns)
        return True

    def host_ready(self, now_ns: int) -> None:
        if self.step == "taking":
            self.at_ns.setdefault("ingested", now_ns)
            self._core.host.short_lives = 0  # those were other software's
            self._end(None)
            self.at_ns["ready"] = now_ns

    def host_failed(self, *, refused: bool) -> None:
        """The new software has ended before it was ready."""
        if self.step != "taking":
            return
        self.failures += 1
        self._core.drop_machine_reason(REASON)
        if refused or self.failures >= TRIES:
            self._core.effects.append(UseFormer())
            self._end(
                FailedPrecondition(
                    "the new host software took the memory and ended before it served, see host.log; "
                    "the former software starts again"
                )
            )

    def advance(self, now_ns: int) -> None:
        """At every event, with the time."""
        if self.step == "stopping" and self._core.still():
            self._pass_memory(now_ns)
        if self.deadline_ns is None or now_ns < self.deadline_ns:
            return
        if self.step == "warming":
            self._end(Unavailable("the new host software said nothing for too long; the host serves as before"), True)
        elif self.step == "handing":
            self.deadline_ns = None
            self._core.effects.append(KillHost("the host has not handed over in time"))
        elif self.step == "stopping":
            self._pass_memory(now_ns)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _check_begin(self) -> None:
        core = self._core
        if self.step:
            raise FailedPrecondition("the host is being upgraded already: wait for that to end")
        if core.stopping or core.off:
            raise FailedPrecondition("the machine is stopping")
        if core.host.state != "ready":
            raise FailedPrecondition(f"the host is {core.host.state}: an upgrade needs one that serves")
        if core.needs_host:
            raise FailedPrecondition("the mains have failed: upgrade when they are back")

    def _enter(self, step: str, now_ns: int, limit_ns: int | None) -> None:
        self.step = step
        self.at_ns[step] = now_ns
        self.deadline_ns = None if limit_ns is None else now_ns + limit_ns

    def _pass_memory(self, now_ns: int) -> None:
        core = self._core
        self._enter("taking", now_ns, None)
        core.begin_host(now_ns, self.incarnation)
        core.effects.append(PassMemory(self.incarnation))

    def _end(self, error: EverramError | None, kill: bool = False) -> None:
        if kill:
            self._core.effects.append(EndSuccessor())
        self.step, self.deadline_ns, self.incarnation = "", None, 0
        self._core.drop_machine_reason(REASON)
        self._core.effects.append(Upgraded(error))

    def validate(self) -> None:
        assert self.step in ("", "warming", "handing", "stopping", "taking"), self.step
        assert (self.incarnation > 0) == bool(self.step)
        assert self.step not in ("warming", "stopping") or self.deadline_ns is not None
        assert self.step != "stopping" or self._core.host.state == "leaving"
        assert self._core.host.state != "leaving" or self.step == "stopping"
