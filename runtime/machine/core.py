"""The machine's decisions, without I/O: events with the time go in, effects to carry out come back.

`runtime/machine/process.py` drives one `MachineCore` with real processes, the simulation drives another with simulated
ones; there are no other rules of a machine than these. How to drive it:

    core = MachineCore(Limits())
    perform(core.start(now_ns))                     # -> [StartHost(incarnation=1)]
    perform(core.host_ready(now_ns, incarnation=1)) # something happened: call the method of that name ...
    perform(core.tick(now_ns))                      # ... and `tick` no later than core.next_deadline_ns()

`perform` carries out each effect in order; what comes of it is reported by the event that `effects` names with it. A
request of the host that is against the rules raises an `EverramError` and changes nothing. A request that takes time
carries a `request` number of the driver's choice, and ends in one `Done` or `Failed` with it, unless its host dies
first. Every event first does what the time demands, so a lease that ran out is out, whatever the event says.

The host:

    state      event                        next       effects
    waiting    restart time reached         starting   StartHost
    starting   host_ready                   ready      Notify mains, if it is off
    starting   host_alive                   starting   -
    starting   start timeout                hung       KillHost
    starting   host_exited                  waiting    -
    ready      host_alive                   ready      -
    ready      watchdog timeout             hung       KillHost        (put off by what it waited for a processor)
    ready      host_disconnected            hung       KillHost        (likewise from starting)
    ready      host_exited                  waiting    -
    hung       host_exited                  waiting    -
    starting   host_exited, refusing        refused    -               (a person has to choose; see its log; likewise
                                                                        from hung, if it never was ready)
    refused    retry_host                   starting   StartHost       (likewise from waiting)
    any        stop                         stopping   CloseHost; KillHost after the grace
    stopping   host_exited                  ended      -
    ready      it hands over for an upgrade leaving    -               (`upgrade` has the steps; then it is the
                                                                        successor that is starting)

A restart is at once, except after several short lives in a row: then it waits longer and longer, up to a limit, and
never gives up.

One incarnation of a guest:

    state      event                        next       effects
    (none)     spawn                        spawning   SpawnGuest
    spawning   guest_spawned                running    Done
    spawning   spawn_failed                 (as was)   Failed
    running    freeze, lease runs out       freezing   StopGuest
    freezing   guest_stopped                frozen     Done for each that waits; Notify frozen for the lease
    freezing   thaw of the last reason      running    ContinueGuest; Failed for each that waits
    frozen     thaw of the last reason      running    ContinueGuest
    frozen     freeze                       frozen     Done
    alive      kill, guest_exited, stop     ending     KillGuest      (alive: running, freezing, frozen)
    ending     guest_gone                   exited     Notify exited; Done for each that waits
    exited     forget                       (none)     -
    exited     spawn with a higher epoch    spawning   SpawnGuest

A guest is stopped exactly while its set of reasons is not empty. Reasons outlive hosts. The reason "lease" is never
taken away: it ends in a kill. Attachment of one process of the guest at a time:

    (none)     attach, nothing tracked      attached   Notify attached
    (none)     attach, something tracked    mapping    -
    mapping    tracked                      waiting    Notify attached
    mapping    untracked                    attached   Notify attached
    waiting    admit                        attached   Admit
    any        detached, end of the guest   (none)     Notify detached (while the guest lives)
"""

from __future__ import annotations

from collections.abc import Callable

from everram.runtime.errors import (
    Aborted,
    AlreadyExists,
    EverramError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from everram.runtime.machine.effects import (
    Admit,
    CloseHost,
    ContinueGuest,
    Done,
    Effect,
    End,
    Failed,
    HangHost,
    KillGuest,
    KillHost,
    Limits,
    Notify,
    PowerOff,
    SpawnGuest,
    StartHost,
    StopGuest,
)
from everram.runtime.machine.lives import ALIVE, EXIT_REFUSED, LEASE, REASONS, GuestLife, HostLife
from everram.runtime.machine.upgrade import Upgrade


class MachineCore:
    """See the module's docstring. `now_ns` is CLOCK_MONOTONIC, or virtual time."""

    def __init__(self, limits: Limits, host_waited_ns: Callable[[], int] = lambda: 0) -> None:
        """`host_waited_ns`: how long the host's process has been kept from a processor in all."""
        self.limits = limits
        self.host = HostLife()
        self._host_waited_ns = host_waited_ns
        self.guests: dict[str, GuestLife] = {}
        self.reasons: set[str] = set()
        """Reasons of the whole machine: every guest that is alive has them, and none is started meanwhile."""
        self.lease_deadline_ns = 0
        """Guests may serve until then; 0: no lease was ever given."""
        self.mains = True
        self._battery_ns = limits.battery_ns
        """What was left when the mains last came or went, at `_battery_at_ns`."""
        self._battery_at_ns = 0
        self._failing = False
        """The mains were lost, and the host has not gone back to work since."""
        self.off = False
        """Whether `PowerOff` was given."""
        self.cut = False
        """Whether the machine is cut off from the network: a fault for tests, carried out by its hosts."""
        self.weather = ""
        """The fault of its links, likewise; empty: none."""
        self.waiters: dict[int, str] = {}
        """Requests, and their reasons, that end when no guest runs any more."""
        self.stopping = False
        self.ended = False
        """Whether `End` was given."""
        self.upgrade = Upgrade(self)
        self.effects: list[Effect] = []

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When `tick` must be called at the latest; None if time alone changes nothing.

        0 after a refused request that came with something due: `tick` hands it out.
        """
        if self.effects:
            return 0
        due = [self.host.deadline_ns, self.upgrade.deadline_ns, self._lease_end_ns(), self._power_end_ns()]
        return min((at for at in due if at is not None), default=None)

    def tick(self, now_ns: int) -> list[Effect]:
        self._advance(now_ns)
        return self.take()

    def serving(self, now_ns: int) -> bool:
        """Whether the lease still lets guests run."""
        return now_ns < self.lease_deadline_ns - self.limits.lease_margin_ns

    def _lease_end_ns(self) -> int | None:
        if any(guest.state in ALIVE and LEASE not in guest.reasons for guest in self.guests.values()):
            return self.lease_deadline_ns - self.limits.lease_margin_ns
        return None

    def battery_ns(self, now_ns: int) -> int:
        """How long the battery lasts from now on, without mains."""
        passed_ns = now_ns - self._battery_at_ns
        left_ns = self._battery_ns + (passed_ns if self.mains else -passed_ns)
        return max(0, min(self.limits.battery_ns, left_ns))

    def _power_end_ns(self) -> int | None:
        return None if self.mains or self.off else self._battery_at_ns + self._battery_ns

    def _advance(self, now_ns: int) -> None:
        end_ns = self._power_end_ns()
        if end_ns is not None and now_ns >= end_ns:
            self._power_off("the battery is empty")
        if not self.serving(now_ns):
            for guest in self._alive():
                self._add_reason(guest, LEASE)
        self.upgrade.advance(now_ns)
        due = self.host.deadline_ns
        if due is not None and now_ns >= due:
            self._host_due(now_ns, late_ns=now_ns - due)

    def _host_due(self, now_ns: int, late_ns: int) -> None:
        host = self.host
        if host.state == "waiting":
            self.start_host(now_ns)
        elif host.state == "ready" and (longer_ns := self._longer_ns(now_ns, late_ns)):
            host.put_off_ns += late_ns + longer_ns
            host.deadline_ns = now_ns + longer_ns
        else:
            said = "has not ended in time" if host.state == "stopping" else f"is {host.state} and says nothing"
            host.deadline_ns = None
            if host.state != "stopping":
                host.state = "hung"
            self.effects.append(KillHost(f"the host {said}"))

    def _longer_ns(self, now_ns: int, late_ns: int) -> int:
        """How much longer a silent host may be silent: as long as this machine is late to look, or as long as the host
        was ready to run and a busy computer gave others the processor. A new host would get no more of it."""
        host, limits = self.host, self.limits
        starved_ns = self._host_waited_ns() - host.waited_ns - host.put_off_ns
        if late_ns > limits.late_tick_ns:
            longer_ns = min(late_ns, limits.watchdog_ns)
        else:
            longer_ns = starved_ns if starved_ns > limits.late_tick_ns else 0
        left_ns = limits.starved_ns - host.put_off_ns
        if self.lease_deadline_ns:  # under which guests shall still be when another host renews it
            left_ns = min(left_ns, self.lease_deadline_ns - limits.lease_margin_ns - limits.restart_ns - now_ns)
        return max(0, min(longer_ns, left_ns))

    def _host_heard(self, now_ns: int) -> None:
        host = self.host
        host.deadline_ns = now_ns + self.limits.watchdog_ns
        host.waited_ns, host.put_off_ns = self._host_waited_ns(), 0

    # -- the host ------------------------------------------------------------------------------------------------------

    def start(self, now_ns: int) -> list[Effect]:
        """Once, first of all: start the host."""
        if self.host.incarnation or self.stopping:
            raise FailedPrecondition("the machine has been started")
        self.start_host(now_ns)
        return self.take()

    def host_ready(self, now_ns: int, incarnation: int) -> list[Effect]:
        """READY=1. Repeated, it is a ping."""
        self._advance(now_ns)
        if self._is_host(incarnation, "starting"):
            self.host.state = "ready"
            self.host.ready_at_ns = now_ns
            self._host_heard(now_ns)
            self.upgrade.host_ready(now_ns)
            if self._failing:  # also if they are back: the host before it may have left guests frozen
                self._notify_mains()
        elif self._is_host(incarnation, "ready"):
            self._host_heard(now_ns)
        return self.take()

    def host_alive(self, now_ns: int, incarnation: int) -> list[Effect]:
        """WATCHDOG=1. Before READY=1 it begins the start timeout anew: restoring much memory takes long."""
        if self._is_host(incarnation, "starting"):
            self.host.deadline_ns = now_ns + self.limits.start_ns
        elif self._is_host(incarnation, "ready"):
            # Before `_advance`: a ping that is read at all, however late the machine's own tick, proves a live host.
            self._host_heard(now_ns)
        self._advance(now_ns)
        return self.take()

    def host_disconnected(self, now_ns: int, incarnation: int) -> list[Effect]:
        """It closed its socket: of no use any more."""
        if self._is_host(incarnation, "starting", "ready"):
            self.host.state = "hung"
            self.host.deadline_ns = None
            self.effects.append(KillHost())
        self._advance(now_ns)
        return self.take()

    def host_exited(self, now_ns: int, incarnation: int, exit_status: int = 0) -> list[Effect]:
        """Its process was reaped. Nobody waits for answers any more; guests and freeze reasons stay as they are."""
        if not self._is_host(incarnation, "starting", "ready", "hung", "stopping"):
            return self.tick(now_ns)
        self.forget_requests()
        host, limits = self.host, self.limits
        if self.stopping:
            host.state, host.deadline_ns = "ended", None
            self._end_if_empty()
        elif self.upgrade.host_gone(now_ns):
            pass
        elif host.ready_at_ns is None and exit_status == EXIT_REFUSED and self.upgrade.step != "taking":
            host.state, host.deadline_ns = "refused", None
        else:
            self.upgrade.host_failed(refused=exit_status == EXIT_REFUSED)
            stable = host.ready_at_ns is not None and now_ns - host.ready_at_ns >= limits.stable_ns
            host.short_lives = 0 if stable else host.short_lives + 1
            host.state, host.deadline_ns = "waiting", now_ns + limits.restart_delay_ns(host.short_lives)
        self._advance(now_ns)
        return self.take()

    def kill_host(self, now_ns: int) -> list[Effect]:
        """The fault `host-kill`. Raises FailedPrecondition if none runs."""
        self._advance(now_ns)
        self._demand_host()
        self.effects.append(KillHost())
        return self.take()

    def hang_host(self, now_ns: int) -> list[Effect]:
        """The fault `hang`. Raises FailedPrecondition if none runs."""
        self._advance(now_ns)
        self._demand_host()
        self.effects.append(HangHost())
        return self.take()

    def retry_host(self, now_ns: int) -> list[Effect]:
        """Start it now, after it refused or instead of waiting longer. Raises FailedPrecondition if one runs."""
        self._advance(now_ns)
        if self.host.state not in ("waiting", "refused"):
            raise FailedPrecondition(f"the host is {self.host.state}")
        self.start_host(now_ns)
        return self.take()

    def _demand_host(self) -> None:
        if self.host.state not in ("starting", "ready", "hung"):
            raise FailedPrecondition(f"no host is running, it is {self.host.state}; try again when it has restarted")

    def _is_host(self, incarnation: int, *states: str) -> bool:
        return incarnation == self.host.incarnation and self.host.state in states

    def start_host(self, now_ns: int) -> None:
        host = self.host
        host.started += 1
        host.restarts += host.incarnation > 0
        self.begin_host(now_ns, host.started)
        self.effects.append(StartHost(host.incarnation))

    def begin_host(self, now_ns: int, incarnation: int) -> None:
        """This one is the host from now on, and is being started."""
        host = self.host
        host.incarnation = incarnation
        host.state, host.ready_at_ns = "starting", None
        host.deadline_ns = now_ns + self.limits.start_ns

    def forget_requests(self) -> None:
        """The host that made them does not wait any more."""
        self.waiters.clear()
        for guest in self.guests.values():
            guest.waiters.clear()

    # -- mains, lease, end ---------------------------------------------------------------------------------------------

    def set_mains(self, now_ns: int, on: bool) -> list[Effect]:
        """Power is there, or from now on only the battery's: the host is told until when at most."""
        self._advance(now_ns)
        if on != self.mains and not self.off:
            self._battery_ns, self._battery_at_ns = self.battery_ns(now_ns), now_ns
            self.mains = on
            self._failing = self._failing or not on
            if not on:
                self.upgrade.abort("the mains have failed: upgrade when they are back")
            self._notify_mains()
        return self.take()

    def _notify_mains(self) -> None:
        self.effects.append(Notify("mains", mains=self.mains, deadline_ns=self._power_end_ns() or 0))

    def power_off(self, now_ns: int) -> list[Effect]:
        """The host has done what it could do on battery. It may have handed its guests over by now, so the machine
        goes off even if the mains have come back in the last moment. Raises FailedPrecondition if they never failed."""
        self._advance(now_ns)
        if not self._failing:
            raise FailedPrecondition("the machine has mains: it is switched off by its end, or by a cut")
        self._power_off("its host has switched it off")
        return self.take()

    def power_kept(self, now_ns: int) -> list[Effect]:
        """The mains came back in time, and the host goes on."""
        self._advance(now_ns)
        self._failing = not self.mains
        return self.take()

    @property
    def needs_host(self) -> bool:
        """Whether the mains failed, and the host has neither switched the machine off nor said that it goes on."""
        return self._failing and not self.off

    def _power_off(self, why: str) -> None:
        if not self.off:
            self.off = True
            self.effects.append(PowerOff(why))

    def set_cut(self, now_ns: int, on: bool) -> list[Effect]:
        """The fault `partition`. A new host is told at its start."""
        self._advance(now_ns)
        if on != self.cut:
            self.cut = on
            self.effects.append(Notify("network", connected=not on, weather=self.weather))
        return self.take()

    def set_weather(self, now_ns: int, name: str) -> list[Effect]:
        """A fault of the links to other machines. A new host is told at its start."""
        self._advance(now_ns)
        if name != self.weather:
            self.weather = name
            self.effects.append(Notify("network", connected=not self.cut, weather=name))
        return self.take()

    def lease(self, now_ns: int, deadline_ns: int) -> list[Effect]:
        """A renewal. It comes too late for guests whose margin has begun: those are frozen already."""
        self._advance(now_ns)
        self.lease_deadline_ns = max(self.lease_deadline_ns, deadline_ns)
        return self.take()

    def stop(self, now_ns: int) -> list[Effect]:
        """End everything; `End` follows when nothing is left. Repeated calls change nothing."""
        if not self.stopping:
            self.stopping = True
            for guest in self._alive():
                self._kill(guest)
            self.upgrade.abort("the machine is stopping")
            if self.host.state in ("waiting", "refused", "leaving"):
                self.host.state, self.host.deadline_ns = "ended", None
            else:
                self.host.state, self.host.deadline_ns = "stopping", now_ns + self.limits.stop_grace_ns
                self.effects.append(CloseHost())
            self._end_if_empty()
        self._advance(now_ns)
        return self.take()

    def _end_if_empty(self) -> None:
        empty = self.host.state == "ended" and all(guest.state == "exited" for guest in self.guests.values())
        if self.stopping and empty and not self.ended:
            self.ended = True
            self.effects.append(End())

    # -- guests: requests of the host ----------------------------------------------------------------------------------

    def spawn(self, now_ns: int, guest_id: str, epoch: int, request: int) -> list[Effect]:
        """Raises InvalidArgument (epoch), FailedPrecondition (it runs; stopping), Unavailable (frozen; no lease)."""
        self._advance(now_ns)
        before = self.guests.get(guest_id)
        self._check_spawn(now_ns, guest_id, epoch, before)
        self.guests[guest_id] = GuestLife(guest_id, epoch, waiters=[request], before=before)
        self.effects.append(SpawnGuest(guest_id, epoch))
        return self.take()

    def _check_spawn(self, now_ns: int, guest_id: str, epoch: int, before: GuestLife | None) -> None:
        if self.stopping:
            raise FailedPrecondition("the machine is stopping; start the guest on another one")
        if self.reasons:
            reasons = ", ".join(sorted(self.reasons))
            raise Unavailable(f"the machine is frozen ({reasons}); start the guest when that is over")
        if not self.serving(now_ns):
            raise Unavailable("the machine holds no lease under which the guest could serve; renew it first")
        if before is not None and before.state != "exited":
            raise FailedPrecondition(f"guest {guest_id} is {before.state}; stop it first")
        floor = before.epoch if before is not None else 0
        if epoch <= floor:
            raise InvalidArgument(
                f"guest {guest_id}: epoch {epoch} is not above {floor}; a new incarnation needs a new one"
            )

    def freeze(self, now_ns: int, guest_id: str, reason: str, request: int) -> list[Effect]:
        """`Done` when no process of the guest runs (also if it has ended). Raises NotFound, InvalidArgument.

        With guest_id "" the whole machine: all guests, and no new one until the same thaw.
        """
        self._advance(now_ns)
        _check_reason(reason)
        if not guest_id:
            return self._freeze_all(reason, request)
        guest = self._guest(guest_id)
        if guest.state == "spawning":
            raise FailedPrecondition(f"guest {guest_id} is being started; try again")
        if guest.state in ALIVE:
            guest.lease_announced |= reason == LEASE
            self._add_reason(guest, reason)
        self._await_rest(guest, request)
        return self.take()

    def thaw(self, now_ns: int, guest_id: str, reason: str) -> list[Effect]:
        """Taking away an absent reason changes nothing. Raises NotFound, InvalidArgument, FailedPrecondition."""
        self._advance(now_ns)
        _check_reason(reason)
        if reason == LEASE:
            raise FailedPrecondition("a guest frozen because its lease ran out never runs again; kill it")
        if not guest_id:
            self.reasons.discard(reason)
            for request in [request for request, wanted in self.waiters.items() if wanted == reason]:
                del self.waiters[request]
                self.effects.append(Failed(request, Aborted("the machine was thawed before its guests had stopped")))
        elif reason in self.reasons:
            raise FailedPrecondition(f"the whole machine is frozen ({reason}); thaw the machine, not one guest")
        for guest in list(self.guests.values()) if not guest_id else [self._guest(guest_id)]:
            self._drop_reason(guest, reason)
        return self.take()

    def kill(self, now_ns: int, guest_id: str, request: int) -> list[Effect]:
        """`Done` when no process of the guest is left. Raises NotFound, FailedPrecondition (being started)."""
        self._advance(now_ns)
        guest = self._guest(guest_id)
        if guest.state == "spawning":
            raise FailedPrecondition(f"guest {guest_id} is being started; try again")
        if guest.state in ALIVE:
            self._kill(guest)
        self._await_rest(guest, request)
        return self.take()

    def forget(self, now_ns: int, guest_id: str) -> list[Effect]:
        """Raises NotFound, FailedPrecondition while it runs."""
        self._advance(now_ns)
        guest = self._guest(guest_id)
        if guest.state != "exited":
            raise FailedPrecondition(f"guest {guest_id} is {guest.state}; stop it first")
        del self.guests[guest_id]
        return self.take()

    def admit(self, now_ns: int, guest_id: str, pid: int) -> list[Effect]:
        """Raises NotFound. If this process does not wait, as it was admitted or has ended, this changes nothing."""
        self._advance(now_ns)
        guest = self._guest(guest_id)
        if guest.attachment == "waiting" and guest.attached_pid == pid:
            guest.attachment = "attached"
            self.effects.append(Admit(guest_id))
        return self.take()

    # -- guests: what happened -----------------------------------------------------------------------------------------

    def guest_spawned(self, now_ns: int, guest_id: str, pid: int) -> list[Effect]:
        guest = self._expect(guest_id, "spawning")
        guest.state, guest.pid, guest.before = "running", pid, None
        self._finish(guest)
        # What came over the machine while it was being started holds for it too.
        for reason in sorted(self.reasons):
            self._add_reason(guest, reason)
        if self.stopping:
            self._kill(guest)
        self._advance(now_ns)
        return self.take()

    def spawn_failed(self, now_ns: int, guest_id: str, error: EverramError) -> list[Effect]:
        guest = self._expect(guest_id, "spawning")
        self._finish(guest, lambda: error)
        if guest.before is not None:
            self.guests[guest_id] = guest.before
        else:
            del self.guests[guest_id]
        self._finish_all()
        self._end_if_empty()
        self._advance(now_ns)
        return self.take()

    def guest_stopped(self, now_ns: int, guest_id: str) -> list[Effect]:
        """No process of it runs. Too late (thawed or ended meanwhile) it changes nothing."""
        guest = self.guests.get(guest_id)
        if guest is not None and guest.state == "freezing":
            guest.state = "frozen"
            self._finish(guest)
            self._announce_lease(guest)
        self._advance(now_ns)
        return self.take()

    def guest_exited(self, now_ns: int, guest_id: str, exit_status: int) -> list[Effect]:
        """The program's own process was reaped; what it left behind is killed."""
        guest = self._expect(guest_id, "running", "freezing", "frozen", "ending")
        guest.exit_status = exit_status
        if guest.state != "ending":
            self._kill(guest)
        self._advance(now_ns)
        return self.take()

    def guest_gone(self, now_ns: int, guest_id: str) -> list[Effect]:
        """After `guest_exited`: no process of it is left."""
        guest = self._expect(guest_id, "ending")
        if guest.exit_status < 0:
            raise AssertionError(f"guest {guest_id} is gone without an exit status")
        guest.state = "exited"
        guest.attachment, guest.attached_pid = "", 0
        self.effects.append(Notify("exited", guest_id, guest.epoch, exit_status=guest.exit_status, pid=guest.pid))
        self._finish(guest)
        self._end_if_empty()
        self._advance(now_ns)
        return self.take()

    # -- attachment ----------------------------------------------------------------------------------------------------

    def attach(self, now_ns: int, guest_id: str, epoch: int, pid: int, *, in_tree: bool, tracked: bool) -> list[Effect]:
        """A process asks for the guest's memory. `in_tree`: it is one of the guest's; `tracked`: a grant of it is.

        Raises PermissionDenied (a stranger), NotFound, FailedPrecondition (old epoch, frozen for good), AlreadyExists.
        """
        self._advance(now_ns)
        guest = self._guest(guest_id)
        if not in_tree:
            raise PermissionDenied(
                f"process {pid} does not belong to guest {guest_id}; only the guest's own may attach"
            )
        if guest.state not in ALIVE:
            raise FailedPrecondition(f"guest {guest_id} is {guest.state}")
        if epoch != guest.epoch:
            raise FailedPrecondition(f"guest {guest_id} is in epoch {guest.epoch}; a process of epoch {epoch} must end")
        if guest.attached_pid:
            raise AlreadyExists(f"process {guest.attached_pid} of guest {guest_id} is attached; one at a time")
        guest.attached_pid = pid
        guest.attachment = "mapping" if tracked else "attached"
        if not tracked:
            self._notify_attached(guest)
        return self.take()

    def tracked(self, now_ns: int, guest_id: str, pid: int) -> list[Effect]:
        """The attaching process has handed in its userfaultfd and now waits for `admit`."""
        guest = self._attaching(guest_id, pid)
        guest.attachment = "waiting"
        self._notify_attached(guest)
        self._advance(now_ns)
        return self.take()

    def untracked(self, now_ns: int, guest_id: str, pid: int) -> list[Effect]:
        """It goes on without fault service (D13)."""
        guest = self._attaching(guest_id, pid)
        guest.attachment = "attached"
        self._notify_attached(guest)
        self._advance(now_ns)
        return self.take()

    def detached(self, now_ns: int, guest_id: str, pid: int) -> list[Effect]:
        """The attached process closed its connection, most often by ending. Of another process it changes nothing."""
        guest = self.guests.get(guest_id)
        if guest is not None and guest.attached_pid == pid and pid:
            guest.attachment, guest.attached_pid = "", 0
            if guest.state in ALIVE:
                self.effects.append(Notify("detached", guest_id, guest.epoch, pid=pid))
        self._advance(now_ns)
        return self.take()

    def _attaching(self, guest_id: str, pid: int) -> GuestLife:
        guest = self.guests.get(guest_id)
        if guest is None or guest.attached_pid != pid or guest.attachment != "mapping":
            raise FailedPrecondition(f"process {pid} is not attaching to guest {guest_id}")
        return guest

    def _notify_attached(self, guest: GuestLife) -> None:
        guest.was_attached = True
        self.effects.append(Notify("attached", guest.guest_id, guest.epoch, pid=guest.attached_pid))

    # -- parts ---------------------------------------------------------------------------------------------------------

    def take(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def _alive(self) -> list[GuestLife]:
        return [guest for guest in self.guests.values() if guest.state in ALIVE]

    def _guest(self, guest_id: str) -> GuestLife:
        guest = self.guests.get(guest_id)
        if guest is None:
            raise NotFound(f"the machine knows no guest {guest_id or '(empty)'}")
        return guest

    def _expect(self, guest_id: str, *states: str) -> GuestLife:
        guest = self.guests.get(guest_id)
        if guest is None or guest.state not in states:
            raise AssertionError(f"guest {guest_id} is {guest.state if guest else 'unknown'}, not one of {states}")
        return guest

    def _freeze_all(self, reason: str, request: int) -> list[Effect]:
        if reason == LEASE:
            raise InvalidArgument("the lease ends by its deadline; freeze single guests with this reason")
        self.add_machine_reason(reason)
        self.waiters[request] = reason
        self._finish_all()
        return self.take()

    def add_machine_reason(self, reason: str) -> None:
        self.reasons.add(reason)
        for guest in self._alive():
            self._add_reason(guest, reason)

    def drop_machine_reason(self, reason: str) -> None:
        if reason in self.reasons:
            self.reasons.discard(reason)
            for guest in list(self.guests.values()):
                self._drop_reason(guest, reason)

    def still(self) -> bool:
        """Whether no process of any guest runs."""
        return all(guest.state in ("frozen", "exited") for guest in self.guests.values())

    def _add_reason(self, guest: GuestLife, reason: str) -> None:
        if reason in guest.reasons:
            return
        guest.reasons.add(reason)
        if guest.state == "running":
            guest.state = "freezing"
            self.effects.append(StopGuest(guest.guest_id))
        elif guest.state == "frozen":
            self._announce_lease(guest)

    def _drop_reason(self, guest: GuestLife, reason: str) -> None:
        if guest.state not in ("freezing", "frozen") or reason not in guest.reasons:
            return
        guest.reasons.discard(reason)
        if not guest.reasons:
            guest.state = "running"
            self.effects.append(ContinueGuest(guest.guest_id))
            self._finish(guest, lambda: Aborted(f"guest {guest.guest_id} was thawed before it had stopped"))

    def _kill(self, guest: GuestLife) -> None:
        guest.state = "ending"
        self.effects.append(KillGuest(guest.guest_id))

    def _announce_lease(self, guest: GuestLife) -> None:
        """To the host, once, when the guest that the machine froze by itself has really stopped."""
        if LEASE in guest.reasons and not guest.lease_announced:
            guest.lease_announced = True
            self.effects.append(Notify("frozen", guest.guest_id, guest.epoch, pid=guest.pid, reason=LEASE))

    def _await_rest(self, guest: GuestLife, request: int) -> None:
        if guest.state in ("freezing", "ending"):
            guest.waiters.append(request)
        else:
            self.effects.append(Done(request))

    def _finish(self, guest: GuestLife, error: Callable[[], EverramError] | None = None) -> None:
        """End the requests that wait for this guest, and those for all if it was the last."""
        for request in guest.waiters:
            self.effects.append(Failed(request, error()) if error else Done(request))
        guest.waiters.clear()
        self._finish_all()

    def _finish_all(self) -> None:
        if self.still():
            self.effects.extend(Done(request) for request in self.waiters)
            self.waiters.clear()

    def validate(self) -> None:
        """Assert the invariants of this class and of its records; tests call it after every step."""
        self.host.validate()
        for guest_id, guest in self.guests.items():
            assert guest.guest_id == guest_id
            guest.validate()
            assert guest.state not in ALIVE or self.reasons <= guest.reasons, "a guest runs under a frozen machine"
        assert self.stopping == (self.host.state in ("stopping", "ended"))
        assert LEASE not in self.reasons, "the lease is each guest's own reason"
        assert not (self.waiters and self.still()), "a request waits for nothing"
        self.upgrade.validate()
        waiting = [request for guest in self.guests.values() for request in guest.waiters]
        assert len({*waiting, *self.waiters}) == len(waiting) + len(self.waiters), "a request waits twice"
        assert not self.ended or (self.host.state == "ended" and all(g.state == "exited" for g in self.guests.values()))


def _check_reason(reason: str) -> None:
    """Raises InvalidArgument."""
    if reason not in REASONS:
        raise InvalidArgument(f"{reason!r} is not a reason to freeze a guest; those are {', '.join(sorted(REASONS))}")
